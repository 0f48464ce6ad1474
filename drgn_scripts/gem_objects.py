# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Every GEM object, who holds it, and what each process has of the GPU's memory.

GEM objects, the buffers of DRM drivers, are found in slab memory by their
operations or their device, so that those without a handle are found, too. The
reference count of each is compared with the holders that can be found:
handles, which count as one together, framebuffers, the dma-buf that it was
exported as, memory mappings, commands that the GPU has not finished, and the
console. Where references are left over, all of kernel memory is searched for
pointers to the object: if there are none, it leaked (VT410); what points at it
otherwise is named (VT415), unless it is a task at work. Holders without a
reference are the opposite (VT414), and worst where the GPU still uses the
buffer (VT413). DRM files that no process has any more keep all their buffers
(VT412), and a process can keep more than it needs (VT411). Of a file that is
just being closed, which can wait for the GPU, each handle may be gone or not.

It decides by holders alone, never by an object's age. What is held rightly is
no leak, however many there are.

It cannot see pointers that are not stored as they are. Of drivers other than
virtio_gpu and vgem it does not know what their commands hold: their objects
are listed, but what is left over there is judged only where nothing points at
it. Before v5.5, commands of virtio_gpu hold no GEM objects: TTM kept these.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program
from drgn.helpers import ValidationError

from vmcore_tools.analysis import Analysis, Context, ManyRows, Option, Requires
from vmcore_tools.asked import number_from
from vmcore_tools.audit_findings import count_audit_gaps
from vmcore_tools.gem_findings import (
    RULES,
    GemAudit,
    Usage,
    dangling,
    dead_clients,
    hoards,
    leaks,
    unknown_holders,
)
from vmcore_tools.kernel.audit import Verdict
from vmcore_tools.kernel.drm_clients import DrmClient, DrmClients, drm_clients
from vmcore_tools.kernel.files import mm_users
from vmcore_tools.kernel.gem_holders import KINDS, GemHolders, gem_holders
from vmcore_tools.kernel.judged import judged_drm_files, judged_gems
from vmcore_tools.kernel.layout import field_dtype, read_structs
from vmcore_tools.kernel.resource import kernel_ram
from vmcore_tools.kernel.slab import SlabIndex, slab_index
from vmcore_tools.kernel.task import process_of, task_comm
from vmcore_tools.kernel.ttm import has_ttm, ttm_buffers
from vmcore_tools.kernel.virtio_gpu import DRIVER_NAME
from vmcore_tools.kernel.virtio_gpu_objects import object_layout, pages_in_memory
from vmcore_tools.model import Absent, Kind, Maybe, column
from vmcore_tools.words import counted

Ints = npt.NDArray[np.int64]

#: Handles, mappings and commands of one object that a row names.
_USERS_SHOWN = 4
_HOARD_OBJECTS = 10_000
_HOARD_PERCENT = 50


@dataclasses.dataclass(frozen=True)
class GemObject:
    """A GEM object that lives; the ones with unexplained references come first."""

    address: int = column(Kind.ADDRESS)
    driver: str = column(Kind.UNTRUSTED)
    size_bytes: int = column(Kind.BYTES)
    refcount: int = column(Kind.COUNT)
    handle_count: int = column(Kind.COUNT)
    held_by_handle: int = column(Kind.COUNT)
    held_by_framebuffer: int = column(Kind.COUNT)
    held_by_dma_buf: int = column(Kind.COUNT)
    held_by_mapping: int = column(Kind.COUNT)
    held_by_command: int = column(Kind.COUNT)
    held_by_console: int = column(Kind.COUNT)
    unexplained: int = column(Kind.COUNT)
    verdict: str = column(Kind.TEXT)
    name: int = column(Kind.NUMBER)
    dma_buf: int = column(Kind.ADDRESS)
    imported: bool = column(Kind.TEXT)
    pages_bytes: Maybe[int] = column(Kind.BYTES)
    users: str = column(Kind.SENSITIVE)


@dataclasses.dataclass(frozen=True)
class GemClient:
    """An open DRM file; the kernel's own are left out."""

    drm_file: int = column(Kind.ADDRESS)
    minor: str = column(Kind.UNTRUSTED)
    driver: str = column(Kind.UNTRUSTED)
    opener_pid: Maybe[int] = column(Kind.PID)
    opener_comm: Maybe[str] = column(Kind.SENSITIVE)
    processes: int = column(Kind.COUNT)
    handles: int = column(Kind.COUNT)
    size_bytes: int = column(Kind.BYTES)
    pages_bytes: int = column(Kind.BYTES)


@dataclasses.dataclass(frozen=True)
class GemMemory:
    """What a process has handles of, by device; the process with most of it comes first."""

    pid: int = column(Kind.PID)
    comm: str = column(Kind.SENSITIVE)
    driver: str = column(Kind.UNTRUSTED)
    device: int = column(Kind.ADDRESS)
    drm_files: int = column(Kind.COUNT)
    objects: int = column(Kind.COUNT)
    size_bytes: int = column(Kind.BYTES)
    pages_bytes: int = column(Kind.BYTES)
    shared_bytes: int = column(Kind.BYTES)


@dataclasses.dataclass(frozen=True)
class TtmBuffer:
    """
    TTM's part of a GEM object of virtio_gpu before v5.4, with its own counts.

    The lists that it is on have references of ``list_kref``, as ``kref`` itself has.
    """

    gem_object: int = column(Kind.ADDRESS)
    buffer: int = column(Kind.ADDRESS)
    kref: int = column(Kind.COUNT)
    list_kref: int = column(Kind.COUNT)
    list_holders: int = column(Kind.COUNT)
    pages: int = column(Kind.COUNT)
    can_be_evicted: bool = column(Kind.TEXT)
    can_be_swapped: bool = column(Kind.TEXT)
    being_destroyed: bool = column(Kind.TEXT)


def analyze(ctx: Context) -> Iterator[Any]:
    index = slab_index(ctx.prog, ctx.memory)
    holders = gem_holders(index)
    audited, lost_handles = judged_gems(index, holders, ctx.progress)
    if len(lost_handles):
        ctx.coverage.gap(
            "GEM handle",
            "its object counts it, and no open file has it",
            int(holders.gems.address[lost_handles[0]]),
            count=len(lost_handles),
        )
    count_audit_gaps(ctx, index, audited, "GEM objects")
    result = GemAudit(holders, audited, _pages(ctx, holders))
    files = [file for known in holders.devices for file in known.files]
    closing = [file for known in holders.devices for file in known.closing_files]
    clients = drm_clients(index, files, closing)
    for what, why, address in (*holders.gaps, *clients.gaps):
        ctx.coverage.gap(what, why, address)
    lost = holders.without_device
    if len(lost):
        why = "its device is on no list, and so its handles were not walked"
        ctx.coverage.gap("GEM object", why, int(lost[0]), count=len(lost))
    of_file = _objects_of_files(holders)
    usages = _usages(holders, clients, of_file)

    yield from leaks(ctx, index, result)
    yield from unknown_holders(result)
    yield from dangling(index, result)
    yield from hoards(result, usages, ctx.options["hoard_objects"], _hoard_bytes(ctx))
    yield from _dead_clients(ctx, index, result, clients, of_file)
    alive = np.flatnonzero(audited.verdict != Verdict.FREEING)
    gone = len(audited.verdict) - len(alive)
    if gone:
        ctx.coverage.gap(
            "GEM object",
            "its count is 0: it is being freed, or is what is left of one in memory that "
            "something else has now",
            count=gone,
            material=False,
        )
    yield ManyRows(GemObject, len(alive), _rows(ctx.prog, result, clients, alive))
    yield ManyRows(GemClient, len(clients.clients), _clients(result, clients, of_file))
    yield ManyRows(GemMemory, len(usages), _memory(result, usages))
    if has_ttm(ctx.prog):
        buffers = ttm_rows(ctx.prog, holders)
        yield ManyRows(TtmBuffer, len(buffers), buffers)


def _pages(ctx: Context, holders: GemHolders) -> Ints:
    """Bytes of each object's pages in memory, -1 where it is not known."""
    gems = holders.gems
    pages = np.full(len(gems.address), -1, dtype=np.int64)
    for device, driver in holders.drivers.items():
        layout = object_layout(ctx.prog, driver)
        mine = np.flatnonzero(gems.device == np.uint64(device))
        if layout is None or not len(mine):
            continue
        there, read = pages_in_memory(ctx.prog, layout, gems.address[mine])
        pages[mine[read]] = np.where(there, gems.size[mine].astype(np.int64), 0)[read]
        if not read.all():
            ctx.coverage.gap("GEM object", "its pages are not known", count=int((~read).sum()))
    return pages


def _hoard_bytes(ctx: Context) -> Optional[int]:
    try:
        ram = sum(end - start for start, end in kernel_ram(ctx.prog))
    except (FaultError, LookupError, ValidationError):
        ctx.coverage.gap("size of RAM", "it cannot be read")
        return None
    return int(ram * ctx.options["hoard_percent"] // 100)


def _objects_of_files(holders: GemHolders) -> Dict[int, Ints]:
    """Address of each ``struct drm_file`` to the positions of its objects, each once."""
    handles, address = holders.handles, holders.gems.address
    if not len(address):
        return {}
    at = np.minimum(np.searchsorted(address, handles.gem), len(address) - 1)
    known = address[at] == handles.gem
    order = np.argsort(handles.file[known], kind="stable")
    files, first = np.unique(handles.file[known][order], return_index=True)
    parts = np.split(at[known][order], first[1:])
    return {file: np.unique(part) for file, part in zip(files.tolist(), parts)}


def _usages(holders: GemHolders, clients: DrmClients, of_file: Dict[int, Ints]) -> List[Usage]:
    """What each process has of each device, the most first."""
    files: Dict[Tuple[int, int], List[DrmClient]] = {}
    for client in clients.clients:
        process = client.process
        if process is not None:
            files.setdefault((process.tgid.value_(), client.device), []).append(client)
    drivers, nothing = holders.drivers, np.zeros(0, dtype=np.int64)
    usages = []
    for (pid, device), some in files.items():
        process = some[0].process
        assert process is not None
        parts = [of_file.get(client.file.value_(), nothing) for client in some]
        objects = np.unique(np.concatenate(parts))
        driver = drivers.get(device, "")
        usages.append(Usage(pid, task_comm(process), driver, device, objects, len(some)))
    return sorted(usages, key=lambda usage: (-len(usage.objects), usage.pid, usage.device))


def _dead_clients(
    ctx: Context,
    index: SlabIndex,
    result: GemAudit,
    clients: DrmClients,
    of_file: Dict[int, Ints],
) -> Iterator[Any]:
    nothing = np.zeros(0, dtype=np.int64)
    unheld = [(c, of_file.get(c.file.value_(), nothing)) for c in clients.without_holder]
    if not unheld:
        return
    files = judged_drm_files(index, clients, ctx.progress)
    addresses = clients.described.objects.address.tolist()
    position = {address: number for number, address in enumerate(addresses)}
    yield from dead_clients(result, files, position, unheld)


def _memory(result: GemAudit, usages: Sequence[Usage]) -> Iterator[GemMemory]:
    processes = np.zeros(len(result.holders.gems.address), dtype=np.int64)
    for pid in {usage.pid for usage in usages}:
        mine = [usage.objects for usage in usages if usage.pid == pid]
        processes[np.unique(np.concatenate(mine))] += 1
    for usage in usages:
        yield GemMemory(
            pid=usage.pid,
            comm=usage.comm,
            driver=usage.driver,
            device=usage.device,
            drm_files=usage.files,
            objects=len(usage.objects),
            size_bytes=result.size_bytes(usage.objects),
            pages_bytes=result.pages_bytes(usage.objects),
            shared_bytes=result.size_bytes(usage.objects[processes[usage.objects] > 1]),
        )


def _clients(
    result: GemAudit, clients: DrmClients, of_file: Dict[int, Ints]
) -> Iterator[GemClient]:
    drivers, nothing = result.holders.drivers, np.zeros(0, dtype=np.int64)
    files, counts = np.unique(result.holders.handles.file, return_counts=True)
    handles = dict(zip(files.tolist(), counts.tolist()))
    for client in clients.clients:
        address = client.file.value_()
        objects = of_file.get(address, nothing)
        pid, comm = client.opener_pid, client.opener
        yield GemClient(
            drm_file=address,
            minor=client.minor,
            driver=drivers.get(client.device, ""),
            opener_pid=pid if pid is not None else Absent("it could not be read"),
            opener_comm=Absent("it has ended") if comm is None else task_comm(comm),
            processes=len(client.users),
            handles=handles.get(address, 0),
            size_bytes=result.size_bytes(objects),
            pages_bytes=result.pages_bytes(objects),
        )


def _rows(prog: Program, result: GemAudit, clients: DrmClients, alive: Ints) -> Iterator[GemObject]:
    holders, audited = result.holders, result.audit
    gems = holders.gems
    nobody = np.zeros(len(gems.address), dtype=np.int64)
    users = _Users(prog, holders, clients)
    order = np.lexsort((gems.address[alive], -audited.excess[alive], -audited.left[alive]))
    for i in alive[order].tolist():
        held = {f"held_by_{kind}": int(audited.holders.get(kind, nobody)[i]) for kind in KINDS}
        pages = int(result.pages[i])
        yield GemObject(
            address=int(gems.address[i]),
            driver=result.driver(i),
            size_bytes=int(gems.size[i]),
            refcount=int(gems.refcount[i]),
            handle_count=int(gems.handle_count[i]),
            **held,
            unexplained=int(audited.left[i]),
            verdict=Verdict(int(audited.verdict[i])).text,
            name=int(gems.name[i]),
            dma_buf=int(gems.dma_buf[i]),
            imported=bool(gems.import_attach[i]),
            pages_bytes=pages if pages >= 0 else Absent("the driver is not known here"),
            users=users.of(int(gems.address[i])),
        )


def ttm_rows(prog: Program, holders: GemHolders) -> List[TtmBuffer]:
    """The buffers of all GEM objects of virtio_gpu's; those that could not be read are left out."""
    gems, drivers = holders.gems, holders.drivers
    devices = [device for device, driver in drivers.items() if driver == DRIVER_NAME]
    mine = gems.address[np.isin(gems.device, np.array(devices, dtype=np.uint64))]
    found = ttm_buffers(prog, mine)
    list_holders = found.list_holders
    return [
        TtmBuffer(
            gem_object=int(mine[i]),
            buffer=int(found.address[i]),
            kref=int(found.kref[i]),
            list_kref=int(found.list_kref[i]),
            list_holders=int(list_holders[i]),
            pages=int(found.pages[i]),
            can_be_evicted=bool(found.in_lru[i]),
            can_be_swapped=bool(found.in_swap[i]),
            being_destroyed=bool(found.ending[i]),
        )
        for i in np.flatnonzero(found.read).tolist()
    ]


class _Users:
    """Processes with handles and mappings of GEM objects, and commands that use them."""

    def __init__(self, prog: Program, holders: GemHolders, clients: DrmClients) -> None:
        handles = holders.handles.joined(holders.closing_handles)
        order = np.argsort(handles.gem, kind="stable")
        self._gem = handles.gem[order]
        self._file, self._handle = handles.file[order], handles.handle[order]
        self._names = {c.file.value_(): _client_name(c) for c in clients.clients}
        self._names.update((c.file.value_(), _closing_name(c)) for c in clients.closing)
        self._others: Dict[int, List[str]] = {}
        for held, where in (
            (holders.commands, "in flight"),
            (holders.answered, "that the GPU is done with"),
            (holders.passing, "that a task is queueing or taking off"),
        ):
            for gem, times in Counter(held.gem.tolist()).items():
                command = f"{counted(times, 'command')} {where}"
                self._others.setdefault(gem, []).append(command)
        self._add_mappings(prog, holders)

    def _add_mappings(self, prog: Program, holders: GemHolders) -> None:
        mapped = holders.mappings
        dtype = field_dtype(prog.type("struct vm_area_struct"), {"mm": "vm_mm"})
        structs, _ = read_structs(prog, mapped.owner.tolist(), dtype)
        spaces = structs["mm"].tolist()
        wanted: Set[int] = set(spaces)
        tasks = mm_users(prog, wanted)
        for gem, space in zip(mapped.gem.tolist(), spaces):
            name = _process(tasks[space]) if space in tasks else "a process that is exiting"
            self._others.setdefault(gem, []).append(f"{name} mapping")

    def of(self, gem: int) -> str:
        """The first ones by name."""
        first = int(np.searchsorted(self._gem, np.uint64(gem), side="left"))
        last = int(np.searchsorted(self._gem, np.uint64(gem), side="right"))
        users = [
            f"{self._names.get(file, 'the kernel')} handle {handle}"
            for file, handle in zip(
                self._file[first : min(last, first + _USERS_SHOWN)].tolist(),
                self._handle[first : min(last, first + _USERS_SHOWN)].tolist(),
            )
        ]
        others = self._others.get(gem, [])
        total = last - first + len(others)
        users = (users + others)[:_USERS_SHOWN]
        more = total - len(users)
        return ", ".join(users) + (f" and {more} more" if more > 0 else "")


def _client_name(client: DrmClient) -> str:
    if client.process is not None:
        return _process(client.process)
    return "a file that no process has"


def _closing_name(client: DrmClient) -> str:
    if client.opener is not None:
        return f"{_process(client.opener)}, which is closing its file,"
    return "a file that is being closed"


def _process(task: Object) -> str:
    """The comm and the PID of a task's process."""
    leader = process_of(task)
    return f"{task_comm(leader)} ({leader.pid.value_()})"


ANALYSIS = Analysis(
    name="gem-objects",
    analyze=analyze,
    tables=(GemObject, GemClient, GemMemory, TtmBuffer),
    rules=RULES,
    options=(
        Option(
            "hoard-objects",
            "GEM objects of a device that are too many for a process",
            number_from(1),
            _HOARD_OBJECTS,
            "N",
        ),
        Option(
            "hoard-percent",
            "per cent of RAM in buffers that are too much for a process",
            number_from(1),
            _HOARD_PERCENT,
            "N",
        ),
    ),
    requires=Requires(types=("struct drm_gem_object", "struct drm_file"), module="drm"),
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
