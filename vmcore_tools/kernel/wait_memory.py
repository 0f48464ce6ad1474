# SPDX-License-Identifier: LGPL-2.1-or-later
"""From tasks that wait for memory to who reclaims some: a part of the wait-for graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator, Optional

from drgn import Object
from drgn.helpers.linux.sched import task_on_cpu

from vmcore_tools.kernel.memory_pressure import reclaim_queues
from vmcore_tools.kernel.task import is_queued, is_uninterruptible
from vmcore_tools.kernel.wait_graph import Edge
from vmcore_tools.kernel.wait_nodes import MEMORY, Node
from vmcore_tools.kernel.waits import Wait

if TYPE_CHECKING:
    from vmcore_tools.kernel.wait_chain import WaitChains


def as_reclaim(chains: WaitChains, wait: Wait) -> Optional[Wait]:
    """A wait on one of the queues of a node of which tasks want to reclaim pages."""
    if wait.kind != "wait queue":
        return None
    if "reclaim queues" not in chains.found:
        try:
            chains.found["reclaim queues"] = reclaim_queues(chains.prog)
        except LookupError:
            chains.found["reclaim queues"] = {}
    pgdat = chains.found["reclaim queues"].get(wait.object.value_())
    if pgdat is None:
        return None
    return Wait("reclaim", pgdat, "it is on the node's queue of throttled tasks", wait.proven)


def follow_reclaim_wait(chains: WaitChains, node: Node, wait: Wait) -> Iterator[Edge]:
    yield Edge(node.key, add_memory(chains, wait.object), "waits for free pages of", wait.proven)


def add_memory(chains: WaitChains, pgdat: Object) -> str:
    """
    :param pgdat: ``struct pglist_data *``
    """
    number = int(pgdat.node_id.value_())
    key = f"memory {number}"
    return chains.add(Node(key, MEMORY, pgdat, "memory", label=f"of node {number}"))


def follow_memory(chains: WaitChains, node: Node) -> Iterator[Edge]:
    """From a node's memory to kswapd, if that does not get to reclaim some."""
    kswapd = node.object.kswapd.read_()
    if not kswapd or task_on_cpu(kswapd):
        return
    if is_queued(kswapd) or is_uninterruptible(kswapd):
        yield Edge(node.key, chains.task(kswapd), "is reclaimed by")
