# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sleepers whose wait is over and whom nobody wakes (VT314)."""

from __future__ import annotations

from typing import Dict, Iterator, Optional, Tuple

from drgn import FaultError, Object

from vmcore_tools.kernel.cpu_state import is_up
from vmcore_tools.kernel.lost_wakeups import is_over, may_be_about_to_wake
from vmcore_tools.kernel.task import live_registers, words_at_hand
from vmcore_tools.kernel.wait_graph import Root
from vmcore_tools.kernel.wait_nodes import Node
from vmcore_tools.kernel.waits import Wait
from vmcore_tools.model import Confidence, Evidence, Finding, Kind, Rule, Severity
from vmcore_tools.wait_findings.view import Cause, WaitView

LOST_WAKEUP = Rule(
    id="VT314",
    slug="lost-wakeup",
    severity=Severity.ERROR,
    ranked_with="VT310",
    summary="What a task waits for has come, and it still sleeps: its wake-up was lost.",
    remedy=(
        "Look for code that changes the object without the call that wakes, in the wrong order, "
        "or without the memory barrier between both."
    ),
    page="""\
The task is on the object's list of waiters and on no run queue, and by the
object's own words its wait is over: the completion is done, the bit clear, the
fence signaled, or the task is the first on the list of a lock that nobody has. Of
a plain wait queue only the sleeper knows the condition: it is never found here.

Between the end of a wait and the wake-up there is a moment. So nobody who can run
may have the object or the task at hand: neither in a register nor on its stack;
and the task may not be on a list of those to be woken. It is `likely` where the
registers of a CPU are not in the dump.""",
)


class LostWakeup(Cause):
    rules = (LOST_WAKEUP,)

    def __init__(self, view: WaitView) -> None:
        super().__init__(view)
        #: The object's node, and the first sleeper whose wait is over.
        self._lost: Dict[str, Node] = {}

    def prepare(self) -> None:
        at_hand = None
        for key in self.view.asleep:
            node = self.view.chains.nodes[key]
            if node.wait is None or self.view.waits[key] < self.view.threshold_ns:
                continue
            try:
                if not is_over(node.wait, node.object):
                    continue
                if at_hand is None:
                    at_hand = words_at_hand(self.view.prog)
                if may_be_about_to_wake(node.wait, node.object, at_hand):
                    continue
            except FaultError as error:
                address = node.object.value_()
                self.view.ctx.coverage.gap("wait", f"it cannot be read: {error}", address)
                continue
            for edge in self.view.graph.edges_from(key)[:1]:
                self._lost.setdefault(edge.target, node)

    def candidates(self) -> Iterator[Tuple[str, ...]]:
        for key in self._lost:
            yield (key,)

    def finding(self, root: Root) -> Optional[Finding]:
        sleeper = self._lost.get(root.nodes[0])
        if sleeper is None or sleeper.wait is None:
            return None
        node = self.view.chains.nodes[root.nodes[0]]
        unread = self._unread_registers()
        return Finding(
            rule=LOST_WAKEUP,
            confidence=Confidence.LIKELY if unread else Confidence.PROVEN,
            message=(
                "The wait for the {object} at {address} is over, as {state}, and nobody is about "
                f"to wake who sleeps there; {self.view.waiting(root, 'for it')}."
            ),
            subject=self.view.ref(node),
            evidence=(
                Evidence("object", Kind.UNTRUSTED, *self.view.names([node.key])),
                Evidence("address", Kind.ADDRESS, int(sleeper.wait.object.value_())),
                Evidence("state", Kind.TEXT, _state(sleeper.wait, sleeper.object)),
                *self.view.victims(root),
            ),
            signature_key=("lost-wakeup", node.name, *self.view.callers([sleeper.key])),
            related=self.view.related(root),
            stacks=self.view.stack_ids([sleeper.key, *root.victims]),
            unread=unread,
            graph=self.view.drawn(root),
        )

    def _unread_registers(self) -> Tuple[str, ...]:
        for queue in self.view.queues.values():
            try:
                # Also one that is idle can be in an interrupt that wakes.
                up = is_up(self.view.prog, queue.cpu)
                unread = up and live_registers(queue.current) is None
            except FaultError:
                unread = True
            if unread:
                return ("the registers of CPUs, which may be about to wake it",)
        return ()


def _state(wait: Wait, task: Object) -> str:
    if wait.kind == "dma_fence":
        return "it is signaled"
    if wait.bit is not None:
        return f"its bit {wait.bit} is clear"
    if wait.kind in ("mutex", "rwsem", "rt_mutex"):
        return "nobody else has it"
    if wait.kind == "semaphore":
        return f"its count is {wait.object.count.value_()}"
    return "it is done"
