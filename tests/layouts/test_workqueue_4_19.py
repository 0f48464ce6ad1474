# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Workqueues of v4.19: what a flush_work() waits for.

The second case: Xorg in drain_all_pages() waits for the work of a CPU whose
kworker does not get to run.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator, List, Set, Tuple

import pytest
from drgn import Object, offsetof

from tests.layouts.machine import Machine
from vmcore_tools.kernel import wait_chain, wait_works
from vmcore_tools.kernel.wait_chain import WaitChains
from vmcore_tools.kernel.wait_nodes import TASK, WORKQUEUE, Node
from vmcore_tools.kernel.workqueue import (
    barrier_of_completion,
    barrier_target,
    find_worker_executing,
    for_each_pending_work,
    for_each_worker,
    for_each_worker_pool,
    pool_nr_running,
    work_is_pending,
    work_pool,
    work_pwq,
    worker_is_idle,
)

PENDING, PWQ, LINKED = 1, 4, 8
DRAIN = 0xFFFFFFFF80201000  #: drain_local_pages_wq()


class Workqueue:
    """mm_percpu_wq on one CPU: a pool with one worker, and its pool_workqueue."""

    def __init__(self, machine: Machine) -> None:
        self.machine, prog = machine, machine.prog
        pool_type = prog.type("struct worker_pool")
        self.pool = machine.new("struct worker_pool", {"cpu": 1, "id": 2, "nr_workers": 1})
        self.worklist = self.pool + offsetof(pool_type, "worklist")
        machine.link(self.worklist)
        machine.put("struct worker_pool", self.pool, {"nr_running.counter": 1})
        # IDs below 64 are in one node; pool 2 is its third.
        node = machine.new("struct radix_tree_node", {"count": 1})
        slots = offsetof(prog.type("struct radix_tree_node"), "slots")
        machine.words(node + slots + 8 * 2, [self.pool])
        machine.put("struct idr", machine.variable("worker_pool_idr"), {"idr_rt.rnode": node | 1})
        # The color and the flags are where its address has zeros.
        self.pwq = machine.alloc(256, 256)
        machine.put("struct pool_workqueue", self.pwq, {"pool": self.pool})
        delayed = offsetof(prog.type("struct pool_workqueue"), "delayed_works")
        machine.link(self.pwq + delayed)
        worker_type = prog.type("struct worker")
        self.worker = machine.new("struct worker", {"pool": self.pool})
        self.scheduled = self.worker + offsetof(worker_type, "scheduled")
        machine.link(self.scheduled)
        machine.link(
            self.pool + offsetof(pool_type, "workers"),
            [self.worker + offsetof(worker_type, "node")],
        )

    def queued(self, function: int, flags: int = 0, color: int = 3) -> int:
        """A work that is queued here; it has still to be put on a list."""
        data = self.pwq | color << 4 | PENDING | PWQ | flags
        return self.machine.new("struct work_struct", {"data.counter": data, "func": function})

    def barrier(self) -> int:
        """``insert_wq_barrier()``, without a list."""
        function = self.machine.prog.symbol("wq_barrier_func").address
        data = self.pwq | 15 << 4 | PENDING | PWQ  # WORK_NO_COLOR
        barrier = self.machine.new(
            "struct wq_barrier", {"work.data.counter": data, "work.func": function}
        )
        done = offsetof(self.machine.prog.type("struct wq_barrier"), "done.wait.head")
        self.machine.link(barrier + done)
        return barrier

    def entry(self, work: int) -> int:
        return work + offsetof(self.machine.prog.type("struct work_struct"), "entry")

    def object(self, name: str, address: int) -> Object:
        return Object(self.machine.prog, f"struct {name} *", value=address)

    def completion(self, barrier: int) -> Object:
        done = offsetof(self.machine.prog.type("struct wq_barrier"), "done")
        return self.object("completion", barrier + done)


@pytest.fixture
def workqueue(tmp_path: Path) -> Iterator[Workqueue]:
    machine = Machine("linux_4_19.c", tmp_path, "4.19.90")
    yield Workqueue(machine)
    machine.close()


def test_the_pools_and_their_workers(workqueue: Workqueue) -> None:
    (pool,) = for_each_worker_pool(workqueue.machine.prog)
    assert pool.value_() == workqueue.pool
    assert pool_nr_running(pool) == 1
    (worker,) = for_each_worker(pool)
    assert worker.value_() == workqueue.worker
    assert not worker_is_idle(worker)
    workqueue.machine.put("struct worker", workqueue.worker, {"flags": 4})
    assert worker_is_idle(worker)


def test_a_flush_waits_for_a_work_that_nobody_has_taken(workqueue: Workqueue) -> None:
    other, drain = workqueue.queued(0xFFFFFFFF80201100), workqueue.queued(DRAIN, LINKED)
    barrier = workqueue.barrier()
    works = [other, drain, barrier]
    workqueue.machine.link(workqueue.worklist, [workqueue.entry(work) for work in works])

    pool = workqueue.object("worker_pool", workqueue.pool)
    assert [work.value_() for work in for_each_pending_work(pool)] == works
    found = barrier_of_completion(workqueue.completion(barrier))
    assert found.value_() == barrier
    target = barrier_target(found)
    assert target is not None
    assert (target.work.value_(), target.pwq.value_()) == (drain, workqueue.pwq)
    assert (bool(target.worker), target.inactive, target.executing) == (False, False, False)
    work = workqueue.object("work_struct", drain)
    assert work_is_pending(work)
    assert work_pwq(work).value_() == workqueue.pwq
    assert work_pool(work).value_() == workqueue.pool


def test_a_flush_waits_for_a_work_that_runs(workqueue: Workqueue) -> None:
    machine = workqueue.machine
    drain, barrier = workqueue.queued(DRAIN), workqueue.barrier()
    # Once it runs, it can be queued again: only the pool's ID is left.
    machine.put("struct work_struct", drain, {"data.counter": 2 << 5})
    machine.put("struct worker", workqueue.worker, {"current_work": drain, "current_func": DRAIN})
    machine.link(workqueue.scheduled, [workqueue.entry(barrier)])

    target = barrier_target(barrier_of_completion(workqueue.completion(barrier)))

    assert target is not None
    assert (target.work.value_(), target.worker.value_()) == (drain, workqueue.worker)
    assert target.executing
    work = workqueue.object("work_struct", drain)
    assert not work_is_pending(work)
    assert not work_pwq(work)
    pool = work_pool(work)
    assert pool.value_() == workqueue.pool
    assert find_worker_executing(pool, work).value_() == workqueue.worker


def test_another_completion_is_of_no_flush(workqueue: Workqueue) -> None:
    completion = workqueue.machine.alloc(256) + 64
    assert not barrier_of_completion(workqueue.object("completion", completion))


# Who ends a flush_workqueue(): works of the color that it flushes.

FLUSHED, LATER = 3, 4


class Flushed:
    """A workqueue with one pool_workqueue that is being flushed, and what was followed of it."""

    def __init__(self, workqueue: Workqueue) -> None:
        self.workqueue, machine = workqueue, workqueue.machine
        self.lost: List[Tuple[str, str]] = []
        self.chains = WaitChains(
            machine.prog,
            [],
            {},
            lambda _task: None,
            lambda what, error, _address: self.lost.append((what, str(error))),
        )
        pwq_type = machine.prog.type("struct pool_workqueue")
        self.address = machine.new("struct workqueue_struct", {"flush_color": FLUSHED})
        machine.link(
            self.address + offsetof(machine.prog.type("struct workqueue_struct"), "pwqs"),
            [workqueue.pwq + offsetof(pwq_type, "pwqs_node")],
        )
        machine.put("struct pool_workqueue", workqueue.pwq, {"flush_color": FLUSHED})

    def pending(self, *colors: int) -> None:
        works = [self.workqueue.queued(DRAIN, color=color) for color in colors]
        self.workqueue.machine.link(
            self.workqueue.worklist, [self.workqueue.entry(work) for work in works]
        )

    def running(self) -> int:
        machine = self.workqueue.machine
        task = machine.new("struct task_struct", {"on_cpu": 1, "pid": 9})
        machine.put(
            "struct worker",
            self.workqueue.worker,
            {
                "current_work": self.workqueue.queued(DRAIN),
                "current_pwq": self.workqueue.pwq,
                "task": task,
            },
        )
        return task

    def in_flight(self, color: int, number: int) -> None:
        pwq_type = self.workqueue.machine.prog.type("struct pool_workqueue")
        numbers = self.workqueue.pwq + offsetof(pwq_type, "nr_in_flight")
        self.workqueue.machine.write(numbers + 4 * color, number.to_bytes(4, "little"))

    @property
    def edges(self) -> Set[Tuple[str, bool]]:
        queue = self.workqueue.object("workqueue_struct", self.address)
        node = Node("workqueue", WORKQUEUE, queue, "workqueue")
        return {(edge.target, edge.proven) for edge in self.chains._edges_of(node)}


@pytest.fixture
def flushed(workqueue: Workqueue) -> Flushed:
    return Flushed(workqueue)


def test_a_flush_waits_for_no_work_that_was_queued_after_it(flushed: Flushed) -> None:
    flushed.pending(LATER, 15)
    assert flushed.edges == set()
    flushed.pending(LATER, FLUSHED)
    assert flushed.edges == {(f"pool {flushed.workqueue.pool:#x}", True)}


def test_the_color_of_a_running_work_is_sure_only_if_no_other_is_in_flight(
    flushed: Flushed,
) -> None:
    flushed.pending()
    key = f"task {flushed.running():#x}"
    flushed.in_flight(FLUSHED, 1)
    assert flushed.edges == {(key, True)}
    flushed.in_flight(LATER, 1)
    assert flushed.edges == {(key, False)}


@pytest.mark.parametrize("color", [FLUSHED, LATER])
def test_where_the_worker_has_the_color_of_its_work_that_decides(
    flushed: Flushed, monkeypatch: pytest.MonkeyPatch, color: int
) -> None:
    monkeypatch.setattr(wait_works, "worker_color", lambda _worker: color)
    flushed.pending()
    key = f"task {flushed.running():#x}"
    flushed.in_flight(FLUSHED, 1)
    flushed.in_flight(LATER, 1)
    assert flushed.edges == ({(key, True)} if color == FLUSHED else set())


def test_a_task_of_a_cpu_without_a_run_queue_is_counted(
    flushed: Flushed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait_chain, "is_queued", lambda _task: True)
    monkeypatch.setattr(wait_chain, "is_throttled", lambda _task: False)
    monkeypatch.setattr(wait_chain, "task_cpu", lambda _task: 77)
    address = flushed.workqueue.machine.new("struct task_struct", {})
    task = flushed.workqueue.object("task_struct", address)
    assert flushed.chains.add_task(task) == f"task {address:#x}"
    assert flushed.lost == [("task", "CPU 77 has no run queue that could be read")]
    assert flushed.chains.graph.edges_from(f"task {address:#x}") == ()


def test_a_throttled_task_waits_for_its_quota_and_not_for_the_cpu(flushed: Flushed) -> None:
    group = flushed.workqueue.object("workqueue_struct", flushed.address)  # of any type
    task: Any = SimpleNamespace(sched_task_group=group)
    node = Node("task", TASK, task, "task", None, "throttled")
    (edge,) = flushed.chains._edges_of(node)
    assert (edge.why, edge.proven) == ("is throttled by", True)
    assert edge.target == f"CPU quota of the cgroup {flushed.address:#x}"
