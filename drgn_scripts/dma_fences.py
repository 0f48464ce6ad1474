# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Every dma_fence in slab memory, and the references that nobody holds.

Fences are recognised in any slab cache by their pointer to a variable of type
``struct dma_fence_ops``. For each one the reference count is compared with
the holders that can be found: the driver's list of emitted fences, the
reservation objects of all GEM objects, sync_files, fence arrays and their
callbacks, framebuffers in an update, and the live stacks and registers of
tasks. References that are left over were taken and never dropped: VT201.

It decides by holders alone, never by a number of fences. A fence whose
reference count is 0 is being freed, and is no leak. A task that has a fence on
its live stack is taken as holding all that is left over, so a leak can be
missed there, but none is made up.

It cannot see fences outside slab memory, fences whose ``ops`` pointer the
kernel has cleared (newest kernels, once signaled), and holders of other kinds;
so a finding is `likely`, not proven. Fences of drivers whose own list of
pending fences is not known here are listed, but not judged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Program, offsetof
from drgn.helpers import ValidationError
from drgn.helpers.linux.pid import find_task

from vmcore_tools.analysis import Analysis, Context, Requires
from vmcore_tools.frames import stack_of_addresses
from vmcore_tools.kernel.dma_fence import (
    DMA_FENCE,
    Fences,
    array_callbacks_max,
    array_members,
    by_name,
    count_by_address,
    fences,
    reserved_fences,
)
from vmcore_tools.kernel.drm import for_each_drm_device, for_each_drm_file
from vmcore_tools.kernel.drm_gem import GEM_OBJECT, for_each_gem_handle
from vmcore_tools.kernel.layout import as_structs, field_dtype
from vmcore_tools.kernel.slab import SlabIndex, slab_index
from vmcore_tools.kernel.slub_tracks import alloc_tracks, has_tracks
from vmcore_tools.kernel.sync_file import for_each_sync_file
from vmcore_tools.kernel.task import for_each_bounded_task, live_words, task_comm
from vmcore_tools.kernel.typed_objects import Found, find_embedded
from vmcore_tools.kernel.virtio_gpu import (
    DRIVER_NAME,
    TIMELINE_NAME,
    for_each_emitted_fence,
    for_each_framebuffer_fence,
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
sync_files, fence arrays and their callbacks, framebuffers in an update, live
task stacks and registers. What is left over is leaked.

`references_leaked` counts references, `objects` the fences that have them, and
`objects_only_leaked` those that nothing else holds: these stay for ever. The
others are also held rightly by somebody, and become such when he lets go.

The finding is `likely`: a holder of another kind would refute it. Fences that
are being built, in flight or being freed are never counted.""",
)


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
    state: str = column(Kind.TEXT)
    flags: int = column(Kind.NUMBER)
    refcount: int = column(Kind.COUNT)
    held_by_driver: int = column(Kind.COUNT)
    held_by_reservation: int = column(Kind.COUNT)
    held_by_sync_file: int = column(Kind.COUNT)
    held_by_array: int = column(Kind.COUNT)
    held_by_framebuffer: int = column(Kind.COUNT)
    held_by_callback: int = column(Kind.COUNT)
    on_task_stacks: int = column(Kind.COUNT)
    unexplained: Maybe[int] = column(Kind.COUNT)
    cache: str = column(Kind.UNTRUSTED)


Counts = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class _Audit:
    """
    Fences and their holders: int64 arrays of shape (n,), in the fences' order.

    *judged* says whose driver's own list is known; *unexplained* is 0 elsewhere.
    """

    fences: Fences
    holders: Dict[str, Counts]
    stacks: Counts
    virtio_gpu: npt.NDArray[np.bool_]
    last_completed: Counts
    judged: npt.NDArray[np.bool_]
    unexplained: Counts


def analyze(ctx: Context) -> Iterator[Any]:
    index = slab_index(ctx.prog, ctx.memory)
    kinds = [DMA_FENCE, GEM_OBJECT] if _has_gem(ctx.prog) else [DMA_FENCE]
    found = find_embedded(index, kinds)
    audit = _audit(ctx, index, fences(ctx.prog, found[DMA_FENCE]), found.get(GEM_OBJECT))
    _count_gaps(ctx, index, audit)
    yield from _findings(ctx, index, audit)
    yield from _rows(index, audit)


def _has_gem(prog: Program) -> bool:
    try:
        prog.type("struct drm_gem_object")
    except LookupError:
        return False
    return True


def _audit(ctx: Context, index: SlabIndex, all_fences: Fences, gems: Optional[Found]) -> _Audit:
    targets = all_fences.found.address
    names = ("driver", "reservation", "sync_file", "array", "framebuffer", "callback")
    holders = {name: np.zeros(len(targets), dtype=np.int64) for name in names}
    virtio_gpu = np.zeros(len(targets), dtype=bool)
    last_completed = np.full(len(targets), -1, dtype=np.int64)

    def hold(name: str, held: Sequence[int]) -> None:
        holders[name] += count_by_address(np.array(held, dtype=np.uint64), targets)

    if gems is not None:
        hold("reservation", _reserved(ctx, gems))
        for device in for_each_virtio_gpu_device(ctx.prog):
            # Only this driver's fences have the lock of its timeline.
            mine = all_fences.lock == np.uint64(device.fence_drv.lock.address_)
            virtio_gpu |= mine
            last_completed[mine] = last_completed_seqno(device)
            hold("driver", _walk(ctx, "emitted fences", for_each_emitted_fence(device)))
            hold("framebuffer", _walk(ctx, "framebuffers", for_each_framebuffer_fence(device)))
    with contextlib.suppress(LookupError):  # a kernel without sync_files
        hold("sync_file", [f.fence.value_() for f, _ in for_each_sync_file(index)])
    arrays = by_name(all_fences.found.tables, all_fences.found.ops, "dma_fence_array_ops")
    members = array_members(ctx.prog, targets[arrays].tolist())
    hold("array", [member for member, _ in members])
    for i in np.flatnonzero(arrays).tolist():
        others = sum(int(held[i]) for held in holders.values())
        callbacks = array_callbacks_max(ctx.prog, int(targets[i]))
        holders["callback"][i] = max(0, min(int(all_fences.refcount[i]) - others, callbacks))

    stacks = _on_stacks(ctx, targets)
    left = all_fences.refcount - np.sum(list(holders.values()), axis=0)
    freeing = all_fences.refcount <= 0
    judged = virtio_gpu | arrays | freeing
    unexplained = np.where(judged & ~freeing & (stacks == 0) & (left > 0), left, 0)
    return _Audit(all_fences, holders, stacks, virtio_gpu, last_completed, judged, unexplained)


def _reserved(ctx: Context, gems: Found) -> List[int]:
    """The fences that reservation objects of GEM objects hold, one for each slot."""
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
    reserved = reserved_fences(prog, sorted(reservations))
    for address in reserved.unread:
        ctx.coverage.gap("reservation object", "it could not be read", address)
    return [int(fence) for fence in reserved.fence]


def _walk(ctx: Context, what: str, fences_: Iterator[Any]) -> List[int]:
    """Addresses of the ``struct dma_fence`` in virtio_gpu fences of a list."""
    addresses: List[int] = []
    offset = offsetof(ctx.prog.type("struct virtio_gpu_fence"), "f")
    try:
        for fence in fences_:
            addresses.append(fence.value_() + offset)
    except (FaultError, ValidationError) as error:
        ctx.coverage.gap(what, f"the walk broke off: {error}")
    return addresses


def _on_stacks(ctx: Context, targets: npt.NDArray[np.uint64]) -> Counts:
    """On how many places of live stacks and registers each fence is."""
    counts = np.zeros(len(targets), dtype=np.int64)
    if not len(targets):
        return counts
    for task in for_each_bounded_task(ctx.prog):
        try:
            counts += count_by_address(live_words(task), targets)
        except FaultError:
            ctx.coverage.gap("task stack", "it is not in the dump", task.value_())
    return counts


def _count_gaps(ctx: Context, index: SlabIndex, audit: _Audit) -> None:
    for problem in index.problems:
        ctx.coverage.gap("slab", problem.reason, problem.address)
    if index.unread_page_structs:
        ctx.coverage.gap("struct page", "it is not in the dump", count=index.unread_page_structs)
    others = int((~audit.judged).sum())
    if others:
        ctx.coverage.gap(
            "dma_fence", "its driver's own list of fences is not known here", count=others
        )


def _findings(ctx: Context, index: SlabIndex, audit: _Audit) -> Iterator[Any]:
    leaked = np.flatnonzero(audit.unexplained)
    if not len(leaked):
        return
    found = audit.fences.found
    keys = list(zip(found.ops[leaked].tolist(), found.cache[leaked].tolist()))
    for ops, cache_number in sorted(set(keys), key=lambda key: (found.tables[key[0]], key[1])):
        group = leaked[[key == (ops, cache_number) for key in keys]]
        yield from _finding(ctx, index, audit, group)


def _finding(
    ctx: Context, index: SlabIndex, audit: _Audit, group: npt.NDArray[np.int64]
) -> Iterator[Any]:
    found, every = audit.fences.found, audit.fences
    cache = index.caches[found.cache[group[0]]]
    ops_name = found.tables[int(found.ops[group[0]])]
    is_virtio_gpu = bool(audit.virtio_gpu[group[0]])
    type_name = "struct virtio_gpu_fence" if is_virtio_gpu else "struct dma_fence_array"
    references = audit.unexplained[group]
    only_leaked = every.refcount[group] == references
    evidence = [
        Evidence("references_leaked", Kind.COUNT, int(references.sum())),
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
        Evidence(
            "fences_explained",
            Kind.COUNT,
            int((audit.judged & (every.refcount > 0) & (audit.unexplained == 0)).sum()),
        ),
        Evidence("examples", Kind.ADDRESS, tuple(found.address[group[:_EXAMPLES_SHOWN]].tolist())),
    ]
    if is_virtio_gpu:
        evidence.append(
            Evidence("last_completed_seqno", Kind.NUMBER, int(audit.last_completed[group[0]]))
        )
    allocators = _Allocators.of(ctx, index, found.container[group], found.cache[group[0]])
    yield from allocators.stacks
    template = (
        "{references_leaked} references leaked on {objects} objects of type {type} in {cache}; "
        "{objects_only_leaked} of them ({size_bytes}) live only through these references"
    )
    if allocators.evidence:
        template += ", allocated by {allocating_comms} in {allocating_function}"
        evidence += allocators.evidence
    yield Finding(
        rule=LEAKED,
        confidence=Confidence.LIKELY,
        message=template + ".",
        subject=Ref(type_name, ops_name, int(found.address[group[0]])),
        evidence=tuple(evidence),
        signature_key=(type_name, *allocators.signature),
        related=(Ref("slab cache", cache.name, cache.cache.value_()),),
        stacks=tuple(stack.id for stack in allocators.stacks),
        unread=("memory other than the holders that VT201's page names",),
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


def _rows(index: SlabIndex, audit: _Audit) -> Iterator[Fence]:
    every, found = audit.fences, audit.fences.found
    not_judged = Absent("its driver's own list of fences is not known here")
    order = np.lexsort((found.address, every.seqno, every.context, -audit.unexplained))
    for i in order.tolist():
        is_virtio_gpu = bool(audit.virtio_gpu[i])
        no_code = Absent("only the driver's code knows")
        yield Fence(
            address=int(found.address[i]),
            ops=found.tables[int(found.ops[i])],
            driver=DRIVER_NAME if is_virtio_gpu else no_code,
            timeline=TIMELINE_NAME if is_virtio_gpu else no_code,
            context=int(every.context[i]),
            seqno=int(every.seqno[i]),
            last_completed_seqno=int(audit.last_completed[i]) if is_virtio_gpu else no_code,
            state=_state(int(every.refcount[i]), bool(every.signaled[i])),
            flags=int(every.flags[i]),
            refcount=int(every.refcount[i]),
            held_by_driver=int(audit.holders["driver"][i]),
            held_by_reservation=int(audit.holders["reservation"][i]),
            held_by_sync_file=int(audit.holders["sync_file"][i]),
            held_by_array=int(audit.holders["array"][i]),
            held_by_framebuffer=int(audit.holders["framebuffer"][i]),
            held_by_callback=int(audit.holders["callback"][i]),
            on_task_stacks=int(audit.stacks[i]),
            unexplained=int(audit.unexplained[i]) if audit.judged[i] else not_judged,
            cache=index.caches[found.cache[i]].name,
        )


def _state(refcount: int, signaled: bool) -> str:
    if refcount <= 0:
        return "freeing"
    return "signaled" if signaled else "pending"


ANALYSIS = Analysis(
    name="dma-fences",
    analyze=analyze,
    tables=(Fence,),
    rules=(LEAKED,),
    requires=Requires(types=("struct dma_fence", "struct dma_fence_ops")),
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
