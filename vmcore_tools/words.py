# SPDX-License-Identifier: LGPL-2.1-or-later
"""Words that go with a number."""

from __future__ import annotations

from typing import Optional


def plural(count: int, one: str, more: Optional[str] = None) -> str:
    """
    The words for *count* things, without the number: a message's ``{name}`` stands for that.

    :param more: for any number but one; with an *s* behind *one* unless given

    >>> plural(1, "task waits", "tasks wait")
    'task waits'
    >>> plural(2, "task")
    'tasks'
    """
    if count == 1:
        return one
    return f"{one}s" if more is None else more


def counted(count: int, one: str, more: Optional[str] = None) -> str:
    """
    >>> counted(1, "task")
    '1 task'
    >>> counted(1200, "task")
    '1,200 tasks'
    """
    return f"{count:,} {plural(count, one, more)}"


def several(what: str) -> str:
    """
    Many of what words in the singular say.

    >>> several("stack of a SLUB track")
    'stacks of a SLUB track'
    >>> several("CPU's registers")
    "CPU's registers"
    """
    noun, of, rest = what.partition(" of ")
    return f"{noun if noun.endswith('s') else noun + 's'}{of}{rest}"
