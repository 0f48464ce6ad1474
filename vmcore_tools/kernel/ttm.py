# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The buffer objects of TTM in virtio_gpu before v5.4.

A ``struct ttm_buffer_object`` is part of the driver's object, beside its GEM
object, and has reference counts of its own: ``kref`` keeps the buffer usable,
``list_kref`` its memory. The GEM object has one reference to ``kref``, and
drops it when its own count is 0; mappings have one each.
"""

from __future__ import annotations

import dataclasses
from typing import Iterator, List

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, TypeKind, offsetof
from drgn.helpers import ValidationError
from drgn.helpers.linux.list import validate_list_for_each_entry

from vmcore_tools.kernel.drm_gem import words_of
from vmcore_tools.kernel.layout import field_dtype, read_structs
from vmcore_tools.kernel.virtio_gpu import for_each_virtio_gpu_device

U64 = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]

_BUFFER = "struct ttm_buffer_object"
_OBJECT = "struct virtio_gpu_object"
_LIST_MAX = 10_000_000


def has_ttm(prog: Program) -> bool:
    """Whether virtio_gpu has its buffers from TTM."""
    try:
        return bool(prog.type(_OBJECT).has_member("tbo"))
    except LookupError:
        return False


@dataclasses.dataclass(frozen=True)
class TtmBuffers:
    """
    The buffer objects of GEM objects, as arrays of shape (n,) in the order of these.

    :ivar address: uint64, ``struct ttm_buffer_object *``
    :ivar kref: int64
    :ivar list_kref: int64
    :ivar pages: int64, that the buffer has
    :ivar in_lru: bool, it is on the list of its memory type: it can be evicted
    :ivar in_swap: bool, it is on the list of what can be swapped out
    :ivar ending: bool, it waits to be destroyed (``ddestroy``)
    :ivar read: bool, which could be read; the others are zero
    """

    address: U64
    kref: Ints
    list_kref: Ints
    pages: Ints
    in_lru: npt.NDArray[np.bool_]
    in_swap: npt.NDArray[np.bool_]
    ending: npt.NDArray[np.bool_]
    read: npt.NDArray[np.bool_]

    @property
    def list_holders(self) -> Ints:
        """
        The references of ``list_kref`` that the lists and ``kref`` itself have.

        Mirrors ``ttm_bo_add_to_lru()`` and ``ttm_bo_release()``.
        """
        result: Ints = (
            (self.kref > 0).astype(np.int64)
            + self.in_lru.astype(np.int64)
            + self.in_swap.astype(np.int64)
            + self.ending.astype(np.int64)
        )
        return result


def ttm_buffers(prog: Program, gems: U64) -> TtmBuffers:
    """
    The buffer objects beside GEM objects of virtio_gpu.

    :param gems: uint64 array of ``struct drm_gem_object *``
    """
    type_, buffer = prog.type(_OBJECT), prog.type(_BUFFER)
    address = gems + np.uint64(offsetof(type_, "tbo") - offsetof(type_, "gem_base"))
    members = {
        "kref": "kref.refcount.refs.counter",
        "list_kref": "list_kref.refcount.refs.counter",
        "pages": "num_pages",
        "lru": "lru.next",
        "swap": "swap.next",
        "ddestroy": "ddestroy.next",
    }
    structs, read = read_structs(prog, address.tolist(), field_dtype(buffer, members))

    def linked(member: str) -> npt.NDArray[np.bool_]:
        own = address + np.uint64(offsetof(buffer, member))
        result: npt.NDArray[np.bool_] = read & (structs[member] != own)
        return result

    return TtmBuffers(
        address,
        structs["kref"].astype(np.int32).astype(np.int64),
        structs["list_kref"].astype(np.int32).astype(np.int64),
        structs["pages"].astype(np.int64),
        linked("lru"),
        linked("swap"),
        linked("ddestroy"),
        read,
    )


def for_each_lru(device: Object) -> Iterator[Object]:
    """
    Iterate over the lists of what a device can evict, by memory type and priority.

    :param device: ``struct ttm_bo_device *``
    :return: Iterator of ``struct list_head *``
    """
    managers = device.man
    for i in range(len(managers)):
        lists = managers[i].lru
        if lists.type_.kind != TypeKind.ARRAY:  # before v4.10, without priorities
            yield lists.address_of_()
            continue
        for j in range(len(lists)):
            yield lists[j].address_of_()


def for_each_buffer(head: Object, member: str) -> Iterator[Object]:
    """
    Iterate over the buffer objects of a list.

    :param head: ``struct list_head *``
    :param member: ``lru``, ``swap`` or ``ddestroy``
    :return: Iterator of ``struct ttm_buffer_object *``
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    entries = validate_list_for_each_entry(_BUFFER, head, member)
    for number, buffer in enumerate(entries):
        if number >= _LIST_MAX:
            raise ValidationError("a list of buffers does not end")
        yield buffer


def ttm_words(prog: Program) -> U64:
    """
    The words of the devices' lists and trees, and of those of all devices: they hold no GEM object.

    :return: uint64 array of addresses; empty on a kernel without TTM in virtio_gpu
    """
    found: List[U64] = [np.zeros(0, dtype=np.uint64)]
    if not has_ttm(prog):
        return found[0]
    try:
        for device in for_each_virtio_gpu_device(prog):
            bdev = device.mman.bdev
            assert bdev.address_ is not None
            found.append(words_of(prog, "struct ttm_bo_device", bdev.address_))
            # One for all devices, with the list of what can be swapped out.
            shared = bdev.glob.value_()
            if shared:
                found.append(words_of(prog, "struct ttm_bo_global", shared))
    except (LookupError, FaultError, ValidationError):
        # What is left out is reported as an unknown pointer, not as none.
        pass
    return np.concatenate(found)
