# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which objects tasks are working on, and which are forgotten: what points at them."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence

import numpy as np
import numpy.typing as npt

from vmcore_tools.kernel.audit import slots_around
from vmcore_tools.kernel.page import page_index
from vmcore_tools.kernel.references import (
    Attribution,
    Place,
    Reference,
    Targets,
    register_references,
    scan,
)
from vmcore_tools.kernel.slab import SlabIndex
from vmcore_tools.kernel.virtual_map import virtual_map

U64 = npt.NDArray[np.uint64]
Progress = Callable[[Iterable[Any], str, Optional[int]], Iterable[Any]]

_OF_TASKS = (Place.TASK_STACK, Place.REGISTER)


def with_tasks(index: SlabIndex, objects: U64, progress: Progress) -> npt.NDArray[np.bool_]:
    """
    Which slab objects a task has on its live stack or in a register.

    :param objects: uint64 array of shape (n,): addresses anywhere in them
    :return: bool array of shape (n,)
    :raises drgn.FaultError: if the page tables or the list of tasks cannot be read
    """
    return _pointed_at(index, objects, progress, _of_task)


def not_forgotten(index: SlabIndex, objects: U64, weak: U64) -> npt.NDArray[np.bool_]:
    """
    Which slab objects anything still points at.

    :param objects: uint64 array of shape (n,): addresses anywhere in them
    :param weak: uint64 array: addresses of words that hold nothing
    :return: bool array of shape (n,)
    :raises drgn.FaultError: if the page tables or the list of tasks cannot be read
    """
    known = set(weak.tolist())
    return _pointed_at(
        index,
        objects,
        lambda items, _what, _total: items,
        lambda found: found.non_reference is None and found.address not in known,
    )


def _pointed_at(
    index: SlabIndex, objects: U64, progress: Progress, counts: Callable[[Reference], bool]
) -> npt.NDArray[np.bool_]:
    result = np.zeros(len(objects), dtype=bool)
    if not len(objects):
        return result
    start, size = slots_around(index, objects)
    starts, first, target = np.unique(start, return_index=True, return_inverse=True)
    targets = Targets(starts, starts + size[first].astype(np.uint64))
    prog, memory = index.prog, index.memory
    pages = page_index(prog, memory)
    hits, _ = scan(memory, pages, targets, progress)
    virtual = virtual_map(prog, memory.page_map.page_size_bytes)
    found = Attribution.of(prog, index, pages, virtual).references(targets, hits)
    in_registers, _ = register_references(prog, targets)
    some = [r.target for r in (*found, *in_registers) if counts(r)]
    result[np.isin(target.reshape(-1), np.array(some, dtype=np.int64))] = True
    return result


def under_way(
    index: SlabIndex, pointers: Dict[int, List[Reference]], progress: Progress
) -> List[int]:
    """
    Objects that tasks are just building up or taking apart.

    All that points at such an object is a task, or a slab object that a task
    itself has at hand: an attachment that is in no object yet, an entry that
    was taken out of its tree.

    :param pointers: of each object: what points at it and is not explained
    :return: the keys of these objects
    """
    containers: Dict[int, Sequence[int]] = {}
    for key, references in pointers.items():
        others = [reference for reference in references if not _of_task(reference)]
        if all(reference.place == Place.SLAB_OBJECT for reference in others):
            containers[key] = [reference.container for reference in others]
    every = np.array(sorted({a for some in containers.values() for a in some}), dtype=np.uint64)
    busy = set(every[with_tasks(index, every, progress)].tolist())
    return [key for key, some in containers.items() if busy.issuperset(some)]


def _of_task(reference: Reference) -> bool:
    return reference.non_reference is None and reference.place in _OF_TASKS
