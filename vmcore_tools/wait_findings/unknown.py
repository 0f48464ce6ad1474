# SPDX-License-Identifier: LGPL-2.1-or-later
"""Waits of which nothing in the kernel says who would end them (VT318)."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Dict, Iterable, Iterator, List, Optional, Set, Tuple

from drgn import FaultError, Object
from drgn.helpers import ValidationError
from drgn.helpers.linux.locking import rwsem_owner

from vmcore_tools.kernel.containers import Container, pointers_to
from vmcore_tools.kernel.locks import rwsem_readers
from vmcore_tools.kernel.references import Place, Reference
from vmcore_tools.kernel.task import is_killable, task_comm
from vmcore_tools.kernel.wait_graph import Edge, Root, WaitGraph
from vmcore_tools.kernel.wait_nodes import CPU, HELD_BY, OBJECT, POOL, READ_BY, TASK, Node
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
from vmcore_tools.wait_findings.unseen import as_far_as_seen
from vmcore_tools.wait_findings.view import WaitView
from vmcore_tools.words import plural

WAKER_UNKNOWN = Rule(
    id="VT318",
    slug="waker-unknown",
    severity=Severity.WARNING,
    ranked_with="VT310",
    summary="Tasks have waited too long for something that nobody is known to end.",
    remedy=(
        "Find the code that completes or wakes it, in what it is part of or what points to it, "
        "and look what keeps that from being run."
    ),
    page="""\
The chains of waits end there: it is a completion, a wait queue, a bit or a lock
of which the kernel does not keep who is to end the wait, and nobody behind it is
to blame for something else. That the tasks wait for it is certain; that it is
the cause is `likely`.

`part_of` is what it lies in: a variable, a slab object with its type and field
where these are known, or the frame of a function on a task's stack. It can also be a
task that runs or can run, and does not let go of a lock.
`pointed_at_by` are places in kernel memory that point into that, without the
stacks of those who wait; they were looked for if there is no more than 1 GiB of
such memory (else: `run references ADDRESS`). Sleeps that a timer ends and those
that a fatal signal ends are no such findings.""",
)

#: Objects whose container and pointers are looked for, those with the most victims first.
_OBJECTS_LOOKED_AT = 16
_POINTERS_SHOWN = 10
_PLACES_IN_WORDS = (Place.SLAB_OBJECT, Place.IMAGE, Place.MODULE, Place.TASK_STACK)
#: 1 GiB of 4 KiB pages: some seconds.
_PAGES_SCANNED_MAX = 1 << 18
_OBJECTS = ("slab object", "pages")
#: These end by themselves.
ENDED_BY_TIME = ("timer", "CPU quota of the cgroup")


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """
    Where chains of waits end.

    :ivar nodes: its own key, and those of what is in the same object
    """

    nodes: Tuple[str, ...]
    victims: Tuple[str, ...]
    container: Optional[Container] = None

    @property
    def key(self) -> str:
        return self.nodes[0]


class WakerUnknown:
    """Makes the findings of what no cause explains."""

    rules = (WAKER_UNKNOWN,)

    def __init__(self, view: WaitView) -> None:
        self._view = view

    def findings(self, ends: Iterable[str], blamed: Set[str]) -> Iterator[Tuple[Root, Finding]]:
        """
        :param ends: nodes that wait for nothing
        :param blamed: tasks that other findings explain
        """
        leaves = [leaf for leaf in (self._leaf(key, blamed) for key in ends) if leaf is not None]
        leaves.sort(key=lambda leaf: (-len(leaf.victims), leaf.key))
        looked_at = self._together(self._in_containers(leaves[:_OBJECTS_LOOKED_AT]))
        pointers = self._pointers(looked_at)
        for number, leaf in enumerate([*looked_at, *leaves[_OBJECTS_LOOKED_AT:]]):
            wait_ns = sum(self._view.waits[key] for key in leaf.victims)
            root = Root((self._top(leaf),), leaf.victims, wait_ns, len(leaf.victims))
            finding = self._finding(root, leaf, pointers.get(number))
            yield root, as_far_as_seen(self._view, root, finding)

    def _leaf(self, key: str, blamed: Set[str]) -> Optional[_Leaf]:
        node = self._view.chains.nodes[key]
        if node.kind in (CPU, POOL) or node.name in ENDED_BY_TIME:
            return None
        behind = self._view.graph.waiting_for([key]) - {key}
        victims = [k for k in self._view.asleep if k in behind and k not in blamed]
        lasting = (k for k in victims if not is_killable(self._view.chains.nodes[k].object))
        if self._view.longest_ns(lasting) < self._view.threshold_ns:
            return None
        return _Leaf((key,), tuple(victims))

    # What it is part of.

    def _in_containers(self, leaves: List[_Leaf]) -> List[_Leaf]:
        found = []
        for leaf in leaves:
            node = self._view.chains.nodes[leaf.key]
            if node.kind != TASK:
                container = self._view.container(node.object)
                leaf = dataclasses.replace(leaf, container=container)
            found.append(leaf)
        return found

    def _together(self, leaves: List[_Leaf]) -> List[_Leaf]:
        """Those in one object make one."""
        joined: Dict[object, _Leaf] = {}
        for leaf in leaves:
            inside = leaf.container is not None and leaf.container.place in _OBJECTS
            key = leaf.container.start if inside and leaf.container else leaf.key
            before = joined.get(key)
            if before is not None:
                nodes, known = (*before.nodes, *leaf.nodes), set(before.victims) | set(leaf.victims)
                victims = tuple(k for k in self._view.asleep if k in known)
                leaf = dataclasses.replace(before, nodes=nodes, victims=victims)
            joined[key] = leaf
        return list(joined.values())

    def _top(self, leaf: _Leaf) -> str:
        """The node of the object around it, or its own."""
        container = leaf.container
        if container is None or container.place not in _OBJECTS or not container.offset:
            return leaf.key
        chains = self._view.chains
        node = chains.nodes[leaf.key]
        address = Object(node.object.prog_, "void *", value=container.start)
        kind = "allocation" if container.place == "pages" else container.place
        name = container.type_name or kind
        label = "" if container.type_name else f"of {container.name}"
        top = chains.add(Node(f"object {container.start:#x}", OBJECT, address, name, label=label))
        for key in leaf.nodes:
            chains.graph.add_edge(Edge(key, top, "is part of"))
        return top

    # Who points there.

    def _pointers(self, leaves: List[_Leaf]) -> Dict[int, Optional[List[Reference]]]:
        """By position; None where they were not looked for."""
        ranges = sorted(
            (leaf.container.start, leaf.container.start + leaf.container.size_bytes, number)
            for number, leaf in enumerate(leaves)
            if leaf.container is not None and leaf.container.size_bytes
        )
        apart = [ranges[i] for i in range(len(ranges)) if not i or ranges[i - 1][1] <= ranges[i][0]]
        if not apart:
            return {}
        view = self._view
        try:
            edges = [(start, end) for start, end, _ in apart]
            found = pointers_to(view.prog, view.ctx.memory, edges, _PAGES_SCANNED_MAX)
        except (FaultError, LookupError, ValidationError) as error:
            view.ctx.coverage.gap("reference", f"they cannot be looked for: {error}")
            return {}
        if found is None:
            return {}
        by_leaf: Dict[int, Optional[List[Reference]]] = {number: [] for _, _, number in apart}
        for reference in found:
            of_leaf = by_leaf[apart[reference.target][2]]
            assert of_leaf is not None
            of_leaf.append(reference)
        return by_leaf

    def _pointed_at_by(
        self, leaf: _Leaf, pointers: Optional[List[Reference]]
    ) -> Maybe[Tuple[str, ...]]:
        if pointers is None:
            return Absent("they were not looked for")
        waiting = {task.stack.value_() for task in self._waiters(leaf)}
        places: Dict[str, None] = {}
        for reference in pointers:
            if len(places) == _POINTERS_SHOWN:
                break
            own = leaf.container is not None and reference.container == leaf.container.start
            if reference.place is Place.TASK_STACK and reference.container in waiting:
                continue
            if own or reference.place is Place.PAGE_STRUCT or _is_symbol_table(reference):
                continue
            places[self._place(reference)] = None
        return tuple(places)

    def _place(self, reference: Reference) -> str:
        if reference.place is Place.REGISTER:
            return "register"  # the holder is a task's name
        if reference.place in _PLACES_IN_WORDS:
            with contextlib.suppress(FaultError, LookupError, ValidationError):
                return self._view.containers.of(reference.address).in_words
        return f"{reference.place.value} {reference.holder} +{reference.offset:#x}"

    def _waiters(self, leaf: _Leaf) -> Iterator[Object]:
        """The tasks that wait for it themselves."""
        for key in leaf.nodes:
            for edge in self._view.graph.edges_to(key):
                node = self._view.chains.nodes[edge.source]
                if node.kind == TASK:
                    yield node.object

    # The finding.

    def _finding(self, root: Root, leaf: _Leaf, pointers: Optional[List[Reference]]) -> Finding:
        view = self._view
        node = view.chains.nodes[leaf.key]
        if node.kind == TASK:
            return self._does_not_end(root, node)
        container = leaf.container
        many = plural(len(root.victims), "task waits", "tasks wait")
        message = f"{{victims}} {many} for the {{object}} at {{address}}"
        evidence = [
            Evidence("object", Kind.UNTRUSTED, *view.names([leaf.key])),
            Evidence("address", Kind.ADDRESS, int(node.object.value_())),
        ]
        if container is not None and container.place != "memory":
            evidence += _of_container(container)
            evidence.append(
                Evidence("pointed_at_by", Kind.UNTRUSTED, self._pointed_at_by(leaf, pointers))
            )
            if container.offset or container.place in ("stack", "module", "pages"):
                message += ", in {part_of}"
        evidence += _of_readers(node)
        message += f", and nothing says who would end that{view.longest(root)}."
        return Finding(
            rule=WAKER_UNKNOWN,
            confidence=Confidence.LIKELY,
            message=message,
            subject=view.ref(node),
            evidence=(*evidence, *view.victims(root)),
            signature_key=("waker-unknown", node.name, *view.callers(root.victims[:1])),
            related=view.related(root),
            stacks=view.stack_ids(root.victims),
            unread=("who would end the wait: no structure of the kernel says",),
            graph=view.drawn(root, only=root.victims),
        )

    def _does_not_end(self, root: Root, node: Node) -> Finding:
        view = self._view
        edges = view.graph.edges_to(node.key)
        confidence = Confidence.LIKELY
        unread: Tuple[str, ...] = ("what would make it end",)
        if node.state == "queued":
            # It may have taken the lock a moment ago, after others that had it.
            confidence, unread = view.verdict(
                node,
                [edge for edge in edges if edge.why in (HELD_BY, READ_BY)],
                "whether it has had the lock for all that time",
            )
        return Finding(
            rule=WAKER_UNKNOWN,
            confidence=confidence,
            message=(
                f"{{comm}} ({{pid}}) {{doing}} and does not end; {view.waiting(root, 'for that')}."
            ),
            subject=view.ref(node),
            evidence=(*view.culprit(node), *view.victims(root)),
            signature_key=("does-not-end", *view.callers([node.key])),
            related=view.related(root),
            stacks=view.stack_ids([node.key, *root.victims], running=True),
            unread=unread,
            graph=view.drawn(root, only=root.victims),
        )


def holds_lock(graph: WaitGraph, key: str) -> bool:
    """Whether a lock names a task as who has it, or had it last."""
    return any(edge.why in (HELD_BY, READ_BY) for edge in graph.edges_to(key))


def _of_readers(node: Node) -> List[Evidence]:
    """Who has a read-write semaphore, as far as it knows."""
    readers = rwsem_readers(node.object) if node.name == "rwsem" else None
    if not readers:
        return []
    evidence = [Evidence("readers", Kind.COUNT, readers)]
    last = rwsem_owner(node.object)
    with contextlib.suppress(FaultError):  # it may have ended
        evidence += [
            Evidence("last_reader", Kind.SENSITIVE, task_comm(last)),
            Evidence("last_reader_pid", Kind.PID, int(last.pid.value_())),
        ]
    return evidence


def _of_container(container: Container) -> List[Evidence]:
    evidence = [
        Evidence("part_of", Kind.UNTRUSTED, container.in_words),
        Evidence("container", Kind.ADDRESS, container.start),
        Evidence("offset", Kind.NUMBER, container.offset),
    ]
    if container.task is not None:
        evidence.append(Evidence("stack_of", Kind.SENSITIVE, task_comm(container.task)))
        evidence.append(Evidence("stack_of_pid", Kind.PID, int(container.task.pid.value_())))
    if container.freed:
        evidence.append(Evidence("freed", Kind.TEXT, True))
    return evidence


def _is_symbol_table(reference: Reference) -> bool:
    """Whether it is what the kernel keeps of a module's symbols."""
    return reference.place is Place.VMALLOC and reference.holder.endswith(" load_module")
