# SPDX-License-Identifier: LGPL-2.1-or-later
"""SLUB's user tracking: who allocated an object, and who freed it last."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from typing import Any, Iterator, Optional, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Program, Type, offsetof, sizeof

from vmcore_tools.kernel.jiffies import jiffies_age_ns
from vmcore_tools.kernel.layout import as_structs, field_dtype
from vmcore_tools.kernel.recorded_stacks import RecordedStacks
from vmcore_tools.kernel.slab import SlabBatch, SlabCache, SlabIndex
from vmcore_tools.kernel.task import sched_now_ns

# SLAB_STORE_USER of include/linux/slab.h, a macro up to v6.8 with one value
# since v2.6.22.
_SLAB_STORE_USER = 0x00010000

Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


_RECORD = np.dtype(
    [
        ("read", np.bool_),
        ("pid", np.int32),
        ("cpu", np.int32),
        ("when", np.uint64),
        ("stack", np.int64),
    ]
)


class TrackItem(enum.Enum):
    """``enum track_item`` of mm/slub.c."""

    ALLOC = "TRACK_ALLOC"  #: the last allocation, of this or an earlier life
    FREE = "TRACK_FREE"  #: the last free: of an allocated object, its earlier life's


@dataclasses.dataclass(frozen=True)
class Tracks:
    """
    The same record of n objects; the arrays have shape (n,).

    What an interrupt allocated is booked to the task that it interrupted.

    :ivar address: uint64, the objects
    :ivar read: bool: which objects have a record
    :ivar pid: int64, of the thread
    :ivar cpu: int64, -1 where KFENCE did not record it
    :ivar age_ns: int64, nanoseconds before the dump; -1 where unknown
    :ivar stack: int64, position in :attr:`stacks`; -1 without a record, or
        where its stack cannot be read
    :ivar stacks: return addresses, the innermost first
    """

    address: U64
    read: Bools
    pid: Ints
    cpu: Ints
    age_ns: Ints
    stack: Ints
    stacks: Tuple[Tuple[int, ...], ...]


def has_tracks(cache: SlabCache) -> bool:
    """Whether a cache keeps tracks (``slub_debug=U``)."""
    prog = cache.cache.prog_
    try:
        # "mm, slab: use an enum to define SLAB_ cache creation flags" of v6.9
        # gave the flags new values.
        flag = 1 << prog.constant("_SLAB_STORE_USER").value_()
    except LookupError:
        flag = _SLAB_STORE_USER
    return bool(cache.cache.flags.value_() & flag)


def object_tracks(
    index: SlabIndex,
    cache_number: int,
    objects: Optional[U64] = None,
    item: TrackItem = TrackItem.ALLOC,
) -> Tracks:
    """
    The records of objects, where ``get_track()`` of mm/slub.c has them.

    They stand behind the objects, and come with the bytes of whole slabs. For
    an object in KFENCE's pool, KFENCE has a record.

    :param cache_number: position in :attr:`SlabIndex.caches` of a cache with
        tracks
    :param objects: uint64 array of shape (n,) of addresses in objects of this
        cache; None for all that are allocated, by address
    :raises LookupError: if the kernel has no ``struct track``
    """
    prog, cache = index.prog, index.caches[cache_number]
    start = _track_offset(prog, cache, item)
    stacks = RecordedStacks(prog)
    rows = np.flatnonzero(index.cache == cache_number)
    chunks = _all(index, rows, start) if objects is None else _of(index, rows, start, objects)
    # A chunk is as large as a batch of slabs; only what is kept of it adds up.
    parts = [(where, _records(prog, raw, stacks)) for where, raw in chunks]
    if objects is None:
        objects = np.concatenate([np.zeros(0, dtype=np.uint64), *(where for where, _ in parts)])
        order = np.argsort(objects, kind="stable")
        objects, places = objects[order], np.empty(len(order), dtype=np.int64)
        places[order] = np.arange(len(order))
    else:
        empty = np.zeros(0, dtype=np.int64)
        places = np.concatenate([empty, *(where.astype(np.int64) for where, _ in parts)])
    records = np.zeros(len(objects), dtype=_RECORD)
    records["stack"] = -1
    if parts:
        records[places] = np.concatenate([part for _, part in parts])
    age_ns = _ages(prog, records["when"], records["read"])
    row = index.find(objects)
    bare = np.flatnonzero((row >= 0) & ~records["read"])
    for i in bare[index.in_kfence[row[bare]]].tolist():
        with contextlib.suppress(FaultError, LookupError):
            records[i], age_ns[i] = _kfence_record(prog, int(objects[i]), item, stacks)
    return Tracks(
        address=objects,
        read=records["read"],
        pid=records["pid"].astype(np.int64),
        cpu=records["cpu"].astype(np.int64),
        age_ns=age_ns,
        stack=records["stack"],
        stacks=stacks.stacks,
    )


def _track_offset(prog: Program, cache: SlabCache, item: TrackItem) -> int:
    """Where a record begins, from the object on; mirrors ``get_info_end()``."""
    track_bytes = sizeof(prog.type("struct track"))
    # Behind the object, and behind the free pointer where that is not inside.
    end = cache.inuse_bytes
    if cache.freelist_offset >= cache.inuse_bytes:
        end += sizeof(prog.type("void *"))
    if end + len(TrackItem) * track_bytes > cache.size_bytes:
        raise LookupError(f"{cache.name} has no room for tracks")
    number: int = prog.constant(item.value).value_()
    return int(end + number * track_bytes)


def _slots(batch: SlabBatch, start: int) -> Bytes:
    """The track from *start* on in every slot: shape (slabs, objects, size)."""
    size = sizeof(batch.cache.cache.prog_.type("struct track"))
    return batch.slots()[:, :, start : start + size]


def _all(index: SlabIndex, rows: Ints, start: int) -> Iterator[Tuple[U64, Bytes]]:
    """Addresses and tracks of allocated objects."""
    for batch in index.batches(rows):
        yield batch.objects[batch.allocated], _slots(batch, start)[batch.allocated]


def _of(index: SlabIndex, rows: Ints, start: int, objects: U64) -> Iterator[Tuple[U64, Bytes]]:
    """Positions in *objects* and the tracks of these objects."""
    at = index.find(objects)
    at[~np.isin(at, rows)] = -1
    for batch in index.batches(np.unique(at[at >= 0])):
        asked = np.flatnonzero(np.isin(at, batch.rows))
        slab = np.searchsorted(batch.rows, at[asked])
        size = np.uint64(batch.cache.size_bytes)
        number = (objects[asked] - batch.objects[slab, 0]) // size
        # Below the first object, in a red zone, this wraps around.
        inside = number < batch.objects.shape[1]
        asked, slab, number = asked[inside], slab[inside], number[inside].astype(np.int64)
        yield asked.astype(np.uint64), _slots(batch, start)[slab, number]


def _records(prog: Program, raw: Bytes, stacks: RecordedStacks) -> npt.NDArray[Any]:
    """What tracks say, as an array of :data:`_RECORD`."""
    track_type = prog.type("struct track")
    members = {"addr": "addr", "pid": "pid", "cpu": "cpu", "when": "when"}
    fields = as_structs(raw, field_dtype(track_type, members))
    records = np.zeros(len(raw), dtype=_RECORD)
    # init_tracking() clears the records of a new slab.
    records["read"] = fields["addr"] != 0
    for name in ("pid", "cpu", "when"):
        records[name] = fields[name]
    records["stack"] = np.where(records["read"], _stacks(track_type, raw, stacks), -1)
    return records


def _kfence_record(
    prog: Program, address: int, item: TrackItem, stacks: RecordedStacks
) -> Tuple[Any, int]:
    """
    What KFENCE recorded of one of its objects, as a :data:`_RECORD`, and its age.

    It has no room for SLUB's tracks behind an object.

    :raises drgn.FaultError: if the record is not in the dump
    :raises LookupError: if there is none
    """
    # Mirrors addr_to_metadata() of mm/kfence/core.c.
    distance = address - prog["__kfence_pool"].value_()
    number = distance // (2 * prog["PAGE_SIZE"].value_()) - 1
    metadata = prog["kfence_metadata"][number]
    track = metadata.alloc_track if item is TrackItem.ALLOC else metadata.free_track
    entries = track.stack_entries
    count = track.num_stack_entries.value_()
    if not 0 < count <= entries.type_.length:
        raise LookupError("KFENCE has no record of it")
    words = np.frombuffer(prog.read(entries.address_, 8 * count), dtype=np.uint64)
    position = int(stacks.add_arrays(words[None, :])[0])
    age_ns = -1
    if hasattr(track, "ts_nsec"):  # since v5.15, of local_clock()
        age_ns = max(0, sched_now_ns(prog) - track.ts_nsec.value_())
        cpu = track.cpu.value_()
    else:
        cpu = -1
    return (True, track.pid.value_(), cpu, 0, position), age_ns


def _stacks(track_type: Type, raw: Bytes, stacks: RecordedStacks) -> Ints:
    """Positions of the tracks' stacks."""
    # 5cf909c553e9 ("mm/slub: use stackdepot to save stack trace in objects")
    # in v5.19 replaced the array by a handle. Without CONFIG_STACKTRACE, later
    # CONFIG_STACKDEPOT, there is only the caller's address.
    member = next(m for m in ("addrs", "handle", "addr") if track_type.has_member(m))
    start = offsetof(track_type, member)
    data = np.ascontiguousarray(raw[:, start : start + sizeof(track_type.member(member).type)])
    if member == "handle":
        return stacks.add_handles(data.view(np.uint32).reshape(-1))
    return stacks.add_arrays(data.view(np.uint64))


def _ages(prog: Program, when: U64, read: Bools) -> Ints:
    try:
        age = jiffies_age_ns(prog, when)
    except LookupError:
        return np.full(len(when), -1, dtype=np.int64)
    return np.where(read & (age >= 0), age, -1)
