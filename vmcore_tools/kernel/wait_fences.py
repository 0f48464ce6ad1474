# SPDX-License-Identifier: LGPL-2.1-or-later
"""From fences to who would signal them: a part of the graph of who waits for whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Iterator, Optional, Set

from drgn import FaultError, Object, container_of
from drgn.helpers import ValidationError

from vmcore_tools.kernel.sw_sync import OPS as SW_SYNC_OPS
from vmcore_tools.kernel.sw_sync import timeline_of
from vmcore_tools.kernel.symbols import symbol_name
from vmcore_tools.kernel.virtio_gpu import (
    commands,
    fence_id,
    for_each_emitted_fence,
    for_each_virtio_gpu_device,
)
from vmcore_tools.kernel.wait_graph import Edge
from vmcore_tools.kernel.wait_nodes import FENCE, OBJECT, Node
from vmcore_tools.kernel.wait_virtqueues import is_being_emptied, virtqueue
from vmcore_tools.kernel.waits import Wait

if TYPE_CHECKING:
    from vmcore_tools.kernel.wait_chain import WaitChains

#: What such a node is; its label is the comm of a process.
SW_SYNC_TIMELINE = "sw_sync timeline"
_QUEUES_KEY = "vmcore_tools.wait_fences.queues"
#: Fences in an array; a damaged count must end.
_FENCES_MAX = 65536


def follow_fence_wait(chains: WaitChains, node: Node, wait: Wait) -> Iterator[Edge]:
    """From a task in dma_fence_wait() to the fence."""
    yield Edge(node.key, fence_node(chains, wait.object), "waits for", wait.proven)


def fence_node(chains: WaitChains, fence: Object) -> str:
    """
    The node of a fence.

    :param fence: ``struct dma_fence *``
    """
    return chains.add(Node(f"dma_fence {fence.value_():#x}", FENCE, fence, fence_ops(fence)))


def is_signaled(fence: Object) -> bool:
    """
    Whether a fence has signaled.

    :param fence: ``struct dma_fence *``
    """
    bit = fence.prog_.constant("DMA_FENCE_FLAG_SIGNALED_BIT").value_()
    return bool(fence.flags.value_() >> bit & 1)


def fence_ops(fence: Object) -> str:
    """
    The name of a fence's operations table, which tells its driver.

    :param fence: ``struct dma_fence *``
    :return: empty if it has none, or one without a name
    """
    return symbol_name(fence.prog_, fence.ops.value_()) or ""


def follow_fence(chains: WaitChains, node: Node) -> Iterator[Edge]:
    """From a fence to what signals it. Of an unknown driver the chain ends here."""
    fence = node.object
    if is_signaled(fence):
        return
    queue = _queues(chains).get(fence.value_())
    if queue is not None:
        yield Edge(node.key, virtqueue(chains, queue), "is signaled through")
        return
    name = fence_ops(fence)
    if name == "dma_fence_array_ops":
        yield from _follow_array(chains, node)
    elif name == "dma_fence_chain_ops":
        yield from _follow_chain(chains, node)
    elif name == "drm_sched_fence_ops_finished":
        finished = container_of(fence, "struct drm_sched_fence", "finished")
        # NULL until the hardware has the job.
        if finished.parent:
            yield Edge(node.key, fence_node(chains, finished.parent.read_()), "is signaled by")
    elif name == SW_SYNC_OPS:
        timeline = timeline_of(fence)
        key = f"{SW_SYNC_TIMELINE} {timeline.value_():#x}"
        # It is called as the process that made it; user space advances it.
        name = timeline.name.string_().decode(errors="backslashreplace")
        chains.add(Node(key, OBJECT, timeline, SW_SYNC_TIMELINE, label=name))
        yield Edge(node.key, key, "is a point of")


def _follow_array(chains: WaitChains, node: Node) -> Iterator[Edge]:
    array = container_of(node.object, "struct dma_fence_array", "base")
    count = int(array.num_fences.value_())
    if count > _FENCES_MAX:
        raise ValidationError(f"a fence array has {count} fences")
    members = [array.fences[i].read_() for i in range(count)]
    left = [fence for fence in members if not is_signaled(fence)]
    # With signal_on_any of dma_fence_array_create() one of them is enough.
    if 0 < array.num_pending.counter.value_() < len(left):
        chains.graph.add_node(node.key, any_of=True)
    for fence in left:
        yield Edge(node.key, fence_node(chains, fence), "needs")


def _follow_chain(chains: WaitChains, node: Node) -> Iterator[Edge]:
    """Mirrors ``dma_fence_chain_signaled()``: all links before must be done."""
    link = container_of(node.object, "struct dma_fence_chain", "base")
    for fence, why in ((link.fence.read_(), "needs"), (link.prev.read_(), "comes after")):
        if fence and not is_signaled(fence):
            yield Edge(node.key, fence_node(chains, fence), why)


def _queues(chains: WaitChains) -> Dict[int, Object]:
    """
    The queues of virtio_gpu devices, by the fences that come through them.

    These are the fences whose command is in the queue; while the answers are
    being read, all that have not signaled. Of another nobody would signal it.
    """
    if _QUEUES_KEY in chains.found:
        return chains.found[_QUEUES_KEY]
    found = chains.found[_QUEUES_KEY] = {}
    try:
        for device in for_each_virtio_gpu_device(chains.prog):
            queue = device.ctrlq.address_of_()
            known = None if is_being_emptied(queue) else _fence_ids(chains, queue)
            for fence in for_each_emitted_fence(device):
                if known is None or fence_id(fence) in known:
                    found[fence.f.address_of_().value_()] = queue
    except LookupError:
        pass  # no such driver, or none of its debug info
    except (FaultError, ValidationError) as error:
        chains.lost("emitted fence", error, 0)
    return found


def _fence_ids(chains: WaitChains, queue: Object) -> Optional[Set[int]]:
    """The fences of the commands in a queue; None if these cannot be told."""
    try:
        found = commands(queue)
    except (FaultError, ValidationError, LookupError) as error:
        chains.lost("command in a virtqueue", error, queue.value_())
        return None
    every = (*found.with_device, *found.answered)
    return {command.fence_id for command in every if command.fence_id is not None}
