# SPDX-License-Identifier: LGPL-2.1-or-later
"""From locks to who has them: a part of the wait-for graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator, Optional

from drgn import Object

from vmcore_tools.kernel.locks import (
    Holder,
    mutex_holder,
    next_owner,
    rt_mutex_holder,
    rwsem_holder,
    rwsem_readers_behind_writers,
    semaphore_holder,
)
from vmcore_tools.kernel.percpu_rwsem import percpu_rwsem_writer
from vmcore_tools.kernel.task import is_uninterruptible
from vmcore_tools.kernel.wait_graph import Edge
from vmcore_tools.kernel.wait_nodes import HELD_BY, LOCK, QUEUED_BEHIND, READ_BY, Node
from vmcore_tools.kernel.waits import Wait

if TYPE_CHECKING:
    from vmcore_tools.kernel.wait_chain import WaitChains


def follow_lock_wait(chains: WaitChains, node: Node, wait: Wait) -> Iterator[Edge]:
    """From a task on a lock's list of waiters to the lock, and to the writer before it."""
    key = f"{wait.kind} {wait.object.value_():#x}"
    chains.add(Node(key, LOCK, wait.object, wait.kind, wait))
    yield Edge(node.key, key, "waits for", wait.proven)
    writer = _writer_before(chains, node.object, wait)
    if writer is not None:
        yield Edge(node.key, chains.task(writer), QUEUED_BEHIND)


def _writer_before(chains: WaitChains, task: Object, wait: Wait) -> Optional[Object]:
    """The writer that waits for the readers of a lock and keeps others out meanwhile."""
    if wait.kind == "percpu_rwsem":
        writer = percpu_rwsem_writer(wait.object)
        known = writer is not None and writer.value_() in chains.tasks and writer != task
        return writer if known else None
    if wait.kind != "rwsem":
        return None
    key = f"vmcore_tools.wait_locks.writers {wait.object.value_():#x}"
    if key not in chains.found:
        chains.found[key] = {
            reader.value_(): writer for reader, writer in rwsem_readers_behind_writers(wait.object)
        }
    return chains.found[key].get(task.value_())


def follow_lock(chains: WaitChains, node: Node) -> Iterator[Edge]:
    """From a lock to the task that has it, or that was woken to take it."""
    woken = next_owner(node.name, node.object)
    if woken is not None:
        key = chains.task(woken)
        # While it sleeps on, its wake-up may be lost.
        if chains.nodes[key].state != "asleep":
            yield Edge(node.key, key, "is to be taken by")
    holder = _holder(chains, node)
    if holder is not None and (holder.certain or _may_have(chains, holder.task, node)):
        why = HELD_BY if holder.certain else READ_BY
        yield Edge(node.key, chains.task(holder.task), why, holder.certain)


def _may_have(chains: WaitChains, task: Object, node: Node) -> bool:
    """
    Whether the last reader of a lock may still have it.

    It has let go if it waits for the lock again: nobody may take it twice. And
    who sleeps where any signal ends it is on its way through no such section:
    it has most likely left that long ago.
    """
    last = chains.nodes[chains.task(task)]
    if last.state != "asleep":
        return True
    again = last.wait is not None and last.wait.object.value_() == node.object.value_()
    return not again and is_uninterruptible(task)


def _holder(chains: WaitChains, node: Node) -> Optional[Holder]:
    tasks = chains.tasks
    if node.name == "mutex":
        holder = mutex_holder(node.object)
        return holder if holder is not None and holder.task.value_() in tasks else None
    if node.name == "rt_mutex":
        return rt_mutex_holder(node.object, tasks)
    if node.name == "rwsem":
        return rwsem_holder(node.object, tasks)
    if node.name == "semaphore":
        return semaphore_holder(node.object, tasks)
    return None
