# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A finding's graph as text: a tree from the cause down, and Mermaid.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, Set

from vmcore_tools.model import Graph, GraphNode
from vmcore_tools.report.format import label, ref_text, value_text

#: What a Mermaid label may hold as it is; all else is written as its code.
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _.,:/+-")


def tree_lines(graph: Graph, width: int) -> Iterator[str]:
    """
    The causes, and indented under each node what depends on it.

    What is longer than *width* is cut; a node that depends on several others
    is shown whole under the first.
    """
    nodes = {node.id: node for node in graph.nodes}
    below: Dict[str, List[str]] = {}
    why: Dict[str, str] = {}
    for edge in graph.edges:
        below.setdefault(edge.target, []).append(edge.source)
        why[f"{edge.source} {edge.target}"] = edge.why + ("" if edge.proven else " (?)")
    shown: Set[str] = set()
    # A cycle is written along its edges.
    start = graph.roots if len(graph.roots) == 1 else graph.roots[:1]
    # (node, the node above it, prefix of its line, prefix of the lines below it)
    stack = [(root, "", "", "") for root in reversed(start)]
    while stack:
        id, above, prefix, indent = stack.pop()
        text = node_text(nodes[id])
        if above:
            text += f" {why[f'{id} {above}']} it"
        if id in shown:
            yield _cut(f"{prefix}{text} (see above)", width)
            continue
        shown.add(id)
        yield _cut(prefix + text, width)
        children = below.get(id, [])
        for number, child in reversed(list(enumerate(children))):
            last = number == len(children) - 1
            branch, rest = ("`- ", "   ") if last else ("|- ", "|  ")
            stack.append((child, id, indent + branch, indent + rest))
    if graph.left_out:
        yield f"and {graph.left_out:,} more"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def node_text(node: GraphNode) -> str:
    """What a node is, and its facts."""
    facts = ", ".join(f"{label(f.name, f.kind)} {value_text(f.kind, f.value)}" for f in node.facts)
    return f"{ref_text(node.ref)} ({facts})" if facts else ref_text(node.ref)


def mermaid_lines(graph: Graph) -> Iterator[str]:
    """The graph in the language of Mermaid; its text can hold no markup."""
    yield "flowchart BT"
    for node in graph.nodes:
        yield f'  {node.id}["{_mermaid_text(node_text(node))}"]'
    for edge in graph.edges:
        arrow = "-->" if edge.proven else "-.->"
        yield f'  {edge.source} {arrow}|"{_mermaid_text(edge.why)}"| {edge.target}'
    for id in graph.roots:
        yield f"  style {id} stroke-width:4px"


def _mermaid_text(text: str) -> str:
    return "".join(c if c in _PLAIN else f"#{ord(c)};" for c in text)
