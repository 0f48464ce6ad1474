# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Packages as the tools of distributions make them.

Those in ``packages/`` are of rpmbuild 4.18 (``_binary_payload`` w9.gzdio, w2.xzdio and
w3.zstdio) and of dpkg-deb (``-Zxz``, ``-Zzstd``).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Dict

import pytest

from tests.test_debug_sources import cpio, rpm
from vmcore_tools import debug_packages, debug_sources
from vmcore_tools.errors import TargetError

PACKAGES = Path(__file__).parent / "packages"
MODULES = "usr/lib/debug/lib/modules/6.1.0-test"


def contents(path: Path) -> Dict[str, bytes]:
    with debug_packages.members(path) as members:
        return {member.name.replace("./", "", 1): member.contents.read() for member in members}


@pytest.mark.parametrize("path", sorted(PACKAGES.iterdir()), ids=lambda path: path.name)
def test_files_of_a_real_package(path: Path) -> None:
    if ".zst." in path.name and not shutil.which("zstd"):
        pytest.skip("there is no zstd")
    found = contents(path)
    # An empty file of an RPM is one that has its contents under another name.
    found.pop("usr/share/doc/empty", None)
    # A link is no file.
    assert found == {
        f"{MODULES}/vmlinux": b"the kernel itself\n",
        f"{MODULES}/kernel/drivers/virtio-gpu.ko.debug": b"a module",
        "usr/share/doc/odd": b"odd",
    }
    assert isinstance(debug_sources.source_of(path), debug_sources.Package)


def test_rpm_without_the_names_of_its_files(tmp_path: Path) -> None:
    """rpm's own form of cpio, in packages with files of 4 GiB or of format 6."""
    path = tmp_path / "x.rpm"
    payload = cpio({"x": b"x"}).replace(b"070701", b"07070X")
    path.write_bytes(rpm(payload))
    with pytest.raises(TargetError) as caught:
        contents(path)
    assert str(caught.value) == (
        f"{path} cannot be unpacked: its files have no names but in the package's header; unpack"
        " it with rpm2archive, and give the folder with -s"
    )
