# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Slab objects of any type that nothing reachable points at: garbage, never freed.

Like the kernel's kmemleak, but on a dump of any kernel, and by reachability:
from what the kernel can start at (its own and its modules' data, per-CPU
memory, live parts of stacks, registers, vmalloc areas, page structures, all
other pages that the kernel has) pointers are followed from object to object.
What is never reached is leaked, objects that point at each other included;
objects_pointed_at tells how many of a row another leaked object points at: the
others are where the leak began. Every aligned word counts as a pointer, to
anywhere in an object. No pointers are: free objects, allocator metadata, dead
parts of stacks, page tables, kmemleak's own lists.

The objects of the kmalloc caches are judged, or those of --caches; the objects
of all other caches are taken for reachable. They are grouped by type and, where
SLUB tracks are on (slub_debug=U), by the stack that allocated them.

A stray word that looks like a pointer hides a leak: the count is a lower
bound. What is stored in other ways makes a false one: an address that only a
device or a page table has, a physical address, a pointer to before or behind
the object, one that is encoded or not aligned to 8 bytes. Objects whose pages
or whose holders are not in the dump are the other cause; these gaps are
counted. Registrations of sysctl tables that nothing points at are left out:
they are in use; and what waits for kfree_rcu() to free it. Large allocations,
of more than two pages, are no slab objects, and all of them are taken for
reachable. Kernels that tag their pointers (KASAN on arm64) are not judged.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import numpy.typing as npt
from drgn import ProgramFlags

from vmcore_tools.analysis import Analysis, Context, ManyRows, Option, Requires
from vmcore_tools.asked import check_caches, comma_separated
from vmcore_tools.audit_findings import kmemleak_evidence
from vmcore_tools.frames import stack_of_addresses
from vmcore_tools.kernel.kasan import tags_pointers
from vmcore_tools.kernel.object_types import Certainty, ObjectType, is_kmalloc, object_types
from vmcore_tools.kernel.reachability import Unreachable, unreachable_objects
from vmcore_tools.kernel.recorded_stacks import function_behind_allocator
from vmcore_tools.kernel.recorded_tasks import RecordedTasks
from vmcore_tools.kernel.slab import SlabIndex, slab_index
from vmcore_tools.kernel.slub_tracks import has_tracks, object_tracks
from vmcore_tools.kernel.virtual_map import virtual_map
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

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

#: What is reported: a leak that matters happens again and again. The lab's kernels
#: and Debian's have none in a hundred healthy guests' dumps, but one that others
#: lose once, when they boot, is no finding.
_OBJECTS_MIN = 10
#: Rows whose stacks are shown whole.
_STACKS_WHOLE = 10
#: Stacks of a finding, those with most memory first.
_STACKS_SHOWN = 3
#: Tasks that a finding names, the most frequent first.
_COMMS_SHOWN = 4
#: Example addresses in a finding.
_EXAMPLES_SHOWN = 4
_ALL = "all"
_NO_TRACKS = "no SLUB tracks"
_NOT_READ = "not in the dump"

UNREACHABLE = Rule(
    id="VT105",
    slug="unreachable-slab-objects",
    severity=Severity.WARNING,
    summary="Slab objects of one kind are allocated, and nothing points at them any more.",
    remedy=(
        "Look for the path that drops the last pointer without a kfree(); where the allocating "
        "function is not known, boot with slub_debug=U."
    ),
    page="""\
From all memory that the kernel can start at, every word that looks like a
pointer is followed from object to object. What is never reached cannot be freed
by anybody. An object that is in use at this moment has a pointer on a stack or
in a register.

It is `likely` if all kernel memory and all registers were read, and if other
objects of the type are in use: so pointers to them are stored as such. Else it
is `suspected`: the driver may have given the address to a device, or stored it
in another form, or what points at them is not in the dump. It is never
`proven`. Fewer than 10 objects of a type are no finding, but have their rows:
kernels lose some at boot.

A type has one signature, with SLUB tracks and without. For objects whose type is
not known, the allocating function is part of it, as nothing else tells one leak
from another: with tracks, theirs is not what it is without.

Where the kernel has kmemleak, `objects_kmemleak_reports` tells how many of them
it would report as well: it leaves out what is younger than its last scan, and
what a word leads to that stands in a dead part of a stack.""",
)


@dataclasses.dataclass(frozen=True)
class Searched:
    """What was judged, and what of it is unreachable."""

    caches: int = column(Kind.COUNT)
    objects: int = column(Kind.COUNT)
    unreachable_objects: int = column(Kind.COUNT)
    unreachable_bytes: int = column(Kind.BYTES)


@dataclasses.dataclass(frozen=True)
class SlabLeak:
    """Unreachable objects of one type and stack; what takes most memory comes first."""

    cache: str = column(Kind.UNTRUSTED)
    type: str = column(Kind.TEXT)
    certainty: str = column(Kind.TEXT)
    allocated_by: Maybe[str] = column(Kind.TEXT)
    objects: int = column(Kind.COUNT)
    objects_pointed_at: int = column(Kind.COUNT)
    size_bytes: int = column(Kind.BYTES)
    same_type_in_use: Maybe[int] = column(Kind.COUNT)
    example: int = column(Kind.ADDRESS)
    stack: Maybe[str] = column(Kind.STACK)


@dataclasses.dataclass(frozen=True)
class UnreachableObject:
    """An unreachable object."""

    address: int = column(Kind.ADDRESS)
    cache: str = column(Kind.UNTRUSTED)
    type: str = column(Kind.TEXT)
    pointed_at: bool = column(Kind.TEXT)
    pid: Maybe[int] = column(Kind.PID)
    age_ns: Maybe[int] = column(Kind.DURATION)


def analyze(ctx: Context) -> Iterator[Any]:
    index = slab_index(ctx.prog, ctx.memory)
    if tags_pointers(ctx.prog):
        ctx.coverage.gap("pointer", "KASAN has put tags into pointers, which are not understood")
        return
    judged = _judged(ctx, index)
    found = unreachable_objects(index, judged, ctx.progress)
    unread = _count_gaps(ctx, index, found)
    sizes = np.array([cache.size_bytes for cache in index.caches], dtype=np.int64)
    yield Searched(
        caches=int(judged.sum()),
        objects=int(found.allocated.sum()),
        unreachable_objects=len(found.address),
        unreachable_bytes=int(sizes[found.cache].sum()),
    )
    if not len(found.address):
        return
    leaks = _Leaks(ctx, index, found)
    groups = sorted(leaks.groups(), key=lambda group: group.order)
    yield from leaks.findings(groups, unread)
    yield from leaks.rows(groups)
    yield ManyRows(UnreachableObject, len(found.address), leaks.objects())


def _judged(ctx: Context, index: SlabIndex) -> Bools:
    """Which caches' objects are judged."""
    names = ctx.options["caches"]
    if names is None:
        return np.array([is_kmalloc(cache) for cache in index.caches], dtype=bool)
    if names == (_ALL,):
        return np.ones(len(index.caches), dtype=bool)
    check_caches(ctx, index, names)
    return np.array([cache.name in names for cache in index.caches], dtype=bool)


def _count_gaps(ctx: Context, index: SlabIndex, found: Unreachable) -> Tuple[str, ...]:
    """Count what could not be read; tell what of it could hold a pointer."""
    unread: Dict[str, None] = {}
    for problem in index.problems:
        ctx.coverage.gap("slab", problem.reason, problem.address)
        unread["slabs that are damaged or not in the dump"] = None
    if index.unread_page_structs:
        ctx.coverage.gap("struct page", "it is not in the dump", count=index.unread_page_structs)
        unread["page structures that are not in the dump"] = None
    for kind, count in found.pages_absent.items():
        ctx.coverage.gap("kernel page", f"it is not in the dump ({kind.text})", count=count)
        unread["kernel pages that are not in the dump"] = None
    if found.pages_unread:
        ctx.coverage.gap("kernel page", "it is damaged in the dump", count=found.pages_unread)
        unread["kernel pages that are damaged in the dump"] = None
    if found.registers_unread:
        ctx.coverage.gap(
            "CPU's registers", "they are not in the dump", count=found.registers_unread
        )
        unread["registers of CPUs"] = None
    for address, reason in found.freeing_unread:
        ctx.coverage.gap("objects that wait to be freed", reason, address)
        unread["lists of what waits to be freed"] = None
    broken = virtual_map(ctx.prog, ctx.memory.page_map.page_size_bytes).broken
    if broken is not None:
        ctx.coverage.gap("list of vmalloc areas", f"it breaks off: {broken}")
        unread["vmalloc areas that were not found"] = None
    if ctx.prog.flags & ProgramFlags.IS_LIVE:
        unread["what changed meanwhile"] = None
    return tuple(unread)


@dataclasses.dataclass(frozen=True)
class _Group:
    """Positions of unreachable objects of one cache, type and stack."""

    cache: int
    type: int
    stack: Optional[Tuple[int, ...]]
    function: Maybe[str]
    members: Ints
    size_bytes: int

    @property
    def order(self) -> Tuple[int, int]:
        return -self.size_bytes, int(self.members[0])


class _Leaks:
    """What unreachable objects are, and who allocated them; arrays are in their order."""

    def __init__(self, ctx: Context, index: SlabIndex, found: Unreachable) -> None:
        self._ctx = ctx
        self._index = index
        self._found = found
        self._types = object_types(index)
        for name, reason in self._types.failures:
            ctx.coverage.gap("object types", f"the recogniser {name} failed: {reason}")
        self._type = self._types.of(found.address)
        count = len(found.address)
        self._stack: Ints = np.full(count, -1, dtype=np.int64)
        self._pid: Ints = np.full(count, -1, dtype=np.int64)
        self._age: Ints = np.full(count, -1, dtype=np.int64)
        self._stacks: List[Tuple[int, ...]] = []
        self._tracked = np.array([has_tracks(cache) for cache in index.caches], dtype=bool)
        for cache in np.unique(found.cache[self._tracked[found.cache]]).tolist():
            self._read_tracks(cache)

    def _read_tracks(self, cache: int) -> None:
        members = np.flatnonzero(self._found.cache == cache)
        try:
            tracks = object_tracks(self._index, cache, self._found.address[members])
        except LookupError as error:
            self._ctx.coverage.gap("SLUB tracks", f"they cannot be read: {error}", material=False)
            return
        missing = int((~tracks.read).sum())
        if missing:
            self._ctx.coverage.gap(
                "SLUB track", "it is empty or not in the dump", count=missing, material=False
            )
        self._pid[members] = np.where(tracks.read, tracks.pid, -1)
        self._age[members] = tracks.age_ns
        known = tracks.stack >= 0
        self._stack[members[known]] = tracks.stack[known] + len(self._stacks)
        self._stacks += tracks.stacks

    def groups(self) -> Iterator[_Group]:
        key = (self._found.cache * len(self._types.types) + self._type) * (len(self._stacks) + 1)
        key += self._stack + 1
        order = np.argsort(key, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
            first = members[0]
            cache, type_ = int(self._found.cache[first]), int(self._type[first])
            stack = int(self._stack[first])
            function: Maybe[str] = Absent(_NOT_READ if self._tracked[cache] else _NO_TRACKS)
            if stack >= 0:
                function = function_behind_allocator(self._ctx.prog, self._stacks[stack]) or (
                    "an unknown function"
                )
            yield _Group(
                cache,
                type_,
                self._stacks[stack] if stack >= 0 else None,
                function,
                members,
                len(members) * self._index.caches[cache].size_bytes,
            )

    def rows(self, groups: Sequence[_Group]) -> Iterator[Any]:
        for number, group in enumerate(groups):
            stack: Maybe[str] = Absent(f"only for the first {_STACKS_WHOLE} rows")
            if isinstance(group.function, Absent):
                stack = group.function
            elif group.stack is not None and number < _STACKS_WHOLE:
                whole = stack_of_addresses(self._ctx.prog, group.stack)
                yield whole
                stack = whole.id
            yield self._row(group, stack)

    def _row(self, group: _Group, stack: Maybe[str]) -> SlabLeak:
        type_ = self._object_type(group.cache, group.type)
        return SlabLeak(
            cache=self._index.caches[group.cache].name,
            type=type_.name,
            certainty=type_.certainty.name.lower(),
            allocated_by=group.function,
            objects=len(group.members),
            objects_pointed_at=int(self._found.pointed_at[group.members].sum()),
            size_bytes=group.size_bytes,
            same_type_in_use=self._in_use(group.cache, group.type),
            example=int(self._found.address[group.members[0]]),
            stack=stack,
        )

    def objects(self) -> Iterator[UnreachableObject]:
        names = {
            (cache, number): self._object_type(cache, number).name
            for cache, number in set(zip(self._found.cache.tolist(), self._type.tolist()))
        }
        for i in range(len(self._found.address)):
            cache = int(self._found.cache[i])
            no_track = Absent(_NOT_READ if self._tracked[cache] else _NO_TRACKS)
            has_track = self._pid[i] >= 0
            yield UnreachableObject(
                address=int(self._found.address[i]),
                cache=self._index.caches[cache].name,
                type=names[cache, int(self._type[i])],
                pointed_at=bool(self._found.pointed_at[i]),
                pid=int(self._pid[i]) if has_track else no_track,
                age_ns=int(self._age[i]) if self._age[i] >= 0 else no_track,
            )

    def findings(self, groups: Sequence[_Group], unread: Tuple[str, ...]) -> Iterator[Any]:
        """One for each type and function that leaks often enough."""
        merged: Dict[Tuple[str, str], List[_Group]] = {}
        for group in groups:
            name = self._object_type(group.cache, group.type).name
            if not self._has_type(group):
                name = f"object of {self._index.caches[group.cache].name}"
            function = "" if isinstance(group.function, Absent) else group.function
            merged.setdefault((name, function), []).append(group)
        for (name, function), parts in merged.items():
            if sum(len(group.members) for group in parts) >= _OBJECTS_MIN:
                stacks = tuple(
                    stack_of_addresses(self._ctx.prog, group.stack)
                    for group in parts[:_STACKS_SHOWN]
                    if group.stack is not None
                )
                yield from stacks
                finding = self._finding(name, function, parts, unread)
                yield dataclasses.replace(finding, stacks=tuple(stack.id for stack in stacks))

    def _finding(
        self, name: str, function: str, groups: Sequence[_Group], unread: Tuple[str, ...]
    ) -> Finding:
        members = np.sort(np.concatenate([group.members for group in groups]))
        in_use = [self._in_use(group.cache, group.type) for group in groups]
        used = max((count for count in in_use if not isinstance(count, Absent)), default=0)
        if not used:
            unread += ("pointers that are stored in another form",)
        caches = sorted({group.cache for group in groups})
        clues = (function,) if function else None
        several = len(members) != 1
        message = f"{{objects}} {'objects' if several else 'object'} ({{type}}, {{size_bytes}})"
        message += " are allocated" if several else " is allocated"
        message += f", and nothing reachable points at {'them' if several else 'it'}"
        evidence = [
            Evidence("objects", Kind.COUNT, len(members)),
            Evidence("type", Kind.TEXT, name),
            Evidence("size_bytes", Kind.BYTES, sum(group.size_bytes for group in groups)),
            Evidence(
                "caches",
                Kind.UNTRUSTED,
                tuple(self._index.caches[cache].name for cache in caches),
            ),
            Evidence("objects_pointed_at", Kind.COUNT, int(self._found.pointed_at[members].sum())),
            Evidence("same_type_in_use", Kind.COUNT, used),
        ]
        if function:
            message += "; {allocating_comms} allocated "
            message += f"{'them' if several else 'it'} in {{allocating_function}}"
            evidence += [
                Evidence("allocating_function", Kind.TEXT, function),
                Evidence("allocating_comms", Kind.SENSITIVE, self._comms(members)),
            ]
        evidence += kmemleak_evidence(self._index, self._found.address[members])
        evidence.append(
            Evidence(
                "examples",
                Kind.ADDRESS,
                tuple(self._found.address[members[:_EXAMPLES_SHOWN]].tolist()),
            )
        )
        return Finding(
            rule=UNREACHABLE,
            confidence=Confidence.SUSPECTED if unread else Confidence.LIKELY,
            message=message + ".",
            subject=Ref("slab objects", name, name_kind=Kind.TEXT),
            evidence=tuple(evidence),
            # Nothing else tells which of all the objects without a type these are.
            signature_key=(
                ("unreachable", name)
                if self._has_type(groups[0])
                else ("unreachable", name, function)
            ),
            clues=clues,
            related=tuple(
                Ref(
                    "slab cache",
                    self._index.caches[cache].name,
                    self._index.caches[cache].cache.value_(),
                )
                for cache in caches
            ),
            unread=unread,
        )

    def _has_type(self, group: _Group) -> bool:
        return group.type != 0 or group.cache in self._types.cache_types

    def _comms(self, members: Ints) -> Tuple[str, ...]:
        """Who allocated objects: the most frequent ones."""
        members = members[self._pid[members] >= 0]
        living, ended = RecordedTasks(self._ctx.prog).comms(self._pid[members], self._age[members])
        comms = [comm for comm, _ in living.most_common(_COMMS_SHOWN)]
        comms += [f"PID {pid}, which has ended" for pid, _ in ended.most_common(_COMMS_SHOWN)]
        return tuple(sorted(comms))

    def _object_type(self, cache: int, number: int) -> ObjectType:
        named = self._types.cache_types.get(cache)
        if number == 0 and named is not None:
            return ObjectType(named.type_name(), Certainty.LIKELY, "the cache's name")
        return self._types.types[number]

    def _in_use(self, cache: int, number: int) -> Maybe[int]:
        """Reachable objects of the same type."""
        if number:
            every = int((self._types.number == number).sum())
            return every - int((self._type == number).sum())
        if cache in self._types.cache_types:
            return int(self._found.allocated[cache]) - int((self._found.cache == cache).sum())
        return Absent("the type is not known")


ANALYSIS = Analysis(
    name="slab-leaks",
    analyze=analyze,
    tables=(Searched, SlabLeak, UnreachableObject),
    rules=(UNREACHABLE,),
    options=(
        Option(
            "caches",
            "judge the objects of these caches, or of 'all' (default: of the kmalloc caches)",
            comma_separated,
            metavar="A,B",
        ),
    ),
    requires=Requires(builtin=("struct kmem_cache", "struct page")),
    on_demand=True,
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
