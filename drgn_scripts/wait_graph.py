# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Why tasks are stuck, and who is to blame: the graph of who waits for whom.

It starts from each task in uninterruptible sleep and follows what it waits
for: a lock to its holder, flush_work() to the work, its pool and the worker
that would run it, a task that can run to its CPU. What stands at the end is
the cause: a CPU that one task keeps to itself (VT311), a work that does not
end or a pool in which nothing runs (VT312), the holder of a lock that sleeps
in something else (VT313), a virtio device or another disk that does not answer
(VT315, VT319), an RCU grace period that does not end (VT316), memory of which none
is reclaimed (VT317); or the chain ends in itself, a deadlock (VT310). A sleeper
whose wait is over by the object's own words is a lost wake-up (VT314). Where
nothing in the kernel says who would end a wait, what is waited for is shown, what
it is part of, and who points there (VT318).
The cause behind which the most tasks wait comes first.

A wait is believed only if the kernel's own lists show it (the task is on the
lock's list of waiters), and a cause is reported only if somebody has waited
behind it for --threshold-seconds: by default the kernel's own
kernel.hung_task_timeout_secs. Tasks whose wait could not be told are in the table
with their stack, and counted as not looked at if they have waited for so long.

It does not know who completes a plain completion or wakes a wait queue, nor
what devices other than virtio_gpu are doing.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Iterator

from vmcore_tools.analysis import Analysis, Context, Option, Requires
from vmcore_tools.asked import number_from
from vmcore_tools.kernel.task import task_comm
from vmcore_tools.model import Absent, Kind, Maybe, column
from vmcore_tools.wait_findings.causes import (
    CAUSES,
    ExplainedWaits,
    cause_pid,
    cause_rule,
    explain_waits,
)
from vmcore_tools.wait_findings.queues import waited_for_queues
from vmcore_tools.wait_findings.unknown import WakerUnknown
from vmcore_tools.wait_findings.view import WaitView, maybe


@dataclasses.dataclass(frozen=True)
class WaitingTask:
    """
    A task in uninterruptible sleep, and what keeps it there; the longest sleeper first.

    Behind them are those in interruptible sleep that wait for a fence of a device.
    """

    pid: int = column(Kind.PID)
    comm: str = column(Kind.SENSITIVE)
    wait_ns: Maybe[int] = column(Kind.DURATION)
    waits_for: Maybe[str] = column(Kind.TEXT)
    object: Maybe[int] = column(Kind.ADDRESS)
    evidence: Maybe[str] = column(Kind.TEXT)
    cause: Maybe[str] = column(Kind.TEXT)
    cause_pid: Maybe[int] = column(Kind.PID)
    task: int = column(Kind.ADDRESS)
    stack: str = column(Kind.STACK)


@dataclasses.dataclass(frozen=True)
class Virtqueue:
    """A queue of a virtio device that somebody waits for, and how far the host is with it."""

    device: str = column(Kind.UNTRUSTED)
    queue: str = column(Kind.UNTRUSTED)
    size: int = column(Kind.COUNT)
    unanswered: int = column(Kind.COUNT)
    not_fetched: Maybe[int] = column(Kind.COUNT)
    answered: int = column(Kind.COUNT)
    free: int = column(Kind.COUNT)
    virtqueue: int = column(Kind.ADDRESS)


def analyze(ctx: Context) -> Iterator[Any]:
    waits = explain_waits(ctx)
    waits.count_unseen_modules(ctx)
    try:
        for finding in waits.findings:
            for id in finding.stacks:
                yield waits.view.shown_stack(id)
            yield finding
        _count_not_found(ctx, waits)
        for key in (*waits.view.asleep, *waits.view.in_fences):
            yield from _row(waits, key)
        yield from _virtqueues(waits.view)
    finally:
        waits.count_gaps(ctx.coverage)


def _count_not_found(ctx: Context, waits: ExplainedWaits) -> None:
    """The tasks that hang, and nobody knows for what."""
    view = waits.view
    for key in view.asleep:
        address = int(view.node(key).object.value_())
        known = waits.of_task(address)
        # Those that could not be read are counted already.
        if known is not None and not known.found and view.waits[key] >= view.threshold_ns:
            ctx.coverage.gap("task", "what it waits for was not found", address)


def _row(waits: ExplainedWaits, key: str) -> Iterator[Any]:
    view, cause, causes = waits.view, waits.blamed.get(key), waits.culprits.get(key)
    node = view.chains.nodes[key]
    task, wait = node.object, node.wait
    stack = view.stack(task)
    yield stack
    unknown = Absent("it is on no list of waiters that is known")
    yield WaitingTask(
        pid=int(task.pid.value_()),
        comm=task_comm(task),
        wait_ns=view.waits[key] or Absent("the task has no time of its last run"),
        waits_for=unknown if wait is None else wait.kind,
        object=_waited_for(view, key),
        evidence=unknown if wait is None else wait.evidence,
        cause=cause_rule(cause, causes),
        cause_pid=cause_pid(cause, causes, task.value_()),
        task=int(task.value_()),
        stack=stack.id,
    )


def _virtqueues(view: WaitView) -> Iterator[Virtqueue]:
    for queue in waited_for_queues(view):
        state = queue.state
        yield Virtqueue(
            device=queue.device,
            queue=queue.name,
            size=state.size,
            unanswered=state.with_device,
            not_fetched=maybe(state.not_fetched),
            answered=state.answered,
            free=state.free,
            virtqueue=queue.address,
        )


def _waited_for(view: WaitView, key: str) -> Maybe[int]:
    """The address of what a task waits for: of the work, not of the barrier behind it."""
    wait = view.chains.nodes[key].wait
    if wait is None:
        return Absent("it is on no list of waiters that is known")
    edges = view.graph.edges_from(key)
    waited_for = view.chains.nodes[edges[0].target].object if edges else wait.object
    return int(waited_for.value_())


ANALYSIS = Analysis(
    name="wait-graph",
    analyze=analyze,
    tables=(WaitingTask, Virtqueue),
    rules=(*(rule for cause in CAUSES for rule in cause.rules), *WakerUnknown.rules),
    options=(
        Option(
            "threshold-seconds",
            "report causes that tasks have waited behind for at least this long "
            "(default: the kernel's hung_task_timeout_secs)",
            number_from(0),
            metavar="N",
        ),
    ),
    requires=Requires(builtin=("struct task_struct",)),
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
