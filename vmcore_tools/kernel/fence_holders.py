# SPDX-License-Identifier: LGPL-2.1-or-later
"""All dma_fences of a kernel, and all holders of them that can be walked."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Iterable, Iterator, List, Optional, Set, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object
from drgn.helpers import ValidationError

from vmcore_tools.kernel import sw_sync
from vmcore_tools.kernel.audit import Counted, Holders, Refcounted, slots_around
from vmcore_tools.kernel.dma_buf import dma_buf_reservations
from vmcore_tools.kernel.dma_fence import (
    Fences,
    HeldFences,
    armed_chains,
    by_name,
    callback_fences,
    chain_fences,
    reserved_fences,
    stale_callback_words,
    stale_chain_words,
    with_callbacks,
)
from vmcore_tools.kernel.dma_fence_array import OPS as ARRAY_OPS
from vmcore_tools.kernel.dma_fence_array import FenceArrays
from vmcore_tools.kernel.drm import for_each_drm_device, for_each_drm_file, for_each_plane
from vmcore_tools.kernel.drm_gem import for_each_gem_handle, reservation_address
from vmcore_tools.kernel.drm_sched import SCHEDULED_OPS, fences_of_jobs, fences_of_sched_fences
from vmcore_tools.kernel.drm_syncobj import (
    awaited_fences,
    for_each_syncobj_handle,
    syncobj_fences,
    syncobjs_of_files,
)
from vmcore_tools.kernel.files import file_counts
from vmcore_tools.kernel.found_fences import found_fences
from vmcore_tools.kernel.layout import as_structs, field_dtype
from vmcore_tools.kernel.slab import SlabIndex
from vmcore_tools.kernel.sync_file import for_each_sync_file
from vmcore_tools.kernel.typed_objects import Found
from vmcore_tools.kernel.virtio_gpu import (
    for_each_emitted_fence,
    for_each_update_fence,
    for_each_virtio_gpu_device,
    last_completed_seqno,
)

U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

#: All kinds of holders; each is a walk below.
KINDS = (
    "driver",
    "reservation",
    "sync_file",
    "array",
    "chain",
    "syncobj",
    "scheduler",
    "plane",
    "callback",
)


@dataclasses.dataclass(frozen=True)
class FenceHolders:
    """
    The fences and what the audit is told of them; arrays of shape (n,).

    :ivar fences: all fences that were found
    :ivar described: for the audit
    :ivar virtio_gpu: bool: fences of virtio_gpu
    :ivar last_completed: int64: of their device; -1 for other fences
    :ivar gaps: what could not be walked: what, why, and the address of it if known
    """

    fences: Fences
    described: Refcounted
    virtio_gpu: Bools
    last_completed: npt.NDArray[np.int64]
    gaps: Tuple[Tuple[str, str, Optional[int]], ...]


def fence_holders(index: SlabIndex) -> FenceHolders:
    """
    Find all fences in slab memory, and walk all that may hold one.

    :raises LookupError: without the debug info of dma_fence
    """
    walk = _Walk(index)
    return walk.everything()


class _Walk:
    """Collects holders, and what could not be walked."""

    def __init__(self, index: SlabIndex) -> None:
        self.index = index
        self.prog = index.prog
        self.holders: List[Holders] = []
        self.gaps: List[Tuple[str, str, Optional[int]]] = []

    def everything(self) -> FenceHolders:
        prog = self.prog
        found = found_fences(self.index)
        every = found.fences
        devices = self._devices(for_each_virtio_gpu_device(prog))
        addresses, ops = every.found.address, every.found.ops
        virtio_gpu = np.zeros(len(addresses), dtype=bool)
        last_completed = np.full(len(addresses), -1, dtype=np.int64)
        for device in devices:
            # Only this driver's fences have the lock of its timeline.
            mine = every.lock == np.uint64(device.fence_drv.lock.address_)
            virtio_gpu |= mine
            last_completed[mine] = last_completed_seqno(device)
            self._driver(device)

        def named(name: str) -> Bools:
            return by_name(every.found.tables, ops, name)

        self._reservations(found.gems)
        self._sync_files()
        self._syncobjs()
        arrays, chains = named(ARRAY_OPS), named("dma_fence_chain_ops")
        alive = every.refcount > 0
        for at_most, wanted in ((False, alive), (True, ~alive)):
            # One that is being freed drops what it holds.
            self._arrays(addresses[arrays & wanted], at_most)
            self._hold("chain", chain_fences(prog, addresses[chains & wanted]), at_most)
        if named(SCHEDULED_OPS).any():
            scheduled = addresses[named(SCHEDULED_OPS)]
            self._hold("scheduler", fences_of_sched_fences(prog, scheduled))
            # Jobs are cleaned up while they are on their lists.
            self._hold("scheduler", fences_of_jobs(prog, scheduled), at_most=True)
        self._callbacks(every, chains)
        for words in (
            stale_callback_words(prog, every),
            stale_chain_words(prog, addresses[chains]),
        ):
            self.holders.append(Holders("weak", _words([]), words))

        points = named(sw_sync.OPS)
        if points.any():
            self._hold("timeline", sw_sync.timeline_words(prog, addresses[points]))
        # These are signaled from the start: no driver has them on a list.
        stubs = named("dma_fence_stub_ops")
        sizes = np.array([cache.object_size_bytes for cache in self.index.caches], dtype=np.int64)
        objects = Counted(
            address=addresses,
            refcount=every.refcount,
            block=every.found.container,
            block_size_bytes=sizes[every.found.cache],
            block_object=np.arange(len(addresses)),
        )
        driver_known = virtio_gpu | arrays | chains | points | stubs
        described = Refcounted(objects, self.holders, driver_known, every.signaled)
        return FenceHolders(every, described, virtio_gpu, last_completed, tuple(self.gaps))

    # Holders.

    def _hold(self, kind: str, held: HeldFences, at_most: bool = False) -> None:
        self.gaps += [(kind, "it could not be read", address) for address in held.unread]
        self.holders.append(Holders(kind, held.fence, held.word, at_most))

    def _items(self, what: str, items: Iterator[Object]) -> List[Object]:
        """The items of a list, up to where it breaks off."""
        walked = []
        try:
            for item in items:
                walked.append(item)
        except (FaultError, ValidationError) as error:
            self.gaps.append((what, f"the walk broke off: {error}", None))
        return walked

    def _devices(self, devices: Iterator[Object]) -> List[Object]:
        try:
            return self._items("DRM devices", devices)
        except LookupError:
            return []  # a kernel without DRM

    def _driver(self, device: Object) -> None:
        """Fences on the driver's list, and those of an update of a plane."""
        emitted = self._items("emitted fences", for_each_emitted_fence(device))
        held = [fence.f.address_of_().value_() for fence in emitted]
        # Their neighbours' links are the pointers to them: a list_head's next
        # comes first, its prev 8 bytes behind.
        links = [fence.node.prev.value_() for fence in emitted]
        links += [fence.node.next.value_() + 8 for fence in emitted]
        self.holders.append(Holders("driver", _words(held), _words(links)))
        updates = self._items("planes", for_each_update_fence(device))
        # The fence is put before its pointer is cleared.
        self._hold(
            "plane",
            HeldFences(
                _words([fence.f.address_of_().value_() for fence in updates]),
                _words([fence.address_ for fence in updates]),
            ),
            at_most=True,
        )
        waits = self._items("planes", _fences_of_planes(device.ddev))
        self._hold(
            "plane",
            HeldFences(
                _words([fence.value_() for fence in waits]),
                _words([fence.address_ for fence in waits]),
            ),
            at_most=True,
        )

    def _reservations(self, gems: Optional[Found]) -> None:
        """The slots of the reservation objects of all GEM objects and dma-bufs."""
        prog = self.prog
        used, freed = dma_buf_reservations(self.index)
        living, ending = set(used), set(freed)
        known: Set[int] = set()
        if gems is not None and prog.type("struct drm_gem_object").has_member("resv"):
            members = {"resv": "resv", "refcount": "refcount.refcount.refs.counter"}
            dtype = field_dtype(prog.type("struct drm_gem_object"), members)
            structs = as_structs(gems.structs, dtype)
            alive = structs["refcount"].astype(np.int32) > 0
            living.update(structs["resv"][alive].tolist())
            ending.update(structs["resv"][~alive].tolist())
            known.update(gems.address.tolist())
        # Drivers that set no ops table have their objects only as handles.
        with contextlib.suppress(LookupError):  # a kernel without DRM
            living.update(self._reservations_of_handles(known))
        try:
            # dma_resv_fini() puts the fences and leaves the pointers.
            for at_most, chosen in ((False, living), (True, ending - living)):
                self._hold("reservation", reserved_fences(prog, sorted(chosen - {0})), at_most)
        except LookupError:
            return  # a kernel without dma-buf

    def _reservations_of_handles(self, known: Set[int]) -> Iterator[int]:
        for device in self._devices(for_each_drm_device(self.prog)):
            try:
                for file in for_each_drm_file(device):
                    for _, gem in for_each_gem_handle(file):
                        if gem.value_() not in known:
                            yield reservation_address(device, gem)
            except (FaultError, ValidationError) as error:
                self.gaps.append(("GEM handles", f"the walk broke off: {error}", device.value_()))

    def _sync_files(self) -> None:
        try:
            files = list(for_each_sync_file(self.index))
        except LookupError:
            return  # a kernel without sync_files
        counts, _ = file_counts(self.prog, [file.value_() for _, file in files])
        for at_most, wanted in ((False, counts > 0), (True, counts <= 0)):
            # sync_file_release() puts the fence and leaves the pointer.
            chosen = [sync_file for (sync_file, _), want in zip(files, wanted) if want]
            self._hold(
                "sync_file",
                HeldFences(
                    _words([file.fence.value_() for file in chosen]),
                    _words([file.fence.address_ for file in chosen]),
                ),
                at_most,
            )

    def _syncobjs(self) -> None:
        syncobjs: Set[int] = set()
        with contextlib.suppress(LookupError):  # a kernel without files of them
            syncobjs.update(syncobjs_of_files(self.index))
        try:
            self.prog.type("struct drm_syncobj")
            devices = self._devices(for_each_drm_device(self.prog))
        except LookupError:
            return  # a kernel without them
        for device in devices:
            for file in self._items("DRM files", for_each_drm_file(device)):
                handles = (syncobj for _, syncobj in for_each_syncobj_handle(file))
                syncobjs.update(
                    syncobj.value_() for syncobj in self._items("syncobj handles", handles)
                )
        self._hold("syncobj", syncobj_fences(self.prog, sorted(syncobjs)))

    def _arrays(self, fences: U64, at_most: bool) -> None:
        """What fence arrays hold, and the references that their own callbacks have to them."""
        if not len(fences):
            return
        arrays = FenceArrays(self.prog, fences)
        start, size = slots_around(self.index, arrays.slots)
        damaged = (start == arrays.slots) & (size > 1) & (arrays.count * 8 > size)
        if damaged.any():
            self.gaps += [
                ("array", "it has more fences than fit its memory", address)
                for address in arrays.fence[damaged].tolist()
            ]
            arrays = FenceArrays(self.prog, arrays.fence[~damaged])
            start, size = slots_around(self.index, arrays.slots)
        self._hold("array", arrays.held(), at_most)
        self._hold("callback", arrays.callbacks(), at_most)
        self._hold("callback", HeldFences(arrays.with_irq_work(), _words([])), at_most=True)
        # Where the slots are a part of something else, what is behind them is that.
        end = np.where(start == arrays.slots, start + size.astype(np.uint64), arrays.slots)
        self.holders.append(Holders("weak", _words([]), arrays.stale_words(end)))

    def _callbacks(self, every: Fences, chains: Bools) -> None:
        prog = self.prog
        waited_for = with_callbacks(prog, every)
        self._hold("syncobj", awaited_fences(prog, waited_for), at_most=True)
        self._hold("callback", callback_fences(prog, waited_for), at_most=True)
        armed = armed_chains(prog, every)
        own = armed[np.isin(armed, every.found.address[chains])]
        self._hold("callback", HeldFences(own, _words([])), at_most=True)


def _fences_of_planes(device: Object) -> Iterator[Object]:
    """The members of plane states that hold a fence to wait for: ``struct dma_fence *``."""
    for plane in for_each_plane(device):
        if plane.state and plane.state.fence:
            yield plane.state.fence


def _words(values: Iterable[Optional[int]]) -> U64:
    return np.array(list(values), dtype=np.uint64)
