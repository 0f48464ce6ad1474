# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every ``dma_fence`` in slab memory, and the holders that count a reference."""

from __future__ import annotations

import dataclasses
from typing import Dict, Iterable, Iterator, List, Sequence, Tuple

import numpy as np
import numpy.typing as npt
from drgn import Object, Program, container_of, offsetof

from vmcore_tools.kernel.layout import as_structs, field_dtype, read_structs
from vmcore_tools.kernel.typed_objects import Embedded, Found

#: How fences are found in slab objects.
DMA_FENCE = Embedded("struct dma_fence", "ops", "struct dma_fence_ops")

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
class ReservedFences:
    """
    Fences that reservation objects hold.

    :ivar fence: uint64 array of shape (n,)
    :ivar reservation: uint64 array of shape (n,): the holder of each
    :ivar unread: addresses that could not be read
    """

    fence: U64
    reservation: U64
    unread: Tuple[int, ...]


def reserved_fences(prog: Program, reservations: Sequence[int]) -> ReservedFences:
    """
    The fences in the exclusive and shared slots of reservation objects.

    Each slot holds a reference (``dma_resv_add_excl_fence()``,
    ``dma_resv_add_shared_fence()``; ``dma_resv_add_fence()`` from v5.19).

    :param reservations: addresses of ``struct dma_resv``
    """
    resv_type = prog.type("struct dma_resv")
    # 047a1b877ed4 ("dma-buf & drm/amdgpu: remove dma_resv workaround") in
    # v5.19 made one list of both kinds of slots.
    if resv_type.has_member("fences"):
        members, list_members = {"list": "fences"}, {"count": "num_fences"}
        slots_member, usage_mask = "table", ~np.uint64(3)
    else:
        members = {"list": "fence", "exclusive": "fence_excl"}
        list_members, slots_member = {"count": "shared_count"}, "shared"
        usage_mask = ~np.uint64(0)

    owners, read = read_structs(prog, reservations, field_dtype(resv_type, members))
    unread = [address for address, ok in zip(reservations, read) if not ok]
    addresses = np.array(reservations, dtype=np.uint64)
    pairs: List[Tuple[U64, U64]] = []
    if "exclusive" in members:
        some = owners["exclusive"] != 0
        pairs.append((owners["exclusive"][some].astype(np.uint64), addresses[some]))

    list_type = prog.type("struct dma_resv_list")
    slots_offset = offsetof(list_type, slots_member)
    with_list = np.flatnonzero(owners["list"])
    heads = [int(address) for address in owners["list"][with_list]]
    lists, read = read_structs(prog, heads, field_dtype(list_type, list_members))
    unread += [address for address, ok in zip(heads, read) if not ok]
    for owner, head, count in zip(with_list.tolist(), heads, lists["count"].tolist()):
        if not count:
            continue
        slot = np.dtype([("fence", np.uint64)])
        first = head + slots_offset
        slots, read = read_structs(
            prog, [first + 8 * i for i in range(min(count, _FENCES_MAX))], slot
        )
        unread += [first for ok in read if not ok]
        held = slots["fence"] & usage_mask
        held = held[held != 0]
        pairs.append((held, np.full(len(held), addresses[owner], dtype=np.uint64)))
    return ReservedFences(
        np.concatenate([fence for fence, _ in pairs] or [np.zeros(0, dtype=np.uint64)]),
        np.concatenate([owner for _, owner in pairs] or [np.zeros(0, dtype=np.uint64)]),
        tuple(unread),
    )


def array_members(prog: Program, arrays: Iterable[int]) -> Iterator[Tuple[int, int]]:
    """
    The fences that fence arrays hold, one reference each.

    :param arrays: addresses of the ``struct dma_fence`` in a ``struct dma_fence_array``
    :return: Iterator of (fence, array), both addresses
    """
    for address in arrays:
        fence = Object(prog, "struct dma_fence *", value=address)
        array = container_of(fence, "struct dma_fence_array", "base")
        slots = array.fences.read_()
        for number in range(min(array.num_fences.value_(), _FENCES_MAX)):
            member = slots[number].value_()
            if member:
                yield member, address


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


def count_by_address(addresses: U64, sorted_targets: U64) -> npt.NDArray[np.int64]:
    """
    How often each target is among addresses.

    :param addresses: uint64 array of any shape
    :param sorted_targets: uint64 array of shape (n,), sorted, no duplicates
    :return: int64 array of shape (n,)
    """
    if not len(sorted_targets):
        return np.zeros(0, dtype=np.int64)
    near = addresses[(addresses >= sorted_targets[0]) & (addresses <= sorted_targets[-1])]
    at = np.searchsorted(sorted_targets, near)
    hits = at[sorted_targets[at] == near]
    return np.bincount(hits, minlength=len(sorted_targets))


def by_name(tables: Dict[int, str], ops: U64, name: str) -> npt.NDArray[np.bool_]:
    """Which operations pointers point to the table of that name."""
    wanted = [address for address, table in tables.items() if table == name]
    return np.isin(ops, np.array(wanted, dtype=np.uint64))
