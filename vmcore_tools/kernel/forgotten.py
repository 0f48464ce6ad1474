# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which objects are forgotten: nothing in memory points at them any more."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vmcore_tools.kernel.audit import slots_around
from vmcore_tools.kernel.page import page_index
from vmcore_tools.kernel.references import Attribution, Targets, register_references, scan
from vmcore_tools.kernel.slab import SlabIndex
from vmcore_tools.kernel.virtual_map import virtual_map

U64 = npt.NDArray[np.uint64]


def not_forgotten(index: SlabIndex, objects: U64, weak: U64) -> npt.NDArray[np.bool_]:
    """
    Which slab objects anything still points at.

    :param objects: uint64 array of shape (n,): addresses anywhere in them
    :param weak: uint64 array: addresses of words that hold nothing
    :return: bool array of shape (n,)
    :raises drgn.FaultError: if the page tables or the list of tasks cannot be read
    """
    result = np.zeros(len(objects), dtype=bool)
    if not len(objects):
        return result
    start, size = slots_around(index, objects)
    starts, first, target = np.unique(start, return_index=True, return_inverse=True)
    targets = Targets(starts, starts + size[first].astype(np.uint64))
    prog, memory = index.prog, index.memory
    pages = page_index(prog, memory)
    hits, _ = scan(memory, pages, targets, lambda items, _what, _total: items)
    virtual = virtual_map(prog, memory.page_map.page_size_bytes)
    found = Attribution.of(prog, index, pages, virtual).references(targets, hits)
    in_registers, _ = register_references(prog, targets)
    known = set(weak.tolist())
    some = [
        reference.target
        for reference in (*found, *in_registers)
        if reference.non_reference is None and reference.address not in known
    ]
    result[np.isin(target.reshape(-1), np.array(some, dtype=np.int64))] = True
    return result
