# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tasks: their state, how long they have slept, and their kernel stacks."""

from __future__ import annotations

import contextlib
import itertools
from typing import Dict, Iterator, Optional, Tuple

import numpy as np
import numpy.typing as npt
from drgn import NULL, FaultError, Object, Program, StackFrame, StackTrace, sizeof
from drgn.helpers import ValidationError
from drgn.helpers.linux import pid as drgn_pid
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.sched import cpu_curr, cpu_rq, task_cpu, task_on_cpu

from vmcore_tools.kernel.id_slots import find_pointer, for_each_pointer

# include/linux/sched.h. These are macros, which debug info does not have;
# the values have been the same since v4.14, when TASK_NOLOAD got 0x400, and
# no kernel before v5.15 had a state 0x1000.
TASK_UNINTERRUPTIBLE = 0x0002
TASK_WAKEKILL = 0x0100
TASK_WAKING = 0x0200
TASK_NOLOAD = 0x0400
TASK_RTLOCK_WAIT = 0x1000

#: ``pid_max`` cannot be set higher (PID_MAX_LIMIT).
_TASKS_MAX = 4 << 20
_FRAMES_MAX = 200
#: CONFIG_DEFAULT_HUNG_TASK_TIMEOUT's own default, where the kernel has no khungtaskd.
_DEFAULT_HUNG_TASK_SECONDS = 120


def task_state(task: Object) -> int:
    """
    The state word of a task.

    :param task: ``struct task_struct *``
    """
    # 2f064a59a11f ("sched: Change task_struct::state") in v5.14.
    if hasattr(task, "__state"):
        return int(task.member_("__state").value_())
    return int(task.state.value_())


def is_uninterruptible(task: Object) -> bool:
    """
    Whether a task is in uninterruptible sleep and counts as load.

    Sleepers that a fatal signal may wake (TASK_KILLABLE) are included;
    khungtaskd of 5.10 looks at exactly TASK_UNINTERRUPTIBLE and ignores them.
    So are those that wait for a spinlock with PREEMPT_RT, whom nothing else
    wakes; no khungtaskd looks at them.

    :param task: ``struct task_struct *``
    """
    state = task_state(task)
    # "sched/wakeup: Introduce the TASK_RTLOCK_WAIT state bit" in v5.15.
    uninterruptible = state & (TASK_UNINTERRUPTIBLE | TASK_RTLOCK_WAIT)
    return bool(uninterruptible) and not state & TASK_NOLOAD


def is_killable(task: Object) -> bool:
    """
    Whether a fatal signal would end a task's uninterruptible sleep.

    :param task: ``struct task_struct *``
    """
    return bool(task_state(task) & TASK_WAKEKILL)


def is_queued(task: Object) -> bool:
    """
    Whether a task is on a run queue or a CPU: it can run, whatever its state says.

    So can one that was woken, and is still on the list of its CPU, which has
    to take it from there with an interrupt (``ttwu_queue_wakelist()``).

    :param task: ``struct task_struct *``
    """
    if task_on_cpu(task) or task_state(task) & TASK_WAKING:
        return True
    return bool(task.on_rq.value_()) and not is_sleep_delayed(task)


def is_sleep_delayed(task: Object) -> bool:
    """
    Whether a task that went to sleep is left on its run queue for a while.

    :param task: ``struct task_struct *``
    """
    # 152e11f6df29 ("sched/fair: Implement delayed dequeue") in v6.12.
    return hasattr(task.se, "sched_delayed") and bool(task.se.sched_delayed.value_())


def task_comm(task: Object) -> str:
    """
    A task's comm; undecodable bytes are escaped.

    :param task: ``struct task_struct *``
    """
    comm: bytes = task.comm.string_()
    return comm.decode(errors="backslashreplace")


def process_of(task: Object) -> Object:
    """
    The task that stands for a task's process: the leader of its threads.

    :param task: ``struct task_struct *``
    :return: ``struct task_struct *``; the task itself if its pointer to the leader is damaged
    """
    with contextlib.suppress(FaultError):
        leader = task.group_leader.read_()
        if leader.group_leader == leader:
            return leader
    return task


def for_each_bounded_task(prog: Program) -> Iterator[Object]:
    """
    Iterate over all tasks that have a PID, with an end.

    :return: Iterator of ``struct task_struct *``
    :raises drgn.FaultError: behind the last one, if some are not found for damage
    """
    namespace = prog["init_pid_ns"]
    if not hasattr(namespace, "idr"):
        # Until 95846ecf9dac ("pid: replace pid bitmap implementation with IDR API") in v4.15.
        yield from itertools.islice(drgn_pid.for_each_task(prog), _TASKS_MAX)
        return
    type_, damage = prog["PIDTYPE_PID"], None
    try:
        for _, pid in itertools.islice(for_each_pointer(namespace.idr, "struct pid"), _TASKS_MAX):
            try:
                task = drgn_pid.pid_task(pid, type_)
            except FaultError as error:
                damage = error
                continue
            if task:
                yield task
    except FaultError as error:
        damage = error
    if damage is not None:
        raise damage


def find_task(prog: Program, pid: int) -> Object:
    """
    The task with a PID.

    :return: ``struct task_struct *``, NULL if there is none
    :raises drgn.FaultError: if it cannot be found for damage
    """
    namespace = prog["init_pid_ns"]
    if not hasattr(namespace, "idr"):
        return drgn_pid.find_task(prog, pid)  # as above
    found = find_pointer(namespace.idr, pid, "struct pid")
    if not found:
        return NULL(prog, "struct task_struct *")
    return drgn_pid.pid_task(found, prog["PIDTYPE_PID"])


def hung_task_timeout_seconds(prog: Program) -> int:
    """For how long a task may be blocked: kernel.hung_task_timeout_secs, or its default."""
    try:
        # 0 turns khungtaskd off.
        seconds = int(prog["sysctl_hung_task_timeout_secs"].value_())
    except (KeyError, FaultError):
        seconds = 0
    return seconds or _DEFAULT_HUNG_TASK_SECONDS


def sched_now_ns(prog: Program) -> int:
    """
    The scheduler's time when the dump was taken: the latest run queue clock.

    A CPU that has stopped ticking leaves its own clock behind.

    :raises drgn.FaultError: if no run queue can be read
    :raises drgn.helpers.ValidationError: if there is none
    """
    clocks, unread = [], None
    for cpu in for_each_possible_cpu(prog):
        try:
            clocks.append(int(cpu_rq(prog, cpu).clock.value_()))
        except FaultError as error:
            unread = error
    if not clocks:
        raise unread or ValidationError("the kernel has no CPU")
    return max(clocks)


def sleep_time_ns(task: Object, now_ns: int) -> Optional[int]:
    """
    How long a task that is not on a CPU has not run, in nanoseconds.

    The fair class stamps ``se.exec_start`` with the run queue's task clock
    when the task stops running (``update_curr()``); the other classes use the
    same member. khungtaskd's own ``last_switch_time`` is no better: it is
    written only when khungtaskd scans, and late by up to its interval.

    :param task: ``struct task_struct *``
    :param now_ns: of :func:`sched_now_ns`
    :return: None if the task has no time of its last run
    """
    prog = task.prog_
    rq = cpu_rq(prog, task_cpu(task))
    # exec_start is in the task clock, which leaves out time stolen by a
    # hypervisor and time in interrupts.
    behind = rq.clock.value_() - rq.clock_task.value_()
    start = task.se.exec_start.value_() + behind
    if not task.se.exec_start.value_() or start > now_ns:
        return None
    return int(now_ns - start)


def stack_range(task: Object) -> Tuple[int, int]:
    """
    The virtual addresses ``[low, high)`` of a task's kernel stack.

    :param task: ``struct task_struct *``
    """
    low = task.stack.value_()
    return low, low + task.prog_["THREAD_SIZE"].value_()


def live_range(task: Object) -> Tuple[int, int]:
    """
    The part ``[low, high)`` of a task's kernel stack that is in use.

    Where the stack pointer is not known it is the whole stack.

    :param task: ``struct task_struct *``
    """
    low, high = stack_range(task)
    if not task_on_cpu(task):
        pointer = _saved_stack_pointer(task)
    else:
        trace = _trace(task)
        if trace is None:
            return low, high
        if not trace[0].pc >> 63:
            return high, high  # user mode: the kernel stack is empty
        # In an interrupt the first frames are on the interrupt stack. The registers
        # of what it interrupts are below the stack pointer of that.
        pointers = [_sp(trace[i]) for i in range(min(len(trace), _FRAMES_MAX))]
        pointer = min((sp for sp in pointers if low <= sp < high), default=low)
        if not low <= pointers[0] < high:
            pointer = max(low, pointer - sizeof(task.prog_.type("struct pt_regs")))
    return (pointer - pointer % 8 if low <= pointer < high else low), high


def live_registers(task: Object) -> Optional[Dict[str, int]]:
    """
    The registers of a task that is on a CPU, as the dump saved them.

    :param task: ``struct task_struct *``
    :return: empty for a task that is on no CPU, as its registers are in
        memory; None if the dump does not have them
    """
    if not task_on_cpu(task):
        return {}
    trace = _trace(task)
    if trace is None:
        return None
    registers = trace[0].registers()
    return {name: value & 0xFFFFFFFFFFFFFFFF for name, value in registers.items()}


def words_at_hand(prog: Program) -> npt.NDArray[np.uint64]:
    """
    What the code that CPUs run has at hand: their registers and live stacks.

    CPUs that are offline are not left out: after a panic those that were
    stopped are (``stop_this_cpu()``). So has that which they would run next: a
    task that was preempted stopped in the middle of something, too. What the
    dump does not have of it is left out.

    :return: sorted uint64 array of words
    """
    parts = [np.zeros(0, dtype=np.uint64)]
    for cpu in for_each_possible_cpu(prog):
        with contextlib.suppress(FaultError):
            parts.append(live_words(cpu_curr(prog, cpu)))
    for task in for_each_bounded_task(prog):
        with contextlib.suppress(FaultError):
            if is_queued(task) and not task_on_cpu(task):
                parts.append(live_words(task))
    return np.sort(np.concatenate(parts))


def live_words(task: Object) -> npt.NDArray[np.uint64]:
    """
    The words of a task's live stack and of its registers, as far as the dump has them.

    On a CPU also those of the stacks of interrupts and exceptions that it is on.

    :param task: ``struct task_struct *``
    :return: uint64 array
    :raises drgn.FaultError: if the task cannot be read
    """
    low, high = live_range(task)
    if high % 8:
        raise FaultError("a task's stack is not aligned", task.value_())
    words = np.array(list((live_registers(task) or {}).values()), dtype=np.uint64)
    with contextlib.suppress(FaultError):
        stack = np.frombuffer(task.prog_.read(low, high - low), dtype=np.uint64)
        words = np.concatenate([words, stack])
    return np.concatenate([words, _words_of_other_stacks(task)])


def _words_of_other_stacks(task: Object) -> npt.NDArray[np.uint64]:
    """Where those end is not asked: as much is read as a stack has at most."""
    trace = _trace(task) if task_on_cpu(task) else None
    if trace is None:
        return np.zeros(0, dtype=np.uint64)
    low, high = stack_range(task)
    pointers = sorted({_sp(trace[i]) for i in range(min(len(trace), _FRAMES_MAX))})
    page_size = int(task.prog_["PAGE_SIZE"].value_())
    parts, end = [], 0
    for pointer in pointers:
        if not pointer >> 63 or low <= pointer < high:
            continue  # in user mode; or the task's own
        position = max(end, pointer - pointer % 8)
        end = pointer - pointer % 8 + (high - low)
        with contextlib.suppress(FaultError):
            while position < end:
                following = min(end, (position // page_size + 1) * page_size)
                parts.append(task.prog_.read(position, following - position))
                position = following
    return np.frombuffer(b"".join(parts), dtype=np.uint64)


def _trace(task: Object) -> Optional[StackTrace]:
    try:
        trace = task.prog_.stack_trace(task)
    except (ValueError, LookupError, FaultError):
        return None
    return trace if len(trace) else None


def _saved_stack_pointer(task: Object) -> int:
    thread = task.thread
    try:
        return int(thread.sp.value_())  # x86
    except AttributeError:
        return int(thread.cpu_context.sp.value_())  # arm64


def _sp(frame: StackFrame) -> int:
    try:
        return int(frame.sp)
    except LookupError:
        return 0
