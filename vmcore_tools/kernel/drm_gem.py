# SPDX-License-Identifier: LGPL-2.1-or-later
"""GEM objects: where they are, and what holds a reference to them."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Iterable, Iterator, List, Sequence, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, container_of, offsetof, sizeof

from vmcore_tools.kernel.id_slots import Slots, idr_slots
from vmcore_tools.kernel.layout import as_structs, field_dtype, read_structs
from vmcore_tools.kernel.strings import c_string
from vmcore_tools.kernel.typed_objects import Embedded, Found

U64 = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_GEM = "struct drm_gem_object"

#: How GEM objects are found in slab objects, those without a handle included.
#: Drivers that set no ``funcs`` (before v5.11 some did not, before v5.0 there
#: were none) have them by their device.
GEM_OBJECT = Embedded(_GEM, "funcs", "struct drm_gem_object_funcs")
GEM_OF_DEVICE = Embedded(_GEM, "dev", "struct drm_device")

#: Bounds that tell a GEM object from something else with a pointer to the device.
_COUNT_MAX = 1 << 20
_NAME_MAX = 1 << 31
_SIZE_MAX = 1 << 47
#: ``DRM_FORMAT_MAX_PLANES``, and the macro that tells which of a framebuffer's
#: planes count as handles: ``DRM_FRAMEBUFFER_HAS_HANDLE_REF()``.
_HANDLE_REF_BITS = 0xF
#: Levels of a red-black tree of more files than there can be.
_TREE_DEPTH_MAX = 64
#: GEM objects whose bytes are looked at together.
_AT_ONCE = 4096


def for_each_gem_handle(file: Object) -> Iterator[Tuple[int, Object]]:
    """
    Iterate over the GEM handles of an open DRM file.

    :param file: ``struct drm_file *``
    :return: Iterator of (handle, ``struct drm_gem_object *``)
    :raises drgn.FaultError: behind the others, if some could not be read
    """
    prog = file.prog_
    type_ = prog.pointer_type(prog.type("struct drm_gem_object"))
    slots = idr_slots(file.object_idr)
    for handle, entry in zip(slots.id.tolist(), slots.entry.tolist()):
        yield handle, Object(prog, type_, value=entry)
    if slots.unread:
        raise FaultError("a node of the GEM handles could not be read", slots.unread[0])


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
    if c_string(device.driver.name) == b"virtio_gpu":
        return int(container_of(gem, "struct virtio_gpu_object", "gem_base").tbo.resv.value_())
    return 0


def plausible_gems(prog: Program, structs: npt.NDArray[np.uint8], addresses: U64) -> Bools:
    """
    Which structures that point to a DRM device where a GEM object does are one.

    :param structs: uint8 array of shape (n, size of ``struct drm_gem_object``)
    :param addresses: uint64 array of shape (n,): where they are
    """
    gem_type = prog.type(_GEM)
    values = as_structs(structs, _dtype(prog))
    pages = np.uint64(prog["PAGE_SIZE"].value_() - 1)
    size = values["size"]
    good: Bools = (size > 0) & (size < _SIZE_MAX) & (size & pages == 0)
    good &= (values["refcount"] < _COUNT_MAX) & (values["handle_count"] < _COUNT_MAX)
    good &= values["name"] < _NAME_MAX
    for member in ("filp", "dma_buf", "import_attach"):
        # Kernel addresses are negative.
        good &= (values[member] == 0) | (values[member].view(np.int64) < 0)
    if gem_type.has_member("_resv"):
        own = addresses + np.uint64(offsetof(gem_type, "_resv"))
        good &= (values["resv"] == own) | (values["import_attach"] != 0)
    return good


def _dtype(prog: Program) -> np.dtype[Any]:
    gem_type = prog.type(_GEM)
    members = {
        "refcount": "refcount.refcount.refs.counter",
        "handle_count": "handle_count",
        "dev": "dev",
        "filp": "filp",
        "size": "size",
        "name": "name",
        "dma_buf": "dma_buf",
        "import_attach": "import_attach",
    }
    if gem_type.has_member("resv"):  # since v5.2
        members["resv"] = "resv"
    return field_dtype(gem_type, members)


@dataclasses.dataclass(frozen=True)
class GemObjects:
    """
    GEM objects, as arrays of shape (n,), sorted by address.

    :ivar address: uint64, ``struct drm_gem_object *``
    :ivar container: uint64, of the slab object around each; the object itself
        where it is in no slab
    :ivar cache: int64, position in ``SlabIndex.caches``, or -1
    :ivar refcount: int64; 0 for one that is being freed
    :ivar handle_count: int64
    :ivar device: uint64, ``struct drm_device *``
    :ivar size: uint64, of the buffer in bytes
    :ivar name: int64, its flink name, or 0
    :ivar dma_buf: uint64, ``struct dma_buf *`` that it was exported or imported as, or 0
    :ivar import_attach: uint64, ``struct dma_buf_attachment *``, or 0
    :ivar reservation: uint64, ``struct dma_resv *``; 0 where the object has no pointer to it
    :ivar structs: uint8 array of shape (n, size of ``struct drm_gem_object``): their bytes
    """

    address: U64
    container: U64
    cache: Ints
    refcount: Ints
    handle_count: Ints
    device: U64
    size: U64
    name: Ints
    dma_buf: U64
    import_attach: U64
    reservation: U64
    structs: npt.NDArray[np.uint8]


def gem_objects(prog: Program, found: Found, others: U64) -> Tuple[GemObjects, List[int]]:
    """
    GEM objects that were found in slabs, and others.

    :param others: uint64 array: more addresses of GEM objects; those in *found* may be among them
    :return: and the addresses of others that could not be read
    """
    dtype = _dtype(prog)
    others = np.setdiff1d(others, found.address)
    more, read = read_structs(prog, others.tolist(), dtype)
    structs = np.concatenate([found.structs, more.view(np.uint8).reshape(-1, dtype.itemsize)[read]])
    address = np.concatenate([found.address, others[read]])
    order = np.argsort(address, kind="stable")
    structs = structs[order]
    values = as_structs(structs, dtype)
    missing = np.full(int(read.sum()), -1, dtype=np.int64)
    names = dtype.names or ()
    reservation = values["resv"] if "resv" in names else np.zeros(len(order))
    return (
        GemObjects(
            address=address[order],
            container=np.concatenate([found.container, others[read]])[order],
            cache=np.concatenate([found.cache, missing])[order],
            refcount=values["refcount"].astype(np.int32).astype(np.int64),
            handle_count=values["handle_count"].astype(np.int64),
            device=values["dev"].astype(np.uint64),
            size=values["size"].astype(np.uint64),
            name=values["name"].astype(np.int64),
            dma_buf=values["dma_buf"].astype(np.uint64),
            import_attach=values["import_attach"].astype(np.uint64),
            reservation=reservation.astype(np.uint64),
            structs=structs,
        ),
        others[~read].tolist(),
    )


@dataclasses.dataclass(frozen=True)
class HeldGems:
    """
    GEM objects that somebody points at, one entry for each pointer.

    :ivar gem: uint64 array of shape (n,)
    :ivar word: uint64 array of shape (n,): the address of each pointer
    :ivar owner: uint64 array of shape (n,): the structure that has it
    :ivar unread: addresses that could not be read
    """

    gem: U64
    word: U64
    owner: U64
    unread: Tuple[int, ...] = ()

    def chosen(self, wanted: Bools) -> HeldGems:
        """Some of them; *unread* stays with all."""
        return HeldGems(self.gem[wanted], self.word[wanted], self.owner[wanted])

    @staticmethod
    def of(rows: Sequence[Tuple[int, int, int]], unread: Sequence[int] = ()) -> HeldGems:
        """
        :param rows: GEM object, word and owner of each
        """
        table = np.array(rows, dtype=np.uint64).reshape(-1, 3)
        return HeldGems(table[:, 0], table[:, 1], table[:, 2], tuple(unread))


@dataclasses.dataclass(frozen=True)
class GemHandles:
    """
    The handles of open DRM files, one entry for each, as arrays of shape (n,).

    All handles of an object together hold one reference
    (``drm_gem_handle_create_tail()``).

    :ivar gem: uint64, ``struct drm_gem_object *``
    :ivar handle: int64, its number
    :ivar file: uint64, ``struct drm_file *``
    :ivar word: uint64, the address of the pointer
    :ivar unread: addresses of nodes that could not be read
    """

    gem: U64
    handle: Ints
    file: U64
    word: U64
    unread: Tuple[int, ...]

    def joined(self, other: GemHandles) -> GemHandles:
        """These and those of other files."""
        return GemHandles(
            np.concatenate([self.gem, other.gem]),
            np.concatenate([self.handle, other.handle]),
            np.concatenate([self.file, other.file]),
            np.concatenate([self.word, other.word]),
            (*self.unread, *other.unread),
        )


def gem_handles(files: Iterable[Object]) -> GemHandles:
    """
    The GEM handles of open DRM files.

    :param files: ``struct drm_file *``
    """
    found: List[Tuple[int, Slots]] = []
    unread: List[int] = []
    for file in files:
        try:
            slots = idr_slots(file.object_idr)
        except FaultError:
            unread.append(file.value_())
            continue
        found.append((file.value_(), slots))
        unread += slots.unread
    nothing = np.zeros(0, dtype=np.uint64)
    return GemHandles(
        np.concatenate([nothing, *(slots.entry for _, slots in found)]),
        np.concatenate([nothing.astype(np.int64), *(slots.id for _, slots in found)]),
        np.concatenate(
            [nothing, *(np.full(len(s.id), file, dtype=np.uint64) for file, s in found)]
        ),
        np.concatenate([nothing, *(slots.word for _, slots in found)]),
        tuple(unread),
    )


def gem_names(device: Object) -> Slots:
    """
    The flink names of a device's objects: they hold no reference.

    They are gone with an object's last handle (``drm_gem_object_handle_free()``).

    :param device: ``struct drm_device *``
    :raises drgn.FaultError: if the IDR is not in the dump
    """
    return idr_slots(device.object_name_idr)


def gems_of_framebuffer(framebuffer: Object) -> HeldGems:
    """
    The GEM objects of a framebuffer's planes.

    Each pointer is a reference if :func:`destroyed_by_helper`.

    :param framebuffer: ``struct drm_framebuffer *``
    :raises drgn.FaultError: if it is not in the dump
    """
    rows = []
    objects = framebuffer.obj
    for i in range(len(objects)):
        gem, word = objects[i].value_(), objects[i].address_
        assert word is not None
        if gem:
            rows.append((gem, word, framebuffer.value_()))
    return HeldGems.of(rows)


def destroyed_by_helper(framebuffer: Object) -> bool:
    """
    Whether ``drm_gem_fb_destroy()`` drops a reference for each of a framebuffer's pointers.

    i915 and xe have one for all of an object's framebuffers (``intel_frontbuffer_get()``).

    :param framebuffer: ``struct drm_framebuffer *``
    :raises drgn.FaultError: if it is not in the dump
    """
    destroy = framebuffer.funcs.destroy.value_() if framebuffer.funcs else 0
    try:
        return bool(destroy == framebuffer.prog_.symbol("drm_gem_fb_destroy").address)
    except LookupError:
        return False


def counts_as_handle(framebuffer: Object) -> List[int]:
    """
    The GEM objects that a framebuffer keeps as if it had a handle of each.

    :param framebuffer: ``struct drm_framebuffer *``
    :return: addresses of ``struct drm_gem_object``
    """
    # "drm/framebuffer: Acquire internal references on GEM handles" of v6.16.
    if not hasattr(framebuffer, "internal_flags"):
        return []
    flags = int(framebuffer.internal_flags.value_()) & _HANDLE_REF_BITS
    gems = framebuffer.obj
    return [int(gems[i].value_()) for i in range(len(gems)) if flags >> i & 1]


def gem_of_fbdev(device: Object) -> HeldGems:
    """
    The GEM object of the console on a device's screen: ``drm_client_buffer_create()`` holds it.

    :param device: ``struct drm_device *``
    :raises drgn.FaultError: if it is not in the dump
    """
    # "drm/fb-helper: Add generic fbdev emulation" of v4.19; drivers had their own before.
    helper = device.fb_helper.read_() if hasattr(device, "fb_helper") else None
    if not helper or not hasattr(helper, "buffer") or not helper.buffer:
        return HeldGems.of([])
    gem = helper.buffer.gem
    assert gem.address_ is not None
    return HeldGems.of([(gem.value_(), gem.address_, helper.buffer.value_())] if gem else [])


def internal_words(
    prog: Program, gems: GemObjects, sizes: Dict[str, int], driver: Dict[int, str]
) -> U64:
    """
    The words in GEM objects that point into others: they hold no reference.

    These are the trees and lists of the mmap offsets, LRU lists, and the
    reservation object of the exporter.

    :param sizes: driver to the bytes from the GEM object on of which this is known; of
        others it is ``struct drm_gem_object``
    :param driver: address of each DRM device to its driver
    :return: uint64 array of addresses
    """
    found = [np.zeros(0, dtype=np.uint64)]
    for device in np.unique(gems.device).tolist():
        mine = np.flatnonzero(gems.device == np.uint64(device))
        size = sizes.get(driver.get(device, ""), 0)
        for at in range(0, len(mine), _AT_ONCE):
            some = mine[at : at + _AT_ONCE]
            data = gems.structs[some]
            if size > data.shape[1]:
                dtype = np.dtype([("bytes", np.uint8, (size,))])
                data = read_structs(prog, gems.address[some].tolist(), dtype)[0]["bytes"]
            found.append(_words_to_others(gems.address, some, data))
    return np.concatenate(found)


def _words_to_others(addresses: U64, some: Ints, data: npt.NDArray[np.uint8]) -> U64:
    """
    :param some: positions of objects
    :param data: uint8 array of shape (m, size): their bytes
    """
    size = np.uint64(data.shape[1])
    words = np.ascontiguousarray(data[:, : data.shape[1] // 8 * 8]).view(np.uint64)
    row, word = np.nonzero((words >= addresses[0]) & (words < addresses[-1] + size))
    values = words[row, word]
    near = np.searchsorted(addresses, values, side="right") - 1
    own = addresses[some[row]]
    inside = (values - addresses[near] < size) & (addresses[near] != own)
    result: U64 = own[inside] + word[inside].astype(np.uint64) * np.uint64(8)
    return result


def offset_file_nodes(prog: Program, gems: GemObjects) -> U64:
    """
    What remembers the files that may map a GEM object, one for each file with a handle.

    :return: uint64 array of the addresses of ``struct drm_vma_offset_file``
        (``drm_vma_node_allow()``)
    """
    try:
        files = field_dtype(prog.type(_GEM), {"root": "vma_node.vm_files.rb_node"})
        type_ = prog.type("struct drm_vma_offset_file")
    except LookupError:
        return np.zeros(0, dtype=np.uint64)
    links = field_dtype(type_, {"left": "vm_rb.rb_left", "right": "vm_rb.rb_right"})
    start = np.uint64(offsetof(type_, "vm_rb"))
    root = as_structs(gems.structs, files)["root"]
    level = np.unique(root[root != 0]).astype(np.uint64)
    found = [np.zeros(0, dtype=np.uint64)]
    for _ in range(_TREE_DEPTH_MAX):
        if not len(level):
            break
        found.append(level - start)
        structs, _ = read_structs(prog, found[-1].tolist(), links)
        below = np.concatenate([structs["left"], structs["right"]])
        level = np.unique(below[below != 0]).astype(np.uint64)
    return np.unique(np.concatenate(found))


def words_of(prog: Program, type_name: str, address: int) -> U64:
    """
    The addresses of all words of a structure.

    :param type_name: ``struct drm_vma_offset_manager``
    """
    count = sizeof(prog.type(type_name)) // 8
    words: U64 = np.uint64(address) + np.arange(count, dtype=np.uint64) * np.uint64(8)
    return words
