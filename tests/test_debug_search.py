# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Debug info that is found with no option at all, where distributions put it.

The places are absolute paths: each test has a view of the file system of its own, where the
folders that it made are laid over /usr/lib and /boot.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest

from tests.bad_input import files
from vmcore_tools import demo
from vmcore_tools.build_id import build_id_of_file

RELEASE = "5.10.262-vmlab"
#: Debian's and Ubuntu's packages, Fedora's, a kernel that was built here, by hand.
PLACES = [
    f"usr/lib/debug/boot/vmlinux-{RELEASE}",
    f"usr/lib/debug/lib/modules/{RELEASE}/vmlinux",
    f"usr/lib/modules/{RELEASE}/build/vmlinux",
    f"usr/lib/modules/{RELEASE}/vmlinux",
    f"boot/vmlinux-{RELEASE}",
]

#: Lays the first argument's folders over those of the system, then runs the rest.
_LAY_OVER = """
set -e; root=$1; shift
mount -t overlay overlay -o "lowerdir=$root/usr/lib:/usr/lib" /usr/lib
mount --bind "$root/boot" /boot
exec "$@"
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("usr/lib", "boot"):
        (tmp_path / folder).mkdir(parents=True)
    if run(tmp_path, ["true"]).returncode:
        pytest.skip("a view of the file system of one's own takes a namespace and overlayfs")
    if not os.path.islink("/lib"):
        pytest.skip("/lib is not /usr/lib")
    return tmp_path


@pytest.fixture(scope="module")
def dump() -> demo.DemoDump:
    if demo.DEFAULT_DUMP not in demo.shipped_dumps():
        pytest.skip(f"fixtures/dumps has no {demo.DEFAULT_DUMP} yet")
    return demo.unpack()


def run(root: Path, command: List[str]) -> subprocess.CompletedProcess[str]:
    whole = ["unshare", "-rm", "sh", "-c", _LAY_OVER, "sh", str(root), *command]
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare")
    return subprocess.run(whole, capture_output=True, text=True, check=False)


def info(root: Path, dump: demo.DemoDump) -> subprocess.CompletedProcess[str]:
    command = ["run", "dump", "-c", str(dump.vmcore), "--limit", "1"]
    return run(root, [sys.executable, "-m", "vmcore_tools", *command])


def put(path: Path, file: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, path)


@pytest.mark.parametrize("place", PLACES)
def test_place(root: Path, dump: demo.DemoDump, place: str) -> None:
    module, vmlinux = dump.symbols
    put(root / place, vmlinux)
    put(root / f"usr/lib/debug/lib/modules/{RELEASE}/extra/vmlab.ko.debug", module)
    found = info(root, dump)
    assert (found.returncode, found.stderr) == (0, "")
    assert " ".join(found.stdout.split()).count("vmlinux debug info yes; modules 1 ") == 1


def test_build_ids(root: Path, dump: demo.DemoDump) -> None:
    for file in dump.symbols:
        id = build_id_of_file(file) or ""
        put(root / f"usr/lib/debug/.build-id/{id[:2]}/{id[2:]}.debug", file)
    found = info(root, dump)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize("place", PLACES)
def test_of_another_build(root: Path, dump: demo.DemoDump, place: str) -> None:
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(files.elf_with_build_id(files.OTHER_BUILD_ID))
    found = info(root, dump)
    assert (found.returncode, found.stdout) == (2, "")
    vmlinux = build_id_of_file(dump.symbols[1])
    told = "/" + place.replace("usr/lib/modules", "lib/modules")
    assert found.stderr.startswith(
        f"vmcore-tools: error: no debug info for kernel {RELEASE} (build ID {vmlinux}):"
        f" {told} is of another build (build ID {files.OTHER_BUILD_ID}); install "
    )
