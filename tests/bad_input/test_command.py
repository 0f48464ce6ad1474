# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bad input to the command itself: one line on standard error, and exit code 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bad_input import files

FILES = {
    "empty": b"",
    "text": b"not a dump\n",
    "vmlinux": files.elf_with_build_id(files.BUILD_ID),
    "process.core": files.elf_core([(b"CORE", files.NT_PRSTATUS, b"\0" * 336)]),
    "qemu.elf": files.elf_core([(b"QEMU", 0, b"\0" * 440)]),
    "cut-off": files.kdump(files.vmcoreinfo())[:5000],
    "no-debug-info.elf": files.elf_vmcore(files.vmcoreinfo()),
    "no-debug-info.kdump": files.kdump(files.vmcoreinfo()),
    "no-utsname.kdump": files.kdump(files.vmcoreinfo(), machine=b""),
    "hostile.elf": files.elf_vmcore(files.vmcoreinfo("5.10\x1b[2J")),
}


def vmcore_tools(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vmcore_tools", *map(str, arguments)],
        cwd=Path(__file__).resolve().parent.parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_one_line(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("vmcore-tools: error: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr[:-1].isprintable()


@pytest.mark.parametrize("name", [*FILES, "absent", "."])
def test_dump(tmp_path: Path, name: str) -> None:
    if name in FILES:
        (tmp_path / name).write_bytes(FILES[name])
    assert_one_line(vmcore_tools("triage", "-c", tmp_path / name))


@pytest.mark.parametrize("name", ["text", "vmlinux", "qemu.elf", "absent"])
def test_symbols(tmp_path: Path, name: str) -> None:
    dump = tmp_path / "vmcore"
    dump.write_bytes(files.elf_vmcore(files.vmcoreinfo(build_id=files.OTHER_BUILD_ID)))
    if name in FILES:
        (tmp_path / name).write_bytes(FILES[name])
    assert_one_line(vmcore_tools("triage", "-c", dump, "-s", tmp_path / name))


def test_info_needs_no_debug_info(tmp_path: Path) -> None:
    dump = tmp_path / "vmcore"
    dump.write_bytes(FILES["no-debug-info.kdump"])
    result = vmcore_tools("info", "-c", dump)
    assert (result.returncode, result.stderr) == (0, "")
    assert files.BUILD_ID in result.stdout
    assert f"linux-image-{files.RELEASE}-dbg" in result.stdout
