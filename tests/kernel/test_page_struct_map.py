# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which page structure is at a physical address, in a memory map that the test lays out."""

from __future__ import annotations

import numpy as np
import pytest

from vmcore_tools.kernel.page_struct_map import PageStructMap

VMEMMAP = 0xFFFFEA0000000000
SIZE = 56  # not a power of two: structures cross pages

#: Page frames 0 on at 0x8000, and those from 1000 on in another piece of RAM.
MAP = PageStructMap(
    SIZE,
    start=np.array([0x8000, 0x40000], dtype=np.uint64),
    end=np.array([0xA000, 0x42000], dtype=np.uint64),
    address=np.array([VMEMMAP, VMEMMAP + 1000 * SIZE], dtype=np.uint64),
    base=np.array([VMEMMAP, VMEMMAP], dtype=np.uint64),
)


@pytest.mark.parametrize(
    ("physical", "pfn", "offset"),
    [
        (0x8000, 0, 0),
        (0x8000 + SIZE - 8, 0, SIZE - 8),
        (0x8000 + SIZE, 1, 0),
        (0x9FF8, 146, 8),
        (0x40000, 1000, 0),
        (0x40000 + 3 * SIZE + 8, 1003, 8),
    ],
)
def test_the_structure_at_a_physical_address(physical: int, pfn: int, offset: int) -> None:
    address, offsets, pfns = MAP.find(np.array([physical], dtype=np.uint64))
    assert address.tolist() == [VMEMMAP + pfn * SIZE]
    assert (pfns.tolist(), offsets.tolist()) == ([pfn], [offset])


def test_other_memory_is_in_none() -> None:
    others = np.array([0, 0x7FF8, 0xA000, 0x3FFF8, 0x42000, 1 << 40], dtype=np.uint64)
    address, _, pfns = MAP.find(others)
    assert not address.any() and not pfns.any()


def test_a_kernel_without_a_memory_map() -> None:
    nothing = np.zeros(0, dtype=np.uint64)
    empty = PageStructMap(SIZE, nothing, nothing, nothing, nothing)
    address, _, _ = empty.find(np.array([0x8000], dtype=np.uint64))
    assert address.tolist() == [0]
