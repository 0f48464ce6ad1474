# SPDX-License-Identifier: LGPL-2.1-or-later
"""
From what tasks wait for to who could end the waits: the graph of a kernel.

Nodes are tasks, locks, works, workqueues, pools, CPUs, and other objects that
are waited for. A chain is followed as far as the kernel's structures say who
must act next; where they do not, it ends.
"""

from __future__ import annotations

import dataclasses
from typing import Callable, Dict, Iterator, List, Optional, Tuple

from drgn import FaultError, Object, Program, StackTrace
from drgn.helpers import ValidationError
from drgn.helpers.linux.list import list_empty
from drgn.helpers.linux.sched import task_cpu, task_on_cpu

from vmcore_tools.kernel.locks import (
    Holder,
    mutex_holder,
    rt_mutex_holder,
    rwsem_holder,
    semaphore_holder,
)
from vmcore_tools.kernel.run_queue import RunQueue, is_throttled
from vmcore_tools.kernel.task import is_queued
from vmcore_tools.kernel.virtio_gpu import for_each_emitted_fence, for_each_virtio_gpu_device
from vmcore_tools.kernel.wait_graph import Edge, WaitGraph
from vmcore_tools.kernel.waits import Wait, WaitFinder
from vmcore_tools.kernel.workqueue import (
    barrier_target,
    find_worker_executing,
    for_each_flushed_pwq,
    for_each_inactive_work,
    for_each_pending_work,
    for_each_scheduled_work,
    for_each_worker,
    is_mayday,
    only_color_in_flight,
    pool_is_bh,
    pool_is_managed,
    pool_nr_running,
    work_color,
    work_is_pending,
    work_pool,
    work_pwq,
    worker_color,
    worker_is_idle,
)

#: The kinds of nodes.
TASK, LOCK, WORK, WORKQUEUE, POOL, CPU, OBJECT = (
    "task",
    "lock",
    "work",
    "workqueue",
    "pool",
    "cpu",
    "object",
)
#: How a lock and its holder, and a work and its worker, belong together.
HELD_BY = "is held by"
READ_BY = "was last taken by"
RUN_BY = "is run by"
PENDING_IN = "is pending in"
WOKEN = "has woken"

_LOCKS = ("mutex", "rt_mutex", "rwsem", "percpu_rwsem", "semaphore")


@dataclasses.dataclass(frozen=True)
class Node:
    """
    :ivar object: a typed pointer; of a CPU, its ``struct rq *``
    :ivar name: what kind of lock or object it is
    :ivar wait: what a sleeping task waits for, None if that is not known
    :ivar state: of a task: ``running``, ``queued``, ``throttled`` (by its
        cgroup's CPU quota) or ``asleep``
    """

    key: str
    kind: str
    object: Object
    name: str
    wait: Optional[Wait] = None
    state: str = ""


class WaitChains:
    """
    Follows the waits of tasks.

    :param tasks: all tasks that have a PID: ``struct task_struct *``
    :param run_queues: of all CPUs
    :param trace: unwinds a task's stack; None if that fails
    :param lost: is told of each object that could not be followed
    """

    def __init__(
        self,
        prog: Program,
        tasks: List[Object],
        run_queues: Dict[int, RunQueue],
        trace: Callable[[Object], Optional[StackTrace]],
        lost: Callable[[str, Exception, int], None],
    ) -> None:
        self.graph = WaitGraph()
        self.nodes: Dict[str, Node] = {}
        self._prog = prog
        self._finder = WaitFinder(prog, tasks)
        self._run_queues = run_queues
        self._trace = trace
        self._lost = lost
        self._todo: List[str] = []
        self._virtqueues: Optional[Dict[int, Object]] = None
        self._fences: Optional[Dict[int, Object]] = None

    def add_task(self, task: Object) -> str:
        """
        Follow what a task waits for, down to where nothing more is known.

        :param task: ``struct task_struct *``
        :return: the key of its node
        """
        key = self._task(task)
        while self._todo:
            node = self.nodes[self._todo.pop()]
            try:
                for edge in self._edges_of(node):
                    self.graph.add_edge(edge)
            except (FaultError, ValidationError, LookupError) as error:
                self._lost(node.name or node.kind, error, node.object.value_())
        return key

    def _edges_of(self, node: Node) -> Iterator[Edge]:
        if node.kind == TASK and node.state == "queued":
            cpu = task_cpu(node.object)
            yield Edge(node.key, self._cpu(cpu), "is queued on")
        elif node.kind == TASK and node.state == "throttled":
            group = self._object("CPU quota of the cgroup", node.object.sched_task_group.read_())
            yield Edge(node.key, group, "is throttled by")
        elif node.kind == TASK and node.wait is not None:
            yield from self._waited_for(node, node.wait)
        elif node.kind == LOCK:
            holder = self._holder(node)
            if holder is not None:
                why = HELD_BY if holder.certain else READ_BY
                yield Edge(node.key, self._task(holder.task), why, holder.certain)
        elif node.kind == WORK:
            yield from self._who_runs(node)
        elif node.kind == WORKQUEUE:
            yield from self._flushed(node)
        elif node.kind == POOL:
            yield from self._workers(node)

    # Nodes.

    def _add(self, node: Node, *, any_of: bool = False) -> str:
        if node.key not in self.nodes:
            self.nodes[node.key] = node
            self.graph.add_node(node.key, any_of=any_of)
            self._todo.append(node.key)
        return node.key

    def _task(self, task: Object) -> str:
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
                wait = self._named(self._finder.find(task, self._trace(task)))
        except FaultError as error:
            state = "asleep"
            self._lost("task's stack", error, task.value_())
        return self._add(Node(key, TASK, task, "task", wait, state))

    def _cpu(self, cpu: int) -> str:
        queue = self._run_queues.get(cpu)
        if queue is None:
            raise LookupError(f"CPU {cpu} has no run queue that could be read")
        return self._add(Node(f"cpu {cpu}", CPU, queue.rq, f"CPU {cpu}"))

    def _work(self, work: Object) -> str:
        return self._add(Node(f"work {work.value_():#x}", WORK, work, "work"))

    def _pool(self, pool: Object) -> str:
        return self._add(Node(f"pool {pool.value_():#x}", POOL, pool, "worker pool"), any_of=True)

    def _object(self, name: str, obj: Object) -> str:
        return self._add(Node(f"{name} {obj.value_():#x}", OBJECT, obj, name))

    # What tasks wait for.

    def _waited_for(self, node: Node, wait: Wait) -> Iterator[Edge]:
        if wait.kind in _LOCKS:
            key = f"{wait.kind} {wait.object.value_():#x}"
            self._add(Node(key, LOCK, wait.object, wait.kind, wait))
            yield Edge(node.key, key, "waits for", wait.proven)
        elif wait.kind == "flush_work":
            yield from self._flushed_work(node, wait)
        elif wait.kind == "flush_workqueue":
            key = f"workqueue {wait.object.value_():#x}"
            self._add(Node(key, WORKQUEUE, wait.object, "workqueue", wait))
            yield Edge(node.key, key, "flushes", wait.proven)
        elif wait.kind == "task end":
            yield Edge(node.key, self._task(wait.object), "waits for the end of", wait.proven)
        elif wait.kind == "virtqueue":
            key = self._object("virtqueue", wait.object)
            yield Edge(node.key, key, "waits for space in", wait.proven)
            yield from self._emptied_by(wait.object)
        else:
            key = self._object(wait.kind, wait.object)
            yield Edge(node.key, key, "waits for", wait.proven)
            if wait.kind == "dma_fence" and wait.object.value_() in self._emitted_fences():
                queue = self._emitted_fences()[wait.object.value_()]
                yield Edge(key, self._object("virtqueue", queue), "is signaled through")
                yield from self._emptied_by(queue)

    def _emptied_by(self, queue: Object) -> Iterator[Edge]:
        """
        The work that takes what the device has done off a queue of virtio_gpu.

        It is queued by an interrupt: where it is neither queued nor running,
        the device has not answered.

        :param queue: ``struct virtio_gpu_queue *``
        """
        work = queue.dequeue_work.address_of_()
        pool = work_pool(work)
        if work_is_pending(work) or (pool and find_worker_executing(pool, work)):
            yield Edge(self._object("virtqueue", queue), self._work(work), "is emptied by")

    def _named(self, wait: Optional[Wait]) -> Optional[Wait]:
        """A wait, where its wait queue is known to be of something, as a wait for that."""
        if wait is None or wait.kind != "wait queue":
            return wait
        queue = self._ack_queues().get(wait.object.value_())
        if queue is None:
            return wait
        return Wait("virtqueue", queue, "it is on the queue's ack_queue", wait.proven)

    def _ack_queues(self) -> Dict[int, Object]:
        """The queues of virtio_gpu devices, by their wait queue's address."""
        if self._virtqueues is None:
            self._virtqueues = {}
            try:
                for device in for_each_virtio_gpu_device(self._prog):
                    for queue in (device.ctrlq, device.cursorq):
                        pointer = queue.address_of_()
                        self._virtqueues[pointer.ack_queue.address_of_().value_()] = pointer
            except LookupError:
                pass  # no such driver, or none of its debug info
            except (FaultError, ValidationError) as error:
                self._lost("virtqueue", error, 0)
        return self._virtqueues

    def _emitted_fences(self) -> Dict[int, Object]:
        """The control queues of virtio_gpu devices, by the fences that they will signal."""
        if self._fences is None:
            self._fences = {}
            try:
                for device in for_each_virtio_gpu_device(self._prog):
                    for fence in for_each_emitted_fence(device):
                        self._fences[fence.f.address_of_().value_()] = device.ctrlq.address_of_()
            except LookupError:
                pass  # no such driver, or none of its debug info
            except (FaultError, ValidationError) as error:
                self._lost("emitted fence", error, 0)
        return self._fences

    def _holder(self, node: Node) -> Optional[Holder]:
        tasks = self._finder.tasks
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

    # Who does works.

    def _flushed_work(self, node: Node, wait: Wait) -> Iterator[Edge]:
        target = barrier_target(wait.object)
        if target is None or not (target.work or target.worker):
            key = self._object("flush_work barrier", wait.object)
            yield Edge(node.key, key, "waits for", wait.proven)
        elif target.work:
            yield Edge(node.key, self._work(target.work), "flushes", wait.proven)
        else:
            # The work has ended, and the worker is on its way to the barrier.
            yield Edge(node.key, self._task(target.worker.task), "waits for the barrier of")

    def _who_runs(self, node: Node) -> Iterator[Edge]:
        work = node.object
        pwq, pool = work_pwq(work), work_pool(work)
        if not pool:
            return
        if not pwq:
            worker = find_worker_executing(pool, work)
            if worker:
                yield Edge(node.key, self._task(worker.task), RUN_BY)
            return
        if any(inactive == work for inactive in for_each_inactive_work(pwq)):
            # max_active: one of those that are active must end first.
            key = f"pwq {pwq.value_():#x}"
            self._add(Node(key, OBJECT, pwq, "active works of the workqueue"), any_of=True)
            yield Edge(node.key, key, "is kept back by max_active of")
            for edge in self._active(key, pwq):
                self.graph.add_edge(edge)
            return
        for worker in for_each_worker(pool):
            if self._is_scheduled(worker, work):
                yield Edge(node.key, self._task(worker.task), "is next of")
                return
        worker = find_worker_executing(pool, work)
        if worker:
            # It was queued again while it runs: both must end.
            yield Edge(node.key, self._task(worker.task), RUN_BY)
        yield Edge(node.key, self._pool(pool), PENDING_IN)

    @staticmethod
    def _is_scheduled(worker: Object, work: Object) -> bool:
        return any(scheduled == work for scheduled in for_each_scheduled_work(worker))

    def _active(self, key: str, pwq: Object) -> Iterator[Edge]:
        """Who must act so that an active work of a pool_workqueue ends."""
        pool = pwq.pool.read_()
        for worker in for_each_worker(pool):
            if worker.current_pwq == pwq and worker.current_work:
                yield Edge(key, self._task(worker.task), RUN_BY)
        for work in for_each_pending_work(pool):
            if work_pwq(work) == pwq:
                yield Edge(key, self._pool(pool), PENDING_IN)
                return

    def _flushed(self, node: Node) -> Iterator[Edge]:
        """The works of the flushed color: flush_workqueue() waits for no later ones."""
        for pwq in for_each_flushed_pwq(node.object):
            color, pool = int(pwq.flush_color.value_()), pwq.pool.read_()
            alone = only_color_in_flight(pwq, color)
            for worker in for_each_worker(pool):
                if worker.current_pwq == pwq and worker.current_work:
                    running = worker_color(worker)
                    if running is None or running == color:
                        sure = alone or running is not None
                        yield Edge(node.key, self._task(worker.task), RUN_BY, sure)
            for work in for_each_pending_work(pool):
                if work_pwq(work) == pwq and work_color(work) == color:
                    yield Edge(node.key, self._pool(pool), PENDING_IN)
                    break

    def _workers(self, node: Node) -> Iterator[Edge]:
        """
        Which of a pool's workers would go on with its works.

        Mirrors what ``worker_thread()`` and ``wq_worker_sleeping()`` rely on:
        a woken worker takes the first work; while another one runs, none is
        woken; where all sleep in their works, one is created.
        """
        pool = node.object
        if pool_is_bh(pool):
            yield Edge(node.key, self._cpu(pool.cpu.value_()), "runs in the softirqs of")
            return
        workers = [worker for worker in for_each_worker(pool) if worker.task]
        idle = [worker for worker in workers if worker_is_idle(worker)]
        woken = [worker for worker in idle if is_queued(worker.task)]
        for worker in woken:
            yield Edge(node.key, self._task(worker.task), WOKEN)
        if woken:
            return
        busy = [worker for worker in workers if not worker_is_idle(worker)]
        if pool_nr_running(pool) > 0:
            running = [worker for worker in busy if is_queued(worker.task)]
            for worker in running:
                yield Edge(node.key, self._task(worker.task), "leaves its works to")
            if running:
                return
        if idle:
            return  # one of them ought to have been woken
        for worker in busy:
            yield Edge(node.key, self._task(worker.task), "has no worker idle, and needs")
        if pool_is_managed(pool) and pool.manager:
            yield Edge(node.key, self._task(pool.manager.task), "waits for a new worker of")
        for rescuer in self._called_rescuers(pool):
            yield Edge(node.key, self._task(rescuer), "has called for the rescuer")

    @staticmethod
    def _called_rescuers(pool: Object) -> Iterator[Object]:
        seen = set()
        for work in for_each_pending_work(pool):
            pwq = work_pwq(work)
            if pwq and pwq.value_() not in seen:
                seen.add(pwq.value_())
                rescuer = pwq.wq.rescuer
                if is_mayday(pwq) and rescuer and is_queued(rescuer.task):
                    yield rescuer.task.read_()


def pool_cpu(pool: Object) -> Optional[int]:
    """
    The CPU that a pool's workers are bound to.

    :param pool: ``struct worker_pool *``
    :return: None if they are not
    """
    cpu = int(pool.cpu.value_())
    disassociated = pool.prog_.constant("POOL_DISASSOCIATED").value_()
    return None if cpu < 0 or pool.flags.value_() & disassociated else cpu


def held_up_workers(pool: Object) -> Tuple[Object, ...]:
    """
    The workers of a pool that were woken for its works and have not run.

    :param pool: ``struct worker_pool *``
    :return: ``struct worker *`` of each
    :raises drgn.helpers.ValidationError: if the list of workers is damaged
    """
    if list_empty(pool.worklist.address_of_()):
        return ()
    return tuple(
        worker
        for worker in for_each_worker(pool)
        if worker.task
        and worker_is_idle(worker)
        and is_queued(worker.task)
        and not task_on_cpu(worker.task)
    )
