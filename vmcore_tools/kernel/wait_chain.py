# SPDX-License-Identifier: LGPL-2.1-or-later
"""
From what tasks wait for to who could end the waits: the graph of a kernel.

Nodes are tasks, locks, works, workqueues, pools, CPUs, fences, devices, RCU
grace periods and other objects that are waited for. A chain is followed as far
as the kernel's structures say who must act next; where they do not, it ends.

How each kind of wait and of node is followed is in a module of its own, and
entered in the tables at the end.
"""

from __future__ import annotations

import dataclasses
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Set, Tuple

from drgn import FaultError, Object, Program
from drgn.helpers import ValidationError
from drgn.helpers.linux.sched import task_cpu, task_on_cpu

from vmcore_tools.kernel.run_queue import RunQueue, is_throttled
from vmcore_tools.kernel.stack_frames import TaskTrace
from vmcore_tools.kernel.task import is_queued
from vmcore_tools.kernel.wait_disks import as_direct_io, as_tag
from vmcore_tools.kernel.wait_fences import follow_fence, follow_fence_wait
from vmcore_tools.kernel.wait_graph import Edge, WaitGraph
from vmcore_tools.kernel.wait_io import follow_io_wait, follow_page_wait, follow_tag_wait
from vmcore_tools.kernel.wait_locks import follow_lock, follow_lock_wait
from vmcore_tools.kernel.wait_memory import as_reclaim, follow_memory, follow_reclaim_wait
from vmcore_tools.kernel.wait_nodes import (
    CPU,
    FENCE,
    LOCK,
    MEMORY,
    OBJECT,
    POOL,
    RCU,
    TASK,
    VIRTQUEUE,
    WORK,
    WORKQUEUE,
    Node,
)
from vmcore_tools.kernel.wait_rcu import (
    as_rcu,
    follow_rcu,
    follow_rcu_wait,
    follow_state_wait,
)
from vmcore_tools.kernel.wait_srcu import follow_srcu_wait
from vmcore_tools.kernel.wait_virtqueues import (
    as_virtqueue,
    follow_virtqueue,
    follow_virtqueue_wait,
)
from vmcore_tools.kernel.wait_works import (
    follow_flush_work,
    follow_flush_workqueue,
    follow_pool,
    follow_work,
    follow_workqueue,
)
from vmcore_tools.kernel.waits import Wait, WaitFinder


class WaitChains:
    """
    Follows the waits of tasks.

    :param tasks: all tasks that have a PID: ``struct task_struct *``
    :param run_queues: of all CPUs
    :param trace: unwinds a task's stack; None if that fails
    :param lost: is told of each object that could not be followed
    :ivar found: what the modules that follow nodes looked for once, by their keys
    :ivar without_wait: the addresses of tasks whose waits could not be read
    """

    def __init__(
        self,
        prog: Program,
        tasks: List[Object],
        run_queues: Dict[int, RunQueue],
        trace: Callable[[Object], Optional[TaskTrace]],
        lost: Callable[[str, Exception, int], None],
    ) -> None:
        self.prog = prog
        self.graph = WaitGraph()
        self.nodes: Dict[str, Node] = {}
        self.run_queues = run_queues
        self.trace = trace
        self.lost = lost
        self.found: Dict[str, Dict[int, Object]] = {}
        self.without_wait: Set[int] = set()
        self._finder = WaitFinder(prog, tasks)
        self._todo: List[str] = []

    @property
    def tasks(self) -> Dict[int, Object]:
        """All tasks that have a PID, by address: ``struct task_struct *``."""
        return self._finder.tasks

    def add_task(self, task: Object) -> str:
        """
        Follow what a task waits for, down to where nothing more is known.

        :param task: ``struct task_struct *``
        :return: the key of its node
        """
        key = self.task(task)
        self.follow()
        return key

    def follow(self) -> None:
        """Follow the nodes that were added since."""
        while self._todo:
            node = self.nodes[self._todo.pop()]
            try:
                for edge in self._edges_of(node):
                    self.graph.add_edge(edge)
            except (FaultError, ValidationError, LookupError) as error:
                self.lost(node.name or node.kind, error, node.object.value_())

    def _edges_of(self, node: Node) -> Iterator[Edge]:
        if node.kind == TASK:
            yield from self._edges_of_task(node)
        elif node.kind in FOLLOW_NODE:
            yield from FOLLOW_NODE[node.kind](self, node)

    def _edges_of_task(self, node: Node) -> Iterator[Edge]:
        if node.state == "queued":
            yield Edge(node.key, self.cpu(task_cpu(node.object)), "is queued on")
        elif node.state == "throttled":
            group = self.object("CPU quota of the cgroup", node.object.sched_task_group.read_())
            yield Edge(node.key, group, "is throttled by")
        elif node.wait is not None:
            yield from FOLLOW_WAIT.get(node.wait.kind, _follow_object_wait)(self, node, node.wait)

    # Nodes. Adding one twice changes nothing; one that is new is followed.

    def add(self, node: Node, *, any_of: bool = False) -> str:
        """
        :param any_of: any one of what it waits for would do
        :return: its key
        """
        if node.key not in self.nodes:
            self.nodes[node.key] = node
            self.graph.add_node(node.key, any_of=any_of)
            self._todo.append(node.key)
        return node.key

    def task(self, task: Object) -> str:
        """
        :param task: ``struct task_struct *``
        """
        key = f"task {task.value_():#x}"
        if key in self.nodes:
            return key
        wait = None
        try:
            if task_on_cpu(task):
                state = "running"
            elif is_queued(task):
                state = "throttled" if is_throttled(task) else "queued"
            else:
                state = "asleep"
                wait = self._wait(task)
        except (FaultError, ValidationError, LookupError) as error:
            state = "asleep"
            self.without_wait.add(task.value_())
            self.lost("wait of a task", error, task.value_())
        return self.add(Node(key, TASK, task, "task", wait, state))

    def _wait(self, task: Object) -> Optional[Wait]:
        """What a task waits for; where that is known to be of something, it is for that."""
        wait = self._finder.find(task, self.trace(task))
        if wait is None:
            return None
        for name in NAME_WAIT:
            named = name(self, wait)
            if named is not None:
                return dataclasses.replace(named, proven=named.proven and wait.proven)
        return wait

    def cpu(self, cpu: int) -> str:
        queue = self.run_queues.get(cpu)
        if queue is None:
            raise LookupError(f"CPU {cpu} has no run queue that could be read")
        return self.add(Node(f"cpu {cpu}", CPU, queue.rq, f"CPU {cpu}"))

    def work(self, work: Object) -> str:
        """
        :param work: ``struct work_struct *``
        """
        return self.add(Node(f"work {work.value_():#x}", WORK, work, "work"))

    def pool(self, pool: Object) -> str:
        """
        :param pool: ``struct worker_pool *``
        """
        return self.add(Node(f"pool {pool.value_():#x}", POOL, pool, "worker pool"), any_of=True)

    def object(self, name: str, obj: Object) -> str:
        """
        :param name: what it is, in words
        :param obj: a typed pointer
        """
        return self.add(Node(f"{name} {obj.value_():#x}", OBJECT, obj, name))


def _follow_object_wait(chains: WaitChains, node: Node, wait: Wait) -> Iterator[Edge]:
    yield Edge(node.key, chains.object(wait.kind, wait.object), "waits for", wait.proven)


def _follow_cancelled_work(chains: WaitChains, node: Node, wait: Wait) -> Iterator[Edge]:
    # Somebody else cancels it already, and waits until it has ended.
    yield Edge(node.key, chains.work(wait.object), "waits for the cancelling of", wait.proven)


def _follow_park(chains: WaitChains, node: Node, wait: Wait) -> Iterator[Edge]:
    yield Edge(node.key, chains.task(wait.object), "waits for the parking of", wait.proven)


def _follow_task_end(chains: WaitChains, node: Node, wait: Wait) -> Iterator[Edge]:
    yield Edge(node.key, chains.task(wait.object), "waits for the end of", wait.proven)


FollowWait = Callable[[WaitChains, Node, Wait], Iterator[Edge]]
FollowNode = Callable[[WaitChains, Node], Iterator[Edge]]
NameWait = Callable[[WaitChains, Wait], Optional[Wait]]

#: What a sleeping task waits for, by :attr:`Wait.kind`: edges from the task. Others are objects.
FOLLOW_WAIT: Mapping[str, FollowWait] = {
    "mutex": follow_lock_wait,
    "rt_mutex": follow_lock_wait,
    "rwsem": follow_lock_wait,
    "percpu_rwsem": follow_lock_wait,
    "semaphore": follow_lock_wait,
    "flush_work": follow_flush_work,
    "flush_workqueue": follow_flush_workqueue,
    "cancel_work": _follow_cancelled_work,
    "task end": _follow_task_end,
    "park": _follow_park,
    "srcu": follow_srcu_wait,
    "bio": follow_io_wait,
    "request": follow_io_wait,
    "buffer": follow_io_wait,
    "page": follow_page_wait,
    "tag": follow_tag_wait,
    "dma_fence": follow_fence_wait,
    "virtqueue": follow_virtqueue_wait,
    "rcu": follow_rcu_wait,
    "reclaim": follow_reclaim_wait,
    "rcu barrier": follow_state_wait,
    "rcu expedited": follow_state_wait,
    "rcu kthread": follow_state_wait,
}
#: What nodes wait for, by :attr:`Node.kind`: edges from the node. At others chains end.
FOLLOW_NODE: Mapping[str, FollowNode] = {
    LOCK: follow_lock,
    WORK: follow_work,
    WORKQUEUE: follow_workqueue,
    POOL: follow_pool,
    FENCE: follow_fence,
    VIRTQUEUE: follow_virtqueue,
    RCU: follow_rcu,
    MEMORY: follow_memory,
}
#: What plain wait queues and completions are known to be of.
NAME_WAIT: Tuple[NameWait, ...] = (as_virtqueue, as_direct_io, as_tag, as_rcu, as_reclaim)
