# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who holds fences: reservation objects, arrays, chains and the scheduler's fences."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import pytest
from drgn import Program, offsetof, sizeof

from tests.layouts.machine import Machine, Value
from vmcore_tools.kernel.dma_fence import (
    HeldFences,
    callback_fences,
    chain_fences,
    reserved_fences,
    stale_chain_words,
)
from vmcore_tools.kernel.dma_fence_array import FenceArrays
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


def u64(*values: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.array(values, dtype=np.uint64)


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
    callbacks = sizeof(machine.prog.type("struct dma_fence_array_cb")) * len(fences)
    return machine.new(
        "struct dma_fence_array",
        {"fences": table, "num_fences": len(fences), **prefixed},
        callbacks,
    )


def callbacks_of(machine: Machine, array: int) -> List[int]:
    """The ``struct dma_fence_cb *`` behind an array."""
    type_ = machine.prog.type("struct dma_fence_array")
    size = sizeof(machine.prog.type("struct dma_fence_array_cb"))
    count = machine.prog.read_u32(array + offsetof(type_, "num_fences"))
    return [array + sizeof(type_) + size * i for i in range(count)]


def link_of_irq_work(machine: Machine, type_name: str) -> int:
    """The offset of ``llist_node.next`` in what has a member called work."""
    type_ = machine.prog.type(type_name)
    has_node = type_.member("work").type.has_member("node")
    return offsetof(type_, "work.node.llist.next" if has_node else "work.llnode.next")


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

    held = FenceArrays(machine.prog, u64(one, other)).held()

    assert pairs(held) == sorted(
        [*slots(tables[0], 0, [first, second, first]), *slots(tables[1], 0, [second])]
    )


def test_what_an_array_holds_of_itself(machine: Machine) -> None:
    prog = machine.prog
    fences = [new_fence(machine) for _ in range(3)]
    idle, armed, half, done, queued = (new_array(machine, fences, {REFCOUNT: 1}) for _ in range(5))
    # dma_fence_signal() leaves callbacks that were called as lists of one.
    called = [*callbacks_of(machine, half)[:2], *callbacks_of(machine, done)]
    for callback in (*called, *callbacks_of(machine, queued)):
        machine.link(callback)
    for i, fence in enumerate(fences):
        waiting = [callbacks_of(machine, array)[i] for array in (armed, half)]
        head = fence + offsetof(prog.type("struct dma_fence"), "cb_list")
        machine.link(head, [callback for callback in waiting if callback not in called])
    work = prog.type("struct irq_work")
    # IRQ_WORK_PENDING and IRQ_WORK_BUSY: a word of its own up to v5.7.
    member = "work.node.a_flags.counter" if work.has_member("node") else "work.flags"
    machine.put("struct dma_fence_array", queued, {member: 3})

    arrays = FenceArrays(prog, u64(idle, armed, half, done, queued))

    assert arrays.callbacks().fence.tolist() == [armed, armed, armed, half]
    assert arrays.callbacks().unread == ()
    assert arrays.with_irq_work().tolist() == [queued]
    assert arrays.unread == ()


def test_what_an_array_points_at_and_does_not_hold(machine: Machine) -> None:
    held, left_out = new_fence(machine), new_fence(machine)
    array = new_array(machine, [held, left_out], {REFCOUNT: 1})
    machine.put("struct dma_fence_array", array, {"num_fences": 1})
    arrays = FenceArrays(machine.prog, u64(array))
    slots = int(arrays.slots[0])

    assert arrays.held().fence.tolist() == [held]
    link = array + link_of_irq_work(machine, "struct dma_fence_array")
    assert sorted(arrays.stale_words(u64(slots + 32)).tolist()) == sorted(
        [link, slots + 8, slots + 16, slots + 24]
    )
    # What is behind the slots is not known.
    assert arrays.stale_words(u64(slots)).tolist() == [link]


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
    stale = stale_chain_words(machine.prog, u64(start, link))
    offset = link_of_irq_work(machine, "struct dma_fence_chain")
    assert stale.tolist() == [start + offset, link + offset]


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


@pytest.mark.parametrize("machine", ["5_10"], indirect=True)
def test_callbacks_of_other_fences(machine: Machine) -> None:
    prog = machine.prog
    waited_for = new_fence(machine)
    array = new_array(machine, [waited_for], {REFCOUNT: 2})
    chain = machine.new("struct dma_fence_chain", {f"base.{REFCOUNT}": 2, "fence": waited_for})
    in_chain = chain + offsetof(prog.type("struct dma_fence_chain"), "cb")
    (in_array,) = callbacks_of(machine, array)
    other = machine.new("struct dma_fence_cb", {"func": 0x1234})
    for callback, function in (
        (in_array, "dma_fence_array_cb_func"),
        (in_chain, "dma_fence_chain_cb"),
    ):
        machine.put("struct dma_fence_cb", callback, {"func": prog.symbol(function).address})
    head = waited_for + offsetof(prog.type("struct dma_fence"), "cb_list")
    machine.link(head, [in_array, other, in_chain])

    held = callback_fences(prog, u64(waited_for))

    # The one of the array has no reference to what it waits for.
    assert held.fence.tolist() == [waited_for, waited_for]
    # All links but those to the callback that nobody knows.
    links = {head, head + 8, in_array + 8, other, other + 8, in_chain}
    assert set(held.word.tolist()) == links
