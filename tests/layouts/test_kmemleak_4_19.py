# SPDX-License-Identifier: LGPL-2.1-or-later
"""kmemleak's objects of v4.19: the stack is an array in each of them (up to v6.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator, List

import pytest
from drgn import offsetof

from tests.layouts.machine import Machine, Value
from tests.layouts.slabs import Slabs
from vmcore_tools.kernel.kmemleak import (
    kmemleak_objects,
    kmemleak_reported,
    kmemleak_state,
    object_stacks,
)
from vmcore_tools.kernel.slab import slab_index

ALLOCATED, REPORTED = 1, 2
LAST_SCAN, MIN_AGE = 4_295_000_000, 1250
STACK = (0xFFFFFFFF80200010, 0xFFFFFFFF80200020, 0xFFFFFFFF80200030)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine("linux_4_19.c", tmp_path, "4.19.90")
    yield machine
    machine.close()


def test_what_is_reported_and_who_allocated_it(machine: Machine) -> None:
    slabs = Slabs(machine)
    cache = slabs.cache(b"kmemleak_object", 304, 304)
    slots = slabs.slab(cache, free=[12])
    for name, value in (
        ("object_cache", cache.address),
        ("kmemleak_enabled", 1),
        ("jiffies_last_scan", LAST_SCAN),
        ("jiffies_min_age", MIN_AGE),
    ):
        machine.set_variable(name, value)
    type_ = machine.prog.type("struct kmemleak_object")
    blocks = [0xFFFF888000310000 + 128 * i for i in range(5)]
    old = LAST_SCAN - MIN_AGE - 1
    watched: List[Dict[str, Value]] = [
        {"flags": ALLOCATED | REPORTED, "jiffies": old},  # leaked
        {"flags": ALLOCATED | REPORTED, "jiffies": old, "count": 1},  # referenced again
        {"flags": ALLOCATED, "jiffies": LAST_SCAN},  # too young
        {"flags": ALLOCATED, "jiffies": old, "count": 2},
        {"flags": ALLOCATED | REPORTED, "jiffies": old, "comm": b"Xorg"},  # leaked
    ]
    nodes = []
    for address, block, members in zip(slots[3:], blocks, watched):
        machine.put(
            "struct kmemleak_object",
            address,
            {
                "pointer": block,
                "size": 120,
                "min_count": 1,
                "pid": 412,
                "trace_len": len(STACK),
                **members,
            },
        )
        # What is behind trace_len is left of an earlier object.
        machine.words(address + offsetof(type_, "trace"), [*STACK, 0x1234])
        nodes.append(address + offsetof(type_, "object_list"))
    machine.link(machine.variable("object_list"), nodes)

    index = slab_index(machine.prog, machine.memory)
    state, objects = kmemleak_state(machine.prog), kmemleak_objects(index)

    assert (state.enabled, state.failed, state.scanning) == (True, False, False)
    assert (state.last_scan, state.min_age) == (LAST_SCAN, MIN_AGE)
    assert objects.records["pointer"].tolist() == blocks
    assert objects.problem is None
    assert kmemleak_reported(index).tolist() == [blocks[0], blocks[4]]
    assert objects.records["comm"].tolist() == [b"", b"", b"", b"", b"Xorg"]
    assert set(objects.records["pid"].tolist()) == {412}
    positions, stacks = object_stacks(objects, objects.records)
    assert [stacks[i] for i in positions.tolist()] == [STACK] * 5
