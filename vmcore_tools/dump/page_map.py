# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Which physical pages a target holds.

A successful read does not prove that a page is in the dump: drgn returns
zeros where an ELF segment has ``p_filesz < p_memsz``. So presence is taken
from the file's own tables: the second bitmap of a kdump, the PT_LOAD headers
of an ELF file, or the System RAM resources of a live target.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import struct
from pathlib import Path
from typing import Any, BinaryIO, Iterable, List, Optional, Tuple, Union

import numpy as np
import numpy.typing as npt

from vmcore_tools.dump.flattened import SIGNATURE as FLATTENED_SIGNATURE
from vmcore_tools.dump.flattened import FlattenedFile

Runs = npt.NDArray[np.uint64]

_KDUMP_SIGNATURES = (b"KDUMP   ", b"DISKDUMP")
_ELF_SIGNATURE = b"\177ELF"

# struct disk_dump_header and struct kdump_sub_header of makedumpfile's
# diskdump_mod.h, as 64-bit machines write them.
_KDUMP_HEADER = struct.Struct("<8si390s6xqqIiiII")
_KDUMP_SUB_HEADER = struct.Struct("<QiiQQQQQQQQQQQ")
_PAGE_DESCRIPTOR = np.dtype(
    [("offset", "<i8"), ("size", "<u4"), ("flags", "<u4"), ("page_flags", "<u8")]
)
# diskdump_mod.h and elf_info.h: the disk was full before all was written.
_DUMP_DH_COMPRESSED_INCOMPLETE = 0x8
_DUMP_ELF_INCOMPLETE = 0x1
_INCOMPLETE = "makedumpfile marked the dump as incomplete"
# A note for each of a few thousand CPUs is far less.
_NOTES_BYTES_MAX = 64 << 20
# header_version from which max_mapnr_64 replaces the 32-bit field.
_VERSION_MAX_MAPNR_64 = 6
# More than 100 TiB of RAM; a file with a hole in it can promise any number.
_BITMAP_BYTES_MAX = 4 << 30
_PAGE_SIZES = (4096, 16384, 65536)
# Bytes of a bitmap, and page descriptors, handled at a time.
_BITMAP_CHUNK_BYTES = 1 << 20
_DESCRIPTOR_CHUNK = 1 << 18


class DumpError(ValueError):
    """The file is not a dump, or its tables make no sense."""


@dataclasses.dataclass(frozen=True)
class PageMap:
    """
    The physical pages that a target holds.

    :ivar format: what the file is, in words
    :ivar page_size_bytes: the dump's page size
    :ivar runs: uint64 array of shape (n, 2): sorted, disjoint ``[start, end)``
        page frame numbers that can be read
    :ivar dump_level: makedumpfile's ``-d``, None where the file does not say
    :ivar flattened: the file is in makedumpfile's flattened format
    :ivar truncated: why pages that the file promises are not in it
    :ivar incomplete: makedumpfile had no room to write all of it
    :ivar split: it is one file of a set that ``makedumpfile --split`` wrote
    :ivar zero_filled_holes: a read of an absent page can give zeros
    :ivar hole_runs: uint64 array of shape (h, 2): page frames that an ELF file
        has a segment of, but not the bytes. ``makedumpfile -E`` leaves out
        pages of zeros that way, and those that it excludes for their use.
    :ivar segments: int64 array of shape (k, 3): where an ELF file has pages as
        they are: first page frame, the one behind the last, and file offset
    """

    format: str
    page_size_bytes: int
    runs: Runs
    dump_level: Optional[int] = None
    flattened: bool = False
    truncated: Optional[str] = None
    incomplete: bool = False
    split: bool = False
    zero_filled_holes: bool = False
    hole_runs: Runs = dataclasses.field(default_factory=lambda: merge_runs(()))
    segments: npt.NDArray[np.int64] = dataclasses.field(
        default_factory=lambda: np.zeros((0, 3), dtype=np.int64)
    )

    @functools.cached_property
    def present_pages(self) -> int:
        """The number of pages that can be read."""
        return int((self.runs[:, 1] - self.runs[:, 0]).sum())

    def present(self, pfns: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Bool array: which of *pfns* (any shape and order) can be read."""
        return _in_runs(self.runs, pfns)

    def present_between(self, start: int, end: int) -> npt.NDArray[np.bool_]:
        """As :meth:`present`, for the page frames ``[start, end)``; faster."""
        low = int(np.searchsorted(self.runs[:, 1], start, side="right"))
        high = int(np.searchsorted(self.runs[:, 0], end, side="left"))
        inside = np.clip(self.runs[low:high].astype(np.int64), start, end) - start
        change = np.zeros(end - start + 1, dtype=np.int8)
        change[inside[:, 0]] = 1
        change[inside[:, 1]] -= 1  # runs do not touch
        result: npt.NDArray[np.bool_] = np.cumsum(change[:-1], dtype=np.int8) > 0
        return result

    def has_run(self, start: int, end: int) -> bool:
        """Whether all of the page frames ``[start, end)`` can be read."""
        at = int(np.searchsorted(self.runs[:, 0], start, side="right")) - 1
        return at >= 0 and end <= int(self.runs[at, 1])

    def left_out(self, pfns: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """
        Bool array: which of *pfns* makedumpfile did not write.

        It excludes no page for its use that the kernel itself uses, so if the
        ``struct page`` says that of such a page, the page is all zeros.
        """
        return _in_runs(self.hole_runs, pfns)


def _in_runs(runs: Runs, pfns: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    if not len(runs):
        return np.zeros(pfns.shape, dtype=bool)
    index = np.searchsorted(runs[:, 0], pfns, side="right")
    ends = runs[np.maximum(index, 1) - 1, 1]
    result: npt.NDArray[np.bool_] = (index > 0) & (pfns < ends)
    return result


def merge_runs(ranges: Iterable[Tuple[int, int]]) -> Runs:
    """Sort and join ``[start, end)`` ranges into a uint64 array of shape (n, 2)."""
    merged: List[List[int]] = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.array(merged, dtype=np.uint64).reshape(-1, 2)


def page_map_of_file(path: Union[str, Path]) -> PageMap:
    """
    Read the page map of a dump file.

    :raises OSError: if the file cannot be read
    :raises DumpError: if it is not a kdump or an ELF core file
    """
    with open(path, "rb") as file:
        signature = file.read(len(FLATTENED_SIGNATURE))
        if signature != FLATTENED_SIGNATURE:
            return _page_map(file, file.seek(0, io.SEEK_END))
        flattened = FlattenedFile(file)
        page_map = _page_map(flattened, flattened.size)  # type: ignore[arg-type]
        truncated = page_map.truncated
        if flattened.truncated:
            truncated = "the flattened file has no end record"
        return dataclasses.replace(
            page_map, flattened=True, truncated=truncated, segments=np.zeros((0, 3), dtype=np.int64)
        )


def _page_map(file: BinaryIO, size_bytes: int) -> PageMap:
    file.seek(0)
    signature = file.read(8)
    if signature in _KDUMP_SIGNATURES:
        return _kdump_page_map(file, size_bytes)
    if signature.startswith(_ELF_SIGNATURE):
        return _elf_page_map(file, size_bytes)
    raise DumpError("it is neither a kdump nor an ELF core file")


def _kdump_page_map(file: BinaryIO, size_bytes: int) -> PageMap:
    file.seek(0)
    head = file.read(_KDUMP_HEADER.size)
    if len(head) < _KDUMP_HEADER.size:
        raise DumpError("its kdump header is cut off")
    (_, version, _, _, _, status, block_size, sub_header_blocks, bitmap_blocks, max_mapnr) = (
        _KDUMP_HEADER.unpack(head)
    )
    if not 512 <= block_size <= 1 << 20 or block_size & (block_size - 1):
        raise DumpError(f"its kdump header has an impossible block size ({block_size})")
    file.seek(block_size)
    sub_head = file.read(_KDUMP_SUB_HEADER.size)
    if len(sub_head) < _KDUMP_SUB_HEADER.size:
        raise DumpError("its kdump header is cut off")
    sub = _KDUMP_SUB_HEADER.unpack(sub_head)
    _, dump_level, split, start_pfn, end_pfn = sub[:5]
    for name, offset, size in (("VMCOREINFO", *sub[5:7]), ("notes", *sub[7:9])):
        # libkdumpfile trusts these, and dies of absurd ones.
        if offset + size > size_bytes or size > _NOTES_BYTES_MAX:
            raise DumpError(f"its kdump header has an impossible place for its {name}")
    if version >= _VERSION_MAX_MAPNR_64:
        start_pfn, end_pfn, max_mapnr = sub[11:14]

    bitmap_offset = (1 + sub_header_blocks) * block_size
    half = bitmap_blocks * block_size // 2
    if sub_header_blocks < 1 or not 0 < half <= _BITMAP_BYTES_MAX:
        raise DumpError("its kdump header has an impossible place for its page bitmaps")
    if bitmap_offset + 2 * half > size_bytes:
        raise DumpError("its page bitmap is cut off")
    runs = _bitmap_runs(file, bitmap_offset + half, min(half, (max_mapnr + 7) // 8))
    page_map = PageMap(
        "kdump-compressed",
        block_size,
        runs,
        dump_level=dump_level,
        truncated=_INCOMPLETE if status & _DUMP_DH_COMPRESSED_INCOMPLETE else None,
        incomplete=bool(status & _DUMP_DH_COMPRESSED_INCOMPLETE),
    )
    if split:
        # Each file of a set has the bitmap of all, and the data of its part.
        page_map = dataclasses.replace(
            page_map,
            runs=merge_runs(
                (max(start, start_pfn), min(end, end_pfn)) for start, end in runs.tolist()
            ),
            truncated="it is one file of a split set; join them with makedumpfile --reassemble",
            split=True,
        )
    return _without_cut_off_pages(file, size_bytes, page_map, bitmap_offset + 2 * half)


def kdump_descriptors(file: BinaryIO) -> Any:
    """
    Where a kdump has its pages, in their order: ``offset``, ``size`` and ``flags``.

    :param file: not flattened; one that ends early has fewer
    :raises DumpError: if it is no kdump
    """
    size_bytes = file.seek(0, io.SEEK_END)
    total = _kdump_page_map(file, size_bytes).present_pages
    file.seek(0)
    header = _KDUMP_HEADER.unpack(file.read(_KDUMP_HEADER.size))
    block_size, sub_header_blocks, bitmap_blocks = header[6:9]
    file.seek((1 + sub_header_blocks + bitmap_blocks) * block_size)
    data = file.read(total * _PAGE_DESCRIPTOR.itemsize)
    data = data[: len(data) - len(data) % _PAGE_DESCRIPTOR.itemsize]
    descriptors = np.frombuffer(data, dtype=_PAGE_DESCRIPTOR)
    return descriptors[_inside(descriptors, size_bytes)]


def _bitmap_runs(file: BinaryIO, offset: int, size: int) -> Runs:
    """Runs of set bits of a bitmap in the file, the lowest bit of a byte first."""
    parts: List[npt.NDArray[np.int64]] = []
    previous = np.zeros(1, dtype=np.int8)
    file.seek(offset)
    for start in range(0, size, _BITMAP_CHUNK_BYTES):
        chunk = np.frombuffer(file.read(min(_BITMAP_CHUNK_BYTES, size - start)), dtype=np.uint8)
        bits = np.unpackbits(chunk, bitorder="little").astype(np.int8)
        parts.append(np.flatnonzero(np.diff(bits, prepend=previous)) + start * 8)
        previous = bits[-1:]
    edges = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    if len(edges) % 2:
        edges = np.append(edges, size * 8)
    return edges.astype(np.uint64).reshape(-1, 2)


def _without_cut_off_pages(
    file: BinaryIO, size_bytes: int, page_map: PageMap, descriptors_offset: int
) -> PageMap:
    """Take out the pages whose descriptor or data lie behind the file's end."""

    def descriptors(first: int, count: int) -> Any:
        file.seek(descriptors_offset + first * _PAGE_DESCRIPTOR.itemsize)
        data = file.read(count * _PAGE_DESCRIPTOR.itemsize)
        data = data[: len(data) - len(data) % _PAGE_DESCRIPTOR.itemsize]
        return np.frombuffer(data, dtype=_PAGE_DESCRIPTOR)

    total = page_map.present_pages
    # Data are written in the order of the pages, so if those of the last
    # pages are all there, so are the others. (All zero pages share one copy
    # at the front: look at more than one descriptor.)
    first = max(0, total - _DESCRIPTOR_CHUNK)
    tail = descriptors(first, total - first)
    if len(tail) == total - first and _inside(tail, size_bytes).all():
        return page_map

    keep: List[npt.NDArray[np.bool_]] = []
    for start in range(0, total, _DESCRIPTOR_CHUNK):
        count = min(_DESCRIPTOR_CHUNK, total - start)
        chunk = descriptors(start, count)
        inside = np.zeros(count, dtype=bool)
        inside[: len(chunk)] = _inside(chunk, size_bytes)
        keep.append(inside)
    kept = np.concatenate(keep)
    lengths = (page_map.runs[:, 1] - page_map.runs[:, 0]).astype(np.int64)
    pfns = np.repeat(page_map.runs[:, 0].astype(np.int64), lengths)
    pfns += np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    pfns = pfns[kept]
    breaks = np.flatnonzero(np.diff(pfns) != 1) + 1
    starts = pfns[np.concatenate(([0], breaks))] if len(pfns) else pfns
    ends = pfns[np.concatenate((breaks - 1, [-1]))] + 1 if len(pfns) else pfns
    lost = f"the file ends before the data of {total - int(kept.sum())} of its {total} pages"
    return dataclasses.replace(
        page_map,
        runs=np.stack((starts, ends), axis=1).astype(np.uint64),
        truncated=f"{_INCOMPLETE}: {lost}" if page_map.incomplete else lost,
    )


def _inside(descriptors: Any, size_bytes: int) -> npt.NDArray[np.bool_]:
    ends = descriptors["offset"] + descriptors["size"].astype(np.int64)
    result: npt.NDArray[np.bool_] = (
        (descriptors["offset"] > 0) & (descriptors["size"] > 0) & (ends <= size_bytes)
    )
    return result


def _elf_page_map(file: BinaryIO, size_bytes: int) -> PageMap:
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        elf = ELFFile(file)
        if elf["e_type"] != "ET_CORE":
            raise DumpError(f"it is an ELF file, but no core dump ({elf['e_type']})")
        segments = [
            (segment["p_paddr"], segment["p_offset"], segment["p_filesz"], segment["p_memsz"])
            for segment in elf.iter_segments("PT_LOAD")
        ]
        machine = elf["e_machine"]
        incomplete = bool(elf["e_flags"] & _DUMP_ELF_INCOMPLETE)
    except ELFError as error:
        raise DumpError(f"its ELF headers are damaged: {error}") from error
    page_size_bytes = _elf_page_size(file, elf)
    present: List[Tuple[int, int]] = []
    in_file: List[Tuple[int, int, int]] = []
    cut_off_bytes = 0
    holes: List[Tuple[int, int]] = []
    for physical, offset, file_bytes, memory_bytes in segments:
        if physical == 0xFFFFFFFFFFFFFFFF:
            continue  # /proc/kcore's vmalloc segments have no physical address
        available = max(0, min(file_bytes, size_bytes - offset))
        cut_off_bytes += file_bytes - available
        start = -(-physical // page_size_bytes)
        if file_bytes < memory_bytes:
            end = (physical + memory_bytes) // page_size_bytes
            holes.append((-(-(physical + file_bytes) // page_size_bytes), end))
        end = (physical + available) // page_size_bytes
        present.append((start, end))
        if start < end:
            in_file.append((start, end, offset + start * page_size_bytes - physical))
    truncated = _INCOMPLETE if incomplete else None
    if cut_off_bytes:
        lost = f"the file ends {cut_off_bytes} bytes before the end of its segments"
        truncated = f"{_INCOMPLETE}: {lost}" if incomplete else lost
    return PageMap(
        f"ELF core dump ({machine})",
        page_size_bytes,
        merge_runs(present),
        truncated=truncated,
        incomplete=incomplete,
        zero_filled_holes=bool(holes),
        hole_runs=merge_runs(holes),
        segments=np.array(in_file, dtype=np.int64).reshape(-1, 3),
    )


def _elf_page_size(file: BinaryIO, elf: Any) -> int:
    """PAGESIZE of the VMCOREINFO note; 4096 where there is none."""
    for segment in elf.iter_segments("PT_NOTE"):
        file.seek(segment["p_offset"])
        notes = file.read(min(segment["p_filesz"], 1 << 24))
        position = notes.find(b"\nPAGESIZE=")
        if position >= 0:
            value = notes[position + 10 : position + 20].split(b"\n")[0]
            if value.isdigit() and int(value) in _PAGE_SIZES:
                return int(value)
            raise DumpError("its VMCOREINFO has an impossible PAGESIZE")
    return 4096
