# SPDX-License-Identifier: LGPL-2.1-or-later
"""With PREEMPT_RT, who waits for the readers of a lock has its rt_mutex, and is not to blame."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, List, Tuple

import pytest

from vmcore_tools.kernel.wait_graph import Edge, WaitGraph
from vmcore_tools.kernel.wait_nodes import HELD_BY, LOCK, OBJECT, TASK
from vmcore_tools.wait_findings import causes

KINDS = {"task": TASK, "rt_mutex": LOCK, "readers": OBJECT, "completion": OBJECT}


def last_tasks(end: str) -> List[Tuple[str, ...]]:
    graph = WaitGraph()
    graph.add_edge(Edge("task behind", "rt_mutex", "waits for"))
    graph.add_edge(Edge("rt_mutex", "task writer", HELD_BY))
    graph.add_edge(Edge("task writer", end, "waits for"))
    nodes = {}
    for key in graph.nodes:
        name = key.partition(" ")[0]
        nodes[key] = SimpleNamespace(kind=KINDS[name], name=name)
    its: Any = causes._Causes.__new__(causes._Causes)
    its._view = SimpleNamespace(graph=graph, chains=SimpleNamespace(nodes=nodes))
    return its._last_tasks(())  # type: ignore[no-any-return]


@pytest.mark.parametrize(("end", "expected"), [("readers", []), ("completion", [("task writer",)])])
def test_the_writer_is_the_last_task_unless_it_waits_for_the_readers(
    end: str, expected: List[Tuple[str, ...]]
) -> None:
    assert last_tasks(end) == expected
