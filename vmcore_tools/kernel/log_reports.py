# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The kernel's own reports of trouble in its log: lockups, stalls, oopses.

Text in, plain values out: no drgn. The formats are those of v4.19 to v7.2.
Only what the kernel wrote is read: records that came through /dev/kmsg have a
facility. A report begins with the first line of a record and at the log level
that the kernel uses, so that neither a newline in a task's name nor a segfault's
message can forge one. Lines of several CPUs are told apart by their caller where
the records have it; where they do not, a report whose lines met another's says so.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from typing import Dict, Iterable, List, Optional, Tuple, Union

from vmcore_tools.kernel.printk import LogRecord

_NS_PER_SECOND = 1_000_000_000
#: Reports that are kept; all are counted.
REPORTS_MAX = 2000
#: Frames of one stack.
FRAMES_MAX = 100
#: Characters of a line that are looked at.
_LINE_MAX = 1000
_LINES_OF_RECORD_MAX = 200
#: CPUs or functions that a report names in its body.
_NAMES_MAX = 64
#: Lines of a report follow each other at once.
_PAUSE_MAX_NS = 2 * _NS_PER_SECOND
#: Others' lines within a stack, where callers are unknown.
_STRAY_LINES_MAX = 8
_KERN_WARNING = 4  # include/linux/kern_levels.h


class ReportKind(enum.Enum):
    """What the kernel reports."""

    HUNG_TASK = "hung task"
    SOFT_LOCKUP = "soft lockup"
    HARD_LOCKUP = "hard lockup"
    WORKQUEUE_LOCKUP = "workqueue lockup"
    RCU_STALL = "rcu stall"
    OOM = "oom kill"
    SLUB = "slub report"
    SLUB_TRACE = "slub trace"
    REFCOUNT = "refcount warning"
    WARNING = "warning"
    OOPS = "oops"
    PANIC = "panic"
    KMEMLEAK = "kmemleak"


@dataclasses.dataclass(frozen=True)
class LogFrame:
    """A frame as the kernel printed it; not *reliable*: marked with a ``?``."""

    function: str
    offset: Optional[int]
    size: Optional[int]
    module: Optional[str]
    reliable: bool


@dataclasses.dataclass
class LogReport:
    """
    One report.

    :ivar seq: sequence number of its first record
    :ivar text: its first line
    :ivar detail: what happened, free of addresses, numbers and names of tasks
    :ivar cpu: the CPU that it is about
    :ivar pid: the task that it names, or that ran; for an OOM kill the victim
    :ivar comm: that task's name
    :ivar seconds: how long it had been stuck
    :ivar count: of leaks, for kmemleak
    :ivar cpus: CPUs that an RCU stall names
    :ivar functions: of works in flight, for a workqueue lockup
    :ivar pids: other tasks that it names: the workers of these works, blocked RCU readers
    :ivar cache: slab cache
    :ivar object: the object's address as printed, which may be hashed
    :ivar victim_bytes: what an OOM kill says of the victim: ``total-vm``, ``anon-rss``,
        ``file-rss`` and ``shmem-rss``
    :ivar memory_pages: what it says of all memory: ``active_anon``, ``inactive_anon``,
        ``shmem``, ``slab_reclaimable`` and ``slab_unreclaimable``
    :ivar frames: the stack, innermost first
    :ivar more_frames: the stack was longer
    :ivar interleaved: lines of another report were between this one's, and
        nothing says whose they are
    """

    kind: ReportKind
    seq: int
    timestamp_ns: int
    text: str
    detail: str = ""
    cpu: Optional[int] = None
    pid: Optional[int] = None
    comm: Optional[str] = None
    seconds: Optional[int] = None
    count: Optional[int] = None
    cpus: List[int] = dataclasses.field(default_factory=list)
    functions: List[str] = dataclasses.field(default_factory=list)
    pids: List[int] = dataclasses.field(default_factory=list)
    cache: Optional[str] = None
    object: Optional[int] = None
    victim_bytes: Dict[str, int] = dataclasses.field(default_factory=dict)
    memory_pages: Dict[str, int] = dataclasses.field(default_factory=dict)
    frames: List[LogFrame] = dataclasses.field(default_factory=list)
    more_frames: bool = False
    interleaved: bool = False


@dataclasses.dataclass(frozen=True)
class LogReports:
    """
    :ivar reports: the oldest first, at most :data:`REPORTS_MAX`
    :ivar left_out: how many more there are
    :ivar beginning_lost: the log begins within a stack: of what report, its
        overwritten part would say
    """

    reports: List[LogReport]
    left_out: int
    beginning_lost: bool


_COMM = r"(?P<comm>.{0,32}?)"
_SECONDS = r"(?P<seconds>\d{1,9})"
#: What a first line looks like; ``detail`` is in the signature. The order counts.
_HEADLINES: Tuple[Tuple[ReportKind, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern, re.DOTALL))
    for kind, pattern in (
        # kernel/hung_task.c.
        (
            ReportKind.HUNG_TASK,
            rf"INFO: task {_COMM}:(?P<pid>\d{{1,9}}) blocked (?:in I/O wait )?"
            rf"for more than {_SECONDS} seconds",
        ),
        # kernel/watchdog.c; the prefix is pr_fmt()'s.
        (
            ReportKind.SOFT_LOCKUP,
            r"(?:NMI )?(?:watchdog: )?BUG: soft lockup - CPU#(?P<cpu>\d{1,6}) "
            rf"stuck for {_SECONDS}s! \[{_COMM}:(?P<pid>\d{{1,9}})\]",
        ),
        # kernel/watchdog_hld.c, watchdog.c from v6.5; arch/powerpc/kernel/watchdog.c.
        (
            ReportKind.HARD_LOCKUP,
            r"(?:NMI )?(?:watchdog: )?(?:CPU\d+: )?Watchdog detected hard LOCKUP "
            r"on cpu (?P<cpu>\d{1,6})",
        ),
        (
            ReportKind.HARD_LOCKUP,
            r"(?:watchdog: )?CPU (?P<cpu>\d{1,6}) (?:self-)?detected hard LOCKUP",
        ),
        # kernel/workqueue.c: wq_watchdog_timer_fn().
        (
            ReportKind.WORKQUEUE_LOCKUP,
            r"BUG: workqueue lockup - pool (?:cpus=(?P<cpu>\d{1,6})(?![-,\d]))?"
            rf".{{0,200}}stuck for {_SECONDS}s!",
        ),
        # kernel/rcu/tree_stall.h, tree.c before v5.1.
        (
            ReportKind.RCU_STALL,
            r"(?:rcu: )?INFO: (?P<detail>\w{1,32}) (?:self-detected stall on CPU"
            r"|detected (?:expedited )?stalls on CPUs/tasks)",
        ),
        # mm/oom_kill.c.
        (ReportKind.OOM, r".{0,32}? invoked oom-killer: "),
        (
            ReportKind.OOM,
            r"(?P<detail>Out of memory|Memory cgroup out of memory)[^:]{0,64}: "
            rf"Kill(?:ed)? process (?P<pid>\d{{1,9}}) \({_COMM}\)",
        ),
        (ReportKind.OOM, rf"Killed process (?P<pid>\d{{1,9}}) \({_COMM}\) total-vm:"),
        # mm/slub.c: slab_bug(), trace(). Until the kernel has random numbers, it prints
        # no address at all.
        (
            ReportKind.SLUB,
            r"BUG (?P<cache>[^\s()]{1,64}(?:\(\d+:[^)]{0,64}\))?) "
            r"\((?:Not tainted|Tainted: ).{0,120}?\): (?P<detail>.{1,80})",
        ),
        (
            ReportKind.SLUB_TRACE,
            r"TRACE (?P<cache>[^\s()]{1,64}(?:\(\d+:[^)]{0,64}\))?) "
            r"(?P<detail>alloc|free) 0x(?:(?P<object>[0-9a-f]{1,16})|\(_*ptrval_*\)) inuse=",
        ),
        # lib/refcount.c.
        (ReportKind.REFCOUNT, r"refcount_t: (?P<detail>[^.]{1,80})"),
        # kernel/panic.c: __warn(), whose line 28ea295f941e changed in v6.19.
        (
            ReportKind.WARNING,
            r"WARNING: CPU: (?P<cpu>\d{1,6}) PID: (?P<pid>\d{1,9}) at (?:\S{1,200} )?"
            r"(?P<detail>[\w.$]{1,128})\+0x",
        ),
        (
            ReportKind.WARNING,
            r"WARNING: (?:\S{1,200} )?at (?P<detail>[\w.$]{1,128})\+0x\S{1,64}(?: \[\S+\])?, "
            rf"CPU#(?P<cpu>\d{{1,6}}): {_COMM}/(?P<pid>\d{{1,9}})\s*$",
        ),
        (ReportKind.WARNING, r"WARNING: CPU: (?P<cpu>\d{1,6}) PID: (?P<pid>\d{1,9}) at "),
        # kernel/locking/lockdep.c, kernel/rcu.
        (
            ReportKind.WARNING,
            r"(?:WARNING|INFO): (?P<detail>(?:possible |suspicious |inconsistent |bad "
            r"|lock |nested |held )[\w -]{1,60})",
        ),
        # mm/page_alloc.c: warn_alloc().
        (
            ReportKind.WARNING,
            rf"{_COMM}: (?P<detail>page allocation failure|page allocation stalls)\b",
        ),
        (ReportKind.PANIC, r"Kernel panic - not syncing: (?P<detail>.{0,200})"),
        # lib/bug.c, arch/*/kernel/traps.c, arch/*/mm/fault.c.
        (ReportKind.OOPS, r"kernel (?P<detail>BUG) at "),
        (
            ReportKind.OOPS,
            r"BUG: (?P<detail>(?:K[A-Z]{3,5}: )?[^:,]{1,80}?)(?: in | at | for |[:,]|\s*$)",
        ),
        (ReportKind.OOPS, r"Unable to handle (?P<detail>kernel [\w -]{1,60}?)(?: at |$)"),
        (
            ReportKind.OOPS,
            r"(?P<detail>general protection fault|invalid opcode|divide error|double fault"
            r"|stack segment|int3|Internal error|Oops)\b.{0,200}\[#\d+\]",
        ),
        (ReportKind.KMEMLEAK, r"kmemleak: (?P<count>\d{1,9}) new suspected memory leaks"),
    )
)
#: No line without one of these begins a report: most of a log is passed over.
_HINT = re.compile(
    r"INFO: |BUG|LOCKUP|oom-killer|Kill|TRACE |refcount_t|WARNING: |allocation (?:failure|stalls)"
    r"|Kernel panic|Unable to handle|\[#\d|kmemleak: "
)
#: The levels of these are KERN_INFO.
_INFO_KINDS = (ReportKind.SLUB_TRACE, ReportKind.KMEMLEAK)

#: For these the kernel wants to know what a CPU is at.
_OF_CPUS = (ReportKind.RCU_STALL, ReportKind.HARD_LOCKUP, ReportKind.SOFT_LOCKUP)

_SYMBOL = (
    r"(?P<function>[A-Za-z_.$][\w.$]{0,127})\+0x(?P<offset>[0-9a-f]{1,8})/0x(?P<size>[0-9a-f]{1,8})"
    r"(?: \[(?P<module>[\w-]{1,64})(?: [0-9a-f]{1,40})?\])?"  # 9294523e3768 (v5.14): build IDs
)
# arm64 names what a frame was found by: " (P)", " (C)"; powerpc "(unreliable)".
_FRAME = re.compile(
    r"(?:\s{1,8}|(?=\[))(?:\[<?[0-9a-f]{8,16}>?\]\s{0,4}){0,2}(?P<guess>\? )?"
    rf"(?:{_SYMBOL}|0x[0-9a-f]{{8,16}})(?: \((?:[A-Z]{{1,4}}|unreliable)\))?\s*$"
)
_INSTRUCTION = re.compile(rf"(?:RIP: 0010:|pc : |NIP \[[0-9a-f]+\] )(?:\[<[0-9a-f]+>\] )?{_SYMBOL}")
_TRACE_BEGINS = re.compile(r"\s*(?:Call [Tt]race:|Backtrace:|Call Backtrace:)")
_TRACE_ENDS = re.compile(r"\s*(?:</TASK>|---\[ end )")
#: Registers, code and dumped bytes, which are between frames and about stacks.
_PART_OF_TRACE = re.compile(
    r"\s*(?:</?(?:IRQ|TASK|NMI|SOFTIRQ|EOI|#\w+)>|[RE][A-Z0-9]{2}: |R\d\d: |[CDEFGS]S: |CR\d: "
    r"|DR\d: |ORIG_RAX|Code: |[xpls][\dcprt]\w* ?: |Object |Redzone |Padding |Bytes b4 "
    r"|Hardware name: |Workqueue: |Modules linked in: |Sending NMI |irq event stamp"
    r"|(?:hard|soft)irqs last )"
)
_CPU_LINE = re.compile(
    r"CPU: (\d{1,6}) (?:UID: \d{1,10} )?PID: (\d{1,9}) Comm: (.{0,32}?) "
    r"(?:Kdump: loaded )?(?:Not tainted|Tainted: )",
    re.DOTALL,
)
_TASK_LINE = re.compile(r"task:(.{0,32}?) +state:\S.{0,40}? pid: *(\d{1,9})\b", re.DOTALL)
_NMI_LINE = re.compile(r"NMI backtrace for cpu (\d{1,6})")
_STALLED_CPU = re.compile(r"(?:rcu: )?\s*(\d{1,6})-[-.!?OoNDd\w]{3,8}: \(")
_IN_FLIGHT = re.compile(r"\s*in-flight: (.{0,900})")
_WORK = re.compile(r"(\d{1,9})(?:\(RESCUER\))?:([\w.$]{1,128})")
_READERS = re.compile(
    r"(?:rcu: )?\s*Tasks blocked on level-\d{1,2} rcu_node \(CPUs [\d-]+\):(.{0,900})"
)
_READER = re.compile(r" P(\d{1,9})\b")
_SLUB_OBJECT = re.compile(r"(?:INFO: )?Object 0x([0-9a-f]{1,16}) @offset=")
#: __oom_kill_process(), and show_free_areas(), whose second line of nodes is in kB.
_VICTIM = re.compile(r"\b(total-vm|anon-rss|file-rss|shmem-rss):(\d{1,12})kB")
_MEMORY = re.compile(
    r"\b(active_anon|inactive_anon|shmem|slab_reclaimable|slab_unreclaimable):(\d{1,12})(?![\dk])"
)
_NUMBERS = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+")

_Caller = Union[None, Tuple[str, int]]


class _Stream:
    """What one caller writes, or all of them where callers are unknown."""

    def __init__(self) -> None:
        self.report: Optional[LogReport] = None  #: to which lines belong
        self.stack_of: Optional[LogReport] = None  #: to which frames belong
        self.last_ns = 0
        self.strays = 0


def parse_reports(records: Iterable[LogRecord]) -> LogReports:
    """The reports in a log; it never raises, whatever the log holds."""
    return _Parser().parse(records)


class _Parser:
    def __init__(self) -> None:
        self._reports: List[LogReport] = []
        self._left_out = 0
        self._streams: Dict[_Caller, _Stream] = {}

    def parse(self, records: Iterable[LogRecord]) -> LogReports:
        beginning_lost: Optional[bool] = None
        for record in records:
            if record.facility:
                continue  # devkmsg_write() gives user space no facility 0
            if beginning_lost is None:
                begin = record.text[:_LINE_MAX].decode(errors="backslashreplace")
                beginning_lost = record.seq > 0 and _is_of_trace(begin)
            self._record(record)
        return LogReports(self._reports, self._left_out, bool(beginning_lost))

    def _record(self, record: LogRecord) -> None:
        caller: _Caller = None
        if record.caller_tid is not None:
            caller = ("task", record.caller_tid)
        elif record.caller_cpu is not None:
            caller = ("cpu", record.caller_cpu)
        stream = self._streams.get(caller)
        text = record.text[: _LINE_MAX * 8].decode(errors="backslashreplace").lstrip("\n")
        report = self._headline(record, text[:_LINE_MAX]) if _HINT.search(text) else None
        if stream is None:
            if report is None and not _NMI_LINE.match(text):
                return
            stream = self._streams[caller] = _Stream()
        if record.timestamp_ns - stream.last_ns > _PAUSE_MAX_NS:
            stream.report = stream.stack_of = None
        stream.last_ns = record.timestamp_ns
        if report is not None:
            self._begin(stream, report, caller is None)
            return
        # With a newline in a task's name, the line is the record.
        lines = [text] if _CPU_LINE.match(text) or _TASK_LINE.match(text) else text.split("\n")
        for line in lines[:_LINES_OF_RECORD_MAX]:
            self._body(stream, line[:_LINE_MAX], caller is None)

    def _headline(self, record: LogRecord, text: str) -> Optional[LogReport]:
        for kind, pattern in _HEADLINES:
            match = pattern.match(text)
            if match is None or (record.level > _KERN_WARNING and kind not in _INFO_KINDS):
                continue
            found = match.groupdict()
            address = found.get("object")
            return LogReport(
                kind=kind,
                seq=record.seq,
                timestamp_ns=record.timestamp_ns,
                text=text.rstrip("\n"),
                detail=_NUMBERS.sub("N", (found.get("detail") or "").strip()),
                cpu=_integer(found.get("cpu")),
                pid=_integer(found.get("pid")),
                comm=found.get("comm"),
                seconds=_integer(found.get("seconds")),
                count=_integer(found.get("count")),
                cache=found.get("cache"),
                object=int(address, 16) if address else None,
                victim_bytes=_victim(text) if kind is ReportKind.OOM else {},
            )
        return None

    def _begin(self, stream: _Stream, report: LogReport, mixed: bool) -> None:
        earlier = stream.report
        if earlier is not None and _continues(earlier, report):
            _merge(earlier, report)
            return
        if len(self._reports) < REPORTS_MAX:
            self._reports.append(report)
        else:
            self._left_out += 1
        stream.report = report
        stream.strays = 0
        if not mixed:
            stream.stack_of = None

    def _body(self, stream: _Stream, line: str, mixed: bool) -> None:
        nmi = _NMI_LINE.match(line)
        if nmi:
            self._adopt(stream, int(nmi.group(1)))
            return
        report = stream.report
        if report is None:
            return
        frame, instruction = _FRAME.match(line), _INSTRUCTION.match(line)
        if frame or instruction:
            owner = stream.stack_of
            if owner is None and instruction and not report.frames:
                owner = report  # registers come before their stack
            if owner is not None:
                if owner is not report:
                    owner.interleaved = report.interleaved = True
                _add_frame(owner, frame or instruction)
        elif _TRACE_BEGINS.match(line):
            begun = len(report.frames) > 1
            stream.stack_of = None if begun else report
            stream.strays = 0
        elif _TRACE_ENDS.match(line):
            stream.stack_of = None
            if "end trace" in line:
                stream.report = None
        elif not _detail(report, line) and not _PART_OF_TRACE.match(line):
            stream.strays += 1
            if not mixed or stream.strays > _STRAY_LINES_MAX:
                stream.stack_of = None

    def _adopt(self, stream: _Stream, cpu: int) -> None:
        """What another CPU writes of itself, because a report asked for it."""
        for report in self._reports[: -4 - 1 : -1]:
            unnamed = report.cpu is None and not report.cpus
            about = report.cpu == cpu or cpu in report.cpus or unnamed
            recent = stream.last_ns - report.timestamp_ns < 10 * _NS_PER_SECOND
            if report.kind in _OF_CPUS and about and recent and not report.frames:
                stream.report, stream.stack_of = report, None
                if report.cpu is None:
                    report.cpu = cpu
                return
        # Another CPU's stack is none of this report's.
        stream.report = stream.stack_of = None


def _integer(digits: Optional[str]) -> Optional[int]:
    return int(digits) if digits else None


def _is_of_trace(line: str) -> bool:
    return bool(_FRAME.match(line) or _TRACE_BEGINS.match(line) or _TRACE_ENDS.match(line))


def _continues(earlier: LogReport, later: LogReport) -> bool:
    """Whether the later line is of the same report."""
    if earlier.kind is ReportKind.OOM and later.kind is ReportKind.OOM:
        return later.pid is not None and earlier.pid in (None, later.pid)
    faults = (ReportKind.OOPS, ReportKind.REFCOUNT, ReportKind.WARNING)
    if len(earlier.frames) > 1 or earlier.kind not in faults or later.kind not in faults:
        return False
    if earlier.kind is ReportKind.OOPS or later.kind is ReportKind.OOPS:
        return earlier.kind is later.kind  # "Oops: 0000 [#1]" behind what happened
    return earlier.kind is not later.kind  # "refcount_t: ..." before or behind "WARNING: ..."


def _merge(report: LogReport, line: LogReport) -> None:
    if report.kind is ReportKind.OOM:
        report.pid, report.comm, report.detail = line.pid, line.comm, line.detail or report.detail
        report.victim_bytes.update(line.victim_bytes)
        return
    if line.kind is ReportKind.REFCOUNT:
        report.kind, report.detail, report.text = line.kind, line.detail, line.text
    report.cpu = line.cpu if report.cpu is None else report.cpu
    report.pid = line.pid if report.pid is None else report.pid
    report.comm = line.comm if report.comm is None else report.comm


def _add_frame(report: LogReport, match: Optional[re.Match[str]]) -> None:
    if match is None:
        return
    if len(report.frames) >= FRAMES_MAX:
        report.more_frames = True
        return
    found = match.groupdict()
    if found["function"] is None:
        return  # an address in no symbol: it names nothing
    report.frames.append(
        LogFrame(
            found["function"],
            int(found["offset"], 16),
            int(found["size"], 16),
            found["module"],
            not found.get("guess"),
        )
    )


def _detail(report: LogReport, line: str) -> bool:
    """Take what a line of a report's body says; False for a line that says nothing."""
    of_cpu = _CPU_LINE.match(line)
    if of_cpu:
        names_task = report.kind in (ReportKind.HUNG_TASK, ReportKind.OOM)
        if not names_task and (report.pid is None or report.pid == int(of_cpu.group(2))):
            report.pid, report.comm = int(of_cpu.group(2)), of_cpu.group(3)
            report.cpu = int(of_cpu.group(1)) if report.cpu is None else report.cpu
        return True
    task = _TASK_LINE.match(line)
    if task:
        if report.kind is ReportKind.RCU_STALL and report.pid is None:
            report.comm, report.pid = task.group(1), int(task.group(2))
        return report.pid == int(task.group(2))
    if report.kind is ReportKind.RCU_STALL:
        stalled, readers = _STALLED_CPU.match(line), _READERS.match(line)
        if stalled and len(report.cpus) < _NAMES_MAX:
            report.cpus.append(int(stalled.group(1)))
        if readers:
            _add_pids(report, _READER.findall(readers.group(1)))
        return bool(stalled or readers)
    if report.kind is ReportKind.WORKQUEUE_LOCKUP:
        works = _IN_FLIGHT.match(line)
        found = _WORK.findall(works.group(1)) if works else []
        for _, name in found:
            if len(report.functions) < _NAMES_MAX and name not in report.functions:
                report.functions.append(name)
        _add_pids(report, [pid for pid, _ in found])
        return bool(works)
    if report.kind is ReportKind.OOM:
        told = _MEMORY.findall(line)
        for name, pages in told:
            report.memory_pages.setdefault(name, int(pages))
        return bool(told)
    if report.kind is ReportKind.SLUB and report.object is None:
        printed = _SLUB_OBJECT.match(line)
        if printed:
            report.object = int(printed.group(1), 16)
        return bool(printed)
    return False


def _victim(text: str) -> Dict[str, int]:
    return {name: int(kib) << 10 for name, kib in _VICTIM.findall(text)}


def _add_pids(report: LogReport, pids: Iterable[str]) -> None:
    for pid in map(int, pids):
        if len(report.pids) < _NAMES_MAX and pid not in report.pids:
            report.pids.append(pid)


#: What prints stacks; it is on top of those that it prints of itself.
_PRINTS = re.compile(
    r"(?:dump_backtrace|show_stack|show_trace|dump_stack|__?dump_stack|dump_stack_lvl|panic|vpanic"
    r"|__warn|report_bug|show_regs|print_\w+|object_err|slab_err|check_bytes_and_report|dump_header"
    r"|nmi_\w+|rcu_dump_cpu_stacks|kasan_report|end_report|__?warn_slowpath\w*|warn_alloc"
    r"|refcount_warn_saturate|__switch_to|context_switch|__schedule|schedule|schedule_timeout|schedule_preempt_disabled)"
)
#: Where the stack of an interrupt ends, and that of what it interrupted begins.
_INTERRUPT_ENTRIES = ("asm_sysvec_", "apic_timer_interrupt", "el1_irq", "el1h_64_irq")


def cause_functions(report: LogReport, count: int) -> Tuple[str, ...]:
    """
    The first functions of a report's stack, without what only printed it.

    Of a CPU that a timer interrupted to see where it is, what it interrupted.
    Suffixes of the compiler and frames marked as guesses are left out.
    """
    names = [frame.function.partition(".")[0] for frame in report.frames if frame.reliable]
    if report.kind in _OF_CPUS and names and _PRINTS.fullmatch(names[0]):
        entries = [at for at, name in enumerate(names) if name.startswith(_INTERRUPT_ENTRIES)]
        if entries and names[entries[0] + 1 :]:
            names = names[entries[0] + 1 :]
    while names and _PRINTS.fullmatch(names[0]):
        names.pop(0)
    return tuple(names[:count])
