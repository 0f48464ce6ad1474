# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the last reader of an rwsem, whom alone it names, may still have it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Optional

import pytest

from vmcore_tools.kernel import wait_locks
from vmcore_tools.kernel.locks import Holder
from vmcore_tools.kernel.wait_nodes import LOCK, READ_BY, TASK, Node
from vmcore_tools.kernel.waits import Wait

SEM, OTHER = 0xFFFF888000001000, 0xFFFF888000002000


def pointer(address: int) -> Any:
    return SimpleNamespace(value_=lambda: address)


def holders(
    monkeypatch: pytest.MonkeyPatch,
    *,
    state: str = "asleep",
    waits_for: Optional[int] = None,
    uninterruptible: bool = True,
    certain: bool = False,
) -> int:
    """How many tasks are taken for the holder."""
    task: Any = pointer(0x1)
    wait = None if waits_for is None else Wait("rwsem", pointer(waits_for), "")
    chains: Any = SimpleNamespace(
        nodes={"reader": Node("reader", TASK, task, "task", wait, state)},
        task=lambda _task: "reader",
    )
    monkeypatch.setattr(wait_locks, "next_owner", lambda *_: None)
    monkeypatch.setattr(wait_locks, "_holder", lambda *_: Holder(task, certain))
    monkeypatch.setattr(wait_locks, "is_uninterruptible", lambda _task: uninterruptible)
    edges = list(wait_locks.follow_lock(chains, Node("sem", LOCK, pointer(SEM), "rwsem")))
    assert all(edge.target == "reader" and edge.proven == certain for edge in edges)
    assert certain or all(edge.why == READ_BY for edge in edges)
    return len(edges)


def test_it_may_have_it_while_it_sleeps_in_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert holders(monkeypatch) == 1
    assert holders(monkeypatch, waits_for=OTHER) == 1
    assert holders(monkeypatch, state="running") == holders(monkeypatch, state="queued") == 1


def test_it_has_let_go_if_it_waits_for_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert holders(monkeypatch, waits_for=SEM) == 0


def test_it_has_let_go_if_a_signal_would_wake_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert holders(monkeypatch, uninterruptible=False) == 0


def test_who_certainly_has_it_and_waits_for_it_again_is_its_holder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert holders(monkeypatch, certain=True, waits_for=SEM) == 1
    assert holders(monkeypatch, certain=True, uninterruptible=False) == 1


@pytest.mark.parametrize(("state", "followed"), [("queued", 1), ("running", 1), ("asleep", 0)])
def test_who_was_woken_to_take_a_free_lock_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, state: str, followed: int
) -> None:
    task: Any = pointer(0x1)
    chains: Any = SimpleNamespace(
        nodes={"next": Node("next", TASK, task, "task", None, state)}, task=lambda _task: "next"
    )
    monkeypatch.setattr(wait_locks, "next_owner", lambda *_: task)
    monkeypatch.setattr(wait_locks, "_holder", lambda *_: None)
    edges = list(wait_locks.follow_lock(chains, Node("lock", LOCK, pointer(SEM), "mutex")))
    assert [(edge.target, edge.why) for edge in edges] == [("next", "is to be taken by")] * followed
