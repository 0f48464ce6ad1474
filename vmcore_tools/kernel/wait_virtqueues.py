# SPDX-License-Identifier: LGPL-2.1-or-later
"""From the queues of virtio_gpu to who would empty them: a part of the graph of waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Iterator, Optional, Tuple

from drgn import FaultError, Object
from drgn.helpers import ValidationError

from vmcore_tools.kernel.strings import device_name, name_text
from vmcore_tools.kernel.virtio_gpu import for_each_queue, for_each_virtio_gpu_device
from vmcore_tools.kernel.virtio_ring import ring_state
from vmcore_tools.kernel.wait_graph import Edge
from vmcore_tools.kernel.wait_nodes import DEVICE, VIRTQUEUE, Node
from vmcore_tools.kernel.waits import Wait
from vmcore_tools.kernel.workqueue import find_worker_executing, work_is_pending, work_pool

if TYPE_CHECKING:
    from vmcore_tools.kernel.wait_chain import WaitChains

_WAIT_QUEUES_KEY = "vmcore_tools.wait_virtqueues.wait_queues"
#: A command has at most so many parts: what is asked, with it, and where the answer goes.
_ENTRIES_NEEDED = 3
_IN_QUEUE = "it is on the queue's ack_queue"


def virtqueue(chains: WaitChains, queue: Object) -> str:
    """
    The node of a queue of virtio_gpu.

    :param queue: ``struct virtio_gpu_queue *``
    """
    name = name_text(queue.vq.name)
    return chains.add(Node(f"virtqueue {queue.value_():#x}", VIRTQUEUE, queue, name))


def is_being_emptied(queue: Object) -> bool:
    """
    Whether the work that takes what the device has done off a queue is queued or runs.

    An interrupt queues it (``virtio_gpu_ctrl_ack()``).

    :param queue: ``struct virtio_gpu_queue *``
    """
    work = queue.dequeue_work.address_of_()
    if work_is_pending(work):
        return True
    pool = work_pool(work)
    return bool(pool and find_worker_executing(pool, work))


def follow_virtqueue(chains: WaitChains, node: Node) -> Iterator[Edge]:
    """
    From a queue to the work that would empty it, or to the device.

    As long as the device answers, the work is what is waited for. Where nothing
    is in the queue, nobody is known who would wake those that wait for it.
    """
    queue = node.object
    if is_being_emptied(queue):
        work = queue.dequeue_work.address_of_()
        yield Edge(node.key, chains.work(work), "is emptied by")
        return
    state = ring_state(queue.vq)
    device = queue.vq.vdev.read_()
    key = f"device {device.value_():#x}"
    if state.broken:
        why = "is not used any more, like all of"
    elif state.answered:
        why = "waits for an interrupt of"
    elif state.with_device:
        why = "waits for an answer of"
    else:
        return
    chains.add(Node(key, DEVICE, device, device_name(device.dev)))
    yield Edge(node.key, key, why)


def follow_virtqueue_wait(chains: WaitChains, node: Node, wait: Wait) -> Iterator[Edge]:
    """From a task that waits for space or an answer in a queue of virtio_gpu to the queue."""
    own = wait.evidence == _IN_QUEUE
    if own and _has_space(wait.object):
        return  # and nobody wakes it
    why = "waits for space in" if own else "waits for an answer through"
    yield Edge(node.key, virtqueue(chains, wait.object), why, wait.proven)


def _has_space(queue: Object) -> bool:
    """
    Whether a queue has space for any command.

    :param queue: ``struct virtio_gpu_queue *``
    """
    try:
        state = ring_state(queue.vq)
    except (FaultError, ValidationError, LookupError):
        return False  # following the queue will tell why
    return state.indirect and state.free >= _ENTRIES_NEEDED


def as_virtqueue(chains: WaitChains, wait: Wait) -> Optional[Wait]:
    """A wait on a wait queue of virtio_gpu, as a wait for the virtqueue behind it."""
    if wait.kind != "wait queue":
        return None
    address = wait.object.value_()
    wait_queues = _wait_queues(chains)
    if address not in wait_queues:
        return None
    queue = wait_queues[address]
    own = queue.ack_queue.address_of_().value_() == address
    evidence = _IN_QUEUE if own else "it is on the device's resp_wq"
    return Wait("virtqueue", queue, evidence, wait.proven)


def _wait_queues(chains: WaitChains) -> Dict[int, Object]:
    """The queues of virtio_gpu devices, by the wait queues that their answers wake."""
    if _WAIT_QUEUES_KEY not in chains.found:
        found: Dict[int, Object] = {}
        try:
            found.update(_each_wait_queue(chains))
        except LookupError:
            pass  # no such driver, or none of its debug info
        except (FaultError, ValidationError) as error:
            chains.lost("virtqueue", error, 0)
        chains.found[_WAIT_QUEUES_KEY] = found
    return chains.found[_WAIT_QUEUES_KEY]


def _each_wait_queue(chains: WaitChains) -> Iterator[Tuple[int, Object]]:
    for device in for_each_virtio_gpu_device(chains.prog):
        for queue in for_each_queue(device):
            yield queue.ack_queue.address_of_().value_(), queue
        # Display information and capability sets: the answers' callbacks wake these.
        yield device.resp_wq.address_of_().value_(), device.ctrlq.address_of_()
