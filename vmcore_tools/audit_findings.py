# SPDX-License-Identifier: LGPL-2.1-or-later
"""What findings about reference counts have in common: how sure they are, and who allocated."""

from __future__ import annotations

import dataclasses
import re
from typing import List, Optional, Pattern, Tuple

import numpy as np
import numpy.typing as npt
from drgn import Program

from vmcore_tools.analysis import Context
from vmcore_tools.frames import stack_of_addresses
from vmcore_tools.kernel.audit import Audit, Verdict
from vmcore_tools.kernel.kfree_rcu import kfree_rcu
from vmcore_tools.kernel.kmemleak import kmemleak_reported, kmemleak_state
from vmcore_tools.kernel.recorded_tasks import RecordedTasks
from vmcore_tools.kernel.slab import SlabIndex
from vmcore_tools.kernel.slub_tracks import Tracks, has_tracks, object_tracks
from vmcore_tools.kernel.virtual_map import virtual_map
from vmcore_tools.model import Confidence, Evidence, Kind, Stack
from vmcore_tools.module_gaps import count_modules_without_debug_info
from vmcore_tools.words import plural

U64 = npt.NDArray[np.uint64]

#: Distinct allocating stacks that a finding shows, the most frequent first.
_STACKS_SHOWN = 3
#: Places with unknown pointers that a finding names.
_PLACES_SHOWN = 10
#: How what is said of holders without a reference goes on, by the evidence.
_DANGLING_REST = {
    "objects": " than references",
    "freed_objects": " and still pointed at by a holder",
    "objects_saturated": " reference count",
}
#: Tasks that a finding names, those that allocated most.
_TASKS_SHOWN = 10
#: What is between an allocation and the code that wanted it.
_ALLOCATOR = r"_*(kmem_cache_alloc|kmalloc|kzalloc|slab_|set_track|slub_).*"


@dataclasses.dataclass(frozen=True)
class Proof:
    """
    How sure a finding of leaked references is.

    :ivar message: what the finding's message says about it, with its evidence's names
    """

    confidence: Confidence
    message: str
    unread: Tuple[str, ...]
    evidence: Tuple[Evidence, ...]

    @staticmethod
    def of(result: Audit, references: int, proven: int) -> Proof:
        """
        :param references: that leaked
        :param proven: how many of them are on objects that nothing points at
        """
        if not result.can_prove:
            proven = 0
        evidence = (
            Evidence("references_proven", Kind.COUNT, proven),
            Evidence("references_likely", Kind.COUNT, references - proven),
            Evidence("pages_unread", Kind.COUNT, result.pages_unread),
            Evidence("registers_unread", Kind.COUNT, result.registers_unread),
        )
        unread: Tuple[str, ...] = ()
        message = "; no other pointer to them is in all of kernel memory."
        if result.pages_unread:
            pages = plural(result.pages_unread, "page", "pages")
            are = plural(result.pages_unread, "is", "are")
            message = (
                f"; {{pages_unread}} {pages} that could hold a pointer to them {are} not in the "
                "dump."
            )
            unread = ("kernel pages that are not in the dump",)
        elif result.registers_unread:
            cpus = plural(result.registers_unread, "CPU")
            message = f"; the registers of {{registers_unread}} {cpus} are not in the dump."
            unread = ("registers of CPUs",)
        elif result.areas_lost:
            message = "; the list of vmalloc areas, where stacks are, is damaged."
            unread = ("vmalloc areas that were not found",)
        elif result.changing:
            message = "; the target went on while it was read."
            unread = ("what changed meanwhile",)
        elif proven < references:
            what = "a stray pointer, or a driver that is not known here."
            message = plural(references, "; its object has ", "; their objects have ") + what
            if proven:
                are = plural(proven, "is", "are")
                others = plural(references - proven, "other one", "other {references_likely}")
                message = (
                    f"; {{references_proven}} {are} proven, as no other pointer to their objects "
                    f"is in all of kernel memory; those of the {others} have {what}"
                )
            unread = ("what the stray pointers mean",)
        confidence = Confidence.PROVEN if proven else Confidence.LIKELY
        return Proof(confidence, message, unread, evidence)


@dataclasses.dataclass(frozen=True)
class Dangling:
    """
    What findings of holders without a reference have in common.

    :ivar kinds: of these holders
    """

    confidence: Confidence
    kinds: Tuple[str, ...]
    unread: Tuple[str, ...]
    evidence: Tuple[Evidence, ...]

    @staticmethod
    def of(result: Audit, alive: npt.NDArray[np.int64]) -> Dangling:
        """
        :param alive: positions of the objects with too many holders
        """
        kinds = {kind for kinds in result.stale.kinds for kind in kinds}
        kinds.update(kind for kind, counts in result.holders.items() if counts[alive].any())
        # An interrupt's stack is no task's: who is there may be dropping a reference.
        sure = result.can_prove_dangling and not any(i in result.pointers for i in alive.tolist())
        return Dangling(
            Confidence.PROVEN if sure else Confidence.LIKELY,
            tuple(sorted(kinds)),
            () if sure else ("what tasks were doing at that moment",),
            (
                Evidence("objects", Kind.COUNT, len(alive)),
                Evidence("holders_without_reference", Kind.COUNT, int(result.excess[alive].sum())),
                Evidence("freed_objects", Kind.COUNT, len(result.stale.address)),
                Evidence("holders", Kind.TEXT, tuple(sorted(kinds)) or ("none",)),
                Evidence("registers_unread", Kind.COUNT, result.registers_unread),
            ),
        )

    def message(self, one: str, saturated: int = 0) -> str:
        """
        What there is of them, with the evidence's names.

        :param one: what such an object is called: ``fence``
        :param saturated: how many have such a count: evidence ``objects_saturated``
        """
        counts = {item.name: item.value for item in self.evidence}
        parts = []
        for name, count, is_, are in (
            ("objects", counts["objects"], "has more holders", "have more holders"),
            ("freed_objects", counts["freed_objects"], "is freed", "are freed"),
            ("objects_saturated", saturated, "has a saturated", "have a saturated"),
        ):
            if isinstance(count, int) and count:
                words = plural(count, is_, are)
                parts.append(f"{{{name}}} {plural(count, one)} {words}{_DANGLING_REST[name]}")
        text = " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)
        return text + ("; the holders: {holders}." if self.kinds else ".")


def references_leaked(references: int, objects: int, what: str) -> str:
    """
    How a message of leaked references begins.

    :param what: the objects: ``GEM object of {driver}``, for several ``GEM objects of …``
    """
    return f"{{references_leaked}} {plural(references, 'reference')} leaked on {{objects}} {what}"


def live_only_through_these(references: int, objects: int, only: int, size: str) -> str:
    """
    What a message of leaked references says of objects that nothing else holds.

    :param only: how many objects these are
    :param size: words of their size, with the comma or brackets that they need
    """
    these = plural(references, "this reference", "these references")
    if not only:
        return ""
    if objects == 1:
        return f"; it{size} lives only through {these}"
    live = plural(only, "lives", "live")
    return f"; {{objects_only_leaked}} of them{size} {live} only through {these}"


def more_than_known_holders(references: int, objects: int, what: str) -> str:
    """
    The message of objects that something unknown points at.

    :param what: the objects, one or several
    """
    have, them = plural(objects, "has", "have"), plural(objects, "it", "them")
    return (
        f"{{objects}} {what} {have} {{references}} {plural(references, 'reference')} more than "
        f"the holders that are known here, and something that is not known points at {them}."
    )


def pointed_at_from(result: Audit, group: npt.NDArray[np.int64]) -> Tuple[str, ...]:
    """
    The places with unexplained pointers to objects, the first ones by name.

    :param group: positions of the objects
    """
    places = {
        f"{reference.place.value}: {reference.holder}"
        for i in group.tolist()
        for reference in result.pointers[i]
    }
    return tuple(sorted(places)[:_PLACES_SHOWN])


def count_audit_gaps(ctx: Context, index: SlabIndex, result: Audit, what: str) -> None:
    """
    Count what an audit could not read.

    :param what: ``fences``
    """
    for problem in index.problems:
        ctx.coverage.gap("slab", problem.reason, problem.address)
    if index.unread_page_structs:
        ctx.coverage.gap("struct page", "it is not in the dump", count=index.unread_page_structs)
    count_modules_without_debug_info(ctx, f"{what} of these drivers are not recognised")
    if result.registers_unread:
        ctx.coverage.gap(
            "CPU's registers", "they are not in the dump", count=result.registers_unread
        )
    if result.pages_unread:
        ctx.coverage.gap("kernel page", "it is not in the dump", count=result.pages_unread)
    page_size = ctx.memory.page_map.page_size_bytes
    for address, reason in kfree_rcu(ctx.prog, page_size).unread:
        ctx.coverage.gap("list of kfree_rcu()", reason, address)
    broken = virtual_map(ctx.prog, page_size).broken
    if broken is not None:
        ctx.coverage.gap("list of vmalloc areas", f"it breaks off: {broken}")
    impossible = int((result.verdict == Verdict.IMPOSSIBLE).sum())
    if impossible:
        ctx.coverage.gap("reference count", f"{what} cannot have such a one", count=impossible)
    if result.unsteady:
        ctx.coverage.gap(
            "reference count",
            "what holds its object was something else when it was looked at before",
            count=result.unsteady,
        )
    if len(result.unknown_held):
        ctx.coverage.gap(
            "pointer of a holder",
            f"it leads to none of the {what} that were found",
            int(result.unknown_held[0]),
            count=len(result.unknown_held),
        )


@dataclasses.dataclass(frozen=True)
class Allocators:
    """
    Who allocated objects, from SLUB tracks; empty without them.

    :ivar function: the function that wanted most of them; "" if unknown
    :ivar clues: of a finding: known issues may be of certain functions
    """

    function: str = ""
    stacks: Tuple[Stack, ...] = ()
    evidence: Tuple[Evidence, ...] = ()
    clues: Optional[Tuple[str, ...]] = None

    @staticmethod
    def of(
        ctx: Context, index: SlabIndex, objects: U64, cache_number: int, wrappers: str
    ) -> Allocators:
        """
        :param objects: uint64 array: slab objects of one cache
        :param wrappers: regular expression: functions that only allocate for others
        """
        cache = index.caches[cache_number]
        if not has_tracks(cache):
            return Allocators()
        tracks = object_tracks(index, cache_number, objects)
        if not tracks.read.all():
            ctx.coverage.gap(
                "SLUB track", "it is empty or not in the dump", count=int((~tracks.read).sum())
            )
        counts = np.bincount(tracks.stack[tracks.stack >= 0], minlength=len(tracks.stacks))
        order = np.argsort(-counts, kind="stable")[:_STACKS_SHOWN]
        stacks = tuple(stack_of_addresses(ctx.prog, tracks.stacks[i]) for i in order)
        if not stacks:
            return Allocators()
        function = _allocating_function(stacks[0], re.compile(f"{_ALLOCATOR}|{wrappers}"))
        pids, times = np.unique(tracks.pid[tracks.read], return_counts=True)
        most = np.sort(pids[np.argsort(-times, kind="stable")[:_TASKS_SHOWN]])
        return Allocators(
            function,
            stacks,
            (
                Evidence("allocating_function", Kind.TEXT, function),
                Evidence("allocating_pids", Kind.PID, tuple(most.tolist())),
                Evidence("allocating_comms", Kind.SENSITIVE, _comms(ctx.prog, tracks)),
                Evidence("objects_by_stack", Kind.COUNT, tuple(int(counts[i]) for i in order)),
            ),
            (function,),
        )


def _allocating_function(stack: Stack, allocator: Pattern[str]) -> str:
    """The function that wanted the object, behind the allocator's own."""
    for frame in stack.frames:
        if not allocator.fullmatch(frame.function):
            return frame.function.partition(".")[0]
    return "an unknown function"


def _comms(prog: Program, tracks: Tracks) -> Tuple[str, ...]:
    """The comms of threads that still live, and the PIDs of those that do not."""
    living, ended = RecordedTasks(prog).comms(tracks.pid[tracks.read], tracks.age_ns[tracks.read])
    comms = [comm for comm, _ in living.most_common(_TASKS_SHOWN)]
    comms += [f"PID {pid}, which has ended" for pid, _ in ended.most_common(_TASKS_SHOWN)]
    return tuple(sorted(comms))


def kmemleak_evidence(index: SlabIndex, objects: U64) -> List[Evidence]:
    """
    How many of the objects kmemleak would report as well; nothing without kmemleak.

    :param objects: uint64 array: slab objects
    """
    reported = _kmemleak_reported(index)
    if reported is None:
        return []
    also = int(np.isin(objects, reported).sum())
    return [
        Evidence("objects_kmemleak_reports", Kind.COUNT, also),
        Evidence("objects_kmemleak_does_not_report", Kind.COUNT, len(objects) - also),
    ]


def _kmemleak_reported(index: SlabIndex) -> Optional[U64]:
    try:
        state = kmemleak_state(index.prog)
    except LookupError:
        return None
    return kmemleak_reported(index) if state.enabled else None
