# SPDX-License-Identifier: LGPL-2.1-or-later
"""All dma-bufs of a kernel, and all holders of them that can be walked."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Dict, List, Optional, Set, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object
from drgn.helpers import ValidationError

from vmcore_tools.kernel.audit import Counted, Holders, Refcounted
from vmcore_tools.kernel.dma_buf import (
    DmaBufs,
    HeldDmaBufs,
    dma_bufs,
    dma_bufs_of_gems,
    dma_bufs_of_imports,
    prime_cache,
    weak_words,
)
from vmcore_tools.kernel.dma_fence import stale_callback_words
from vmcore_tools.kernel.drm import for_each_drm_device, for_each_drm_file
from vmcore_tools.kernel.drm_gem import for_each_gem_handle
from vmcore_tools.kernel.files import (
    FileReferences,
    descriptors,
    files_structs,
    mappings,
    outgrown_descriptor_words,
)
from vmcore_tools.kernel.found_fences import found_fences
from vmcore_tools.kernel.layout import as_structs, field_dtype, read_structs
from vmcore_tools.kernel.scm_rights import files_in_flight
from vmcore_tools.kernel.slab import SlabIndex

U64 = npt.NDArray[np.uint64]

#: All kinds of holders; each is a walk below.
KINDS = ("descriptor", "message", "mapping", "gem", "import", "prime_cache")


@dataclasses.dataclass(frozen=True)
class DmaBufHolders:
    """
    The dma-bufs and what the audit is told of them; arrays of shape (n,).

    :ivar buffers: all dma-bufs
    :ivar described: for the audit: the objects are their files
    :ivar descriptors: those of the dma-bufs
    :ivar mappings: those of the dma-bufs
    :ivar users: address of each ``struct files_struct`` to its ``struct task_struct *``
    :ivar cache: int64: where the dma-bufs are, position in ``SlabIndex.caches``
    :ivar gaps: what could not be walked: what, why, and the address of it if known
    """

    buffers: DmaBufs
    described: Refcounted
    descriptors: FileReferences
    mappings: FileReferences
    users: Dict[int, List[Object]]
    cache: npt.NDArray[np.int64]
    gaps: Tuple[Tuple[str, str, Optional[int]], ...]


def dma_buf_holders(index: SlabIndex) -> Optional[DmaBufHolders]:
    """
    Find all dma-bufs, and walk all that may hold one.

    :return: None if there is no dma-buf
    :raises LookupError: without the debug info of dma-buf
    """
    buffers = dma_bufs(index)
    if not len(buffers.file) and not buffers.unread:
        return None
    return _Walk(index, buffers).everything()


class _Walk:
    """Collects holders, and what could not be walked."""

    def __init__(self, index: SlabIndex, buffers: DmaBufs) -> None:
        self.index = index
        self.prog = index.prog
        self.buffers = buffers
        self.holders: List[Holders] = []
        self.gaps: List[Tuple[str, str, Optional[int]]] = [
            ("dma-buf", "it could not be read", address) for address in buffers.unread
        ]

    def everything(self) -> DmaBufHolders:
        index, buffers = self.index, self.buffers
        users = files_structs(index)
        opened = descriptors(self.prog, list(users), buffers.file)
        self.gaps += [("descriptor", "it could not be read", a) for a in opened.unread]
        used = [table for table, tasks in users.items() if tasks]
        in_use = np.isin(opened.owner, np.array(used, dtype=np.uint64))
        self._files("descriptor", opened.chosen(in_use))
        # A table that no task has is one that is being built or closed.
        self._files("descriptor", opened.chosen(~in_use), at_most=True)
        mapped = mappings(index, buffers.file)
        self._files("mapping", mapped)
        with contextlib.suppress(LookupError):  # a kernel without unix sockets
            queued, passing = files_in_flight(index, buffers.file)
            self._files("message", queued)
            self._files("message", passing, at_most=True)
        self._gems()
        self._weak(list(users))
        objects, cache = self._objects()
        # Whoever holds one has a pointer to it: nobody signals a dma-buf.
        everywhere = np.ones(len(buffers.file), dtype=bool)
        described = Refcounted(objects, self.holders, everywhere, everywhere)
        return DmaBufHolders(buffers, described, opened, mapped, users, cache, tuple(self.gaps))

    def _objects(self) -> Tuple[Counted, npt.NDArray[np.int64]]:
        """Each one is two memory blocks: its file, and the dma-buf itself."""
        count = len(self.buffers.file)
        blocks, sizes, caches = self._blocks(
            np.concatenate([self.buffers.file, self.buffers.address])
        )
        counted = Counted(
            address=self.buffers.file,
            refcount=self.buffers.refcount,
            block=blocks,
            block_size_bytes=sizes,
            block_object=np.tile(np.arange(count), 2),
        )
        return counted, caches[count:]

    def _blocks(self, addresses: U64) -> Tuple[U64, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Start, size and cache of the slab objects that addresses are the start of."""
        caches = self.index.cache[self.index.find(addresses)]
        sizes = np.array([c.object_size_bytes for c in self.index.caches], dtype=np.int64)
        return addresses, sizes[caches], caches

    # Holders.

    def _files(self, kind: str, found: FileReferences, at_most: bool = False) -> None:
        self.gaps += [(kind, "it could not be read", address) for address in found.unread]
        self.holders.append(Holders(kind, found.file, found.word, at_most))

    def _hold(self, kind: str, held: HeldDmaBufs, at_most: bool = False) -> None:
        self.gaps += [(kind, "it could not be read", address) for address in held.unread]
        files = self.buffers.files_of(held.dma_buf)
        self.holders.append(Holders(kind, files, held.word, at_most))

    def _gems(self) -> None:
        """GEM objects that were exported or imported, and what DRM files remember of them."""
        try:
            living, ending = self._gems_by_operations()
            devices = list(for_each_drm_device(self.prog))
        except LookupError:
            return  # a kernel without DRM
        except (FaultError, ValidationError) as error:
            self.gaps.append(("DRM devices", f"the walk broke off: {error}", None))
            devices = []
        for device in devices:
            try:
                for file in for_each_drm_file(device):
                    self._hold("prime_cache", prime_cache(file))
                    # Drivers that set no ops table have their objects only as handles.
                    living.update(gem.value_() for _, gem in for_each_gem_handle(file))
            except (FaultError, ValidationError) as error:
                self.gaps.append(("DRM files", f"the walk broke off: {error}", device.value_()))
        gems = sorted(living - ending)
        with_handles, without = self._by_handles(gems)
        self._hold("gem", dma_bufs_of_gems(self.prog, with_handles))
        # drm_gem_object_exported_dma_buf_free() puts the dma-buf and then clears the pointer.
        self._hold("gem", dma_bufs_of_gems(self.prog, without), at_most=True)
        self._hold("import", dma_bufs_of_imports(self.prog, gems))
        # drm_prime_gem_destroy() puts the dma-buf and leaves the pointers.
        self._hold("import", dma_bufs_of_imports(self.prog, sorted(ending)), at_most=True)

    def _by_handles(self, gems: List[int]) -> Tuple[List[int], List[int]]:
        """GEM objects that have a handle, and those that do not."""
        dtype = field_dtype(self.prog.type("struct drm_gem_object"), {"handles": "handle_count"})
        structs, _ = read_structs(self.prog, gems, dtype)
        has = structs["handles"] > 0
        return (
            [gem for gem, yes in zip(gems, has) if yes],
            [gem for gem, yes in zip(gems, has) if not yes],
        )

    def _gems_by_operations(self) -> Tuple[Set[int], Set[int]]:
        """Addresses of GEM objects that are used, and of those that are being freed."""
        found = found_fences(self.index).gems
        if found is None:
            return set(), set()
        gem_type = self.prog.type("struct drm_gem_object")
        members = {"refcount": "refcount.refcount.refs.counter"}
        structs = as_structs(found.structs, field_dtype(gem_type, members))
        alive = structs["refcount"].astype(np.int32) > 0
        return set(found.address[alive].tolist()), set(found.address[~alive].tolist())

    def _weak(self, tables: List[int]) -> None:
        """What points at dma-bufs and holds no reference."""
        words, unread = weak_words(self.prog, self.buffers)
        self.gaps += [("dma-buf", "what points at it could not be read", a) for a in unread]
        outgrown = outgrown_descriptor_words(self.prog, tables, self.buffers.file)
        # dma_buf_poll() has callbacks on fences.
        stale = stale_callback_words(self.prog, found_fences(self.index).fences)
        nothing = np.zeros(0, dtype=np.uint64)
        self.holders.append(Holders("weak", nothing, np.concatenate([words, outgrown, stale])))
