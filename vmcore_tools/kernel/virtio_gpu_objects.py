# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The buffers that commands of virtio_gpu use, and what the driver knows of its GEM objects.

A command in flight has an array of the objects that it uses, each with a
reference (``virtio_gpu_array_add_obj()``), until the device has answered and a
worker drops them (``virtio_gpu_array_put_free_work()``). Before v5.5 TTM kept
the buffers of commands in flight: there are no such arrays.
"""

from __future__ import annotations

import dataclasses
from typing import Dict, Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, Type, offsetof, sizeof
from drgn.helpers import ValidationError
from drgn.helpers.linux.list import validate_list_for_each_entry

from vmcore_tools.kernel.drm_gem import HeldGems
from vmcore_tools.kernel.layout import field_dtype, read_structs
from vmcore_tools.kernel.slab import SlabIndex
from vmcore_tools.kernel.virtio_ring import buffers

U64 = npt.NDArray[np.uint64]

_ARRAY = "struct virtio_gpu_object_array"
_VBUFFER = "struct virtio_gpu_vbuffer"
_OBJECT = "struct virtio_gpu_object"
#: A command names its objects by 32-bit handles in one allocation of user space's.
_OBJECTS_MAX = 1 << 20
_ARRAYS_MAX = 1_000_000
#: ``ARCH_KMALLOC_MINALIGN`` of arm64 up to v6.4: no cache of kmalloc() has smaller objects.
_KMALLOC_MIN_BYTES = 128
#: ``POISON_POINTER_DELTA``: the high bits of what list_del() leaves behind.
_LIST_POISON = 0xDEAD


@dataclasses.dataclass(frozen=True)
class CommandObjects:
    """
    What commands hold.

    :ivar in_flight: of commands that the device has, or has answered and the driver
        has not taken; the owner is the ``struct virtio_gpu_vbuffer``
    :ivar answered: of commands that are done, and wait for the worker; the owner is the array
    :ivar passing: of commands that a task is just about to queue, or to take off: it may
        have dropped them
    :ivar gaps: what could not be walked: what, why, and the address of it if known
    """

    in_flight: HeldGems
    answered: HeldGems
    passing: HeldGems
    gaps: Tuple[Tuple[str, str, Optional[int]], ...]


def command_objects(index: SlabIndex, device: Object) -> Optional[CommandObjects]:
    """
    The GEM objects that a device's commands use.

    :param device: ``struct virtio_gpu_device *``
    :return: None on a kernel whose commands have none
    """
    prog = index.prog
    try:
        prog.type(_ARRAY)
        if not prog.type(_VBUFFER).has_member("objs"):
            return None
    except LookupError:
        return None
    gaps: List[Tuple[str, str, Optional[int]]] = []
    commands = _queued(device, gaps)
    queued = _arrays_of(prog, commands, gaps)
    listed = {}
    try:
        for array in _answered_arrays(device):
            listed[array] = array
    except (FaultError, ValidationError) as error:
        gaps.append(("answered commands", f"the list breaks off: {error}", device.value_()))
    others = _arrays_of(prog, sorted(_vbuffers(index, device) - set(commands)), gaps)
    passing = {a: c for a, c in others.items() if a not in queued and a not in listed}
    return CommandObjects(
        _held(prog, queued), _held(prog, listed), _held(prog, passing), tuple(gaps)
    )


def _queued(device: Object, gaps: List[Tuple[str, str, Optional[int]]]) -> List[int]:
    """The commands in the device's queues: addresses of ``struct virtio_gpu_vbuffer``."""
    found: List[int] = []
    for name in ("ctrlq", "cursorq"):
        queue = device.member_(name).vq.read_()
        try:
            held = buffers(queue)
        except (FaultError, ValidationError, LookupError) as error:
            gaps.append(("virtqueue", f"it cannot be walked: {error}", queue.value_()))
            continue
        found += [*held.with_device.tolist(), *held.answered.tolist()]
    return found


def _vbuffers(index: SlabIndex, device: Object) -> Set[int]:
    """All commands that exist; their cache may be merged with others'."""
    number = index.cache_number(device.vbufs.read_())
    if number is None:
        return set()
    # virtio_gpu_get_vbuf(): the command is behind the structure.
    behind = sizeof(index.prog.type(_VBUFFER))
    offset = offsetof(index.prog.type(_VBUFFER), "buf")
    size = index.caches[number].size_bytes
    found: Set[int] = set()
    for batch in index.batches(np.flatnonzero(index.cache == number)):
        start = batch.cache.red_left_pad_bytes + offset
        at = (start + np.arange(batch.objects.shape[1]) * size) // 8
        words = batch.data.view(np.uint64)[:, at]
        wanted = batch.allocated & (words == batch.objects + np.uint64(behind))
        found.update(batch.objects[wanted].tolist())
    return found


def _arrays_of(
    prog: Program, commands: Sequence[int], gaps: List[Tuple[str, str, Optional[int]]]
) -> Dict[int, int]:
    """Address of each array to the command that has it."""
    structs, read = read_structs(prog, commands, field_dtype(prog.type(_VBUFFER), {"objs": "objs"}))
    gaps += [("command", "it could not be read", c) for c, ok in zip(commands, read) if not ok]
    return {array: c for array, c in zip(structs["objs"].tolist(), commands) if array}


def _answered_arrays(device: Object) -> Iterator[int]:
    for number, array in enumerate(
        validate_list_for_each_entry(_ARRAY, device.obj_free_list.address_of_(), "next")
    ):
        if number >= _ARRAYS_MAX:
            raise ValidationError("it does not end")
        yield array.value_()


def is_left_over(prog: Program, container: int, size_bytes: int, offset: int) -> bool:
    """
    Whether a pointer in a slab object is one that an array of one object had there.

    Arrays are not cleared when they are freed, nor is what has their memory next. All arrays
    that are used are among :class:`CommandObjects`, or tasks have them at hand.

    :param container: address of the slab object, of a cache of kmalloc()
    :param size_bytes: of the slab object
    :param offset: of the pointer in it
    """
    try:
        type_ = prog.type(_ARRAY)
        array = Object(prog, type_, address=container)
        first = offsetof(type_, "objs")
        count, total = array.nents.value_(), array.total.value_()
        dropped = array.next.prev.value_() >> 48 == _LIST_POISON
    except (LookupError, FaultError):
        return False
    # A larger one would be in another cache.
    if offset != first or size_bytes > max(2 * first, _KMALLOC_MIN_BYTES):
        return False
    return dropped or not (0 < count <= total and first + 8 * total <= size_bytes)


def _held(prog: Program, arrays: Dict[int, int]) -> HeldGems:
    """
    :param arrays: address of each array to what has it
    """
    type_ = prog.type(_ARRAY)
    first = offsetof(type_, "objs")
    dtype = field_dtype(type_, {"nents": "nents", "total": "total"})
    structs, read = read_structs(prog, list(arrays), dtype)
    rows: List[Tuple[int, int, int]] = []
    unread: List[int] = []
    for (array, owner), counts, ok in zip(arrays.items(), structs, read):
        count = int(counts["nents"])
        try:
            if not ok or count > min(int(counts["total"]), _OBJECTS_MAX):
                raise FaultError("no array of objects", array)
            pointers = np.frombuffer(prog.read(array + first, count * 8), dtype=np.uint64)
        except FaultError:
            unread.append(array)
            continue
        rows += [(gem, array + first + 8 * i, owner) for i, gem in enumerate(pointers.tolist())]
    return HeldGems.of(rows, unread)


@dataclasses.dataclass(frozen=True)
class ObjectLayout:
    """
    Where a driver has what of its GEM objects.

    :ivar type: the driver's own structure
    :ivar gem: offset of ``struct drm_gem_object`` in it
    :ivar pages: the member that is NULL while the object has no pages in memory
    """

    type: Type
    gem: int
    pages: str


def object_layout(prog: Program, driver: str) -> Optional[ObjectLayout]:
    """
    Where virtio_gpu and vgem have the pages of their GEM objects.

    :param driver: the driver's name
    :return: None for others, and without their debug info
    """
    candidates = {
        # On shmem helpers since v5.7, on TTM before v5.4.
        "virtio_gpu": ((_OBJECT, "base.base", "base.pages"), (_OBJECT, "gem_base", "pages")),
        # On shmem helpers since v5.12.
        "vgem": (
            ("struct drm_vgem_gem_object", "base", "pages"),
            ("struct drm_gem_shmem_object", "base", "pages"),
        ),
    }
    for name, gem, pages in candidates.get(driver, ()):
        try:
            type_ = prog.type(name)
            offsetof(type_, pages)
            return ObjectLayout(type_, offsetof(type_, gem), pages)
        except LookupError:
            continue
    return None


def pages_in_memory(
    prog: Program, layout: ObjectLayout, gems: U64
) -> Tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """
    Which GEM objects have their pages in memory, where nobody can reclaim them.

    :param gems: uint64 array of ``struct drm_gem_object *``, all of the layout's driver
    :return: bool arrays of shape (n,): the objects with pages, and which could be read
    """
    dtype = field_dtype(layout.type, {"pages": layout.pages})
    start = gems - np.uint64(layout.gem)
    structs, read = read_structs(prog, start.tolist(), dtype)
    return structs["pages"] != 0, read
