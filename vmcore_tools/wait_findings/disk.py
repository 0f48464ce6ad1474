# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks whose requests are not completed: a part of VT315."""

from __future__ import annotations

from typing import Iterator, List, Optional, Tuple

from drgn import FaultError, Object
from drgn.helpers import ValidationError

from vmcore_tools.kernel.blk_mq import InFlight, requests_in_flight
from vmcore_tools.kernel.strings import name_text
from vmcore_tools.kernel.virtio_blk import for_each_disk_queue, is_virtio_disk
from vmcore_tools.kernel.virtio_ring import RingState, ring_state
from vmcore_tools.kernel.wait_graph import Root
from vmcore_tools.model import Confidence, Evidence, Finding, Kind, Rule
from vmcore_tools.wait_findings.view import WaitView, maybe

#: What the guest's memory does not say.
UNHEARD = "whether the guest's notification reached the host"
STARTED = "for how long the driver has had the oldest of them, which was allocated that long ago"
INTERRUPT = "whether an interrupt is under way: a host ends its I/O when it is stopped for a dump"


def disk_late(view: WaitView, root: Root, rule: Rule, late_ns: int) -> Optional[Finding]:
    """
    The finding about a disk, if a request has been in flight for too long.

    :param root: the node of a ``struct gendisk *``, and who waits for it
    """
    node = view.node(root.nodes[0])
    disk = node.object
    queues: List[Object] = []
    try:
        flight = requests_in_flight(disk.queue.read_())
        if is_virtio_disk(disk):
            queues += for_each_disk_queue(disk)
        rings = [ring_state(queue) for queue in queues]
        names = tuple(name_text(queue.name) for queue in queues)
    except (FaultError, ValidationError, LookupError) as error:
        view.ctx.coverage.gap("requests of a disk", f"they cannot be read: {error}")
        return None
    if flight.oldest_ns is None or flight.oldest_ns < late_ns:
        return None
    state, what, unread = _verdict(rings)
    if not all(edge.proven for edge in view.graph.edges_to(node.key)):
        unread = (*unread, "whether what the tasks wait for is part of the requests")
    if (flight.started_ns or 0) < late_ns:
        unread = (*unread, STARTED)
    confidence = Confidence.LIKELY if unread else Confidence.PROVEN
    return Finding(
        rule=rule,
        confidence=Confidence.SUSPECTED if INTERRUPT in unread else confidence,
        message=(
            "The disk {device} has not completed {in_flight} requests, the oldest for {oldest_ns}"
            f"{what}; {{victims}} tasks wait for it, first of them {{victim}} "
            "({victim_pid}) for {wait_ns} in {waits_for}."
        ),
        subject=view.ref(node),
        evidence=(
            Evidence("device", Kind.UNTRUSTED, node.label),
            *_evidence(flight, names, rings),
            *view.victims(root),
        ),
        signature_key=("device-late", "disk", state),
        related=view.related(root),
        stacks=view.stack_ids(root.victims),
        unread=unread,
        graph=view.drawn(root),
    )


def _evidence(
    flight: InFlight, names: Tuple[str, ...], rings: List[RingState]
) -> Iterator[Evidence]:
    yield Evidence("in_flight", Kind.COUNT, len(flight.requests))
    yield Evidence("oldest_ns", Kind.DURATION, maybe(flight.oldest_ns))
    if rings:
        yield Evidence("queues", Kind.UNTRUSTED, names)
        yield Evidence("unanswered", Kind.COUNT, sum(ring.with_device for ring in rings))
        yield Evidence("not_fetched", Kind.COUNT, maybe(_not_fetched(rings)))
        yield Evidence("answered", Kind.COUNT, sum(ring.answered for ring in rings))
        yield Evidence("free", Kind.COUNT, sum(ring.free for ring in rings))
        yield Evidence("size", Kind.COUNT, sum(ring.size for ring in rings))


def _not_fetched(rings: List[RingState]) -> Optional[int]:
    counts = [ring.not_fetched for ring in rings if ring.not_fetched is not None]
    return sum(counts) if len(counts) == len(rings) else None


def _verdict(rings: List[RingState]) -> Tuple[str, str, Tuple[str, ...]]:
    """What is wrong, in words, and what was not seen."""
    if not rings:
        return "not completed", "", ("whether the device or its driver keeps them",)
    if not any(ring.with_device for ring in rings):
        what = ": the host has answered {answered} of them, and no interrupt told the guest"
        return "no interrupt", what, (INTERRUPT,)
    what = ": the host has not answered {unanswered} of them"
    not_fetched = _not_fetched(rings)
    if not_fetched == 0:
        return "not answered", what, ()
    if not_fetched:
        what += ", and has not even fetched {not_fetched}"
    return "not fetched", what, (UNHEARD,)
