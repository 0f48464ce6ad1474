# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the text formats say of a report as a whole."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from vmcore_tools.model import (
    AnalysisResult,
    Evidence,
    Finding,
    Kind,
    Report,
    Severity,
    Status,
    Table,
    columns,
)
from vmcore_tools.report.format import escape, gap_text
from vmcore_tools.words import counted

NOTHING_FOUND = "No findings. Everything relevant was read."
#: Where triage leaves out what nobody asked for.
_NOTHING_FOUND_BY_SOME = "No findings of the analyses that ran. All that these look at was read."

#: Findings with one signature that are written in full.
IN_FULL = 10

#: Tables with more columns than this leave out those that tell no row from another.
_COLUMNS_MAX = 8

_STATUS_TEXT = {
    Status.OK: "ok",
    Status.PARTIAL: "partial: see above what was not looked at",
    Status.NOT_APPLICABLE: "not applicable",
    Status.SKIPPED: "SKIPPED",
    Status.FAILED: "FAILED",
}


def verdict(report: Report) -> str:
    """The answer in a sentence: what was found, and whether that is all."""
    counts = Counter(finding.rule.severity for finding in report.findings)
    if counts:
        found = ", ".join(
            _severity_count(severity, counts[severity])
            for severity in sorted(Severity, reverse=True)
            if counts[severity]
        )
        text = f"{counted(sum(counts.values()), 'finding')}: {found}."
        if report.in_both:
            text += f" {_in_both(report.in_both)}."
        if not report.complete:
            text += f" The report is INCOMPLETE: {_incomplete(report)}."
        return text
    nothing = "No findings"
    if report.in_both is not None:
        nothing = "Nothing is new or has grown"
        if report.in_both:
            nothing += f"; {_in_both(report.in_both)}"
    if not report.complete:
        return f"{nothing}, BUT the report is INCOMPLETE: {_incomplete(report)}."
    if report.in_both is not None:
        return f"{nothing}."
    return _NOTHING_FOUND_BY_SOME if report.not_run else NOTHING_FOUND


def _in_both(rules: Sequence[str]) -> str:
    names = ", ".join(dict.fromkeys(map(escape, rules)))
    return f"{counted(len(rules), 'finding is', 'findings are')} in both: {names}"


def target_facts(facts: Iterable[Evidence]) -> Iterator[Evidence]:
    """Facts about a target; RAM that the kernel manages is called so, as it is not all."""
    for item in facts:
        managed = item.name == "ram_bytes"
        yield dataclasses.replace(item, name="ram_managed_by_the_kernel_bytes") if managed else item


def not_run_line(report: Report) -> Optional[str]:
    """Which analyses nobody asked for, and how to; None if there are no such."""
    if not report.not_run:
        return None
    return f"not run by triage: {', '.join(report.not_run)}: vmcore-tools run NAME"


def _incomplete(report: Report) -> str:
    parts = ["it was interrupted"] if report.interrupted else []
    for status, text in (
        (Status.FAILED, "failed"),
        (Status.SKIPPED, "did not run"),
        (Status.PARTIAL, "could not read everything"),
    ):
        names = [analysis.name for analysis in report.analyses if analysis.status is status]
        if names:
            parts.append(f"{', '.join(names)} {text}")
    return "; ".join(parts)


def _severity_count(severity: Severity, count: int) -> str:
    name = severity.name.lower()
    if severity in (Severity.ERROR, Severity.WARNING):
        return counted(count, name)
    return f"{count:,} {name}"


def few_alike(findings: Sequence[Finding], most: int) -> Iterator[Tuple[Finding, int]]:
    """
    The findings, of those with one signature only some.

    :param most: how many of these
    :return: with each, how many like it are left out behind it
    """
    counts = Counter(finding.signature for finding in findings)
    seen: Counter[str] = Counter()
    for finding in findings:
        signature = finding.signature
        seen[signature] += 1
        if seen[signature] <= most:
            left_out = counts[signature] - most if seen[signature] == most else 0
            yield finding, max(left_out, 0)


def gaps(report: Report) -> List[Tuple[str, List[Tuple[str, str]]]]:
    """
    Titles, each with lines of (analysis, escaped text); empty ones left out.

    What is the same for several analyses is one line that names them all.
    """
    material = [
        (analysis.name, text) for analysis in report.analyses for text in _material(analysis)
    ]
    other = [
        (analysis.name, gap_text(gap))
        for analysis in report.analyses
        for gap in analysis.gaps
        if not gap.material
    ]
    sections = [
        ("NOT looked at", material),
        ("Not looked at, which changes no answer", other),
    ]
    return [(title, _together(lines)) for title, lines in sections if lines]


def _together(lines: Sequence[Tuple[str, str]]) -> List[Tuple[str, str]]:
    names: Dict[str, List[str]] = {}
    for name, text in lines:
        names.setdefault(text, []).append(name)
    return [(", ".join(named), text) for text, named in names.items()]


def _material(analysis: AnalysisResult) -> Iterator[str]:
    if analysis.status in (Status.SKIPPED, Status.FAILED):
        yield f"{analysis.status.value}: {escape(analysis.reason or 'no reason given')}"
    for gap in analysis.gaps:
        if gap.material:
            yield gap_text(gap)


def table_title(analysis: AnalysisResult, table: Table) -> str:
    """Such as ``hung-tasks: HungTask, showing 20 of 5,107``."""
    title = f"{analysis.name}: {table.row_type.__name__}"
    if not table.total:
        return f"{title}, none" if analysis.status is Status.OK else f"{title}, none seen"
    if len(table.rows) < table.total:
        return f"{title}, showing {len(table.rows):,} of {table.total:,}"
    return f"{title}, {counted(table.total, 'row')}"


def shown_columns(
    table: Table,
) -> Tuple[List[Tuple[str, Kind]], List[Tuple[str, Kind, Any]]]:
    """
    The columns of a table to show, and those of a wide table that are named
    once instead: name, kind and the value that all shown rows have.

    The first column says what a row is, and always stays.
    """
    kinds = columns(table.row_type)
    if len(kinds) <= _COLUMNS_MAX or len(table.rows) < 2:
        return list(kinds), []
    first, *others = table.rows
    shown = [kinds[0]]
    same = []
    for name, kind in kinds[1:]:
        value = getattr(first, name)
        if all(getattr(row, name) == value for row in others):
            same.append((name, kind, value))
        else:
            shown.append((name, kind))
    return shown, same


def same_title(table: Table) -> str:
    """What introduces the columns that are named once."""
    shown = " shown" if len(table.rows) < table.total else ""
    return f"the same in all rows{shown}"


def row_stacks(report: Report) -> List[str]:
    """The stacks that table rows refer to, once each, in order."""
    found = {
        getattr(row, name): None
        for analysis in report.analyses
        for table in analysis.tables
        for name, kind in columns(table.row_type)
        if kind is Kind.STACK
        for row in table.rows
    }
    return [id for id in found if isinstance(id, str)]


def analysis_line(analysis: AnalysisResult, timings: bool) -> str:
    text = f"{analysis.name}: {_STATUS_TEXT[analysis.status]}"
    if analysis.reason is not None:
        text += f" ({escape(analysis.reason)})"
    return f"{text}, {analysis.seconds:.2f} s" if timings else text
