# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the kernel's own leak detector, kmemleak, knows and thinks.

kmemleak keeps a ``struct kmemleak_object`` for each block of memory that it
watches. They are read in bulk from their slab cache; the kernel's list of them
says which ones count.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, Type, offsetof, sizeof
from drgn.helpers.linux.locking import mutex_owner

from vmcore_tools.kernel.layout import as_structs, field_dtype
from vmcore_tools.kernel.recorded_stacks import RecordedStacks
from vmcore_tools.kernel.slab import SlabIndex

# mm/kmemleak.c has these as macros: the first two since v2.6.31, OBJECT_PHYS
# since v6.0, and OBJECT_PERCPU since 6c99d4eb7c5e ("kmemleak: enable tracking
# for percpu pointers") in v6.12.
OBJECT_ALLOCATED = 1 << 0
OBJECT_REPORTED = 1 << 1
OBJECT_PHYS = 1 << 4
OBJECT_PERCPU = 1 << 5
_KMEMLEAK_BLACK = -1

_CACHE_KEY = "vmcore_tools.kernel.kmemleak.objects"
_FILE = "kmemleak.c"
_TYPE = "struct kmemleak_object"
#: Of the object's own members, what is kept of them.
_COMM_BYTES = 16
#: More objects than a machine with a terabyte has.
_OBJECTS_MAX = 1 << 26

U64 = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class KmemleakState:
    """
    How kmemleak is doing.

    :ivar enabled: it watches allocations
    :ivar failed: it was on and gave up, or was never switched on
    :ivar last_scan: jiffies when its last scan began; 0 before the first one
    :ivar min_age: jiffies that an object must be older than that scan
    :ivar scanning: a scan is going on: the objects' counts are not final
    """

    enabled: bool
    failed: bool
    last_scan: int
    min_age: int
    scanning: bool


@dataclasses.dataclass(frozen=True)
class KmemleakObjects:
    """
    Blocks of memory that kmemleak watches, in the order of its list.

    :ivar records: array of shape (n,) with the fields "address" (of the
        ``struct kmemleak_object``), "pointer" and "size" (the block; not a virtual
        address where OBJECT_PHYS or OBJECT_PERCPU is set), "min_count",
        "count", "flags", "jiffies", "pid", "comm" and "trace" (return
        addresses, or a handle of the stack depot)
    :ivar problem: why the list is not whole, None if it is
    :ivar missed: objects that are allocated, but were not found on the list
    """

    records: npt.NDArray[Any]
    problem: Optional[str]
    missed: int

    def __len__(self) -> int:
        return len(self.records)


def kmemleak_state(prog: Program) -> KmemleakState:
    """
    Whether kmemleak works, and when it last looked.

    :raises LookupError: if the kernel was built without CONFIG_DEBUG_KMEMLEAK
    """

    def value(name: str) -> int:
        return int(prog.variable(name, _FILE).value_())

    return KmemleakState(
        enabled=bool(value("kmemleak_enabled")),
        failed=bool(value("kmemleak_error")),
        last_scan=value("jiffies_last_scan"),
        min_age=value("jiffies_min_age"),
        scanning=_is_scanning(prog),
    )


def _is_scanning(prog: Program) -> bool:
    """
    Whether a task is in ``kmemleak_scan()``.

    It holds ``scan_mutex``, but so does who reads the list from debugfs.
    """
    mutex = prog.variable("scan_mutex", _FILE)
    if hasattr(mutex, "rtmutex"):  # CONFIG_PREEMPT_RT
        address = mutex.rtmutex.owner.value_() & ~1  # RT_MUTEX_HAS_WAITERS
        owner = Object(prog, "struct task_struct *", address)
    else:
        owner = mutex_owner(mutex.address_of_())
    if not owner:
        return False
    try:
        trace = prog.stack_trace(owner)
        names = [trace[i].name for i in range(len(trace))]
    except (ValueError, LookupError, FaultError):
        return True  # it cannot be told: believe no counts
    return "kmemleak_scan" in names


def unreferenced_objects(state: KmemleakState, objects: KmemleakObjects) -> Bools:
    """
    Which objects the last scan found no references to.

    Mirrors ``unreferenced_object()``.

    :return: bool array of shape (n,)
    """
    records = objects.records
    count, flags = records["count"], records["flags"]
    white = (count != _KMEMLEAK_BLACK) & (count < records["min_count"])
    # time_before_eq(object->jiffies + jiffies_min_age, jiffies_last_scan)
    due = records["jiffies"] + np.uint64(state.min_age)
    old = (np.uint64(state.last_scan) - due).view(np.int64) >= 0
    result: Bools = white & ((flags & OBJECT_ALLOCATED) != 0) & old
    return result


def reported_objects(state: KmemleakState, objects: KmemleakObjects) -> Bools:
    """
    Which objects are in ``/sys/kernel/debug/kmemleak``; mirrors ``kmemleak_seq_show()``.

    :return: bool array of shape (n,)
    """
    reported: Bools = (objects.records["flags"] & OBJECT_REPORTED) != 0
    if state.scanning:
        # The counts start from 0 again: only the flag of earlier scans is left.
        reported &= (objects.records["flags"] & OBJECT_ALLOCATED) != 0
    else:
        reported &= unreferenced_objects(state, objects)
    return reported


def kmemleak_reported(index: SlabIndex) -> U64:
    """
    The addresses of the blocks that kmemleak reports as leaked.

    To compare with objects that were found otherwise: kmemleak's address of a
    slab object is the object's own. What is not in here is either referenced
    in kmemleak's eyes, or younger than its last scan, or not watched.

    :return: sorted uint64 array; empty if kmemleak has never scanned
    :raises LookupError: if the kernel was built without CONFIG_DEBUG_KMEMLEAK
    """
    state, objects = kmemleak_state(index.prog), kmemleak_objects(index)
    records = objects.records[reported_objects(state, objects)]
    virtual = (records["flags"] & (OBJECT_PHYS | OBJECT_PERCPU)) == 0
    return np.sort(records["pointer"][virtual])


def object_stacks(prog: Program, records: npt.NDArray[Any]) -> Tuple[Ints, RecordedStacks]:
    """
    The allocating stacks of objects.

    :param records: of :attr:`KmemleakObjects.records`, some or all
    :return: int64 array of shape (n,): positions in the stacks, -1 for none;
        and the stacks
    """
    stacks = RecordedStacks(prog)
    trace = records["trace"]
    # 56a61617dd22 ("mm: use stack_depot for recording kmemleak's backtrace") in v6.3.
    if prog.type(_TYPE).has_member("trace_handle"):
        return stacks.add_handles(trace.astype(np.uint32).reshape(-1)), stacks
    return stacks.add_arrays(trace), stacks


def kmemleak_objects(index: SlabIndex) -> KmemleakObjects:
    """
    All blocks of memory that kmemleak watches, read once for a program.

    :raises LookupError: if the kernel was built without CONFIG_DEBUG_KMEMLEAK
    """
    if _CACHE_KEY not in index.prog.cache:
        index.prog.cache[_CACHE_KEY] = _read_objects(index)
    objects: KmemleakObjects = index.prog.cache[_CACHE_KEY]
    return objects


def _read_objects(index: SlabIndex) -> KmemleakObjects:
    prog = index.prog
    layout = _Layout.of(prog)
    parts, allocated = _slab_records(index, layout)
    pool = _pool_records(prog, layout)
    records = np.concatenate([*parts, pool])
    in_slab = np.concatenate([*allocated, np.zeros(len(pool), dtype=bool)])
    return _Walk(prog, layout, records, in_slab).objects()


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How ``struct kmemleak_object`` is laid out, and what is kept of it."""

    type: Type
    fields: np.dtype[Any]
    kept: np.dtype[Any]
    node: int  #: offset of the links

    @staticmethod
    def of(prog: Program) -> _Layout:
        type_ = prog.type(_TYPE)
        members = {name: name for name in _KEPT}
        members.update(next="object_list.next", prev="object_list.prev")
        frames = 1
        if type_.has_member("trace_handle"):
            members["trace_handle"] = "trace_handle"
        else:
            members["trace_len"] = "trace_len"
            frames = sizeof(type_.member("trace").type) // 8
        kept: List[Tuple[Any, ...]] = [(name, np.uint64) for name in ("address", "next", "prev")]
        kept += [*_KEPT.items(), ("comm", f"S{_COMM_BYTES}"), ("trace", np.uint64, (frames,))]
        node = offsetof(type_, "object_list")
        return _Layout(type_, field_dtype(type_, members), np.dtype(kept), node)

    def records(self, address: U64, raw: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """
        What is kept of structures.

        :param address: uint64 array of shape (n,)
        :param raw: uint8 array of shape (n, size of the structure)
        """
        fields = as_structs(raw, self.fields)
        records = np.zeros(len(raw), dtype=self.kept)
        records["address"] = address
        for name in (*_KEPT, "next", "prev"):
            records[name] = (
                fields[name].astype(f"u{self.kept[name].itemsize}").view(self.kept[name])
            )
        comm = offsetof(self.type, "comm")
        text = np.ascontiguousarray(raw[:, comm : comm + _COMM_BYTES])
        records["comm"] = text.view(f"S{_COMM_BYTES}")[:, 0]
        if self.type.has_member("trace_handle"):
            records["trace"][:, 0] = fields["trace_handle"]
            return records
        trace = offsetof(self.type, "trace")
        frames = records["trace"].shape[1]
        words = np.ascontiguousarray(raw[:, trace : trace + 8 * frames]).view(np.uint64)
        used = np.arange(frames) < fields["trace_len"][:, None]
        records["trace"] = np.where(used, words, np.uint64(0))
        return records


#: Members of ``struct kmemleak_object`` that are kept, and how.
_KEPT: Dict[str, Any] = {
    "pointer": np.uint64,
    "size": np.uint64,
    "jiffies": np.uint64,
    "min_count": np.int32,
    "count": np.int32,
    "flags": np.uint32,
    "pid": np.int32,
}


def _slab_records(index: SlabIndex, layout: _Layout) -> Tuple[List[npt.NDArray[Any]], List[Bools]]:
    """The structures in all slots of kmemleak's cache, and which ones are allocated."""
    parts: List[npt.NDArray[Any]] = []
    allocated: List[Bools] = []
    cache = index.prog.variable("object_cache", _FILE).read_()
    number = index.cache_number(cache) if cache else None
    if number is None:
        return parts, allocated
    size = layout.type.size
    for batch in index.batches(np.flatnonzero(index.cache == number)):
        count, step = batch.objects.shape[1], batch.cache.size_bytes
        first = batch.cache.red_left_pad_bytes
        slots = batch.data[:, first : first + count * step].reshape(-1, count, step)[:, :, :size]
        parts.append(layout.records(batch.objects.reshape(-1), slots.reshape(-1, size)))
        allocated.append(batch.allocated.reshape(-1))
    return parts, allocated


def _pool_records(prog: Program, layout: _Layout) -> npt.NDArray[Any]:
    """The structures of the static pool, from which those of early allocations come."""
    none = np.zeros(0, dtype=layout.kept)
    try:
        # c5665868183f ("mm: kmemleak: use the memory pool for early allocations") in v5.4.
        pool = prog.variable("mem_pool", _FILE)
        count, size = pool.type_.length, layout.type.size
        raw = np.frombuffer(prog.read(pool.address_, count * size), dtype=np.uint8)
    except (LookupError, FaultError):
        return none
    address = np.uint64(pool.address_) + np.arange(count, dtype=np.uint64) * np.uint64(size)
    return layout.records(address, raw.reshape(count, size))


class _Walk:
    """A walk of kmemleak's list over structures that are at hand."""

    def __init__(
        self, prog: Program, layout: _Layout, records: npt.NDArray[Any], in_slab: Bools
    ) -> None:
        self._prog = prog
        self._layout = layout
        self._records = records
        self._in_slab = in_slab
        self._nodes: List[int] = (records["address"] + np.uint64(layout.node)).tolist()
        self._links = {"next": records["next"].tolist(), "prev": records["prev"].tolist()}
        self._by_node = {node: i for i, node in enumerate(self._nodes)}
        self._others: List[npt.NDArray[Any]] = []

    def objects(self) -> KmemleakObjects:
        head = self._prog.variable("object_list", _FILE)
        seen: Dict[int, None] = {}
        problem = self._walk(head, "next", "prev", seen)
        forward = len(seen)
        if problem is not None:
            # What is behind the damage is reached from the other end.
            self._walk(head, "prev", "next", seen)
        order = list(seen)
        order[forward:] = order[forward:][::-1]
        records = np.concatenate([self._records, *self._others])
        missed = 0
        if problem is not None:
            on_list = np.zeros(len(records), dtype=bool)
            on_list[order] = True
            alive = (self._records["flags"] & OBJECT_ALLOCATED) != 0
            missed = int((self._in_slab & alive & ~on_list[: len(self._records)]).sum())
        return KmemleakObjects(records[np.array(order, dtype=np.int64)], problem, missed)

    def _walk(self, head: Object, ahead: str, back: str, seen: Dict[int, None]) -> Optional[str]:
        """Go from the head until it comes again, or a problem."""
        start = head.address_
        try:
            last, node = start, head.member_(ahead).value_()
        except FaultError:
            return "its head is not in the dump"
        for _ in range(_OBJECTS_MAX):
            if node == start:
                return None
            i = self._position(node)
            if i is None:
                return f"an object at 0x{node:x} is not in the dump"
            if i in seen:
                return f"it comes back to 0x{node:x}"
            if self._links[back][i] != last:
                return f"the links of 0x{node:x} do not fit"
            seen[i] = None
            last, node = node, self._links[ahead][i]
        return "it has no end"

    def _position(self, node: int) -> Optional[int]:
        """Where the structure of a node is; it is read if it was in no slab."""
        if node in self._by_node:
            return self._by_node[node]
        address = node - self._layout.node
        try:
            raw = self._prog.read(address, self._layout.type.size)
        except FaultError:
            return None
        record = self._layout.records(
            np.array([address], dtype=np.uint64), np.frombuffer(raw, dtype=np.uint8)[None, :]
        )
        position = len(self._nodes)
        self._others.append(record)
        self._nodes.append(node)
        for name, links in self._links.items():
            links.append(int(record[name][0]))
        self._by_node[node] = position
        return position
