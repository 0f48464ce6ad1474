# SPDX-License-Identifier: LGPL-2.1-or-later
"""All dma_fences and GEM objects in slab memory, found in one pass over it."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, offsetof, sizeof
from drgn.helpers import ValidationError

from vmcore_tools.kernel.dma_fence import DMA_FENCE, Fences, fences, has_flag
from vmcore_tools.kernel.drm import driver_name, for_each_drm_device
from vmcore_tools.kernel.drm_gem import GEM_OBJECT, GEM_OF_DEVICE, plausible_gems
from vmcore_tools.kernel.layout import as_structs, field_dtype
from vmcore_tools.kernel.slab import SlabIndex
from vmcore_tools.kernel.typed_objects import Found, find_embedded
from vmcore_tools.kernel.virtio_gpu import DETACHED_FENCE, for_each_virtio_gpu_device

_CACHE_KEY = "vmcore_tools.kernel.found_fences"
_DETACHED = "virtio_gpu, detached"

U64 = npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True)
class FoundFences:
    """
    What was found.

    :ivar fences: all fences
    :ivar gems: GEM objects; None on a kernel without DRM
    """

    fences: Fences
    gems: Optional[Found]


def found_fences(index: SlabIndex) -> FoundFences:
    """
    The fences and GEM objects in slab memory, looked for once for an index.

    :raises LookupError: without the debug info of dma_fence
    """
    cached: Optional[Tuple[SlabIndex, FoundFences]] = index.prog.cache.get(_CACHE_KEY)
    if cached is not None and cached[0] is index:
        return cached[1]
    found = _find(index)
    index.prog.cache[_CACHE_KEY] = (index, found)
    return found


def detached_fences(index: SlabIndex) -> U64:
    """
    The fences of virtio_gpu that signaled and lost their ``ops`` with that (v7.1).

    :return: uint64 array of ``struct virtio_gpu_fence *``
    :raises LookupError: without the debug info of dma_fence
    """
    found = found_fences(index).fences.found
    lost = [ops for ops, name in found.tables.items() if name == _DETACHED]
    start = offsetof(index.prog.type("struct virtio_gpu_fence"), "f") if lost else 0
    is_lost = np.isin(found.ops, np.array(lost, dtype=np.uint64))
    result: U64 = found.address[is_lost] - np.uint64(start)
    return result


def _find(index: SlabIndex) -> FoundFences:
    prog = index.prog
    kinds = [DMA_FENCE, GEM_OBJECT] if _has_gem_tables(prog) else [DMA_FENCE]
    devices: List[Object] = []
    drivers: Dict[int, str] = {}
    # A kernel without DRM or virtio_gpu; what of them is damaged, their walkers count.
    with contextlib.suppress(LookupError, FaultError, ValidationError):
        devices += for_each_virtio_gpu_device(prog)
    with contextlib.suppress(LookupError, FaultError, ValidationError):
        drivers.update((dev.value_(), driver_name(dev)) for dev in for_each_drm_device(prog))
    known = _detached_tables(prog, devices)
    if drivers:
        known[GEM_OF_DEVICE] = drivers
    found = find_embedded(index, kinds, known)
    return FoundFences(fences(prog, _with_detached(prog, found)), _gems(prog, found, drivers))


def _gems(prog: Program, found: Dict[Any, Found], devices: Iterable[int]) -> Optional[Found]:
    """GEM objects by their operations, and the others by their device."""
    by_ops, by_device = found.get(GEM_OBJECT), found.get(GEM_OF_DEVICE)
    if by_ops is not None and len(by_ops.address):
        # A module's list of its sections can point to the operations, too.
        dtype = field_dtype(prog.type("struct drm_gem_object"), {"dev": "dev"})
        known = np.isin(as_structs(by_ops.structs, dtype)["dev"], sorted(devices))
        by_ops = by_ops.chosen(known | plausible_gems(prog, by_ops.structs, by_ops.address))
    if by_device is None or not len(by_device.address):
        return by_ops if by_device is None or by_ops is not None else by_device
    wanted = plausible_gems(prog, by_device.structs, by_device.address)
    if by_ops is None:
        return by_device.chosen(wanted)
    return by_ops.joined(by_device.chosen(wanted & ~np.isin(by_device.address, by_ops.address)))


def _has_gem_tables(prog: Program) -> bool:
    """Whether GEM objects can be found by their operations (since v5.0)."""
    try:
        return bool(prog.type("struct drm_gem_object").has_member("funcs"))
    except LookupError:
        return False


def _detached_tables(prog: Program, devices: Sequence[Object]) -> Dict[Any, Dict[int, str]]:
    """
    What the fences of virtio_gpu point to besides their operations.

    "dma-buf: detach fence ops on signal" of v7.1 clears ``ops`` of fences
    that have signaled, where the table has neither ``release`` nor ``wait``.
    """
    try:
        type_ = prog.type("struct virtio_gpu_fence")
    except LookupError:
        return {}
    if not type_.has_member(DETACHED_FENCE.ops_member) or prog.type("struct dma_fence").has_member(
        "lock"
    ):
        return {}
    table = {device.fence_drv.address_: _DETACHED for device in devices}
    return {DETACHED_FENCE: table}


def _with_detached(prog: Program, found: Dict[Any, Found]) -> Found:
    by_ops = found[DMA_FENCE]
    detached = found.get(DETACHED_FENCE)
    if detached is None or not len(detached.address):
        return by_ops
    start = offsetof(prog.type("struct virtio_gpu_fence"), "f")
    fence_type = prog.type("struct dma_fence")
    structs = detached.structs[:, start : start + sizeof(fence_type)]
    members = {"ops": "ops", "flags": "flags", "lock": "extern_lock"}
    values = as_structs(structs, field_dtype(fence_type, members))
    flags = values["flags"].astype(np.uint64)
    lock_offset = offsetof(prog.type("struct virtio_gpu_fence_driver"), "lock")
    # Where ops are left, the fence was found by them.
    wanted = (
        (values["ops"] == 0)
        & (values["lock"] == detached.ops + np.uint64(lock_offset))
        & has_flag(prog, flags, "DMA_FENCE_FLAG_INITIALIZED_BIT")
        & has_flag(prog, flags, "DMA_FENCE_FLAG_SIGNALED_BIT")
        & ~has_flag(prog, flags, "DMA_FENCE_FLAG_INLINE_LOCK_BIT")
    )
    inner = dataclasses.replace(
        detached, address=detached.address + np.uint64(start), structs=structs
    )
    return by_ops.joined(inner.chosen(wanted))
