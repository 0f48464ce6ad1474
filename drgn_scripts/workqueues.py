# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Worker pools, what their workers do, and the works that wait for them.

For each pool: how many works are pending, how many workers are idle, and, if
works are pending, how long none of them was started: `overdue` is a pool that
the kernel's own watchdog would report (workqueue.watchdog_thresh). A worker is
`idle`, `woken` (for a work, and has not run yet) or `busy`. Works that
max_active keeps back are `inactive`; the barriers of flush_work() name the
task that waits.

How long a busy worker has been at its work the kernel does not keep; how long
it has slept there is in hung-tasks.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Iterator, Optional

from drgn import FaultError, Object, container_of
from drgn.helpers import ValidationError

from vmcore_tools.analysis import Analysis, Context, Requires
from vmcore_tools.kernel.symbols import symbol_name
from vmcore_tools.kernel.task import is_queued, task_comm
from vmcore_tools.kernel.wait_works import pool_cpu
from vmcore_tools.kernel.workqueue import (
    for_each_inactive_work,
    for_each_pending_work,
    for_each_pool_workqueue,
    for_each_worker,
    for_each_worker_pool,
    for_each_workqueue,
    is_barrier,
    is_mayday,
    pool_highpri,
    pool_is_bh,
    pool_is_managed,
    pool_nr_running,
    pool_without_progress_ns,
    watchdog_threshold_ns,
    work_pwq,
    worker_idle_ns,
    worker_is_idle,
)
from vmcore_tools.model import Absent, Kind, Maybe, column

_UNBOUND = Absent("its workers run on any CPU")
_NO_WORK = Absent("it has no work")
_NO_BARRIER = Absent("it is no barrier")
_NO_PWQ = Absent("it is not queued")


@dataclasses.dataclass(frozen=True)
class WorkerPool:
    """A pool of workers."""

    pool_id: int = column(Kind.NUMBER)
    cpu: Maybe[int] = column(Kind.NUMBER)
    high_priority: bool = column(Kind.TEXT)
    in_softirq: bool = column(Kind.TEXT)
    workers: int = column(Kind.COUNT)
    idle: int = column(Kind.COUNT)
    running: int = column(Kind.COUNT)
    pending: int = column(Kind.COUNT)
    without_progress_ns: Maybe[int] = column(Kind.DURATION)
    overdue: Maybe[bool] = column(Kind.TEXT)
    creates_worker: bool = column(Kind.TEXT)
    pool: int = column(Kind.ADDRESS)


@dataclasses.dataclass(frozen=True)
class Worker:
    """A worker that is not asleep for want of work."""

    pid: int = column(Kind.PID)
    comm: str = column(Kind.SENSITIVE)
    pool_id: int = column(Kind.NUMBER)
    state: str = column(Kind.TEXT)
    work_function: Maybe[str] = column(Kind.TEXT)
    workqueue: Maybe[str] = column(Kind.UNTRUSTED)
    since_idle_ns: int = column(Kind.DURATION)
    work: Maybe[int] = column(Kind.ADDRESS)
    worker: int = column(Kind.ADDRESS)


@dataclasses.dataclass(frozen=True)
class QueuedWork:
    """A work that no worker has begun, in the order of its list."""

    pool_id: int = column(Kind.NUMBER)
    work_function: Maybe[str] = column(Kind.TEXT)
    workqueue: Maybe[str] = column(Kind.UNTRUSTED)
    inactive: bool = column(Kind.TEXT)
    flusher_pid: Maybe[int] = column(Kind.PID)
    flusher_comm: Maybe[str] = column(Kind.SENSITIVE)
    work: int = column(Kind.ADDRESS)


@dataclasses.dataclass(frozen=True)
class Workqueue:
    """A workqueue of which works are kept back or that has called for its rescuer."""

    name: str = column(Kind.UNTRUSTED)
    active: int = column(Kind.COUNT)
    inactive: int = column(Kind.COUNT)
    mayday: bool = column(Kind.TEXT)
    rescuer_pid: Maybe[int] = column(Kind.PID)
    workqueue: int = column(Kind.ADDRESS)


def analyze(ctx: Context) -> Iterator[Any]:
    threshold_ns = watchdog_threshold_ns(ctx.prog)
    for pool in for_each_worker_pool(ctx.prog):
        for make in (_pool, _workers, _pending):
            try:
                yield from make(pool, threshold_ns)
            except (FaultError, ValidationError) as error:
                ctx.coverage.gap("worker pool", f"it cannot be read: {error}", pool.value_())
    try:
        for workqueue in for_each_workqueue(ctx.prog):
            yield from _workqueue(ctx, workqueue)
    except (FaultError, ValidationError) as error:
        ctx.coverage.gap("list of workqueues", f"the walk broke off: {error}")


def _pool(pool: Object, threshold_ns: Optional[int]) -> Iterator[Any]:
    cpu = pool_cpu(pool)
    pending = sum(1 for _ in for_each_pending_work(pool))
    stalled_ns = pool_without_progress_ns(pool)
    no_watchdog = Absent("no work is pending" if not pending else "the kernel has no watchdog")
    yield WorkerPool(
        pool_id=int(pool.id.value_()),
        cpu=_UNBOUND if cpu is None else cpu,
        high_priority=pool_highpri(pool),
        in_softirq=pool_is_bh(pool),
        workers=int(pool.nr_workers.value_()),
        idle=int(pool.nr_idle.value_()),
        running=pool_nr_running(pool),
        pending=pending,
        without_progress_ns=no_watchdog if stalled_ns is None else stalled_ns,
        overdue=(
            no_watchdog if stalled_ns is None or threshold_ns is None else stalled_ns > threshold_ns
        ),
        creates_worker=pool_is_managed(pool),
        pool=int(pool.value_()),
    )


def _workers(pool: Object, _threshold_ns: Optional[int]) -> Iterator[Any]:
    for worker in for_each_worker(pool):
        if not worker.task:
            continue  # of a BH pool: softirqs run its works
        state = "busy"
        if worker_is_idle(worker):
            state = "woken" if is_queued(worker.task) else "idle"
        work = worker.current_work
        if state == "idle":
            continue
        yield Worker(
            pid=int(worker.task.pid.value_()),
            comm=task_comm(worker.task),
            pool_id=int(pool.id.value_()),
            state=state,
            work_function=_function(worker.current_func) if work else _NO_WORK,
            workqueue=_name(worker.current_pwq.wq) if worker.current_pwq else _NO_WORK,
            since_idle_ns=worker_idle_ns(worker),
            work=int(work.value_()) if work else _NO_WORK,
            worker=int(worker.value_()),
        )


def _pending(pool: Object, _threshold_ns: Optional[int]) -> Iterator[Any]:
    for work in for_each_pending_work(pool):
        yield _queued(pool, work, inactive=False)


def _queued(pool: Object, work: Object, *, inactive: bool) -> QueuedWork:
    pwq = work_pwq(work)
    flusher: Dict[str, Any] = {"flusher_pid": _NO_BARRIER, "flusher_comm": _NO_BARRIER}
    if is_barrier(work):
        task = container_of(work, "struct wq_barrier", "work").task
        flusher = {"flusher_pid": int(task.pid.value_()), "flusher_comm": task_comm(task)}
    return QueuedWork(
        pool_id=int(pool.id.value_()),
        work_function=_function(work.func),
        workqueue=_name(pwq.wq) if pwq else _NO_PWQ,
        inactive=inactive,
        work=int(work.value_()),
        **flusher,
    )


def _workqueue(ctx: Context, workqueue: Object) -> Iterator[Any]:
    active = inactive = 0
    mayday = False
    for pwq in for_each_pool_workqueue(workqueue):
        active += int(pwq.nr_active.value_())
        mayday = mayday or is_mayday(pwq)
        try:
            for work in for_each_inactive_work(pwq):
                inactive += 1
                yield _queued(pwq.pool, work, inactive=True)
        except (FaultError, ValidationError) as error:
            ctx.coverage.gap("pool_workqueue", f"it cannot be read: {error}", pwq.value_())
    if inactive or mayday:
        rescuer = workqueue.rescuer
        yield Workqueue(
            name=_name(workqueue),
            active=active,
            inactive=inactive,
            mayday=mayday,
            rescuer_pid=int(rescuer.task.pid.value_()) if rescuer else Absent("it has none"),
            workqueue=int(workqueue.value_()),
        )


def _function(pointer: Object) -> Any:
    name = symbol_name(pointer.prog_, pointer.value_())
    return Absent("the function has no symbol") if name is None else name


def _name(workqueue: Object) -> str:
    return str(workqueue.name.string_().decode(errors="backslashreplace"))


ANALYSIS = Analysis(
    name="workqueues",
    analyze=analyze,
    tables=(WorkerPool, Worker, QueuedWork, Workqueue),
    rules=(),
    requires=Requires(builtin=("struct worker_pool",), symbols=("worker_pool_idr", "workqueues")),
    on_demand=True,
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
