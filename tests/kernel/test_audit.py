# SPDX-License-Identifier: LGPL-2.1-or-later
"""The arithmetic of the audit: holders against counts, and whose block a pointer is in."""

from __future__ import annotations

from typing import Dict, List, Sequence

import numpy as np
import pytest

from vmcore_tools.kernel.audit import (
    Audit,
    Counted,
    Holders,
    Refcounted,
    Stale,
    Verdict,
    _labels,
    _unexplained,
    count_by_address,
    count_holders,
    nobody_else_can_hold,
    verdicts_of_counts,
    with_likely_leaks,
)
from vmcore_tools.kernel.references import Hits, Place, Reference, Targets


def u64(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def objects(refcounts: Sequence[int]) -> Counted:
    address = np.arange(1, len(refcounts) + 1, dtype=np.uint64) * np.uint64(0x1000)
    return Counted(
        address,
        np.array(refcounts, dtype=np.int64),
        address,
        np.full(len(refcounts), 0x100),
        np.arange(len(refcounts)),
    )


def test_each_target_is_counted_as_often_as_it_is_held() -> None:
    counts = count_by_address(
        u64(0x3000, 0x1000, 0x3000, 0x1001, 0, 2**64 - 1), u64(0x1000, 0x3000)
    )
    assert counts.tolist() == [1, 2]


def test_references_and_holders_are_set_against_each_other() -> None:
    holders = [
        Holders("reservation", u64(0x1000, 0x2000, 0x2000), u64()),
        Holders("sync_file", u64(0x1000), u64()),
    ]
    counts, left, excess = count_holders(objects([2, 1, 3, 0]), holders)
    assert counts["reservation"].tolist() == [1, 2, 0, 0]
    assert counts["sync_file"].tolist() == [1, 0, 0, 0]
    assert left.tolist() == [0, 0, 3, 0]
    assert excess.tolist() == [0, 1, 0, 0]


def test_what_counts_alone_say() -> None:
    # 0xc0000000 is REFCOUNT_SATURATED; a put after it was set takes one more.
    refcounts = [1, 0, -(1 << 30), -(1 << 30) - 1, -5, 2, 1, 0x6B6B6B6B]
    holders = [Holders("array", u64(0x1000, 0x6000, 0x7000, 0x7000, 0x5000), u64())]
    counted = objects(refcounts)
    _, left, excess = count_holders(counted, holders)
    verdicts = verdicts_of_counts(counted.refcount, left, excess)
    assert [Verdict(int(verdict)) for verdict in verdicts] == [
        Verdict.EXPLAINED,
        Verdict.FREEING,
        Verdict.SATURATED,
        Verdict.SATURATED,
        Verdict.IMPOSSIBLE,
        Verdict.LEAKED,
        Verdict.DANGLING,
        Verdict.IMPOSSIBLE,
    ]


def test_an_unknown_driver_may_have_two_references_for_one_pointer() -> None:
    """Held and not, of a driver that is known; and of another, at rest and not."""
    counted = objects([2, 1, 2, 1, 2, 1])
    held = {"handle": np.array([1, 0, 1, 0, 1, 0])}
    known = np.array([True, True, False, False, False, False])
    at_rest = np.array([False, False, True, True, False, False])
    sure = nobody_else_can_hold(Refcounted(counted, [], known, at_rest), held)
    assert sure.tolist() == [True, True, False, True, False, False]
    assert nobody_else_can_hold(Refcounted(counted, [], known, at_rest), {}).tolist() == [
        *(True, True, True, True),
        *(False, False),
    ]


def test_a_freed_object_that_is_held_has_a_holder_too_many() -> None:
    _, left, excess = count_holders(objects([0]), [Holders("array", u64(0x1000), u64())])
    assert (left.tolist(), excess.tolist()) == ([0], [1])


@pytest.mark.parametrize("exact_first", [True, False])
def test_what_may_be_a_reference_explains_no_more_than_is_left(exact_first: bool) -> None:
    exact = Holders("sync_file", u64(0x1000, 0x2000), u64())
    perhaps = Holders("callback", u64(0x1000, 0x1000, 0x1000, 0x2000), u64(), at_most=True)
    holders = [exact, perhaps] if exact_first else [perhaps, exact]
    counts, left, excess = count_holders(objects([3, 1]), holders)
    assert counts["callback"].tolist() == [2, 0]
    assert left.tolist() == [0, 0]
    assert excess.tolist() == [0, 0]


def test_a_pointer_from_an_objects_own_blocks_says_nothing() -> None:
    # Object 0 has two blocks, object 1 one; each word is described by where it is.
    targets = Targets(u64(0x1000, 0x2000, 0x3000), u64(0x1100, 0x2100, 0x3100))
    label = _labels(np.array([0, 1, 0]), np.array([0, 1, 2]), 3)
    assert label[0] == label[2] != label[1]
    hits = Hits(
        u64(0x1010, 0x3010, 0x2010, 0x5000, 0x6000),
        u64(0x3000, 0x1000, 0x1000, 0x2000, 0x2000),
        np.array([2, 0, 0, 1, 1]),
    )
    # The third is another object's, the fourth nobody's, the fifth a known holder's.
    left = _unexplained(hits, targets, label, u64(0x6000), 0)
    assert left.physical.tolist() == [0x2010, 0x5000]
    assert left.target.tolist() == [0, 1]


def test_objects_in_one_block_are_one_for_pointers() -> None:
    label = _labels(np.array([0, 1, 2]), np.array([0, 0, 1]), 2)
    assert label[0] != label[1]


def audited(leaked: int, pointers: Dict[int, List[Reference]]) -> Audit:
    count = leaked + len(pointers)
    verdict = np.full(count, Verdict.LEAKED, dtype=np.int8)
    verdict[list(pointers)] = Verdict.UNKNOWN_HOLDER
    nothing = np.zeros(0, dtype=np.uint64)
    return Audit(
        holders={},
        left=np.ones(count, dtype=np.int64),
        excess=np.zeros(count, dtype=np.int64),
        verdict=verdict,
        pointers=pointers,
        stale=Stale(nothing, nothing.astype(np.int64), ()),
        unknown_held=nothing,
        pages_unread=0,
        registers_unread=0,
        changing=False,
    )


def stray(target: int, offset: int) -> Reference:
    return Reference(target, 0x1000, 0x9000, Place.SLAB_OBJECT, "kmalloc-64", 0x9000, offset, None)


def test_one_stray_pointer_among_a_hundred_leaks_is_garbage() -> None:
    result = with_likely_leaks(audited(100, {0: [stray(0, 8)]}), np.zeros(101))
    assert result.verdict[0] == Verdict.LIKELY_LEAKED


def test_a_place_that_points_at_many_is_a_holder() -> None:
    pointers = {i: [stray(i, 8)] for i in range(3)}
    result = with_likely_leaks(audited(200, pointers), np.zeros(203))
    assert (result.verdict[:3] == Verdict.UNKNOWN_HOLDER).all()


def test_an_object_that_points_at_many_is_a_holder() -> None:
    """An array of pointers: each is at another offset."""
    pointers = {i: [stray(i, 8 * i)] for i in range(3)}
    result = with_likely_leaks(audited(200, pointers), np.zeros(203))
    assert (result.verdict[:3] == Verdict.UNKNOWN_HOLDER).all()


def test_garbage_is_believed_only_of_the_same_kind() -> None:
    kinds = np.zeros(101)
    kinds[0] = 1
    result = with_likely_leaks(audited(100, {0: [stray(0, 8)]}), kinds)
    assert result.verdict[0] == Verdict.UNKNOWN_HOLDER
