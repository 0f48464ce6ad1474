# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VMCOREINFO that is in the memory of a dump alone."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from tests.bad_input import files
from vmcore_tools import target
from vmcore_tools.dump import vmcoreinfo_note
from vmcore_tools.dump.page_map import page_map_of_file
from vmcore_tools.dump.vmcoreinfo_note import vmcoreinfo_in_memory
from vmcore_tools.errors import TargetError
from vmcore_tools.info import describe

PAGE = 4096
NOTE = files.notes([(b"VMCOREINFO", 0, files.vmcoreinfo())])
OTHER = files.notes([(b"VMCOREINFO", 0, files.vmcoreinfo(release="6.1.0-17-amd64"))])
QEMU = [(b"QEMU", 0, b"\0" * 440)]


def dump(folder: Path, *pages: bytes) -> Path:
    """QEMU's dump of a guest with these pages, whose notes are of the CPUs alone."""
    path = folder / "guest.elf"
    path.write_bytes(files.elf_core(QEMU, b"".join(page.ljust(PAGE, b"\0") for page in pages)))
    return path


def found(path: Path) -> list[bytes]:
    return vmcoreinfo_in_memory(path, page_map_of_file(path))


def test_the_page_that_begins_with_the_note(tmp_path: Path) -> None:
    assert found(dump(tmp_path, b"", NOTE, b"x" * PAGE)) == [files.vmcoreinfo()]


def test_a_copy_of_it_is_the_same_note(tmp_path: Path) -> None:
    assert found(dump(tmp_path, NOTE, NOTE)) == [files.vmcoreinfo()]


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"x" + NOTE,
        NOTE.replace(b"VMCOREINFO", b"VMCOREINF0"),
        NOTE.replace(b"OSRELEASE=", b"osrelease="),
        NOTE[:4] + b"\xff\xff\xff\xff" + NOTE[8:],
        NOTE[:8] + b"\1" + NOTE[9:],
    ],
    ids=["zeros", "not at the start", "name", "text", "longer than the file", "type"],
)
def test_what_is_none(tmp_path: Path, page: bytes) -> None:
    assert found(dump(tmp_path, page)) == []


def kdump(folder: Path, page: bytes, flags: int = 1) -> Path:
    """A kdump without notes, with one page, compressed with zlib."""
    whole = bytearray(files.kdump(files.vmcoreinfo()))
    packed = zlib.compress(page.ljust(PAGE, b"\0"))
    whole[4 * PAGE : 4 * PAGE + 16] = struct.pack("<qII", 5 * PAGE, len(packed), flags)
    whole[5 * PAGE :] = packed
    path = folder / "guest.kdump"
    path.write_bytes(whole)
    return path


def test_page_of_a_kdump(tmp_path: Path) -> None:
    assert found(kdump(tmp_path, NOTE)) == [files.vmcoreinfo()]
    assert found(kdump(tmp_path, b"x" + NOTE)) == []
    # Of lzo, or damaged.
    assert found(kdump(tmp_path, NOTE, flags=2)) == []
    path = kdump(tmp_path, NOTE)
    path.write_bytes(path.read_bytes()[:-9])
    assert found(path) == []
    path.write_bytes(files.flattened(kdump(tmp_path, NOTE).read_bytes()))
    assert found(path) == [files.vmcoreinfo()]


def test_dumps_that_are_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dump(tmp_path, b"", NOTE)
    monkeypatch.setattr(vmcoreinfo_note, "SEARCHED_BYTES_MAX", PAGE)
    assert found(path) == []


def test_the_dump_opens_with_it(tmp_path: Path) -> None:
    path = dump(tmp_path, b"", NOTE)
    facts = {fact.name: fact.value for fact in describe(path)}
    assert facts["kernel_release"] == files.RELEASE
    with pytest.raises(TargetError, match=f"no debug info for kernel {files.RELEASE} "):
        target.open_core(path)


def test_two_boots_in_one_memory_are_not_guessed_between(tmp_path: Path) -> None:
    path = dump(tmp_path, NOTE, OTHER)
    assert len(found(path)) == 2
    with pytest.raises(TargetError, match=r"has no VMCOREINFO, .* give it with --vmcoreinfo"):
        target.open_core(path)


def test_the_users_own_counts(tmp_path: Path) -> None:
    given = tmp_path / "vmcoreinfo"
    given.write_bytes(files.vmcoreinfo(release="6.1.0-17-amd64"))
    with pytest.raises(TargetError, match=r"no debug info for kernel 6\.1\.0-17-amd64 "):
        target.open_core(dump(tmp_path, NOTE), vmcoreinfo=given)
