# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Bytes that SLUB guards and that somebody wrote to (``slub_debug=ZP``).

With SLAB_RED_ZONE there are bytes in front of each object and behind it that
say whether it is in use; with SLAB_POISON all of a free object's bytes are
known, and those between an object's records and the next one. The layout is
that of the comment "Object layout" in mm/slub.c.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, Callable, Iterable, List, Optional, Tuple

import numpy as np
import numpy.typing as npt
from drgn import Program, sizeof

from vmcore_tools.kernel.slab import SlabBatch, SlabCache, SlabIndex

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

# include/linux/poison.h: macros, the same since v2.6.22.
_RED_INACTIVE = 0xBB
_RED_ACTIVE = 0xCC
_POISON_INUSE = 0x5A
_POISON_FREE = 0x6B
_POISON_END = 0xA5

# Flags of include/linux/slab.h and mm/slub.c: macros up to v6.8. "mm, slab: use
# an enum to define SLAB_ cache creation flags" of v6.9 gave them new values.
_FLAGS = {
    "_SLAB_RED_ZONE": 0x00000400,
    "_SLAB_POISON": 0x00000800,
    "_SLAB_KMALLOC": 0x00001000,  # from v6.1 on; nobody had the bit before
    "_SLAB_STORE_USER": 0x00010000,
    "_SLAB_OBJECT_POISON": 0x80000000,
}


class Part(enum.Enum):
    """What of an object's place was written to, as SLUB's own reports call it."""

    LEFT_RED_ZONE = "left red zone"
    RIGHT_RED_ZONE = "right red zone"
    ALIGNMENT_PADDING = "alignment padding"
    POISON = "poison"
    OBJECT_PADDING = "object padding"
    SLAB_PADDING = "slab padding"  #: behind the last object; it counts as the slab's


@dataclasses.dataclass(frozen=True)
class Overwritten:
    """
    Objects of a cache of which the same part was overwritten; shape (n,), by address.

    :ivar cache: position in :attr:`SlabIndex.caches`
    :ivar part: the part
    :ivar checked: objects of the cache of which this part was looked at
    :ivar object: uint64 array: the objects; of a slab's padding, the slabs
    :ivar row: int64 array: their slabs' rows in the index
    :ivar allocated: bool array
    :ivar first: uint64 array: address of the first byte that is wrong
    :ivar length: int64 array: bytes up to the last one that is wrong
    :ivar found: uint8 array: the first wrong byte
    :ivar expected: uint8 array: what it must be
    """

    cache: int
    part: Part
    checked: int
    object: U64
    row: Ints
    allocated: Bools
    first: U64
    length: Ints
    found: Bytes
    expected: Bytes


@dataclasses.dataclass(frozen=True)
class _Guard:
    """
    Bytes ``[start, end)`` of an object's slot, its left red zone included.

    :ivar used: what they are in an allocated object; None if that is its own
    :ivar free: what they are in a free one; the last byte can be another
    """

    part: Part
    start: int
    end: int
    used: Optional[int]
    free: int
    last: int

    def patterns(self) -> Tuple[Bytes, Optional[Bytes]]:
        """What a free and an allocated object have there."""
        free = np.full(self.end - self.start, self.free, dtype=np.uint8)
        free[-1] = self.last
        if self.used is None:
            return free, None
        return free, np.full(self.end - self.start, self.used, dtype=np.uint8)

    @staticmethod
    def same(part: Part, start: int, end: int, byte: int) -> _Guard:
        """Bytes that are the same for all objects."""
        return _Guard(part, start, end, byte, byte, byte)


def overwritten(
    index: SlabIndex,
    progress: Callable[[Iterable[Any], str, Optional[int]], Iterable[Any]],
) -> List[Overwritten]:
    """
    Check what SLUB guards in all caches that have red zones or poison.

    Mirrors ``check_object()`` and ``slab_pad_check()`` of mm/slub.c. Bytes
    behind what was asked for in a kmalloc object are not looked at; with
    KASAN, whose records change the layout, only red zones are.

    :raises LookupError: if the kernel has tracks of an unknown type
    """
    guarded = [(number, _guards(cache)) for number, cache in enumerate(index.caches)]
    guarded = [(number, guards) for number, guards in guarded if guards]
    result = []
    for number, guards in progress(guarded, "checking guarded bytes", len(guarded)):
        parts: List[List[Overwritten]] = [[] for _ in guards]
        rows = np.flatnonzero((index.cache == number) & ~index.in_kfence)
        for batch in index.batches(rows):
            for guard, found in zip(guards, parts):
                check = _check_slabs if guard.part is Part.SLAB_PADDING else _check_objects
                found.append(check(number, batch, guard))
        joined = [_joined(found) for found in parts if found]
        result += [one for one in joined if len(one.object)]
    return result


def _has(cache: SlabCache, flag: str) -> bool:
    prog: Program = cache.cache.prog_
    try:
        value = 1 << prog.constant(flag).value_()
    except LookupError:
        value = _FLAGS[flag]
    return bool(cache.cache.flags.value_() & value)


def _guards(cache: SlabCache) -> Tuple[_Guard, ...]:
    """The guarded parts of a cache's slots."""
    if cache.index_bytes is not None:
        return ()  # SLAB, which had another layout
    start = cache.red_left_pad_bytes
    object_end, inuse = start + cache.object_size_bytes, start + cache.inuse_bytes
    guards = []
    poison = _has(cache, "_SLAB_POISON")
    if _has(cache, "_SLAB_RED_ZONE"):
        red = (_RED_ACTIVE, _RED_INACTIVE, _RED_INACTIVE)
        guards.append(_Guard(Part.LEFT_RED_ZONE, 0, start, *red))
        guards.append(_Guard(Part.RIGHT_RED_ZONE, object_end, inuse, *red))
    elif poison:
        guards.append(_Guard.same(Part.ALIGNMENT_PADDING, object_end, inuse, _POISON_INUSE))
    if poison and not hasattr(cache.cache, "kasan_info"):
        if _has(cache, "_SLAB_OBJECT_POISON"):
            guards.append(_Guard(Part.POISON, start, object_end, None, _POISON_FREE, _POISON_END))
        end = start + _records_end(cache)
        guards.append(_Guard.same(Part.OBJECT_PADDING, end, cache.size_bytes, _POISON_INUSE))
        if not _has_records_in_slabs(cache.cache.prog_):
            guards.append(_Guard.same(Part.SLAB_PADDING, 0, 1, _POISON_INUSE))
    return tuple(guard for guard in guards if guard.start < guard.end)


def _has_records_in_slabs(prog: Program) -> bool:
    """Whether ``struct slabobj_ext`` can be in a slab's own memory, as from v7.0 on."""
    try:
        prog.constant("_SLAB_OBJ_EXT_IN_OBJ")
    except LookupError:
        return False
    return True


def _records_end(cache: SlabCache) -> int:
    """Where an object's padding begins; mirrors ``check_pad_bytes()``."""
    prog = cache.cache.prog_
    end = cache.inuse_bytes
    if cache.freelist_offset >= cache.inuse_bytes:
        end += 8  # the free pointer
    if _has(cache, "_SLAB_STORE_USER"):
        end += 2 * sizeof(prog.type("struct track"))
        if _has(cache, "_SLAB_KMALLOC"):
            end += 8  # the size that was asked for
    if _has_records_in_slabs(prog):
        end += sizeof(prog.type("struct slabobj_ext"))
    return end


def _check_objects(cache: int, batch: SlabBatch, guard: _Guard) -> Overwritten:
    count, size = batch.objects.shape[1], batch.cache.size_bytes
    slots = batch.data[:, : count * size].reshape(-1, count, size)
    data = slots[:, :, guard.start : guard.end]
    free, used = guard.patterns()
    looked_at = np.broadcast_to(batch.intact[:, None], batch.allocated.shape)
    if used is None:
        looked_at, used = looked_at & ~batch.allocated, free
    wrong = np.where(batch.allocated, (data != used).any(axis=2), (data != free).any(axis=2))
    slab, number = np.nonzero(looked_at & wrong)
    data, allocated = data[slab, number], batch.allocated[slab, number]
    expected = np.where(allocated[:, None], used, free)
    bad = data != expected
    if guard.used == _RED_ACTIVE:
        # A red zone that is another state's, but whole, is that of an object which
        # a CPU was about to allocate or to free: it changes while it is on no list.
        bad &= (data != _RED_ACTIVE) & (data != _RED_INACTIVE)
    objects = batch.objects[slab, number]
    at = objects - np.uint64(batch.cache.red_left_pad_bytes) + np.uint64(guard.start)
    every = _Checked(objects, batch.rows[slab], allocated, at, data, expected, bad)
    return every.overwritten(cache, guard.part, int(looked_at.sum()))


def _check_slabs(cache: int, batch: SlabBatch, guard: _Guard) -> Overwritten:
    used_bytes = batch.objects.shape[1] * batch.cache.size_bytes
    data = batch.data[:, used_bytes:]
    start = batch.objects[:, 0] - np.uint64(batch.cache.red_left_pad_bytes)
    expected = np.full(data.shape, guard.free, dtype=np.uint8)
    bad = (data != expected) & batch.intact[:, None]
    at = start + np.uint64(used_bytes)
    allocated = np.ones(len(data), dtype=bool)
    every = _Checked(start, batch.rows, allocated, at, data, expected, bad)
    return every.overwritten(cache, guard.part, int(batch.intact.sum()))


@dataclasses.dataclass(frozen=True)
class _Checked:
    """Parts of n objects as they are and as they must be; *bad* marks the bytes that differ."""

    object: U64
    row: Ints
    allocated: Bools
    at: U64
    data: Bytes
    expected: Bytes
    bad: Bools

    def overwritten(self, cache: int, part: Part, checked: int) -> Overwritten:
        which = np.flatnonzero(self.bad.any(axis=1))
        bad = self.bad[which]
        if len(which):
            first = bad.argmax(axis=1)
            length = bad.shape[1] - bad[:, ::-1].argmax(axis=1) - first
        else:
            first = length = np.zeros(0, dtype=np.int64)
        return Overwritten(
            cache=cache,
            part=part,
            checked=checked,
            object=self.object[which],
            row=self.row[which],
            allocated=self.allocated[which],
            first=self.at[which] + first.astype(np.uint64),
            length=length,
            found=self.data[which, first],
            expected=self.expected[which, first],
        )


def _joined(parts: List[Overwritten]) -> Overwritten:
    order = np.argsort(np.concatenate([part.object for part in parts]), kind="stable")
    names = ("object", "row", "allocated", "first", "length", "found", "expected")
    arrays = {n: np.concatenate([getattr(part, n) for part in parts])[order] for n in names}
    checked = sum(part.checked for part in parts)
    return Overwritten(parts[0].cache, parts[0].part, checked, **arrays)
