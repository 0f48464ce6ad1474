# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory that is short, and of which none is reclaimed (VT317)."""

from __future__ import annotations

from typing import Iterator, List, Optional, Tuple

from drgn import FaultError, Object
from drgn.helpers.linux.sched import task_cpu

from vmcore_tools.kernel.memory_pressure import (
    NodePages,
    for_each_node,
    memory_stalled_percent,
    node_pages,
    scan_control,
)
from vmcore_tools.kernel.run_queue import since_run_ns
from vmcore_tools.kernel.task import is_queued
from vmcore_tools.kernel.wait_graph import Edge, Root
from vmcore_tools.kernel.wait_memory import add_memory
from vmcore_tools.kernel.wait_nodes import MEMORY
from vmcore_tools.model import Confidence, Evidence, Finding, Kind, Rule, Severity
from vmcore_tools.wait_findings.view import Cause, maybe

MEMORY_PRESSURE = Rule(
    id="VT317",
    slug="memory-pressure",
    severity=Severity.ERROR,
    summary="Tasks have waited too long for free pages, and none are reclaimed.",
    remedy=(
        "memory and slabs show what has the pages; look whether swap or the file systems that "
        "dirty pages are written to get on."
    ),
    page="""\
Tasks are on a node's queue of those that reclaim in vain, and the node has at
most half of the pages free that its watermarks ask for: it is `likely`. Or tasks
sleep within direct reclaim (the kernel notes their scan_control) in a wait that
is not known, while no zone has its least free pages: it is `suspected`. What
else keeps them waiting, a lock, a device or a CPU that kswapd does not get, is
reported instead.

`pages_reclaimed` is what those in direct reclaim have got so far, `kswapd_failures`
how often kswapd got nothing, `stalled_percent` for how much of the last minute
nobody got on for want of memory (CONFIG_PSI).""",
)


class MemoryPressure(Cause):
    rules = (MEMORY_PRESSURE,)

    def prepare(self) -> None:
        """Those who sleep in reclaim, nobody knows for what, wait for memory."""
        view = self.view
        try:
            short = [node for node in for_each_node(view.prog) if node.below_minimum]
        except (FaultError, LookupError, AttributeError) as error:
            view.ctx.coverage.gap("node's free pages", f"they cannot be read: {error}")
            return
        if not short:
            return
        for key in view.asleep:
            node = view.chains.nodes[key]
            if node.wait is None and node.state == "asleep" and self._control(node.object):
                for pages in short:
                    memory = add_memory(view.chains, pages.pgdat)
                    edge = Edge(key, memory, "reclaims pages of", proven=False)
                    view.graph.add_edge(edge)
        view.chains.follow()

    def candidates(self) -> Iterator[Tuple[str, ...]]:
        for key in list(self.view.graph.nodes):
            if self.view.chains.nodes[key].kind == MEMORY:
                yield (key,)

    def finding(self, root: Root) -> Optional[Finding]:
        node = self.view.chains.nodes[root.nodes[0]]
        if node.kind != MEMORY or self.view.longest_ns(root.victims) < self.view.threshold_ns:
            return None
        pages = node_pages(node.object)
        edges = self.view.graph.edges_to(node.key)
        queued = any(edge.proven for edge in edges)
        if not (pages.throttles if queued else pages.below_minimum):
            return None
        if self._is_starved(node.object.kswapd.read_()):
            return None
        likely = queued
        return Finding(
            rule=MEMORY_PRESSURE,
            confidence=Confidence.LIKELY if likely else Confidence.SUSPECTED,
            message=(
                "Node {node} has {free_pages} free pages of the {minimum_pages} that its "
                "watermarks ask for, and none are reclaimed; "
                f"{self.view.waiting(root, 'for that')}."
            ),
            subject=self.view.ref(node),
            evidence=(*self._pressure(pages), *self.view.victims(root)),
            signature_key=("memory-pressure", *self.view.callers(root.victims[:1])),
            related=self.view.related(root),
            stacks=self.view.stack_ids(root.victims),
            unread=("who keeps the pages",) if likely else ("what the tasks sleep in",),
            graph=self.view.drawn(root),
        )

    def _pressure(self, pages: NodePages) -> Iterator[Evidence]:
        controls = self._controls()
        percent = memory_stalled_percent(self.view.prog)
        yield Evidence("node", Kind.NUMBER, pages.number)
        yield Evidence("free_pages", Kind.COUNT, sum(zone.free for zone in pages.zones))
        yield Evidence("minimum_pages", Kind.COUNT, sum(zone.minimum for zone in pages.zones))
        yield Evidence("zones", Kind.TEXT, tuple(zone.name for zone in pages.zones))
        yield Evidence("zones_free_pages", Kind.COUNT, tuple(zone.free for zone in pages.zones))
        yield Evidence("kswapd_failures", Kind.COUNT, pages.failures)
        yield Evidence("reclaimers", Kind.COUNT, len(controls))
        got = sum(int(control.nr_reclaimed.value_()) for control in controls)
        yield Evidence("pages_reclaimed", Kind.COUNT, got)
        stalled = None if percent is None else round(percent)
        yield Evidence("stalled_percent", Kind.NUMBER, maybe(stalled))

    def _controls(self) -> List[Object]:
        """``struct scan_control *`` of all tasks that reclaim pages."""
        controls = (self._control(task) for task in self.view.tasks)
        return [control for control in controls if control is not None]

    def _control(self, task: Object) -> Optional[Object]:
        try:
            return scan_control(task)
        except FaultError as error:
            self.view.ctx.coverage.gap("task", f"it cannot be read: {error}", task.value_())
            return None

    def _is_starved(self, kswapd: Object) -> bool:
        """Whether kswapd waits for its CPU: then who keeps that is to blame."""
        queue = self.view.queues.get(task_cpu(kswapd)) if kswapd else None
        if queue is None or not is_queued(kswapd) or kswapd == queue.current:
            return False
        since_ns = since_run_ns(kswapd, queue.rq, self.view.now_ns)
        return since_ns is None or since_ns >= self.view.cpu_threshold_ns
