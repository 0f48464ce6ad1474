# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every ``dma_fence`` in slab memory, and the holders that count a reference."""

from __future__ import annotations

import dataclasses
from typing import Dict, Iterator, List, Sequence, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, Type, offsetof
from drgn.helpers import ValidationError
from drgn.helpers.linux.list import validate_list_for_each_entry

from vmcore_tools.kernel.irq_work import link_member
from vmcore_tools.kernel.layout import as_structs, field_dtype, read_structs
from vmcore_tools.kernel.typed_objects import Embedded, Found

#: How fences are found in slab objects.
DMA_FENCE = Embedded("struct dma_fence", "ops", "struct dma_fence_ops")

_POINTER = np.dtype([("pointer", np.uint64)])
#: Fences in one reservation object; a damaged count must end.
_FENCES_MAX = 65536
#: Callbacks on one fence.
_CALLBACKS_MAX = 65536
#: The fence that a callback is on is held by somebody else: the sync_file that
#: is polled, the task that waits, the array (as often as it has fences).
_CALLBACKS_WITHOUT_REFERENCE = frozenset(
    {"fence_check_cb_func", "dma_fence_default_wait_cb", "dma_fence_array_cb_func"}
)
#: In what the callback is, is known: its own references are counted elsewhere.
_CALLBACKS_OF_FENCES = frozenset({"dma_fence_array_cb_func", "dma_fence_chain_cb"})

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
    :ivar lock: uint64, ``spinlock_t *``; 0 for a lock inside the fence
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
    type_ = prog.type("struct dma_fence")
    # v7.2 has the lock itself or a pointer to it, as a flag tells.
    lock_is_pointer = type_.has_member("lock")
    dtype = field_dtype(
        type_,
        {
            "refcount": "refcount.refcount.refs.counter",
            "flags": "flags",
            "context": "context",
            "seqno": "seqno",
            "lock": "lock" if lock_is_pointer else "extern_lock",
        },
    )
    structs = as_structs(found.structs, dtype)
    flags = structs["flags"].astype(np.uint64)
    lock = structs["lock"].astype(np.uint64)
    if not lock_is_pointer:
        lock[has_flag(prog, flags, "DMA_FENCE_FLAG_INLINE_LOCK_BIT")] = 0
    return Fences(
        found=found,
        refcount=structs["refcount"].astype(np.int32).astype(np.int64),
        flags=flags,
        signaled=has_flag(prog, flags, "DMA_FENCE_FLAG_SIGNALED_BIT"),
        context=structs["context"].astype(np.uint64),
        seqno=structs["seqno"].astype(np.uint64),
        lock=lock,
    )


def has_flag(prog: Program, flags: U64, bit: str) -> npt.NDArray[np.bool_]:
    """:param bit: an enumerator of ``enum dma_fence_flag_bits``"""
    shift = np.uint64(prog.constant(bit).value_())
    result: npt.NDArray[np.bool_] = flags >> shift & np.uint64(1) != 0
    return result


def stale_callback_words(prog: Program, every: Fences) -> U64:
    """
    Pointers to callbacks that ran: what is left in the lists of signaled fences.

    ``dma_fence_signal_timestamp_locked()`` moves the callbacks to a list of its
    own and writes the time over the list's first word: the second one stays.

    :return: uint64 array: addresses of the words
    """
    offset = offsetof(prog.type("struct dma_fence"), "cb_list.prev")
    return every.found.address[every.signaled] + np.uint64(offset)


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
    resv_type, list_type = _reservation_types(prog)
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

    count_member, max_member, slots_member = (
        ("num_fences", "max_fences", "table")
        if one_list
        else ("shared_count", "shared_max", "shared")
    )
    slots_offset = offsetof(list_type, slots_member)
    lists = [int(address) for address in owners["list"] if address]
    members = {"count": count_member, "max": max_member}
    heads, read = read_structs(prog, lists, field_dtype(list_type, members))
    # What stands behind a damaged list is nobody's slot.
    sound = read & (heads["count"] <= heads["max"]) & (heads["count"] <= _FENCES_MAX)
    unread += [address for address, ok in zip(lists, sound) if not ok]
    for address, count, ok in zip(lists, heads["count"].tolist(), sound):
        first = address + slots_offset
        slots = [first + 8 * i for i in range(count if ok else 0)]
        values, read = read_structs(prog, slots, _POINTER)
        unread += [slot for slot, ok in zip(slots, read) if not ok]
        # The list's slots carry the usage in their lowest bits from v5.19 on.
        held = values["pointer"] & (~np.uint64(3) if one_list else ~np.uint64(0))
        pairs.append((held, np.array(slots, dtype=np.uint64)))
    return _held(pairs, unread)


def _reservation_types(prog: Program) -> Tuple[Type, Type]:
    # "dma-buf: rename reservation_object to dma_resv" of v5.4.
    try:
        return prog.type("struct dma_resv"), prog.type("struct dma_resv_list")
    except LookupError:
        return (
            prog.type("struct reservation_object"),
            prog.type("struct reservation_object_list"),
        )


def chain_fences(prog: Program, chains: U64) -> HeldFences:
    """
    The fences that the links of fence chains hold: their own, and the link before.

    Mirrors ``dma_fence_chain_init()`` and ``dma_fence_chain_release()``.

    :param chains: uint64 array of the ``struct dma_fence *`` in ``struct dma_fence_chain``
    """
    if not len(chains):
        return _held([])
    type_ = prog.type("struct dma_fence_chain")
    addresses = chains - np.uint64(offsetof(type_, "base"))
    structs, read = read_structs(
        prog, addresses.tolist(), field_dtype(type_, {"prev": "prev", "fence": "fence"})
    )
    pairs = [
        (structs[member].astype(np.uint64), addresses + np.uint64(offsetof(type_, member)))
        for member in ("prev", "fence")
    ]
    return _held(pairs, addresses[~read].tolist())


def stale_chain_words(prog: Program, chains: U64) -> U64:
    """
    Links of irq_works that are done to those that were queued before: maybe in another chain.

    :param chains: uint64 array of the ``struct dma_fence *`` in ``struct dma_fence_chain``
    :return: uint64 array: addresses of the words
    """
    if not len(chains):
        return chains
    type_ = prog.type("struct dma_fence_chain")
    link = offsetof(type_, link_member(type_, "work")) - offsetof(type_, "base")
    return chains + np.uint64(link)


def armed_chains(prog: Program, chains: Fences) -> U64:
    """
    The links of fence chains that may hold a reference to themselves.

    ``dma_fence_chain_enable_signaling()`` takes it, and the irq_work that
    signals the link drops it.

    :param chains: links of chains
    :return: uint64 array of ``struct dma_fence *``
    """
    armed = has_flag(prog, chains.flags, "DMA_FENCE_FLAG_ENABLE_SIGNAL_BIT")
    result: U64 = chains.found.address[armed]
    return result


def for_each_callback(fence: Object) -> Iterator[Object]:
    """
    Iterate over the callbacks on a fence that has not signaled.

    :param fence: ``struct dma_fence *``
    :return: Iterator of ``struct dma_fence_cb *``
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    entries = validate_list_for_each_entry(
        "struct dma_fence_cb", fence.cb_list.address_of_(), "node"
    )
    for number, callback in enumerate(entries):
        if number >= _CALLBACKS_MAX:
            raise ValidationError("a fence's list of callbacks does not end")
        yield callback


def with_callbacks(prog: Program, every: Fences) -> U64:
    """
    The fences that have not signaled and have a callback.

    :return: uint64 array of ``struct dma_fence *``
    """
    type_ = prog.type("struct dma_fence")
    first = as_structs(every.found.structs, field_dtype(type_, {"next": "cb_list.next"}))["next"]
    head = every.found.address + np.uint64(offsetof(type_, "cb_list"))
    # Once it is signaled, a time takes the list's place (v5.4).
    wanted = ~every.signaled & (every.refcount > 0) & (first != head)
    result: U64 = every.found.address[wanted]
    return result


def callback_fences(prog: Program, fences: U64) -> HeldFences:
    """
    The callbacks on fences: each may have a reference to the fence it waits for.

    Those that never have one are not in the result, but their words are. So are
    the links to the callbacks of fence arrays and chains: they are pointers
    into these, and no references to them.

    :param fences: uint64 array of ``struct dma_fence *`` with callbacks
    """
    held: List[int] = []
    words: List[int] = []
    unread: List[int] = []
    for address in fences.tolist():
        callbacks: List[Object] = []
        try:
            for callback in for_each_callback(Object(prog, "struct dma_fence *", value=address)):
                callback = callback.read_()
                callbacks.append(callback)
                function = _symbol_name(prog, callback.func)
                if function not in _CALLBACKS_WITHOUT_REFERENCE:
                    held.append(address)
                if function in _CALLBACKS_OF_FENCES:
                    # A list_head's next comes first, its prev 8 bytes behind.
                    words.append(callback.node.prev.value_())
                    words.append(callback.node.next.value_() + 8)
        except (FaultError, ValidationError):
            unread.append(address)
        if callbacks:
            # The ends of the list point to its head, which is in the fence.
            words.append(callbacks[0].node.prev.address_)
            words.append(callbacks[-1].node.next.address_)
    return HeldFences(
        np.array(held, dtype=np.uint64), np.array(words, dtype=np.uint64), tuple(unread)
    )


def _symbol_name(prog: Program, function: Object) -> str:
    try:
        return str(prog.symbol(function.value_()).name)
    except LookupError:
        return ""


def by_name(tables: Dict[int, str], ops: U64, name: str) -> npt.NDArray[np.bool_]:
    """Which operations pointers point to the table of that name."""
    wanted = [address for address, table in tables.items() if table == name]
    return np.isin(ops, np.array(wanted, dtype=np.uint64))
