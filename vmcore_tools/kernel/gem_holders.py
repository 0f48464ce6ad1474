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

from vmcore_tools.kernel.audit import (
    Counted,
    Holders,
    Refcounted,
    count_by_address,
    slots_around,
)
from vmcore_tools.kernel.dma_buf import DmaBufs, dma_bufs
from vmcore_tools.kernel.drm import (
    driver_name,
    for_each_drm_device,
    for_each_drm_file,
    for_each_framebuffer,
    for_each_internal_drm_file,
)
from vmcore_tools.kernel.drm_clients import closing_drm_files
from vmcore_tools.kernel.drm_gem import (
    GemHandles,
    GemObjects,
    HeldGems,
    counts_as_handle,
    destroyed_by_helper,
    gem_handles,
    gem_names,
    gem_objects,
    gem_of_fbdev,
    gems_of_framebuffer,
    internal_words,
    offset_file_nodes,
    words_of,
)
from vmcore_tools.kernel.files import mappings_of, mm_users
from vmcore_tools.kernel.found_fences import found_fences
from vmcore_tools.kernel.gem_exports import gem_exports
from vmcore_tools.kernel.layout import field_dtype, read_structs
from vmcore_tools.kernel.object_types import is_kmalloc
from vmcore_tools.kernel.slab import SlabIndex
from vmcore_tools.kernel.ttm import has_ttm, ttm_words
from vmcore_tools.kernel.typed_objects import Found
from vmcore_tools.kernel.virtio_gpu import DRIVER_NAME, for_each_virtio_gpu_device
from vmcore_tools.kernel.virtio_gpu_objects import command_objects, object_layout

U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]
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
    :ivar closing_files: those that are on no list: they are being closed, or just opened
    """

    device: Object
    driver: str
    files: Tuple[Object, ...]
    internal_files: Tuple[Object, ...]
    closing_files: Tuple[Object, ...]


@dataclasses.dataclass(frozen=True)
class GemHolders:
    """
    The GEM objects and what the audit is told of them; arrays of shape (n,).

    :ivar gems: all GEM objects
    :ivar described: for the audit
    :ivar devices: all DRM devices
    :ivar handles: of all open files
    :ivar closing_handles: of those that are being closed; what they name may be gone
    :ivar framebuffers: what those in use hold, with the ``struct drm_framebuffer`` as owner
    :ivar consoles: what they draw into, with the ``struct drm_client_buffer`` as owner
    :ivar mappings: of GEM objects, with the ``struct vm_area_struct`` as owner
    :ivar commands: objects of commands in flight, with the command as owner
    :ivar answered: objects of commands that are done, with their array as owner
    :ivar passing: objects of commands that a task is just about to queue, or to take off,
        with the command as owner; it may have dropped them
    :ivar doubtful: bool array: objects that a dma-buf may hold whose own object is not known
    :ivar gaps: what could not be walked: what, why, and the address of it if known
    """

    gems: GemObjects
    described: Refcounted
    devices: Tuple[DrmDevice, ...]
    handles: GemHandles
    closing_handles: GemHandles
    framebuffers: HeldGems
    consoles: HeldGems
    mappings: HeldGems
    commands: HeldGems
    answered: HeldGems
    passing: HeldGems
    doubtful: Bools
    gaps: Tuple[Tuple[str, str, Optional[int]], ...]

    @property
    def drivers(self) -> Dict[int, str]:
        """Address of each ``struct drm_device`` to its driver's name."""
        return {known.device.value_(): known.driver for known in self.devices}

    @property
    def without_device(self) -> U64:
        """GEM objects whose device is none of the known ones: uint64 array of addresses."""
        devices = np.array(list(self.drivers), dtype=np.uint64)
        return self.gems.address[~np.isin(self.gems.device, devices)]


def gem_holders(index: SlabIndex) -> GemHolders:
    """
    Find all GEM objects, and walk all that may hold one.

    :raises LookupError: without the debug info of DRM
    """
    index.prog.type("struct drm_gem_object")
    return _Walk(index).everything()


@dataclasses.dataclass(frozen=True)
class _Framebuffers:
    """
    :ivar exact: what has a reference for each pointer
    :ivar shared: what may have one for several pointers
    :ivar dying: what those have that are being freed
    :ivar handles: uint64 array: objects that framebuffers keep as if they had a handle
    :ivar dying_handles: the same of framebuffers that are being freed
    """

    exact: HeldGems
    shared: HeldGems
    dying: HeldGems
    handles: U64
    dying_handles: U64


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
        closing = gem_handles([file for known in devices for file in known.closing_files])
        for walked in (handles, closing):
            self.gaps += [("GEM handles", "a node could not be read", a) for a in walked.unread]
        framebuffers = [
            framebuffer
            for known in devices
            for framebuffer in self._items(
                "framebuffers", for_each_framebuffer(known.device), known.device
            )
        ]
        shown = self._framebuffers(framebuffers)
        found = found_fences(index).gems or _nothing(prog)
        others = np.unique(np.concatenate([handles.gem, shown.exact.gem]))
        # What a holder points at and is in a slab was found there, or is none.
        gems, unread = gem_objects(prog, found, others[index.find(others) < 0])
        self.gaps += [("GEM object", "it could not be read", address) for address in unread]

        drivers = {known.device.value_(): known.driver for known in devices}
        known = np.array(
            [device for device, driver in drivers.items() if driver in _KNOWN_DRIVERS],
            dtype=np.uint64,
        )
        self._handles_and_framebuffers(gems, handles, closing, shown)
        consoles = self._consoles(devices)
        doubtful = self._dma_bufs(gems)
        mapped = self._mappings(gems, np.isin(gems.device, known))
        commands, answered, passing = self._commands()
        self._weak(gems, devices, drivers)
        described = Refcounted(
            self._objects(gems),
            self.holders,
            # Who points into what is in no slab may do so outside of the part that is known.
            np.isin(gems.device, known) & (gems.cache >= 0),
            # Whoever holds one has a pointer to it: no device asks for one.
            np.ones(len(gems.address), dtype=bool),
        )
        return GemHolders(
            gems=gems,
            described=described,
            devices=devices,
            handles=handles,
            closing_handles=closing,
            framebuffers=_joined([shown.exact, shown.shared]),
            consoles=consoles,
            mappings=mapped,
            commands=commands,
            answered=answered,
            passing=passing,
            doubtful=doubtful,
            gaps=tuple(self.gaps),
        )

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
            listed = np.array([file.value_() for file in (*files, *own)], dtype=np.uint64)
            closing: List[Object] = []
            try:
                closing += self._items(
                    "DRM files", closing_drm_files(self.index, device, listed), device
                )
            except LookupError as error:
                self.gaps.append(
                    ("DRM files", f"those being closed are not known: {error}", device.value_())
                )
            yield DrmDevice(device, driver, tuple(files), tuple(own), tuple(closing))

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

    def _framebuffers(self, framebuffers: List[Object]) -> _Framebuffers:
        exact, shared, dying = ([HeldGems.of([])] for _ in range(3))
        handles: List[int] = []
        dying_handles: List[int] = []
        for framebuffer in framebuffers:
            try:
                dead = framebuffer.base.refcount.refcount.refs.counter.value_() <= 0
                part = dying if dead else exact if destroyed_by_helper(framebuffer) else shared
                part.append(gems_of_framebuffer(framebuffer))
                (dying_handles if dead else handles).extend(counts_as_handle(framebuffer))
            except FaultError:
                self.gaps.append(("framebuffer", "it could not be read", framebuffer.value_()))
        return _Framebuffers(
            _joined(exact),
            _joined(shared),
            _joined(dying),
            np.array(handles, dtype=np.uint64),
            np.array(dying_handles, dtype=np.uint64),
        )

    def _handles_and_framebuffers(
        self, gems: GemObjects, handles: GemHandles, closing: GemHandles, shown: _Framebuffers
    ) -> None:
        """All handles of an object count as one, and a framebuffer may count as a handle."""
        exact = shown.exact
        as_handle = np.zeros(len(exact.gem), dtype=bool)
        if not self.prog.type("struct drm_framebuffer").has_member("internal_flags"):
            # "drm/gem: Acquire references on GEM handles for framebuffers" of v6.16 gave them
            # a handle for their reference, until "drm/framebuffer: Acquire internal references
            # on GEM handles" gave them both, and the flags.
            words = count_by_address(exact.gem, gems.address)
            entries = count_by_address(handles.gem, gems.address)
            entries += count_by_address(closing.gem, gems.address)
            counted = (words > 0) & (gems.handle_count >= entries + words)
            as_handle = np.isin(exact.gem, gems.address[counted])
        held = np.unique(np.concatenate([handles.gem, shown.handles, exact.gem[as_handle]]))
        self.holders.append(
            Holders("handle", held, np.concatenate([handles.word, exact.word[as_handle]]))
        )
        # Handles stay in the table while they are closed one after the other.
        parting = np.unique(np.concatenate([closing.gem, shown.dying_handles]))
        parting = np.setdiff1d(parting, held, assume_unique=True)
        self.holders.append(Holders("handle", parting, closing.word, at_most=True))
        # How many handles such an object has is not sure, nor what its framebuffers are, then.
        sure = ~np.isin(exact.gem, closing.gem)
        self._hold("framebuffer", exact.chosen(~as_handle & sure))
        self._hold("framebuffer", exact.chosen(~as_handle & ~sure), at_most=True)
        self._hold("framebuffer", shown.shared, at_most=True)
        self._hold("framebuffer", shown.dying, at_most=True)

    def _consoles(self, devices: Iterable[DrmDevice]) -> HeldGems:
        drawn_into = [HeldGems.of([])]
        for known in devices:
            try:
                drawn_into.append(gem_of_fbdev(known.device))
            except FaultError:
                self.gaps.append(("console", "it could not be read", known.device.value_()))
        held = _joined(drawn_into)
        self._hold("console", held)
        return held

    def _dma_bufs(self, gems: GemObjects) -> Bools:
        """
        What was exported holds the object.

        :return: bool array of shape (n,): those of which it is not known
        """
        prog = self.prog
        try:
            buffers: DmaBufs = dma_bufs(self.index)
        except LookupError:
            return np.zeros(len(gems.address), dtype=bool)  # a kernel without dma-buf
        type_ = prog.type("struct dma_buf")
        exports = gem_exports(prog, gems, buffers)
        self._hold("dma_buf", exports.exact)
        self._hold("dma_buf", exports.at_most, at_most=True)
        why = "it does not lead to the GEM object that it exports, and who that is, is not known"
        self.gaps += [("dma-buf of a GEM object", why, a) for a in exports.lost.tolist()]
        # Its reservation object is that of the GEM object.
        self._not_held(buffers.address + np.uint64(offsetof(type_, "resv")))
        attachment = prog.type("struct dma_buf_attachment")
        if attachment.has_member("importer_priv"):  # since v5.6
            imports = gems.import_attach[gems.import_attach != 0]
            self._not_held(imports + np.uint64(offsetof(attachment, "importer_priv")))
        return exports.doubtful

    def _mappings(self, gems: GemObjects, driver_known: Bools) -> HeldGems:
        """
        Mappings of GEM objects, each with a reference (``drm_gem_vm_open()``).

        One whose driver has functions of its own for it may hold something else, and one
        of an address space that no task has may have none: fork() takes it after it has put
        the mapping there, and who exits drops it before. What TTM maps holds TTM's part of
        the object, which has a count of its own; where that of the object counts for both,
        the pointer says so by itself.

        :param driver_known: bool array of shape (n,): drivers whose TTM is known to be so
        """
        prog = self.prog
        areas = mappings_of(self.index, "vm_private_data", gems.address)
        self.gaps += [("mapping", "it could not be read", address) for address in areas.unread]
        closing, used = _closing(prog, areas.owner)
        gem_close, ttm_close = _functions(prog, _GEM_MAPPINGS), _functions(prog, _TTM_MAPPINGS)
        held = HeldGems(areas.file, areas.word, areas.owner)
        exact = np.isin(closing, gem_close) & (areas.number > 0) & used
        ttm = np.isin(closing, ttm_close)
        self._hold("mapping", held.chosen(exact))
        self._hold("mapping", held.chosen(~exact & ~ttm), at_most=True)
        self._not_held(held.word[ttm & np.isin(held.gem, gems.address[driver_known])])
        return held.chosen(areas.number > 0)

    def _commands(self) -> Tuple[HeldGems, HeldGems, HeldGems]:
        """The objects of commands of virtio_gpu: in flight, done, and in a task's hands."""
        used, done, passing = ([HeldGems.of([])] for _ in range(3))
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
            done.append(found.answered)
            passing.append(dataclasses.replace(found.passing, unread=()))
        return _joined(used), _joined(done), _joined(passing)

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
        self._not_held(self._words_of_offset_files(offset_file_nodes(prog, gems)))
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

    def _words_of_offset_files(self, nodes: U64) -> U64:
        """
        The words of such structures, and behind them what was left in their memory.

        What is not alone in the memory that kmalloc() gives for it is none of them.
        """
        caches = self.index.caches
        alone = np.zeros(len(caches) + 1, dtype=bool)  # the last is for what is in no slab
        if len(nodes):
            needed = sizeof(self.prog.type("struct drm_vma_offset_file"))
            sizes = [cache.object_size_bytes for cache in caches if is_kmalloc(cache)]
            fits = min((size for size in sizes if size >= needed), default=0)
            alone[:-1] = [is_kmalloc(cache) and cache.object_size_bytes == fits for cache in caches]
        rows = self.index.find(nodes)
        cache = np.where(rows >= 0, self.index.cache[rows], -1) if len(self.index.cache) else rows
        start, size = slots_around(self.index, nodes)
        wanted = alone[cache] & (start == nodes)
        start, size = start[wanted], size[wanted]
        words = np.arange(int(size.max(initial=0)) // 8, dtype=np.uint64) * np.uint64(8)
        inside = words < size[:, None].astype(np.uint64)
        result: U64 = (start[:, None] + words)[inside]
        return result


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


def _closing(prog: Program, areas: U64) -> Tuple[U64, Bools]:
    """
    What each mapping is closed with, 0 where nothing is known, and whether a task has it.

    :param areas: uint64 array of ``struct vm_area_struct *``
    """
    dtype = field_dtype(prog.type("struct vm_area_struct"), {"ops": "vm_ops", "mm": "vm_mm"})
    structs, _ = read_structs(prog, areas.tolist(), dtype)
    tables, which = np.unique(structs["ops"], return_inverse=True)
    spaces = set(structs["mm"].tolist())
    used = np.array(list(mm_users(prog, spaces)), dtype=np.uint64)
    dtype = field_dtype(prog.type("struct vm_operations_struct"), {"close": "close"})
    functions, _ = read_structs(prog, tables.tolist(), dtype)
    result: U64 = functions["close"].astype(np.uint64)[which.reshape(-1)]
    return result, np.isin(structs["mm"], used)


def _functions(prog: Program, names: Iterable[str]) -> U64:
    found = []
    for name in names:
        try:
            found.append(prog.symbol(name).address)
        except LookupError:
            continue
    return np.array(found, dtype=np.uint64)
