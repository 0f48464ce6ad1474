# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The VMCOREINFO note in a guest's own memory, where the dump's notes lack it.

QEMU without ``-device vmcoreinfo`` writes an ELF file whose notes are of the
CPUs alone. The kernel keeps the note that it makes at boot in pages of their
own (``vmcoreinfo_note``, page aligned since 203e9e41219b ("kexec: move
vmcoreinfo out of the kernel's .bss section", 4.13)), and they are in the dump.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import List, Set, Union

import numpy as np

from vmcore_tools.dump.page_map import PageMap

_NAME = b"VMCOREINFO\0"
# struct elf64_note: n_namesz, n_descsz, n_type.
_HEADER = struct.Struct("<III")
_DATA_OFFSET = _HEADER.size + (len(_NAME) + 3) // 4 * 4
#: The kernel's note has at most a page of text; with larger pages a bit more is no harm.
_DATA_BYTES_MAX = 1 << 16
#: Larger dumps are not searched: each page of the file has to be read.
SEARCHED_BYTES_MAX = 16 << 30


def vmcoreinfo_in_memory(path: Union[str, Path], page_map: PageMap) -> List[bytes]:
    """
    The different VMCOREINFO texts that pages of an ELF dump begin with.

    More than one are there if memory holds that of an earlier boot, too.

    :raises OSError: if the file cannot be read
    """
    size = page_map.page_size_bytes
    if page_map.present_pages * size > SEARCHED_BYTES_MAX or not len(page_map.segments):
        return []
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
                (_, length, _) = _HEADER.unpack_from(data, at)
                text = data[at + _DATA_OFFSET : at + _DATA_OFFSET + min(length, _DATA_BYTES_MAX)]
                if text.startswith(b"OSRELEASE=") and len(text) == length:
                    found.add(text)
    return sorted(found)
