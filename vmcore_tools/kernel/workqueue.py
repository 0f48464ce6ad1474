# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Workqueues: pools, their workers, and the works that wait in them.

A work is queued on a workqueue's ``pool_workqueue`` (pwq), which belongs to a
``worker_pool``; one of the pool's workers runs it. Names and rules are those
of ``kernel/workqueue.c``.
"""

from __future__ import annotations

import dataclasses
from typing import Dict, Iterator, Optional

from drgn import NULL, FaultError, Object, Program, container_of, offsetof
from drgn.helpers import ValidationError
from drgn.helpers.linux.list import list_empty
from drgn.helpers.linux.sched import task_on_cpu

from vmcore_tools.kernel.id_slots import find_pointer, for_each_pointer
from vmcore_tools.kernel.lists import for_each_entry
from vmcore_tools.kernel.symbols import symbol_address

#: Bounds that no machine reaches; a damaged list must end.
_POOLS_MAX = 1 << 20
_WORKQUEUES_MAX = 1 << 20
_WORKERS_MAX = 1 << 20
_WORKS_MAX = 10_000_000

_PF_WQ_WORKER = 0x20
_NS_PER_SECOND = 1_000_000_000


def jiffies_per_second(prog: Program) -> int:
    """
    ``HZ``, a macro that debug info does not have.

    ``kernel/workqueue.c`` has it in an enum: a worker's creation that failed
    is tried again after a second.

    :raises LookupError: without the debug info of vmlinux
    """
    return int(prog.constant("CREATE_COOLDOWN").value_())


def jiffies_to_ns(prog: Program, jiffies: int) -> int:
    """A number of jiffies in nanoseconds."""
    return jiffies * _NS_PER_SECOND // jiffies_per_second(prog)


def for_each_worker_pool(prog: Program) -> Iterator[Object]:
    """
    Iterate over all worker pools: per CPU (normal, highpri, BH) and unbound.

    Mirrors ``for_each_pool()``.

    :return: Iterator of ``struct worker_pool *``
    """
    for _, pool in for_each_pointer(prog["worker_pool_idr"], "struct worker_pool"):
        yield pool


def for_each_workqueue(prog: Program) -> Iterator[Object]:
    """
    Iterate over all workqueues.

    :return: Iterator of ``struct workqueue_struct *``
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    yield from for_each_entry(
        "struct workqueue_struct", prog["workqueues"].address_of_(), "list", _WORKQUEUES_MAX
    )


def for_each_pool_workqueue(workqueue: Object) -> Iterator[Object]:
    """
    Iterate over the pool_workqueues of a workqueue.

    :param workqueue: ``struct workqueue_struct *``
    :return: Iterator of ``struct pool_workqueue *``
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    yield from for_each_entry(
        "struct pool_workqueue", workqueue.pwqs.address_of_(), "pwqs_node", _POOLS_MAX
    )


def for_each_worker(pool: Object) -> Iterator[Object]:
    """
    Iterate over the workers that are attached to a pool, rescuers included.

    :param pool: ``struct worker_pool *``
    :return: Iterator of ``struct worker *``
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    yield from for_each_entry("struct worker", pool.workers.address_of_(), "node", _WORKERS_MAX)


def for_each_pending_work(pool: Object) -> Iterator[Object]:
    """
    Iterate over the works that wait for a worker of a pool, the next first.

    The barriers that flush_work() queues (:func:`is_barrier`) are among them.

    :param pool: ``struct worker_pool *``
    :return: Iterator of ``struct work_struct *``
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    yield from for_each_entry(
        "struct work_struct", pool.worklist.address_of_(), "entry", _WORKS_MAX
    )


def for_each_inactive_work(pwq: Object) -> Iterator[Object]:
    """
    Iterate over the works that wait until fewer than max_active are active.

    :param pwq: ``struct pool_workqueue *``
    :return: Iterator of ``struct work_struct *``
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    yield from for_each_entry(
        "struct work_struct", inactive_works(pwq).address_of_(), "entry", _WORKS_MAX
    )


def inactive_works(pwq: Object) -> Object:
    """
    The list of the works that max_active keeps back.

    :param pwq: ``struct pool_workqueue *``
    :return: ``struct list_head``
    """
    # f97a4a1a3f87 ("workqueue: Rename "delayed" (delayed by active
    # management) to "inactive"") in v5.15.
    try:
        return pwq.inactive_works
    except AttributeError:
        return pwq.delayed_works


def for_each_scheduled_work(worker: Object) -> Iterator[Object]:
    """
    Iterate over the works that a worker runs after its current one.

    They are the barriers of flushers of its current work, or, of a rescuer,
    the works that it took over.

    :param worker: ``struct worker *``
    :return: Iterator of ``struct work_struct *``
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    yield from for_each_entry(
        "struct work_struct", worker.scheduled.address_of_(), "entry", _WORKS_MAX
    )


def worker_is_idle(worker: Object) -> bool:
    """
    Whether a worker is on its pool's list of idle workers.

    One that was woken for a work stays there until it runs.

    :param worker: ``struct worker *``
    """
    return bool(worker.flags.value_() & worker.prog_.constant("WORKER_IDLE").value_())


def worker_of(task: Object) -> Object:
    """
    The worker that a task is.

    :param task: ``struct task_struct *``
    :return: ``struct worker *``, NULL if it is none
    :raises drgn.FaultError: if it was not found, and a list could not be read
    :raises drgn.helpers.ValidationError: if it was not found, and a list is damaged
    """
    prog = task.prog_
    broken: Optional[Exception] = None
    # include/linux/sched.h: PF_WQ_WORKER, a macro that has not changed since v2.6.36.
    if task.flags.value_() & _PF_WQ_WORKER:
        for pool in for_each_worker_pool(prog):
            try:
                for worker in for_each_worker(pool):
                    if worker.task == task:
                        return worker
            except (FaultError, ValidationError) as error:
                broken = error
    if broken is not None:
        raise broken
    return NULL(prog, "struct worker *")


def for_each_idle_task(prog: Program) -> Iterator[Object]:
    """
    Iterate over the tasks of workers that sleep until there is a work for them.

    Such a task is in ``worker_thread()`` and has no work, nor anything that
    works gave it.

    :return: Iterator of ``struct task_struct *``
    :raises drgn.helpers.ValidationError: if a list is damaged
    """
    for pool in for_each_worker_pool(prog):
        if pool_is_bh(pool):
            continue  # its workers have no tasks
        idle = for_each_entry("struct worker", pool.idle_list.address_of_(), "entry", _WORKERS_MAX)
        for worker in idle:
            has_works = worker.current_work or not list_empty(worker.scheduled.address_of_())
            # One that runs may be in an interrupt.
            if worker_is_idle(worker) and not has_works and not task_on_cpu(worker.task):
                yield worker.task.read_()


def pool_is_managed(pool: Object) -> bool:
    """
    Whether one of a pool's workers is creating another one.

    :param pool: ``struct worker_pool *``
    """
    # The flag is from 692b48258dda ("workqueue: replace pool->manager_arb
    # mutex with a flag") in v4.14.
    try:
        flag = pool.prog_.constant("POOL_MANAGER_ACTIVE").value_()
    except LookupError:
        return bool(pool.manager)
    return bool(pool.flags.value_() & flag)


def pool_is_bh(pool: Object) -> bool:
    """
    Whether a pool runs its works in softirqs, by no task.

    :param pool: ``struct worker_pool *``
    """
    # 4cb1ef64609f ("workqueue: Implement BH workqueues to eventually replace
    # tasklets") in v6.9.
    try:
        return bool(pool.flags.value_() & pool.prog_.constant("POOL_BH").value_())
    except LookupError:
        return False


def pool_nr_running(pool: Object) -> int:
    """
    How many of a pool's workers run or can run, as concurrency management sees it.

    :param pool: ``struct worker_pool *``
    """
    # bc35f7ef9628 ("workqueue: Convert the type of pool->nr_running to int")
    # in v5.18.
    try:
        return int(pool.nr_running.counter.value_())
    except AttributeError:
        return int(pool.nr_running.value_())


def pool_highpri(pool: Object) -> bool:
    """
    Whether a pool is for works of high priority.

    :param pool: ``struct worker_pool *``
    """
    return bool(pool.attrs.nice.value_() < 0)


def pool_without_progress_ns(pool: Object) -> Optional[int]:
    """
    How long no work of a pool was started though works are pending.

    ``wq_watchdog_timer_fn()`` reports this time ("stuck for"). It runs from
    the start of the last work, or from when the first pending one was queued.

    :param pool: ``struct worker_pool *``
    :return: nanoseconds; None if no work is pending, or without CONFIG_WQ_WATCHDOG
    """
    if list_empty(pool.worklist.address_of_()):
        return None
    if not hasattr(pool, "watchdog_ts"):
        return None
    now = pool.prog_["jiffies_64"].value_()
    return jiffies_to_ns(pool.prog_, max(0, int(now - pool.watchdog_ts.value_())))


def watchdog_threshold_ns(prog: Program) -> Optional[int]:
    """
    From when on the kernel's watchdog reports a pool.

    :return: nanoseconds; None if the watchdog is off or not built in
    """
    try:
        seconds = int(prog["wq_watchdog_thresh"].value_())
    except KeyError:
        return None
    return seconds * _NS_PER_SECOND or None


def worker_idle_ns(worker: Object) -> int:
    """
    How long ago a worker last became idle.

    :param worker: ``struct worker *``
    """
    prog = worker.prog_
    jiffies = prog["jiffies_64"].value_() - worker.last_active.value_()
    return jiffies_to_ns(prog, max(0, int(jiffies)))


def work_is_linked(work: Object) -> bool:
    """
    Whether the next work on the list is run by the same worker right after.

    :param work: ``struct work_struct *``
    """
    return bool(_data(work) & work.prog_.constant("WORK_STRUCT_LINKED").value_())


def work_is_pending(work: Object) -> bool:
    """
    Whether a work is queued, waits for its timer, or is being cancelled.

    :param work: ``struct work_struct *``
    """
    return bool(_data(work) & work.prog_.constant("WORK_STRUCT_PENDING").value_())


def work_pwq(work: Object) -> Object:
    """
    The pool_workqueue that a work is queued on.

    Mirrors ``get_work_pwq()``.

    :param work: ``struct work_struct *``
    :return: ``struct pool_workqueue *``, NULL if it is not queued
    """
    prog = work.prog_
    data = _data(work)
    if not data & prog.constant("WORK_STRUCT_PWQ").value_():
        return NULL(prog, "struct pool_workqueue *")
    # afa4bb778e48 ("workqueue: clean up WORK_* constant types, clarify
    # masking") in v6.4 made the mask a macro; e9a8e01f9b13 ("workqueue: Clean
    # up enum work_bits and related constants") in v6.9 gave the shift its
    # name, and the name FLAG_BITS to fewer bits.
    try:
        shift = prog.constant("WORK_STRUCT_PWQ_SHIFT").value_()
    except LookupError:
        shift = prog.constant("WORK_STRUCT_FLAG_BITS").value_()
    return Object(prog, "struct pool_workqueue *", data >> shift << shift)


def work_pool(work: Object) -> Object:
    """
    The pool that a work is queued in or was last queued in.

    Mirrors ``get_work_pool()``.

    :param work: ``struct work_struct *``
    :return: ``struct worker_pool *``, NULL if it never was in any
    """
    pwq = work_pwq(work)
    if pwq:
        return pwq.pool.read_()
    prog = work.prog_
    shift = prog.constant("WORK_OFFQ_POOL_SHIFT").value_()
    bits = prog.constant("WORK_OFFQ_POOL_BITS").value_()
    number = _data(work) >> shift & (1 << bits) - 1
    return find_pointer(prog["worker_pool_idr"], number, "struct worker_pool")


def _data(work: Object) -> int:
    return int(work.data.counter.value_()) & 0xFFFFFFFFFFFFFFFF


def find_worker_executing(pool: Object, work: Object) -> Object:
    """
    The worker of a pool that is running a work.

    Mirrors ``find_worker_executing_work()``.

    :param pool: ``struct worker_pool *``
    :param work: ``struct work_struct *``
    :return: ``struct worker *``, NULL if none is
    :raises drgn.helpers.ValidationError: if the list of workers is damaged
    """
    for worker in for_each_worker(pool):
        # Another object may be where a freed one was: the function tells.
        if worker.current_work == work and worker.current_func == work.func:
            return worker
    return NULL(pool.prog_, "struct worker *")


def is_barrier(work: Object) -> bool:
    """
    Whether a work is the barrier of a flush_work().

    :param work: ``struct work_struct *``
    """
    return bool(
        work.func.value_() == symbol_address(work.prog_, "wq_barrier_func")
        and work.func.value_() != 0
    )


def barrier_of_completion(completion: Object) -> Object:
    """
    The barrier of flush_work() that a completion belongs to.

    :param completion: ``struct completion *``
    :return: ``struct wq_barrier *``, NULL if the completion is of something else
    :raises FaultError: if what is before the completion cannot be read
    """
    barrier = container_of(completion, "struct wq_barrier", "done")
    if is_barrier(barrier.work.address_of_()):
        return barrier
    return NULL(completion.prog_, "struct wq_barrier *")


@dataclasses.dataclass(frozen=True)
class BarrierTarget:
    """
    What a flush_work() waits for.

    :ivar work: ``struct work_struct *``; NULL if the worker is between works
    :ivar pwq: ``struct pool_workqueue *`` of the barrier
    :ivar worker: ``struct worker *`` that has the work, NULL while it is pending
    :ivar inactive: whether max_active keeps the work back
    """

    work: Object
    pwq: Object
    worker: Object
    inactive: bool

    @property
    def executing(self) -> bool:
        """Whether the worker is running the work, not only about to."""
        return bool(self.worker) and self.worker.current_work == self.work


def barrier_target(barrier: Object) -> Optional[BarrierTarget]:
    """
    The work that a flush_work() waits for.

    ``insert_wq_barrier()`` puts the barrier behind the work on the pool's
    list, or, where the work is running, in front of its worker's list. Several
    flushers of one work have their barriers in a row.

    :param barrier: ``struct wq_barrier *``
    :return: None if the barrier is on no list that was expected
    :raises FaultError: if the lists cannot be read
    :raises drgn.helpers.ValidationError: if a list is damaged
    """
    prog = barrier.prog_
    pwq = work_pwq(barrier.work.address_of_())
    if not pwq:
        return None
    pool = pwq.pool.read_()
    no_worker = NULL(prog, "struct worker *")
    lists = {
        pool.worklist.address_of_().value_(): (no_worker, False),
        inactive_works(pwq).address_of_().value_(): (no_worker, True),
    }
    for worker in for_each_worker(pool):
        lists[worker.scheduled.address_of_().value_()] = (worker, False)

    target = NULL(prog, "struct work_struct *")
    node = barrier.work.entry.address_of_()
    for _ in range(_WORKS_MAX):
        previous = node.prev.read_()
        if previous.next != node:
            return None
        node = previous
        if node.value_() in lists:
            worker, inactive = lists[node.value_()]
            if not target and worker:
                target = worker.current_work.read_()
            elif not target:
                return None
            return BarrierTarget(target, pwq, worker, inactive)
        work = container_of(node, "struct work_struct", "entry")
        if not target and not is_barrier(work):
            target = work
    return None


def flushed_workqueues(prog: Program) -> Dict[int, Object]:
    """
    The workqueues that somebody flushes, by the completion that he waits for.

    Of each ``struct wq_flusher`` on the lists of all workqueues: it is on the
    stack of the task in ``flush_workqueue()``.

    :return: ``struct workqueue_struct *`` by the address of the ``struct completion``
    :raises FaultError: if one cannot be read
    :raises drgn.helpers.ValidationError: if a list is damaged
    """
    done = offsetof(prog.type("struct wq_flusher"), "done")
    found = {}
    for workqueue in for_each_workqueue(prog):
        first = workqueue.first_flusher.value_()
        if first:
            found[first + done] = workqueue
        for head in (workqueue.flusher_queue, workqueue.flusher_overflow):
            if list_empty(head.address_of_()):
                continue
            for flusher in for_each_entry(
                "struct wq_flusher", head.address_of_(), "list", _WORKS_MAX
            ):
                found[flusher.value_() + done] = workqueue
    return found


def is_stopped(pwq: Object) -> bool:
    """
    Whether a pool_workqueue activates no work, however few are active.

    The workqueue is frozen for a suspend, or it is an ordered one's, and plugged
    until those before it are empty.

    :param pwq: ``struct pool_workqueue *``
    """
    # 4c065dbce1e8 ("workqueue: Enable unbound cpumask update on ordered workqueues") in v6.9.
    if hasattr(pwq, "plugged") and pwq.plugged.value_():
        return True
    # a045a272d887 ("workqueue: Move pwq->max_active to wq->max_active") in v6.9.
    limited = pwq if hasattr(pwq, "max_active") else pwq.wq
    return bool(limited.max_active.value_() == 0)


def for_each_pwq_limited_with(pwq: Object) -> Iterator[Object]:
    """
    Iterate over the pool_workqueues whose active works max_active counts together.

    Mirrors ``wq_node_nr_active()``.

    :param pwq: ``struct pool_workqueue *``, which is one of them
    :return: Iterator of ``struct pool_workqueue *``
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    # 5797b1c18919 ("workqueue: Implement system-wide nr_active enforcement for unbound
    # workqueues") in v6.9.
    workqueue = pwq.wq.read_()
    by_node = hasattr(workqueue, "node_nr_active")
    if not by_node or not workqueue.flags.value_() & pwq.prog_.constant("WQ_UNBOUND").value_():
        yield pwq
        return
    for other in for_each_pool_workqueue(workqueue):
        if other.pool.node.value_() == pwq.pool.node.value_():
            yield other


def for_each_flushed_pwq(workqueue: Object) -> Iterator[Object]:
    """
    Iterate over the pool_workqueues that the first flusher still waits for.

    Mirrors ``flush_workqueue_prep_pwqs()``: their flush color is set until no
    work of that color is in flight.

    :param workqueue: ``struct workqueue_struct *``
    :return: Iterator of ``struct pool_workqueue *``
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    for pwq in for_each_pool_workqueue(workqueue):
        if pwq.flush_color.value_() >= 0:
            yield pwq


def work_color(work: Object) -> int:
    """
    Which flush_workqueue() waits for a queued work: its color.

    Mirrors ``get_work_color()``. Before v5.15 barriers have the color
    ``WORK_NO_COLOR``, for which nobody waits.

    :param work: ``struct work_struct *``
    """
    shift = work.prog_.constant("WORK_STRUCT_COLOR_SHIFT").value_()
    bits = work.prog_.constant("WORK_STRUCT_COLOR_BITS").value_()
    return int(_data(work) >> shift & (1 << bits) - 1)


def worker_color(worker: Object) -> Optional[int]:
    """
    The color of the work that a worker runs.

    :param worker: ``struct worker *``
    :return: None where the kernel does not keep it (before v5.15)
    """
    if not hasattr(worker, "current_color"):
        return None
    return int(worker.current_color.value_())


def only_color_in_flight(pwq: Object, color: int) -> bool:
    """
    Whether all works of a pool_workqueue that have not ended are of one color.

    :param pwq: ``struct pool_workqueue *``
    """
    numbers = [int(number.value_()) for number in pwq.nr_in_flight]
    return not any(number for other, number in enumerate(numbers) if other != color)


def is_mayday(pwq: Object) -> bool:
    """
    Whether a pool_workqueue has called for its workqueue's rescuer.

    :param pwq: ``struct pool_workqueue *``
    """
    node = pwq.mayday_node
    return bool(node.next) and not list_empty(node.address_of_())
