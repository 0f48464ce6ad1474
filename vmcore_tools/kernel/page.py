# SPDX-License-Identifier: LGPL-2.1-or-later
"""All page structures, in bulk."""

from __future__ import annotations

import dataclasses
from typing import Iterator

import numpy as np
import numpy.typing as npt
from drgn import Program
from drgn.helpers.linux.mm import pfn_to_page, pfn_to_virt

from vmcore_tools.dump.memory import Memory
from vmcore_tools.dump.page_map import merge_runs
from vmcore_tools.kernel.resource import system_ram

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
    pages_max = _CHUNK_BYTES // struct_size
    for start, end in ram.tolist():
        for first in range(start, end, pages_max):
            count = min(end - first, pages_max)
            yield _read_structs(prog, memory, first, count, struct_size)


def _read_structs(
    prog: Program, memory: Memory, first_pfn: int, count: int, struct_size: int
) -> PageStructs:
    page_size = memory.page_map.page_size_bytes
    address = pfn_to_page(prog, first_pfn).value_()
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
