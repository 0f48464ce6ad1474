# SPDX-License-Identifier: LGPL-2.1-or-later
"""Look-ups in a map of kernel memory that the test fills in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vmcore_tools.kernel.virtual_map import PerCpuVariable, VirtualMap, VmallocArea, _PerCpuUnit

PAGE = 4096
IMAGE = 0xFFFFFFFF81000000
VMALLOC = 0xFFFFC90000000000
UNIT = 0xFFFF88800F000000
PER_CPU_OFFSET = UNIT  # the static part is linked at 0


@pytest.fixture
def virtual() -> VirtualMap:
    made: Any = VirtualMap.__new__(VirtualMap)
    made._page_size = PAGE
    made.areas = (
        VmallocArea(VMALLOC, VMALLOC + 5 * PAGE, 0x1000),
        VmallocArea(VMALLOC + 8 * PAGE, VMALLOC + 9 * PAGE, 0x2000),
    )
    made._area_starts = [area.start for area in made.areas]
    # Page frames need not follow each other, nor the addresses the frames.
    made._pfns = np.array([10, 11, 700, 90000], dtype=np.int64)
    made._addresses = np.array(
        [VMALLOC + 3 * PAGE, VMALLOC, VMALLOC + 8 * PAGE, VMALLOC + PAGE], dtype=np.uint64
    )
    made._image = (0x1000000, 0x3000000, IMAGE - 0x1000000)
    made._units = (
        _PerCpuUnit(0, UNIT, UNIT + 0x20000, PER_CPU_OFFSET),
        _PerCpuUnit(1, UNIT + 0x20000, UNIT + 0x40000, PER_CPU_OFFSET + 0x20000),
    )
    made._per_cpu_symbols = [(0x100, 0x40, "first"), (0x140, 8, "second"), (0x1000, 16, "third")]
    found: VirtualMap = made
    return found


@pytest.mark.parametrize(
    ("physical", "address"),
    [
        (0x1000000, IMAGE),
        (0x2FFFFF8, IMAGE + 0x1FFFFF8),
        (0x3000000, None),
        (0xFFFFF8, None),
        (10 * PAGE + 8, VMALLOC + 3 * PAGE + 8),
        (11 * PAGE + 4088, VMALLOC + 4088),
        (12 * PAGE, None),
        (700 * PAGE, VMALLOC + 8 * PAGE),
        (90000 * PAGE + 16, VMALLOC + PAGE + 16),
        (90001 * PAGE, None),
        (0, None),
    ],
)
def test_a_physical_address_has_the_kernels_own(
    virtual: VirtualMap, physical: int, address: object
) -> None:
    assert virtual.address_of(physical) == address


@pytest.mark.parametrize(
    ("address", "number"),
    [
        (VMALLOC - 1, None),
        (VMALLOC, 0),
        (VMALLOC + 5 * PAGE - 1, 0),
        (VMALLOC + 5 * PAGE, None),
        (VMALLOC + 8 * PAGE, 1),
        (VMALLOC + 9 * PAGE, None),
    ],
)
def test_the_area_around_an_address(virtual: VirtualMap, address: int, number: object) -> None:
    expected = virtual.areas[number] if isinstance(number, int) else None
    assert virtual.area_at(address) == expected


@pytest.mark.parametrize(
    ("address", "variable"),
    [
        (UNIT + 0x100, PerCpuVariable(0, "first", 0)),
        (UNIT + 0x13F, PerCpuVariable(0, "first", 0x3F)),
        (UNIT + 0x147, PerCpuVariable(0, "second", 7)),
        (UNIT + 0x148, PerCpuVariable(0, None, 0x148)),
        (UNIT + 0x21008, PerCpuVariable(1, "third", 8)),
        (UNIT + 0x20000, PerCpuVariable(1, None, 0)),
        (UNIT + 0x40000, None),
        (UNIT - 8, None),
    ],
)
def test_the_per_cpu_variable_at_an_address(
    virtual: VirtualMap, address: int, variable: object
) -> None:
    assert virtual.per_cpu_at(address) == variable
