# SPDX-License-Identifier: LGPL-2.1-or-later
"""All causes of a kernel's waits: found once, for each analysis that asks."""

from __future__ import annotations

import dataclasses
from typing import (
    Dict,
    FrozenSet,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Set,
    Tuple,
    Type,
)

from drgn import FaultError, ProgramFlags
from drgn.helpers import ValidationError

from vmcore_tools.analysis import Context
from vmcore_tools.kernel.rwbase_rt import READERS
from vmcore_tools.kernel.wait_graph import Root
from vmcore_tools.kernel.wait_nodes import CPU, DEVICE, OBJECT, POOL, TASK
from vmcore_tools.model import Absent, Coverage, Finding, Maybe
from vmcore_tools.wait_findings.cpu import CpuMonopolised
from vmcore_tools.wait_findings.deadlock import Deadlock
from vmcore_tools.wait_findings.device import DeviceLate
from vmcore_tools.wait_findings.lock import HolderAsleep
from vmcore_tools.wait_findings.lost import LostWakeup
from vmcore_tools.wait_findings.memory import MemoryPressure
from vmcore_tools.wait_findings.rcu import RcuStall
from vmcore_tools.wait_findings.unknown import ENDED_BY_TIME, WakerUnknown, holds_lock
from vmcore_tools.wait_findings.unseen import count_modules_of_waits
from vmcore_tools.wait_findings.view import Cause, WaitView, of_live_target
from vmcore_tools.wait_findings.work import WorkStuck

#: The kinds of causes, the most telling first: the first that has a finding for one wins.
CAUSES: Tuple[Type[Cause], ...] = (
    Deadlock,
    LostWakeup,
    CpuMonopolised,
    RcuStall,
    WorkStuck,
    DeviceLate,
    MemoryPressure,
    HolderAsleep,
)
#: Where they are kept in ``prog.cache``.
CACHE = "vmcore_tools.explained_waits"
#: At these a chain ends for good; at other things, who waits for them can be to blame.
_LAST = (CPU, POOL, DEVICE)


@dataclasses.dataclass(frozen=True)
class Awaited:
    """
    What a task waits for.

    :ivar unended: whether nobody is known to end the wait
    """

    name: str
    unended: bool


@dataclasses.dataclass(frozen=True)
class WaitOfTask:
    """
    :ivar cause: what keeps the task waiting
    :ivar causes: what it is itself the cause of
    :ivar kind: the kernel's word for the wait
    :ivar in_circle: whether it is part of its cause, a deadlock
    :ivar found: whether it is known what it waits for; of one that does not sleep it is
    """

    cause: Optional[Finding]
    causes: Optional[Finding]
    in_circle: bool
    kind: Optional[str]
    awaited: Optional[Awaited]
    found: bool


@dataclasses.dataclass(frozen=True)
class ExplainedWaits:
    """
    The waits of a kernel, and their causes.

    :ivar findings: of all causes, that behind which the most tasks wait first
    :ivar blamed: the finding for each node that waits behind its cause, or is part of a circle
    :ivar culprits: the finding for each node that is its cause itself
    :ivar circles: the nodes of circles, each of which keeps itself waiting
    """

    view: WaitView
    findings: Tuple[Finding, ...]
    blamed: Mapping[str, Finding]
    culprits: Mapping[str, Finding]
    circles: FrozenSet[str]

    def of_task(self, task: int) -> Optional[WaitOfTask]:
        """
        :param task: the address of a ``struct task_struct``
        :return: None if it was not looked at, or its wait could not be read
        """
        key = f"task {task:#x}"
        node = self.view.chains.nodes.get(key)
        if node is None or task in self.view.chains.without_wait:
            return None
        return WaitOfTask(
            cause=self.blamed.get(key),
            causes=self.culprits.get(key),
            in_circle=key in self.circles,
            kind=None if node.wait is None else node.wait.kind,
            awaited=self._awaited(key),
            found=node.state != "asleep" or bool(node.wait or self.view.graph.edges_from(key)),
        )

    def _awaited(self, key: str) -> Optional[Awaited]:
        graph = self.view.graph
        for edge in graph.edges_from(key):
            node = self.view.node(edge.target)
            ends = node.kind == OBJECT and not graph.edges_from(edge.target)
            unended = ends and node.name not in ENDED_BY_TIME
            return Awaited(self.view.names([edge.target])[0], unended)
        return None

    def count_unseen_modules(self, ctx: Context) -> None:
        """Count the modules without debug info, if that could explain a wait."""
        count_modules_of_waits(ctx, self.view, self._is_explained)

    def _is_explained(self, key: str) -> bool:
        finding = self.blamed.get(key)
        return finding is not None and finding.rule not in WakerUnknown.rules

    def count_gaps(self, coverage: Coverage) -> None:
        """Count what could not be read."""
        for gap in self.view.ctx.coverage.gaps():
            for address in gap.addresses:
                coverage.gap(gap.what, gap.reason, address, material=gap.material)
            left = gap.count - len(gap.addresses)
            if left:
                coverage.gap(gap.what, gap.reason, count=left, material=gap.material)


def cause_rule(cause: Optional[Finding], causes: Optional[Finding]) -> Maybe[str]:
    """
    The cell of a task's cause.

    :param cause: of its wait
    :param causes: what it is itself the cause of
    """
    if cause is not None:
        return cause.rule.id
    if causes is not None:
        return Absent(f"none was found: it is itself that of {causes.rule.id}")
    return Absent("none was found")


def cause_pid(cause: Optional[Finding], causes: Optional[Finding], task: int) -> Maybe[int]:
    """
    The cell of whom to look at for a task.

    :param task: the address of a ``struct task_struct``
    """
    if cause is None:
        return Absent("none was found" if causes is None else "the task is itself a cause")
    if cause.subject.address == task:
        return Absent("the task is part of the circle")
    return Absent("the cause is no task") if cause.subject.pid is None else cause.subject.pid


def explain_waits(ctx: Context) -> ExplainedWaits:
    """
    Find the causes of all waits; what was found once is kept.

    What could not be read is not counted in the context's coverage.
    """
    threshold = ctx.options["threshold_seconds"]
    known: Dict[Optional[int], ExplainedWaits] = ctx.prog.cache.setdefault(CACHE, {})
    if threshold in known:
        return known[threshold]
    own = dataclasses.replace(ctx, coverage=Coverage(), options={"threshold_seconds": threshold})
    found = _Causes(WaitView(own)).explained()
    # A live kernel goes on.
    if not ctx.prog.flags & ProgramFlags.IS_LIVE:
        known[threshold] = found
    return found


class _Causes:
    def __init__(self, view: WaitView) -> None:
        self._view = view
        self._causes = [cause(view) for cause in CAUSES]

    def explained(self) -> ExplainedWaits:
        for cause in tuple(self._causes):
            try:
                cause.prepare()
            except (FaultError, ValidationError, LookupError) as error:
                self._causes.remove(cause)
                self._lost(error)
        findings = []
        blamed: Dict[str, Finding] = {}
        culprits: Dict[str, Finding] = {}
        circles: Set[str] = set()
        for root, finding in self._findings():
            if self._view.prog.flags & ProgramFlags.IS_LIVE:
                finding = of_live_target(finding)
            findings.append(finding)
            in_circle = root.nodes if len(root.nodes) > 1 else ()
            circles.update(in_circle)
            for key in (*in_circle, *root.victims):
                blamed.setdefault(key, finding)
            if not in_circle:
                culprits.setdefault(root.nodes[0], finding)
        return ExplainedWaits(self._view, tuple(findings), blamed, culprits, frozenset(circles))

    def _findings(self) -> List[Tuple[Root, Finding]]:
        """Of all causes, that behind which the most tasks wait first."""
        ends = [(key,) for key in self._view.graph.ends() if not self._is_task(key)]
        cycles = [nodes for cause in self._causes for nodes in cause.candidates()]
        found = self._found(dict.fromkeys([*cycles, *ends]))
        explained = {key for root, _ in found for key in root.nodes}
        found += self._found(self._last_tasks(explained))
        blamed = {key for root, _ in found for key in (*root.nodes, *root.victims)}
        left = [key for key in self._last_nodes() if key not in blamed]
        try:
            found += WakerUnknown(self._view).findings(left, blamed)
        except (FaultError, ValidationError, LookupError) as error:
            self._lost(error)
        return sorted(found, key=lambda item: item[0].sort_key)

    def _found(self, candidates: Iterable[Tuple[str, ...]]) -> List[Tuple[Root, Finding]]:
        found = []
        for root in map(self._of_tasks, self._ranked(candidates)):
            for cause in self._causes:
                try:
                    finding = cause.finding(root)
                except (FaultError, ValidationError, LookupError) as error:
                    # Whether it is another one can no more be told.
                    self._lost(error, self._view.node(root.nodes[0]).object.value_())
                    break
                if finding is not None:
                    found.append((root, finding))
                    break
        return found

    def _ranked(self, candidates: Iterable[Tuple[str, ...]]) -> List[Root]:
        """Those behind which somebody waits, or what must not take so long."""
        return self._view.graph.rank(candidates, {**self._view.waits, **self._view.stalled})

    def _of_tasks(self, root: Root) -> Root:
        """As it is, with no other victims than tasks."""
        tasks = [key for key in root.victims if key not in self._view.stalled]
        # Those that sleep first: people ask for these.
        tasks.sort(key=lambda key: self._view.node(key).state != "asleep")
        others_ns = sum(self._view.stalled.get(key, 0) for key in root.victims)
        return dataclasses.replace(
            root,
            victims=tuple(tasks),
            wait_ns=root.wait_ns - others_ns,
            waiting=root.waiting - (len(root.victims) - len(tasks)),
        )

    def _last_tasks(self, explained: Iterable[str]) -> List[Tuple[str, ...]]:
        """The tasks of which nobody is known who would end their wait."""
        graph, nodes = self._view.graph, self._view.chains.nodes
        tasks = set()
        for key in graph.ends():
            if nodes[key].kind == TASK:
                tasks.add(key)
            elif nodes[key].name == READERS:
                continue  # of a lock: whoever waits for them has it as well, and is no cause
            elif nodes[key].kind not in _LAST and key not in explained:
                tasks.update(edge.source for edge in graph.edges_to(key))
        return [(key,) for key in sorted(tasks) if self._is_task(key) and graph.edges_to(key)]

    def _last_nodes(self) -> Iterator[str]:
        """The ends, and the holders of locks that only wait for their turn on a CPU."""
        graph, nodes = self._view.graph, self._view.chains.nodes
        yield from graph.ends()
        for key in graph.nodes:
            if nodes[key].kind == TASK and nodes[key].state == "queued" and holds_lock(graph, key):
                yield key

    def _lost(self, error: Exception, address: Optional[int] = None) -> None:
        reason = f"it cannot be told: {error}"
        self._view.ctx.coverage.gap("cause of waits", reason, address)

    def _is_task(self, key: str) -> bool:
        return self._view.chains.nodes[key].kind == TASK
