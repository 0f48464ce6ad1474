# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The report as one HTML file that needs nothing else: no script, no font, no network.

Whatever a dump says is text here. It is escaped wherever it stands, and the file's own
policy forbids the browser to run or to load anything, should that ever fail.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from typing import Any, Iterable, Iterator, List, Set, Tuple

from vmcore_tools.model import (
    Absent,
    AnalysisResult,
    Evidence,
    Finding,
    Graph,
    Kind,
    Report,
    Severity,
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
    analysis_line,
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
_ROWS_UNFOLDED = 12

#: Columns of a graph's lines: as many as are read with ease.
_TREE_WIDTH = 200

#: How a line of a graph begins, in ASCII.
_BRANCHES = re.compile(r"^(?:\|  |   )*(?:\|- |`- )?")
_DRAWN = {"|  ": "│  ", "|- ": "├─ ", "`- ": "└─ ", "   ": "   "}

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c2128; --soft: #57606a;
  --line: #d5dae0; --panel: #f6f8fa; --critical: #8c1862; --error: #b3261e;
  --warning: #8a5700; --info: #1f5faa; --ok: #1a7037; }
@media (prefers-color-scheme: dark) { :root { --back: #14181d; --text: #e2e6eb;
  --soft: #98a2ad; --line: #343b44; --panel: #1d232a; --critical: #f08fd0; --error: #ff8e85;
  --warning: #e7b35a; --info: #85b8f5; --ok: #6fcf8e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1.5rem 1.25rem 4rem; background: var(--back);
  color: var(--text); font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.3rem; line-height: 1.35; margin: 0; }
h2 { font-size: 1.05rem; margin: 2.25rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0; }
code, pre { font: .87em/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
code { overflow-wrap: anywhere; } a { color: var(--info); }
pre { margin: .5rem 0; padding: .7rem .9rem; overflow-x: auto; background: var(--panel);
  border: 1px solid var(--line); border-radius: 6px; }
.verdict { padding: 1rem 1.1rem; border: 1px solid var(--line); border-left: .4rem solid var(--ok);
  border-radius: 6px; background: var(--panel); }
.verdict p { margin: .25rem 0 0; color: var(--soft); }
.critical { --mark: var(--critical); } .error { --mark: var(--error); }
.warning { --mark: var(--warning); } .info { --mark: var(--info); }
.verdict[class~=critical], .verdict[class~=error], .verdict[class~=warning],
.verdict[class~=info] { border-left-color: var(--mark); }
.badge { display: inline-block; padding: 0 .5em; border: 1px solid var(--mark, var(--line));
  border-radius: 1em; color: var(--mark, var(--soft)); font-size: .78rem; font-weight: 600;
  letter-spacing: .02em; white-space: nowrap; vertical-align: .1em; }
.contents { list-style: none; margin: 1rem 0 0; padding: 0; }
.contents li { padding: .35rem 0; border-top: 1px solid var(--line); }
.contents a { color: inherit; text-decoration: none; }
.contents a:hover { text-decoration: underline; }
article { margin: 1rem 0; padding: 1rem 1.1rem; border: 1px solid var(--line);
  border-left: .4rem solid var(--mark); border-radius: 6px; break-inside: avoid-page; }
article > p { margin: .5rem 0 .75rem; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) minmax(0, 1fr);
  gap: .2rem 1rem; margin: .5rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.remedy { padding: .5rem .8rem; border-radius: 6px; background: var(--panel); }
details { margin: .75rem 0; } summary { cursor: pointer; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; width: 100%; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; } .number { text-align: right; white-space: nowrap; }
tbody tr:nth-child(even) { background: var(--panel); }
.absent, footer, .same { color: var(--soft); } .root { font-weight: 700; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .75rem; }
@media print { :root { color-scheme: light; --back: #fff; --text: #000; --soft: #444;
  --line: #bbb; --panel: #f4f4f4; --critical: #8c1862; --error: #b3261e; --warning: #8a5700;
  --info: #1f5faa; --ok: #1a7037; }
  body { max-width: none; padding: 0; font-size: 10pt; } pre { white-space: pre-wrap; }
  .scroll { overflow: visible; } tr, .verdict { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .contents a { text-decoration: none; } }
"""


def render(report: Report, *, timings: bool = False) -> str:
    return _Renderer(report, timings).render()


def text(value: str) -> str:
    """Any text, for between tags and within a quoted attribute."""
    return html.escape(escape(value), quote=True)


def _value(kind: Kind, value: Any) -> str:
    if isinstance(value, tuple) and value:
        return ", ".join(_value(kind, item) for item in value)
    shown = text(value_text(kind, value))
    if isinstance(value, Absent):
        return f'<span class="absent">{shown}</span>'
    if isinstance(value, str) or (kind is Kind.ADDRESS and value is not None):
        return f"<code>{shown}</code>"
    return shown


def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _facts(facts: Iterable[Tuple[str, str]]) -> str:
    """A list of names, as plain text, with their values, as HTML."""
    rows = "".join(f"<dt>{text(name)}</dt><dd>{value}</dd>\n" for name, value in facts)
    return f"<dl>\n{rows}</dl>\n" if rows else ""


def _named(facts: Iterable[Evidence]) -> Iterator[Tuple[str, str]]:
    for item in facts:
        yield label(item.name, item.kind), _value(item.kind, item.value)


def _badge(word: str, kind: str = "") -> str:
    return f'<span class="badge {kind}">{text(word)}</span>'


def _tree(graph: Graph) -> str:
    """A graph as a drawn tree, the causes in bold."""
    lines = []
    for line in tree_lines(graph, _TREE_WIDTH):
        found = _BRANCHES.match(line)
        start = found.end() if found else 0
        drawn = "".join(_DRAWN[line[at : at + 3]] for at in range(0, start, 3))
        node = text(line[start:])
        lines.append(drawn + (node if start else f'<span class="root">{node}</span>'))
    caption = text(graph.caption)
    return f'<pre aria-label="{caption}">' + "\n".join(lines) + "</pre>\n"


class _Renderer:
    def __init__(self, report: Report, timings: bool) -> None:
        self._report = report
        self._timings = timings
        self._stacks_shown: Set[str] = set()

    def render(self) -> str:
        report = self._report
        body: List[str] = [self._head()]
        body += [self._finding(n, finding) for n, finding in enumerate(report.findings, start=1)]
        known = target_facts(report.target)
        facts = [item for item in known if item.value is not None and item.value != ()]
        body.append(f"<h2>Target</h2>\n{_facts(_named(facts))}")
        for title, lines in gaps(report):
            body.append(f"<h2>{text(title)}</h2>\n")
            body.append(_facts((analysis, text(line)) for analysis, line in lines))
        tables = [
            self._table(analysis, table)
            for analysis in report.analyses
            for table in analysis.tables
        ]
        body += ["<h2>Tables</h2>\n", *tables] if tables else []
        stacks = [self._stack(id) for id in row_stacks(report) if id not in self._stacks_shown]
        body += ["<h2>Stacks</h2>\n", *stacks] if stacks else []
        body.append("<h2>Analyses</h2>\n<ul>\n")
        body += [f"<li>{text(analysis_line(a, self._timings))}</li>\n" for a in report.analyses]
        not_run = not_run_line(report)
        if not_run is not None:
            body.append(f"<li>{text(not_run)}</li>\n")
        body.append(f"</ul>\n<footer>vmcore-tools {text(report.tool_version)}</footer>\n")
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">\n'
            '<meta name="referrer" content="no-referrer">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{text(verdict(report))}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f"{''.join(body)}</body>\n</html>\n"
        )

    def _head(self) -> str:
        findings = self._report.findings
        worst = max((finding.rule.severity for finding in findings), default=None)
        if worst is None and not self._report.complete:
            worst = Severity.WARNING
        kind = "" if worst is None else f" {worst.name.lower()}"
        release = [item for item in self._report.target if item.name == "kernel_release"]
        about = "".join(f"<p>Kernel {_value(item.kind, item.value)}</p>" for item in release)
        contents = "".join(
            f'<li><a href="#finding-{number}">'
            f"{_badge(finding.rule.severity.name, finding.rule.severity.name.lower())}"
            f" {text(message_text(finding))}</a></li>\n"
            for number, finding in enumerate(findings, start=1)
        )
        listed = f'<ol class="contents">\n{contents}</ol>\n' if contents else ""
        title = f"<h1>{text(verdict(self._report))}</h1>"
        head = f'<header class="verdict{kind}">{title}{about}</header>\n{listed}'
        return head + ("<h2>Findings</h2>\n" if contents else "")

    def _finding(self, number: int, finding: Finding) -> str:
        rule = finding.rule
        kind = rule.severity.name.lower()
        message = message_text(
            finding, value=lambda item: _value(item.kind, item.value), literal=text
        )
        facts: List[Tuple[str, str]] = [("subject", text(ref_text(finding.subject)))]
        facts += _named(evidence_lines(finding))
        facts += [("related", text(ref_text(ref))) for ref in finding.related]
        facts += [("unread", text(unread)) for unread in finding.unread]
        facts.append(("signature", f"<code>{text(finding.signature)}</code>"))
        for issue in finding.known_issues:
            facts += [(name, text(fact)) for name, fact in known_issue_facts(issue)]
        return (
            f'<article class="{kind}" id="finding-{number}">\n'
            f"<h3>{_badge(rule.severity.name, kind)} {text(rule.id)} {text(rule.slug)}"
            f" {_badge(finding.confidence.name.lower())}</h3>\n"
            f"<p>{message}</p>\n"
            f'<p class="remedy"><strong>What to do:</strong> {text(rule.remedy)}</p>\n'
            + (_tree(finding.graph) if finding.graph is not None else "")
            + _facts(facts)
            + "".join(self._stack(id) for id in finding.stacks)
            + "</article>\n"
        )

    def _stack(self, id: str) -> str:
        if id in self._stacks_shown:
            return f'<p><a href="#{text(id)}"><code>{text(id)}</code></a>: shown above</p>\n'
        self._stacks_shown.add(id)
        stack = self._report.stacks[id]
        lines = [text(line) for line in stack_lines(stack.frames)]
        if stack.note is not None:
            lines.append(f"({text(stack.note)})")
        joined = "\n".join(lines)
        return (
            f'<details open id="{text(id)}"><summary><code>{text(id)}</code></summary>\n'
            f"<pre>{joined}</pre></details>\n"
        )

    def _table(self, analysis: AnalysisResult, table: Table) -> str:
        title = text(table_title(analysis, table))
        if not table.rows:
            return f"<p>{title}</p>\n"
        kinds, same = shown_columns(table)
        parts = []
        if same:
            facts = ", ".join(
                f"{text(label(name, kind))} {_value(kind, value)}" for name, kind, value in same
            )
            parts.append(f'<p class="same">{text(same_title(table).capitalize())}: {facts}</p>\n')

        def cell(tag: str, kind: Kind, content: str) -> str:
            number = ' class="number"' if kind in NUMERIC_KINDS else ""
            return f"<{tag}{number}>{content}</{tag}>"

        head = "".join(cell("th", kind, text(label(name, kind))) for name, kind in kinds)
        rows = "".join(
            "<tr>"
            + "".join(cell("td", kind, _value(kind, getattr(row, name))) for name, kind in kinds)
            + "</tr>\n"
            for row in table.rows
        )
        parts.append(
            f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{rows}</tbody>\n</table></div>\n"
        )
        unfolded = " open" if len(table.rows) <= _ROWS_UNFOLDED else ""
        return f"<details{unfolded}><summary>{title}</summary>\n{''.join(parts)}</details>\n"
