# SPDX-License-Identifier: LGPL-2.1-or-later
"""DRM devices, their minors, open files, framebuffers and planes."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any, Iterator, Tuple

from drgn import Object, Program, cast

from vmcore_tools.kernel.id_slots import for_each_pointer
from vmcore_tools.kernel.lists import for_each_entry
from vmcore_tools.kernel.strings import device_name, name_text

#: Bounds that no machine reaches; a damaged list must end.
_MINORS_MAX = 4096
_LIST_MAX = 10_000_000


def for_each_drm_minor(prog: Program) -> Iterator[Object]:
    """
    Iterate over the minors of all DRM devices, accelerators included.

    :return: Iterator of ``struct drm_minor *``
    :raises LookupError: without the debug info of DRM
    """
    entries = _minors(prog, "drm_minors")
    with contextlib.suppress(KeyError):  # a kernel without accelerators
        # "accel: add dedicated minor for accelerator devices" of v6.2: they have no others.
        entries = itertools.chain(entries, _minors(prog, "accel_minors"))
    for number, (_, entry) in enumerate(entries):
        if number >= _MINORS_MAX:
            return
        if entry:
            yield cast("struct drm_minor *", entry)


def _minors(prog: Program, name: str) -> Iterator[Tuple[int, Any]]:
    """
    :raises KeyError: if there is no such variable
    """
    # "drm: Use XArray instead of IDR for minors" of v6.12 was backported, and so was accel's.
    try:
        tree = prog[f"{name}_xa"]
    except KeyError:
        tree = prog[f"{name}_idr"]
    return for_each_pointer(tree, "struct drm_minor")


def for_each_drm_device(prog: Program) -> Iterator[Object]:
    """
    Iterate over all DRM devices.

    :return: Iterator of ``struct drm_device *``
    :raises LookupError: without the debug info of DRM
    """
    seen = set()
    for minor in for_each_drm_minor(prog):
        device = minor.dev.read_()
        if device.value_() not in seen:
            seen.add(device.value_())
            yield device


def for_each_drm_file(device: Object) -> Iterator[Object]:
    """
    Iterate over the open files of a DRM device.

    :param device: ``struct drm_device *``
    :return: Iterator of ``struct drm_file *``
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    files = device.filelist.address_of_()
    yield from for_each_entry("struct drm_file", files, "lhead", _LIST_MAX)


def for_each_internal_drm_file(device: Object) -> Iterator[Object]:
    """
    Iterate over the files that the kernel itself has of a DRM device, such as fbdev's.

    :param device: ``struct drm_device *``
    :return: Iterator of ``struct drm_file *``
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    # "drm: Begin an API for in-kernel clients" of v4.18.
    if not hasattr(device, "filelist_internal"):
        return
    files = device.filelist_internal.address_of_()
    yield from for_each_entry("struct drm_file", files, "lhead", _LIST_MAX)


def driver_name(device: Object) -> str:
    """
    The name of a DRM device's driver, as the DRM_IOCTL_VERSION gives it.

    :param device: ``struct drm_device *``
    :raises drgn.FaultError: if it is not in the dump
    """
    return name_text(device.driver.name)


def minor_name(minor: Object) -> str:
    """
    What a minor is called in /dev/dri: ``card0``, ``renderD128``.

    :param minor: ``struct drm_minor *``
    :raises drgn.FaultError: if it is not in the dump
    """
    return device_name(minor.kdev)


def file_process(file: Object) -> Object:
    """
    The process that a DRM file counts as its own: it opened it, or was first to use it.

    :param file: ``struct drm_file *``
    :return: ``struct pid *``, or NULL: it may have none any more, only its number
    """
    return file.pid.read_()


def for_each_framebuffer(device: Object) -> Iterator[Object]:
    """
    Iterate over the framebuffers of a DRM device.

    :param device: ``struct drm_device *``
    :return: Iterator of ``struct drm_framebuffer *``
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    # drm_mode_config_init() is for devices with a screen.
    if not device.mode_config.fb_list.next:
        return
    framebuffers = device.mode_config.fb_list.address_of_()
    yield from for_each_entry("struct drm_framebuffer", framebuffers, "head", _LIST_MAX)


def for_each_plane(device: Object) -> Iterator[Object]:
    """
    Iterate over the planes of a DRM device.

    :param device: ``struct drm_device *``
    :return: Iterator of ``struct drm_plane *``
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    planes = device.mode_config.plane_list.address_of_()
    yield from for_each_entry("struct drm_plane", planes, "head", _LIST_MAX)
