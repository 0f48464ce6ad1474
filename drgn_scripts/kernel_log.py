# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the kernel itself reported in its log: lockups, stalls, OOM kills, oopses.

Reports of the same kind and stack make one finding. The kernel printed them, so
that it did is proven; why it came to it other analyses say. A report names the
task, the CPU or the slab object that it is about: the task is linked if it still
lives, with the same PID and name, and was there at the time; the object if the
kernel printed its address, which without no_hash_pointers it does not.

Some reports are rows and no findings: of a task that still is blocked, which
hung-tasks reports; a panic that only follows from another report, or was asked
for by sysrq; SLUB's traces. What left the log's ring, or
came in through /dev/kmsg, is not seen.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
from drgn import FaultError, Object
from drgn.helpers import ValidationError

from vmcore_tools.analysis import Analysis, Context
from vmcore_tools.kernel.log_reports import LogReport as Report
from vmcore_tools.kernel.log_reports import ReportKind, cause_functions, parse_reports
from vmcore_tools.kernel.printk import log_records
from vmcore_tools.kernel.slab import ObjectState, slab_index
from vmcore_tools.kernel.task import find_task, is_queued, is_uninterruptible, task_comm
from vmcore_tools.model import (
    Absent,
    Confidence,
    Evidence,
    Finding,
    Frame,
    Kind,
    Maybe,
    Ref,
    Rule,
    Severity,
    Stack,
    column,
)

_NS_PER_SECOND = 1_000_000_000
_SIGNATURE_FRAMES = 5
#: Tasks that a finding names; the count is always whole.
_TASKS_NAMED = 20

_PAGE = """\
The kernel printed it, and so the finding is `proven` as a report; what caused it
is not claimed. Reports of the same kind with the same functions on their stacks
make one finding. Frames that the kernel marked with "?" are left out."""


def _rule(id: str, slug: str, severity: Severity, summary: str, remedy: str) -> Rule:
    return Rule(id=id, slug=slug, severity=severity, summary=summary, remedy=remedy, page=_PAGE)


HUNG_TASK = _rule(
    "VT601",
    "hung-task-report",
    Severity.INFO,
    "khungtaskd reported a task that was blocked for too long, and is not any more.",
    "Read the stack: what the task waited for came late, and may do so again.",
)
SOFT_LOCKUP = _rule(
    "VT602",
    "soft-lockup",
    Severity.ERROR,
    "A CPU ran in the kernel for too long without letting another task run.",
    "Read the stack of the task that had the CPU: a loop without cond_resched(), or a lock.",
)
HARD_LOCKUP = _rule(
    "VT603",
    "hard-lockup",
    Severity.ERROR,
    "A CPU took no interrupts for too long.",
    "Read that CPU's stack: a loop or a spinlock with interrupts off, or firmware.",
)
WORKQUEUE_LOCKUP = _rule(
    "VT604",
    "workqueue-lockup",
    Severity.WARNING,
    "A worker pool made no progress while work was pending.",
    "wait-graph and workqueues show the pool and who holds its CPU or its workers.",
)
RCU_STALL = _rule(
    "VT605",
    "rcu-stall-report",
    Severity.WARNING,
    "An RCU grace period did not end in time.",
    "Look at what the named CPUs and tasks ran: run-queues shows what they run now.",
)
OOM_KILL = _rule(
    "VT606",
    "oom-kill",
    Severity.WARNING,
    "The kernel ran out of memory and killed a task.",
    "memory shows what RAM is used for now: anonymous, shared, slab. If processes have most of "
    "it, look for the one that grew; if the slab has, slabs and slab-leaks show what is there.",
)
SLUB_REPORT = _rule(
    "VT607",
    "slub-report",
    Severity.ERROR,
    "SLUB found an object or a slab overwritten, or freed wrongly.",
    "Look for who writes to freed objects or past the end; slab-tracks knows allocations.",
)
REFCOUNT = _rule(
    "VT608",
    "refcount-warning",
    Severity.ERROR,
    "A reference count went wrong: too many puts, or a use after the last one.",
    "Read the stack: the put or get that hit it is one too many, or follows one.",
)
WARNING = _rule(
    "VT609",
    "kernel-warning",
    Severity.WARNING,
    "The kernel came to a place that it warns of.",
    "Read the stack, and the source at the place that the warning names.",
)
OOPS = _rule(
    "VT610",
    "kernel-oops",
    Severity.ERROR,
    "The kernel met a BUG(), a fault or a bad state.",
    "Read the stack from the top: the first function is where it happened.",
)
PANIC = _rule(
    "VT611",
    "kernel-panic",
    Severity.ERROR,
    "The kernel gave up, for a reason that no other report names.",
    "Read the reason and the stack of the panic.",
)
KMEMLEAK = _rule(
    "VT612",
    "kmemleak-report",
    Severity.INFO,
    "kmemleak told of new suspected leaks.",
    "The analysis kmemleak lists them.",
)

_RULES: Dict[ReportKind, Rule] = {
    ReportKind.HUNG_TASK: HUNG_TASK,
    ReportKind.SOFT_LOCKUP: SOFT_LOCKUP,
    ReportKind.HARD_LOCKUP: HARD_LOCKUP,
    ReportKind.WORKQUEUE_LOCKUP: WORKQUEUE_LOCKUP,
    ReportKind.RCU_STALL: RCU_STALL,
    ReportKind.OOM: OOM_KILL,
    ReportKind.SLUB: SLUB_REPORT,
    ReportKind.REFCOUNT: REFCOUNT,
    ReportKind.WARNING: WARNING,
    ReportKind.OOPS: OOPS,
    ReportKind.PANIC: PANIC,
    ReportKind.KMEMLEAK: KMEMLEAK,
}
#: How many times as much memory one use has of another that it is not for.
_DECISIVE = 4
#: Panics that follow from a report, or that somebody asked for.
_FOLLOWS = re.compile(
    r"hung_task: |softlockup: |Hard LOCKUP|Watchdog detected hard LOCKUP|RCU Stall"
    r"|Fatal exception|Oops|.{0,40}panic_on_warn set|Out of memory|out of memory"
    r"|System is deadlocked on memory|sysrq triggered crash"
)
#: Before "sysrq: Use panic() to force a crash" (8341f2f222d7, v4.20) sysrq made an oops.
_ASKED_FOR = "sysrq_handle_crash"
_UNREAD = Absent("the task cannot be read")
_NO_FINDING: Dict[ReportKind, str] = {
    ReportKind.HUNG_TASK: "the task still is blocked: hung-tasks reports it",
    ReportKind.SLUB_TRACE: "it is a trace, and nothing is wrong",
}
_FOLLOWS_REASON = "it follows from another report, or was asked for"


@dataclasses.dataclass(frozen=True)
class LogReport:
    """A report of the kernel in its log, the oldest first."""

    seq: int = column(Kind.NUMBER)
    timestamp_ns: int = column(Kind.DURATION)
    report: str = column(Kind.TEXT)
    rule: Maybe[str] = column(Kind.TEXT)
    detail: str = column(Kind.SENSITIVE)
    cpu: Maybe[int] = column(Kind.NUMBER)
    pid: Maybe[int] = column(Kind.PID)
    comm: Maybe[str] = column(Kind.SENSITIVE)
    stuck_ns: Maybe[int] = column(Kind.DURATION)
    task: Maybe[int] = column(Kind.ADDRESS)
    still_blocked: Maybe[bool] = column(Kind.TEXT)
    cache: Maybe[str] = column(Kind.UNTRUSTED)
    object: Maybe[int] = column(Kind.ADDRESS)
    object_state: Maybe[str] = column(Kind.TEXT)
    stack: Maybe[str] = column(Kind.STACK)


@dataclasses.dataclass(frozen=True)
class _Linked:
    """A report, and what of it is still there."""

    report: Report
    functions: Tuple[str, ...]
    task: Maybe[Object]
    still_blocked: Maybe[bool]
    object: Maybe[int]
    object_state: Maybe[str]
    stack: Optional[Stack]
    others: Tuple[Object, ...]

    @property
    def signature(self) -> Tuple[str, ...]:
        # Who happens to ask for the last page is no part of why there is none.
        functions = () if self.report.kind is ReportKind.OOM else self.functions
        return (self.report.kind.value, self.report.detail, *functions)


def analyze(ctx: Context) -> Iterator[Any]:
    try:
        records = log_records(ctx.prog)
    except (FaultError, LookupError, ValidationError) as error:
        ctx.coverage.gap("kernel log", f"it cannot be read: {error}")
        return
    found = parse_reports(records)
    if found.left_out:
        ctx.coverage.gap("report in the kernel log", "there are too many", count=found.left_out)
    if found.beginning_lost:
        ctx.coverage.gap("report in the kernel log", "its beginning was overwritten")
    elif records and records[0].seq:
        ctx.coverage.gap(
            "record of the kernel log", "it was overwritten", count=records[0].seq, material=False
        )

    objects = _object_states(ctx, found.reports)
    groups: Dict[Tuple[str, ...], List[_Linked]] = {}
    rows = []
    stacks = set()
    for report in found.reports:
        linked = _link(ctx, report, objects)
        if linked.stack is not None and linked.stack.id not in stacks:
            stacks.add(linked.stack.id)
            yield linked.stack
        rule = _rule_of(linked)
        rows.append(_row(linked, rule))
        if rule is not None:
            groups.setdefault((rule.id, *linked.signature), []).append(linked)
    for (_, *_key), group in groups.items():
        yield _finding(ctx, _RULES[group[0].report.kind], group)
    yield from rows


def _rule_of(linked: _Linked) -> Optional[Rule]:
    report = linked.report
    if linked.still_blocked is True:
        return None
    if report.kind is ReportKind.PANIC and _FOLLOWS.match(report.detail):
        return None
    if any(frame.function == _ASKED_FOR for frame in report.frames):
        return None
    return _RULES.get(report.kind)


def _link(ctx: Context, report: Report, objects: Dict[int, str]) -> _Linked:
    task = _task(ctx, report)
    still_blocked: Maybe[bool] = Absent("it is no report of a blocked task")
    if report.kind is ReportKind.HUNG_TASK:
        still_blocked = Absent("the task is not there any more")
        if task == _UNREAD:
            still_blocked = _UNREAD
        elif not isinstance(task, Absent):
            try:
                still_blocked = is_uninterruptible(task) and not is_queued(task)
            except FaultError as error:
                ctx.coverage.gap("task", f"it cannot be read: {error}", task.value_())
                still_blocked = _UNREAD
    address: Maybe[int] = Absent("the report names no object")
    state: Maybe[str] = Absent("the report names no object")
    if report.object is not None:
        # ad67b74d2469 ("printk: hash addresses printed with %p") in v4.15: 32 bits are left.
        hashed = Absent("the kernel printed a hash of the address")
        is_address = bool(report.object >> 63)
        address = report.object if is_address else hashed
        state = objects[report.object] if is_address else hashed
    functions = cause_functions(report, _SIGNATURE_FRAMES)
    if not functions:
        functions = tuple(report.functions[:_SIGNATURE_FRAMES])
    stack = _stack(report)
    others = tuple(_other_tasks(ctx, report))
    return _Linked(report, functions, task, still_blocked, address, state, stack, others)


def _other_tasks(ctx: Context, report: Report) -> Iterator[Object]:
    """The tasks that a report names by their PIDs alone, if they are still there."""
    for pid in report.pids:
        task = _task_of_pid(ctx, report, pid, None)
        if pid != report.pid and not isinstance(task, Absent):
            yield task


def _task(ctx: Context, report: Report) -> Maybe[Object]:
    """The task that a report names, if it is still there."""
    if report.pid is None or report.comm is None:
        return Absent("the report names no task")
    if report.pid == 0:
        return Absent("the CPU was idle")
    return _task_of_pid(ctx, report, report.pid, report.comm)


def _task_of_pid(ctx: Context, report: Report, pid: int, comm: Optional[str]) -> Maybe[Object]:
    gone = Absent("no task with this PID and name was there at the time and still is")
    try:
        task = find_task(ctx.prog, pid)
        if not task or (comm is not None and task_comm(task) != comm):
            return gone
        # The log's clock and that of start_time are not the same one.
        slack_ns = _NS_PER_SECOND + report.timestamp_ns // 1000
        if task.start_time.value_() > report.timestamp_ns + slack_ns:
            return gone
        return task.read_()
    except FaultError as error:
        ctx.coverage.gap("task", f"it cannot be read: {error}", error.address)
        return _UNREAD


def _object_states(ctx: Context, reports: List[Report]) -> Dict[int, str]:
    """Of the objects that reports name by address; hashes are none."""
    addresses = sorted({r.object for r in reports if r.object is not None and r.object >> 63})
    if not addresses:
        return {}
    words = np.array(addresses, dtype=np.uint64)
    index = slab_index(ctx.prog, ctx.memory)
    in_slab = index.find(words) >= 0
    states = index.object_states(words)
    names = {ObjectState.ALLOCATED: "allocated", ObjectState.FREE: "free"}
    return {
        address: names.get(ObjectState(int(state)), "unknown") if known else "in no slab"
        for address, known, state in zip(addresses, in_slab.tolist(), states.tolist())
    }


def _stack(report: Report) -> Optional[Stack]:
    if not report.frames:
        return None
    notes = []
    guesses = sum(not frame.reliable for frame in report.frames)
    if guesses:
        notes.append('frames that the kernel marked with "?" are left out')
    if report.more_frames:
        notes.append(f"it has more than {len(report.frames)} frames")
    if report.interleaved:
        notes.append("lines of several CPUs were mixed in the log: it may not be whole")
    return Stack(
        tuple(
            Frame(frame.function, frame.module, frame.offset, frame.size, None, None, False)
            for frame in report.frames
            if frame.reliable
        ),
        note="; ".join(notes) or None,
    )


def _maybe(value: Any, reason: str) -> Any:
    return Absent(reason) if value is None else value


def _address(task: Maybe[Object]) -> Maybe[int]:
    return task if isinstance(task, Absent) else int(task.value_())


def _stuck_ns(report: Report) -> Maybe[int]:
    if report.seconds is None:
        return Absent("the report tells no time")
    return report.seconds * _NS_PER_SECOND


def _row(linked: _Linked, rule: Optional[Rule]) -> LogReport:
    report = linked.report
    no_rule = _NO_FINDING.get(report.kind, _FOLLOWS_REASON)
    return LogReport(
        seq=report.seq,
        timestamp_ns=report.timestamp_ns,
        report=report.kind.value,
        rule=Absent(no_rule) if rule is None else rule.id,
        detail=report.detail,
        cpu=_maybe(report.cpu, "the report names no CPU"),
        pid=_maybe(report.pid, "the report names no task"),
        comm=_maybe(report.comm, "the report names no task"),
        stuck_ns=_stuck_ns(report),
        task=_address(linked.task),
        still_blocked=linked.still_blocked,
        cache=_maybe(report.cache, "the report names no cache"),
        object=linked.object,
        object_state=linked.object_state,
        stack=Absent("the report has no stack") if linked.stack is None else linked.stack.id,
    )


_UNREAD_TASK = (
    "khungtaskd reported that {comm} ({pid}) was blocked for more than {stuck_ns}; whether it still"
    " is cannot be read"
)
_MESSAGES: Dict[ReportKind, str] = {
    ReportKind.HUNG_TASK: (
        "khungtaskd reported that {comm} ({pid}) was blocked for more than {stuck_ns}; it is not"
        " any more"
    ),
    ReportKind.SOFT_LOCKUP: "CPU {cpu} was stuck for {stuck_ns} in {function}, with {comm} ({pid})",
    ReportKind.HARD_LOCKUP: "CPU {cpu} took no interrupts, in {function}, with {comm} ({pid})",
    ReportKind.WORKQUEUE_LOCKUP: (
        "A worker pool (CPU {cpu}) made no progress for {stuck_ns}; works in flight: {works}"
    ),
    ReportKind.RCU_STALL: "{detail} reported a stall",
    ReportKind.OOM: "The kernel ran out of memory",
    ReportKind.SLUB: "SLUB reported {detail} in {cache}, seen by {comm} ({pid})",
    ReportKind.REFCOUNT: "The kernel reported a reference count: {detail}, in {comm} ({pid})",
    ReportKind.WARNING: "The kernel warned: {detail}, in {comm} ({pid})",
    ReportKind.OOPS: "The kernel reported {detail} in {function}, in {comm} ({pid})",
    ReportKind.PANIC: "The kernel panicked: {detail}",
    ReportKind.KMEMLEAK: "kmemleak told of {leaks} new suspected leaks",
}


def _finding(ctx: Context, rule: Rule, group: List[_Linked]) -> Finding:
    first = next((linked for linked in group if linked.report.pid is not None), group[0])
    report = first.report
    times = [linked.report.timestamp_ns for linked in group]
    # A task is often reported again and again.
    tasks = {(linked.report.pid, linked.report.comm): linked for linked in group}
    evidence = [
        Evidence("reports", Kind.COUNT, len(group)),
        Evidence("first_ns", Kind.DURATION, min(times)),
        Evidence("last_ns", Kind.DURATION, max(times)),
        Evidence("detail", Kind.SENSITIVE, report.detail),
        Evidence("text", Kind.SENSITIVE, report.text[:200]),
        Evidence("cpu", Kind.NUMBER, _maybe(report.cpu, "not told")),
        Evidence("pid", Kind.PID, _maybe(report.pid, "not told")),
        Evidence("comm", Kind.SENSITIVE, _maybe(report.comm, "not told")),
        Evidence("function", Kind.UNTRUSTED, first.functions[0] if first.functions else _unknown()),
    ]
    message = _MESSAGES[report.kind]
    # A dump can lack the task that its log names.
    unread = [linked for linked in group if linked.still_blocked == _UNREAD]
    if unread:
        message = _UNREAD_TASK
    if report.seconds is not None:
        longest = max(linked.report.seconds or 0 for linked in group)
        evidence.append(Evidence("stuck_ns", Kind.DURATION, longest * _NS_PER_SECOND))
    if report.kind is ReportKind.OOM and report.pid is not None:
        message += " and killed {comm} ({pid})"
    if report.kind is ReportKind.OOM:
        if report.detail.startswith("Memory cgroup"):
            message = message.replace("The kernel", "A memory cgroup", 1)
        told, text = _memory(ctx, report)
        evidence += told
        message += text
    elif report.kind is ReportKind.WORKQUEUE_LOCKUP:
        evidence.append(Evidence("works", Kind.UNTRUSTED, tuple(report.functions[:_TASKS_NAMED])))
    elif report.kind is ReportKind.RCU_STALL:
        message += "" if report.pid is None else ", with {comm} ({pid})"
        message += "" if report.cpu is None else " on CPU {cpu}"
        evidence.append(Evidence("cpus", Kind.NUMBER, tuple(sorted(set(report.cpus)))))
    elif report.kind is ReportKind.SLUB:
        evidence += [
            Evidence("cache", Kind.UNTRUSTED, _maybe(report.cache, "not told")),
            Evidence("object", Kind.ADDRESS, first.object),
            Evidence("object_state", Kind.TEXT, first.object_state),
        ]
    elif report.kind is ReportKind.KMEMLEAK:
        leaks = sum(linked.report.count or 0 for linked in group)
        evidence.append(Evidence("leaks", Kind.COUNT, leaks))
    if len(group) > 1:
        message += " ({reports} reports)"
    refs = [_ref(linked) for linked in list(tasks.values())[:_TASKS_NAMED]]
    others = {task.value_(): task for linked in group for task in linked.others}
    refs += [
        Ref("task", task_comm(task), int(task.value_()), int(task.pid.value_()), Kind.SENSITIVE)
        for task in list(others.values())[:_TASKS_NAMED]
    ]
    return Finding(
        rule=rule,
        confidence=Confidence.LIKELY if unread else Confidence.PROVEN,
        message=message + ".",
        subject=refs[0],
        evidence=tuple(evidence),
        signature_key=first.signature,
        related=tuple(refs[1:]),
        stacks=() if first.stack is None else (first.stack.id,),
        unread=("whether the task is still blocked",) if unread else (),
    )


def _memory(ctx: Context, report: Report) -> Tuple[List[Evidence], str]:
    """Who had the memory when there was none left, as the kernel itself told it; and a text."""
    evidence: List[Evidence] = []
    text = ""
    victim, pages = report.victim_bytes, report.memory_pages
    resident = [victim[name] for name in ("anon-rss", "file-rss", "shmem-rss") if name in victim]
    if resident:
        evidence.append(Evidence("victim_resident_bytes", Kind.BYTES, sum(resident)))
        text += ", which had {victim_resident_bytes} of it"
    for name in ("anon-rss", "file-rss", "shmem-rss", "total-vm"):
        if name in victim:
            words = "victim_" + name.replace("-", "_") + "_bytes"
            evidence.append(Evidence(words, Kind.BYTES, victim[name]))
    parts = (("active_anon", "inactive_anon"), ("slab_reclaimable", "slab_unreclaimable"))
    if not all(name in pages for names in parts for name in names):
        return evidence, text
    page_bytes = ctx.memory.page_map.page_size_bytes
    of_processes, slab = (sum(pages[name] for name in names) * page_bytes for names in parts)
    evidence += [
        Evidence("of_processes_bytes", Kind.BYTES, of_processes),
        Evidence("shared_bytes", Kind.BYTES, pages.get("shmem", 0) * page_bytes),
        Evidence("slab_bytes", Kind.BYTES, slab),
    ]
    text += "; {of_processes_bytes} were anonymous and shared memory, {slab_bytes} slab"
    if of_processes >= _DECISIVE * slab:
        text += ": processes had it, not the slab"
    elif slab >= _DECISIVE * of_processes:
        text += ": the slab had it, not processes"
    return evidence, text


def _unknown() -> Absent:
    return Absent("the report has no stack of the kernel")


def _ref(linked: _Linked) -> Ref:
    report = linked.report
    if report.kind is ReportKind.SLUB:
        address = linked.object
        return Ref(
            "slab object",
            _maybe(report.cache, "not told"),
            None if isinstance(address, Absent) else address,
        )
    if report.pid is None or report.comm is None:
        name = Absent("not told") if report.cpu is None else f"CPU {report.cpu}"
        return Ref("kernel" if report.cpu is None else "cpu", name)
    address = _address(linked.task)
    return Ref(
        "task",
        report.comm,
        None if isinstance(address, Absent) else address,
        report.pid,
        Kind.SENSITIVE,
    )


ANALYSIS = Analysis(
    name="kernel-log",
    analyze=analyze,
    tables=(LogReport,),
    rules=tuple(_RULES.values()),
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
