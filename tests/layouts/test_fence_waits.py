# SPDX-License-Identifier: LGPL-2.1-or-later
"""From fences to what signals them, and back to who waits for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple, cast

import pytest
from drgn import Object, offsetof
from drgn.helpers import ValidationError

from tests.layouts.machine import Machine, Value
from vmcore_tools.kernel.fence_waiters import for_each_waiting_task
from vmcore_tools.kernel.wait_chain import WaitChains
from vmcore_tools.kernel.wait_fences import fence_node, follow_fence
from vmcore_tools.kernel.wait_graph import WaitGraph
from vmcore_tools.kernel.wait_nodes import OBJECT, Node

SIGNALED = 1


class Chains:
    """As much of WaitChains as fences need, of a kernel without virtio_gpu."""

    def __init__(self, machine: Machine) -> None:
        self.prog = machine.prog
        self.graph = WaitGraph()
        self.nodes: Dict[str, Node] = {}
        self.found: Dict[str, Dict[int, Object]] = {}

    def add(self, node: Node) -> str:
        self.nodes[node.key] = node
        self.graph.add_node(node.key)
        return node.key

    def object(self, name: str, obj: Object) -> str:
        return self.add(Node(f"{name} {obj.value_():#x}", OBJECT, obj, name))


class Fences:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def fence(self, ops: str = "some_driver_fence_ops", flags: int = 0, **members: Value) -> int:
        return self.embedded("dma_fence", "", ops, flags, members)

    def embedded(
        self, type_name: str, prefix: str, ops: str, flags: int, members: Dict[str, Value]
    ) -> int:
        """A fence in a larger structure; its own address."""
        machine = self.machine
        fence = machine.new(
            f"struct {type_name}",
            {
                f"{prefix}ops": machine.variable(ops),
                f"{prefix}flags": flags,
                f"{prefix}refcount.refcount.refs.counter": 1,
                **members,
            },
        )
        type_ = machine.prog.type(f"struct {type_name}")
        inner = fence + (offsetof(type_, prefix.rstrip(".")) if prefix else 0)
        self.callbacks(inner)
        return inner

    def callbacks(self, fence: int, nodes: Sequence[int] = ()) -> None:
        type_ = self.machine.prog.type("struct dma_fence")
        self.machine.link(fence + offsetof(type_, "cb_list"), nodes)

    def callback(self, type_name: str, member: str, function: str, **members: Value) -> int:
        """What is on a fence's list; the address of its node, the callback's first member."""
        address = self.machine.new(
            f"struct {type_name}",
            {f"{member}func": self.machine.prog.symbol(function).address, **members},
        )
        type_ = self.machine.prog.type(f"struct {type_name}")
        return address + (offsetof(type_, member.rstrip(".")) if member else 0)

    def array(self, members: Sequence[int], pending: int) -> int:
        slots = self.machine.words(self.machine.alloc(8 * len(members)), members)
        values: Dict[str, Value] = {
            "num_fences": len(members),
            "num_pending.counter": pending,
            "fences": slots,
        }
        return self.embedded("dma_fence_array", "base.", "dma_fence_array_ops", 0, values)

    def link(self, fence: int, previous: int) -> int:
        values: Dict[str, Value] = {"fence": fence, "prev": previous}
        return self.embedded("dma_fence_chain", "base.", "dma_fence_chain_ops", 0, values)

    def object(self, address: int) -> Object:
        return Object(self.machine.prog, "struct dma_fence *", value=address)

    def followed(self, address: int) -> Tuple[Chains, List[Tuple[str, int]]]:
        """The edges from a fence: why, and the object at the other end."""
        chains = Chains(self.machine)
        real = cast(WaitChains, chains)
        node = chains.nodes[fence_node(real, self.object(address))]
        edges = [
            (edge.why, int(chains.nodes[edge.target].object.value_()))
            for edge in follow_fence(real, node)
        ]
        return chains, edges

    def waiters(self, address: int) -> List[int]:
        return [task.value_() for task in for_each_waiting_task(self.object(address))]


@pytest.fixture
def fences(tmp_path: Path) -> Iterator[Fences]:
    machine = Machine("fence_waits.c", tmp_path, "5.10.262")
    yield Fences(machine)
    machine.close()


def test_an_array_needs_those_that_have_not_signaled(fences: Fences) -> None:
    first, done, last = fences.fence(), fences.fence(flags=SIGNALED), fences.fence()
    chains, edges = fences.followed(fences.array([first, done, last], pending=2))
    assert edges == [("needs", first), ("needs", last)]
    assert not any_of(chains)


def test_one_is_enough_for_an_array_that_signals_on_any(fences: Fences) -> None:
    chains, edges = fences.followed(fences.array([fences.fence(), fences.fence()], pending=1))
    assert len(edges) == 2
    assert any_of(chains)


def any_of(chains: Chains) -> bool:
    """Whether one end that goes on lets the first node go on, too."""
    (key, *_) = chains.nodes
    targets = [node for node in chains.nodes if node != key]
    graph: Any = chains.graph
    return bool(targets) and key in graph._any_of


def test_a_damaged_array_is_not_followed_without_an_end(fences: Fences) -> None:
    array = fences.array([fences.fence()], pending=1)
    fences.machine.put("struct dma_fence_array", array, {"num_fences": 1 << 20})
    with pytest.raises(ValidationError):
        fences.followed(array)


def test_a_link_of_a_chain_needs_its_fence_and_the_link_before(fences: Fences) -> None:
    own, before = fences.fence(), fences.link(fences.fence(), 0)
    assert fences.followed(fences.link(own, before))[1] == [("needs", own), ("comes after", before)]
    assert fences.followed(fences.link(fences.fence(flags=SIGNALED), 0))[1] == []


def test_a_scheduled_job_is_done_when_the_hardware_says_so(fences: Fences) -> None:
    name, ops = "drm_sched_fence", "drm_sched_fence_ops_finished"
    hardware = fences.fence()
    given = fences.embedded(name, "finished.", ops, 0, {"parent": hardware})
    assert fences.followed(given)[1] == [("is signaled by", hardware)]
    queued = fences.embedded(name, "finished.", ops, 0, {})
    assert fences.followed(queued)[1] == []


def test_a_point_of_a_timeline(fences: Fences) -> None:
    timeline = fences.machine.new("struct sync_timeline", {"name": b"vsync"})
    type_ = fences.machine.prog.type("struct sync_timeline")
    point = fences.fence("timeline_fence_ops", lock=timeline + offsetof(type_, "lock"))
    chains, edges = fences.followed(point)
    assert edges == [("is a point of", timeline)]
    assert [node.label for node in chains.nodes.values()] == ["", "vsync"]


def test_an_unknown_drivers_fence_is_an_end(fences: Fences) -> None:
    chains, edges = fences.followed(fences.fence())
    assert edges == []
    assert [node.name for node in chains.nodes.values()] == ["some_driver_fence_ops"]


def test_a_signaled_fence_needs_nothing(fences: Fences) -> None:
    array = fences.array([fences.fence()], pending=1)
    fences.machine.put("struct dma_fence", array, {"flags": SIGNALED})
    assert fences.followed(array)[1] == []


def test_who_waits_is_found_from_the_fence(fences: Fences) -> None:
    xorg, flip, poller = (fences.machine.new("struct task_struct", {}) for _ in range(3))
    fence = fences.fence()
    array, link = fences.array([fence], pending=1), fences.link(fence, 0)
    chain_cb = link + offsetof(fences.machine.prog.type("struct dma_fence_chain"), "cb")
    function = fences.machine.prog.symbol("dma_fence_chain_cb").address
    fences.machine.put("struct dma_fence_cb", chain_cb, {"func": function})
    waits = "dma_fence_default_wait_cb"
    fences.callbacks(
        fence,
        [
            fences.callback("default_wait_cb", "base.", waits, task=xorg),
            fences.callback("dma_fence_array_cb", "cb.", "dma_fence_array_cb_func", array=array),
            fences.callback("dma_fence_cb", "", "fence_check_cb_func"),
            chain_cb,
        ],
    )
    entry = fences.callback("default_wait_cb", "base.", waits, task=flip)
    fences.callbacks(array, [entry])
    function_name = "syncobj_wait_fence_func"
    entry = fences.callback("syncobj_wait_entry", "fence_cb.", function_name, task=poller)
    fences.callbacks(link, [entry])
    assert sorted(fences.waiters(fence)) == sorted([xorg, flip, poller])
    assert fences.waiters(array) == [flip]


def test_nobody_waits_for_a_signaled_fence(fences: Fences) -> None:
    fence = fences.fence(flags=SIGNALED)
    fences.machine.put("struct dma_fence", fence, {"timestamp": 12345})
    assert fences.waiters(fence) == []


def test_arrays_in_a_circle_end(fences: Fences) -> None:
    first, second = fences.array([], pending=1), fences.array([], pending=1)
    for here, there in ((first, second), (second, first)):
        callback = fences.callback(
            "dma_fence_array_cb", "cb.", "dma_fence_array_cb_func", array=there
        )
        fences.callbacks(here, [callback])
    assert fences.waiters(first) == []
