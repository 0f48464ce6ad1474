# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a report is made of: plain, frozen data.

Nothing here imports drgn, reads a dump or formats text. An analysis makes
these values, the runner collects them in a :class:`Report`, and a renderer
turns that into text.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from typing import Any, Dict, Mapping, Optional, Tuple, TypeVar, Union

SCHEMA_VERSION = 1

#: What a table cell or a piece of evidence can hold.
Scalar = Union[int, str, bool, None]

T = TypeVar("T")


class Severity(enum.IntEnum):
    """How bad a finding is; ``--fail-on`` compares these."""

    INFO = 1
    WARNING = 2
    ERROR = 3
    CRITICAL = 4


class Confidence(enum.IntEnum):
    """
    How sure a finding is.

    ``PROVEN`` only if everything that could refute the finding was read.
    """

    SUSPECTED = 1
    LIKELY = 2
    PROVEN = 3


class Kind(enum.Enum):
    """What a value means, so that renderers format and mask without guessing."""

    ADDRESS = "address"  #: a kernel virtual address
    PID = "pid"  #: a process or thread ID
    BYTES = "bytes"  #: a size in bytes
    DURATION = "duration"  #: nanoseconds
    COUNT = "count"  #: a number of things
    NUMBER = "number"  #: an ID, a CPU, a sequence number: never grouped or scaled
    TEXT = "text"  #: a word from the debug info or from this project
    UNTRUSTED = "untrusted"  #: text from the dump that identifies nobody (a cache's name)
    SENSITIVE = "sensitive"  #: text from the dump that may identify somebody (a comm)
    STACK = "stack"  #: the ID of a :class:`Stack` in the same report


@dataclasses.dataclass(frozen=True)
class Absent:
    """A value that could not be read, and why; never 0, ``"-"`` or ``None``."""

    reason: str


#: A cell: the value, or why there is none.
Maybe = Union[T, Absent]


def column(kind: Kind) -> Any:
    """
    A field of a row dataclass.

    The field's name is the JSON key and the column heading, and ends in the
    unit where there is one (``wait_ns``, ``size_bytes``).
    """
    return dataclasses.field(metadata={"kind": kind})


def columns(row_type: type) -> Tuple[Tuple[str, Kind], ...]:
    """Name and kind of each field of a row dataclass, in order."""
    return tuple((field.name, field.metadata["kind"]) for field in dataclasses.fields(row_type))


@dataclasses.dataclass(frozen=True)
class Evidence:
    """One named fact; a tuple is a list of values of the same kind."""

    name: str
    kind: Kind
    value: Union[Scalar, Absent, Tuple[Scalar, ...]]


@dataclasses.dataclass(frozen=True)
class Ref:
    """The object that a finding or a graph is about."""

    type: str  #: a C type or the kernel's word: ``struct dma_fence``, ``task``
    name: Maybe[str]  #: what people call it: a comm, a cache's name
    address: Optional[int] = None
    pid: Optional[int] = None
    name_kind: Kind = Kind.UNTRUSTED


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame of a kernel stack, inline frames included."""

    function: str
    module: Optional[str]  #: the loadable module, None for vmlinux
    offset: Optional[int]  #: bytes from the symbol's start, None if inline
    size: Optional[int]  #: of the symbol, in bytes
    file: Optional[str]
    line: Optional[int]
    inline: bool


@dataclasses.dataclass(frozen=True)
class Stack:
    """A kernel stack. Equal stacks have equal IDs, in every dump."""

    frames: Tuple[Frame, ...]
    note: Optional[str] = None  #: why it ends early or is missing

    @property
    def id(self) -> str:
        key = [f"{f.module or ''}!{f.function}+{f.offset}:{f.line}" for f in self.frames]
        digest = hashlib.sha256("\n".join([*key, self.note or ""]).encode("utf-8", "surrogatepass"))
        return "stack-" + digest.hexdigest()[:10]


@dataclasses.dataclass(frozen=True)
class GraphNode:
    """A thing in a graph; the ID counts only in its graph."""

    id: str
    ref: Ref
    facts: Tuple[Evidence, ...] = ()


@dataclasses.dataclass(frozen=True)
class GraphEdge:
    """*source* depends on *target*; *why* fits between their names: "is queued on"."""

    source: str
    target: str
    why: str
    proven: bool


@dataclasses.dataclass(frozen=True)
class Graph:
    """
    What depends on what, up to the causes.

    *roots* are the causes' IDs; all other nodes depend on one of them.
    """

    nodes: Tuple[GraphNode, ...]
    edges: Tuple[GraphEdge, ...]
    roots: Tuple[str, ...]
    left_out: int = 0  #: nodes that would have made it too large
    caption: str = "who waits for whom, from the cause down"


@dataclasses.dataclass(frozen=True)
class Rule:
    """A kind of finding; the ID is never reused."""

    id: str  #: ``VT`` and three digits
    slug: str
    severity: Severity
    summary: str  #: one line: what it means
    remedy: str  #: one line: what to do next
    page: str = ""  #: for ``explain``: how it is decided, what it cannot see
    #: The rule in whose place its findings are listed, each as the analysis has ranked it.
    ranked_with: Optional[str] = None


@dataclasses.dataclass(frozen=True)
class KernelCommit:
    """A commit of the upstream kernel; *release* is the first with it: ``v5.9``."""

    commit: str
    subject: str
    release: str


#: What the release of a kernel that came after the fix says of an issue.
HAS_THE_FIX = "has the fix by its release: it was taken back, or it is something else"


@dataclasses.dataclass(frozen=True)
class KnownIssue:
    """
    An issue of kernels that a finding looks like; that it is it is never proven.

    *introduced* is empty where it is not known. *this_kernel* is what the
    kernel's release says, None without one; it knows nothing of backports.
    *missing* is what would tell whether the finding looks like it, None if
    that was compared.
    """

    id: str
    title: str
    explanation: str
    introduced: Tuple[KernelCommit, ...]
    fixed: Tuple[KernelCommit, ...]
    references: Tuple[str, ...]
    this_kernel: Optional[str] = None
    missing: Optional[str] = None


@dataclasses.dataclass(frozen=True)
class Finding:
    """
    One thing that is wrong.

    *message* is a template: each ``{name}`` is the evidence of that name, so
    that renderers can format and mask the values in it.

    *signature_key* names the bug without addresses, PIDs, counts or times:
    the same bug in two dumps has the same key. So it is made of nothing that
    only some kernels record, such as SLUB tracks: that is in *clues*, which
    known issues are compared with, too.
    """

    rule: Rule
    confidence: Confidence
    message: str
    subject: Ref
    evidence: Tuple[Evidence, ...]
    signature_key: Tuple[str, ...]
    related: Tuple[Ref, ...] = ()
    stacks: Tuple[str, ...] = ()
    unread: Tuple[str, ...] = ()  #: what could still refute it
    graph: Optional[Graph] = None
    known_issues: Tuple[KnownIssue, ...] = ()  #: the runner sets it, no analysis
    explained: bool = False  #: by another finding that is at least as severe, and listed first
    #: What goes on after the signature key; None: this kernel did not record it.
    clues: Optional[Tuple[str, ...]] = ()

    @property
    def signature(self) -> str:
        digest = hashlib.sha256("\0".join(self.signature_key).encode("utf-8", "surrogatepass"))
        return f"{self.rule.id}-{digest.hexdigest()[:12]}"

    def sort_key(self) -> Tuple[Any, ...]:
        rule = self.rule
        return (-rule.severity, self.explained, -self.confidence, rule.ranked_with or rule.id)


@dataclasses.dataclass(frozen=True)
class Gap:
    """
    Something that was not looked at.

    A *material* gap could have changed an answer; the others are what every
    dump of this kind leaves out.
    """

    what: str
    reason: str
    count: int
    material: bool
    addresses: Tuple[int, ...]  #: the first few


class Coverage:
    """Collects the gaps of one analysis."""

    #: Addresses that are kept for each kind of gap.
    ADDRESSES_MAX = 8

    def __init__(self) -> None:
        self._gaps: Dict[Tuple[str, str, bool], Tuple[int, Tuple[int, ...]]] = {}

    def gap(
        self,
        what: str,
        reason: str,
        address: Optional[int] = None,
        *,
        count: int = 1,
        material: bool = True,
    ) -> None:
        """Count *count* things of the kind *what* as not looked at."""
        key = (what, reason, material)
        total, addresses = self._gaps.get(key, (0, ()))
        if address is not None and len(addresses) < self.ADDRESSES_MAX:
            addresses += (address,)
        self._gaps[key] = (total + count, addresses)

    def gaps(self) -> Tuple[Gap, ...]:
        return tuple(
            Gap(what, reason, count, material, addresses)
            for (what, reason, material), (count, addresses) in sorted(self._gaps.items())
        )


class Status(enum.Enum):
    """How an analysis ended."""

    OK = "ok"
    PARTIAL = "partial"  #: it ran, and something material was not read
    NOT_APPLICABLE = "not_applicable"  #: shown to have nothing to look at
    SKIPPED = "skipped"  #: could not run
    FAILED = "failed"  #: a bug of ours, or Ctrl-C


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of one type; *total* also counts those over the cap."""

    row_type: type
    rows: Tuple[Any, ...]
    total: int


@dataclasses.dataclass(frozen=True)
class AnalysisResult:
    name: str
    status: Status
    reason: Optional[str]
    findings: Tuple[Finding, ...]
    tables: Tuple[Table, ...]
    gaps: Tuple[Gap, ...]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Masking:
    """What masks of a report are made with; no renderer writes it."""

    #: Secret, and the same for one boot of a kernel: so are the masks. Empty: of one report.
    key: bytes = b""
    names: Tuple[str, ...] = ()  #: what text in the report may say of people and machines


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that a run found, and what it could not see."""

    tool_version: str
    target: Tuple[Evidence, ...]  #: facts about the dump and the kernel
    analyses: Tuple[AnalysisResult, ...]
    stacks: Mapping[str, Stack]
    interrupted: bool = False
    not_run: Tuple[str, ...] = ()  #: analyses that triage leaves to whoever asks for them
    #: Of a comparison: the rules of findings that are in both reports and have not grown.
    in_both: Optional[Tuple[str, ...]] = None
    masking: Masking = dataclasses.field(default=Masking(), repr=False, compare=False)

    @property
    def findings(self) -> Tuple[Finding, ...]:
        """The worst first, causes before what they explain; then the surest, as analyses order."""
        found = [f for analysis in self.analyses for f in analysis.findings]
        return tuple(sorted(found, key=Finding.sort_key))

    @property
    def complete(self) -> bool:
        """False if anything was skipped, failed or materially unread."""
        return not self.interrupted and all(
            analysis.status in (Status.OK, Status.NOT_APPLICABLE) for analysis in self.analyses
        )

    def exit_code(self, fail_on: Severity = Severity.ERROR) -> int:
        """1: a finding at or above *fail_on*; else 3: incomplete; else 0."""
        if self.interrupted:
            return 3
        if any(finding.rule.severity >= fail_on for finding in self.findings):
            return 1
        return 0 if self.complete else 3
