# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tasks that wait for each other in a circle (VT310)."""

from __future__ import annotations

from typing import Iterator, Optional, Tuple

from vmcore_tools.kernel.wait_graph import Root
from vmcore_tools.kernel.wait_nodes import TASK
from vmcore_tools.model import Confidence, Evidence, Finding, Kind, Rule, Severity
from vmcore_tools.wait_findings.view import TASKS_NAMED, Cause
from vmcore_tools.words import plural

DEADLOCK = Rule(
    id="VT310",
    slug="deadlock",
    severity=Severity.CRITICAL,
    summary="Tasks wait for each other in a circle, or one for itself: none of them can go on.",
    remedy=(
        "Look in their stacks for paths that take the same locks in different orders, or wait "
        "for a work while they hold a lock that it needs."
    ),
    page="""\
Each task of the circle is on the list of waiters of a lock, or waits for a
work, that the next one has. It is `proven` where the kernel's structures name
every holder; an rwsem names only its last reader, who may have let go, and
makes it `suspected`. The circle shown is the shortest one.""",
)


class Deadlock(Cause):
    rules = (DEADLOCK,)

    def candidates(self) -> Iterator[Tuple[str, ...]]:
        for cycle in self.view.graph.deadlocks():
            yield tuple(edge.source for edge in cycle)

    def finding(self, root: Root) -> Optional[Finding]:
        if len(root.nodes) == 1:
            return None
        edges = [
            next(edge for edge in self.view.graph.edges_from(key) if edge.target == following)
            for key, following in zip(root.nodes, (*root.nodes[1:], root.nodes[0]))
        ]
        tasks = [key for key in root.nodes if self.view.chains.nodes[key].kind == TASK]
        objects = [key for key in root.nodes if self.view.chains.nodes[key].kind != TASK]
        confidence = self.view.confidence(edges)
        signals = [key for key in tasks if key not in self.view.asleep]
        if signals and confidence is Confidence.PROVEN:
            confidence = Confidence.LIKELY
        first = self.view.chains.nodes[tasks[0]]
        names = self.view.names(objects[:TASKS_NAMED])
        message = "{tasks} tasks wait for each other: {comms} (PID {pids}), for {objects} in turn"
        if len(set(names)) < len(names):
            # Two that nothing names: mutex, mutex.
            message = message.replace("{objects}", "{objects} at {addresses}")
        if len(tasks) == 1:
            message = "{comms} (PID {pids}) waits for itself, by {objects}"
        if root.victims:
            more = plural(len(root.victims), "more waits", "more wait")
            message += f"; {{victims}} {more} behind"
            message += ", for {wait_ns}" if len(root.victims) == 1 else ", longest for {wait_ns}"
        else:
            message += ", longest for {wait_ns}" if len(tasks) > 1 else ", for {wait_ns}"
        return Finding(
            rule=DEADLOCK,
            confidence=confidence,
            message=message + ".",
            subject=self.view.ref(first),
            evidence=(
                Evidence("tasks", Kind.COUNT, len(tasks)),
                Evidence("comms", Kind.SENSITIVE, self.view.comms(tasks[:TASKS_NAMED])),
                Evidence("pids", Kind.PID, self.view.pids(tasks[:TASKS_NAMED])),
                Evidence("objects", Kind.UNTRUSTED, names),
                Evidence("addresses", Kind.ADDRESS, self.view.addresses(objects[:TASKS_NAMED])),
                *self.view.victims(root),
            ),
            signature_key=("deadlock", *sorted(self.view.callers(tasks))),
            related=self.view.related(root),
            stacks=self.view.stack_ids([*tasks, *root.victims]),
            unread=self.view.unread(edges)
            + tuple(f"a signal can end the wait of {len(signals)} of them" for _ in signals[:1]),
            graph=self.view.drawn(root),
        )
