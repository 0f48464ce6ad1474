# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who has a lock and only waits for a CPU is named where nothing else is to blame."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, List

from vmcore_tools.kernel.wait_graph import Edge, WaitGraph
from vmcore_tools.kernel.wait_nodes import CPU, HELD_BY, LOCK, READ_BY, TASK
from vmcore_tools.wait_findings import causes

KINDS = {"task": TASK, "mutex": LOCK, "cpu": CPU}


def last_nodes(why: str, state: str) -> List[str]:
    graph = WaitGraph()
    graph.add_edge(Edge("task victim", "mutex", "waits for"))
    graph.add_edge(Edge("mutex", "task holder", why))
    graph.add_edge(Edge("task holder", "cpu 1", "is queued on"))
    nodes = {
        key: SimpleNamespace(kind=KINDS[key.partition(" ")[0]], state=state) for key in graph.nodes
    }
    its: Any = causes._Causes.__new__(causes._Causes)
    its._view = SimpleNamespace(graph=graph, chains=SimpleNamespace(nodes=nodes))
    return list(its._last_nodes())


def test_a_holder_that_is_queued_is_looked_at_besides_the_ends() -> None:
    assert last_nodes(HELD_BY, "queued") == ["cpu 1", "task holder"]
    assert last_nodes(READ_BY, "queued") == ["cpu 1", "task holder"]


def test_others_are_not() -> None:
    assert last_nodes(HELD_BY, "asleep") == ["cpu 1"]
    assert last_nodes("is to be taken by", "queued") == ["cpu 1"]
