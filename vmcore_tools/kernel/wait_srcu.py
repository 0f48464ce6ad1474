# SPDX-License-Identifier: LGPL-2.1-or-later
"""From SRCU domains to the works that end their grace periods: a part of the wait-for graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator

from vmcore_tools.kernel.srcu import srcu_readers, srcu_works
from vmcore_tools.kernel.symbols import symbol_name
from vmcore_tools.kernel.wait_graph import Edge
from vmcore_tools.kernel.wait_nodes import DRIVEN_BY, OBJECT, Node
from vmcore_tools.kernel.waits import Wait
from vmcore_tools.kernel.workqueue import find_worker_executing, work_pool, work_pwq

if TYPE_CHECKING:
    from vmcore_tools.kernel.wait_chain import WaitChains


def follow_srcu_wait(chains: WaitChains, node: Node, wait: Wait) -> Iterator[Edge]:
    """
    From a task in synchronize_srcu() to the domain, and to its works if it has no readers.

    The kernel does not know who the readers are.
    """
    readers = srcu_readers(wait.object)
    name = symbol_name(chains.prog, wait.object.value_()) or ""
    count = "1 reader" if readers == 1 else f"{readers} readers"
    label = f"{name} with {count}".strip() if readers else name
    key = f"srcu {wait.object.value_():#x}"
    chains.add(Node(key, OBJECT, wait.object, "srcu domain", wait, label=label))
    yield Edge(node.key, key, "waits for a grace period of", wait.proven)
    for work in srcu_works(wait.object) if not readers else ():
        pool = work_pool(work)
        if work_pwq(work) or (pool and find_worker_executing(pool, work)):
            yield Edge(key, chains.work(work), DRIVEN_BY)
