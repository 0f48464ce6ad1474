# SPDX-License-Identifier: LGPL-2.1-or-later
"""A CPU that one task keeps to itself (VT311)."""

from __future__ import annotations

import dataclasses
from typing import Dict, Iterator, List, Optional, Tuple

from drgn import FaultError, Object
from drgn.helpers import ValidationError
from drgn.helpers.linux.sched import task_cpu

from vmcore_tools.kernel.cpu_state import (
    in_kernel,
    interrupts_off,
    pending_calls,
    pending_stops,
)
from vmcore_tools.kernel.run_queue import (
    QueuedTask,
    RunQueue,
    current_ran_anywhere_ns,
    current_ran_ns,
    fair_server_runtime_ns,
    is_of_low_weight,
    is_realtime,
    need_resched,
    rt_throttling_off,
    scheduling_policy,
    since_run_ns,
)
from vmcore_tools.kernel.symbols import symbol_name
from vmcore_tools.kernel.task import task_comm
from vmcore_tools.kernel.wait_graph import Edge, Root
from vmcore_tools.kernel.wait_nodes import CPU
from vmcore_tools.kernel.wait_works import held_up_workers, pool_cpu
from vmcore_tools.kernel.workqueue import (
    for_each_worker,
    for_each_worker_pool,
    pool_without_progress_ns,
    worker_is_idle,
    worker_of,
)
from vmcore_tools.model import Confidence, Evidence, Finding, Kind, Rule, Severity
from vmcore_tools.wait_findings.view import Cause, WaitView, maybe

#: No kernel that runs goes so long without a tick, while tasks wait for the CPU.
_TICKS_MISSED_NS = 2_000_000_000
#: The stopper runs for no longer; a time between two events that differs by less is one.
_BREAK_NS = 100_000_000

CPU_MONOPOLISED = Rule(
    id="VT311",
    slug="cpu-monopolised",
    severity=Severity.ERROR,
    ranked_with="VT310",
    summary="A CPU runs one task, or real-time tasks, while others have waited for it too long.",
    remedy=(
        "Stop the task, or give it another policy or CPU; leave real-time throttling on "
        "(kernel.sched_rt_runtime_us). A task in the kernel must call cond_resched()."
    ),
    page="""\
`waited_ns` is how long somebody has certainly waited for the CPU: from
sched_info, or from a pool of per-CPU works whose woken worker has not run since
the first work was queued. `held_ns` is how much of that the task itself has
certainly run; only if that alone is too long, the task is `proven` to be the
cause. It is `likely` if no other task that was last on the CPU has run since,
except the CPU's stopper; if the task has run for that long, but perhaps on
another CPU first; or if the CPU missed its ticks with interrupts on, as one
does that the host does not run. Else the task may just have preempted the one to blame:
then the CPU is the subject, and the finding is `suspected`.

Without either source (CONFIG_SCHED_INFO is off, and no work is pending) there
is only `at_most_ns`, the time since any task on the queue last ran, and the
finding is `suspected`. That tasks of SCHED_IDLE or a positive nice value wait
for others of the fair class is no finding.""",
)


@dataclasses.dataclass(frozen=True)
class _Held:
    """
    A CPU that tasks wait for.

    :ivar waiting: who waits for it: not those who do so by right
    :ivar longest: the one that has waited for ``at_least_ns``
    :ivar ran_ns: how long of that the current task has certainly run
    :ivar moved: whether it has run for too long, but perhaps on another CPU first
    :ivar others: whether other tasks may have run in that time
    """

    queue: RunQueue
    waiting: Tuple[QueuedTask, ...]
    longest: Optional[Object]
    at_least_ns: Optional[int]
    at_most_ns: Optional[int]
    ran_ns: int
    moved: bool
    others: bool


class CpuMonopolised(Cause):
    rules = (CPU_MONOPOLISED,)

    def __init__(self, view: WaitView) -> None:
        super().__init__(view)
        self._held: Dict[int, _Held] = {}

    def prepare(self) -> None:
        self._held = self._held_cpus()
        for cpu, held in self._held.items():
            # Who waits for the task that it runs waits behind the same cause.
            key = f"task {held.queue.current.value_():#x}"
            if key in self.view.chains.nodes and self.view.node(key).state == "running":
                self.view.graph.add_edge(Edge(key, self.view.chains.cpu(cpu), "keeps"))

    def finding(self, root: Root) -> Optional[Finding]:
        node = self.view.chains.nodes[root.nodes[0]]
        held = self._held.get(node.cpu) if node.kind == CPU else None
        return None if held is None else self._monopolised(root, held)

    def _held_cpus(self) -> Dict[int, _Held]:
        """The CPUs that somebody has waited for too long; those who wait become victims."""
        waits: Dict[int, List[Tuple[int, Object]]] = {}
        for cpu, queue in self.view.queues.items():
            waits[cpu] = [
                (waiting.wait_ns, waiting.task)
                for waiting in _rightly_waiting(queue)
                if waiting.wait_ns is not None
            ]
        try:
            for pool in for_each_worker_pool(self.view.prog):
                pool_of = pool_cpu(pool)
                stalled_ns = pool_without_progress_ns(pool)
                if pool_of not in waits or stalled_ns is None:
                    continue
                stalled_ns -= self.view.since_panic_ns
                woken = held_up_workers(pool)
                # Did a worker have a work of it, the woken one may be woken since.
                if woken and all(map(worker_is_idle, for_each_worker(pool))):
                    waits[pool_of].append((stalled_ns, woken[0].task.read_()))
        except (FaultError, ValidationError, LookupError) as error:
            self.view.ctx.coverage.gap("worker pool", f"it cannot be read: {error}")
        held = {}
        for cpu, queue in self.view.queues.items():
            longest = max(waits[cpu], default=None, key=lambda wait: wait[0])
            found = self._held_cpu(queue, *(longest or (None, None)))
            if found is not None:
                held[cpu] = found
        return held

    def _held_cpu(
        self, queue: RunQueue, least: Optional[int], longest: Optional[Object]
    ) -> Optional[_Held]:
        waiting = _rightly_waiting(queue)
        if queue.idle or not waiting:
            return None
        most: Optional[int] = min(task.since_run_ns or self.view.now_ns for task in waiting)
        window_ns = (most or 0) if least is None else least
        if window_ns < self.view.cpu_threshold_ns:
            return None
        ran_ns = current_ran_ns(queue, window_ns, self.view.now_ns)
        short = ran_ns < self.view.cpu_threshold_ns
        anywhere_ns = current_ran_anywhere_ns(queue, window_ns, self.view.now_ns) if short else 0
        moved = anywhere_ns >= self.view.cpu_threshold_ns
        others = short and not moved and self._others_ran(queue, window_ns)
        if least is None:
            # As far as is known: it cannot have run longer than all its life.
            runtime_ns = int(queue.current.se.sum_exec_runtime.value_())
            if others or runtime_ns < self.view.cpu_threshold_ns:
                return None
        elif any(task.wait_ns is not None for task in waiting):
            most = None
        for queued in waiting:
            key = self.view.chains.add_task(queued.task)
            self.view.waits.setdefault(key, queued.wait_ns or 0)
        return _Held(queue, waiting, longest, least, most, ran_ns, moved, others)

    def _others_ran(self, queue: RunQueue, window_ns: int) -> bool:
        """Whether a task other than the current one may have kept a CPU."""
        harmless = (queue.current.value_(), queue.rq.stop.value_(), queue.rq.idle.value_())
        for task in self.view.tasks:
            try:
                if task_cpu(task) != queue.cpu or task.value_() in harmless:
                    continue
                since_ns = since_run_ns(task, queue.rq, self.view.now_ns)
                if since_ns is not None and since_ns < window_ns:
                    return True
            except FaultError:
                return True  # it may have
        return False

    def _monopolised(self, root: Root, held: _Held) -> Finding:
        queue = held.queue
        task = queue.current
        certain = held.at_least_ns is not None
        own = held.ran_ns >= self.view.cpu_threshold_ns
        if certain and held.others:
            return self._not_run(root, held)
        time = "for {held_ns}" if own else "as it seems for {waited_ns}"
        message = "CPU {cpu} has been kept by {comm} ({pid}), {policy}, " + (
            time if certain else "for at most {at_most_ns}"
        )
        if certain and own and self._stopper_ran(held):
            message += " (its last break, for the CPU's stopper, was {since_switch_ns} ago)"
        message += f"; {self.view.waiting(root, 'for it')}{self.view.in_function(root)}"
        evidence = [
            *self._kept(held),
            Evidence("held_ns", Kind.DURATION, maybe(held.ran_ns if certain and own else None)),
            *self.view.victims(root),
        ]
        if not certain:
            evidence.append(Evidence("at_most_ns", Kind.DURATION, maybe(held.at_most_ns)))
        unread: Tuple[str, ...] = ()
        confidence = Confidence.PROVEN
        if not certain:
            confidence = Confidence.SUSPECTED
            unread = ("when they were woken, and when the CPU was last idle",)
        elif held.moved:
            confidence = Confidence.LIKELY
            unread = ("since when the task has been on this CPU",)
        elif not own:
            confidence = Confidence.LIKELY
            unread = ("tasks that ran on the CPU in that time and have ended or moved since",)
        elif misses_ticks(self.view, queue):
            confidence = Confidence.LIKELY
            unread = ("whether the host ran the CPU",)
        kind = "real-time" if is_realtime(task) else "fair"
        # A loop in the kernel is what it is, whoever waits for the CPU.
        spins = bool(in_kernel(task))
        keeper = [self.view.chains.add_task(task)] if spins else []
        return Finding(
            rule=CPU_MONOPOLISED,
            confidence=confidence,
            message=message + ".",
            subject=self.view.task_ref(task),
            evidence=tuple(evidence),
            signature_key=(
                *("cpu-monopolised", kind),
                *self.view.callers(keeper or root.victims[:1]),
            ),
            related=self.view.related(root),
            stacks=self.view.stack_ids([*keeper, *root.victims], running=spins),
            unread=unread,
            graph=self.view.drawn(root),
        )

    def _stopper_ran(self, held: _Held) -> bool:
        """
        Whether a CPU's current task let in but the stopper, since it has kept the CPU.

        The soft lockup detector has it run every few seconds.
        """
        queue = held.queue
        stopper = queue.rq.stop.read_()
        since_ns = queue.current_ns
        if not stopper or since_ns is None or held.ran_ns - since_ns < _BREAK_NS:
            return False
        stopped_ns = since_run_ns(stopper, queue.rq, self.view.now_ns)
        return stopped_ns is not None and 0 <= stopped_ns - since_ns < _BREAK_NS

    def _kept(self, held: _Held) -> Iterator[Evidence]:
        yield from cpu_evidence(self.view, held.queue)
        yield Evidence("waited_ns", Kind.DURATION, maybe(held.at_least_ns))

    def _not_run(self, root: Root, held: _Held) -> Finding:
        """The CPU does not get to its tasks, and who kept it is not known."""
        longest = held.longest
        assert longest is not None
        comm, pid = task_comm(longest), int(longest.pid.value_())
        message = "CPU {cpu} has not run {not_run} ({not_run_pid}) for {waited_ns}"
        evidence = [
            *self._kept(held),
            Evidence("not_run", Kind.SENSITIVE, comm),
            Evidence("not_run_pid", Kind.PID, pid),
            *self.view.victims(root),
        ]
        above = _above(held.queue, longest, held.at_least_ns or 0)
        if above is not None:
            message += "; before it goes {before} ({before_pid}), which has run in that time"
            evidence.append(Evidence("before", Kind.SENSITIVE, task_comm(above)))
            evidence.append(Evidence("before_pid", Kind.PID, int(above.pid.value_())))
        return Finding(
            rule=CPU_MONOPOLISED,
            confidence=Confidence.SUSPECTED,
            message=message + "; the CPU runs {comm} ({pid}), {policy}, perhaps only since now.",
            subject=self.view.ref(self.view.chains.nodes[root.nodes[0]]),
            evidence=tuple(evidence),
            signature_key=("cpu-not-run", *self.view.callers(root.victims[:1])),
            related=self.view.related(root),
            stacks=self.view.stack_ids(root.victims),
            unread=("which tasks the CPU ran in that time",),
            graph=self.view.drawn(root),
        )


def misses_ticks(view: WaitView, queue: RunQueue) -> bool:
    """Whether a CPU sees no time pass though its interrupts are on: perhaps it does not run."""
    behind_ns = view.now_ns - int(queue.rq.clock.value_())
    return behind_ns >= _TICKS_MISSED_NS and interrupts_off(queue.current) is False


def cpu_evidence(view: WaitView, queue: RunQueue) -> Iterator[Evidence]:
    """What a CPU runs, and what keeps it from other things."""
    prog, task = view.prog, queue.current
    yield Evidence("cpu", Kind.NUMBER, queue.cpu)
    yield Evidence("comm", Kind.SENSITIVE, task_comm(task))
    yield Evidence("pid", Kind.PID, int(task.pid.value_()))
    yield Evidence("policy", Kind.TEXT, scheduling_policy(task))
    yield Evidence("rt_priority", Kind.NUMBER, int(task.rt_priority.value_()))
    yield Evidence("rt_throttling_off", Kind.TEXT, maybe(rt_throttling_off(prog)))
    server_ns = fair_server_runtime_ns(queue)
    if server_ns is not None:
        yield Evidence("fair_server_ns", Kind.DURATION, server_ns)
    yield Evidence("need_resched", Kind.TEXT, maybe(need_resched(queue)))
    yield Evidence("since_switch_ns", Kind.DURATION, maybe(queue.current_ns))
    yield Evidence("queued", Kind.COUNT, len(queue.queued))
    yield Evidence("in_kernel", Kind.TEXT, maybe(in_kernel(task)))
    # Off they also are in an interrupt; for longer, and the CPU does not see time pass.
    yield Evidence("interrupts_off", Kind.TEXT, maybe(interrupts_off(task)))
    behind_ns = view.now_ns - int(queue.rq.clock.value_())
    yield Evidence("clock_behind_ns", Kind.DURATION, behind_ns)
    try:
        calls, stops = pending_calls(prog, queue.cpu), pending_stops(prog, queue.cpu)
    except (FaultError, ValidationError) as error:
        view.ctx.coverage.gap("call of another CPU", f"the list cannot be read: {error}")
        return
    if calls:
        yield Evidence("pending_calls", Kind.TEXT, tuple(calls))
    if stops:
        yield Evidence("pending_stops", Kind.TEXT, tuple(stops))
    worker = worker_of(task)
    if worker and worker.current_work:
        function = symbol_name(prog, worker.current_func.value_())
        yield Evidence("work", Kind.TEXT, function or "of a function without a name")


def _rightly_waiting(queue: RunQueue) -> Tuple[QueuedTask, ...]:
    """The queued tasks but those that ordinary load of the fair class keeps waiting."""
    if is_realtime(queue.current):
        return queue.queued
    return tuple(queued for queued in queue.queued if not is_of_low_weight(queued.task))


def _above(queue: RunQueue, task: Object, window_ns: int) -> Optional[Object]:
    """The queued real-time task that ran last, while another task waited."""
    if is_realtime(task):
        return None
    ran = [
        (queued.since_run_ns, queued.task)
        for queued in queue.queued
        if is_realtime(queued.task)
        and queued.since_run_ns is not None
        and queued.since_run_ns < window_ns
    ]
    return min(ran, key=lambda since: since[0])[1] if ran else None
