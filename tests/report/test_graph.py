# SPDX-License-Identifier: LGPL-2.1-or-later
"""Graphs of findings as trees and in Mermaid's language."""

from __future__ import annotations

import dataclasses
import json
import re

from tests.sample_report import full_report
from vmcore_tools.model import Evidence, Finding, Graph, GraphEdge, GraphNode, Kind, Ref, Report
from vmcore_tools.report import json as json_report
from vmcore_tools.report import markdown, table
from vmcore_tools.report.graph import mermaid_lines, tree_lines
from vmcore_tools.report.redact import redact


def node(id: str, name: str, pid: int = 0) -> GraphNode:
    facts = (Evidence("wait_ns", Kind.DURATION, pid * 1_000_000_000),) if pid else ()
    return GraphNode(id, Ref("task", name, pid=pid or None, name_kind=Kind.SENSITIVE), facts)


CHAIN = Graph(
    nodes=(node("n1", "hog"), node("n2", "worker"), node("n3", "Xorg", 5), node("n4", "other")),
    edges=(
        GraphEdge("n2", "n1", "is queued on", True),
        GraphEdge("n3", "n2", "waits for", False),
        GraphEdge("n4", "n1", "is queued on", True),
    ),
    roots=("n1",),
)
CYCLE = Graph(
    nodes=(node("n1", "a"), node("n2", "b"), node("n3", "c")),
    edges=(
        GraphEdge("n1", "n2", "waits for", True),
        GraphEdge("n2", "n1", "waits for", True),
        GraphEdge("n3", "n1", "waits for", True),
    ),
    roots=("n1", "n2"),
)


def with_graph(graph: Graph) -> Report:
    report = full_report()
    analysis = report.analyses[0]
    findings = tuple(
        dataclasses.replace(finding, graph=graph if number == 0 else None)
        for number, finding in enumerate(analysis.findings)
    )
    changed = dataclasses.replace(analysis, findings=findings)
    return dataclasses.replace(report, analyses=(changed, *report.analyses[1:]))


def first(report: Report) -> Finding:
    return next(finding for finding in report.findings if finding.graph is not None)


def test_tree_from_the_cause_down() -> None:
    assert list(tree_lines(CHAIN, 100)) == [
        "task hog",
        "|- task worker is queued on it",
        "|  `- task Xorg, PID 5 (wait 5.0 s) waits for it (not proven)",
        "`- task other is queued on it",
    ]


def test_a_cycle_ends_where_it_began() -> None:
    assert list(tree_lines(CYCLE, 100)) == [
        "task a",
        "|- task b waits for it",
        "|  `- task a waits for it (which closes the circle)",
        "`- task c waits for it",
    ]


def test_long_lines_are_cut_and_what_is_left_out_is_counted() -> None:
    graph = dataclasses.replace(CHAIN, left_out=1200)
    lines = list(tree_lines(graph, 20))
    assert lines[1] == "|- task worker is..."
    assert lines[-1] == "and 1,200 more be..."


def test_a_deep_tree_needs_no_deep_recursion() -> None:
    nodes = tuple(node(f"n{i}", "t") for i in range(3000))
    edges = tuple(GraphEdge(f"n{i + 1}", f"n{i}", "waits for", True) for i in range(2999))
    assert len(list(tree_lines(Graph(nodes, edges, ("n0",)), 100))) == 3000


def behind(number: int) -> Graph:
    """A lock's holder, and tasks that wait for the lock; one more waits for the first."""
    waiters = [node(f"n{3 + i}", "sshd" if i else "cron", 40 + i) for i in range(number)]
    return Graph(
        nodes=(node("n1", "holder"), GraphNode("n2", Ref("mutex", "", 0xFF00)), *waiters),
        edges=(
            GraphEdge("n2", "n1", "is held by", True),
            *(GraphEdge(waiter.id, "n2", "waits for", True) for waiter in waiters),
        ),
        roots=("n1",),
    )


def test_many_that_wait_alike_are_one_line() -> None:
    assert list(tree_lines(behind(4), 100)) == [
        "task holder",
        "`- mutex at 0xff00 is held by it",
        "   `- 4 x task sshd, cron, PID 40-43 (wait 40.0 s to 43.0 s) each waits for it",
    ]
    assert len(list(tree_lines(behind(3), 100))) == 5
    lines = list(mermaid_lines(behind(4)))
    assert lines[3] == '  n3["4 x task sshd, cron<br/>PID 40-43<br/>wait 40.0 s to 43.0 s"]'
    assert [line for line in lines if "-->" in line] == [
        '  n2 -->|"is held by"| n1',
        '  n3 -->|"waits for"| n2',
    ]


def test_those_that_others_wait_for_or_that_wait_otherwise_stand_alone() -> None:
    graph = behind(6)
    edges = (*graph.edges[:-1], GraphEdge("n8", "n2", "waits for", False))
    alone = dataclasses.replace(graph, edges=(*edges, GraphEdge("n8", "n3", "waits for", True)))
    text = "\n".join(tree_lines(alone, 100))
    assert "4 x task sshd, PID 41-44" in text
    assert "task cron, PID 40" in text and "task sshd, PID 45" in text


def test_a_short_tree_says_how_much_is_missing() -> None:
    assert list(tree_lines(behind(3), 100, 4))[2:] == [
        "   |- task cron, PID 40 (wait 40.0 s) waits for it",
        "... (2 more lines below)",
    ]
    assert len(list(tree_lines(behind(3), 100, 5))) == 5


def test_mermaid() -> None:
    assert list(mermaid_lines(CHAIN)) == [
        "flowchart BT",
        '  n1(["task hog"])',
        '  n2(["task worker"])',
        '  n3["task Xorg<br/>PID 5<br/>wait 5.0 s"]',
        '  n4(["task other"])',
        '  n2 -->|"is queued on"| n1',
        '  n3 -.->|"waits for"| n2',
        '  n4 -->|"is queued on"| n1',
        "  style n1 stroke:#d32f2f,stroke-width:4px",
    ]


def test_a_hostile_comm_is_no_markup() -> None:
    graph = dataclasses.replace(CHAIN, nodes=(node("n1", '"]\n```<img>`%%{x}'), *CHAIN.nodes[1:]))
    line = list(mermaid_lines(graph))[1]
    assert re.fullmatch(r'  n1\(\["[\w #;.,:/+-]*"\]\)', line)
    assert all("\n" not in line for line in tree_lines(graph, 100))


def test_what_mermaid_interprets_even_as_codes_is_no_markup() -> None:
    graph = dataclasses.replace(
        CHAIN, nodes=(node("n1", r"$$x$$ fa:fa-bug a\nb"), *CHAIN.nodes[1:])
    )
    label = list(mermaid_lines(graph))[1]
    assert "#36;#36;" not in label and "#58;fa-" not in label and "#92;n" not in label
    assert label.replace("#92;", "\\") == r'  n1(["task \x24\x24x\x24\x24 fa\x3afa-bug a\x5cnb"])'


def test_json_has_graphs_by_id() -> None:
    document = json.loads(json_report.render(with_graph(CHAIN)))
    (with_one,) = (f for f in document["findings"] if f["graph"] is not None)
    graph = document["graphs"][with_one["graph"]]
    assert [n["id"] for n in graph["nodes"]] == ["n1", "n2", "n3", "n4"]
    assert graph["nodes"][2]["ref"]["pid"] == 5
    assert graph["nodes"][2]["facts"] == {"wait_ns": 5_000_000_000}
    assert graph["edges"][1] == {
        "source": "n3",
        "target": "n2",
        "why": "waits for",
        "proven": False,
    }
    assert graph["roots"] == ["n1"]
    assert graph["mermaid"].splitlines() == list(mermaid_lines(CHAIN))
    assert json.loads(json_report.render(full_report()))["graphs"] == {}


def test_it_is_in_tables_and_in_tickets() -> None:
    assert "    |- task worker is queued on it\n" in table.render(with_graph(CHAIN))
    assert "\n```mermaid\nflowchart BT\n" in markdown.render(with_graph(CHAIN))


def test_names_are_masked() -> None:
    graph = first(redact(with_graph(CHAIN))).graph
    assert graph is not None
    names = [node.ref.name for node in graph.nodes]
    assert len(set(names)) == 4
    assert all(str(name).startswith("sensitive-") for name in names)
