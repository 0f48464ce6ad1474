# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Bulk reads of what the page map says is there.

drgn reads an object at a time; these reads give NumPy arrays, never touch an
absent page, and say which bytes they could not get.
"""

from __future__ import annotations

import dataclasses
from typing import List, Optional, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Program, ProgramFlags

from vmcore_tools.dump.kept_pages import KeptPages
from vmcore_tools.dump.page_map import PageMap
from vmcore_tools.dump.plain_file import PlainFile

Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Pfns = npt.NDArray[np.uint64]

#: Bytes read at once. Larger reads gain nothing, smaller ones cost a call each.
CHUNK_BYTES = 1 << 20
#: One read that needs no copy may be larger.
_WHOLE_BYTES_MAX = 4 << 20
#: What is held of a target unless somebody says otherwise. One that is no larger is
#: kept as it is read, since each analysis reads most of it again.
HELD_BYTES = 256 << 20
#: Pieces of a target that are worked on at once take a part of that.
_BATCH_PART = 16
_BATCH_BYTES = (1 << 20, 16 << 20)
#: A virtual read that fails is retried in pieces down to the page size.
_VIRTUAL_CHUNK_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class Memory:
    """
    The memory of a target.

    :ivar prog: the drgn program that reads it
    :ivar page_map: the pages that it holds
    :ivar plain: the dump file, if its pages can be read from it as they are
    :ivar held_bytes_max: a target with more is read again by each analysis. It
        bounds what is held of the target's own pages, not what is found in them.
    """

    prog: Program
    page_map: PageMap
    plain: Optional[PlainFile] = None
    held_bytes_max: int = HELD_BYTES
    _kept: List[KeptPages] = dataclasses.field(default_factory=list, repr=False, compare=False)

    def read_pages(self, pfns: Pfns, buffer: Optional[Bytes] = None) -> Tuple[Bytes, Flags]:
        """
        Read whole pages by page frame number.

        :param pfns: uint64 array of shape (n,), sorted
        :param buffer: uint8 array of shape (n or more, page size), which may be
            returned instead of a new one: fresh memory costs as much as a read
        :return: uint8 array of shape (n, page size), and bool array of shape
            (n,): which rows were read; the others are zero
        """
        if self._keeps():
            if not self._kept:
                self._kept.append(KeptPages(self.page_map, self._read_run))
            return self._kept[0].pages(pfns, buffer)
        return self._read_present(pfns, buffer)

    @property
    def batch_bytes(self) -> int:
        """For who reads many pages that belong together: how much to hold at a time."""
        least, most = _BATCH_BYTES
        return min(most, max(least, self.held_bytes_max // _BATCH_PART))

    @property
    def reads_in_parallel(self) -> bool:
        """Whether reads by several threads are faster than by one."""
        return self.plain is not None and not self._keeps()

    def _keeps(self) -> bool:
        # A live target changes: what was read before is not what is there now.
        live = bool(self.prog.flags & ProgramFlags.IS_LIVE)
        size_bytes = self.page_map.present_pages * self.page_map.page_size_bytes
        return not live and size_bytes <= self.held_bytes_max

    def _read_present(self, pfns: Pfns, buffer: Optional[Bytes] = None) -> Tuple[Bytes, Flags]:
        page_size = self.page_map.page_size_bytes
        whole = self._read_whole(pfns, buffer)
        if whole is not None:
            return whole, np.ones(len(pfns), dtype=bool)
        data = np.zeros((len(pfns), page_size), dtype=np.uint8)
        read = np.zeros(len(pfns), dtype=bool)
        present = np.flatnonzero(self.page_map.present(pfns))
        if not len(present):
            return data, read
        breaks = np.flatnonzero(np.diff(pfns[present]) != 1) + 1
        pages_max = max(1, CHUNK_BYTES // page_size)
        for run in np.split(present, breaks):
            for start in range(0, len(run), pages_max):
                rows = run[start : start + pages_max]
                part = slice(int(rows[0]), int(rows[-1]) + 1)
                self._read_run(int(pfns[part.start]), data[part], read[part])
        return data, read

    def _read_whole(self, pfns: Pfns, buffer: Optional[Bytes]) -> Optional[Bytes]:
        """One run of present pages, as drgn reads it: a copy would take as long again."""
        page_size = self.page_map.page_size_bytes
        count = len(pfns)
        if not 0 < count * page_size <= _WHOLE_BYTES_MAX:
            return None
        if int(pfns[-1] - pfns[0]) != count - 1:
            return None
        if not self.page_map.has_run(int(pfns[0]), int(pfns[-1]) + 1):
            return None
        if self.plain is not None:
            data = (
                np.empty((count, page_size), dtype=np.uint8) if buffer is None else buffer[:count]
            )
            if self.plain.read(int(pfns[0]), data):
                return data
        try:
            raw = self.prog.read(int(pfns[0]) * page_size, count * page_size, physical=True)
        except FaultError:
            return None
        return np.frombuffer(raw, dtype=np.uint8).reshape(count, page_size)

    def _read_run(self, first: int, data: Bytes, read: Flags) -> None:
        """Read page frames that follow one another, and note which could be read."""
        page_size = self.page_map.page_size_bytes
        count = len(data)
        if self.plain is not None and self.plain.read(first, data):
            read[:] = True
            return
        try:
            raw = self.prog.read(first * page_size, count * page_size, physical=True)
        except FaultError:
            # Promised by the map, but damaged: keep what can be had.
            data[:] = 0  # a short read of the file itself may have left a part
            if count > 1:
                middle = count // 2
                self._read_run(first, data[:middle], read[:middle])
                self._read_run(first + middle, data[middle:], read[middle:])
            return
        data[:] = np.frombuffer(raw, dtype=np.uint8).reshape(count, page_size)
        read[:] = True

    def read_virtual(self, address: int, size: int) -> Tuple[Bytes, Flags]:
        """
        Read mapped kernel memory, in pages that need not all be present.

        :param address: virtual address, a multiple of the page size
        :param size: bytes, a multiple of the page size
        :return: uint8 array of shape (size,), and bool array of shape
            (size / page size,): which pages were read; the others are zero
        """
        page_size = self.page_map.page_size_bytes
        data = np.zeros(size, dtype=np.uint8)
        read = np.zeros(size // page_size, dtype=bool)
        pending: List[Tuple[int, int]] = [
            (start, min(size, start + _VIRTUAL_CHUNK_BYTES))
            for start in reversed(range(0, size, _VIRTUAL_CHUNK_BYTES))
        ]
        while pending:
            start, end = pending.pop()
            try:
                raw = self.prog.read(address + start, end - start)
            except FaultError:
                if end - start > page_size:
                    # The faulting page ends the try; go on page by page.
                    pending += [(p, p + page_size) for p in reversed(range(start, end, page_size))]
                continue
            data[start:end] = np.frombuffer(raw, dtype=np.uint8)
            read[start // page_size : end // page_size] = True
        if self.page_map.zero_filled_holes:
            self._doubt_zeros(address, data, read)
        return data, read

    def _doubt_zeros(self, address: int, data: Bytes, read: Flags) -> None:
        """Believe a page of zeros only if the page map has its frame."""
        from drgn.helpers.linux.mm import follow_phys

        page_size = self.page_map.page_size_bytes
        zero = ~data.reshape(-1, page_size).any(axis=1)
        for row in np.flatnonzero(zero & read):
            try:
                physical = follow_phys(
                    self.prog["init_mm"].address_of_(), address + int(row) * page_size
                )
                pfn = np.array([physical.value_() // page_size], dtype=np.uint64)
                read[row] = bool(self.page_map.present(pfn)[0])
            except (FaultError, LookupError, NotImplementedError, ValueError):
                read[row] = False
