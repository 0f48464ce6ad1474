# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Every slab of every cache, from one pass over the page structures.

drgn's helpers read one ``struct page`` at a time and walk all of RAM again
for each cache. Here the page structures are read in bulk, one mask gives all
slabs, and the freelists of all slabs of a cache are followed in lockstep. A
corrupt slab is counted and named, and the rest goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
from typing import Dict, Iterator, List, Optional, Set, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, ProgramFlags, sizeof
from drgn.helpers import ValidationError
from drgn.helpers.linux.cpumask import for_each_possible_cpu

from vmcore_tools.dump.memory import Memory
from vmcore_tools.kernel.kfence import KfencePool, kfence_pool
from vmcore_tools.kernel.layout import field_dtype
from vmcore_tools.kernel.lists import for_each_entry
from vmcore_tools.kernel.page import PageClass, direct_map_offset, page_index
from vmcore_tools.kernel.slab_layout import (
    SlabCache,
    free_object_arrays,
    objects_set_aside,
    rcu_sheaf,
    rcu_sheaf_words,
    read_slab_cache,
    slab_fields,
    uses_slab,
)
from vmcore_tools.kernel.slab_moment import slab_moment, still_names
from vmcore_tools.kernel.slub_freelist import FreelistLayout, HardenedVotes, follow_freelists

__all__ = [
    "ObjectState",
    "SlabBatch",
    "SlabCache",
    "SlabFault",
    "SlabIndex",
    "SlabNow",
    "SlabProblem",
    "slab_index",
]

U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

_CACHE_KEY = "vmcore_tools.kernel.slab.index"
_CHANGED = "it changed while it was read"
#: More caches than any kernel has, memory cgroups' copies included.
_CACHES_MAX = 100_000


class ObjectState(enum.IntEnum):
    """Whether a slab object is allocated."""

    UNKNOWN = -1  #: no slab object, or its slab is damaged or not in the dump
    FREE = 0
    ALLOCATED = 1


class SlabFault(enum.Enum):
    """What kind of thing is wrong with a slab."""

    UNREAD = "unread"  #: it is not in the dump
    CACHE_LIST = "cache list"  #: a slab cache, or the list of them, cannot be read
    CACHE_POINTER = "cache pointer"  #: a slab's cache is no slab cache
    FREELIST = "freelist"  #: a freelist of a slab or a CPU is damaged
    OBJECTS = "objects"  #: the number of objects cannot be
    CHANGING = "changing"  #: of a live target: it changed while it was read


@dataclasses.dataclass(frozen=True)
class SlabProblem:
    """
    A slab that could not be wholly understood.

    :ivar address: of the slab's memory, or of the structure that is damaged
    :ivar cache: the cache's name, "" if unknown
    :ivar reason: what is wrong
    :ivar fault: the kind of it
    """

    address: int
    cache: str
    reason: str
    fault: SlabFault


@dataclasses.dataclass(frozen=True)
class SlabBatch:
    """
    Slabs of one cache with the same number of objects, and their bytes.

    Or objects of one cache in KFENCE's pool, as slabs of one object each: their
    bytes are zero behind what was asked for.

    :ivar cache: the cache
    :ivar rows: int64 array of shape (n,): the slabs' rows in the index
    :ivar data: uint8 array of shape (n, slab size in bytes)
    :ivar objects: uint64 array of shape (n, objects): their addresses
    :ivar allocated: bool array of shape (n, objects)
    :ivar intact: bool array of shape (n,): the slab was read and its
        freelist is sound; ``allocated`` is all false where it is not
    """

    cache: SlabCache
    rows: Ints
    data: npt.NDArray[np.uint8]
    objects: U64
    allocated: Bools
    intact: Bools

    def slots(self) -> npt.NDArray[np.uint8]:
        """
        The bytes from where each object begins to where the next one does.

        A slab with red zones can end sooner, behind the last object and what
        the allocator has of it: zeros stand for the rest.

        :return: uint8 array of shape (n, objects, ``cache.size_bytes``)
        """
        count, first = self.objects.shape[1], self.cache.red_left_pad_bytes
        data = self.data[:, first : first + count * self.cache.size_bytes]
        missing = count * self.cache.size_bytes - data.shape[1]
        if missing > 0:
            data = np.pad(data, ((0, 0), (0, missing)))
        return data.reshape(-1, count, self.cache.size_bytes)


@dataclasses.dataclass(frozen=True)
class SlabNow:
    """
    A slab of a live target at one moment.

    :ivar data: uint8 array of shape (slab size in bytes,)
    :ivar free: bool array of shape (objects,): those on its freelist and the CPUs'
    :ivar inuse: as the kernel counts them
    :ivar of_cpu: a CPU has it: free objects count as in use
    :ivar damage: what is wrong with its freelist
    """

    data: npt.NDArray[np.uint8]
    free: Bools
    inuse: int
    of_cpu: bool
    damage: Optional[str]


class SlabIndex:
    """
    All slabs of a kernel; get it with :func:`slab_index`.

    The arrays have a row for each slab, in the order of the page frames. An
    object in KFENCE's pool has a row of its own.

    :ivar caches: the slab caches, in the kernel's order
    :ivar pfn: int64, first page frame
    :ivar address: uint64, where the slab's objects start, with SLUB also its pages
    :ivar cache: int64, position in :attr:`caches`
    :ivar objects: int64, objects that the slab holds, free ones included
    :ivar inuse: int64, as the kernel counts them
    :ivar frozen: bool, the slab belongs to a CPU
    :ivar freelist: uint64, address of the first free object
    :ivar in_kfence: bool, the row is an object in KFENCE's pool, and no slab
    :ivar changing: the target is live: it goes on while it is read
    :ivar problems: slabs and caches that could not be read or are damaged
    :ivar unread_page_structs: page structures that are not in the dump
    """

    def __init__(self, prog: Program, memory: Memory) -> None:
        self.prog = prog
        self.memory = memory
        self.changing = _goes_on(prog)
        self.problems: List[SlabProblem] = []
        self._problems_seen: Set[SlabProblem] = set()
        self.caches = self._read_caches()
        self._sizes: Ints = np.array([c.size_bytes for c in self.caches], dtype=np.int64)
        self._pads: Ints = np.array([c.red_left_pad_bytes for c in self.caches], dtype=np.int64)
        self._read_slabs()
        self._hardened_votes = HardenedVotes()
        self._cpu_freelists = self._read_cpu_freelists()
        self._set_aside = self._read_objects_set_aside()
        self._rcu_sheaves = self._read_rcu_sheaves()

    def cache_number(self, cache: Object) -> Optional[int]:
        """
        Position of a cache in :attr:`caches`.

        :param cache: ``struct kmem_cache *``
        """
        address = cache.value_()
        for number, known in enumerate(self.caches):
            if known.cache.value_() == address:
                return number
        return None

    def rows_of(self, number: Optional[int]) -> npt.NDArray[np.int64]:
        """
        The slabs of a cache, and those of the copies that control groups have of it.

        :param number: position in :attr:`caches`; None for no slabs
        :return: int64 array of rows
        """
        if number is None:
            return np.zeros(0, dtype=np.int64)
        root = self.caches[number].cache.value_()
        copies = [i for i, known in enumerate(self.caches) if known.root == root]
        rows: npt.NDArray[np.int64] = np.flatnonzero(np.isin(self.cache, [number, *copies]))
        return rows

    def objects_with_word(self, cache: int, offset: int, value: int) -> U64:
        """
        The allocated objects of a cache that hold a word at an offset.

        :param cache: position in :attr:`caches`
        :param offset: in the object, a multiple of 8
        :param value: what the word must be
        :return: uint64 array of addresses, sorted
        """
        found = [np.zeros(0, dtype=np.uint64)]
        size = self.caches[cache].size_bytes
        for batch in self.batches(np.flatnonzero(self.cache == cache)):
            start = batch.cache.red_left_pad_bytes + offset
            words = batch.data.view(np.uint64)
            at = (start + np.arange(batch.objects.shape[1]) * size) // 8
            found.append(batch.objects[batch.allocated & (words[:, at] == np.uint64(value))])
        return np.sort(np.concatenate(found))

    # Reading the kernel's structures.

    def _read_caches(self) -> Tuple[SlabCache, ...]:
        caches = []
        head = self.prog["slab_caches"].address_of_()
        try:
            for cache in for_each_entry("struct kmem_cache", head, "list", _CACHES_MAX):
                try:
                    caches.append(read_slab_cache(cache))
                except (FaultError, ValidationError) as error:
                    reason = f"a slab cache cannot be read: {error}"
                    self.problems.append(
                        SlabProblem(cache.value_(), "", reason, SlabFault.CACHE_LIST)
                    )
        except (FaultError, ValidationError) as error:
            reason = f"the list of slab caches is damaged: {error}"
            self.problems.append(SlabProblem(head.value_(), "", reason, SlabFault.CACHE_LIST))
        return tuple(caches)

    def _read_slabs(self) -> None:
        pages = page_index(self.prog, self.memory)
        self.unread_page_structs = pages.unread
        slabs = slab_fields(self.prog, pages.slab_structs)
        slabs["pfn"] = pages.slab_pfn

        page_size = self.memory.page_map.page_size_bytes
        offset = direct_map_offset(self.prog)
        self._kfence = kfence_pool(self.prog, page_size)
        if self._kfence is not None:
            first, last = (
                (at - offset) // page_size for at in (self._kfence.start, self._kfence.end)
            )
            slabs = slabs[(slabs["pfn"] < first) | (slabs["pfn"] >= last)]

        at, known = self._cache_numbers(slabs["slab_cache"])
        # Where caches are missing, that of a slab may be one of these.
        whole = all(problem.fault is not SlabFault.CACHE_LIST for problem in self.problems)
        fault = SlabFault.CACHE_POINTER if whole else SlabFault.UNREAD
        among = "" if whole else " that could be read"
        for slab in slabs[~known]:
            address, owner = int(slab["pfn"]) * page_size + offset, int(slab["slab_cache"])
            reason = f"its cache pointer 0x{owner:x} is no slab cache{among}"
            if self.changing and not still_names(self.prog, address, owner):
                reason, fault_now = _CHANGED, SlabFault.CHANGING
            else:
                fault_now = fault
            self.problems.append(SlabProblem(address, "", reason, fault_now))
        slabs = slabs[known]
        self.pfn: Ints = slabs["pfn"].astype(np.int64)
        self.cache: Ints = at[known]
        self._page_address: U64 = slabs["pfn"] * np.uint64(page_size) + np.uint64(offset)
        self.address: U64 = self._page_address
        self.objects: Ints = slabs["objects"].astype(np.int64)
        if uses_slab(self.prog):
            # The first object's place varies, to spread slabs over cache lines.
            self.address = slabs["s_mem"].copy()
            counts = [next(iter(cache.orders)) for cache in self.caches]
            self.objects = np.array(counts, dtype=np.int64)[self.cache]
        self.inuse: Ints = slabs["inuse"].astype(np.int64)
        self.frozen: Bools = slabs["frozen"].astype(bool)
        self.freelist: U64 = slabs["freelist"].copy()
        # The rest behind the last object is nobody's.
        self._end: U64 = self.address + (
            self._pads[self.cache] + self._sizes[self.cache] * self.objects
        ).astype(np.uint64)
        self.in_kfence: Bools = np.zeros(len(slabs), dtype=bool)
        if self._kfence is not None:
            self._add_kfence_objects(self._kfence, page_size, offset)

    def _cache_numbers(self, pointers: U64) -> Tuple[Ints, Bools]:
        """Positions in :attr:`caches` of ``struct kmem_cache *``, and which are caches."""
        if not self.caches:
            return np.zeros(len(pointers), dtype=np.int64), np.zeros(len(pointers), dtype=bool)
        caches = np.array([c.cache.value_() for c in self.caches], dtype=np.uint64)
        order = np.argsort(caches)
        at = np.minimum(np.searchsorted(caches[order], pointers), len(caches) - 1)
        return order[at].astype(np.int64), caches[order][at] == pointers

    def _add_kfence_objects(self, pool: KfencePool, page_size: int, offset: int) -> None:
        """Give the objects in KFENCE's pool their rows."""
        cache, known = self._cache_numbers(pool.cache)
        lost = "the cache of an object of KFENCE's is no slab cache"
        unread = pool.unread + [(at, lost) for at in pool.address[~known].tolist()]
        self.problems += [SlabProblem(at, "", why, SlabFault.UNREAD) for at, why in unread]
        cache, address = cache[known], pool.address[known]
        count = len(cache)
        # It has no red zone; its row is as if there were one.
        start = address - self._pads[cache].astype(np.uint64)
        end = address + pool.size_bytes[known].astype(np.uint64)
        page = address // np.uint64(page_size) * np.uint64(page_size)
        pfn = ((page - np.uint64(offset)) // np.uint64(page_size)).astype(np.int64)
        order = np.argsort(np.concatenate([self.pfn, pfn]), kind="stable")
        for name, values in (
            ("pfn", pfn),
            ("cache", cache),
            ("_page_address", page),
            ("address", start),
            ("objects", np.ones(count, dtype=np.int64)),
            ("inuse", pool.allocated[known].astype(np.int64)),
            ("frozen", np.zeros(count, dtype=bool)),
            ("freelist", np.zeros(count, dtype=np.uint64)),
            ("_end", end),
            ("in_kfence", np.ones(count, dtype=bool)),
        ):
            setattr(self, name, np.concatenate([getattr(self, name), values])[order])

    def _read_cpu_freelists(self) -> Dict[int, List[int]]:
        """Row of a slab to the first free objects on CPUs' lists."""
        lists: Dict[int, List[int]] = {}
        if not self.caches or not hasattr(self.caches[0].cache, "cpu_slab"):
            return lists
        dtype = field_dtype(self.prog.type("struct kmem_cache_cpu"), {"freelist": "freelist"})
        offsets = [
            self.prog["__per_cpu_offset"][cpu].value_() for cpu in for_each_possible_cpu(self.prog)
        ]
        for cache in self.caches:
            base = cache.cache.cpu_slab.value_()
            for offset in offsets:
                address = (base + offset) & 0xFFFFFFFFFFFFFFFF
                try:
                    raw = self.prog.read(address, dtype.itemsize)
                except FaultError:
                    self.problems.append(
                        SlabProblem(
                            address, cache.name, "a CPU's slab cannot be read", SlabFault.UNREAD
                        )
                    )
                    continue
                head = int(np.frombuffer(raw, dtype=dtype)["freelist"][0])
                if not head:
                    continue
                row = int(self.find(np.array([head], dtype=np.uint64))[0])
                if row < 0 and self._has_unread_struct(head):
                    self.problems.append(
                        SlabProblem(
                            address,
                            cache.name,
                            "the slab of a CPU's free object is not in the dump",
                            SlabFault.UNREAD,
                        )
                    )
                    continue
                if row < 0 or self.caches[self.cache[row]] is not cache:
                    reason, fault = f"a CPU's free object 0x{head:x} is not its", SlabFault.FREELIST
                    if self.changing:
                        # The page structures are of another moment: its slab is newer.
                        reason, fault = _CHANGED, SlabFault.CHANGING
                    self.problems.append(SlabProblem(address, cache.name, reason, fault))
                    continue
                lists.setdefault(row, []).append(head)
        return lists

    def _has_unread_struct(self, address: int) -> bool:
        """Whether the page structure of an address of the direct map is not in the dump."""
        pages = page_index(self.prog, self.memory)
        pfn = (address - direct_map_offset(self.prog)) // self.memory.page_map.page_size_bytes
        inside = bool(((pages.ranges[:, 0] <= pfn) & (pfn < pages.ranges[:, 1])).any())
        return inside and int(pages.kind_of(np.array([pfn]))[0]) == PageClass.UNREAD

    def _read_objects_set_aside(self) -> Dict[int, U64]:
        """Position of a cache to the free objects that no freelist has."""
        found: Dict[int, U64] = {}
        for number, cache in enumerate(self.caches):
            try:
                found[number] = objects_set_aside(cache.cache)
            except (FaultError, ValidationError) as error:
                reason = f"its free objects on CPUs cannot be read: {error}"
                self.problems.append(
                    SlabProblem(cache.cache.value_(), cache.name, reason, SlabFault.UNREAD)
                )
        return found

    def _read_rcu_sheaves(self) -> List[Tuple[int, int]]:
        """
        Set the objects aside that wait in full sheaves for a grace period.

        Mirrors ``__kfree_rcu_sheaf()`` of mm/slub.c. A sheaf is in a kmalloc object.

        :return: address ranges ``[start, end)`` of their arrays
        """
        words = rcu_sheaf_words(self.prog)
        if not words:
            return []
        arrays = []
        header = sizeof(self.prog.type("struct slab_sheaf"))
        capacities = {cache.cache.sheaf_capacity.value_() for cache in self.caches} - {0}
        sizes = {header + 8 * capacity for capacity in capacities}
        for number, cache in enumerate(self.caches):
            size = cache.object_size_bytes
            if not cache.name.startswith("kmalloc") or not any(s <= size <= 2 * s for s in sizes):
                continue
            for callback, offset in words.items():
                for address in self.objects_with_word(number, offset, callback).tolist():
                    try:
                        owner, array, objects = rcu_sheaf(self.prog, address)
                    except FaultError as error:
                        reason = f"a sheaf that waits for RCU cannot be read: {error}"
                        self.problems.append(
                            SlabProblem(address, cache.name, reason, SlabFault.UNREAD)
                        )
                        continue
                    known = self.cache_number(owner)
                    if known is None or not array[0] + 8 * len(objects) <= array[1] <= (
                        address + size
                    ):
                        continue  # it is none
                    aside = self._set_aside.get(known, np.zeros(0, dtype=np.uint64))
                    self._set_aside[known] = np.union1d(aside, objects)
                    arrays.append(array)
        return arrays

    # Queries.

    @functools.cached_property
    def free_object_arrays(self) -> U64:
        """
        What is the allocator's own and may point to objects: arrays with free
        ones, and KFENCE's records and its pool but for the objects.

        :return: uint64 array of shape (n, 2), sorted direct map addresses ``[start, end)``
        """
        ranges = list(self._rcu_sheaves)
        for cache in self.caches:
            # What cannot be read here could not be read before, and is counted.
            with contextlib.suppress(FaultError, ValidationError):
                ranges += free_object_arrays(cache.cache)
        if self._kfence is not None:
            offset = direct_map_offset(self.prog)
            start, end = self._kfence.records
            ranges.append((start + offset, end + offset))
            objects = self._kfence.address.tolist()
            ends = (self._kfence.address + self._kfence.size_bytes.astype(np.uint64)).tolist()
            ranges += zip([self._kfence.start, *ends], [*objects, self._kfence.end])
        return np.array(sorted(ranges), dtype=np.uint64).reshape(-1, 2)

    def find(self, addresses: U64) -> Ints:
        """
        The slabs that hold addresses.

        :param addresses: uint64 array of shape (n,)
        :return: int64 array of shape (n,): rows, -1 for an address in no slab
        """
        if not len(self.pfn):
            return np.full(len(addresses), -1, dtype=np.int64)
        row = np.searchsorted(self.address, addresses, side="right").astype(np.int64) - 1
        at = np.maximum(row, 0)
        return np.where((row >= 0) & (addresses < self._end[at]), at, -1)

    def object_states(self, addresses: U64) -> npt.NDArray[np.int8]:
        """
        Whether the slab objects at addresses are allocated.

        :param addresses: uint64 array of shape (n,)
        :return: int8 array of shape (n,) with :class:`ObjectState`
        """
        rows = self.find(addresses)
        result = np.full(len(addresses), ObjectState.UNKNOWN, dtype=np.int8)
        wanted = np.unique(rows[rows >= 0])
        for batch in self.batches(wanted):
            asked = np.flatnonzero(np.isin(rows, batch.rows))
            at = np.searchsorted(batch.rows, rows[asked])
            # Below the first object, in a red zone, this wraps around.
            number = (addresses[asked] - batch.objects[at, 0]) // np.uint64(batch.cache.size_bytes)
            inside = number < batch.objects.shape[1]
            asked, at, number = asked[inside], at[inside], number[inside].astype(np.int64)
            state = np.where(
                batch.allocated[at, number], ObjectState.ALLOCATED, ObjectState.FREE
            ).astype(np.int8)
            result[asked] = np.where(batch.intact[at], state, ObjectState.UNKNOWN)
        return result

    def allocated(self, addresses: U64) -> Bools:
        """
        Which addresses are known to lie in an allocated slab object.

        :param addresses: uint64 array of shape (n,)
        :return: bool array of shape (n,)
        """
        result: Bools = self.object_states(addresses) == ObjectState.ALLOCATED
        return result

    @functools.cached_property
    def page_counts(self) -> Ints:
        """
        Pages of each row: int64 array of shape (rows,).

        A slab that cannot be, and that no batch has, has none.
        """
        page_size = self.memory.page_map.page_size_bytes
        result = np.zeros(len(self.pfn), dtype=np.int64)
        kinds, kind = np.unique(np.stack((self.cache, self.objects)), axis=1, return_inverse=True)
        for number, (cache, count) in enumerate(kinds.T.tolist()):
            slab_bytes = self._slab_bytes(self.caches[cache], count)
            result[kind.reshape(-1) == number] = (slab_bytes or 0) // page_size
        result[self.in_kfence] = 1
        return result

    def batches(self, rows: Optional[Ints] = None) -> Iterator[SlabBatch]:
        """
        Read slabs and tell their allocated objects from the free ones.

        :param rows: int64 array of rows; None for all
        """
        if rows is None:
            rows = np.arange(len(self.pfn), dtype=np.int64)
        key = self.cache[rows] << 32 | self.objects[rows] << 1 | self.in_kfence[rows]
        order = np.argsort(key, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(key[order])) + 1) if len(rows) else []
        for group in groups:
            members = rows[group]
            cache = self.caches[self.cache[members[0]]]
            if self.in_kfence[members[0]]:
                yield self._kfence_batch(cache, members)
                continue
            count = int(self.objects[members[0]])
            slab_bytes = self._slab_bytes(cache, count)
            if slab_bytes is None:
                for row in members:
                    self._problem(int(row), f"it cannot hold {count} objects", SlabFault.OBJECTS)
                continue
            step = max(1, self.memory.batch_bytes // slab_bytes)
            for start in range(0, len(members), step):
                yield self._batch(cache, members[start : start + step], count, slab_bytes)

    def _slab_bytes(self, cache: SlabCache, count: int) -> Optional[int]:
        page_size = self.memory.page_map.page_size_bytes
        order = cache.orders.get(count)
        if order is None or not 0 < count * cache.size_bytes <= page_size << order:
            return None
        return page_size << order

    def _batch(self, cache: SlabCache, rows: Ints, count: int, slab_bytes: int) -> SlabBatch:
        page_size = self.memory.page_map.page_size_bytes
        pages = slab_bytes // page_size
        pfns = (self.pfn[rows, None] + np.arange(pages)).astype(np.uint64)
        raw, read = self.memory.read_pages(pfns.ravel())
        # No slab is left out for its use: these are zeros, as they are in raw.
        read |= self.memory.page_map.left_out(pfns.ravel())
        data = raw.reshape(len(rows), slab_bytes)
        intact: Bools = np.logical_and.reduce(read.reshape(len(rows), pages), axis=1)
        for row in rows[~intact]:
            self._problem(int(row), "it is not in the dump", SlabFault.UNREAD)

        first = self.address[rows] + np.uint64(cache.red_left_pad_bytes)
        steps = np.arange(count, dtype=np.uint64) * np.uint64(cache.size_bytes)
        objects = first[:, None] + steps
        if cache.index_bytes is None:
            free, corrupt = self._slub_free(cache, rows, data, first, intact, count)
        else:
            free, corrupt = self._slab_free(cache, rows, intact, count)
        if corrupt and self.changing:
            data, corrupt = self._read_again(rows, data, free, intact, corrupt)
        if cache.index_bytes is not None:
            data = self._from_first_object(cache, rows, data, count)
        set_aside = self._set_aside.get(int(self.cache[rows[0]]))
        if set_aside is not None and len(set_aside):
            free |= np.isin(objects, set_aside)
        for i, reason in corrupt.items():
            intact[i] = False
            self._problem(int(rows[i]), reason, SlabFault.FREELIST)
        return SlabBatch(cache, rows, data, objects, ~free & intact[:, None], intact)

    def _read_again(
        self,
        rows: Ints,
        data: npt.NDArray[np.uint8],
        free: Bools,
        intact: Bools,
        corrupt: Dict[int, str],
    ) -> Tuple[npt.NDArray[np.uint8], Dict[int, str]]:
        """
        Of a live target, what seems to be damaged, each slab as it is at one moment.

        Changes *free* and *intact*.

        :return: the slabs' bytes, and what is damaged even so
        """
        data = data.copy()
        damaged: Dict[int, str] = {}
        for i in corrupt:
            now = self.look_again(int(rows[i]))
            if now is None:
                intact[i], free[i] = False, False
                continue
            data[i], free[i] = now.data, now.free
            if now.damage is not None:
                damaged[i] = now.damage
        return data, damaged

    def look_again(self, row: int) -> Optional[SlabNow]:
        """
        A slab as it is now, at one moment, which the index then has, too.

        :return: None, which is noted, if it is the cache's no more, or changes all the time, or
            nothing would tell that it did: SLAB has no number that changes each time
        """
        cache, count = self.caches[self.cache[row]], int(self.objects[row])
        slab_bytes, moment = self._slab_bytes(cache, count), None
        if slab_bytes is not None and cache.index_bytes is None:
            address = int(self._page_address[row])
            with contextlib.suppress(FaultError):
                moment = slab_moment(self.prog, cache, address, slab_bytes)
        if moment is None or moment.objects != count:
            self._problem(row, _CHANGED, SlabFault.CHANGING)
            return None
        self.freelist[row], self.inuse[row] = moment.freelist, moment.inuse
        self._cpu_freelists[row] = list(moment.cpu_freelists)
        free, corrupt = follow_freelists(
            _freelist_layout(cache, count),
            moment.data[None, :],
            self.address[row : row + 1] + np.uint64(cache.red_left_pad_bytes),
            [(0, head) for head in moment.heads],
            self._hardened_votes,
        )
        return SlabNow(moment.data, free[0], moment.inuse, moment.of_cpu, corrupt.get(0))

    def _kfence_batch(self, cache: SlabCache, rows: Ints) -> SlabBatch:
        raw, intact = self.memory.read_pages(self.pfn[rows].astype(np.uint64))
        intact |= self.memory.page_map.left_out(self.pfn[rows].astype(np.uint64))
        for row in rows[~intact]:
            self._problem(int(row), "it is not in the dump", SlabFault.UNREAD)
        pad = cache.red_left_pad_bytes
        address = self.address[rows] + np.uint64(pad)
        size = (self._end[rows] - address).astype(np.int64)
        step = np.arange(cache.size_bytes)
        at = (address - self._page_address[rows]).astype(np.int64)[:, None] + step
        found = np.take_along_axis(raw, np.minimum(at, raw.shape[1] - 1), axis=1)
        data = np.zeros((len(rows), pad + cache.size_bytes), dtype=np.uint8)
        data[:, pad:] = np.where(step < size[:, None], found, 0)
        allocated = (self.inuse[rows] > 0) & intact
        return SlabBatch(cache, rows, data, address[:, None], allocated[:, None], intact)

    def _slub_free(
        self,
        cache: SlabCache,
        rows: Ints,
        data: npt.NDArray[np.uint8],
        first: U64,
        intact: Bools,
        count: int,
    ) -> Tuple[Bools, Dict[int, str]]:
        heads = [(i, int(self.freelist[row])) for i, row in enumerate(rows) if self.freelist[row]]
        heads += [
            (i, head)
            for i, row in enumerate(rows)
            for head in self._cpu_freelists.get(int(row), ())
        ]
        heads = [(i, head) for i, head in heads if intact[i]]
        layout = _freelist_layout(cache, count)
        return follow_freelists(layout, data, first, heads, self._hardened_votes)

    def _slab_free(
        self, cache: SlabCache, rows: Ints, intact: Bools, count: int
    ) -> Tuple[Bools, Dict[int, str]]:
        """
        Free objects of SLAB: an array has their indices, behind the allocated ones'.

        Mirrors ``get_free_obj()`` of mm/slab.c.
        """
        free = np.zeros((len(rows), count), dtype=bool)
        corrupt: Dict[int, str] = {}
        dtype = np.dtype(f"<u{cache.index_bytes}")
        for i, row in enumerate(rows.tolist()):
            if not intact[i] or self.inuse[row] == count:
                continue  # a full slab may have lent its array to an object
            try:
                raw = self.prog.read(int(self.freelist[row]), count * dtype.itemsize)
            except FaultError:
                intact[i] = False
                self._problem(row, "its free indices are not in the dump", SlabFault.UNREAD)
                continue
            indices = np.frombuffer(raw, dtype=dtype)[self.inuse[row] :].astype(np.int64)
            if len(np.unique(indices)) != count - self.inuse[row] or (indices >= count).any():
                corrupt[i] = "its free indices are not those of its objects"
                continue
            free[i, indices] = True
        return free, corrupt

    def _from_first_object(
        self, cache: SlabCache, rows: Ints, data: npt.NDArray[np.uint8], count: int
    ) -> npt.NDArray[np.uint8]:
        """The bytes of slabs from where their objects start, as SLUB has them."""
        offset = (self.address[rows] - self._page_address[rows]).astype(np.int64)
        size = cache.red_left_pad_bytes + count * cache.size_bytes
        at = np.minimum(offset[:, None] + np.arange(size), data.shape[1] - 1)
        return np.ascontiguousarray(np.take_along_axis(data, at, axis=1))

    def _problem(self, row: int, reason: str, fault: SlabFault) -> None:
        problem = SlabProblem(
            int(self.address[row]), self.caches[self.cache[row]].name, reason, fault
        )
        if problem not in self._problems_seen:
            self._problems_seen.add(problem)
            self.problems.append(problem)


def _goes_on(prog: Program) -> bool:
    return bool(prog.flags & ProgramFlags.IS_LIVE)


def _freelist_layout(cache: SlabCache, count: int) -> FreelistLayout:
    return FreelistLayout(
        cache.size_bytes, cache.red_left_pad_bytes, cache.freelist_offset, cache.random, count
    )


def slab_index(prog: Program, memory: Memory) -> SlabIndex:
    """
    The index of all slabs, made once for a program.

    :raises drgn.FaultError: if the kernel's list of RAM cannot be read
    :raises LookupError: if the kernel has no slab layout that is known here
    """
    if _CACHE_KEY not in prog.cache:
        prog.cache[_CACHE_KEY] = SlabIndex(prog, memory)
    index: SlabIndex = prog.cache[_CACHE_KEY]
    return index
