# SPDX-License-Identifier: LGPL-2.1-or-later
"""The virtqueues that somebody waits for, and how far the host is with them."""

from __future__ import annotations

import dataclasses
from typing import Iterator

from drgn import FaultError, Object
from drgn.helpers import ValidationError

from vmcore_tools.kernel.strings import device_name, name_text
from vmcore_tools.kernel.virtio_blk import for_each_disk_queue, is_virtio_disk
from vmcore_tools.kernel.virtio_ring import RingState, ring_state
from vmcore_tools.kernel.wait_nodes import DEVICE, VIRTQUEUE
from vmcore_tools.wait_findings.view import WaitView


@dataclasses.dataclass(frozen=True)
class WaitedForQueue:
    """
    :ivar address: of the ``struct virtqueue``
    """

    device: str
    name: str
    address: int
    state: RingState


def waited_for_queues(view: WaitView) -> Iterator[WaitedForQueue]:
    """The queues in the graph, and those of its disks; what cannot be read is counted."""
    for queue in _queues(view):
        try:
            state = ring_state(queue)
            device, name = device_name(queue.vdev.dev), name_text(queue.name)
        except (FaultError, ValidationError, LookupError) as error:
            view.ctx.coverage.gap("virtqueue", f"it cannot be read: {error}", queue.value_())
            continue
        yield WaitedForQueue(device, name, queue.value_(), state)


def _queues(view: WaitView) -> Iterator[Object]:
    for node in list(view.chains.nodes.values()):
        if node.kind == VIRTQUEUE:
            yield node.object.vq.read_()
        elif node.kind == DEVICE and node.name == "disk":
            try:
                if is_virtio_disk(node.object):
                    yield from for_each_disk_queue(node.object)
            except (FaultError, ValidationError, LookupError) as error:
                view.ctx.coverage.gap("queues of a disk", f"they cannot be read: {error}")
