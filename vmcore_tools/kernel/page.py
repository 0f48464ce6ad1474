# SPDX-License-Identifier: LGPL-2.1-or-later
"""All page structures, in bulk."""

from __future__ import annotations

import dataclasses
import re
from typing import Iterator, Optional, Tuple

import numpy as np
import numpy.typing as npt
from drgn import Program, sizeof
from drgn.helpers.linux.mm import pfn_to_page, pfn_to_virt

from vmcore_tools.dump.memory import Memory
from vmcore_tools.dump.page_map import merge_runs
from vmcore_tools.kernel.resource import system_ram

# SECTION_MAP_LAST_BIT of include/linux/mmzone.h has been at most 1 << 6; the
# array that the flags are mixed into is aligned to a page.
_SECTION_FLAGS = (1 << 6) - 1
#: ``struct page`` bytes that are held at a time.
_CHUNK_BYTES = 16 << 20


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


def page_structs(prog: Program, memory: Memory) -> Iterator[PageStructs]:
    """
    Read the ``struct page`` of every page frame of RAM.

    :raises drgn.FaultError: if the kernel's list of RAM cannot be read
    :raises LookupError: without debug info
    """
    page_size = memory.page_map.page_size_bytes
    struct_size = prog.type("struct page").size
    assert struct_size is not None
    ram = merge_runs((start // page_size, -(-end // page_size)) for start, end in system_ram(prog))
    mem_map = _MemMap(prog, page_size)
    pages_max = _CHUNK_BYTES // struct_size
    for start, end in ram.tolist():
        first = start
        while first < end:
            address, section_end = mem_map.page(first)
            count = min(end - first, pages_max, section_end - first)
            yield _read_structs(memory, first, address, count, struct_size)
            first += count


class _MemMap:
    """Where page structures are: one array, or an array for each section."""

    def __init__(self, prog: Program, page_size: int) -> None:
        self._prog = prog
        try:
            self._first: Optional[int] = pfn_to_page(prog, 0).value_()
        except LookupError:
            # SPARSEMEM without VMEMMAP, which drgn does not read.
            self._first = None
            bits = re.search(rb"NUMBER\(SECTION_SIZE_BITS\)=(\d+)", prog["VMCOREINFO"].string_())
            if bits is None:
                raise LookupError("VMCOREINFO does not say how large memory sections are") from None
            self._section_pages = (1 << int(bits.group(1))) // page_size
            self._per_root = page_size // sizeof(prog.type("struct mem_section"))

    def page(self, pfn: int) -> Tuple[int, int]:
        """Address of a page frame's structure, and where its array ends."""
        size = sizeof(self._prog.type("struct page"))
        if self._first is not None:
            return (self._first + pfn * size) & 0xFFFFFFFFFFFFFFFF, 1 << 64
        number = pfn // self._section_pages
        root, index = divmod(number, self._per_root)
        encoded = self._prog["mem_section"][root][index].section_mem_map.value_()
        # sparse_encode_mem_map(): flags in the low bits, and the section's
        # first frame is already subtracted.
        base = encoded & ~_SECTION_FLAGS
        return (base + pfn * size) & 0xFFFFFFFFFFFFFFFF, (number + 1) * self._section_pages


def _read_structs(
    memory: Memory, first_pfn: int, address: int, count: int, struct_size: int
) -> PageStructs:
    page_size = memory.page_map.page_size_bytes
    # The array's pages are what can be absent: read whole ones, then cut.
    low = address // page_size * page_size
    high = -(-(address + count * struct_size) // page_size) * page_size
    raw, pages_read = memory.read_virtual(low, high - low)
    offset = address - low
    data = raw[offset : offset + count * struct_size].reshape(count, struct_size)
    starts = (offset + np.arange(count) * struct_size) // page_size
    ends = (offset + np.arange(count) * struct_size + struct_size - 1) // page_size
    return PageStructs(first_pfn, address, data, pages_read[starts] & pages_read[ends])


def direct_map_offset(prog: Program) -> int:
    """What to add to a physical address of RAM to get its direct map address."""
    # Any frame does: the direct map is linear.
    return int(pfn_to_virt(prog, 0).value_())
