# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Stacks that the kernel has recorded for objects and pages.

A million records have a few hundred stacks: each one is looked up once.
"""

from __future__ import annotations

import bisect
import re
from typing import Dict, List, Optional, Sequence, Set, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, reinterpret

_CACHE_KEY = "vmcore_tools.kernel.recorded_stacks.functions"
#: CONFIG_STACKDEPOT_MAX_FRAMES cannot be set higher.
_FRAMES_MAX = 256
#: lib/stackdepot.c: the same since v4.6, as STACK_ALLOC_ALIGN at first.
_DEPOT_STACK_ALIGN = 4
#: An odd number with which the words of a stack are mixed into one.
_MIX = np.uint64(0x9E3779B97F4A7C15)

#: What is between the code that wanted memory, or gave it back, and the record.
_ALLOCATOR = re.compile(
    r"_*(kmem_cache_|kmalloc|kzalloc|kcalloc|krealloc|kvmalloc|kvzalloc|kvrealloc|kmemdup|kstrdup"
    r"|kasprintf|kvasprintf|do_kmalloc|slab_|do_slab_free|slub_|set_track|kmemleak_|stack_trace_save"
    r"|vmalloc|vzalloc|alloc_pages|alloc_percpu|pcpu_alloc|get_free_pages|get_zeroed_page"
    r"|get_page_from_freelist|allocate_slab|alloc_slab_page|new_slab|kfree|kvfree|vfree).*"
)

Ints = npt.NDArray[np.int64]


def function_behind_allocator(prog: Program, stack: Sequence[int]) -> Optional[str]:
    """
    The function that wanted memory, or gave it back.

    :param stack: return addresses, the innermost first
    :return: None if no function is known but the allocator's own
    """
    functions: _Functions = prog.cache.setdefault(_CACHE_KEY, _Functions(prog))
    for address in stack:
        # A return address can be behind the function's last byte.
        name = functions.name(address - 1)
        if name is not None and not _ALLOCATOR.fullmatch(name):
            return name
    return None


class _Functions:
    """The functions at addresses, each looked up once: drgn takes a millisecond or more."""

    def __init__(self, prog: Program) -> None:
        self._prog = prog
        self._starts: List[int] = []
        self._found: Dict[int, Tuple[int, str]] = {}
        self._unknown: Set[int] = set()

    def name(self, address: int) -> Optional[str]:
        """Without the compiler's suffix (``foo.isra.0``)."""
        at = bisect.bisect_right(self._starts, address) - 1
        if at >= 0:
            end, name = self._found[self._starts[at]]
            if address < end:
                return name
        if address in self._unknown:
            return None
        try:
            symbol = self._prog.symbol(address)
        except LookupError:
            self._unknown.add(address)
            return None
        name = str(symbol.name).partition(".")[0]
        if symbol.address not in self._found:
            bisect.insort(self._starts, symbol.address)
        self._found[symbol.address] = (symbol.address + symbol.size, name)
        return name


class RecordedStacks:
    """
    The distinct stacks of many records, which are added by and by.

    Positions are those in :attr:`stacks`; -1 is a record without a stack, or
    with one that cannot be read.
    """

    def __init__(self, prog: Program) -> None:
        self._prog = prog
        self._positions: Dict[Tuple[int, ...], int] = {}
        self._handles: Dict[int, int] = {0: -1}

    @property
    def stacks(self) -> Tuple[Tuple[int, ...], ...]:
        """Return addresses, the innermost first."""
        return tuple(self._positions)

    def add_arrays(self, words: npt.NDArray[np.uint64]) -> Ints:
        """
        Add stacks that are arrays of return addresses.

        :param words: uint64 array of shape (n, k), innermost first; what stands
            behind the first 0 is left from an older record and does not count
        :return: int64 array of shape (n,) of positions
        """
        ended = np.logical_or.accumulate(words == 0, axis=1)
        words = np.where(ended, np.uint64(0), words)
        first, inverse = _distinct(words)
        stacks = [tuple(address for address in words[i].tolist() if address) for i in first]
        known = np.array([self._position(stack) for stack in stacks], dtype=np.int64)
        return known[inverse]

    def add_handles(self, handles: npt.NDArray[np.uint32]) -> Ints:
        """
        Add stacks of the stack depot.

        :param handles: uint32 array of shape (n,) of ``depot_stack_handle_t``
        :return: int64 array of shape (n,) of positions
        """
        values, inverse = np.unique(handles, return_inverse=True)
        for handle in values.tolist():
            if handle not in self._handles:
                stack = depot_stack(self._prog, handle)
                self._handles[handle] = self._position(stack or ())
        known = np.array([self._handles[handle] for handle in values.tolist()], dtype=np.int64)
        return known[inverse.reshape(-1)]

    def _position(self, stack: Tuple[int, ...]) -> int:
        return self._positions.setdefault(stack, len(self._positions)) if stack else -1


def _distinct(words: npt.NDArray[np.uint64]) -> Tuple[Ints, Ints]:
    """The rows of an array: where each distinct one comes first, and which one each row is."""
    mixed = np.zeros(len(words), dtype=np.uint64)
    for column in range(words.shape[1]):
        mixed = (mixed ^ words[:, column]) * _MIX
        mixed ^= mixed >> np.uint64(29)
    _, first, inverse = np.unique(mixed, return_index=True, return_inverse=True)
    if not np.array_equal(words[first][inverse], words):
        # Two stacks mix to the same word: compare them as a whole.
        _, first, inverse = np.unique(words, axis=0, return_index=True, return_inverse=True)
    return first, inverse.reshape(-1)


def depot_stack(prog: Program, handle: int) -> Optional[Tuple[int, ...]]:
    """
    The return addresses of a handle, as ``stack_depot_fetch()`` of lib/stackdepot.c has them.

    drgn's helper of that name believes the size that it reads: in a damaged
    dump it would go on for 4 billion frames.

    :param handle: ``depot_stack_handle_t``
    :return: None if the depot has no such stack, or it is not in the dump
    """
    parts = reinterpret("union handle_parts", Object(prog, "depot_stack_handle_t", handle))
    try:
        record = _depot_record(prog, parts)
        if record is None:
            return None
        # The record knows its own handle, but for what users keep in its extra bits.
        if _place(record.handle) != _place(parts):
            return None
        # From v6.8 on, what is back on the depot's free list has links for entries.
        if hasattr(record, "count") and not record.count.refs.counter.value_():
            return None
        size = record.size.value_()
        if not 0 < size <= _FRAMES_MAX:
            return None
        data = prog.read(record.entries.address_, size * 8)
    except FaultError:
        return None
    return tuple(np.frombuffer(data, dtype=np.uint64).tolist())


def _depot_record(prog: Program, parts: Object) -> Optional[Object]:
    """``struct stack_record``, or None for a handle of no pool."""
    try:
        # 961c949b012f ("lib/stackdepot: rename slab to pool") in v6.3.
        pools = prog["stack_pools"]
    except KeyError:
        pools = prog["stack_slabs"]
    index, offset = _place(parts)
    try:
        pool = pools[index].value_() if index >= 0 else 0
    except IndexError:
        return None
    if not pool:
        return None
    return Object(prog, "struct stack_record", address=pool + (offset << _DEPOT_STACK_ALIGN))


def _place(parts: Object) -> Tuple[int, int]:
    """Pool and offset of a ``union handle_parts``."""
    offset = int(parts.offset.value_())
    # a6c1d9cb9a68 ("stackdepot: rename pool_index to pool_index_plus_1") in v6.9.
    if hasattr(parts, "pool_index_plus_1"):
        return int(parts.pool_index_plus_1.value_()) - 1, offset
    if hasattr(parts, "pool_index"):
        return int(parts.pool_index.value_()), offset
    return int(parts.slabindex.value_()), offset
