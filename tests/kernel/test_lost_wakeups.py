# SPDX-License-Identifier: LGPL-2.1-or-later
"""A wait is over only by its object's own words, and nobody may be about to wake the sleeper."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List, Sequence, Tuple, cast

import numpy as np
import pytest
from drgn import Object, offsetof

from tests.layouts.machine import Machine
from vmcore_tools.kernel import task as task_module
from vmcore_tools.kernel.locks import (
    first_waiter,
    next_owner,
    rwsem_holder,
    rwsem_readers_behind_writers,
)
from vmcore_tools.kernel.lost_wakeups import is_over, may_be_about_to_wake
from vmcore_tools.kernel.task import words_at_hand
from vmcore_tools.kernel.waits import Wait
from vmcore_tools.wait_findings import lost
from vmcore_tools.wait_findings.lost import LostWakeup

# kernel/locking/mutex.h, rwsem.c
WAITERS, HANDOFF, PICKUP = 1, 2, 4
RWSEM_WRITER, RWSEM_WAITERS, RWSEM_READER = 1, 2, 1 << 8
FOR_WRITE, FOR_READ = 0, 1
NOBODY = np.zeros(0, dtype=np.uint64)


@pytest.fixture(params=[(), ("FIRST_WAITER",)], ids=["v5.10", "v7.2"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    machine = Machine("waits.c", tmp_path, "5.10.262", config=request.param)
    yield machine
    machine.close()


def new_task(machine: Machine, pid: int) -> Object:
    address = machine.new("struct task_struct", {"pid": pid})
    return Object(machine.prog, "struct task_struct *", value=address)


def lock(machine: Machine, type_name: str, members: Dict[str, int], waiters: Sequence[int]) -> Wait:
    """A lock with waiters, the addresses of their structures."""
    address = machine.new(f"struct {type_name}", members)
    if machine.prog.type(f"struct {type_name}").has_member("first_waiter"):
        machine.put(f"struct {type_name}", address, {"first_waiter": waiters[0]})
        machine.link(waiters[0], waiters[1:])
    else:
        head = address + offsetof(machine.prog.type(f"struct {type_name}"), "wait_list")
        machine.link(head, waiters)
    obj = Object(machine.prog, f"struct {type_name} *", value=address)
    return Wait("mutex" if type_name == "mutex" else "rwsem", obj, "")


def mutex(machine: Machine, owner: int, tasks: Sequence[Object]) -> Wait:
    waiters = [machine.new("struct mutex_waiter", {"task": task.value_()}) for task in tasks]
    return lock(machine, "mutex", {"owner.counter": owner}, waiters)


def rwsem(machine: Machine, count: int, owner: int, tasks: Sequence[Tuple[Object, int]]) -> Wait:
    waiters = [
        machine.new("struct rwsem_waiter", {"task": task.value_(), "type": kind})
        for task, kind in tasks
    ]
    members = {"count.counter": count, "owner.counter": owner}
    return lock(machine, "rw_semaphore", members, waiters)


def test_only_the_first_waiter_of_a_free_mutex_sleeps_for_nothing(machine: Machine) -> None:
    first, second = new_task(machine, 1), new_task(machine, 2)
    free = mutex(machine, WAITERS, [first, second])
    assert first_waiter(free.object) == first
    assert is_over(free, first)
    assert not is_over(free, second)
    assert is_over(mutex(machine, WAITERS | HANDOFF, [first]), first)


def test_a_mutex_that_somebody_has_is_not_free(machine: Machine) -> None:
    owner, waiter = new_task(machine, 1), new_task(machine, 2)
    assert not is_over(mutex(machine, owner.value_() | WAITERS, [waiter]), waiter)


def test_a_mutex_that_was_handed_over_is_waited_for_no_more_by_its_new_owner(
    machine: Machine,
) -> None:
    first, second = new_task(machine, 1), new_task(machine, 2)
    handed_over = mutex(machine, second.value_() | WAITERS | PICKUP, [first, second])
    assert next_owner("mutex", handed_over.object) == second
    assert is_over(handed_over, second)
    assert not is_over(handed_over, first)


def test_a_free_rwsem(machine: Machine) -> None:
    reader, writer = new_task(machine, 1), new_task(machine, 2)
    waiting = [(writer, FOR_WRITE)]
    # A reader's name stays when it has let go.
    free = rwsem(machine, RWSEM_WAITERS, reader.value_() | 1, waiting)
    assert is_over(free, writer)
    assert rwsem_holder(free.object, {reader.value_()}) is None
    for count in (RWSEM_WAITERS | RWSEM_WRITER, RWSEM_WAITERS | RWSEM_READER):
        held = rwsem(machine, count, reader.value_() | 1, waiting)
        assert not is_over(held, writer)
        assert rwsem_holder(held.object, {reader.value_()}) is not None


def behind(wait: Wait) -> List[Tuple[int, int]]:
    pairs = rwsem_readers_behind_writers(wait.object)
    return [(reader.pid.value_(), writer.pid.value_()) for reader, writer in pairs]


def test_readers_wait_behind_the_writer_before_them(machine: Machine) -> None:
    tasks = [new_task(machine, pid) for pid in range(1, 6)]
    kinds = (FOR_READ, FOR_WRITE, FOR_READ, FOR_WRITE, FOR_READ)
    waiting = list(zip(tasks, kinds))
    holder = new_task(machine, 9)
    read = rwsem(machine, RWSEM_WAITERS | RWSEM_READER, holder.value_() | 1, waiting)
    assert behind(read) == [(3, 2), (5, 4)]
    # Behind a writer that has it, all of them wait for that one.
    written = rwsem(machine, RWSEM_WAITERS | RWSEM_WRITER, holder.value_(), waiting)
    assert behind(written) == []


@pytest.mark.parametrize("done", [0, 1, 0xFFFFFFFF])
def test_a_completion(machine: Machine, done: int) -> None:
    address = machine.new("struct completion", {"done": done})
    completion = Object(machine.prog, "struct completion *", value=address)
    assert is_over(Wait("completion", completion, ""), new_task(machine, 1)) == bool(done)


def test_a_bit(machine: Machine) -> None:
    task = new_task(machine, 1)
    word = machine.alloc(16, 16)
    machine.words(word, [1 << 3, 0])
    pointer = Object(machine.prog, "void *", value=word)
    assert not is_over(Wait("bit", pointer, "", bit=3), task)
    assert is_over(Wait("bit", pointer, "", bit=2), task)
    # Bits of a map can be beyond its first word.
    machine.words(word, [0, 1 << 1])
    assert not is_over(Wait("bit", pointer, "", bit=65), task)


def test_of_a_wait_queue_only_the_sleeper_knows(machine: Machine) -> None:
    queue = Object(machine.prog, "void *", value=machine.alloc(64, 8))
    assert not is_over(Wait("wait queue", queue, ""), new_task(machine, 1))


def test_who_has_the_object_or_the_task_at_hand_may_be_about_to_wake(machine: Machine) -> None:
    task = new_task(machine, 1)
    wait = mutex(machine, WAITERS, [task])
    start = wait.object.value_()
    assert not may_be_about_to_wake(wait, task, NOBODY)

    def at_hand(*words: int) -> bool:
        return may_be_about_to_wake(wait, task, np.array(sorted(words), dtype=np.uint64))

    assert not at_hand(start - 8, start + wait.object.type_.type.size)
    assert at_hand(start - 8, start)
    assert at_hand(start + 8)
    assert at_hand(task.value_() + 4)
    machine.put("struct task_struct", task.value_(), {"wake_q.next": 1})
    assert may_be_about_to_wake(wait, task, NOBODY)


# What CPUs have at hand.


class Frame:
    """As much of a ``drgn.StackFrame`` as is needed."""

    def __init__(self, sp: int) -> None:
        self.sp, self.pc = sp, 0xFFFFFFFF80100000

    def registers(self) -> Dict[str, int]:
        return {"rsp": self.sp}


def test_stopped_cpus_and_the_stacks_of_interrupts_are_looked_at(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A panic has taken CPU 1 offline, on which a task runs that is in an interrupt.
    machine.set_variable("__cpu_online_mask", 1)
    stack, other = machine.alloc(0x4000, 0x4000), machine.alloc(0x4000, 0x4000)
    task = machine.new("struct task_struct", {"pid": 7, "stack": stack, "on_cpu": 1, "cpu": 1})
    machine.put("struct rq", machine.per_cpu(machine.variable("runqueues"), 1), {"curr": task})
    machine.words(stack + 0x3F00, [0xABC0])
    machine.words(other + 0x3000, [0xABC1])
    machine.words(other + 0x1000, [0xABC2])
    monkeypatch.setattr(task_module, "for_each_bounded_task", lambda _prog: [])
    frames = [Frame(other + 0x2000), Frame(other + 0x2800), Frame(stack + 0x3E00)]

    def trace(of: Object) -> Any:
        return frames if of.value_() == task else None

    monkeypatch.setattr(task_module, "_trace", trace)
    words = words_at_hand(machine.prog).tolist()
    assert 0xABC0 in words and 0xABC1 in words
    assert 0xABC2 not in words  # it is below the stack pointer


@pytest.mark.parametrize(
    ("up", "registers", "expected"), [(True, True, 0), (True, False, 1), (False, False, 0)]
)
def test_registers_that_are_not_in_the_dump(
    monkeypatch: pytest.MonkeyPatch, up: bool, registers: bool, expected: int
) -> None:
    idle = SimpleNamespace(cpu=1, idle=True, current=None)
    cause = LostWakeup(cast(Any, SimpleNamespace(prog=None, queues={1: idle})))
    monkeypatch.setattr(lost, "is_up", lambda _prog, _cpu: up)
    monkeypatch.setattr(lost, "live_registers", lambda _task: {} if registers else None)
    assert len(cause._unread_registers()) == expected
