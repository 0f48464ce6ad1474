# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Every dma_fence in slab memory, and the references that nobody holds.

Fences are recognised in any slab cache by their pointer to a variable of type
``struct dma_fence_ops``. For each one the reference count is compared with
the holders that can be found: the driver's list of emitted fences, the
reservation objects of all GEM objects and dma-bufs, sync_files, fence arrays
and chains, drm_syncobjs, the GPU scheduler, planes in an update, and
callbacks. Where references are left over, all of kernel memory is searched
for pointers to the fence. If there are none, the references were taken and
never dropped: VT201. A fence that a task has on its live stack or in a
register is in use. Any other pointer is named: VT202.

Where holders are left over, a pointer was kept after its reference was
dropped, or a reference was dropped twice: VT203. So it is if a holder points
to memory that is free.

It decides by holders alone, never by a number of fences. A fence whose
reference count is 0 is being freed, and is no leak; so are those that wait
for the end of an RCU grace period.

It cannot see fences outside slab memory, and pointers that are not stored as
they are. Fences of drivers whose own list of pending fences is not known here
are judged where nothing points at them; others of them are only listed. Where
the kernel clears the ``ops`` pointer of signaled fences (v7.1 and later), only
those of virtio_gpu are still recognised.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Iterator, List, Tuple

import numpy as np
import numpy.typing as npt

from vmcore_tools.analysis import Analysis, Context, ManyRows, Requires
from vmcore_tools.audit_findings import (
    Allocators,
    Dangling,
    Proof,
    count_audit_gaps,
    kmemleak_evidence,
    live_only_through_these,
    more_than_known_holders,
    pointed_at_from,
    references_leaked,
)
from vmcore_tools.kernel.audit import Audit, Verdict
from vmcore_tools.kernel.dma_fence import Fences
from vmcore_tools.kernel.fence_holders import KINDS, FenceHolders, fence_holders
from vmcore_tools.kernel.judged import judged_fences
from vmcore_tools.kernel.slab import SlabIndex, slab_index
from vmcore_tools.kernel.virtio_gpu import DRIVER_NAME, TIMELINE_NAME
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
from vmcore_tools.words import plural

#: Example addresses in a finding.
_EXAMPLES_SHOWN = 4
#: Contexts in a finding: each fence array has one of its own.
_CONTEXTS_SHOWN = 16
#: Functions that allocate fences for others.
_WRAPPERS = "virtio_gpu_fence_alloc"

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
driver's list of emitted fences, reservation objects of all GEM objects and
dma-bufs, sync_files, fence arrays and chains, drm_syncobjs, the GPU scheduler,
planes in an update, callbacks. For the fences with references left over, every
word of kernel memory in the dump and all registers are searched for pointers.
Free slab objects, what waits to be freed, dead parts of stacks and the fence
itself do not count.

`references_leaked` counts references, `objects` the fences that have them, and
`objects_only_leaked` those that nothing else holds: these stay for ever. The
others are also held rightly by somebody, and become such when he lets go.

It is `proven` if no pointer was found and every page that could hold one was
read, and the registers of all CPUs; `likely` if something of it is not in the
dump, or if the target is live and went on meanwhile. An object to which a single
stray pointer is found is likely leaked if others of its type are proven to be, and
so is one whose driver is not known here and that has not signaled yet, or that
somebody known holds as well: the driver may have two references for one pointer.
`references_proven` and `references_likely` tell how many.

Where the kernel has kmemleak, `objects_kmemleak_reports` tells how many of the
fences that only leaked references keep are on its own list as well. kmemleak
does not report what is younger than its last scan, nor what a stray pointer
leads to.""",
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
DANGLING = Rule(
    id="VT203",
    slug="dangling-dma-fence-pointer",
    severity=Severity.ERROR,
    summary="dma_fence objects have more holders than references, or are freed and still held.",
    remedy=(
        "Look for a dma_fence_put() too many, or for a pointer that is kept after the put, "
        "in the code of the holders that are named."
    ),
    page="""\
The opposite of VT201: each holder must have a reference of its own. `objects`
are fences that live and have fewer references than holders (or none);
`freed_objects` are places where a holder points to memory that is free, a slab
object or a page that its slab gave back: the next use of it is a use after
free. `objects_saturated` have a count that the kernel itself set to
REFCOUNT_SATURATED, because it ran over or was dropped below 0; its log has the
warning.

Holders that drop their reference before they clear their pointer count only as
far as references are left, and a fence that a task has on its stack or in a
register is left out: its count may be changing. `likely` where registers are
not in the dump, or the target is live.""",
)
_NOT_JUDGED = "its driver's own list of fences is not known here, and something points at it"


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
    held_by_chain: int = column(Kind.COUNT)
    held_by_syncobj: int = column(Kind.COUNT)
    held_by_scheduler: int = column(Kind.COUNT)
    held_by_plane: int = column(Kind.COUNT)
    held_by_callback: int = column(Kind.COUNT)
    unexplained: Maybe[int] = column(Kind.COUNT)
    verdict: str = column(Kind.TEXT)
    cache: str = column(Kind.UNTRUSTED)


@dataclasses.dataclass(frozen=True)
class _Result:
    """Fences and their audit; arrays of shape (n,) in the fences' order."""

    holders: FenceHolders
    audit: Audit

    @property
    def fences(self) -> Fences:
        return self.holders.fences

    def with_verdict(self, *verdicts: Verdict) -> npt.NDArray[np.int64]:
        """Positions of the fences with one of these verdicts."""
        return np.flatnonzero(np.isin(self.audit.verdict, list(verdicts)))


def analyze(ctx: Context) -> Iterator[Any]:
    index = slab_index(ctx.prog, ctx.memory)
    holders = fence_holders(index)
    audited = _Result(holders, judged_fences(index, holders, ctx.progress))
    _count_gaps(ctx, index, audited)
    yield from _leaks(ctx, index, audited)
    for group in _groups(audited, Verdict.UNKNOWN_HOLDER):
        yield _unknown_holder(index, audited, group)
    yield from _dangling(index, audited)
    yield ManyRows(Fence, len(holders.fences.found.address), _rows(index, audited))


def _count_gaps(ctx: Context, index: SlabIndex, result: _Result) -> None:
    count_audit_gaps(ctx, index, result.audit, "fences")
    for what, reason, address in result.holders.gaps:
        ctx.coverage.gap(what, reason, address)
    others = len(result.with_verdict(Verdict.NOT_JUDGED))
    if others:
        ctx.coverage.gap("dma_fence", _NOT_JUDGED, count=others)


def _groups(result: _Result, *verdicts: Verdict) -> Iterator[npt.NDArray[np.int64]]:
    """The fences with a verdict that have the same operations and cache."""
    chosen = result.with_verdict(*verdicts)
    found = result.fences.found
    _, first, group = np.unique(
        np.stack([found.ops[chosen], found.cache[chosen].astype(np.uint64)]),
        axis=1,
        return_index=True,
        return_inverse=True,
    )

    def by_name(number: int) -> Tuple[str, int]:
        fence = chosen[first[number]]
        return _ops_name(result, fence), int(found.cache[fence])

    for number in sorted(range(len(first)), key=by_name):
        yield chosen[group.reshape(-1) == number]


def _ops_name(result: _Result, fence: int) -> str:
    found = result.fences.found
    return found.tables[int(found.ops[fence])]


def _type_name(result: _Result, fence: int) -> str:
    if result.holders.virtio_gpu[fence]:
        return "struct virtio_gpu_fence"
    names = {
        "dma_fence_array_ops": "struct dma_fence_array",
        "dma_fence_chain_ops": "struct dma_fence_chain",
        "timeline_fence_ops": "struct sync_pt",
        "drm_sched_fence_ops_scheduled": "struct drm_sched_fence",
        "drm_sched_fence_ops_finished": "struct drm_sched_fence",
    }
    return names.get(_ops_name(result, fence), "struct dma_fence")


def _signature(type_name: str, ops_name: str) -> Tuple[str, ...]:
    """
    What is the same of fences with SLUB tracks and without.

    The name of virtio_gpu's operations is not: it changed, and v7.1 clears the pointer.
    """
    return (type_name, ops_name) if type_name == "struct dma_fence" else (type_name,)


def _leaks(ctx: Context, index: SlabIndex, result: _Result) -> Iterator[Any]:
    for group in _groups(result, Verdict.LEAKED, Verdict.LIKELY_LEAKED):
        yield from _leak(ctx, index, result, group)


def _leak(
    ctx: Context, index: SlabIndex, result: _Result, group: npt.NDArray[np.int64]
) -> Iterator[Any]:
    found, every = result.fences.found, result.fences
    cache = index.caches[found.cache[group[0]]]
    ops_name, type_name = _ops_name(result, group[0]), _type_name(result, group[0])
    references = result.audit.left[group]
    only_leaked = every.refcount[group] == references
    explained = result.with_verdict(Verdict.EXPLAINED)
    is_proven = result.audit.verdict[group] == Verdict.LEAKED
    proof = Proof.of(result.audit, int(references.sum()), int(references[is_proven].sum()))
    contexts = np.unique(every.context[group])
    evidence = [
        Evidence("references_leaked", Kind.COUNT, int(references.sum())),
        *proof.evidence,
        Evidence("objects", Kind.COUNT, len(group)),
        Evidence("objects_only_leaked", Kind.COUNT, int(only_leaked.sum())),
        Evidence("size_bytes", Kind.BYTES, int(only_leaked.sum()) * cache.size_bytes),
        Evidence("cache", Kind.UNTRUSTED, cache.name),
        Evidence("type", Kind.TEXT, type_name),
        Evidence("ops", Kind.TEXT, ops_name),
        Evidence("objects_signaled", Kind.COUNT, int(every.signaled[group].sum())),
        Evidence("context", Kind.NUMBER, tuple(contexts[:_CONTEXTS_SHOWN].tolist())),
        Evidence("contexts", Kind.COUNT, len(contexts)),
        Evidence("seqno_first", Kind.NUMBER, int(every.seqno[group].min())),
        Evidence("seqno_last", Kind.NUMBER, int(every.seqno[group].max())),
        Evidence("fences_explained", Kind.COUNT, len(explained)),
        Evidence("examples", Kind.ADDRESS, tuple(found.address[group[:_EXAMPLES_SHOWN]].tolist())),
        *kmemleak_evidence(index, found.container[group[only_leaked]]),
    ]
    if result.holders.virtio_gpu[group[0]]:
        last = int(result.holders.last_completed[group[0]])
        evidence.append(Evidence("last_completed_seqno", Kind.NUMBER, last))
    allocators = Allocators.of(
        ctx, index, found.container[group], int(found.cache[group[0]]), _WRAPPERS
    )
    yield from allocators.stacks
    total, only, number = int(references.sum()), int(only_leaked.sum()), len(group)
    what = f"{plural(number, 'object')} of type {{type}} in {{cache}}"
    message = references_leaked(total, number, what)
    message += live_only_through_these(total, number, only, " ({size_bytes})")
    if allocators.evidence:
        message += ", allocated by {allocating_comms} in {allocating_function}"
        evidence += allocators.evidence
    yield Finding(
        rule=LEAKED,
        confidence=proof.confidence,
        message=message + proof.message,
        subject=Ref(type_name, ops_name, int(found.address[group[0]])),
        evidence=tuple(evidence),
        signature_key=_signature(type_name, ops_name),
        clues=allocators.clues,
        related=(Ref("slab cache", cache.name, cache.cache.value_()),),
        stacks=tuple(stack.id for stack in allocators.stacks),
        unread=proof.unread,
    )


def _unknown_holder(index: SlabIndex, result: _Result, group: npt.NDArray[np.int64]) -> Finding:
    found = result.fences.found
    cache = index.caches[found.cache[group[0]]]
    ops_name, type_name = _ops_name(result, group[0]), _type_name(result, group[0])
    places = pointed_at_from(result.audit, group)
    return Finding(
        rule=UNKNOWN_HOLDER,
        confidence=Confidence.SUSPECTED,
        message=more_than_known_holders(
            int(result.audit.left[group].sum()),
            len(group),
            f"{plural(len(group), 'object')} of type {{type}} in {{cache}}",
        ),
        subject=Ref(type_name, ops_name, int(found.address[group[0]])),
        evidence=(
            Evidence("objects", Kind.COUNT, len(group)),
            Evidence("references", Kind.COUNT, int(result.audit.left[group].sum())),
            Evidence("type", Kind.TEXT, type_name),
            Evidence("cache", Kind.UNTRUSTED, cache.name),
            Evidence("pointed_at_from", Kind.UNTRUSTED, places),
            Evidence(
                "examples", Kind.ADDRESS, tuple(found.address[group[:_EXAMPLES_SHOWN]].tolist())
            ),
        ),
        signature_key=(*_signature(type_name, ops_name), *places),
        related=(Ref("slab cache", cache.name, cache.cache.value_()),),
        unread=("what the unknown pointers mean",),
    )


def _dangling(index: SlabIndex, result: _Result) -> Iterator[Finding]:
    """One finding of all holders without a reference: they may well have one cause."""
    found, every, audited = result.fences.found, result.fences, result.audit
    alive = result.with_verdict(Verdict.DANGLING)
    saturated = result.with_verdict(Verdict.SATURATED)
    if not (len(alive) or len(saturated) or len(audited.stale.address)):
        return
    common = Dangling.of(audited, alive)
    types = {_type_name(result, i) for i in (*alive.tolist(), *saturated.tolist())}
    type_name = min(types) if types else "struct dma_fence"
    caches = {int(found.cache[i]) for i in (*alive.tolist(), *saturated.tolist())}
    caches.update(audited.stale.cache[audited.stale.cache >= 0].tolist())
    examples: List[int] = []
    for addresses in (audited.stale.address, found.address[alive], found.address[saturated]):
        examples += addresses[:_EXAMPLES_SHOWN].tolist()
    yield Finding(
        rule=DANGLING,
        confidence=common.confidence,
        message=common.message("fence", len(saturated)),
        subject=Ref(type_name, "", examples[0]),
        evidence=(
            *common.evidence,
            Evidence("objects_saturated", Kind.COUNT, len(saturated)),
            Evidence("objects_signaled", Kind.COUNT, int(every.signaled[alive].sum())),
            Evidence("examples", Kind.ADDRESS, tuple(examples[: 2 * _EXAMPLES_SHOWN])),
        ),
        signature_key=("dangling", type_name, *common.kinds),
        related=tuple(
            Ref("slab cache", index.caches[number].name, index.caches[number].cache.value_())
            for number in sorted(caches)
        ),
        unread=common.unread,
    )


def _rows(index: SlabIndex, result: _Result) -> Iterator[Fence]:
    every, found, audited = result.fences, result.fences.found, result.audit
    not_judged, no_code = Absent(_NOT_JUDGED), Absent("only the driver's code knows")
    last_completed = result.holders.last_completed
    nobody = np.zeros(len(found.address), dtype=np.int64)
    order = np.lexsort((found.address, every.seqno, every.context, -audited.left))
    for i in order.tolist():
        is_virtio_gpu = bool(result.holders.virtio_gpu[i])
        verdict = Verdict(int(audited.verdict[i]))
        held = {f"held_by_{kind}": int(audited.holders.get(kind, nobody)[i]) for kind in KINDS}
        yield Fence(
            address=int(found.address[i]),
            ops=found.tables[int(found.ops[i])],
            driver=DRIVER_NAME if is_virtio_gpu else no_code,
            timeline=TIMELINE_NAME if is_virtio_gpu else no_code,
            context=int(every.context[i]),
            seqno=int(every.seqno[i]),
            last_completed_seqno=int(last_completed[i]) if is_virtio_gpu else no_code,
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
    rules=(LEAKED, UNKNOWN_HOLDER, DANGLING),
    requires=Requires(builtin=("struct dma_fence", "struct dma_fence_ops")),
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
