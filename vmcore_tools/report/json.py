# SPDX-License-Identifier: LGPL-2.1-or-later
"""The report as JSON, as ``schema-v1.json`` in this folder describes it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Dict, Iterable, List, Optional, Union

from vmcore_tools.model import (
    SCHEMA_VERSION,
    Absent,
    AnalysisResult,
    Evidence,
    Finding,
    Frame,
    Gap,
    Graph,
    Kind,
    Ref,
    Report,
    Stack,
    Table,
    columns,
)
from vmcore_tools.report.format import address_text, message_text
from vmcore_tools.report.graph import mermaid_lines


def render(report: Report, *, timings: bool = False) -> str:
    found = report.findings
    with_graph = [number for number, finding in enumerate(found) if finding.graph is not None]
    graphs = {number: f"graph-{id}" for id, number in enumerate(with_graph, 1)}
    made_by = {id(f): analysis.name for analysis in report.analyses for f in analysis.findings}
    # A member that only a comparison has.
    in_both = {} if report.in_both is None else {"in_both": list(report.in_both)}
    return dump(
        {
            **head(report.tool_version, report.target),
            "coverage": {
                "complete": report.complete,
                "interrupted": report.interrupted,
                "gaps": [_gap(a, gap) for a in report.analyses for gap in a.gaps],
                "not_run": list(report.not_run),
            },
            "analyses": [_analysis(a, timings) for a in report.analyses],
            "findings": [
                _finding(finding, made_by[id(finding)], graphs.get(number))
                for number, finding in enumerate(found)
            ],
            "graphs": {
                id: _graph(graph)
                for number, id in graphs.items()
                for graph in [found[number].graph]
                if graph is not None
            },
            **in_both,
            "stacks": {id: _stack(stack) for id, stack in sorted(report.stacks.items())},
            "tables": {
                a.name: {table.row_type.__name__: _table(table) for table in a.tables}
                for a in report.analyses
                if a.tables
            },
        }
    )


def head(tool_version: str, target: Iterable[Evidence]) -> Dict[str, Any]:
    """The members that every JSON document of this tool begins with."""
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "vmcore-tools", "version": tool_version},
        "target": _facts(target),
    }


def dump(document: Dict[str, Any]) -> str:
    # json.dumps escapes control characters, except DEL, and all that is not
    # ASCII. DEL can be nowhere but in a string, where this is its escape.
    return json.dumps(document, indent=2).replace("\x7f", "\\u007f") + "\n"


def _value(kind: Kind, value: Any) -> Any:
    if isinstance(value, Absent):
        return {"absent": value.reason}
    if isinstance(value, tuple):
        return [_value(kind, item) for item in value]
    if kind is Kind.ADDRESS and isinstance(value, int) and not isinstance(value, bool):
        return address_text(value)
    return value


def _facts(facts: Iterable[Evidence]) -> Dict[str, Any]:
    return {item.name: _value(item.kind, item.value) for item in facts}


def _gap(analysis: AnalysisResult, gap: Gap) -> Dict[str, Any]:
    return {
        "analysis": analysis.name,
        "what": gap.what,
        "reason": gap.reason,
        "count": gap.count,
        "material": gap.material,
        "addresses": [address_text(address) for address in gap.addresses],
    }


def _analysis(analysis: AnalysisResult, timings: bool) -> Dict[str, Any]:
    document: Dict[str, Any] = {
        "name": analysis.name,
        "status": analysis.status.value,
        "reason": analysis.reason,
    }
    if timings:
        document["seconds"] = round(analysis.seconds, 3)
    return document


def _finding(finding: Finding, analysis: str, graph: Optional[str]) -> Dict[str, Any]:
    return {
        "analysis": analysis,
        "rule": finding.rule.id,
        "slug": finding.rule.slug,
        "severity": finding.rule.severity.name.lower(),
        "confidence": finding.confidence.name.lower(),
        "message": message_text(finding),
        "subject": _ref(finding.subject),
        "evidence": _facts(finding.evidence),
        "related": [_ref(ref) for ref in finding.related],
        "signature": finding.signature,
        "remedy": finding.rule.remedy,
        "stacks": list(finding.stacks),
        "unread": list(finding.unread),
        "graph": graph,
        "known_issues": [dataclasses.asdict(issue) for issue in finding.known_issues],
    }


def _ref(ref: Ref) -> Dict[str, Any]:
    address: Union[str, None] = None if ref.address is None else address_text(ref.address)
    return {
        "type": ref.type,
        "name": _value(ref.name_kind, ref.name),
        "address": address,
        "pid": ref.pid,
    }


def _graph(graph: Graph) -> Dict[str, Any]:
    return {
        "nodes": [
            {"id": node.id, "ref": _ref(node.ref), "facts": _facts(node.facts)}
            for node in graph.nodes
        ],
        "edges": [
            {
                "source": edge.source,
                "target": edge.target,
                "why": edge.why,
                "proven": edge.proven,
            }
            for edge in graph.edges
        ],
        "roots": list(graph.roots),
        "left_out": graph.left_out,
        "mermaid": "\n".join(mermaid_lines(graph)) + "\n",
    }


def _stack(stack: Stack) -> Dict[str, Any]:
    return {"frames": [_frame(frame) for frame in stack.frames], "note": stack.note}


def _frame(frame: Frame) -> Dict[str, Any]:
    return {
        "function": frame.function,
        "module": frame.module,
        "offset": frame.offset,
        "size": frame.size,
        "file": frame.file,
        "line": frame.line,
        "inline": frame.inline,
    }


def _table(table: Table) -> Dict[str, Any]:
    kinds = columns(table.row_type)
    rows: List[Dict[str, Any]] = [
        {name: _value(kind, getattr(row, name)) for name, kind in kinds} for row in table.rows
    ]
    return {
        "total": table.total,
        "columns": [{"name": name, "kind": kind.value} for name, kind in kinds],
        "rows": rows,
    }
