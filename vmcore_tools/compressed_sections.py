# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Modules whose debug info is compressed inside of the file (``CONFIG_DEBUG_INFO_COMPRESSED``).

libelf decompresses the sections of a linked file, such as vmlinux. Those of a module, which
has to be relocated, drgn 0.3 cannot read: it gives up on all debug info, or, where they are
compressed in the old way of GNU (``.zdebug_info``), finds nothing in it and says nothing. They
are read from a copy whose sections are not compressed.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Union

from vmcore_tools.debug_packages import decompressed

PathLike = Union[str, Path]

# Elf64_Ehdr: e_type, e_shoff, and e_shentsize, e_shnum and e_shstrndx.
_IDENTITY = b"\x7fELF\x02\x01"
_TYPE, _SHOFF, _TABLE = struct.Struct("<16xH"), struct.Struct("<40xQ"), struct.Struct("<58xHHH")
_ET_REL = 1
# Elf64_Shdr: name, type, flags, address, offset, size, link, info, alignment, entry size.
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SHF_COMPRESSED = 0x800
# Elf64_Chdr: type, reserved, size, alignment.
_COMPRESSION = struct.Struct("<I4xQQ")
_ELFCOMPRESS_ZLIB, _ELFCOMPRESS_ZSTD = 1, 2
# A section's name in the old way, and that of its relocations; what it begins with, before
# the size (binutils, bfd/compress.c).
_OLD_NAMES, _OLD_MARK = (b".zdebug_", b".rela.zdebug_"), b"ZLIB"
_OLD_SIZE = struct.Struct(">4xQ")
#: Of one section: the largest modules have some tens of MB.
_SECTION_BYTES_MAX = 1 << 30


def has_compressed_sections(path: PathLike) -> bool:
    """Whether a file is a module with such sections."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            if not head.startswith(_IDENTITY) or _TYPE.unpack_from(head)[0] != _ET_REL:
                return False
            size, count, names = _TABLE.unpack_from(head)
            file.seek(*_SHOFF.unpack_from(head))
            table = file.read(size * count)
            if size != _SECTION.size or len(table) < size * count or names >= count:
                return False
            sections = list(_SECTION.iter_unpack(table))
            if any(section[2] & _SHF_COMPRESSED for section in sections):
                return True
            file.seek(sections[names][4])
            text = file.read(min(sections[names][5], _SECTION_BYTES_MAX))
            return any(text.startswith(_OLD_NAMES[0], section[0]) for section in sections)
    except (OSError, OverflowError, struct.error):
        return False


def without_compression(data: bytes) -> bytes:
    """
    The file with the contents of its compressed sections at its end.

    :raises ValueError, EOFError, struct.error, zlib.error: if it is damaged
    :raises TargetError: if it takes a program that is not there
    """
    made = bytearray(data)
    (table,) = _SHOFF.unpack_from(data)
    size, count, names_at = _TABLE.unpack_from(data)
    if names_at >= count:
        raise ValueError("its sections have no names")
    headers = range(table, table + size * count, size)
    offset, length = _SECTION.unpack_from(data, headers[names_at])[4:6]
    names = bytearray(data[offset : offset + length])
    for at in headers:
        section = list(_SECTION.unpack_from(data, at))
        offset, length = section[4:6]
        name = bytes(names[section[0] : names.find(b"\0", section[0])])
        if name.startswith(_OLD_NAMES):
            section[0] = len(names)
            names += name.replace(b".zdebug_", b".debug_", 1) + b"\0"
        packed = data[offset : offset + length]
        if section[2] & _SHF_COMPRESSED:
            kind, plain_length, alignment = _COMPRESSION.unpack_from(packed)
            packed = packed[_COMPRESSION.size :]
        elif name.startswith(_OLD_NAMES[0]) and packed.startswith(_OLD_MARK):
            kind, alignment = _ELFCOMPRESS_ZLIB, section[8]
            (plain_length,) = _OLD_SIZE.unpack_from(packed)
            packed = packed[_OLD_SIZE.size :]
        else:
            _SECTION.pack_into(made, at, *section)
            continue
        if plain_length > _SECTION_BYTES_MAX:
            raise ValueError("a section has an impossible size")
        plain = _decompressed(kind, packed, plain_length)
        if len(plain) != plain_length:
            raise ValueError("a compressed section is damaged")
        section[2] &= ~_SHF_COMPRESSED
        section[4:6] = _appended(made, plain, alignment), plain_length
        section[8] = alignment
        _SECTION.pack_into(made, at, *section)
    section = list(_SECTION.unpack_from(made, headers[names_at]))
    section[4:6] = _appended(made, names, 1), len(names)
    _SECTION.pack_into(made, headers[names_at], *section)
    return bytes(made)


def _appended(made: bytearray, data: Union[bytes, bytearray], alignment: int) -> int:
    """Where the data are now, at the end of a file."""
    made += bytes(-len(made) % max(1, min(alignment, 64)))
    made += data
    return len(made) - len(data)


def _decompressed(kind: int, packed: bytes, length: int) -> bytes:
    if kind == _ELFCOMPRESS_ZLIB:
        return zlib.decompressobj().decompress(packed, length)
    if kind == _ELFCOMPRESS_ZSTD:
        with decompressed(io.BytesIO(packed), "a section of a module") as data:
            return data.read(length)
    raise ValueError("a section is compressed in an unknown way")
