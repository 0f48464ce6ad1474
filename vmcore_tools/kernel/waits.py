# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a sleeping task waits for.

A task that sleeps in the kernel has, on its own stack, an entry that whoever
wakes it will find: a ``swait_queue``, a ``wait_queue_entry``, a lock's waiter.
Each kind has the task's address at a known place, and is linked in a list
whose head is in the object that is waited for. So the live part of the stack
is searched for the task's address; an entry is believed if its neighbours in
the list point back to it, and the head is the one node of the list that is no
such entry. The function whose frame the entry lies in must fit the kind.

No wait is taken from a function's name alone. A wait that is not found this
way is not found.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from typing import Dict, Iterator, List, Optional, Tuple, Union

import numpy as np
from drgn import FaultError, Object, Program, container_of, offsetof
from drgn.helpers import ValidationError

from vmcore_tools.kernel.io_waits import buffer_head_of, io_of_completion
from vmcore_tools.kernel.locks import is_mutex_with_waiters, is_rwsem_with_waiters
from vmcore_tools.kernel.percpu_rwsem import percpu_rwsem_of_writer
from vmcore_tools.kernel.rwbase_rt import READERS, rwbase_of_writer
from vmcore_tools.kernel.srcu import srcu_of_callback
from vmcore_tools.kernel.stack_frames import (
    Frame,
    TaskTrace,
    frame_variables,
    frames_of,
    functions_at,
    pointers_in,
)
from vmcore_tools.kernel.symbols import symbol_address, symbol_name
from vmcore_tools.kernel.task import live_range, stack_range
from vmcore_tools.kernel.task_completions import CompletedByTasks, completed_by_tasks
from vmcore_tools.kernel.workqueue import barrier_of_completion, flushed_workqueues

#: Waiters of one object that are followed.
_WAITERS_MAX = 4 << 20
_WORD = 8
#: A damaged pointer can be near the end of the address space, behind which it goes on at 0.
_ADDRESS_MASK = (1 << 64) - 1


@dataclasses.dataclass(frozen=True)
class Wait:
    """
    What a task waits for.

    :ivar kind: ``flush_work``, ``mutex``, ...: the kernel's word
    :ivar object: a typed pointer to what is waited for
    :ivar evidence: what shows it, in a few words
    :ivar proven: whether nothing but this fits
    :ivar bit: which bit of a word or a page is to be cleared
    """

    kind: str
    object: Object
    evidence: str
    proven: bool = True
    bit: Optional[int] = None


@dataclasses.dataclass(frozen=True)
class _EntryType:
    """
    A structure that waiters are found by.

    :ivar task: offset of the pointer to the waiting task
    :ivar node: offset of the ``struct list_head``
    :ivar func: offset of the function that wakes it, None if there is none
    :ivar headless: whether its lists have no head, so that the only one is linked to itself
    """

    name: str
    task: int
    node: int
    func: Optional[int]
    functions: re.Pattern[str]
    headless: bool


@dataclasses.dataclass(frozen=True)
class _Entry:
    type: _EntryType
    base: int
    node: int
    functions: Tuple[str, ...]  #: whose frame it lies in, inline ones included
    in_its_function: bool


#: The entries, their members, and the functions in whose frames they are.
_ENTRY_TYPES: Tuple[Tuple[str, str, str, Optional[str], str], ...] = (
    ("struct swait_queue", "task", "task_list", None, r".*"),
    ("struct wait_queue_entry", "private", "entry", "func", r".*"),
    (
        "struct mutex_waiter",
        "task",
        "list",
        None,
        r"_*(ww_)?mutex_lock.*",
    ),
    (
        "struct rwsem_waiter",
        "task",
        "list",
        None,
        r"rwsem_down_.*|_*down_(read|write).*",
    ),
    ("struct semaphore_waiter", "task", "list", None, r"_*down(_(?!read|write).*)?"),
    (
        "struct default_wait_cb",
        "task",
        "base.node",
        "base.func",
        # radeon's and vmwgfx's own waits have the same structure under other names.
        r"\w+_fence_(default_)?wait.*",
    ),
)
#: Whose waiters some of them are.
_LOCKS = {
    "struct mutex_waiter": "struct mutex",
    "struct rwsem_waiter": "struct rw_semaphore",
    "struct semaphore_waiter": "struct semaphore",
}
_COMPLETION = re.compile(r"(do_|_*)wait_for_(common|completion).*")
_SRCU = re.compile(r"_*synchronize_srcu.*")
#: A kind of RCU of its own, by whatever tasks do; it has its own grace periods.
_RCU_TASKS = re.compile(r"_*synchronize_rcu_tasks.*")
#: What a function calls to sleep on a wait queue.
_SLEEPS = re.compile(r"\w*(schedul|switch_to|context_switch|wait|sleep)\w*")
#: No semaphore counts higher.
_SEMAPHORE_MAX = 1 << 20


class WaitFinder:
    """
    Finds what tasks wait for.

    :param tasks: all tasks that have a PID: ``struct task_struct *``
    """

    def __init__(self, prog: Program, tasks: List[Object]) -> None:
        self._prog = prog
        self.tasks: Dict[int, Object] = {task.value_(): task for task in tasks}
        self._stacks: Dict[int, Tuple[int, int]] = {}
        self._heads: Dict[int, Optional[int]] = {}
        self._functions: Dict[int, bool] = {}
        self._flushers: Union[Dict[int, Object], str, None] = None
        self._types = tuple(self._entry_types())
        self._text = (symbol_address(prog, "_stext"), symbol_address(prog, "_etext"))
        # a5c6234e1028 ("completion: Use simple wait queues") in v5.7.
        simple = prog.type("struct completion").member("wait").type.has_member("task_list")
        self._completion_list = "wait.task_list" if simple else "wait.head"

    def _entry_types(self) -> Iterator[_EntryType]:
        for name, task, node, func, functions in _ENTRY_TYPES:
            try:
                type_ = self._prog.type(name)
                yield _EntryType(
                    name,
                    offsetof(type_, task),
                    offsetof(type_, node),
                    None if func is None else offsetof(type_, func),
                    re.compile(functions),
                    self._is_headless(name),
                )
            except LookupError:
                continue  # this kernel has no such thing to wait for

    def _is_headless(self, entry: str) -> bool:
        """From v7.1 locks have a pointer to their first waiter, and no head."""
        lock = _LOCKS.get(entry)
        return lock is not None and bool(self._prog.type(lock).has_member("first_waiter"))

    def find(self, task: Object, trace: Optional[TaskTrace]) -> Optional[Wait]:
        """
        What a sleeping task waits for.

        :param task: ``struct task_struct *``; it is on no CPU
        :param trace: its stack, None if it cannot be unwound
        :return: None if it could not be told
        :raises FaultError: if its stack is not in the dump
        :raises drgn.helpers.ValidationError, LookupError: if what would tell is damaged
        """
        wait = self._rt_mutex(task)
        if wait is not None:
            return wait
        frames = frames_of(trace)
        for entry in self._entries(task, frames):
            wait = self._wait_of(entry, task, trace, frames)
            if wait is not None:
                return wait
        sem = percpu_rwsem_of_writer(task, frames)
        if sem is not None:
            return Wait("percpu_rwsem", sem, "it is the writer that the percpu_rwsem names")
        rwbase = rwbase_of_writer(task, frames)
        if rwbase is not None:
            return Wait(READERS, rwbase, "it has the lock's rt_mutex, and readers have the lock")
        return self._timer(task)

    def _entries(self, task: Object, frames: List[Frame]) -> Iterator[_Entry]:
        """The linked entries on a task's stack, the innermost first."""
        low, high = live_range(task)
        words = np.frombuffer(self._prog.read(low, high - low), dtype=np.uint64)
        for index in np.nonzero(words == np.uint64(task.value_()))[0].tolist():
            position = low + index * _WORD
            for type_ in self._types:
                base = position - type_.task
                node = base + type_.node
                if not (low <= base and low <= node and node + 2 * _WORD <= high):
                    continue
                functions = functions_at(frames, base)
                fits = any(type_.functions.fullmatch(name) for name in functions)
                if functions and not fits:
                    continue
                if type_.func is not None and not self._is_text(self._word(base + type_.func)):
                    continue
                if self._is_linked(node, type_.headless):
                    yield _Entry(type_, base, node, functions, fits)

    def _wait_of(
        self, entry: _Entry, task: Object, trace: Optional[TaskTrace], frames: List[Frame]
    ) -> Optional[Wait]:
        try:
            head = self._head(entry)
            if head is None:
                return None
            if entry.type.name == "struct mutex_waiter":
                return self._mutex(entry, head, trace)
            if entry.type.name == "struct rwsem_waiter":
                return self._rwsem(entry, head, trace)
            if entry.type.name == "struct semaphore_waiter":
                return self._semaphore(entry, head, trace)
            if entry.type.name == "struct default_wait_cb":
                return self._dma_fence(entry, head)
            wait = self._wait_queue(entry, head, task, frames)
            if wait is not None and not _sleeps_there(frames, entry.base):
                return dataclasses.replace(wait, proven=False)
            return wait
        except FaultError:
            return None

    # Lists of waiters.

    def _word(self, address: int) -> int:
        return int(self._prog.read_u64(address & _ADDRESS_MASK))

    def _is_linked(self, node: int, headless: bool) -> bool:
        try:
            following, previous = self._word(node), self._word(node + _WORD)
            return (
                (headless or following != node)
                and self._word(following + _WORD) == node
                and self._word(previous) == node
            )
        except FaultError:
            return False

    def _head(self, entry: _Entry) -> Optional[int]:
        """
        The head of the list that an entry is in.

        :return: 0 if the list has none (the lock has a pointer to its first
            waiter); None if the list is not one of such entries
        """
        if entry.node not in self._heads:
            nodes: List[int] = []
            head = self._follow(entry, nodes)
            for node in nodes:
                self._heads[node] = head
        return self._heads[entry.node]

    def _follow(self, entry: _Entry, nodes: List[int]) -> Optional[int]:
        head = 0
        nodes.append(entry.node)
        node = entry.node
        for _ in range(_WAITERS_MAX):
            following = self._word(node)
            if self._word(following + _WORD) != node:
                return None
            node = following
            if node == entry.node:
                return head
            if self._is_entry(entry.type, node):
                nodes.append(node)
            elif head:
                return None
            else:
                head = node
        return None

    def _is_entry(self, type_: _EntryType, node: int) -> bool:
        base = node - type_.node
        if type_.func is not None:
            # Not all of these are on stacks: epoll's are in objects.
            return self._is_text(self._word(base + type_.func))
        address = self._word(base + type_.task)
        if address not in self.tasks:
            return False
        if address not in self._stacks:
            self._stacks[address] = stack_range(self.tasks[address])
        low, high = self._stacks[address]
        return low <= node < high

    def _is_text(self, address: int) -> bool:
        low, high = self._text
        if low <= address < high:
            return True
        if not address >> 63:
            return False
        if address not in self._functions:
            try:
                self._functions[address] = self._prog.symbol(address).address == address
            except LookupError:
                self._functions[address] = False
        return self._functions[address]

    # The objects that lists belong to.

    def _pointer(self, type_name: str, address: int) -> Object:
        return Object(self._prog, self._prog.pointer_type(self._prog.type(type_name)), address)

    def _container(self, type_name: str, member: str, address: int) -> Object:
        offset = offsetof(self._prog.type(type_name), member)
        return self._pointer(type_name, address - offset)

    def _locks(
        self, entry: _Entry, head: int, trace: Optional[TaskTrace], type_name: str
    ) -> Iterator[Object]:
        """The lock whose list of waiters this is: one, or those that a frame names."""
        type_ = self._prog.type(type_name)
        if head:
            if type_.has_member("wait_list"):
                yield self._container(type_name, "wait_list", head)
            return
        if entry.type.headless:
            for lock in frame_variables(trace, type_name):
                waiter = lock.first_waiter
                node = waiter.list.address_of_() if waiter else None
                for _ in range(_WAITERS_MAX):
                    if node is None or node.value_() == entry.node:
                        break
                    node = node.next.read_()
                    if node == waiter.list.address_of_():
                        node = None
                if node is not None:
                    yield lock

    def _mutex(self, entry: _Entry, head: int, trace: Optional[TaskTrace]) -> Optional[Wait]:
        for lock in self._locks(entry, head, trace, "struct mutex"):
            if is_mutex_with_waiters(lock, self.tasks):
                return Wait("mutex", lock, "it is on the mutex's list", entry.in_its_function)
        return None

    def _rwsem(self, entry: _Entry, head: int, trace: Optional[TaskTrace]) -> Optional[Wait]:
        for lock in self._locks(entry, head, trace, "struct rw_semaphore"):
            if is_rwsem_with_waiters(lock, self.tasks):
                return Wait("rwsem", lock, "it is on the rwsem's list", entry.in_its_function)
        return None

    def _semaphore(self, entry: _Entry, head: int, trace: Optional[TaskTrace]) -> Optional[Wait]:
        for lock in self._locks(entry, head, trace, "struct semaphore"):
            if lock.count.value_() <= _SEMAPHORE_MAX and entry.in_its_function:
                return Wait("semaphore", lock, "it is on the semaphore's list")
        return None

    def _dma_fence(self, entry: _Entry, head: int) -> Optional[Wait]:
        if not head:
            return None
        fence = self._container("struct dma_fence", "cb_list", head)
        callback = self._word(entry.base + (entry.type.func or 0))
        default = callback == symbol_address(self._prog, "dma_fence_default_wait_cb")
        if not default and not self._has_fence_ops(fence):
            return None
        return Wait("dma_fence", fence, "its callback is on the fence's list")

    def _has_fence_ops(self, fence: Object) -> bool:
        name = symbol_name(self._prog, fence.ops.value_())
        try:
            type_ = self._prog.variable(name or "").type_
        except LookupError:
            return False
        return bool(type_.type_name() == "const struct dma_fence_ops")

    def _wait_queue(
        self, entry: _Entry, head: int, task: Object, frames: List[Frame]
    ) -> Optional[Wait]:
        if not head:
            return None
        if any(_COMPLETION.fullmatch(name) for name in entry.functions):
            completion = self._container("struct completion", self._completion_list, head)
            return self._completion(completion, task, frames)
        if entry.type.func is None:
            queue = self._container("struct swait_queue_head", "task_list", head)
            return Wait("swait", queue, "it is on the wait queue", bool(entry.functions))
        return self._plain_wait_queue(entry, head)

    def _completion(self, completion: Object, task: Object, frames: List[Frame]) -> Wait:
        evidence = "it is on the completion's wait queue"
        barrier = barrier_of_completion(completion)
        if barrier:
            return Wait("flush_work", barrier, evidence + ", which is a flush_work() barrier's")
        low, high = live_range(task)
        on_its_stack = low <= completion.value_() < high
        workqueue = self._flushed.get(completion.value_()) if on_its_stack else None
        if workqueue is not None:
            return Wait("flush_workqueue", workqueue, evidence + ", which is a flush_workqueue()'s")
        ended = self._completed_by_tasks.at_end.get(completion.value_())
        if ended is not None:
            return Wait("task end", ended, evidence + ", which is completed when the task ends")
        parked = self._completed_by_tasks.when_parked.get(completion.value_())
        if parked is not None:
            return Wait("park", parked, evidence + ", which the thread completes when it parks")
        if self._is_rcu(completion):
            names = functions_at(frames, completion.value_())
            if any(_RCU_TASKS.fullmatch(name) for name in names):
                return Wait("rcu tasks", completion, evidence + ", which RCU tasks complete")
            if any(_SRCU.fullmatch(name) for name in names):
                evidence += ", which an SRCU callback completes"
                srcu = srcu_of_callback(completion, pointers_in(task, frames, _SRCU))
                if srcu is not None:
                    return Wait("srcu", srcu, evidence)
                return Wait("srcu callback", completion, evidence)
            return Wait("rcu", completion, evidence + ", which an RCU callback completes")
        io = io_of_completion(completion, task, frames)
        if io is not None:
            return Wait(io[0], io[1], evidence + f", which the {io[0]} names")
        return Wait("completion", completion, evidence)

    @property
    def _flushed(self) -> Dict[int, Object]:
        """As :func:`flushed_workqueues`; what is damaged is not looked for again."""
        if self._flushers is None:
            try:
                self._flushers = flushed_workqueues(self._prog)
            except (FaultError, ValidationError, LookupError) as error:
                self._flushers = f"it cannot be told whether it is a flush_workqueue()'s: {error}"
        if isinstance(self._flushers, str):
            raise LookupError(self._flushers)
        return self._flushers

    @functools.cached_property
    def _completed_by_tasks(self) -> CompletedByTasks:
        return completed_by_tasks(self.tasks.values())

    def _is_rcu(self, completion: Object) -> bool:
        try:
            request = container_of(completion, "struct rcu_synchronize", "completion")
            function = request.head.func.value_()
        except LookupError:
            return False
        wakeme = symbol_address(self._prog, "wakeme_after_rcu")
        return bool(function == wakeme and wakeme)

    def _plain_wait_queue(self, entry: _Entry, head: int) -> Optional[Wait]:
        function = self._word(entry.base + (entry.type.func or 0))
        waiter = self._pointer("struct wait_queue_entry", entry.base)
        evidence = "it is on the wait queue"
        if function == symbol_address(self._prog, "wake_bit_function"):
            bit = container_of(waiter, "struct wait_bit_queue_entry", "wq_entry")
            return self._bit(bit.key, evidence)
        if function == symbol_address(self._prog, "var_wake_function"):
            variable = container_of(waiter, "struct wait_bit_queue_entry", "wq_entry")
            return Wait("variable", variable.key.flags.read_(), evidence + " of the variable")
        if function == symbol_address(self._prog, "cwt_wakefn"):
            # Until "workqueue: Implement disable/enable for (delayed) work items" in v6.10.
            cancelled = container_of(waiter, "struct cwt_wait", "wait")
            return Wait("cancel_work", cancelled.work.read_(), evidence + " of who cancels it")
        if function in (
            symbol_address(self._prog, "wake_page_function"),
            symbol_address(self._prog, "folio_wake_function"),
        ):
            wait = container_of(waiter, "struct wait_page_queue", "wait")
            # df4d4f127394 ("mm/filemap: Convert page wait queues to be
            # folios") in v5.15.
            page = wait.folio if hasattr(wait, "folio") else wait.page
            number = int(wait.bit_nr.value_())
            name = _page_flag(self._prog, number)
            return Wait("page", page.read_(), f"{evidence} of the page, for {name}", bit=number)
        if function == symbol_address(self._prog, "percpu_rwsem_wake_function"):
            queue = self._container("struct wait_queue_head", "head", head)
            sem = container_of(queue, "struct percpu_rw_semaphore", "waiters")
            return Wait("percpu_rwsem", sem, "it is on the percpu_rwsem's list")
        queue = self._container("struct wait_queue_head", "head", head)
        return Wait("wait queue", queue, evidence)

    def _bit(self, key: Object, evidence: str) -> Wait:
        """
        :param key: ``struct wait_bit_key``
        """
        number = int(key.bit_nr.value_())
        word = key.flags.read_()
        buffer = buffer_head_of(word, number)
        if buffer is not None:
            return Wait("buffer", buffer, evidence + " of the buffer's lock", bit=number)
        return Wait("bit", word, f"{evidence} of the bit {number}", bit=number)

    def _rt_mutex(self, task: Object) -> Optional[Wait]:
        try:
            waiter = task.pi_blocked_on.read_()
        except AttributeError:
            return None  # without CONFIG_RT_MUTEXES
        if not waiter:
            return None
        try:
            if waiter.task != task:
                return None
            return Wait("rt_mutex", waiter.lock.read_(), "its pi_blocked_on names the lock")
        except FaultError:
            return None

    def _timer(self, task: Object) -> Optional[Wait]:
        """A timer alone that will wake the task: msleep(), schedule_timeout()."""
        low, high = live_range(task)
        for name, node in (("process_timer", "timer.entry"), ("hrtimer_sleeper", None)):
            try:
                type_ = self._prog.type("struct " + name)
                offset = offsetof(type_, "task")
            except LookupError:
                continue
            words = np.frombuffer(self._prog.read(low, high - low), dtype=np.uint64)
            for index in np.nonzero(words == np.uint64(task.value_()))[0].tolist():
                base = low + index * _WORD - offset
                if base < low or base + type_.size > high:
                    continue
                sleeper = self._pointer("struct " + name, base)
                try:
                    if node is not None:
                        entry = sleeper.timer.entry
                        pending = entry.pprev and self._word(entry.pprev.value_()) == (
                            entry.address_of_().value_()
                        )
                        function = sleeper.timer.function.value_()
                        wakes = function == symbol_address(self._prog, "process_timeout")
                    else:
                        pending = _is_armed(sleeper.timer)
                        function = sleeper.timer.function.value_()
                        wakes = function == symbol_address(self._prog, "hrtimer_wakeup")
                except FaultError:
                    continue
                if pending and wakes:
                    return Wait("timer", sleeper, "a timer that wakes it is pending")
        return None


def _is_armed(timer: Object) -> bool:
    """
    ``hrtimer_is_queued()``.

    :param timer: ``struct hrtimer``
    """
    # 22f011be7aaa ("hrtimer: Convert state and properties to boolean") in v7.1.
    queued = timer.is_queued if hasattr(timer, "is_queued") else timer.state
    return bool(queued.value_())


def _sleeps_there(frames: List[Frame], address: int) -> bool:
    """
    Whether what the function with an entry in its frame has called is its sleep.

    On its way there, or in its condition, it can sleep in something else: in a
    page fault, or until there is memory.
    """
    called = list(itertools.takewhile(lambda frame: frame[0] <= address, frames))[:-1]
    return bool(called) and all(_SLEEPS.fullmatch(name) for _, names in called for name in names)


def _page_flag(prog: Program, number: int) -> str:
    """The name of a page's flag that is waited for."""
    for name in ("PG_locked", "PG_writeback"):
        try:
            if prog.constant(name).value_() == number:
                return name
        except LookupError:
            continue
    return f"bit {number}"
