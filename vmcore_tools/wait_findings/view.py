# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the findings about waits are made from: the graph, and what to say of its nodes.

Each kind of cause is a module of its own beside this one.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from typing import Any, ClassVar, Deque, Dict, Iterable, Iterator, List, Optional, Set, Tuple

from drgn import FaultError, Object, Program, sizeof
from drgn.helpers import ValidationError
from drgn.helpers.linux.cpumask import for_each_online_cpu, for_each_possible_cpu

from vmcore_tools.analysis import Context
from vmcore_tools.frames import signature_functions, stack_of_trace
from vmcore_tools.kernel.containers import Container, Containers
from vmcore_tools.kernel.cpu_state import ns_since_panic
from vmcore_tools.kernel.run_queue import RunQueue, run_queue, scheduling_policy, unlisted_tasks
from vmcore_tools.kernel.rwbase_rt import READERS
from vmcore_tools.kernel.stack_frames import TaskTrace, Unwinder
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
from vmcore_tools.kernel.wait_chain import WaitChains
from vmcore_tools.kernel.wait_fences import SW_SYNC_TIMELINE
from vmcore_tools.kernel.wait_graph import Edge, Root
from vmcore_tools.kernel.wait_nodes import (
    CPU,
    DEVICE,
    FENCE,
    POOL,
    READ_BY,
    RUN_BY,
    TASK,
    VIRTQUEUE,
    WORK,
    WORKQUEUE,
    Node,
)
from vmcore_tools.kernel.wait_works import pool_cpu
from vmcore_tools.kernel.workqueue import pool_highpri, pool_without_progress_ns
from vmcore_tools.model import (
    Absent,
    Confidence,
    Evidence,
    Finding,
    Graph,
    GraphEdge,
    GraphNode,
    Kind,
    Ref,
    Rule,
    Stack,
)
from vmcore_tools.wait_findings.place import sleep_place
from vmcore_tools.words import plural

#: Tasks that a finding names; the count is always whole.
TASKS_NAMED = 20
NS_PER_SECOND = 1_000_000_000
#: Nodes that a finding's graph shows, those nearest to the cause first.
_NODES_SHOWN = 60
#: Also of those that wait alike, which renderers show as one.
_NODES_MAX = 500
_STACKS_SHOWN = 4
#: Waits of which only what the object is part of says more.
_PARTS_OF_OBJECTS = ("completion", "wait queue", "swait", "bit", "variable")
#: Frames behind the switch to another task that make up a signature.
_SIGNATURE_FRAMES = 6
#: What nodes are whose name says the rest.
_TYPES = {FENCE: "dma_fence", VIRTQUEUE: "virtqueue", DEVICE: "virtio device"}
#: What tasks wait for whose kind of wait, with an article, does not say it.
_WAITED_FOR = {
    "bit": "a bit of a word",
    "buffer": "a buffer of a disk",
    "cancel_work": "the cancelling of a work",
    "dma_fence": "a dma_fence",
    "flush_work": "the end of a work",
    "flush_workqueue": "the works of a workqueue",
    "page": "a page, or a bit of it",
    "park": "the parking of a kthread",
    "rcu": "an RCU grace period",
    "rcu barrier": "RCU's callbacks",
    "rcu expedited": "an expedited RCU grace period",
    "reclaim": "pages that others reclaim",
    "request": "a request of a disk",
    "rt_mutex": "an rt_mutex",
    "rwsem": "an rwsem",
    "srcu": "an SRCU grace period",
    "tag": "a tag of a disk",
    "task end": "the end of a task",
    "virtqueue": "space in a virtqueue",
    READERS: "the readers of a lock",
}
_IN_SCHEDULER = re.compile(r"context_switch|__switch_to.*|_*schedule(_.*)?")


class WaitView:
    """
    The tasks that wait, the graph of their waits, and how to describe it.

    :ivar waits: the victims' keys, and how long they have waited: 0 if that is not known
    :ivar asleep: the keys of the tasks in uninterruptible sleep, the longest sleeper first
    :ivar in_fences: those of the tasks in interruptible sleep that wait for a device's fence
    :ivar stalled: what is no task, and has itself gone on for too long: since when
    :ivar now_ns: the scheduler's time of the dump, or of a panic long before it
    :ivar since_panic_ns: how long before, as other clocks went on
    :ivar threshold_ns: from when on somebody has waited too long
    """

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.prog = ctx.prog
        now_ns = sched_now_ns(ctx.prog)
        self.since_panic_ns = self._since_panic(now_ns)
        self.now_ns = now_ns - self.since_panic_ns
        self.tasks = self._all_tasks()
        self.queues = self._run_queues()
        self.threshold_ns = self._threshold()
        self.cpu_threshold_ns = min(self.threshold_ns, _soft_lockup_ns(ctx.prog))
        self.chains = WaitChains(ctx.prog, self.tasks, self.queues, self.trace, self._lost_object)
        self.graph = self.chains.graph
        self.waits: Dict[str, int] = {}
        self.asleep: List[str] = []
        self.in_fences: List[str] = []
        self.stalled: Dict[str, int] = {}
        self._traces: Dict[int, Optional[TaskTrace]] = {}
        self._unwinder = Unwinder(ctx.prog)
        self._stacks: Dict[int, Stack] = {}
        self._places: Dict[Tuple[int, ...], Stack] = {}
        self._shown: Dict[str, Stack] = {}
        self._follow_sleepers()

    @functools.cached_property
    def containers(self) -> Containers:
        """What kernel addresses lie in."""
        return Containers(self.prog, self.ctx.memory, self.tasks, self.trace)

    def container(self, obj: Object) -> Optional[Container]:
        """
        What an object that is waited for is part of.

        :param obj: a typed pointer
        :return: None if it cannot be looked for
        """
        address = int(obj.value_())
        try:
            size = int(sizeof(obj.type_.type))
        except TypeError:
            size = 8  # of void
        try:
            return self.containers.of(address, size, obj.type_.type)
        except (FaultError, LookupError, ValidationError) as error:
            self.ctx.coverage.gap("container", f"it was not found: {error}", address)
            return None

    def _since_panic(self, now_ns: int) -> int:
        try:
            return ns_since_panic(self.prog, now_ns)
        except (FaultError, ValidationError, LookupError) as error:
            self.ctx.coverage.gap("time of the panic", f"the log cannot be read: {error}")
            return 0

    def node(self, key: str) -> Node:
        return self.chains.nodes[key]

    def stack(self, task: Object) -> Stack:
        """
        :param task: ``struct task_struct *``
        """
        self.trace(task)
        return self._stacks[task.value_()]

    def shown_stack(self, id: str) -> Stack:
        """One of those of which :meth:`stack_ids` told."""
        return self._shown[id]

    def longest_ns(self, keys: Iterable[str]) -> int:
        """How long the one of some victims has waited that has waited for the longest."""
        return max((self.waits.get(key, 0) for key in keys), default=0)

    # What there is.

    def _all_tasks(self) -> List[Object]:
        tasks = []
        try:
            for task in for_each_bounded_task(self.prog):
                tasks.append(task)
        except FaultError as error:
            self.ctx.coverage.gap("list of tasks", f"the walk broke off: {error}")
        return tasks

    def _run_queues(self) -> Dict[int, RunQueue]:
        queues = {}
        online = set(for_each_online_cpu(self.prog))
        for cpu in for_each_possible_cpu(self.prog):
            try:
                queue = run_queue(self.prog, cpu, cpu in online, self.now_ns)
                unlisted = unlisted_tasks(queue)
            except (FaultError, ValidationError, LookupError) as error:
                self.ctx.coverage.gap("run queue", f"CPU {cpu}: it cannot be read: {error}")
                continue
            queues[cpu] = queue
            if unlisted:
                self.ctx.coverage.gap(
                    "queued task", "of the sched_ext class: not listed", count=unlisted
                )
        return queues

    def _threshold(self) -> int:
        given = self.ctx.options["threshold_seconds"]
        seconds = hung_task_timeout_seconds(self.prog) if given is None else int(given)
        return seconds * NS_PER_SECOND

    def trace(self, task: Object) -> Optional[TaskTrace]:
        address = task.value_()
        if address not in self._stacks:
            trace: Optional[TaskTrace] = None
            try:
                trace = self._unwinder.trace(task)
                self._stacks[address] = self._stack(trace)
            except (ValueError, LookupError, FaultError) as error:
                self._stacks[address] = Stack((), note=f"it cannot be unwound: {error}")
            self._traces[address] = trace
        return self._traces[address]

    def _stack(self, trace: TaskTrace) -> Stack:
        # Victims of one cause mostly stand in the same place, and symbols take long.
        if trace.place not in self._places:
            self._places[trace.place] = stack_of_trace(self.prog, trace.unwound())
        return self._places[trace.place]

    def _lost_object(self, what: str, error: Exception, address: int) -> None:
        self.ctx.coverage.gap(what, f"it cannot be followed: {error}", address or None)

    def _follow_sleepers(self) -> None:
        for task in self.ctx.progress(self.tasks, "tasks", len(self.tasks)):
            try:
                if not is_uninterruptible(task) or is_queued(task):
                    continue
                frames = self.stack(task).frames
                if any(frame.function == "__refrigerator" for frame in frames):
                    continue  # frozen on purpose
                wait_ns = sleep_time_ns(task, self.now_ns)
                key = self.chains.add_task(task)
            except (FaultError, ValidationError, LookupError) as error:
                self.ctx.coverage.gap("task", f"it cannot be read: {error}", task.value_())
                continue
            self.waits[key] = wait_ns or 0
            self.asleep.append(key)
        self.asleep.sort(key=lambda key: (-self.waits[key], key))

    @staticmethod
    def confidence(edges: Iterable[Edge]) -> Confidence:
        return Confidence.PROVEN if all(e.proven for e in edges) else Confidence.SUSPECTED

    @staticmethod
    def unread(edges: Iterable[Edge]) -> Tuple[str, ...]:
        if any(edge.why == READ_BY for edge in edges):
            return ("whether the last one that took the lock still has it",)
        if all(edge.proven for edge in edges):
            return ()
        if any(edge.why == RUN_BY and not edge.proven for edge in edges):
            return ("whether that flush waits for the work that runs, or it was queued later",)
        return ("the stack, whose functions would show which kind of wait it is",)

    def verdict(
        self, node: Node, edges: Iterable[Edge], since: str
    ) -> Tuple[Confidence, Tuple[str, ...]]:
        """
        How sure it is that a task is to blame, and what was not seen.

        :param node: of the task
        :param edges: that lead to it
        :param since: what is not known of one that has not slept for long: it
            may have come to it, and be on its way through it
        """
        edges = tuple(edges)
        confidence, unread = self.confidence(edges), self.unread(edges)
        if confidence is not Confidence.PROVEN or self._sleeps_on(node):
            return confidence, unread
        return Confidence.LIKELY, (*unread, since)

    def _sleeps_on(self, node: Node) -> bool:
        """Whether a task has slept for too long itself, and not until a timer wakes it."""
        if node.state != "asleep" or (node.wait is not None and node.wait.kind == "timer"):
            return False
        slept_ns = sleep_time_ns(node.object, self.now_ns)
        return slept_ns is not None and slept_ns >= self.threshold_ns

    def culprit(self, node: Node) -> Tuple[Evidence, ...]:
        """A task that keeps others waiting, and what it does."""
        task = node.object
        doing = {
            "running": "is running",
            "queued": "can run",
            "throttled": "is throttled by its cgroup's CPU quota",
            "asleep": "sleeps",
        }[node.state]
        if node.wait is not None:
            doing = f"waits for {_WAITED_FOR.get(node.wait.kind, f'a {node.wait.kind}')}"
        slept_ns = sleep_time_ns(task, self.now_ns) if node.state == "asleep" else None
        inside: Tuple[Evidence, ...] = ()
        if node.wait is not None and node.wait.kind in _PARTS_OF_OBJECTS:
            container = self.container(node.wait.object)
            if container is not None and container.place != "memory":
                inside = (Evidence("waits_in", Kind.UNTRUSTED, container.in_words),)
        return (
            Evidence("comm", Kind.SENSITIVE, task_comm(task)),
            Evidence("pid", Kind.PID, int(task.pid.value_())),
            Evidence("doing", Kind.TEXT, doing),
            Evidence("sleeps_ns", Kind.DURATION, maybe(slept_ns)),
            Evidence(
                "waited_for",
                Kind.ADDRESS,
                maybe(None if node.wait is None else int(node.wait.object.value_())),
            ),
            *inside,
        )

    def victims(self, root: Root) -> Tuple[Evidence, ...]:
        victims = root.victims
        evidence = [Evidence("victims", Kind.COUNT, len(victims))]
        if not victims:
            longest = self.longest_ns(root.nodes)
            if longest:
                evidence.append(Evidence("wait_ns", Kind.DURATION, longest))
            return tuple(evidence)
        node = self.chains.nodes[victims[0]]
        named = victims[:TASKS_NAMED]
        wait = node.wait
        place = self._function(node)
        return (
            *evidence,
            Evidence("victim", Kind.SENSITIVE, task_comm(node.object)),
            Evidence("victim_pid", Kind.PID, int(node.object.pid.value_())),
            Evidence("wait_ns", Kind.DURATION, self.waits[victims[0]]),
            Evidence("waits_for", Kind.TEXT, "the CPU" if wait is None else wait.kind),
            Evidence("victim_pids", Kind.PID, self.pids(named)),
            Evidence("victim_comms", Kind.SENSITIVE, self.comms(named)),
            *(Evidence("victim_in", Kind.TEXT, function) for function in place),
        )

    def waiting(self, root: Root, what: str) -> str:
        """
        For the message of a finding with :meth:`victims`: who waits.

        :param what: that they wait for: ``for it``
        """
        many = plural(len(root.victims), "task waits", "tasks wait")
        return f"{{victims}} {many} {what}{self.longest(root)}"

    def longest(self, root: Root) -> str:
        """For a message: of those who wait, who has for the longest, asleep if there is one."""
        if not root.victims:
            return ""
        if len(root.victims) == 1:
            return ": {victim} ({victim_pid}) for {wait_ns}"
        queued = self.waits[root.victims[0]] < self.longest_ns(root.victims)
        which = "those that sleep" if queued else "them"
        return f", longest of {which} {{victim}} ({{victim_pid}}), for {{wait_ns}}"

    def in_function(self, root: Root) -> str:
        """For a message, behind :meth:`longest`: where that one sleeps, if it can be told."""
        first = [self.node(key) for key in root.victims[:1]]
        return " in {victim_in}" if any(map(self._function, first)) else ""

    def _function(self, node: Node) -> Tuple[str, ...]:
        """The function that a task sleeps in, if that can be told."""
        if node.state != "asleep":
            return ()
        place = sleep_place([frame.function for frame in self.stack(node.object).frames])
        return () if place.function is None else (place.function.partition(".")[0],)

    # Names.

    def comms(self, keys: Iterable[str]) -> Tuple[str, ...]:
        return tuple(task_comm(self.chains.nodes[key].object) for key in keys)

    def pids(self, keys: Iterable[str]) -> Tuple[int, ...]:
        return tuple(int(self.chains.nodes[key].object.pid.value_()) for key in keys)

    def names(self, keys: Iterable[str]) -> Tuple[str, ...]:
        """What objects are, and what they are called."""
        names = []
        for key in keys:
            ref = self.ref(self.chains.nodes[key])
            # That of a timeline is a process's.
            shown = ref.name and ref.type != SW_SYNC_TIMELINE
            names.append(f"{ref.type} {ref.name}" if shown else ref.type)
        return tuple(names)

    def addresses(self, keys: Iterable[str]) -> Tuple[int, ...]:
        return tuple(int(self.chains.nodes[key].object.value_()) for key in keys)

    def name(self, node: Node) -> str:
        """What a node that is no task is called; addresses are not part of it."""
        if node.kind == CPU or (node.kind in _TYPES and not node.label):
            return node.name
        if node.kind == WORK:
            function = symbol_name(self.prog, node.object.func.value_())
            return function or "of a function without a name"
        if node.kind == POOL:
            return pool_name(node.object)
        if node.kind == WORKQUEUE:
            return node.name
        called = node.label or symbol_name(self.prog, node.object.value_())
        return f"{node.name} {called}" if called else node.name

    def ref(self, node: Node) -> Ref:
        if node.kind == TASK:
            return self.task_ref(node.object)
        address = int(node.object.value_())
        if node.kind == CPU:
            return Ref("CPU", node.name.partition(" ")[2], name_kind=Kind.TEXT)
        if node.kind in _TYPES and not node.label:
            return Ref(_TYPES[node.kind], node.name, address)
        if node.kind in (WORK, POOL):
            return Ref(node.name, self.name(node), address, name_kind=Kind.TEXT)
        if node.kind == WORKQUEUE:
            name = node.object.name.string_().decode(errors="backslashreplace")
            return Ref("workqueue", name, address)
        called = node.label or symbol_name(self.prog, address) or ""
        name_kind = Kind.SENSITIVE if node.name == SW_SYNC_TIMELINE else Kind.UNTRUSTED
        return Ref(node.name, called, address, name_kind=name_kind)

    def task_ref(self, task: Object) -> Ref:
        pid = int(task.pid.value_())
        return Ref("task", task_comm(task), int(task.value_()), pid, Kind.SENSITIVE)

    def related(self, root: Root) -> Tuple[Ref, ...]:
        keys = [*root.nodes[1:], *root.victims][:TASKS_NAMED]
        return tuple(self.ref(self.chains.nodes[key]) for key in keys)

    def callers(self, keys: Iterable[str]) -> List[str]:
        """The functions that tasks are in, for a signature."""
        functions: List[str] = []
        for key in keys:
            task = self.chains.nodes[key].object
            stack = self.stack(task)
            named = [name.partition(".")[0] for name in signature_functions(stack)]
            functions += [name for name in named if not _IN_SCHEDULER.fullmatch(name)][
                :_SIGNATURE_FRAMES
            ]
        return functions

    def stack_ids(self, keys: Iterable[str], *, running: bool = False) -> Tuple[str, ...]:
        """
        The different stacks of the first tasks.

        :param running: also of tasks that are on a CPU
        """
        states = ("asleep", "running") if running else ("asleep",)
        ids: Dict[str, Stack] = {}
        for key in keys:
            node = self.chains.nodes[key]
            if len(ids) == _STACKS_SHOWN:
                break
            if node.kind == TASK and node.state in states:
                stack = self.stack(node.object)
                ids.setdefault(stack.id, stack)
        self._shown.update(ids)
        return tuple(ids)

    # The graph of a finding, and the table.

    def _nearest(self, order: Iterable[str], root: Root) -> Dict[str, None]:
        """The first of some nodes: those that wait alike, and nobody for them, count as one."""
        shapes: Set[Any] = set()
        shown: Dict[str, None] = {}
        for key in order:
            shape: Any = key
            if key not in root.nodes and not self.graph.edges_to(key):
                shape = tuple((edge.target, edge.why) for edge in self.graph.edges_from(key))
            if shape not in shapes and len(shapes) == _NODES_SHOWN:
                continue
            shapes.add(shape)
            shown[key] = None
            if len(shown) == _NODES_MAX:
                break
        return shown

    def drawn(self, root: Root, only: Optional[Iterable[str]] = None) -> Graph:
        """
        The nodes around a cause, the nearest first.

        :param only: no other tasks than these and the cause itself
        """
        wanted = None if only is None else set(only)
        order: Dict[str, str] = {}
        queue: Deque[str] = collections.deque(root.nodes)
        seen = set(root.nodes)
        while queue:
            key = queue.popleft()
            order[key] = f"n{len(order) + 1}"
            for edge in self.graph.edges_to(key):
                is_task = self.chains.nodes[edge.source].kind == TASK
                if wanted is not None and is_task and edge.source not in wanted:
                    continue
                if edge.source not in seen:
                    seen.add(edge.source)
                    queue.append(edge.source)
        shown = self._nearest(order, root)
        nodes = tuple(GraphNode(order[key], *self._described(key)) for key in shown)
        edges = tuple(
            GraphEdge(order[key], order[edge.target], edge.why, edge.proven)
            for key in shown
            for edge in self.graph.edges_from(key)
            if edge.target in shown
        )
        roots = tuple(order[key] for key in root.nodes)
        return Graph(nodes, edges, roots, len(order) - len(shown))

    def _described(self, key: str) -> Tuple[Ref, Tuple[Evidence, ...]]:
        node = self.chains.nodes[key]
        facts: Tuple[Evidence, ...] = ()
        if node.kind == CPU:
            current = self.queues[int(node.name.partition(" ")[2])].current
            facts = (
                Evidence("runs", Kind.SENSITIVE, task_comm(current)),
                Evidence("pid", Kind.PID, int(current.pid.value_())),
                Evidence("policy", Kind.TEXT, scheduling_policy(current)),
            )
        elif self.waits.get(key):
            facts = (Evidence("wait_ns", Kind.DURATION, self.waits[key]),)
        elif node.kind == POOL:
            stalled_ns = pool_without_progress_ns(node.object)
            if stalled_ns is not None:
                facts = (Evidence("stalled_ns", Kind.DURATION, stalled_ns),)
        return self.ref(node), facts


def pool_name(pool: Object) -> str:
    """
    What the kernel's log says of a pool, in words.

    :param pool: ``struct worker_pool *``
    """
    cpu = pool_cpu(pool)
    of = "unbound" if cpu is None else f"CPU {cpu}"
    return f"{of}, high priority" if pool_highpri(pool) else of


def of_live_target(finding: Finding) -> Finding:
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
    return (seconds or 20) * NS_PER_SECOND


def maybe(value: Any) -> Any:
    return Absent("the kernel does not say") if value is None else value


class Cause:
    """
    One kind of cause: base class of those in the modules beside this one.

    The analysis makes one of each, lets all of them prepare, ranks what they
    and the ends of the graph offer by its victims, and asks them in turn for
    the finding of each: the first that has one wins.

    :cvar rules: of its findings
    """

    rules: ClassVar[Tuple[Rule, ...]] = ()

    def __init__(self, view: WaitView) -> None:
        self.view = view

    def prepare(self) -> None:
        """Add to the graph and the victims what the sleeping tasks do not lead to."""

    def candidates(self) -> Iterator[Tuple[str, ...]]:
        """Causes that are no end of the graph: each one node, or the nodes of a cycle."""
        return iter(())

    def finding(self, root: Root) -> Optional[Finding]:
        """
        :param root: the node where waits end, with who waits behind it
        :return: None if it is no such cause, or nobody has waited long enough
        """
        raise NotImplementedError
