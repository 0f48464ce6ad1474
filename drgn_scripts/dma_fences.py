# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Every dma_fence in slab memory, and the references that nobody holds.

Fences are recognised in any slab cache by their pointer to a variable of type
``struct dma_fence_ops``. For each one the reference count is compared with
the holders that can be found: the driver's list of emitted fences, the
reservation objects of all GEM objects, sync_files, fence arrays and their
callbacks, and framebuffers in an update. Where references are left over, all
of kernel memory is searched for pointers to the fence. If there are none, the
references were taken and never dropped: VT201. A fence that a task has on its
live stack or in a register is in use. Any other pointer is named: VT202.

It decides by holders alone, never by a number of fences. A fence whose
reference count is 0 is being freed, and is no leak.

It cannot see fences outside slab memory, fences whose ``ops`` pointer the
kernel has cleared (newest kernels, once signaled), and pointers that are not
stored as they are. Fences of drivers whose own list of pending fences is not
known here are listed, but not judged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from typing import Any, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program
from drgn.helpers import ValidationError
from drgn.helpers.linux.pid import find_task

from vmcore_tools.analysis import Analysis, Context, ManyRows, Requires
from vmcore_tools.frames import stack_of_addresses
from vmcore_tools.kernel.audit import (
    Audit,
    Counted,
    Holders,
    Verdict,
    audit,
    count_by_address,
    with_likely_leaks,
)
from vmcore_tools.kernel.dma_fence import (
    DMA_FENCE,
    Fences,
    HeldFences,
    array_callbacks_max,
    array_fences,
    by_name,
    fences,
    reserved_fences,
)
from vmcore_tools.kernel.drm import for_each_drm_device, for_each_drm_file
from vmcore_tools.kernel.drm_gem import GEM_OBJECT, for_each_gem_handle
from vmcore_tools.kernel.layout import as_structs, field_dtype, read_structs
from vmcore_tools.kernel.modules import modules_without_debug_info
from vmcore_tools.kernel.slab import SlabIndex, slab_index
from vmcore_tools.kernel.slub_tracks import alloc_tracks, has_tracks
from vmcore_tools.kernel.sync_file import for_each_sync_file
from vmcore_tools.kernel.task import task_comm
from vmcore_tools.kernel.typed_objects import Found, find_embedded
from vmcore_tools.kernel.virtio_gpu import (
    DRIVER_NAME,
    TIMELINE_NAME,
    for_each_emitted_fence,
    for_each_framebuffer_with_fence,
    for_each_virtio_gpu_device,
    last_completed_seqno,
)
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

#: Distinct allocating stacks that a finding shows, the most frequent first.
_STACKS_SHOWN = 3
#: Example addresses in a finding.
_EXAMPLES_SHOWN = 4

LEAKED = Rule(
    id="VT201",
    slug="leaked-dma-fence",
    severity=Severity.ERROR,
    summary="References to dma_fence objects were taken and never dropped.",
    remedy=(
        "Look for a missing dma_fence_put() on the path that allocates the fences; "
        "the allocating stack names it where SLUB tracks are on (boot with slub_debug=U)."
    ),
    page="""\
Each fence's reference count is compared with the holders that were found: the
driver's list of emitted fences, reservation objects of all GEM objects,
sync_files, fence arrays and their callbacks, framebuffers in an update. For
the fences with references left over, every word of kernel memory in the dump
and all registers are searched for pointers. Free slab objects, dead parts of
stacks and the fence itself do not count.

`references_leaked` counts references, `objects` the fences that have them, and
`objects_only_leaked` those that nothing else holds: these stay for ever. The
others are also held rightly by somebody, and become such when he lets go.

It is `proven` if no pointer was found and every page that could hold one was
read, and the registers of all CPUs; `likely` if something of it is not in the
dump, or if the target is live and went on meanwhile. An object to which a single
stray pointer is found is likely leaked if others of its type are proven to be;
`references_proven` and `references_likely` tell how many.""",
)
UNKNOWN_HOLDER = Rule(
    id="VT202",
    slug="dma-fence-with-unknown-holder",
    severity=Severity.WARNING,
    summary="dma_fence objects have more references than known holders, and are pointed at.",
    remedy=(
        "Look at what points at the fences: a holder that this version does not know is no "
        "leak, a stale pointer may be the trace of one."
    ),
    page="""\
As VT201, but something points at the fences that is neither a known holder nor
a task's stack or register. It may be a holder of a kind that is not known
here, so a leak is not claimed.""",
)
_NOT_JUDGED = "its driver's own list of fences is not known here"
#: Places with unknown pointers that a finding names.
_PLACES_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Fence:
    """A dma_fence; the ones with unexplained references come first."""

    address: int = column(Kind.ADDRESS)
    ops: str = column(Kind.TEXT)
    driver: Maybe[str] = column(Kind.TEXT)
    timeline: Maybe[str] = column(Kind.TEXT)
    context: int = column(Kind.NUMBER)
    seqno: int = column(Kind.NUMBER)
    last_completed_seqno: Maybe[int] = column(Kind.NUMBER)
    signaled: bool = column(Kind.TEXT)
    flags: int = column(Kind.NUMBER)
    refcount: int = column(Kind.COUNT)
    held_by_driver: int = column(Kind.COUNT)
    held_by_reservation: int = column(Kind.COUNT)
    held_by_sync_file: int = column(Kind.COUNT)
    held_by_array: int = column(Kind.COUNT)
    held_by_framebuffer: int = column(Kind.COUNT)
    held_by_callback: int = column(Kind.COUNT)
    unexplained: Maybe[int] = column(Kind.COUNT)
    verdict: str = column(Kind.TEXT)
    cache: str = column(Kind.UNTRUSTED)


_HOLDERS = ("driver", "reservation", "sync_file", "array", "framebuffer", "callback")


@dataclasses.dataclass(frozen=True)
class _Result:
    """Fences and their audit; arrays of shape (n,) in the fences' order."""

    fences: Fences
    audit: Audit
    virtio_gpu: npt.NDArray[np.bool_]
    last_completed: npt.NDArray[np.int64]

    def with_verdict(self, *verdicts: Verdict) -> npt.NDArray[np.int64]:
        """Positions of the fences with one of these verdicts."""
        return np.flatnonzero(np.isin(self.audit.verdict, list(verdicts)))


def analyze(ctx: Context) -> Iterator[Any]:
    index = slab_index(ctx.prog, ctx.memory)
    kinds = [DMA_FENCE, GEM_OBJECT] if _has_gem(ctx.prog) else [DMA_FENCE]
    found = find_embedded(index, kinds)
    result = _audit_fences(ctx, index, fences(ctx.prog, found[DMA_FENCE]), found.get(GEM_OBJECT))
    _count_gaps(ctx, index, result)
    yield from _findings(ctx, index, result, Verdict.LEAKED, Verdict.LIKELY_LEAKED)
    yield from _findings(ctx, index, result, Verdict.UNKNOWN_HOLDER)
    yield ManyRows(Fence, len(result.fences.found.address), _rows(index, result))


def _has_gem(prog: Program) -> bool:
    try:
        # Before v5.0 GEM objects have no table of their own.
        return bool(prog.type("struct drm_gem_object").has_member("funcs"))
    except LookupError:
        return False


def _audit_fences(
    ctx: Context, index: SlabIndex, all_fences: Fences, gems: Optional[Found]
) -> _Result:
    found = all_fences.found
    virtio_gpu = np.zeros(len(found.address), dtype=bool)
    last_completed = np.full(len(found.address), -1, dtype=np.int64)
    holders: List[Holders] = []

    def hold(kind: str, held: HeldFences) -> None:
        for address in held.unread:
            ctx.coverage.gap(kind, "it could not be read", address)
        holders.append(Holders(kind, held.fence, held.word))

    if gems is not None:
        hold("reservation", reserved_fences(ctx.prog, _reservations(ctx, gems)))
        for device in for_each_virtio_gpu_device(ctx.prog):
            # Only this driver's fences have the lock of its timeline.
            mine = all_fences.lock == np.uint64(device.fence_drv.lock.address_)
            virtio_gpu |= mine
            last_completed[mine] = last_completed_seqno(device)
            emitted = _walk(ctx, "emitted fences", for_each_emitted_fence(device))
            holders.append(_driver_holders(emitted))
            hold("framebuffer", _framebuffer_fences(ctx, device))
    with contextlib.suppress(LookupError):  # a kernel without sync_files
        hold("sync_file", _sync_file_fences(index))
    arrays = by_name(found.tables, found.ops, "dma_fence_array_ops")
    hold("array", array_fences(ctx.prog, found.address[arrays].tolist()))
    holders.append(_callback_holders(ctx.prog, all_fences, arrays, holders))

    # These are signaled from the start: no driver has them on a list.
    stubs = by_name(found.tables, found.ops, "dma_fence_stub_ops")

    sizes = np.array([cache.object_size_bytes for cache in index.caches], dtype=np.int64)
    objects = Counted(found.address, found.container, sizes[found.cache], all_fences.refcount)
    judged = virtio_gpu | arrays | stubs
    result = audit(index, objects, judged, holders, ctx.progress)
    if result.changing:
        result = dataclasses.replace(result, verdict=_still_leaked(ctx.prog, all_fences, result))
    result = with_likely_leaks(result, found.ops)
    return _Result(all_fences, result, virtio_gpu, last_completed)


def _still_leaked(prog: Program, all_fences: Fences, result: Audit) -> npt.NDArray[np.int8]:
    """On a live target, the verdicts without leaks of fences that changed meanwhile."""
    verdict = result.verdict.copy()
    leaked = np.flatnonzero(verdict == Verdict.LEAKED)
    members = {"ops": "ops", "seqno": "seqno", "refcount": "refcount.refcount.refs.counter"}
    now, read = read_structs(
        prog,
        all_fences.found.address[leaked].tolist(),
        field_dtype(prog.type("struct dma_fence"), members),
    )
    same = (
        read
        & (now["ops"] == all_fences.found.ops[leaked])
        & (now["seqno"] == all_fences.seqno[leaked])
        & (now["refcount"].astype(np.int64) == all_fences.refcount[leaked])
    )
    verdict[leaked[~same]] = Verdict.IN_USE
    return verdict


def _reservations(ctx: Context, gems: Found) -> List[int]:
    """The reservation objects of all GEM objects."""
    prog = ctx.prog
    gem_type = prog.type("struct drm_gem_object")
    reservations = set(
        as_structs(gems.structs, field_dtype(gem_type, {"resv": "resv"}))["resv"].tolist()
    )
    # Drivers that set no ops table have their objects only as handles.
    known = set(gems.address.tolist())
    for device in for_each_drm_device(prog):
        try:
            for file in for_each_drm_file(device):
                for _, gem in for_each_gem_handle(file):
                    if gem.value_() not in known:
                        reservations.add(gem.resv.value_())
        except (FaultError, ValidationError) as error:
            ctx.coverage.gap("GEM handles", f"the walk broke off: {error}", device.value_())
    reservations.discard(0)
    return sorted(reservations)


def _walk(ctx: Context, what: str, items: Iterator[Object]) -> List[Object]:
    """The items of a list, up to where it breaks off."""
    walked = []
    try:
        for item in items:
            walked.append(item)
    except (FaultError, ValidationError) as error:
        ctx.coverage.gap(what, f"the walk broke off: {error}")
    return walked


def _words(values: Sequence[int]) -> npt.NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)


def _driver_holders(emitted: Sequence[Object]) -> Holders:
    """Fences on a driver's list; their neighbours' links are the pointers to them."""
    held = [fence.f.address_of_().value_() for fence in emitted]
    # A list_head's next comes first, its prev 8 bytes behind.
    links = [fence.node.prev.value_() for fence in emitted]
    links += [fence.node.next.value_() + 8 for fence in emitted]
    return Holders("driver", _words(held), _words(links))


def _framebuffer_fences(ctx: Context, device: Object) -> HeldFences:
    framebuffers = _walk(ctx, "framebuffers", for_each_framebuffer_with_fence(device))
    return HeldFences(
        _words([framebuffer.fence.f.address_of_().value_() for framebuffer in framebuffers]),
        _words([framebuffer.fence.address_ for framebuffer in framebuffers]),
    )


def _sync_file_fences(index: SlabIndex) -> HeldFences:
    files = [sync_file for sync_file, _ in for_each_sync_file(index)]
    return HeldFences(
        _words([file.fence.value_() for file in files]),
        _words([file.fence.address_ for file in files]),
    )


def _callback_holders(
    prog: Program,
    all_fences: Fences,
    arrays: npt.NDArray[np.bool_],
    holders: Sequence[Holders],
) -> Holders:
    """References that a fence array's own callbacks can hold, at most what is left."""
    addresses = all_fences.found.address
    counts = np.zeros(len(addresses), dtype=np.int64)
    for group in holders:
        counts += count_by_address(group.held, addresses)
    held: List[int] = []
    for i in np.flatnonzero(arrays).tolist():
        left = int(all_fences.refcount[i] - counts[i])
        held += [int(addresses[i])] * min(left, array_callbacks_max(prog, int(addresses[i])))
    return Holders("callback", _words(held), _words([]))


def _count_gaps(ctx: Context, index: SlabIndex, result: _Result) -> None:
    for problem in index.problems:
        ctx.coverage.gap("slab", problem.reason, problem.address)
    if index.unread_page_structs:
        ctx.coverage.gap("struct page", "it is not in the dump", count=index.unread_page_structs)
    others = len(result.with_verdict(Verdict.NOT_JUDGED))
    if others:
        ctx.coverage.gap("dma_fence", _NOT_JUDGED, count=others)
    modules = modules_without_debug_info(ctx.prog)
    if modules:
        ctx.coverage.gap(
            "module", "it has no debug info, so its fences are not recognised", count=len(modules)
        )
    if result.audit.registers_unread:
        ctx.coverage.gap(
            "CPU's registers", "they are not in the dump", count=result.audit.registers_unread
        )
    if result.audit.pages_unread:
        ctx.coverage.gap("kernel page", "it is not in the dump", count=result.audit.pages_unread)


def _findings(ctx: Context, index: SlabIndex, result: _Result, *verdicts: Verdict) -> Iterator[Any]:
    chosen = result.with_verdict(*verdicts)
    found = result.fences.found
    keys = list(zip(found.ops[chosen].tolist(), found.cache[chosen].tolist()))
    for ops, cache_number in sorted(set(keys), key=lambda key: (found.tables[key[0]], key[1])):
        group = chosen[[key == (ops, cache_number) for key in keys]]
        if Verdict.LEAKED in verdicts:
            yield from _leak(ctx, index, result, group)
        else:
            yield _unknown_holder(index, result, group)


def _type_name(result: _Result, fence: int) -> str:
    if result.virtio_gpu[fence]:
        return "struct virtio_gpu_fence"
    found = result.fences.found
    is_array = found.tables[int(found.ops[fence])] == "dma_fence_array_ops"
    return "struct dma_fence_array" if is_array else "struct dma_fence"


def _leak(
    ctx: Context, index: SlabIndex, result: _Result, group: npt.NDArray[np.int64]
) -> Iterator[Any]:
    found, every = result.fences.found, result.fences
    cache = index.caches[found.cache[group[0]]]
    ops_name, type_name = found.tables[int(found.ops[group[0]])], _type_name(result, group[0])
    references = result.audit.left[group]
    only_leaked = every.refcount[group] == references
    explained = result.with_verdict(Verdict.EXPLAINED)
    proven = references[np.isin(group, result.with_verdict(Verdict.LEAKED))]
    if not result.audit.can_prove:
        proven = proven[:0]
    evidence = [
        Evidence("references_leaked", Kind.COUNT, int(references.sum())),
        Evidence("references_proven", Kind.COUNT, int(proven.sum())),
        Evidence("references_likely", Kind.COUNT, int(references.sum() - proven.sum())),
        Evidence("objects", Kind.COUNT, len(group)),
        Evidence("objects_only_leaked", Kind.COUNT, int(only_leaked.sum())),
        Evidence("size_bytes", Kind.BYTES, int(only_leaked.sum()) * cache.size_bytes),
        Evidence("cache", Kind.UNTRUSTED, cache.name),
        Evidence("type", Kind.TEXT, type_name),
        Evidence("ops", Kind.TEXT, ops_name),
        Evidence("objects_signaled", Kind.COUNT, int(every.signaled[group].sum())),
        Evidence("context", Kind.NUMBER, tuple(np.unique(every.context[group]).tolist())),
        Evidence("seqno_first", Kind.NUMBER, int(every.seqno[group].min())),
        Evidence("seqno_last", Kind.NUMBER, int(every.seqno[group].max())),
        Evidence("fences_explained", Kind.COUNT, len(explained)),
        Evidence("pages_unread", Kind.COUNT, result.audit.pages_unread),
        Evidence("registers_unread", Kind.COUNT, result.audit.registers_unread),
        Evidence("examples", Kind.ADDRESS, tuple(found.address[group[:_EXAMPLES_SHOWN]].tolist())),
    ]
    if result.virtio_gpu[group[0]]:
        last = int(result.last_completed[group[0]])
        evidence.append(Evidence("last_completed_seqno", Kind.NUMBER, last))
    allocators = _Allocators.of(ctx, index, found.container[group], found.cache[group[0]])
    yield from allocators.stacks
    message = (
        "{references_leaked} references leaked on {objects} objects of type {type} in {cache}; "
        "{objects_only_leaked} of them ({size_bytes}) live only through these references"
    )
    if allocators.evidence:
        message += ", allocated by {allocating_comms} in {allocating_function}"
        evidence += allocators.evidence
    if result.audit.pages_unread:
        message += "; {pages_unread} pages that could hold a pointer to them are not in the dump."
        unread: Tuple[str, ...] = ("kernel pages that are not in the dump",)
    elif result.audit.registers_unread:
        message += "; the registers of {registers_unread} CPUs are not in the dump."
        unread = ("registers of CPUs",)
    elif result.audit.changing:
        message += "; the target went on while it was read."
        unread = ("what changed meanwhile",)
    elif len(proven) < len(group):
        message += (
            "; {references_proven} are proven, as no other pointer to their objects is in all of "
            "kernel memory; the objects of the other {references_likely} have a stray one."
        )
        unread = ("what the stray pointers mean",)
    else:
        message += "; no other pointer to them is in all of kernel memory."
        unread = ()
    yield Finding(
        rule=LEAKED,
        confidence=Confidence.PROVEN if len(proven) else Confidence.LIKELY,
        message=message,
        subject=Ref(type_name, ops_name, int(found.address[group[0]])),
        evidence=tuple(evidence),
        signature_key=(type_name, *allocators.signature),
        related=(Ref("slab cache", cache.name, cache.cache.value_()),),
        stacks=tuple(stack.id for stack in allocators.stacks),
        unread=unread,
    )


def _unknown_holder(index: SlabIndex, result: _Result, group: npt.NDArray[np.int64]) -> Finding:
    found = result.fences.found
    cache = index.caches[found.cache[group[0]]]
    ops_name, type_name = found.tables[int(found.ops[group[0]])], _type_name(result, group[0])
    places = sorted(
        {
            f"{reference.place.value}: {reference.holder}"
            for i in group.tolist()
            for reference in result.audit.pointers[i]
        }
    )
    return Finding(
        rule=UNKNOWN_HOLDER,
        confidence=Confidence.SUSPECTED,
        message=(
            "{objects} objects of type {type} in {cache} have {references} references more than "
            "the holders that are known here, and something that is not known points at them."
        ),
        subject=Ref(type_name, ops_name, int(found.address[group[0]])),
        evidence=(
            Evidence("objects", Kind.COUNT, len(group)),
            Evidence("references", Kind.COUNT, int(result.audit.left[group].sum())),
            Evidence("type", Kind.TEXT, type_name),
            Evidence("cache", Kind.UNTRUSTED, cache.name),
            Evidence("pointed_at_from", Kind.UNTRUSTED, tuple(places[:_PLACES_SHOWN])),
            Evidence(
                "examples", Kind.ADDRESS, tuple(found.address[group[:_EXAMPLES_SHOWN]].tolist())
            ),
        ),
        signature_key=(type_name, *places[:_PLACES_SHOWN]),
        related=(Ref("slab cache", cache.name, cache.cache.value_()),),
        unread=("what the unknown pointers mean",),
    )


@dataclasses.dataclass(frozen=True)
class _Allocators:
    """Who allocated leaked fences, from SLUB tracks; empty without them."""

    stacks: Tuple[Stack, ...] = ()
    evidence: Tuple[Evidence, ...] = ()
    signature: Tuple[str, ...] = ()

    @staticmethod
    def of(
        ctx: Context, index: SlabIndex, objects: npt.NDArray[np.uint64], cache_number: int
    ) -> _Allocators:
        cache = index.caches[cache_number]
        if not has_tracks(cache):
            return _Allocators()
        tracks = alloc_tracks(ctx.prog, cache, objects.tolist())
        if not tracks.read.all():
            ctx.coverage.gap(
                "SLUB track", "it is empty or not in the dump", count=int((~tracks.read).sum())
            )
        counts = np.bincount(tracks.stack[tracks.stack >= 0], minlength=len(tracks.stacks))
        order = np.argsort(-counts, kind="stable")[:_STACKS_SHOWN]
        stacks = tuple(stack_of_addresses(ctx.prog, tracks.stacks[i]) for i in order)
        if not stacks:
            return _Allocators()
        function = _allocating_function(stacks[0])
        pids = np.unique(tracks.pid[tracks.read]).tolist()
        return _Allocators(
            stacks,
            (
                Evidence("allocating_function", Kind.TEXT, function),
                Evidence("allocating_pids", Kind.PID, tuple(pids)),
                Evidence("allocating_comms", Kind.SENSITIVE, _comms(ctx.prog, pids)),
                Evidence("objects_by_stack", Kind.COUNT, tuple(int(counts[i]) for i in order)),
            ),
            (function,),
        )


#: What is between an allocation and the code that wanted it.
_ALLOCATOR = re.compile(
    r"_*(kmem_cache_alloc|kmalloc|kzalloc|slab_|set_track|slub_|virtio_gpu_fence_alloc).*"
)


def _allocating_function(stack: Stack) -> str:
    """The function that wanted the fence, behind the allocator's own."""
    for frame in stack.frames:
        if not _ALLOCATOR.fullmatch(frame.function):
            return frame.function.partition(".")[0]
    return "an unknown function"


def _comms(prog: Program, pids: Sequence[int]) -> Tuple[str, ...]:
    """The comms of threads that still live, and the PIDs of those that do not."""
    comms = []
    for pid in pids:
        task = find_task(prog, pid)
        comms.append(task_comm(task) if task else f"PID {pid}, which has ended")
    return tuple(sorted(set(comms)))


def _rows(index: SlabIndex, result: _Result) -> Iterator[Fence]:
    every, found, audited = result.fences, result.fences.found, result.audit
    not_judged, no_code = Absent(_NOT_JUDGED), Absent("only the driver's code knows")
    nobody = np.zeros(len(found.address), dtype=np.int64)
    order = np.lexsort((found.address, every.seqno, every.context, -audited.left))
    for i in order.tolist():
        is_virtio_gpu = bool(result.virtio_gpu[i])
        verdict = Verdict(int(audited.verdict[i]))
        held = {f"held_by_{kind}": int(audited.holders.get(kind, nobody)[i]) for kind in _HOLDERS}
        yield Fence(
            address=int(found.address[i]),
            ops=found.tables[int(found.ops[i])],
            driver=DRIVER_NAME if is_virtio_gpu else no_code,
            timeline=TIMELINE_NAME if is_virtio_gpu else no_code,
            context=int(every.context[i]),
            seqno=int(every.seqno[i]),
            last_completed_seqno=int(result.last_completed[i]) if is_virtio_gpu else no_code,
            signaled=bool(every.signaled[i]),
            flags=int(every.flags[i]),
            refcount=int(every.refcount[i]),
            **held,
            unexplained=not_judged if verdict == Verdict.NOT_JUDGED else int(audited.left[i]),
            verdict=verdict.text,
            cache=index.caches[found.cache[i]].name,
        )


ANALYSIS = Analysis(
    name="dma-fences",
    analyze=analyze,
    tables=(Fence,),
    rules=(LEAKED, UNKNOWN_HOLDER),
    requires=Requires(types=("struct dma_fence", "struct dma_fence_ops")),
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
