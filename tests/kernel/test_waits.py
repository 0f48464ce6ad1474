# SPDX-License-Identifier: LGPL-2.1-or-later
"""Waits are found by the kernel's lists alone, and what does not fit is no wait."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, cast

import pytest
from drgn import Object, Program, StackTrace, offsetof

from tests.layouts.machine import Machine
from vmcore_tools.kernel import waits
from vmcore_tools.kernel.stack_frames import TaskTrace
from vmcore_tools.kernel.waits import Wait, WaitFinder
from vmcore_tools.kernel.workqueue import flushed_workqueues

STACK = 0x4000
WAITERS = 1  # MUTEX_FLAG_WAITERS
RWSEM_WAITERS, RWSEM_WRITER_LOCKED = 2, 1
PF_KTHREAD = 0x00200000
PC = 0xFFFFFFFF80100000


@dataclasses.dataclass
class Frame:
    """As much of a ``drgn.StackFrame`` as waits are found by."""

    sp: int
    name: str
    variables: Dict[str, Object]
    pc: int = PC

    def locals(self) -> List[str]:
        return list(self.variables)

    def __getitem__(self, name: str) -> Object:
        return self.variables[name]


class Task:
    """A sleeping task with a stack of 16 KiB, of which the last 1 KiB is in use."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.stack = machine.alloc(STACK, STACK)
        self.sp = self.stack + STACK - 1024
        members = {"stack": self.stack, "thread.sp": self.sp, "pid": 7}
        self.address = machine.new("struct task_struct", members)
        self.object = Object(machine.prog, "struct task_struct *", value=self.address)
        self.frames: List[Frame] = []

    def enter(self, function: str, at: int, **variables: Object) -> None:
        """A frame that ends *at* bytes above the stack pointer; the innermost first."""
        begin = self.frames[-1].sp + self._sizes[-1] if self.frames else self.sp
        self.frames.append(Frame(begin, function, variables))
        self._sizes.append(self.sp + at - begin)

    @property
    def _sizes(self) -> List[int]:
        return self.__dict__.setdefault("sizes", [])

    def entry(self, type_name: str, at: int, node: str) -> int:
        """An entry on the stack, *at* bytes above the stack pointer: its node's address."""
        self.machine.put(type_name, self.sp + at, {"task": self.address})
        return self.sp + at + offsetof(self.machine.prog.type(type_name), node)

    @property
    def trace(self) -> TaskTrace:
        return TaskTrace.of_unwound(self.object, cast(StackTrace, self.frames))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine("waits.c", tmp_path, "5.10.262")
    yield machine
    machine.close()


@pytest.fixture
def newer(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine("waits.c", tmp_path, "7.2.13", config=("FIRST_WAITER",))
    yield machine
    machine.close()


def find(task: Task, tasks: Sequence[Task], trace: bool = True) -> Optional[Wait]:
    finder = WaitFinder(task.machine.prog, [each.object for each in tasks])
    return finder.find(task.object, task.trace if trace else None)


def found(wait: Optional[Wait]) -> Optional[Tuple[str, int, bool]]:
    return None if wait is None else (wait.kind, wait.object.value_(), wait.proven)


def member(machine: Machine, type_name: str, address: int, designator: str) -> int:
    return address + offsetof(machine.prog.type(type_name), designator)


def mutex_of(machine: Machine, waiters: Sequence[Task], owner: int, flags: int = WAITERS) -> int:
    lock = machine.new("struct mutex", {"owner.counter": owner | flags})
    for task in waiters:
        task.enter("schedule", 64)
        task.enter("__mutex_lock", 256)
        task.enter("mutex_lock_user", 512)
    nodes = [task.entry("struct mutex_waiter", 128, "list") for task in waiters]
    machine.link(member(machine, "struct mutex", lock, "wait_list"), nodes)
    return lock


def test_a_mutex(machine: Machine) -> None:
    owner, first, second = Task(machine), Task(machine), Task(machine)
    tasks = (owner, first, second)
    lock = mutex_of(machine, (first, second), owner.address)
    assert found(find(first, tasks)) == ("mutex", lock, True)
    assert found(find(second, tasks)) == ("mutex", lock, True)
    assert find(owner, tasks) is None


def test_without_a_stack_trace_it_is_not_proven(machine: Machine) -> None:
    owner, waiter = Task(machine), Task(machine)
    lock = mutex_of(machine, [waiter], owner.address)
    assert found(find(waiter, (owner, waiter), trace=False)) == ("mutex", lock, False)


@pytest.mark.parametrize("flags", [0, 2])
def test_a_word_that_knows_of_no_waiters_is_no_mutex(machine: Machine, flags: int) -> None:
    owner, waiter = Task(machine), Task(machine)
    mutex_of(machine, [waiter], owner.address, flags)
    assert find(waiter, (owner, waiter)) is None


def test_an_owner_that_is_no_task_is_no_mutex(machine: Machine) -> None:
    waiter = Task(machine)
    mutex_of(machine, [waiter], 0xFFFF888000001000)
    assert find(waiter, [waiter]) is None


def test_another_functions_frame_is_no_wait_for_a_mutex(machine: Machine) -> None:
    owner, waiter = Task(machine), Task(machine)
    mutex_of(machine, [waiter], owner.address)
    waiter.frames[1].name = "some_driver"
    assert find(waiter, (owner, waiter)) is None


def test_an_entry_that_was_taken_off_its_list_is_stale(machine: Machine) -> None:
    owner, waiter = Task(machine), Task(machine)
    mutex_of(machine, [waiter], owner.address)
    node = waiter.sp + 128
    machine.link(node)  # list_del_init()
    assert find(waiter, (owner, waiter)) is None
    machine.words(node, [0xDEAD000000000100, 0xDEAD000000000122])  # list_del()
    assert find(waiter, (owner, waiter)) is None


def test_an_entry_below_the_stack_pointer_is_none(machine: Machine) -> None:
    owner, waiter = Task(machine), Task(machine)
    mutex_of(machine, [waiter], owner.address)
    machine.put("struct task_struct", waiter.address, {"thread.sp": waiter.sp + 512})
    assert find(waiter, (owner, waiter)) is None


def test_a_list_with_two_heads_is_damaged(machine: Machine) -> None:
    owner, first, second = Task(machine), Task(machine), Task(machine)
    mutex_of(machine, (first, second), owner.address)
    # The second waiter's task is none.
    machine.put("struct mutex_waiter", second.sp + 128, {"task": 0})
    assert find(first, (owner, first, second)) is None


def test_a_list_that_leads_nowhere_is_damaged(machine: Machine) -> None:
    owner, first, second = Task(machine), Task(machine), Task(machine)
    mutex_of(machine, (first, second), owner.address)
    machine.words(second.sp + 128, [0x1234])
    assert find(first, (owner, first, second)) is None


def completion_of(machine: Machine, task: Task, function: str, done: int = 0) -> int:
    task.enter("schedule", 64)
    task.enter(function, 256)
    completion = machine.new("struct completion", {"done": done})
    node = task.entry("struct swait_queue", 128, "task_list")
    machine.link(member(machine, "struct completion", completion, "wait.task_list"), [node])
    return completion


def test_a_completion(machine: Machine) -> None:
    task = Task(machine)
    completion = completion_of(machine, task, "wait_for_completion")
    assert found(find(task, [task])) == ("completion", completion, True)


def waits_for_completion(task: Task, completion: int, *functions: str) -> None:
    """In a frame of each of the functions behind it, of which the last ends 960 bytes above."""
    machine = task.machine
    task.enter("schedule", 64)
    task.enter("wait_for_completion", 256)
    for number, function in enumerate(functions):
        task.enter(function, 960 - 64 * (len(functions) - 1 - number))
    node = task.entry("struct swait_queue", 128, "task_list")
    machine.link(member(machine, "struct completion", completion, "wait.task_list"), [node])


@pytest.mark.parametrize(
    ("functions", "proven"),
    [
        (("io_schedule", "bit_wait_io"), True),
        (("schedule", "schedule_timeout"), True),
        (("schedule", "shrink_node"), False),
        (("schedule", "exc_page_fault"), False),
    ],
)
def test_who_sleeps_deeper_may_wait_for_something_else(
    machine: Machine, functions: Sequence[str], proven: bool
) -> None:
    task = Task(machine)
    for number, function in enumerate(functions):
        task.enter(function, 64 + 64 * number)
    task.enter("rcu_gp_fqs_loop", 256)
    completion = machine.new("struct completion", {})
    node = task.entry("struct swait_queue", 160, "task_list")
    machine.link(member(machine, "struct completion", completion, "wait.task_list"), [node])
    queue = member(machine, "struct completion", completion, "wait")
    assert found(find(task, [task])) == ("swait", queue, proven)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        ("synchronize_rcu", "rcu"),
        ("synchronize_rcu_tasks_generic", "rcu tasks"),
        ("synchronize_rcu_tasks", "rcu tasks"),
    ],
)
def test_rcu_tasks_are_a_kind_of_their_own(machine: Machine, function: str, kind: str) -> None:
    task = Task(machine)
    wakeme = machine.prog.symbol("wakeme_after_rcu").address
    machine.put("struct rcu_synchronize", task.sp + 904, {"head.func": wakeme})
    completion = member(machine, "struct rcu_synchronize", task.sp + 904, "completion")
    waits_for_completion(task, completion, "__wait_rcu_gp", function)
    assert found(find(task, [task])) == (kind, completion, True)


def flush_of(task: Task) -> Tuple[int, int]:
    """The workqueue that a task flushes, and the completion on its stack."""
    machine = task.machine
    flusher = task.sp + 600
    workqueue = machine.new("struct workqueue_struct", {"first_flusher": flusher})
    for name in ("flusher_queue", "flusher_overflow"):
        machine.link(member(machine, "struct workqueue_struct", workqueue, name))
    machine.link(
        machine.variable("workqueues"),
        [member(machine, "struct workqueue_struct", workqueue, "list")],
    )
    completion = member(machine, "struct wq_flusher", flusher, "done")
    waits_for_completion(task, completion, "flush_workqueue")
    return workqueue, completion


def test_the_workqueue_that_is_flushed(machine: Machine) -> None:
    task = Task(machine)
    workqueue, _ = flush_of(task)
    assert found(find(task, [task])) == ("flush_workqueue", workqueue, True)


def test_a_damaged_list_of_workqueues_costs_only_who_may_flush_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, other = Task(machine), Task(machine)
    workqueue, _ = flush_of(task)
    completion = completion_of(machine, other, "wait_for_completion")
    machine.words(workqueue + offsetof(machine.prog.type("struct workqueue_struct"), "list"), [0])
    walks: List[object] = []

    def walk(prog: Program) -> Dict[int, Object]:
        walks.append(prog)
        return flushed_workqueues(prog)

    monkeypatch.setattr(waits, "flushed_workqueues", walk)
    finder = WaitFinder(machine.prog, [task.object, other.object])
    for _ in range(2):
        with pytest.raises(LookupError):
            finder.find(task.object, task.trace)
        assert found(finder.find(other.object, other.trace)) == ("completion", completion, True)
    assert len(walks) == 1


def test_the_end_of_a_task(machine: Machine) -> None:
    task, child = Task(machine), Task(machine)
    completion = completion_of(machine, task, "wait_for_completion")
    machine.put("struct task_struct", child.address, {"vfork_done": completion})
    assert found(find(task, [task, child])) == ("task end", child.address, True)


def test_the_parking_of_a_thread(machine: Machine) -> None:
    task, thread = Task(machine), Task(machine)
    kthread = machine.new("struct kthread", {})
    completion_of(machine, task, "wait_for_completion")
    parked = member(machine, "struct kthread", kthread, "parked")
    node = task.sp + 128 + offsetof(machine.prog.type("struct swait_queue"), "task_list")
    machine.link(member(machine, "struct completion", parked, "wait.task_list"), [node])
    assert found(find(task, [task, thread])) == ("completion", parked, True)
    # A user task's set_child_tid is an address in its own memory.
    machine.put("struct task_struct", thread.address, {"set_child_tid": kthread})
    assert found(find(task, [task, thread])) == ("completion", parked, True)
    machine.put("struct task_struct", thread.address, {"flags": PF_KTHREAD})
    assert found(find(task, [task, thread])) == ("park", thread.address, True)


def percpu_rwsem_of(machine: Machine, writer: Task, block: int = 1) -> int:
    members = {"writer.task": writer.address, "block.counter": block, "read_count": 0x1234}
    sem = machine.new("struct percpu_rw_semaphore", members)
    writer.enter("schedule", 64)
    writer.enter("percpu_down_write", 256)
    writer.enter("cgroup_procs_write", 512)
    return sem


def test_the_writer_that_waits_for_the_readers_of_a_percpu_rwsem(machine: Machine) -> None:
    task = Task(machine)
    sem = percpu_rwsem_of(machine, task)
    assert find(task, [task]) is None  # it is nowhere on its stack
    machine.words(task.sp + 40, [sem])  # a register that schedule() saved
    assert found(find(task, [task])) == ("percpu_rwsem", sem, True)
    assert find(task, [task], trace=False) is None


def test_what_is_above_its_frame_is_not_the_writers(machine: Machine) -> None:
    task = Task(machine)
    sem = percpu_rwsem_of(machine, task)
    machine.words(task.sp + 300, [sem])
    assert find(task, [task]) is None


def test_a_percpu_rwsem_must_name_the_writer_and_keep_readers_out(machine: Machine) -> None:
    task, other = Task(machine), Task(machine)
    machine.words(task.sp + 40, [percpu_rwsem_of(machine, task, block=0)])
    assert find(task, [task]) is None
    sem = percpu_rwsem_of(machine, other)
    machine.words(task.sp + 40, [sem])
    assert find(task, [task, other]) is None


def test_a_percpu_rwsem_is_on_no_stack(machine: Machine) -> None:
    """The task's address is at many places there, one of which looks like it."""
    task = Task(machine)
    percpu_rwsem_of(machine, task)
    type_ = machine.prog.type("struct percpu_rw_semaphore")
    at = task.sp + 80
    machine.words(task.sp + 40, [at])
    machine.words(at, [0x1234])
    machine.words(at + offsetof(type_, "writer.task"), [task.address])
    machine.words(at + offsetof(type_, "block"), [1])
    assert find(task, [task]) is None


@pytest.mark.parametrize(("readers", "waits"), [(2, True), (0, False), (-(1 << 31) + 1, False)])
def test_the_writer_that_waits_for_the_readers_with_preempt_rt(
    machine: Machine, readers: int, waits: bool
) -> None:
    task, other = Task(machine), Task(machine)
    members = {"readers.counter": readers, "rtmutex.owner": task.address | WAITERS}
    rwbase = machine.new("struct rwbase_rt", members)
    for each in (task, other):
        each.enter("schedule", 64)
        each.enter("rwbase_write_lock", 256)
        machine.words(each.sp + 40, [rwbase])
    assert found(find(task, [task])) == (("readers", rwbase, True) if waits else None)
    assert find(other, [other]) is None


def test_who_sleeps_on_though_the_completion_is_done_waits_for_it(machine: Machine) -> None:
    task = Task(machine)
    completion = completion_of(machine, task, "wait_for_completion", done=1)
    assert found(find(task, [task])) == ("completion", completion, True)


def test_a_simple_wait_queue_is_no_completion(machine: Machine) -> None:
    task = Task(machine)
    completion = completion_of(machine, task, "rcu_gp_fqs_loop")
    queue = member(machine, "struct completion", completion, "wait")
    assert found(find(task, [task])) == ("swait", queue, True)


def test_the_innermost_wait_is_the_one(machine: Machine) -> None:
    # prepare_to_wait(), and then a mutex in the condition.
    owner, task = Task(machine), Task(machine)
    lock = mutex_of(machine, [task], owner.address)
    task.enter("wait_for_completion", 900)
    completion = machine.new("struct completion", {})
    node = task.entry("struct swait_queue", 700, "task_list")
    machine.link(member(machine, "struct completion", completion, "wait.task_list"), [node])
    assert found(find(task, (owner, task))) == ("mutex", lock, True)


# A timer alone.


@pytest.mark.parametrize(
    ("release", "config", "armed"),
    [
        ("5.10.262", (), "timer.state"),
        ("7.2.13", ("FIRST_WAITER",), "timer.is_queued"),
    ],
)
def test_a_timer_that_will_wake_the_task(
    tmp_path: Path, release: str, config: Tuple[str, ...], armed: str
) -> None:
    machine = Machine("waits.c", tmp_path, release, config=config)
    task = Task(machine)
    wakeup = machine.prog.symbol("hrtimer_wakeup").address
    sleeper = task.sp + 128
    members = {"task": task.address, "timer.function": wakeup}
    machine.put("struct hrtimer_sleeper", sleeper, {**members, armed: 1})
    assert found(find(task, [task])) == ("timer", sleeper, True)
    machine.put("struct hrtimer_sleeper", sleeper, {armed: 0})
    assert find(task, [task]) is None
    machine.close()


# v7.2: no head in the list of waiters.


def headless(machine: Machine, tasks: Sequence[Task], lock: int, type_name: str) -> None:
    waiter_type = {"mutex": "struct mutex_waiter", "rw_semaphore": "struct rwsem_waiter"}
    function = {"mutex": "__mutex_lock", "rw_semaphore": "rwsem_down_write_slowpath"}
    variable = Object(machine.prog, f"struct {type_name} *", value=lock)
    nodes = []
    for task in tasks:
        task.enter("schedule", 64)
        task.enter(function[type_name], 256, lock=variable)
        nodes.append(task.entry(waiter_type[type_name], 128, "list"))
    machine.link(nodes[0], nodes[1:])
    machine.put(f"struct {type_name}", lock, {"first_waiter": nodes[0]})


def test_a_mutex_that_points_to_its_first_waiter(newer: Machine) -> None:
    owner, first, second = Task(newer), Task(newer), Task(newer)
    tasks = (owner, first, second)
    lock = newer.new("struct mutex", {"owner.counter": owner.address | WAITERS})
    headless(newer, (first, second), lock, "mutex")
    assert found(find(first, tasks)) == ("mutex", lock, True)
    assert found(find(second, tasks)) == ("mutex", lock, True)
    assert find(second, tasks, trace=False) is None


def test_an_rwsem_that_points_to_its_first_waiter(newer: Machine) -> None:
    owner, first, second = Task(newer), Task(newer), Task(newer)
    count = {"count.counter": RWSEM_WAITERS | RWSEM_WRITER_LOCKED}
    lock = newer.new("struct rw_semaphore", {**count, "owner.counter": owner.address})
    headless(newer, (first, second), lock, "rw_semaphore")
    assert found(find(second, (owner, first, second))) == ("rwsem", lock, True)


@pytest.mark.parametrize("kind", ["mutex", "rw_semaphore"])
def test_the_only_waiter_is_linked_to_itself(newer: Machine, kind: str) -> None:
    owner, waiter = Task(newer), Task(newer)
    lock = newer.new(f"struct {kind}", {"owner.counter": owner.address})
    if kind == "mutex":
        newer.put("struct mutex", lock, {"owner.counter": owner.address | WAITERS})
    else:
        count = RWSEM_WAITERS | RWSEM_WRITER_LOCKED
        newer.put("struct rw_semaphore", lock, {"count.counter": count})
    headless(newer, [waiter], lock, kind)
    wait = find(waiter, (owner, waiter))
    assert found(wait) == ({"rw_semaphore": "rwsem"}.get(kind, kind), lock, True)
    # It has the lock, and has not cleared its stack.
    newer.put(f"struct {kind}", lock, {"first_waiter": 0})
    assert find(waiter, (owner, waiter)) is None


def test_a_variable_with_another_lock_is_not_believed(newer: Machine) -> None:
    owner, waiter, other = Task(newer), Task(newer), Task(newer)
    lock = newer.new("struct mutex", {"owner.counter": owner.address | WAITERS})
    headless(newer, [waiter, other], lock, "mutex")
    wrong = newer.new("struct mutex", {"owner.counter": owner.address | WAITERS})
    stale: Dict[str, Any] = {"lock": Object(newer.prog, "struct mutex *", value=wrong)}
    waiter.frames[1].variables = stale
    assert find(waiter, (owner, waiter, other)) is None


def fence_of(task: Task, function: str, callback: str, ops: str) -> int:
    """A fence for which a task waits in a function."""
    machine = task.machine
    task.enter("schedule_timeout", 64)
    task.enter(function, 256)
    fence = machine.new("struct dma_fence", {"ops": machine.variable(ops)})
    machine.put(
        "struct default_wait_cb",
        task.sp + 128,
        {"task": task.address, "base.func": machine.prog.symbol(callback).address},
    )
    machine.link(member(machine, "struct dma_fence", fence, "cb_list"), [task.sp + 128])
    return fence


def test_a_fence(machine: Machine) -> None:
    task = Task(machine)
    function, callback = "dma_fence_default_wait", "dma_fence_default_wait_cb"
    fence = fence_of(task, function, callback, "no_fence_ops")
    assert found(find(task, [task])) == ("dma_fence", fence, True)


def test_a_driver_that_waits_for_its_fences_itself(machine: Machine) -> None:
    task, other = Task(machine), Task(machine)
    function, callback = "radeon_fence_default_wait", "radeon_fence_wait_cb"
    fence = fence_of(task, function, callback, "radeon_fence_ops")
    assert found(find(task, [task, other])) == ("dma_fence", fence, True)
    # What is no fence by its table is none.
    fence_of(other, function, callback, "no_fence_ops")
    assert find(other, [task, other]) is None
