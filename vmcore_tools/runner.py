# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Runs analyses against a target and collects what they yield in a Report.

Each analysis is checked first and isolated: what is wrong with one never
keeps another from running.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import itertools
import os
import pkgutil
import string
import sys
import time
import traceback
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from drgn import BadDataError, FaultError
from drgn.helpers import ValidationError

from vmcore_tools import __version__
from vmcore_tools.analysis import (
    Analysis,
    Context,
    ManyRows,
    NotApplicable,
    Progress,
    Requires,
    WrongArgument,
    no_progress,
)
from vmcore_tools.knowledge import knowledge, with_known_issues
from vmcore_tools.live import Attempt, begin, compares_objects, forget, settled
from vmcore_tools.model import (
    Absent,
    AnalysisResult,
    Coverage,
    Evidence,
    Finding,
    Kind,
    Report,
    Stack,
    Status,
    Table,
    columns,
)
from vmcore_tools.module_gaps import NEXT_STEP
from vmcore_tools.unloadable import UnloadableError, unloadable

if TYPE_CHECKING:
    from drgn import Program

    from vmcore_tools.target import Target

ENTRY_POINT_GROUP = "vmcore_tools.analyses"

INTERRUPTED = "interrupted"

#: What the gap of an analysis that could not go on has not looked at.
BROKE_OFF = "rest of the analysis"

#: Names of modules that a reason lists.
_NAMES_MAX = 5

_INTEGER_KINDS = frozenset(
    (Kind.ADDRESS, Kind.PID, Kind.BYTES, Kind.DURATION, Kind.COUNT, Kind.NUMBER)
)


class ContractError(Exception):
    """An analysis broke the contract of :mod:`vmcore_tools.analysis`."""


def find_analyses() -> Tuple[Analysis, ...]:
    """
    Every analysis that is installed, in a fixed order: those of the package
    ``drgn_scripts`` by module name, then those of other packages by entry point.
    A file of known issues that cannot be loaded stands among them, to be reported.
    """
    import drgn_scripts

    found: Dict[str, Analysis] = {}
    for info in sorted(pkgutil.iter_modules(drgn_scripts.__path__), key=lambda i: i.name):
        module = importlib.import_module(f"drgn_scripts.{info.name}")
        analysis = getattr(module, "ANALYSIS", None)
        if isinstance(analysis, Analysis):
            found[analysis.name] = analysis
    for entry_point in sorted(_entry_points(), key=lambda e: (e.value, e.name)):
        analysis = _load(entry_point)
        if analysis.name in found:
            analysis = unloadable(
                entry_point.value, f"another analysis has the name {analysis.name}"
            )
        found[analysis.name] = analysis
    for value, reason in knowledge().unloadable:
        found[value] = unloadable(value, reason)
    return tuple(found.values())


def find_own_analysis(name: str) -> Optional[Analysis]:
    """The analysis of the package ``drgn_scripts`` with that name, without loading the others."""
    try:
        module = importlib.import_module(f"drgn_scripts.{name.replace('-', '_')}")
    except (ImportError, ValueError):
        return None
    analysis = getattr(module, "ANALYSIS", None)
    return analysis if isinstance(analysis, Analysis) and analysis.name == name else None


def _entry_points() -> Iterable[importlib.metadata.EntryPoint]:
    if sys.version_info >= (3, 10):
        return importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    return importlib.metadata.entry_points().get(ENTRY_POINT_GROUP, ())


def _load(entry_point: importlib.metadata.EntryPoint) -> Analysis:
    # Another package's code: whatever it raises is that package's failure.
    try:
        analysis = entry_point.load()
    except Exception as e:
        return unloadable(entry_point.value, _one_line(e))
    if not isinstance(analysis, Analysis):
        return unloadable(entry_point.value, f"it is a {type(analysis).__name__}, not an Analysis")
    return analysis


def run(
    target: Target,
    analyses: Sequence[Analysis],
    options: Optional[Mapping[str, Mapping[str, Any]]] = None,
    *,
    limit: Optional[int] = None,
    progress: Progress = no_progress,
) -> Report:
    """
    Run *analyses* in order.

    :param options: by analysis name, what differs from the options' defaults
    :param limit: rows to keep of each table, None for all
    :raises WrongArgument: if the target has not what an option asks for
    """
    results: List[AnalysisResult] = []
    stacks: Dict[str, Stack] = {}
    interrupted = False
    try:
        for analysis in analyses:
            attempt = functools.partial(
                _attempt, target, analysis, limit, (options or {}).get(analysis.name, {}), progress
            )
            if target.live:
                begin(target.prog)
                compares = functools.partial(compares_objects, target.prog)
                result, in_use = settled(attempt, _broke_off, compares)
            else:
                result, in_use = attempt()
            stacks.update(in_use)
            results.append(result)
            if result.reason == INTERRUPTED:
                interrupted = True
                break
    except KeyboardInterrupt:
        # It came in between two analyses.
        interrupted = True
    results += [
        _did_not_run(analysis, Status.SKIPPED, INTERRUPTED) for analysis in analyses[len(results) :]
    ]
    return Report(
        tool_version=__version__,
        target=target.facts,
        analyses=tuple(results),
        stacks=dict(sorted(stacks.items())),
        interrupted=interrupted,
    )


def _did_not_run(analysis: Analysis, status: Status, reason: str) -> AnalysisResult:
    return AnalysisResult(analysis.name, status, reason, (), (), (), 0.0)


def _broke_off(result: AnalysisResult) -> bool:
    """Whether an analysis did not get through what it needs."""
    if result.status is Status.FAILED:
        return result.reason != INTERRUPTED
    return any(gap.what == BROKE_OFF for gap in result.gaps)


def _attempt(
    target: Target,
    analysis: Analysis,
    limit: Optional[int],
    options: Mapping[str, Any],
    progress: Progress,
) -> Attempt:
    if target.live:
        forget(target.prog)
    try:
        collector = _Collector(analysis, limit)
    except ContractError as e:
        return _did_not_run(analysis, Status.FAILED, _one_line(e)), {}
    result = _run_one(target, collector, options, progress)
    return result, collector.stacks_in_use()


def _run_one(
    target: Target,
    collector: _Collector,
    options: Mapping[str, Any],
    progress: Progress,
) -> AnalysisResult:
    analysis = collector.analysis
    context = Context(
        prog=target.prog,
        memory=target.memory,
        coverage=Coverage(),
        options={**{o.key: o.default for o in analysis.options}, **options},
        progress=progress,
    )
    status, reason = Status.OK, None
    start = time.monotonic()
    argument = analysis.argument
    # The boundary that isolates analyses from each other: here, and nowhere
    # else, every exception is caught, and it is shown as a failure.
    try:
        unmet = _unmet(target, analysis.requires)
        if unmet is not None:
            return _did_not_run(analysis, *unmet)
        if argument is not None and argument.name not in options:
            return _did_not_run(analysis, Status.SKIPPED, f"no {argument.metavar} was given")
        for item in analysis.analyze(context):
            collector.add(item)
    except KeyboardInterrupt:
        status, reason = Status.FAILED, INTERRUPTED
    except WrongArgument:
        # Nothing to report: who asked has to ask again.
        raise
    except NotApplicable as e:
        status, reason = Status.NOT_APPLICABLE, str(e)
    except (BadDataError, FaultError, ValidationError) as e:
        # What the analysis itself does not catch is what it cannot go on without.
        context.coverage.gap(BROKE_OFF, f"what it needs cannot be read: {e}")
    except (ContractError, UnloadableError) as e:
        status, reason = Status.FAILED, _one_line(e)
    except Exception as e:
        # A bug: where it is tells more than what it says.
        place = traceback.extract_tb(e.__traceback__)[-1]
        file = os.path.basename(place.filename)
        status, reason = Status.FAILED, f"{_one_line(e)} ({file}:{place.lineno})"
    gaps = context.coverage.gaps()
    if any(gap.material for gap in gaps):
        if status is Status.OK:
            status = Status.PARTIAL
        elif status is Status.NOT_APPLICABLE:
            # What was not read could have been what it looks at.
            status = Status.SKIPPED
    return AnalysisResult(
        name=analysis.name,
        status=status,
        reason=reason,
        findings=tuple(
            with_known_issues(finding, _release(target), knowledge().entries)
            for finding in collector.findings
        ),
        tables=collector.tables(),
        gaps=gaps,
        seconds=time.monotonic() - start,
    )


def _release(target: Target) -> Optional[str]:
    for fact in target.facts:
        if fact.name == "kernel_release" and isinstance(fact.value, str):
            return fact.value
    return None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _unmet(target: Target, requires: Requires) -> Optional[Tuple[Status, str]]:
    """Why an analysis with these requirements cannot run, None if it can."""
    prog = target.prog
    builtin = [name for name in requires.builtin if not _has_type(prog, name)]
    types = [name for name in requires.types if not _has_type(prog, name)]
    symbols = [name for name in requires.symbols if not _has_symbol(prog, name)]
    if not builtin and not types and not symbols:
        return None
    missing = ", ".join(builtin + types + symbols)
    info = target.debug_info
    if not info.vmlinux_loaded:
        return (
            Status.SKIPPED,
            f"{missing} not found: there is no debug info for vmlinux; name the file with -s",
        )
    if builtin:
        names = " and no ".join(builtin)
        return Status.NOT_APPLICABLE, f"no {names} in the debug info of vmlinux, where it would be"
    if types and info.complete:
        names = " and no ".join(types)
        return (
            Status.NOT_APPLICABLE,
            f"no {names} in the debug info of vmlinux or any loaded module",
        )
    module = requires.module
    if types and module is not None and info.has_not_loaded(module):
        names = " and no ".join(types)
        return (
            Status.NOT_APPLICABLE,
            f"no {names} in the debug info of vmlinux, and no module {module} is loaded",
        )
    reason = f"{missing} not found"
    if info.modules_missing:
        reason += (
            "; it may be in a module without debug info"
            f" ({_some(info.modules_missing)}): {NEXT_STEP}"
        )
    if info.modules_error is not None:
        reason += f"; the list of modules is not whole: {info.modules_error}"
    return Status.SKIPPED, reason


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_MAX])
    more = len(names) - _NAMES_MAX
    return f"{shown} and {more} more" if more > 0 else shown


def _has_type(prog: Program, name: str) -> bool:
    try:
        return bool(prog.type(name).is_complete())
    except LookupError:
        return False


def _has_symbol(prog: Program, name: str) -> bool:
    try:
        prog.symbol(name)
    except LookupError:
        # Debug info may describe a variable that a stripped file has no symbol for.
        return name in prog
    return True


class _Collector:
    """Sorts and checks what one analysis yields."""

    def __init__(self, analysis: Analysis, limit: Optional[int]) -> None:
        self.analysis = analysis
        self.findings: List[Finding] = []
        self._limit = limit
        self._stacks: Dict[str, Stack] = {}
        self._rows: Dict[type, _Rows] = {
            row_type: _Rows(row_type, limit, self._check_value) for row_type in analysis.tables
        }

    def add(self, item: Any) -> None:
        """
        :raises ContractError: if the analysis may not yield this
        """
        if isinstance(item, Stack):
            self._stacks[item.id] = item
        elif isinstance(item, Finding):
            self._check_finding(item)
            self.findings.append(item)
        elif isinstance(item, ManyRows) and item.row_type in self._rows:
            self._rows[item.row_type].add_many(item)
        elif type(item) in self._rows:
            self._rows[type(item)].add(item)
        else:
            raise ContractError(f"yielded a {type(item).__name__}, which is none of its tables")

    def tables(self) -> Tuple[Table, ...]:
        return tuple(rows.table() for rows in self._rows.values())

    def stacks_in_use(self) -> Dict[str, Stack]:
        """The stacks that a finding or a row that was kept refers to."""
        used: Set[str] = {id for finding in self.findings for id in finding.stacks}
        for rows in self._rows.values():
            used |= rows.stack_ids()
        return {id: stack for id, stack in self._stacks.items() if id in used}

    def _check_finding(self, finding: Finding) -> None:
        rule = finding.rule
        if rule not in self.analysis.rules:
            raise ContractError(f"a finding's rule {rule.id} is not declared")
        evidence = {item.name for item in finding.evidence}
        for _, name, spec, conversion in string.Formatter().parse(finding.message):
            if name is None:
                continue
            if name not in evidence or spec or conversion:
                raise ContractError(
                    f"the message of {rule.id} needs {{{name}}}, which is no name of its evidence"
                )
        for item in finding.evidence:
            self._check_evidence(rule.id, item)
        for node in () if finding.graph is None else finding.graph.nodes:
            for item in node.facts:
                self._check_evidence(f"{rule.id} {node.id}", item)
        for id in finding.stacks:
            self._check_stack(rule.id, id)

    def _check_evidence(self, where: str, item: Evidence) -> None:
        values = item.value if isinstance(item.value, tuple) else (item.value,)
        for value in values:
            self._check_value(f"{where} {item.name}", item.kind, value)

    def _check_value(self, where: str, kind: Kind, value: Any) -> None:
        if value is None or isinstance(value, (bool, Absent)):
            return
        # Exactly int: NumPy's integers and drgn's Objects are no plain data.
        expected = int if kind in _INTEGER_KINDS else str
        if type(value) is not expected:
            raise ContractError(
                f"{where} is {kind.value} and must hold {expected.__name__},"
                f" not {type(value).__name__}"
            )
        if kind is Kind.STACK:
            self._check_stack(where, str(value))

    def _check_stack(self, where: str, id: str) -> None:
        if id not in self._stacks:
            raise ContractError(f"{where} names a stack that was not yielded before it")


@dataclasses.dataclass
class _Rows:
    """The rows of one type: all are counted, those under the cap are kept."""

    row_type: type
    limit: Optional[int]
    check_value: Callable[[str, Kind, Any], None]
    total: int = 0
    rows: List[Any] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        try:
            self._columns = columns(self.row_type)
        except (TypeError, KeyError):
            raise ContractError(
                f"the table {self.row_type.__name__} is no dataclass whose fields are columns"
            ) from None

    def add_many(self, many: ManyRows) -> None:
        wanted = None if self.limit is None else max(0, self.limit - len(self.rows))
        for row in itertools.islice(many.rows, wanted):
            if type(row) is not self.row_type:
                raise ContractError(
                    f"rows of {self.row_type.__name__} have a {type(row).__name__} among them"
                )
            self.add(row)
            self.total -= 1
        self.total += many.total

    def add(self, row: Any) -> None:
        self.total += 1
        if self.limit is not None and len(self.rows) >= self.limit:
            return
        for name, kind in self._columns:
            self.check_value(f"{self.row_type.__name__}.{name}", kind, getattr(row, name))
        self.rows.append(row)

    def table(self) -> Table:
        return Table(self.row_type, tuple(self.rows), self.total)

    def stack_ids(self) -> Set[str]:
        names = [name for name, kind in self._columns if kind is Kind.STACK]
        values = {getattr(row, name) for row in self.rows for name in names}
        return {value for value in values if isinstance(value, str)}
