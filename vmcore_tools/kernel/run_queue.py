# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run queues: what each CPU runs, since when, and who waits for it."""

from __future__ import annotations

import dataclasses
from typing import Dict, Iterator, List, Optional, Tuple

from drgn import Object, Program, container_of
from drgn.helpers.linux.cpumask import for_each_online_cpu, for_each_possible_cpu
from drgn.helpers.linux.list import validate_list_for_each_entry
from drgn.helpers.linux.percpu import per_cpu
from drgn.helpers.linux.sched import cpu_curr, cpu_rq, rq_for_each_fair_task

from vmcore_tools.kernel.cpu_state import for_each_pending_wakeup
from vmcore_tools.kernel.rb_trees import for_each_rb_entry
from vmcore_tools.kernel.task import is_sleep_delayed

#: A bound that no machine reaches; a damaged list must end.
_TASKS_MAX = 4 << 20

# include/uapi/linux/sched.h: macros, so not in the debug info.
SCHEDULING_POLICIES: Dict[int, str] = {
    0: "SCHED_NORMAL",
    1: "SCHED_FIFO",
    2: "SCHED_RR",
    3: "SCHED_BATCH",
    5: "SCHED_IDLE",
    6: "SCHED_DEADLINE",
    7: "SCHED_EXT",
}
_REALTIME = (1, 2)
_DEADLINE = 6
_FAIR = (0, 3)
_IDLE = 5
#: include/linux/sched/prio.h: ``static_prio`` at nice 0.
_DEFAULT_PRIO = 120
_NS_PER_SECOND = 1_000_000_000
#: Levels of cgroups that no machine has.
_GROUPS_MAX = 1000

#: ``sysctl_sched_rt_runtime`` where real-time tasks are never throttled.
_RUNTIME_INF = -1


@dataclasses.dataclass(frozen=True)
class QueuedTask:
    """
    A task that can run and does not.

    :ivar task: ``struct task_struct *``
    :ivar wait_ns: how long it has been queued; None without CONFIG_SCHED_INFO, and if it
        was woken and its CPU has not queued it
    :ivar since_run_ns: how long ago it last ran: it has waited no longer;
        None if it has no time of its last run
    """

    task: Object
    wait_ns: Optional[int]
    since_run_ns: Optional[int]


@dataclasses.dataclass(frozen=True)
class RunQueue:
    """
    A CPU's run queue.

    :ivar rq: ``struct rq *``
    :ivar current: ``struct task_struct *`` that it runs; the idle task, if none
    :ivar current_ns: how long that has run without a break; None without
        CONFIG_SCHED_INFO for tasks that are not of the fair class, and for the idle task
    :ivar queued: deadline tasks first, then real-time ones by priority, then those of the
        fair class, and last those that it has only to take from a list of woken ones
    :ivar throttled: tasks on its lists that do not wait for the CPU: their
        cgroup has used up its quota
    """

    cpu: int
    online: bool
    rq: Object
    current: Object
    current_ns: Optional[int]
    queued: Tuple[QueuedTask, ...]
    throttled: Tuple[QueuedTask, ...] = ()

    @property
    def idle(self) -> bool:
        return bool(self.current == self.rq.idle)

    @property
    def nr_running(self) -> int:
        """Tasks on the queue, the current one included."""
        return int(self.rq.nr_running.value_())

    @property
    def rt_throttled(self) -> bool:
        """Whether real-time tasks have used up their share of the period."""
        # 5f6bd380c7bd ("sched/rt: Remove default bandwidth control") in v6.12
        # left it to CONFIG_RT_GROUP_SCHED.
        rt = self.rq.rt
        return bool(rt.rt_throttled.value_()) if hasattr(rt, "rt_throttled") else False


def for_each_run_queue(prog: Program, now_ns: int) -> Iterator[RunQueue]:
    """
    Iterate over the run queues of all possible CPUs.

    :param now_ns: of :func:`vmcore_tools.kernel.task.sched_now_ns`
    :raises drgn.helpers.ValidationError: if a list of tasks is damaged
    """
    online = set(for_each_online_cpu(prog))
    for cpu in for_each_possible_cpu(prog):
        yield run_queue(prog, cpu, cpu in online, now_ns)


def run_queue(prog: Program, cpu: int, online: bool, now_ns: int) -> RunQueue:
    """
    The run queue of a CPU.

    :param now_ns: of :func:`vmcore_tools.kernel.task.sched_now_ns`
    :raises drgn.helpers.ValidationError: if a list of tasks is damaged
    """
    rq = cpu_rq(prog, cpu).read_()
    current = cpu_curr(prog, cpu)
    queued: List[QueuedTask] = []
    throttled: List[QueuedTask] = []
    for task in for_each_queued_task(rq):
        if task != current and not is_sleep_delayed(task):
            found = QueuedTask(task, queued_ns(task, now_ns), since_run_ns(task, rq, now_ns))
            (throttled if is_throttled(task) else queued).append(found)
    for task in for_each_pending_wakeup(prog, cpu):
        # When it was woken is not noted.
        queued.append(QueuedTask(task, None, since_run_ns(task, rq, now_ns)))
    runs_ns = _current_ns(current, rq, now_ns)
    return RunQueue(cpu, online, rq, current, runs_ns, tuple(queued), tuple(throttled))


def for_each_queued_task(rq: Object) -> Iterator[Object]:
    """
    Iterate over the tasks of the deadline, real-time and fair classes on a run queue.

    :param rq: ``struct rq *``
    :return: Iterator of ``struct task_struct *``
    :raises drgn.helpers.ValidationError: if a list is damaged
    """
    yield from _deadline_tasks(rq)
    number = 0
    if rq.rt.rt_nr_running.value_():
        for queue in rq.rt.active.queue:
            for task in validate_list_for_each_entry(
                "struct task_struct", queue.address_of_(), "rt.run_list"
            ):
                number += 1
                if number > _TASKS_MAX:
                    return
                yield task
    for task in _fair_tasks(rq):
        number += 1
        if number > _TASKS_MAX:
            return
        yield task


def _deadline_tasks(rq: Object) -> Iterator[Object]:
    """Those of the deadline class, the earliest deadline first."""
    left = rq.dl.dl_nr_running.value_()
    if not left:
        return
    root = rq.dl.root.rb_root.address_of_()
    for entity in for_each_rb_entry("struct sched_dl_entity", root, "rb_node", _TASKS_MAX):
        # The fair server is no task, and counts as one (v6.12).
        if not (hasattr(entity, "dl_server") and entity.dl_server.value_()):
            yield container_of(entity, "struct task_struct", "dl")
        left -= 1
        if not left:
            return


def _fair_tasks(rq: Object) -> Iterator[Object]:
    if hasattr(rq, "cfs_tasks"):
        yield from validate_list_for_each_entry(
            "struct task_struct", rq.cfs_tasks.address_of_(), "se.group_node"
        )
    else:  # an old kernel for one CPU
        yield from rq_for_each_fair_task(rq)


def queued_ns(task: Object, now_ns: int) -> Optional[int]:
    """
    How long a task has been on a run queue without running.

    :param task: ``struct task_struct *``
    :param now_ns: of :func:`vmcore_tools.kernel.task.sched_now_ns`
    :return: None without CONFIG_SCHED_INFO, or if it is not known
    """
    info = task.sched_info
    if not hasattr(info, "last_queued"):
        return None
    queued = info.last_queued.value_()
    return int(now_ns - queued) if 0 < queued <= now_ns else None


def since_run_ns(task: Object, rq: Object, now_ns: int) -> Optional[int]:
    """
    How long ago a task that is not running last ran.

    :param task: ``struct task_struct *``
    :param rq: ``struct rq *`` that it is or was last on
    :param now_ns: of :func:`vmcore_tools.kernel.task.sched_now_ns`
    """
    start = task.se.exec_start.value_()
    # exec_start is in the task clock, which leaves out stolen time.
    start += rq.clock.value_() - rq.clock_task.value_() if start else 0
    return int(now_ns - start) if 0 < start <= now_ns else None


def _current_ns(task: Object, rq: Object, now_ns: int) -> Optional[int]:
    if task == rq.idle:
        return None
    info = task.sched_info
    if hasattr(info, "last_arrival"):
        arrived = info.last_arrival.value_()
        return int(now_ns - arrived) if 0 < arrived <= now_ns else None
    if not _is_of_fair_class(task):
        return None
    # set_next_entity() notes the run time at which the task was picked; only
    # the fair class does that in all versions.
    se = task.se
    ran = se.sum_exec_runtime.value_() - se.prev_sum_exec_runtime.value_()
    return max(0, int(ran)) + (since_run_ns(task, rq, now_ns) or 0)


def _is_of_fair_class(task: Object) -> bool:
    try:
        fair = task.prog_["fair_sched_class"].address_of_()
    except KeyError:
        return False
    return bool(task.sched_class == fair)


def current_ran_ns(queue: RunQueue, window_ns: int, now_ns: int) -> int:
    """
    How long a CPU's current task has certainly run in the last of the time.

    What the kernel notes of its arrival ends with every task that was let in
    between: the soft lockup detector's stopper runs every few seconds. So it
    is also told from how long the task has lived and not run, if it was on no
    other CPU.

    :param window_ns: how far to look back
    :param now_ns: of :func:`vmcore_tools.kernel.task.sched_now_ns`
    :return: at least that many nanoseconds, at most ``window_ns``
    """
    task = queue.current
    # exec_start is that of the last tick, or of the task's arrival.
    known = [queue.current_ns or 0, since_run_ns(task, queue.rq, now_ns) or 0]
    if _has_one_cpu(task):
        known.append(current_ran_anywhere_ns(queue, window_ns, now_ns))
    return min(window_ns, max(known))


def current_ran_anywhere_ns(queue: RunQueue, window_ns: int, now_ns: int) -> int:
    """
    How long a CPU's current task has certainly run in the last of the time, on whatever CPUs.

    :param window_ns: how far to look back
    :param now_ns: of :func:`vmcore_tools.kernel.task.sched_now_ns`
    :return: at least that many nanoseconds, at most ``window_ns``
    """
    task = queue.current
    # start_time is of the monotonic clock, from which the scheduler's differs a little.
    latest_ns = max(now_ns, _monotonic_ns(queue.rq.prog_) or 0)
    life_ns = int(latest_ns - task.start_time.value_())
    return ran_at_least_ns(window_ns, life_ns, int(task.se.sum_exec_runtime.value_()))


def _has_one_cpu(task: Object) -> bool:
    """Whether a task was on no other CPU: it never moved, or is allowed on one alone."""
    if not task.se.nr_migrations.value_():
        return True
    # migrate_disable() allows but the present one, for a moment (v5.11).
    moment = hasattr(task, "migration_disabled") and task.migration_disabled.value_()
    return bool(task.nr_cpus_allowed.value_() == 1 and not moment)


def _monotonic_ns(prog: Program) -> Optional[int]:
    """``ktime_get_coarse_ns()``: the monotonic clock at the last tick; None if it is not found."""
    try:
        timekeeper = prog["tk_core"].timekeeper
    except KeyError:
        # In v6.17 it became the first of several, and tk_core a macro.
        try:
            timekeeper = prog["timekeeper_data"][0].timekeeper
        except KeyError:
            return None
    offset, clock = timekeeper.wall_to_monotonic, timekeeper.tkr_mono
    seconds = timekeeper.xtime_sec.value_() + offset.tv_sec.value_()
    nanoseconds = clock.xtime_nsec.value_() >> clock.shift.value_()
    return int(seconds * _NS_PER_SECOND + nanoseconds + offset.tv_nsec.value_())


def ran_at_least_ns(window_ns: int, life_ns: int, runtime_ns: int) -> int:
    """
    How long a task has certainly run of the last ``window_ns``.

    In its whole life it has not run for ``life_ns - runtime_ns``: no more of
    that can be within the window.

    :return: 0 if nothing follows
    """
    # The life is of the monotonic clock, which NTP may slew by 500 ppm, and is
    # told to the last tick.
    life_ns += life_ns // 1000
    if life_ns < runtime_ns:
        return 0  # the clocks do not go together
    return max(0, min(window_ns, life_ns) - (life_ns - runtime_ns))


def is_throttled(task: Object) -> bool:
    """
    Whether a task cannot run as its cgroup's quota of CPU time is used up.

    :param task: ``struct task_struct *``
    """
    # Since "sched/fair: Switch to task based throttle model" (v6.18) tasks of
    # a throttled group run on until they return to user mode.
    if hasattr(task, "throttled"):
        return bool(task.throttled.value_())
    # Before, the group was taken off the queue of its parent, and its tasks
    # stayed on rq->cfs_tasks.
    se = task.se.address_of_()
    if not hasattr(se, "cfs_rq") or not _is_of_fair_class(task):
        return False
    for _ in range(_GROUPS_MAX):
        if not se:
            break
        queue = se.cfs_rq
        if not hasattr(queue, "throttled"):
            return False  # no CONFIG_CFS_BANDWIDTH
        if queue.throttled.value_() or queue.throttle_count.value_():
            return True
        se = se.parent.read_()
    return False


def is_of_low_weight(task: Object) -> bool:
    """
    Whether a task of the fair class may wait long for others of it by right.

    It is so for SCHED_IDLE, and for positive nice values.

    :param task: ``struct task_struct *``
    """
    idle, normal = task.policy.value_() == _IDLE, task.policy.value_() in _FAIR
    return bool(idle or (normal and task.static_prio.value_() > _DEFAULT_PRIO))


def unlisted_tasks(queue: RunQueue) -> int:
    """How many queued tasks of the sched_ext class are not listed."""
    rq = queue.rq
    if not hasattr(rq, "scx"):
        return 0
    number = int(rq.scx.nr_running.value_())
    try:
        ext = queue.current.prog_["ext_sched_class"].address_of_()
        current = bool(queue.current.sched_class == ext)
    except KeyError:
        current = False
    return max(0, number - current)


def scheduling_policy(task: Object) -> str:
    """
    A task's policy, as sched_setscheduler(2) calls it.

    :param task: ``struct task_struct *``
    """
    policy = task.policy.value_()
    return SCHEDULING_POLICIES.get(policy, str(policy))


def is_realtime(task: Object) -> bool:
    """
    Whether a task goes before all tasks of the fair class.

    :param task: ``struct task_struct *``
    """
    return int(task.policy.value_()) in (*_REALTIME, _DEADLINE)


def rt_throttling_off(prog: Program) -> Optional[bool]:
    """
    Whether real-time tasks may take all of a CPU's time (kernel.sched_rt_runtime_us = -1).

    :return: None if the kernel does not say
    """
    try:
        return bool(prog["sysctl_sched_rt_runtime"].value_() == _RUNTIME_INF)
    except KeyError:
        return None


def fair_server_runtime_ns(run_queue: RunQueue) -> Optional[int]:
    """
    How much of each period tasks of the fair class get, whatever real-time tasks there are.

    :return: 0 if that is turned off; None where the kernel has no such server
    """
    # 557a6bfc662c ("sched/fair: Add trivial fair server") in v6.12, which
    # took the place of real-time throttling.
    rq = run_queue.rq
    return int(rq.fair_server.dl_runtime.value_()) if hasattr(rq, "fair_server") else None


def need_resched(run_queue: RunQueue) -> Optional[bool]:
    """
    Whether the task on a CPU has been asked to leave it.

    :return: None where the architecture keeps that in a flag whose bit debug
        info does not have
    """
    # Both architectures fold the flag into the preemption count, inverted: 0
    # means that it is set (PREEMPT_NEED_RESCHED).
    prog, task = run_queue.rq.prog_, run_queue.current
    try:
        return not task.thread_info.preempt.need_resched.value_()  # arm64
    except AttributeError:
        pass
    # x86; 64701838bf05 ("x86/percpu: Move preempt_count next to
    # current_task") in v6.2 moved it, 46e8fff6d45f ("x86/preempt: Move
    # preempt count to percpu hot section") in v6.15 moved it back.
    try:
        count = per_cpu(prog["__preempt_count"], run_queue.cpu).value_()
    except KeyError:
        try:
            count = per_cpu(prog["pcpu_hot"], run_queue.cpu).preempt_count.value_()
        except (KeyError, AttributeError):
            return None
    return not count >> 31 & 1
