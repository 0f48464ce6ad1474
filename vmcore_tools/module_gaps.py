# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is not seen of modules without debug info, and where theirs is."""

from __future__ import annotations

from vmcore_tools.analysis import Context
from vmcore_tools.kernel.modules import modules_without_debug_info

#: What to do about them.
NEXT_STEP = (
    "give the debug package that has this vmlinux, or its unpacked folder, with -s"
    " (of a module that was built apart: its .ko)"
)


def count_modules_without_debug_info(ctx: Context, unseen: str) -> None:
    """
    Count the modules whose debug info was not found, if there are any.

    :param unseen: what an analysis does not see therefore, in words
    """
    missing = len(modules_without_debug_info(ctx.prog))
    if missing:
        ctx.coverage.gap("module", f"no debug info, so {unseen}; {NEXT_STEP}", count=missing)
