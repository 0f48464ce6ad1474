# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Virtqueues: what a guest has asked of a virtio device, and what it has answered.

The ring is shared with the device, so a dump of the guest says what the host
has done. The driver adds a buffer and tells the device; the device takes it,
does what it says and puts it back as used; an interrupt makes the driver take
it off. Names and rules are those of ``drivers/virtio/virtio_ring.c``.
"""

from __future__ import annotations

import dataclasses
from typing import Iterator, List, Optional, Set, Tuple

import numpy as np
import numpy.typing as npt
from drgn import Object, container_of, sizeof
from drgn.helpers import ValidationError

from vmcore_tools.kernel.layout import field_dtype
from vmcore_tools.kernel.lists import for_each_entry

#: A ring has at most so many entries; its indices are of 16 bits.
_SIZE_MAX = 32768
_INDEX_MASK = 0xFFFF
#: include/uapi/linux/virtio_ring.h: macros, the numbers of bits in a descriptor's flags.
_DESC_F_AVAIL = 7
_DESC_F_USED = 15
#: Of a packed ring, the same file: the wrap counter in an index.
_WRAP_COUNTER = 15
#: Queues of one device.
_QUEUES_MAX = 65536

U64 = npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True)
class RingState:
    """
    How far a device is with a virtqueue.

    :ivar size: entries of the ring
    :ivar packed: whether it is a packed ring
    :ivar with_device: buffers that the device has been given and has not answered
    :ivar answered: buffers that it has answered, and the driver has not taken off
    :ivar not_fetched: of those with the device, how many it has not asked for
        yet: it names the entry that it wants to be told of, mostly that behind
        the last one it fetched; None where it names none
    :ivar not_announced: buffers added since the driver last decided whether to
        tell the device
    :ivar free: entries that the driver can still use
    :ivar indirect: whether a buffer of any length needs one entry
    :ivar broken: whether the driver has given the device up
    """

    size: int
    packed: bool
    with_device: int
    answered: int
    not_fetched: Optional[int]
    not_announced: int
    free: int
    indirect: bool
    broken: bool


def for_each_virtqueue(device: Object) -> Iterator[Object]:
    """
    Iterate over the virtqueues of a device.

    :param device: ``struct virtio_device *``
    :return: Iterator of ``struct virtqueue *``
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    queues = device.vqs.address_of_()
    yield from for_each_entry("struct virtqueue", queues, "list", _QUEUES_MAX)


def ring_of(queue: Object) -> Object:
    """
    The ring of a virtqueue. Mirrors ``to_vvq()``.

    :param queue: ``struct virtqueue *``
    :return: ``struct vring_virtqueue *``
    :raises LookupError: without the debug info of virtio_ring
    """
    return container_of(queue, "struct vring_virtqueue", "vq")


def is_packed(ring: Object) -> bool:
    """
    Whether a ring is a packed one.

    :param ring: ``struct vring_virtqueue *``
    """
    if hasattr(ring, "layout"):
        # In v7.0 rings got the in-order layouts, and an enum of all four.
        return "PACKED" in _layout(ring)
    # 1ce9e6055fa0 ("virtio_ring: introduce packed ring support") in v5.0.
    return bool(hasattr(ring, "packed_ring") and ring.packed_ring.value_())


def _layout(ring: Object) -> str:
    names = {value: name for name, value in ring.layout.type_.enumerators}
    return str(names.get(ring.layout.value_(), ""))


def _is_in_order(ring: Object) -> bool:
    return hasattr(ring, "layout") and _layout(ring).endswith("IN_ORDER")


def ring_state(queue: Object) -> RingState:
    """
    How far the device is with a virtqueue.

    :param queue: ``struct virtqueue *``
    :raises FaultError: if the ring is not in the dump
    :raises drgn.helpers.ValidationError: if its indices contradict each other
    :raises LookupError: without the debug info of virtio_ring
    """
    ring = ring_of(queue)
    if is_packed(ring):
        return _packed_state(ring)
    split = _split(ring)
    size = _size(split.vring)
    added = int(split.vring.avail.idx.value_())
    used = int(split.vring.used.idx.value_())
    with_device = added - used & _INDEX_MASK
    answered = used - int(ring.last_used_idx.value_()) & _INDEX_MASK
    # An entry that was answered can be freed only when it was taken off.
    if with_device + answered > size:
        raise ValidationError(f"a ring of {size} has {with_device} + {answered} entries in use")
    return RingState(
        size=size,
        packed=False,
        with_device=with_device,
        answered=answered,
        not_fetched=_not_fetched(ring, split.vring, added, with_device),
        not_announced=int(ring.num_added.value_()),
        free=int(ring.vq.num_free.value_()),
        indirect=bool(ring.indirect.value_()),
        broken=bool(ring.broken.value_()),
    )


def _split(ring: Object) -> Object:
    # e593bf975156 ("virtio_ring: put split ring fields in a sub struct") in
    # v5.0: before, they are members of the ring itself.
    return ring.split if hasattr(ring, "split") else ring


def _size(vring: Object) -> int:
    size = int(vring.num.value_())
    if not 0 < size <= _SIZE_MAX:
        raise ValidationError(f"a ring has {size} entries")
    return size


def _not_fetched(ring: Object, vring: Object, added: int, with_device: int) -> Optional[int]:
    """By ``vring_avail_event()``: behind the entries of the used ring."""
    if not ring.event.value_():
        return None  # without VIRTIO_RING_F_EVENT_IDX
    end = vring.used.ring[vring.num].address_of_().value_()
    wanted = int(ring.prog_.read_u16(end))
    left = added - wanted & _INDEX_MASK
    return left if left <= with_device else None


def _packed_state(ring: Object) -> RingState:
    size = _size(ring.packed.vring)
    states = _packed_desc_state(ring, size)
    outstanding = int(np.count_nonzero(states["data"]))
    answered = len(_packed_answered(ring, size, states))
    if answered > outstanding:
        raise ValidationError(f"a ring has {outstanding} buffers and {answered} answered ones")
    return RingState(
        size=size,
        packed=True,
        with_device=outstanding - answered,
        answered=answered,
        not_fetched=None,
        not_announced=int(ring.num_added.value_()),
        free=int(ring.vq.num_free.value_()),
        indirect=bool(ring.indirect.value_()),
        broken=bool(ring.broken.value_()),
    )


def _packed_desc_state(ring: Object, size: int) -> npt.NDArray[np.void]:
    type_ = ring.prog_.type("struct vring_desc_state_packed")
    dtype = field_dtype(type_, {"data": "data", "num": "num"})
    data = ring.prog_.read(ring.packed.desc_state.value_(), size * dtype.itemsize)
    return np.frombuffer(data, dtype=dtype)


def _packed_answered(ring: Object, size: int, states: npt.NDArray[np.void]) -> Tuple[int, ...]:
    """
    The IDs of used descriptors that the driver has not seen; mirrors ``more_used_packed()``.
    """
    index = int(ring.last_used_idx.value_())
    # A wrap counter of its own in v5.10, a bit of the index in v6.1.
    if hasattr(ring.packed, "used_wrap_counter"):
        wrap = int(ring.packed.used_wrap_counter.value_())
    else:
        index, wrap = index & ~(1 << _WRAP_COUNTER), index >> _WRAP_COUNTER
    if index >= size:
        raise ValidationError(f"a ring of {size} was read up to entry {index}")
    type_ = ring.prog_.type("struct vring_packed_desc")
    dtype = field_dtype(type_, {"id": "id", "flags": "flags"})
    start = ring.packed.vring.desc.value_()
    descriptors = np.frombuffer(ring.prog_.read(start, size * dtype.itemsize), dtype=dtype)
    answered: List[int] = []
    seen: Set[int] = set()
    passed = 0
    while passed < size:
        flags = int(descriptors["flags"][index])
        available, used = flags >> _DESC_F_AVAIL & 1, flags >> _DESC_F_USED & 1
        if available != used or used != wrap:
            break
        id = int(descriptors["id"][index])
        if id >= size or id in seen or not states["data"][id]:
            raise ValidationError(f"a used descriptor has the ID {id}")
        seen.add(id)
        answered.append(id)
        step = max(1, int(states["num"][id]))
        passed += step
        index += step
        if index >= size:
            index, wrap = index - size, wrap ^ 1
    return tuple(answered)


@dataclasses.dataclass(frozen=True)
class Buffers:
    """
    What a driver has in a virtqueue: the ``data`` that it gave to ``virtqueue_add()``.

    :ivar with_device: uint64 array: of the buffers that are not answered
    :ivar answered: uint64 array: of those that it has not taken off yet
    """

    with_device: U64
    answered: U64


def buffers(queue: Object) -> Buffers:
    """
    The buffers in a virtqueue.

    :param queue: ``struct virtqueue *``
    :raises FaultError: if the ring is not in the dump
    :raises drgn.helpers.ValidationError: if its indices contradict each other
    :raises LookupError: without the debug info of virtio_ring
    """
    ring = ring_of(queue)
    if is_packed(ring):
        size = _size(ring.packed.vring)
        states = _packed_desc_state(ring, size)
        heads = list(_packed_answered(ring, size, states))
        data = states["data"]
    else:
        vring = _split(ring).vring
        heads = _split_answered(ring, vring, ring_state(queue))
        data = _split_data(ring, _size(vring))
    is_answered = np.zeros(len(data), dtype=bool)
    is_answered[heads] = True
    outstanding = data != 0
    return Buffers(
        data[outstanding & ~is_answered].astype(np.uint64),
        data[outstanding & is_answered].astype(np.uint64),
    )


def _split_data(ring: Object, size: int) -> npt.NDArray[np.uint64]:
    split = _split(ring)
    # cbeedb72b97a ("virtio_ring: allocate desc state for split ring
    # separately") in v5.0: before, it is the ring's last member.
    if hasattr(ring, "split"):
        start, name = split.desc_state.value_(), "struct vring_desc_state_split"
    else:
        start, name = split.desc_state[0].address_of_().value_(), "struct vring_desc_state"
    dtype = field_dtype(ring.prog_.type(name), {"data": "data"})
    states = np.frombuffer(ring.prog_.read(start, size * dtype.itemsize), dtype=dtype)
    return states["data"].astype(np.uint64)


def _split_answered(ring: Object, vring: Object, state: RingState) -> List[int]:
    """The heads of the chains that the device has put on the used ring."""
    first = int(ring.last_used_idx.value_())
    # In order, one used entry may answer several: they are those that were added first.
    entries = vring.avail.ring if _is_in_order(ring) else vring.used.ring
    ids = _ids(entries, state.size)
    heads = [int(ids[(first + i) % state.size]) for i in range(state.answered)]
    if any(head >= state.size for head in heads):
        raise ValidationError("a used entry names a descriptor that is not in the ring")
    return heads


def _ids(entries: Object, size: int) -> U64:
    """
    The first descriptors of the buffers that a ring has.

    :param entries: array of ``__virtio16``, or of ``struct vring_used_elem``
    """
    order = "<" if entries.prog_.platform.flags.IS_LITTLE_ENDIAN else ">"
    # An element begins with its ID: 32 bits, then as many of a length.
    dtype = np.dtype(f"{order}u2" if sizeof(entries[0]) == 2 else f"{order}u4,{order}u4")
    start = entries[0].address_of_().value_()
    ids = np.frombuffer(entries.prog_.read(start, size * dtype.itemsize), dtype=dtype)
    return (ids if dtype.names is None else ids["f0"]).astype(np.uint64)
