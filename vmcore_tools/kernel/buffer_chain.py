# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What keeps a buffer: the links of fences, GEM objects, dma-bufs, DRM files and processes.

All is read in bulk once; the links of a node are looked up when it is asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from collections import Counter
from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object
from drgn.helpers import ValidationError

from vmcore_tools.kernel.audit import (
    Verdict,
    count_holders,
    slots_around,
    verdicts_of_counts,
)
from vmcore_tools.kernel.dma_buf import DmaBufs, dma_bufs
from vmcore_tools.kernel.dma_buf_holders import DmaBufHolders, dma_buf_holders
from vmcore_tools.kernel.dma_fence import reserved_fences
from vmcore_tools.kernel.drm import for_each_plane
from vmcore_tools.kernel.files import (
    FileReferences,
    descriptors,
    file_counts,
    files_structs,
    mappings_of,
    mm_users,
)
from vmcore_tools.kernel.found_fences import found_fences
from vmcore_tools.kernel.gem_holders import GemHolders, gem_holders
from vmcore_tools.kernel.lists import for_each_entry
from vmcore_tools.kernel.scm_rights import files_in_flight
from vmcore_tools.kernel.slab import SlabIndex
from vmcore_tools.kernel.sync_file import for_each_sync_file
from vmcore_tools.kernel.task import find_task, process_of

U64 = npt.NDArray[np.uint64]

#: Framebuffers of one file; a damaged list must end.
_LIST_MAX = 1_000_000


class What(enum.Enum):
    """Kinds of nodes; the C type that their address is of."""

    FENCE = "struct dma_fence"
    GEM = "struct drm_gem_object"
    DMA_BUF = "struct dma_buf"
    SYNC_FILE = "struct sync_file"
    DRM_FILE = "struct drm_file"
    SOCKET = "struct unix_sock"
    FRAMEBUFFER = "struct drm_framebuffer"
    PLANE = "struct drm_plane"
    CONSOLE = "struct drm_client_buffer"
    COMMAND = "struct virtio_gpu_vbuffer"
    ANSWERED = "struct virtio_gpu_object_array"
    ATTACHMENT = "struct dma_buf_attachment"
    PROCESS = "struct task_struct"


@dataclasses.dataclass(frozen=True)
class Node:
    """A thing; of a process the task that leads it."""

    what: What
    address: int


@dataclasses.dataclass(frozen=True)
class Link:
    """
    One thing is kept by another.

    :ivar why: fits between their names: ``is fd 5 of``
    :ivar kind: of the reference, as the audit calls it
    :ivar word: the address of the pointer: two links can be one reference
    :ivar sure: False where the keeper may be about to let go of it
    """

    kept: Node
    keeper: Node
    why: str
    kind: str = dataclasses.field(default="", compare=False)
    word: int = dataclasses.field(default=0, compare=False)
    sure: bool = dataclasses.field(default=True, compare=False)


@dataclasses.dataclass(frozen=True)
class _SyncFiles:
    """Arrays of shape (n,): ``struct sync_file``, its fence and its ``struct file``."""

    address: U64
    fence: U64
    file: U64


@dataclasses.dataclass(frozen=True)
class _Counts:
    """
    References by the audit.

    :ivar position: of each object by its address
    :ivar holders: kind to int64 array of shape (n,)
    :ivar left: int64 array of shape (n,): without a holder
    """

    position: Dict[int, int]
    holders: Dict[str, npt.NDArray[np.int64]]
    left: npt.NDArray[np.int64]


class BufferChains:
    """
    The links between all that is found.

    :ivar gaps: what could not be walked: what, why, and the address of it if known
    """

    def __init__(self, index: SlabIndex) -> None:
        """
        :raises LookupError: without the debug info of dma_fence, dma-buf or DRM
        """
        self.index = index
        self.prog = index.prog
        self.holders: Optional[DmaBufHolders] = dma_buf_holders(index)
        self.buffers: DmaBufs = self.holders.buffers if self.holders else dma_bufs(index)
        self.gems: GemHolders = gem_holders(index)
        self.gaps = [*self.gems.gaps, *(self.holders.gaps if self.holders else ())]
        self._reservation_of_gem = self._reservations()
        self._sync_files = self._all_sync_files()
        self._drm_files = {
            file.value_(): file
            for device in self.gems.devices
            for file in (*device.files, *device.internal_files)
        }
        self._users = self.holders.users if self.holders else files_structs(index)
        self._file_of_drm_file = self._drm_file_files()
        others = {*self._sync_files.file.tolist(), *self._file_of_drm_file.values()} - {0}
        files = np.array(sorted(others), dtype=np.uint64)
        self._opened_by = [descriptors(self.prog, list(self._users), files)]
        self._mapped_by = [mappings_of(index, "vm_file", files)]
        self._sent_to: List[FileReferences] = []
        with contextlib.suppress(LookupError):  # a kernel without unix sockets
            self._sent_to.append(files_in_flight(index, files)[0])
        if self.holders is not None:
            self._opened_by.append(self.holders.descriptors)
            self._mapped_by.append(self.holders.mappings)
            self._sent_to.append(self.holders.messages)
        self._framebuffers, self._planes = self._all_framebuffers()
        self._gems_of_reservation: Dict[int, List[int]] = {}
        for gem, reservation in self._reservation_of_gem.items():
            self._gems_of_reservation.setdefault(reservation, []).append(gem)
        self._fences_known = frozenset(found_fences(index).fences.found.address.tolist())
        self._spaces: Dict[int, Object] = {}
        self._audited: Dict[What, _Counts] = {}

    # What is asked for.

    def at(self, address: int) -> Optional[Node]:
        """The thing that has an address in it, its memory block or its file."""
        fences = found_fences(self.index).fences.found
        gems = self.gems.gems
        exact: List[Tuple[What, U64, U64]] = [
            (What.DMA_BUF, self.buffers.address, self.buffers.address),
            (What.DMA_BUF, self.buffers.file, self.buffers.address),
            (What.GEM, gems.container, gems.address),
            (What.FENCE, fences.container, fences.address),
            (What.SYNC_FILE, self._sync_files.address, self._sync_files.address),
            (What.SYNC_FILE, self._sync_files.file, self._sync_files.address),
        ]
        files = np.array(sorted(self._drm_files), dtype=np.uint64)
        exact.append((What.DRM_FILE, files, files))
        (start,), _ = slots_around(self.index, np.array([address], dtype=np.uint64))
        for what, containers, addresses in exact:
            # Several can be in one block: the last one that begins before the address.
            near = np.flatnonzero((containers >= start) & (containers <= np.uint64(address)))
            if not len(near):
                continue
            starts, _ = slots_around(self.index, containers[near])
            near = near[starts == start]
            before = near[addresses[near] <= np.uint64(address)]
            if len(before) or len(near):
                return Node(what, int(addresses[(before if len(before) else near)[-1]]))
        return None

    def process(self, pid: int) -> Optional[Node]:
        """The process of a PID, that of any of its threads."""
        task = find_task(self.prog, pid)
        return self._process(task) if task else None

    # Links.

    def keepers(self, node: Node) -> Iterator[Link]:
        """What keeps a thing."""
        found = {
            What.FENCE: self._keepers_of_fence,
            What.GEM: self._keepers_of_gem,
            What.DMA_BUF: self._keepers_of_dma_buf,
            What.SYNC_FILE: self._keepers_of_sync_file,
            What.DRM_FILE: self._keepers_of_drm_file,
            What.FRAMEBUFFER: self._keepers_of_framebuffer,
        }.get(node.what)
        return iter(()) if found is None else found(node)

    def kept(self, node: Node) -> Iterator[Link]:
        """What a thing keeps."""
        found = {
            What.GEM: self._kept_by_gem,
            What.DMA_BUF: self._kept_by_dma_buf,
            What.SYNC_FILE: self._kept_by_sync_file,
            What.DRM_FILE: self._kept_by_drm_file,
            What.FRAMEBUFFER: self._kept_by_framebuffer,
            What.PROCESS: self._kept_by_process,
        }.get(node.what)
        return iter(()) if found is None else found(node)

    def not_drawn(self, node: Node, links: Sequence[Link]) -> int:
        """
        References to a thing beyond those of its keepers: of holders that are not known.

        :param links: all to its keepers
        """
        words: Dict[str, Set[int]] = {}
        for link in links:
            words.setdefault(link.kind, set()).add(link.word)
        if node.what not in (What.GEM, What.DMA_BUF):
            drawn = len(set().union(*words.values()))
            return max(self._refcount(node) - drawn, 0)
        audited = self._counts(node.what)
        at = audited.position.get(node.address)
        if at is None:
            return 0
        # A framebuffer can count as a handle.
        handles = {*words.get("handle", ()), *words.get("framebuffer", ())}
        words["handle"] = {0} if handles else set()
        return int(audited.left[at]) + sum(
            max(int(held[at]) - len(words.get(kind, ())), 0)
            for kind, held in audited.holders.items()
        )

    def _counts(self, what: What) -> _Counts:
        """What the audit counts of all GEM objects, or of all dma-bufs."""
        if what not in self._audited:
            described, addresses = self.gems.described, self.gems.gems.address
            if what == What.DMA_BUF and self.holders is not None:
                described, addresses = self.holders.described, self.buffers.address
            refcount = described.objects.refcount
            held, left, excess = count_holders(described.objects, described.holders)
            verdict = verdicts_of_counts(refcount, left, excess)
            # A count that cannot be, or that was stopped, is of more than its holders.
            left[np.isin(verdict, [Verdict.SATURATED, Verdict.IMPOSSIBLE])] = 1
            position = {address: i for i, address in enumerate(addresses.tolist())}
            self._audited[what] = _Counts(position, held, left)
        return self._audited[what]

    def _refcount(self, node: Node) -> int:
        """Of what is no GEM object and no dma-buf; 0 of what has none."""
        pointer = Object(self.prog, f"{node.what.value} *", value=node.address)
        try:
            if node.what == What.FENCE:
                return int(pointer.refcount.refcount.refs.counter.value_())
            if node.what == What.FRAMEBUFFER:
                return int(pointer.base.refcount.refcount.refs.counter.value_())
        except FaultError:
            return 0
        if node.what == What.SYNC_FILE:
            files = self._sync_files.file[self._sync_files.address == np.uint64(node.address)]
        elif node.what == What.DRM_FILE:
            files = np.array([self._file_of_drm_file.get(node.address, 0)], dtype=np.uint64)
        else:
            return 0
        return int(file_counts(self.prog, files[files != 0].tolist())[0].sum())

    def _keepers_of_fence(self, node: Node) -> Iterator[Link]:
        for at in np.flatnonzero(self._sync_files.fence == np.uint64(node.address)).tolist():
            sync_file = Node(What.SYNC_FILE, int(self._sync_files.address[at]))
            yield Link(node, sync_file, "is the fence of", word=sync_file.address)
        for reservation in self._reservations_with(node.address):
            slots = reserved_fences(self.prog, [reservation])
            for word in slots.word[slots.fence == np.uint64(node.address)].tolist():
                for owner in self._owners_of_reservation(reservation):
                    yield Link(node, owner, "is in the reservation object of", word=word)

    def _keepers_of_gem(self, node: Node) -> Iterator[Link]:
        address = np.uint64(node.address)
        gems, handles = self.gems, self.gems.handles
        for at in np.flatnonzero(handles.gem == address).tolist():
            file = Node(What.DRM_FILE, int(handles.file[at]))
            word = int(handles.word[at])
            yield Link(node, file, f"is handle {handles.handle[at]} of", "handle", word)
        # One that is being freed has dropped it, or is about to.
        exported = (self.buffers.priv == address) & (self.buffers.refcount > 0)
        for dma_buf in self.buffers.address[exported].tolist():
            yield Link(node, Node(What.DMA_BUF, dma_buf), "is exported as", "dma_buf", dma_buf)
        for what, kind, held, why in (
            (What.FRAMEBUFFER, "framebuffer", gems.framebuffers, "is in"),
            (What.CONSOLE, "console", gems.consoles, "is drawn into by"),
            (What.COMMAND, "command", gems.commands, "is used by"),
            (What.ANSWERED, "command", gems.answered, "waits to be let go of with"),
            (What.COMMAND, "command", gems.passing, "is in a task's hands with"),
        ):
            mine = held.gem == address
            for owner, word in zip(held.owner[mine].tolist(), held.word[mine].tolist()):
                yield Link(node, Node(what, owner), why, kind, word, held is not gems.passing)
        yield from self._mapped(node, gems.mappings.owner[gems.mappings.gem == address].tolist())

    def _keepers_of_dma_buf(self, node: Node) -> Iterator[Link]:
        if self.holders is None:
            return
        address = np.uint64(node.address)
        for file in self.buffers.file[self.buffers.address == address].tolist():
            yield from self._keepers_of_file(node, file)
        gems, entries, imports = self.holders.gems, self.holders.entries, self.holders.imports
        if gems is not None:
            alive = gems.refcount > 0
            for held, words, kind, why in (
                (gems.attached, gems.attached_word, "import", "is imported as"),
                (gems.dma_buf, gems.dma_buf_word, "gem", "is the dma-buf of"),
            ):
                mine = (held == address) & alive
                if kind == "gem":
                    mine &= gems.handles > 0
                for gem, word in zip(gems.gem[mine].tolist(), words[mine].tolist()):
                    yield Link(node, Node(What.GEM, gem), why, kind, word)
        for i in np.flatnonzero(imports.dma_buf == address).tolist():
            attached = Node(What.ATTACHMENT, int(imports.address[i]))
            yield Link(node, attached, "is imported by", "import", int(imports.word[i]))
        for i in np.flatnonzero(entries.dma_buf == address).tolist():
            remembering = Node(What.DRM_FILE, int(entries.file[i]))
            why = f"is remembered as handle {entries.handle[i]} by"
            yield Link(node, remembering, why, "prime_cache", int(entries.word[i]))

    def _keepers_of_sync_file(self, node: Node) -> Iterator[Link]:
        files = self._sync_files.file[self._sync_files.address == np.uint64(node.address)]
        for file in files.tolist():
            yield from self._keepers_of_file(node, file)

    def _keepers_of_drm_file(self, node: Node) -> Iterator[Link]:
        file = self._file_of_drm_file.get(node.address, 0)
        if file:
            yield from self._keepers_of_file(node, file)

    def _keepers_of_file(self, node: Node, file: int) -> Iterator[Link]:
        for opened in self._opened_by:
            yield from self._opened(node, opened, file)
        for mapped in self._mapped_by:
            mine = (mapped.file == np.uint64(file)) & (mapped.number > 0)
            yield from self._mapped(node, mapped.owner[mine].tolist())
        for sent in self._sent_to:
            mine = sent.file == np.uint64(file)
            for socket, word in zip(sent.owner[mine].tolist(), sent.word[mine].tolist()):
                keeper = Node(What.SOCKET, socket)
                yield Link(node, keeper, "waits in a message of", "message", word)

    def _keepers_of_framebuffer(self, node: Node) -> Iterator[Link]:
        file = self._framebuffers.get(node.address)
        if file:
            keeper = Node(What.DRM_FILE, file)
            yield Link(node, keeper, "is a framebuffer of", word=node.address)
        for plane in self._planes.get(node.address, ()):
            yield Link(node, Node(What.PLANE, plane), "is shown by", word=plane)

    def _kept_by_gem(self, node: Node) -> Iterator[Link]:
        gems = self.holders.gems if self.holders else None
        if gems is not None:
            mine = gems.gem == np.uint64(node.address)
            for held, why in (
                (gems.attached[mine], "is imported as"),
                (gems.dma_buf[mine & (gems.handles > 0)], "is the dma-buf of"),
            ):
                for address in held[np.isin(held, self.buffers.address)].tolist():
                    yield Link(Node(What.DMA_BUF, address), node, why)
        yield from self._fences(node, self._reservation_of_gem.get(node.address, 0))

    def _kept_by_dma_buf(self, node: Node) -> Iterator[Link]:
        at = np.flatnonzero(self.buffers.address == np.uint64(node.address))
        for priv in self.buffers.priv[at].tolist():
            if priv in self.gems.gems.address:
                yield Link(Node(What.GEM, priv), node, "is exported as")
        for reservation in self.buffers.reservation[at].tolist():
            if reservation not in self._gems_of_reservation:
                yield from self._fences(node, reservation)

    def _kept_by_sync_file(self, node: Node) -> Iterator[Link]:
        mine = self._sync_files.address == np.uint64(node.address)
        for fence in self._sync_files.fence[mine].tolist():
            yield Link(Node(What.FENCE, fence), node, "is the fence of")

    def _kept_by_drm_file(self, node: Node) -> Iterator[Link]:
        handles = self.gems.handles
        for at in np.flatnonzero(handles.file == np.uint64(node.address)).tolist():
            gem = Node(What.GEM, int(handles.gem[at]))
            yield Link(gem, node, f"is handle {handles.handle[at]} of")
        for framebuffer, file in self._framebuffers.items():
            if file == node.address:
                yield Link(Node(What.FRAMEBUFFER, framebuffer), node, "is a framebuffer of")

    def _kept_by_framebuffer(self, node: Node) -> Iterator[Link]:
        held = self.gems.framebuffers
        for gem in held.gem[held.owner == np.uint64(node.address)].tolist():
            yield Link(Node(What.GEM, gem), node, "is in")

    def _kept_by_process(self, node: Node) -> Iterator[Link]:
        tables = [
            table
            for table, tasks in self._users.items()
            if tasks and self._process(tasks[0]) == node
        ]
        by_file: Dict[int, Node] = {}
        for drm_file, file in self._file_of_drm_file.items():
            if file:
                by_file[file] = Node(What.DRM_FILE, drm_file)
        for nodes, addresses, what in (
            (self._sync_files.file, self._sync_files.address, What.SYNC_FILE),
            (self.buffers.file, self.buffers.address, What.DMA_BUF),
        ):
            for file, address in zip(nodes.tolist(), addresses.tolist()):
                by_file[file] = Node(what, address)
        files = np.array(sorted(by_file), dtype=np.uint64)
        opened = descriptors(self.prog, tables, files)
        for file, number in zip(opened.file.tolist(), opened.number.tolist()):
            yield Link(by_file[file], node, f"is fd {number} of")
        if self.holders is not None:
            mapped = self.holders.mappings
            for file, vma in zip(mapped.file.tolist(), mapped.owner.tolist()):
                for link in self._mapped(by_file[file], [vma]):
                    if link.keeper == node:
                        yield link

    # Parts of these.

    def _fences(self, node: Node, reservation: int) -> Iterator[Link]:
        if reservation:
            for fence in reserved_fences(self.prog, [reservation]).fence.tolist():
                # The stub fence is a variable.
                if fence not in self._fences_known:
                    continue
                yield Link(Node(What.FENCE, fence), node, "is in the reservation object of")

    def _opened(self, node: Node, opened: FileReferences, file: int) -> Iterator[Link]:
        for at in np.flatnonzero(opened.file == np.uint64(file)).tolist():
            tasks = self._users.get(int(opened.owner[at]), [])
            why, word = f"is fd {opened.number[at]} of", int(opened.word[at])
            for process in dict.fromkeys(self._process(task) for task in tasks):
                yield Link(node, process, why, "descriptor", word)

    def _mapped(self, node: Node, areas: Iterable[int]) -> Iterator[Link]:
        for area in areas:
            space = Object(self.prog, "struct vm_area_struct *", value=area).vm_mm.value_()
            if space not in self._spaces:
                self._spaces.update(mm_users(self.prog, {space}))
            if space in self._spaces:
                process = self._process(self._spaces[space])
                yield Link(node, process, "is mapped by", "mapping", area)

    def _process(self, task: Object) -> Node:
        return Node(What.PROCESS, process_of(task).value_())

    def _owners_of_reservation(self, reservation: int) -> Iterator[Node]:
        owned = self._gems_of_reservation.get(reservation, [])
        if owned:
            yield from (Node(What.GEM, gem) for gem in owned)
            return
        mine = self.buffers.reservation == np.uint64(reservation)
        yield from (Node(What.DMA_BUF, address) for address in self.buffers.address[mine].tolist())

    def _reservations_with(self, fence: int) -> List[int]:
        """The reservation objects that have a fence: halved until each is found."""
        every = {*self._reservation_of_gem.values(), *self.buffers.reservation.tolist()} - {0}
        found: List[int] = []
        pending: List[Sequence[int]] = [sorted(every)]
        while pending:
            some = pending.pop()
            if not some or fence not in reserved_fences(self.prog, some).fence:
                continue
            if len(some) == 1:
                found.append(some[0])
            else:
                pending += [some[: len(some) // 2], some[len(some) // 2 :]]
        return sorted(found)

    # All there is.

    def _reservations(self) -> Dict[int, int]:
        """GEM object to its reservation object, where that is in or of the object."""
        type_ = self.prog.type("struct drm_gem_object")
        if not type_.has_member("resv"):
            return {}  # before v5.2 the drivers had it
        found = {}
        for gem in self.gems.gems.address.tolist():
            with contextlib.suppress(FaultError):
                found[gem] = Object(self.prog, "struct drm_gem_object *", value=gem).resv.value_()
        return found

    def _drm_file_files(self) -> Dict[int, int]:
        """Each open DRM file to its ``struct file``, 0 for the kernel's own."""
        found = {}
        for address, file in self._drm_files.items():
            try:
                found[address] = file.filp.value_()
            except FaultError:
                self.gaps.append(("DRM file", "it could not be read", address))
        return found

    def _all_framebuffers(self) -> Tuple[Dict[int, int], Dict[int, List[int]]]:
        """
        Framebuffers that open files have, with the file; and all that are shown, with planes.

        A file's list has a reference to each (``drm_mode_addfb2()``), and a plane
        to the one that it shows (``drm_atomic_set_fb_for_plane()``).
        """
        files: Dict[int, int] = {}
        planes: Dict[int, List[int]] = {}
        for address, file in self._drm_files.items():
            try:
                for framebuffer in for_each_entry(
                    "struct drm_framebuffer", file.fbs.address_of_(), "filp_head", _LIST_MAX
                ):
                    files[framebuffer.value_()] = address
            except (FaultError, ValidationError) as error:
                self.gaps.append(("framebuffers", f"the walk broke off: {error}", address))
        for known in self.gems.devices:
            try:
                if not known.device.mode_config.plane_list.next:
                    continue  # without a screen
                for plane in for_each_plane(known.device):
                    # "drm: Nerf plane->fb/crtc for atomic drivers" of v4.18.
                    shown = plane.state.fb if plane.state else plane.fb
                    planes.setdefault(shown.value_(), []).append(plane.value_())
            except (FaultError, ValidationError) as error:
                why = f"the walk broke off: {error}"
                self.gaps.append(("planes", why, known.device.value_()))
        return files, planes

    def _all_sync_files(self) -> _SyncFiles:
        rows = []
        with contextlib.suppress(LookupError):  # a kernel without them
            for sync_file, file in for_each_sync_file(self.index):
                rows.append((sync_file.value_(), sync_file.fence.value_(), file.value_()))
        table = np.array(rows, dtype=np.uint64).reshape(-1, 3)
        return _SyncFiles(table[:, 0], table[:, 1], table[:, 2])


@dataclasses.dataclass(frozen=True)
class Chain:
    """
    What was found around a thing.

    :ivar nodes: in the order in which they were come upon, the thing first
    :ivar links: between them
    :ivar left_out: how many things of each kind were seen and not followed
    :ivar not_drawn: references to things beyond those of their keepers that were found
    """

    nodes: Tuple[Node, ...]
    links: Tuple[Link, ...]
    left_out: Dict[What, int]
    not_drawn: Dict[Node, int]


def chain_of(chains: BufferChains, start: Node, nodes_max: int) -> Chain:
    """
    All that a thing keeps, and all that keeps any of it.

    A process is not followed down but where it is what was asked for, nor a
    fence up: many buffers can have the same.
    """
    nodes: Dict[Node, None] = {start: None}
    links: Dict[Link, None] = {}
    left_out: Set[Node] = set()
    not_drawn: Dict[Node, int] = {}

    def follow(first: Sequence[Node], down: bool) -> None:
        queue = list(first)
        for node in queue:  # it grows
            if not down and node.what == What.FENCE and node != start:
                continue
            found = list(chains.kept(node) if down else chains.keepers(node))
            missing = 0 if down else chains.not_drawn(node, found)
            if missing:
                not_drawn[node] = missing
            for link in found:
                other = link.kept if down else link.keeper
                if other not in nodes:
                    if len(nodes) >= nodes_max:
                        left_out.add(other)
                        continue
                    nodes[other] = None
                    queue.append(other)
                links[link] = None

    follow([start], True)
    follow(list(nodes), False)
    kinds = Counter(node.what for node in left_out)
    return Chain(tuple(nodes), tuple(links), dict(kinds), not_drawn)
