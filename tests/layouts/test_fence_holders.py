# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who holds fences: reservation objects, arrays, chains and the scheduler's fences."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import pytest
from drgn import Program, offsetof

from tests.layouts.machine import Machine, Value
from vmcore_tools.kernel.dma_fence import (
    HeldFences,
    array_callbacks_max,
    array_fences,
    callback_fences,
    chain_fences,
    reserved_fences,
)
from vmcore_tools.kernel.drm_sched import fences_of_sched_fences

REFCOUNT = "refcount.refcount.refs.counter"
RELEASES = {"4_19": "4.19.90", "5_10": "5.10.262", "6_1": "6.1.192", "7_2": "7.2.13"}
#: "dma-buf: add new dma_fence_chain container" is of v5.2.
WITH_CHAINS = [release for release in RELEASES if release != "4_19"]


@pytest.fixture(params=RELEASES)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(f"linux_{request.param}.c", tmp_path, RELEASES[request.param])
    yield machine
    machine.close()


def has_type(prog: Program, name: str) -> bool:
    try:
        prog.type(name)
    except LookupError:
        return False
    return True


def flag(machine: Machine, *names: str) -> int:
    """The flags of these names: ``SIGNALED``."""
    return sum(1 << machine.prog.constant(f"DMA_FENCE_FLAG_{name}_BIT").value_() for name in names)


def new_fence(machine: Machine, members: Optional[Dict[str, Value]] = None) -> int:
    fence = machine.new("struct dma_fence", {REFCOUNT: 1, **(members or {})})
    head = fence + offsetof(machine.prog.type("struct dma_fence"), "cb_list")
    machine.link(head)
    return fence


def pairs(held: HeldFences) -> List[Tuple[int, int]]:
    return sorted(zip(held.fence.tolist(), held.word.tolist()))


def slots(base: int, offset: int, fences: Sequence[int]) -> List[Tuple[int, int]]:
    """What holds each of the fences of an array."""
    return [(fence, base + offset + 8 * i) for i, fence in enumerate(fences) if fence]


def test_reservation_objects(machine: Machine) -> None:
    prog = machine.prog
    name = "struct dma_resv" if has_type(prog, "struct dma_resv") else "struct reservation_object"
    resv_type, list_type = prog.type(name), prog.type(f"{name}_list")
    exclusive, first, second, third, stale = (new_fence(machine) for _ in range(5))
    in_list = [first, second, first, third]
    if resv_type.has_member("fences"):
        # DMA_RESV_USAGE_KERNEL, WRITE, READ, BOOKKEEP; what is behind the
        # count was dropped.
        words = [fence | usage for usage, fence in enumerate(in_list)] + [stale]
        fences = machine.new(f"{name}_list", {"num_fences": 4, "max_fences": 5}, 8 * 5)
        table = offsetof(list_type, "table")
        machine.words(fences + table, words)
        resv = machine.new(name, {"fences": fences})
        expected = slots(fences, table, in_list)
    else:
        fences = machine.new(f"{name}_list", {"shared_count": 4, "shared_max": 5}, 8 * 5)
        table = offsetof(list_type, "shared")
        machine.words(fences + table, [*in_list, stale])
        resv = machine.new(name, {"fence": fences, "fence_excl": exclusive})
        expected = [
            *slots(fences, table, in_list),
            (exclusive, resv + offsetof(resv_type, "fence_excl")),
        ]
    empty = machine.new(name, {})

    held = reserved_fences(prog, [resv, empty])

    assert pairs(held) == sorted(expected)
    assert held.unread == ()


def new_array(machine: Machine, fences: Sequence[int], members: Dict[str, Value]) -> int:
    table = machine.words(machine.alloc(8 * len(fences)), fences)
    prefixed = {f"base.{name}": value for name, value in members.items()}
    return machine.new(
        "struct dma_fence_array", {"fences": table, "num_fences": len(fences), **prefixed}
    )


def test_fence_arrays(machine: Machine) -> None:
    first, second = new_fence(machine), new_fence(machine)
    one = new_array(machine, [first, second, first], {REFCOUNT: 1})
    other = new_array(machine, [second], {REFCOUNT: 1})
    tables = [
        machine.prog.read_u64(
            array + offsetof(machine.prog.type("struct dma_fence_array"), "fences")
        )
        for array in (one, other)
    ]

    held = array_fences(machine.prog, [one, other])

    assert pairs(held) == sorted(
        [*slots(tables[0], 0, [first, second, first]), *slots(tables[1], 0, [second])]
    )


def test_what_an_array_holds_of_itself(machine: Machine) -> None:
    fences = [new_fence(machine) for _ in range(3)]
    idle = new_array(machine, fences, {REFCOUNT: 1})
    armed = new_array(machine, fences, {REFCOUNT: 4, "flags": flag(machine, "ENABLE_SIGNAL")})
    flags = flag(machine, "ENABLE_SIGNAL", "SIGNALED")
    done = new_array(machine, fences, {REFCOUNT: 1, "flags": flags})
    queued = new_array(machine, fences, {REFCOUNT: 2, "flags": flags})
    work = machine.prog.type("struct irq_work")
    # IRQ_WORK_PENDING and IRQ_WORK_BUSY: a word of its own up to v5.7.
    member = "work.node.a_flags.counter" if work.has_member("node") else "work.flags"
    machine.put("struct dma_fence_array", queued, {member: 3})

    assert [array_callbacks_max(machine.prog, array) for array in (idle, armed, done, queued)] == [
        0,
        3,
        0,
        1,
    ]


@pytest.mark.parametrize("machine", WITH_CHAINS, indirect=True)
def test_fence_chains(machine: Machine) -> None:
    first, second = new_fence(machine), new_fence(machine)
    type_ = machine.prog.type("struct dma_fence_chain")
    start = machine.new("struct dma_fence_chain", {"fence": first, "prev_seqno": 1})
    link = machine.new("struct dma_fence_chain", {"fence": second, "prev": start})

    held = chain_fences(machine.prog, np.array([start, link], dtype=np.uint64))

    assert pairs(held) == sorted(
        [
            (first, start + offsetof(type_, "fence")),
            (second, link + offsetof(type_, "fence")),
            (start, link + offsetof(type_, "prev")),
        ]
    )


def test_fences_of_the_scheduler(machine: Machine) -> None:
    parent = new_fence(machine)
    type_ = machine.prog.type("struct drm_sched_fence")
    # The hardware has it; it waits in a queue; its last reference is gone.
    running, queued, ending = (
        machine.new(
            "struct drm_sched_fence",
            {
                "parent": hardware,
                f"scheduled.{REFCOUNT}": scheduled,
                f"finished.{REFCOUNT}": finished,
            },
        )
        for hardware, scheduled, finished in ((parent, 1, 2), (0, 1, 1), (parent, 1, 0))
    )
    scheduled = [fence + offsetof(type_, "scheduled") for fence in (running, queued, ending)]

    held = fences_of_sched_fences(machine.prog, np.array(scheduled, dtype=np.uint64))

    assert pairs(held) == sorted(
        [
            (scheduled[0], running + offsetof(type_, "finished")),
            (scheduled[1], queued + offsetof(type_, "finished")),
            (parent, running + offsetof(type_, "parent")),
            (parent, ending + offsetof(type_, "parent")),
        ]
    )


def test_callbacks(machine: Machine) -> None:
    prog = machine.prog
    waited_for = new_fence(machine)
    callbacks = [machine.new("struct dma_fence_cb", {"func": 0x1234}) for _ in range(2)]
    head = waited_for + offsetof(prog.type("struct dma_fence"), "cb_list")
    machine.link(head, callbacks)

    held = callback_fences(prog, np.array([waited_for], dtype=np.uint64))

    assert held.fence.tolist() == [waited_for, waited_for]
    # The links to the list's head are pointers into the fence, and no references.
    assert sorted(held.word.tolist()) == sorted([callbacks[0] + 8, callbacks[1]])
    assert held.unread == ()
