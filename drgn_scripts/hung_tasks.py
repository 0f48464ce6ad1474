# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Every task in uninterruptible sleep: for how long, where, and in what.

Idle kernel threads (TASK_NOLOAD) are left out; killable sleepers, which
khungtaskd ignores, are shown. Tasks with the same stack make one finding,
VT301, if the longest of them sleeps for at least the threshold: the kernel's
own kernel.hung_task_timeout_secs, or --threshold-seconds; VT302, if a fatal
signal would end the sleep. The task that
khungtaskd named in the log is marked, and so is the oldest sleeper: often
they are not the same.

The sleeping time runs from when the task last left a CPU to the latest clock
of any CPU, or to a panic long before that. What the task waits for is named
from its stack; who keeps it waiting is wait-graph's answer, which is named here.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

from drgn import FaultError, Object, ProgramFlags
from drgn.helpers import ValidationError
from drgn.helpers.linux.sched import task_cpu

from vmcore_tools.analysis import Analysis, Context, Option, Requires
from vmcore_tools.frames import task_stack
from vmcore_tools.kernel.printk import LogRecord, log_records
from vmcore_tools.kernel.task import (
    for_each_bounded_task,
    hung_task_timeout_seconds,
    is_killable,
    is_queued,
    is_uninterruptible,
    sched_now_ns,
    sleep_time_ns,
    task_comm,
)
from vmcore_tools.model import (
    Absent,
    Confidence,
    Evidence,
    Finding,
    Kind,
    Maybe,
    Ref,
    Rule,
    Severity,
    Stack,
    column,
)
from vmcore_tools.wait_findings.causes import ExplainedWaits, explain_waits

_NS_PER_SECOND = 1_000_000_000
#: Tasks that a finding names; the count is always whole.
_TASKS_NAMED = 20
#: Frames behind the wait that make up a signature.
_SIGNATURE_FRAMES = 4
_NO_CAUSE = Absent("none was found")

HUNG = Rule(
    id="VT301",
    slug="hung-task",
    severity=Severity.ERROR,
    summary="Tasks have been in uninterruptible sleep for longer than the hung task timeout.",
    remedy=(
        "Read the stack from the bottom up: the first function behind the wait says what the "
        "task wants. Then find out who should have ended the wait."
    ),
    page="""\
A task counts if its state has TASK_UNINTERRUPTIBLE without TASK_NOLOAD and it
last left a CPU at least kernel.hung_task_timeout_secs ago. Tasks with the same
stack make one finding. `named_by_khungtaskd` are the PIDs for which the log has
"blocked for more than N seconds", if they have not run since. The state, the
time and the stack are read directly, so the finding is `proven`; that it is a
deadlock is not claimed. If the stack breaks off it is `likely`: a task that was
frozen on purpose is known by its stack alone.
`causes` are the findings of wait-graph that keep these tasks waiting, each with
its own confidence.""",
)


HUNG_KILLABLE = Rule(
    id="VT302",
    slug="hung-killable-task",
    severity=Severity.WARNING,
    summary="Tasks have slept for longer than the hung task timeout, but a fatal signal ends it.",
    remedy="Look at what the task waits for: a file server or a child may rightly take that long.",
    page="""\
As VT301, for tasks whose state has TASK_WAKEKILL: they wait for a file server, a
child in vfork or a core dump, say. khungtaskd does not report them.""",
)


@dataclasses.dataclass(frozen=True)
class BlockedTask:
    """A task in uninterruptible sleep; the longest sleeper comes first."""

    pid: int = column(Kind.PID)
    comm: str = column(Kind.SENSITIVE)
    cpu: int = column(Kind.NUMBER)
    wait_ns: Maybe[int] = column(Kind.DURATION)
    waits_for: str = column(Kind.TEXT)
    called_from: Maybe[str] = column(Kind.TEXT)
    killable: bool = column(Kind.TEXT)
    in_iowait: bool = column(Kind.TEXT)
    oldest: bool = column(Kind.TEXT)
    named_by_khungtaskd: bool = column(Kind.TEXT)
    cause: Maybe[str] = column(Kind.TEXT)
    cause_pid: Maybe[int] = column(Kind.PID)
    task: int = column(Kind.ADDRESS)
    stack: str = column(Kind.STACK)


#: Functions that wait, and the kernel's word for the wait. The generic ones
#: are used by the others: a specific one within a few frames names the wait.
_SPECIFIC_WAITS: Tuple[Tuple[str, str], ...] = (
    (r"(__)?flush_work", "flush_work"),
    (r"(__)?flush_workqueue|drain_workqueue", "flush_workqueue"),
    (r"(__)?cancel_(delayed_)?work.*", "cancel_work_sync"),
    (r"(__)?mutex_lock.*|__ww_mutex_lock.*|ww_mutex_lock.*", "mutex"),
    (r"(__)?rt_mutex_.*lock.*|rtlock_slowlock.*", "rt_mutex"),
    (r"(rwsem_down_|__?down_read|__?down_write|down_read|down_write).*", "rwsem"),
    (r"percpu_(down_|rwsem_).*|__percpu_down_read", "percpu_rwsem"),
    (r"__down(_.*)?|down(_timeout|_killable|_interruptible)?", "semaphore"),
    (r"dma_fence_(default_)?wait.*|dma_resv_wait.*", "dma_fence"),
    (r"synchronize_rcu.*|__wait_rcu_gp|rcu_barrier|wait_rcu_.*", "rcu"),
    (r"__?synchronize_srcu.*", "srcu"),
    (r"kthread_(stop|park).*", "kthread"),
    (r"virtio_gpu_queue_.*", "virtqueue"),
    (r"(wait_on_page|folio_wait|wait_on_folio|__lock_page|__folio_lock|page_lock).*", "page"),
    (r"(__)?wait_on_buffer|__lock_buffer", "buffer"),
    (r"(out_of_line_)?wait_on_bit.*|__wait_on_bit.*", "bit"),
    (r"kernel_clone|_do_fork|wait_for_vfork_done", "vfork"),
    (r"msleep|schedule_timeout_uninterruptible|usleep_range.*|schedule_hrtimeout.*", "timer"),
)
_GENERIC_WAITS: Tuple[Tuple[str, str], ...] = (
    (r"wait_for_(common|completion).*|do_wait_for_common|__wait_for_common", "completion"),
    (r"io_schedule.*|blk_mq_get_tag|bit_wait_io", "io"),
    (r"prepare_to_wait.*|do_wait_intr.*|wait_woken", "wait queue"),
)
#: Frames behind a generic wait in which the specific one must stand.
_CALLERS_LOOKED_AT = 4
#: What is between a wait and the switch to another task.
_SCHEDULER = re.compile(
    r"(__)?schedule(_timeout|_preempt_disabled)?|context_switch|__switch_to(_asm)?"
    r"|preempt_schedule.*|schedule_rtlock|__schedule_loop"
)


def _match(function: str, waits: Tuple[Tuple[str, str], ...]) -> Optional[str]:
    # GCC's clones: foo.isra.0, foo.constprop.1, foo.part.2.
    base = function.partition(".")[0]
    for pattern, name in waits:
        if re.fullmatch(pattern, base):
            return name
    return None


def name_wait(functions: List[str]) -> Tuple[str, Optional[str]]:
    """
    What a stack waits for, and the first function behind the wait.

    :param functions: names, the innermost first
    """
    names = list(functions)
    while names and _SCHEDULER.fullmatch(names[0].partition(".")[0]):
        names.pop(0)
    kind: Optional[str] = None
    last = -1
    for number, name in enumerate(names[: _CALLERS_LOOKED_AT + last + 2]):
        generic = _match(name, _GENERIC_WAITS)
        if generic is not None and kind is None:
            kind, last = generic, number
        elif generic is not None:
            last = number
    limit = last + 1 + _CALLERS_LOOKED_AT
    for number, name in enumerate(names[:limit]):
        specific = _match(name, _SPECIFIC_WAITS)
        if specific is not None:
            kind, last = specific, number
            # The outermost function of the same wait: flush_work, not __flush_work.
            while last + 1 < len(names) and _match(names[last + 1], _SPECIFIC_WAITS) == specific:
                last += 1
            break
    if kind is None:
        return "unknown", names[0] if names else None
    caller = names[last + 1] if last + 1 < len(names) else None
    return kind, caller


@dataclasses.dataclass(frozen=True)
class _Blocked:
    task: Object
    pid: int
    comm: str
    wait_ns: Optional[int]
    stack: Stack
    waits_for: str
    called_from: Optional[str]
    cause: Optional[Finding]
    named: bool

    @property
    def sort_key(self) -> Tuple[int, int]:
        return (-(self.wait_ns or 0), self.pid)


def analyze(ctx: Context) -> Iterator[Any]:
    blocked = _blocked_tasks(ctx)
    oldest = blocked[0].pid if blocked else None
    threshold_ns = _threshold_seconds(ctx) * _NS_PER_SECOND

    groups: Dict[str, List[_Blocked]] = {}
    for task in blocked:
        if task.stack.id not in groups:
            yield task.stack
        groups.setdefault(task.stack.id, []).append(task)
    for group in groups.values():
        hung = [task for task in group if (task.wait_ns or 0) >= threshold_ns or task.named]
        for rule, killable in ((HUNG, False), (HUNG_KILLABLE, True)):
            of_rule = [task for task in hung if is_killable(task.task) == killable]
            if of_rule:
                yield _finding(rule, of_rule, oldest, threshold_ns)
    for task in blocked:
        yield BlockedTask(
            pid=task.pid,
            comm=task.comm,
            cpu=task_cpu(task.task),
            wait_ns=_maybe(task.wait_ns, "the task has no time of its last run"),
            waits_for=task.waits_for,
            called_from=_maybe(task.called_from, "the stack ends there"),
            killable=is_killable(task.task),
            in_iowait=bool(task.task.in_iowait.value_()),
            oldest=task.pid == oldest,
            named_by_khungtaskd=task.named,
            cause=_NO_CAUSE if task.cause is None else task.cause.rule.id,
            cause_pid=_cause_pid(task.cause),
            task=task.task.value_(),
            stack=task.stack.id,
        )


def _cause_pid(cause: Optional[Finding]) -> Maybe[int]:
    if cause is None:
        return _NO_CAUSE
    return Absent("the cause is no task") if cause.subject.pid is None else cause.subject.pid


def _maybe(value: Any, reason: str) -> Any:
    return Absent(reason) if value is None else value


def _blocked_tasks(ctx: Context) -> List[_Blocked]:
    blocked = []
    waits = _waits(ctx)
    unread = waits.view.chains.without_wait if waits is not None else set()
    named = _named_by_khungtaskd(ctx)
    now_ns = sched_now_ns(ctx.prog) if waits is None else waits.view.now_ns
    # Tasks of a live kernel may sleep elsewhere by now.
    unwound = waits is not None and not ctx.prog.flags & ProgramFlags.IS_LIVE
    for task in _tasks(ctx):
        try:
            if not is_uninterruptible(task) or is_queued(task):
                continue
            stack = waits.view.stack(task) if waits and unwound else task_stack(task)
            if any(frame.function == "__refrigerator" for frame in stack.frames):
                continue  # frozen on purpose
            waits_for, called_from = name_wait([frame.function for frame in stack.frames])
            pid, wait_ns = int(task.pid.value_()), sleep_time_ns(task, now_ns)
            cause = None if waits is None else waits.cause_of(task.value_())
            if cause is None and task.value_() in unread:
                reason = "what the task waits for cannot be read"
                ctx.coverage.gap("cause of a wait", reason, task.value_())
            message = named.get((pid, task.comm.string_()))
            blocked.append(
                _Blocked(
                    task,
                    pid,
                    task_comm(task),
                    wait_ns,
                    stack,
                    waits_for,
                    called_from,
                    cause,
                    message is not None and message.is_of_sleep(wait_ns, now_ns),
                )
            )
        except FaultError as error:
            ctx.coverage.gap("task", f"it cannot be read: {error}", task.value_())
    return sorted(blocked, key=lambda task: task.sort_key)


def _waits(ctx: Context) -> Optional[ExplainedWaits]:
    try:
        return explain_waits(ctx)
    except (FaultError, LookupError, ValidationError) as error:
        ctx.coverage.gap("cause of a wait", f"it was not looked for: {error}")
        return None


def _tasks(ctx: Context) -> Iterator[Object]:
    """All tasks, up to where the walk breaks off."""
    try:
        yield from for_each_bounded_task(ctx.prog)
    except FaultError as error:
        ctx.coverage.gap("list of tasks", f"the walk broke off: {error}")


def _threshold_seconds(ctx: Context) -> int:
    given = ctx.options["threshold_seconds"]
    return hung_task_timeout_seconds(ctx.prog) if given is None else int(given)


_KHUNGTASKD = re.compile(
    rb"INFO: task (.{0,64}?):(\d+) blocked (?:in I/O wait )?for more than (\d+) seconds", re.DOTALL
)


@dataclasses.dataclass(frozen=True)
class HungMessage:
    """
    What khungtaskd wrote of a task.

    :ivar timestamp_ns: when, by the local clock
    :ivar seconds: the task had slept for more than that
    """

    timestamp_ns: int
    seconds: int

    def is_of_sleep(self, wait_ns: Optional[int], now_ns: int) -> bool:
        """
        Whether it is of the sleep that a task is in: it has not run since.

        :param wait_ns: how long that has lasted until *now_ns*, None if it is not known
        """
        if wait_ns is None:
            return False
        # It slept before the message, too. Half of that is for clocks that differ.
        slept_ns = self.seconds * _NS_PER_SECOND // 2
        return wait_ns >= max(0, now_ns - self.timestamp_ns) + slept_ns


def named_in_log(records: Iterable[LogRecord]) -> Dict[Tuple[int, bytes], HungMessage]:
    """
    khungtaskd's last message of each task (``check_hung_task()``), by PID and name.

    What user space wrote to /dev/kmsg has a facility; it names nobody.
    """
    named = {}
    for record in records:
        match = None if record.facility else _KHUNGTASKD.match(record.text)
        if match:
            message = HungMessage(record.timestamp_ns, int(match.group(3)))
            named[int(match.group(2)), match.group(1)] = message
    return named


def _named_by_khungtaskd(ctx: Context) -> Dict[Tuple[int, bytes], HungMessage]:
    try:
        return named_in_log(log_records(ctx.prog))
    except (FaultError, LookupError, ValidationError) as error:
        ctx.coverage.gap("kernel log", f"it cannot be read: {error}")
        return {}


def _finding(
    rule: Rule,
    hung: List[_Blocked],
    oldest: Optional[int],
    threshold_ns: int,
) -> Finding:
    first = hung[0]
    evidence = [
        Evidence("tasks", Kind.COUNT, len(hung)),
        Evidence("pid", Kind.PID, first.pid),
        Evidence("comm", Kind.SENSITIVE, first.comm),
        Evidence("wait_ns", Kind.DURATION, first.wait_ns),
        Evidence("waits_for", Kind.TEXT, first.waits_for),
        Evidence("called_from", Kind.TEXT, _maybe(first.called_from, "the stack ends there")),
        Evidence("threshold_ns", Kind.DURATION, threshold_ns),
        Evidence("pids", Kind.PID, tuple(task.pid for task in hung[:_TASKS_NAMED])),
        Evidence("comms", Kind.SENSITIVE, tuple(task.comm for task in hung[:_TASKS_NAMED])),
        Evidence(
            "named_by_khungtaskd",
            Kind.PID,
            tuple(task.pid for task in hung if task.named),
        ),
        Evidence("has_oldest", Kind.TEXT, any(task.pid == oldest for task in hung)),
    ]
    message = "{comm} ({pid}) has been in uninterruptible sleep for {wait_ns}"
    # Of one that cannot be unwound there are at most the frames of the wait itself.
    unread = () if first.called_from is not None else ("the stack behind the wait",)
    message += "; its stack breaks off" if unread else " in {waits_for}, called from {called_from}"
    if len(hung) > 1:
        message += "; {tasks} tasks hang there"
    notes = []
    if any(task.named for task in hung):
        notes.append("khungtaskd named PID {named_by_khungtaskd} in the log")
    if any(task.pid == oldest for task in hung):
        notes.append("no task has slept longer")
    if notes:
        message += " (" + "; ".join(notes) + ")"
    causes = _causes(hung)
    if causes:
        evidence.append(Evidence("causes", Kind.TEXT, tuple(map(_name, causes))))
        message += "; wait-graph names the cause: {causes}"
    functions = [frame.function for frame in first.stack.frames]
    return Finding(
        rule=rule,
        confidence=Confidence.LIKELY if unread else Confidence.PROVEN,
        message=message + ".",
        subject=Ref("task", first.comm, first.task.value_(), first.pid, Kind.SENSITIVE),
        evidence=tuple(evidence),
        signature_key=(first.waits_for, *_signature_functions(functions, first.called_from)),
        related=(
            *(cause.subject for cause in causes),
            *(
                Ref("task", task.comm, task.task.value_(), task.pid, Kind.SENSITIVE)
                for task in hung[1:_TASKS_NAMED]
            ),
        ),
        stacks=(first.stack.id,),
        unread=unread,
    )


def _causes(hung: List[_Blocked]) -> List[Finding]:
    """The different causes of some tasks, in their order."""
    return list({id(task.cause): task.cause for task in hung if task.cause is not None}.values())


def _name(cause: Finding) -> str:
    return f"{cause.rule.id} {cause.rule.slug} ({cause.confidence.name.lower()})"


def _signature_functions(functions: List[str], caller: Optional[str]) -> List[str]:
    """The callers of the wait, without the compiler's suffixes."""
    start = functions.index(caller) if caller in functions else 0
    return [name.partition(".")[0] for name in functions[start : start + _SIGNATURE_FRAMES]]


ANALYSIS = Analysis(
    name="hung-tasks",
    analyze=analyze,
    tables=(BlockedTask,),
    rules=(HUNG, HUNG_KILLABLE),
    options=(
        Option(
            "threshold-seconds",
            "report tasks that sleep for at least this long "
            "(default: the kernel's hung_task_timeout_secs)",
            int,
            metavar="N",
        ),
    ),
    requires=Requires(builtin=("struct task_struct",)),
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
