# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Reference counts against the holders that can be found.

One mechanism for every refcounted type. A :class:`Refcounted` describes it:
the objects with their counts, and the references that walkers found. What
comes out are references that nobody holds, and holders that have none. What
the walkers do not explain is looked for in all of kernel memory, so that a
holder of a kind that nobody has thought of refutes a leak instead of being
missed.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple

import numpy as np
import numpy.typing as npt

from vmcore_tools.kernel.page import NOT_KERNEL, PageClass, direct_map_offset, page_index
from vmcore_tools.kernel.references import (
    Attribution,
    Hits,
    Place,
    Reference,
    Targets,
    register_references,
    scan,
)
from vmcore_tools.kernel.slab import ObjectState, SlabIndex
from vmcore_tools.kernel.slab_contents import contents
from vmcore_tools.kernel.steady import steady
from vmcore_tools.kernel.virtual_map import virtual_map

# REFCOUNT_SATURATED of include/linux/refcount.h, a macro: INT_MIN / 2. Who
# drops or takes references after it was set moves it a little.
_REFCOUNT_SATURATED = -(1 << 30)
_SATURATED_RANGE = 1 << 20
#: Nobody takes as many; memory that was written over may look as if.
_REFCOUNT_MAX = 1 << 20
#: Proven leaks for each pointer that is taken for garbage.
_LEAKS_FOR_A_STRAY = 100

U64 = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Progress = Callable[[Iterable[Any], str, Optional[int]], Iterable[Any]]


@dataclasses.dataclass(frozen=True)
class Counted:
    """
    Refcounted objects, as arrays of shape (n,), sorted by address.

    :ivar address: uint64, what a holder points at
    :ivar refcount: int64; 0 is an object that is being freed
    :ivar block: uint64 array of shape (m,): the memory blocks of the objects:
        who points into one of them may hold its objects
    :ivar block_size_bytes: int64 array of shape (m,)
    :ivar block_object: int64 array of shape (m,): position of the object
    """

    address: U64
    refcount: Counts
    block: U64
    block_size_bytes: Counts
    block_object: Counts


@dataclasses.dataclass(frozen=True)
class Holders:
    """
    References of one kind that a walker found.

    :ivar kind: ``reservation``, ``sync_file``
    :ivar held: uint64 array of shape (k,): the object of each reference; empty
        for weak holders, whose pointers count none
    :ivar words: uint64 array: the direct map addresses of all words with
        which these holders point at objects; empty where they are not known
    :ivar at_most: each may have dropped its reference, or not have one: they
        count as far as references are left, and are no proof of too many
    """

    kind: str
    held: U64
    words: U64
    at_most: bool = False


@dataclasses.dataclass(frozen=True)
class Refcounted:
    """
    What the audit is told of a type.

    :ivar objects: all objects that are known
    :ivar holders: the references that walkers found
    :ivar driver_known: bool array of shape (n,): all kinds of holders that are
        particular to the object's driver were walked, and the object's extent is known
    :ivar at_rest: bool array of shape (n,): no device will ask for the object
        any more, so that only who has a pointer to it can drop a reference
    """

    objects: Counted
    holders: Sequence[Holders]
    driver_known: Bools
    at_rest: Bools


class Verdict(enum.IntEnum):
    """What becomes of an object's references."""

    EXPLAINED = 0  #: as many holders as references
    FREEING = 1  #: the count is 0, and nobody holds it
    LEAKED = 2  #: too few holders, and nothing else points at it
    LIKELY_LEAKED = 3  #: the same, but for a stray pointer or what a driver may hide
    #: A task has it on its stack or in a register, or it is another at each look at a live
    #: target: its count is changing.
    IN_USE = 4
    UNKNOWN_HOLDER = 5  #: too few holders, no task has it, but something points at it
    NOT_JUDGED = 6  #: the same, and its own driver's holders are not known
    DANGLING = 7  #: more holders than references
    SATURATED = 8  #: the kernel itself found the count to run over or under
    IMPOSSIBLE = 9  #: no object has such a count: it is something else, or overwritten

    @property
    def text(self) -> str:
        return self.name.lower().replace("_", " ")


#: Verdicts that say nothing against anybody.
_NOTHING_WRONG = (Verdict.EXPLAINED, Verdict.FREEING, Verdict.IN_USE, Verdict.NOT_JUDGED)


@dataclasses.dataclass(frozen=True)
class Stale:
    """
    Pointers of holders to memory that is free: a slab object, or a page that is no slab's.

    :ivar address: uint64 array of shape (k,), sorted: what is pointed at
    :ivar cache: int64 array of shape (k,): position in ``SlabIndex.caches``, or -1
    :ivar kinds: of the holders of each
    """

    address: U64
    cache: Counts
    kinds: Tuple[Tuple[str, ...], ...]

    def chosen(self, wanted: Bools) -> Stale:
        """
        Some of them.

        :param wanted: bool array of shape (k,)
        """
        kinds = tuple(kinds for kinds, want in zip(self.kinds, wanted.tolist()) if want)
        return Stale(self.address[wanted], self.cache[wanted], kinds)


@dataclasses.dataclass(frozen=True)
class Audit:
    """
    The result, as arrays of shape (n,) in the order of the objects.

    :ivar holders: kind to int64 array: references of that kind
    :ivar left: int64: references without a holder, 0 where there are enough
    :ivar excess: int64: holders without a reference
    :ivar verdict: int8 array of :class:`Verdict`
    :ivar pointers: position of an object to what unexplained words point at it
    :ivar stale: what holders point at and is free
    :ivar unknown_held: addresses in memory of the kernel's own, its image apart,
        that holders point at and that are none of the objects, nor free
    :ivar pages_unread: pages of kernel memory that the scan could not read,
        and that could hold a pointer
    :ivar registers_unread: CPUs whose registers are not in the dump
    :ivar changing: the target is live: it went on while it was read
    :ivar areas_lost: the list of vmalloc areas is damaged: a task's stack may not
        have been recognised
    :ivar unsteady: objects of a live target with something wrong, and before with
        something else or nothing: they are not judged
    """

    holders: Dict[str, Counts]
    left: Counts
    excess: Counts
    verdict: npt.NDArray[np.int8]
    pointers: Dict[int, List[Reference]]
    stale: Stale
    unknown_held: U64
    pages_unread: int
    registers_unread: int
    changing: bool
    areas_lost: bool = False
    unsteady: int = 0

    @property
    def can_prove(self) -> bool:
        """Whether all that could refute a leak was read, at one moment."""
        return not (self.pages_unread or self.registers_unread or self.changing or self.areas_lost)

    @property
    def can_prove_dangling(self) -> bool:
        """Whether a task that is just dropping a reference would have been seen."""
        return not (self.registers_unread or self.changing or self.areas_lost)


def count_by_address(addresses: U64, sorted_targets: U64) -> Counts:
    """
    How often each target is among addresses.

    :param addresses: uint64 array of any shape
    :param sorted_targets: uint64 array of shape (n,), sorted, no duplicates
    :return: int64 array of shape (n,)
    """
    if not len(sorted_targets):
        return np.zeros(0, dtype=np.int64)
    near = addresses[(addresses >= sorted_targets[0]) & (addresses <= sorted_targets[-1])]
    at = np.searchsorted(sorted_targets, near)
    hits = at[sorted_targets[at] == near]
    return np.bincount(hits, minlength=len(sorted_targets))


def count_holders(
    objects: Counted, holders: Sequence[Holders]
) -> Tuple[Dict[str, Counts], Counts, Counts]:
    """
    The holders of each object, and how far they are from its count.

    :return: holders by kind, references without a holder, and holders without
        a reference: int64 arrays of shape (n,)
    """
    counts: Dict[str, Counts] = {}
    total = np.zeros_like(objects.refcount)
    for group in sorted(holders, key=lambda group: group.at_most):
        held = count_by_address(group.held, objects.address)
        if group.at_most:
            held = np.minimum(held, np.maximum(objects.refcount - total, 0))
        total += held
        counts[group.kind] = counts[group.kind] + held if group.kind in counts else held
    possible = (objects.refcount >= 0) & (objects.refcount <= _REFCOUNT_MAX)
    left = np.where(possible, np.maximum(objects.refcount - total, 0), 0)
    return counts, left, np.where(possible, np.maximum(total - objects.refcount, 0), 0)


def verdicts_of_counts(refcount: Counts, left: Counts, excess: Counts) -> npt.NDArray[np.int8]:
    """
    What the counts alone say.

    :param refcount: int64 array of shape (n,)
    :param left: references without a holder
    :param excess: holders without a reference
    :return: int8 array of :class:`Verdict`
    """
    verdict = np.full(len(refcount), Verdict.EXPLAINED, dtype=np.int8)
    verdict[refcount == 0] = Verdict.FREEING
    verdict[(refcount < 0) | (refcount > _REFCOUNT_MAX)] = Verdict.IMPOSSIBLE
    verdict[abs(refcount - _REFCOUNT_SATURATED) < _SATURATED_RANGE] = Verdict.SATURATED
    verdict[left > 0] = Verdict.LEAKED
    verdict[excess > 0] = Verdict.DANGLING
    return verdict


def nobody_else_can_hold(described: Refcounted, counts: Dict[str, Counts]) -> Bools:
    """
    Which objects nobody has references to but who points at them, one for each pointer.

    A driver that is not known may have two references and one pointer, where a device will
    ask for the object again, or where it made the pointer of a known holder its own.

    :param counts: holders by kind, as :func:`count_holders` has them
    """
    held = sum(counts.values(), np.zeros_like(described.objects.refcount)) > 0
    result: Bools = described.driver_known | (described.at_rest & ~held)
    return result


def audit(index: SlabIndex, described: Refcounted, progress: Progress) -> Audit:
    """
    Compare reference counts with holders, and look for what is left over.

    :raises drgn.FaultError: if the page tables or the list of tasks cannot be read
    """
    objects, holders = described.objects, described.holders
    counts, left, excess = count_holders(objects, holders)
    verdict = verdicts_of_counts(objects.refcount, left, excess)
    stale, unknown_held = _held_elsewhere(index, objects, holders)
    changing = index.changing
    if changing:
        # What was allocated since the slabs were read is free there.
        unknown_held = np.union1d(unknown_held, stale.address)
        stale = stale.chosen(np.zeros(len(stale.address), dtype=bool))
    found = _look_for_pointers(index, objects, (left > 0) | (excess > 0), stale, holders, progress)
    verdict[(left > 0) & ~nobody_else_can_hold(described, counts)] = Verdict.LIKELY_LEAKED
    for i, pointers in found.to_object.items():
        # A task that has it may be about to store it, or to drop it. It has it
        # at least once for each reference that it holds.
        if _with_tasks(pointers) >= left[i] + excess[i]:
            verdict[i] = Verdict.IN_USE
        elif left[i]:
            known = described.driver_known[i]
            verdict[i] = Verdict.UNKNOWN_HOLDER if known else Verdict.NOT_JUDGED
    in_use = [bool(_with_tasks(found.to_stale.get(i, ()))) for i in range(len(stale.address))]
    unsteady = _unsteady(index, described, verdict, left, excess)
    verdict[unsteady] = Verdict.IN_USE
    return Audit(
        counts,
        left,
        excess,
        verdict,
        found.to_object,
        stale.chosen(~np.array(in_use, dtype=bool)),
        unknown_held,
        found.pages_unread,
        found.registers_unread,
        changing,
        virtual_map(index.prog, index.memory.page_map.page_size_bytes).broken is not None,
        int(unsteady.sum()),
    )


def _unsteady(
    index: SlabIndex,
    described: Refcounted,
    verdict: npt.NDArray[np.int8],
    left: Counts,
    excess: Counts,
) -> Bools:
    """Which objects of a target that goes on have something wrong, and before had not the same."""
    result = np.zeros(len(verdict), dtype=bool)
    if not index.changing:
        return result
    wrong = np.flatnonzero(~np.isin(verdict, _NOTHING_WRONG))
    objects = described.objects
    same = steady(
        index.prog,
        " ".join(sorted({group.kind for group in described.holders})),
        objects.address[wrong],
        objects.refcount[wrong],
        left[wrong],
        excess[wrong],
        # Another object may be where one was that is gone.
        contents(index, objects.address[wrong]),
    )
    result[wrong[~same]] = True
    return result


def with_likely_leaks(result: Audit, kinds: npt.NDArray[Any]) -> Audit:
    """
    Take objects with unknown pointers for leaked where their likes are.

    Memory that was not cleared has stray pointers. If objects of the same kind
    are proven to leak, one with such a pointer is more likely another of them
    than held by a holder that none of the others has.

    :param kinds: array of shape (n,): what makes objects alike
    """
    leaking = Counter(kinds[result.verdict == Verdict.LEAKED].tolist())
    verdict = result.verdict.copy()
    unknown = np.flatnonzero(
        np.isin(result.verdict, [Verdict.UNKNOWN_HOLDER, Verdict.NOT_JUDGED])
    ).tolist()
    places = Counter(place for i in unknown for place in _places(result.pointers[i]))
    for i in unknown:
        # A holder has its pointers in one place of many objects, or many of
        # them in one object; garbage is rare.
        most = max(places[place] for place in _places(result.pointers[i]))
        if most * _LEAKS_FOR_A_STRAY <= leaking[kinds[i]]:
            verdict[i] = Verdict.LIKELY_LEAKED
    return dataclasses.replace(result, verdict=verdict)


def _places(references: Sequence[Reference]) -> Set[Tuple[Any, ...]]:
    """Where pointers are: alike for all objects of a cache, and in which object."""
    places: Set[Tuple[Any, ...]] = set()
    for reference in references:
        in_slab = reference.place == Place.SLAB_OBJECT
        offset = reference.offset if in_slab else reference.address
        places.add((reference.place, reference.holder, offset))
        if reference.container:
            places.add((reference.place, reference.container))
    return places


def _with_tasks(pointers: Sequence[Reference]) -> int:
    return sum(pointer.place in (Place.TASK_STACK, Place.REGISTER) for pointer in pointers)


def _held_elsewhere(
    index: SlabIndex, objects: Counted, holders: Sequence[Holders]
) -> Tuple[Stale, U64]:
    """What holders point at and is none of the objects: free memory, and other memory."""
    nothing = np.zeros(0, dtype=np.uint64)
    exact = [group for group in holders if not group.at_most]
    held = np.unique(np.concatenate([nothing, *(group.held for group in exact)]))
    held = np.setdiff1d(held, objects.address, assume_unique=True)
    rows = index.find(held)
    memory = index.memory
    frames = (held - np.uint64(direct_map_offset(index.prog))) // np.uint64(
        memory.page_map.page_size_bytes
    )
    page = page_index(index.prog, memory).kind_of(frames)
    # An empty slab is given back; user space and the page cache may have its pages then.
    free = np.where(
        rows >= 0, index.object_states(held) == ObjectState.FREE, np.isin(page, NOT_KERNEL)
    )
    # What is not in the direct map is a variable of the kernel's: the stub fence.
    variable = (rows < 0) & np.isin(page, [PageClass.UNREAD, PageClass.RESERVED])
    by_kind = [(group.kind, np.isin(held[free], group.held).tolist()) for group in exact]
    kinds = tuple(
        tuple(sorted({kind for kind, points in by_kind if points[i]}))
        for i in range(int(np.count_nonzero(free)))
    )
    cache = np.where(rows >= 0, index.cache[rows], -1) if len(index.cache) else rows
    return Stale(held[free], cache[free], kinds), held[~free & ~variable]


@dataclasses.dataclass(frozen=True)
class _Found:
    """
    :ivar to_object: position of an object to what points at it
    :ivar to_stale: position of a stale pointer's target to what points at it
    """

    to_object: Dict[int, List[Reference]]
    to_stale: Dict[int, List[Reference]]
    pages_unread: int = 0
    registers_unread: int = 0


def _look_for_pointers(
    index: SlabIndex,
    objects: Counted,
    suspects: Bools,
    stale: Stale,
    holders: Sequence[Holders],
    progress: Progress,
) -> _Found:
    """What points at suspects and is neither a known holder nor no reference at all."""
    wanted = suspects[objects.block_object]
    count = len(objects.address)
    if not (wanted.any() or len(stale.address)):
        return _Found({}, {})
    slot, slot_size = slots_around(index, stale.address)
    start = np.concatenate([objects.block[wanted], slot])
    size = np.concatenate([objects.block_size_bytes[wanted], slot_size])
    # The stale targets come behind the objects.
    owner = np.concatenate([objects.block_object[wanted], count + np.arange(len(slot))])
    # Two objects can be in one memory block; targets must not overlap.
    starts, first, block = np.unique(start, return_index=True, return_inverse=True)
    targets = Targets(starts, starts + size[first].astype(np.uint64))
    label = _labels(owner, block, len(starts))

    prog, memory = index.prog, index.memory
    pages = page_index(prog, memory)
    hits, coverage = scan(memory, pages, targets, progress)
    known = np.concatenate([np.zeros(0, dtype=np.uint64), *(group.words for group in holders)])
    known.sort()
    hits = _unexplained(hits, targets, label, known, direct_map_offset(prog))
    virtual = virtual_map(prog, memory.page_map.page_size_bytes)
    references = Attribution.of(prog, index, pages, virtual).references(targets, hits)
    in_registers, registers_unread = register_references(prog, targets)
    every = [*references, *in_registers]
    is_known = _among(np.array([found.address for found in every], dtype=np.uint64), known)
    to_block: Dict[int, List[Reference]] = {}
    for reference, known_word in zip(every, is_known.tolist()):
        if reference.non_reference is None and not known_word:
            to_block.setdefault(reference.target, []).append(reference)

    to_owner: Dict[int, List[Reference]] = {}
    if to_block:
        with_hits = np.isin(block, np.array(list(to_block), dtype=np.int64))
        for number, who in zip(block[with_hits].tolist(), owner[with_hits].tolist()):
            to_owner.setdefault(who, []).extend(to_block[number])
    return _Found(
        {who: found for who, found in to_owner.items() if who < count},
        {who - count: found for who, found in to_owner.items() if who >= count},
        coverage.pages_unread + sum(coverage.pages_absent.values()),
        registers_unread,
    )


def slots_around(index: SlabIndex, addresses: U64) -> Tuple[U64, Counts]:
    """Start and size of the slab objects around addresses; what is in no slab, by itself."""
    start, size = addresses.copy(), np.ones(len(addresses), dtype=np.int64)
    in_slab = index.find(addresses) >= 0
    start[in_slab], size[in_slab] = _slab_slots(index, addresses[in_slab])
    return start, size


def _slab_slots(index: SlabIndex, addresses: U64) -> Tuple[U64, Counts]:
    rows = index.find(addresses)
    caches = [index.caches[number] for number in index.cache[rows].tolist()]
    size = np.array([cache.size_bytes for cache in caches], dtype=np.uint64)
    first = index.address[rows]
    first = first + np.array([cache.red_left_pad_bytes for cache in caches], dtype=np.uint64)
    return first + (addresses - first) // np.maximum(size, 1) * size, size.astype(np.int64)


def _labels(owner: Counts, block: Counts, blocks: int) -> Counts:
    """The same number for blocks with the same owner: int64 array of shape (blocks,)."""
    label = np.full(blocks, np.iinfo(np.int64).max)
    np.minimum.at(label, block, owner)
    of_owner: Counts = np.full(int(owner.max(initial=0)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(of_owner, owner, label[block])
    np.minimum.at(label, block, of_owner[owner])
    return label


def _among(values: U64, ordered: U64) -> Bools:
    """As numpy.isin(), much faster where there are many of both."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[at] == values)


def _unexplained(hits: Hits, targets: Targets, label: Counts, known: U64, direct_map: int) -> Hits:
    """
    Without the words of known holders, and of objects that point to themselves.

    There are several of these for each object: its list heads.
    """
    address = hits.physical + np.uint64(direct_map)
    at = np.maximum(np.searchsorted(targets.start, address, side="right") - 1, 0)
    inside = (address >= targets.start[at]) & (address < targets.end[at])
    wanted = ~(inside & (label[at] == label[hits.target])) & ~_among(address, known)
    return Hits(hits.physical[wanted], hits.value[wanted], hits.target[wanted])
