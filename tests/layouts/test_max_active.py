# SPDX-License-Identifier: LGPL-2.1-or-later
"""Works that max_active keeps back: whose end they wait for, before v6.9 and from then on."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Set, Tuple

import pytest
from drgn import offsetof

from tests.layouts.machine import Machine
from tests.layouts.test_workqueue_4_19 import DRAIN, PENDING, PWQ, Workqueue
from vmcore_tools.kernel.wait_chain import WaitChains

UNBOUND = 2


class KeptBack:
    """
    A work that is kept back, and two other pwqs of the workqueue whose workers run works.

    :ivar same: the task of the pool of the same NUMA node
    :ivar own: that of its own pool
    """

    def __init__(self, machine: Machine) -> None:
        self.machine, self.first = machine, Workqueue(machine)
        self.by_node = machine.prog.type("struct workqueue_struct").has_member("node_nr_active")
        self.limit("max_active", 1)
        self.queue = machine.new("struct workqueue_struct", {"flags": UNBOUND})
        if self.by_node:
            machine.put("struct workqueue_struct", self.queue, {"max_active": 1})
        self.own = self.runs(self.first)
        others = [Workqueue(machine) for _ in range(2)]
        self.same, self.other_node = [self.runs(other) for other in others]
        machine.put("struct worker_pool", others[1].pool, {"node": 1})
        pwqs = [self.first.pwq, *(other.pwq for other in others)]
        node = offsetof(machine.prog.type("struct pool_workqueue"), "pwqs_node")
        head = offsetof(machine.prog.type("struct workqueue_struct"), "pwqs")
        machine.link(self.queue + head, [pwq + node for pwq in pwqs])
        for pwq in pwqs:
            machine.put("struct pool_workqueue", pwq, {"wq": self.queue})
        work_data = self.first.pwq | PENDING | PWQ
        members = {"data.counter": work_data, "func": DRAIN}
        self.work = machine.new("struct work_struct", members)
        delayed = offsetof(machine.prog.type("struct pool_workqueue"), "delayed_works")
        machine.link(self.first.pwq + delayed, [self.first.entry(self.work)])

    def limit(self, name: str, value: int) -> None:
        if not self.by_node:
            self.machine.put("struct pool_workqueue", self.first.pwq, {name: value})

    def runs(self, workqueue: Workqueue) -> int:
        task = self.machine.new("struct task_struct", {"on_cpu": 1, "pid": 9})
        members = {
            "current_work": workqueue.queued(DRAIN),
            "current_pwq": workqueue.pwq,
            "task": task,
        }
        self.machine.put("struct worker", workqueue.worker, members)
        return task

    @property
    def waits_for(self) -> Set[str]:
        chains = WaitChains(self.machine.prog, [], {}, lambda _task: None, _fail)
        key = chains.work(self.first.object("work_struct", self.work))
        chains.follow()
        (edge,) = chains.graph.edges_from(key)
        assert edge.target == f"pwq {self.first.pwq:#x}"
        return {edge.target for edge in chains.graph.edges_from(edge.target)}


def _fail(what: str, error: Exception, address: int) -> None:
    raise AssertionError((what, error, address))


@pytest.fixture(params=[(), ("NODE_NR_ACTIVE",)])
def kept_back(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[KeptBack]:
    config: Tuple[str, ...] = request.param
    machine = Machine("linux_4_19.c", tmp_path, "6.12.30" if config else "4.19.90", config=config)
    yield KeptBack(machine)
    machine.close()


def test_works_of_the_same_node_are_counted_together(kept_back: KeptBack) -> None:
    waits_for = {f"task {kept_back.own:#x}"}
    if kept_back.by_node:
        waits_for.add(f"task {kept_back.same:#x}")
    assert kept_back.waits_for == waits_for


def test_those_of_a_cpu_are_counted_alone(kept_back: KeptBack) -> None:
    kept_back.machine.put("struct workqueue_struct", kept_back.queue, {"flags": 0})
    assert kept_back.waits_for == {f"task {kept_back.own:#x}"}


def test_in_a_frozen_workqueue_nobody_is_waited_for(kept_back: KeptBack) -> None:
    kept_back.limit("max_active", 0)
    if kept_back.by_node:
        kept_back.machine.put("struct workqueue_struct", kept_back.queue, {"max_active": 0})
    assert kept_back.waits_for == set()


@pytest.mark.parametrize("kept_back", [("NODE_NR_ACTIVE",)], indirect=True)
def test_nor_while_a_pwq_is_plugged(kept_back: KeptBack) -> None:
    kept_back.machine.put("struct pool_workqueue", kept_back.first.pwq, {"plugged": 1})
    assert kept_back.waits_for == set()
