# SPDX-License-Identifier: LGPL-2.1-or-later
"""SLUB's user tracking: who allocated an object."""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Sequence, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, Type, offsetof, sizeof
from drgn.helpers.linux.stackdepot import stack_depot_fetch

from vmcore_tools.kernel.layout import as_structs, field_dtype
from vmcore_tools.kernel.slab import SlabCache

# SLAB_STORE_USER of include/linux/slab.h, a macro up to v6.8; the value is
# the same since v2.6.22.
_SLAB_STORE_USER = 0x00010000
_FRAMES_MAX = 64


@dataclasses.dataclass(frozen=True)
class Tracks:
    """
    Allocation records of n objects.

    :ivar read: bool array of shape (n,): which objects have a record
    :ivar pid: int64 array of shape (n,): of the allocating thread
    :ivar stack: int64 array of shape (n,): position in :attr:`stacks`, or -1
    :ivar stacks: return addresses, the innermost first
    """

    read: npt.NDArray[np.bool_]
    pid: npt.NDArray[np.int64]
    stack: npt.NDArray[np.int64]
    stacks: Tuple[Tuple[int, ...], ...]


def has_tracks(cache: SlabCache) -> bool:
    """Whether a cache keeps tracks (``slub_debug=U``)."""
    return bool(cache.cache.flags.value_() & _SLAB_STORE_USER)


def alloc_tracks(prog: Program, cache: SlabCache, objects: Sequence[int]) -> Tracks:
    """
    The allocation records of objects, where ``get_track()`` of mm/slub.c has them.

    :param objects: addresses of objects of *cache*
    :raises LookupError: if the kernel has no ``struct track``
    """
    track_type = prog.type("struct track")
    # get_info_end(): the records stand behind the object, and behind the
    # free pointer where that is not inside the object. TRACK_ALLOC is first.
    end = cache.inuse_bytes
    if cache.freelist_offset >= cache.inuse_bytes:
        end += sizeof(prog.type("void *"))
    size = sizeof(track_type)
    raw = np.zeros((len(objects), size), dtype=np.uint8)
    read = np.zeros(len(objects), dtype=bool)
    for number, address in enumerate(objects):
        try:
            data = prog.read(address + end, size)
        except FaultError:
            continue
        raw[number] = np.frombuffer(data, dtype=np.uint8)
        read[number] = True
    fields = as_structs(raw, field_dtype(track_type, {"addr": "addr", "pid": "pid"}))
    read &= fields["addr"] != 0
    stack, stacks = _stacks(prog, track_type, raw, read)
    return Tracks(read, fields["pid"].astype(np.int32).astype(np.int64), stack, stacks)


def _stacks(
    prog: Program,
    track_type: Type,
    raw: npt.NDArray[np.uint8],
    read: npt.NDArray[np.bool_],
) -> Tuple[npt.NDArray[np.int64], Tuple[Tuple[int, ...], ...]]:
    """Which stack each record has, and the distinct stacks."""
    # 5cf909c553e9 ("mm/slub: use stackdepot to save stack trace in objects")
    # in v5.19 replaced the array by a handle. Without CONFIG_STACKTRACE there
    # is only the caller's address.
    member = next(m for m in ("addrs", "handle", "addr") if track_type.has_member(m))
    start = offsetof(track_type, member)
    key = np.ascontiguousarray(raw[:, start : start + sizeof(track_type.member(member).type)])
    numbers: Dict[bytes, int] = {}
    stack = np.full(len(raw), -1, dtype=np.int64)
    for i in np.flatnonzero(read).tolist():
        stack[i] = numbers.setdefault(key[i].tobytes(), len(numbers))
    return stack, tuple(tuple(_addresses(prog, member, value)) for value in numbers)


def _addresses(prog: Program, member: str, value: bytes) -> List[int]:
    if member != "handle":
        return [address for address in np.frombuffer(value, dtype=np.uint64).tolist() if address]
    handle = Object.from_bytes_(prog, "depot_stack_handle_t", value)
    try:
        trace = stack_depot_fetch(handle)
    except (FaultError, LookupError):
        return []
    return [] if trace is None else [trace[i].pc for i in range(min(len(trace), _FRAMES_MAX))]
