# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Every slab cache: its objects, its memory, and what is damaged in it.

Like slabtop, with the numbers that /proc/slabinfo has no room for. Its
active_objs leaves out only the free objects that are on the nodes' partial
lists; the objects that are free, but kept for a CPU, count as active there.
Here `allocated` is what is really in use:

    active = allocated + free on CPUs + free on CPU partial lists
             + free elsewhere (in sheaves) + unread

SLUB merges caches of the same size: `merged_caches` were merged into this one,
and `merged_names` has their names, from /sys/kernel/slab.

KFENCE keeps a few objects in a pool of its own, a page for each: `in_kfence`
has those that are allocated, which no other number counts.

The biggest cache comes first; --sort name, objects, active, size or bytes.
SlabMemory has the Slab lines of /proc/meminfo from the kernel's own counters
next to what the slabs add up to; the difference is large kmalloc allocations,
which newer kernels count as slab memory.

It finds freelists with pointers that are no objects or that run in a circle
(VT101), slabs whose cache pointer is no cache (VT102), and slabs whose
counters disagree with their freelist (VT103). A slab that a CPU was working on
when the dump was made is left out. A slab that is damaged or not in
the dump has its objects counted as unread. Of a live target, what seems to be
damaged is read again, at one moment: a slab that changes each time is unread.

In caches with red zones or poison (booted with slub_debug=ZP, or only for some
caches: slub_debug=ZP,CACHE) it finds what was written behind objects, in front
of them, or into free ones (VT104). In others, overwritten objects are not
found, unless they are free and the free pointer was hit.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Program, ProgramFlags

from vmcore_tools.analysis import Analysis, Context, Option, Requires
from vmcore_tools.asked import one_of
from vmcore_tools.kernel.recorded_stacks import function_behind_allocator
from vmcore_tools.kernel.slab import SlabCache, SlabFault, SlabIndex, SlabProblem, slab_index
from vmcore_tools.kernel.slab_aliases import merged_names, names_of
from vmcore_tools.kernel.slab_poison import Overwritten, Part, overwritten
from vmcore_tools.kernel.slab_usage import SlabUsage, is_reclaimable, slab_usage
from vmcore_tools.kernel.slabs_at_hand import AtHand
from vmcore_tools.kernel.slub_tracks import TrackItem, has_tracks, object_tracks
from vmcore_tools.kernel.vmstat import page_counter
from vmcore_tools.model import (
    Absent,
    Confidence,
    Evidence,
    Finding,
    Kind,
    Maybe,
    Ref,
    Rule,
    Severity,
    column,
)

#: Slabs, or objects, that a finding names; the count is always whole.
_SLABS_NAMED = 8
_OBJECTS_NAMED = 8
#: Where more than half of so many objects are not as they must be, their layout is another.
_GUARDED_MIN = 8

FREELIST = Rule(
    id="VT101",
    slug="corrupt-slab-freelist",
    severity=Severity.ERROR,
    summary="The list of free objects of a slab is damaged.",
    remedy=(
        "Somebody wrote to a free object, or freed one twice. Boot with "
        "slub_debug=FZPU,<cache>, which names the object and who freed it."
    ),
    page="""\
Each free object holds the pointer to the next one. A pointer that is not the
start of an object of the same slab, or that was met before, is damage: a
write after the object was freed, a write behind the end of its neighbour, or
a second free. The pointers were decoded the way that makes sense for nearly
all slabs of the kernel (CONFIG_SLAB_FREELIST_HARDENED).""",
)
CACHE_POINTER = Rule(
    id="VT102",
    slug="slab-cache-pointer",
    severity=Severity.ERROR,
    summary="A slab page belongs to no slab cache.",
    remedy="Look at who overwrote the struct page, and at the objects of the slab for its owner.",
    page="""\
The page is marked as a slab, and its `slab_cache` pointer is none of the caches
on the kernel's list. `likely`, as a CPU that was stopped while it set up a new
slab leaves the same; more than one such slab for each CPU is damage.""",
)
COUNTERS = Rule(
    id="VT103",
    slug="slab-counters",
    severity=Severity.ERROR,
    summary="A slab's count of objects in use is not what its freelist says.",
    remedy="Look for a double free by the cache's users, and for who wrote to the struct page.",
    page="""\
Where no CPU allocates from a slab, the objects that are not on its freelist
must be as many as `inuse` of its struct page says. A slab that claims a number
of objects that no slab of its cache has is reported as well. `likely`, as on
machines without a double-word compare-and-swap a CPU could have been stopped
between the two updates.""",
)
OVERWRITTEN = Rule(
    id="VT104",
    slug="slab-object-overwritten",
    severity=Severity.ERROR,
    summary="Bytes that SLUB guards were written to: around an object, or in a free one.",
    remedy=(
        "A red zone: look at how the object's user, or its neighbour's, works out sizes and"
        " indices. Poison: look for who keeps a pointer to the object after it was freed."
    ),
    page="""\
With slub_debug=Z an object has bytes in front of it and behind it that nobody
may write to; with slub_debug=P a free object is filled with 0x6b and 0xa5, and
what is left between two objects with 0x5a. What is written there must be from a
write out of bounds or after the free. A left red zone can also have been hit by
the object in front of it.

With slub_debug=U as well, the finding names who allocated the object, and if
it is free, who freed it. A red zone that is whole, but says the opposite of the
freelist, is not reported: a CPU was about to allocate or to free the object.""",
)


@dataclasses.dataclass(frozen=True)
class Slabs:
    """A slab cache; the counts are of objects, as the analysis's page explains."""

    cache: str = column(Kind.UNTRUSTED)
    objects: int = column(Kind.COUNT)
    active: int = column(Kind.COUNT)
    allocated: int = column(Kind.COUNT)
    free_on_cpus: int = column(Kind.COUNT)
    free_on_cpu_partial: int = column(Kind.COUNT)
    free_on_nodes: int = column(Kind.COUNT)
    free_elsewhere: int = column(Kind.COUNT)
    in_kfence: int = column(Kind.COUNT)
    unread: int = column(Kind.COUNT)
    used_percent: Maybe[int] = column(Kind.NUMBER)
    object_size_bytes: int = column(Kind.BYTES)
    size_bytes: int = column(Kind.BYTES)
    slab_size_bytes: int = column(Kind.BYTES)
    objects_per_slab: int = column(Kind.COUNT)
    slabs: int = column(Kind.COUNT)
    allocated_bytes: int = column(Kind.BYTES)
    total_bytes: int = column(Kind.BYTES)
    reclaimable: bool = column(Kind.TEXT)
    merged_caches: int = column(Kind.COUNT)
    merged_names: Maybe[str] = column(Kind.UNTRUSTED)
    address: int = column(Kind.ADDRESS)


@dataclasses.dataclass(frozen=True)
class SlabMemory:
    """A line of /proc/meminfo, and what the slabs that were found add up to."""

    line: str = column(Kind.TEXT)
    meminfo_bytes: Maybe[int] = column(Kind.BYTES)
    counted_bytes: Maybe[int] = column(Kind.BYTES)
    in_slabs_bytes: int = column(Kind.BYTES)
    not_in_slabs_bytes: Maybe[int] = column(Kind.BYTES)


def analyze(ctx: Context) -> Iterator[Any]:
    index = slab_index(ctx.prog, ctx.memory)
    usage = slab_usage(index, ctx.progress)
    _count_gaps(ctx, index, usage)
    yield from _findings(ctx.prog, index, usage)
    yield from _overwritten_findings(ctx, index)
    merged = merged_names(ctx.prog)
    rows = [_row(index, usage, merged, number) for number in range(len(index.caches))]
    yield from sorted(rows, key=_ORDERS[ctx.options["sort"]])
    yield from _slab_memory(ctx, rows)


def _row(
    index: SlabIndex,
    usage: SlabUsage,
    merged: Optional[Dict[int, Tuple[str, ...]]],
    number: int,
) -> Slabs:
    cache = index.caches[number]
    objects = int(usage.objects[number])
    order_objects = max(cache.orders)
    page_size = index.memory.page_map.page_size_bytes
    return Slabs(
        cache=cache.name,
        objects=objects,
        active=int(usage.active[number]),
        allocated=int(usage.allocated[number]),
        free_on_cpus=int(usage.free_on_cpus[number]),
        free_on_cpu_partial=int(usage.free_on_cpu_partial[number]),
        free_on_nodes=int(usage.free_on_nodes[number]),
        free_elsewhere=int(usage.free_elsewhere[number]),
        in_kfence=int(usage.in_kfence[number]),
        unread=int(usage.unread[number]),
        used_percent=(
            int(usage.allocated[number]) * 100 // objects if objects else Absent("no objects")
        ),
        object_size_bytes=cache.object_size_bytes,
        size_bytes=cache.size_bytes,
        slab_size_bytes=page_size << cache.orders[order_objects],
        objects_per_slab=order_objects,
        slabs=int(usage.slabs[number]),
        allocated_bytes=int(usage.allocated[number]) * cache.size_bytes,
        total_bytes=int(usage.size_bytes[number]),
        reclaimable=is_reclaimable(cache),
        merged_caches=max(0, cache.cache.refcount.value_() - 1),
        merged_names=_merged_names(cache, merged),
        address=cache.cache.value_(),
    )


def _merged_names(cache: SlabCache, merged: Optional[Dict[int, Tuple[str, ...]]]) -> Maybe[str]:
    if merged is None or not hasattr(cache.cache, "kobj"):
        return Absent("the kernel keeps no names, or they are not in the dump")
    try:
        return ", ".join(names_of(cache, merged))
    except FaultError:
        return Absent("they are not in the dump")


#: --sort to what the rows are sorted by.
_ORDERS: Dict[str, Callable[[Slabs], Tuple[Any, ...]]] = {
    "bytes": lambda row: (-row.total_bytes, row.cache, row.address),
    "objects": lambda row: (-row.objects, row.cache, row.address),
    "active": lambda row: (-row.active, row.cache, row.address),
    "size": lambda row: (-row.size_bytes, row.cache, row.address),
    "name": lambda row: (row.cache, row.address),
}


def _slab_memory(ctx: Context, rows: Sequence[Slabs]) -> Iterator[SlabMemory]:
    page_size = ctx.memory.page_map.page_size_bytes
    lines = []
    for line, item, reclaimable in (
        ("SReclaimable", "NR_SLAB_RECLAIMABLE", True),
        ("SUnreclaim", "NR_SLAB_UNRECLAIMABLE", False),
    ):
        in_slabs = sum(row.total_bytes for row in rows if row.reclaimable is reclaimable)
        shown: Maybe[int]
        counted: Maybe[int]
        difference: Maybe[int]
        try:
            counter = page_counter(ctx.prog, _counter_name(ctx.prog, item))
            shown, counted = counter.shown * page_size, counter.exact * page_size
            difference = counted - in_slabs
        except (FaultError, LookupError) as error:
            shown = counted = difference = Absent(f"the counter cannot be read: {error}")
            ctx.coverage.gap("page counter", f"it cannot be read: {error}")
        lines.append(SlabMemory(line, shown, counted, in_slabs, difference))
    first, second = lines
    yield SlabMemory(
        "Slab",
        _sum(first.meminfo_bytes, second.meminfo_bytes),
        _sum(first.counted_bytes, second.counted_bytes),
        first.in_slabs_bytes + second.in_slabs_bytes,
        _sum(first.not_in_slabs_bytes, second.not_in_slabs_bytes),
    )
    yield from lines


def _counter_name(prog: Program, item: str) -> str:
    # d42f3245c7e2 ("mm: memcg: convert vmstat slab counters to bytes") in v5.9.
    try:
        prog.constant(item + "_B")
    except LookupError:
        return item
    return item + "_B"


def _sum(first: Maybe[int], second: Maybe[int]) -> Maybe[int]:
    if isinstance(first, Absent):
        return first
    return second if isinstance(second, Absent) else first + second


def _count_gaps(ctx: Context, index: SlabIndex, usage: SlabUsage) -> None:
    if index.unread_page_structs:
        ctx.coverage.gap("struct page", "it is not in the dump", count=index.unread_page_structs)
    for problem in index.problems:
        if problem.fault in (SlabFault.UNREAD, SlabFault.CACHE_LIST, SlabFault.CHANGING):
            ctx.coverage.gap("slab", problem.reason, problem.address)
        else:
            ctx.coverage.gap("slab", "it is damaged, as a finding says", problem.address)
    for broken in usage.broken:
        ctx.coverage.gap("list of slabs", broken.reason, broken.address)
    for number, cache in enumerate(index.caches):
        lost = int(usage.kernel_slabs[number] - usage.slabs[number])
        if lost > 0:
            ctx.coverage.gap(
                "slab", "the kernel counts it, but it was not found", cache.cache.value_(),
                count=lost,
            )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Damage:
    """A damaged slab: its address, and what is wrong."""

    rule: Rule
    cache: str
    address: int
    reason: str


_RULES = {
    SlabFault.FREELIST: FREELIST,
    SlabFault.CACHE_POINTER: CACHE_POINTER,
    SlabFault.OBJECTS: COUNTERS,
}


def _findings(prog: Program, index: SlabIndex, usage: SlabUsage) -> Iterator[Finding]:
    damage = [_damage(problem) for problem in index.problems if problem.fault in _RULES]
    for row in usage.miscounted.tolist():
        reason = (
            f"{int(index.inuse[row])} objects are in use by its counter,"
            f" {int(usage.in_use[row])} by its freelist, of {int(index.objects[row])}"
        )
        cache = index.caches[index.cache[row]]
        damage.append(_Damage(COUNTERS, cache.name, int(index.address[row]), reason))
    if damage:
        damage = _without_slabs_at_hand(prog, index, damage)
    groups: Dict[Tuple[str, str], List[_Damage]] = {}
    for item in damage:
        groups.setdefault((item.rule.id, item.cache), []).append(item)
    for key in sorted(groups):
        yield _finding(prog, index.caches, sorted(groups[key], key=lambda d: d.address))


def _without_slabs_at_hand(prog: Program, index: SlabIndex, damage: List[_Damage]) -> List[_Damage]:
    """
    Leave out the slabs that a CPU was working on when the dump was made.

    Such a slab is in the middle of a change: one that is being set up has no
    counters yet. The code that does it has the slab's page structure or its
    memory in a register or on its stack.
    """
    at_hand = AtHand(prog)
    page_size = index.memory.page_map.page_size_bytes
    orders = {cache.name: max(cache.orders.values(), default=0) for cache in index.caches}
    settled = []
    for item in damage:
        start = item.address // page_size * page_size
        size = page_size << orders.get(item.cache, 0)
        if not at_hand.has_page_struct(start) and not at_hand.has(start, size):
            settled.append(item)
    return settled


def _overwritten_findings(ctx: Context, index: SlabIndex) -> Iterator[Finding]:
    for found in overwritten(index, ctx.progress):
        cache = index.caches[found.cache]
        if found.checked >= _GUARDED_MIN and 2 * len(found.object) > found.checked:
            reason = f"the {found.part.value} of {cache.name} is not where it should be"
            ctx.coverage.gap("guarded bytes", reason, cache.cache.value_(), count=found.checked)
            continue
        which = np.flatnonzero(_settled(index, found))
        if len(which):
            yield _overwritten_finding(ctx, index, found, which)


def _settled(index: SlabIndex, found: Overwritten) -> npt.NDArray[np.bool_]:
    """Which objects are in no slab that a CPU was setting up, which has many such objects."""
    rows, counts = np.unique(found.row, return_counts=True)
    new = rows[2 * counts >= index.objects[rows]]
    if len(new):
        at_hand = AtHand(index.prog)
        new = new[[at_hand.has_page_struct(int(index.address[row])) for row in new]]
    return ~np.isin(found.row, new)


def _overwritten_finding(
    ctx: Context, index: SlabIndex, found: Overwritten, which: npt.NDArray[np.int64]
) -> Finding:
    cache, first = index.caches[found.cache], int(which[0])
    named = which[:_OBJECTS_NAMED]
    states = tuple("allocated" if found.allocated[i] else "free" for i in named)
    live = bool(ctx.prog.flags & ProgramFlags.IS_LIVE)
    one = "the {first_state} object at {first_object} of {cache} was overwritten:"
    many = "{objects} objects of {cache} was overwritten, first that of {first_object}:"
    message = "The {part} of " + (one if len(which) == 1 else many)
    message += (
        " {length_bytes} from {first_byte} on, which begin with {found} instead of {expected}."
    )
    functions = tuple(_functions(index, found, which))
    return Finding(
        rule=OVERWRITTEN,
        confidence=Confidence.SUSPECTED if live else Confidence.PROVEN,
        message=message,
        subject=Ref("slab object", cache.name, int(found.object[first])),
        evidence=(
            Evidence("cache", Kind.UNTRUSTED, cache.name),
            Evidence("part", Kind.TEXT, found.part.value),
            Evidence("objects", Kind.COUNT, len(which)),
            Evidence("checked", Kind.COUNT, found.checked),
            Evidence("first_object", Kind.ADDRESS, int(found.object[first])),
            Evidence("first_state", Kind.TEXT, states[0]),
            Evidence("first_byte", Kind.ADDRESS, int(found.first[first])),
            Evidence("length_bytes", Kind.BYTES, int(found.length[first])),
            Evidence("found", Kind.UNTRUSTED, f"0x{int(found.found[first]):02x}"),
            Evidence("expected", Kind.UNTRUSTED, f"0x{int(found.expected[first]):02x}"),
            Evidence("object_addresses", Kind.ADDRESS, tuple(found.object[named].tolist())),
            Evidence("object_states", Kind.TEXT, states),
            Evidence("first_bytes", Kind.ADDRESS, tuple(found.first[named].tolist())),
            Evidence("lengths_bytes", Kind.BYTES, tuple(found.length[named].tolist())),
            *functions,
        ),
        signature_key=(cache.name, found.part.value),
        clues=_first_function(functions),
        related=(Ref("slab cache", cache.name, cache.cache.value_()),),
        unread=("what the kernel changed while it was read",) if live else (),
    )


def _functions(
    index: SlabIndex, found: Overwritten, which: npt.NDArray[np.int64]
) -> Iterator[Evidence]:
    """Who allocated the objects, and who freed those that are free, from SLUB tracks."""
    if found.part is Part.SLAB_PADDING or not has_tracks(index.caches[found.cache]):
        return
    free = which[~found.allocated[which]]
    for name, item, objects in (
        ("allocated_by", TrackItem.ALLOC, which),
        ("freed_by", TrackItem.FREE, free),
    ):
        if not len(objects):
            continue
        tracks = object_tracks(index, found.cache, found.object[objects], item)
        counts = np.bincount(tracks.stack[tracks.stack >= 0], minlength=len(tracks.stacks))
        stacks = [tracks.stacks[i] for i in np.argsort(-counts, kind="stable")]
        names = [function_behind_allocator(index.prog, stack) for stack in stacks]
        known = tuple(dict.fromkeys(name for name in names if name))
        if known:
            yield Evidence(name, Kind.TEXT, known[:_OBJECTS_NAMED])


def _first_function(functions: Sequence[Evidence]) -> Optional[Tuple[str, ...]]:
    """The function that allocated most of the objects."""
    for item in functions:
        if item.name == "allocated_by" and isinstance(item.value, tuple):
            return (str(item.value[0]),)
    return None


def _damage(problem: SlabProblem) -> _Damage:
    return _Damage(_RULES[problem.fault], problem.cache, problem.address, problem.reason)


def _finding(prog: Program, caches: Sequence[SlabCache], group: List[_Damage]) -> Finding:
    first = group[0]
    named = group[:_SLABS_NAMED]
    live = bool(prog.flags & ProgramFlags.IS_LIVE)
    confidence = Confidence.PROVEN if first.rule is FREELIST else Confidence.LIKELY
    if len(group) == 1:
        message = "The slab at {slab_addresses}" + (" of {cache}" if first.cache else "")
        message += " is damaged: {reasons}."
    else:
        message = "{slabs} slabs" + (" of {cache}" if first.cache else "")
        message += " are damaged, the first of them at {first_address}: {first_reason}."
    return Finding(
        rule=first.rule,
        confidence=Confidence.SUSPECTED if live else confidence,
        message=message,
        subject=Ref("slab", first.cache, first.address),
        evidence=(
            Evidence("cache", Kind.UNTRUSTED, first.cache or Absent("it is not known")),
            Evidence("slabs", Kind.COUNT, len(group)),
            Evidence("first_address", Kind.ADDRESS, first.address),
            Evidence("first_reason", Kind.UNTRUSTED, first.reason),
            Evidence("slab_addresses", Kind.ADDRESS, tuple(d.address for d in named)),
            Evidence("reasons", Kind.UNTRUSTED, tuple(d.reason for d in named)),
        ),
        signature_key=(first.cache,),
        related=tuple(
            Ref("slab cache", cache.name, cache.cache.value_())
            for cache in caches
            if cache.name == first.cache
        ),
        unread=("what the kernel changed while it was read",) if live else (),
    )


ANALYSIS = Analysis(
    name="slabs",
    analyze=analyze,
    tables=(Slabs, SlabMemory),
    rules=(FREELIST, CACHE_POINTER, COUNTERS, OVERWRITTEN),
    options=(
        Option(
            "sort",
            f"sort the caches by {', '.join(_ORDERS)} (default: bytes)",
            one_of(_ORDERS),
            default="bytes",
            metavar="ORDER",
        ),
    ),
    requires=Requires(builtin=("struct kmem_cache",), symbols=("slab_caches",)),
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
