# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Reference counts against the holders that can be found.

One mechanism for every refcounted type: the objects with their counts, and
the references that walkers found, in; the references that nobody holds, out.
What the walkers do not explain is looked for in all of kernel memory, so that
a holder of a kind that nobody has thought of refutes a leak instead of being
missed.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np
import numpy.typing as npt
from drgn import Program, ProgramFlags

from vmcore_tools.dump.memory import Memory
from vmcore_tools.kernel.page import page_index
from vmcore_tools.kernel.references import (
    Attribution,
    Place,
    Reference,
    Targets,
    register_references,
    scan,
)
from vmcore_tools.kernel.slab import SlabIndex
from vmcore_tools.kernel.virtual_map import virtual_map

#: Proven leaks for each pointer that is taken for garbage.
_LEAKS_FOR_A_STRAY = 100

U64 = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Counted:
    """
    Refcounted objects, as arrays of shape (n,), sorted by address.

    :ivar address: uint64, what a holder points at
    :ivar container: uint64, the memory block around it
    :ivar size_bytes: of each memory block
    :ivar refcount: int64; 0 or less is an object that is being freed
    """

    address: U64
    container: U64
    size_bytes: npt.NDArray[np.int64]
    refcount: Counts


@dataclasses.dataclass(frozen=True)
class Holders:
    """
    References of one kind that a walker found.

    :ivar kind: ``reservation``, ``sync_file``
    :ivar held: uint64 array of shape (m,): the object of each reference
    :ivar words: uint64 array: the direct map addresses of all words with
        which these holders point at objects; empty where they are not known
    """

    kind: str
    held: U64
    words: U64


class Verdict(enum.IntEnum):
    """What becomes of an object's references."""

    EXPLAINED = 0  #: as many holders as references
    FREEING = 1  #: the count is 0
    LEAKED = 2  #: too few holders, and nothing else points at it
    LIKELY_LEAKED = 3  #: as its likes, but for a stray pointer
    IN_USE = 4  #: too few holders, but a task has it on its stack or in a register
    UNKNOWN_HOLDER = 5  #: too few holders, no task has it, but something points at it
    NOT_JUDGED = 6  #: its own driver's holders are not known

    @property
    def text(self) -> str:
        return self.name.lower().replace("_", " ")


@dataclasses.dataclass(frozen=True)
class Audit:
    """
    The result, as arrays of shape (n,) in the order of the objects.

    :ivar holders: kind to int64 array: references of that kind
    :ivar left: int64: references without a holder, 0 where not judged
    :ivar verdict: int8 array of :class:`Verdict`
    :ivar pointers: position of an object to what unexplained words point at it
    :ivar pages_unread: pages of kernel memory that the scan could not read,
        and that could hold a pointer
    :ivar registers_unread: CPUs whose registers are not in the dump
    :ivar changing: the target is live: it went on while it was read
    """

    holders: Dict[str, Counts]
    left: Counts
    verdict: npt.NDArray[np.int8]
    pointers: Dict[int, List[Reference]]
    pages_unread: int
    registers_unread: int
    changing: bool

    @property
    def can_prove(self) -> bool:
        """Whether all that could refute a leak was read, at one moment."""
        return not (self.pages_unread or self.registers_unread or self.changing)


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


def audit(
    index: SlabIndex,
    objects: Counted,
    judged: npt.NDArray[np.bool_],
    holders: Sequence[Holders],
    progress: Callable[[Iterable[Any], str, Optional[int]], Iterable[Any]],
) -> Audit:
    """
    Compare reference counts with holders, and look for what is left over.

    :param judged: bool array of shape (n,): all kinds of holders that are
        particular to the object's driver were walked
    :raises drgn.FaultError: if the page tables or the list of tasks cannot be read
    """
    counts: Dict[str, Counts] = {}
    for group in holders:
        held = count_by_address(group.held, objects.address)
        counts[group.kind] = counts[group.kind] + held if group.kind in counts else held
    total = np.sum(list(counts.values()), axis=0) if counts else np.zeros_like(objects.refcount)
    freeing = objects.refcount <= 0
    left = np.where(judged & ~freeing, np.maximum(objects.refcount - total, 0), 0)
    verdict = np.full(len(left), Verdict.EXPLAINED, dtype=np.int8)
    verdict[~judged] = Verdict.NOT_JUDGED
    verdict[freeing] = Verdict.FREEING
    suspects = np.flatnonzero(left)
    pointers, pages_unread, registers_unread = _unexplained(
        index, objects, suspects, holders, progress
    )
    for i in suspects.tolist():
        verdict[i] = _verdict(pointers.get(i, ()), int(left[i]))
    changing = bool(index.prog.flags & ProgramFlags.IS_LIVE)
    return Audit(counts, left, verdict, pointers, pages_unread, registers_unread, changing)


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
    unknown = np.flatnonzero(result.verdict == Verdict.UNKNOWN_HOLDER).tolist()
    places = Counter(place for i in unknown for place in {_place(r) for r in result.pointers[i]})
    for i in unknown:
        # A holder has its pointers in one place of many objects; garbage is rare.
        most = max(places[_place(reference)] for reference in result.pointers[i])
        if most * _LEAKS_FOR_A_STRAY <= leaking[kinds[i]]:
            verdict[i] = Verdict.LIKELY_LEAKED
    return dataclasses.replace(result, verdict=verdict)


def _place(reference: Reference) -> Tuple[Place, str, int]:
    """Where a pointer is, alike for all objects of a cache."""
    offset = reference.offset if reference.place == Place.SLAB_OBJECT else reference.address
    return reference.place, reference.holder, offset


def _verdict(pointers: Sequence[Reference], left: int) -> Verdict:
    if not pointers:
        return Verdict.LEAKED
    # A task that has it may be about to store it, or to drop it. It has it at
    # least once for each reference that it holds.
    with_tasks = sum(pointer.place in (Place.TASK_STACK, Place.REGISTER) for pointer in pointers)
    if with_tasks >= left:
        return Verdict.IN_USE
    return Verdict.UNKNOWN_HOLDER


def _unexplained(
    index: SlabIndex,
    objects: Counted,
    suspects: npt.NDArray[np.int64],
    holders: Sequence[Holders],
    progress: Callable[[Iterable[Any], str, Optional[int]], Iterable[Any]],
) -> Tuple[Dict[int, List[Reference]], int, int]:
    """What points at suspects and is neither a known holder nor no reference at all."""
    if not len(suspects):
        return {}, 0, 0
    prog: Program = index.prog
    memory: Memory = index.memory
    pages = page_index(prog, memory)
    # Two objects can be in one memory block; targets must not overlap.
    starts, first, block = np.unique(
        objects.container[suspects], return_index=True, return_inverse=True
    )
    sizes = objects.size_bytes[suspects[first]].astype(np.uint64)
    targets = Targets(starts, starts + sizes)
    hits, coverage = scan(memory, pages, targets, progress)
    virtual = virtual_map(prog, memory.page_map.page_size_bytes)
    references = Attribution.of(prog, index, pages, virtual).references(targets, hits)
    known = set(np.concatenate([group.words for group in holders]).tolist()) if holders else set()
    to_block: Dict[int, List[Reference]] = {}
    in_registers, registers_unread = register_references(prog, targets)
    for reference in (*references, *in_registers):
        if reference.non_reference is None and reference.address not in known:
            to_block.setdefault(reference.target, []).append(reference)
    pointers = {
        int(suspect): to_block[int(number)]
        for suspect, number in zip(suspects, block)
        if int(number) in to_block
    }
    pages_unread = coverage.pages_unread + sum(coverage.pages_absent.values())
    return pointers, pages_unread, registers_unread
