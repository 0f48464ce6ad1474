# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guarded bytes of made-up slabs, laid out as with slub_debug=ZPU; the lab has real ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

import numpy as np
import pytest
from drgn import Architecture, Platform, Program, Type, TypeKind

from vmcore_tools.kernel.slab import SlabBatch, SlabCache
from vmcore_tools.kernel.slab_poison import Overwritten, Part, overwritten

SLAB = 0xFFFF888001000000
SLAB_BYTES = 4096
RED_ZONE, POISON, STORE_USER, OBJECT_POISON = 0x400, 0x800, 0x10000, 0x80000000
FULL = RED_ZONE | POISON | STORE_USER | OBJECT_POISON
# An object of 61 bytes: 8 in front, 3 behind, the free pointer, two tracks, padding.
PAD, OBJECT, INUSE, TRACK = 8, 61, 64, 24
RECORDS_END = INUSE + 8 + 2 * TRACK
SIZE = PAD + RECORDS_END + 8
COUNT = SLAB_BYTES // SIZE
ALLOCATED = [number % 3 != 0 for number in range(COUNT)]


def program() -> Program:
    prog = Program(Platform(Architecture.X86_64))

    def find(prog: Program, kinds: Any, name: str, filename: Optional[str]) -> Optional[Type]:
        if TypeKind.STRUCT in kinds and name == "track":
            return prog.struct_type(name, TRACK, ())
        return None

    prog.register_type_finder("fake", find, enable_index=0)
    return prog


def make_cache(flags: int, **members: Any) -> SlabCache:
    object_: Any = SimpleNamespace(
        prog_=program(), flags=SimpleNamespace(value_=lambda: flags), **members
    )
    red = PAD if flags & RED_ZONE else 0
    size = SIZE if flags & RED_ZONE else SIZE - PAD
    return SlabCache(object_, "victims", size, OBJECT, red, INUSE, INUSE, None, {COUNT: 0})


def sound_slab(cache: SlabCache) -> Tuple[np.ndarray, np.ndarray]:
    """A slab whose every third object is free, and the addresses of its objects."""
    pad = cache.red_left_pad_bytes
    data = np.full(SLAB_BYTES, 0x5A, dtype=np.uint8)
    for number, allocated in enumerate(ALLOCATED):
        slot = data[number * cache.size_bytes :][: cache.size_bytes]
        if pad:
            slot[:pad] = slot[pad + OBJECT : pad + INUSE] = 0xCC if allocated else 0xBB
        slot[pad : pad + OBJECT] = 0x11 if allocated else 0x6B
        if not allocated:
            slot[pad + OBJECT - 1] = 0xA5
        # Free pointer and tracks can be anything.
        slot[pad + INUSE : pad + RECORDS_END] = 0x77
    return data, np.uint64(SLAB + pad) + np.arange(COUNT, dtype=np.uint64) * np.uint64(
        cache.size_bytes
    )


def no_progress(items: Iterable[Any], what: str, total: Optional[int]) -> Iterable[Any]:
    return items


def check(
    cache: SlabCache, damage: Callable[[np.ndarray], None], intact: bool = True
) -> List[Overwritten]:
    """What is found in two slabs, of which the second is damaged."""
    batches = []
    for row in (0, 1):
        data, objects = sound_slab(cache)
        if row:
            damage(data)
        batches.append(
            SlabBatch(
                cache,
                np.array([row]),
                data[None, :],
                objects[None, :] + np.uint64(row * SLAB_BYTES),
                np.array([ALLOCATED]) & intact,
                np.array([intact]),
            )
        )
    index: Any = SimpleNamespace(
        caches=[cache],
        cache=np.zeros(2, dtype=np.int64),
        in_kfence=np.zeros(2, dtype=bool),
        batches=lambda rows: iter([batches[row] for row in rows]),
    )
    return overwritten(index, no_progress)


def write(at: int, value: int = 0x41, length: int = 1) -> Callable[[np.ndarray], None]:
    def damage(data: np.ndarray) -> None:
        data[at : at + length] = value

    return damage


def facts(found: Overwritten) -> Dict[str, Any]:
    (slab_object,) = found.object.tolist()
    return {
        "object": slab_object - SLAB - SLAB_BYTES,
        "allocated": found.allocated.tolist(),
        "first": found.first.tolist()[0] - SLAB - SLAB_BYTES,
        "length": found.length.tolist(),
        "bytes": (found.found.tolist()[0], found.expected.tolist()[0]),
        "row": found.row.tolist(),
    }


SECOND = SIZE  # the slot of the second object, which is allocated
FOURTH = 3 * SIZE  # of the fourth, which is free


def test_nothing_is_found_in_a_sound_slab() -> None:
    for flags in (FULL, RED_ZONE, POISON | OBJECT_POISON | STORE_USER, POISON | STORE_USER, 0):
        assert check(make_cache(flags), lambda data: None) == []


@pytest.mark.parametrize(
    ("at", "length", "part", "slot", "expected"),
    [
        (SECOND + 5, 3, Part.LEFT_RED_ZONE, SECOND, 0xCC),
        (SECOND + PAD + OBJECT, 1, Part.RIGHT_RED_ZONE, SECOND, 0xCC),
        (FOURTH + PAD + OBJECT + 2, 1, Part.RIGHT_RED_ZONE, FOURTH, 0xBB),
        (FOURTH + PAD, 8, Part.POISON, FOURTH, 0x6B),
        (FOURTH + PAD + OBJECT - 1, 1, Part.POISON, FOURTH, 0xA5),
        (SECOND + PAD + RECORDS_END + 7, 1, Part.OBJECT_PADDING, SECOND, 0x5A),
    ],
)
def test_a_write_is_found_where_it_was(
    at: int, length: int, part: Part, slot: int, expected: int
) -> None:
    (found,) = check(make_cache(FULL), write(at, length=length))
    assert found.part is part
    assert facts(found) == {
        "object": slot + PAD,
        "allocated": [slot == SECOND],
        "first": at,
        "length": [length],
        "bytes": (0x41, expected),
        "row": [1],
    }


def test_a_write_behind_the_last_object_is_the_slabs() -> None:
    (found,) = check(make_cache(FULL), write(SLAB_BYTES - 2))
    assert (found.part, found.checked) == (Part.SLAB_PADDING, 2)
    assert facts(found)["object"] == 0
    assert facts(found)["first"] == SLAB_BYTES - 2


def test_padding_without_red_zones() -> None:
    cache = make_cache(POISON | OBJECT_POISON | STORE_USER)
    (found,) = check(cache, write(cache.size_bytes + OBJECT + 1))
    assert found.part is Part.ALIGNMENT_PADDING
    assert facts(found)["object"] == cache.size_bytes


@pytest.mark.parametrize("at", [SECOND + PAD, SECOND + PAD + INUSE, SECOND + PAD + RECORDS_END - 1])
def test_what_is_its_owners_is_not_checked(at: int) -> None:
    assert check(make_cache(FULL), write(at)) == []


def test_a_red_zone_of_the_other_state_is_no_damage() -> None:
    assert check(make_cache(FULL), write(SECOND, 0xBB, PAD)) == []
    assert check(make_cache(FULL), write(FOURTH, 0xCC, PAD)) == []


def test_a_slab_that_was_not_read_is_not_checked() -> None:
    assert check(make_cache(FULL), write(SECOND), intact=False) == []


def test_without_poisoned_objects_they_are_their_owners() -> None:
    # A constructor, or SLAB_TYPESAFE_BY_RCU: a free object keeps its contents.
    cache = make_cache(FULL & ~OBJECT_POISON)
    assert check(cache, write(FOURTH + PAD)) == []
    (found,) = check(cache, write(FOURTH + 1))
    assert found.part is Part.LEFT_RED_ZONE


def test_with_kasan_only_red_zones_are_where_they_should_be() -> None:
    cache = make_cache(FULL, kasan_info=None)
    assert check(cache, write(FOURTH + PAD)) == []
    assert check(cache, write(SECOND + PAD + RECORDS_END)) == []
    (found,) = check(cache, write(SECOND))
    assert found.part is Part.LEFT_RED_ZONE


def test_objects_are_counted_and_in_order() -> None:
    def damage(data: np.ndarray) -> None:
        data[[SECOND + PAD + OBJECT, 7 * SIZE + PAD + OBJECT]] = 0

    (found,) = check(make_cache(FULL), damage)
    assert found.checked == 2 * COUNT
    assert (found.object - np.uint64(SLAB + SLAB_BYTES)).tolist() == [SECOND + PAD, 7 * SIZE + PAD]
