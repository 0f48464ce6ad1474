# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The report as Markdown that pastes into a ticket (GitHub, GitLab, Bugzilla).

All text that is not this project's own stands in code spans and code blocks,
where no renderer makes links, mentions, HTML or emphasis of it.
"""

from __future__ import annotations

import re
from typing import Any, Iterable, Iterator, List, Set

from vmcore_tools.model import (
    Absent,
    AnalysisResult,
    Evidence,
    Finding,
    Kind,
    Ref,
    Report,
    Table,
)
from vmcore_tools.report.format import (
    NUMERIC_KINDS,
    address_text,
    escape,
    evidence_lines,
    known_issue_facts,
    label,
    list_texts,
    message_text,
    stack_lines,
    value_text,
)
from vmcore_tools.report.graph import mermaid_lines
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

#: Longer tables are folded.
_ROWS_UNFOLDED = 10

#: What would be markup in a line; underscores only where they do not join letters.
_MARKUP = re.compile(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])")


def render(report: Report, *, timings: bool = False) -> str:
    return _Renderer(report, timings).render()


def plain(text: str) -> str:
    """This project's own words, without accidental markup."""
    return _MARKUP.sub(r"\\\g<0>", escape(text))


def code(text: str) -> str:
    """
    Any text as a code span, also fit for a table's cell.

    A pipe would end the cell even in a code span, and how to escape it there
    differs between renderers: it becomes ``\\x7c``.
    """
    text = escape(text).replace("|", "\\x7c")
    if not text:
        return "` `"
    fence = "`" * (_longest_run(text) + 1)
    # A span loses one space on both sides if both are there.
    pad = " " if text[0] in "` " or text[-1] in "` " else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def code_block(lines: Iterable[str], language: str = "text") -> str:
    text = "\n".join(lines)
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}\n"


def value(kind: Kind, value: Any) -> str:
    if isinstance(value, tuple) and value:
        return ", ".join(list_texts(value, lambda item: _scalar(kind, item)))
    return _scalar(kind, value)


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _scalar(kind: Kind, value: Any) -> str:
    if isinstance(value, Absent):
        return f"? ({code(value.reason)})"
    if isinstance(value, str) or (kind is Kind.ADDRESS and value is not None):
        return code(value_text(kind, value))
    return value_text(kind, value)


def _ref(ref: Ref) -> str:
    text = code(ref.type)
    if ref.name != "":
        text += f" {value(ref.name_kind, ref.name)}"
    if ref.pid is not None:
        text += f", PID {ref.pid}"
    if ref.address is not None:
        text += f" at {code(address_text(ref.address))}"
    return text


def _facts(facts: Iterable[Evidence]) -> Iterator[str]:
    for item in facts:
        yield f"- {plain(label(item.name, item.kind))}: {value(item.kind, item.value)}"


def _section(title: str, lines: Iterable[str]) -> str:
    return "\n".join([f"### {title}", "", *lines]) + "\n"


class _Renderer:
    def __init__(self, report: Report, timings: bool) -> None:
        self._report = report
        self._timings = timings
        self._stacks_shown: Set[str] = set()

    def render(self) -> str:
        report = self._report
        sections = [f"**{plain(verdict(report))}**\n"]
        for finding, left_out in few_alike(report.findings, IN_FULL):
            sections.append(self._finding(finding))
            if left_out:
                rule = f"{plain(finding.rule.id)} {plain(finding.rule.slug)}"
                sections.append(f"{rule}: {left_out:,} more with {code(finding.signature)}\n")
        sections.append(_section("Target", _facts(target_facts(report.target))))
        sections += [
            _section(title, (f"- {code(analysis)}: {code(text)}" for analysis, text in lines))
            for title, lines in gaps(report)
        ]
        sections += [
            self._table(analysis, table)
            for analysis in report.analyses
            for table in analysis.tables
        ]
        sections += [self._stack(id) for id in row_stacks(report) if id not in self._stacks_shown]
        lines = [analysis_line(a, self._timings) for a in report.analyses]
        not_run = not_run_line(report)
        if not_run is not None:
            lines.append(not_run)
        sections.append(_section("Analyses", (f"- {code(line)}" for line in lines)))
        sections.append(f"vmcore-tools {plain(report.tool_version)}\n")
        return "\n".join(sections)

    def _finding(self, finding: Finding) -> str:
        rule = finding.rule
        message = message_text(
            finding, value=lambda item: value(item.kind, item.value), literal=plain
        )
        lines = [
            f"### {rule.severity.name} {plain(rule.id)} {plain(rule.slug)}"
            f" ({finding.confidence.name.lower()})",
            "",
            message,
            "",
            f"- subject: {_ref(finding.subject)}",
            *_facts(evidence_lines(finding)),
            *(f"- related: {_ref(ref)}" for ref in finding.related),
            *(f"- unread: {code(text)}" for text in finding.unread),
            f"- what to do: {plain(rule.remedy)}",
            f"- signature: {code(finding.signature)}",
            *(
                f"- {plain(name)}: {plain(text)}"
                for issue in finding.known_issues
                for name, text in known_issue_facts(issue)
            ),
        ]
        parts = ["\n".join(lines) + "\n"]
        if finding.graph is not None:
            parts.append(code_block(mermaid_lines(finding.graph), "mermaid"))
        parts += [self._stack(id) for id in finding.stacks]
        return "\n".join(parts)

    def _stack(self, id: str) -> str:
        if id in self._stacks_shown:
            return f"{code(id)}: shown above\n"
        self._stacks_shown.add(id)
        stack = self._report.stacks[id]
        lines = list(stack_lines(stack.frames))
        if stack.note is not None:
            lines.append(f"({escape(stack.note)})")
        return f"{code(id)}:\n\n{code_block(lines)}"

    def _table(self, analysis: AnalysisResult, table: Table) -> str:
        title = plain(table_title(analysis, table))
        if not table.rows:
            return f"### {title}\n"
        text = "\n".join(_table_lines(table)) + "\n"
        if len(table.rows) <= _ROWS_UNFOLDED:
            return f"### {title}\n\n{text}"
        return f"<details><summary>{title}</summary>\n\n{text}\n</details>\n"


def _table_lines(table: Table) -> List[str]:
    kinds, same = shown_columns(table)
    rule = ["---:" if kind in NUMERIC_KINDS else "---" for _, kind in kinds]
    rows = [
        [plain(label(name, kind)) for name, kind in kinds],
        rule,
        *([value(kind, getattr(row, name)) for name, kind in kinds] for row in table.rows),
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    if same:
        facts = ", ".join(f"{plain(label(name, kind))} {value(kind, v)}" for name, kind, v in same)
        lines = [f"{same_title(table).capitalize()}: {facts}", "", *lines]
    return lines
