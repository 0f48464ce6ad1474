# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Who allocated the objects of slab caches: by stack, comm and age.

Needs a kernel that was booted with slub_debug=U (later slab_debug=U), or with
slub_debug=U,kmalloc-96 for one cache: SLUB then keeps the stack of an object's
last allocation and of its last free behind the object. It looks at allocated
objects of the ten largest caches that have such tracks, if --caches does not
name others; with --freed it shows who freed the objects in their earlier lives.

With page_owner=on it also shows who made the kernel allocate a cache's slabs,
whether the cache has tracks or not.

A comm is that of a thread that still lives and that is older than the
allocation. What an interrupt allocated is booked to the task that it
interrupted. The age is that of the jiffies at the dump.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any, Iterator, List, Sequence, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Program

from vmcore_tools.analysis import Analysis, Context, NotApplicable, Option, Requires
from vmcore_tools.asked import check_caches, comma_separated, number_from
from vmcore_tools.frames import stack_of_addresses
from vmcore_tools.kernel.page_owner import PageOwners, has_page_owner, page_owners
from vmcore_tools.kernel.recorded_stacks import function_behind_allocator
from vmcore_tools.kernel.recorded_tasks import RecordedTasks
from vmcore_tools.kernel.slab import SlabCache, SlabIndex, slab_index
from vmcore_tools.kernel.slub_tracks import TrackItem, Tracks, has_tracks, object_tracks
from vmcore_tools.model import Absent, Kind, Maybe, column

#: Caches that are looked at if none is named.
_CACHES_DEFAULT = 10
#: Stacks of each table that are shown whole if --stacks says nothing else.
_STACKS_DEFAULT = 10
#: Comms that a row names.
_COMMS_SHOWN = 4
_HOW = "boot with slub_debug=U"

Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class ObjectsByTrack:
    """Allocated objects with the same stack; what takes most memory comes first."""

    cache: str = column(Kind.UNTRUSTED)
    function: str = column(Kind.TEXT)
    objects: int = column(Kind.COUNT)
    size_bytes: int = column(Kind.BYTES)
    comms: str = column(Kind.SENSITIVE)
    pids: int = column(Kind.COUNT)
    oldest_ns: Maybe[int] = column(Kind.DURATION)
    newest_ns: Maybe[int] = column(Kind.DURATION)
    example: int = column(Kind.ADDRESS)
    stack: Maybe[str] = column(Kind.STACK)


@dataclasses.dataclass(frozen=True)
class SlabsByOwner:
    """Slabs that were allocated with the same stack, where page_owner is on."""

    cache: str = column(Kind.UNTRUSTED)
    function: str = column(Kind.TEXT)
    slabs: int = column(Kind.COUNT)
    size_bytes: int = column(Kind.BYTES)
    comms: Maybe[str] = column(Kind.SENSITIVE)
    example: int = column(Kind.ADDRESS)
    stack: Maybe[str] = column(Kind.STACK)


@dataclasses.dataclass(frozen=True)
class TrackedCache:
    """What the tracks of one cache tell, and how much of it."""

    cache: str = column(Kind.UNTRUSTED)
    objects: int = column(Kind.COUNT)
    objects_with_track: int = column(Kind.COUNT)
    stacks: int = column(Kind.COUNT)
    size_bytes: int = column(Kind.BYTES)


#: A row without its stack, and the stack's return addresses.
_Row = Tuple[Any, Tuple[int, ...]]


def analyze(ctx: Context) -> Iterator[Any]:
    index = slab_index(ctx.prog, ctx.memory)
    for problem in index.problems:
        ctx.coverage.gap("slab", problem.reason, problem.address)
    largest = _largest(ctx, index)
    with_owners = has_page_owner(ctx.prog)
    tracked = [has_tracks(cache) for cache in index.caches]
    if not any(tracked) and not with_owners:
        raise NotApplicable(f"no slab cache keeps tracks, and page_owner is off: {_HOW}")
    if ctx.options["caches"] is None:
        numbers = [number for number in largest if tracked[number]][:_CACHES_DEFAULT]
    else:
        numbers = [number for number in largest if tracked[number]]
        for number in largest:
            if not tracked[number] and not with_owners:
                ctx.coverage.gap("slab cache", f"it keeps no tracks: {_HOW}")
    caches: List[TrackedCache] = []
    by_track: List[_Row] = []
    tasks = RecordedTasks(ctx.prog)
    item = TrackItem.FREE if ctx.options["freed"] else TrackItem.ALLOC
    for number in ctx.progress(numbers, "slab caches with tracks", len(numbers)):
        try:
            tracks = object_tracks(index, number, item=item)
        except LookupError as error:
            ctx.coverage.gap("SLUB tracks", f"they cannot be read: {error}")
            continue
        cache = index.caches[number]
        _count_gaps(ctx, index, tracks, item)
        caches.append(_cache_row(cache, tracks))
        by_track += _by_track(ctx.prog, cache, tracks, tasks)
    yield from sorted(caches, key=lambda row: (-row.size_bytes, row.cache))
    yield from _with_stacks(ctx, by_track)
    if with_owners:
        yield from _with_stacks(ctx, _by_owner(ctx, index, largest, tasks))


def _largest(ctx: Context, index: SlabIndex) -> List[int]:
    """Positions of the caches that are asked for, those with the most memory first."""
    sizes = np.array([cache.size_bytes for cache in index.caches], dtype=np.int64)
    used = np.zeros(len(sizes), dtype=np.int64)
    np.add.at(used, index.cache, index.objects * sizes[index.cache])
    largest = [int(i) for i in np.argsort(-used, kind="stable") if used[i]]
    names = ctx.options["caches"]
    if names is None:
        return largest
    check_caches(ctx, index, names)
    return [i for i in largest if index.caches[i].name in names]


def _count_gaps(ctx: Context, index: SlabIndex, tracks: Tracks, item: TrackItem) -> None:
    missing = tracks.address[~tracks.read]
    in_kfence = index.in_kfence[index.find(missing)]
    if in_kfence.any():
        ctx.coverage.gap(
            "object of KFENCE's",
            "KFENCE has no record of it",
            count=int(in_kfence.sum()),
            material=False,
        )
    # An object that was never used before has no record of a free.
    if item is TrackItem.ALLOC and not in_kfence.all():
        ctx.coverage.gap(
            "SLUB track", "it is empty or not in the dump", count=int((~in_kfence).sum())
        )
    unread = int((tracks.read & (tracks.stack < 0)).sum())
    if unread:
        ctx.coverage.gap("stack of a SLUB track", "the stack depot does not have it", count=unread)


def _cache_row(cache: SlabCache, tracks: Tracks) -> TrackedCache:
    return TrackedCache(
        cache=cache.name,
        objects=len(tracks.address),
        objects_with_track=int(tracks.read.sum()),
        stacks=len(tracks.stacks),
        size_bytes=len(tracks.address) * cache.size_bytes,
    )


def _by_track(
    prog: Program, cache: SlabCache, tracks: Tracks, tasks: RecordedTasks
) -> Iterator[_Row]:
    for position, members in _groups(tracks.stack):
        stack = tracks.stacks[position]
        pid, age = tracks.pid[members], tracks.age_ns[members]
        unknown = Absent("how long a jiffy is cannot be read")
        yield (
            ObjectsByTrack(
                cache=cache.name,
                function=function_behind_allocator(prog, stack) or "an unknown function",
                objects=len(members),
                size_bytes=len(members) * cache.size_bytes,
                comms=_who(tasks, pid, age),
                pids=len(np.unique(pid)),
                oldest_ns=int(age.max()) if age.max() >= 0 else unknown,
                newest_ns=int(age.min()) if age.min() >= 0 else unknown,
                example=int(tracks.address[members[0]]),
                stack=Absent("only for the first rows; more with --stacks"),
            ),
            stack,
        )


def _groups(stack: Ints) -> Iterator[Tuple[int, Ints]]:
    """Positions of stacks, and the records that have them."""
    order = np.argsort(stack, kind="stable")
    order = order[stack[order] >= 0]
    if len(order):
        for members in np.split(order, np.flatnonzero(np.diff(stack[order])) + 1):
            yield int(stack[members[0]]), members


def _by_owner(
    ctx: Context, index: SlabIndex, numbers: Sequence[int], tasks: RecordedTasks
) -> List[_Row]:
    """The slabs of caches by who had their pages allocated."""
    page_size = ctx.memory.page_map.page_size_bytes
    slabs = np.flatnonzero(np.isin(index.cache, np.array(numbers)) & ~index.in_kfence)
    try:
        owners = page_owners(ctx.prog, ctx.memory, index.pfn[slabs].astype(np.uint64))
    except (FaultError, LookupError) as error:
        ctx.coverage.gap("page_owner", f"its records cannot be read: {error}", count=len(slabs))
        return []
    if not owners.read.all():
        ctx.coverage.gap(
            "page_owner record",
            "it is empty or not in the dump",
            count=int((~owners.read).sum()),
        )
    early = int((owners.read & (owners.stack < 0)).sum())
    if early:
        ctx.coverage.gap(
            "slab",
            "page_owner has no stack for what was allocated before it began",
            count=early,
            material=False,
        )
    rows: List[_Row] = []
    key = np.where(owners.stack >= 0, owners.stack << 32 | index.cache[slabs], -1)
    for _, members in _groups(key):
        number, stack = int(index.cache[slabs[members[0]]]), owners.stacks[owners.stack[members[0]]]
        size_bytes = int((page_size << owners.order[members]).sum())
        function = function_behind_allocator(ctx.prog, stack) or "an unknown function"
        example = int(index.address[slabs[members[0]]])
        row = SlabsByOwner(
            cache=index.caches[number].name,
            function=function,
            slabs=len(members),
            size_bytes=size_bytes,
            comms=_owners_comms(owners, members, tasks),
            example=example,
            stack=Absent("only for the first rows; more with --stacks"),
        )
        rows.append((row, stack))
    return rows


def _owners_comms(owners: PageOwners, members: Ints, tasks: RecordedTasks) -> Maybe[str]:
    if owners.comm.any():
        names = owners.comm[members].tolist()
        return _joined(Counter(name.decode(errors="backslashreplace") for name in names))
    pid = owners.pid[members]
    if (pid < 0).all():
        return Absent("this kernel's page_owner does not record the task")
    return _who(tasks, pid, np.full(len(pid), -1, dtype=np.int64))


def _with_stacks(ctx: Context, rows: List[_Row]) -> Iterator[Any]:
    rows.sort(key=lambda row: (-row[0].size_bytes, row[0].cache, row[0].example))
    shown = ctx.options["stacks"]
    for row, addresses in rows[:shown]:
        stack = stack_of_addresses(ctx.prog, addresses)
        yield stack
        yield dataclasses.replace(row, stack=stack.id)
    for row, _ in rows[shown:]:
        yield row


def _who(tasks: RecordedTasks, pids: Ints, ages_ns: Ints) -> str:
    """The comms of records, the most frequent first, and what is left without one."""
    living, ended = tasks.comms(pids, ages_ns)
    if not ended:
        return _joined(living)
    gone = f"{len(ended)} ended task{'s' if len(ended) > 1 else ''}"
    if not living and len(ended) == 1:
        gone = f"PID {next(iter(ended))}, which has ended"
    return f"{_joined(living)}, {gone}" if living else gone


def _joined(found: Counter[str]) -> str:
    """The most frequent names."""
    names = sorted(found, key=lambda name: (-found[name], name))
    text = ", ".join(names[:_COMMS_SHOWN])
    more = len(names) - _COMMS_SHOWN
    return f"{text} and {more} others" if more > 0 else text


ANALYSIS = Analysis(
    name="slab-tracks",
    analyze=analyze,
    tables=(TrackedCache, ObjectsByTrack, SlabsByOwner),
    rules=(),
    options=(
        Option(
            "caches",
            "look at these caches (default: the ten largest that have tracks)",
            comma_separated,
            metavar="A,B",
        ),
        Option("freed", "by who freed the objects in their earlier lives", bool, default=False),
        Option(
            "stacks",
            f"show the stacks of so many rows whole (default: {_STACKS_DEFAULT})",
            number_from(0),
            default=_STACKS_DEFAULT,
            metavar="N",
        ),
    ),
    requires=Requires(builtin=("struct kmem_cache", "struct page")),
    on_demand=True,
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
