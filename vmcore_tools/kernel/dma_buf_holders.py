# SPDX-License-Identifier: LGPL-2.1-or-later
"""All dma-bufs of a kernel, and all holders of them that can be walked."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Dict, List, Optional, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program
from drgn.helpers import ValidationError

from vmcore_tools.kernel.audit import Counted, Holders, Refcounted
from vmcore_tools.kernel.dma_buf import (
    Attachments,
    DmaBufs,
    attachments,
    dma_bufs,
    weak_words,
)
from vmcore_tools.kernel.dma_fence import stale_callback_words
from vmcore_tools.kernel.drm import (
    for_each_drm_device,
    for_each_drm_file,
    for_each_internal_drm_file,
)
from vmcore_tools.kernel.drm_gem import gem_handles
from vmcore_tools.kernel.drm_prime import (
    GemDmaBufs,
    PrimeEntries,
    entries_of_other_objects,
    gem_dma_bufs,
    prime_entries,
)
from vmcore_tools.kernel.files import (
    FileReferences,
    descriptors,
    files_structs,
    list_heads,
    mappings_of,
    outgrown_descriptor_words,
)
from vmcore_tools.kernel.forgotten import not_forgotten
from vmcore_tools.kernel.found_fences import found_fences
from vmcore_tools.kernel.scm_rights import files_in_flight
from vmcore_tools.kernel.slab import SlabIndex

U64 = npt.NDArray[np.uint64]

#: All kinds of holders; each is a walk below.
KINDS = ("descriptor", "message", "mapping", "gem", "import", "prime_cache")


_NOTHING = np.zeros(0, dtype=np.uint64)
_NO_ATTACHMENTS = Attachments(_NOTHING, _NOTHING, _NOTHING)
_NO_ENTRIES = PrimeEntries(_NOTHING, _NOTHING, _NOTHING, _NOTHING.astype(np.int64))


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
    :ivar messages: descriptors that wait in sockets, with the ``struct unix_sock`` as owner
    :ivar imports: attachments of other subsystems than DRM, which something points at
    :ivar gems: all GEM objects with their dma-bufs; None without DRM
    :ivar entries: of PRIME caches
    :ivar stale: bool: entries whose handle is not one of the dma-buf
    :ivar handles: (``struct drm_file``, handle) to ``struct drm_gem_object``
    :ivar gaps: what could not be walked: what, why, and the address of it if known
    """

    buffers: DmaBufs
    described: Refcounted
    descriptors: FileReferences
    mappings: FileReferences
    users: Dict[int, List[Object]]
    cache: npt.NDArray[np.int64]
    messages: FileReferences
    imports: Attachments
    gems: Optional[GemDmaBufs]
    entries: PrimeEntries
    stale: npt.NDArray[np.bool_]
    handles: Dict[Tuple[int, int], int]
    gaps: Tuple[Tuple[str, str, Optional[int]], ...]


def dma_buf_holders(index: SlabIndex) -> Optional[DmaBufHolders]:
    """
    Find all dma-bufs, and walk all that may hold one.

    :return: None if there is no dma-buf, and no open DRM file remembers one
    :raises LookupError: without the debug info of dma-buf
    """
    buffers = dma_bufs(index)
    if not len(buffers.file) and not buffers.unread and not _is_one_remembered(index.prog):
        return None
    return _Walk(index, buffers).everything()


def _is_one_remembered(prog: Program) -> bool:
    try:
        files = [file for device in for_each_drm_device(prog) for file in for_each_drm_file(device)]
        return any(file.prime.dmabufs.rb_node for file in files)
    except LookupError:
        return False  # a kernel without DRM
    except (FaultError, ValidationError):
        return True  # the walk says what is damaged


class _Walk:
    """Collects holders, and what could not be walked."""

    def __init__(self, index: SlabIndex, buffers: DmaBufs) -> None:
        self.index = index
        self.prog = index.prog
        self.buffers = buffers
        self.holders: List[Holders] = []
        self.attachments = attachments(self.prog, buffers)
        self.imports = _NO_ATTACHMENTS
        self.gems: Optional[GemDmaBufs] = None
        self.entries = _NO_ENTRIES
        self.stale = np.zeros(0, dtype=bool)
        self.handles: Dict[Tuple[int, int], int] = {}
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
        mapped = mappings_of(index, "vm_file", buffers.file)
        self.gaps += [("mapping", "it could not be read", a) for a in mapped.unread]
        in_place = mapped.number > 0
        self._files("mapping", mapped.chosen(in_place))
        # One that is in no address space drops its reference soon, or has done so.
        self._files("mapping", mapped.chosen(~in_place), at_most=True)
        queued = FileReferences.of([])
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
        return DmaBufHolders(
            buffers=buffers,
            described=described,
            descriptors=opened,
            mappings=mapped.chosen(in_place),
            users=users,
            cache=cache,
            messages=queued,
            imports=self.imports,
            gems=self.gems,
            entries=self.entries,
            stale=self.stale,
            handles=self.handles,
            gaps=tuple(self.gaps),
        )

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

    def _hold(self, kind: str, dma_buf: U64, words: U64, at_most: bool = False) -> None:
        files = self.buffers.files_of(dma_buf)
        self.holders.append(Holders(kind, files, words, at_most))

    def _gems(self) -> None:
        """GEM objects that were exported or imported, and what DRM files remember of them."""
        try:
            found = found_fences(self.index).gems
            known = set() if found is None else set(found.address.tolist())
            devices = list(for_each_drm_device(self.prog))
        except LookupError:
            self._imports(None)  # a kernel without DRM
            return
        except (FaultError, ValidationError) as error:
            self.gaps.append(("DRM devices", f"the walk broke off: {error}", None))
            devices = []
        files: List[Object] = []
        for device in devices:
            for each in (for_each_drm_file, for_each_internal_drm_file):
                try:
                    files += each(device)
                except (FaultError, ValidationError) as error:
                    why = f"the walk broke off: {error}"
                    self.gaps.append(("DRM files", why, device.value_()))
        handles = gem_handles(files)
        self.gaps += [("GEM handles", "a node could not be read", a) for a in handles.unread]
        named = zip(handles.file.tolist(), handles.handle.tolist())
        self.handles = dict(zip(named, handles.gem.tolist()))
        # Those that are in no slab are known by their handles alone.
        gems = gem_dma_bufs(self.prog, sorted(known.union(self.handles.values())))
        self.gems = gems
        self.gaps += [("GEM object", "it could not be read", address) for address in gems.unread]
        alive = gems.refcount > 0
        exported = gems.dma_buf != 0
        with_handle = exported & alive & (gems.handles > 0)
        self._hold("gem", gems.dma_buf[with_handle], gems.dma_buf_word[with_handle])
        # drm_gem_object_exported_dma_buf_free() puts the dma-buf and then clears the pointer.
        without = exported & alive & (gems.handles == 0)
        self._hold("gem", gems.dma_buf[without], gems.dma_buf_word[without], at_most=True)
        self._imports(gems)
        self._prime_caches([file.value_() for file in files], gems, not handles.unread)

    def _imports(self, gems: Optional[GemDmaBufs]) -> None:
        """
        Who is attached: an importer has a reference for as long.

        Those of GEM objects are known. Another subsystem has a pointer to its
        attachment, as a task that is just importing. One that nothing points at
        is forgotten, with its reference: nobody will detach it.
        """
        every = self.attachments
        mine = np.zeros(0, dtype=np.uint64)
        if gems is not None:
            imported = gems.attached != 0
            # drm_prime_gem_destroy() puts the dma-buf and leaves the pointers.
            for at_most, wanted in ((False, gems.refcount > 0), (True, gems.refcount <= 0)):
                chosen = imported & wanted
                self._hold("import", gems.attached[chosen], gems.attached_word[chosen], at_most)
            mine = gems.attachment
        others = np.flatnonzero(~np.isin(every.address, mine))
        known = not_forgotten(self.index, every.address[others], self._links(every.address))
        kept, forgotten = others[known], others[~known]
        self.imports = Attachments(every.address[kept], every.dma_buf[kept], every.word[kept])
        self._hold("import", self.imports.dma_buf, self.imports.word, at_most=True)
        self.holders.append(Holders("weak", _NOTHING, every.word[forgotten]))
        self.gaps += [("attachments", "the list breaks off", address) for address in every.unread]

    def _links(self, attachments: U64) -> U64:
        """The words by which attachments are in the lists of their dma-bufs."""
        type_ = self.prog.type("struct dma_buf_attachment")
        return list_heads(self.prog, attachments, type_, ["node"])[0]["node"].words

    def _prime_caches(self, files: List[int], gems: GemDmaBufs, all_handles: bool) -> None:
        entries = prime_entries(self.prog, files)
        self.gaps += [("PRIME cache", "it could not be read", a) for a in entries.unread]
        stale = entries_of_other_objects(entries, self.handles, gems)
        if not all_handles:
            # Whose handle is missing may have one that could not be read.
            stale &= ~np.isin(entries.dma_buf, self.buffers.address)
        # An entry that outlived its handle may still have its reference.
        for at_most, chosen in ((False, ~stale), (True, stale)):
            self._hold("prime_cache", entries.dma_buf[chosen], entries.word[chosen], at_most)
        self.entries, self.stale = entries, stale

    def _weak(self, tables: List[int]) -> None:
        """What points at dma-bufs and holds no reference."""
        words, unread = weak_words(self.prog, self.buffers)
        self.gaps += [("dma-buf", "what points at it could not be read", a) for a in unread]
        outgrown = outgrown_descriptor_words(self.prog, tables, self.buffers.file)
        # dma_buf_poll() has callbacks on fences.
        stale = stale_callback_words(self.prog, found_fences(self.index).fences)
        nothing = np.zeros(0, dtype=np.uint64)
        self.holders.append(Holders("weak", nothing, np.concatenate([words, outgrown, stale])))
