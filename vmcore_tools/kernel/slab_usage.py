# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the slabs of each cache hold, and on which lists of the allocator they are.

The page structures that the index was made of have the links of all lists, so
nothing but the lists' heads is read here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Iterable, Iterator, List, Optional, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, offsetof
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.mm import for_each_valid_page_range
from drgn.helpers.linux.nodemask import nr_node_ids
from drgn.helpers.linux.percpu import per_cpu_ptr

from vmcore_tools.dump.memory import Memory
from vmcore_tools.kernel.layout import as_structs, field_dtype
from vmcore_tools.kernel.page import page_index
from vmcore_tools.kernel.slab import SlabCache, SlabIndex

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# include/linux/slab.h; a macro before v6.9.
_SLAB_RECLAIM_ACCOUNT = 0x00020000


class BrokenListError(Exception):
    """A list of slabs that leads to what is no slab of its cache."""


@dataclasses.dataclass(frozen=True)
class BrokenList:
    """
    A list of slabs that could not be followed to its end.

    :ivar address: of what has the list's head
    :ivar cache: position in :attr:`SlabIndex.caches`
    :ivar reason: why
    """

    address: int
    cache: int
    reason: str


@dataclasses.dataclass(frozen=True)
class SlabUsage:
    """
    The slabs of each cache: int64 arrays of shape (caches,), in the index's order.

    ``objects`` is the sum of ``allocated``, ``unread`` and the four kinds of free ones.
    None of these counts the objects in KFENCE's pool, as the kernel does not either.

    :ivar slabs: slabs
    :ivar size_bytes: of all of them
    :ivar objects: objects, free ones included
    :ivar allocated: allocated objects
    :ivar unread: objects of slabs that are not in the dump or damaged
    :ivar free_on_nodes: free in slabs on the nodes' partial lists, as
        ``count_partial()`` of mm/slub.c counts them; in all slabs of SLAB
    :ivar free_on_cpus: free in slabs that a CPU allocates from
    :ivar free_on_cpu_partial: free in slabs on CPUs' partial lists
    :ivar free_elsewhere: free in sheaves or SLAB's array caches, or in slabs
        that are on no list
    :ivar in_kfence: allocated objects in KFENCE's pool, which are in no slab
    :ivar kernel_slabs: slabs as the nodes' counters have them; -1 if there are none
    :ivar miscounted: int64 array: rows of slabs whose number of objects in
        use is not what their freelist says
    :ivar in_use: int64 array of shape (rows,): allocated objects of each slab
    :ivar broken: lists that could not be followed
    """

    slabs: Ints
    size_bytes: Ints
    objects: Ints
    allocated: Ints
    unread: Ints
    free_on_nodes: Ints
    free_on_cpus: Ints
    free_on_cpu_partial: Ints
    free_elsewhere: Ints
    in_kfence: Ints
    kernel_slabs: Ints
    miscounted: Ints
    in_use: Ints
    broken: Tuple[BrokenList, ...]

    @property
    def active(self) -> Ints:
        """
        Active objects as ``get_slabinfo()`` counts them for /proc/slabinfo.

        The newest kernels only estimate what they have on very long lists.
        """
        return self.objects - self.free_on_nodes


def slab_usage(
    index: SlabIndex,
    progress: Callable[[Iterable[Any], str, Optional[int]], Iterable[Any]],
) -> SlabUsage:
    """
    Count the objects of all caches; this reads every slab.

    :raises drgn.FaultError: if the memory map's own structures cannot be read
    """
    count = len(index.pfn)
    broken: List[BrokenList] = []
    if _is_slab(index):
        # Its nodes have all slabs, and its CPUs have objects, not slabs.
        on_node, on_cpu, on_cpu_partial = (np.full(count, node) for node in (True, False, False))
    else:
        lists = _SlabLists(index, broken)
        on_node = lists.rows(lists.node_partial)
        on_cpu = lists.rows(lists.cpu_slabs)
        on_cpu_partial = lists.rows(lists.cpu_partial)

    in_use, read = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=bool)
    size_bytes = np.zeros(count, dtype=np.int64)
    for batch in progress(index.batches(), "counting slab objects", None):
        in_use[batch.rows] = batch.allocated.sum(axis=1)
        read[batch.rows] = batch.intact
        size_bytes[batch.rows] = batch.data.shape[1]
    free = np.where(read, index.objects - in_use, 0)
    # What a node's list has of free objects is known without reading the slab.
    node_free = np.where(on_node, index.objects - index.inuse, 0)
    unread = np.where(read, 0, index.objects - node_free)
    elsewhere = np.where(read, free - node_free, 0)

    def by_cache(values: npt.NDArray[Any], rows: Bools = ~index.in_kfence) -> Ints:
        weights = np.where(rows, values, 0)
        sums = np.bincount(index.cache, weights=weights, minlength=len(index.caches))
        return sums.astype(np.int64)

    return SlabUsage(
        slabs=by_cache(np.ones(count)),
        size_bytes=by_cache(size_bytes),
        objects=by_cache(index.objects),
        allocated=by_cache(in_use),
        unread=by_cache(unread),
        free_on_nodes=by_cache(node_free),
        free_on_cpus=by_cache(np.where(on_cpu, free, 0)),
        free_on_cpu_partial=by_cache(np.where(on_cpu_partial, free, 0)),
        free_elsewhere=by_cache(np.where(on_cpu | on_cpu_partial, 0, elsewhere)),
        in_kfence=by_cache(in_use, index.in_kfence),
        kernel_slabs=_kernel_slabs(index),
        miscounted=_miscounted(index, in_use, read & ~on_cpu),
        in_use=in_use,
        broken=tuple(broken),
    )


def _miscounted(index: SlabIndex, in_use: Ints, settled: Bools) -> Ints:
    """
    Rows of slabs whose counters and freelist disagree.

    All objects of a slab that a CPU allocates from, a frozen one, count as in
    use; objects in sheaves, or SLAB's array caches, are in use for the slab,
    and free for everybody.
    """
    settled = settled & ~index.frozen & ~index.in_kfence
    if not settled.any():
        return np.zeros(0, dtype=np.int64)
    sets_aside = _is_slab(index) or hasattr(index.caches[0].cache, "cpu_sheaves")
    wrong = in_use > index.inuse if sets_aside else in_use != index.inuse
    rows = np.flatnonzero(settled & wrong).astype(np.int64)
    if not index.changing:
        return rows
    return rows[[_still_miscounted(index, row) for row in rows.tolist()]]


def _still_miscounted(index: SlabIndex, row: int) -> bool:
    """Of a live target, whether a slab's counter and freelist disagree at one moment."""
    now = index.look_again(row)
    if now is None or now.of_cpu or now.damage is not None:
        return False
    # Those in sheaves are on no freelist: in use for it as for the counter.
    return len(now.free) - int(now.free.sum()) != now.inuse


def is_reclaimable(cache: SlabCache) -> bool:
    """Whether the kernel counts a cache's slabs as reclaimable (``cache_vmstat_idx()``)."""
    prog = cache.cache.prog_
    try:
        # "mm, slab: use an enum to define SLAB_ cache creation flags" in v6.9.
        flag = 1 << prog.constant("_SLAB_RECLAIM_ACCOUNT").value_()
    except LookupError:
        flag = _SLAB_RECLAIM_ACCOUNT
    return bool(cache.cache.flags.value_() & flag)


def _is_slab(index: SlabIndex) -> bool:
    """Whether the kernel has the old SLAB."""
    return bool(index.caches) and index.caches[0].index_bytes is not None


def _kernel_slabs(index: SlabIndex) -> Ints:
    """The nodes' own counts of slabs; -1 for a cache whose nodes have none."""
    counts = np.full(len(index.caches), -1, dtype=np.int64)
    for number, cache in enumerate(index.caches):
        try:
            counts[number] = sum(_node_slabs(node) for node in _nodes(cache.cache))
        except (AttributeError, FaultError):
            continue  # SLUB does not count without CONFIG_SLUB_DEBUG
    return counts


def _node_slabs(node: Object) -> int:
    if hasattr(node, "total_slabs"):  # SLAB
        return int(node.total_slabs.value_())
    return int(node.nr_slabs.counter.value_())


class _SlabLists:
    """SLUB's lists of slabs; those that cannot be followed to their end are noted."""

    def __init__(self, index: SlabIndex, broken: List[BrokenList]) -> None:
        self._index = index
        self._prog = index.prog
        self._broken = broken
        slab_type = _slab_type(self._prog)
        # 916ac0527837 ("slub: use slab_list instead of lru") in v5.2.
        member = "slab_list" if slab_type.has_member("slab_list") else "lru"
        self._list_offset = offsetof(slab_type, member)
        names = {"next": f"{member}.next", "prev": f"{member}.prev"}
        if slab_type.has_member("next"):
            names["partial"] = "next"
        pages = page_index(self._prog, index.memory)
        at = np.searchsorted(pages.slab_pfn, index.pfn)
        # A page of KFENCE's is on no list, whether its own structure was read or not.
        structs = pages.slab_structs[np.minimum(at, len(pages.slab_pfn) - 1)]
        self._links = as_structs(structs, field_dtype(slab_type, names))
        self._addresses = _struct_addresses(self._prog, index.memory, index.pfn)
        self._order = np.argsort(self._addresses)
        self._sorted = self._addresses[self._order]
        self._slabs_max = np.bincount(index.cache, minlength=len(index.caches))

    def rows(self, walk: Callable[[int], Iterator[int]]) -> Bools:
        """Bool array of shape (rows,): the slabs that *walk* gives for any cache."""
        found = np.zeros(len(self._index.pfn), dtype=bool)
        for number, cache in enumerate(self._index.caches):
            try:
                for row in walk(number):
                    found[row] = True
            except FaultError as error:
                reason = f"a list of slabs cannot be read: {error}"
                self._broken.append(BrokenList(cache.cache.value_(), number, reason))
        return found

    def node_partial(self, number: int) -> Iterator[int]:
        """Rows of the slabs on a cache's nodes' partial lists."""
        for node in _nodes(self._index.caches[number].cache):
            head = node.partial
            yield from self._sound(number, head.address_, self._node_list(number, head))

    def cpu_slabs(self, number: int) -> Iterator[int]:
        """Rows of the slabs that CPUs allocate from."""
        for cpu_slab in _cpu_slabs(self._index.caches[number].cache):
            # bb192ed9aa71 ("mm/slub: Convert most struct page to struct slab
            # by spatch") in v5.17.
            name = "slab" if hasattr(cpu_slab, "slab") else "page"
            slab = cpu_slab.member_(name).value_()
            rows = (self._row(number, address) for address in [slab] if address)
            yield from self._sound(number, cpu_slab.value_(), rows)

    def cpu_partial(self, number: int) -> Iterator[int]:
        """Rows of the slabs on CPUs' partial lists."""
        for cpu_slab in _cpu_slabs(self._index.caches[number].cache):
            if hasattr(cpu_slab, "partial"):
                first = cpu_slab.partial.value_()
                yield from self._sound(number, cpu_slab.value_(), self._chain(number, first))

    def _sound(self, number: int, address: Optional[int], rows: Iterator[int]) -> Iterator[int]:
        """The rows up to where a list breaks, which is noted."""
        try:
            yield from rows
        except BrokenListError as error:
            self._broken.append(BrokenList(address or 0, number, str(error)))

    def _node_list(self, number: int, head: Object) -> Iterator[int]:
        end = previous = head.address_
        entry = head.next.value_()
        # No end is needed: each slab has one predecessor, so none comes twice.
        while entry != end:
            row = self._row(number, entry - self._list_offset)
            if int(self._links["prev"][row]) != previous:
                raise BrokenListError("a slab on a node's partial list does not link back")
            yield row
            previous, entry = entry, int(self._links["next"][row])

    def _chain(self, number: int, slab: int) -> Iterator[int]:
        seen = 0
        while slab:
            row = self._row(number, slab)
            seen += 1
            if seen > self._slabs_max[number]:
                raise BrokenListError("a CPU's partial list runs in a circle")
            yield row
            slab = int(self._links["partial"][row])

    def _row(self, number: int, address: int) -> int:
        """The row of a ``struct slab`` or ``struct page`` of a cache."""
        at = int(np.searchsorted(self._sorted, np.uint64(address & 0xFFFFFFFFFFFFFFFF)))
        if at < len(self._sorted) and int(self._sorted[at]) == address:
            row = int(self._order[at])
            if self._index.cache[row] == number:
                return row
        raise BrokenListError("it leads to what is no slab of the cache")


def _slab_type(prog: Program) -> Any:
    try:
        return prog.type("struct slab")
    except LookupError:
        return prog.type("struct page")


def _struct_addresses(prog: Program, memory: Memory, pfns: Ints) -> npt.NDArray[np.uint64]:
    """uint64 array of shape (n,): addresses of the page structures of page frames."""
    size = prog.type("struct page").size
    addresses = np.zeros(len(pfns), dtype=np.uint64)
    for start, end, mem_map in for_each_valid_page_range(prog):
        first = (mem_map.value_() + start * size) & 0xFFFFFFFFFFFFFFFF
        inside = (pfns >= start) & (pfns < end)
        steps = (pfns[inside] - start).astype(np.uint64) * np.uint64(size)
        addresses[inside] = np.uint64(first) + steps
    return addresses


def _nodes(cache: Object) -> Iterator[Object]:
    """
    Iterate over a cache's ``struct kmem_cache_node *``.

    :param cache: ``struct kmem_cache *``
    """
    # "slab: decouple pointer to barn from kmem_cache_node" of v7.1.
    per_node = hasattr(cache, "per_node")
    holders = cache.per_node if per_node else cache.node
    for holder in holders[: nr_node_ids(cache.prog_)]:
        node = holder.node.read_() if per_node else holder.read_()
        if node:
            yield node


def _cpu_slabs(cache: Object) -> Iterator[Object]:
    """
    Iterate over a cache's ``struct kmem_cache_cpu *``; none since v7.0.

    :param cache: ``struct kmem_cache *``
    """
    if hasattr(cache, "cpu_slab"):
        per_cpu = cache.cpu_slab.read_()
        for cpu in for_each_possible_cpu(cache.prog_):
            yield per_cpu_ptr(per_cpu, cpu).read_()
