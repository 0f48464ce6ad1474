# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What keeps a buffer: the links of fences, GEM objects, dma-bufs, DRM files and processes.

All is read in bulk once; the links of a node are looked up when it is asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object
from drgn.helpers.linux.pid import find_task

from vmcore_tools.kernel.audit import count_holders, slots_around
from vmcore_tools.kernel.dma_buf import DmaBufs, dma_bufs
from vmcore_tools.kernel.dma_buf_holders import DmaBufHolders, dma_buf_holders
from vmcore_tools.kernel.dma_fence import reserved_fences
from vmcore_tools.kernel.files import FileReferences, descriptors, files_structs, mm_users
from vmcore_tools.kernel.found_fences import found_fences
from vmcore_tools.kernel.gem_holders import GemHolders, gem_holders
from vmcore_tools.kernel.scm_rights import files_in_flight
from vmcore_tools.kernel.slab import SlabIndex
from vmcore_tools.kernel.sync_file import for_each_sync_file

U64 = npt.NDArray[np.uint64]


class What(enum.Enum):
    """Kinds of nodes; the C type that their address is of."""

    FENCE = "struct dma_fence"
    GEM = "struct drm_gem_object"
    DMA_BUF = "struct dma_buf"
    SYNC_FILE = "struct sync_file"
    DRM_FILE = "struct drm_file"
    SOCKET = "struct unix_sock"
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
    """

    kept: Node
    keeper: Node
    why: str


@dataclasses.dataclass(frozen=True)
class _SyncFiles:
    """Arrays of shape (n,): ``struct sync_file``, its fence and its ``struct file``."""

    address: U64
    fence: U64
    file: U64


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
        files = {*self._sync_files.file.tolist(), *self._file_of_drm_file.values()} - {0}
        self._descriptors = descriptors(
            self.prog, list(self._users), np.array(sorted(files), dtype=np.uint64)
        )
        self._gems_of_reservation: Dict[int, List[int]] = {}
        for gem, reservation in self._reservation_of_gem.items():
            self._gems_of_reservation.setdefault(reservation, []).append(gem)
        self._fences_known = frozenset(found_fences(index).fences.found.address.tolist())
        self._spaces: Dict[int, Object] = {}
        self._left: Optional[Dict[int, int]] = None

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
        }.get(node.what)
        return iter(()) if found is None else found(node)

    def kept(self, node: Node) -> Iterator[Link]:
        """What a thing keeps."""
        found = {
            What.GEM: self._kept_by_gem,
            What.DMA_BUF: self._kept_by_dma_buf,
            What.SYNC_FILE: self._kept_by_sync_file,
            What.DRM_FILE: self._kept_by_drm_file,
            What.PROCESS: self._kept_by_process,
        }.get(node.what)
        return iter(()) if found is None else found(node)

    def unexplained(self, node: Node) -> int:
        """References to a dma-buf or GEM object that no walker found a holder of."""
        if self._left is None:
            self._left = {}
            for described, addresses in (
                (self.gems.described, self.gems.gems.address),
                *([(self.holders.described, self.buffers.address)] if self.holders else []),
            ):
                left = count_holders(described.objects, described.holders)[1]
                self._left.update(zip(addresses.tolist(), left.tolist()))
        return self._left.get(node.address, 0)

    def _keepers_of_fence(self, node: Node) -> Iterator[Link]:
        for at in np.flatnonzero(self._sync_files.fence == np.uint64(node.address)).tolist():
            sync_file = Node(What.SYNC_FILE, int(self._sync_files.address[at]))
            yield Link(node, sync_file, "is the fence of")
        for reservation in self._reservations_with(node.address):
            for owner in self._owners_of_reservation(reservation):
                yield Link(node, owner, "is in the reservation object of")

    def _keepers_of_gem(self, node: Node) -> Iterator[Link]:
        address = np.uint64(node.address)
        handles = self.gems.handles
        for at in np.flatnonzero(handles.gem == address).tolist():
            file = Node(What.DRM_FILE, int(handles.file[at]))
            yield Link(node, file, f"is handle {handles.handle[at]} of")
        for at in np.flatnonzero(self.buffers.priv == address).tolist():
            yield Link(node, Node(What.DMA_BUF, int(self.buffers.address[at])), "is exported as")
        mapped = self.gems.mappings
        yield from self._mapped(node, mapped.owner[mapped.gem == address].tolist())

    def _keepers_of_dma_buf(self, node: Node) -> Iterator[Link]:
        if self.holders is None:
            return
        address = np.uint64(node.address)
        (at,) = np.flatnonzero(self.buffers.address == address).tolist()
        file = self.buffers.file[at]
        yield from self._opened(node, self.holders.descriptors, int(file))
        mapped = self.holders.mappings
        yield from self._mapped(node, mapped.owner[mapped.file == file].tolist())
        for socket in self._sockets_with(file):
            yield Link(node, Node(What.SOCKET, socket), "waits in a message of")
        gems, entries = self.holders.gems, self.holders.entries
        if gems is not None:
            for gem in gems.gem[gems.attached == address].tolist():
                yield Link(node, Node(What.GEM, gem), "is imported as")
        for i in np.flatnonzero(entries.dma_buf == address).tolist():
            remembering = Node(What.DRM_FILE, int(entries.file[i]))
            yield Link(node, remembering, f"is remembered as handle {entries.handle[i]} by")

    def _keepers_of_sync_file(self, node: Node) -> Iterator[Link]:
        files = self._sync_files.file[self._sync_files.address == np.uint64(node.address)]
        for file in files.tolist():
            yield from self._opened(node, self._descriptors, file)

    def _keepers_of_drm_file(self, node: Node) -> Iterator[Link]:
        file = self._file_of_drm_file.get(node.address, 0)
        if file:
            yield from self._opened(node, self._descriptors, file)

    def _kept_by_gem(self, node: Node) -> Iterator[Link]:
        gems = self.holders.gems if self.holders else None
        if gems is not None:
            attached = gems.attached[gems.gem == np.uint64(node.address)]
            for address in attached[attached != 0].tolist():
                dma_buf = Node(What.DMA_BUF, address)
                if address in self.buffers.address:
                    yield Link(dma_buf, node, "is imported as")
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
        mine = opened.file == np.uint64(file)
        for table, number in zip(opened.owner[mine].tolist(), opened.number[mine].tolist()):
            tasks = self._users.get(table, [])
            for process in dict.fromkeys(self._process(task) for task in tasks):
                yield Link(node, process, f"is fd {number} of")

    def _mapped(self, node: Node, areas: Iterable[int]) -> Iterator[Link]:
        for area in areas:
            space = Object(self.prog, "struct vm_area_struct *", value=area).vm_mm.value_()
            if space not in self._spaces:
                self._spaces.update(mm_users(self.prog, {space}))
            if space in self._spaces:
                yield Link(node, self._process(self._spaces[space]), "is mapped by")

    def _process(self, task: Object) -> Node:
        return Node(What.PROCESS, task.group_leader.value_())

    def _sockets_with(self, file: np.uint64) -> List[int]:
        with contextlib.suppress(LookupError):  # a kernel without unix sockets
            queued, _ = files_in_flight(self.index, np.array([file], dtype=np.uint64))
            return [int(owner) for owner in queued.owner.tolist()]
        return []

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
    :ivar left_out: things that were seen and not followed
    """

    nodes: Tuple[Node, ...]
    links: Tuple[Link, ...]
    left_out: int


def chain_of(chains: BufferChains, start: Node, nodes_max: int) -> Chain:
    """
    All that a thing keeps, and all that keeps any of it.

    A process is not followed down but where it is what was asked for, nor a
    fence up: many buffers can have the same.
    """
    nodes: Dict[Node, None] = {start: None}
    links: Dict[Link, None] = {}
    left_out: Set[Node] = set()

    def follow(first: Sequence[Node], down: bool) -> None:
        queue = list(first)
        for node in queue:  # it grows
            if not down and node.what == What.FENCE and node != start:
                continue
            for link in chains.kept(node) if down else chains.keepers(node):
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
    return Chain(tuple(nodes), tuple(links), len(left_out))
