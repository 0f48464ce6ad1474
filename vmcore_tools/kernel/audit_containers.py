# SPDX-License-Identifier: LGPL-2.1-or-later
"""
References that a task has not in its own variables, but in a structure that it has.

A driver collects the objects of a request in an array, and only its stack has
the pointer to the array. For as long as that takes, the references in it are
as much in use as those on the stack itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Dict, List, Set

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program

from vmcore_tools.kernel.audit import Audit, Verdict, slots_around
from vmcore_tools.kernel.references import Place
from vmcore_tools.kernel.slab import SlabIndex
from vmcore_tools.kernel.task import for_each_bounded_task, live_range, live_registers

U64 = npt.NDArray[np.uint64]


def with_containers_in_use(index: SlabIndex, result: Audit) -> Audit:
    """
    Take objects for in use that tasks have through another slab object.

    Of the objects with unknown holders, those with as many references left as
    tasks have pointers to them, and to slab objects with a pointer to them.

    :raises drgn.FaultError: if the list of tasks cannot be read
    """
    unknown = np.flatnonzero(
        np.isin(result.verdict, [Verdict.UNKNOWN_HOLDER, Verdict.NOT_JUDGED])
    ).tolist()
    containers: Dict[int, Set[int]] = {
        i: {r.container for r in result.pointers[i] if r.place == Place.SLAB_OBJECT}
        for i in unknown
    }
    every = np.array(sorted({c for some in containers.values() for c in some}), dtype=np.uint64)
    if not len(every):
        return result
    at_hand = _at_hand(index, every)
    verdict = result.verdict.copy()
    for i in unknown:
        tasks = sum(r.place in (Place.TASK_STACK, Place.REGISTER) for r in result.pointers[i])
        if tasks + len(containers[i] & at_hand) >= result.left[i]:
            verdict[i] = Verdict.IN_USE
    return dataclasses.replace(result, verdict=verdict)


def _at_hand(index: SlabIndex, slots: U64) -> Set[int]:
    """
    Which slab objects live stacks and registers point into.

    :param slots: uint64 array, sorted: where the objects begin
    """
    _, size = slots_around(index, slots)
    words = _live_words(index.prog)
    at = np.maximum(np.searchsorted(slots, words, side="right") - 1, 0)
    inside = (words >= slots[at]) & (words < slots[at] + size[at].astype(np.uint64))
    found: Set[int] = set(slots[at[inside]].tolist())
    return found


def _live_words(prog: Program) -> U64:
    """The words of the live stacks of all tasks, and of the registers of those on CPUs."""
    parts: List[U64] = [np.zeros(0, dtype=np.uint64)]
    for task in for_each_bounded_task(prog):
        with contextlib.suppress(FaultError):
            parts.append(_words_of(task))
    return np.concatenate(parts)


def _words_of(task: Object) -> U64:
    low, high = live_range(task)
    stack = np.frombuffer(task.prog_.read(low, high - low), dtype=np.uint64)
    registers = list((live_registers(task) or {}).values())
    return np.concatenate([stack, np.array(registers, dtype=np.uint64)])
