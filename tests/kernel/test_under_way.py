# SPDX-License-Identifier: LGPL-2.1-or-later
"""Objects that tasks are building up or taking apart, by what points at them."""

from __future__ import annotations

from typing import Any, Dict, List, Set

import numpy as np
import pytest

from vmcore_tools.kernel import under_way as module
from vmcore_tools.kernel.references import Place, Reference
from vmcore_tools.kernel.under_way import under_way

ENTRY, ATTACHMENT, FORGOTTEN = 0x1000, 0x2000, 0x3000


def pointer(place: Place, container: int = 0) -> Reference:
    return Reference(0, 0x9000, container, place, "holder", container, 0, None)


def in_slab(container: int) -> Reference:
    return pointer(Place.SLAB_OBJECT, container)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> List[List[int]]:
    """What was looked for; tasks have two of the objects at hand."""
    calls: List[List[int]] = []

    def with_tasks(_index: Any, objects: np.ndarray, _progress: Any) -> np.ndarray:
        calls.append(objects.tolist())
        return np.isin(objects, np.array([ENTRY, ATTACHMENT], dtype=np.uint64))

    monkeypatch.setattr(module, "with_tasks", with_tasks)
    return calls


def found(pointers: Dict[int, List[Reference]]) -> Set[int]:
    return set(under_way(None, pointers, None))  # type: ignore[arg-type]


def test_what_a_task_has_at_hand_is_under_way(asked: List[List[int]]) -> None:
    pointers = {
        0: [in_slab(ENTRY)],
        1: [in_slab(ENTRY), in_slab(ATTACHMENT), pointer(Place.TASK_STACK)],
        2: [in_slab(ENTRY), in_slab(FORGOTTEN)],
        3: [in_slab(FORGOTTEN), pointer(Place.REGISTER)],
    }
    assert found(pointers) == {0, 1}
    assert asked == [[ENTRY, ATTACHMENT, FORGOTTEN]]


@pytest.mark.parametrize("place", [Place.VMALLOC, Place.PAGES, Place.IMAGE, Place.PER_CPU])
def test_other_memory_is_nobodys_work(asked: List[List[int]], place: Place) -> None:
    assert found({0: [in_slab(ENTRY), pointer(place)]}) == set()


def test_nothing_is_asked_of_nothing(asked: List[List[int]]) -> None:
    assert found({}) == set()
