# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ``list`` and ``explain`` show of the analyses, their rules and known issues."""

from __future__ import annotations

import textwrap
from typing import Iterator, Optional, Sequence

from vmcore_tools.analysis import Analysis
from vmcore_tools.knowledge import Entry, knowledge
from vmcore_tools.model import Rule
from vmcore_tools.report.format import known_issue_facts

_WIDTH = 79


def list_page(analyses: Sequence[Analysis]) -> str:
    """Every analysis with its rules, and the known issues."""
    parts = ["\n".join(_list_lines(analysis)) + "\n" for analysis in analyses]
    issues = [f"  {e.issue.id} ({e.rule}): {e.issue.title}" for e in knowledge().entries]
    if issues:
        parts.append("\n".join(["known issues that findings are compared with:", *issues]) + "\n")
    return "\n".join(parts)


def _list_lines(analysis: Analysis) -> Iterator[str]:
    argument = "" if analysis.argument is None else f" {analysis.argument.metavar}"
    mark = "" if analysis.in_triage else " (not in triage)"
    yield f"{analysis.name}{argument}{mark}: {analysis.summary}"
    for rule in analysis.rules:
        yield f"  {rule.id} {rule.severity.name.lower():<8} {rule.slug}: {rule.summary}"


def explain_page(analyses: Sequence[Analysis], name: str) -> Optional[str]:
    """
    The page of the rule, by ID or slug, of the analysis, or of the known issue.

    :return: None if there is none
    """
    for analysis in analyses:
        if analysis.name == name:
            return _analysis_page(analysis)
        for rule in analysis.rules:
            if name.upper() == rule.id or name == rule.slug:
                return _rule_page(analysis, rule)
    for entry in knowledge().entries:
        if name == entry.issue.id:
            return _issue_page(entry)
    return None


def _analysis_page(analysis: Analysis) -> str:
    lines = [f"{analysis.name}: {analysis.doc}"]
    if analysis.argument is not None:
        lines += ["", f"{analysis.argument.metavar}: {analysis.argument.help}"]
    if analysis.options:
        lines += ["", "Options:"]
        for option in analysis.options:
            value = "" if option.type is bool else f" {option.metavar or option.key.upper()}"
            lines += textwrap.wrap(
                f"--{option.name}{value}: {option.help}",
                _WIDTH,
                initial_indent="  ",
                subsequent_indent="      ",
            )
    if analysis.rules:
        lines += ["", "Rules:", *list(_list_lines(analysis))[1:]]
    return "\n".join(lines) + "\n"


def _rule_page(analysis: Analysis, rule: Rule) -> str:
    paragraphs = [
        f"{rule.id} {rule.slug} ({rule.severity.name.lower()}, found by {analysis.name})",
        textwrap.fill(rule.summary, _WIDTH),
    ]
    if rule.page:
        paragraphs.append(textwrap.dedent(rule.page).strip())
    paragraphs.append(textwrap.fill(f"What to do: {rule.remedy}", _WIDTH))
    known = [entry.issue for entry in knowledge().entries if entry.rule == rule.id]
    if known:
        lines = [f"  {issue.id}: {issue.title}" for issue in known]
        paragraphs.append("\n".join(["Known issues that findings are compared with:", *lines]))
    return "\n\n".join(paragraphs) + "\n"


def _issue_page(entry: Entry) -> str:
    paragraphs = [f"{entry.issue.id} (a known issue, compared with findings of {entry.rule})"]
    # The first of the facts is for findings: it names the issue.
    paragraphs.append(textwrap.fill(entry.issue.title, _WIDTH))
    for name, text in list(known_issue_facts(entry.issue))[1:]:
        text = text if name == "known issue" else f"{name}: {text}"
        paragraphs.append(textwrap.fill(text, _WIDTH, break_long_words=False))
    for key in entry.keys:
        parts = ", then ".join(" or ".join(part) for part in key)
        paragraphs.append(textwrap.fill(f"A finding looks like it if it is of {parts}.", _WIDTH))
    return "\n\n".join(paragraphs) + "\n"
