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
from vmcore_tools.asked import number_from
from vmcore_tools.frames import signature_functions, task_stack
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
from vmcore_tools.wait_findings.causes import (
    Awaited,
    ExplainedWaits,
    cause_pid,
    cause_rule,
    explain_waits,
)
from vmcore_tools.wait_findings.place import SleepPlace, sleep_place
from vmcore_tools.wait_findings.unknown import WAKER_UNKNOWN
from vmcore_tools.words import plural

_NS_PER_SECOND = 1_000_000_000
#: Tasks that a finding names; the count is always whole.
_TASKS_NAMED = 20
#: Frames behind the wait that make up a signature.
_SIGNATURE_FRAMES = 4

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
its own confidence; `cause_of` are those that a task is itself the cause of, and
`awaited` what it waits for. Of VT318 nobody is known to be the cause.""",
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
    waits_for: Maybe[str] = column(Kind.TEXT)
    called_from: Maybe[str] = column(Kind.TEXT)
    killable: bool = column(Kind.TEXT)
    in_iowait: bool = column(Kind.TEXT)
    oldest: bool = column(Kind.TEXT)
    named_by_khungtaskd: bool = column(Kind.TEXT)
    cause: Maybe[str] = column(Kind.TEXT)
    cause_pid: Maybe[int] = column(Kind.PID)
    task: int = column(Kind.ADDRESS)
    stack: str = column(Kind.STACK)


@dataclasses.dataclass(frozen=True)
class _Blocked:
    """
    A task in uninterruptible sleep.

    :ivar waits_for: the kernel's word, by the stack or else by wait-graph
    :ivar cause: what keeps it waiting
    :ivar causes: what it is itself the cause of
    :ivar in_circle: whether it is part of its cause, a deadlock
    """

    task: Object
    pid: int
    comm: str
    wait_ns: Optional[int]
    stack: Stack
    place: SleepPlace
    waits_for: Optional[str]
    cause: Optional[Finding]
    causes: Optional[Finding]
    in_circle: bool
    awaited: Optional[Awaited]
    not_found: bool
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
            waits_for=_maybe(task.waits_for, "no function on the stack tells"),
            called_from=_maybe(task.place.called_from, "the stack ends there"),
            killable=is_killable(task.task),
            in_iowait=bool(task.task.in_iowait.value_()),
            oldest=task.pid == oldest,
            named_by_khungtaskd=task.named,
            cause=cause_rule(task.cause, task.causes),
            cause_pid=cause_pid(task.cause, task.causes, task.task.value_()),
            task=task.task.value_(),
            stack=task.stack.id,
        )


def _maybe(value: Any, reason: str) -> Any:
    return Absent(reason) if value is None else value


def _blocked_tasks(ctx: Context) -> List[_Blocked]:
    blocked = []
    waits = _waits(ctx)
    if waits is not None:
        waits.count_unseen_modules(ctx)
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
            place = sleep_place([frame.function for frame in stack.frames])
            pid, wait_ns = int(task.pid.value_()), sleep_time_ns(task, now_ns)
            known = None if waits is None else waits.of_task(task.value_())
            if (known is None or known.cause is None) and task.value_() in unread:
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
                    place,
                    place.kind or (known.kind if known else None),
                    known.cause if known else None,
                    known.causes if known else None,
                    known is not None and known.in_circle,
                    known.awaited if known else None,
                    known is not None and not known.found,
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
        Evidence("waits_for", Kind.TEXT, _maybe(first.waits_for, "no function on the stack tells")),
        Evidence("function", Kind.TEXT, _function(first.place)),
        Evidence("called_from", Kind.TEXT, _maybe(first.place.called_from, "the stack ends there")),
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
    sleep = "killable" if rule is HUNG_KILLABLE else "uninterruptible"
    message = f"{{comm}} ({{pid}}) has been in {sleep} sleep for {{wait_ns}}"
    # Of one that cannot be unwound there are at most the frames of the wait itself.
    unread = () if first.place.called_from is not None else ("the stack behind the wait",)
    message += "; its stack breaks off" if unread else " in {function}, called from {called_from}"
    if len(hung) > 1:
        message += "; {tasks} tasks hang there"
    notes = []
    if any(task.named for task in hung):
        notes.append("khungtaskd named PID {named_by_khungtaskd} in the log")
    if any(task.pid == oldest for task in hung):
        notes.append("no task in uninterruptible sleep has slept longer")
    if notes:
        message += " (" + "; ".join(notes) + ")"
    causes = _different(task.cause for task in hung)
    for text, facts in _of_waits(hung, causes):
        message += f"; {text}"
        evidence += facts
    refs = [
        *(cause.subject for cause in causes),
        *(Ref("task", t.comm, t.task.value_(), t.pid, Kind.SENSITIVE) for t in hung[:_TASKS_NAMED]),
    ]
    related = dict.fromkeys(ref for ref in refs if ref.address != first.task.value_())
    functions = signature_functions(first.stack)
    place = sleep_place(functions)
    return Finding(
        rule=rule,
        confidence=Confidence.LIKELY if unread else Confidence.PROVEN,
        message=message + ".",
        subject=Ref("task", first.comm, first.task.value_(), first.pid, Kind.SENSITIVE),
        evidence=tuple(evidence),
        signature_key=(
            place.kind or "unknown",
            *_signature_functions(functions, place),
        ),
        related=tuple(related),
        stacks=(first.stack.id,),
        unread=unread,
        explained=all(
            any(_explains(found, rule) for found in (task.cause, task.causes)) for task in hung
        ),
    )


def _of_waits(
    hung: List[_Blocked], causes: List[Finding]
) -> Iterator[Tuple[str, Tuple[Evidence, ...]]]:
    """What wait-graph knows of the waits of some tasks, for the message."""
    named = [cause for cause in causes if cause.rule is not WAKER_UNKNOWN]
    if named:
        names = tuple(dict.fromkeys(map(_name, named)))
        of_circle = len(hung) == 1 and hung[0].in_circle
        text = "it is part of {causes}" if of_circle else "wait-graph names the cause: {causes}"
        yield text, (Evidence("causes", Kind.TEXT, names),)
    awaited = hung[0].awaited if len({task.awaited for task in hung}) == 1 else None
    facts: Tuple[Evidence, ...] = ()
    if awaited is not None:
        facts = (Evidence("awaited", Kind.UNTRUSTED, awaited.name),)
    itself = [task for task in hung if task.causes is not None]
    if itself:
        caused = _different(task.causes for task in itself)
        rules = dict.fromkeys(f"{finding.rule.id} {finding.rule.slug}" for finding in caused)
        facts += (Evidence("cause_of", Kind.TEXT, tuple(rules)),)
        who, it = "it is itself the cause of {cause_of}", "it"
        if len(hung) > 1:
            are = plural(len(itself), "is itself", "are themselves")
            who, it = f"PID {{themselves}} {are} the cause of {{cause_of}}", "that"
            pids = tuple(task.pid for task in itself[:_TASKS_NAMED])
            facts += (Evidence("themselves", Kind.PID, pids),)
        victims = sum(_victims(finding) for finding in caused)
        if victims:
            facts += (Evidence("behind_it", Kind.COUNT, victims),)
            who += f" ({{behind_it}} {plural(victims, 'task waits', 'tasks wait')} behind {it})"
        if awaited is not None:
            who += "; what is waited for: {awaited}"
            who += ", which nobody is known to end" if awaited.unended else ""
        yield who, facts
    if len(named) < len(causes):
        which = "of others " if named or itself else ""
        yield f"{which}wait-graph knows nobody who would end it (VT318)", ()
    lost = sum(task.not_found for task in hung)
    if lost:
        text = "wait-graph did not find what it waits for"
        if len(hung) > 1:
            wait = plural(lost, "waits", "wait")
            text = f"wait-graph did not find what {{not_found}} of them {wait} for"
        yield text, (Evidence("not_found", Kind.COUNT, lost),)


def _victims(finding: Finding) -> int:
    counts = (item.value for item in finding.evidence if item.name == "victims")
    return sum(count for count in counts if isinstance(count, int))


def _different(findings: Iterable[Optional[Finding]]) -> List[Finding]:
    """Each of some findings once, in their order."""
    return list({id(found): found for found in findings if found is not None}.values())


def _explains(found: Optional[Finding], rule: Rule) -> bool:
    if found is None or found.rule is WAKER_UNKNOWN:
        return False
    return found.rule.severity >= rule.severity


def _name(cause: Finding) -> str:
    return f"{cause.rule.id} {cause.rule.slug} ({cause.confidence.name.lower()})"


def _function(place: SleepPlace) -> Maybe[str]:
    if place.function is None:
        return Absent("the stack cannot be unwound")
    return place.function.partition(".")[0]


def _signature_functions(functions: List[str], place: SleepPlace) -> List[str]:
    """The callers of the wait, without the compiler's suffixes."""
    first = place.function if place.kind is None else place.called_from
    start = functions.index(first) if first in functions else 0
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
            number_from(0),
            metavar="N",
        ),
    ),
    requires=Requires(builtin=("struct task_struct",)),
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
