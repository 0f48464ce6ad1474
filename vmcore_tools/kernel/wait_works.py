# SPDX-License-Identifier: LGPL-2.1-or-later
"""From works, workqueues and pools to who does the works: a part of the wait-for graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator, Optional, Tuple

from drgn import Object
from drgn.helpers.linux.list import list_empty
from drgn.helpers.linux.sched import task_on_cpu

from vmcore_tools.kernel.task import is_queued
from vmcore_tools.kernel.wait_graph import Edge
from vmcore_tools.kernel.wait_nodes import (
    LEFT_TO,
    OBJECT,
    PENDING_IN,
    RUN_BY,
    WOKEN,
    WORKQUEUE,
    Node,
)
from vmcore_tools.kernel.waits import Wait
from vmcore_tools.kernel.workqueue import (
    barrier_target,
    find_worker_executing,
    for_each_flushed_pwq,
    for_each_inactive_work,
    for_each_pending_work,
    for_each_pwq_limited_with,
    for_each_scheduled_work,
    for_each_worker,
    is_mayday,
    is_stopped,
    only_color_in_flight,
    pool_is_bh,
    pool_is_managed,
    pool_nr_running,
    work_color,
    work_pool,
    work_pwq,
    worker_color,
    worker_is_idle,
)

if TYPE_CHECKING:
    from vmcore_tools.kernel.wait_chain import WaitChains


def follow_flush_workqueue(chains: WaitChains, node: Node, wait: Wait) -> Iterator[Edge]:
    """From a task in flush_workqueue() to the workqueue."""
    key = f"workqueue {wait.object.value_():#x}"
    chains.add(Node(key, WORKQUEUE, wait.object, "workqueue", wait))
    yield Edge(node.key, key, "flushes", wait.proven)


def follow_flush_work(chains: WaitChains, node: Node, wait: Wait) -> Iterator[Edge]:
    target = barrier_target(wait.object)
    if target is None or not (target.work or target.worker):
        key = chains.object("flush_work barrier", wait.object)
        yield Edge(node.key, key, "waits for", wait.proven)
    elif target.work:
        yield Edge(node.key, chains.work(target.work), "flushes", wait.proven)
    else:
        # The work has ended, and the worker is on its way to the barrier.
        yield Edge(node.key, chains.task(target.worker.task), "waits for the barrier of")


def follow_work(chains: WaitChains, node: Node) -> Iterator[Edge]:
    work = node.object
    pwq, pool = work_pwq(work), work_pool(work)
    if not pool:
        return
    if not pwq:
        worker = find_worker_executing(pool, work)
        if worker:
            yield Edge(node.key, chains.task(worker.task), RUN_BY)
        return
    if any(inactive == work for inactive in for_each_inactive_work(pwq)):
        # max_active: one of those that are active must end first.
        key = f"pwq {pwq.value_():#x}"
        chains.add(Node(key, OBJECT, pwq, "active works of the workqueue"), any_of=True)
        yield Edge(node.key, key, "is kept back by max_active of")
        if is_stopped(pwq):
            return  # whoever may have been active would change nothing
        for limited in for_each_pwq_limited_with(pwq):
            for edge in _active(chains, key, limited):
                chains.graph.add_edge(edge)
        return
    for worker in for_each_worker(pool):
        if _is_scheduled(worker, work):
            yield Edge(node.key, chains.task(worker.task), "is next of")
            return
    worker = find_worker_executing(pool, work)
    if worker:
        # It was queued again while it runs: both must end.
        yield Edge(node.key, chains.task(worker.task), RUN_BY)
    yield Edge(node.key, chains.pool(pool), PENDING_IN)


def _is_scheduled(worker: Object, work: Object) -> bool:
    return any(scheduled == work for scheduled in for_each_scheduled_work(worker))


def _active(chains: WaitChains, key: str, pwq: Object) -> Iterator[Edge]:
    """Who must act so that an active work of a pool_workqueue ends."""
    pool = pwq.pool.read_()
    for worker in for_each_worker(pool):
        if worker.current_pwq == pwq and worker.current_work:
            yield Edge(key, chains.task(worker.task), RUN_BY)
    for work in for_each_pending_work(pool):
        if work_pwq(work) == pwq:
            yield Edge(key, chains.pool(pool), PENDING_IN)
            return


def follow_workqueue(chains: WaitChains, node: Node) -> Iterator[Edge]:
    """The works of the flushed color: flush_workqueue() waits for no later ones."""
    for pwq in for_each_flushed_pwq(node.object):
        color, pool = int(pwq.flush_color.value_()), pwq.pool.read_()
        alone = only_color_in_flight(pwq, color)
        for worker in for_each_worker(pool):
            if worker.current_pwq == pwq and worker.current_work:
                running = worker_color(worker)
                if running is None or running == color:
                    sure = alone or running is not None
                    yield Edge(node.key, chains.task(worker.task), RUN_BY, sure)
        for work in for_each_pending_work(pool):
            if work_pwq(work) == pwq and work_color(work) == color:
                yield Edge(node.key, chains.pool(pool), PENDING_IN)
                break


def follow_pool(chains: WaitChains, node: Node) -> Iterator[Edge]:
    """
    Which of a pool's workers would go on with its works.

    Mirrors what ``worker_thread()`` and ``wq_worker_sleeping()`` rely on:
    a woken worker takes the first work; while another one runs, none is
    woken; where all sleep in their works, one is created.
    """
    pool = node.object
    if pool_is_bh(pool):
        yield Edge(node.key, chains.cpu(pool.cpu.value_()), "runs in the softirqs of")
        return
    workers = [worker for worker in for_each_worker(pool) if worker.task]
    idle = [worker for worker in workers if worker_is_idle(worker)]
    woken = [worker for worker in idle if is_queued(worker.task)]
    for worker in woken:
        yield Edge(node.key, chains.task(worker.task), WOKEN)
    if woken:
        return
    busy = [worker for worker in workers if not worker_is_idle(worker)]
    if pool_nr_running(pool) > 0:
        running = [worker for worker in busy if is_queued(worker.task)]
        for worker in running:
            yield Edge(node.key, chains.task(worker.task), LEFT_TO)
        if running:
            return
    if idle:
        return  # one of them ought to have been woken
    for worker in busy:
        yield Edge(node.key, chains.task(worker.task), "has no worker idle, and needs")
    if pool_is_managed(pool) and pool.manager:
        yield Edge(node.key, chains.task(pool.manager.task), "waits for a new worker of")
    for rescuer in _called_rescuers(pool):
        yield Edge(node.key, chains.task(rescuer), "has called for the rescuer")


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
