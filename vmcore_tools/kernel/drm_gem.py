# SPDX-License-Identifier: LGPL-2.1-or-later
"""GEM objects."""

from __future__ import annotations

from typing import Iterator, Tuple

from drgn import Object, cast, container_of
from drgn.helpers.linux.idr import idr_for_each

from vmcore_tools.kernel.typed_objects import Embedded

#: How GEM objects are found in slab objects, those without a handle included.
#: Drivers that set no ``funcs`` (before v5.11 some did not) have only handles.
GEM_OBJECT = Embedded("struct drm_gem_object", "funcs", "struct drm_gem_object_funcs")

_HANDLES_MAX = 10_000_000


def for_each_gem_handle(file: Object) -> Iterator[Tuple[int, Object]]:
    """
    Iterate over the GEM handles of an open DRM file.

    :param file: ``struct drm_file *``
    :return: Iterator of (handle, ``struct drm_gem_object *``)
    """
    for number, (handle, entry) in enumerate(idr_for_each(file.object_idr.address_of_())):
        if number >= _HANDLES_MAX:
            return
        if entry:
            yield handle, cast("struct drm_gem_object *", entry)


def reservation_address(device: Object, gem: Object) -> int:
    """
    The reservation object of a GEM object.

    :param device: ``struct drm_device *``
    :param gem: ``struct drm_gem_object *``
    :return: address of ``struct dma_resv`` (``struct reservation_object`` before
        v5.4), 0 if it is not known where the driver has it
    """
    # "drm/gem: Add reservation_object to drm_gem_object" of v5.2; drivers on TTM
    # had it in the buffer object.
    if hasattr(gem, "resv"):
        return int(gem.resv.value_())
    if device.driver.name.string_() == b"virtio_gpu":
        return int(container_of(gem, "struct virtio_gpu_object", "gem_base").tbo.resv.value_())
    return 0
