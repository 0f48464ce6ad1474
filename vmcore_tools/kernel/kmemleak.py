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
_RECORD = np.dtype(
    [
        ("address", np.uint64),
        ("next", np.uint64),
        ("prev", np.uint64),
        ("comm", f"S{_COMM_BYTES}"),
        ("trace", np.int64),
        *_KEPT.items(),
    ]
)

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
        "count", "flags", "jiffies", "pid", "comm" and "trace" (for
        :func:`object_stacks`)
    :ivar recorded: the stacks that "trace" stands for
    :ivar by_handle: "trace" is a handle of the stack depot, and no position
    :ivar problem: why the list is not whole, None if it is
    :ivar missed: objects that are allocated, but were not found on the list
    """

    records: npt.NDArray[Any]
    recorded: RecordedStacks
    by_handle: bool
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
    slab object is the object's own, here without a KASAN tag. What is not in
    here is either referenced in kmemleak's eyes, or younger than its last
    scan, or not watched.

    :return: sorted uint64 array; empty if kmemleak has never scanned
    :raises LookupError: if the kernel was built without CONFIG_DEBUG_KMEMLEAK
    """
    state, objects = kmemleak_state(index.prog), kmemleak_objects(index)
    records = objects.records[reported_objects(state, objects)]
    virtual = (records["flags"] & (OBJECT_PHYS | OBJECT_PERCPU)) == 0
    return np.sort(untagged(records["pointer"][virtual]))


def untagged(pointers: U64) -> U64:
    """Kernel addresses without a KASAN tag in the top byte, as ``kasan_reset_tag()`` gives them."""
    kernel = (pointers >> np.uint64(55)) & np.uint64(1) != 0
    return np.where(kernel, pointers | np.uint64(0xFF << 56), pointers)


def object_stacks(
    objects: KmemleakObjects, records: npt.NDArray[Any]
) -> Tuple[Ints, Tuple[Tuple[int, ...], ...]]:
    """
    The allocating stacks of objects.

    :param records: of :attr:`KmemleakObjects.records`, some or all
    :return: int64 array of shape (n,): positions in the stacks, -1 for none;
        and the stacks, return addresses, the innermost first
    """
    position: Ints = records["trace"]
    if objects.by_handle:
        position = objects.recorded.add_handles(position.astype(np.uint32))
    every = objects.recorded.stacks
    used = np.unique(position[position >= 0])
    compact = np.where(position >= 0, np.searchsorted(used, position), -1)
    return compact.astype(np.int64), tuple(every[i] for i in used.tolist())


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
    node: int  #: offset of the links
    recorded: RecordedStacks
    by_handle: bool

    @staticmethod
    def of(prog: Program) -> _Layout:
        type_ = prog.type(_TYPE)
        members = {name: name for name in _KEPT}
        members.update(next="object_list.next", prev="object_list.prev")
        # 56a61617dd22 ("mm: use stack_depot for recording kmemleak's backtrace") in v6.3.
        by_handle = type_.has_member("trace_handle")
        name = "trace_handle" if by_handle else "trace_len"
        members[name] = name
        node = offsetof(type_, "object_list")
        fields = field_dtype(type_, members)
        return _Layout(type_, fields, node, RecordedStacks(prog), by_handle)

    def records(self, address: U64, raw: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """
        What is kept of structures.

        :param address: uint64 array of shape (n,)
        :param raw: uint8 array of shape (n, size of the structure)
        """
        fields = as_structs(raw, self.fields)
        records = np.zeros(len(raw), dtype=_RECORD)
        records["address"] = address
        for name in (*_KEPT, "next", "prev"):
            records[name] = fields[name]
        comm = offsetof(self.type, "comm")
        text = np.ascontiguousarray(raw[:, comm : comm + _COMM_BYTES])
        records["comm"] = text.view(f"S{_COMM_BYTES}")[:, 0]
        if self.by_handle:
            records["trace"] = fields["trace_handle"]
            return records
        trace, size = offsetof(self.type, "trace"), sizeof(self.type.member("trace").type)
        words = np.ascontiguousarray(raw[:, trace : trace + size]).view(np.uint64)
        used = np.arange(words.shape[1]) < fields["trace_len"][:, None]
        records["trace"] = self.recorded.add_arrays(np.where(used, words, np.uint64(0)))
        return records


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
        slots = batch.slots()[:, :, :size]
        parts.append(layout.records(batch.objects.reshape(-1), slots.reshape(-1, size)))
        allocated.append(batch.allocated.reshape(-1))
    return parts, allocated


def _pool_records(prog: Program, layout: _Layout) -> npt.NDArray[Any]:
    """The structures of the static pool, from which those of early allocations come."""
    none = np.zeros(0, dtype=_RECORD)
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

    #: What a link can lead to that is no position.
    _HEAD, _MISFIT, _UNKNOWN = -1, -2, -3

    def __init__(
        self, prog: Program, layout: _Layout, records: npt.NDArray[Any], in_slab: Bools
    ) -> None:
        self._prog = prog
        self._layout = layout
        self._records = records
        self._in_slab = in_slab
        self._head = prog.variable("object_list", _FILE)
        self._nodes = records["address"] + np.uint64(layout.node)
        self._order = np.argsort(self._nodes)
        self._others: Dict[int, npt.NDArray[Any]] = {}

    def objects(self) -> KmemleakObjects:
        seen: Dict[int, None] = {}
        problem = self._walk("next", "prev", seen)
        forward = len(seen)
        if problem is not None:
            # What is behind the damage is reached from the other end.
            self._walk("prev", "next", seen)
        order = list(seen)
        order[forward:] = order[forward:][::-1]
        records = np.concatenate([self._records, *self._others.values()])
        missed = 0
        if problem is not None:
            on_list = np.zeros(len(records), dtype=bool)
            on_list[order] = True
            alive = (self._records["flags"] & OBJECT_ALLOCATED) != 0
            missed = int((self._in_slab & alive & ~on_list[: len(self._records)]).sum())
        layout = self._layout
        return KmemleakObjects(
            records[np.array(order, dtype=np.int64)],
            layout.recorded,
            layout.by_handle,
            problem,
            missed,
        )

    def _walk(self, ahead: str, back: str, seen: Dict[int, None]) -> Optional[str]:
        """Go from the head until it comes again, or a problem."""
        head = self._head.address_
        try:
            node = self._head.member_(ahead).value_()
        except FaultError:
            return "its head is not in the dump"
        targets = self._targets(self._records[ahead], self._records[back], self._nodes).tolist()
        here = np.array([node], dtype=np.uint64)
        position = int(self._targets(here, self._records[back], np.uint64(head))[0])
        last = head
        for _ in range(_OBJECTS_MAX):
            if position == self._UNKNOWN:
                position = self._other(node, last, back)
            if position == self._HEAD:
                return None
            if position == self._UNKNOWN:
                return f"an object at 0x{node:x} is not in the dump"
            if position == self._MISFIT:
                return f"the links of 0x{node:x} do not fit"
            if position in seen:
                return f"it comes back to 0x{node:x}"
            seen[position] = None
            if position < len(targets):
                following = targets[position]
                if following < 0:
                    last = int(self._nodes[position])
                    node = int(self._records[ahead][position])
                position = following
            else:
                record = list(self._others.values())[position - len(targets)]
                last, node = node, int(record[ahead][0])
                here = np.array([node], dtype=np.uint64)
                position = int(self._targets(here, self._records[back], np.uint64(last))[0])
        return "it has no end"

    def _targets(self, links: U64, back: U64, sources: Any) -> Ints:
        """
        Where links lead: positions, or why there is none.

        :param links: uint64 array of shape (n,): nodes
        :param back: the links in the other direction of all structures
        :param sources: the n nodes that have these links, or one for all
        """
        if not len(self._order):
            found = np.full(len(links), self._UNKNOWN, dtype=np.int64)
        else:
            at = np.searchsorted(self._nodes, links, sorter=self._order)
            found = self._order[np.minimum(at, len(self._order) - 1)]
            known = self._nodes[found] == links
            fits = back[found] == sources
            found = np.where(known, np.where(fits, found, self._MISFIT), self._UNKNOWN)
        found[links == np.uint64(self._head.address_)] = self._HEAD
        return found

    def _other(self, node: int, last: int, back: str) -> int:
        """The position of a structure that was in no slab, which is read by itself."""
        if node not in self._others:
            address = node - self._layout.node
            if address < 0:
                return self._UNKNOWN
            try:
                raw = self._prog.read(address, self._layout.type.size)
            except FaultError:
                return self._UNKNOWN
            self._others[node] = self._layout.records(
                np.array([address], dtype=np.uint64), np.frombuffer(raw, dtype=np.uint8)[None, :]
            )
        if int(self._others[node][back][0]) != last:
            return self._MISFIT
        return len(self._records) + list(self._others).index(node)
