# SPDX-License-Identifier: LGPL-2.1-or-later
"""Freelists in slabs that the test lays out itself, as mm/slub.c would."""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcore_tools.kernel.slub_freelist import FreelistLayout, HardenedVotes, follow_freelists

SLAB_BYTES = 4096
FIRST_SLAB = 0xFFFF888000100000
RANDOM = 0x9D1C3E5F7A2B4C6D
PLAIN, SWAB, NO_SWAB = "plain", "swab", "no swab"


def layout_of(size: int, pad: int = 0, offset: int = 0, kind: str = PLAIN) -> FreelistLayout:
    random = None if kind == PLAIN else RANDOM
    return FreelistLayout(size, pad, offset, random, (SLAB_BYTES - pad) // size)


def encode(kind: str, pointer: int, address: int) -> int:
    """``freelist_ptr()`` of mm/slub.c, before and after 1ad53d9fa3f6."""
    if kind == PLAIN:
        return pointer
    swapped = int.from_bytes(address.to_bytes(8, "little"), "big")
    return pointer ^ RANDOM ^ (swapped if kind == SWAB else address)


def slabs(
    layout: FreelistLayout, kind: str, freelists: Sequence[Sequence[int]]
) -> Tuple[np.ndarray, np.ndarray, List[Tuple[int, int]]]:  # type: ignore[type-arg]
    """Bytes, first objects and heads of slabs whose free objects are given."""
    data = (
        np.frombuffer(np.random.default_rng(1).bytes(len(freelists) * SLAB_BYTES), dtype=np.uint8)
        .reshape(-1, SLAB_BYTES)
        .copy()
    )
    first = np.array(
        [FIRST_SLAB + i * SLAB_BYTES + layout.red_left_pad_bytes for i in range(len(freelists))],
        dtype=np.uint64,
    )
    heads = []
    for slab, chain in enumerate(freelists):
        objects = [int(first[slab]) + number * layout.size_bytes for number in chain]
        for here, following in zip(objects, [*objects[1:], 0]):
            store(data, slab, here + layout.offset, encode(kind, following, here + layout.offset))
        if objects:
            heads.append((slab, objects[0]))
    return data, first, heads


def store(data: np.ndarray, slab: int, address: int, value: int) -> None:  # type: ignore[type-arg]
    at = address - FIRST_SLAB - slab * SLAB_BYTES
    data[slab, at : at + 8] = np.frombuffer(value.to_bytes(8, "little"), dtype=np.uint8)


@given(
    kind=st.sampled_from([PLAIN, SWAB, NO_SWAB]),
    size=st.sampled_from([8, 96, 128, 400, 1024]),
    pad=st.sampled_from([0, 64]),
    chains=st.lists(st.lists(st.integers(0, 3), unique=True, max_size=3), min_size=1, max_size=5),
    in_middle=st.booleans(),
)
def test_free_objects_are_those_on_the_lists(
    kind: str, size: int, pad: int, chains: List[List[int]], in_middle: bool
) -> None:
    chains = [[n for n in chain if n < (SLAB_BYTES - pad) // size] for chain in chains]
    layout = layout_of(size, pad, size // 2 // 8 * 8 if in_middle else 0, kind)
    free, corrupt = follow_freelists(layout, *slabs(layout, kind, chains), HardenedVotes())
    assert corrupt == {}
    assert [sorted(np.flatnonzero(row)) for row in free] == [sorted(chain) for chain in chains]


@given(st.data())
def test_any_bytes_are_followed_as_far_as_they_make_sense(data: st.DataObject) -> None:
    layout = FreelistLayout(512, 0, 8, None, 4)
    first = FIRST_SLAB
    near = st.integers(-1, 4).map(lambda number: first + number * 512)
    pointer = st.one_of(st.just(0), near, st.integers(0, (1 << 64) - 1))
    slab = np.zeros((1, 2048), dtype=np.uint8)
    stored = [data.draw(pointer) for _ in range(4)]
    for number, value in enumerate(stored):
        store(slab, 0, first + number * 512 + 8, value)
    heads = data.draw(st.lists(pointer.filter(bool), max_size=2))
    free, corrupt = follow_freelists(
        layout,
        slab,
        np.array([first], dtype=np.uint64),
        [(0, head) for head in heads],
        HardenedVotes(),
    )
    # One after the other, an object at a time.
    expected, sound = set(), True
    for head in heads:
        while head:
            number, rest = divmod(head - first, 512)
            if rest or not 0 <= number < 4 or number in expected:
                sound = False
                break
            expected.add(number)
            head = stored[number]
    assert sound == (not corrupt)
    if sound:
        assert set(np.flatnonzero(free[0]).tolist()) == expected


def test_a_slab_on_a_cpu_has_two_lists() -> None:
    layout = layout_of(128)
    data, first, heads = slabs(layout, PLAIN, [[1, 2]])
    other, _, other_heads = slabs(layout, PLAIN, [[5, 6]])
    data[0, 5 * 128 : 7 * 128] = other[0, 5 * 128 : 7 * 128]
    free, corrupt = follow_freelists(layout, data, first, heads + other_heads, HardenedVotes())
    assert corrupt == {}
    assert np.flatnonzero(free[0]).tolist() == [1, 2, 5, 6]


@pytest.mark.parametrize("kind", [PLAIN, SWAB, NO_SWAB])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (lambda first: first + 128, "its freelist runs in a circle"),
        (lambda first: first + 130, "none of its objects"),
        (lambda first: first - 128, "none of its objects"),
        (lambda first: first + SLAB_BYTES, "none of its objects"),
        (lambda first: 8, "none of its objects"),
    ],
)
def test_a_damaged_list_is_named_and_the_other_slabs_go_on(kind: str, value, reason: str) -> None:  # type: ignore[no-untyped-def]
    layout = layout_of(128, kind=kind)
    chains = [[9, 8], [1, 2, 3], [4, 5, 6]]
    data, first, heads = slabs(layout, kind, chains)
    bad = int(first[1]) + 2 * 128
    store(data, 1, bad, encode(kind, value(int(first[1])), bad))
    free, corrupt = follow_freelists(layout, data, first, heads, HardenedVotes())
    assert list(corrupt) == [1]
    assert reason in corrupt[1]
    assert np.flatnonzero(free[0]).tolist() == [8, 9]
    assert np.flatnonzero(free[2]).tolist() == [4, 5, 6]


def test_one_corrupt_pointer_does_not_decide_how_the_kernel_hardens() -> None:
    layout = layout_of(128, kind=NO_SWAB)
    votes = HardenedVotes()
    follow_freelists(layout, *slabs(layout, NO_SWAB, [[1, 2, 3], [4, 5]]), votes)
    data, first, heads = slabs(layout, NO_SWAB, [[7, 8]])
    at = int(first[0]) + 7 * 128
    store(data, 0, at, encode(SWAB, int(first[0]) + 8 * 128, at))
    _, corrupt = follow_freelists(layout, data, first, heads, votes)
    assert list(corrupt) == [0]


def test_no_slabs() -> None:
    layout = layout_of(128)
    no_random: Optional[int] = layout.random
    assert no_random is None
    free, corrupt = follow_freelists(
        layout, np.zeros((0, SLAB_BYTES), np.uint8), np.zeros(0, np.uint64), [], HardenedVotes()
    )
    assert free.shape == (0, 32)
    assert corrupt == {}
