# SPDX-License-Identifier: LGPL-2.1-or-later
"""The clients of DRM devices: open DRM files, the processes that have them, and who holds them."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program
from drgn.helpers.linux.pid import pid_task

from vmcore_tools.kernel.audit import Counted, Holders, Refcounted
from vmcore_tools.kernel.drm import file_process, minor_name
from vmcore_tools.kernel.files import (
    FileReferences,
    descriptors,
    file_counts,
    files_structs,
    files_with_ops,
    mappings_and_parting,
    outgrown_descriptor_words,
    watch_words,
)
from vmcore_tools.kernel.layout import field_dtype, read_structs
from vmcore_tools.kernel.scm_rights import files_in_flight
from vmcore_tools.kernel.slab import ObjectState, SlabIndex
from vmcore_tools.kernel.task import process_of

U64 = npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True)
class DrmClient:
    """
    An open DRM file.

    :ivar file: ``struct drm_file *``
    :ivar filp: address of its ``struct file``; 0 for the kernel's own
    :ivar device: address of its ``struct drm_device``
    :ivar minor: ``card0``, ``renderD128``; empty if it could not be read
    :ivar opener_pid: of the process that opened it; None if it could not be read
    :ivar opener: ``struct task_struct *``; None if that process has ended
    :ivar users: the processes that have descriptors of it, by PID
    """

    file: Object
    filp: int
    device: int
    minor: str
    opener_pid: Optional[int]
    opener: Optional[Object]
    users: Tuple[Object, ...]

    @property
    def process(self) -> Optional[Object]:
        """Whose it is: the opener's, if that has it still, or that of another user."""
        for task in self.users:
            if self.opener_pid == task.tgid.value_():
                return task
        return self.users[0] if self.users else None


@dataclasses.dataclass(frozen=True)
class DrmClients:
    """
    All clients, and what the audit is told of their files.

    :ivar clients: without the kernel's own
    :ivar closing: those whose file is being closed, or just opened
    :ivar described: its objects are the ``struct file`` of the clients
    :ivar held: address of each ``struct file`` to how many holders were found
    :ivar gaps: what could not be walked: what, why, and the address of it if known
    """

    clients: Tuple[DrmClient, ...]
    closing: Tuple[DrmClient, ...]
    described: Refcounted
    held: Dict[int, int]
    gaps: Tuple[Tuple[str, str, Optional[int]], ...]

    @property
    def without_holder(self) -> List[DrmClient]:
        """Clients whose file is open, and that no descriptor, message or mapping has."""
        alive = dict(
            zip(self.described.objects.address.tolist(), self.described.objects.refcount.tolist())
        )
        return [c for c in self.clients if alive.get(c.filp, 0) > 0 and not self.held[c.filp]]


def closing_drm_files(index: SlabIndex, device: Object, listed: U64) -> Iterator[Object]:
    """
    The files of a DRM device that are being closed, or just opened.

    ``drm_close_helper()`` takes a file off the device's list before it closes the
    handles, which lasts as long as the driver waits for the device.

    :param device: ``struct drm_device *``
    :param listed: uint64 array: the device's files that are on a list
    :return: Iterator of ``struct drm_file *``
    :raises drgn.FaultError: if something of it is not in the dump
    :raises LookupError: without the debug info of files
    """
    prog = index.prog
    fops = device.driver.fops.read_()
    if not fops:
        return
    filps = files_with_ops(index, fops[0])
    dtype = field_dtype(prog.type("struct file"), {"own": "private_data"})
    own = read_structs(prog, filps.tolist(), dtype)[0]["own"].astype(np.uint64)
    # The pointer stays when the file is gone.
    wanted = ~np.isin(own, listed) & (index.object_states(own) == ObjectState.ALLOCATED)
    for address, filp in zip(own[wanted].tolist(), filps[wanted].tolist()):
        file = Object(prog, "struct drm_file *", value=address)
        if file.filp.value_() == filp and file.minor.dev == device:
            yield file


def drm_clients(
    index: SlabIndex, files: Sequence[Object], closing: Sequence[Object] = ()
) -> DrmClients:
    """
    The clients that DRM files are of.

    :param files: ``struct drm_file *``
    :param closing: those that are being closed
    """
    prog = index.prog
    gaps: List[Tuple[str, str, Optional[int]]] = []
    filps: Dict[int, int] = {}
    for file in files:
        try:
            filps[file.value_()] = file.filp.value_()
        except FaultError:
            gaps.append(("DRM file", "it could not be read", file.value_()))
    addresses = np.unique(np.array([filp for filp in filps.values() if filp], dtype=np.uint64))
    counts, read = file_counts(prog, addresses.tolist())
    gaps += [("file", "it could not be read", a) for a in addresses[~read].tolist()]
    addresses, counts = addresses[read], counts[read]

    tables = files_structs(index)
    opened = descriptors(prog, list(tables), addresses)
    gaps += [("descriptor", "it could not be read", address) for address in opened.unread]
    used = np.array([table for table, tasks in tables.items() if tasks], dtype=np.uint64)
    in_use = np.isin(opened.owner, used)
    mapped, parting = mappings_and_parting(index, addresses)
    gaps += [("mapping", "it could not be read", address) for address in mapped.unread]
    holders = [
        _holders("descriptor", opened.chosen(in_use)),
        _holders("descriptor", opened.chosen(~in_use), at_most=True),
        _holders("mapping", mapped),
        _holders("mapping", parting, at_most=True),
    ]
    with contextlib.suppress(LookupError):  # a kernel without unix sockets
        queued, passing = files_in_flight(index, addresses)
        gaps += [("message", "it could not be read", address) for address in queued.unread]
        holders += [_holders("message", queued), _holders("message", passing, at_most=True)]
    held = dict.fromkeys(addresses.tolist(), 0)
    for group in holders:
        for address in group.held.tolist():
            held[address] += 1
    weak, unread = watch_words(prog, addresses)
    gaps += [("file", "what watches it could not be read", address) for address in unread]
    own = [f.filp.address_ for f in files if filps.get(f.value_())]
    words = np.concatenate(
        [
            weak,
            outgrown_descriptor_words(prog, list(tables), addresses),
            np.array(own, dtype=np.uint64),
        ]
    )
    holders.append(Holders("weak", np.zeros(0, dtype=np.uint64), words))

    users = _users(opened, tables)
    clients = []
    for file in files:
        filp = filps.get(file.value_())
        if filp:
            clients.append(_client(file, filp, tuple(users.get(filp, ())), gaps))
    parting_clients = [_client(file, file.filp.value_(), (), gaps) for file in closing]
    return DrmClients(
        tuple(clients),
        tuple(parting_clients),
        _described(index, addresses, counts, holders),
        held,
        tuple(gaps),
    )


def _holders(kind: str, found: FileReferences, at_most: bool = False) -> Holders:
    return Holders(kind, found.file, found.word, at_most)


def _described(
    index: SlabIndex, files: U64, counts: npt.NDArray[np.int64], holders: List[Holders]
) -> Refcounted:
    sizes = np.array([cache.object_size_bytes for cache in index.caches], dtype=np.int64)
    rows = index.find(files)
    size = np.ones(len(files), dtype=np.int64)
    size[rows >= 0] = sizes[index.cache[rows[rows >= 0]]]
    everywhere = np.ones(len(files), dtype=bool)
    objects = Counted(files, counts, files, size, np.arange(len(files)))
    return Refcounted(objects, holders, everywhere, everywhere)


def _users(opened: FileReferences, tables: Dict[int, List[Object]]) -> Dict[int, List[Object]]:
    """Address of each ``struct file`` to the processes that have descriptors of it, by PID."""
    found: Dict[int, Dict[int, Object]] = {}
    for file, table in zip(opened.file.tolist(), opened.owner.tolist()):
        for task in tables[table]:
            leader = process_of(task)
            found.setdefault(file, {})[leader.pid.value_()] = leader
    return {file: [some[pid] for pid in sorted(some)] for file, some in found.items()}


def _client(
    file: Object,
    filp: int,
    users: Tuple[Object, ...],
    gaps: List[Tuple[str, str, Optional[int]]],
) -> DrmClient:
    device, minor = 0, ""
    number: Optional[int] = None
    opener: Optional[Object] = None
    try:
        device = file.minor.dev.value_()
        minor = minor_name(file.minor)
        pid = file_process(file)
        if pid:
            number = int(pid.numbers[0].nr.value_())
            opener = _leader(file.prog_, pid)
    except FaultError:
        gaps.append(("DRM file", "its device or process could not be read", file.value_()))
    return DrmClient(file, filp, device, minor, number, opener, users)


def _leader(prog: Program, pid: Object) -> Optional[Object]:
    # PIDTYPE_PID is a thread's; from v6.1 on drm_file has the process's own.
    task = pid_task(pid, prog["PIDTYPE_PID"])
    return process_of(task) if task else None
