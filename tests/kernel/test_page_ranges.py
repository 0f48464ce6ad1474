# SPDX-License-Identifier: LGPL-2.1-or-later
"""Uses of consecutive page frames, and runs of pages in chunks."""

from __future__ import annotations

import numpy as np
import pytest

from vmcore_tools.kernel.page import PageIndex
from vmcore_tools.kernel.references import _chunks

# Valid page frames 2..5 and 8..11, and what each is used for.
INDEX = PageIndex(
    ranges=np.array([[2, 6], [8, 12]]),
    position=np.array([0, 4]),
    kind=np.array([1, 2, 3, 4, 5, 6, 7, 8], dtype=np.uint8),
    slab_pfn=np.zeros(0, dtype=np.int64),
    slab_structs=np.zeros((0, 64), dtype=np.uint8),
)


@pytest.mark.parametrize(
    ("start", "end"), [(0, 14), (0, 2), (2, 6), (3, 5), (4, 9), (6, 8), (9, 30), (12, 14), (5, 5)]
)
def test_kinds_between_are_those_of_each_page_frame(start: int, end: int) -> None:
    expected = INDEX.kind_of(np.arange(start, end)).tolist()
    assert INDEX.kinds_between(start, end).tolist() == expected


def test_short_runs_are_scanned_together_and_long_ones_alone() -> None:
    runs = np.array([[3, 5], [10, 14], [20, 21], [100, 150], [200, 202]], dtype=np.uint64)
    chunks = [chunk.tolist() for chunk in _chunks(runs, 20)]
    assert chunks == [
        [*range(100, 120)],
        [*range(120, 140)],
        [3, 4, 10, 11, 12, 13, 20, *range(140, 150), 200, 201],
    ]
    assert [len(chunk) for chunk in _chunks(runs[:3], 3)] == [2, 3, 2]
    assert list(_chunks(np.zeros((0, 2), dtype=np.uint64), 3)) == []
