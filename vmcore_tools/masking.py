# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a report is masked with, from the memory of the kernel that it is about."""

from __future__ import annotations

import hashlib

from drgn import Program

from vmcore_tools.kernel.identity import boot_secret, identifying_names
from vmcore_tools.model import Masking

#: What uname() tells before anybody sets a name, and by default afterwards.
_NO_NAMES = frozenset(("", "(none)", "localhost"))


def masking_of(prog: Program) -> Masking:
    """
    A key, and the names to mask wherever they are written.

    A name of one character or of digits alone is masked where it stands for itself, but is
    not looked for in other text, whose numbers have to stay.
    """
    secret = boot_secret(prog)
    return Masking(
        key=hashlib.sha256(b"vmcore-tools --redact\0" + secret).digest() if secret else b"",
        names=tuple(
            sorted(
                name
                for name in set(identifying_names(prog)) - _NO_NAMES
                if len(name) > 1 and not name.isdigit()
            )
        ),
    )
