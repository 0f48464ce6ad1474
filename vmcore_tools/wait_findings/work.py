# SPDX-License-Identifier: LGPL-2.1-or-later
"""Works that do not end, and pools that do not start them (VT312)."""

from __future__ import annotations

from typing import Optional

from vmcore_tools.kernel.wait_graph import Root
from vmcore_tools.kernel.wait_nodes import POOL, RUN_BY, Node
from vmcore_tools.kernel.workqueue import pool_without_progress_ns
from vmcore_tools.model import Confidence, Evidence, Finding, Kind, Rule, Severity
from vmcore_tools.wait_findings.view import Cause, maybe

WORK_STUCK = Rule(
    id="VT312",
    slug="work-stuck",
    severity=Severity.ERROR,
    summary="A work does not end, or a pool does not start its works, and tasks wait for that.",
    remedy="Look at the worker's stack: what it waits for there keeps all of them waiting.",
    page="""\
The work is being run by a worker that sleeps in a wait of which nobody is
known to end it, or that runs on; or works are pending in a pool and none of its
workers was woken.""",
)


class WorkStuck(Cause):
    rules = (WORK_STUCK,)

    def finding(self, root: Root) -> Optional[Finding]:
        if self.view.longest_ns(root.victims) < self.view.threshold_ns:
            return None
        node = self.view.chains.nodes[root.nodes[0]]
        if node.kind == POOL:
            return self._pool_stalled(root, node)
        if any(edge.why == RUN_BY for edge in self.view.graph.edges_to(node.key)):
            return self._work_stuck(root, node)
        return None

    def _pool_stalled(self, root: Root, node: Node) -> Finding:
        pool = node.object
        return Finding(
            rule=WORK_STUCK,
            confidence=Confidence.LIKELY,
            message=(
                "The worker pool {pool} has pending works and {workers} workers, {idle} of them "
                "idle, but none was woken; {victims} tasks wait for it, first of them {victim} "
                "({victim_pid}) for {wait_ns}."
            ),
            subject=self.view.ref(node),
            evidence=(
                Evidence("pool", Kind.TEXT, self.view.name(node)),
                Evidence("workers", Kind.COUNT, int(pool.nr_workers.value_())),
                Evidence("idle", Kind.COUNT, int(pool.nr_idle.value_())),
                Evidence("stalled_ns", Kind.DURATION, maybe(pool_without_progress_ns(pool))),
                *self.view.victims(root),
            ),
            signature_key=("pool-stalled", *self.view.callers(root.victims[:1])),
            related=self.view.related(root),
            stacks=self.view.stack_ids(root.victims),
            unread=("why no worker was woken",),
            graph=self.view.drawn(root),
        )

    def _work_stuck(self, root: Root, node: Node) -> Finding:
        edges = self.view.graph.edges_to(node.key)
        work = next(edge.source for edge in edges if edge.why == RUN_BY)
        return Finding(
            rule=WORK_STUCK,
            confidence=self.view.confidence(edges),
            message=(
                "The work {work} has not ended: {comm} ({pid}), which runs it, {doing}; {victims} "
                "tasks wait for it, first of them {victim} ({victim_pid}) for {wait_ns}."
            ),
            subject=self.view.ref(self.view.chains.nodes[work]),
            evidence=(
                Evidence("work", Kind.TEXT, self.view.name(self.view.chains.nodes[work])),
                *self.view.culprit(node),
                *self.view.victims(root),
            ),
            signature_key=("work-stuck", *self.view.callers([node.key])),
            related=(self.view.ref(node), *self.view.related(root)),
            stacks=self.view.stack_ids([node.key, *root.victims]),
            unread=self.view.unread(edges),
            graph=self.view.drawn(root),
        )
