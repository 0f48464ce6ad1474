# SPDX-License-Identifier: LGPL-2.1-or-later
"""The page map against files whose pages are known because the test wrote them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmcore_tools.dump.page_map import (
    DumpError,
    PageMap,
    merge_runs,
    page_map_of_file,
)

PAGE = 4096


def kdump(
    pfns: Sequence[int],
    *,
    status: int = 0,
    dump_level: int = 31,
    max_mapnr: int = 64,
    part: Optional[Tuple[int, int]] = None,
    notes: Tuple[int, int] = (0, 0),
    page_data: bytes = b"x" * 16,
) -> bytes:
    """A kdump-compressed file of version 6 with the given pages."""
    bitmap = bytearray(PAGE)
    for pfn in pfns:
        bitmap[pfn // 8] |= 1 << (pfn % 8)
    header = struct.pack(
        "<8si390s6xqqIiiII",
        *(b"KDUMP   ", 6, bytes(390), 0, 0, status, PAGE, 1, 2, max_mapnr),
    )
    sub_header = struct.pack(
        "<QiiQQQQQQQQQQQ",
        *(
            0,
            dump_level,
            int(part is not None),
            *([0] * 4),
            *notes,
            0,
            0,
            *(part or (0, 0)),
            max_mapnr,
        ),
    )
    descriptors_at = 4 * PAGE
    data_at = descriptors_at + 24 * len(pfns)
    descriptors = b"".join(
        struct.pack("<qIIQ", data_at + i * len(page_data), len(page_data), 1, 0)
        for i in range(len(pfns))
    )
    return b"".join(
        (
            header.ljust(PAGE, b"\0"),
            sub_header.ljust(PAGE, b"\0"),
            bytes([0xFF]) * PAGE,  # the first bitmap: all of RAM
            bytes(bitmap),
            descriptors,
            page_data * len(pfns),
        )
    )


def elf_core(segments: Sequence[Tuple[int, int, int]], *, pagesize: Optional[int] = None) -> bytes:
    """An ELF core file; a segment is (physical address, file bytes, memory bytes)."""
    note = f"\nPAGESIZE={pagesize}\n".encode() if pagesize else b""
    headers = len(segments) + 1
    data_at = 64 + 56 * headers
    program_headers = [struct.pack("<IIQQQQQQ", 4, 0, data_at, 0, 0, len(note), len(note), 0)]
    data = note
    for physical, file_bytes, memory_bytes in segments:
        program_headers.append(
            struct.pack(
                "<IIQQQQQQ", 1, 0, data_at + len(data), 0, physical, file_bytes, memory_bytes, 0
            )
        )
        data += b"y" * file_bytes
    ident = b"\177ELF\2\1\1".ljust(16, b"\0")
    header = ident + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, headers, 0, 0, 0)
    return header + b"".join(program_headers) + data


def flattened(contents: bytes, order: Sequence[slice]) -> bytes:
    """makedumpfile's flattened format, with one record for each slice."""
    parts = [b"makedumpfile\0\0\0\0".ljust(4096, b"\0")]
    for piece in order:
        data = contents[piece]
        parts.append(struct.pack(">qq", piece.start, len(data)) + data)
    return b"".join([*parts, struct.pack(">qq", -1, -1)])


def runs_of(page_map: PageMap) -> List[List[int]]:
    return page_map.runs.tolist()


def read(tmp_path: Path, contents: bytes) -> PageMap:
    path = tmp_path / "vmcore"
    path.write_bytes(contents)
    return page_map_of_file(path)


def test_kdump_has_the_pages_of_its_second_bitmap(tmp_path: Path) -> None:
    page_map = read(tmp_path, kdump([1, 2, 3, 7, 8, 63]))
    assert runs_of(page_map) == [[1, 4], [7, 9], [63, 64]]
    assert page_map.present_pages == 6
    assert page_map.dump_level == 31
    assert page_map.page_size_bytes == PAGE
    assert page_map.truncated is None
    assert not page_map.zero_filled_holes


def test_bits_behind_max_mapnr_do_not_count(tmp_path: Path) -> None:
    assert runs_of(read(tmp_path, kdump([1, 40], max_mapnr=16))) == [[1, 2]]


def test_a_file_of_a_split_set_has_the_pages_of_its_part(tmp_path: Path) -> None:
    # The bitmap is that of the whole set; here only part of it has data.
    whole = kdump([1, 2, 20, 21], part=(16, 64))
    page_map = read(tmp_path, whole)
    assert runs_of(page_map) == [[20, 22]]
    assert "--reassemble" in (page_map.truncated or "")


def test_kdump_marked_incomplete_says_so(tmp_path: Path) -> None:
    marked = read(tmp_path, kdump([1], status=0x8))
    assert marked.incomplete and "incomplete" in (marked.truncated or "")
    assert not read(tmp_path, kdump([1], status=0x2)).incomplete


def test_elf_marked_incomplete_says_so(tmp_path: Path) -> None:
    contents = bytearray(elf_core([(0x1000, PAGE, PAGE)]))
    assert not read(tmp_path, bytes(contents)).incomplete
    contents[48] = 1  # e_flags: DUMP_ELF_INCOMPLETE
    marked = read(tmp_path, bytes(contents))
    assert marked.incomplete and marked.truncated == "makedumpfile marked the dump as incomplete"
    cut_off = read(tmp_path, bytes(contents[:-1]))
    assert (
        cut_off.truncated
        == f"{marked.truncated}: the file ends 1 bytes before the end of its segments"
    )


def test_cut_off_kdump_loses_exactly_the_pages_behind_the_cut(tmp_path: Path) -> None:
    whole = kdump([1, 2, 3, 9])
    page_map = read(tmp_path, whole[:-20])  # all of the last page, part of the one before
    assert runs_of(page_map) == [[1, 3]]
    assert page_map.truncated == "the file ends before the data of 2 of its 4 pages"


def test_kdump_cut_in_its_descriptors_has_no_page(tmp_path: Path) -> None:
    page_map = read(tmp_path, kdump([1, 2, 3])[: 4 * PAGE + 10])
    assert runs_of(page_map) == []
    assert page_map.truncated == "the file ends before the data of 3 of its 3 pages"


@pytest.mark.parametrize("length", [8, 100, PAGE + 8, 3 * PAGE])
def test_kdump_without_its_headers_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(DumpError, match="cut off"):
        read(tmp_path, kdump([1])[:length])


@pytest.mark.parametrize("notes", [(1 << 40, 16), (0, 1 << 40), ((1 << 64) - 8, 16)])
def test_notes_that_cannot_be_there_are_refused(tmp_path: Path, notes: Tuple[int, int]) -> None:
    with pytest.raises(DumpError, match="impossible place for its notes"):
        read(tmp_path, kdump([1], notes=notes))


def test_elf_pages_are_those_of_p_filesz_not_p_memsz(tmp_path: Path) -> None:
    page_map = read(tmp_path, elf_core([(0x10000, 2 * PAGE, 4 * PAGE), (0x40000, PAGE, PAGE)]))
    assert runs_of(page_map) == [[16, 18], [64, 65]]
    assert page_map.zero_filled_holes
    assert page_map.hole_runs.tolist() == [[18, 20]]
    assert page_map.has_run(16, 18) and page_map.has_run(64, 65)
    assert not page_map.has_run(16, 19) and not page_map.has_run(15, 17)
    asked = np.array([17, 18, 19, 20, 64], dtype=np.uint64)
    assert page_map.left_out(asked).tolist() == [False, True, True, False, False]


def test_elf_with_whole_segments_has_no_zero_filled_holes(tmp_path: Path) -> None:
    page_map = read(tmp_path, elf_core([(0x10000, PAGE, PAGE)]))
    assert not page_map.zero_filled_holes
    assert not page_map.left_out(np.array([16], dtype=np.uint64)).any()
    assert page_map.truncated is None


def test_elf_page_size_comes_from_vmcoreinfo(tmp_path: Path) -> None:
    page_map = read(tmp_path, elf_core([(0x10000, 0x10000, 0x10000)], pagesize=16384))
    assert page_map.page_size_bytes == 16384
    assert runs_of(page_map) == [[4, 8]]


def test_segment_without_a_physical_address_is_left_out(tmp_path: Path) -> None:
    page_map = read(tmp_path, elf_core([(2**64 - 1, PAGE, PAGE), (0, PAGE, PAGE)]))
    assert runs_of(page_map) == [[0, 1]]


def test_cut_off_elf_loses_the_pages_behind_the_cut(tmp_path: Path) -> None:
    page_map = read(tmp_path, elf_core([(0, 3 * PAGE, 3 * PAGE)])[: -PAGE - 1])
    assert runs_of(page_map) == [[0, 1]]
    assert page_map.truncated == f"the file ends {PAGE + 1} bytes before the end of its segments"


def test_elf_that_is_no_core_file_is_refused(tmp_path: Path) -> None:
    contents = bytearray(elf_core([(0, PAGE, PAGE)]))
    contents[16] = 2  # ET_EXEC
    with pytest.raises(DumpError, match="no core dump"):
        read(tmp_path, bytes(contents))


@pytest.mark.parametrize("contents", [b"", b"KDUM", b"\0" * 10000, b"\177ELF\2\1\1" + bytes(9)])
def test_what_is_no_dump_is_refused(tmp_path: Path, contents: bytes) -> None:
    with pytest.raises(DumpError):
        read(tmp_path, contents)


def test_flattened_file_has_the_pages_of_the_file_inside(tmp_path: Path) -> None:
    contents = kdump([5, 6, 20])
    half = len(contents) // 2
    # The records may come in any order, and the header is written again last.
    order = [slice(0, 10), slice(half, len(contents)), slice(10, half), slice(0, PAGE)]
    page_map = read(tmp_path, flattened(contents, order))
    assert runs_of(page_map) == [[5, 7], [20, 21]]
    assert page_map.flattened
    assert page_map.truncated is None


def test_later_record_of_a_flattened_file_wins(tmp_path: Path) -> None:
    stale, final = kdump([1]), kdump([2])
    contents = flattened(stale + final, [slice(0, len(stale))])[:-16]
    contents += struct.pack(">qq", 0, len(final)) + final + struct.pack(">qq", -1, -1)
    assert runs_of(read(tmp_path, contents)) == [[2, 3]]


def test_flattened_file_without_its_end_is_truncated(tmp_path: Path) -> None:
    contents = kdump([5])
    page_map = read(tmp_path, flattened(contents, [slice(0, len(contents))])[:-16])
    assert page_map.truncated == "the flattened file has no end record"


@given(st.sets(st.integers(0, 4095), max_size=300))
def test_runs_and_presence_are_the_bits_that_were_set(pfns: set) -> None:  # type: ignore[type-arg]
    runs = merge_runs((pfn, pfn + 1) for pfn in pfns)
    page_map = PageMap("kdump-compressed", PAGE, runs)
    everything = np.arange(4096, dtype=np.uint64)
    present: Dict[int, bool] = dict(enumerate(page_map.present(everything).tolist()))
    assert {pfn for pfn, there in present.items() if there} == pfns
    assert page_map.present_pages == len(pfns)
    assert all(a[1] < b[0] for a, b in zip(runs.tolist(), runs.tolist()[1:]))


def test_present_frames_of_a_window_are_those_of_the_runs() -> None:
    page_map = PageMap("test", 4096, merge_runs([(3, 5), (10, 14), (20, 21)]))
    for start in range(25):
        for end in range(start, 26):
            pfns = np.arange(start, end, dtype=np.uint64)
            between = page_map.present_between(start, end)
            assert between.tolist() == page_map.present(pfns).tolist()


@given(
    kind=st.sampled_from(["kdump", "elf", "flattened"]),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(max_size=8)), max_size=6),
    length=st.integers(0, 1 << 16),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_headers_give_pages_that_the_file_has_or_are_refused(
    tmp_path: Path, kind: str, changes: List[Tuple[int, bytes]], length: int
) -> None:
    contents = bytearray(
        elf_core([(0x10000, 0x3000, 0x3000), (0x20000, 0x1000, 0x2000)], pagesize=4096)
        if kind == "elf"
        else kdump([3, 4, 9], notes=(PAGE, 16))
    )
    if kind == "flattened":
        contents = bytearray(flattened(bytes(contents), [slice(0, 9000), slice(9000, 20000)]))
    # What counts is at the front, or behind 4 KiB.
    for at, data in changes:
        start = at // 2 % 600 + at % 2 * PAGE
        contents[start : start + len(data)] = data
    path = tmp_path / "vmcore"
    path.write_bytes(contents[: length if length < len(contents) // 2 else len(contents)])
    try:
        page_map = page_map_of_file(path)
    except (ValueError, OSError):
        return  # DumpError, or an offset that no file has
    starts, ends = page_map.runs[:, 0], page_map.runs[:, 1]
    assert (starts < ends).all() and (ends[:-1] < starts[1:]).all()
    assert page_map.present_pages <= path.stat().st_size
    for first, end, offset in page_map.segments.tolist():
        size = (end - first) * page_map.page_size_bytes
        assert offset >= 0 and offset + size <= path.stat().st_size
