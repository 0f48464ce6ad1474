# SPDX-License-Identifier: LGPL-2.1-or-later
"""Opening: what bad input gets, and that a good dump opens as it should."""

from __future__ import annotations

import dataclasses
import gzip
import lzma
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, Iterator, Sequence
from unittest import mock

import numpy as np
import pytest
from drgn import BadDataError, Program

from tests.bad_input import files
from vmcore_tools import debug_info, demo, target
from vmcore_tools.errors import printable
from vmcore_tools.model import Absent
from vmcore_tools.target import TargetError

PACKAGES = (
    f"linux-image-{files.RELEASE}-dbg (Debian)",
    f"linux-image-unsigned-{files.RELEASE}-dbgsym (Ubuntu)",
    f"kernel-debuginfo-{files.RELEASE} (Fedora, RHEL: debuginfo-install kernel-{files.RELEASE})",
    "DEBUGINFOD_URLS",
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEBUGINFOD_URLS", raising=False)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


@pytest.fixture(scope="module")
def shipped() -> demo.DemoDump:
    if demo.DEFAULT_DUMP not in demo.shipped_dumps():
        pytest.skip(f"fixtures/dumps has no {demo.DEFAULT_DUMP} yet")
    return demo.unpack()


def error_of(path: object, symbols: Sequence[object] = (), **options: object) -> str:
    with pytest.raises(TargetError) as caught:
        target.open_core(path, symbols, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message and message.isprintable()
    assert "; " in message, "the next step is missing"
    return message


Write = Callable[[str, bytes], Path]


# --- files that are no dump ------------------------------------------------


def test_no_such_file() -> None:
    assert error_of("/no/such/vmcore") == (
        "there is no file /no/such/vmcore; give the dump with -c FILE"
    )


def test_a_name_with_a_terminal_escape_is_not_echoed() -> None:
    assert "/no/\\x1b[31m" in error_of("/no/\x1b[31m")


def test_directory(tmp_path: Path) -> None:
    assert error_of(tmp_path) == (
        f"{tmp_path} is a directory; give the dump inside it with -c FILE"
    )


def test_empty_file(write: Write) -> None:
    assert " is empty; give the dump with -c FILE" in error_of(write("vmcore", b""))


def test_no_permission(write: Write) -> None:
    path = write("vmcore", files.elf_vmcore(files.vmcoreinfo()))
    with mock.patch("builtins.open", side_effect=PermissionError(13, "Permission denied")):
        assert error_of(path) == (
            f"no permission to read {path}; run as its owner or as root, or copy it"
        )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (lzma.compress(b"x"), "is compressed with xz; unpack it with: xz -dk "),
        (gzip.compress(b"x"), "is compressed with gzip; unpack it with: gzip -dk "),
        (b"\x28\xb5\x2f\xfd" + b"x" * 64, "is compressed with zstd; unpack it with: zstd -dk "),
        (b"LibvirtQemudSave" + b"x" * 64, "is a saved libvirt guest; restore the guest"),
        (b"\0" * 0x202 + b"HdrS" + b"\0" * 64, "is a compressed kernel image; "),
        (b"\0" * 8192, "is neither a kdump nor an ELF vmcore; make a dump with kdump"),
        (b"K", "is neither a kdump nor an ELF vmcore; "),
        (b"\x7fELF", "is neither a kdump nor an ELF vmcore; "),
        (files.elf_with_build_id(files.BUILD_ID), "is an ELF program, not a dump; if it is the"),
        (
            files.elf_with_build_id(files.BUILD_ID, files.ET_REL),
            "is an ELF object or kernel module, not a dump; give it with -s",
        ),
        (files.elf_core([(b"CORE", files.NT_PRSTATUS, b"\0" * 336)]), "is the core dump of a pro"),
    ],
    ids=lambda value: value[:24].strip() if isinstance(value, str) else "",
)
def test_not_a_dump(write: Write, data: bytes, expected: str) -> None:
    path = write("vmcore", data)
    assert error_of(path).startswith(f"{path} {expected}")


def test_qemu_dump_without_vmcoreinfo(write: Write) -> None:
    path = write("guest.elf", files.elf_core([(b"QEMU", 0, b"\0" * 440)]))
    assert error_of(path) == (
        f"{path} has no VMCOREINFO, so the kernel in it cannot be found; give it with"
        " --vmcoreinfo, or dump again from a QEMU with -device vmcoreinfo and qemu_fw_cfg"
        " loaded in the guest"
    )


def test_vmcoreinfo_of_the_users_is_used(write: Write) -> None:
    path = write("guest.elf", files.elf_core([(b"QEMU", 0, b"\0" * 440)]))
    note = write("vmcoreinfo", files.vmcoreinfo())
    assert f"no debug info for kernel {files.RELEASE}" in error_of(path, vmcoreinfo=note)


def test_vmcoreinfo_that_is_none(write: Write) -> None:
    path = write("vmcore", files.elf_vmcore(files.vmcoreinfo()))
    note = write("vmcoreinfo", b"not a note")
    assert error_of(path, vmcoreinfo=note).startswith(f"{note} is not VMCOREINFO: ")


def test_qemu_kdump_without_utsname_opens(write: Write) -> None:
    """libkdumpfile refuses it: "KDUMP_ATTR_ARCH_NAME: Key has no value"."""
    path = write("guest.kdump", files.kdump(files.vmcoreinfo(), machine=b""))
    with pytest.raises(Exception, match="ARCH_NAME"):
        Program().set_core_dump(path)
    prog = target.set_core_dump(path)
    assert target.architecture_name(prog) == "x86_64"
    assert debug_info.release_of(prog) == files.RELEASE


def test_qemu_kdump_of_an_unknown_architecture(write: Write) -> None:
    information = files.vmcoreinfo().replace(b"NUMBER(phys_base)", b"NUMBER(unknown)")
    path = write("guest.kdump", files.kdump(information, machine=b""))
    assert error_of(path).startswith(f"the header of {path} names no architecture ")


def test_drgn_built_without_libkdumpfile(write: Write) -> None:
    class Built(Refusing):
        error = ValueError("drgn was built without libkdumpfile support")

        def set_core_dump(self, path: object) -> None:
            raise self.error

    with mock.patch.object(target, "Program", Built):
        assert "install drgn from PyPI, or build it" in error_of(
            write("vmcore", files.kdump(files.vmcoreinfo()))
        )


@pytest.mark.parametrize("make", [files.kdump, files.elf_vmcore], ids=["kdump", "elf"])
def test_a_dump_cut_off_anywhere_is_one_sentence(
    write: Write, make: Callable[[bytes], bytes]
) -> None:
    whole = make(files.vmcoreinfo())
    for size in [*range(1, 700, 13), *range(700, len(whole), 1117)]:
        error_of(write("vmcore", whole[:size]))


@pytest.mark.parametrize("field", [32, 64 + 8, 64 + 32, 64 + 56 + 8, 64 + 56 + 32])
@pytest.mark.parametrize("value", [1 << 63, (1 << 64) - 1, 1 << 40])
def test_elf_headers_with_impossible_offsets(write: Write, field: int, value: int) -> None:
    data = bytearray(files.elf_vmcore(files.vmcoreinfo()))
    data[field : field + 8] = value.to_bytes(8, "little")
    error_of(write("vmcore", bytes(data)))


# --- debug info ------------------------------------------------------------


@pytest.mark.parametrize("make", [files.kdump, files.elf_vmcore], ids=["kdump", "elf"])
def test_no_debug_info(write: Write, make: Callable[[bytes], bytes]) -> None:
    message = error_of(write("vmcore", make(files.vmcoreinfo())))
    assert message.startswith(
        f"no debug info for kernel {files.RELEASE} (build ID {files.BUILD_ID}); install "
    )
    assert all(package in message for package in PACKAGES)


def test_no_debug_info_and_no_build_id(write: Write) -> None:
    message = error_of(write("vmcore", files.elf_vmcore(files.vmcoreinfo(build_id=""))))
    assert message.startswith(
        f"no debug info for kernel {files.RELEASE} (build ID not recorded in the dump); "
    )


def test_a_release_with_a_terminal_escape_is_not_echoed(write: Write) -> None:
    information = files.vmcoreinfo(release="5.10\x1b]0;evil\x07")
    assert "kernel 5.10\\x1b]0;evil\\x07 " in error_of(
        write("vmcore", files.elf_vmcore(information))
    )


def test_wrong_debug_info_names_both_build_ids(write: Write) -> None:
    dump = write("vmcore", files.elf_vmcore(files.vmcoreinfo()))
    vmlinux = write("vmlinux", files.elf_with_build_id(files.OTHER_BUILD_ID))
    message = error_of(dump, [vmlinux])
    assert message.startswith(
        f"wrong debug info: the dump's kernel {files.RELEASE} has the build ID"
        f" {files.BUILD_ID}, but {vmlinux} has {files.OTHER_BUILD_ID}; give the vmlinux of"
    )
    assert all(package in message for package in PACKAGES[:3])


def test_wrong_debug_info_where_the_dump_has_no_build_id(write: Write) -> None:
    dump = write("vmcore", files.elf_vmcore(files.vmcoreinfo(build_id="")))
    vmlinux = write("vmlinux", files.elf_with_build_id(files.OTHER_BUILD_ID))
    assert error_of(dump, [vmlinux]).startswith(
        f"wrong debug info: {vmlinux} (build ID {files.OTHER_BUILD_ID}) is not of the dump's"
    )


def test_stripped_vmlinux(write: Write) -> None:
    dump = write("vmcore", files.elf_vmcore(files.vmcoreinfo()))
    vmlinux = write("vmlinux", files.elf_with_build_id(files.BUILD_ID))
    assert error_of(dump, [vmlinux]).startswith(
        f"{vmlinux} of kernel {files.RELEASE} (build ID {files.BUILD_ID}) was stripped of its"
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, "there is no file {}; give the vmlinux with -s FILE"),
        (b"", "{} is empty; give the vmlinux with -s FILE"),
        (b"#!/bin/sh\n", "{} is not an ELF file; give the kernel's vmlinux with -s"),
        (files.kdump(files.vmcoreinfo()), "{} is a dump, not debug info; give it with -c"),
        (lzma.compress(b"x"), "{} is not an ELF file; give the kernel's vmlinux with -s"),
        (b"\0" * 0x202 + b"HdrS" + b"\0" * 64, "{} is a compressed kernel image (vmlinuz), wh"),
    ],
    ids=["absent", "empty", "script", "dump", "xz", "vmlinuz"],
)
def test_symbols_that_are_none(
    write: Write, tmp_path: Path, data: bytes | None, expected: str
) -> None:
    dump = write("vmcore", files.elf_vmcore(files.vmcoreinfo()))
    symbols = tmp_path / "symbols"
    if data is not None:
        symbols.write_bytes(data)
    assert error_of(dump, [symbols]).startswith(expected.format(symbols, symbols))


@pytest.mark.parametrize("option", ["kernel_directories", "debug_directories"])
def test_directory_that_is_none(write: Write, option: str) -> None:
    dump = write("vmcore", files.elf_vmcore(files.vmcoreinfo()))
    assert error_of(dump, **{option: ["/no/such"]}).startswith("there is no directory /no/such; ")


def test_drgn_warns_of_nothing_itself(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    dump = write("vmcore", files.elf_vmcore(files.vmcoreinfo()))
    error_of(dump, [write("vmlinux", files.elf_with_build_id(files.OTHER_BUILD_ID))])
    assert capfd.readouterr() == ("", "")


def test_build_id_of_a_file(write: Write) -> None:
    elf = files.elf_with_build_id(files.BUILD_ID)
    assert debug_info.build_id_of_file(write("a", elf)) == files.BUILD_ID
    xen = files.notes([(b"Xen", files.NT_GNU_BUILD_ID, b"\0" * 8)])
    assert debug_info.build_id_of_file(write("x", files.elf_with_notes(xen))) is None
    both = xen + files.notes([(b"GNU", files.NT_GNU_BUILD_ID, bytes.fromhex(files.BUILD_ID))])
    assert debug_info.build_id_of_file(write("y", files.elf_with_notes(both))) == files.BUILD_ID
    assert debug_info.build_id_of_file(write("b", elf[:100])) is None
    assert debug_info.build_id_of_file(write("c", b"")) is None
    assert debug_info.build_id_of_file("/no/such") is None


def test_printable() -> None:
    assert printable("5.10\x1b[0m\n\u202e") == "5.10\\x1b[0m\\n\\u202e"
    assert printable("é 5.10") == "é 5.10"


# --- live kernel, QEMU, drgn's own program -----------------------------------


class Refusing:
    """A Program that fails as drgn's does."""

    error: BaseException

    def __init__(self, **_: object) -> None:
        pass

    def set_kernel(self) -> None:
        raise self.error

    def set_qemu_qmp(self, address: str) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(1, "Operation not permitted"), "no permission to read /proc/kcore; the"),
        (PermissionError(13, "Permission denied"), "no permission to read /proc/kcore; the"),
        (FileNotFoundError(2, "No such file"), "there is no /proc/kcore: "),
        (Exception("x\x1b"), "cannot read the live kernel: x\\x1b; "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_live_kernel_that_cannot_be_read(error: BaseException, expected: str) -> None:
    refusing = type("Program", (Refusing,), {"error": error})
    with mock.patch.object(target, "Program", refusing), pytest.raises(TargetError) as caught:
        target.open_live()
    assert str(caught.value).startswith(expected)


def test_qmp_socket_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(TargetError) as caught:
        target.open_qemu(str(tmp_path / "qmp"))
    assert str(caught.value) == (
        f"there is no QMP socket {tmp_path}/qmp; start QEMU with"
        " -qmp unix:PATH,server=on,wait=off and give PATH with --qemu"
    )


def test_qmp_socket_where_nothing_listens(tmp_path: Path) -> None:
    path = str(tmp_path / "qmp")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        with pytest.raises(TargetError, match="nothing listens on the QMP socket"):
            target.open_qemu(path)


def test_qmp_socket_that_talks_something_else(tmp_path: Path) -> None:
    path = str(tmp_path / "qmp")
    server = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
        "print('ready', flush=True)\n"
        "s.accept()[0].sendall(b'SSH-2.0-OpenSSH\\r\\n')\n"
    )
    with subprocess.Popen([sys.executable, "-c", server, path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        with pytest.raises(TargetError, match="cannot talk QMP with"):
            target.open_qemu(path)


def test_program_that_is_not_set() -> None:
    with pytest.raises(TargetError, match="drgn is not debugging a Linux kernel; "):
        target.from_program(Program())


def test_program_without_debug_info(write: Write) -> None:
    prog = Program()
    prog.set_core_dump(write("vmcore", files.elf_vmcore(files.vmcoreinfo())))
    with pytest.raises(TargetError, match="no debug info for kernel"):
        target.from_program(prog)


# --- a real dump -------------------------------------------------------------


def facts_of(opened: target.Target) -> Dict[str, object]:
    return {fact.name: fact.value for fact in opened.facts}


def test_real_dump(shipped: demo.DemoDump) -> None:
    opened = target.open_core(shipped.vmcore, shipped.symbols)
    facts = facts_of(opened)
    assert opened.debug_info.complete
    assert opened.memory.prog is opened.prog
    assert facts["file"] == "vmcore"
    assert facts["architecture"] == "x86_64"
    assert facts["page_size_bytes"] == 4096
    assert facts["dump_level"] == 31
    assert facts["truncated"] is None
    assert facts["present_pages"] == opened.memory.page_map.present_pages
    assert facts["modules"] == len(opened.debug_info.modules) > 0
    assert facts["modules_without_debug_info"] == ()
    build_ids = {debug_info.build_id_of_file(path) for path in shipped.symbols}
    assert facts["build_id"] in build_ids
    assert not any(str(shipped.vmcore.parent) in str(value) for value in facts.values())
    assert facts == facts_of(target.open_core(shipped.vmcore, shipped.symbols))


def test_real_dump_inside_drgn(shipped: demo.DemoDump, loaded: Program) -> None:
    opened = target.from_program(loaded)
    assert opened.prog is loaded
    assert opened.facts == target.open_core(shipped.vmcore, shipped.symbols).facts


def overlay(prog: Program, address: int, data: bytes) -> None:
    """Make the program read *data* at a virtual address."""

    def read(_: int, count: int, offset: int, physical: bool) -> bytes:
        return data[offset : offset + count]

    prog.add_memory_segment(address, len(data), read)


@pytest.fixture
def loaded(shipped: demo.DemoDump) -> Program:
    prog = Program()
    prog.set_core_dump(shipped.vmcore)
    prog.load_debug_info(shipped.symbols)
    return prog


def test_ram_of_a_running_guest(loaded: Program) -> None:
    """The same kernel's list of RAM has every page that its dump has, and more."""
    ram = target._page_map_of_live(loaded)
    dumped = target.read_page_map(str(loaded.core_dump_path))
    assert ram.format == "QEMU guest"
    assert ram.page_size_bytes == dumped.page_size_bytes
    assert ram.present_pages > dumped.present_pages
    assert ram.present(dumped.runs[:, 0]).all()
    assert ram.present(dumped.runs[:, 1] - np.uint64(1)).all()


def test_ram_of_a_running_guest_that_cannot_be_read(loaded: Program) -> None:
    overlay(loaded, loaded["iomem_resource"].child.address_, b"\x08" + b"\0" * 7)
    with pytest.raises(TargetError, match=r"System RAM cannot be read: .+; m"):
        target._page_map_of_live(loaded)


@pytest.mark.parametrize("next", [0xFFFF_8000_0000_0000, 8, None], ids=["unmapped", "user", "loop"])
def test_module_list_that_breaks_off(loaded: Program, next: int | None) -> None:
    """The last module leads into nowhere, or back to itself."""
    module = next_module = loaded["modules"].next
    while next_module != loaded["modules"].address_of_():
        module, next_module = next_module, next_module.next
    overlay(loaded, module.value_(), (next or module.value_()).to_bytes(8, "little"))
    opened = target.from_program(loaded)
    assert opened.debug_info.modules_error is not None
    assert opened.debug_info.modules_error.startswith("can't find remaining kernel modules: ")
    assert not opened.debug_info.complete
    assert opened.debug_info.modules_missing == ()
    assert facts_of(opened)["modules_error"] == opened.debug_info.modules_error


def test_modules_that_cannot_be_read_are_not_0(shipped: demo.DemoDump, loaded: Program) -> None:
    first = loaded["modules"].address_of_().value_()
    fresh = Program()
    fresh.set_core_dump(shipped.vmcore)
    overlay(fresh, first, (0xFFFF_8000_0000_0000).to_bytes(8, "little"))
    fresh.load_debug_info([path for path in shipped.symbols if "vmlinux" in path.name])
    opened = target.from_program(fresh)
    facts = facts_of(opened)
    assert facts["modules"] == Absent(str(opened.debug_info.modules_error))
    assert facts["modules_without_debug_info"] == Absent("the modules are not known")
    assert "modules_error" not in facts


def test_kernel_that_has_another_name_than_the_dump_says(loaded: Program) -> None:
    overlay(loaded, loaded["init_uts_ns"].name.release.address_, b"6.6\x1b[2J\0")
    with pytest.raises(TargetError) as caught:
        target.from_program(loaded)
    message = str(caught.value)
    assert message.startswith("nothing of the kernel ")
    assert 'its name reads "6.6\\x1b[2J"' in message and message.isprintable()


def test_real_dump_without_the_modules_debug_info(shipped: demo.DemoDump) -> None:
    vmlinux = [path for path in shipped.symbols if path.name.startswith("vmlinux")]
    opened = target.open_core(shipped.vmcore, vmlinux)
    assert opened.debug_info.modules_missing == opened.debug_info.modules != ()
    assert not opened.debug_info.complete


def test_symbols_that_fit_nothing_are_named(shipped: demo.DemoDump, write: Write) -> None:
    module = write("other.ko", files.elf_with_build_id(files.OTHER_BUILD_ID, files.ET_REL))
    opened = target.open_core(shipped.vmcore, [*shipped.symbols, module])
    assert opened.debug_info.unused_symbols == (str(module),)
    assert facts_of(opened)["unused_symbols"] == ("other.ko",)


def test_wrong_vmlinux_beside_the_right_one(shipped: demo.DemoDump, write: Write) -> None:
    vmlinux = write("vmlinux", files.elf_with_build_id(files.OTHER_BUILD_ID))
    message = error_of(shipped.vmcore, [*shipped.symbols, vmlinux])
    assert f"but {vmlinux} has {files.OTHER_BUILD_ID}" in message


@pytest.fixture(scope="module")
def cut_off(shipped: demo.DemoDump, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("cut-off") / "vmcore"
    with open(shipped.vmcore, "rb") as whole:
        path.write_bytes(whole.read(shipped.vmcore.stat().st_size * 9 // 10))
    yield path


def test_truncated_dump_opens_and_says_so(shipped: demo.DemoDump, cut_off: Path) -> None:
    whole = target.open_core(shipped.vmcore, shipped.symbols).memory.page_map
    opened = target.open_core(cut_off, shipped.symbols)
    assert opened.memory.page_map.truncated is not None
    assert facts_of(opened)["truncated"] == opened.memory.page_map.truncated
    assert 0 < opened.memory.page_map.present_pages < whole.present_pages


def test_dump_with_nothing_of_the_kernel(shipped: demo.DemoDump, tmp_path: Path) -> None:
    """Only the tables and the first pages are left."""
    path = tmp_path / "vmcore"
    with open(shipped.vmcore, "rb") as whole:
        path.write_bytes(whole.read(shipped.vmcore.stat().st_size // 12))
    message = error_of(path, shipped.symbols)
    assert message.startswith("nothing of the kernel ")
    assert "the file ends before the data of" in message


@pytest.mark.parametrize(
    ("change", "step"),
    [
        (
            {"split": True},
            "open what this writes: makedumpfile --reassemble PART1 PART2 ... vmcore",
        ),
        ({"incomplete": True}, "its machine had no room to write all of it: give it more, or "),
        ({}, "copy the dump again and compare the sizes, or make a new one"),
    ],
    ids=["split", "incomplete", "cut off"],
)
def test_next_step_where_nothing_can_be_read(
    loaded: Program, change: Dict[str, bool], step: str
) -> None:
    overlay(loaded, loaded["init_uts_ns"].name.release.address_, b"?\0")
    page_map = dataclasses.replace(target.read_page_map(str(loaded.core_dump_path)), **change)
    with pytest.raises(TargetError) as caught:
        target._check_identity(loaded, page_map)
    assert f"; {step}" in str(caught.value)


def test_data_that_drgn_takes_for_bad_is_named(loaded: Program) -> None:
    page_map = target.read_page_map(str(loaded.core_dump_path))
    prog = mock.MagicMock()
    bad = BadDataError("VMCOREINFO does not contain valid TCR_EL1_T1SZ or VA_BITS")

    def variable(name: str) -> object:
        if name == "init_uts_ns":
            raise bad
        return loaded[name]

    prog.__getitem__.side_effect = variable
    with pytest.raises(TargetError, match=str(bad)):
        target._check_identity(prog, page_map)


def test_flattened_dump_opens_as_it_is(
    shipped: demo.DemoDump, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(files.flattened(shipped.vmcore.read_bytes()))
    facts = facts_of(target.open_core(path, shipped.symbols))
    assert facts == {
        **facts_of(target.open_core(shipped.vmcore, shipped.symbols)),
        "flattened": True,
    }
    assert capfd.readouterr() == ("", "")


def without_build_id(dump: demo.DemoDump) -> bytes:
    """The dump's VMCOREINFO as kernels before 5.9 write it."""
    note = target.set_core_dump(dump.vmcore)["VMCOREINFO"].string_()
    return re.sub(rb"BUILD-ID=.*\n", b"", note)


def test_kernel_that_records_no_build_id(shipped: demo.DemoDump, write: Write) -> None:
    note = write("vmcoreinfo", without_build_id(shipped))
    opened = target.open_core(shipped.vmcore, shipped.symbols, vmcoreinfo=note)
    assert opened.facts == target.open_core(shipped.vmcore, shipped.symbols).facts


def test_another_build_of_a_kernel_that_records_no_build_id(
    shipped: demo.DemoDump, write: Write
) -> None:
    """drgn would take it: the release is the same."""
    moved = re.sub(
        rb"SYMBOL\(_stext\)=.*", b"SYMBOL(_stext)=ffffffff81234560", without_build_id(shipped)
    )
    message = error_of(shipped.vmcore, shipped.symbols, vmcoreinfo=write("vmcoreinfo", moved))
    assert message.startswith(
        "wrong debug info: _stext is at 0xffffffff81234560 in the dump and at "
    )
    build_id = facts_of(target.open_core(shipped.vmcore, shipped.symbols))["build_id"]
    assert f"vmlinux.debug (build ID {build_id}; the dump's is not recorded)" in message
