# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Queued tasks of all classes: those with deadlines are in a tree, with the fair server.

Those that other CPUs woke are on a list first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, List, Tuple

import pytest
from drgn import Object, offsetof
from drgn.helpers import ValidationError

from tests.layouts.machine import Machine
from vmcore_tools.kernel.run_queue import for_each_queued_task, run_queue
from vmcore_tools.kernel.task import is_queued, is_uninterruptible


class Queue:
    """The run queue of CPU 0."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.type = machine, machine.prog.type("struct rq")
        self.address = machine.per_cpu(machine.variable("runqueues"), 0)
        machine.link(self.at("cfs_tasks"))

    def at(self, designator: str) -> int:
        return self.address + offsetof(self.type, designator)

    def put(self, **members: int) -> None:
        names = {name.replace("__", "."): value for name, value in members.items()}
        self.machine.put("struct rq", self.address, dict(names))

    def task(self, pid: int) -> int:
        return self.machine.new("struct task_struct", {"pid": pid})

    def node(self, task: int) -> int:
        return task + offsetof(self.machine.prog.type("struct task_struct"), "dl.rb_node")

    def tree(self, root: int, left: int = 0, right: int = 0) -> None:
        """A node and its children: the first to run is at the left."""
        type_ = self.machine.prog.type("struct rb_node")
        self.machine.words(root + offsetof(type_, "rb_left"), [left])
        self.machine.words(root + offsetof(type_, "rb_right"), [right])

    @property
    def pids(self) -> List[int]:
        rq = Object(self.machine.prog, "struct rq *", value=self.address)
        return [task.pid.value_() for task in for_each_queued_task(rq)]


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    machine = Machine("run_queue.c", tmp_path, "6.12.30")
    yield Queue(machine)
    machine.close()


def fair(queue: Queue, pid: int) -> None:
    task = queue.task(pid)
    node = offsetof(queue.machine.prog.type("struct task_struct"), "se.group_node")
    queue.machine.link(queue.at("cfs_tasks"), [task + node])


def test_the_earliest_deadline_comes_first_and_before_all_others(queue: Queue) -> None:
    fair(queue, 9)
    tasks = [queue.node(queue.task(pid)) for pid in (1, 2, 3)]
    queue.tree(tasks[1], tasks[0], tasks[2])
    queue.put(dl__root__rb_root__rb_node=tasks[1], dl__dl_nr_running=3)
    assert queue.pids == [1, 2, 3, 9]


def test_the_fair_server_is_no_task(queue: Queue) -> None:
    fair(queue, 9)
    task, server = queue.node(queue.task(1)), queue.at("fair_server.rb_node")
    bits = queue.at("fair_server") + offsetof(
        queue.machine.prog.type("struct sched_dl_entity"), "deadline"
    )
    queue.machine.write(bits + 8, bytes([2]))
    queue.tree(server, right=task)
    queue.put(dl__root__rb_root__rb_node=server, dl__dl_nr_running=2)
    assert queue.pids == [1, 9]


def test_a_tree_that_is_damaged_ends(queue: Queue) -> None:
    task = queue.node(queue.task(1))
    queue.tree(task, right=task)
    queue.put(dl__root__rb_root__rb_node=task, dl__dl_nr_running=2)
    with pytest.raises(ValidationError):
        list(queue.pids)


def test_a_tree_is_not_looked_at_where_none_is_queued(queue: Queue) -> None:
    queue.put(dl__root__rb_root__rb_node=0x1234)
    assert queue.pids == []


def test_who_went_to_sleep_does_not_wait_for_the_cpu_though_it_is_queued(queue: Queue) -> None:
    fair(queue, 9)
    (queued,) = run_queue(queue.machine.prog, 0, True, 1000).queued
    delayed = {"on_rq": 1, "se.sched_delayed": 1}
    queue.machine.put("struct task_struct", queued.task.value_(), delayed)
    assert queue.pids == [9]
    assert run_queue(queue.machine.prog, 0, True, 1000).queued == ()
    assert not is_queued(queued.task)


TASK_WAKING, TASK_UNINTERRUPTIBLE = 0x200, 2
CSD_TYPE_TTWU, CSD_TYPE_SYNC, CSD_FLAG_LOCK = 0x30, 0x10, 1


@pytest.mark.parametrize(
    ("release", "config"), [("4.19.0", ("WAKE_LIST",)), ("6.12.30", ())], ids=["4.19", "6.12"]
)
def test_who_was_woken_waits_for_the_cpu_though_it_is_not_queued(
    tmp_path: Path, release: str, config: Tuple[str, ...]
) -> None:
    machine = Machine("run_queue.c", tmp_path, release, config=config)
    queue = Queue(machine)
    fair(queue, 9)
    type_ = machine.prog.type("struct task_struct")
    tasks = [queue.task(pid) for pid in (1, 2)]
    nodes = [task + offsetof(type_, "wake_entry") for task in tasks]
    head = (
        queue.at("wake_list")
        if config
        else machine.per_cpu(machine.variable("call_single_queue"), 0)
    )
    for task in tasks:
        machine.put("struct task_struct", task, {"__state": TASK_WAKING})
        if not config:
            machine.put("struct task_struct", task, {"wake_entry.u_flags": CSD_TYPE_TTWU})
    machine.words(head, [nodes[0]])
    machine.words(nodes[0], [nodes[1]])
    if not config:
        # Between the two a call of a function.
        call = {"node.llist": nodes[1], "node.u_flags": CSD_TYPE_SYNC | CSD_FLAG_LOCK}
        machine.words(nodes[0], [machine.new("struct __call_single_data", call)])
    queued = run_queue(machine.prog, 0, True, 1000).queued
    assert [each.task.pid.value_() for each in queued] == [9, 1, 2]
    assert [each.wait_ns for each in queued[1:]] == [None, None]
    assert all(is_queued(each.task) for each in queued[1:])
    machine.put("struct task_struct", tasks[0], {"__state": TASK_UNINTERRUPTIBLE})
    assert not is_queued(queued[1].task)
    machine.close()


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (TASK_UNINTERRUPTIBLE, True),
        (TASK_UNINTERRUPTIBLE | 0x400, False),  # TASK_NOLOAD
        (0x1000, True),  # TASK_RTLOCK_WAIT: a spinlock's waiter with PREEMPT_RT
        (TASK_WAKING, False),
        (0x2001, False),  # TASK_INTERRUPTIBLE | TASK_FREEZABLE
    ],
)
def test_who_sleeps_so_that_no_signal_ends_it(queue: Queue, state: int, expected: bool) -> None:
    task = Object(queue.machine.prog, "struct task_struct *", value=queue.task(1))
    queue.machine.put("struct task_struct", task.value_(), {"__state": state})
    assert is_uninterruptible(task) is expected
