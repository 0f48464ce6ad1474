# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where in RAM the page structures are, and which page frames they describe."""

from __future__ import annotations

import dataclasses
from typing import Iterator, List, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Program, sizeof
from drgn.helpers.linux.mm import follow_phys, for_each_valid_page_range

U64 = npt.NDArray[np.uint64]

#: The memory map is mapped with pages of this size, or of less.
_STEP_BYTES = 2 << 20


@dataclasses.dataclass(frozen=True)
class PageStructMap:
    """
    The pieces of the memory map, by physical address: uint64 arrays of shape (n,).

    :ivar struct_bytes: ``sizeof(struct page)``
    :ivar start: physical address of each piece
    :ivar end: behind its last byte
    :ivar address: where the kernel has it, ``struct page *``
    :ivar base: where the structure of page frame 0 would be
    """

    struct_bytes: int
    start: U64
    end: U64
    address: U64
    base: U64

    def find(self, physical: U64) -> Tuple[U64, U64, npt.NDArray[np.int64]]:
        """
        The structures that hold physical addresses.

        :param physical: uint64 array of shape (m,)
        :return: uint64 array: each structure's address, 0 for a physical address in
            none; uint64 array: the offset in it; and int64 array: the page frame
            that it describes
        """
        if not len(self.start):
            nothing = np.zeros(len(physical), dtype=np.uint64)
            return nothing, nothing, nothing.astype(np.int64)
        at = np.maximum(np.searchsorted(self.start, physical, side="right") - 1, 0)
        inside = (physical >= self.start[at]) & (physical < self.end[at])
        word = self.address[at] + (physical - self.start[at])
        pfn, offset = np.divmod(word - self.base[at], np.uint64(self.struct_bytes))
        found = np.where(inside, word - offset, np.uint64(0))
        return found, offset, np.where(inside, pfn, np.uint64(0)).astype(np.int64)


def page_struct_map(prog: Program, page_size_bytes: int) -> PageStructMap:
    """
    The memory map of a kernel; what of it is not mapped is left out.

    :raises drgn.FaultError: if the memory map's own structures cannot be read
    """
    size = sizeof(prog.type("struct page"))
    pieces: List[Tuple[int, int, int, int]] = []
    for first, end, mem_map in for_each_valid_page_range(prog):
        base = mem_map.value_()
        low = (base + first * size) // page_size_bytes * page_size_bytes
        high = -(-(base + end * size) // page_size_bytes) * page_size_bytes
        for physical, address, length in _mapped(prog, low, high, page_size_bytes):
            pieces.append((physical, physical + length, address, base))
    pieces.sort()
    columns = np.array(pieces, dtype=np.uint64).reshape(-1, 4)
    return PageStructMap(size, columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3])


def _mapped(
    prog: Program, low: int, high: int, page_size_bytes: int
) -> Iterator[Tuple[int, int, int]]:
    """Physical address, address and length of what is mapped in one piece."""
    init_mm = prog["init_mm"].address_of_()
    pending = [
        (address, min(high, (address // _STEP_BYTES + 1) * _STEP_BYTES))
        for address in (low, *range((low // _STEP_BYTES + 1) * _STEP_BYTES, high, _STEP_BYTES))
    ]
    while pending:
        address, end = pending.pop()
        try:
            first = follow_phys(init_mm, address).value_()
            last = follow_phys(init_mm, end - page_size_bytes).value_()
        except FaultError:
            first, last = 0, -1
        if last - first == end - page_size_bytes - address:
            yield first, address, end - address
        elif end - address > page_size_bytes:
            middle = address + (end - address) // page_size_bytes // 2 * page_size_bytes
            pending += [(address, middle), (middle, end)]
