# SPDX-License-Identifier: LGPL-2.1-or-later
"""SLUB in ``struct page``, before v5.17, and tracks that are arrays of addresses."""

from __future__ import annotations

from typing import Iterator, List, Sequence

import numpy as np
import pytest
from drgn import offsetof, sizeof

from tests.layouts.machine import DIRECT_MAP, PAGE, Machine
from tests.layouts.slabs import SLAB_STORE_USER, Slabs, allocated, page_struct
from vmcore_tools.kernel.object_types import is_kmalloc
from vmcore_tools.kernel.page import PageClass, page_index
from vmcore_tools.kernel.slab import ObjectState, SlabFault, SlabIndex, slab_index
from vmcore_tools.kernel.slub_tracks import TrackItem, has_tracks, object_tracks

# The kernel writes what ~PG_buddy is, as a signed number.
NOTE = ("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129", "NUMBER(PG_slab)=9")


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine("linux_4_19.c", tmp_path_factory.mktemp("linux"), "4.19.90", NOTE)
    yield machine
    machine.close()


def allocated_of(index: SlabIndex, number: int) -> List[int]:
    return sorted(
        address
        for batch in index.batches(np.flatnonzero(index.cache == number))
        for address in batch.objects[batch.allocated].tolist()
    )


def test_the_allocated_objects_of_all_slabs(machine: Machine) -> None:
    slabs = Slabs(machine)
    small = slabs.cache(b"kmalloc-128", 128)
    large = slabs.cache(b"kmalloc-1k", 1024, order=2)
    partial = slabs.slab(small, free=[5, 0, 31])
    full = slabs.slab(small)
    of_cpu = slabs.slab(small, free=[7, 8], cpu=1)
    several_pages = slabs.slab(large, free=[15, 3])

    index = slab_index(machine.prog, machine.memory)

    assert [cache.name for cache in index.caches] == ["kmalloc-128", "kmalloc-1k"]
    assert index.objects.tolist() == [32, 32, 32, 16]
    assert index.inuse.tolist() == [29, 32, 32, 14]
    assert index.frozen.tolist() == [False, False, True, False]
    assert allocated_of(index, 0) == sorted(
        allocated(partial, [5, 0, 31]) + full + allocated(of_cpu, [7, 8])
    )
    assert allocated_of(index, 1) == allocated(several_pages, [15, 3])
    assert index.problems == []


def test_control_groups_have_copies_of_caches(machine: Machine) -> None:
    slabs = Slabs(machine)
    root = slabs.cache(b"kmalloc-128", 128)
    copy = slabs.cache(b"kmalloc-128(522:accounts-daemon.service)", 128, root=root.address)
    named = slabs.cache(b"weird(1:name)", 128)  # as a module can call its own
    of_root, of_copy, of_named = (slabs.slab(cache, free=[5]) for cache in (root, copy, named))

    index = slab_index(machine.prog, machine.memory)

    def objects(number: int) -> List[int]:
        rows = index.rows_of(number)
        return sorted(
            address
            for batch in index.batches(rows)
            for address in batch.objects[batch.allocated].tolist()
        )

    assert [cache.kind for cache in index.caches] == ["kmalloc-128", "kmalloc-128", "weird(1:name)"]
    assert [is_kmalloc(cache) for cache in index.caches] == [True, True, False]
    assert objects(0) == sorted(allocated(of_root, [5]) + allocated(of_copy, [5]))
    assert objects(1) == allocated(of_copy, [5])
    assert objects(2) == allocated(of_named, [5])
    assert index.rows_of(None).tolist() == []


def test_a_corrupt_freelist_is_its_slab_s_alone(machine: Machine) -> None:
    slabs = Slabs(machine)
    cache = slabs.cache(b"kmalloc-128", 128)
    broken = slabs.slab(cache, free=[4, 9])
    sound = slabs.slab(cache, free=[1])
    machine.words(broken[9], [sound[0] + 8])

    index = slab_index(machine.prog, machine.memory)

    assert allocated_of(index, 0) == allocated(sound, [1])
    assert [(problem.address, problem.fault) for problem in index.problems] == [
        (broken[0], SlabFault.FREELIST)
    ]
    states = index.object_states(np.array([broken[0], sound[0], sound[1]], dtype=np.uint64))
    assert states.tolist() == [ObjectState.UNKNOWN, ObjectState.ALLOCATED, ObjectState.FREE]


def test_what_the_pages_are_used_for(machine: Machine) -> None:
    slabs = Slabs(machine)
    objects = slabs.slab(slabs.cache(b"kmalloc-1k", 1024, order=2))
    slab = (objects[0] - DIRECT_MAP) // PAGE
    free = machine.alloc_pages(3)
    # __SetPageBuddy() clears a bit of -1, and set_page_order() writes private.
    machine.put("struct page", page_struct(free), {"page_type": 0xFFFFFF7F, "private": 3})
    anonymous, cached, reserved, driver = (machine.alloc_pages(0) for _ in range(4))
    used = {"page_type": 0xFFFFFFFF, "_refcount.counter": 1}
    machine.put("struct page", page_struct(anonymous), {**used, "mapping": DIRECT_MAP | 1})
    machine.put("struct page", page_struct(cached), {**used, "mapping": DIRECT_MAP})
    machine.put("struct page", page_struct(reserved), {**used, "flags": 1 << 12})
    machine.put("struct page", page_struct(driver), used)
    # Frozen by migration, likewise of a file, and on a CPU's free list.
    frozen, frozen_cached, idle = (machine.alloc_pages(0) for _ in range(3))
    nobody = {"page_type": 0xFFFFFFFF, "_refcount.counter": 0}
    machine.put("struct page", page_struct(frozen), {**nobody, "mapping": DIRECT_MAP | 1})
    machine.put("struct page", page_struct(frozen_cached), {**nobody, "mapping": DIRECT_MAP})
    machine.put("struct page", page_struct(idle), nobody)

    index = page_index(machine.prog, machine.memory)

    def kinds(pfns: Sequence[int]) -> List[int]:
        return index.kind_of(np.array(pfns)).tolist()

    assert kinds(range(slab, slab + 4)) == [PageClass.SLAB] * 4
    assert kinds(range(free, free + 8)) == [PageClass.FREE] * 8
    assert kinds([anonymous, cached, reserved, driver]) == [
        PageClass.ANONYMOUS,
        PageClass.PAGE_CACHE,
        PageClass.RESERVED,
        PageClass.ALLOCATED,
    ]
    assert kinds([frozen, frozen_cached, idle]) == [
        PageClass.ANONYMOUS,
        PageClass.PAGE_CACHE,
        PageClass.IDLE,
    ]
    assert index.slab_pfn.tolist() == [slab]


@pytest.mark.parametrize("debug", ["U", "FZPU"], ids=["slub_debug=U", "slub_debug=FZPU"])
def test_tracks_have_the_addresses_of_the_stack(machine: Machine, debug: str) -> None:
    slabs = Slabs(machine)
    if debug == "U":
        # calculate_sizes(): the records stand behind the object.
        cache = slabs.cache(b"kmalloc-128", 128, 128 + 2 * 152, order=1, flags=SLAB_STORE_USER)
        track_at = 128
    else:
        # A word of red zone, the free pointer, the records, a red zone on
        # both sides, and all of it aligned to 128 bytes.
        cache = slabs.cache(
            b"kmalloc-128",
            128,
            640,
            order=1,
            inuse=136,
            offset=136,
            red_left_pad=128,
            flags=SLAB_STORE_USER,
        )
        track_at = 144
    objects = slabs.slab(cache, free=[3])
    stacks = {
        0: [0xFFFFFFFF80200010, 0xFFFFFFFF80200020],
        1: [0xFFFFFFFF80200010, 0xFFFFFFFF80200030],
        2: [0xFFFFFFFF80200010, 0xFFFFFFFF80200020],
    }
    for number, stack in stacks.items():
        track = objects[number] + track_at
        members = {"addr": stack[0], "pid": 100 + number, "cpu": 1, "when": 4294900000}
        machine.put("struct track", track, members)
        machine.words(track + 8, stack)
    # TRACK_FREE comes second.
    freed = objects[3] + track_at + 152
    machine.put("struct track", freed, {"addr": 0xFFFFFFFF80200040, "pid": 7, "cpu": 0})
    machine.words(freed + 8, [0xFFFFFFFF80200040])

    index = slab_index(machine.prog, machine.memory)
    assert allocated_of(index, 0) == allocated(objects, [3])
    assert has_tracks(index.caches[0])
    asked = np.array([objects[0], objects[1], objects[2], objects[4]], dtype=np.uint64)
    tracks = object_tracks(index, 0, asked)
    assert tracks.read.tolist() == [True, True, True, False]
    assert tracks.pid.tolist()[:3] == [100, 101, 102]
    assert tracks.cpu.tolist()[:3] == [1, 1, 1]
    found = [list(tracks.stacks[number]) for number in tracks.stack.tolist()[:3]]
    assert found == list(stacks.values())
    assert len(tracks.stacks) == 2

    last = object_tracks(index, 0, np.array([objects[3]], dtype=np.uint64), TrackItem.FREE)
    assert (last.pid.tolist(), last.stacks) == ([7], ((0xFFFFFFFF80200040,),))


def test_page_tables_are_as_many_as_the_kernel_counts(machine: Machine) -> None:
    """PG_table of include/linux/page-flags.h has had two values: here it is 0x400."""
    prog = machine.prog
    # __SetPageTable() clears a bit of -1; others are PG_balloon and PG_kmemcg.
    tables = [machine.alloc_pages(0) for _ in range(7)]
    others = [machine.alloc_pages(0) for _ in range(4)]
    for pfns, page_type in (
        (tables, 0xFFFFFBFF),
        (others[:2], 0xFFFFFDFF),
        (others[2:], 0xFFFFFEFF),
    ):
        for pfn in pfns:
            members = {"page_type": page_type, "_refcount.counter": 1}
            machine.put("struct page", page_struct(pfn), members)
    # Four are in the sum, and the CPUs keep 2 and 1 to themselves.
    number = prog.constant("NR_PAGETABLE").value_()
    machine.words(machine.variable("vm_zone_stat") + 8 * number, [4])
    pagesets = machine.alloc_per_cpu(sizeof(prog.type("struct per_cpu_pageset")))
    offset = offsetof(prog.type("struct per_cpu_pageset"), "vm_stat_diff") + number
    for cpu, difference in enumerate((2, 1)):
        machine.write(machine.per_cpu(pagesets, cpu) + offset, bytes([difference]))
    node = machine.new("struct pglist_data", {"nr_zones": 1})
    machine.put("struct zone", node, {"pageset": pagesets, "present_pages": 2048})
    machine.words(machine.variable("node_data"), [node])
    machine.words(machine.variable("node_states") + 8, [1])  # N_ONLINE

    index = page_index(prog, machine.memory)

    assert index.kind_of(np.array(tables)).tolist() == [PageClass.PAGE_TABLE] * 7
    assert index.kind_of(np.array(others)).tolist() == [PageClass.ALLOCATED] * 4
