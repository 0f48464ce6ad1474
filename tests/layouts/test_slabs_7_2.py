# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sheaves and barns, page types, and page heads that are masks: v7.1 and later."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, List, Sequence

import numpy as np
import pytest

from tests.layouts.machine import DIRECT_MAP, PAGE, Machine
from tests.layouts.slabs import Slabs, allocated, page_struct, set_up_sheaves, tail_info
from vmcore_tools.kernel import slab_layout
from vmcore_tools.kernel.page import PageClass, page_index, page_types
from vmcore_tools.kernel.slab import ObjectState, SlabFault, SlabIndex, slab_index

#: What kernel/vmcore_info.c writes of enum pagetype.
NOTE = tuple(
    f"NUMBER(PAGE_{name}_MAPCOUNT_VALUE)={(value << 24) - (1 << 32)}"
    for name, value in (("SLAB", 0xF5), ("BUDDY", 0xF0), ("HUGETLB", 0xF4), ("OFFLINE", 0xF1))
)
HVO = "CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP"
HARDENED = "CONFIG_SLAB_FREELIST_HARDENED"


@pytest.fixture(params=[(), (HVO, HARDENED)], ids=["plain", "masks-hardened"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    machine = Machine("linux_7_2.c", tmp_path, "7.2.13", NOTE, request.param)
    yield machine
    machine.close()


def allocated_of(index: SlabIndex, number: int) -> List[int]:
    return sorted(
        address
        for batch in index.batches(np.flatnonzero(index.cache == number))
        for address in batch.objects[batch.allocated].tolist()
    )


def test_the_allocated_objects_of_slabs_without_sheaves(machine: Machine) -> None:
    slabs = Slabs(machine)
    small = slabs.cache(b"kmalloc-64", 64)
    large = slabs.cache(b"kmalloc-1k", 1024, order=2, offset=512)
    partial = slabs.slab(small, free=[5, 0, 63])
    full = slabs.slab(small)
    several_pages = slabs.slab(large, free=[15, 3, 9])

    index = slab_index(machine.prog, machine.memory)

    assert index.objects.tolist() == [64, 64, 16]
    assert index.inuse.tolist() == [61, 64, 13]
    assert allocated_of(index, 0) == sorted(allocated(partial, [5, 0, 63]) + full)
    assert allocated_of(index, 1) == allocated(several_pages, [15, 3, 9])
    assert index.problems == []


def test_objects_in_sheaves_are_free(machine: Machine) -> None:
    slabs = Slabs(machine)
    cache = slabs.cache(b"kmalloc-64", 64)
    other = slabs.cache(b"kmalloc-128", 128)
    first = slabs.slab(cache, free=[60, 61])
    second = slabs.slab(cache)
    others = slabs.slab(other)
    # main; spare; rcu_free: they wait for a grace period; and full ones.
    set_up_sheaves(
        machine,
        cache,
        4,
        [
            {"main": first[0:3], "spare": [], "rcu_free": [first[10]]},
            {"main": [second[7]], "spare": second[20:24]},
        ],
        [first[30:34], second[40:44]],
    )

    index = slab_index(machine.prog, machine.memory)

    aside = {0, 1, 2, 10, 30, 31, 32, 33, 60, 61}
    aside_second = {7, 20, 21, 22, 23, 40, 41, 42, 43}
    assert allocated_of(index, 0) == sorted(
        allocated(first, aside) + allocated(second, aside_second)
    )
    # Caches with debugging, and those of the boot, have no sheaves.
    assert allocated_of(index, 1) == others
    assert index.problems == []
    asked = np.array([first[0], first[3], second[43], second[44]], dtype=np.uint64)
    assert index.object_states(asked).tolist() == [
        ObjectState.FREE,
        ObjectState.ALLOCATED,
        ObjectState.FREE,
        ObjectState.ALLOCATED,
    ]
    # Seven sheaves, with four entries each whatever is in them.
    arrays = index.free_object_arrays
    assert len(arrays) == 7
    assert (arrays[:, 1] - arrays[:, 0] == 32).all()
    words = {
        word
        for start, end in arrays.tolist()
        for word in np.frombuffer(machine.read(start, end - start), dtype=np.uint64).tolist()
        if word
    }
    assert words == {first[i] for i in (0, 1, 2, 10, 30, 31, 32, 33)} | {
        second[i] for i in aside_second
    }


@pytest.mark.parametrize("callback", ["rcu_free_sheaf", "rcu_free_sheaf_nobarn"])
def test_objects_in_a_sheaf_that_rcu_has_are_free(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, callback: str
) -> None:
    addresses = {"rcu_free_sheaf": 0xFFFFFFFF81123450, "rcu_free_sheaf_nobarn": 0xFFFFFFFF81123460}
    monkeypatch.setattr(slab_layout, "_function", lambda prog, name: addresses[name])
    slabs = Slabs(machine)
    holders = slabs.cache(b"kmalloc-64", 64)
    cache = slabs.cache(b"dentry", 192)
    waiting = slabs.slab(holders)
    objects = slabs.slab(cache)
    set_up_sheaves(machine, cache, 4, [{"main": objects[:2]}, {}])
    # Of one that was taken back, the kernel has cleared the callback; two are no sheaves.
    for at, function, owner, size in (
        (5, addresses[callback], cache.address, 3),
        (6, 0, cache.address, 4),
        (7, addresses[callback], waiting[0], 1),
        (8, addresses[callback], cache.address, 5),
    ):
        entries = objects[4 * at - 16 : 4 * at - 12]
        machine.words(waiting[at], [0, function, owner, size, *entries])

    index = slab_index(machine.prog, machine.memory)

    number = next(n for n, c in enumerate(index.caches) if c.name == "dentry")
    assert allocated_of(index, number) == allocated(objects, {0, 1, 4, 5, 6})
    arrays = index.free_object_arrays.tolist()
    assert [waiting[5] + 32, waiting[5] + 64] in arrays
    assert not {waiting[at] + 32 for at in (6, 7, 8)} & {start for start, _ in arrays}


def test_a_damaged_list_of_sheaves_is_told(machine: Machine) -> None:
    slabs = Slabs(machine)
    cache = slabs.cache(b"kmalloc-64", 64)
    slabs.slab(cache)
    set_up_sheaves(machine, cache, 4, [{}, {}], [[], []])
    barn = barn_of(machine, cache.address)
    at = machine.prog.type("struct node_barn").member("sheaves_full").bit_offset // 8
    first = int.from_bytes(machine.read(barn + at, 8), "little")
    machine.words(first, [first])

    index = slab_index(machine.prog, machine.memory)

    assert [(p.address, p.fault) for p in index.problems] == [(cache.address, SlabFault.UNREAD)]


def barn_of(machine: Machine, cache: int) -> int:
    at = machine.prog.type("struct kmem_cache").member("per_node").bit_offset // 8
    return int.from_bytes(machine.read(cache + at, 8), "little")


def test_what_the_pages_are_used_for(machine: Machine) -> None:
    slabs = Slabs(machine)
    objects = slabs.slab(slabs.cache(b"kmalloc-1k", 1024, order=2))
    slab = (objects[0] - DIRECT_MAP) // PAGE
    free = machine.alloc_pages(3)
    machine.put("struct page", page_struct(free), {"page_type": 0xF0000000, "private": 3})
    anonymous = machine.alloc_pages(4)
    used = {"page_type": 0xFFFFFFFF, "_refcount.counter": 1}
    head = page_struct(anonymous)
    machine.put("struct page", head, {**used, "mapping": DIRECT_MAP | 1})
    for tail in range(1, 16):
        info = tail_info(machine, head, 4)
        machine.put("struct page", page_struct(anonymous + tail), {"compound_info": info})
    table, offline, large = (machine.alloc_pages(0) for _ in range(3))
    machine.put("struct page", page_struct(table), {**used, "page_type": 0xF2000000})
    machine.put("struct page", page_struct(offline), {**used, "page_type": 0xF1000000})
    machine.put("struct page", page_struct(large), {**used, "page_type": 0xF8000000})

    index = page_index(machine.prog, machine.memory)

    def kinds(pfns: Sequence[int]) -> List[int]:
        return index.kind_of(np.array(pfns)).tolist()

    assert kinds(range(slab, slab + 4)) == [PageClass.SLAB] * 4
    assert kinds(range(free, free + 8)) == [PageClass.FREE] * 8
    assert kinds(range(anonymous, anonymous + 16)) == [PageClass.ANONYMOUS] * 16
    assert kinds([table, offline, large]) == [
        PageClass.PAGE_TABLE,
        PageClass.OFFLINE,
        PageClass.ALLOCATED,
    ]
    assert index.slab_pfn.tolist() == [slab]


def test_whether_a_tail_page_has_a_mask(tmp_path: Path) -> None:
    for config in ((), (HVO,)):
        machine = Machine("linux_7_2.c", tmp_path, "7.2.13", NOTE, config)
        assert page_types(machine.prog).compound_mask == (config == (HVO,))
        machine.close()
