# SPDX-License-Identifier: LGPL-2.1-or-later
"""The holder of a lock that sleeps in something else (VT313)."""

from __future__ import annotations

from typing import Optional

from vmcore_tools.kernel.locks import rwsem_readers
from vmcore_tools.kernel.wait_graph import Root
from vmcore_tools.kernel.wait_nodes import HELD_BY, READ_BY, TASK
from vmcore_tools.model import Evidence, Finding, Kind, Rule, Severity
from vmcore_tools.wait_findings.view import Cause
from vmcore_tools.words import plural

HOLDER_ASLEEP = Rule(
    id="VT313",
    slug="lock-holder-asleep",
    severity=Severity.ERROR,
    ranked_with="VT310",
    summary="Tasks wait for a lock whose holder sleeps in something else.",
    remedy="Look at the holder's stack: find out who should wake it there.",
    page="""\
The holder is the task that the lock itself names. What it sleeps in is given
where the kernel's lists show it; nobody is known who would end it. It may also
be kept off the CPU by its cgroup's quota. One that has not slept for as long as
is too long, or sleeps until a timer wakes it, may have taken the lock a moment ago,
after others that had it: it is `likely` then. For an rwsem that readers have, the
lock names only the last one, who may have let go: then it is `suspected`, and
`readers` is how many have it. A last reader that waits for the lock again, or
sleeps where any signal would wake it, is not taken for a holder.""",
)


class HolderAsleep(Cause):
    rules = (HOLDER_ASLEEP,)

    def finding(self, root: Root) -> Optional[Finding]:
        node = self.view.chains.nodes[root.nodes[0]]
        if node.kind != TASK or node.state not in ("asleep", "throttled"):
            return None
        if self.view.longest_ns(root.victims) < self.view.threshold_ns:
            return None
        edges = [e for e in self.view.graph.edges_to(node.key) if e.why in (HELD_BY, READ_BY)]
        if not edges:
            return None
        lock = self.view.chains.nodes[edges[0].source]
        has = "{comm} ({pid}) has the {lock} at {lock_address}"
        last, readers = edges[0].why == READ_BY, None
        if last:
            has = "{comm} ({pid}) is the last of those that took the {lock} at {lock_address}"
        if last and lock.name == "rwsem":
            readers = rwsem_readers(lock.object)
        if readers is not None:
            has += f", which {{readers}} {plural(readers, 'reader has', 'readers have')},"
        confidence, unread = self.view.verdict(
            node, edges, "whether it has had the lock for all that time"
        )
        return Finding(
            rule=HOLDER_ASLEEP,
            confidence=confidence,
            message=(f"{has} and {{doing}}; {self.view.waiting(root, 'behind it')}."),
            subject=self.view.ref(node),
            evidence=(
                Evidence("lock", Kind.TEXT, self.view.name(lock)),
                Evidence("lock_address", Kind.ADDRESS, int(lock.object.value_())),
                *(Evidence("readers", Kind.COUNT, n) for n in (readers,) if n is not None),
                *self.view.culprit(node),
                *self.view.victims(root),
            ),
            signature_key=("lock-holder-asleep", lock.name, *self.view.callers([node.key])),
            related=(self.view.ref(lock), *self.view.related(root)),
            stacks=self.view.stack_ids([node.key, *root.victims]),
            unread=unread,
            graph=self.view.drawn(root),
        )
