# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Slab objects that nothing reachable points at.

Mark and sweep, and conservative: each aligned word with an address anywhere
in an object is a pointer to it. Roots are all words of kernel memory that are
in no object that is judged, less those that are known to be no references.
Garbage that points to garbage, in a circle or not, is found as such.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

import numpy as np
import numpy.typing as npt

from vmcore_tools.kernel.kasan import has_quarantine
from vmcore_tools.kernel.kfree_rcu import kfree_rcu
from vmcore_tools.kernel.page import PageClass, PageIndex, page_index
from vmcore_tools.kernel.references import (
    Attribution,
    Targets,
    absent_kernel_pages,
    in_ranges,
    kernel_runs,
    register_references,
    scan_runs,
)
from vmcore_tools.kernel.slab import SlabBatch, SlabCache, SlabIndex
from vmcore_tools.kernel.slabs_at_hand import AtHand
from vmcore_tools.kernel.sysctl import sysctl_headers
from vmcore_tools.kernel.virtual_map import virtual_map

U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Progress = Callable[[Iterable[Any], str, Optional[int]], Iterable[Any]]

#: Slab bytes that are searched at a time: what fits in a CPU's cache is faster.
_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Unreachable:
    """
    What nothing points at; arrays of shape (n,), sorted by address.

    :ivar address: uint64, where each object begins
    :ivar cache: int64, position of its cache in ``SlabIndex.caches``
    :ivar pointed_at: bool, another of them points at it
    :ivar allocated: int64 array of shape (caches,): all allocated objects of the
        caches that were judged
    :ivar pages_unread: pages of kernel memory besides the slabs that are
        promised by the dump but damaged
    :ivar pages_absent: pages that are not in the dump and could hold a
        pointer, by what they are used for
    :ivar registers_unread: CPUs whose registers are not in the dump
    :ivar freeing_unread: (address, what is wrong) of lists of kfree_rcu()
    """

    address: U64
    cache: Ints
    pointed_at: Bools
    allocated: Ints
    pages_unread: int
    pages_absent: Dict[PageClass, int]
    registers_unread: int
    freeing_unread: Tuple[Tuple[int, str], ...]


def unreachable_objects(index: SlabIndex, judged: Bools, progress: Progress) -> Unreachable:
    """
    The allocated objects of caches that no root leads to.

    Every page is read once. What is kept grows with the number of objects,
    and of pointers from one to another.

    :param judged: bool array: which of ``index.caches``; objects of the others
        are roots
    :raises drgn.FaultError: if the page tables or the list of tasks cannot be read
    """
    prog, memory = index.prog, index.memory
    pages = page_index(prog, memory)
    virtual = virtual_map(prog, memory.page_map.page_size_bytes)
    attribution = Attribution.of(prog, index, pages, virtual)
    objects = _Objects(index, judged, with_metadata=has_quarantine(prog))
    graph = _Graph(objects)
    pages_unread = _follow_pages(index, pages, attribution, graph, progress)
    # Those whose pointers are roots come first, so that fewer have to be kept.
    rows = [np.flatnonzero(judged[index.cache] == which) for which in (False, True)]
    batches = (batch for group in rows for batch in index.batches(group))
    for batch in progress(batches, "following pointers between slab objects", None):
        _follow_batch(index, attribution, graph, batch)
    address, number = objects.allocated_by_address()
    size = np.array([objects.used_bytes(cache) for cache in index.caches], dtype=np.uint64)
    targets = Targets(address, address + size[objects.cache[number]])
    in_registers, registers_unread = register_references(prog, targets)
    graph.root(number[[reference.target for reference in in_registers]])
    freeing = kfree_rcu(prog, memory.page_map.page_size_bytes)
    graph.root(number[freeing.waits(address)])
    graph.spread()
    lost = number[~graph.reached[number]]
    kept = sysctl_headers(index, objects.address[lost], size[objects.cache[lost]])
    graph.root(lost[kept])
    graph.spread()
    lost = number[~graph.reached[number]]
    graph.root(lost[_in_slabs_at_hand(index, objects.address[lost])])
    graph.spread()
    lost = number[~graph.reached[number]]
    return Unreachable(
        address=objects.address[lost],
        cache=objects.cache[lost],
        pointed_at=graph.pointed_at_by(lost)[lost],
        allocated=np.bincount(objects.cache[number], minlength=len(index.caches)),
        pages_unread=pages_unread,
        pages_absent=absent_kernel_pages(memory, pages),
        registers_unread=registers_unread,
        freeing_unread=freeing.unread,
    )


def _in_slabs_at_hand(index: SlabIndex, addresses: U64) -> Bools:
    """
    Which objects are in slabs that a CPU works on.

    All objects of one that is being set up look allocated: its list of free
    ones is only in a register of ``___slab_alloc()``.
    """
    if not len(addresses):
        return np.zeros(0, dtype=bool)
    at_hand = AtHand(index.prog)
    page_size = index.memory.page_map.page_size_bytes
    rows = index.find(addresses)
    changing = []
    whole, count = np.unique(rows[rows >= 0], return_counts=True)
    for row in whole[count == index.objects[whole]].tolist():
        start = int(index.address[row]) // page_size * page_size
        size = int(index.page_counts[row]) * page_size
        if at_hand.has(start, size) or at_hand.has_page_struct(start):
            changing.append(row)
    return np.isin(rows, changing)


class _Objects:
    """
    All objects of caches, free ones included, by number.

    :ivar with_metadata: what the allocator has behind an object counts as part
        of it; KASAN links its quarantine there
    :ivar first_number: int64, of the first object of each of the index's rows;
        -1 where the row is of another cache
    :ivar address: uint64, by number; 0 for what is not allocated
    :ivar cache: int64, by number
    """

    def __init__(self, index: SlabIndex, judged: Bools, with_metadata: bool = False) -> None:
        def of_rows(values: List[int]) -> U64:
            return np.array(values, dtype=np.uint64)[index.cache]

        self.with_metadata = with_metadata
        # Rows that cannot be would only overlap others.
        wanted = judged[index.cache] & (index.page_counts > 0)
        counts = np.where(wanted, index.objects, 0)
        self.first_number: Ints = np.where(wanted, np.cumsum(counts) - counts, -1)
        self.address: U64 = np.zeros(int(counts.sum()), dtype=np.uint64)
        self.cache: Ints = np.repeat(index.cache, counts)
        rows = np.flatnonzero(wanted)
        size = of_rows([cache.size_bytes for cache in index.caches])
        pad = of_rows([cache.red_left_pad_bytes for cache in index.caches])
        start = index.address[rows] + pad[rows]
        order = np.argsort(start, kind="stable")
        rows, start = rows[order], start[order]
        self._rows = rows
        self._size = size[rows]
        self._used = of_rows([self.used_bytes(cache) for cache in index.caches])[rows]
        #: Whole slabs: there are far fewer of them than of objects.
        self.slabs = Targets(start, start + self._size * index.objects[rows].astype(np.uint64))

    def used_bytes(self, cache: SlabCache) -> int:
        """How much of an object can be pointed at, and can have pointers."""
        return cache.size_bytes if self.with_metadata else cache.object_size_bytes

    def numbers(self, words: U64, slab: Ints) -> Tuple[Bools, Ints]:
        """
        The objects that words point into.

        :param words: uint64 array of shape (m,)
        :param slab: int64 array of shape (m,): which of :attr:`slabs` each points into
        :return: bool array of shape (m,): whether it is in an object; int64
            array of shape (m,): that object's number
        """
        size = self._size[slab]
        which, offset = np.divmod(words - self.slabs.start[slab], size)
        number = self.first_number[self._rows[slab]] + which.astype(np.int64)
        return offset < self._used[slab], number

    def allocated_by_address(self) -> Tuple[U64, Ints]:
        """Addresses of the allocated objects, sorted, and their numbers."""
        order = np.argsort(self.address, kind="stable")
        order = order[np.searchsorted(self.address[order], np.uint64(1)) :]
        return self.address[order], order


class _Graph:
    """
    Which objects point at which, and which ones a root leads to.

    :ivar reached: bool, by number
    """

    def __init__(self, objects: _Objects) -> None:
        self.objects = objects
        self.reached: Bools = np.zeros(len(objects.address), dtype=bool)
        nothing = np.zeros(0, dtype=np.int32)
        self._from: List[npt.NDArray[np.int32]] = [nothing]
        self._to: List[npt.NDArray[np.int32]] = [nothing]

    def root(self, targets: Ints) -> None:
        """Nothing more is asked of these objects."""
        self.reached[targets] = True

    def point(self, sources: Ints, targets: Ints) -> None:
        """Each source points at its target."""
        self.root(targets[self.reached[sources]])
        new = ~self.reached[targets] & (sources != targets)
        self._from.append(sources[new].astype(np.int32))
        self._to.append(targets[new].astype(np.int32))

    def spread(self) -> None:
        """Reach what reached objects point at."""
        source, target = self._edges()
        new = ~self.reached[target]
        source, target = source[new], target[new]
        order = np.argsort(source, kind="stable")
        start = np.searchsorted(source[order], np.arange(len(self.reached) + 1))
        pending = np.flatnonzero(self.reached & (start[1:] > start[:-1])).tolist()
        # Long lists make this a long way with one step at a time: nothing for
        # arrays. Their memory is as fast as lists and takes less of it.
        starts, targets, reached = start.data, target[order].data, self.reached.data
        while pending:
            number = pending.pop()
            for at in range(starts[number], starts[number + 1]):
                other = targets[at]
                if not reached[other]:
                    reached[other] = True
                    pending.append(other)

    def pointed_at_by(self, sources: Ints) -> Bools:
        """Which objects, by number, one of these points at; none of them is reached."""
        source, target = self._edges()
        result = np.zeros(len(self.reached), dtype=bool)
        result[target[np.isin(source, sources)]] = True
        return result

    def _edges(self) -> Tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        self._from = [np.concatenate(self._from)]
        self._to = [np.concatenate(self._to)]
        return self._from[0], self._to[0]


def _follow_pages(
    index: SlabIndex,
    pages: PageIndex,
    attribution: Attribution,
    graph: _Graph,
    progress: Progress,
) -> int:
    """Take what is in no slab for roots; tell how many pages of it could not be read."""
    memory = index.memory
    runs = _without_slabs(index, kernel_runs(memory, pages))
    pages_read = 0
    for hits, read in scan_runs(memory, runs, graph.objects.slabs, progress):
        pages_read += read
        is_object, target = graph.objects.numbers(hits.value, hits.target)
        new = is_object.nonzero()[0]
        new = new[~graph.reached[target[new]]]
        if len(new):
            references = attribution.non_references(hits.physical[new]) == 0
            graph.root(target[new[references]])
    return int((runs[:, 1] - runs[:, 0]).sum()) - pages_read


def _without_slabs(index: SlabIndex, runs: U64) -> U64:
    """Runs of page frames, less those of the slabs that ``index.batches()`` gives."""
    there = np.flatnonzero(index.page_counts)
    there = there[np.argsort(index.pfn[there], kind="stable")]
    first, pages = index.pfn[there], index.page_counts[there]
    slabs = np.stack((first, first + pages), axis=1).astype(np.uint64)
    # What is between two neighbouring edges is inside or outside as a whole.
    edges = np.unique(np.concatenate((runs, slabs), axis=None))
    start, end = edges[:-1], edges[1:]
    wanted = in_ranges(start, runs) & ~in_ranges(start, slabs)
    return np.stack((start[wanted], end[wanted]), axis=1)


def _follow_batch(
    index: SlabIndex, attribution: Attribution, graph: _Graph, batch: SlabBatch
) -> None:
    """The pointers in slabs of one cache."""
    cache, objects = batch.cache, graph.objects
    first = objects.first_number[batch.rows]
    count, slab_bytes = batch.objects.shape[1], batch.data.shape[1]
    judged = first[0] >= 0
    if judged:
        numbers = first[:, None] + np.arange(count)
        objects.address[numbers] = np.where(batch.allocated, batch.objects, np.uint64(0))
    skipped = attribution.kmemleak_words.get(int(index.cache[batch.rows[0]]), ())
    step = max(1, _CHUNK_BYTES // slab_bytes)
    for start in range(0, len(batch.rows), step):
        words = batch.data[start : start + step].reshape(-1).view(np.uint64)
        position, in_slab = objects.slabs.hits(words)
        is_object, target = objects.numbers(words[position], in_slab)
        slab, byte = np.divmod(position * 8, slab_bytes)
        slab += start
        which, offset = np.divmod(byte - cache.red_left_pad_bytes, cache.size_bytes)
        is_object &= (which >= 0) & (which < count) & (offset < objects.used_bytes(cache))
        if skipped:
            is_object &= ~np.isin(offset, skipped)
        slab, which, target = slab[is_object], which[is_object], target[is_object]
        # Sheaves keep in their unused entries what they last handed out.
        address = batch.objects[slab, which] + offset[is_object].astype(np.uint64)
        counts = ~in_ranges(address, index.free_object_arrays)
        slab, which, target = slab[counts], which[counts], target[counts]
        # Of a damaged slab it is not known which objects are free.
        graph.root(target[~batch.intact[slab]])
        used = batch.allocated[slab, which]
        slab, which, target = slab[used], which[used], target[used]
        if judged:
            graph.point(numbers[slab, which], target)
        else:
            graph.root(target)
