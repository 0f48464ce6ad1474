# SPDX-License-Identifier: LGPL-2.1-or-later
"""Works that do not end, and pools that do not start them (VT312)."""

from __future__ import annotations

from typing import Iterator, Optional, Tuple

from drgn.helpers.linux.sched import task_cpu

from vmcore_tools.kernel.cpu_state import interrupts_off
from vmcore_tools.kernel.run_queue import need_resched, scheduling_policy, since_run_ns
from vmcore_tools.kernel.symbols import symbol_name
from vmcore_tools.kernel.wait_graph import Root
from vmcore_tools.kernel.wait_nodes import LEFT_TO, POOL, RUN_BY, TASK, Node
from vmcore_tools.kernel.workqueue import pool_without_progress_ns, worker_of
from vmcore_tools.model import Confidence, Evidence, Finding, Kind, Ref, Rule, Severity
from vmcore_tools.wait_findings.view import Cause, maybe
from vmcore_tools.words import plural

WORK_STUCK = Rule(
    id="VT312",
    slug="work-stuck",
    severity=Severity.ERROR,
    ranked_with="VT310",
    summary="A work does not end, or a pool does not start its works, and tasks wait for that.",
    remedy="Look at the worker's stack: what it waits for there keeps all of them waiting.",
    page="""\
The work is being run by a worker that sleeps in a wait of which nobody is
known to end it; or by one that runs on and on while the pool, which starts no
other work as long as one of its workers runs, has works pending; or works are
pending in a pool and none of its workers was woken. `stalled_ns` is how long
the pool has started no work. A worker that has not slept for as long as is too
long, or sleeps until a timer wakes it, may have begun the work a moment ago: it
is `likely` then.""",
)

_NO_NAME = "of a function without a name"


class WorkStuck(Cause):
    rules = (WORK_STUCK,)

    def finding(self, root: Root) -> Optional[Finding]:
        if self.view.longest_ns(root.victims) < self.view.threshold_ns:
            return None
        node = self.view.chains.nodes[root.nodes[0]]
        if node.kind == POOL:
            return self._pool_stalled(root, node)
        whys = {edge.why for edge in self.view.graph.edges_to(node.key)}
        if RUN_BY in whys:
            return self._work_stuck(root, node)
        if LEFT_TO in whys:
            return self._runs_on(root, node)
        return None

    def candidates(self) -> Iterator[Tuple[str, ...]]:
        """Workers that can run, and lately did: they do not wait for their CPU."""
        for key in list(self.view.graph.nodes):
            node = self.view.chains.nodes[key]
            if node.kind != TASK or node.state != "queued":
                continue
            whys = {edge.why for edge in self.view.graph.edges_to(key)}
            if whys & {RUN_BY, LEFT_TO} and self._ran_lately(node):
                yield (key,)

    def _ran_lately(self, node: Node) -> bool:
        queue = self.view.queues.get(task_cpu(node.object))
        if queue is None:
            return False
        since_ns = since_run_ns(node.object, queue.rq, self.view.now_ns)
        return since_ns is not None and since_ns < self.view.cpu_threshold_ns

    def _runs_on(self, root: Root, node: Node) -> Optional[Finding]:
        """A worker runs, and its pool leaves all works to it."""
        edges = [edge for edge in self.view.graph.edges_to(node.key) if edge.why == LEFT_TO]
        pool = self.view.chains.nodes[edges[0].source]
        stalled_ns = pool_without_progress_ns(pool.object)
        work, subject = self._work_of(node)
        if subject is None:
            return None
        if (
            stalled_ns is not None
            and stalled_ns - self.view.since_panic_ns < self.view.threshold_ns
        ):
            return None  # it gets on with its works
        certain = stalled_ns is not None
        return Finding(
            rule=WORK_STUCK,
            confidence=Confidence.PROVEN if certain else Confidence.LIKELY,
            message=(
                "The work {work} has not ended"
                + (" for {stalled_ns}" if certain else "")
                + ": {comm} ({pid}), which runs it, {doing}, and the pool {pool} starts no other "
                f"work meanwhile; {self.view.waiting(root, 'for that')}."
            ),
            subject=subject,
            evidence=(
                Evidence("work", Kind.TEXT, work),
                Evidence("pool", Kind.TEXT, self.view.name(pool)),
                Evidence("stalled_ns", Kind.DURATION, maybe(stalled_ns)),
                *self.view.culprit(node),
                *self._on_cpu(node),
                *self.view.victims(root),
            ),
            signature_key=("work-runs-on", work, *self.view.callers(root.victims[:1])),
            related=(self.view.ref(node), *self.view.related(root)),
            stacks=self.view.stack_ids([node.key, *root.victims], running=True),
            unread=() if certain else ("when the pool last started a work",),
            graph=self.view.drawn(root),
        )

    def _pool_stalled(self, root: Root, node: Node) -> Finding:
        pool = node.object
        workers = int(pool.nr_workers.value_())
        return Finding(
            rule=WORK_STUCK,
            confidence=Confidence.LIKELY,
            message=(
                "The worker pool {pool} has pending works and {workers} "
                f"{plural(workers, 'worker')}, {{idle}} of them idle, but none was woken; "
                f"{self.view.waiting(root, 'for it')}."
            ),
            subject=self.view.ref(node),
            evidence=(
                Evidence("pool", Kind.TEXT, self.view.name(node)),
                Evidence("workers", Kind.COUNT, workers),
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

    def _on_cpu(self, node: Node) -> Iterator[Evidence]:
        """How the CPU has it that a worker runs on or is queued on."""
        queue = self.view.queues.get(task_cpu(node.object))
        if queue is None:
            return
        yield Evidence("cpu", Kind.NUMBER, queue.cpu)
        yield Evidence("policy", Kind.TEXT, scheduling_policy(node.object))
        yield Evidence("queued", Kind.COUNT, len(queue.queued))
        if queue.current == node.object:
            yield Evidence("need_resched", Kind.TEXT, maybe(need_resched(queue)))
            yield Evidence("since_switch_ns", Kind.DURATION, maybe(queue.current_ns))
            yield Evidence("interrupts_off", Kind.TEXT, maybe(interrupts_off(node.object)))

    def _work_stuck(self, root: Root, node: Node) -> Finding:
        edges = self.view.graph.edges_to(node.key)
        name, subject = self._work_of(node)
        if subject is None:
            work = next(edge.source for edge in edges if edge.why == RUN_BY)
            name = self.view.name(self.view.chains.nodes[work])
            subject = self.view.ref(self.view.chains.nodes[work])
        confidence, unread = self.view.verdict(
            node, edges, "whether it is the same work all that time"
        )
        return Finding(
            rule=WORK_STUCK,
            confidence=confidence,
            message=(
                "The work {work} has not ended: {comm} ({pid}), which runs it, {doing}; "
                f"{self.view.waiting(root, 'for it')}."
            ),
            subject=subject,
            evidence=(
                Evidence("work", Kind.TEXT, name),
                *self.view.culprit(node),
                *self.view.victims(root),
            ),
            signature_key=("work-stuck", *self.view.callers([node.key])),
            related=(self.view.ref(node), *self.view.related(root)),
            stacks=self.view.stack_ids([node.key, *root.victims], running=True),
            unread=unread,
            graph=self.view.drawn(root),
        )

    @staticmethod
    def _work_of(node: Node) -> Tuple[str, Optional[Ref]]:
        """What the worker runs that a task is."""
        worker = worker_of(node.object)
        if not worker or not worker.current_work:
            return "", None
        name = symbol_name(node.object.prog_, worker.current_func.value_()) or _NO_NAME
        return name, Ref("work", name, int(worker.current_work.value_()), name_kind=Kind.TEXT)
