# SPDX-License-Identifier: LGPL-2.1-or-later
"""All GEM objects of a kernel, and all holders of them that can be walked."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Dict, Iterable, Iterator, List, Optional, Tuple, TypeVar

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, offsetof, sizeof
from drgn.helpers import ValidationError

from vmcore_tools.kernel.audit import Counted, Holders, Refcounted, slots_around
from vmcore_tools.kernel.dma_buf import DmaBufs, dma_bufs
from vmcore_tools.kernel.drm import (
    driver_name,
    for_each_drm_device,
    for_each_drm_file,
    for_each_framebuffer,
    for_each_internal_drm_file,
)
from vmcore_tools.kernel.drm_gem import (
    GemHandles,
    GemObjects,
    HeldGems,
    counts_as_handle,
    gem_handles,
    gem_names,
    gem_objects,
    gem_of_fbdev,
    gems_of_framebuffer,
    internal_words,
    offset_file_nodes,
    words_of,
)
from vmcore_tools.kernel.files import mappings_of
from vmcore_tools.kernel.found_fences import found_fences
from vmcore_tools.kernel.layout import field_dtype, read_structs
from vmcore_tools.kernel.slab import SlabIndex
from vmcore_tools.kernel.ttm import has_ttm, ttm_words
from vmcore_tools.kernel.typed_objects import Found
from vmcore_tools.kernel.virtio_gpu import DRIVER_NAME, for_each_virtio_gpu_device
from vmcore_tools.kernel.virtio_gpu_objects import command_objects, object_layout

U64 = npt.NDArray[np.uint64]
T = TypeVar("T")

#: All kinds of holders; each is a walk below. All handles of an object count as one.
KINDS = ("handle", "framebuffer", "dma_buf", "mapping", "command", "console")
#: Drivers whose own holders are all among these kinds.
_KNOWN_DRIVERS = (DRIVER_NAME, "vgem")
#: What closes a mapping that has a reference to a GEM object, and to a TTM buffer.
_GEM_MAPPINGS = ("drm_gem_vm_close", "drm_gem_shmem_vm_close")
_TTM_MAPPINGS = ("ttm_bo_vm_close",)


@dataclasses.dataclass(frozen=True)
class DrmDevice:
    """
    A DRM device and what is open of it.

    :ivar device: ``struct drm_device *``
    :ivar files: ``struct drm_file *``
    :ivar internal_files: those of the kernel itself
    """

    device: Object
    driver: str
    files: Tuple[Object, ...]
    internal_files: Tuple[Object, ...]


@dataclasses.dataclass(frozen=True)
class GemHolders:
    """
    The GEM objects and what the audit is told of them; arrays of shape (n,).

    :ivar gems: all GEM objects
    :ivar described: for the audit
    :ivar devices: all DRM devices
    :ivar handles: of all open files
    :ivar mappings: of GEM objects, with the ``struct vm_area_struct`` as owner
    :ivar commands: objects of commands in flight, with the command as owner
    :ivar gaps: what could not be walked: what, why, and the address of it if known
    """

    gems: GemObjects
    described: Refcounted
    devices: Tuple[DrmDevice, ...]
    handles: GemHandles
    mappings: HeldGems
    commands: HeldGems
    gaps: Tuple[Tuple[str, str, Optional[int]], ...]

    @property
    def drivers(self) -> Dict[int, str]:
        """Address of each ``struct drm_device`` to its driver's name."""
        return {known.device.value_(): known.driver for known in self.devices}


def gem_holders(index: SlabIndex) -> GemHolders:
    """
    Find all GEM objects, and walk all that may hold one.

    :raises LookupError: without the debug info of DRM
    """
    index.prog.type("struct drm_gem_object")
    return _Walk(index).everything()


class _Walk:
    """Collects holders, and what could not be walked."""

    def __init__(self, index: SlabIndex) -> None:
        self.index = index
        self.prog = index.prog
        self.holders: List[Holders] = []
        self.gaps: List[Tuple[str, str, Optional[int]]] = []

    def everything(self) -> GemHolders:
        index, prog = self.index, self.prog
        devices = tuple(self._devices())
        files = [file for known in devices for file in (*known.files, *known.internal_files)]
        handles = gem_handles(files)
        self.gaps += [("GEM handles", "a node could not be read", a) for a in handles.unread]
        framebuffers = [
            framebuffer
            for known in devices
            for framebuffer in self._items(
                "framebuffers", for_each_framebuffer(known.device), known.device
            )
        ]
        shown, dying, as_handle = self._framebuffers(framebuffers)
        found = found_fences(index).gems or _nothing(prog)
        others = np.unique(np.concatenate([handles.gem, shown.gem]))
        # What a holder points at and is in a slab was found there, or is none.
        gems, unread = gem_objects(prog, found, others[index.find(others) < 0])
        self.gaps += [("GEM object", "it could not be read", address) for address in unread]

        drivers = {known.device.value_(): known.driver for known in devices}
        held = np.unique(np.concatenate([handles.gem, np.array(as_handle, dtype=np.uint64)]))
        self.holders.append(Holders("handle", held, handles.word))
        self._hold("framebuffer", shown)
        self._hold("framebuffer", dying, at_most=True)
        self._console(devices)
        self._dma_bufs(gems)
        mapped = self._mappings(gems)
        commands = self._commands()
        self._weak(gems, devices, drivers)
        known = np.array(
            [device for device, driver in drivers.items() if driver in _KNOWN_DRIVERS],
            dtype=np.uint64,
        )
        described = Refcounted(
            self._objects(gems),
            self.holders,
            np.isin(gems.device, known),
            # Whoever holds one has a pointer to it: no device asks for one.
            np.ones(len(gems.address), dtype=bool),
        )
        return GemHolders(gems, described, devices, handles, mapped, commands, tuple(self.gaps))

    def _devices(self) -> Iterator[DrmDevice]:
        try:
            devices = self._items("DRM devices", for_each_drm_device(self.prog))
        except LookupError as error:
            self.gaps.append(("DRM devices", f"no debug info tells where they are: {error}", None))
            return
        for device in devices:
            try:
                driver = driver_name(device)
            except FaultError as error:
                self.gaps.append(("DRM device", f"it has no name: {error}", device.value_()))
                driver = ""
            files = self._items("DRM files", for_each_drm_file(device), device)
            own = self._items("DRM files", for_each_internal_drm_file(device), device)
            yield DrmDevice(device, driver, tuple(files), tuple(own))

    def _objects(self, gems: GemObjects) -> Counted:
        sizes = np.array([c.object_size_bytes for c in self.index.caches], dtype=np.int64)
        _, size = slots_around(self.index, gems.container)
        in_slab = gems.cache >= 0
        size[in_slab] = sizes[gems.cache[in_slab]]
        size[~in_slab] = sizeof(self.prog.type("struct drm_gem_object"))
        return Counted(
            address=gems.address,
            refcount=gems.refcount,
            block=gems.container,
            block_size_bytes=size,
            block_object=np.arange(len(gems.address)),
        )

    def _items(self, what: str, items: Iterable[T], device: Optional[Object] = None) -> List[T]:
        """The items of a list, up to where it breaks off."""
        walked: List[T] = []
        try:
            for item in items:
                walked.append(item)
        except (FaultError, ValidationError) as error:
            address = device.value_() if device is not None else None
            self.gaps.append((what, f"the walk broke off: {error}", address))
        return walked

    # Holders.

    def _hold(self, kind: str, held: HeldGems, at_most: bool = False) -> None:
        self.gaps += [(kind, "it could not be read", address) for address in held.unread]
        self.holders.append(Holders(kind, held.gem, held.word, at_most))

    def _framebuffers(self, framebuffers: List[Object]) -> Tuple[HeldGems, HeldGems, List[int]]:
        """What framebuffers hold, those that are being freed hold, and what counts as a handle."""
        parts: List[List[HeldGems]] = [[HeldGems.of([])], [HeldGems.of([])]]
        as_handle: List[int] = []
        for framebuffer in framebuffers:
            try:
                dead = framebuffer.base.refcount.refcount.refs.counter.value_() <= 0
                parts[dead].append(gems_of_framebuffer(framebuffer))
                as_handle += counts_as_handle(framebuffer)
            except FaultError:
                self.gaps.append(("framebuffer", "it could not be read", framebuffer.value_()))
        alive, dying = (_joined(some) for some in parts)
        return alive, dying, as_handle

    def _console(self, devices: Iterable[DrmDevice]) -> None:
        for known in devices:
            try:
                self._hold("console", gem_of_fbdev(known.device))
            except FaultError:
                self.gaps.append(("console", "it could not be read", known.device.value_()))

    def _dma_bufs(self, gems: GemObjects) -> None:
        """What was exported holds the object (``drm_gem_dmabuf_export()``)."""
        prog = self.prog
        try:
            buffers: DmaBufs = dma_bufs(self.index)
        except LookupError:
            return  # a kernel without dma-buf
        type_ = prog.type("struct dma_buf")
        exported = np.isin(buffers.priv, gems.address)
        words = buffers.address + np.uint64(offsetof(type_, "priv"))
        for at_most, wanted in ((False, buffers.refcount > 0), (True, buffers.refcount <= 0)):
            # drm_gem_dmabuf_release() puts the object and leaves the pointer.
            chosen = exported & wanted
            held = HeldGems(buffers.priv[chosen], words[chosen], buffers.address[chosen])
            self._hold("dma_buf", held, at_most)
        # Its reservation object is that of the GEM object.
        self._not_held(buffers.address + np.uint64(offsetof(type_, "resv")))
        attachment = prog.type("struct dma_buf_attachment")
        if attachment.has_member("importer_priv"):  # since v5.6
            imports = gems.import_attach[gems.import_attach != 0]
            self._not_held(imports + np.uint64(offsetof(attachment, "importer_priv")))

    def _mappings(self, gems: GemObjects) -> HeldGems:
        """
        Mappings of GEM objects, each with a reference (``drm_gem_vm_open()``).

        One whose driver has functions of its own for it may hold something else.
        """
        prog = self.prog
        areas = mappings_of(self.index, "vm_private_data", gems.address)
        self.gaps += [("mapping", "it could not be read", address) for address in areas.unread]
        closing = _closing(prog, areas.owner)
        gem_close, ttm_close = _functions(prog, _GEM_MAPPINGS), _functions(prog, _TTM_MAPPINGS)
        held = HeldGems(areas.file, areas.word, areas.owner)
        exact = np.isin(closing, gem_close) & (areas.number > 0)
        ttm = np.isin(closing, ttm_close)
        self._hold("mapping", held.chosen(exact))
        self._hold("mapping", held.chosen(~exact & ~ttm), at_most=True)
        self._not_held(held.word[ttm])
        return held.chosen(areas.number > 0)

    def _commands(self) -> HeldGems:
        """The objects of commands of virtio_gpu."""
        used = [HeldGems.of([])]
        devices: List[Object] = []
        with contextlib.suppress(LookupError):
            devices += self._items("virtio_gpu devices", for_each_virtio_gpu_device(self.prog))
        for device in devices:
            try:
                found = command_objects(self.index, device)
            except FaultError as error:
                self.gaps.append(("commands", f"they cannot be read: {error}", device.value_()))
                continue
            if found is None:
                continue
            self.gaps += found.gaps
            self._hold("command", found.in_flight)
            self._hold("command", found.answered)
            # What is no array of objects any more holds nothing.
            self._hold("command", dataclasses.replace(found.passing, unread=()), at_most=True)
            used.append(found.in_flight)
        return _joined(used)

    # Pointers that hold nothing.

    def _not_held(self, words: U64) -> None:
        nothing = np.zeros(0, dtype=np.uint64)
        self.holders.append(Holders("weak", nothing, words.astype(np.uint64)))

    def _weak(
        self, gems: GemObjects, devices: Iterable[DrmDevice], drivers: Dict[int, str]
    ) -> None:
        prog = self.prog
        sizes = {}
        layout = object_layout(prog, DRIVER_NAME)
        if layout is not None and has_ttm(prog):
            # Its buffers are on lists and in a tree of TTM's.
            sizes[DRIVER_NAME] = sizeof(layout.type) - layout.gem
        self._not_held(internal_words(prog, gems, sizes, drivers))
        start, size = slots_around(self.index, offset_file_nodes(prog, gems))
        words = np.arange(int(size.max(initial=0)) // 8, dtype=np.uint64) * np.uint64(8)
        self._not_held((start[:, None] + words).reshape(-1))
        manager = "struct drm_vma_offset_manager"
        for known in devices:
            device = known.device
            try:
                if device.vma_offset_manager:  # NULL without DRIVER_GEM
                    self._not_held(words_of(prog, manager, device.vma_offset_manager.value_()))
                names = gem_names(device)
            except FaultError:
                self.gaps.append(("GEM names", "they could not be read", device.value_()))
                continue
            self._not_held(names.word)
            self.gaps += [("GEM names", "a node could not be read", a) for a in names.unread]
        self._not_held(ttm_words(prog))


def _nothing(prog: Program) -> Found:
    """What is found where there is no device that could have GEM objects."""
    nothing = np.zeros(0, dtype=np.uint64)
    structs = np.zeros((0, sizeof(prog.type("struct drm_gem_object"))), dtype=np.uint8)
    return Found(nothing, nothing, nothing, nothing.astype(np.int64), structs, {})


def _joined(parts: List[HeldGems]) -> HeldGems:
    return HeldGems(
        np.concatenate([part.gem for part in parts]),
        np.concatenate([part.word for part in parts]),
        np.concatenate([part.owner for part in parts]),
        tuple(address for part in parts for address in part.unread),
    )


def _closing(prog: Program, areas: U64) -> U64:
    """
    What each mapping is closed with, 0 where nothing is known.

    :param areas: uint64 array of ``struct vm_area_struct *``
    """
    dtype = field_dtype(prog.type("struct vm_area_struct"), {"ops": "vm_ops"})
    structs, _ = read_structs(prog, areas.tolist(), dtype)
    tables, which = np.unique(structs["ops"], return_inverse=True)
    dtype = field_dtype(prog.type("struct vm_operations_struct"), {"close": "close"})
    functions, _ = read_structs(prog, tables.tolist(), dtype)
    result: U64 = functions["close"].astype(np.uint64)[which.reshape(-1)]
    return result


def _functions(prog: Program, names: Iterable[str]) -> U64:
    found = []
    for name in names:
        try:
            found.append(prog.symbol(name).address)
        except LookupError:
            continue
    return np.array(found, dtype=np.uint64)
