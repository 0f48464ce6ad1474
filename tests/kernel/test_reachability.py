# SPDX-License-Identifier: LGPL-2.1-or-later
"""Following pointers between made-up slab objects."""

from __future__ import annotations

import dataclasses
import types
from typing import Any, List, Sequence, Set, Tuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vmcore_tools.kernel.reachability import _follow_batch, _Graph, _Objects, _without_slabs
from vmcore_tools.kernel.slab import SlabBatch, SlabCache

BASE = 0xFFFF888000000000
PAGE = 4096


def cache(name: str, size: int, used: int, pad: int = 0) -> SlabCache:
    return SlabCache(types.SimpleNamespace(), name, size, used, pad, used, 0, None, {})


@dataclasses.dataclass
class FakeIndex:
    """What the walk uses of a SlabIndex: slabs of a page each, at the start of theirs."""

    caches: Tuple[SlabCache, ...]
    cache: Any
    pfn: Any
    objects: Any

    def __init__(self, caches: Sequence[SlabCache], slabs: Sequence[Tuple[int, int, int]]) -> None:
        """:param slabs: page frame, position of the cache, and objects of each"""
        self.caches = tuple(caches)
        self.pfn, self.cache, self.objects = np.array(slabs, dtype=np.int64).reshape(-1, 3).T
        self.address = np.uint64(BASE) + (self.pfn * PAGE).astype(np.uint64)
        self.page_counts = np.ones(len(self.pfn), dtype=np.int64)
        self.free_object_arrays = np.zeros((0, 2), dtype=np.uint64)

    def batch(self, row: int, words: Any, allocated: Sequence[int], intact: bool = True) -> Any:
        """
        :param words: (offset in the slab, value)
        :param allocated: numbers of objects
        """
        of_slab = self.caches[self.cache[row]]
        data = np.zeros((1, PAGE // 8), dtype=np.uint64)
        for offset, value in words:
            data[0, offset // 8] = value
        numbers = np.arange(self.objects[row])
        first = int(self.address[row]) + of_slab.red_left_pad_bytes
        return SlabBatch(
            of_slab,
            np.array([row]),
            data.view(np.uint8),
            (np.uint64(first) + (numbers * of_slab.size_bytes).astype(np.uint64))[None, :],
            np.isin(numbers, allocated)[None, :] & intact,
            np.array([intact]),
        )


class Walk:
    """Objects of two caches, of which only the second one's are judged."""

    def __init__(self, with_metadata: bool = False) -> None:
        caches = (cache("named", 512, 512), cache("kmalloc-128", 192, 128, pad=64))
        self.index: Any = FakeIndex(caches, [(7, 1, 20), (3, 0, 8), (5, 1, 20)])
        self.objects = _Objects(self.index, np.array([False, True]), with_metadata)
        self.graph = _Graph(self.objects)
        self.attribution: Any = types.SimpleNamespace(kmemleak_words={})

    def follow(self, row: int, words: Any, allocated: Sequence[int], intact: bool = True) -> None:
        batch = self.index.batch(row, words, allocated, intact)
        _follow_batch(self.index, self.attribution, self.graph, batch)

    def reached(self) -> List[int]:
        self.graph.spread()
        addresses = self.objects.address[self.graph.reached & (self.objects.address != 0)]
        return sorted(addresses.tolist())


def judged(row_pfn: int, number: int) -> int:
    """Address of an object of the judged cache."""
    return BASE + row_pfn * PAGE + 64 + number * 192


def test_an_object_that_is_no_longer_judged_is_a_root() -> None:
    walk = Walk()
    walk.follow(1, [(512 * 2 + 8, judged(7, 4) + 127)], [2])
    walk.follow(0, [(64 + 4 * 192 + 120, judged(5, 0))], [3, 4])
    walk.follow(2, [], [0, 1])
    # From the named object to the fifth of one slab, and on to the first of the other.
    assert walk.reached() == [judged(5, 0), judged(7, 4)]


def test_what_is_no_reference_is_not_followed() -> None:
    walk = Walk()
    free, behind, pad = 512 * 3, 64 + 4 * 192 + 128, 0
    walk.follow(1, [(free, judged(7, 4))], [2])
    walk.follow(0, [(behind, judged(5, 0)), (pad, judged(5, 1))], [0, 4])
    outside = [judged(5, 2) + 128, judged(5, 3) - 1, judged(5, 19) + 192, judged(7, 0) - 64, 0, 1]
    walk.follow(1, [(512 * 2 + 8 * i, word) for i, word in enumerate(outside)], [2])
    walk.follow(2, [], list(range(20)))
    assert walk.reached() == []


def test_a_list_through_metadata_is_followed_where_the_kernel_has_one() -> None:
    for with_metadata, reached in ((False, []), (True, [judged(5, 3), judged(7, 4)])):
        walk = Walk(with_metadata)
        walk.follow(1, [(512, judged(7, 4) + 128)], [1])
        walk.follow(0, [(64 + 4 * 192 + 128, judged(5, 3) + 136)], [4])
        walk.follow(2, [], [3])
        assert walk.reached() == reached


def test_a_circle_of_garbage_is_garbage_and_pointed_at() -> None:
    walk = Walk()
    one, two = 64 + 8, 64 + 192 + 16
    itself = (64 + 2 * 192, judged(7, 2))
    walk.follow(0, [(one, judged(7, 1)), (two, judged(7, 0)), itself], [0, 1, 2])
    assert walk.reached() == []
    pointed_at = walk.graph.pointed_at_by(np.flatnonzero(walk.objects.address))
    assert sorted(walk.objects.address[pointed_at].tolist()) == [judged(7, 0), judged(7, 1)]


def test_all_words_of_a_damaged_slab_may_be_references() -> None:
    walk = Walk()
    walk.follow(0, [(64, judged(5, 3))], [], intact=False)
    walk.follow(2, [], [3])
    assert walk.reached() == [judged(5, 3)]


def test_kmemleaks_records_name_objects_without_referring_to_them() -> None:
    walk = Walk()
    walk.attribution.kmemleak_words = {0: (64, 72)}
    walk.follow(1, [(512 + 64, judged(5, 0)), (512 + 80, judged(5, 1))], [1])
    walk.follow(2, [], [0, 1])
    assert walk.reached() == [judged(5, 1)]


def test_what_a_sheaf_handed_out_is_not_referred_to_by_it() -> None:
    walk = Walk()
    # The array of a sheaf in an object of row 1, from its word 4 to its end.
    start = BASE + 3 * PAGE + 512 + 32
    walk.index.free_object_arrays = np.array([[start, start + 16]], dtype=np.uint64)
    words = [(512 + 24, judged(5, 0)), (512 + 32, judged(5, 1)), (512 + 40, judged(5, 2))]
    walk.follow(1, [*words, (512 + 48, judged(5, 3))], [1])
    walk.follow(2, [], [0, 1, 2, 3])
    assert walk.reached() == [judged(5, 0), judged(5, 3)]


@given(
    count=st.integers(1, 30),
    pointers=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=80),
    roots=st.sets(st.integers(0, 29), max_size=4),
)
def test_what_is_reached_is_what_a_search_reaches(
    count: int, pointers: List[Tuple[int, int]], roots: Set[int]
) -> None:
    pointers = [(a, b) for a, b in pointers if a < count and b < count]
    objects: Any = types.SimpleNamespace(address=np.zeros(count, dtype=np.uint64))
    graph = _Graph(objects)
    # As in a dump, some roots are known before the pointers are, and others after.
    early = sorted(root for root in roots if root < count and root % 2)
    late = sorted(root for root in roots if root < count and not root % 2)
    graph.root(np.array(early, dtype=np.int64))
    for source, target in pointers:
        graph.point(np.array([source]), np.array([target]))
    graph.root(np.array(late, dtype=np.int64))
    graph.spread()
    expected = set(early) | set(late)
    while True:
        more = {b for a, b in pointers if a in expected} - expected
        if not more:
            break
        expected |= more
    assert set(np.flatnonzero(graph.reached).tolist()) == expected


def test_a_list_of_many_objects_is_followed_to_its_end() -> None:
    count = 200_000
    objects: Any = types.SimpleNamespace(address=np.zeros(count, dtype=np.uint64))
    graph = _Graph(objects)
    graph.point(np.arange(1, count), np.arange(count - 1))
    graph.root(np.array([count - 1]))
    graph.spread()
    assert graph.reached.all()


@given(
    runs=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), max_size=6),
    slabs=st.sets(st.integers(0, 60), max_size=12),
)
def test_pages_of_slabs_are_read_with_the_slabs(
    runs: List[Tuple[int, int]], slabs: Set[int]
) -> None:
    ranges, at = [], 0
    for gap, length in runs:
        ranges.append((at + gap, at + gap + length))
        at += gap + length
    index: Any = FakeIndex((cache("a", 64, 64),), [(pfn, 0, 1) for pfn in sorted(slabs)])
    left = _without_slabs(index, np.array(ranges, dtype=np.uint64).reshape(-1, 2))
    found = [pfn for start, end in left.tolist() for pfn in range(start, end)]
    assert found == [p for start, end in ranges for p in range(start, end) if p not in slabs]
