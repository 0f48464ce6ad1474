# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which objects tasks have at hand: their live stacks or registers point into them."""

from __future__ import annotations

import contextlib
from typing import List, Optional

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Program, ProgramFlags
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.sched import idle_task

from vmcore_tools.kernel.audit import slots_around
from vmcore_tools.kernel.slab import SlabIndex
from vmcore_tools.kernel.task import for_each_bounded_task, live_words

U64 = npt.NDArray[np.uint64]

_CACHE_KEY = "vmcore_tools.kernel.at_hand"


def at_hand(index: SlabIndex, addresses: U64) -> npt.NDArray[np.bool_]:
    """
    Which slab objects any task, asleep or not, has on its live stack or in a register.

    :param addresses: uint64 array of shape (n,): anywhere in them; of what is in no slab
        the address itself is looked for
    :return: bool array of shape (n,)
    :raises drgn.FaultError: if the list of tasks cannot be read
    """
    if not len(addresses):
        return np.zeros(0, dtype=bool)
    words = _words_of_tasks(index.prog)
    start, size = slots_around(index, addresses)
    first = np.searchsorted(words, start)
    return first < np.searchsorted(words, start + size.astype(np.uint64))


def _words_of_tasks(prog: Program) -> U64:
    """The live words of all tasks, the idle ones too, sorted; of a dump they are read once."""
    cached: Optional[U64] = prog.cache.get(_CACHE_KEY)
    if cached is not None:
        return cached
    parts: List[U64] = [np.zeros(0, dtype=np.uint64)]
    idle = (idle_task(prog, cpu) for cpu in for_each_possible_cpu(prog))
    for tasks in (for_each_bounded_task(prog), idle):
        for task in tasks:
            with contextlib.suppress(FaultError):
                parts.append(live_words(task))
    words = np.sort(np.concatenate(parts))
    if not prog.flags & ProgramFlags.IS_LIVE:
        prog.cache[_CACHE_KEY] = words
    return words
