# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks whose requests are not completed: a part of VT315 if of virtio_blk, else VT319."""

from __future__ import annotations

import contextlib
from typing import Iterator, List, Optional, Tuple

from drgn import FaultError
from drgn.helpers import ValidationError

from vmcore_tools.kernel.blk_mq import InFlight, requests_in_flight
from vmcore_tools.kernel.strings import name_text
from vmcore_tools.kernel.virtio_blk import for_each_disk_queue, is_virtio_disk
from vmcore_tools.kernel.virtio_ring import RingState, ring_state
from vmcore_tools.kernel.wait_graph import Root
from vmcore_tools.model import Confidence, Evidence, Finding, Kind, Rule, Severity
from vmcore_tools.wait_findings.view import WaitView, maybe
from vmcore_tools.words import plural

DISK_LATE = Rule(
    id="VT319",
    slug="disk-not-answering",
    severity=Severity.ERROR,
    ranked_with="VT310",
    summary="A disk that is not of virtio_blk has been given requests and does not complete them.",
    remedy=(
        "Read the kernel's log for timeouts, resets and errors of the disk and its controller; "
        "look at the disk's health, its path and the interrupts of its controller. If it is made "
        "of other disks or is on a network, look at these; in a guest, at the host as well."
    ),
    page="""\
`in_flight` requests were started by the block layer and not completed, the oldest
`oldest_ns` ago; by when it was allocated, if its timer has started again since, or it
was kept back until then. Whether the device or its driver keeps them, the dump does
not say: only virtio_blk's rings are read (VT315). So it is `likely`.""",
)
#: What the guest's memory does not say.
UNHEARD = "whether the guest's notification reached the host"
STARTED = "for how long the driver has had the oldest of them, which was allocated that long ago"
HELD_BACK = "whether the device or its driver keeps them"
NO_RINGS = "how far the host is: the disk's virtqueues"
INTERRUPT = "whether an interrupt is under way: a host ends its I/O when it is stopped for a dump"


def disk_late(view: WaitView, root: Root, of_virtio: Rule, late_ns: int) -> Optional[Finding]:
    """
    The finding about a disk, if a request has been in flight for too long.

    :param root: the node of a ``struct gendisk *``, and who waits for it
    :param of_virtio: the rule for those that are a host's
    """
    node = view.node(root.nodes[0])
    disk = node.object
    try:
        flight = requests_in_flight(disk.queue.read_())
    except (FaultError, ValidationError, LookupError) as error:
        view.ctx.coverage.gap("requests of a disk", f"they cannot be read: {error}")
        return None
    if flight.oldest_ns is None or flight.oldest_ns < late_ns:
        return None
    # Its operations may have no name without the debug info of the module.
    virtio = is_virtio_disk(disk) or node.label.startswith("vd")
    rings: List[RingState] = []
    names: Tuple[str, ...] = ()
    if virtio:
        # That of the queues is counted with the table of them.
        with contextlib.suppress(FaultError, ValidationError, LookupError):
            queues = list(for_each_disk_queue(disk))
            rings = [ring_state(queue) for queue in queues]
            names = tuple(name_text(queue.name) for queue in queues)
    state, what, unread = _verdict(rings, virtio, len(flight.requests))
    requests = plural(len(flight.requests), "request", "requests, the oldest")
    if not all(edge.proven for edge in view.graph.edges_to(node.key)):
        unread = (*unread, "whether what the tasks wait for is part of the requests")
    if (flight.started_ns or 0) < late_ns:
        unread = (*unread, STARTED)
    confidence = Confidence.LIKELY if unread else Confidence.PROVEN
    return Finding(
        rule=of_virtio if virtio else DISK_LATE,
        confidence=Confidence.SUSPECTED if INTERRUPT in unread else confidence,
        message=(
            f"The disk {{device}} has not completed {{in_flight}} {requests} for {{oldest_ns}}"
            f"{what}; {view.waiting(root, 'for it')}{view.in_function(root)}."
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


def _verdict(
    rings: List[RingState], virtio: bool, in_flight: int
) -> Tuple[str, str, Tuple[str, ...]]:
    """What is wrong, in words, and what was not seen."""
    if not rings:
        return "not completed", "", (NO_RINGS if virtio else HELD_BACK,)
    unanswered = sum(ring.with_device for ring in rings)
    if not unanswered:
        answered = _of("answered", sum(ring.answered for ring in rings), in_flight)
        what = f": the host has answered {answered}, and no interrupt told the guest"
        return "no interrupt", what, (INTERRUPT,)
    what = f": the host has not answered {_of('unanswered', unanswered, in_flight)}"
    not_fetched = _not_fetched(rings)
    if not_fetched == 0:
        return "not answered", what, ()
    if not_fetched:
        what += f", {fetched_words(unanswered, not_fetched)}"
    return "not fetched", what, (UNHEARD,)


def _of(name: str, count: int, of: int) -> str:
    """So many of some requests, for a message."""
    return plural(of, "it", "them") if count == of else f"{{{name}}} of them"


def fetched_words(unanswered: int, not_fetched: int) -> str:
    """
    How many of what it has not answered a device has fetched, for a message.

    :param not_fetched: how many of these it has not
    """
    if not not_fetched:
        return "which it has fetched" if unanswered == 1 else "all of which it has fetched"
    if not_fetched == unanswered:
        return "nor fetched it" if unanswered == 1 else "none of which it has fetched"
    return "{not_fetched} of which it has not even fetched"
