# SPDX-License-Identifier: LGPL-2.1-or-later
"""Cycles and causes in graphs of who waits for whom."""

from __future__ import annotations

from typing import Dict, List, Sequence, Set, Tuple

from hypothesis import given
from hypothesis import strategies as st

from vmcore_tools.kernel.wait_graph import Edge, Root, WaitGraph


def graph(*edges: str, any_of: Sequence[str] = ()) -> WaitGraph:
    """``a>b``: a waits for b."""
    result = WaitGraph()
    for text in edges:
        source, _, target = text.partition(">")
        result.add_edge(Edge(source, target, "waits for"))
    for key in any_of:
        result.add_node(key, any_of=True)
    return result


def cycles(of: WaitGraph) -> List[str]:
    return [
        ">".join([*(edge.source for edge in cycle), cycle[-1].target]) for cycle in of.deadlocks()
    ]


def test_two_tasks_and_two_locks_and_a_victim() -> None:
    abba = graph("A>m1", "m1>B", "B>m2", "m2>A", "C>m1")
    assert cycles(abba) == ["A>m1>B>m2>A"]
    (root,) = abba.rank([("A", "m1", "B", "m2")], {"A": 20, "B": 10, "C": 5})
    assert root == Root(("A", "m1", "B", "m2"), ("C",), 35, 3)


def test_a_chain_is_no_deadlock() -> None:
    chain = graph("A>m1", "m1>B", "B>m2", "m2>C", "D>m2")
    assert chain.deadlocks() == []
    assert chain.ends() == ["C"]
    assert chain.waiting_for(["m2"]) == {"A", "m1", "B", "m2", "D"}
    assert [edge.target for edge in chain.path("A", ["C"])] == ["m1", "B", "m2", "C"]
    assert chain.path("C", ["A"]) == []


def test_a_work_that_flushes_itself() -> None:
    assert cycles(graph("worker>work", "work>worker")) == ["worker>work>worker"]
    assert cycles(graph("A>A")) == ["A>A"]


def test_a_pool_with_a_free_worker_is_no_deadlock() -> None:
    edges = ("w1>work", "work>pool", "pool>w1", "pool>w2")
    assert cycles(graph(*edges)) == ["w1>work>pool>w1"]
    assert cycles(graph(*edges, any_of=["pool"])) == []
    # Unless that worker waits for the pool as well.
    assert cycles(graph(*edges, "w2>work", any_of=["pool"])) == ["w1>work>pool>w1"]


def test_a_way_out_of_a_cycle_that_is_needed_as_well_does_not_help() -> None:
    # A waits for B and for C; that C goes on does not free it.
    assert cycles(graph("A>B", "B>A", "A>C")) == ["A>B>A"]


def test_the_shortest_cycle_is_shown() -> None:
    assert cycles(graph("A>B", "B>C", "C>A", "C>B")) == ["B>C>B"]


def test_separate_deadlocks_are_found_separately() -> None:
    assert cycles(graph("A>B", "B>A", "C>A", "D>E", "E>D")) == ["A>B>A", "D>E>D"]


def test_the_cause_with_the_most_victims_comes_first_then_the_longest_wait() -> None:
    waiting = graph("A>x", "B>y", "C>y", "D>z", "E>E2")
    waits = {"A": 100, "B": 1, "C": 2, "D": 200}
    roots = waiting.rank([("x",), ("y",), ("z",), ("E2",)], waits)
    assert [(root.nodes, root.victims, root.wait_ns) for root in roots] == [
        (("y",), ("C", "B"), 3),
        (("z",), ("D",), 200),
        (("x",), ("A",), 100),
    ]


def test_a_long_chain_needs_no_deep_recursion() -> None:
    long = graph(*(f"t{i}>t{i + 1}" for i in range(20_000)), "t20000>t0")
    (cycle,) = long.deadlocks()
    assert len(cycle) == 20_001


def _reach(edges: Dict[int, Set[int]], start: int) -> Set[int]:
    seen: Set[int] = set()
    stack = list(edges.get(start, ()))
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack += edges.get(node, ())
    return seen


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=24))
def test_components_and_deadlocks_are_those_of_a_plain_search(pairs: List[Tuple[int, int]]) -> None:
    edges: Dict[int, Set[int]] = {}
    for source, target in pairs:
        edges.setdefault(source, set()).add(target)
    waiting = graph(*(f"{source}>{target}" for source, target in pairs))
    nodes = {node for pair in pairs for node in pair}
    components = {frozenset(map(int, component)) for component in waiting.strong_components()}
    assert components == {
        frozenset({a} | {b for b in _reach(edges, a) if a in _reach(edges, b)}) for a in nodes
    }
    # Where all targets are needed, exactly what reaches a cycle is stuck.
    on_cycle = {node for node in nodes if node in _reach(edges, node)}
    stuck = {node for node in nodes if node in on_cycle or _reach(edges, node) & on_cycle}
    assert {int(key) for key in waiting.deadlocked()} == stuck
    for cycle in waiting.deadlocks():
        assert {int(edge.source) for edge in cycle} <= on_cycle
        for edge, following in zip(cycle, [*cycle[1:], cycle[0]]):
            assert edge.target == following.source
