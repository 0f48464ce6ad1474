# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Why tasks are stuck, and who is to blame: the graph of who waits for whom.

It starts from each task in uninterruptible sleep and follows what it waits
for: a lock to its holder, flush_work() to the work, its pool and the worker
that would run it, a task that can run to its CPU. What stands at the end is
the cause: a CPU that one task keeps to itself (VT311), a work that does not
end or a pool in which nothing runs (VT312), the holder of a lock that sleeps
in something else (VT313), a virtio device that does not answer (VT315); or the
chain ends in itself, a deadlock (VT310).
The cause behind which the most tasks wait comes first.

A wait is believed only if the kernel's own lists show it (the task is on the
lock's list of waiters), and a cause is reported only if somebody has waited
behind it for --threshold-seconds: by default the kernel's own
kernel.hung_task_timeout_secs. Tasks whose wait could not be told, or of whose
wait the kernel does not say who ends it, are in the table with their stack.

It does not know who completes a plain completion or wakes a wait queue, nor
what devices other than virtio_gpu are doing.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple, Type

from drgn import ProgramFlags

from vmcore_tools.analysis import Analysis, Context, Option, Requires
from vmcore_tools.kernel.task import task_comm
from vmcore_tools.kernel.wait_graph import Root
from vmcore_tools.kernel.wait_nodes import CPU, DEVICE, POOL, TASK
from vmcore_tools.model import Absent, Finding, Kind, Maybe, column
from vmcore_tools.wait_findings.cpu import CpuMonopolised
from vmcore_tools.wait_findings.deadlock import Deadlock
from vmcore_tools.wait_findings.device import DeviceLate
from vmcore_tools.wait_findings.lock import HolderAsleep
from vmcore_tools.wait_findings.lost import LostWakeup
from vmcore_tools.wait_findings.rcu import RcuStall
from vmcore_tools.wait_findings.unknown import WakerUnknown
from vmcore_tools.wait_findings.view import Cause, WaitView, maybe, of_live_target
from vmcore_tools.wait_findings.work import WorkStuck

#: The kinds of causes, the most telling first: the first that has a finding for one wins.
CAUSES: Tuple[Type[Cause], ...] = (
    Deadlock,
    LostWakeup,
    CpuMonopolised,
    RcuStall,
    WorkStuck,
    DeviceLate,
    HolderAsleep,
)
#: At these a chain ends for good; at other things, who waits for them can be to blame.
_LAST = (CPU, POOL, DEVICE)


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


def analyze(ctx: Context) -> Iterator[Any]:
    yield from _Analyzer(ctx).run()


class _Analyzer:
    def __init__(self, ctx: Context) -> None:
        self._view = WaitView(ctx)
        self._causes = [cause(self._view) for cause in CAUSES]

    def run(self) -> Iterator[Any]:
        for cause in self._causes:
            cause.prepare()
        blamed: Dict[str, Finding] = {}
        for root, finding in self._findings():
            for id in finding.stacks:
                yield self._view.shown_stack(id)
            if self._view.prog.flags & ProgramFlags.IS_LIVE:
                finding = of_live_target(finding)
            yield finding
            for key in (*root.nodes, *root.victims):
                blamed.setdefault(key, finding)
        for key in (*self._view.asleep, *self._view.in_fences):
            yield from self._row(key, blamed.get(key))

    def _findings(self) -> List[Tuple[Root, Finding]]:
        """Of all causes, that behind which the most tasks wait first."""
        ends = [(key,) for key in self._view.graph.ends() if not self._is_task(key)]
        cycles = [nodes for cause in self._causes for nodes in cause.candidates()]
        found = self._found(dict.fromkeys([*cycles, *ends]))
        explained = {key for root, _ in found for key in root.nodes}
        found += self._found(self._last_tasks(explained))
        blamed = {key for root, _ in found for key in (*root.nodes, *root.victims)}
        left = [key for key in self._view.graph.ends() if key not in blamed]
        found += WakerUnknown(self._view).findings(left, blamed)
        return sorted(found, key=lambda item: item[0].sort_key)

    def _found(self, candidates: Iterable[Tuple[str, ...]]) -> List[Tuple[Root, Finding]]:
        found = []
        asleep = set(self._view.asleep)
        for root in self._view.graph.rank(candidates, self._view.waits):
            # Those in uninterruptible sleep first: people ask for these.
            victims = sorted(root.victims, key=lambda key: key not in asleep)
            root = dataclasses.replace(root, victims=tuple(victims))
            for cause in self._causes:
                finding = cause.finding(root)
                if finding is not None:
                    found.append((root, finding))
                    break
        return found

    def _last_tasks(self, explained: Iterable[str]) -> List[Tuple[str, ...]]:
        """The tasks of which nobody is known who would end their wait."""
        graph, nodes = self._view.graph, self._view.chains.nodes
        tasks = set()
        for key in graph.ends():
            if nodes[key].kind == TASK:
                tasks.add(key)
            elif nodes[key].kind not in _LAST and key not in explained:
                tasks.update(edge.source for edge in graph.edges_to(key))
        return [(key,) for key in sorted(tasks) if self._is_task(key) and graph.edges_to(key)]

    def _is_task(self, key: str) -> bool:
        return self._view.chains.nodes[key].kind == TASK

    def _row(self, key: str, cause: Optional[Finding]) -> Iterator[Any]:
        node = self._view.chains.nodes[key]
        task, wait = node.object, node.wait
        stack = self._view.stack(task)
        yield stack
        unknown = Absent("it is on no list of waiters that is known")
        yield WaitingTask(
            pid=int(task.pid.value_()),
            comm=task_comm(task),
            wait_ns=self._view.waits[key] or Absent("the task has no time of its last run"),
            waits_for=unknown if wait is None else wait.kind,
            object=self._waited_for(key),
            evidence=unknown if wait is None else wait.evidence,
            cause=Absent("none was found") if cause is None else cause.rule.id,
            cause_pid=maybe(None if cause is None else cause.subject.pid),
            task=int(task.value_()),
            stack=stack.id,
        )

    def _waited_for(self, key: str) -> Maybe[int]:
        """The address of what a task waits for: of the work, not of the barrier behind it."""
        wait = self._view.chains.nodes[key].wait
        if wait is None:
            return Absent("it is on no list of waiters that is known")
        edges = self._view.graph.edges_from(key)
        waited_for = self._view.chains.nodes[edges[0].target].object if edges else wait.object
        return int(waited_for.value_())


ANALYSIS = Analysis(
    name="wait-graph",
    analyze=analyze,
    tables=(WaitingTask,),
    rules=(*(rule for cause in CAUSES for rule in cause.rules), *WakerUnknown.rules),
    options=(
        Option(
            "threshold-seconds",
            "report causes that tasks have waited behind for at least this long "
            "(default: the kernel's hung_task_timeout_secs)",
            int,
            metavar="N",
        ),
    ),
    requires=Requires(types=("struct task_struct",)),
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
