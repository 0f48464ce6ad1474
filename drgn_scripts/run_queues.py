# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What each CPU runs, since when, and which tasks wait for it.

How long a task has been queued, and the current one has run without a break,
the kernel notes with CONFIG_SCHED_INFO (task delay accounting or scheduler
statistics). Without it there is the time since a queued task last ran: it has
waited no longer than that, but perhaps only since it was woken just now.

Tasks of sched_ext that are queued are counted and not listed.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Iterator

from drgn import FaultError
from drgn.helpers import ValidationError

from vmcore_tools.analysis import Analysis, Context, Requires
from vmcore_tools.kernel.run_queue import (
    RunQueue,
    for_each_run_queue,
    need_resched,
    scheduling_policy,
    unlisted_tasks,
)
from vmcore_tools.kernel.task import sched_now_ns, task_comm
from vmcore_tools.model import Absent, Kind, Maybe, column


@dataclasses.dataclass(frozen=True)
class Cpu:
    """A CPU and the task that it runs; `idle` if that is its idle task."""

    cpu: int = column(Kind.NUMBER)
    online: bool = column(Kind.TEXT)
    idle: bool = column(Kind.TEXT)
    pid: int = column(Kind.PID)
    comm: str = column(Kind.SENSITIVE)
    policy: str = column(Kind.TEXT)
    rt_priority: int = column(Kind.NUMBER)
    runs_ns: Maybe[int] = column(Kind.DURATION)
    need_resched: Maybe[bool] = column(Kind.TEXT)
    nr_running: int = column(Kind.COUNT)
    rt_throttled: bool = column(Kind.TEXT)
    clock_behind_ns: int = column(Kind.DURATION)


@dataclasses.dataclass(frozen=True)
class QueuedTask:
    """
    A task that can run and does not: deadline tasks first, then real-time ones by priority.

    One that is `throttled` does not wait for the CPU: its cgroup's quota is used up.
    """

    cpu: int = column(Kind.NUMBER)
    pid: int = column(Kind.PID)
    comm: str = column(Kind.SENSITIVE)
    policy: str = column(Kind.TEXT)
    rt_priority: int = column(Kind.NUMBER)
    wait_ns: Maybe[int] = column(Kind.DURATION)
    since_run_ns: Maybe[int] = column(Kind.DURATION)
    throttled: bool = column(Kind.TEXT)
    task: int = column(Kind.ADDRESS)


def analyze(ctx: Context) -> Iterator[Any]:
    now_ns = sched_now_ns(ctx.prog)
    try:
        for queue in for_each_run_queue(ctx.prog, now_ns):
            unlisted = unlisted_tasks(queue)
            if unlisted:
                ctx.coverage.gap("queued task", "of the sched_ext class", count=unlisted)
            yield from _rows(queue, now_ns)
    except (FaultError, ValidationError) as error:
        ctx.coverage.gap("run queue", f"it cannot be read: {error}")


def _rows(queue: RunQueue, now_ns: int) -> Iterator[Any]:
    unknown = Absent("the kernel has no CONFIG_SCHED_INFO")
    asked = need_resched(queue)
    yield Cpu(
        cpu=queue.cpu,
        online=queue.online,
        idle=queue.idle,
        pid=int(queue.current.pid.value_()),
        comm=task_comm(queue.current),
        policy=scheduling_policy(queue.current),
        rt_priority=int(queue.current.rt_priority.value_()),
        runs_ns=unknown if queue.current_ns is None else queue.current_ns,
        need_resched=Absent("the architecture does not say") if asked is None else asked,
        nr_running=queue.nr_running,
        rt_throttled=queue.rt_throttled,
        clock_behind_ns=int(now_ns - queue.rq.clock.value_()),
    )
    for number, waiting in enumerate((*queue.queued, *queue.throttled)):
        task = waiting.task
        since_ns = waiting.since_run_ns
        yield QueuedTask(
            cpu=queue.cpu,
            pid=int(task.pid.value_()),
            comm=task_comm(task),
            policy=scheduling_policy(task),
            rt_priority=int(task.rt_priority.value_()),
            wait_ns=Absent("the kernel did not note it")
            if waiting.wait_ns is None
            else waiting.wait_ns,
            since_run_ns=Absent("it has never run") if since_ns is None else since_ns,
            throttled=number >= len(queue.queued),
            task=int(task.value_()),
        )


ANALYSIS = Analysis(
    name="run-queues",
    analyze=analyze,
    tables=(Cpu, QueuedTask),
    rules=(),
    requires=Requires(builtin=("struct rq",), symbols=("runqueues",)),
    on_demand=True,
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
