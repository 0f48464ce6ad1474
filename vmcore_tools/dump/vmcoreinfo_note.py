# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The VMCOREINFO note in a guest's own memory, where the dump's notes lack it.

QEMU without ``-device vmcoreinfo`` writes a file whose notes are of the CPUs
alone. The kernel keeps the note that it makes at boot in pages of their
own (``vmcoreinfo_note``, page aligned since 203e9e41219b ("kexec: move
vmcoreinfo out of the kernel's .bss section", 4.13)), and they are in the dump.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, Iterator, List, Set, Union, cast

import numpy as np

from vmcore_tools.dump.flattened import SIGNATURE, FlattenedFile
from vmcore_tools.dump.page_map import DumpError, PageMap, kdump_descriptors

_NAME = b"VMCOREINFO\0"
# struct elf64_note: n_namesz, n_descsz, n_type.
_HEADER = struct.Struct("<III")
_DATA_OFFSET = _HEADER.size + (len(_NAME) + 3) // 4 * 4
#: The kernel's note has at most a page of text; with larger pages a bit more is no harm.
_DATA_BYTES_MAX = 1 << 16
# DUMP_DH_COMPRESSED_ZLIB of diskdump_mod.h.
_ZLIB = 0x1
#: The note's text is no repetition: its page takes more than this.
_PACKED_BYTES_MIN = 200
#: Larger dumps are not searched: each page of the file has to be read.
SEARCHED_BYTES_MAX = 16 << 30


def vmcoreinfo_in_memory(path: Union[str, Path], page_map: PageMap) -> List[bytes]:
    """
    The different VMCOREINFO texts that pages of a dump begin with.

    More than one are there if memory holds that of an earlier boot, too.

    :param path: an ELF file, or a kdump that is compressed with zlib or not at all
    :raises OSError, ValueError: if the file cannot be read
    """
    if page_map.present_pages * page_map.page_size_bytes > SEARCHED_BYTES_MAX:
        return []
    return _of_elf(path, page_map) if len(page_map.segments) else _of_kdump(path)


def _of_kdump(path: Union[str, Path]) -> List[bytes]:
    found: Set[bytes] = set()
    with open(path, "rb") as file:
        flattened = file.read(len(SIGNATURE)) == SIGNATURE
        source = cast(BinaryIO, FlattenedFile(file)) if flattened else file
        try:
            descriptors = kdump_descriptors(source)
        except DumpError:
            return []
        fit = (descriptors["flags"] == _ZLIB) & (descriptors["size"] > _PACKED_BYTES_MIN)
        for offset, size, *_ in descriptors[fit].tolist():
            source.seek(offset)
            packed = source.read(size)
            with contextlib.suppress(zlib.error):
                if (
                    zlib.decompressobj()
                    .decompress(packed, _DATA_OFFSET)[_HEADER.size :]
                    .startswith(_NAME)
                ):
                    found.update(_text(zlib.decompress(packed)))
    return sorted(found)


def _of_elf(path: Union[str, Path], page_map: PageMap) -> List[bytes]:
    size = page_map.page_size_bytes
    pattern = np.frombuffer(_HEADER.pack(len(_NAME), 0, 0) + _NAME, dtype=np.uint8)
    compared = np.ones(len(pattern), dtype=bool)
    compared[4:8] = False  # n_descsz
    found: Set[bytes] = set()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for start, end, offset in page_map.segments.tolist():
            # A copy of each page's first bytes: nothing may point into the map when it closes.
            pages = np.frombuffer(data, np.uint8, (end - start) * size, offset)
            heads = pages.reshape(-1, size)[:, : len(pattern)].copy()
            del pages
            for page in np.flatnonzero((heads == pattern)[:, compared].all(axis=1)).tolist():
                at = offset + page * size
                found.update(_text(data[at : at + _DATA_OFFSET + _DATA_BYTES_MAX]))
    return sorted(found)


def _text(note: bytes) -> Iterator[bytes]:
    """The text of a note, if it is one, and all of it."""
    name_bytes, length, kind = _HEADER.unpack_from(note)
    text = note[_DATA_OFFSET : _DATA_OFFSET + length]
    is_note = name_bytes == len(_NAME) and not kind and len(text) == length
    if is_note and text.startswith(b"OSRELEASE="):
        yield text
