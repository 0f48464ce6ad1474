# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Random access to makedumpfile's flattened format.

``makedumpfile -F`` writes to a pipe, so it cannot seek back: the file is a
list of (offset, size, bytes) records, in big endian, and a later record may
overwrite an earlier one (the header is written twice).
"""

from __future__ import annotations

import bisect
import io
import struct
from typing import BinaryIO, List

SIGNATURE = b"makedumpfile\0\0\0\0"
#: MAX_SIZE_MDF_HEADER of makedumpfile: the records start behind it.
_HEADER_SIZE_BYTES = 4096
_RECORD = struct.Struct(">qq")


class FlattenedFile(io.RawIOBase):
    """
    The file that ``makedumpfile -R`` would have written, read-only.

    :attr:`truncated` is set if the end record is missing.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._position = 0
        self.truncated = False
        self._size = 0
        # Later records win: a segment is looked up from the end.
        self._starts: List[int] = []
        self._segments: List[tuple[int, int, int]] = []
        self._index()

    def _index(self) -> None:
        file_size = self._file.seek(0, io.SEEK_END)
        position = _HEADER_SIZE_BYTES
        raw: List[tuple[int, int, int]] = []
        while True:
            self._file.seek(position)
            header = self._file.read(_RECORD.size)
            if len(header) < _RECORD.size:
                self.truncated = True
                break
            offset, size = _RECORD.unpack(header)
            if offset == -1 and size == -1:
                break
            if offset < 0 or size <= 0:
                self.truncated = True
                break
            position += _RECORD.size
            available = min(size, file_size - position)
            if available > 0:
                raw.append((offset, offset + available, position))
                self._size = max(self._size, offset + available)
            if available < size:
                self.truncated = True
                break
            position += size
        self._segments = _without_overlaps(raw)
        self._starts = [start for start, _, _ in self._segments]

    @property
    def size(self) -> int:
        return self._size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}
        self._position = max(0, base[whence] + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Read at most *size* bytes; what no record wrote reads as zero."""
        end = self._size if size < 0 else min(self._size, self._position + size)
        result = bytearray(max(0, end - self._position))
        index = max(0, bisect.bisect_right(self._starts, self._position) - 1)
        for start, stop, source in self._segments[index:]:
            if start >= end:
                break
            low, high = max(start, self._position), min(stop, end)
            if low < high:
                self._file.seek(source + low - start)
                data = self._file.read(high - low)
                at = low - self._position
                result[at : at + len(data)] = data
        self._position = max(self._position, end)
        return bytes(result)


def _without_overlaps(records: List[tuple[int, int, int]]) -> List[tuple[int, int, int]]:
    """Sorted, disjoint (start, stop, position) segments; later records win."""
    if all(a[1] <= b[0] for a, b in zip(records, records[1:])):
        return records
    edges = sorted({edge for start, stop, _ in records for edge in (start, stop)})
    owner: List[int] = [-1] * len(edges)
    for number, (start, stop, _) in enumerate(records):
        for i in range(bisect.bisect_left(edges, start), bisect.bisect_left(edges, stop)):
            owner[i] = number
    result: List[tuple[int, int, int]] = []
    for i, number in enumerate(owner[:-1]):
        if number >= 0:
            start, _, position = records[number]
            result.append((edges[i], edges[i + 1], position + edges[i] - start))
    return result
