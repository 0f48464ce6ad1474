# SPDX-License-Identifier: LGPL-2.1-or-later
"""The virtio_gpu driver: its devices and its fence timeline."""

from __future__ import annotations

from typing import Iterator

from drgn import Object, Program, cast, container_of
from drgn.helpers.linux.list import validate_list_for_each_entry

from vmcore_tools.kernel.drm import for_each_drm_device, for_each_framebuffer, for_each_plane
from vmcore_tools.kernel.typed_objects import Embedded

#: How fences are found whose ``ops`` were cleared when they signaled (v7.2).
DETACHED_FENCE = Embedded("struct virtio_gpu_fence", "drv", "struct virtio_gpu_fence_driver")

#: What ``ops->get_driver_name()`` and ``get_timeline_name()`` of
#: virtgpu_fence.c return: code that a dump cannot run.
DRIVER_NAME = "virtio_gpu"
TIMELINE_NAME = "controlq"

_FENCES_MAX = 10_000_000


def for_each_virtio_gpu_device(prog: Program) -> Iterator[Object]:
    """
    Iterate over the virtio_gpu devices.

    :return: Iterator of ``struct virtio_gpu_device *``
    :raises LookupError: without the debug info of DRM
    """
    for device in for_each_drm_device(prog):
        if device.driver.name.string_() == b"virtio_gpu":
            yield cast("struct virtio_gpu_device *", device.dev_private)


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


def for_each_emitted_fence(device: Object) -> Iterator[Object]:
    """
    Iterate over the fences that the device has not signaled yet.

    Each entry holds a reference (``virtio_gpu_fence_emit()``).

    :param device: ``struct virtio_gpu_device *``
    :return: Iterator of ``struct virtio_gpu_fence *``
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    for number, fence in enumerate(
        validate_list_for_each_entry(
            "struct virtio_gpu_fence", device.fence_drv.fences.address_of_(), "node"
        )
    ):
        if number >= _FENCES_MAX:
            return
        yield fence


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
