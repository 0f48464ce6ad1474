# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Why tasks are stuck, and who is to blame: the graph of who waits for whom.

It starts from each task in uninterruptible sleep and follows what it waits
for: a lock to its holder, flush_work() to the work, its pool and the worker
that would run it, a task that can run to its CPU. What stands at the end is
the cause: a CPU that one task keeps to itself (VT311), a work that does not
end or a pool in which nothing runs (VT312), the holder of a lock that sleeps
in something else (VT313); or the chain ends in itself, a deadlock (VT310).
The cause behind which the most tasks wait comes first.

A wait is believed only if the kernel's own lists show it (the task is on the
lock's list of waiters), and a cause is reported only if somebody has waited
behind it for --threshold-seconds: by default the kernel's own
kernel.hung_task_timeout_secs. Tasks whose wait could not be told, or of whose
wait the kernel does not say who ends it, are in the table with their stack.

It does not know who completes a plain completion or wakes a wait queue, nor
what a device is doing.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import Any, Deque, Dict, Iterable, Iterator, List, Optional, Tuple

from drgn import FaultError, Object, Program, ProgramFlags, StackTrace
from drgn.helpers import ValidationError
from drgn.helpers.linux.cpumask import for_each_online_cpu, for_each_possible_cpu
from drgn.helpers.linux.sched import task_cpu

from vmcore_tools.analysis import Analysis, Context, Option, Requires
from vmcore_tools.frames import stack_of_trace
from vmcore_tools.kernel.run_queue import (
    QueuedTask,
    RunQueue,
    current_ran_ns,
    is_of_low_weight,
    is_realtime,
    need_resched,
    rt_throttling_off,
    run_queue,
    scheduling_policy,
    since_run_ns,
    unlisted_tasks,
)
from vmcore_tools.kernel.symbols import symbol_name
from vmcore_tools.kernel.task import (
    for_each_bounded_task,
    hung_task_timeout_seconds,
    is_queued,
    is_uninterruptible,
    sched_now_ns,
    sleep_time_ns,
    task_comm,
)
from vmcore_tools.kernel.wait_chain import (
    CPU,
    HELD_BY,
    POOL,
    READ_BY,
    RUN_BY,
    TASK,
    WORK,
    WORKQUEUE,
    Node,
    WaitChains,
    held_up_workers,
    pool_cpu,
)
from vmcore_tools.kernel.wait_graph import Edge, Root
from vmcore_tools.kernel.workqueue import (
    for_each_worker,
    for_each_worker_pool,
    pool_highpri,
    pool_without_progress_ns,
    worker_is_idle,
)
from vmcore_tools.model import (
    Absent,
    Confidence,
    Evidence,
    Finding,
    Graph,
    GraphEdge,
    GraphNode,
    Kind,
    Maybe,
    Ref,
    Rule,
    Severity,
    Stack,
    column,
)

_NS_PER_SECOND = 1_000_000_000
#: Tasks that a finding names; the count is always whole.
_TASKS_NAMED = 20
#: Nodes that a finding's graph shows, those nearest to the cause first.
_NODES_SHOWN = 60
_STACKS_SHOWN = 4
#: Frames behind the switch to another task that make up a signature.
_SIGNATURE_FRAMES = 6
_IN_SCHEDULER = re.compile(r"context_switch|__switch_to.*|_*schedule(_.*)?")

DEADLOCK = Rule(
    id="VT310",
    slug="deadlock",
    severity=Severity.CRITICAL,
    summary="Tasks wait for each other in a circle, or one for itself: none of them can go on.",
    remedy=(
        "Look in their stacks for paths that take the same locks in different orders, or wait "
        "for a work while they hold a lock that it needs."
    ),
    page="""\
Each task of the circle is on the list of waiters of a lock, or waits for a
work, that the next one has. It is `proven` where the kernel's structures name
every holder; an rwsem names only its last reader, who may have let go, and
makes it `suspected`. The circle shown is the shortest one.""",
)
CPU_MONOPOLISED = Rule(
    id="VT311",
    slug="cpu-monopolised",
    severity=Severity.ERROR,
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
except the CPU's stopper. Else the task may just have preempted the one to blame:
then the CPU is the subject, and the finding is `suspected`.

Without either source (CONFIG_SCHED_INFO is off, and no work is pending) there
is only `at_most_ns`, the time since any task on the queue last ran, and the
finding is `suspected`. That tasks of SCHED_IDLE or a positive nice value wait
for others of the fair class is no finding.""",
)
WORK_STUCK = Rule(
    id="VT312",
    slug="work-stuck",
    severity=Severity.ERROR,
    summary="A work does not end, or a pool does not start its works, and tasks wait for that.",
    remedy="Look at the worker's stack: what it waits for there keeps all of them waiting.",
    page="""\
The work is being run by a worker that sleeps in a wait of which nobody is
known to end it, or that runs on; or works are pending in a pool and none of its
workers was woken.""",
)
HOLDER_ASLEEP = Rule(
    id="VT313",
    slug="lock-holder-asleep",
    severity=Severity.ERROR,
    summary="Tasks wait for a lock whose holder sleeps in something else.",
    remedy="Look at the holder's stack: find out who should wake it there.",
    page="""\
The holder is the task that the lock itself names. What it sleeps in is given
where the kernel's lists show it; nobody is known who would end it. It may also
be kept off the CPU by its cgroup's quota. For an rwsem
that readers have, the lock names only the last one: then it is `suspected`.""",
)


@dataclasses.dataclass(frozen=True)
class WaitingTask:
    """A task in uninterruptible sleep, and what keeps it there; the longest sleeper first."""

    pid: int = column(Kind.PID)
    comm: str = column(Kind.SENSITIVE)
    wait_ns: Maybe[int] = column(Kind.DURATION)
    waits_for: Maybe[str] = column(Kind.TEXT)
    object: Maybe[int] = column(Kind.ADDRESS)
    evidence: Maybe[str] = column(Kind.TEXT)
    cause: Maybe[str] = column(Kind.TEXT)
    cause_pid: Maybe[int] = column(Kind.PID)
    task: int = column(Kind.ADDRESS)
    stack: str = column(Kind.STACK)


@dataclasses.dataclass(frozen=True)
class _Held:
    """
    A CPU that tasks wait for.

    :ivar waiting: who waits for it: not those who do so by right
    :ivar longest: the one that has waited for ``at_least_ns``
    :ivar ran_ns: how long of that the current task has certainly run
    :ivar others: whether other tasks may have run in that time
    """

    queue: RunQueue
    waiting: Tuple[QueuedTask, ...]
    longest: Optional[Object]
    at_least_ns: Optional[int]
    at_most_ns: Optional[int]
    ran_ns: int
    others: bool


def analyze(ctx: Context) -> Iterator[Any]:
    yield from _Analyzer(ctx).run()


class _Analyzer:
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._prog = ctx.prog
        self._now_ns = sched_now_ns(ctx.prog)
        self._tasks = self._all_tasks()
        self._queues = self._run_queues()
        self._threshold_ns = self._threshold()
        self._cpu_threshold_ns = min(self._threshold_ns, _soft_lockup_ns(ctx.prog))
        self._chains = WaitChains(
            ctx.prog, self._tasks, self._queues, self._trace, self._lost_object
        )
        self._graph = self._chains.graph
        #: The victims, and how long they have waited: 0 if that is not known.
        self._waits: Dict[str, int] = {}
        self._asleep: List[str] = []
        self._traces: Dict[int, Optional[StackTrace]] = {}
        self._stacks: Dict[int, Stack] = {}
        self._places: Dict[Tuple[int, ...], Stack] = {}
        self._shown: Dict[str, Stack] = {}

    def run(self) -> Iterator[Any]:
        self._follow_sleepers()
        held = self._held_cpus()
        roots = self._graph.rank(self._candidates(held), self._waits)
        causes: Dict[str, Finding] = {}
        asleep = set(self._asleep)
        for root in roots:
            # Those in uninterruptible sleep first: people ask for these.
            victims = sorted(root.victims, key=lambda key: key not in asleep)
            finding = self._finding(dataclasses.replace(root, victims=tuple(victims)), held)
            if finding is None:
                continue
            for id in finding.stacks:
                yield self._shown[id]
            if self._prog.flags & ProgramFlags.IS_LIVE:
                finding = _of_live_target(finding)
            yield finding
            for key in (*root.nodes, *root.victims):
                causes.setdefault(key, finding)
        for key in self._asleep:
            yield from self._row(key, causes.get(key))

    # What there is.

    def _all_tasks(self) -> List[Object]:
        tasks = []
        try:
            for task in for_each_bounded_task(self._prog):
                tasks.append(task)
        except FaultError as error:
            self._ctx.coverage.gap("list of tasks", f"the walk broke off: {error}")
        return tasks

    def _run_queues(self) -> Dict[int, RunQueue]:
        queues = {}
        online = set(for_each_online_cpu(self._prog))
        for cpu in for_each_possible_cpu(self._prog):
            try:
                queue = run_queue(self._prog, cpu, cpu in online, self._now_ns)
                unlisted = unlisted_tasks(queue)
            except (FaultError, ValidationError, LookupError) as error:
                self._ctx.coverage.gap("run queue", f"CPU {cpu}: it cannot be read: {error}")
                continue
            queues[cpu] = queue
            if unlisted:
                self._ctx.coverage.gap(
                    "queued task", "of the deadline or sched_ext class: not listed", count=unlisted
                )
        return queues

    def _threshold(self) -> int:
        given = self._ctx.options["threshold_seconds"]
        seconds = hung_task_timeout_seconds(self._prog) if given is None else int(given)
        return seconds * _NS_PER_SECOND

    def _trace(self, task: Object) -> Optional[StackTrace]:
        address = task.value_()
        if address not in self._stacks:
            try:
                trace: Optional[StackTrace] = self._prog.stack_trace(task)
                self._stacks[address] = self._stack(trace)
            except (ValueError, LookupError, FaultError) as error:
                trace = None
                self._stacks[address] = Stack((), note=f"it cannot be unwound: {error}")
            self._traces[address] = trace
        return self._traces[address]

    def _stack(self, trace: StackTrace) -> Stack:
        # Victims of one cause mostly stand in the same place, and symbols take long.
        place = tuple(trace[number].pc for number in range(len(trace)))
        if place not in self._places:
            self._places[place] = stack_of_trace(self._prog, trace)
        return self._places[place]

    def _lost_object(self, what: str, error: Exception, address: int) -> None:
        self._ctx.coverage.gap(what, f"it cannot be followed: {error}", address or None)

    def _follow_sleepers(self) -> None:
        for task in self._ctx.progress(self._tasks, "tasks", len(self._tasks)):
            try:
                if not is_uninterruptible(task) or is_queued(task):
                    continue
                self._trace(task)
                frames = self._stacks[task.value_()].frames
                if any(frame.function == "__refrigerator" for frame in frames):
                    continue  # frozen on purpose
                wait_ns = sleep_time_ns(task, self._now_ns)
                key = self._chains.add_task(task)
            except FaultError as error:
                self._ctx.coverage.gap("task", f"it cannot be read: {error}", task.value_())
                continue
            self._waits[key] = wait_ns or 0
            self._asleep.append(key)
        self._asleep.sort(key=lambda key: (-self._waits[key], key))

    # Causes.

    def _held_cpus(self) -> Dict[int, _Held]:
        """The CPUs that somebody has waited for too long; those who wait become victims."""
        waits: Dict[int, List[Tuple[int, Object]]] = {}
        for cpu, queue in self._queues.items():
            waits[cpu] = [
                (waiting.wait_ns, waiting.task)
                for waiting in _rightly_waiting(queue)
                if waiting.wait_ns is not None
            ]
        try:
            for pool in for_each_worker_pool(self._prog):
                pool_of = pool_cpu(pool)
                stalled_ns = pool_without_progress_ns(pool)
                if pool_of not in waits or stalled_ns is None:
                    continue
                woken = held_up_workers(pool)
                # Did a worker have a work of it, the woken one may be woken since.
                if woken and all(map(worker_is_idle, for_each_worker(pool))):
                    waits[pool_of].append((stalled_ns, woken[0].task.read_()))
        except (FaultError, ValidationError, LookupError) as error:
            self._ctx.coverage.gap("worker pool", f"it cannot be read: {error}")
        held = {}
        for cpu, queue in self._queues.items():
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
        most: Optional[int] = min(task.since_run_ns or self._now_ns for task in waiting)
        window_ns = (most or 0) if least is None else least
        if window_ns < self._cpu_threshold_ns:
            return None
        ran_ns = current_ran_ns(queue, window_ns, self._now_ns)
        others = ran_ns < self._cpu_threshold_ns and self._others_ran(queue, window_ns)
        if least is None:
            # As far as is known: it cannot have run longer than all its life.
            runtime_ns = int(queue.current.se.sum_exec_runtime.value_())
            if others or runtime_ns < self._cpu_threshold_ns:
                return None
        elif any(task.wait_ns is not None for task in waiting):
            most = None
        for queued in waiting:
            key = self._chains.add_task(queued.task)
            self._waits.setdefault(key, queued.wait_ns or 0)
        return _Held(queue, waiting, longest, least, most, ran_ns, others)

    def _others_ran(self, queue: RunQueue, window_ns: int) -> bool:
        """Whether a task other than the current one may have kept a CPU."""
        harmless = (queue.current.value_(), queue.rq.stop.value_(), queue.rq.idle.value_())
        for task in self._tasks:
            try:
                if task_cpu(task) != queue.cpu or task.value_() in harmless:
                    continue
                since_ns = since_run_ns(task, queue.rq, self._now_ns)
                if since_ns is not None and since_ns < window_ns:
                    return True
            except FaultError:
                return True  # it may have
        return False

    def _candidates(self, held: Dict[int, _Held]) -> Iterator[Tuple[str, ...]]:
        for cycle in self._graph.deadlocks():
            yield tuple(edge.source for edge in cycle)
        seen = set()
        for key in self._graph.ends():
            node = self._chains.nodes[key]
            if node.kind in (CPU, POOL):
                yield (key,)
            elif node.kind == TASK:
                seen.add(key)
            else:
                # Nobody is known to end that wait: who waits for it is to blame.
                seen.update(edge.source for edge in self._graph.edges_to(key))
        for key in sorted(seen):
            if self._chains.nodes[key].kind == TASK and self._graph.edges_to(key):
                yield (key,)

    def _finding(self, root: Root, held: Dict[int, _Held]) -> Optional[Finding]:
        nodes = [self._chains.nodes[key] for key in root.nodes]
        node = nodes[0]
        if len(nodes) > 1:
            return self._deadlock(root)
        if node.kind == CPU:
            cpu = int(node.key.partition(" ")[2])
            return self._monopolised(root, held[cpu]) if cpu in held else None
        longest = max((self._waits[key] for key in root.victims), default=0)
        if longest < self._threshold_ns:
            return None
        if node.kind == POOL:
            return self._pool_stalled(root, node)
        reasons = {edge.why for edge in self._graph.edges_to(node.key)}
        if RUN_BY in reasons:
            return self._work_stuck(root, node)
        if reasons & {HELD_BY, READ_BY} and node.state in ("asleep", "throttled"):
            return self._holder_asleep(root, node)
        return None

    # Findings.

    def _deadlock(self, root: Root) -> Finding:
        edges = [
            next(edge for edge in self._graph.edges_from(key) if edge.target == following)
            for key, following in zip(root.nodes, (*root.nodes[1:], root.nodes[0]))
        ]
        tasks = [key for key in root.nodes if self._chains.nodes[key].kind == TASK]
        objects = [key for key in root.nodes if self._chains.nodes[key].kind != TASK]
        confidence = self._confidence(edges)
        signals = [key for key in tasks if key not in self._asleep]
        if signals and confidence is Confidence.PROVEN:
            confidence = Confidence.LIKELY
        first = self._chains.nodes[tasks[0]]
        message = "{tasks} tasks wait for each other: {comms} (PID {pids}), for {objects} in turn"
        if len(tasks) == 1:
            message = "{comms} (PID {pids}) waits for itself, by {objects}"
        if root.victims:
            message += "; {victims} more wait behind, the longest for {wait_ns}"
        else:
            message += ", the longest for {wait_ns}" if len(tasks) > 1 else ", for {wait_ns}"
        return Finding(
            rule=DEADLOCK,
            confidence=confidence,
            message=message + ".",
            subject=self._ref(first),
            evidence=(
                Evidence("tasks", Kind.COUNT, len(tasks)),
                Evidence("comms", Kind.SENSITIVE, self._comms(tasks[:_TASKS_NAMED])),
                Evidence("pids", Kind.PID, self._pids(tasks[:_TASKS_NAMED])),
                Evidence("objects", Kind.UNTRUSTED, self._names(objects[:_TASKS_NAMED])),
                Evidence("addresses", Kind.ADDRESS, self._addresses(objects[:_TASKS_NAMED])),
                *self._victims(root),
            ),
            signature_key=("deadlock", *sorted(self._callers(tasks))),
            related=self._related(root),
            stacks=self._stack_ids([*tasks, *root.victims]),
            unread=self._unread(edges)
            + tuple(f"a signal can end the wait of {len(signals)} of them" for _ in signals[:1]),
            graph=self._drawn(root),
        )

    def _monopolised(self, root: Root, held: _Held) -> Finding:
        queue = held.queue
        task = queue.current
        certain = held.at_least_ns is not None
        own = held.ran_ns >= self._cpu_threshold_ns
        if certain and held.others:
            return self._not_run(root, held)
        time = "for {held_ns}" if own else "as it seems for {waited_ns}"
        message = (
            "CPU {cpu} has been kept by {comm} ({pid}), {policy}, "
            + (time if certain else "for at most {at_most_ns}")
            + "; {victims} tasks wait for it"
        )
        if any(key in self._asleep for key in root.victims):
            message += ", first of them {victim} ({victim_pid}) for {wait_ns} in {waits_for}"
        evidence = [
            *self._kept(held),
            Evidence("held_ns", Kind.DURATION, _maybe(held.ran_ns if certain and own else None)),
            *self._victims(root),
        ]
        if not certain:
            evidence.append(Evidence("at_most_ns", Kind.DURATION, _maybe(held.at_most_ns)))
        unread: Tuple[str, ...] = ()
        confidence = Confidence.PROVEN
        if not certain:
            confidence = Confidence.SUSPECTED
            unread = ("when they were woken, and when the CPU was last idle",)
        elif not own:
            confidence = Confidence.LIKELY
            unread = ("tasks that ran on the CPU in that time and have ended or moved since",)
        kind = "real-time" if is_realtime(task) else "fair"
        return Finding(
            rule=CPU_MONOPOLISED,
            confidence=confidence,
            message=message + ".",
            subject=self._task_ref(task),
            evidence=tuple(evidence),
            signature_key=("cpu-monopolised", kind, *self._callers(root.victims[:1])),
            related=self._related(root),
            stacks=self._stack_ids(root.victims),
            unread=unread,
            graph=self._drawn(root),
        )

    def _kept(self, held: _Held) -> Iterator[Evidence]:
        queue, task = held.queue, held.queue.current
        yield Evidence("cpu", Kind.NUMBER, queue.cpu)
        yield Evidence("comm", Kind.SENSITIVE, task_comm(task))
        yield Evidence("pid", Kind.PID, int(task.pid.value_()))
        yield Evidence("policy", Kind.TEXT, scheduling_policy(task))
        yield Evidence("rt_priority", Kind.NUMBER, int(task.rt_priority.value_()))
        yield Evidence("rt_throttling_off", Kind.TEXT, _maybe(rt_throttling_off(self._prog)))
        yield Evidence("need_resched", Kind.TEXT, _maybe(need_resched(queue)))
        yield Evidence("waited_ns", Kind.DURATION, _maybe(held.at_least_ns))
        yield Evidence("since_switch_ns", Kind.DURATION, _maybe(queue.current_ns))
        yield Evidence("queued", Kind.COUNT, len(queue.queued))

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
            *self._victims(root),
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
            subject=self._ref(self._chains.nodes[root.nodes[0]]),
            evidence=tuple(evidence),
            signature_key=("cpu-not-run", *self._callers(root.victims[:1])),
            related=self._related(root),
            stacks=self._stack_ids(root.victims),
            unread=("which tasks the CPU ran in that time",),
            graph=self._drawn(root),
        )

    def _pool_stalled(self, root: Root, node: Node) -> Finding:
        pool = node.object
        return Finding(
            rule=WORK_STUCK,
            confidence=Confidence.LIKELY,
            message=(
                "The worker pool {pool} has pending works and {workers} workers, {idle} of them "
                "idle, but none was woken; {victims} tasks wait for it, first of them {victim} "
                "({victim_pid}) for {wait_ns}."
            ),
            subject=self._ref(node),
            evidence=(
                Evidence("pool", Kind.TEXT, self._name(node)),
                Evidence("workers", Kind.COUNT, int(pool.nr_workers.value_())),
                Evidence("idle", Kind.COUNT, int(pool.nr_idle.value_())),
                Evidence("stalled_ns", Kind.DURATION, _maybe(pool_without_progress_ns(pool))),
                *self._victims(root),
            ),
            signature_key=("pool-stalled", *self._callers(root.victims[:1])),
            related=self._related(root),
            stacks=self._stack_ids(root.victims),
            unread=("why no worker was woken",),
            graph=self._drawn(root),
        )

    def _work_stuck(self, root: Root, node: Node) -> Finding:
        edges = self._graph.edges_to(node.key)
        work = next(edge.source for edge in edges if edge.why == RUN_BY)
        return Finding(
            rule=WORK_STUCK,
            confidence=self._confidence(edges),
            message=(
                "The work {work} has not ended: {comm} ({pid}), which runs it, {doing}; {victims} "
                "tasks wait for it, first of them {victim} ({victim_pid}) for {wait_ns}."
            ),
            subject=self._ref(self._chains.nodes[work]),
            evidence=(
                Evidence("work", Kind.TEXT, self._name(self._chains.nodes[work])),
                *self._culprit(node),
                *self._victims(root),
            ),
            signature_key=("work-stuck", *self._callers([node.key])),
            related=(self._ref(node), *self._related(root)),
            stacks=self._stack_ids([node.key, *root.victims]),
            unread=self._unread(edges),
            graph=self._drawn(root),
        )

    def _holder_asleep(self, root: Root, node: Node) -> Finding:
        edges = [e for e in self._graph.edges_to(node.key) if e.why in (HELD_BY, READ_BY)]
        lock = self._chains.nodes[edges[0].source]
        return Finding(
            rule=HOLDER_ASLEEP,
            confidence=self._confidence(edges),
            message=(
                "{comm} ({pid}) has the {lock} at {lock_address} and {doing}; {victims} tasks wait "
                "behind it, first of them {victim} ({victim_pid}) for {wait_ns}."
            ),
            subject=self._ref(node),
            evidence=(
                Evidence("lock", Kind.TEXT, self._name(lock)),
                Evidence("lock_address", Kind.ADDRESS, int(lock.object.value_())),
                *self._culprit(node),
                *self._victims(root),
            ),
            signature_key=("lock-holder-asleep", lock.name, *self._callers([node.key])),
            related=(self._ref(lock), *self._related(root)),
            stacks=self._stack_ids([node.key, *root.victims]),
            unread=self._unread(edges),
            graph=self._drawn(root),
        )

    @staticmethod
    def _confidence(edges: Iterable[Edge]) -> Confidence:
        return Confidence.PROVEN if all(e.proven for e in edges) else Confidence.SUSPECTED

    @staticmethod
    def _unread(edges: Iterable[Edge]) -> Tuple[str, ...]:
        if any(edge.why == READ_BY for edge in edges):
            return ("whether the last one that took the lock still has it",)
        if all(edge.proven for edge in edges):
            return ()
        if any(edge.why == RUN_BY and not edge.proven for edge in edges):
            return ("whether that flush waits for the work that runs, or it was queued later",)
        return ("the stack, whose functions would show which kind of wait it is",)

    def _culprit(self, node: Node) -> Tuple[Evidence, ...]:
        """A task that keeps others waiting, and what it does."""
        task = node.object
        doing = {
            "running": "is running",
            "queued": "can run",
            "throttled": "is throttled by its cgroup's CPU quota",
            "asleep": "sleeps",
        }[node.state]
        if node.wait is not None:
            doing = f"waits for a {node.wait.kind}"
        slept_ns = sleep_time_ns(task, self._now_ns) if node.state == "asleep" else None
        return (
            Evidence("comm", Kind.SENSITIVE, task_comm(task)),
            Evidence("pid", Kind.PID, int(task.pid.value_())),
            Evidence("doing", Kind.TEXT, doing),
            Evidence("sleeps_ns", Kind.DURATION, _maybe(slept_ns)),
            Evidence(
                "waited_for",
                Kind.ADDRESS,
                _maybe(None if node.wait is None else int(node.wait.object.value_())),
            ),
        )

    def _victims(self, root: Root) -> Tuple[Evidence, ...]:
        victims = root.victims
        evidence = [Evidence("victims", Kind.COUNT, len(victims))]
        if not victims:
            longest = max((self._waits.get(key, 0) for key in root.nodes), default=0)
            return (*evidence, Evidence("wait_ns", Kind.DURATION, longest))
        node = self._chains.nodes[victims[0]]
        named = victims[:_TASKS_NAMED]
        wait = node.wait
        return (
            *evidence,
            Evidence("victim", Kind.SENSITIVE, task_comm(node.object)),
            Evidence("victim_pid", Kind.PID, int(node.object.pid.value_())),
            Evidence("wait_ns", Kind.DURATION, self._waits[victims[0]]),
            Evidence("waits_for", Kind.TEXT, "the CPU" if wait is None else wait.kind),
            Evidence("victim_pids", Kind.PID, self._pids(named)),
            Evidence("victim_comms", Kind.SENSITIVE, self._comms(named)),
            Evidence("total_wait_ns", Kind.DURATION, root.wait_ns),
        )

    # Names.

    def _comms(self, keys: Iterable[str]) -> Tuple[str, ...]:
        return tuple(task_comm(self._chains.nodes[key].object) for key in keys)

    def _pids(self, keys: Iterable[str]) -> Tuple[int, ...]:
        return tuple(int(self._chains.nodes[key].object.pid.value_()) for key in keys)

    def _names(self, keys: Iterable[str]) -> Tuple[str, ...]:
        """What objects are, and what they are called."""
        names = []
        for key in keys:
            ref = self._ref(self._chains.nodes[key])
            names.append(f"{ref.type} {ref.name}" if ref.name else ref.type)
        return tuple(names)

    def _addresses(self, keys: Iterable[str]) -> Tuple[int, ...]:
        return tuple(int(self._chains.nodes[key].object.value_()) for key in keys)

    def _name(self, node: Node) -> str:
        """What a node that is no task is called; addresses are not part of it."""
        if node.kind == CPU:
            return node.name
        if node.kind == WORK:
            function = symbol_name(self._prog, node.object.func.value_())
            return function or "of a function without a name"
        if node.kind == POOL:
            return pool_name(node.object)
        if node.kind == WORKQUEUE:
            return node.name
        symbol = symbol_name(self._prog, node.object.value_())
        return f"{node.name} {symbol}" if symbol else node.name

    def _ref(self, node: Node) -> Ref:
        if node.kind == TASK:
            return self._task_ref(node.object)
        address = int(node.object.value_())
        if node.kind == CPU:
            return Ref("CPU", node.name.partition(" ")[2], name_kind=Kind.TEXT)
        if node.kind in (WORK, POOL):
            return Ref(node.name, self._name(node), address, name_kind=Kind.TEXT)
        if node.kind == WORKQUEUE:
            name = node.object.name.string_().decode(errors="backslashreplace")
            return Ref("workqueue", name, address)
        symbol = symbol_name(self._prog, address)
        return Ref(node.name, symbol or "", address, name_kind=Kind.TEXT)

    def _task_ref(self, task: Object) -> Ref:
        pid = int(task.pid.value_())
        return Ref("task", task_comm(task), int(task.value_()), pid, Kind.SENSITIVE)

    def _related(self, root: Root) -> Tuple[Ref, ...]:
        keys = [*root.nodes[1:], *root.victims][:_TASKS_NAMED]
        return tuple(self._ref(self._chains.nodes[key]) for key in keys)

    def _callers(self, keys: Iterable[str]) -> List[str]:
        """The functions that tasks are in, for a signature."""
        functions: List[str] = []
        for key in keys:
            task = self._chains.nodes[key].object
            self._trace(task)
            stack = self._stacks[task.value_()]
            named = [frame.function.partition(".")[0] for frame in stack.frames]
            functions += [name for name in named if not _IN_SCHEDULER.fullmatch(name)][
                :_SIGNATURE_FRAMES
            ]
        return functions

    def _stack_ids(self, keys: Iterable[str]) -> Tuple[str, ...]:
        """The different stacks of the first tasks."""
        ids: Dict[str, Stack] = {}
        for key in keys:
            node = self._chains.nodes[key]
            if len(ids) == _STACKS_SHOWN:
                break
            if node.kind == TASK and node.state == "asleep":
                self._trace(node.object)
                stack = self._stacks[node.object.value_()]
                ids.setdefault(stack.id, stack)
        self._shown.update(ids)
        return tuple(ids)

    # The graph of a finding, and the table.

    def _drawn(self, root: Root) -> Graph:
        """The nodes around a cause, the nearest first."""
        order: Dict[str, str] = {}
        queue: Deque[str] = collections.deque(root.nodes)
        seen = set(root.nodes)
        while queue:
            key = queue.popleft()
            order[key] = f"n{len(order) + 1}"
            for edge in self._graph.edges_to(key):
                if edge.source not in seen:
                    seen.add(edge.source)
                    queue.append(edge.source)
        shown = list(order)[:_NODES_SHOWN]
        nodes = tuple(GraphNode(order[key], *self._described(key)) for key in shown)
        edges = tuple(
            GraphEdge(order[key], order[edge.target], edge.why, edge.proven)
            for key in shown
            for edge in self._graph.edges_from(key)
            if edge.target in order and edge.target in shown
        )
        roots = tuple(order[key] for key in root.nodes)
        return Graph(nodes, edges, roots, len(order) - len(shown))

    def _described(self, key: str) -> Tuple[Ref, Tuple[Evidence, ...]]:
        node = self._chains.nodes[key]
        facts: Tuple[Evidence, ...] = ()
        if node.kind == CPU:
            current = self._queues[int(node.name.partition(" ")[2])].current
            facts = (
                Evidence("runs", Kind.SENSITIVE, task_comm(current)),
                Evidence("pid", Kind.PID, int(current.pid.value_())),
                Evidence("policy", Kind.TEXT, scheduling_policy(current)),
            )
        elif self._waits.get(key):
            facts = (Evidence("wait_ns", Kind.DURATION, self._waits[key]),)
        elif node.kind == POOL:
            stalled_ns = pool_without_progress_ns(node.object)
            if stalled_ns is not None:
                facts = (Evidence("stalled_ns", Kind.DURATION, stalled_ns),)
        return self._ref(node), facts

    def _row(self, key: str, cause: Optional[Finding]) -> Iterator[Any]:
        node = self._chains.nodes[key]
        task, wait = node.object, node.wait
        stack = self._stacks[task.value_()]
        yield stack
        unknown = Absent("it is on no list of waiters that is known")
        yield WaitingTask(
            pid=int(task.pid.value_()),
            comm=task_comm(task),
            wait_ns=self._waits[key] or Absent("the task has no time of its last run"),
            waits_for=unknown if wait is None else wait.kind,
            object=self._waited_for(key),
            evidence=unknown if wait is None else wait.evidence,
            cause=Absent("none was found") if cause is None else cause.rule.id,
            cause_pid=_maybe(None if cause is None else cause.subject.pid),
            task=int(task.value_()),
            stack=stack.id,
        )

    def _waited_for(self, key: str) -> Maybe[int]:
        """The address of what a task waits for: of the work, not of the barrier behind it."""
        wait = self._chains.nodes[key].wait
        if wait is None:
            return Absent("it is on no list of waiters that is known")
        edges = self._graph.edges_from(key)
        waited_for = self._chains.nodes[edges[0].target].object if edges else wait.object
        return int(waited_for.value_())


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


def pool_name(pool: Object) -> str:
    """
    What the kernel's log says of a pool, in words.

    :param pool: ``struct worker_pool *``
    """
    cpu = pool_cpu(pool)
    of = "unbound" if cpu is None else f"CPU {cpu}"
    return f"{of}, high priority" if pool_highpri(pool) else of


def _of_live_target(finding: Finding) -> Finding:
    """A finding whose parts were not read at one moment."""
    return dataclasses.replace(
        finding,
        confidence=Confidence.SUSPECTED,
        unread=(*finding.unread, "what the kernel changed while it was read"),
    )


def _soft_lockup_ns(prog: Program) -> int:
    """From when on the kernel calls a CPU stuck: twice kernel.watchdog_thresh, or 20 s."""
    try:
        seconds = 2 * int(prog["watchdog_thresh"].value_())
    except (KeyError, FaultError):
        seconds = 0
    return (seconds or 20) * _NS_PER_SECOND


def _maybe(value: Any) -> Any:
    return Absent("the kernel does not say") if value is None else value


ANALYSIS = Analysis(
    name="wait-graph",
    analyze=analyze,
    tables=(WaitingTask,),
    rules=(DEADLOCK, CPU_MONOPOLISED, WORK_STUCK, HOLDER_ASLEEP),
    options=(
        Option(
            "threshold-seconds",
            "report causes that tasks have waited behind for at least this long "
            "(default: the kernel's hung_task_timeout_secs)",
            int,
            metavar="N",
        ),
    ),
    requires=Requires(types=("struct task_struct",)),
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
