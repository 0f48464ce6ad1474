# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pages that are kept: each is read once, and is what the dump has."""

from __future__ import annotations

from typing import List, Optional, Tuple

import numpy as np
import numpy.typing as npt
import pytest

from vmcore_tools.dump.kept_pages import KeptPages
from vmcore_tools.dump.page_map import PageMap, merge_runs

PAGE = 4096
RUNS = [(3, 5), (10, 600), (1000, 1001)]
DAMAGED = (4, 20)


class Reader:
    def __init__(self) -> None:
        self.asked: List[Tuple[int, int]] = []

    def __call__(
        self, first: int, data: npt.NDArray[np.uint8], read: npt.NDArray[np.bool_]
    ) -> None:
        self.asked.append((first, len(data)))
        for row in range(len(data)):
            if first + row not in DAMAGED:
                data[row] = (first + row) % 251
                read[row] = True


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def kept(reader: Reader) -> KeptPages:
    return KeptPages(PageMap("test", PAGE, merge_runs(RUNS)), reader)


@pytest.mark.parametrize("with_buffer", [False, True])
@pytest.mark.parametrize(
    "pfns",
    [
        [],
        [3],
        [4],
        [10, 11, 12],
        [3, 4, 5, 9, 10, 599, 600, 1000, 1001, 5000],
        list(range(2, 700)),
        [0, 1],
    ],
)
def test_pages_are_those_of_the_dump(kept: KeptPages, pfns: List[int], with_buffer: bool) -> None:
    buffer: Optional[npt.NDArray[np.uint8]] = None
    if with_buffer:
        buffer = np.full((len(pfns) + 1, PAGE), 0xEE, dtype=np.uint8)
    data, read = kept.pages(np.array(pfns, dtype=np.uint64), buffer)
    present = [
        any(start <= pfn < end for start, end in RUNS) and pfn not in DAMAGED for pfn in pfns
    ]
    assert read.tolist() == present
    assert data.shape == (len(pfns), PAGE)
    for row, pfn in enumerate(pfns):
        assert (data[row] == (pfn % 251 if present[row] else 0)).all()


def test_each_page_is_read_once(kept: KeptPages, reader: Reader) -> None:
    for _ in range(2):
        kept.pages(np.array([3, 10, 599, 1000], dtype=np.uint64))
        kept.pages(np.arange(10, 600, dtype=np.uint64))
    pages = [first + i for first, count in reader.asked for i in range(count)]
    assert sorted(pages) == [pfn for start, end in RUNS for pfn in range(start, end)]


def test_the_flags_are_the_callers_own(kept: KeptPages) -> None:
    pfns = np.array([10, 11], dtype=np.uint64)
    _, read = kept.pages(pfns)
    read[:] = False
    assert kept.pages(pfns)[1].all()


def test_a_dump_without_pages() -> None:
    kept = KeptPages(PageMap("test", PAGE, merge_runs([])), Reader())
    data, read = kept.pages(np.array([1, 2], dtype=np.uint64))
    assert not read.any() and not data.any()
