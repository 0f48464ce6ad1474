# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is wrong with the user's input: one sentence and the next step."""

from __future__ import annotations


class TargetError(Exception):
    """
    The target cannot be looked at; the command ends with exit code 2.

    The message is for the user: one clear sentence that says what is wrong,
    and the next step. It may quote the dump, but only printable characters.
    """


def printable(text: str) -> str:
    """*text* with control characters and terminal escapes as backslash escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
