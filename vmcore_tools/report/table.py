# SPDX-License-Identifier: LGPL-2.1-or-later
"""The report as text for a terminal: the answer first."""

from __future__ import annotations

import textwrap
from typing import Dict, Iterable, Iterator, List, Optional, Set, Tuple

from tabulate import MIN_PADDING, tabulate

from vmcore_tools.model import (
    Absent,
    AnalysisResult,
    Evidence,
    Finding,
    Graph,
    Kind,
    Report,
    Stack,
    Table,
)
from vmcore_tools.report.format import (
    NUMERIC_KINDS,
    escape,
    evidence_lines,
    known_issue_facts,
    label,
    message_text,
    ref_text,
    stack_lines,
    value_text,
)
from vmcore_tools.report.graph import tree_lines
from vmcore_tools.report.summary import (
    IN_FULL,
    analysis_line,
    few_alike,
    gaps,
    not_run_line,
    row_stacks,
    same_title,
    shown_columns,
    table_title,
    target_facts,
    verdict,
)

_INDENT = "  "
#: Lines of a tree that the answer in short has, and related objects that the long one names.
_TREE_LINES = 6
_RELATED = 8
#: Columns whose cells can be cut: a number or an address would be another one.
_TEXTUAL_KINDS = (Kind.TEXT, Kind.UNTRUSTED, Kind.SENSITIVE)
#: Findings with one signature that are listed in short.
_IN_SHORT = 3


#: What a cell is cut to at most, and what stands for the rest.
_NARROWEST = 16
_CUT = "..."


def render(
    report: Report, *, timings: bool = False, width: int = 100, fit: Optional[int] = None
) -> str:
    return _Renderer(report, timings, width, fit).render()


def facts_text(facts: Iterable[Evidence]) -> str:
    """One aligned line for each fact."""
    lines = [
        (label(item.name, item.kind), value_text(item.kind, item.value))
        for item in target_facts(facts)
    ]
    widest = max((len(name) for name, _ in lines), default=0)
    return "".join(f"{name + ':':<{widest + 1}} {text}\n" for name, text in lines)


class _Renderer:
    def __init__(self, report: Report, timings: bool, width: int, fit: Optional[int]) -> None:
        self._report = report
        self._timings = timings
        self._width = width
        self._fit = fit
        self._stacks_shown: Set[str] = set()
        self._rules_shown: Set[str] = set()

    def render(self) -> str:
        sections = [
            self._target(),
            "\n".join(self._wrap(verdict(self._report), "")) + "\n",
        ]
        in_full = []
        for finding, left_out in few_alike(self._report.findings, IN_FULL):
            in_full.append("\n".join(self._finding(finding)) + "\n")
            if left_out:
                in_full.append(_left_out(finding, left_out) + "\n")
        not_read = list(self._gaps())
        if len(in_full) > 1:
            # Stacks are long: all answers in short, and what is missing, are on the first screen.
            sections += ["\n".join(self._contents()) + "\n", *not_read, *in_full]
        else:
            sections += [*in_full, *not_read]
        sections += [
            self._table(analysis, table)
            for analysis in self._report.analyses
            for table in analysis.tables
        ]
        sections += self._row_stacks()
        sections.append(self._analyses())
        return "\n".join(section for section in sections if section)

    def _target(self) -> str:
        # In a paragraph: the findings shall be on the first screen.
        facts = "; ".join(
            f"{label(item.name, item.kind)} {value_text(item.kind, item.value)}"
            for item in target_facts(self._report.target)
            if item.value is not None and item.value != ()
        )
        return "".join(f"{line}\n" for line in self._wrap(facts, ""))

    def _wrap(self, text: str, indent: str, hang: str = "") -> List[str]:
        return textwrap.wrap(
            text,
            self._width,
            initial_indent=indent,
            subsequent_indent=indent + hang,
            break_long_words=False,
            break_on_hyphens=False,
        )

    def _contents(self) -> Iterator[str]:
        for finding, left_out in few_alike(self._report.findings, _IN_SHORT):
            yield from self._wrap(f"{_title(finding)}: {message_text(finding)}", "", _INDENT)
            if finding.graph is not None:
                yield from self._tree(finding.graph, _TREE_LINES)
            if left_out:
                yield _left_out(finding, left_out)

    def _finding(self, finding: Finding) -> Iterator[str]:
        rule = finding.rule
        yield _title(finding)
        yield from self._wrap(message_text(finding), _INDENT)
        if finding.graph is not None:
            yield f"{_INDENT}{finding.graph.caption}:"
            yield from self._tree(finding.graph)
        yield from self._field("subject", ref_text(finding.subject))
        for item in evidence_lines(finding):
            yield from self._field(label(item.name, item.kind), value_text(item.kind, item.value))
        for ref in finding.related[:_RELATED]:
            yield from self._field("related", ref_text(ref))
        if len(finding.related) > _RELATED:
            yield from self._field("related", f"{len(finding.related) - _RELATED:,} more")
        for id in finding.stacks:
            yield from self._stack(id)
        for text in finding.unread:
            yield from self._field("unread", escape(text))
        if rule.id not in self._rules_shown:
            self._rules_shown.add(rule.id)
            yield from self._field("what to do", rule.remedy)
        yield from self._field("signature", finding.signature)
        for issue in finding.known_issues:
            for name, text in known_issue_facts(issue):
                yield from self._field(name, escape(text))

    def _tree(self, graph: Graph, most: Optional[int] = None) -> Iterator[str]:
        for line in tree_lines(graph, self._width - len(_INDENT * 2), most):
            yield _INDENT * 2 + line

    def _field(self, name: str, text: str) -> List[str]:
        return self._wrap(f"{name}: {text}", _INDENT, _INDENT)

    def _stack(self, id: str) -> Iterator[str]:
        if id in self._stacks_shown:
            yield f"{_INDENT}{id}: shown above"
            return
        self._stacks_shown.add(id)
        yield f"{_INDENT}{id}:"
        yield from _stack_text(self._report.stacks[id], _INDENT * 2)

    def _gaps(self) -> Iterator[str]:
        for title, found in gaps(self._report):
            lines = [f"{title}:"]
            for analysis, text in found:
                lines += self._wrap(f"{analysis}: {text}", _INDENT, _INDENT)
            yield "\n".join(lines) + "\n"

    def _table(self, analysis: AnalysisResult, table: Table) -> str:
        title = table_title(analysis, table)
        if not table.rows:
            return f"{title}\n"
        kinds, same = shown_columns(table)
        rows = [
            [value_text(kind, getattr(row, name)) for name, kind in kinds] for row in table.rows
        ]
        notes = [] if self._fit is None else self._fitted(table, kinds, rows, self._fit)
        text = tabulate(
            rows,
            headers=[
                _heading(label(name, kind), [row[i] for row in rows])
                for i, (name, kind) in enumerate(kinds)
            ],
            colalign=["right" if kind in NUMERIC_KINDS else "left" for _, kind in kinds],
            disable_numparse=True,
        )
        # The padding of the last column is of no use to anybody.
        lines = [line.rstrip() for line in text.split("\n")]
        if same:
            facts = ", ".join(
                f"{label(name, kind)} {value_text(kind, value)}" for name, kind, value in same
            )
            lines = [*self._wrap(f"{same_title(table)}: {facts}", _INDENT, _INDENT), *lines]
        for note in notes:
            lines += self._wrap(note, _INDENT, _INDENT)
        return "\n".join([f"{title}:", *lines]) + "\n"

    def _fitted(
        self, table: Table, kinds: List[Tuple[str, Kind]], rows: List[List[str]], columns: int
    ) -> List[str]:
        """
        Make a table as narrow as the terminal, if text can be cut so far.

        :param rows: the cells, which are changed
        :return: what to say below the table
        """

        def width_of(i: int) -> int:
            cells = [row[i] for row in rows]
            heading = _heading(label(*kinds[i]), cells).split("\n")
            # What tabulate adds to headings.
            return max(*map(len, cells), max(map(len, heading)) + MIN_PADDING)

        widths = [width_of(i) for i in range(len(kinds))]

        def excess() -> int:
            return sum(widths) + 2 * (len(widths) - 1) - columns

        notes = []
        if excess() > 0:
            # Why there is no value is a sentence, and the same in many rows.
            for i, (name, kind) in enumerate(kinds):
                absent: Dict[str, None] = {}
                for row, cells in zip(table.rows, rows):
                    if isinstance(getattr(row, name), Absent):
                        absent[escape(getattr(row, name).reason)] = None
                        cells[i] = "?"
                if absent:
                    notes.append(f"? in {label(name, kind)}: {'; or '.join(absent)}")
                    widths[i] = width_of(i)
        cut = False
        textual = [i for i, (_, kind) in enumerate(kinds) if kind in _TEXTUAL_KINDS]
        while textual and excess() > 0:
            widest = max(textual, key=lambda i: widths[i])
            next_one = max((widths[i] for i in textual if i != widest), default=0)
            most = max(_NARROWEST, widths[widest] - excess(), next_one - 1)
            for cells in rows:
                if len(cells[widest]) > most:
                    cells[widest] = cells[widest][: most - len(_CUT)] + _CUT
                    cut = True
            narrower = width_of(widest)
            if narrower >= widths[widest]:
                textual.remove(widest)
            widths[widest] = narrower
        if cut:
            notes.append("Cells were cut to fit the terminal; they are whole with -o FILE.")
        return notes

    def _row_stacks(self) -> Iterator[str]:
        for id in row_stacks(self._report):
            if id not in self._stacks_shown:
                yield "\n".join(self._stack(id)) + "\n"

    def _analyses(self) -> str:
        lines = [f"Analyses (vmcore-tools {escape(self._report.tool_version)}):"]
        for analysis in self._report.analyses:
            lines += self._wrap(analysis_line(analysis, self._timings), _INDENT, _INDENT)
        not_run = not_run_line(self._report)
        if not_run is not None:
            lines += self._wrap(not_run, _INDENT, _INDENT)
        return "\n".join(lines) + "\n"


def _title(finding: Finding) -> str:
    rule = finding.rule
    return f"{rule.severity.name} {rule.id} {rule.slug} [{finding.confidence.name.lower()}]"


def _left_out(finding: Finding, count: int) -> str:
    return (
        f"{finding.rule.id} {finding.rule.slug}: {count:,} more with signature {finding.signature}"
    )


def _heading(name: str, cells: List[str]) -> str:
    """A heading on as many lines as keep it from being wider than the column."""
    return textwrap.fill(name, max(map(len, [*cells, *name.split()])), break_on_hyphens=False)


def _stack_text(stack: Stack, indent: str) -> Iterator[str]:
    for line in stack_lines(stack.frames):
        yield indent + line
    if stack.note is not None:
        yield f"{indent}({escape(stack.note)})"
