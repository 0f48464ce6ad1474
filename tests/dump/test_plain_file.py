# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pages of an ELF file, read from the file itself, and work in several threads."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from vmcore_tools.dump.parallel import in_order
from vmcore_tools.dump.plain_file import PlainFile

PAGE = 4096


@pytest.fixture
def plain(tmp_path: Path) -> PlainFile:
    """Frames 10 to 13 and 20 to 21; the last one is cut off. Each page has its frame's number."""
    path = tmp_path / "core"
    frames = np.array([20, 21, 10, 11, 12, 13], dtype=np.uint8)
    path.write_bytes(b"header" + np.repeat(frames, PAGE).tobytes()[:-1])
    return PlainFile(path, np.array([[20, 22, 6], [10, 14, 6 + 2 * PAGE]]))


def read(plain: PlainFile, first: int, count: int) -> bool:
    pages = np.zeros((count, PAGE), dtype=np.uint8)
    ok = plain.read(first, pages)
    if ok:
        assert (pages == np.arange(first, first + count)[:, None]).all()
    return ok


def test_pages_are_where_the_segments_say(plain: PlainFile) -> None:
    assert read(plain, 10, 3)
    assert read(plain, 20, 2)


@pytest.mark.parametrize(
    "first, count", [(9, 1), (9, 3), (14, 1), (13, 1), (12, 9), (21, 2), (99, 1)]
)
def test_what_is_not_whole_in_one_segment_is_not_read(
    plain: PlainFile, first: int, count: int
) -> None:
    assert not read(plain, first, count)


@pytest.mark.parametrize("together", [1, 7, 50])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_results_come_in_the_order_of_the_items(workers: int, together: int) -> None:
    def slow_at_first(item: int) -> int:
        time.sleep(0.01 if item < 3 else 0)
        return item * item

    assert list(in_order(slow_at_first, range(20), workers, together)) == [i * i for i in range(20)]


def test_an_error_in_a_thread_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda item: 1 // item, [1, 0], 2))
