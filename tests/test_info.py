# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ``info`` says of a dump, without debug info."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

import pytest

from tests.bad_input import files
from vmcore_tools import vmcoreinfo
from vmcore_tools.errors import TargetError
from vmcore_tools.info import describe, excluded_by
from vmcore_tools.model import Absent


def facts_of(path: Path) -> Dict[str, object]:
    return {fact.name: fact.value for fact in describe(path)}


def test_kdump(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    information = files.vmcoreinfo().replace(b"KERNELOFFSET=0", b"KERNELOFFSET=3a400000")
    path.write_bytes(files.kdump(information + b"CRASHTIME=1600000000\n"))
    assert facts_of(path) == {
        "file": "vmcore",
        "format": "kdump-compressed",
        "flattened": False,
        "truncated": None,
        "file_size_bytes": 6 * 4096,
        "kernel_release": files.RELEASE,
        "build_id": files.BUILD_ID,
        "architecture": "x86_64",
        "crash_time": "2020-09-13 12:26:40 UTC",
        "kaslr_offset": 0x3A400000,
        "debug_info_packages": (
            f"linux-image-{files.RELEASE}-dbg (Debian),"
            f" linux-image-unsigned-{files.RELEASE}-dbgsym (Ubuntu) or"
            f" kernel-debuginfo-{files.RELEASE}"
            f" (Fedora, RHEL: debuginfo-install kernel-{files.RELEASE})"
        ),
        "page_size_bytes": 4096,
        "present_pages": 1,
        "present_bytes": 4096,
        "lowest_physical_address": 0,
        "highest_physical_address": 4095,
        "dump_level": 31,
        "excluded": (
            "zero pages",
            "page cache that is not private",
            "private page cache",
            "user pages",
            "free pages",
        ),
    }


def test_elf(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(files.elf_vmcore(files.vmcoreinfo(build_id="")))
    facts = facts_of(path)
    not_recorded = Absent("not recorded in the dump")
    assert facts["build_id"] == facts["crash_time"] == not_recorded
    assert facts["dump_level"] == facts["excluded"] == not_recorded
    assert facts["lowest_physical_address"] == 0x1000000
    assert facts["highest_physical_address"] == 0x1000FFF


def test_dump_that_drgn_refuses_is_described_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "guest.elf"
    path.write_bytes(files.elf_core([(b"QEMU", 0, b"\0" * 440)]))
    facts = facts_of(path)
    assert isinstance(facts["kernel"], Absent)
    assert facts["kernel"].reason.startswith("guest.elf has no VMCOREINFO, ")
    assert facts["present_pages"] == 1
    assert not any(str(tmp_path) in str(value) for value in facts.values())


def test_hostile_vmcoreinfo(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    information = files.vmcoreinfo("5.10\x1b[2J", build_id="")
    path.write_bytes(files.elf_vmcore(information + b"CRASHTIME=99999999999999999999\x1b\n"))
    facts = facts_of(path)
    assert facts["kernel_release"] == "5.10\\x1b[2J"
    assert facts["crash_time"] == "99999999999999999999\\x1b"


def test_vmcoreinfo_that_drgn_cannot_parse(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    note = files.vmcoreinfo().replace(b"KERNELOFFSET=", b"KERNELOFFSET=x")
    assert b"KERNELOFFSET=x" in note
    path.write_bytes(files.elf_vmcore(note))
    reason = facts_of(path)["kernel"]
    assert isinstance(reason, Absent)
    assert reason.reason.startswith("vmcore cannot be opened: ")


def test_a_page_size_that_none_is(tmp_path: Path) -> None:
    # Nothing that is told of the dump would be right: all of it is counted in pages.
    path = tmp_path / "vmcore"
    path.write_bytes(files.elf_vmcore(files.vmcoreinfo().replace(b"PAGESIZE=4096", b"PAGESIZE=x")))
    with pytest.raises(TargetError, match="its VMCOREINFO has an impossible PAGESIZE; copy "):
        describe(path)


def test_not_a_dump(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"text")
    with pytest.raises(TargetError, match="is neither a kdump nor an ELF vmcore; "):
        describe(path)


def test_excluded_by() -> None:
    assert excluded_by(0) == ()
    assert excluded_by(17) == ("zero pages", "free pages")


def test_vmcoreinfo_of_a_hostile_note() -> None:
    values = vmcoreinfo.parse("A=1\nA=2\nno value\n=x\nBUILD-ID=../../etc\nSYMBOL(a)=zz\nB=c=d")
    assert values["A"] == "1"
    assert values["B"] == "c=d"
    assert vmcoreinfo.build_id(values) is None
    assert vmcoreinfo.number(values, "SYMBOL(a)") is None
    assert vmcoreinfo.number(values, "absent") is None
