# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every ``dma_fence`` in slab memory, and the holders that count a reference."""

from __future__ import annotations

import dataclasses
from typing import Dict, Iterable, List, Sequence, Tuple

import numpy as np
import numpy.typing as npt
from drgn import Object, Program, container_of, offsetof

from vmcore_tools.kernel.layout import as_structs, field_dtype, read_structs
from vmcore_tools.kernel.typed_objects import Embedded, Found

#: How fences are found in slab objects.
DMA_FENCE = Embedded("struct dma_fence", "ops", "struct dma_fence_ops")

_POINTER = np.dtype([("pointer", np.uint64)])
#: Fences in one reservation object or array; a damaged count must end.
_FENCES_MAX = 65536

U64 = npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True)
class Fences:
    """
    The fences that were found, as arrays of shape (n,), sorted by address.

    :ivar found: where they are
    :ivar refcount: int64
    :ivar flags: uint64
    :ivar signaled: bool
    :ivar context: uint64
    :ivar seqno: uint64
    :ivar lock: uint64, ``spinlock_t *``
    """

    found: Found
    refcount: npt.NDArray[np.int64]
    flags: U64
    signaled: npt.NDArray[np.bool_]
    context: U64
    seqno: U64
    lock: U64


def fences(prog: Program, found: Found) -> Fences:
    """
    The members of fences.

    :param found: what :func:`~.typed_objects.find_embedded` gave for :data:`DMA_FENCE`
    """
    dtype = field_dtype(
        prog.type("struct dma_fence"),
        {
            "refcount": "refcount.refcount.refs.counter",
            "flags": "flags",
            "context": "context",
            "seqno": "seqno",
            "lock": "lock",
        },
    )
    structs = as_structs(found.structs, dtype)
    signaled_bit = prog.constant("DMA_FENCE_FLAG_SIGNALED_BIT").value_()
    flags = structs["flags"].astype(np.uint64)
    return Fences(
        found=found,
        refcount=structs["refcount"].astype(np.int32).astype(np.int64),
        flags=flags,
        signaled=(flags >> np.uint64(signaled_bit)) & np.uint64(1) != 0,
        context=structs["context"].astype(np.uint64),
        seqno=structs["seqno"].astype(np.uint64),
        lock=structs["lock"].astype(np.uint64),
    )


@dataclasses.dataclass(frozen=True)
class HeldFences:
    """
    Fences that somebody holds, one entry for each reference.

    :ivar fence: uint64 array of shape (n,)
    :ivar word: uint64 array of shape (n,): the address of the pointer to each
    :ivar unread: addresses that could not be read
    """

    fence: U64
    word: U64
    unread: Tuple[int, ...] = ()


def _held(pairs: Sequence[Tuple[U64, U64]], unread: Sequence[int] = ()) -> HeldFences:
    nothing = np.zeros(0, dtype=np.uint64)
    fence = np.concatenate([nothing, *(fence for fence, _ in pairs)])
    word = np.concatenate([nothing, *(word for _, word in pairs)])
    return HeldFences(fence[fence != 0], word[fence != 0], tuple(unread))


def reserved_fences(prog: Program, reservations: Sequence[int]) -> HeldFences:
    """
    The fences in the exclusive and shared slots of reservation objects.

    Each slot holds a reference (``dma_resv_add_excl_fence()``,
    ``dma_resv_add_shared_fence()``; ``dma_resv_add_fence()`` from v5.19).

    :param reservations: addresses of ``struct dma_resv``
    """
    resv_type = prog.type("struct dma_resv")
    # "dma-buf & drm/amdgpu: remove dma_resv workaround" of v5.19 made one list
    # of both kinds of slots.
    one_list = resv_type.has_member("fences")
    members = {"list": "fences"} if one_list else {"list": "fence", "exclusive": "fence_excl"}
    owners, read = read_structs(prog, reservations, field_dtype(resv_type, members))
    unread = [address for address, ok in zip(reservations, read) if not ok]
    pairs: List[Tuple[U64, U64]] = []
    if not one_list:
        words = np.array(reservations, dtype=np.uint64)
        words += np.uint64(offsetof(resv_type, "fence_excl"))
        pairs.append((owners["exclusive"].astype(np.uint64), words))

    list_type = prog.type("struct dma_resv_list")
    count_member, slots_member = ("num_fences", "table") if one_list else ("shared_count", "shared")
    slots_offset = offsetof(list_type, slots_member)
    lists = [int(address) for address in owners["list"] if address]
    heads, read = read_structs(prog, lists, field_dtype(list_type, {"count": count_member}))
    unread += [address for address, ok in zip(lists, read) if not ok]
    for address, count in zip(lists, heads["count"].tolist()):
        first = address + slots_offset
        slots = [first + 8 * i for i in range(min(count, _FENCES_MAX))]
        values, read = read_structs(prog, slots, _POINTER)
        unread += [slot for slot, ok in zip(slots, read) if not ok]
        # The list's slots carry the usage in their lowest bits from v5.19 on.
        held = values["pointer"] & (~np.uint64(3) if one_list else ~np.uint64(0))
        pairs.append((held, np.array(slots, dtype=np.uint64)))
    return _held(pairs, unread)


def array_fences(prog: Program, arrays: Iterable[int]) -> HeldFences:
    """
    The fences that fence arrays hold, one reference each.

    :param arrays: addresses of the ``struct dma_fence`` in a ``struct dma_fence_array``
    :raises drgn.FaultError: if an array is not in the dump
    """
    pairs: List[Tuple[U64, U64]] = []
    unread: List[int] = []
    for address in arrays:
        fence = Object(prog, "struct dma_fence *", value=address)
        array = container_of(fence, "struct dma_fence_array", "base")
        first = array.fences.value_()
        slots = [first + 8 * i for i in range(min(array.num_fences.value_(), _FENCES_MAX))]
        values, read = read_structs(prog, slots, _POINTER)
        unread += [slot for slot, ok in zip(slots, read) if not ok]
        pairs.append((values["pointer"].astype(np.uint64), np.array(slots, dtype=np.uint64)))
    return _held(pairs, unread)


def array_callbacks_max(prog: Program, array_fence: int) -> int:
    """
    The most references on a fence array that its own callbacks can hold.

    ``dma_fence_array_enable_signaling()`` takes one for each fence of the
    array, which ``dma_fence_array_cb_func()`` drops; the last one's is dropped
    by the irq_work, after it has signaled the array.

    :param array_fence: address of the ``struct dma_fence`` in the array
    """
    fence = Object(prog, "struct dma_fence *", value=array_fence)
    array = container_of(fence, "struct dma_fence_array", "base")
    flags = fence.flags.value_()
    if flags >> prog.constant("DMA_FENCE_FLAG_SIGNALED_BIT").value_() & 1:
        return 1 if _irq_work_is_claimed(array.work) else 0
    if flags >> prog.constant("DMA_FENCE_FLAG_ENABLE_SIGNAL_BIT").value_() & 1:
        return int(array.num_fences.value_())
    return 0


def _irq_work_is_claimed(work: Object) -> bool:
    # Up to v5.10 there is a member of its own; before v5.8 only that.
    flags = work.node.a_flags if hasattr(work, "node") else work.flags
    # IRQ_WORK_PENDING and IRQ_WORK_BUSY, macros in include/linux/irq_work.h.
    return bool(flags.counter.value_() & 3)


def by_name(tables: Dict[int, str], ops: U64, name: str) -> npt.NDArray[np.bool_]:
    """Which operations pointers point to the table of that name."""
    wanted = [address for address, table in tables.items() if table == name]
    return np.isin(ops, np.array(wanted, dtype=np.uint64))
