# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What is this file? Told from its first bytes, before drgn sees it.

Whoever gives the wrong file should read what it is and what to do, not what
a library could not parse.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Optional, Union

from vmcore_tools.errors import TargetError, printable

_HEAD_BYTES = 1024

#: Signature, its offset, what the file is, what to do.
_FOREIGN = (
    (b"\xfd7zXZ\0", 0, "compressed with xz", "unpack it with: xz -dk {}"),
    (b"\x1f\x8b", 0, "compressed with gzip", "unpack it with: gzip -dk {}"),
    (b"\x28\xb5\x2f\xfd", 0, "compressed with zstd", "unpack it with: zstd -dk {}"),
    (b"BZh", 0, "compressed with bzip2", "unpack it with: bzip2 -dk {}"),
    (b"\x04\x22\x4d\x18", 0, "compressed with lz4", "unpack it with: lz4 -d {}"),
    (b"7z\xbc\xaf\x27\x1c", 0, "a 7-Zip archive", "unpack it with: 7z x {}"),
    (b"PK\x03\x04", 0, "a zip archive", "unpack it with: unzip {}"),
    (b"ustar", 257, "a tar archive", "unpack it with: tar -xf {}"),
    (
        b"LibvirtQemudSave",
        0,
        "a saved libvirt guest",
        "restore the guest and make a dump with: virsh dump --memory-only",
    ),
    (b"QFI\xfb", 0, "a qcow2 disk image", "give the dump that lies inside it"),
    (b"EMiL", 0, "a LiME memory image", "convert it to an ELF vmcore, or dump with makedumpfile"),
    (b"PAGEDU", 0, "a Windows crash dump", "give the dump of a Linux kernel"),
    (b"HdrS", 0x202, "a compressed kernel image", "give the dump that this kernel wrote"),
)

#: A kdump, also of the older kind, or flattened.
_DUMP_SIGNATURES = (b"KDUMP   ", b"DISKDUMP", b"makedumpfile\0\0\0\0")

_ET_REL, _ET_EXEC, _ET_DYN, _ET_CORE = 1, 2, 3, 4


def elf_type(head: bytes) -> Optional[int]:
    """``e_type`` of an ELF file, None for another file."""
    if head[:4] != b"\x7fELF" or len(head) < 18:
        return None
    byte_order = ">" if head[5] == 2 else "<"
    return int(struct.unpack_from(byte_order + "H", head, 16)[0])


def read_head(path: Union[str, Path], what: str, option: str) -> bytes:
    """The first bytes of a file of the user's, which must be a readable file."""
    name = printable(str(path))
    try:
        if os.path.isdir(path):
            raise TargetError(
                f"{name} is a directory; give the {what} inside it with {option} FILE"
            )
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        raise TargetError(f"there is no file {name}; give the {what} with {option} FILE") from None
    except PermissionError:
        raise TargetError(
            f"no permission to read {name}; run as its owner or as root, or copy it"
        ) from None
    except OSError as error:
        raise TargetError(
            f"cannot read {name}: {error.strerror}; give the {what} with {option} FILE"
        ) from None
    if not head:
        raise TargetError(
            f"{name} is empty; give the {what} with {option} FILE"
            " (an empty vmcore means that the crashed machine had no room to write it)"
            if what == "dump"
            else f"{name} is empty; give the {what} with {option} FILE"
        )
    return head


def foreign_format(head: bytes, name: str) -> Optional[str]:
    """What a file that is no dump is, and what to do; None if that is not known."""
    for signature, offset, description, step in _FOREIGN:
        if head[offset : offset + len(signature)] == signature:
            return f"is {description}; {step.format(name)}"
    return None


def is_dump(head: bytes) -> bool:
    """Whether a file that begins so can be a kernel's dump."""
    return head.startswith(_DUMP_SIGNATURES) or elf_type(head) == _ET_CORE


def check_dump(path: Union[str, Path]) -> None:
    """
    Refuse a file that is no dump, and say what it is.

    :raises TargetError: if it is not one, or cannot be read
    """
    head = read_head(path, "dump", "-c")
    name = printable(str(path))
    if is_dump(head):
        return
    type = elf_type(head)
    if type in (_ET_EXEC, _ET_DYN):
        raise TargetError(
            f"{name} is an ELF program, not a dump; if it is the vmlinux, give it with"
            " -s and the dump with -c"
        )
    if type == _ET_REL:
        raise TargetError(
            f"{name} is an ELF object or kernel module, not a dump; give it with -s and"
            " the dump with -c"
        )
    known = foreign_format(head, name)
    if known is not None:
        raise TargetError(f"{name} {known}")
    raise TargetError(
        f"{name} is neither a kdump nor an ELF vmcore; make a dump with kdump"
        " (makedumpfile) or QEMU's dump-guest-memory: a bare memory image, as pmemsave"
        " writes it, lacks the kernel's VMCOREINFO, and where each page belongs"
    )


def check_symbols(path: Union[str, Path], given: Optional[str] = None) -> int:
    """
    Refuse a ``-s`` file that cannot hold debug info; otherwise its ELF type.

    :param given: what the user called it, if it was unpacked
    :raises TargetError: if it is no ELF file, or cannot be read
    """
    head = read_head(path, "vmlinux", "-s")
    name = printable(given or str(path))
    type = elf_type(head)
    if is_dump(head):
        raise TargetError(
            f"{name} is a dump, not debug info; give it with -c and its kernel's vmlinux with -s"
        )
    if type is not None:
        return type
    known = foreign_format(head, name)
    if known is not None and not head.startswith(b"HdrS", 0x202):
        raise TargetError(f"{name} {known}")
    if known is not None:
        raise TargetError(
            f"{name} is a compressed kernel image (vmlinuz), which has no debug info; give"
            " the vmlinux of its debug info package with -s"
        )
    raise TargetError(f"{name} is not an ELF file; give the kernel's vmlinux with -s")


def is_linked(type: int) -> bool:
    """Whether an ELF type is that of a vmlinux, rather than of a module."""
    return type in (_ET_EXEC, _ET_DYN)
