# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Registrations of sysctl tables that only their owner's pointer leads to.

A table's header is in the tree of its directory by the nodes of its entries.
One without entries, a directory's, has no node; and a header that stands for
several tables is in no tree at all. Both are in use until they are
unregistered, and most of the kernel's own never are: who made them has thrown
the pointer away (``sysctl_init()`` tells kmemleak of it).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, offsetof, sizeof

from vmcore_tools.kernel.page import direct_map_offset
from vmcore_tools.kernel.slab import SlabIndex

U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

_TYPE = "struct ctl_table_header"
#: Pages that are held at a time.
_PAGES_AT_ONCE = 256


def sysctl_headers(index: SlabIndex, addresses: U64, size_bytes: U64) -> Bools:
    """
    Which slab objects are headers of registered sysctl tables.

    :param addresses: uint64 array of shape (n,): where the objects begin
    :param size_bytes: uint64 array of shape (n,): how large they are
    :return: bool array of shape (n,)
    """
    prog = index.prog
    result = np.zeros(len(addresses), dtype=bool)
    try:
        type_ = prog.type(_TYPE)
    except LookupError:
        return result  # without CONFIG_SYSCTL
    low, high = prog.main_module().address_range or (0, 0)
    large = np.flatnonzero(size_bytes >= sizeof(type_))

    def in_kernel(member: str) -> Bools:
        words = _words(index, addresses[large] + np.uint64(offsetof(type_, member)))
        return (words >= np.uint64(low)) & (words < np.uint64(high))

    # Roots are variables of the kernel, and so is the table of what stands for several.
    for at in large[in_kernel("root")].tolist():
        result[at] = _is_registered(prog, int(addresses[at]))
    for at in large[in_kernel("ctl_table_arg")].tolist():
        result[at] |= _stands_for_several(prog, int(addresses[at]), int(size_bytes[at]))
    return result


def _words(index: SlabIndex, addresses: U64) -> U64:
    """The words at addresses of the direct map, 0 where a page cannot be read."""
    memory, page_size = index.memory, np.uint64(index.memory.page_map.page_size_bytes)
    physical = addresses - np.uint64(direct_map_offset(index.prog))
    pfns, page = np.unique(physical // page_size, return_inverse=True)
    result = np.zeros(len(addresses), dtype=np.uint64)
    for first in range(0, len(pfns), _PAGES_AT_ONCE):
        data, _ = memory.read_pages(pfns[first : first + _PAGES_AT_ONCE])
        here = np.flatnonzero((page >= first) & (page < first + _PAGES_AT_ONCE))
        word = (physical[here] % page_size // np.uint64(8)).astype(np.int64)
        result[here] = data.view(np.uint64)[page[here] - first, word]
    return result


def _is_registered(prog: Program, address: int) -> bool:
    """Mirrors what ``init_header()`` and ``insert_header()`` of fs/proc/proc_sysctl.c set."""
    header = Object(prog, f"{_TYPE} *", address)
    try:
        root, of_set = header.root.read_(), header.set.read_()
        # The directory that it was put into is of the same set, and so is the set's own.
        parents = (header.parent.header, of_set.dir.header)
        return all(parent.root == root and parent.set == of_set for parent in parents)
    except FaultError:
        return False


def _stands_for_several(prog: Program, address: int, size_bytes: int) -> bool:
    """
    Whether nothing but a table and pointers to registered headers is in an object.

    Mirrors ``__register_sysctl_paths()``, which went with register_sysctl_table() in v6.5
    (b8cbc0855a22).
    """
    type_ = prog.type(_TYPE)
    try:
        words = np.frombuffer(prog.read(address, size_bytes), dtype=np.uint64)
    except FaultError:
        return False
    header, behind = words[: sizeof(type_) // 8], words[sizeof(type_) // 8 :]
    pointers = behind[behind != 0].tolist()
    return (
        int((header != 0).sum()) == 1
        and bool(pointers)
        and all(_is_registered(prog, pointer) for pointer in pointers)
    )
