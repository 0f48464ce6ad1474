# SPDX-License-Identifier: LGPL-2.1-or-later
"""What findings of reference counts say, for one of a thing and for many."""

from __future__ import annotations

from typing import Tuple

import numpy as np
import pytest

from vmcore_tools.audit_findings import (
    Dangling,
    Proof,
    live_only_through_these,
    more_than_known_holders,
    references_leaked,
)
from vmcore_tools.kernel.audit import Audit, Stale, Verdict
from vmcore_tools.model import Confidence


def result(alive: int, freed: int, kinds: Tuple[str, ...], pages_unread: int = 0) -> Audit:
    nothing = np.zeros(0, dtype=np.uint64)
    counts = np.ones(alive, dtype=np.int64)
    addresses = np.arange(freed, dtype=np.uint64)
    return Audit(
        holders=dict.fromkeys(kinds, counts),
        left=np.zeros(alive, dtype=np.int64),
        excess=counts,
        verdict=np.full(alive, Verdict.DANGLING, dtype=np.int8),
        pointers={},
        stale=Stale(addresses, addresses.astype(np.int64), ((kinds),) * freed),
        unknown_held=nothing,
        pages_unread=pages_unread,
        registers_unread=0,
        changing=False,
    )


@pytest.mark.parametrize(
    ("alive", "freed", "saturated", "expected"),
    [
        (1, 0, 0, "{objects} fence has more holders than references; the holders: {holders}."),
        (3, 0, 0, "{objects} fences have more holders than references; the holders: {holders}."),
        (
            0,
            1,
            0,
            "{freed_objects} fence is freed and still pointed at by a holder; "
            "the holders: {holders}.",
        ),
        (
            1,
            2,
            0,
            "{objects} fence has more holders than references and {freed_objects} fences are "
            "freed and still pointed at by a holder; the holders: {holders}.",
        ),
        (
            1,
            1,
            1,
            "{objects} fence has more holders than references, {freed_objects} fence is freed and "
            "still pointed at by a holder and {objects_saturated} fence has a saturated reference "
            "count; the holders: {holders}.",
        ),
        (0, 0, 2, "{objects_saturated} fences have a saturated reference count."),
    ],
)
def test_what_is_none_is_not_said(alive: int, freed: int, saturated: int, expected: str) -> None:
    kinds = ("plane",) if alive or freed else ()
    found = Dangling.of(result(alive, freed, kinds), np.arange(alive))
    assert found.message("fence", saturated) == expected


def test_one_leaked_object_and_many() -> None:
    assert (
        references_leaked(1, 1, "dma-buf")
        == "{references_leaked} reference leaked on {objects} dma-buf"
    )
    assert references_leaked(2, 1, "dma-buf").startswith("{references_leaked} references leaked")
    assert live_only_through_these(1, 1, 1, "") == "; it lives only through this reference"
    assert live_only_through_these(2, 1, 1, "") == "; it lives only through these references"
    assert live_only_through_these(5, 4, 0, "") == ""
    assert live_only_through_these(5, 4, 1, " ({size_bytes})") == (
        "; {objects_only_leaked} of them ({size_bytes}) lives only through these references"
    )
    assert more_than_known_holders(1, 1, "dma-buf") == (
        "{objects} dma-buf has {references} reference more than the holders that are known here, "
        "and something that is not known points at it."
    )


@pytest.mark.parametrize(
    ("references", "proven", "part"),
    [
        (5, 4, "{references_proven} are proven"),
        (5, 4, "those of the other one have a stray pointer"),
        (5, 1, "{references_proven} is proven"),
        (5, 1, "those of the other {references_likely} have"),
        (5, 0, "; their objects have a stray pointer"),
        (1, 0, "; its object has a stray pointer"),
        (5, 5, "; no other pointer to them is in all of kernel memory."),
    ],
)
def test_how_much_of_it_is_proven(references: int, proven: int, part: str) -> None:
    proof = Proof.of(result(0, 0, ()), references, proven)
    assert part in proof.message
    assert proof.confidence == (Confidence.PROVEN if proven else Confidence.LIKELY)


def test_pages_that_are_not_there() -> None:
    assert (
        "{pages_unread} page that could hold a pointer to them is"
        in Proof.of(result(0, 0, (), pages_unread=1), 1, 1).message
    )
