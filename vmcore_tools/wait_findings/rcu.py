# SPDX-License-Identifier: LGPL-2.1-or-later
"""RCU grace periods that do not end (VT316)."""

from __future__ import annotations

from typing import List, Optional, Tuple

from drgn import FaultError
from drgn.helpers import ValidationError

from vmcore_tools.kernel.cpu_state import interrupts_off
from vmcore_tools.kernel.rcu import (
    GracePeriod,
    for_each_rcu_state,
    grace_period,
    kthread_inactive_ns,
    rcu_name,
    stall_timeout_ns,
)
from vmcore_tools.kernel.run_queue import current_ran_ns
from vmcore_tools.kernel.wait_graph import Edge, Root
from vmcore_tools.kernel.wait_nodes import (
    CPU,
    DRIVEN_BY,
    DRIVES,
    ON_CPU,
    ON_READER,
    RCU,
    TASK,
    Node,
)
from vmcore_tools.kernel.wait_rcu import add_rcu, grace_period_of, is_kthread_starving
from vmcore_tools.model import (
    Absent,
    Confidence,
    Evidence,
    Finding,
    Kind,
    Maybe,
    Rule,
    Severity,
)
from vmcore_tools.wait_findings.cpu import cpu_evidence, misses_ticks
from vmcore_tools.wait_findings.view import Cause

RCU_STALL = Rule(
    id="VT316",
    slug="rcu-stall",
    severity=Severity.ERROR,
    ranked_with="VT310",
    summary="An RCU grace period does not end: a CPU or a reader keeps it, or nobody drives it.",
    remedy=(
        "Look at the stack of the named task: a loop in the kernel without cond_resched(), "
        "interrupts that stay off, or a sleep within rcu_read_lock()."
    ),
    page="""\
The grace period's own masks and lists name the CPUs that have not passed a
quiescent state and, with CONFIG_PREEMPT_RCU, the readers that sleep or were
preempted. Of a CPU, the task that it runs is to blame if it has certainly run
for too long; else the CPU is the subject and the finding is `likely`.
`grace_period_ns` is the age of the grace period, which the kernel does not note
of expedited ones. Where the kthread that drives the grace periods has done nothing
for two seconds, it is the one to blame, or who keeps it from its CPU (VT311).

Nobody need wait in synchronize_rcu(): from rcupdate.rcu_cpu_stall_timeout on a
grace period is reported by itself, as memory is not freed meanwhile.""",
)


_NOT_NOTED = "the kernel does not note it of expedited ones"


class RcuStall(Cause):
    rules = (RCU_STALL,)

    def prepare(self) -> None:
        """A grace period must end soon, whoever waits for it. Its kthread does not."""
        view = self.view
        try:
            for state in for_each_rcu_state(view.prog):
                period = grace_period(state)
                timeout_ns = stall_timeout_ns(view.prog) or view.threshold_ns
                if period is None or not state.gp_kthread or self._age_ns(period) < timeout_ns:
                    continue
                key = add_rcu(view.chains, state)
                view.chains.follow()
                view.stalled[key] = self._age_ns(period)
                if not is_kthread_starving(state):
                    kthread = view.chains.add_task(state.gp_kthread.read_())
                    view.graph.add_edge(Edge(kthread, key, DRIVES))
        except LookupError:
            return  # TINY_RCU, or no debug info of the jiffies
        except (FaultError, ValidationError) as error:
            view.ctx.coverage.gap("RCU grace period", f"it cannot be read: {error}")

    def finding(self, root: Root) -> Optional[Finding]:
        node = self.view.chains.nodes[root.nodes[0]]
        waited = self.view.longest_ns(root.victims) >= self.view.threshold_ns
        for edge in self.view.graph.edges_to(node.key):
            source = self.view.chains.nodes[edge.source]
            if not waited and source.key not in self.view.stalled:
                continue
            if source.kind == RCU and edge.why in (ON_CPU, ON_READER, DRIVEN_BY):
                return self._stalled(root, node, source, edge.why)
        return None

    def _stalled(self, root: Root, node: Node, rcu: Node, why: str) -> Optional[Finding]:
        try:
            period = grace_period_of(rcu)
        except (FaultError, LookupError, ValidationError) as error:
            self.view.ctx.coverage.gap("RCU grace period", f"it cannot be read: {error}")
            return None
        if period is None:
            return None
        window_ns = self._window_ns(period, rcu)
        if window_ns < self.view.threshold_ns:
            return None  # there were others since: it is not this one that they wait for
        evidence = [
            Evidence("rcu", Kind.TEXT, rcu_name(period.state)),
            Evidence("expedited", Kind.TEXT, period.expedited),
            Evidence("grace_period_ns", Kind.DURATION, self._maybe_age(period)),
            Evidence("kthread_inactive_ns", Kind.DURATION, kthread_inactive_ns(period.state)),
            Evidence("cpus", Kind.NUMBER, tuple(period.cpus)),
        ]
        message = "An {rcu} grace period has not ended"
        message += "" if period.age_ns is None else " for {grace_period_ns}"
        subject, confidence = self.view.ref(node), Confidence.PROVEN
        unread: Tuple[str, ...] = ()
        culprit: List[str] = []
        if node.kind == CPU:
            queue = self.view.queues[node.cpu]
            task = self.view.chains.add_task(queue.current)
            ran_ns = current_ran_ns(queue, window_ns, self.view.now_ns)
            message += ": it waits for CPU {cpu}, which runs {comm} ({pid})"
            behind_ns = self.view.now_ns - int(queue.rq.clock.value_())
            if interrupts_off(queue.current) and behind_ns >= self.view.cpu_threshold_ns:
                message += " with interrupts off for {clock_behind_ns}"
            evidence += [
                *cpu_evidence(self.view, queue),
                Evidence("held_ns", Kind.DURATION, ran_ns),
            ]
            culprit = [task]
            if queue.idle or ran_ns < self.view.cpu_threshold_ns:
                confidence = Confidence.LIKELY
                unread = ("which tasks the CPU ran in that time",)
            else:
                subject = self.view.task_ref(queue.current)
                if misses_ticks(self.view, queue):
                    confidence = Confidence.LIKELY
                    unread = ("whether the host ran the CPU",)
        elif node.kind == TASK:
            evidence += self.view.culprit(node)
            culprit = [node.key]
            if why == ON_READER:
                message += ": it waits for {comm} ({pid}), a reader, which {doing}"
            else:
                message += (
                    ": {comm} ({pid}), which drives it, has done nothing for "
                    "{kthread_inactive_ns} and {doing}"
                )
                confidence = Confidence.LIKELY
                unread = ("why it does not run",)
        else:
            return None
        if root.victims:
            message += "; " + self.view.waiting(root, "for it")
        edges = [edge for edge in self.view.graph.edges_to(rcu.key) if edge.why != DRIVES]
        if confidence is Confidence.PROVEN and not all(edge.proven for edge in edges):
            confidence, unread = Confidence.LIKELY, ("which kind of RCU the tasks wait for",)
        kind = {ON_CPU: "cpu", ON_READER: "reader", DRIVEN_BY: "kthread"}[why]
        return Finding(
            rule=RCU_STALL,
            confidence=confidence,
            message=message + ".",
            subject=subject,
            evidence=(*evidence, *self.view.victims(root)),
            signature_key=("rcu-stall", kind, *self.view.callers(culprit)),
            related=self.view.related(root),
            stacks=self.view.stack_ids([*culprit, *root.victims], running=True),
            unread=unread,
            graph=self.view.drawn(root),
        )

    def _window_ns(self, period: GracePeriod, rcu: Node) -> int:
        """How old a grace period is; of expedited ones, how long somebody has waited for it."""
        if period.age_ns is not None:
            return self._age_ns(period)
        return self.view.longest_ns(self.view.graph.waiting_for([rcu.key]))

    def _age_ns(self, period: GracePeriod) -> int:
        """The age of a grace period, as far as tasks ran in that time; 0 if it is not known."""
        return max(0, (period.age_ns or 0) - self.view.since_panic_ns)

    def _maybe_age(self, period: GracePeriod) -> Maybe[int]:
        return Absent(_NOT_NOTED) if period.age_ns is None else self._age_ns(period)
