# SPDX-License-Identifier: LGPL-2.1-or-later
"""DRM synchronization objects: fences that user space knows by a handle or a file."""

from __future__ import annotations

from typing import Iterator, List, Sequence, Tuple

import numpy as np
from drgn import FaultError, Object, Program, container_of, offsetof
from drgn.helpers import ValidationError
from drgn.helpers.linux.list import validate_list_for_each_entry

from vmcore_tools.kernel.dma_fence import U64, HeldFences
from vmcore_tools.kernel.files import files_with_ops
from vmcore_tools.kernel.id_slots import for_each_pointer
from vmcore_tools.kernel.layout import field_dtype, read_structs
from vmcore_tools.kernel.slab import SlabIndex

#: Bounds that no machine reaches; a damaged list must end.
_CALLBACKS_MAX = 100_000

#: Callbacks whose owner holds a reference to the fence: the function, the
#: owner's type, and its members with the callback and with the fence.
_WAITS = (
    ("syncobj_wait_fence_func", "struct syncobj_wait_entry", "fence_cb", "fence"),
    # DRM_IOCTL_SYNCOBJ_EVENTFD, from v6.6 on.
    ("syncobj_eventfd_entry_fence_func", "struct syncobj_eventfd_entry", "fence_cb", "fence"),
)


def for_each_syncobj_handle(file: Object) -> Iterator[Tuple[int, Object]]:
    """
    Iterate over the synchronization objects of an open DRM file.

    :param file: ``struct drm_file *``
    :return: Iterator of (handle, ``struct drm_syncobj *``)
    """
    # v6.12 has an IDR, v7.2 an XArray.
    tree = file.syncobj_xa if hasattr(file, "syncobj_xa") else file.syncobj_idr
    yield from for_each_pointer(tree, "struct drm_syncobj")


def syncobjs_of_files(index: SlabIndex) -> List[int]:
    """
    The synchronization objects behind open files, those without a descriptor included.

    :return: addresses of ``struct drm_syncobj``
    :raises LookupError: without the debug info of DRM
    """
    prog = index.prog
    files = files_with_ops(index, prog["drm_syncobj_file_fops"])
    members = {"syncobj": "private_data"}
    structs, _ = read_structs(prog, files.tolist(), field_dtype(prog.type("struct file"), members))
    addresses = structs["syncobj"].astype(np.uint64)
    # A file outlives its synchronization object while it is being closed.
    return [int(address) for address in addresses[index.allocated(addresses)]]


def syncobj_fences(prog: Program, syncobjs: Sequence[int]) -> HeldFences:
    """
    The fences of synchronization objects, one reference each.

    ``drm_syncobj_replace_fence()`` takes it.

    :param syncobjs: addresses of ``struct drm_syncobj``, each one once
    """
    type_ = prog.type("struct drm_syncobj")
    structs, read = read_structs(prog, syncobjs, field_dtype(type_, {"fence": "fence"}))
    held = structs["fence"].astype(np.uint64)
    words = np.array(syncobjs, dtype=np.uint64) + np.uint64(offsetof(type_, "fence"))
    unread = [address for address, ok in zip(syncobjs, read) if not ok]
    return HeldFences(held[held != 0], words[held != 0], tuple(unread))


def awaited_fences(prog: Program, fences: U64) -> HeldFences:
    """
    The references of those who wait for a synchronization object.

    They are found by their callbacks on the fences
    (``drm_syncobj_array_wait_timeout()``, ``syncobj_eventfd_entry_func()``).

    :param fences: uint64 array: ``struct dma_fence`` that have not signaled
    """
    waits = {}
    for function, type_name, callback, member in _WAITS:
        try:
            address = prog.function(function).address_
            prog.type(type_name)
        except LookupError:
            continue
        waits[address] = (type_name, callback, member)
    held: List[int] = []
    words: List[int] = []
    unread: List[int] = []
    for fence in fences.tolist() if waits else ():
        try:
            for callback in _callbacks(Object(prog, "struct dma_fence *", value=fence)):
                wait = waits.get(callback.func.value_())
                if wait is None:
                    continue
                owner = container_of(callback, *wait[:2])
                pointer = owner.member_(wait[2])
                if pointer.value_() == fence and pointer.address_ is not None:
                    held.append(fence)
                    words.append(pointer.address_)
        except (FaultError, ValidationError):
            unread.append(fence)
    return HeldFences(
        np.array(held, dtype=np.uint64), np.array(words, dtype=np.uint64), tuple(unread)
    )


def _callbacks(fence: Object) -> Iterator[Object]:
    """The callbacks on a fence: ``struct dma_fence_cb *``."""
    for number, callback in enumerate(
        validate_list_for_each_entry("struct dma_fence_cb", fence.cb_list.address_of_(), "node")
    ):
        if number >= _CALLBACKS_MAX:
            raise ValidationError("a fence's list of callbacks does not end")
        yield callback
