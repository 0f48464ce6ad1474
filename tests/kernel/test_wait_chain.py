# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a plain wait is known to be of is no surer than the wait."""

from __future__ import annotations

from typing import Any

import pytest

from vmcore_tools.kernel import wait_chain
from vmcore_tools.kernel.waits import Wait


@pytest.mark.parametrize("proven", [True, False])
def test_a_wait_with_another_name_is_as_sure(monkeypatch: pytest.MonkeyPatch, proven: bool) -> None:
    thing: Any = object()
    found = Wait("wait queue", thing, "it is on the wait queue", proven)
    finder: Any = type("Finder", (), {"find": lambda *_: found})()
    chains: Any = wait_chain.WaitChains.__new__(wait_chain.WaitChains)
    chains._finder, chains.trace = finder, lambda _task: None
    named = Wait("virtqueue", thing, "it is the virtqueue's")
    monkeypatch.setattr(wait_chain, "NAME_WAIT", (lambda *_: None, lambda *_: named))
    wait = chains._wait(thing)
    assert (wait.kind, wait.proven) == ("virtqueue", proven)
