# SPDX-License-Identifier: LGPL-2.1-or-later
"""Small files that look like dumps and debug info, up to a point."""

from __future__ import annotations

import struct
from typing import Sequence, Tuple

RELEASE = "6.1.0-18-amd64"
BUILD_ID = "00112233445566778899aabbccddeeff00112233"
OTHER_BUILD_ID = "ffeeddccbbaa99887766554433221100ffeeddcc"

ET_REL, ET_EXEC, ET_CORE = 1, 2, 4
EM_X86_64 = 62
NT_PRSTATUS, NT_GNU_BUILD_ID = 1, 3

#: struct elf64_note and the padded name VMCOREINFO.
NOTE_HEADER_BYTES = 12 + 12

Note = Tuple[bytes, int, bytes]


def vmcoreinfo(release: str = RELEASE, build_id: str = BUILD_ID) -> bytes:
    """The text of a VMCOREINFO note, as an x86-64 kernel writes it."""
    lines = [
        f"OSRELEASE={release}",
        *([f"BUILD-ID={build_id}"] if build_id else []),
        "PAGESIZE=4096",
        "SYMBOL(init_uts_ns)=ffffffff82a0f340",
        "SYMBOL(swapper_pg_dir)=ffffffff82a09000",
        "SYMBOL(_stext)=ffffffff81000000",
        "NUMBER(phys_base)=0",
        "NUMBER(pgtable_l5_enabled)=0",
        "KERNELOFFSET=0",
        "",
    ]
    return "\n".join(lines).encode()


def notes(entries: Sequence[Note]) -> bytes:
    """The contents of a PT_NOTE segment or a note section."""

    def padded(data: bytes) -> bytes:
        return data + b"\0" * (-len(data) % 4)

    return b"".join(
        struct.pack("<III", len(name) + 1, len(description), type)
        + padded(name + b"\0")
        + padded(description)
        for name, type, description in entries
    )


def elf_header(type: int, phnum: int = 0, shoff: int = 0, shnum: int = 0) -> bytes:
    """A 64-bit little-endian ELF header; the program headers follow it."""
    return struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        type,
        EM_X86_64,
        1,
        0,
        64 if phnum else 0,
        shoff,
        0,
        64,
        56,
        phnum,
        64,
        shnum,
        shnum - 1 if shnum else 0,
    )


def elf_core(entries: Sequence[Note], memory: bytes = b"\0" * 4096) -> bytes:
    """An ELF core file with these notes and one page of memory."""
    note = notes(entries)
    start = 64 + 2 * 56
    return b"".join(
        (
            elf_header(ET_CORE, phnum=2),
            struct.pack("<IIQQQQQQ", 4, 0, start, 0, 0, len(note), len(note), 4),
            struct.pack(
                "<IIQQQQQQ",
                1,
                7,
                start + len(note),
                0xFFFFFFFF81000000,
                0x1000000,
                len(memory),
                len(memory),
                4096,
            ),
            note,
            memory,
        )
    )


def elf_vmcore(information: bytes) -> bytes:
    """An ELF vmcore of a kernel that wrote this VMCOREINFO."""
    return elf_core([(b"VMCOREINFO", 0, information)])


def elf_with_build_id(build_id: str, type: int = ET_EXEC) -> bytes:
    """An ELF file with a build ID and no debug info."""
    return elf_with_notes(notes([(b"GNU", NT_GNU_BUILD_ID, bytes.fromhex(build_id))]), type)


def elf_with_notes(note: bytes, type: int = ET_EXEC) -> bytes:
    """An ELF file with a section of notes, and nothing else."""
    names = b"\0.note.gnu.build-id\0.shstrtab\0"
    note_offset = 64
    names_offset = note_offset + len(note)
    shoff = names_offset + len(names)

    def section(name: int, type: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", name, type, 0, 0, offset, size, 0, 0, 4, 0)

    return b"".join(
        (
            elf_header(type, shoff=shoff, shnum=3),
            note,
            names,
            section(0, 0, 0, 0),
            section(1, 7, note_offset, len(note)),
            section(20, 3, names_offset, len(names)),
        )
    )


def kdump(information: bytes, machine: bytes = b"x86_64") -> bytes:
    """
    A compressed kdump with one page, which is all zeros and not compressed.

    :param machine: of the utsname; QEMU leaves the utsname empty at times
    """
    block = 4096
    note = notes([(b"VMCOREINFO", 0, information)])
    utsname = (
        b"".join(
            field.ljust(65, b"\0")
            for field in (b"Linux", b"host", RELEASE.encode(), b"#1", machine, b"")
        )
        if machine
        else b"\0" * 390
    )
    # struct disk_dump_header: signature, version, utsname, timeval, status,
    # block size, blocks of the sub header and of both bitmaps, max_mapnr,
    # total_ram_blocks, device_blocks, written_blocks, current_cpu, nr_cpus.
    header = struct.pack(
        "<8si390s6xqqIiiIIIIIII",
        b"KDUMP   ",
        6,
        utsname,
        0,
        0,
        0,
        block,
        1,
        2,
        8,
        0,
        0,
        0,
        0,
        1,
    )
    # struct kdump_sub_header: phys_base, dump_level, split, start_pfn,
    # end_pfn, vmcoreinfo, note and eraseinfo with their sizes, 64-bit PFNs.
    data_offset = 5 * block
    sub_header = struct.pack(
        "<QiiQQQQQQQQQQQ",
        0,
        31,
        0,
        0,
        0,
        block + 512 + NOTE_HEADER_BYTES,
        len(information),
        block + 512,
        len(note),
        0,
        0,
        0,
        0,
        8,
    )
    assert len(note) <= block - 512
    bitmap = b"\x01".ljust(block, b"\0")
    descriptor = struct.pack("<qIIQ", data_offset, block, 0, 0)
    return b"".join(
        (
            header.ljust(block, b"\0"),
            sub_header.ljust(512, b"\0") + note.ljust(block - 512, b"\0"),
            bitmap,
            bitmap,
            descriptor.ljust(block, b"\0"),
            b"\0" * block,
        )
    )


def flattened(data: bytes, record_size: int = 1 << 20) -> bytes:
    """What ``makedumpfile -F`` would have written for a file with these contents."""
    header = struct.pack(">16sqq", b"makedumpfile", 1, 1).ljust(4096, b"\0")
    records = [
        struct.pack(">qq", offset, len(data[offset : offset + record_size]))
        + data[offset : offset + record_size]
        for offset in range(0, len(data), record_size)
    ]
    return b"".join((header, *records, struct.pack(">qq", -1, -1)))
