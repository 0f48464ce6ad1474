# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who sleeps for a moment need not be who has kept others waiting for minutes."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, Optional, Tuple

import pytest

from vmcore_tools.kernel.wait_graph import Edge
from vmcore_tools.kernel.wait_nodes import HELD_BY, READ_BY, TASK, Node
from vmcore_tools.kernel.waits import Wait
from vmcore_tools.model import Confidence
from vmcore_tools.wait_findings import view

SECOND = 1_000_000_000
ANY: Any = SimpleNamespace()
HOLDER = Node("task 0x1", TASK, ANY, "task", Wait("completion", ANY, ""), "asleep")


def verdict(
    monkeypatch: pytest.MonkeyPatch,
    slept_ns: Optional[int],
    why: str = HELD_BY,
    proven: bool = True,
    **changed: Any,
) -> Tuple[Confidence, Tuple[str, ...]]:
    monkeypatch.setattr(view, "sleep_time_ns", lambda _task, _now_ns: slept_ns)
    its = view.WaitView.__new__(view.WaitView)
    its.now_ns, its.threshold_ns = 1000 * SECOND, 120 * SECOND
    edges = [Edge("mutex", "task 0x1", why, proven)]
    return its.verdict(dataclasses.replace(HOLDER, **changed), edges, "since when")


def test_who_sleeps_as_long_is_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict(monkeypatch, 120 * SECOND) == (Confidence.PROVEN, ())


@pytest.mark.parametrize("slept_ns", [1_000_000, 119 * SECOND, None])
def test_who_went_to_sleep_a_moment_ago_may_not_be(
    monkeypatch: pytest.MonkeyPatch, slept_ns: Optional[int]
) -> None:
    assert verdict(monkeypatch, slept_ns) == (Confidence.LIKELY, ("since when",))


@pytest.mark.parametrize(
    "changed",
    [{"wait": Wait("timer", ANY, "")}, {"state": "throttled"}, {"state": "running"}],
)
def test_who_goes_on_by_itself_may_not_be(monkeypatch: pytest.MonkeyPatch, changed: Any) -> None:
    found = verdict(monkeypatch, 500 * SECOND, **changed)
    assert found == (Confidence.LIKELY, ("since when",))


def test_what_is_less_sure_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    confidence, unread = verdict(monkeypatch, 1, why=READ_BY, proven=False)
    assert confidence is Confidence.SUSPECTED
    assert unread == ("whether the last one that took the lock still has it",)
