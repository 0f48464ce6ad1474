# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who allocated what where stacks are in the stack depot: v7.2, and much of it since v5.19."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

import numpy as np
import pytest
from drgn import Program, offsetof, sizeof

from tests.layouts.machine import DIRECT_MAP, PAGE, Machine, Value
from tests.layouts.slabs import Slabs
from tests.layouts.test_slabs_7_2 import NOTE
from vmcore_tools.kernel import page_owner, slub_tracks
from vmcore_tools.kernel.kmemleak import (
    OBJECT_PERCPU,
    OBJECT_PHYS,
    kmemleak_objects,
    kmemleak_reported,
    object_stacks,
)
from vmcore_tools.kernel.page_owner import has_page_owner, page_owners
from vmcore_tools.kernel.slab import slab_index
from vmcore_tools.kernel.slub_tracks import TrackItem, has_tracks, object_tracks

ALLOCATED, REPORTED = 1, 2
STORE_USER = 1 << 7  # _SLAB_STORE_USER; up to v6.8 the flag was 0x10000
OLD_STORE_USER = 0x10000
NOW, JIFFY_NS = 4_300_000_000, 1_000_000
ALLOC = (0xFFFFFFFF80200010, 0xFFFFFFFF80200020, 0xFFFFFFFF80200030)
OTHER = (0xFFFFFFFF80200010, 0xFFFFFFFF80200040)
FREE = (0xFFFFFFFF80200050,)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine("linux_7_2_owners.c", tmp_path, "7.2.13", NOTE)
    machine.put(
        "struct clocksource",
        machine.variable("clocksource_jiffies"),
        {"mult": JIFFY_NS << 8, "shift": 8},
    )
    machine.set_variable("jiffies_64", NOW)
    yield machine
    machine.close()


class Depot:
    """The stack depot of a machine, with one pool: the third."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._used = 0
        self._pool = machine.alloc(4 * 4096, 4096)
        machine.set_variable("stack_pools", machine.alloc(64))
        machine.words(machine.prog["stack_pools"].value_(), [0, 0, self._pool])

    def save(self, stack: Sequence[int], count: int = 1) -> int:
        """Keep a stack; returns its handle."""
        handle = 3 | (self._used >> 4) << 17
        record = self._pool + self._used
        type_ = self._machine.prog.type("struct stack_record")
        self._machine.put(
            "struct stack_record",
            record,
            {"size": len(stack), "handle": handle, "count.refs.counter": count},
        )
        self._machine.words(record + offsetof(type_, "entries"), stack)
        self._used += -(-sizeof(type_) // 16) * 16
        return handle


def test_the_flag_of_tracks_is_where_the_enum_has_it(machine: Machine) -> None:
    slabs = Slabs(machine)
    for name, flags in ((b"with", STORE_USER), (b"without", OLD_STORE_USER)):
        slabs.slab(slabs.cache(name, 128, flags=flags))
    index = slab_index(machine.prog, machine.memory)
    assert [has_tracks(cache) for cache in index.caches] == [True, False]


def test_tracks_with_handles(machine: Machine) -> None:
    depot, slabs = Depot(machine), Slabs(machine)
    alloc, other, free = depot.save(ALLOC), depot.save(OTHER), depot.save(FREE)
    gone = depot.save(FREE, count=0)  # put back on the depot's free list
    # The free pointer is outside of the object, and the tracks behind it.
    cache = slabs.cache(b"kmalloc-128", 128, 256, inuse=128, offset=128, flags=STORE_USER)
    objects = slabs.slab(cache, free=[3])
    size = sizeof(machine.prog.type("struct track"))

    def track(number: int, item: int, members: Dict[str, Value]) -> None:
        at = objects[number] + 128 + 8 + item * size
        machine.put("struct track", at, {"addr": ALLOC[0], **members})

    track(0, 0, {"handle": alloc, "pid": 412, "cpu": 1, "when": NOW - 5000})
    track(0, 1, {"handle": free, "pid": 7, "cpu": 0, "when": NOW - 9000})
    track(1, 0, {"handle": other, "pid": 413, "cpu": 0, "when": NOW})
    # Users of the depot keep bits of their own in a handle.
    track(2, 0, {"handle": alloc | 5 << 27, "pid": 414, "when": NOW - 1})
    track(3, 0, {"handle": alloc, "pid": 415, "when": NOW - 1})
    track(4, 0, {"handle": gone, "pid": 416, "when": NOW - 1})
    track(5, 0, {"handle": 0, "pid": 417, "when": NOW - 1})

    index = slab_index(machine.prog, machine.memory)
    tracks = object_tracks(index, 0)
    found = [tracks.stacks[i] if i >= 0 else None for i in tracks.stack.tolist()]

    assert tracks.address.tolist() == [a for i, a in enumerate(objects) if i != 3]
    assert tracks.read.tolist() == [True] * 5 + [False] * 10
    assert found == [ALLOC, OTHER, ALLOC, None, None] + [None] * 10
    assert tracks.pid[:5].tolist() == [412, 413, 414, 416, 417]
    assert tracks.cpu[:2].tolist() == [1, 0]
    ages = [5000 * JIFFY_NS, 0, JIFFY_NS, JIFFY_NS, JIFFY_NS] + [-1] * 10
    assert tracks.age_ns.tolist() == ages

    freed = object_tracks(index, 0, item=TrackItem.FREE)
    assert freed.read.tolist() == [True] + [False] * 14
    assert (freed.stacks, freed.pid[0], freed.age_ns[0]) == ((FREE,), 7, 9000 * JIFFY_NS)
    # A free object has the track of its last life.
    last = object_tracks(index, 0, np.array([objects[3]], dtype=np.uint64))
    assert last.pid.tolist() == [415]


def test_kfence_has_the_records_of_its_objects(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    slabs = Slabs(machine)
    cache = slabs.cache(b"kmalloc-128", 128, 256, inuse=128, offset=128, flags=STORE_USER)
    slabs.slab(cache)
    pool = DIRECT_MAP + machine.alloc_pages(3) * PAGE  # three objects, and guards
    type_ = machine.prog.type("struct kfence_metadata")
    records = machine.alloc(3 * sizeof(type_))
    machine.set_variable("__kfence_pool", pool)
    machine.set_variable("kfence_metadata", records)
    monkeypatch.setattr(slub_tracks, "sched_now_ns", lambda prog: 30_000_000_000)
    objects = [pool + 2 * PAGE * (i + 1) + 3968 for i in range(3)]
    for i, address in enumerate(objects):
        at = records + i * sizeof(type_)
        state = machine.prog.constant("KFENCE_OBJECT_ALLOCATED" if i else "KFENCE_OBJECT_FREED")
        members: Dict[str, Value] = {
            "state": state.value_(),
            "addr": address,
            "size": 120,
            "cache": cache.address,
            "alloc_track.pid": 412 + i,
            "alloc_track.cpu": 1,
            "alloc_track.ts_nsec": 20_000_000_000,
            "alloc_track.num_stack_entries": (2, 3, 65)[i],
        }
        machine.put("struct kfence_metadata", at, members)
        machine.words(at + offsetof(type_, "alloc_track.stack_entries"), [*ALLOC, 0])

    index = slab_index(machine.prog, machine.memory)
    tracks = object_tracks(index, 0, np.array(objects, dtype=np.uint64))
    found = [tracks.stacks[i] if i >= 0 else None for i in tracks.stack.tolist()]

    assert index.in_kfence[index.find(tracks.address)].all()
    assert found == [ALLOC[:2], ALLOC, None]  # the last one's length is damaged
    assert tracks.read.tolist() == [True, True, False]
    assert tracks.pid[:2].tolist() == [412, 413]
    assert tracks.age_ns.tolist() == [10_000_000_000, 10_000_000_000, -1]
    assert not object_tracks(index, 0, tracks.address, TrackItem.FREE).read.any()
    everything = object_tracks(index, 0)
    assert everything.address[everything.read].tolist() == objects[1:2]


def test_kmemleak_with_handles(machine: Machine) -> None:
    depot, slabs = Depot(machine), Slabs(machine)
    alloc, other = depot.save(ALLOC), depot.save(OTHER)
    cache = slabs.cache(b"kmemleak_object", 256)
    slots = slabs.slab(cache, free=[12])
    for name, value in (
        ("object_cache", cache.address),
        ("kmemleak_enabled", 1),
        ("jiffies_last_scan", NOW),
        ("jiffies_min_age", 5000),
    ):
        machine.set_variable(name, value)
    leaked = ALLOCATED | REPORTED
    watched: List[Dict[str, Value]] = [
        {"pointer": 0xFFFF888000311000, "trace_handle": alloc},
        {"pointer": 0xFFFF888000310000, "trace_handle": other},
        {"pointer": 0xFFFF888000312000, "trace_handle": alloc, "count": 1},
        {"pointer": 0x310000, "trace_handle": alloc, "flags": leaked | OBJECT_PHYS},
        {"pointer": 0x1F0, "trace_handle": alloc, "flags": leaked | OBJECT_PERCPU},
        {"pointer": 0xF4FF888000313000, "trace_handle": alloc},  # with a KASAN tag
        {"pointer": 0xFFFF888000314000, "trace_handle": 0x7777, "jiffies": NOW},
    ]
    type_ = machine.prog.type("struct kmemleak_object")
    pool = machine.variable("mem_pool")
    # One of them is from the time before the cache.
    places = [slots[3], pool + sizeof(type_), *slots[4:9]]
    nodes = []
    for place, members in zip(places, watched):
        usual: Dict[str, Value] = {"flags": leaked, "min_count": 1, "jiffies": NOW - 6000}
        machine.put("struct kmemleak_object", place, {**usual, **members})
        nodes.append(place + offsetof(type_, "object_list"))
    machine.link(machine.variable("object_list"), nodes)

    index = slab_index(machine.prog, machine.memory)
    objects = kmemleak_objects(index)
    positions, stacks = object_stacks(objects, objects.records)

    assert objects.problem is None
    assert objects.records["pointer"].tolist() == [members["pointer"] for members in watched]
    found = [stacks[i] if i >= 0 else None for i in positions.tolist()]
    assert found == [ALLOC, OTHER, ALLOC, ALLOC, ALLOC, ALLOC, None]
    assert [hex(address) for address in np.sort(kmemleak_reported(index)).tolist()] == [
        "0xffff888000310000",
        "0xffff888000311000",
        "0xffff888000313000",
    ]


def test_page_owner_has_the_task(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    depot = Depot(machine)
    alloc, early = depot.save(ALLOC), depot.save(OTHER)
    type_ = machine.prog.type("struct page_owner")
    # Behind the flags, and in front of what others keep of a page.
    offset, size = 8, 8 + sizeof(type_) + 24
    ops = machine.variable("page_owner_ops")
    machine.put("struct page_ext_operations", ops, {"offset": offset, "size": sizeof(type_)})
    machine.set_variable("page_ext_size", size)
    machine.set_variable("early_handle", early)
    assert not has_page_owner(machine.prog)
    machine.set_variable("page_owner_inited", 1)
    assert has_page_owner(machine.prog)
    first, array = 500, machine.alloc(100 * size)

    def arrays(prog: Program, pfns: np.ndarray) -> Iterator[Tuple[np.ndarray, int, int]]:
        yield (pfns >= first) & (pfns < first + 100), np.uint64(array), np.uint64(first)

    monkeypatch.setattr(page_owner, "_arrays", arrays)
    flags = 1 << machine.prog.constant("PAGE_EXT_OWNER_ALLOCATED").value_()
    for pfn, members in (
        (500, {"order": 3, "handle": alloc, "pid": 412, "comm": b"Xorg"}),
        (540, {"order": 1, "handle": early, "pid": 0, "comm": b"swapper"}),
    ):
        at = array + (pfn - first) * size
        machine.words(at, [flags])
        machine.put("struct page_owner", at + offset, members)

    owners = page_owners(machine.prog, machine.memory, np.array([500, 540, 541, 7], np.uint64))

    assert owners.read.tolist() == [True, True, False, False]
    assert owners.order[:2].tolist() == [3, 1]
    assert owners.pid[:2].tolist() == [412, 0]
    assert owners.comm[:2].tolist() == [b"Xorg", b"swapper"]
    assert owners.stack.tolist() == [0, -1, -1, -1]
    assert owners.stacks == (ALLOC,)
