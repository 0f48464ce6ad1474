# SPDX-License-Identifier: LGPL-2.1-or-later
"""Debug info in folders, packages and compressed files, of the shipped dump's own kernel."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import stat
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import Callable, Dict, Mapping

import pytest

from tests.bad_input import files
from vmcore_tools import debug_packages, debug_sources, demo, target
from vmcore_tools.build_id import build_id_of_file
from vmcore_tools.debug_sources import module_name
from vmcore_tools.errors import TargetError

RELEASE = "5.10.262-vmlab"
MODULE = f"usr/lib/debug/lib/modules/{RELEASE}/extra/vmlab.ko.debug"


@pytest.fixture(scope="module")
def dump() -> demo.DemoDump:
    if demo.DEFAULT_DUMP not in demo.shipped_dumps():
        pytest.skip(f"fixtures/dumps has no {demo.DEFAULT_DUMP} yet")
    return demo.unpack()


@pytest.fixture
def vmlinux(dump: demo.DemoDump) -> Path:
    (path,) = (path for path in dump.symbols if path.name.startswith("vmlinux"))
    return path


@pytest.fixture
def module(dump: demo.DemoDump) -> Path:
    (path,) = (path for path in dump.symbols if not path.name.startswith("vmlinux"))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dump: demo.DemoDump) -> Path:
    monkeypatch.delenv("DEBUGINFOD_URLS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tar(contents: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, data in contents.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return made.getvalue()


def deb(data_name: str, data: bytes) -> bytes:
    made = b"!<arch>\n"
    for name, member in (("debian-binary", b"2.0\n"), ("control.tar", b"x"), (data_name, data)):
        header = f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(member):<10}`\n"
        made += header.encode() + member + b"\n" * (len(member) % 2)
    return made


def cpio(contents: Mapping[str, bytes]) -> bytes:
    made = b""
    for name, data in (*contents.items(), ("TRAILER!!!", b"")):
        mode = 0o100644 if data else 0
        numbers = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        made += b"070701" + b"".join(b"%08x" % number for number in numbers)
        made += name.encode() + b"\0"
        made += b"\0" * (-len(made) % 4) + data
        made += b"\0" * (-len(made) % 4)
    return made


def rpm(payload: bytes) -> bytes:
    def header(entries: int, data: bytes) -> bytes:
        return (
            struct.pack(">4s4xII", b"\x8e\xad\xe8\x01", entries, len(data))
            + bytes(16 * entries)
            + data
        )

    signature = header(2, b"sig")
    return (
        (b"\xed\xab\xee\xdb").ljust(96, b"\0")
        + signature
        + bytes(-len(signature) % 8)
        + header(3, b"header")
        + payload
    )


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-1cq"], input=data, capture_output=True, check=True).stdout


COMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data, 1),
    ".xz": lambda data: lzma.compress(data, preset=0),
    ".bz2": lambda data: bz2.compress(data, 1),
    ".zst": zstd,
}

compressions = pytest.mark.parametrize(
    "suffix",
    [
        pytest.param(
            suffix,
            marks=pytest.mark.skipif(
                suffix == ".zst" and not shutil.which("zstd"), reason="there is no zstd"
            ),
        )
        for suffix in COMPRESSORS
    ],
)


def opened(dump: demo.DemoDump, *symbols: object) -> target.Target:
    return target.open_core(dump.vmcore, symbols)  # type: ignore[arg-type]


def assert_complete(found: target.Target) -> None:
    assert found.debug_info.complete
    assert found.debug_info.modules == ("vmlab",)
    assert found.debug_info.unused_symbols == ()


def error_of(dump: demo.DemoDump, *symbols: object) -> str:
    with pytest.raises(TargetError) as caught:
        opened(dump, *symbols)
    message = str(caught.value)
    assert "\n" not in message and message.isprintable()
    assert "; " in message, "the next step is missing"
    return message


# --- folders -----------------------------------------------------------------


def link(path: Path, source: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(source)


LAYOUTS: Dict[str, Dict[str, str]] = {
    "Debian, Ubuntu": {
        "vmlinux": f"usr/lib/debug/boot/vmlinux-{RELEASE}",
        "vmlab": f"usr/lib/debug/lib/modules/{RELEASE}/extra/vmlab.ko",
    },
    "Fedora, RHEL": {
        "vmlinux": f"usr/lib/debug/lib/modules/{RELEASE}/vmlinux",
        "vmlab": MODULE,
    },
    "SUSE": {
        "vmlinux": f"usr/lib/debug/boot/vmlinux-{RELEASE}.debug",
        "vmlab": MODULE,
    },
    "a heap of files": {"vmlinux": "x/vmlinux", "vmlab": "y/vmlab.ko"},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_folder_of_any_layout(
    dump: demo.DemoDump, tmp_path: Path, vmlinux: Path, module: Path, layout: Mapping[str, str]
) -> None:
    tree = tmp_path / "tree"
    link(tree / layout["vmlinux"], vmlinux)
    link(tree / layout["vmlab"], module)
    assert_complete(opened(dump, tree))


@pytest.mark.parametrize("layout", list(LAYOUTS)[:2])
def test_debug_directory_of_a_distribution(
    dump: demo.DemoDump, tmp_path: Path, vmlinux: Path, module: Path, layout: str
) -> None:
    """As drgn finds them in /usr/lib/debug with no option at all."""
    tree = tmp_path / "tree"
    link(tree / LAYOUTS[layout]["vmlinux"], vmlinux)
    link(tree / LAYOUTS[layout]["vmlab"], module)
    found = target.open_core(dump.vmcore, debug_directories=[tree / "usr/lib/debug"])
    assert found.debug_info.vmlinux_loaded
    assert found.debug_info.modules_missing == ()


def test_build_id_tree(dump: demo.DemoDump, tmp_path: Path, vmlinux: Path, module: Path) -> None:
    tree = tmp_path / "tree"
    for path in (vmlinux, module):
        id = build_id_of_file(path) or ""
        link(tree / "usr/lib/debug/.build-id" / id[:2] / f"{id[2:]}.debug", path)
    assert_complete(opened(dump, tree))
    assert_complete(target.open_core(dump.vmcore, debug_directories=[tree / "usr/lib/debug"]))


def test_folder_with_another_kernel_too(
    dump: demo.DemoDump, tmp_path: Path, vmlinux: Path, module: Path
) -> None:
    tree = tmp_path / "tree"
    link(tree / "b/vmlinux", vmlinux)
    link(tree / "b/vmlab.ko", module)
    (tree / "a").mkdir()
    (tree / "a/vmlinux").write_bytes(files.elf_with_build_id(files.OTHER_BUILD_ID))
    (tree / "a/vmlab.ko").write_bytes(files.elf_with_build_id(files.OTHER_BUILD_ID, files.ET_REL))
    assert_complete(opened(dump, tree))


def test_folder_of_another_kernel(dump: demo.DemoDump, tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(files.elf_with_build_id(files.OTHER_BUILD_ID))
    message = error_of(dump, tmp_path)
    assert message.startswith(f"wrong debug info: the dump's kernel {RELEASE} has the build ID ")
    assert f"but the vmlinux in {tmp_path} has {files.OTHER_BUILD_ID}; give the debug" in message


def test_folder_of_nothing(dump: demo.DemoDump, tmp_path: Path, vmlinux: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    assert error_of(dump, folder).startswith(f"no debug info for kernel {RELEASE} (build ID ")
    found = opened(dump, vmlinux, folder)
    assert found.debug_info.modules_missing == ("vmlab",)
    assert found.debug_info.unused_symbols == (str(folder),)


@compressions
def test_compressed_module_in_a_folder(
    dump: demo.DemoDump, tmp_path: Path, vmlinux: Path, module: Path, suffix: str
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / f"vmlab.ko{suffix}").write_bytes(COMPRESSORS[suffix](module.read_bytes()))
    assert_complete(opened(dump, vmlinux, tree))


# --- files -------------------------------------------------------------------


@compressions
def test_compressed_file(
    dump: demo.DemoDump, tmp_path: Path, vmlinux: Path, module: Path, suffix: str
) -> None:
    path = tmp_path / f"vmlab.ko.debug{suffix}"
    path.write_bytes(COMPRESSORS[suffix](module.read_bytes()))
    assert_complete(opened(dump, vmlinux, path))
    assert_complete(opened(dump, vmlinux, path))


def test_damaged_compressed_file(dump: demo.DemoDump, tmp_path: Path, module: Path) -> None:
    path = tmp_path / "vmlab.ko.xz"
    path.write_bytes(lzma.compress(module.read_bytes())[:-100])
    assert error_of(dump, path).startswith(f"{path} cannot be unpacked: ")


def with_compressed_sections(module: Path, path: Path, kind: str) -> None:
    """What CONFIG_DEBUG_INFO_COMPRESSED makes of a module."""
    if not shutil.which("objcopy"):
        pytest.skip("there is no objcopy")
    command = ["objcopy", f"--compress-debug-sections={kind}", str(module), str(path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"this objcopy knows no {kind}")
    assert path.stat().st_size < module.stat().st_size


@pytest.mark.parametrize("kind", ["zlib", "zstd", "zlib-gnu"])
@pytest.mark.parametrize("how", ["file", "folder", "debug directory"])
def test_compressed_sections(
    dump: demo.DemoDump, tmp_path: Path, vmlinux: Path, module: Path, kind: str, how: str
) -> None:
    path = tmp_path / "tree/lib/modules" / RELEASE / "extra/vmlab.ko"
    path.parent.mkdir(parents=True)
    with_compressed_sections(module, path, kind)
    if how == "debug directory":
        found = target.open_core(dump.vmcore, [vmlinux], debug_directories=[tmp_path / "tree"])
    else:
        found = opened(dump, vmlinux, path if how == "file" else tmp_path / "tree")
    assert_complete(found)
    assert found.prog.type("struct vmlab_record", "vmlab.c").size == 56


def test_vmlinux_with_compressed_sections(
    dump: demo.DemoDump, tmp_path: Path, vmlinux: Path, module: Path
) -> None:
    with_compressed_sections(vmlinux, tmp_path / "vmlinux", "zlib")
    assert_complete(opened(dump, tmp_path / "vmlinux", module))


@pytest.mark.parametrize("size", [100, 5000, 40000])
def test_damaged_compressed_sections(
    dump: demo.DemoDump, tmp_path: Path, vmlinux: Path, module: Path, size: int
) -> None:
    path = tmp_path / "vmlab.ko"
    with_compressed_sections(module, path, "zlib")
    data = path.read_bytes()
    path.write_bytes(data[:size] + b"\xff" * 3000 + data[size + 3000 :])
    try:
        found = opened(dump, vmlinux, path)
    except TargetError as error:
        assert "\n" not in str(error) and "; " in str(error)
    else:
        assert found.debug_info.vmlinux_loaded


# --- packages ----------------------------------------------------------------


@compressions
def test_deb(dump: demo.DemoDump, tmp_path: Path, vmlinux: Path, module: Path, suffix: str) -> None:
    path = tmp_path / "linux-image-dbg.deb"
    contents = {"./etc/x": b"x", f"./{MODULE}": module.read_bytes()}
    path.write_bytes(deb(f"data.tar{suffix}", COMPRESSORS[suffix](tar(contents))))
    assert_complete(opened(dump, vmlinux, path))
    # It is in the cache now.
    path.write_bytes(path.read_bytes()[:8])
    assert_complete(opened(dump, vmlinux, path))


def test_module_that_a_package_lacks_is_looked_for_once(
    dump: demo.DemoDump, tmp_path: Path, vmlinux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "linux-image-dbg.deb"
    path.write_bytes(deb("data.tar", tar({"a/other.ko": b"x"})))
    passes = []
    members = debug_packages.members
    monkeypatch.setattr(
        debug_packages, "members", lambda path: passes.append(path) or members(path)
    )
    for _ in range(2):
        assert opened(dump, vmlinux, path).debug_info.modules_missing == ("vmlab",)
    assert passes == [str(path)]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_rpm(dump: demo.DemoDump, tmp_path: Path, vmlinux: Path, module: Path, suffix: str) -> None:
    path = tmp_path / "kernel-debuginfo.rpm"
    contents = {"./etc/x": b"x", f"./{MODULE}": module.read_bytes()}
    path.write_bytes(rpm(COMPRESSORS[suffix](cpio(contents))))
    assert_complete(opened(dump, vmlinux, path))


def test_package_with_all_of_it(
    dump: demo.DemoDump, tmp_path: Path, vmlinux: Path, module: Path, cache: Path
) -> None:
    """Of hostile names: nothing is written where they say."""
    path = tmp_path / "kernel.ddeb"
    contents = {
        "../../../../vmlab.ko": files.elf_with_build_id(files.OTHER_BUILD_ID, files.ET_REL),
        "/boot/vmlinux-6.1": files.elf_with_build_id(files.OTHER_BUILD_ID),
        "./a\x1b[31m/virtio.ko": b"x",
        f"./usr/lib/debug/boot/vmlinux-{RELEASE}": vmlinux.read_bytes(),
        f"./{MODULE}": module.read_bytes(),
    }
    path.write_bytes(deb("data.tar", tar(contents)))
    before = {*tmp_path.rglob("*")}
    assert_complete(opened(dump, path))
    made = {file for file in {*tmp_path.rglob("*")} - before if file.is_file()}
    ids = {build_id_of_file(vmlinux), build_id_of_file(module)}
    assert {file.stem for file in made} == ids
    assert all(cache in file.parents for file in made)


def test_package_with_nothing_but_build_ids(
    dump: demo.DemoDump, tmp_path: Path, vmlinux: Path, module: Path
) -> None:
    """As dh_strip makes one: the names are those of the build IDs."""
    path = tmp_path / "linux-image-dbgsym.ddeb"
    contents = {}
    for file in (module, vmlinux):
        build_id = build_id_of_file(file) or ""
        name = f"./usr/lib/debug/.build-id/{build_id[:2]}/{build_id[2:]}.debug"
        contents[name] = file.read_bytes()
    path.write_bytes(deb("data.tar", tar(contents)))
    for _ in range(2):
        assert_complete(opened(dump, path))


def test_package_of_another_kernel(dump: demo.DemoDump, tmp_path: Path) -> None:
    path = tmp_path / "kernel.deb"
    contents = {"boot/vmlinux-6.1": files.elf_with_build_id(files.OTHER_BUILD_ID)}
    path.write_bytes(deb("data.tar", tar(contents)))
    assert f"but the vmlinux in {path} has {files.OTHER_BUILD_ID}; " in error_of(dump, path)


def test_links_in_a_package_are_not_followed(
    dump: demo.DemoDump, tmp_path: Path, vmlinux: Path
) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        about = tarfile.TarInfo("vmlinux")
        about.type = tarfile.SYMTYPE
        about.linkname = str(vmlinux)
        archive.addfile(about)
    path = tmp_path / "kernel.deb"
    path.write_bytes(deb("data.tar", made.getvalue()))
    assert error_of(dump, path).startswith("no debug info for kernel ")


@pytest.mark.parametrize("size", [9, 130, 3000])
@pytest.mark.parametrize("kind", ["deb", "deb.xz", "rpm"])
def test_package_that_was_cut_off(
    dump: demo.DemoDump, tmp_path: Path, kind: str, size: int
) -> None:
    noise = random.Random(1)
    contents = {f"a{number}": noise.randbytes(999) for number in range(20)}
    whole = {
        "deb": lambda: deb("data.tar", tar(contents)),
        "deb.xz": lambda: deb("data.tar.xz", lzma.compress(tar(contents))),
        "rpm": lambda: rpm(cpio(contents)),
    }[kind]()
    path = tmp_path / f"kernel.{kind}"
    path.write_bytes(whole[: min(size, len(whole) - 20)])
    assert error_of(dump, path).startswith(f"{path} cannot be unpacked: ")


def test_package_without_a_program_for_it(
    dump: demo.DemoDump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kernel.ddeb"
    path.write_bytes(deb("data.tar.zst", b"\x28\xb5\x2f\xfd" + b"x" * 99))
    monkeypatch.setattr(debug_packages.shutil, "which", lambda _: None)
    assert error_of(dump, path).startswith(f"{path} is compressed with zstd, which is not inst")


def test_member_that_is_too_large(
    dump: demo.DemoDump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kernel.deb"
    path.write_bytes(deb("data.tar", tar({"vmlinux": bytes(5000)})))
    monkeypatch.setattr(debug_sources, "_FILE_BYTES_MAX", 4096)
    assert error_of(dump, path).startswith(f"{path} cannot be unpacked: vmlinux has an impossible")


def test_bomb(dump: demo.DemoDump, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vmlinux.xz"
    path.write_bytes(lzma.compress(bytes(1 << 20)))
    monkeypatch.setattr(debug_sources, "_FILE_BYTES_MAX", 4096)
    assert error_of(dump, path).startswith(f"{path} cannot be unpacked: it has more than ")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/virtio-gpu.ko", "virtio_gpu"),
        ("virtio_gpu.ko.debug", "virtio_gpu"),
        ("x.ko.zst", "x"),
        ("x.ko.debug.xz", "x"),
        ("x.o", None),
        ("ko", None),
        ("vmlinux", None),
    ],
)
def test_module_name(path: str, name: str) -> None:
    assert module_name(path) == name


def test_nobody_else_can_look_into_the_cache(
    dump: demo.DemoDump, tmp_path: Path, cache: Path, vmlinux: Path, module: Path
) -> None:
    package = tmp_path / "kernel-debuginfo.rpm"
    contents = {"usr/lib/debug/vmlinux": vmlinux.read_bytes(), MODULE: module.read_bytes()}
    package.write_bytes(rpm(cpio(contents)))
    before = os.umask(0)
    try:
        assert_complete(opened(dump, package))
    finally:
        os.umask(before)
    made = [cache, *cache.rglob("*")]
    modes = {path.is_dir(): stat.S_IMODE(path.stat().st_mode) for path in made}
    assert modes == {True: 0o700, False: 0o600}
    for path in made:
        assert stat.S_IMODE(path.stat().st_mode) == modes[path.is_dir()], path
