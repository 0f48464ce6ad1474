# SPDX-License-Identifier: LGPL-2.1-or-later
"""What messages say of those who wait, and of the task that keeps a CPU from them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Dict, Optional

import pytest

from vmcore_tools.kernel.wait_graph import Edge, Root, WaitGraph
from vmcore_tools.kernel.wait_nodes import LOCK, OBJECT, TASK, Node
from vmcore_tools.kernel.waits import Wait
from vmcore_tools.wait_findings import cpu, view
from vmcore_tools.wait_findings.causes import Awaited, ExplainedWaits
from vmcore_tools.wait_findings.deadlock import Deadlock

SECOND = 1_000_000_000


def waiting(waits: Dict[str, int]) -> str:
    its = view.WaitView.__new__(view.WaitView)
    its.waits = {key: seconds * SECOND for key, seconds in waits.items()}
    return its.waiting(Root(("cause",), tuple(waits), 0, len(waits)), "for it")


def test_one_task_waits() -> None:
    assert waiting({"Xorg": 9}) == (
        "{victims} task waits for it: {victim} ({victim_pid}) for {wait_ns}"
    )


def test_who_waits_for_the_longest_is_named() -> None:
    assert waiting({"Xorg": 9, "flip": 8}) == (
        "{victims} tasks wait for it, longest of them {victim} ({victim_pid}), for {wait_ns}"
    )


def test_a_sleeper_is_named_before_who_can_run_and_said_to_be_one() -> None:
    assert waiting({"Xorg": 8, "kworker/1:1": 9}) == (
        "{victims} tasks wait for it, longest of those that sleep {victim} ({victim_pid}), for "
        "{wait_ns}"
    )


@pytest.mark.parametrize(
    ("held_s", "since_switch_s", "stopped_s", "told"),
    [
        (9.1, 1.9, 1.91, True),
        (9.1, 1.9, 4.0, False),  # something else ran since
        (9.1, 1.9, None, False),
        (9.1, 9.1, 9.1, False),  # there was no break
        (9.1, None, 1.9, False),
    ],
)
def test_a_break_for_the_stopper_is_explained(
    monkeypatch: pytest.MonkeyPatch,
    held_s: float,
    since_switch_s: Optional[float],
    stopped_s: Optional[float],
    told: bool,
) -> None:
    def nanoseconds(seconds: Optional[float]) -> Optional[int]:
        return None if seconds is None else int(seconds * SECOND)

    monkeypatch.setattr(cpu, "since_run_ns", lambda *_: nanoseconds(stopped_s))
    stop = SimpleNamespace(read_=lambda: "the stopper")
    rq = SimpleNamespace(stop=stop)
    queue = SimpleNamespace(rq=rq, current_ns=nanoseconds(since_switch_s))
    held: Any = SimpleNamespace(queue=queue, ran_ns=nanoseconds(held_s))
    its = cpu.CpuMonopolised.__new__(cpu.CpuMonopolised)
    its.view = SimpleNamespace(now_ns=0)  # type: ignore[assignment]
    assert its._stopper_ran(held) is told


# What a task waits for.


def explained(end: str, kind: str = OBJECT, further: bool = False) -> Optional[Awaited]:
    graph = WaitGraph()
    graph.add_edge(Edge("task 0x1", "end", "waits for"))
    if further:
        graph.add_edge(Edge("end", "task 0x2", "is held by"))
    obj: Any = SimpleNamespace()
    nodes = {
        "task 0x1": Node("task 0x1", TASK, obj, "task", Wait("completion", obj, ""), "asleep"),
        "end": Node("end", kind, obj, end),
    }
    its: Any = SimpleNamespace(
        chains=SimpleNamespace(nodes=nodes, without_wait=set()),
        graph=graph,
        node=nodes.__getitem__,
        names=lambda keys: tuple(nodes[key].name for key in keys),
    )
    waits = ExplainedWaits(its, (), {}, {}, frozenset())
    assert waits.of_task(0x2) is None  # it was not looked at
    known = waits.of_task(0x1)
    assert known is not None and known.found
    return known.awaited


def test_what_nobody_is_known_to_end() -> None:
    assert explained("completion") == Awaited("completion", True)
    assert explained("timer") == Awaited("timer", False)
    assert explained("mutex", LOCK, further=True) == Awaited("mutex", False)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("mutex a", "mutex b"), "for {objects} in turn"),
        (("mutex", "mutex"), "for {objects} at {addresses} in turn"),
    ],
)
def test_what_nothing_names_in_a_circle_has_an_address(names: Any, words: str) -> None:
    graph = WaitGraph()
    keys = ("task a", "lock 1", "task b", "lock 2")
    for source, target in zip(keys, (*keys[1:], keys[0])):
        graph.add_edge(Edge(source, target, "waits for"))
    nodes = {key: SimpleNamespace(kind=TASK if "task" in key else LOCK) for key in keys}
    its = view.WaitView.__new__(view.WaitView)
    its.graph, its.asleep, its.waits = graph, ["task a", "task b"], {"task a": 1, "task b": 1}
    its.chains = SimpleNamespace(nodes=nodes)  # type: ignore[assignment]
    for name, value in (
        *(("names", names), ("comms", ("a", "b")), ("pids", (1, 2)), ("addresses", (16, 32))),
        *(("ref", None), ("victims", ()), ("related", ()), ("callers", [])),
        *(("stack_ids", ()), ("drawn", None)),
    ):
        setattr(its, name, lambda *_, value=value: value)
    found = Deadlock(its).finding(Root(keys, (), 2, 2))
    assert found is not None
    assert words in found.message
