# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A finding's graph as text: a tree from the cause down, and Mermaid.

Nodes on which nothing depends, and which depend on the same in the same way,
are written as one: a lock can have thousands of waiters.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Dict, Iterator, List, Optional, Sequence, Set, Tuple

from vmcore_tools.model import Evidence, Graph, GraphEdge, GraphNode
from vmcore_tools.report.format import address_text, label, ref_text, value_text

#: What a Mermaid label may hold as it is; all else is written as its code.
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _.,/+-")
#: What Mermaid interprets even where it is written as codes: formulas, the end of a line,
#: icons (``fa:fa-bug``), and its own form of such codes.
_INTERPRETED = {
    "$$": r"\x24\x24",
    r"\n": r"\x5cn",
    ":fa-": r"\x3afa-",
    "\ufb02\xb0": r"\ufb02\xb0",
    "\xb6\xdf": r"\xb6\xdf",
}

#: From how many on nodes that are alike are written as one.
_ALIKE_MIN = 4
#: Names, and ranges of PIDs, that are written of these.
_NAMED = 4


@dataclasses.dataclass(frozen=True)
class _Shown:
    """A node, or several that are written as one."""

    nodes: Tuple[GraphNode, ...]
    edges: Tuple[GraphEdge, ...]  #: from the first of them: the others have the same

    @property
    def id(self) -> str:
        return self.nodes[0].id


def _shown(graph: Graph) -> List[_Shown]:
    edges: Dict[str, List[GraphEdge]] = {}
    for edge in graph.edges:
        edges.setdefault(edge.source, []).append(edge)
    needed = {edge.target for edge in graph.edges} | set(graph.roots)
    alike: Dict[object, List[GraphNode]] = {}
    for node in graph.nodes:
        key: object = node.id
        if node.id not in needed:
            reasons = ((e.target, e.why, e.proven) for e in edges.get(node.id, ()))
            key = (node.ref.type, *sorted(reasons))
        alike.setdefault(key, []).append(node)
    shown = []
    for nodes in alike.values():
        together = [nodes] if len(nodes) >= _ALIKE_MIN else [[node] for node in nodes]
        for some in together:
            shown.append(_Shown(tuple(some), tuple(edges.get(some[0].id, ()))))
    return shown


def tree_lines(graph: Graph, width: int, most: Optional[int] = None) -> Iterator[str]:
    """
    The causes, and indented under each node what depends on it.

    What is longer than *width* is cut; a node that depends on several others
    is shown whole under the first.

    :param most: write no more lines than these
    """
    lines = list(_tree_lines(graph, width))
    if most is not None and len(lines) > most:
        lines[most - 1 :] = [f"... ({len(lines) - most + 1:,} more lines below)"]
    yield from lines


def _tree_lines(graph: Graph, width: int) -> Iterator[str]:
    things = {shown.id: shown for shown in _shown(graph)}
    below: Dict[str, List[str]] = {}
    why: Dict[Tuple[str, str], str] = {}
    for thing in things.values():
        for edge in thing.edges:
            below.setdefault(edge.target, []).append(thing.id)
            each = "each " if len(thing.nodes) > 1 else ""
            unsure = "" if edge.proven else " (not proven)"
            why[thing.id, edge.target] = f"{each}{edge.why} it{unsure}"
    shown: Set[str] = set()
    # (node, the node above it, prefix of its line, prefix of the lines below it)
    stack = [(root, "", "", "") for root in reversed(graph.roots)]
    while stack:
        id, above, prefix, indent = stack.pop()
        # A cycle is written along its edges, from the first of its nodes.
        if id in shown and not above:
            continue
        thing = things[id]
        text = _line(thing.nodes)
        if above:
            text += f" {why[id, above]}"
        if id in shown:
            seen = "which closes the circle" if id in graph.roots else "see above"
            yield _cut(f"{prefix}{text} ({seen})", width)
            continue
        shown.add(id)
        yield _cut(prefix + text, width)
        children = below.get(id, [])
        for number, child in reversed(list(enumerate(children))):
            last = number == len(children) - 1
            branch, rest = ("`- ", "   ") if last else ("|- ", "|  ")
            stack.append((child, id, indent + branch, indent + rest))
    if graph.left_out:
        yield _cut(f"and {graph.left_out:,} more behind these", width)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _line(nodes: Sequence[GraphNode]) -> str:
    """What a node is, and its facts; or several nodes."""
    what, where, facts = _parts(nodes)
    joint = ", " if where.startswith("PID") else " "
    text = f"{what}{joint}{where}" if where else what
    return f"{text} ({facts})" if facts else text


def _parts(nodes: Sequence[GraphNode]) -> Tuple[str, str, str]:
    """What it is, where to find it, and its facts; empty if there is nothing to say."""
    what = ref_text(dataclasses.replace(nodes[0].ref, pid=None, address=None))
    facts = ", ".join(
        f"{label(fact.name, fact.kind)} {text}"
        for fact in nodes[0].facts
        for text in [_of_all(fact, nodes)]
        if text
    )
    if len(nodes) > 1:
        kind = ref_text(dataclasses.replace(nodes[0].ref, name="", pid=None, address=None))
        names = Counter(value_text(node.ref.name_kind, node.ref.name) for node in nodes)
        what = f"{len(nodes):,} x {kind} {_first([name for name, _ in names.most_common()])}"
    pids = sorted({node.ref.pid for node in nodes if node.ref.pid is not None})
    address = nodes[0].ref.address
    # A PID is enough to find a task, and shorter.
    if pids:
        where = f"PID {_first(list(_ranges(pids)))}"
    elif len(nodes) == 1 and address is not None:
        where = f"at {address_text(address)}"
    else:
        where = ""
    return what, where, facts


def _of_all(fact: Evidence, nodes: Sequence[GraphNode]) -> str:
    """A fact as text; of several nodes its least and greatest value, if all have a number."""
    if len(nodes) == 1:
        return value_text(fact.kind, fact.value)
    values = [
        other.value
        for node in nodes
        for other in node.facts
        if other.name == fact.name and isinstance(other.value, int)
    ]
    if len(values) < len(nodes):
        return ""
    least, greatest = (value_text(fact.kind, value) for value in (min(values), max(values)))
    return least if least == greatest else f"{least} to {greatest}"


def _first(texts: Sequence[str]) -> str:
    return ", ".join([*texts[:_NAMED], "..."] if len(texts) > _NAMED else texts)


def _ranges(numbers: Sequence[int]) -> Iterator[str]:
    """
    >>> list(_ranges([4, 5, 6, 9]))
    ['4-6', '9']
    """
    first = last = numbers[0]
    for number in [*numbers[1:], None]:
        if number is not None and number <= last + 1:
            last = number
            continue
        yield str(first) if first == last else f"{first}-{last}"
        if number is not None:
            first = last = number


def mermaid_lines(graph: Graph) -> Iterator[str]:
    """The graph in the language of Mermaid; its text can hold no markup."""
    things = _shown(graph)
    # The causes are at the top.
    yield "flowchart BT"
    for thing in things:
        text = "<br/>".join(_mermaid_text(part) for part in _parts(thing.nodes) if part)
        # What can act has corners.
        left, right = ("[", "]") if thing.nodes[0].ref.pid is not None else ("([", "])")
        yield f'  {thing.id}{left}"{text}"{right}'
    for thing in things:
        for edge in thing.edges:
            arrow = "-->" if edge.proven else "-.->"
            yield f'  {edge.source} {arrow}|"{_mermaid_text(edge.why)}"| {edge.target}'
    if graph.left_out:
        yield f'  left_out["and {graph.left_out} more behind these"]'
        yield "  style left_out stroke-dasharray:4 4"
    for id in graph.roots:
        yield f"  style {id} stroke:#d32f2f,stroke-width:4px"


def _mermaid_text(text: str) -> str:
    for markup, harmless in _INTERPRETED.items():
        text = text.replace(markup, harmless)
    return "".join(c if c in _PLAIN else f"#{ord(c)};" for c in text)
