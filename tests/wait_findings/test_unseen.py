# SPDX-License-Identifier: LGPL-2.1-or-later
"""Waits that the debug info of a module could explain: which count, and how sure they leave us."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, List, Tuple, cast

import pytest

from vmcore_tools.analysis import Context
from vmcore_tools.kernel.wait_graph import Edge, Root, WaitGraph
from vmcore_tools.kernel.wait_nodes import CPU, FENCE, OBJECT, TASK
from vmcore_tools.model import Confidence, Coverage, Finding, Frame, Gap, Ref, Stack
from vmcore_tools.wait_findings import unseen
from vmcore_tools.wait_findings.unknown import WAKER_UNKNOWN
from vmcore_tools.wait_findings.view import WaitView

MODULE = SimpleNamespace(name="virtio_gpu")
#: Where it is.
START, END = 0xFFFFFFFFC0000000, 0xFFFFFFFFC0010000
SECONDS = 1_000_000_000


class Address(int):
    def value_(self) -> int:
        return int(self)


class Waits:
    """One task that waits for one thing."""

    def __init__(
        self,
        *,
        module: str | None = None,
        kind: str = OBJECT,
        name: str = "wait queue",
        address: int = 0xFFFF888000001000,
        ops: int = 0,
        waited_s: int = 20,
        state: str = "asleep",
        killable: bool = False,
    ) -> None:
        self.graph = WaitGraph()
        self.graph.add_node("task")
        self.graph.add_node("object")
        self.graph.add_edge(Edge("task", "object", "waits for"))
        task = SimpleNamespace(killable=killable, value_=lambda: 0x10)
        thing = SimpleNamespace(
            prog_=None, value_=lambda: address, ops=SimpleNamespace(value_=lambda: ops)
        )
        self._nodes = {
            "task": SimpleNamespace(kind=TASK, name="task", object=task, state=state, key="task"),
            "object": SimpleNamespace(kind=kind, name=name, object=thing, state="", key="object"),
        }
        self.waits = {"task": waited_s * SECONDS}
        self.threshold_ns = 10 * SECONDS
        self.prog = None
        self.tasks: List[Any] = []
        self._stack = Stack((Frame("f", module, 1, 2, None, None, False),))

    def node(self, key: str) -> Any:
        return self._nodes[key]

    def stack(self, task: Any) -> Stack:
        return self._stack

    def longest_ns(self, keys: Any) -> int:
        return max((self.waits.get(key, 0) for key in keys), default=0)


@pytest.fixture(autouse=True)
def one_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def at(prog: Any, address: int) -> Any:
        return MODULE if START <= address < END else None

    monkeypatch.setattr(unseen, "modules_without_debug_info", lambda prog: [MODULE])
    monkeypatch.setattr(
        "vmcore_tools.module_gaps.modules_without_debug_info", lambda prog: [MODULE]
    )
    monkeypatch.setattr(unseen, "module_without_debug_info", at)
    monkeypatch.setattr(unseen, "is_killable", lambda task: task.killable)
    monkeypatch.setattr(unseen, "symbol_address", lambda prog, name: 0)


def gaps(waits: Waits, explained: bool) -> Tuple[Gap, ...]:
    ctx = SimpleNamespace(prog=None, coverage=Coverage())
    view = cast(WaitView, waits)
    unseen.count_modules_of_waits(cast(Context, ctx), view, lambda key: explained)
    return ctx.coverage.gaps()


IN_MODULE = {"module": "virtio_gpu"}
OF_MODULE = {"kind": FENCE, "ops": START + 8}


@pytest.mark.parametrize(
    ("waits", "explained", "counted"),
    [
        (IN_MODULE, True, True),
        (OF_MODULE, True, True),
        ({"address": START}, True, True),
        ({"module": "ext4"}, True, False),
        ({}, True, False),
        ({}, False, True),  # whoever ends it may be in the module
        ({**IN_MODULE, "waited_s": 9}, False, False),
        ({**IN_MODULE, "killable": True}, False, False),
        ({**IN_MODULE, "kind": CPU}, True, False),
        ({**IN_MODULE, "name": "timer"}, True, False),
        ({**IN_MODULE, "state": "running"}, True, False),
    ],
)
def test_modules_count_where_they_matter(waits: Any, explained: bool, counted: bool) -> None:
    found = gaps(Waits(**waits), explained)
    assert [(gap.what, gap.count, gap.material) for gap in found] == (
        [("module", 1, True)] if counted else []
    )


def test_with_all_debug_info_there_is_nothing_to_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unseen, "modules_without_debug_info", lambda prog: [])
    assert gaps(Waits(module="virtio_gpu"), False) == ()


@pytest.mark.parametrize(
    ("waits", "confidence", "modules"),
    [
        (IN_MODULE, Confidence.SUSPECTED, ("virtio_gpu",)),
        (OF_MODULE, Confidence.SUSPECTED, ("virtio_gpu",)),
        ({}, Confidence.LIKELY, None),
    ],
)
def test_a_waker_in_such_a_module_is_suspected(
    waits: Any, confidence: Confidence, modules: Any
) -> None:
    finding = Finding(
        WAKER_UNKNOWN, Confidence.LIKELY, "", Ref("wait queue", ""), (), ("waker-unknown",)
    )
    root = Root(("object",), ("task",), 20 * SECONDS, 1)
    seen = unseen.as_far_as_seen(cast(WaitView, Waits(**waits)), root, finding)
    assert seen.confidence is confidence
    evidence = {item.name: item.value for item in seen.evidence}
    assert evidence.get("modules_without_debug_info") == modules
    assert len(seen.unread) == (0 if modules is None else 1)
    assert seen.signature == finding.signature
