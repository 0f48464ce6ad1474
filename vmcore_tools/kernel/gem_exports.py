# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What dma-bufs hold of the GEM objects that they export, where their pointers can be trusted.

A dma-buf names its object (``dma_buf.priv``) and shares the object's reservation object;
the object names the dma-buf while it has a handle. Where these contradict each other, one
of them was written over, and which object the dma-buf holds is not known.
"""

from __future__ import annotations

import dataclasses
from typing import Iterator

import numpy as np
import numpy.typing as npt
from drgn import Program, offsetof, sizeof

from vmcore_tools.kernel.dma_buf import DmaBufs
from vmcore_tools.kernel.drm_gem import GemObjects, HeldGems

U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

#: Operations of exporters whose ``priv`` is a GEM object; those of another driver are known
#: by its other dma-bufs.
_EXPORTERS = (
    "drm_gem_prime_dmabuf_ops",
    "virtgpu_dmabuf_ops",
    "amdgpu_dmabuf_ops",
    "i915_dmabuf_ops",
)


@dataclasses.dataclass(frozen=True)
class GemExports:
    """
    :ivar exact: what dma-bufs hold
    :ivar at_most: what those may hold that are being freed, or that contradict themselves
    :ivar lost: uint64 array: dma-bufs in use whose object is not known
    :ivar doubtful: bool array of shape (n,): GEM objects that one of these may hold
    """

    exact: HeldGems
    at_most: HeldGems
    lost: U64
    doubtful: Bools


def gem_exports(prog: Program, gems: GemObjects, buffers: DmaBufs) -> GemExports:
    """What dma-bufs hold (``drm_gem_dmabuf_export()``)."""
    type_ = prog.type("struct dma_buf")
    alive = buffers.refcount > 0
    exported = np.isin(buffers.priv, gems.address)
    # dma_buf_export() puts one behind the dma-buf if the exporter has none.
    shared = buffers.reservation != buffers.address + np.uint64(sizeof(type_))
    told = shared & (gems.reservation != 0).any()
    agrees = np.zeros(len(exported), dtype=bool)
    at = np.searchsorted(gems.address, buffers.priv[exported])
    agrees[exported] = gems.reservation[at] == buffers.reservation[exported]

    own = gems.import_attach == 0  # what was imported is held by no dma-buf
    named = alive & np.isin(buffers.address, gems.dma_buf[own])
    names_back = np.zeros(len(exported), dtype=bool)
    names_back[exported] = gems.dma_buf[at] == buffers.address[exported]
    by_gem = np.isin(buffers.ops, np.array(list(_exporters(prog)), dtype=np.uint64))
    by_gem |= np.isin(buffers.ops, buffers.ops[exported])
    contradicts = np.where(told, ~agrees, named & ~names_back)
    lost = alive & by_gem & (~exported | contradicts)

    # drm_gem_dmabuf_release() puts the object and leaves the pointer.
    words = buffers.address + np.uint64(offsetof(type_, "priv"))
    held = HeldGems(buffers.priv, words, buffers.address)
    return GemExports(
        held.chosen(exported & alive & ~lost),
        held.chosen(exported & (lost | ~alive)),
        buffers.address[lost],
        own & _may_be_of(gems, buffers, lost, told),
    )


def _may_be_of(gems: GemObjects, buffers: DmaBufs, lost: Bools, told: Bools) -> Bools:
    """Which objects one of these dma-bufs may be of, as far as it says anything else of them."""
    result = np.isin(gems.dma_buf, buffers.address[lost])
    result |= np.isin(gems.reservation, buffers.reservation[lost & told])
    # Nothing but the size is left to know it by.
    result |= np.isin(gems.size, buffers.size[lost & ~told])
    return np.asarray(result)


def _exporters(prog: Program) -> Iterator[int]:
    for name in _EXPORTERS:
        try:
            yield int(prog.variable(name).address_)
        except LookupError:
            continue
