# SPDX-License-Identifier: LGPL-2.1-or-later
"""Unpacking of the shipped dumps."""

from __future__ import annotations

import concurrent.futures
import hashlib
import lzma
import os
import stat
from pathlib import Path
from unittest import mock

import pytest

from vmcore_tools import demo
from vmcore_tools.errors import TargetError

CONTENTS = {
    "truth.json": b"{}\n",
    "vmcore": b"KDUMP   " + bytes(range(256)) * 9000,
    "vmlab.ko.debug": b"\x7fELF module",
    "vmlinux.debug": b"\x7fELF kernel",
}


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one dump, and an empty cache."""
    dumps = tmp_path / "fixtures" / "dumps"
    source = dumps / demo.DEFAULT_DUMP
    source.mkdir(parents=True)
    for name, data in CONTENTS.items():
        if name == "truth.json":
            (source / name).write_bytes(data)
        else:
            (source / f"{name}.xz").write_bytes(lzma.compress(data))
    write_checksums(source)
    monkeypatch.setattr(demo, "dumps_directory", lambda: dumps)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return source


def write_checksums(source: Path) -> None:
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(source.iterdir())
        if path.name != "SHA256SUMS"
    ]
    (source / "SHA256SUMS").write_text("".join(lines))


def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "vmcore-tools" / "dumps"


def test_unpack(tmp_path: Path, shipped: Path) -> None:
    assert demo.shipped_dumps() == (demo.DEFAULT_DUMP,)
    assert not demo.is_unpacked()
    dump = demo.unpack()
    assert demo.is_unpacked()
    digest = hashlib.sha256((shipped / "SHA256SUMS").read_bytes()).hexdigest()
    folder = cache(tmp_path) / f"{demo.DEFAULT_DUMP}-{digest[:12]}"
    assert dump.vmcore == folder / "vmcore"
    assert [path.name for path in dump.symbols] == ["vmlab.ko.debug", "vmlinux.debug"]
    assert dump.truth == folder / "truth.json"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENTS
    assert [path.name for path in cache(tmp_path).iterdir()] == [folder.name]


def test_the_second_time_reads_no_packed_file(shipped: Path) -> None:
    first = demo.unpack()
    for path in shipped.glob("*.xz"):
        path.unlink()
    assert demo.unpack() == first


def test_another_version_of_a_dump_has_another_folder(shipped: Path) -> None:
    first = demo.unpack()
    (shipped / "truth.json").write_bytes(b"[]\n")
    write_checksums(shipped)
    second = demo.unpack()
    assert second.vmcore != first.vmcore
    assert second.truth.read_bytes() == b"[]\n"


def test_damaged_file(tmp_path: Path, shipped: Path) -> None:
    packed = shipped / "vmcore.xz"
    packed.write_bytes(packed.read_bytes()[:-1])
    with pytest.raises(TargetError) as caught:
        demo.unpack()
    assert str(caught.value) == (
        f"the demo dump's file {packed} is damaged: its SHA-256 differs from SHA256SUMS;"
        " check it out again with git"
    )
    assert not cache(tmp_path).exists()


def test_missing_file(shipped: Path) -> None:
    (shipped / "vmcore.xz").unlink()
    with pytest.raises(TargetError, match=r"vmcore\.xz cannot be read: No such file"):
        demo.unpack()


def test_unknown_name() -> None:
    with pytest.raises(TargetError) as caught:
        demo.unpack("other")
    assert str(caught.value) == f"there is no demo dump 'other'; there are: {demo.DEFAULT_DUMP}"


def test_not_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "dumps_directory", lambda: tmp_path / "nothing")
    with pytest.raises(TargetError, match="the demo dumps come with the source only; clone"):
        demo.unpack()


def test_no_room(tmp_path: Path) -> None:
    full = OSError(28, "No space left on device")
    message = "No space left on device; free some space, or set XDG_CACHE_HOME"
    with (
        mock.patch("shutil.copyfileobj", side_effect=full),
        pytest.raises(TargetError, match=message),
    ):
        demo.unpack()
    assert list(cache(tmp_path).iterdir()) == []


def test_many_at_once(tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        dumps = [future.result() for future in [pool.submit(demo.unpack) for _ in range(8)]]
    assert len(set(dumps)) == 1
    assert dumps[0].vmcore.read_bytes() == CONTENTS["vmcore"]
    assert len(list(cache(tmp_path).iterdir())) == 1


def test_a_relative_cache_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the XDG base directory specification has it."""
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert demo.cache_directory() == Path("/home/somebody/.cache/vmcore-tools/dumps")


def test_nobody_else_can_look_into_the_cache(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new" / "cache"))
    before = os.umask(0)
    try:
        dump = demo.unpack()
    finally:
        os.umask(before)
    folders = [tmp_path / "new", tmp_path / "new/cache", *tmp_path.glob("new/cache/**/")]
    assert dump.vmcore.parent in folders
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}
