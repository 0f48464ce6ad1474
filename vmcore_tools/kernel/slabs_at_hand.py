# SPDX-License-Identifier: LGPL-2.1-or-later
"""Slabs that CPUs were working on when the dump was made: they are in the middle of a change."""

from __future__ import annotations

import numpy as np
from drgn import Program
from drgn.helpers.linux.mm import virt_to_page

from vmcore_tools.kernel.task import words_at_hand


class AtHand:
    """
    What CPUs were working on.

    The code that works on a slab has its page structure or its memory in a
    register or on its stack.
    """

    def __init__(self, prog: Program) -> None:
        self._prog = prog
        self._words = words_at_hand(prog)

    def has(self, start: int, size: int) -> bool:
        """Whether there is a pointer into these addresses."""
        at = int(np.searchsorted(self._words, np.uint64(start)))
        return at < len(self._words) and int(self._words[at]) < start + size

    def has_page_struct(self, address: int) -> bool:
        """Whether there is a pointer to the page structure of an address."""
        return self.has(virt_to_page(self._prog, address).value_(), 1)
