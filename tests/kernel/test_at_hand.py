# SPDX-License-Identifier: LGPL-2.1-or-later
"""What tasks have at hand, and the references that they have in such objects."""

from __future__ import annotations

from typing import Any, Dict, List

import numpy as np
import pytest

from vmcore_tools.kernel import at_hand as at_hand_module
from vmcore_tools.kernel import audit_containers
from vmcore_tools.kernel.at_hand import at_hand
from vmcore_tools.kernel.audit import Audit, Stale, Verdict
from vmcore_tools.kernel.audit_containers import with_containers_in_use
from vmcore_tools.kernel.references import Place, Reference

ENTRY, ATTACHMENT, FORGOTTEN = 0x1000, 0x2000, 0x3000


def u64(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def pointer(place: Place, container: int = 0) -> Reference:
    return Reference(0, 0x9000, container, place, "holder", container, 0, None)


def in_slab(container: int) -> Reference:
    return pointer(Place.SLAB_OBJECT, container)


STACK = pointer(Place.TASK_STACK)


def in_use(
    monkeypatch: pytest.MonkeyPatch, left: int, pointers: List[Reference], verdict: Verdict
) -> bool:
    """Whether an object is in use; tasks have an entry and an attachment at hand."""

    def of_tasks(_index: Any, addresses: np.ndarray) -> np.ndarray:
        return np.isin(addresses, u64(ENTRY, ATTACHMENT))

    monkeypatch.setattr(audit_containers, "at_hand", of_tasks)
    nothing = u64()
    stale = Stale(nothing, nothing.astype(np.int64), ())
    found: Dict[int, List[Reference]] = {0: pointers}
    audited = Audit(
        {}, np.array([left]), np.array([0]), np.array([verdict]), found, stale, nothing, 0, 0, False
    )
    after = with_containers_in_use(None, audited)  # type: ignore[arg-type]
    return bool(after.verdict[0] == Verdict.IN_USE)


@pytest.mark.parametrize(
    ("left", "pointers", "expected"),
    [
        (1, [in_slab(ENTRY)], True),
        (3, [in_slab(ENTRY), in_slab(ATTACHMENT), STACK], True),
        (2, [in_slab(ENTRY), in_slab(FORGOTTEN)], False),
        # However many are left over, one pointer is no more than one reference.
        (2, [in_slab(FORGOTTEN), STACK], False),
        (2, [in_slab(ENTRY), in_slab(ENTRY)], False),
        (7, [in_slab(ENTRY), STACK], False),
        (1, [pointer(Place.VMALLOC)], False),
    ],
)
def test_references_of_tasks_are_counted(
    monkeypatch: pytest.MonkeyPatch, left: int, pointers: List[Reference], expected: bool
) -> None:
    assert in_use(monkeypatch, left, pointers, Verdict.UNKNOWN_HOLDER) == expected
    assert not in_use(monkeypatch, left, pointers, Verdict.LEAKED)


def test_a_word_anywhere_in_an_object_is_a_pointer_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    words = u64(0x0FFF, 0x1008, 0x2040, 0x5000)
    monkeypatch.setattr(at_hand_module, "_words_of_tasks", lambda _prog: words)

    def slots(_index: Any, addresses: np.ndarray) -> Any:
        return addresses & ~np.uint64(0x3F), np.full(len(addresses), 0x40)

    monkeypatch.setattr(at_hand_module, "slots_around", slots)

    class Index:
        prog = None

    found = at_hand(Index(), u64(0x1030, 0x2000, 0x2047, 0x4FFF, 0x5000))  # type: ignore[arg-type]
    assert found.tolist() == [True, False, True, False, True]
    assert at_hand(Index(), u64()).tolist() == []  # type: ignore[arg-type]
