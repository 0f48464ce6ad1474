# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pointers by their IDs, in the radix trees of v4.19 and the XArrays of v7.2, whole and damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import pytest
from drgn import FaultError, Object, offsetof

from tests.layouts.machine import Machine
from vmcore_tools.kernel.id_slots import find_pointer, for_each_pointer
from vmcore_tools.kernel.task import find_task, for_each_bounded_task

IDS = (1, 2, 63, 64, 700, 4095, 4096, 70000)


class Tree:
    """The tree of an IDR, whose nodes have 64 slots."""

    def __init__(self, machine: Machine, idr: Object, entries: Dict[int, int]) -> None:
        self.machine, root = machine, idr.idr_rt
        is_xarray = root.type_.has_member("xa_head")
        self.node_type = "struct xa_node" if is_xarray else "struct radix_tree_node"
        self.tag = 2 if is_xarray else 1
        self.nodes: Dict[Tuple[int, int], int] = {}
        levels = 1
        while max(entries) >> 6 * levels:
            levels += 1
        self.top = levels - 1
        head = root.xa_head if is_xarray else root.rnode
        self.root = self.node(self.top, 0)
        machine.words(head.address_ or 0, [self.root | self.tag])
        for id, entry in entries.items():
            for level in range(self.top, 0, -1):
                below = self.node(level - 1, id)
                self.put(self.node(level, id), id >> 6 * level & 63, below | self.tag)
            self.put(self.node(0, id), id & 63, entry)

    def node(self, level: int, id: int) -> int:
        """The node of a level that has what leads to an ID; the lowest level is 0."""
        key = (level, id >> 6 * (level + 1))
        if key not in self.nodes:
            self.nodes[key] = self.machine.new(self.node_type, {"shift": 6 * level})
        return self.nodes[key]

    def put(self, node: int, slot: int, word: int) -> None:
        slots = offsetof(self.machine.prog.type(self.node_type), "slots")
        self.machine.words(node + slots + 8 * slot, [word])


@pytest.fixture(params=["linux_4_19.c", "linux_7_2.c"])
def machine(request: Any, tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(request.param, tmp_path, "4.19.90" if "4_19" in request.param else "7.2.0")
    yield machine
    machine.close()


@pytest.fixture
def idr(machine: Machine) -> Object:
    return Object(machine.prog, "struct idr", address=machine.new("struct idr", {}))


def entry_of(id: int) -> int:
    return 0xFFFF888000300000 + 64 * id


@pytest.fixture
def tree(machine: Machine, idr: Object) -> Tree:
    return Tree(machine, idr, {id: entry_of(id) for id in IDS})


def walk(idr: Object) -> Tuple[List[Tuple[int, int]], Optional[str]]:
    """All IDs with their pointers, and what is raised behind them."""
    found = []
    try:
        for id, pointer in for_each_pointer(idr, "struct list_head"):
            found.append((id, pointer.value_()))
    except FaultError as error:
        return found, str(error)
    return found, None


def find(idr: Object, id: int) -> int:
    return int(find_pointer(idr, id, "struct list_head").value_())


def test_all_of_a_tree(idr: Object, tree: Tree) -> None:
    assert walk(idr) == ([(id, entry_of(id)) for id in IDS], None)
    for id in IDS:
        assert find(idr, id) == entry_of(id)
    for id in (0, 3, 65, 701, 4097, 69999, 1 << 18, 1 << 40, -1):
        assert find(idr, id) == 0


def test_a_tree_of_nothing_and_of_one(machine: Machine, idr: Object) -> None:
    assert walk(idr) == ([], None)
    assert find(idr, 0) == 0
    # The first ID alone needs no node.
    root = idr.idr_rt
    head = root.xa_head if root.type_.has_member("xa_head") else root.rnode
    machine.words(head.address_ or 0, [entry_of(0)])
    assert walk(idr) == ([(0, entry_of(0))], None)
    assert (find(idr, 0), find(idr, 1)) == (entry_of(0), 0)


def test_a_base_is_added(machine: Machine, idr: Object, tree: Tree) -> None:
    machine.put("struct idr", idr.address_ or 0, {"idr_base": 1})
    found, _ = walk(idr)
    assert found == [(id + 1, entry_of(id)) for id in IDS]
    assert (find(idr, 2), find(idr, 1), find(idr, 0)) == (entry_of(1), 0, 0)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("target", ["itself", "the root", "not in the dump"])
def test_a_node_that_leads_to_no_lower_one_hides_nothing_else(
    idr: Object, tree: Tree, level: int, target: str
) -> None:
    """In a slot that was empty: drgn's own walk never ends there."""
    node = tree.node(level, 1)
    addresses = {"itself": node, "the root": tree.root, "not in the dump": 0xFFFF8880F0000000}
    tree.put(node, 5, addresses[target] | tree.tag)

    found, damage = walk(idr)

    assert found == [(id, entry_of(id)) for id in IDS]
    assert damage is not None
    with pytest.raises(FaultError):
        find(idr, 5 << 6 * level)
    assert find(idr, 1) == entry_of(1)


def test_what_is_below_a_damaged_node_is_missed_and_no_more(idr: Object, tree: Tree) -> None:
    tree.put(tree.node(1, 1), 0, tree.root | tree.tag)
    found, damage = walk(idr)
    assert found == [(id, entry_of(id)) for id in IDS if id > 63]
    assert damage is not None


# Tasks of v4.19.


@pytest.fixture
def tasks(tmp_path: Path) -> Iterator[Tuple[Machine, Tree]]:
    machine = Machine("linux_4_19.c", tmp_path, "4.19.90")
    prog, entries = machine.prog, {}
    for pid in IDS:
        task = machine.new("struct task_struct", {"pid": pid})
        number = machine.new("struct pid", {})
        link = task + offsetof(prog.type("struct task_struct"), "pid_links")
        machine.words(number + offsetof(prog.type("struct pid"), "tasks"), [link])
        entries[pid] = number
    yield machine, Tree(machine, prog["init_pid_ns"].idr, entries)
    machine.close()


def test_tasks_by_their_pids(tasks: Tuple[Machine, Tree]) -> None:
    prog = tasks[0].prog
    assert [task.pid.value_() for task in for_each_bounded_task(prog)] == list(IDS)
    assert find_task(prog, 700).pid.value_() == 700
    assert not find_task(prog, 701)


@pytest.mark.parametrize("target", ["a circle", "no PID"])
def test_a_damaged_slot_costs_one_task(tasks: Tuple[Machine, Tree], target: str) -> None:
    machine, tree = tasks
    damaged = tree.root | tree.tag if target == "a circle" else 0xFFFF8880F0000000
    tree.put(tree.node(0, 700), 700 & 63, damaged)
    found = []
    with pytest.raises(FaultError):
        for task in for_each_bounded_task(machine.prog):
            found.append(task.pid.value_())
    assert found == [pid for pid in IDS if pid != 700]
    with pytest.raises(FaultError):
        find_task(machine.prog, 700)
