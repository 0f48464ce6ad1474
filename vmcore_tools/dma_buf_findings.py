# SPDX-License-Identifier: LGPL-2.1-or-later
"""Findings on how dma-bufs are shared: PRIME caches that are stale, imports in a circle."""

from __future__ import annotations

import dataclasses
from typing import Dict, Iterator, List, Sequence, Set, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, ProgramFlags

from vmcore_tools.analysis import Context
from vmcore_tools.kernel.at_hand import at_hand
from vmcore_tools.kernel.audit import count_holders
from vmcore_tools.kernel.dma_buf_holders import DmaBufHolders
from vmcore_tools.kernel.drm_gem import gem_handles
from vmcore_tools.kernel.drm_prime import (
    KeptByThemselves,
    PrimeEntries,
    entries_of_other_objects,
    gem_dma_bufs,
    kept_by_themselves,
    prime_entries,
)
from vmcore_tools.kernel.files import descriptors
from vmcore_tools.kernel.page import NOT_KERNEL, direct_map_offset, page_index
from vmcore_tools.kernel.slab import ObjectState, SlabIndex
from vmcore_tools.kernel.strings import text_at
from vmcore_tools.kernel.task import process_of, task_comm
from vmcore_tools.model import Confidence, Evidence, Finding, Kind, Ref, Rule, Severity
from vmcore_tools.words import plural

U64 = npt.NDArray[np.uint64]

_TYPE = "struct dma_buf"
#: Examples, and processes, that a finding names.
_EXAMPLES_SHOWN = 4
_PROCESSES_SHOWN = 10

STALE_CACHE = Rule(
    id="VT404",
    slug="stale-prime-cache-entry",
    severity=Severity.ERROR,
    summary="An open DRM file remembers a handle of a dma-buf that is gone, or another one now.",
    remedy=(
        "Look for a dma-buf that is released, or a handle that is closed, without "
        "drm_prime_remove_buf_handle() in the drivers that are named."
    ),
    page="""\
Each open DRM file has a cache of the dma-bufs that it has handles of; an entry
holds a reference and goes with the handle. `freed` entries point to free memory,
`reused` ones to a dma-buf that their handle is not of and that has no reference
for them, or to memory that is something else now: importing that buffer gives
the process the wrong handle. `outlived` ones still have their reference, but
their handle is closed: the buffer stays until the process closes its DRM file.

Of the `outlived` ones those are left out whose buffer, entry or object a task
has on its stack or in a register: the handle may just be closed. The others
are so whatever tasks do.""",
)
IMPORT_CYCLE = Rule(
    id="VT405",
    slug="dma-buf-import-cycle",
    severity=Severity.ERROR,
    summary="dma-bufs and imported GEM objects keep each other, and nothing else keeps them.",
    remedy=(
        "Look for a driver that exports a new dma-buf of an object that it imported, or that "
        "attaches an object to a dma-buf that is made of it."
    ),
    page="""\
A dma-buf keeps the GEM object that it was exported from, and an imported object
keeps the dma-buf that it is attached to. The objects here have no handle, and
all of their references, and those of the dma-bufs, are such ones: none is ever
dropped, and their memory stays until the machine is rebooted. buffer-chain with
one of the addresses draws the circle.""",
)


@dataclasses.dataclass(frozen=True)
class _Stale:
    """Positions among the stale entries by what became of their dma-buf."""

    freed: List[int]
    reused: List[int]
    outlived: List[int]

    def __iter__(self) -> Iterator[int]:
        yield from (*self.freed, *self.reused, *self.outlived)

    def chosen(self, wanted: npt.NDArray[np.bool_]) -> _Stale:
        """Those that are wanted, by their position."""
        parts = (self.freed, self.reused, self.outlived)
        return _Stale(*([i for i in part if wanted[i]] for part in parts))


def stale_cache(ctx: Context, index: SlabIndex, holders: DmaBufHolders) -> Iterator[Finding]:
    """One finding of all entries of PRIME caches that are not of their dma-buf."""
    entries = holders.entries.chosen(holders.stale)
    stale = _stale_entries(ctx, index, holders)
    found = list(stale)
    live = bool(ctx.prog.flags & ProgramFlags.IS_LIVE)
    if live and found:
        still = _still_stale(ctx.prog, entries)
        stale = stale.chosen(still)
        found = list(stale)
    if not found:
        return
    drivers = _drivers(ctx.prog, entries.file[found])
    sure = not live and bool(stale.freed or stale.reused)
    pids, comms = _processes(ctx.prog, holders, set(entries.file[found].tolist()))
    shown = found[:_EXAMPLES_SHOWN]
    yield Finding(
        rule=STALE_CACHE,
        confidence=Confidence.PROVEN if sure else Confidence.LIKELY,
        message=_stale_message(stale),
        subject=Ref("struct drm_file", ", ".join(drivers), int(entries.file[found[0]])),
        evidence=(
            Evidence("entries", Kind.COUNT, len(found)),
            Evidence("freed", Kind.COUNT, len(stale.freed)),
            Evidence("reused", Kind.COUNT, len(stale.reused)),
            Evidence("outlived", Kind.COUNT, len(stale.outlived)),
            Evidence("pids", Kind.PID, pids),
            Evidence("comms", Kind.SENSITIVE, comms or ("an unknown process",)),
            Evidence("drivers", Kind.UNTRUSTED, drivers),
            Evidence("example_dma_bufs", Kind.ADDRESS, tuple(entries.dma_buf[shown].tolist())),
            Evidence("example_words", Kind.ADDRESS, tuple(entries.word[shown].tolist())),
            Evidence("example_handles", Kind.NUMBER, tuple(entries.handle[shown].tolist())),
        ),
        signature_key=("prime-cache", *drivers),
        unread=() if sure else ("what tasks were doing at that moment",),
    )


def _stale_entries(ctx: Context, index: SlabIndex, holders: DmaBufHolders) -> _Stale:
    entries, buffers = holders.entries.chosen(holders.stale), holders.buffers
    if not len(entries.file):
        return _Stale([], [], [])
    exact = [group for group in holders.described.holders if not group.at_most]
    left = count_holders(holders.described.objects, exact)[1]
    spare = dict(zip(buffers.address.tolist(), left.tolist()))
    alive = set(buffers.address[buffers.refcount > 0].tolist())
    states = index.object_states(entries.dma_buf).tolist()
    frames = (entries.dma_buf - np.uint64(direct_map_offset(ctx.prog))) // np.uint64(
        ctx.memory.page_map.page_size_bytes
    )
    free_page = np.isin(page_index(ctx.prog, ctx.memory).kind_of(frames), NOT_KERNEL)
    in_slab = index.find(entries.dma_buf) >= 0
    freed, reused, outlived = [], [], []
    for i, address in enumerate(entries.dma_buf.tolist()):
        if address in alive and spare[address] > 0:
            outlived.append(i)
        elif address in alive or (in_slab[i] and states[i] == ObjectState.ALLOCATED):
            reused.append(i)
        elif (in_slab[i] and states[i] == ObjectState.FREE) or (not in_slab[i] and free_page[i]):
            freed.append(i)
        elif not in_slab[i]:
            reused.append(i)
        else:
            ctx.coverage.gap("PRIME cache", "the slab of its dma-buf cannot be read", address)
    closing = _being_closed(index, holders, entries.chosen(np.array(outlived, dtype=np.int64)))
    return _Stale(freed, reused, [i for i, busy in zip(outlived, closing) if not busy])


def _being_closed(
    index: SlabIndex, holders: DmaBufHolders, entries: PrimeEntries
) -> npt.NDArray[np.bool_]:
    """
    Which entries belong to a handle that a task may just be closing.

    drm_gem_handle_delete() takes the object out of its handle first; drivers
    may wait for their device before the entry goes.
    """
    busy = at_hand(index, entries.dma_buf) | at_hand(index, entries.word)
    gems = holders.gems
    if gems is not None:
        for dma_buf in (gems.dma_buf, gems.attached):
            mine = np.flatnonzero(np.isin(dma_buf, entries.dma_buf))
            used = mine[at_hand(index, gems.gem[mine])]
            busy |= np.isin(entries.dma_buf, dma_buf[used])
    return busy


def _still_stale(prog: Program, entries: PrimeEntries) -> npt.NDArray[np.bool_]:
    """Which entries are stale when they are read once more: a live target goes on."""
    addresses = sorted(set(entries.file.tolist()))
    handles = gem_handles(Object(prog, "struct drm_file *", value=file) for file in addresses)
    named = dict(zip(zip(handles.file.tolist(), handles.handle.tolist()), handles.gem.tolist()))
    gems = gem_dma_bufs(prog, list(named.values()))
    again = prime_entries(prog, addresses)
    return np.isin(entries.word, again.word[entries_of_other_objects(again, named, gems)])


def _drivers(prog: Program, files: U64) -> Tuple[str, ...]:
    """The names of the drivers of open DRM files."""
    names: Set[str] = set()
    for address in sorted(set(files.tolist())):
        file = Object(prog, "struct drm_file *", value=address)
        try:
            names.add(text_at(prog, file.minor.dev.driver.name.value_()))
        except FaultError:
            names.add("an unknown driver")
    return tuple(sorted(names))


def _processes(
    prog: Program, holders: DmaBufHolders, drm_files: Set[int]
) -> Tuple[Tuple[int, ...], Tuple[str, ...]]:
    """PIDs and comms of the processes that have DRM files open."""
    files: List[int] = []
    for address in drm_files:
        try:
            files.append(Object(prog, "struct drm_file *", value=address).filp.value_())
        except FaultError:
            continue
    opened = descriptors(prog, list(holders.users), np.array(sorted(files), dtype=np.uint64))
    names: Dict[int, str] = {}
    for table in set(opened.owner.tolist()):
        for task in holders.users.get(table, [])[:1]:
            leader = process_of(task)
            names[leader.pid.value_()] = task_comm(leader)
    pids = sorted(names)[:_PROCESSES_SHOWN]
    return tuple(pids), tuple(sorted({names[pid] for pid in pids}))


def import_cycles(ctx: Context, holders: DmaBufHolders) -> Iterator[Finding]:
    """A finding for all circles between the same drivers."""
    if holders.gems is None:
        return
    groups: Dict[Tuple[str, ...], List[KeptByThemselves]] = {}
    for one in kept_by_themselves(holders.buffers, holders.gems):
        drivers = _drivers_of_gems(ctx.prog, holders.gems.gem[one.gem])
        groups.setdefault(drivers, []).append(one)
    for drivers, some in sorted(groups.items()):
        yield _import_cycle(ctx, holders, drivers, some)


def _stale_message(stale: _Stale) -> str:
    freed, reused, outlived = len(stale.freed), len(stale.reused), len(stale.outlived)
    parts = []
    if freed:
        parts.append(
            plural(freed, "the dma-buf of {freed} is", "the dma-bufs of {freed} are") + " freed"
        )
    if reused:
        parts.append(
            plural(reused, "that of {reused} is another one", "those of {reused} are other ones")
            + " now"
        )
    if outlived:
        keep = plural(outlived, "keeps", "keep")
        parts.append(f"{{outlived}} {keep} a dma-buf whose handle is closed")
    entries = plural(freed + reused + outlived, "entry", "entries")
    are = plural(freed + reused + outlived, "is", "are")
    text = " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)
    return f"{{entries}} {entries} of PRIME caches of {{comms}} {are} stale: {text}."


def _import_cycle(
    ctx: Context,
    holders: DmaBufHolders,
    drivers: Tuple[str, ...],
    circles: Sequence[KeptByThemselves],
) -> Finding:
    assert holders.gems is not None
    dma_bufs = np.concatenate([one.dma_buf for one in circles])
    gems = np.concatenate([one.gem for one in circles])
    addresses = holders.buffers.address[dma_bufs]
    live = bool(ctx.prog.flags & ProgramFlags.IS_LIVE)
    return Finding(
        rule=IMPORT_CYCLE,
        confidence=Confidence.LIKELY if live else Confidence.PROVEN,
        message=(
            f"{{dma_bufs}} {plural(len(dma_bufs), 'dma-buf')}, of {{size_bytes}} together, and "
            f"{{gem_objects}} {plural(len(gems), 'GEM object')} of {{drivers}} keep each other in "
            f"{{circles}} {plural(len(circles), 'circle')} of imports that nothing ends."
        ),
        subject=Ref(_TYPE, ", ".join(drivers), int(addresses[0])),
        evidence=(
            Evidence("circles", Kind.COUNT, len(circles)),
            Evidence("dma_bufs", Kind.COUNT, len(dma_bufs)),
            Evidence("gem_objects", Kind.COUNT, len(gems)),
            Evidence("size_bytes", Kind.BYTES, int(holders.buffers.size[dma_bufs].sum())),
            Evidence("drivers", Kind.UNTRUSTED, drivers),
            Evidence("examples", Kind.ADDRESS, tuple(addresses[:_EXAMPLES_SHOWN].tolist())),
            Evidence(
                "example_gem_objects",
                Kind.ADDRESS,
                tuple(holders.gems.gem[gems[:_EXAMPLES_SHOWN]].tolist()),
            ),
        ),
        signature_key=("import-cycle", *drivers),
        unread=("what changed meanwhile",) if live else (),
    )


def _drivers_of_gems(prog: Program, gems: U64) -> Tuple[str, ...]:
    names: Set[str] = set()
    for address in gems[:_PROCESSES_SHOWN].tolist():
        gem = Object(prog, "struct drm_gem_object *", value=address)
        try:
            names.add(text_at(prog, gem.dev.driver.name.value_()))
        except FaultError:
            names.add("an unknown driver")
    return tuple(sorted(names))
