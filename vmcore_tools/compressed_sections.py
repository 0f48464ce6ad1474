# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Modules whose debug info is compressed inside of the file (``CONFIG_DEBUG_INFO_COMPRESSED``).

libelf decompresses the sections of a linked file, such as vmlinux. Those of a module, which
has to be relocated, drgn 0.3 cannot read: it gives up on all debug info. They are read from
a copy whose sections are not compressed.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Union

from vmcore_tools.debug_packages import decompressed

PathLike = Union[str, Path]

# Elf64_Ehdr: e_type, e_shoff, e_shentsize and e_shnum.
_IDENTITY = b"\x7fELF\x02\x01"
_TYPE, _SHOFF, _SHENTSIZE = struct.Struct("<16xH"), struct.Struct("<40xQ"), struct.Struct("<58xHH")
_ET_REL = 1
# Elf64_Shdr: name, type, flags, address, offset, size, link, info, alignment, entry size.
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SHF_COMPRESSED = 0x800
# Elf64_Chdr: type, reserved, size, alignment.
_COMPRESSION = struct.Struct("<I4xQQ")
_ELFCOMPRESS_ZLIB, _ELFCOMPRESS_ZSTD = 1, 2
#: Of one section: the largest modules have some tens of MB.
_SECTION_BYTES_MAX = 1 << 30


def has_compressed_sections(path: PathLike) -> bool:
    """Whether a file is a module with such sections."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            if not head.startswith(_IDENTITY) or _TYPE.unpack_from(head)[0] != _ET_REL:
                return False
            file.seek(*_SHOFF.unpack_from(head))
            size, count = _SHENTSIZE.unpack_from(head)
            table = file.read(size * count)
    except (OSError, struct.error):
        return False
    if size != _SECTION.size or len(table) < size * count:
        return False
    return any(section[2] & _SHF_COMPRESSED for section in _SECTION.iter_unpack(table))


def without_compression(data: bytes) -> bytes:
    """
    The file with the contents of its compressed sections at its end.

    :raises ValueError, EOFError, struct.error, zlib.error: if it is damaged
    :raises TargetError: if it takes a program that is not there
    """
    made = bytearray(data)
    (table,) = _SHOFF.unpack_from(data)
    size, count = _SHENTSIZE.unpack_from(data)
    for at in range(table, table + size * count, size):
        section = list(_SECTION.unpack_from(data, at))
        offset, length = section[4:6]
        if not section[2] & _SHF_COMPRESSED:
            continue
        kind, plain_length, alignment = _COMPRESSION.unpack_from(data, offset)
        if plain_length > _SECTION_BYTES_MAX:
            raise ValueError("a section has an impossible size")
        packed = data[offset + _COMPRESSION.size : offset + length]
        plain = _decompressed(kind, packed, plain_length)
        if len(plain) != plain_length:
            raise ValueError("a compressed section is damaged")
        made += bytes(-len(made) % max(1, min(alignment, 64)))
        section[2] &= ~_SHF_COMPRESSED
        section[4], section[5], section[8] = len(made), plain_length, alignment
        _SECTION.pack_into(made, at, *section)
        made += plain
    return bytes(made)


def _decompressed(kind: int, packed: bytes, length: int) -> bytes:
    if kind == _ELFCOMPRESS_ZLIB:
        return zlib.decompressobj().decompress(packed, length)
    if kind == _ELFCOMPRESS_ZSTD:
        with decompressed(io.BytesIO(packed), "a section of a module") as data:
            return data.read(length)
    raise ValueError("a section is compressed in an unknown way")
