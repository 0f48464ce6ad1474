# SPDX-License-Identifier: LGPL-2.1-or-later
"""
KFENCE's pool: a page for each object that it guards, between pages of nothing.

Its pages are marked as slab pages of the caches whose objects they hold, but
the allocator does not count them, and an object is anywhere in its page. Only
KFENCE's own records tell where.
"""

from __future__ import annotations

import dataclasses
from typing import Any, List, Optional, Tuple

import numpy as np
import numpy.typing as npt
from drgn import Program, Type, TypeKind
from drgn.helpers.linux.mm import follow_phys

from vmcore_tools.kernel.layout import field_dtype, read_structs

U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

#: CONFIG_KFENCE_NUM_OBJECTS' default, where neither debug info nor records tell.
_OBJECTS_DEFAULT = 255
#: CONFIG_KFENCE_NUM_OBJECTS cannot be larger.
_OBJECTS_MAX = 65535


@dataclasses.dataclass(frozen=True)
class KfencePool:
    """
    The pool of mm/kfence/core.c, and its objects that are or were allocated.

    :ivar start: its address
    :ivar end: behind its last page
    :ivar records: physical address range ``[start, end)`` of its ``struct
        kfence_metadata``, which point to the objects
    :ivar address: uint64 array of shape (n,), sorted: where each object is
    :ivar size_bytes: int64 array of shape (n,): as many as were asked for
    :ivar cache: uint64 array of shape (n,): its ``struct kmem_cache *``
    :ivar allocated: bool array of shape (n,): false once it was freed, even
        where a grace period keeps it from being used again
    :ivar unread: (address, what is wrong) of records that say nothing
    """

    start: int
    end: int
    records: Tuple[int, int]
    address: U64
    size_bytes: npt.NDArray[np.int64]
    cache: U64
    allocated: Bools
    unread: List[Tuple[int, str]]


def kfence_pool(prog: Program, page_size_bytes: int) -> Optional[KfencePool]:
    """
    :return: None if the kernel has no pool
    :raises drgn.FaultError: if the pointers to it are not in the dump
    """
    try:
        pool = prog["__kfence_pool"].value_()
    except KeyError:
        return None
    if not pool:
        return None
    metadata = prog["kfence_metadata"]
    # "mm: kfence: allocate kfence_metadata at runtime" in v6.6.
    is_array = metadata.type_.kind == TypeKind.ARRAY
    first = metadata.address_ if is_array else metadata.value_()
    assert first is not None
    dtype = _fields(metadata.type_.type)
    most = metadata.type_.length if is_array else _objects_max(prog)
    places = [first + number * dtype.itemsize for number in range(most)]
    records, read = read_structs(prog, places, dtype)

    # Each record has its page for good, as metadata_to_pageaddr() has it.
    pages = np.uint64(pool) + (np.arange(most, dtype=np.uint64) + np.uint64(1)) * np.uint64(
        2 * page_size_bytes
    )
    own = read & (records["addr"] // np.uint64(page_size_bytes) == pages // page_size_bytes)
    if not is_array:
        # Behind the last record is something else.
        most = int(np.flatnonzero(own)[-1]) + 1 if own.any() else _OBJECTS_DEFAULT
    records, read, own = records[:most], read[:most], own[:most]
    own &= records["addr"] % np.uint64(page_size_bytes) + records["size"] <= page_size_bytes
    unread = [(places[i], "KFENCE's record is not in the dump") for i in np.flatnonzero(~read)]
    unread += [(places[i], "KFENCE's record is damaged") for i in np.flatnonzero(read & ~own)]

    states = _States.of(prog)
    # A cache that was destroyed leaves objects of no cache.
    used = own & (records["state"] != states.unused) & (records["cache"] != 0)
    records = records[used]
    freeing = records["rcu_func"] != 0  # as call_rcu() leaves it, and rcu_do_batch() clears it
    return KfencePool(
        start=pool,
        # KFENCE_POOL_SIZE: a page and a guard page each, and two more in front.
        end=pool + (most + 1) * 2 * page_size_bytes,
        records=_physical(prog, first, most * dtype.itemsize),
        address=records["addr"].copy(),
        size_bytes=records["size"].astype(np.int64),
        cache=records["cache"].copy(),
        allocated=(records["state"] == states.allocated) & ~freeing,
        unread=unread,
    )


def _fields(type_: Type) -> np.dtype[Any]:
    # The kernel's headers define rcu_head as callback_head, members included.
    head = "rcu_head" if type_.has_member("rcu_head") else "callback_head"
    names = {name: name for name in ("state", "addr", "size", "cache")}
    return field_dtype(type_, {**names, "rcu_func": f"{head}.func"})


def _objects_max(prog: Program) -> int:
    """No less than the number of objects."""
    try:
        # ALLOC_COVERED_SIZE: four times the power of two that is not above it.
        length = prog["alloc_covered"].type_.length
    except KeyError:
        length = None
    return min(length // 2, _OBJECTS_MAX) if length else _OBJECTS_MAX


def _physical(prog: Program, address: int, size_bytes: int) -> Tuple[int, int]:
    start = follow_phys(prog["init_mm"].address_of_(), address).value_()
    return start, start + size_bytes


@dataclasses.dataclass(frozen=True)
class _States:
    unused: int
    allocated: int

    @staticmethod
    def of(prog: Program) -> _States:
        # "kfence: save freeing stack trace at calling time instead of freeing
        # time" in v6.12 added one between them and the last, for what waits
        # for a grace period.
        names = (prog.constant(f"KFENCE_OBJECT_{name}") for name in ("UNUSED", "ALLOCATED"))
        return _States(*(int(name.value_()) for name in names))
