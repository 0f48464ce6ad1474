# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Who waits for whom, as a graph: cycles, and what stands at the end.

An edge goes from what waits to what it waits for. A node with several edges
needs all of its targets to go on, or, if it is *any of*, one of them (a pool
of workers needs any worker). Nothing here reads a kernel.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Callable, Deque, Dict, Iterable, Iterator, List, Mapping, Optional, Set, Tuple

#: Nodes of a deadlock from which its shortest cycle is looked for.
_BRANCHES_TRIED = 1000


@dataclasses.dataclass(frozen=True)
class Edge:
    """
    One node waits for another.

    :ivar why: fits between their names: ``is held by``
    :ivar proven: whether the kernel's structures leave no other reading
    """

    source: str
    target: str
    why: str
    proven: bool = True


@dataclasses.dataclass(frozen=True)
class Root:
    """
    Where waits end.

    :ivar nodes: one that waits for nothing, or the nodes of a cycle in order
    :ivar victims: who waits behind it, the longest first; not the nodes themselves
    :ivar wait_ns: how long all of them, and those of the cycle, have waited altogether
    :ivar waiting: how many they are
    """

    nodes: Tuple[str, ...]
    victims: Tuple[str, ...]
    wait_ns: int
    waiting: int

    @property
    def sort_key(self) -> Tuple[int, int, Tuple[str, ...]]:
        """The most victims first, then the longest wait."""
        return (-self.waiting, -self.wait_ns, self.nodes)


class WaitGraph:
    """Nodes are known by a key; adding one twice changes nothing."""

    def __init__(self) -> None:
        self._edges: Dict[str, List[Edge]] = {}
        self._incoming: Dict[str, List[Edge]] = {}
        self._any_of: Set[str] = set()

    @property
    def nodes(self) -> Iterable[str]:
        """In the order in which they were added."""
        return self._edges.keys()

    def add_node(self, key: str, *, any_of: bool = False) -> None:
        self._edges.setdefault(key, [])
        self._incoming.setdefault(key, [])
        if any_of:
            self._any_of.add(key)

    def add_edge(self, edge: Edge) -> None:
        self.add_node(edge.source)
        self.add_node(edge.target)
        if all(edge.target != other.target for other in self._edges[edge.source]):
            self._edges[edge.source].append(edge)
            self._incoming[edge.target].append(edge)

    def edges_from(self, key: str) -> Tuple[Edge, ...]:
        return tuple(self._edges[key])

    def edges_to(self, key: str) -> Tuple[Edge, ...]:
        return tuple(self._incoming[key])

    def ends(self) -> List[str]:
        """The nodes that wait for nothing."""
        return [key for key, edges in self._edges.items() if not edges]

    def reachable(self, key: str) -> Set[str]:
        """A node, and all that it waits for."""
        return self._walk([key], lambda node: (edge.target for edge in self._edges[node]))

    def waiting_for(self, keys: Iterable[str]) -> Set[str]:
        """Nodes, and all that waits for any of them."""
        return self._walk(keys, lambda node: (edge.source for edge in self._incoming[node]))

    @staticmethod
    def _walk(start: Iterable[str], following: Callable[[str], Iterable[str]]) -> Set[str]:
        seen = set(start)
        stack = list(seen)
        while stack:
            for key in following(stack.pop()):
                if key not in seen:
                    seen.add(key)
                    stack.append(key)
        return seen

    def path(self, source: str, targets: Iterable[str]) -> List[Edge]:
        """The shortest chain of waits between two nodes; empty if there is none."""
        wanted = set(targets)
        before: Dict[str, Optional[Edge]] = {source: None}
        queue: Deque[str] = collections.deque([source])
        while queue:
            key = queue.popleft()
            if key in wanted:
                edges: List[Edge] = []
                edge = before[key]
                while edge is not None:
                    edges.append(edge)
                    edge = before[edge.source]
                return edges[::-1]
            for edge in self._edges[key]:
                if edge.target not in before:
                    before[edge.target] = edge
                    queue.append(edge.target)
        return []

    def strong_components(self, among: Optional[Set[str]] = None) -> List[List[str]]:
        """
        The sets of nodes that all wait for each other (Tarjan's algorithm).

        Every node is in exactly one; most are alone.

        :param among: look at no other nodes
        """
        number: Dict[str, int] = {}
        low: Dict[str, int] = {}
        on_stack: Set[str] = set()
        stack: List[str] = []
        components: List[List[str]] = []
        for start in self._edges:
            if start in number or (among is not None and start not in among):
                continue
            work: List[Tuple[str, Iterator[Edge]]] = [(start, iter(self._edges[start]))]
            number[start] = low[start] = len(number)
            stack.append(start)
            on_stack.add(start)
            while work:
                key, edges = work[-1]
                for edge in edges:
                    target = edge.target
                    if among is not None and target not in among:
                        continue
                    if target not in number:
                        number[target] = low[target] = len(number)
                        stack.append(target)
                        on_stack.add(target)
                        work.append((target, iter(self._edges[target])))
                        break
                    if target in on_stack:
                        low[key] = min(low[key], number[target])
                else:
                    work.pop()
                    if work:
                        low[work[-1][0]] = min(low[work[-1][0]], low[key])
                    if low[key] == number[key]:
                        component: List[str] = []
                        while not component or component[-1] != key:
                            component.append(stack.pop())
                            on_stack.discard(component[-1])
                        components.append(component[::-1])
        return components

    def deadlocked(self) -> Set[str]:
        """The nodes that cannot go on even if all that waits for nothing does."""
        can_go = set(self.ends())
        left = {key: len(edges) for key, edges in self._edges.items()}
        queue = collections.deque(can_go)
        while queue:
            for edge in self._incoming[queue.popleft()]:
                left[edge.source] -= 1
                if edge.source in can_go:
                    continue
                if edge.source in self._any_of or left[edge.source] == 0:
                    can_go.add(edge.source)
                    queue.append(edge.source)
        return set(self._edges) - can_go

    def deadlocks(self) -> List[List[Edge]]:
        """
        For each set of nodes that wait for each other for ever, its shortest cycle.

        The cycle begins with the node that was added first.
        """
        order = {key: number for number, key in enumerate(self._edges)}
        cycles = []
        for component in self.strong_components(self.deadlocked()):
            cycle = self._shortest_cycle(set(component))
            if cycle:
                first = min(range(len(cycle)), key=lambda i: order[cycle[i].source])
                cycles.append(cycle[first:] + cycle[:first])
        return sorted(cycles, key=lambda cycle: order[cycle[0].source])

    def _shortest_cycle(self, members: Set[str]) -> List[Edge]:
        within = {
            key: [edge for edge in self._edges[key] if edge.target in members] for key in members
        }
        shortest: List[Edge] = []
        # Most nodes wait for one other: only those that branch, and one more,
        # can begin a shorter cycle than the one that was found.
        branching = sorted(key for key, edges in within.items() if len(edges) > 1)
        for key in [*sorted(members)[:1], *branching[:_BRANCHES_TRIED]]:
            cycle = self._cycle_through(key, within)
            if cycle and (not shortest or len(cycle) < len(shortest)):
                shortest = cycle
        return shortest

    @staticmethod
    def _cycle_through(start: str, within: Mapping[str, List[Edge]]) -> List[Edge]:
        before: Dict[str, Edge] = {}
        queue: Deque[str] = collections.deque([start])
        while queue:
            for edge in within[queue.popleft()]:
                if edge.target in before:
                    continue
                before[edge.target] = edge
                if edge.target == start:
                    edges = [edge]
                    while edges[-1].source != start:
                        edges.append(before[edges[-1].source])
                    return edges[::-1]
                queue.append(edge.target)
        return []

    def rank(self, candidates: Iterable[Tuple[str, ...]], waits: Mapping[str, int]) -> List[Root]:
        """
        Candidates for the cause: the most victims first, then the longest wait.

        :param candidates: each one node, or the nodes of a cycle
        :param waits: who counts as a victim, and for how long it has waited
        :return: only those that somebody waits behind
        """
        roots = []
        for nodes in candidates:
            behind = self.waiting_for(nodes) & set(waits)
            victims = sorted(behind - set(nodes), key=lambda key: (-waits[key], key))
            cycle = [key for key in nodes if key in waits] if len(nodes) > 1 else []
            if victims or cycle:
                total = sum(waits[key] for key in [*victims, *cycle])
                roots.append(Root(nodes, tuple(victims), total, len(victims) + len(cycle)))
        return sorted(roots, key=lambda root: root.sort_key)
