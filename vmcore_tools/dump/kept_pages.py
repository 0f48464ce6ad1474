# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pages of a small target: each is read once, when it is first asked for."""

from __future__ import annotations

from typing import Callable, Optional, Tuple

import numpy as np
import numpy.typing as npt

from vmcore_tools.dump.page_map import PageMap

Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]

#: Bytes that are read at once.
_BLOCK_BYTES = 1 << 20


class KeptPages:
    """
    :param page_map: the pages that can be read
    :param read_run: reads page frames from a number on into an array of shape
        (n, page size), and notes in one of shape (n,) which it could read
    """

    def __init__(self, page_map: PageMap, read_run: Callable[[int, Bytes, Flags], None]) -> None:
        self._runs = page_map.runs.astype(np.int64)
        lengths = self._runs[:, 1] - self._runs[:, 0]
        self._first = np.cumsum(lengths) - lengths
        self._read_run = read_run
        # Not touched, and so no memory, until it is read.
        self._data = np.empty((page_map.present_pages, page_map.page_size_bytes), dtype=np.uint8)
        self._read = np.zeros(page_map.present_pages, dtype=bool)
        self._block_pages = max(1, _BLOCK_BYTES // page_map.page_size_bytes)
        self._loaded = np.zeros(-(-page_map.present_pages // self._block_pages), dtype=bool)

    def pages(
        self, pfns: npt.NDArray[np.uint64], buffer: Optional[Bytes] = None
    ) -> Tuple[Bytes, Flags]:
        """As ``Memory.read_pages()``; what it gives may not be written to."""
        at, present = self._positions(pfns.astype(np.int64))
        self._load(at[present])
        count = len(pfns)
        if count and present.all() and int(at[-1] - at[0]) == count - 1:
            return self._data[at[0] : at[0] + count], self._read[at[0] : at[0] + count].copy()
        shape = (count, self._data.shape[1])
        data = np.empty(shape, dtype=np.uint8) if buffer is None else buffer[:count]
        if len(self._data):
            self._data.take(at, axis=0, out=data, mode="clip")
        data[~present] = 0
        read = present.copy()
        read[present] = self._read[at[present]]
        return data, read

    def _positions(self, pfns: npt.NDArray[np.int64]) -> Tuple[npt.NDArray[np.int64], Flags]:
        """Where page frames are in the array, and which ones there are."""
        if not len(self._runs):
            return np.zeros(len(pfns), dtype=np.int64), np.zeros(len(pfns), dtype=bool)
        run = np.maximum(np.searchsorted(self._runs[:, 0], pfns, side="right") - 1, 0)
        distance = pfns - self._runs[run, 0]
        present = (distance >= 0) & (pfns < self._runs[run, 1])
        return np.where(present, self._first[run] + distance, 0), present

    def _load(self, at: npt.NDArray[np.int64]) -> None:
        blocks = np.unique(at // self._block_pages)
        for block in blocks[~self._loaded[blocks]].tolist():
            start = block * self._block_pages
            end = min(len(self._data), start + self._block_pages)
            run = int(np.searchsorted(self._first, start, side="right")) - 1
            while start < end:
                first, last = self._runs[run].tolist()
                skipped = start - int(self._first[run])
                count = min(end - start, last - first - skipped)
                data, read = self._data[start : start + count], self._read[start : start + count]
                self._read_run(first + skipped, data, read)
                data[~read] = 0
                start += count
                run += 1
            self._loaded[block] = True
