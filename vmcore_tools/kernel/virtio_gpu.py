# SPDX-License-Identifier: LGPL-2.1-or-later
"""The virtio_gpu driver: its devices, their queues and their fence timeline."""

from __future__ import annotations

import dataclasses
from typing import Iterator, Optional, Sequence, Tuple

from drgn import Object, Program, cast, container_of, sizeof
from drgn.helpers import ValidationError

from vmcore_tools.kernel.drm import for_each_drm_device, for_each_framebuffer, for_each_plane
from vmcore_tools.kernel.lists import for_each_entry
from vmcore_tools.kernel.strings import c_string
from vmcore_tools.kernel.typed_objects import Embedded
from vmcore_tools.kernel.virtio_ring import buffers

#: How fences are found whose ``ops`` were cleared when they signaled (v7.2).
DETACHED_FENCE = Embedded("struct virtio_gpu_fence", "drv", "struct virtio_gpu_fence_driver")

#: What ``ops->get_driver_name()`` and ``get_timeline_name()`` of
#: virtgpu_fence.c return: code that a dump cannot run.
DRIVER_NAME = "virtio_gpu"
TIMELINE_NAME = "controlq"

_FENCES_MAX = 10_000_000
#: include/uapi/linux/virtio_gpu.h: a macro. The command has a fence.
_FLAG_FENCE = 1


def for_each_virtio_gpu_device(prog: Program) -> Iterator[Object]:
    """
    Iterate over the virtio_gpu devices.

    :return: Iterator of ``struct virtio_gpu_device *``
    :raises LookupError: without the debug info of DRM
    """
    for device in for_each_drm_device(prog):
        if c_string(device.driver.name) == b"virtio_gpu":
            yield cast("struct virtio_gpu_device *", device.dev_private)


def for_each_queue(device: Object) -> Iterator[Object]:
    """
    The queues of a device: that of its commands, and that of the cursor.

    :param device: ``struct virtio_gpu_device *``
    :return: Iterator of ``struct virtio_gpu_queue *``
    """
    yield device.ctrlq.address_of_()
    yield device.cursorq.address_of_()


@dataclasses.dataclass(frozen=True)
class Command:
    """
    A command in a queue.

    :ivar buffer: ``struct virtio_gpu_vbuffer *``
    :ivar name: of ``enum virtio_gpu_ctrl_type``
    :ivar fence_id: of the fence that the device signals by its answer, None if there is none
    """

    buffer: Object
    name: str
    fence_id: Optional[int]


@dataclasses.dataclass(frozen=True)
class Commands:
    """
    The commands in a queue, in no order.

    :ivar with_device: those that the device has not answered
    :ivar answered: those whose answer the driver has not read yet
    """

    with_device: Tuple[Command, ...]
    answered: Tuple[Command, ...]


def commands(queue: Object) -> Commands:
    """
    The commands in a queue.

    :param queue: ``struct virtio_gpu_queue *``
    :raises FaultError: if they are not in the dump
    :raises drgn.helpers.ValidationError: if the ring or a command is damaged
    :raises LookupError: without the debug info of virtio_ring
    """
    found = buffers(queue.vq)
    prog = queue.prog_
    return Commands(
        _commands(prog, found.with_device.tolist()), _commands(prog, found.answered.tolist())
    )


def _commands(prog: Program, addresses: Sequence[int]) -> Tuple[Command, ...]:
    type_ = prog.type("struct virtio_gpu_vbuffer")
    names = {value: name for name, value in prog.type("enum virtio_gpu_ctrl_type").enumerators}
    found = []
    for address in addresses:
        buffer = Object(prog, prog.pointer_type(type_), address)
        # virtio_gpu_get_vbuf() has it right behind, in the same object.
        if buffer.buf.value_() != address + sizeof(type_):
            raise ValidationError(f"{address:#x} in a queue of virtio_gpu is no command")
        header = cast("struct virtio_gpu_ctrl_hdr *", buffer.buf)
        number = int(header.type.value_())
        fenced = header.flags.value_() & _FLAG_FENCE
        fence_id = int(header.fence_id.value_()) if fenced else None
        found.append(Command(buffer, names.get(number, f"{number:#x}"), fence_id))
    return tuple(found)


def fence_id(fence: Object) -> int:
    """
    What the device knows a fence by.

    :param fence: ``struct virtio_gpu_fence *``
    """
    # Between v5.10 and v6.1, contexts got fences of their own, and fences this number.
    if hasattr(fence, "fence_id"):
        return int(fence.fence_id.value_())
    return int(fence.f.seqno.value_())


def last_completed_seqno(device: Object) -> int:
    """
    The highest sequence number that the device has reported as done.

    :param device: ``struct virtio_gpu_device *``
    """
    # Renamed between v5.10 and v6.1.
    try:
        return int(device.fence_drv.last_fence_id.counter.value_())
    except AttributeError:
        return int(device.fence_drv.last_seq.counter.value_())


def last_emitted_seqno(device: Object) -> int:
    """
    The highest sequence number that the device was given.

    :param device: ``struct virtio_gpu_device *``
    """
    # Renamed with last_seq.
    try:
        return int(device.fence_drv.current_fence_id.value_())
    except AttributeError:
        return int(device.fence_drv.sync_seq.value_())


def for_each_emitted_fence(device: Object) -> Iterator[Object]:
    """
    Iterate over the fences that the device has not signaled yet.

    Each entry holds a reference (``virtio_gpu_fence_emit()``).

    :param device: ``struct virtio_gpu_device *``
    :return: Iterator of ``struct virtio_gpu_fence *``
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    fences = device.fence_drv.fences.address_of_()
    yield from for_each_entry("struct virtio_gpu_fence", fences, "node", _FENCES_MAX)


def for_each_update_fence(device: Object) -> Iterator[Object]:
    """
    Iterate over the fences that an update of a plane holds, for as long as it takes.

    Mirrors ``virtio_gpu_plane_prepare_fb()`` and ``_cleanup_fb()``.

    :param device: ``struct virtio_gpu_device *``
    :return: Iterator of the members ``struct virtio_gpu_fence *`` that hold them
    :raises drgn.helpers.ValidationError: if a list is damaged
    """
    if device.prog_.type("struct virtio_gpu_framebuffer").has_member("fence"):
        for framebuffer in for_each_framebuffer(device.ddev):
            fence = container_of(framebuffer, "struct virtio_gpu_framebuffer", "base").fence
            if fence:
                yield fence
        return
    # "drm/virtio: New fence for every plane update" of v6.14.
    for plane in for_each_plane(device.ddev):
        if plane.state:
            fence = container_of(plane.state, "struct virtio_gpu_plane_state", "base").fence
            if fence:
                yield fence
