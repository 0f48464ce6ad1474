# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Who points at what: every word of kernel memory against many objects at once.

:func:`scan` is NumPy: pages in, hits out. :class:`Attribution` says what each
hit is part of: a slab object, a task's stack, a variable.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import threading
from typing import Any, Callable, Dict, FrozenSet, Iterable, Iterator, List, Optional, Set, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, Type, offsetof, sizeof
from drgn.helpers import ValidationError
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.mm import (
    compound_head,
    compound_nr,
    page_to_virt,
    virt_to_page,
)
from drgn.helpers.linux.percpu import per_cpu
from drgn.helpers.linux.sched import idle_task, task_on_cpu

from vmcore_tools.dump.memory import Memory
from vmcore_tools.dump.parallel import in_order
from vmcore_tools.kernel.kfree_rcu import kfree_rcu
from vmcore_tools.kernel.page import NOT_KERNEL, PageClass, PageIndex, direct_map_offset
from vmcore_tools.kernel.page_lists import for_each_cpu_free_page
from vmcore_tools.kernel.page_struct_map import PageStructMap, page_struct_map
from vmcore_tools.kernel.resource import kernel_ram
from vmcore_tools.kernel.slab import ObjectState, SlabIndex
from vmcore_tools.kernel.slab_layout import uses_slab
from vmcore_tools.kernel.stack_frames import Unwinder
from vmcore_tools.kernel.syscall_gap import SYSCALL_GAP_BYTES_MAX, syscall_gap
from vmcore_tools.kernel.task import (
    for_each_bounded_task,
    live_range,
    live_registers,
    stack_range,
    task_comm,
)
from vmcore_tools.kernel.virtual_map import VirtualMap
from vmcore_tools.kernel.workqueue import for_each_idle_task

U64 = npt.NDArray[np.uint64]

#: Page bytes that a thread holds at a time: less costs more calls, more no longer fits
#: in a CPU's cache.
_CHUNK_BYTES = 4 << 20
#: Runs of fewer pages are scanned together: a read and a scan of each cost more.
_LONG_RUN_PAGES = 16
#: Page frames that are looked up at a time.
_FRAMES_AT_ONCE = 1 << 20
#: Threads that read and test; each is mostly in NumPy or waits for the file.
_WORKERS_MAX = 2
#: Pieces that a thread is given at once.
_CHUNKS_TOGETHER = 32
#: Targets are first looked for by blocks of memory, of a page or more.
_BLOCK_BITS_MIN = 12
_BLOCKS_MAX = 1 << 22
_KMEMLEAK_FILE = "kmemleak.c"
#: Uses of a page that rule out a pointer of the kernel's in it.
HARMLESS = NOT_KERNEL


@dataclasses.dataclass(frozen=True)
class Targets:
    """
    What is pointed at.

    :ivar start: uint64 array of shape (n,), sorted: where each target begins
    :ivar end: uint64 array of shape (n,): behind its last byte; they do not overlap
    """

    start: U64
    end: U64

    def hits(self, words: U64) -> Tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """
        Positions of the words that point into a target, and which target.

        :param words: uint64 array of shape (m,)
        """
        if not len(self.start):
            nothing = np.zeros(0, dtype=np.int64)
            return nothing, nothing
        # Each of these steps is cheap and leaves few words to the next one. In
        # the first one kernel addresses are negative, those of slab memory least.
        signed = words.view(np.int64)
        near = (signed < self.end[-1:].view(np.int64)).nonzero()[0]
        bits, first, occupied = self._blocks
        block = signed[near]
        block >>= bits
        block -= first
        near = near[occupied.take(block, mode="clip")]
        values = words[near]
        at = np.searchsorted(self.start, values, side="right") - 1
        # Below the first target this is the last one, and the word is below its start.
        inside = (values < self.end[at]) & (values >= self.start[at])
        return near[inside], at[inside]

    @functools.cached_property
    def _blocks(self) -> Tuple[int, int, npt.NDArray[np.bool_]]:
        """
        Blocks of memory with a target in them.

        :return: their size as a power of two, the number of the first one,
            and which ones have a target: never the outermost two
        """
        start, end = self.start.view(np.int64), self.end.view(np.int64) - 1
        bits = max(_BLOCK_BITS_MIN, (int(end[-1] - start[0]) // _BLOCKS_MAX).bit_length())
        first = int(start[0] >> bits) - 1
        change = np.zeros(int(end[-1] >> bits) - first + 2, dtype=np.int64)
        np.add.at(change, (start >> bits) - first, 1)
        np.add.at(change, (end >> bits) - first + 1, -1)
        return bits, first, np.cumsum(change) > 0


@dataclasses.dataclass(frozen=True)
class Hits:
    """
    Words that point into targets.

    :ivar physical: uint64 array of shape (m,): physical address of each word
    :ivar value: uint64 array of shape (m,): the word
    :ivar target: int64 array of shape (m,): which target
    """

    physical: U64
    value: U64
    target: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class ScanCoverage:
    """
    What a scan read.

    :ivar pages_read: pages of kernel memory whose every word was tested
    :ivar pages_unread: pages that are promised by the dump but damaged
    :ivar pages_skipped: present pages that hold no kernel data
    :ivar pages_absent: pages that are not in the dump and could hold a
        pointer, by what they are used for
    """

    pages_read: int
    pages_unread: int
    pages_skipped: int
    pages_absent: Dict[PageClass, int]


def scan(
    memory: Memory,
    pages: PageIndex,
    targets: Targets,
    progress: Callable[[Iterable[Any], str, Optional[int]], Iterable[Any]],
) -> Tuple[Hits, ScanCoverage]:
    """
    Test every aligned word of every kernel page in the dump.

    :param progress: shows how far it is
    """
    found: List[Hits] = []
    pages_read = 0
    runs = kernel_runs(memory, pages)
    kernel_pages = int((runs[:, 1] - runs[:, 0]).sum())
    for part, read in scan_runs(memory, runs, targets, progress):
        pages_read += read
        found.append(part)
    nothing = np.zeros(0, dtype=np.uint64)
    hits = Hits(
        np.concatenate([nothing, *(part.physical for part in found)]),
        np.concatenate([nothing, *(part.value for part in found)]),
        np.concatenate([nothing.astype(np.int64), *(part.target for part in found)]),
    )
    absent = absent_kernel_pages(memory, pages)
    skipped = memory.page_map.present_pages - kernel_pages
    return hits, ScanCoverage(pages_read, kernel_pages - pages_read, skipped, absent)


def scan_runs(
    memory: Memory,
    runs: U64,
    targets: Targets,
    progress: Callable[[Iterable[Any], str, Optional[int]], Iterable[Any]],
) -> Iterator[Tuple[Hits, int]]:
    """
    Test every aligned word of some page frames, piece by piece.

    :param runs: as :func:`kernel_runs` has them
    :return: Iterator of the hits in a piece, and how many of its pages were read
    """
    pages_max = _CHUNK_BYTES // memory.page_map.page_size_bytes
    chunks = -(-int((runs[:, 1] - runs[:, 0]).sum()) // pages_max)  # or a few more
    local = threading.local()

    def test(pfns: U64) -> Tuple[Hits, int]:
        if not hasattr(local, "buffer"):
            shape = pages_max, memory.page_map.page_size_bytes
            local.buffer = np.empty(shape, dtype=np.uint8)
        data, read = memory.read_pages(pfns, local.buffer)
        words = data.reshape(-1).view(np.uint64)
        position, target = targets.hits(words)
        page, word = np.divmod(position, data.shape[1] // 8)
        physical = pfns[page] * np.uint64(data.shape[1]) + word.astype(np.uint64) * np.uint64(8)
        return Hits(physical, words[position], target), int(np.count_nonzero(read))

    workers = _WORKERS_MAX if memory.reads_in_parallel else 1
    tested = in_order(test, _chunks(runs, pages_max), workers, _CHUNKS_TOGETHER)
    yield from progress(tested, "scanning for references", chunks)


def kernel_runs(memory: Memory, pages: PageIndex) -> U64:
    """Runs of present page frames that can hold kernel data: array of shape (n, 2)."""
    is_kernel = np.ones(256, dtype=bool)
    is_kernel[list(NOT_KERNEL)] = False
    runs = memory.page_map.runs
    parts = [np.zeros((0, 2), dtype=np.int64)]
    # Windows that begin where the dump has something: there can be wide gaps.
    first, last = (int(runs[0, 0]), int(runs[-1, 1])) if len(runs) else (0, 0)
    while first < last:
        end = min(last, first + _FRAMES_AT_ONCE)
        kernel = is_kernel[pages.kinds_between(first, end)]
        kernel &= memory.page_map.present_between(first, end)
        edges = np.flatnonzero(np.diff(kernel, prepend=False, append=False))
        parts.append(first + edges.reshape(-1, 2))
        next_run = int(np.searchsorted(runs[:, 1], end, side="right"))
        first = max(end, int(runs[next_run, 0])) if next_run < len(runs) else last
    return np.concatenate(parts).astype(np.uint64)


def _chunks(runs: U64, pages_max: int) -> Iterator[U64]:
    """
    The page frames of runs, in sorted arrays of at most *pages_max*.

    Long runs come by themselves, since one read takes them; short ones together.
    """
    short: List[U64] = []
    waiting = 0
    for start, end in runs.tolist():
        for first in range(start, end, pages_max):
            pfns = np.arange(first, min(end, first + pages_max), dtype=np.uint64)
            if len(pfns) >= _LONG_RUN_PAGES:
                yield pfns
                continue
            if waiting + len(pfns) > pages_max:
                yield np.concatenate(short)
                short, waiting = [], 0
            short.append(pfns)
            waiting += len(pfns)
    if short:
        yield np.concatenate(short)


def absent_kernel_pages(memory: Memory, pages: PageIndex) -> Dict[PageClass, int]:
    """
    How many pages that could hold a pointer are not in the dump, by their use.

    An absent page is harmless if its own ``struct page`` says that it is free
    or user space's, if it is a hole in RAM, or a crash kernel's; or if
    makedumpfile left it out although the kernel uses it, for it is all zeros.
    """
    page_size = memory.page_map.page_size_bytes
    absent: Dict[PageClass, int] = {}
    try:
        ranges = kernel_ram(memory.prog)
    except (FaultError, ValidationError):
        # All that has a page structure is more than that, but no less.
        ranges = [(start * page_size, end * page_size) for start, end in pages.ranges.tolist()]
    for start, end in ranges:
        first, behind = -(-start // page_size), end // page_size
        described = max(first, min(behind, pages.end))
        if described < behind:
            # A damaged range of RAM can be as large as a number can be.
            absent[PageClass.UNREAD] = absent.get(PageClass.UNREAD, 0) + behind - described
        for at in range(first, described, _FRAMES_AT_ONCE):
            last = min(described, at + _FRAMES_AT_ONCE)
            if memory.page_map.has_run(at, last):
                continue
            kind_of = pages.kinds_between(at, last)
            pfns = np.arange(at, last, dtype=np.uint64)
            zeros = memory.page_map.left_out(pfns) & (kind_of != PageClass.UNREAD)
            missing = ~memory.page_map.present(pfns) & ~zeros
            for kind, count in enumerate(np.bincount(kind_of[missing]).tolist()):
                if count and kind not in HARMLESS:
                    absent[PageClass(kind)] = absent.get(PageClass(kind), 0) + count
    return absent


#: Why a word that points into an object is no reference to it; None if it may be one.
NON_REFERENCES: Tuple[Optional[str], ...] = (
    None,
    "it is the allocator's own",
    "no one holds the page that it describes",
    "it is a page table's entry",
    "the page is free",
    "it is a stack that no task has",
    "it is below the stack pointer",
    "kmemleak knows every object",
    "kfree_rcu() has it only to free it",
    "it is the stack of an idle kworker",
    "it is where a system call's stack begins at random, and nobody writes",
)
_ALLOCATOR, _PAGE_STRUCT, _PAGE_TABLE, _FREE_PAGE, _FREE_STACK, _STALE = range(1, 7)
_KMEMLEAK, _KFREE_RCU, _IDLE_WORKER, _SYSCALL_GAP = range(7, 11)


class Place(enum.Enum):
    """What kind of memory a reference is in."""

    SLAB_OBJECT = "slab object"
    ALLOCATOR = "slab allocator"
    TASK_STACK = "task stack"
    REGISTER = "register"
    PER_CPU = "per-CPU variable"
    IMAGE = "kernel data"
    MODULE = "module data"
    VMALLOC = "vmalloc area"
    PAGE_TABLE = "page table"
    PAGES = "page allocation"
    PAGE_STRUCT = "page structure"


@dataclasses.dataclass(frozen=True)
class Reference:
    """
    A word that points into a target.

    :ivar target: which target
    :ivar value: the word
    :ivar address: where the kernel has the word; 0 for a register
    :ivar place: the kind of memory
    :ivar holder: what it is part of: a cache, a symbol, a task's comm
    :ivar container: address of the object, stack or area around it
    :ivar offset: from *container* or the symbol
    :ivar non_reference: why it is known to be no reference; None if it may be one
    """

    target: int
    value: int
    address: int
    place: Place
    holder: str
    container: int
    offset: int
    non_reference: Optional[str]


@dataclasses.dataclass(frozen=True)
class Attribution:
    """
    What attributing hits needs to know of a kernel.

    :ivar stacks: address of a kernel stack to its ``struct task_struct *``,
        those of the idle tasks included
    :ivar stack_bytes: THREAD_SIZE, which stacks are aligned to
    :ivar free_stacks: addresses of stacks that are kept for new tasks
    :ivar page_structs: where the page structures themselves are
    :ivar saved_registers: offsets ``[start, end)`` of ``thread`` in ``task_struct``
    :ivar kmemleak_words: position of kmemleak's caches in the index to the
        offsets of the words with which their objects name other objects
    """

    index: SlabIndex
    pages: PageIndex
    virtual: VirtualMap
    stacks: Dict[int, Object]
    stack_bytes: int
    free_stacks: FrozenSet[int]
    page_structs: PageStructMap
    saved_registers: Tuple[int, int]
    kmemleak_words: Dict[int, Tuple[int, ...]]

    @staticmethod
    def of(prog: Program, index: SlabIndex, pages: PageIndex, virtual: VirtualMap) -> Attribution:
        """
        :raises drgn.FaultError: if the list of tasks cannot be read
        """
        task_type = prog.type("struct task_struct")
        thread = offsetof(task_type, "thread")
        return Attribution(
            index,
            pages,
            virtual,
            {stack_range(task)[0]: task for task in _for_each_task_and_idle(prog)},
            prog["THREAD_SIZE"].value_(),
            frozenset(_free_stacks(prog)),
            page_struct_map(prog, index.memory.page_map.page_size_bytes),
            (thread, thread + sizeof(task_type.member("thread").type)),
            _kmemleak_words(prog, index),
        )

    def references(self, targets: Targets, hits: Hits) -> List[Reference]:
        """Say what each hit is part of, in the order of the hits."""
        addresses = hits.physical + np.uint64(direct_map_offset(self.index.prog))
        page_size = self.index.memory.page_map.page_size_bytes
        kinds = self.pages.kind_of(hits.physical // np.uint64(page_size))
        rows = self.index.find(addresses)
        states = self.index.object_states(addresses)
        page_struct, in_struct, _ = self.page_structs.find(hits.physical)
        reasons = self.non_references(hits.physical)
        result = []
        for i in range(len(addresses)):
            word = _Word(int(hits.target[i]), int(hits.value[i]), int(addresses[i]))
            reason = NON_REFERENCES[reasons[i]]
            if reasons[i] == _ALLOCATOR:
                result.append(
                    word.reference(Place.ALLOCATOR, "lists of objects", word.address, 0, reason)
                )
                continue
            if page_struct[i]:
                word = dataclasses.replace(word, address=int(page_struct[i] + in_struct[i]))
                result.append(
                    word.reference(
                        Place.PAGE_STRUCT,
                        "struct page",
                        int(page_struct[i]),
                        int(in_struct[i]),
                        reason,
                    )
                )
                continue
            if rows[i] >= 0:
                result.append(self._in_slab(targets, word, int(rows[i]), int(states[i])))
                continue
            address = self.virtual.address_of(int(hits.physical[i]))
            kind = PageClass(int(kinds[i]))
            low = (address or word.address) // self.stack_bytes * self.stack_bytes
            if low in self.stacks:
                word = dataclasses.replace(word, address=address or word.address)
                result.append(self._on_stack(word, low, reason))
            elif address is None:
                result.append(self._in_direct_map(word, kind, reason))
            else:
                result.append(self._mapped(word, address, reason))
        return result

    def non_references(self, physical: U64) -> npt.NDArray[np.int64]:
        """
        Why words that are in no slab object are known to be no references.

        :param physical: uint64 array of shape (n,): their physical addresses
        :return: int64 array of shape (n,): position in :data:`NON_REFERENCES`,
            0 for a word that may be one
        """
        result = np.zeros(len(physical), dtype=np.int64)
        page_size = self.index.memory.page_map.page_size_bytes
        in_direct_map = physical + np.uint64(direct_map_offset(self.index.prog))
        mapped = self.virtual.addresses_of(physical)
        addresses = np.where(mapped != 0, mapped, in_direct_map)

        stacks = addresses // np.uint64(self.stack_bytes) * np.uint64(self.stack_bytes)
        on_stack = np.flatnonzero(np.isin(stacks, self._stack_starts))
        some, which = np.unique(stacks[on_stack], return_inverse=True)
        live = np.array([self._live_start(stack) for stack in some.tolist()], dtype=np.uint64)
        result[on_stack[np.isin(stacks[on_stack], self._idle_worker_stacks)]] = _IDLE_WORKER
        result[on_stack[in_ranges(addresses[on_stack], self._gaps(addresses[on_stack]))]] = (
            _SYSCALL_GAP
        )
        result[on_stack[addresses[on_stack] < live[which]]] = _STALE
        free = np.array(sorted(self.free_stacks), dtype=np.uint64)
        result[np.isin(stacks, free)] = _FREE_STACK
        pfns = physical // np.uint64(page_size)
        kinds = self.pages.kind_of(pfns)
        result[kinds == PageClass.PAGE_TABLE] = _PAGE_TABLE
        idle = np.flatnonzero(kinds == PageClass.IDLE)
        if len(idle):
            on_list = [pfn in self._cpu_free_pages for pfn in pfns[idle].tolist()]
            result[idle[np.array(on_list, dtype=bool)]] = _FREE_PAGE
        page_struct, in_struct, described = self.page_structs.find(physical)
        unused = self.pages.kind_of(described) == PageClass.FREE
        result[(page_struct != 0) & unused] = _PAGE_STRUCT
        if self._first_object is not None:
            of_slab = self.pages.kind_of(described) == PageClass.SLAB
            result[(page_struct != 0) & of_slab & (in_struct == self._first_object)] = _ALLOCATOR
        result[self._in_kmemleak_pool(addresses)] = _KMEMLEAK
        own = kfree_rcu(self.index.prog, page_size).own
        result[in_ranges(addresses, own) | in_ranges(in_direct_map, own)] = _KFREE_RCU
        result[in_ranges(in_direct_map, self.index.free_object_arrays)] = _ALLOCATOR
        return result

    def _gaps(self, addresses: U64) -> U64:
        """
        Where nobody writes, in the stacks of tasks in system calls.

        :param addresses: uint64 array: what is looked at of these stacks
        :return: sorted uint64 array of shape (n, 2)
        """
        size = np.uint64(self.stack_bytes)
        ends = addresses // size * size + size
        near = np.unique(ends[ends - addresses <= np.uint64(SYSCALL_GAP_BYTES_MAX)] - size)
        gaps = []
        for stack in near.tolist():
            task = self.stacks[stack]
            # One that cannot be unwound has none that is known.
            with contextlib.suppress(FaultError, LookupError, ValueError):
                if not task_on_cpu(task):
                    gaps.append(syscall_gap(self._unwinder.trace(task).frames))
        found = sorted(gap for gap in gaps if gap is not None)
        return np.array(found, dtype=np.uint64).reshape(-1, 2)

    @functools.cached_property
    def _unwinder(self) -> Unwinder:
        return Unwinder(self.index.prog)

    @functools.cached_property
    def _first_object(self) -> Optional[int]:
        """Where SLAB has the address of a slab's first object, in its page structure."""
        if not uses_slab(self.index.prog):
            return None
        try:
            type_ = self.index.prog.type("struct slab")
        except LookupError:
            type_ = self.index.prog.type("struct page")
        return int(offsetof(type_, "s_mem"))

    @functools.cached_property
    def _waiting(self) -> FrozenSet[int]:
        """Objects that hold nothing any more, but are not free yet."""
        page_size = self.index.memory.page_map.page_size_bytes
        return frozenset(kfree_rcu(self.index.prog, page_size).waiting.tolist())

    @functools.cached_property
    def _idle_worker_stacks(self) -> U64:
        """
        Stacks of workers without a work: what is left in them is of an earlier one.

        The frames of ``worker_thread()`` are in use for as long as the worker
        lives, and not each of their slots is written to.
        """
        stacks: Set[int] = set()
        # Where a list breaks off, the other workers are taken for busy ones.
        with contextlib.suppress(FaultError, ValidationError, LookupError):
            for task in for_each_idle_task(self.index.prog):
                stacks.add(stack_range(task)[0])
        return np.array(sorted(stacks), dtype=np.uint64)

    @functools.cached_property
    def _stack_starts(self) -> U64:
        return np.array(sorted(self.stacks), dtype=np.uint64)

    @functools.cached_property
    def _live_starts(self) -> Dict[int, int]:
        return {}

    def _live_start(self, stack: int) -> int:
        """Where the part of a task's stack begins that is in use."""
        if stack not in self._live_starts:
            self._live_starts[stack] = live_range(self.stacks[stack])[0]
        return self._live_starts[stack]

    def _in_kmemleak_pool(self, addresses: U64) -> npt.NDArray[np.bool_]:
        """Whether words name an object in one of kmemleak's own that are a variable."""
        try:
            # "mm: kmemleak: use the memory pool for early allocations" of v5.4.
            pool = self.index.prog.variable("mem_pool", _KMEMLEAK_FILE)
        except LookupError:
            return np.zeros(len(addresses), dtype=bool)
        at = addresses - np.uint64(pool.address_ or 0)
        size = np.uint64(sizeof(pool.type_.type))
        offsets = _object_words(pool.type_.type)
        result: npt.NDArray[np.bool_] = (at < np.uint64(sizeof(pool))) & np.isin(at % size, offsets)
        return result

    def _in_slab(self, targets: Targets, word: _Word, row: int, state: int) -> Reference:
        number = int(self.index.cache[row])
        cache = self.index.caches[number]
        first = int(self.index.address[row]) + cache.red_left_pad_bytes
        container = first + (word.address - first) // cache.size_bytes * cache.size_bytes
        offset = word.address - container
        reason = None
        if state == ObjectState.FREE:
            reason = "the slab object is free"
        elif targets.start[word.target] <= word.address < targets.end[word.target]:
            reason = "the object points to itself"
        elif offset >= cache.object_size_bytes:
            reason = "it is the allocator's own data behind the object"
        elif offset - offset % 8 in self.kmemleak_words.get(number, ()):
            reason = NON_REFERENCES[_KMEMLEAK]
        elif container in self._waiting:
            reason = "the slab object waits to be freed (kfree_rcu)"
        place = Place.SLAB_OBJECT
        if (
            cache.kind == "task_struct"
            and self.saved_registers[0] <= offset < (self.saved_registers[1])
        ):
            place = Place.REGISTER  # of a task that is on no CPU
        return word.reference(place, cache.name, container, offset, reason)

    def _in_direct_map(self, word: _Word, kind: PageClass, reason: Optional[str]) -> Reference:
        variable = self.virtual.per_cpu_at(word.address)
        if variable is not None:
            name = variable.name or "dynamic per-CPU memory"
            return word.reference(
                Place.PER_CPU, f"{name}, CPU {variable.cpu}", word.address - variable.offset,
                variable.offset, reason,
            )  # fmt: skip
        container, pages = self._allocation(word.address)
        if kind == PageClass.SLAB and self._behind_objects(word.address):
            reason = "it is the unused rest of a slab"
        place = Place.PAGE_TABLE if kind == PageClass.PAGE_TABLE else Place.PAGES
        holder = kind.name.lower() + (f", {pages} pages" if pages > 1 else "")
        return word.reference(place, holder, container, word.address - container, reason)

    def _allocation(self, address: int) -> Tuple[int, int]:
        """
        Start and number of pages of the compound page around an address.

        Large kmalloc() allocations are such; of other pages nothing tells how
        many were allocated at once.
        """
        try:
            head = compound_head(virt_to_page(self.index.prog, address))
            return page_to_virt(head).value_(), compound_nr(head).value_()
        except FaultError:
            page_size = self.index.memory.page_map.page_size_bytes
            return address // page_size * page_size, 1

    @functools.cached_property
    def _cpu_free_pages(self) -> FrozenSet[int]:
        pages: Set[int] = set()
        # Where a list breaks off, the other pages are taken for used ones.
        with contextlib.suppress(FaultError, ValidationError, LookupError):
            for pfn in for_each_cpu_free_page(self.index.prog):
                pages.add(pfn)
        return frozenset(pages)

    def _behind_objects(self, address: int) -> bool:
        """Whether an address that is in no slab object is behind the last one of a slab."""
        row = int(np.searchsorted(self.index.address, np.uint64(address), side="right")) - 1
        if row < 0:
            return False
        order = self.index.caches[self.index.cache[row]].orders.get(int(self.index.objects[row]))
        page_size = self.index.memory.page_map.page_size_bytes
        start = int(self.index.address[row]) // page_size * page_size
        return order is not None and address < start + (page_size << order)

    def _mapped(self, word: _Word, address: int, reason: Optional[str]) -> Reference:
        """The word is in the kernel image or in a vmalloc area."""
        word = dataclasses.replace(word, address=address)
        prog = self.index.prog
        area = self.virtual.area_at(address)
        try:
            symbol = prog.symbol(address)
        except LookupError:
            symbol = None
        try:
            in_image = prog.module(address) == prog.main_module()
        except LookupError:
            in_image = area is None
        if symbol is not None:
            place = Place.IMAGE if in_image else Place.MODULE
            return word.reference(
                place, symbol.name, symbol.address, address - symbol.address, reason
            )
        if area is not None:
            return word.reference(
                Place.VMALLOC, _caller(prog, area.caller), area.start, address - area.start, reason
            )
        return word.reference(Place.IMAGE, "kernel image", 0, address, reason)

    def _on_stack(self, word: _Word, low: int, reason: Optional[str]) -> Reference:
        task = self.stacks[low]
        return word.reference(
            Place.TASK_STACK,
            f"{task_comm(task)} ({task.pid.value_()})",
            low,
            word.address - low,
            reason,
        )


def in_ranges(addresses: U64, ranges: U64) -> npt.NDArray[np.bool_]:
    """Which addresses are in one of sorted ranges ``[start, end)``: an array of shape (n, 2)."""
    if not len(ranges):
        return np.zeros(len(addresses), dtype=bool)
    at = np.searchsorted(ranges[:, 0], addresses, side="right") - 1
    result: npt.NDArray[np.bool_] = (at >= 0) & (addresses < ranges[np.maximum(at, 0), 1])
    return result


@dataclasses.dataclass(frozen=True)
class _Word:
    target: int
    value: int
    address: int

    def reference(
        self, place: Place, holder: str, container: int, offset: int, reason: Optional[str]
    ) -> Reference:
        return Reference(
            self.target, self.value, self.address, place, holder, container, offset, reason
        )


def _caller(prog: Program, address: int) -> str:
    try:
        return f"allocated by {prog.symbol(address).name}"
    except LookupError:
        return "vmalloc area"


def _kmemleak_words(prog: Program, index: SlabIndex) -> Dict[int, Tuple[int, ...]]:
    """What kmemleak's objects name others with; what else points to these is a reference."""
    words = {}
    for cache, type_name in (
        ("object_cache", "struct kmemleak_object"),
        ("scan_area_cache", "struct kmemleak_scan_area"),
    ):
        try:
            number = index.cache_number(prog.variable(cache, _KMEMLEAK_FILE).read_())
            offsets = _object_words(prog.type(type_name))
        except LookupError:
            continue
        if number is not None:
            words[number] = offsets
    return words


def _object_words(type_: Type) -> Tuple[int, ...]:
    """
    Offsets of the words of a record of kmemleak's that are no references.

    They are the object's address, and the unused rest of its trace, which was not cleared.
    """
    words: List[int] = []
    for name in ("pointer", "excess_ref", "start", "trace"):
        if type_.has_member(name):
            offset = offsetof(type_, name)
            words += range(offset, offset + sizeof(type_.member(name).type), 8)
    return tuple(words)


def _for_each_task_and_idle(prog: Program) -> Iterator[Object]:
    """All tasks; the idle tasks, one for each CPU, have no PID."""
    yield from for_each_bounded_task(prog)
    for cpu in for_each_possible_cpu(prog):
        yield idle_task(prog, cpu)


def _free_stacks(prog: Program) -> Iterator[int]:
    """The stacks of ``cached_stacks`` of kernel/fork.c, one array for each CPU."""
    try:
        cached = prog["cached_stacks"]
    except KeyError:
        return  # without CONFIG_VMAP_STACK
    for cpu in for_each_possible_cpu(prog):
        for vm in per_cpu(cached, cpu):
            if vm:
                yield vm.addr.value_()


def register_references(prog: Program, targets: Targets) -> Tuple[List[Reference], int]:
    """
    The references in registers of CPUs, as the dump saved them.

    :return: the references, and the number of CPUs whose registers it does not have
    :raises drgn.FaultError: if a task cannot be read
    """
    references: List[Reference] = []
    unread = 0
    for task in _for_each_task_and_idle(prog):
        if not task_on_cpu(task):
            continue
        registers = live_registers(task)
        if registers is None:
            unread += 1
            continue
        names = list(registers)
        values = np.array([registers[name] for name in names], dtype=np.uint64)
        position, target = targets.hits(values)
        for at, which in zip(position.tolist(), target.tolist()):
            references.append(
                Reference(
                    target=which,
                    value=int(values[at]),
                    address=0,
                    place=Place.REGISTER,
                    holder=f"{names[at]} of {task_comm(task)} ({task.pid.value_()})",
                    container=task.value_(),
                    offset=0,
                    non_reference=None,
                )
            )
    return references, unread
