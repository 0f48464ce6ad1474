# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the kernel's own leak detector, kmemleak, reports.

Where the kernel was booted with kmemleak=on, it knows every block of memory
that was allocated and by whom, and its scans look for pointers to them. This
reads its records: the objects that /sys/kernel/debug/kmemleak showed at that
moment, grouped by stack and comm (VT501). Nothing is scanned here, it is all
kmemleak's verdict; slab-leaks and dma-fences come to their own.

kmemleak sees what its last scan saw: what leaked after that, or less than 5 s
before, is not in it. It takes any word that looks like a pointer for one, so it
misses leaks, and it does not know pointers that are stored in another form, so
it can report what is in use.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import numpy.typing as npt
from drgn import Program

from vmcore_tools.analysis import Analysis, Context, ManyRows, NotApplicable, Option, Requires
from vmcore_tools.asked import number_from
from vmcore_tools.frames import stack_of_addresses
from vmcore_tools.kernel.jiffies import jiffies_age_ns
from vmcore_tools.kernel.kmemleak import (
    OBJECT_PERCPU,
    OBJECT_PHYS,
    KmemleakObjects,
    KmemleakState,
    kmemleak_objects,
    kmemleak_state,
    object_stacks,
    reported_objects,
    unreferenced_objects,
    untagged,
)
from vmcore_tools.kernel.recorded_stacks import function_behind_allocator
from vmcore_tools.kernel.slab import SlabIndex, slab_index
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
    Stack,
    column,
)
from vmcore_tools.words import plural

#: Findings, one for each stack; what takes most memory comes first.
_FINDINGS_DEFAULT = 20
#: Stacks that are shown whole; drgn takes milliseconds for each frame.
_STACKS_DEFAULT = 50
_NAMES_SHOWN = 4
_EXAMPLES_SHOWN = 4
_NO_STACK = "kmemleak has recorded none, or the stack depot does not have it"

Ints = npt.NDArray[np.int64]
Records = npt.NDArray[Any]

UNREFERENCED = Rule(
    id="VT501",
    slug="kmemleak-unreferenced",
    severity=Severity.WARNING,
    summary="kmemleak found no pointer to these blocks of memory.",
    remedy=(
        "Look at what the allocating function does with the block, and who should free it; "
        "`references ADDRESS` shows what points at one of them."
    ),
    page="""\
It is what /sys/kernel/debug/kmemleak showed when the dump was made: blocks that are
allocated, that the last scan found too few pointers to, and that were older than
5 s then. There is one finding for each allocating stack.

It is `likely`, as it is kmemleak's own verdict, which has no proof: a pointer that is
stored in another form (an offset, tagged, in memory that kmemleak does not scan) is
not seen. It is `suspected` where kmemleak has switched itself off since, as blocks
that were freed after that are still on its list, and while it scans, as what it
finds then is not known yet.""",
)


@dataclasses.dataclass(frozen=True)
class KmemleakScan:
    """How kmemleak is doing, and what its last scan says."""

    enabled: bool = column(Kind.TEXT)
    scanning: bool = column(Kind.TEXT)
    last_scan_ns: Maybe[int] = column(Kind.DURATION)
    objects: int = column(Kind.COUNT)
    objects_unreferenced: int = column(Kind.COUNT)
    objects_reported: int = column(Kind.COUNT)
    reported_bytes: int = column(Kind.BYTES)
    objects_younger: int = column(Kind.COUNT)


@dataclasses.dataclass(frozen=True)
class UnreferencedByStack:
    """Reported objects with one stack and comm; what takes most memory comes first."""

    function: str = column(Kind.TEXT)
    comm: str = column(Kind.SENSITIVE)
    pids: int = column(Kind.COUNT)
    objects: int = column(Kind.COUNT)
    size_bytes: int = column(Kind.BYTES)
    oldest_ns: Maybe[int] = column(Kind.DURATION)
    newest_ns: Maybe[int] = column(Kind.DURATION)
    example: int = column(Kind.ADDRESS)
    stack: Maybe[str] = column(Kind.STACK)


@dataclasses.dataclass(frozen=True)
class UnreferencedObject:
    """A reported object, in the order of kmemleak's list."""

    address: int = column(Kind.ADDRESS)
    kind: str = column(Kind.TEXT)
    size_bytes: int = column(Kind.BYTES)
    cache: Maybe[str] = column(Kind.UNTRUSTED)
    comm: str = column(Kind.SENSITIVE)
    pid: int = column(Kind.PID)
    age_ns: Maybe[int] = column(Kind.DURATION)
    stack: Maybe[str] = column(Kind.STACK)


@dataclasses.dataclass(frozen=True)
class _Reported:
    """
    What kmemleak reports; the arrays have shape (n,).

    *stack* is a position in *stacks* and *functions*, or -1; *age_ns* is -1
    where it is not known.
    """

    records: Records
    age_ns: Ints
    cache: Ints
    stack: Ints
    stacks: Tuple[Tuple[int, ...], ...]
    functions: Tuple[str, ...]

    def function(self, position: int) -> str:
        return self.functions[position] if position >= 0 else "an unknown function"


def analyze(ctx: Context) -> Iterator[Any]:
    index = slab_index(ctx.prog, ctx.memory)
    state, objects = kmemleak_state(ctx.prog), kmemleak_objects(index)
    if not state.enabled and not len(objects) and objects.problem is None:
        raise NotApplicable("kmemleak is off: boot with kmemleak=on")
    shown = reported_objects(state, objects)
    reported = _reported(index, objects, objects.records[shown])
    younger = _younger(state, objects)
    _count_gaps(ctx, state, objects, younger, reported)
    yield KmemleakScan(
        enabled=state.enabled,
        scanning=state.scanning,
        last_scan_ns=_scan_age(ctx.prog, state),
        objects=len(objects),
        objects_unreferenced=int(unreferenced_objects(state, objects).sum()),
        objects_reported=len(reported.records),
        reported_bytes=int(reported.records["size"].sum()),
        objects_younger=younger,
    )
    stacks = _shown_stacks(ctx, reported)
    yield from stacks.values()
    yield from _findings(ctx, index, state, reported, stacks)
    yield from _by_stack(reported, stacks)
    yield ManyRows(UnreferencedObject, len(reported.records), _rows(index, reported, stacks))


def _reported(index: SlabIndex, objects: KmemleakObjects, records: Records) -> _Reported:
    stack, stacks = object_stacks(objects, records)
    try:
        age_ns = jiffies_age_ns(index.prog, records["jiffies"])
    except LookupError:
        age_ns = np.full(len(records), -1, dtype=np.int64)
    row = index.find(untagged(records["pointer"]))
    row[(records["flags"] & (OBJECT_PHYS | OBJECT_PERCPU)) != 0] = -1
    cache = np.where(row >= 0, index.cache[row], -1) if len(index.cache) else row
    functions = (function_behind_allocator(index.prog, found) for found in stacks)
    return _Reported(
        records,
        age_ns,
        cache,
        stack,
        stacks,
        tuple(function or "an unknown function" for function in functions),
    )


def _younger(state: KmemleakState, objects: KmemleakObjects) -> int:
    """Objects that were too young for the last scan, or are younger than it."""
    due = objects.records["jiffies"] + np.uint64(state.min_age)
    return int(((np.uint64(state.last_scan) - due).view(np.int64) < 0).sum())


def _scan_age(prog: Program, state: KmemleakState) -> Maybe[int]:
    if not state.last_scan:
        return Absent("kmemleak has not scanned yet")
    try:
        when = np.array([state.last_scan], dtype=np.uint64)
        return int(jiffies_age_ns(prog, when)[0])
    except LookupError:
        return Absent("how long a jiffy is cannot be read")


def _count_gaps(
    ctx: Context,
    state: KmemleakState,
    objects: KmemleakObjects,
    younger: int,
    reported: _Reported,
) -> None:
    if not state.last_scan:
        ctx.coverage.gap("kmemleak scan", "kmemleak has not scanned yet")
    elif younger:
        ctx.coverage.gap(
            "kmemleak object", "it is younger than the last scan", count=younger, material=False
        )
    if state.scanning:
        ctx.coverage.gap("kmemleak scan", "a scan was going on when the dump was made")
    if not state.enabled:
        ctx.coverage.gap("kmemleak scan", "kmemleak has switched itself off, and looks no more")
    if objects.problem is not None and objects.missed:
        ctx.coverage.gap(
            "kmemleak object",
            f"kmemleak's list breaks off: {objects.problem}",
            count=objects.missed,
        )
    elif objects.problem is not None and not len(objects):
        ctx.coverage.gap("kmemleak object", f"kmemleak's list breaks off: {objects.problem}")
    unknown = int((reported.stack < 0).sum())
    if unknown:
        ctx.coverage.gap("stack of a kmemleak object", _NO_STACK, count=unknown, material=False)


def _groups(*keys: npt.NDArray[Any]) -> List[Ints]:
    """The records that are alike in all keys."""
    numbers = [np.unique(key, return_inverse=True)[1].reshape(-1) for key in keys]
    order = np.lexsort(numbers)
    if not len(order):
        return []
    changes = np.logical_or.reduce([np.diff(number[order]) != 0 for number in numbers])
    return np.split(order, np.flatnonzero(changes) + 1)


def _largest_first(reported: _Reported, groups: List[Ints]) -> List[Ints]:
    def key(members: Ints) -> Tuple[int, int]:
        return -int(reported.records["size"][members].sum()), int(members.min())

    return sorted((np.sort(members) for members in groups), key=key)


def _shown_stacks(ctx: Context, reported: _Reported) -> Dict[int, Stack]:
    """By position, the stacks of what takes most memory."""
    groups = _largest_first(reported, _groups(reported.stack))
    shown = max(ctx.options["stacks"], ctx.options["findings"])
    positions = [int(reported.stack[members[0]]) for members in groups[:shown]]
    return {i: stack_of_addresses(ctx.prog, reported.stacks[i]) for i in positions if i >= 0}


def _stack_id(stacks: Dict[int, Stack], position: int) -> Maybe[str]:
    if position < 0:
        return Absent(_NO_STACK)
    if position not in stacks:
        return Absent("only for what takes most memory; more with --stacks")
    return stacks[position].id


def _comm(value: bytes) -> str:
    return value.partition(b"\0")[0].decode(errors="backslashreplace")


def _some(names: Counter[str]) -> Tuple[str, ...]:
    """The most frequent names."""
    return tuple(sorted(names, key=lambda name: (-names[name], name))[:_NAMES_SHOWN])


def _findings(
    ctx: Context,
    index: SlabIndex,
    state: KmemleakState,
    reported: _Reported,
    stacks: Dict[int, Stack],
) -> Iterator[Finding]:
    groups = _largest_first(reported, _groups(reported.stack))
    shown = ctx.options["findings"]
    for members in groups[:shown]:
        yield _finding(index, state, reported, members, stacks)
    if len(groups) > shown:
        ctx.coverage.gap(
            "stack",
            f"only the {shown} with the most memory are findings; the table has the others",
            count=len(groups) - shown,
            material=False,
        )


def _finding(
    index: SlabIndex,
    state: KmemleakState,
    reported: _Reported,
    members: Ints,
    stacks: Dict[int, Stack],
) -> Finding:
    records, position = reported.records[members], int(reported.stack[members[0]])
    function, stack = reported.function(position), stacks.get(position)
    caches = Counter(
        index.caches[number].name for number in reported.cache[members].tolist() if number >= 0
    )
    age = reported.age_ns[members]
    unread = []
    if not state.enabled:
        unread.append("what was freed after kmemleak switched itself off")
    if state.scanning:
        unread.append("what the scan that was going on would have found")
    evidence = [
        Evidence("objects", Kind.COUNT, len(members)),
        Evidence("size_bytes", Kind.BYTES, int(records["size"].sum())),
        Evidence("function", Kind.TEXT, function),
        Evidence("comms", Kind.SENSITIVE, _some(Counter(map(_comm, records["comm"].tolist())))),
        Evidence("pids", Kind.PID, tuple(np.unique(records["pid"]).tolist()[:_NAMES_SHOWN])),
        Evidence("caches", Kind.UNTRUSTED, _some(caches)),
        Evidence("last_scan_ns", Kind.DURATION, _scan_age(index.prog, state)),
        Evidence("examples", Kind.ADDRESS, tuple(records["pointer"][:_EXAMPLES_SHOWN].tolist())),
    ]
    if (age >= 0).all():
        evidence.append(Evidence("oldest_ns", Kind.DURATION, int(age.max())))
        evidence.append(Evidence("newest_ns", Kind.DURATION, int(age.min())))
    functions = [f.function for f in stack.frames] if stack is not None else [function]
    return Finding(
        rule=UNREFERENCED,
        confidence=Confidence.SUSPECTED if unread else Confidence.LIKELY,
        message=(
            f"kmemleak found no reference to {{objects}} {plural(len(records), 'object')}"
            " ({size_bytes}) that {comms} allocated in {function}."
        ),
        subject=Ref("allocation", function, int(records["pointer"][0]), name_kind=Kind.TEXT),
        evidence=tuple(evidence),
        signature_key=("kmemleak-unreferenced", *functions),
        stacks=() if stack is None else (stack.id,),
        unread=tuple(unread),
    )


def _by_stack(reported: _Reported, stacks: Dict[int, Stack]) -> Iterator[UnreferencedByStack]:
    groups = _groups(reported.stack, reported.records["comm"])
    for members in _largest_first(reported, groups):
        records, position = reported.records[members], int(reported.stack[members[0]])
        oldest, newest = (
            int(members[at(reported.age_ns[members])]) for at in (np.argmax, np.argmin)
        )
        yield UnreferencedByStack(
            function=reported.function(position),
            comm=_comm(records["comm"][0]),
            pids=len(np.unique(records["pid"])),
            objects=len(members),
            size_bytes=int(records["size"].sum()),
            oldest_ns=_age(reported, oldest),
            newest_ns=_age(reported, newest),
            example=int(records["pointer"][0]),
            stack=_stack_id(stacks, position),
        )


def _age(reported: _Reported, number: int) -> Maybe[int]:
    age = int(reported.age_ns[number])
    return age if age >= 0 else Absent("how long a jiffy is cannot be read")


def _rows(
    index: SlabIndex, reported: _Reported, stacks: Dict[int, Stack]
) -> Iterator[UnreferencedObject]:
    for number, record in enumerate(reported.records):
        cache, flags = int(reported.cache[number]), int(record["flags"])
        kind = "virtual"
        if flags & (OBJECT_PHYS | OBJECT_PERCPU):
            kind = "physical" if flags & OBJECT_PHYS else "per-CPU"
        yield UnreferencedObject(
            address=int(record["pointer"]),
            kind=kind,
            size_bytes=int(record["size"]),
            cache=index.caches[cache].name if cache >= 0 else Absent("it is no slab object"),
            comm=_comm(record["comm"]),
            pid=int(record["pid"]),
            age_ns=_age(reported, number),
            stack=_stack_id(stacks, int(reported.stack[number])),
        )


ANALYSIS = Analysis(
    name="kmemleak",
    analyze=analyze,
    tables=(KmemleakScan, UnreferencedByStack, UnreferencedObject),
    rules=(UNREFERENCED,),
    options=(
        Option(
            "findings",
            f"make findings of so many stacks (default: {_FINDINGS_DEFAULT}); all are in the table",
            number_from(0),
            default=_FINDINGS_DEFAULT,
            metavar="N",
        ),
        Option(
            "stacks",
            f"show so many stacks whole (default: {_STACKS_DEFAULT})",
            number_from(0),
            default=_STACKS_DEFAULT,
            metavar="N",
        ),
    ),
    requires=Requires(builtin=("struct kmemleak_object", "struct kmem_cache", "struct page")),
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
