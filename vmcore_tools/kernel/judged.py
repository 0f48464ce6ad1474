# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The audits of fences, GEM objects, dma-bufs and open DRM files, with all that is known of each.

What the audit of any type cannot know is said of its verdicts here, so that whoever
asks for an object hears the same of it.
"""

from __future__ import annotations

import dataclasses
from typing import Tuple

import numpy as np
import numpy.typing as npt
from drgn import Program

from vmcore_tools.kernel.audit import Audit, Progress, Verdict, audit, with_likely_leaks
from vmcore_tools.kernel.audit_containers import with_containers_in_use
from vmcore_tools.kernel.dma_buf_holders import DmaBufHolders
from vmcore_tools.kernel.drm_clients import DrmClients
from vmcore_tools.kernel.fence_holders import FenceHolders
from vmcore_tools.kernel.files import file_counts
from vmcore_tools.kernel.gem_holders import GemHolders
from vmcore_tools.kernel.layout import field_dtype, read_structs
from vmcore_tools.kernel.object_types import is_kmalloc
from vmcore_tools.kernel.references import Place, Reference
from vmcore_tools.kernel.slab import SlabIndex
from vmcore_tools.kernel.virtio_gpu_objects import is_left_over

Ints = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

#: Verdicts that a changed count takes back.
_ACCUSED = (Verdict.LEAKED, Verdict.LIKELY_LEAKED, Verdict.DANGLING)


def judged_fences(index: SlabIndex, holders: FenceHolders, progress: Progress) -> Audit:
    """
    :raises drgn.FaultError: if the page tables or the list of tasks cannot be read
    """
    result = audit(index, holders.described, progress)
    every, prog = holders.fences, index.prog
    accused = _accused(result)
    if len(accused):
        members = {"ops": "ops", "seqno": "seqno", "refcount": "refcount.refcount.refs.counter"}
        dtype = field_dtype(prog.type("struct dma_fence"), members)
        now, read = read_structs(prog, every.found.address[accused].tolist(), dtype)
        same = (
            read
            & (now["ops"] == every.found.ops[accused])
            & (now["seqno"] == every.seqno[accused])
            & (now["refcount"].astype(np.int32) == every.refcount[accused])
        )
        result = _without(result, accused[~same])
    return with_likely_leaks(result, every.found.ops)


def judged_gems(index: SlabIndex, holders: GemHolders, progress: Progress) -> Tuple[Audit, Ints]:
    """
    :return: the audit, and int64 array: positions of objects that count handles of which
        none was found
    :raises drgn.FaultError: if the page tables or the list of tasks cannot be read
    """
    result = audit(index, holders.described, progress)
    gems, prog = holders.gems, index.prog
    accused = _accused(result)
    if len(accused):
        members = {"count": "refcount.refcount.refs.counter"}
        dtype = field_dtype(prog.type("struct drm_gem_object"), members)
        now, read = read_structs(prog, gems.address[accused].tolist(), dtype)
        same = read & (now["count"] == gems.refcount[accused])
        result = _without(result, accused[~same])
    result = with_containers_in_use(index, result)
    result = _with_left_overs(index, holders, result)
    # A dma-buf that has lost its object may be what holds them.
    verdict = result.verdict.copy()
    verdict[holders.doubtful & (verdict == Verdict.LEAKED)] = Verdict.LIKELY_LEAKED
    result = dataclasses.replace(result, verdict=verdict)
    # Objects of a device in a cache are alike.
    result = with_likely_leaks(result, gems.device.astype(np.int64) + gems.cache)
    # The reference that is left over is that of a handle whose slot is damaged, or that leaked.
    found = result.holders.get("handle", np.zeros(len(gems.address), dtype=np.int64))
    leaked = result.verdict == Verdict.LEAKED
    lost = np.flatnonzero(leaked & (gems.handle_count > 0) & (found == 0))
    verdict = result.verdict.copy()
    verdict[lost] = Verdict.LIKELY_LEAKED
    return dataclasses.replace(result, verdict=verdict), lost


def judged_dma_bufs(index: SlabIndex, holders: DmaBufHolders, progress: Progress) -> Audit:
    """
    :raises drgn.FaultError: if the page tables or the list of tasks cannot be read
    """
    result = audit(index, holders.described, progress)
    buffers = holders.buffers
    result = _with_same_files(index.prog, buffers.file, buffers.refcount, result)
    # A dma-buf that a task is just importing or letting go of has no unknown holder.
    return with_containers_in_use(index, result)


def judged_drm_files(index: SlabIndex, clients: DrmClients, progress: Progress) -> Audit:
    """
    Of the ``struct file`` of each client.

    :raises drgn.FaultError: if the page tables or the list of tasks cannot be read
    """
    result = audit(index, clients.described, progress)
    return with_containers_in_use(index, result)


def _accused(result: Audit) -> Ints:
    """On a live target, the objects that are accused of something."""
    if not result.changing:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(np.isin(result.verdict, _ACCUSED))


def _without(result: Audit, changed: Ints) -> Audit:
    verdict = result.verdict.copy()
    verdict[changed] = Verdict.IN_USE
    return dataclasses.replace(result, verdict=verdict)


def _with_same_files(prog: Program, files: U64, counted: Ints, result: Audit) -> Audit:
    accused = _accused(result)
    counts, read = file_counts(prog, files[accused].tolist())
    return _without(result, accused[~(read & (counts == counted[accused]))])


def _with_left_overs(index: SlabIndex, holders: GemHolders, result: Audit) -> Audit:
    """
    Take objects for likely leaked that only left-overs of arrays of commands point at.

    Only where more of the device's are proven to leak: who knows what such a pointer is.
    """
    devices, verdict = holders.gems.device, result.verdict.copy()
    for device in np.unique(devices).tolist():
        mine = devices == np.uint64(device)
        unknown = np.flatnonzero(mine & (result.verdict == Verdict.UNKNOWN_HOLDER)).tolist()
        likely = [i for i in unknown if all(_is_left_over(index, r) for r in result.pointers[i])]
        if len(likely) < np.count_nonzero(mine & (result.verdict == Verdict.LEAKED)):
            verdict[likely] = Verdict.LIKELY_LEAKED
    return dataclasses.replace(result, verdict=verdict)


def _is_left_over(index: SlabIndex, reference: Reference) -> bool:
    if reference.place != Place.SLAB_OBJECT:
        return False
    row = int(index.find(np.array([reference.container], dtype=np.uint64))[0])
    if row < 0 or not is_kmalloc(index.caches[index.cache[row]]):
        return False
    size = index.caches[index.cache[row]].object_size_bytes
    return is_left_over(index.prog, reference.container, size, reference.offset)
