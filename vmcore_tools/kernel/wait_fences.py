# SPDX-License-Identifier: LGPL-2.1-or-later
"""From fences and a device's queues to who would signal or empty them: a part of the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Dict, Iterator, Optional, Tuple

from drgn import FaultError, Object, Program
from drgn.helpers import ValidationError

from vmcore_tools.kernel.virtio_gpu import for_each_emitted_fence, for_each_virtio_gpu_device
from vmcore_tools.kernel.wait_graph import Edge
from vmcore_tools.kernel.wait_nodes import FENCE, Node
from vmcore_tools.kernel.waits import Wait
from vmcore_tools.kernel.workqueue import find_worker_executing, work_is_pending, work_pool

if TYPE_CHECKING:
    from vmcore_tools.kernel.wait_chain import WaitChains

_ACK_QUEUES_KEY = "vmcore_tools.wait_fences.ack_queues"
_EMITTED_KEY = "vmcore_tools.wait_fences.emitted"


def follow_fence_wait(chains: WaitChains, node: Node, wait: Wait) -> Iterator[Edge]:
    """From a task in dma_fence_wait() to the fence."""
    key = f"dma_fence {wait.object.value_():#x}"
    chains.add(Node(key, FENCE, wait.object, "dma_fence", wait))
    yield Edge(node.key, key, "waits for", wait.proven)


def follow_fence(chains: WaitChains, node: Node) -> Iterator[Edge]:
    """From a fence to the queue through which the device signals it."""
    queue = _emitted_fences(chains).get(node.object.value_())
    if queue is not None:
        yield Edge(node.key, chains.object("virtqueue", queue), "is signaled through")
        yield from _emptied_by(chains, queue)


def follow_virtqueue_wait(chains: WaitChains, node: Node, wait: Wait) -> Iterator[Edge]:
    """From a task that waits for space in a queue of virtio_gpu to the queue."""
    key = chains.object("virtqueue", wait.object)
    yield Edge(node.key, key, "waits for space in", wait.proven)
    yield from _emptied_by(chains, wait.object)


def _emptied_by(chains: WaitChains, queue: Object) -> Iterator[Edge]:
    """
    The work that takes what the device has done off a queue of virtio_gpu.

    It is queued by an interrupt: where it is neither queued nor running,
    the device has not answered.

    :param queue: ``struct virtio_gpu_queue *``
    """
    work = queue.dequeue_work.address_of_()
    pool = work_pool(work)
    if work_is_pending(work) or (pool and find_worker_executing(pool, work)):
        yield Edge(chains.object("virtqueue", queue), chains.work(work), "is emptied by")


def as_virtqueue(chains: WaitChains, wait: Wait) -> Optional[Wait]:
    """A wait on the ack_queue of a queue of virtio_gpu, as a wait for that queue."""
    if wait.kind != "wait queue":
        return None
    queue = _ack_queues(chains).get(wait.object.value_())
    if queue is None:
        return None
    return Wait("virtqueue", queue, "it is on the queue's ack_queue", wait.proven)


def _ack_queues(chains: WaitChains) -> Dict[int, Object]:
    """The queues of virtio_gpu devices, by their wait queue's address."""

    def queues(prog: Program) -> Iterator[Tuple[int, Object]]:
        for device in for_each_virtio_gpu_device(prog):
            for queue in (device.ctrlq, device.cursorq):
                pointer = queue.address_of_()
                yield pointer.ack_queue.address_of_().value_(), pointer

    return _found(chains, _ACK_QUEUES_KEY, "virtqueue", queues)


def _emitted_fences(chains: WaitChains) -> Dict[int, Object]:
    """The control queues of virtio_gpu devices, by the fences that they will signal."""

    def fences(prog: Program) -> Iterator[Tuple[int, Object]]:
        for device in for_each_virtio_gpu_device(prog):
            for fence in for_each_emitted_fence(device):
                yield fence.f.address_of_().value_(), device.ctrlq.address_of_()

    return _found(chains, _EMITTED_KEY, "emitted fence", fences)


def _found(
    chains: WaitChains,
    key: str,
    what: str,
    find: Callable[[Program], Iterator[Tuple[int, Object]]],
) -> Dict[int, Object]:
    """What devices have, looked for once."""
    if key not in chains.found:
        found: Dict[int, Object] = {}
        try:
            found.update(find(chains.prog))
        except LookupError:
            pass  # no such driver, or none of its debug info
        except (FaultError, ValidationError) as error:
            chains.lost(what, error, 0)
        chains.found[key] = found
    return chains.found[key]
