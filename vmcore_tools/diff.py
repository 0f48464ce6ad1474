# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What changed from one report to another: growth by cache, type, stack and use
of memory, and findings that are new, gone, grown or shrunk.

Both sides are documents as ``--format json`` writes them, so that a report of
last week compares with a dump of today. The result is a report itself.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Container, Dict, Iterator, List, Mapping, Optional, Set, Tuple

from vmcore_tools import __version__
from vmcore_tools.errors import TargetError, printable
from vmcore_tools.model import (
    SCHEMA_VERSION,
    Absent,
    AnalysisResult,
    Confidence,
    Coverage,
    Evidence,
    Finding,
    Frame,
    Kind,
    Maybe,
    Ref,
    Report,
    Rule,
    Severity,
    Stack,
    Status,
    Table,
    column,
)

#: Evidence that says how much of a thing there is, the most telling first.
_AMOUNTS = ("references_leaked", "objects", "size_bytes", "tasks", "slabs", "count")
#: Facts of a target that tell two dumps apart.
_FACTS = (
    ("file", Kind.SENSITIVE),
    ("kernel_release", Kind.UNTRUSTED),
    ("build_id", Kind.TEXT),
    ("uptime_ns", Kind.DURATION),
)


@dataclasses.dataclass(frozen=True)
class CacheGrowth:
    """A slab cache: its allocated objects, without what its slabs have of free ones."""

    cache: str = column(Kind.UNTRUSTED)
    grown_bytes: int = column(Kind.BYTES)
    grown_objects: int = column(Kind.COUNT)
    objects_before: int = column(Kind.COUNT)
    objects_after: int = column(Kind.COUNT)


@dataclasses.dataclass(frozen=True)
class TypeGrowth:
    """Objects of one type in one cache."""

    cache: str = column(Kind.UNTRUSTED)
    type: str = column(Kind.UNTRUSTED)
    grown_bytes: int = column(Kind.BYTES)
    grown_objects: int = column(Kind.COUNT)
    objects_before: int = column(Kind.COUNT)
    objects_after: int = column(Kind.COUNT)


@dataclasses.dataclass(frozen=True)
class StackGrowth:
    """Objects of one cache that were allocated with one stack."""

    cache: str = column(Kind.UNTRUSTED)
    allocated_by: str = column(Kind.UNTRUSTED)
    stack: Maybe[str] = column(Kind.STACK)
    grown_bytes: int = column(Kind.BYTES)
    grown_objects: int = column(Kind.COUNT)
    objects_before: int = column(Kind.COUNT)
    objects_after: int = column(Kind.COUNT)


@dataclasses.dataclass(frozen=True)
class MemoryGrowth:
    """A use of RAM."""

    use: str = column(Kind.UNTRUSTED)
    grown_bytes: int = column(Kind.BYTES)
    grown_pages: int = column(Kind.COUNT)
    pages_before: int = column(Kind.COUNT)
    pages_after: int = column(Kind.COUNT)


@dataclasses.dataclass(frozen=True)
class FindingChange:
    """A finding, by its signature, that is not as it was."""

    change: str = column(Kind.TEXT)
    rule: str = column(Kind.UNTRUSTED)
    slug: str = column(Kind.UNTRUSTED)
    severity: str = column(Kind.TEXT)
    signature: str = column(Kind.UNTRUSTED)
    what: str = column(Kind.UNTRUSTED)
    before: Maybe[int] = column(Kind.COUNT)
    after: Maybe[int] = column(Kind.COUNT)


@dataclasses.dataclass(frozen=True)
class ChangedFinding(Finding):
    """A finding with the signature that it has in its own report."""

    own_signature: str = ""

    @property
    def signature(self) -> str:
        return self.own_signature


@dataclasses.dataclass(frozen=True)
class _Growing:
    """A table of reports whose rows can grow: which columns say what."""

    row_type: Any
    analysis: str
    table: str
    key: Tuple[str, ...]
    number: str
    size_bytes: str


_GROWING = (
    _Growing(CacheGrowth, "slabs", "Slabs", ("cache",), "allocated", "allocated_bytes"),
    _Growing(
        TypeGrowth, "kmalloc-objects", "ObjectsByType", ("cache", "type"), "objects", "size_bytes"
    ),
    _Growing(
        StackGrowth,
        "kmalloc-objects",
        "ObjectsByStack",
        ("cache", "allocated_by", "stack"),
        "objects",
        "size_bytes",
    ),
    _Growing(MemoryGrowth, "memory", "MemoryUse", ("use",), "pages", "size_bytes"),
)

#: What can become of a finding, in the order that is shown; and what is a
#: finding of the comparison, too.
_CHANGES = ("new", "grown", "gone", "shrunk")
_WORSE = ("new", "grown")

_Key = Tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class _Found:
    """The findings of one signature in one report: the first, and how much of it there is."""

    document: Mapping[str, Any]
    amounts: Mapping[str, int]


def read_report(data: bytes, name: str) -> Optional[Dict[str, Any]]:
    """
    A JSON report, or None if the bytes are no JSON at all.

    :param name: of the file, for errors
    :raises TargetError: for other JSON, and for a version that is not known
    """
    if data.lstrip()[:1] != b"{":
        return None
    try:
        document = json.loads(data)
    except ValueError as error:
        raise TargetError(
            f"{printable(name)} begins like JSON, but is damaged: {error}; make the report again"
        ) from None
    if not isinstance(document, dict) or "schema_version" not in document:
        raise TargetError(
            f"{printable(name)} is JSON, but no report; make one with triage --format json"
        )
    if document["schema_version"] != SCHEMA_VERSION:
        raise TargetError(
            f"{printable(name)} is a report of another version; make it again with this one"
        )
    return document


def diff(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    limit: Optional[int],
    only: Optional[Container[str]] = None,
) -> Report:
    """
    Compare two JSON reports.

    :param limit: rows to keep of each table, None for all
    :param only: names of the analyses that are wanted, None for all
    :raises TargetError: if one lacks what every report has
    """
    try:
        return _diff(before, after, limit, only)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TargetError(
            f"one of the reports is damaged ({type(error).__name__}: {printable(str(error))});"
            " make it again with triage --format json"
        ) from None


def _diff(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    limit: Optional[int],
    only: Optional[Container[str]],
) -> Report:
    coverage = Coverage()
    for side, document in (("before", before), ("after", after)):
        for analysis in document["analyses"]:
            status = Status(analysis["status"])
            if status not in (Status.OK, Status.NOT_APPLICABLE):
                reason = analysis["reason"] or "something was not read"
                coverage.gap(
                    f"analysis of the report {side}",
                    f"{analysis['name']}: {status.value} ({reason})",
                )
    tables = []
    for growing in _GROWING:
        wanted = only is None or growing.analysis in only
        rows = _grown_rows(growing, before, after, coverage) if wanted else []
        tables.append(Table(growing.row_type, tuple(rows[:limit]), len(rows)))
    old = _findings(before, after, coverage, only)
    new = _findings(after, before, coverage, only)
    changes = list(_changes(old, new))
    worse = {row.signature for row, finding in changes if finding is not None}
    in_both = sorted(
        str(new[signature].document["rule"]) for signature in (set(old) & set(new)) - worse
    )
    rows = [row for row, _ in changes]
    tables.insert(0, Table(FindingChange, tuple(rows[:limit]), len(rows)))
    findings = tuple(finding for _, finding in changes if finding is not None)
    used = {id for finding in findings for id in finding.stacks}
    used |= {row.stack for table in tables for row in table.rows if hasattr(row, "stack")}
    gaps = coverage.gaps()
    material = any(gap.material for gap in gaps)
    return Report(
        tool_version=__version__,
        target=(*_facts("before", before), *_facts("after", after)),
        analyses=(
            AnalysisResult(
                name="diff",
                status=Status.PARTIAL if material else Status.OK,
                reason=None,
                findings=findings,
                tables=tuple(tables),
                gaps=gaps,
                seconds=0.0,
            ),
        ),
        stacks={
            id: _stack(stack)
            for document in (before, after)
            for id, stack in sorted(document["stacks"].items())
            if id in used
        },
        in_both=tuple(in_both),
    )


def _facts(side: str, document: Mapping[str, Any]) -> Iterator[Evidence]:
    for name, kind in _FACTS:
        if name in document["target"]:
            yield Evidence(f"{side}_{name}", kind, _value(document["target"][name]))


def _value(value: Any) -> Any:
    """A JSON value as the model has it."""
    if isinstance(value, dict):
        return Absent(str(value["absent"]))
    return value


# --- growth --------------------------------------------------------------------


def _grown_rows(
    growing: _Growing, before: Mapping[str, Any], after: Mapping[str, Any], coverage: Coverage
) -> List[Any]:
    """What is not as it was, the most grown first."""
    name = f"{growing.analysis} {growing.table}"
    sides = []
    for side, document in (("before", before), ("after", after)):
        table = document["tables"].get(growing.analysis, {}).get(growing.table)
        if table is None:
            ran = any(analysis["name"] == growing.analysis for analysis in document["analyses"])
            # Where the analysis ran, its status tells whether there is something to know.
            advice = "" if ran else "; make it with triage --only all --limit 0 --format json"
            coverage.gap("table", f"the report {side} has no {name}{advice}", material=not ran)
            return []
        sides.append((side, table, _sums(growing, table)))
    (_, _, old), (_, _, new) = sides
    keys = set(old) | set(new)
    for side, table, sums in sides:
        left_out = table["total"] - len(table["rows"])
        if left_out > 0:
            # What is not in a table that was cut may have been there all the same.
            coverage.gap(
                "row",
                f"the report {side} leaves it out of {name}; make it with --limit 0",
                count=left_out,
            )
            keys &= set(sums)
    if len(growing.key) > 1:
        # Only some caches are looked into.
        common = {key[0] for key in old} & {key[0] for key in new}
        for cache in sorted({key[0] for key in keys} - common):
            coverage.gap(
                "slab cache", f"only one of the reports has {name} of {cache}", material=False
            )
        keys = {key for key in keys if key[0] in common}
    grown = []
    for key in keys:
        (number, size), (new_number, new_size) = old.get(key, (0, 0)), new.get(key, (0, 0))
        if (number, size) != (new_number, new_size):
            grown.append((size - new_size, number - new_number, str(key), key, number, new_number))
    return [
        growing.row_type(*key, -less_bytes, -less, number, new_number)
        for less_bytes, less, _, key, number, new_number in sorted(grown, key=lambda row: row[:3])
    ]


def _sums(growing: _Growing, table: Mapping[str, Any]) -> Dict[_Key, Tuple[int, int]]:
    """Number and bytes by key; rows of the same key are added."""
    sums: Dict[_Key, Tuple[int, int]] = {}
    for row in table["rows"]:
        key = tuple(_value(row[name]) for name in growing.key)
        number, size = sums.get(key, (0, 0))
        sums[key] = (number + int(row[growing.number]), size + int(row[growing.size_bytes]))
    return sums


# --- findings ------------------------------------------------------------------


def _findings(
    document: Mapping[str, Any],
    other: Mapping[str, Any],
    coverage: Coverage,
    only: Optional[Container[str]],
) -> Dict[str, _Found]:
    """By signature; without what is not wanted, or did not run for the other report."""
    ran = {
        str(analysis["name"])
        for analysis in other["analyses"]
        if Status(analysis["status"]) not in (Status.SKIPPED, Status.FAILED)
    }
    found: Dict[str, _Found] = {}
    for finding in document["findings"]:
        # Reports of earlier versions do not say which analysis made a finding.
        name = finding.get("analysis")
        if only is not None and name is not None and name not in only:
            continue
        if name is not None and name not in ran:
            coverage.gap(
                "finding of one report", f"{name} did not run for the other one, so it is left out"
            )
            continue
        known = found.get(finding["signature"])
        amounts = dict(known.amounts) if known else {}
        for name in _AMOUNTS:
            value = finding["evidence"].get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                amounts[name] = amounts.get(name, 0) + value
        found[finding["signature"]] = _Found(known.document if known else finding, amounts)
    return found


def _changes(
    before: Mapping[str, _Found], after: Mapping[str, _Found]
) -> Iterator[Tuple[FindingChange, Optional[Finding]]]:
    """Each change, and a finding for what is new or grown, the worst first."""
    changes = []
    for signature in set(before) | set(after):
        old, new = before.get(signature), after.get(signature)
        change, what = _change(old, new)
        shown = new or old
        if change is None or shown is None:
            continue
        severity = Severity[shown.document["severity"].upper()]
        row = FindingChange(
            change=change,
            rule=str(shown.document["rule"]),
            slug=str(shown.document["slug"]),
            severity=severity.name.lower(),
            signature=signature,
            what=what,
            before=_amount(old, what),
            after=_amount(new, what),
        )
        finding = _finding(row, severity, shown.document) if change in _WORSE else None
        changes.append((_CHANGES.index(change), -severity, signature, row, finding))
    for _, _, _, row, finding in sorted(changes, key=lambda change: change[:3]):
        yield row, finding


def _change(old: Optional[_Found], new: Optional[_Found]) -> Tuple[Optional[str], str]:
    """What became of a finding, if anything did, and in which amount it shows."""
    known: Set[str] = set()
    for side in (old, new):
        known |= set(side.amounts) if side else set()
    names = [name for name in _AMOUNTS if name in known]
    first = names[0] if names else "findings"
    if old is None or new is None:
        return ("new" if old is None else "gone"), first
    for name in names:
        difference = new.amounts.get(name, 0) - old.amounts.get(name, 0)
        if difference:
            return ("grown" if difference > 0 else "shrunk"), name
    return None, first


def _amount(found: Optional[_Found], what: str) -> Maybe[int]:
    if found is None:
        return 0
    return found.amounts.get(what, Absent("it has no amount"))


def _finding(row: FindingChange, severity: Severity, document: Mapping[str, Any]) -> Finding:
    subject = document["subject"]
    message = "{change}: {message}"
    if row.change == "grown":
        message = "{change} ({what} {before} -> {after}): {message}"
    return ChangedFinding(
        rule=Rule(row.rule, row.slug, severity, row.slug, str(document["remedy"])),
        confidence=Confidence[document["confidence"].upper()],
        message=message,
        subject=Ref(str(subject["type"]), _value(subject["name"]), pid=subject["pid"]),
        evidence=(
            Evidence("change", Kind.TEXT, row.change),
            Evidence("message", Kind.UNTRUSTED, str(document["message"])),
            Evidence("what", Kind.TEXT, row.what.replace("_", " ")),
            Evidence("before", Kind.COUNT, row.before),
            Evidence("after", Kind.COUNT, row.after),
        ),
        signature_key=(),
        stacks=tuple(document["stacks"]),
        unread=tuple(document["unread"]),
        own_signature=row.signature,
    )


def _stack(document: Mapping[str, Any]) -> Stack:
    return Stack(tuple(Frame(**frame) for frame in document["frames"]), document["note"])
