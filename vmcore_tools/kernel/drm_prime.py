# SPDX-License-Identifier: LGPL-2.1-or-later
"""
PRIME: dma-bufs of GEM objects, and what open DRM files remember of them.

A GEM object that was exported or imported points at its dma-buf, an imported
one also through its attachment. Each open DRM file has a cache of the dma-bufs
that it has handles of, so that importing one twice gives the same handle.
"""

from __future__ import annotations

import dataclasses
from typing import Any, List, Mapping, Sequence, Tuple

import numpy as np
import numpy.typing as npt
from drgn import Program, offsetof

from vmcore_tools.kernel.dma_buf import DmaBufs
from vmcore_tools.kernel.layout import field_dtype, read_structs

U64 = npt.NDArray[np.uint64]

#: Entries that no machine has; damaged trees must end.
_MEMBERS_MAX = 1_000_000
#: A red-black tree of more levels has more entries than memory.
_LEVELS_MAX = 128


@dataclasses.dataclass(frozen=True)
class GemDmaBufs:
    """
    GEM objects and their dma-bufs, as arrays of shape (n,), sorted by address.

    :ivar gem: uint64, ``struct drm_gem_object *``
    :ivar refcount: int64; 0 is one that is being freed
    :ivar handles: int64, ``handle_count``
    :ivar dma_buf: uint64: what it was exported or imported as; 0 without. It
        has a reference while the object has a handle: from
        ``export_and_register_object()`` or ``drm_gem_prime_fd_to_handle()`` to
        ``drm_gem_object_exported_dma_buf_free()``, which clears the pointer
    :ivar dma_buf_word: uint64, the address of that pointer
    :ivar attachment: uint64, ``struct dma_buf_attachment *``, 0 without
    :ivar attached: uint64: the dma-buf it is attached to, whose reference
        ``drm_gem_prime_import_dev()`` takes and ``drm_prime_gem_destroy()``
        drops with the attachment; 0 without
    :ivar attached_word: uint64, the address of that pointer
    :ivar unread: addresses that could not be read
    """

    gem: U64
    refcount: npt.NDArray[np.int64]
    handles: npt.NDArray[np.int64]
    dma_buf: U64
    dma_buf_word: U64
    attachment: U64
    attached: U64
    attached_word: U64
    unread: Tuple[int, ...] = ()


def gem_dma_bufs(prog: Program, gems: Sequence[int]) -> GemDmaBufs:
    """
    The dma-bufs that GEM objects were exported or imported as.

    :param gems: addresses of ``struct drm_gem_object``
    :raises LookupError: without the debug info of DRM
    """
    type_ = prog.type("struct drm_gem_object")
    address = np.array(sorted(set(gems)), dtype=np.uint64)
    members = {
        "refcount": "refcount.refcount.refs.counter",
        "handles": "handle_count",
        "dma_buf": "dma_buf",
        "attachment": "import_attach",
    }
    structs, read = read_structs(prog, address.tolist(), field_dtype(type_, members))
    unread = address[~read].tolist()
    attachment_type = prog.type("struct dma_buf_attachment")
    attachment = structs["attachment"].astype(np.uint64)
    imported = np.flatnonzero(attachment)
    attachments, attachment_read = read_structs(
        prog, attachment[imported].tolist(), field_dtype(attachment_type, {"dma_buf": "dmabuf"})
    )
    unread += attachment[imported[~attachment_read]].tolist()
    attached = np.zeros(len(address), dtype=np.uint64)
    attached[imported] = attachments["dma_buf"]
    return GemDmaBufs(
        gem=address,
        refcount=structs["refcount"].astype(np.int32).astype(np.int64),
        handles=structs["handles"].astype(np.int64),
        dma_buf=structs["dma_buf"].astype(np.uint64),
        dma_buf_word=address + np.uint64(offsetof(type_, "dma_buf")),
        attachment=attachment,
        attached=attached,
        attached_word=attachment + np.uint64(offsetof(attachment_type, "dmabuf")),
        unread=tuple(unread),
    )


@dataclasses.dataclass(frozen=True)
class PrimeEntries:
    """
    Entries of PRIME caches, as arrays of shape (n,).

    :ivar file: uint64, the ``struct drm_file *`` that remembers
    :ivar dma_buf: uint64
    :ivar word: uint64, the address of the pointer to it
    :ivar handle: int64: what the file has it as
    :ivar unread: addresses that could not be read
    """

    file: U64
    dma_buf: U64
    word: U64
    handle: npt.NDArray[np.int64]
    unread: Tuple[int, ...] = ()

    def chosen(self, wanted: npt.NDArray[Any]) -> PrimeEntries:
        """Some of the entries, by a mask or by position; *unread* stays with all."""
        return PrimeEntries(
            self.file[wanted], self.dma_buf[wanted], self.word[wanted], self.handle[wanted]
        )


def prime_entries(prog: Program, files: Sequence[int]) -> PrimeEntries:
    """
    What open DRM files remember of dma-bufs, as ``drm_prime_lookup_buf_handle()`` would find it.

    Each entry holds a reference (``drm_prime_add_buf_handle()``). All trees
    are walked at once, level by level.

    :param files: addresses of ``struct drm_file``
    :raises LookupError: without the debug info of DRM, or before v4.9 ("drm:
        Convert prime dma-buf <-> handle to rbtree")
    """
    type_ = prog.type("struct drm_prime_member")
    members = {
        "dma_buf": "dma_buf",
        "handle": "handle",
        "left": "dmabuf_rb.rb_left",
        "right": "dmabuf_rb.rb_right",
    }
    dtype = field_dtype(type_, members)
    start, pointer = (np.uint64(offsetof(type_, name)) for name in ("dmabuf_rb", "dma_buf"))
    file = np.array(files, dtype=np.uint64)
    root_dtype = field_dtype(prog.type("struct drm_file"), {"root": "prime.dmabufs.rb_node"})
    roots, read = read_structs(prog, file.tolist(), root_dtype)
    unread = file[~read].tolist()
    node = roots["root"].astype(np.uint64)
    parts: List[PrimeEntries] = []
    found = 0
    for _ in range(_LEVELS_MAX):
        file, node = file[node != 0], node[node != 0]
        found += len(node)
        if not len(node):
            break
        if found > _MEMBERS_MAX:
            unread.append(int(node[0]))
            break
        address = node - start
        structs, read = read_structs(prog, address.tolist(), dtype)
        unread += address[~read].tolist()
        every = PrimeEntries(
            file, structs["dma_buf"], address + pointer, structs["handle"].astype(np.int64)
        )
        parts.append(every.chosen(read))
        file = np.concatenate([file, file])
        node = np.concatenate([structs["left"], structs["right"]]).astype(np.uint64)
    nothing = np.zeros(0, dtype=np.uint64)
    return PrimeEntries(
        np.concatenate([nothing, *(part.file for part in parts)]),
        np.concatenate([nothing, *(part.dma_buf for part in parts)]),
        np.concatenate([nothing, *(part.word for part in parts)]),
        np.concatenate([nothing.astype(np.int64), *(part.handle for part in parts)]),
        tuple(unread),
    )


def entries_of_other_objects(
    entries: PrimeEntries, handles: Mapping[Tuple[int, int], int], gems: GemDmaBufs
) -> npt.NDArray[np.bool_]:
    """
    The entries whose handle is not one of the dma-buf that they name.

    The file has no such handle, or that of an object with another dma-buf: the
    entry outlived its handle, and a lookup of the dma-buf gives a wrong one.
    Those of objects that could not be read are not among them.

    :param handles: (``struct drm_file``, handle) to ``struct drm_gem_object``:
        all of these files
    :param gems: with all objects that have handles
    :return: bool array of shape (n,)
    """
    found = [handles.get(key, 0) for key in zip(entries.file.tolist(), entries.handle.tolist())]
    gem = np.array(found, dtype=np.uint64)
    result = np.ones(len(gem), dtype=bool)
    if len(gems.gem):
        at = np.minimum(np.searchsorted(gems.gem, gem), len(gems.gem) - 1)
        mine = (gems.dma_buf[at] == entries.dma_buf) | (gems.attached[at] == entries.dma_buf)
        unread = np.array(gems.unread, dtype=np.uint64)
        mine |= np.isin(gem, unread) | np.isin(gems.attachment[at], unread)
        result = ~((gems.gem[at] == gem) & mine)
    return result


@dataclasses.dataclass(frozen=True)
class KeptByThemselves:
    """
    GEM objects and dma-bufs that keep each other, and that nothing else keeps.

    :ivar gem: int64 array: positions in :class:`GemDmaBufs`
    :ivar dma_buf: int64 array: positions in :class:`DmaBufs`
    """

    gem: npt.NDArray[np.int64]
    dma_buf: npt.NDArray[np.int64]


def kept_by_themselves(buffers: DmaBufs, gems: GemDmaBufs) -> List[KeptByThemselves]:
    """
    Imports that end where they began: no reference of theirs is ever dropped.

    A dma-buf keeps the GEM object that it was exported from (``priv``), and an
    imported object keeps the dma-buf that it is attached to. PRIME's own
    helpers only ever import in one direction; a driver that exports what it
    imported, or attaches later, can close a circle. What has any other
    reference, such as a handle or a descriptor, is not in one.

    :return: the sets that hang together
    """
    exports = np.flatnonzero(np.isin(buffers.priv, gems.gem) & (buffers.refcount > 0))
    imports = np.flatnonzero(np.isin(gems.attached, buffers.address) & (gems.refcount > 0))
    exported = np.searchsorted(gems.gem, buffers.priv[exports])
    order = np.argsort(buffers.address)
    near = np.searchsorted(buffers.address[order], gems.attached[imports])
    imported = order[near] if len(order) else near
    # All that these edges explain wholly; then less and less, until nothing else keeps any.
    dma_buf = np.bincount(imported, minlength=len(buffers.address)) == buffers.refcount
    dma_buf &= buffers.refcount > 0
    gem = np.bincount(exported, minlength=len(gems.gem)) == gems.refcount
    gem &= (gems.refcount > 0) & (gems.handles == 0)
    while True:
        lost_buffers = imported[~gem[imports] & dma_buf[imported]]
        lost_gems = exported[~dma_buf[exports] & gem[exported]]
        if not (len(lost_buffers) or len(lost_gems)):
            break
        dma_buf[lost_buffers] = False
        gem[lost_gems] = False
    one, other = np.concatenate([exported, imports]), np.concatenate([exports, imported])
    both = gem[one] & dma_buf[other]
    label = _labels(len(gems.gem), len(buffers.address), one[both], other[both])
    of_gem, of_buffer = label[: len(gems.gem)], label[len(gems.gem) :]
    return [
        KeptByThemselves(
            np.flatnonzero(gem & (of_gem == which)), np.flatnonzero(dma_buf & (of_buffer == which))
        )
        for which in np.unique(of_buffer[dma_buf]).tolist()
    ]


def _labels(
    gems: int, buffers: int, gem: npt.NDArray[np.int64], dma_buf: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """
    The same number for all that hangs together.

    :param gem: int64 array of shape (m,): one end of each edge
    :param dma_buf: int64 array of shape (m,): the other end
    :return: int64 array of shape (gems + buffers,)
    """
    label = np.arange(gems + buffers)
    while True:
        before = label.copy()
        for one, other in ((gem, gems + dma_buf), (gems + dma_buf, gem)):
            np.minimum.at(label, one, label[other])
        label = label[label]
        if (label == before).all():
            return label
