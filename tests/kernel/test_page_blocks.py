# SPDX-License-Identifier: LGPL-2.1-or-later
"""The page structures that need not be read: those inside of large free blocks."""

from __future__ import annotations

from typing import Any, List, Tuple

import numpy as np
from drgn import (
    Architecture,
    Platform,
    PlatformFlags,
    Program,
)

from vmcore_tools.dump.memory import Memory
from vmcore_tools.dump.page_map import PageMap, merge_runs
from vmcore_tools.kernel.page import PageTypes, _wanted_runs

PAGE = 4096
BUDDY = 0xFFFFFF7F
NO_TYPE = 0xFFFFFFFF
#: Of the page structures of 1024 pages.
BLOCK = 1024 * 64
START = 0x100000
FIELDS: np.dtype[Any] = np.dtype(
    {
        "names": ["private", "page_type"],
        "formats": ["<u8", "<u4"],
        "offsets": [40, 48],
        "itemsize": 64,
    }
)
TYPES = PageTypes(FIELDS, False, 1 << 9, None, BUDDY, None, None, 1 << 12)


def wanted(heads: List[Tuple[int, int]], first_pfn: int = 0, start: int = START) -> List[Any]:
    """What is read, in pages from the start, of blocks with these (order, page_type)."""
    structs = np.zeros(1024 * len(heads), dtype=FIELDS)
    structs["private"][::1024] = [order for order, _ in heads]
    structs["page_type"][::1024] = [page_type for _, page_type in heads]
    data = structs.tobytes()
    flags = PlatformFlags.IS_64_BIT | PlatformFlags.IS_LITTLE_ENDIAN
    prog = Program(Platform(Architecture.X86_64, flags))

    def read(_address: int, count: int, offset: int, _physical: bool) -> bytes:
        return data[offset : offset + count]

    prog.add_memory_segment(start, len(data), read, False)
    memory = Memory(prog, PageMap("test", PAGE, merge_runs([(0, 1)])))
    low = start // PAGE * PAGE
    high = start + len(data)
    runs = _wanted_runs(memory, TYPES, first_pfn, start, low, high)
    return [((a - low) / PAGE, (b - low) / PAGE) for a, b in runs]


def test_of_a_large_free_block_only_the_start_is_read() -> None:
    assert wanted([(0, NO_TYPE), (10, BUDDY), (0, NO_TYPE)]) == [(0, 17), (32, 48)]
    assert wanted([(10, BUDDY), (11, BUDDY)]) == [(0, 1), (16, 17)]


def test_everything_else_is_read() -> None:
    everything = [(0, 32)]
    assert wanted([(9, BUDDY), (0, NO_TYPE)]) == everything
    # The order of a page that is not free is something else.
    assert wanted([(10, NO_TYPE), (10, NO_TYPE)]) == everything
    # No block is that large: somebody overwrote it.
    assert wanted([(1 << 40, BUDDY), (64, BUDDY)]) == everything


def test_blocks_that_are_not_aligned_are_read() -> None:
    heads = [(10, BUDDY), (10, BUDDY)]
    assert wanted(heads, first_pfn=512) == [(0, 32)]
    assert wanted(heads, start=START + 64) == [(0, (64 + 2 * BLOCK) / PAGE)]
