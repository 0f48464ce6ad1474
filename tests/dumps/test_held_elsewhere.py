# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a holder points at that is none of the objects, in the memory of real dumps."""

from __future__ import annotations

from typing import Tuple

import numpy as np

from tests.dumps.conftest import ShippedDump
from vmcore_tools.kernel.audit import Counted, Holders, Stale, _held_elsewhere
from vmcore_tools.kernel.page import PageClass, direct_map_offset, page_index
from vmcore_tools.kernel.slab import ObjectState, SlabIndex, slab_index


def pointing_at(index: SlabIndex, *addresses: int) -> Tuple[Stale, np.ndarray]:
    nothing = np.zeros(0, dtype=np.uint64)
    none = Counted(
        nothing, nothing.astype(np.int64), nothing, nothing.astype(np.int64), nothing.astype(int)
    )
    held = np.array(addresses, dtype=np.uint64)
    return _held_elsewhere(index, none, [Holders("sync_file", held, nothing)])


def address_in_page(shipped: ShippedDump, kind: PageClass) -> int:
    """Some address in the last such page."""
    prog, memory = shipped.target.prog, shipped.target.memory
    pages = page_index(prog, memory)
    at = int(np.flatnonzero(pages.kind == kind)[-1])
    row = int(np.searchsorted(pages.position, at, side="right")) - 1
    frame = int(pages.ranges[row, 0]) + at - int(pages.position[row])
    return direct_map_offset(prog) + frame * memory.page_map.page_size_bytes + 0xC0


def test_a_fence_of_the_guests_record_is_some_other_object(shipped: ShippedDump) -> None:
    index = slab_index(shipped.target.prog, shipped.target.memory)
    fence = int(shipped.truth["held"][0]["address"], 16)
    stale, unknown = pointing_at(index, fence)
    assert (stale.address.tolist(), unknown.tolist()) == ([], [fence])


def test_a_variable_of_the_kernels_is_neither(shipped: ShippedDump) -> None:
    prog = shipped.target.prog
    index = slab_index(prog, shipped.target.memory)
    stale, unknown = pointing_at(index, prog["dma_fence_stub"].address_, prog["jiffies"].address_)
    assert (len(stale.address), len(unknown)) == (0, 0)


def test_free_slab_objects_and_pages_are_stale(shipped: ShippedDump) -> None:
    index = slab_index(shipped.target.prog, shipped.target.memory)
    fence = int(shipped.truth["held"][0]["address"], 16)
    cache = index.cache[index.find(np.array([fence], dtype=np.uint64))[0]]
    batch = next(index.batches(np.flatnonzero(index.cache == cache)))
    free = int(batch.objects[~batch.allocated][0])
    assert index.object_states(np.array([free], dtype=np.uint64))[0] == ObjectState.FREE
    pages = [
        address_in_page(shipped, kind)
        for kind in (PageClass.FREE, PageClass.ANONYMOUS, PageClass.PAGE_CACHE)
    ]
    stale, unknown = pointing_at(index, free, *pages)
    assert stale.address.tolist() == sorted([free, *pages])
    assert dict(zip(stale.address.tolist(), stale.cache.tolist())) == {
        free: cache,
        **dict.fromkeys(pages, -1),
    }
    assert stale.kinds == (("sync_file",),) * 4
    assert len(unknown) == 0


def test_other_pages_of_the_kernels_are_not_known(shipped: ShippedDump) -> None:
    index = slab_index(shipped.target.prog, shipped.target.memory)
    pages = [
        address_in_page(shipped, kind)
        for kind in (PageClass.IDLE, PageClass.PAGE_TABLE, PageClass.ALLOCATED)
    ]
    stale, unknown = pointing_at(index, *pages)
    assert (stale.address.tolist(), unknown.tolist()) == ([], sorted(pages))
