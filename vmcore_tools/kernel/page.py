# SPDX-License-Identifier: LGPL-2.1-or-later
"""All page structures, in bulk: what each page frame is used for."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import re
from typing import Any, Iterator, List, Optional, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Program, sizeof
from drgn.helpers.linux.mm import for_each_valid_page_range, pfn_to_virt

from vmcore_tools.dump.memory import Memory
from vmcore_tools.kernel.layout import field_dtype, read_structs
from vmcore_tools.kernel.vmstat import page_counter

_CACHE_KEY = "vmcore_tools.kernel.page.index"
#: Free blocks of this order are looked into no further; no order is larger than the other.
_LARGE_ORDER = 10
_ORDERS_MAX = 31
#: ``struct page`` bytes that are held at a time: what fits in a CPU's cache is faster.
_CHUNK_BYTES = 2 << 20
# include/linux/page-flags.h up to v6.11: a page has types if these bits are
# set in page_type, and it has a type if that type's bit is clear. Macros up to
# v6.10; "mm: convert page type macros to enum" of v6.11 came with other values.
_PAGE_TYPE_BASE = 0xF0000000
_PAGE_TYPE_NONE = 0xFFFFFFFF
# PG_table: 0x400 up to v5.10, where 0x200 was PG_kmemcg, and 0x200 after it.
_PG_TABLE_VALUES = (0x200, 0x400)
_MAPCOUNT = "_mapcount.counter"


class PageClass(enum.IntEnum):
    """What a page frame is used for, as far as its ``struct page`` tells."""

    UNREAD = 0  #: the ``struct page`` is not in the dump
    FREE = 1  #: in the buddy allocator
    #: No reference of its own: on a CPU's free list, or behind the first page
    #: of an allocation that is no compound page, and then full of data.
    IDLE = 2
    SLAB = 3
    ANONYMOUS = 4
    PAGE_CACHE = 5  #: of a file, shared memory included
    PAGE_TABLE = 6
    RESERVED = 7  #: the kernel image, early allocations, holes
    OFFLINE = 8  #: given back to a hypervisor
    ALLOCATED = 9  #: anything else that the kernel allocated

    @property
    def text(self) -> str:
        return self.name.lower().replace("_", " ")


#: Pages whose contents belong to user space or to nobody: no pointer of the
#: kernel's own is in them.
NOT_KERNEL = (PageClass.FREE, PageClass.ANONYMOUS, PageClass.PAGE_CACHE, PageClass.OFFLINE)


@dataclasses.dataclass(frozen=True)
class PageStructs:
    """
    Page structures of consecutive page frames.

    :ivar first_pfn: the page frame of the first one
    :ivar address: of the first one, ``struct page *``
    :ivar data: uint8 array of shape (n, ``sizeof(struct page)``)
    :ivar read: bool array of shape (n,): which ones were in the dump
    """

    first_pfn: int
    address: int
    data: npt.NDArray[np.uint8]
    read: npt.NDArray[np.bool_]


def page_structs(prog: Program, memory: Memory, types: PageTypes) -> Iterator[PageStructs]:
    """
    Read the ``struct page`` of every valid page frame.

    In the largest free blocks, only that of the first one: zeros stand for
    the others, which nobody uses and which are most of an idle machine's.

    :raises drgn.FaultError: if the memory map's own structures cannot be read
    :raises LookupError: for a memory model that drgn does not know
    """
    struct_size = types.fields.itemsize
    pages_max = _CHUNK_BYTES // struct_size
    for start, end, mem_map in for_each_valid_page_range(prog):
        base = mem_map.value_()
        for first in range(start, end, pages_max):
            address = (base + first * struct_size) & 0xFFFFFFFFFFFFFFFF
            yield _read_structs(memory, types, first, address, min(end - first, pages_max))


def _read_structs(
    memory: Memory, types: PageTypes, first_pfn: int, address: int, count: int
) -> PageStructs:
    struct_size = types.fields.itemsize
    page_size = memory.page_map.page_size_bytes
    # The array's pages are what can be absent: read whole ones, then cut.
    low = address // page_size * page_size
    high = -(-(address + count * struct_size) // page_size) * page_size
    raw = np.zeros(high - low, dtype=np.uint8)
    pages_read = np.ones((high - low) // page_size, dtype=bool)
    for start, end in _wanted_runs(memory, types, first_pfn, address, low, high):
        data, read = memory.read_virtual(start, end - start)
        raw[start - low : end - low] = data
        pages_read[(start - low) // page_size : (end - low) // page_size] = read
    offset = address - low
    data = raw[offset : offset + count * struct_size].reshape(count, struct_size)
    if not offset and page_size % struct_size == 0:
        read = np.repeat(pages_read, page_size // struct_size)[:count]
        return PageStructs(first_pfn, address, data, read)
    starts = (offset + np.arange(count) * struct_size) // page_size
    ends = (offset + np.arange(count) * struct_size + struct_size - 1) // page_size
    return PageStructs(first_pfn, address, data, pages_read[starts] & pages_read[ends])


def _wanted_runs(
    memory: Memory, types: PageTypes, first_pfn: int, address: int, low: int, high: int
) -> List[Tuple[int, int]]:
    """The addresses from *low* to *high* without all but the starts of large free blocks."""
    page_size = memory.page_map.page_size_bytes
    block_bytes = types.fields.itemsize << _LARGE_ORDER
    if low != address or first_pfn % (1 << _LARGE_ORDER) or block_bytes % page_size:
        return [(low, high)]
    starts = np.arange(low, high - block_bytes + 1, block_bytes, dtype=np.uint64)
    heads, read = read_structs(memory.prog, starts.tolist(), types.fields)
    large = read & (heads["private"] >= _LARGE_ORDER) & (heads["private"] <= _ORDERS_MAX)
    large &= heads["page_type"] == np.uint32(types.buddy_type or 0)
    # From the start of a block to the end of the head's page is always read.
    edges = [low]
    for start in starts[large & (types.buddy_type is not None)].tolist():
        edges += [start + page_size, start + block_bytes]
    edges.append(high)
    return [(start, end) for start, end in zip(edges[::2], edges[1::2]) if start < end]


@dataclasses.dataclass(frozen=True)
class PageTypes:
    """
    How this kernel marks pages.

    :ivar fields: dtype of the members of ``struct page`` that are looked at
    :ivar compound_mask: a tail page has a mask for its own address, not the
        address of its head page
    :ivar slab_flag: PG_slab's bit in ``flags``; None where it is a page type
    :ivar slab_type: value of ``page_type`` of a slab; None where it is a flag
    :ivar buddy_type: likewise of a free page
    :ivar offline_type: likewise of an offline page
    :ivar table_type: the top byte of a page table's ``page_type``; None where
        types are bits
    :ivar typed_bits: which bits a page with types has, where types are bits
    :ivar table_bits: what the bit of page tables can be, there
    :ivar reserved_flag: PG_reserved's bit in ``flags``
    """

    fields: np.dtype[Any]
    compound_mask: bool
    slab_flag: Optional[int]
    slab_type: Optional[int]
    buddy_type: Optional[int]
    offline_type: Optional[int]
    table_type: Optional[int]
    reserved_flag: int
    typed_bits: int = _PAGE_TYPE_BASE
    table_bits: Tuple[int, ...] = _PG_TABLE_VALUES

    def is_slab(self, pages: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which pages are the first page of a slab; *pages* has :attr:`fields`."""
        if self.slab_flag is not None:
            return _some(pages["flags"], self.slab_flag)
        result: npt.NDArray[np.bool_] = pages["page_type"] == np.uint32(self.slab_type or 0)
        return result

    def is_table(self, pages: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which pages are page tables."""
        kind = pages["page_type"] >> np.uint32(24)
        result: npt.NDArray[np.bool_] = kind == np.uint32(self.table_type or 0)
        return result


def _some(words: npt.NDArray[Any], bit: int) -> npt.NDArray[np.bool_]:
    result: npt.NDArray[np.bool_] = (words & words.dtype.type(bit)) != 0
    return result


def page_types(prog: Program) -> PageTypes:
    """
    How a kernel marks pages, from its debug info and VMCOREINFO.

    :raises LookupError: without the debug info of ``struct page``
    """
    note = prog["VMCOREINFO"].string_()

    def mapcount_value(name: str) -> Optional[int]:
        match = re.search(rb"NUMBER\(PAGE_%s_MAPCOUNT_VALUE\)=(-?\d+)" % name.encode(), note)
        return int(match.group(1)) & 0xFFFFFFFF if match else None

    # 46df8e73a4a3 ("mm: free up PG_slab") in v6.10 made slabs a page type.
    slab_type = mapcount_value("SLAB")
    try:
        # "mm: Introduce enum pagetype" came with the types' new encoding.
        table_type: Optional[int] = prog.constant("PGTY_table").value_()
    except LookupError:
        table_type = None
    typed_bits = _PAGE_TYPE_BASE
    table_bits: Tuple[int, ...] = _PG_TABLE_VALUES
    with contextlib.suppress(LookupError):
        typed_bits = prog.constant("PAGE_TYPE_BASE").value_() & _PAGE_TYPE_NONE
        table_bits = (prog.constant("PG_table").value_(),)
    page_type = prog.type("struct page")
    return PageTypes(
        fields=field_dtype(
            page_type,
            {
                "flags": "flags",
                "mapping": "mapping",
                "private": "private",
                # "mm: split page_type out from _mapcount" of v4.18.
                "page_type": "page_type" if page_type.has_member("page_type") else _MAPCOUNT,
                "refcount": "_refcount.counter",
                # "mm: rename the 'compound_head' field in the 'struct page' to
                # 'compound_info'" of v7.1.
                "compound_head": (
                    "compound_info" if page_type.has_member("compound_info") else "compound_head"
                ),
            },
        ),
        compound_mask=_compound_head_is_mask(prog),
        slab_flag=None if slab_type is not None else 1 << prog.constant("PG_slab").value_(),
        slab_type=slab_type,
        buddy_type=mapcount_value("BUDDY"),
        offline_type=mapcount_value("OFFLINE"),
        table_type=table_type,
        reserved_flag=1 << prog.constant("PG_reserved").value_(),
        typed_bits=typed_bits,
        table_bits=table_bits,
    )


def _compound_head_is_mask(prog: Program) -> bool:
    """Mirrors ``compound_info_has_mask()`` of v7.1."""
    size = sizeof(prog.type("struct page"))
    return bool(size & (size - 1) == 0 and prog.type("struct zone").has_member("vmemmap_tails"))


@dataclasses.dataclass(frozen=True)
class PageIndex:
    """
    What every page frame is used for; get it with :func:`page_index`.

    :ivar ranges: int64 array of shape (r, 2): valid page frames ``[start, end)``
    :ivar position: int64 array of shape (r,): where each range begins in *kind*
    :ivar kind: uint8 array with a :class:`PageClass` for each page frame
    :ivar slab_pfn: int64 array of shape (s,): the first page frame of each slab
    :ivar slab_structs: uint8 array of shape (s, ``sizeof(struct page)``)
    """

    ranges: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    kind: npt.NDArray[np.uint8]
    slab_pfn: npt.NDArray[np.int64]
    slab_structs: npt.NDArray[np.uint8]

    @property
    def unread(self) -> int:
        """Page structures that are not in the dump."""
        return int((self.kind == PageClass.UNREAD).sum())

    @property
    def end(self) -> int:
        """Behind the last valid page frame."""
        return int(self.ranges[:, 1].max()) if len(self.ranges) else 0

    def kind_of(self, pfns: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """
        The :class:`PageClass` of page frames.

        :param pfns: integer array of any shape
        :return: uint8 array; ``UNREAD`` for what is no page frame
        """
        pfns = pfns.astype(np.int64)
        if not len(self.ranges):
            return np.zeros(pfns.shape, dtype=np.uint8)
        at = np.maximum(np.searchsorted(self.ranges[:, 0], pfns, side="right") - 1, 0)
        inside = (pfns >= self.ranges[at, 0]) & (pfns < self.ranges[at, 1])
        position = np.where(inside, self.position[at] + pfns - self.ranges[at, 0], 0)
        return np.where(inside, self.kind[position], np.uint8(PageClass.UNREAD))

    def kinds_between(self, start: int, end: int) -> npt.NDArray[np.uint8]:
        """As :meth:`kind_of`, for the page frames ``[start, end)``; much faster."""
        result = np.full(end - start, PageClass.UNREAD, dtype=np.uint8)
        first = int(np.searchsorted(self.ranges[:, 1], start, side="right"))
        for (low, high), position in zip(
            self.ranges[first:].tolist(), self.position[first:].tolist()
        ):
            if low >= end:
                break
            low_asked, high_asked = max(low, start), min(high, end)
            result[low_asked - start : high_asked - start] = self.kind[
                position + low_asked - low : position + high_asked - low
            ]
        return result


def page_index(prog: Program, memory: Memory) -> PageIndex:
    """
    The index of all page frames, made once for a program.

    :raises drgn.FaultError: if the memory map's own structures cannot be read, or found:
        damaged notes do not tell where they are, and drgn does not know each memory model
    """
    if _CACHE_KEY not in prog.cache:
        try:
            prog.cache[_CACHE_KEY] = _make_index(prog, memory)
        except LookupError as error:
            raise FaultError(f"page structures cannot be found: {error}", 0) from error
    index: PageIndex = prog.cache[_CACHE_KEY]
    return index


def _make_index(prog: Program, memory: Memory) -> PageIndex:
    types = page_types(prog)
    struct_size = types.fields.itemsize
    ranges: List[List[int]] = []
    kinds: List[npt.NDArray[np.uint8]] = []
    slab_pfns: List[npt.NDArray[np.int64]] = []
    slab_structs: List[npt.NDArray[np.uint8]] = []
    tails: List[npt.NDArray[np.int64]] = []
    typed: List[npt.NDArray[np.int64]] = []
    free_blocks: List[npt.NDArray[np.int64]] = []
    base = 0
    for structs in page_structs(prog, memory, types):
        count = len(structs.data)
        pages = structs.data.reshape(-1).view(types.fields)
        kind = classify(types, pages, structs.read)
        kinds.append(kind)
        ranges.append([structs.first_pfn, structs.first_pfn + count])

        slabs = np.flatnonzero(kind == PageClass.SLAB)
        slab_pfns.append(slabs + structs.first_pfn)
        slab_structs.append(np.ascontiguousarray(structs.data[slabs]))

        head = pages["compound_head"]
        tail = np.flatnonzero(_some(head, 1) & structs.read)
        here = np.uint64(structs.address) + tail.astype(np.uint64) * np.uint64(struct_size)
        of_head = here & head[tail] if types.compound_mask else head[tail] - np.uint64(1)
        distance = (here - of_head).astype(np.int64) // struct_size
        tails.append(np.stack((base + tail, base + tail - distance)))

        free = np.flatnonzero(kind == PageClass.FREE)
        free_blocks.append(np.stack((base + free, pages["private"][free].astype(np.int64))))
        maybe_table = np.flatnonzero(
            (kind == PageClass.ALLOCATED)
            & (pages["page_type"] & np.uint32(types.typed_bits) == np.uint32(types.typed_bits))
            & (pages["page_type"] != np.uint32(_PAGE_TYPE_NONE))
        )
        typed.append(np.stack((base + maybe_table, pages["page_type"][maybe_table])))
        base += count
    everything = np.concatenate(kinds) if kinds else np.zeros(0, dtype=np.uint8)
    if kinds:
        orders = prog.type("struct zone").member("free_area").type.length
        _spread_free_blocks(everything, np.concatenate(free_blocks, axis=1), orders or 0)
        if types.table_type is None:
            _mark_old_page_tables(prog, types, everything, np.concatenate(typed, axis=1))
        # Last, so that a tail page gets what its head page has become.
        _spread_heads(everything, np.concatenate(tails, axis=1))
    bounds = np.array(ranges, dtype=np.int64).reshape(-1, 2)
    lengths = bounds[:, 1] - bounds[:, 0]
    return PageIndex(
        ranges=bounds,
        position=np.cumsum(lengths) - lengths,
        kind=everything,
        slab_pfn=np.concatenate([np.zeros(0, dtype=np.int64), *slab_pfns]),
        slab_structs=np.concatenate([np.zeros((0, struct_size), dtype=np.uint8), *slab_structs]),
    )


def classify(
    types: PageTypes, pages: npt.NDArray[Any], read: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint8]:
    """
    The :class:`PageClass` that each page structure alone tells.

    :param pages: array of shape (n,) of ``types.fields``
    :param read: bool array of shape (n,): which structures are there
    :return: uint8 array of shape (n,)
    """
    # include/linux/page-flags.h: PAGE_MAPPING_ANON is bit 0 of mapping, and
    # bit 1 alone marks movable pages of drivers.
    mapping = pages["mapping"]
    kind = np.full(len(pages), PageClass.ALLOCATED, dtype=np.uint8)
    kind[(mapping != 0) & (mapping & np.uint64(3) == 0)] = PageClass.PAGE_CACHE
    kind[_some(mapping, 1)] = PageClass.ANONYMOUS
    # folio_migrate_mapping() and reclaim freeze the references of a page that is
    # still user space's at 0; only free_pages_prepare() takes its mapping away.
    frozen = (mapping != 0) & (mapping & np.uint64(3) != 2) & ~_some(pages["compound_head"], 1)
    kind[(pages["refcount"] == 0) & ~frozen] = PageClass.IDLE
    if types.table_type is not None:
        kind[types.is_table(pages)] = PageClass.PAGE_TABLE
    kind[_some(pages["flags"], types.reserved_flag)] = PageClass.RESERVED
    for value, meaning in (
        (types.buddy_type, PageClass.FREE),
        (types.offline_type, PageClass.OFFLINE),
    ):
        if value is not None:
            kind[pages["page_type"] == np.uint32(value)] = meaning
    kind[types.is_slab(pages)] = PageClass.SLAB
    kind[~read] = PageClass.UNREAD
    return kind


def _spread_free_blocks(
    kind: npt.NDArray[np.uint8], blocks: npt.NDArray[np.int64], orders_max: int
) -> None:
    """
    Only a free block's first page is marked; its order is in ``private``.

    A page that somebody uses stays what it is, whatever a damaged order says.
    """
    starts, orders = blocks
    sound = (orders > 0) & (orders < orders_max)
    for start, order in zip(starts[sound].tolist(), orders[sound].tolist()):
        block = kind[start : start + (1 << order)]
        block[block == PageClass.IDLE] = PageClass.FREE


def _spread_heads(kind: npt.NDArray[np.uint8], tails: npt.NDArray[np.int64]) -> None:
    """A compound page's tail is used for what its head is."""
    tail, head = tails
    sound = (head >= 0) & (head < tail)
    kind[tail[sound]] = kind[head[sound]]


def _mark_old_page_tables(
    prog: Program,
    types: PageTypes,
    kind: npt.NDArray[np.uint8],
    typed: npt.NDArray[np.int64],
) -> None:
    """
    Tell page tables from other typed pages, on kernels without enum pagetype.

    The type's bit is a macro that has changed; the right one is that which
    as many pages have as the kernel itself counts.
    """
    try:
        # There are few, and much of their number may still be with the CPUs.
        expected = page_counter(prog, "NR_PAGETABLE").exact
    except (FaultError, LookupError):
        return
    position, value = typed
    counted = {bit: (value & bit) == 0 for bit in types.table_bits}
    bit = min(counted, key=lambda bit: abs(int(counted[bit].sum()) - expected))
    kind[position[counted[bit]]] = PageClass.PAGE_TABLE


def direct_map_offset(prog: Program) -> int:
    """What to add to a physical address of RAM to get its direct map address."""
    # Any frame does: the direct map is linear.
    return int(pfn_to_virt(prog, 0).value_())
