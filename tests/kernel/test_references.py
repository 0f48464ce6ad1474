# SPDX-License-Identifier: LGPL-2.1-or-later
"""The scan for references, in memory that the test makes up."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcore_tools.dump.page_map import PageMap, merge_runs
from vmcore_tools.kernel import references
from vmcore_tools.kernel.page import PageClass, PageIndex
from vmcore_tools.kernel.references import Hits, ScanCoverage, Targets, scan

PAGE = 4096
WORDS = PAGE // 8
BASE = 0xFFFF888000000000


def targets(*ranges: Tuple[int, int]) -> Targets:
    return Targets(
        np.array([start for start, _ in ranges], dtype=np.uint64),
        np.array([end for _, end in ranges], dtype=np.uint64),
    )


@dataclasses.dataclass
class FakeMemory:
    """What :func:`scan` uses of a Memory; pages are zero but for *words*."""

    page_map: PageMap
    words: Dict[Tuple[int, int], int]  # (page frame, word) to value
    damaged: Sequence[int] = ()
    prog: Any = None
    reads: int = 0
    reads_in_parallel: bool = False

    def read_pages(
        self, pfns: npt.NDArray[np.uint64], buffer: Any = None
    ) -> Tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        self.reads += len(pfns)
        data = np.zeros((len(pfns), WORDS), dtype=np.uint64)
        rows = {int(pfn): row for row, pfn in enumerate(pfns)}
        read = ~np.isin(pfns, self.damaged)
        for (pfn, word), value in self.words.items():
            if pfn in rows and pfn not in self.damaged:
                data[rows[pfn], word] = value
        return data.view(np.uint8), read


def page_index(kinds: Sequence[PageClass]) -> PageIndex:
    """Page frames from 0 on."""
    return PageIndex(
        ranges=np.array([[0, len(kinds)]], dtype=np.int64),
        position=np.zeros(1, dtype=np.int64),
        kind=np.array(kinds, dtype=np.uint8),
        slab_pfn=np.zeros(0, dtype=np.int64),
        slab_structs=np.zeros((0, 64), dtype=np.uint8),
    )


def no_progress(items: Iterable[Any], what: str, total: Optional[int]) -> Iterable[Any]:
    return items


def run_scan(
    monkeypatch: pytest.MonkeyPatch,
    wanted: Targets,
    words: Dict[Tuple[int, int], int],
    kinds: Sequence[PageClass],
    runs: Optional[List[Tuple[int, int]]] = None,
    damaged: Sequence[int] = (),
    ram: Optional[List[Tuple[int, int]]] = None,
) -> Tuple[Hits, ScanCoverage]:
    page_map = PageMap("fake", PAGE, merge_runs(runs or [(0, len(kinds))]))
    monkeypatch.setattr(references, "kernel_ram", lambda prog: ram or [(0, len(kinds) * PAGE)])
    memory: Any = FakeMemory(page_map, words, damaged)
    return scan(memory, page_index(kinds), wanted, no_progress)


# --- Targets -------------------------------------------------------------------


def test_a_target_is_hit_from_its_first_byte_to_its_last() -> None:
    wanted = targets((BASE, BASE + 96), (BASE + 96, BASE + 128), (BASE + 4096, BASE + 4104))
    words = [BASE - 1, BASE, BASE + 95, BASE + 96, BASE + 127, BASE + 128, BASE + 4103, 0, 1]
    position, target = wanted.hits(np.array(words, dtype=np.uint64))
    assert position.tolist() == [1, 2, 3, 4, 6]
    assert target.tolist() == [0, 0, 1, 1, 2]


def test_nothing_hits_no_targets() -> None:
    position, target = targets().hits(np.array([0, BASE], dtype=np.uint64))
    assert (len(position), len(target)) == (0, 0)


@given(
    sizes=st.lists(st.tuples(st.integers(0, 64), st.integers(1, 64)), min_size=1, max_size=20),
    words=st.lists(st.integers(BASE - 70, BASE + 3000), max_size=50),
)
def test_hits_are_those_of_a_search_one_by_one(
    sizes: List[Tuple[int, int]], words: List[int]
) -> None:
    ranges, at = [], BASE
    for gap, size in sizes:
        ranges.append((at + gap, at + gap + size))
        at += gap + size
    position, target = targets(*ranges).hits(np.array(words, dtype=np.uint64))
    expected = [
        (i, number)
        for i, word in enumerate(words)
        for number, (start, end) in enumerate(ranges)
        if start <= word < end
    ]
    assert list(zip(position.tolist(), target.tolist())) == expected


# --- scan ------------------------------------------------------------------------


def test_each_word_is_found_at_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = targets((BASE + 0x1000, BASE + 0x1060), (BASE + 0x2000, BASE + 0x2060))
    words = {
        (0, 0): BASE + 0x1000,
        (3, WORDS - 1): BASE + 0x205F,
        (4, 7): BASE + 0x1008,
        (4, 8): BASE + 0x1060,  # one byte too far
    }
    hits, coverage = run_scan(monkeypatch, wanted, words, [PageClass.SLAB] * 5)
    assert list(zip(hits.physical.tolist(), hits.value.tolist(), hits.target.tolist())) == [
        (0, BASE + 0x1000, 0),
        (4 * PAGE - 8, BASE + 0x205F, 1),
        (4 * PAGE + 56, BASE + 0x1008, 0),
    ]
    assert coverage == ScanCoverage(5, 0, 0, {})


def test_pages_of_user_space_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = targets((BASE, BASE + 8))
    kinds = [PageClass.SLAB, PageClass.ANONYMOUS, PageClass.PAGE_CACHE, PageClass.FREE,
             PageClass.ALLOCATED, PageClass.OFFLINE, PageClass.UNREAD]  # fmt: skip
    hits, coverage = run_scan(
        monkeypatch, wanted, {(pfn, 1): BASE for pfn in range(len(kinds))}, kinds
    )
    assert (hits.physical // PAGE).tolist() == [0, 4, 6]
    assert (coverage.pages_read, coverage.pages_skipped) == (3, 4)


def test_absent_and_damaged_pages_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [
        *(PageClass.SLAB, PageClass.SLAB, PageClass.ALLOCATED, PageClass.ANONYMOUS),
        *(PageClass.FREE, PageClass.IDLE, PageClass.PAGE_CACHE, PageClass.RESERVED),
    ]
    wanted = targets((BASE, BASE + 8))
    hits, coverage = run_scan(
        monkeypatch,
        wanted,
        {(0, 0): BASE, (1, 0): BASE, (2, 0): BASE},
        kinds,
        runs=[(0, 2)],
        damaged=[1],
        ram=[(0, 7 * PAGE)],  # the last one is a hole in RAM, or a crash kernel's
    )
    assert hits.physical.tolist() == [0]
    # An idle page can be the tail of an allocation, and full of data.
    assert coverage == ScanCoverage(1, 1, 0, {PageClass.ALLOCATED: 1, PageClass.IDLE: 1})


def test_many_pages_are_read_in_chunks_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "_CHUNK_BYTES", 4 * PAGE)
    kinds = [PageClass.SLAB] * 23
    runs = [(0, 1), (2, 9), (10, 23)]
    words = {(pfn, pfn): BASE + pfn for pfn in range(23)}
    hits, coverage = run_scan(monkeypatch, targets((BASE, BASE + 64)), words, kinds, runs)
    present = [pfn for start, end in runs for pfn in range(start, end)]
    assert hits.physical.tolist() == [pfn * PAGE + pfn * 8 for pfn in present]
    assert hits.value.tolist() == [BASE + pfn for pfn in present]
    assert coverage == ScanCoverage(len(present), 0, 0, {PageClass.SLAB: 2})


def test_a_dump_without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    hits, coverage = run_scan(
        monkeypatch, targets((BASE, BASE + 8)), {}, [PageClass.SLAB], runs=[(5, 5)]
    )
    assert len(hits.physical) == 0
    assert coverage == ScanCoverage(0, 0, 0, {PageClass.SLAB: 1})
