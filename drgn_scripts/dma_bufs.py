# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Every dma-buf, who holds it, and the references that nobody holds.

dma-bufs are found by their files. The reference count of a dma-buf is that of
its file, and it is compared with the holders that can be found: descriptors of
all processes, descriptors on their way through unix sockets, memory mappings,
GEM objects that were exported or imported, and what open DRM files remember of
them (PRIME). Where references are left over, all of kernel memory is searched
for pointers to the dma-buf and to its file. If there are none, the references
were taken and never dropped: VT401. A dma-buf that a task has on its live
stack or in a register is in use. Any other pointer is named: VT402. Holders
without a reference, and pointers to freed dma-bufs, are the opposite: VT403.
Entries of PRIME caches that are not of their dma-buf any more are VT404,
imports in a circle, which keep each other for ever, VT405.

The second table has the processes that keep dma-bufs by descriptors or
mappings, and how many of these nothing else keeps: what a daemon has forgotten
to close is held, and no leak.

It decides by holders alone, never by a number of dma-bufs or by their age: one
that a descriptor keeps is held, however long it has been open. A dma-buf whose
count is 0 is being freed, and is no leak.

Importers of other subsystems (V4L2, RDMA) are known by their attachments, as
long as anything points at these: an attachment that nobody knows any more is
leaked with its reference. It cannot see pointers that are not stored as they
are, and does not walk other holders, such as io_uring's fixed files: their
dma-bufs are reported as held by something unknown, not as leaked.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program
from drgn.helpers import ValidationError

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
from vmcore_tools.dma_buf_findings import (
    IMPORT_CYCLE,
    STALE_CACHE,
    import_cycles,
    stale_cache,
)
from vmcore_tools.kernel.audit import Audit, Verdict
from vmcore_tools.kernel.dma_buf import (
    DmaBufs,
    ages_ns,
    dma_buf_name,
    for_each_attachment,
)
from vmcore_tools.kernel.dma_buf_holders import KINDS, DmaBufHolders, dma_buf_holders
from vmcore_tools.kernel.files import mm_users
from vmcore_tools.kernel.judged import judged_dma_bufs
from vmcore_tools.kernel.slab import SlabIndex, slab_index
from vmcore_tools.kernel.strings import device_name, text_at
from vmcore_tools.kernel.task import process_of, task_comm
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

_TYPE = "struct dma_buf"
#: Example addresses in a finding.
_EXAMPLES_SHOWN = 4
#: Descriptors and mappings of one dma-buf that a row names.
_USERS_SHOWN = 4
#: Functions that only allocate a dma-buf for their caller.
_WRAPPERS = "dma_buf_export|drm_gem_dmabuf_export|virtio_dma_buf_export|drm_gem_prime_export"

LEAKED = Rule(
    id="VT401",
    slug="leaked-dma-buf",
    severity=Severity.ERROR,
    summary="References to dma-bufs were taken and never dropped.",
    remedy=(
        "Look for a missing dma_buf_put() or fput() in the drivers that import or export them; "
        "the allocating stack names the exporter where SLUB tracks are on (boot with slub_debug=U)."
    ),
    page="""\
The reference count of each dma-buf's file is compared with the holders that
were found: descriptors, descriptors in messages of unix sockets, mappings, GEM
objects that were exported or imported, PRIME caches of open DRM files, and
other devices' attachments that something points at. For the
dma-bufs with references left over, every word of kernel memory in the dump and
all registers are searched for pointers to the dma-buf or to its file. Free slab
objects, dead parts of stacks, the list of all dma-bufs and the watches of epoll
do not count.

`references_leaked` counts references, `objects` the dma-bufs that have them,
and `objects_only_leaked` those that nothing else holds: they and their memory,
`size_bytes`, stay for ever.

It is `proven` if every page that could hold a pointer was read, and the
registers of all CPUs; otherwise `likely`. A dma-buf to which any pointer is
found that is not explained is never counted here, but under VT402.""",
)
UNKNOWN_HOLDER = Rule(
    id="VT402",
    slug="dma-buf-with-unknown-holder",
    severity=Severity.WARNING,
    summary="dma-bufs have more references than known holders, and are pointed at.",
    remedy=(
        "Look at what points at the dma-bufs: a subsystem that this version does not know "
        "is no leak, a stale pointer may be the trace of one."
    ),
    page="""\
As VT401, but something points at the dma-bufs or their files that is neither a
known holder nor a task's stack or register, nor a slab object that a task has
there, as one that it is just building up. It may be a holder of a kind that is
not known here, so a leak is not claimed.""",
)
DANGLING = Rule(
    id="VT403",
    slug="dangling-dma-buf-pointer",
    severity=Severity.ERROR,
    summary="dma-bufs have more holders than references, or are freed and still held.",
    remedy=(
        "Look for a dma_buf_put() or fput() too many, or for a pointer that is kept after the "
        "put, in the code of the holders that are named."
    ),
    page="""\
The opposite of VT401: each holder must have a reference of its own. `objects`
are dma-bufs that live and have fewer references than holders; `freed_objects`
are places where a holder, such as an entry of a PRIME cache, points to memory
that is free: the next use of it is a use after free, or of another buffer.

A dma-buf that a task has on its stack or in a register is left out: its count
may be changing. `likely` where registers are not in the dump, or the target is
live.""",
)


@dataclasses.dataclass(frozen=True)
class DmaBuf:
    """A dma-buf; the ones with unexplained references come first."""

    address: int = column(Kind.ADDRESS)
    file: int = column(Kind.ADDRESS)
    exporter: Maybe[str] = column(Kind.UNTRUSTED)
    name: Maybe[str] = column(Kind.SENSITIVE)
    size_bytes: int = column(Kind.BYTES)
    age_ns: Maybe[int] = column(Kind.DURATION)
    refcount: int = column(Kind.COUNT)
    held_by_descriptor: int = column(Kind.COUNT)
    held_by_message: int = column(Kind.COUNT)
    held_by_mapping: int = column(Kind.COUNT)
    held_by_gem: int = column(Kind.COUNT)
    held_by_import: int = column(Kind.COUNT)
    held_by_prime_cache: int = column(Kind.COUNT)
    unexplained: int = column(Kind.COUNT)
    verdict: str = column(Kind.TEXT)
    attachments: Maybe[int] = column(Kind.COUNT)
    devices: Maybe[str] = column(Kind.UNTRUSTED)
    users: str = column(Kind.SENSITIVE)


@dataclasses.dataclass(frozen=True)
class DmaBufProcess:
    """A process with descriptors or mappings of dma-bufs; who alone keeps most comes first."""

    pid: int = column(Kind.PID)
    comm: str = column(Kind.SENSITIVE)
    descriptors: int = column(Kind.COUNT)
    mappings: int = column(Kind.COUNT)
    dma_bufs: int = column(Kind.COUNT)
    size_bytes: int = column(Kind.BYTES)
    only_here: int = column(Kind.COUNT)
    only_here_bytes: int = column(Kind.BYTES)
    oldest_ns: Maybe[int] = column(Kind.DURATION)


@dataclasses.dataclass(frozen=True)
class _Result:
    """dma-bufs and their audit; arrays of shape (n,) in the dma-bufs' order."""

    holders: DmaBufHolders
    audit: Audit

    def with_verdict(self, verdict: Verdict) -> npt.NDArray[np.int64]:
        """Positions of the dma-bufs with a verdict."""
        return np.flatnonzero(self.audit.verdict == verdict)


def analyze(ctx: Context) -> Iterator[Any]:
    index = slab_index(ctx.prog, ctx.memory)
    holders = dma_buf_holders(index)
    if holders is None:
        _count_slab_gaps(ctx, index)
        return
    for what, why, address in holders.gaps:
        ctx.coverage.gap(what, why, address)
    audited = judged_dma_bufs(index, holders, ctx.progress)
    result = _Result(holders, audited)
    count_audit_gaps(ctx, index, audited, "dma-bufs")
    yield from _leaks(ctx, index, result)
    yield from _unknown_holders(ctx, result)
    yield from _dangling(index, result)
    yield from stale_cache(ctx, index, holders)
    yield from import_cycles(ctx, holders)
    ages = _ages(ctx.prog, holders.buffers)
    yield from _processes(ctx.prog, holders, ages)
    yield ManyRows(DmaBuf, len(holders.buffers.file), _rows(ctx, result, ages))


def _count_slab_gaps(ctx: Context, index: SlabIndex) -> None:
    """Files that could not be looked for: there may be dma-bufs among them."""
    for problem in index.problems:
        ctx.coverage.gap("slab", problem.reason, problem.address)
    if index.unread_page_structs:
        ctx.coverage.gap("struct page", "it is not in the dump", count=index.unread_page_structs)


def _exporters(prog: Program, buffers: DmaBufs) -> Tuple[List[Maybe[str]], npt.NDArray[np.int64]]:
    """The names of all exporters, and which one each dma-buf is of."""
    pointers, which = np.unique(buffers.exporter, return_inverse=True)
    names: List[Maybe[str]] = []
    for pointer in pointers.tolist():
        try:
            names.append(text_at(prog, pointer))
        except FaultError:
            names.append(Absent("it is not in the dump"))
    return names, which.reshape(-1)


def _groups(
    ctx: Context, result: _Result, verdict: Verdict
) -> Iterator[Tuple[str, int, npt.NDArray[np.int64]]]:
    """Exporter, cache and positions of the dma-bufs with a verdict, alike ones together."""
    chosen = result.with_verdict(verdict)
    names, which = _exporters(ctx.prog, result.holders.buffers)
    keys = np.stack([which[chosen], result.holders.cache[chosen]])
    pairs, group = np.unique(keys, axis=1, return_inverse=True)
    found = []
    for number, (exporter, cache) in enumerate(pairs.T.tolist()):
        name = names[exporter]
        text = "an unknown exporter" if isinstance(name, Absent) else name
        found.append((text, cache, chosen[group.reshape(-1) == number]))
    yield from sorted(found, key=lambda item: item[:2])


def _leaks(ctx: Context, index: SlabIndex, result: _Result) -> Iterator[Any]:
    buffers = result.holders.buffers
    for exporter, cache, group in _groups(ctx, result, Verdict.LEAKED):
        references = result.audit.left[group]
        only_leaked = buffers.refcount[group] == references
        total = int(references.sum())
        proof = Proof.of(result.audit, total, total)
        addresses = buffers.address[group]
        allocators = Allocators.of(ctx, index, addresses, cache, _WRAPPERS)
        yield from allocators.stacks
        number, only = len(group), int(only_leaked.sum())
        buffers_of = plural(only, "a buffer of {size_bytes}", "buffers of {size_bytes} together")
        what = f"{plural(number, 'dma-buf')} of {{exporter}}"
        message = references_leaked(total, number, what)
        message += live_only_through_these(total, number, only, f", {buffers_of},")
        if allocators.evidence:
            message += ", allocated by {allocating_comms} in {allocating_function}"
        yield Finding(
            rule=LEAKED,
            confidence=proof.confidence,
            message=message + proof.message,
            subject=Ref(_TYPE, exporter, int(addresses[0])),
            evidence=(
                Evidence("references_leaked", Kind.COUNT, total),
                Evidence("objects", Kind.COUNT, len(group)),
                Evidence("objects_only_leaked", Kind.COUNT, int(only_leaked.sum())),
                Evidence("size_bytes", Kind.BYTES, int(buffers.size[group][only_leaked].sum())),
                Evidence("exporter", Kind.UNTRUSTED, exporter),
                Evidence("cache", Kind.UNTRUSTED, index.caches[cache].name),
                Evidence("examples", Kind.ADDRESS, tuple(addresses[:_EXAMPLES_SHOWN].tolist())),
                *proof.evidence,
                *allocators.evidence,
                *kmemleak_evidence(index, addresses),
            ),
            signature_key=(_TYPE, exporter),
            clues=allocators.clues,
            related=(
                Ref("slab cache", index.caches[cache].name, index.caches[cache].cache.value_()),
            ),
            stacks=tuple(stack.id for stack in allocators.stacks),
            unread=proof.unread,
        )


def _unknown_holders(ctx: Context, result: _Result) -> Iterator[Any]:
    buffers = result.holders.buffers
    for exporter, _, group in _groups(ctx, result, Verdict.UNKNOWN_HOLDER):
        places = pointed_at_from(result.audit, group)
        examples = tuple(buffers.address[group[:_EXAMPLES_SHOWN]].tolist())
        yield Finding(
            rule=UNKNOWN_HOLDER,
            confidence=Confidence.SUSPECTED,
            message=more_than_known_holders(
                int(result.audit.left[group].sum()),
                len(group),
                f"{plural(len(group), 'dma-buf')} of {{exporter}}",
            ),
            subject=Ref(_TYPE, exporter, examples[0]),
            evidence=(
                Evidence("objects", Kind.COUNT, len(group)),
                Evidence("references", Kind.COUNT, int(result.audit.left[group].sum())),
                Evidence("exporter", Kind.UNTRUSTED, exporter),
                Evidence("pointed_at_from", Kind.UNTRUSTED, places),
                Evidence("examples", Kind.ADDRESS, examples),
            ),
            signature_key=(_TYPE, exporter, *places),
            unread=("what the unknown pointers mean",),
        )


def _dangling(index: SlabIndex, result: _Result) -> Iterator[Finding]:
    """One finding of all holders without a reference: they may well have one cause."""
    buffers, audited = result.holders.buffers, result.audit
    alive, stale = result.with_verdict(Verdict.DANGLING), audited.stale
    if not (len(alive) or len(stale.address)):
        return
    found = Dangling.of(audited, alive)
    examples = (
        *stale.address[:_EXAMPLES_SHOWN].tolist(),
        *buffers.address[alive[:_EXAMPLES_SHOWN]].tolist(),
    )
    yield Finding(
        rule=DANGLING,
        confidence=found.confidence,
        message=found.message("dma-buf"),
        subject=Ref(_TYPE, "", examples[0]),
        evidence=(
            *found.evidence,
            Evidence("examples", Kind.ADDRESS, examples),
        ),
        signature_key=("dangling", _TYPE, *found.kinds),
        related=tuple(
            Ref("slab cache", index.caches[number].name, index.caches[number].cache.value_())
            for number in sorted(set(stale.cache[stale.cache >= 0].tolist()))
        ),
        unread=found.unread,
    )


def _ages(prog: Program, buffers: DmaBufs) -> npt.NDArray[np.int64]:
    try:
        return ages_ns(prog, buffers)
    except (FaultError, LookupError):
        return np.full(len(buffers.file), -1, dtype=np.int64)


def _age(age_ns: int) -> Maybe[int]:
    return age_ns if age_ns >= 0 else Absent("the time when it was made is not known")


def _processes(
    prog: Program, holders: DmaBufHolders, ages: npt.NDArray[np.int64]
) -> Iterator[DmaBufProcess]:
    buffers, opened, mapped = holders.buffers, holders.descriptors, holders.mappings
    tasks = {table: some[0] for table, some in holders.users.items() if some}
    leaders: Dict[int, Object] = {}
    rows: List[Tuple[int, int, int]] = []
    spaces = _address_spaces(prog, mapped.owner.tolist())
    for kind, owners, references in ((0, tasks, opened), (1, spaces, mapped)):
        at = np.searchsorted(buffers.file, references.file).tolist()
        leader_of = {owner: process_of(task) for owner, task in owners.items()}
        leaders.update((leader.value_(), leader) for leader in leader_of.values())
        addresses = {owner: leader.value_() for owner, leader in leader_of.items()}
        for owner, position in zip(references.owner.tolist(), at):
            if owner in addresses:
                rows.append((addresses[owner], position, kind))
    processes = []
    table = np.array(rows, dtype=np.uint64).reshape(-1, 3)
    for address, leader in leaders.items():
        mine = table[table[:, 0] == np.uint64(address)]
        if not len(mine):
            continue
        kept, times = np.unique(mine[:, 1].astype(np.int64), return_counts=True)
        alone = kept[buffers.refcount[kept] == times]
        processes.append(
            DmaBufProcess(
                pid=leader.pid.value_(),
                comm=task_comm(leader),
                descriptors=int((mine[:, 2] == 0).sum()),
                mappings=int((mine[:, 2] == 1).sum()),
                dma_bufs=len(kept),
                size_bytes=int(buffers.size[kept].sum()),
                only_here=len(alone),
                only_here_bytes=int(buffers.size[alone].sum()),
                oldest_ns=_age(int(ages[kept].max())),
            )
        )
    processes.sort(key=lambda row: (-row.only_here_bytes, -row.size_bytes, row.pid))
    yield from processes


def _address_spaces(prog: Program, vmas: List[int]) -> Dict[int, Object]:
    """A task of each mapping's address space."""
    spaces = {
        vma: Object(prog, "struct vm_area_struct *", value=vma).vm_mm.value_() for vma in vmas
    }
    tasks = mm_users(prog, set(spaces.values()))
    return {vma: tasks[space] for vma, space in spaces.items() if space in tasks}


def _rows(ctx: Context, result: _Result, ages: npt.NDArray[np.int64]) -> Iterator[DmaBuf]:
    prog, buffers, audited = ctx.prog, result.holders.buffers, result.audit
    nobody = np.zeros(len(buffers.file), dtype=np.int64)
    users = _users(prog, result.holders)
    exporters, which = _exporters(prog, buffers)
    order = np.lexsort((buffers.address, -audited.left))
    for i in order.tolist():
        dma_buf = Object(prog, "struct dma_buf *", value=int(buffers.address[i]))
        attachments, devices = _attachments(dma_buf)
        held = {f"held_by_{kind}": int(audited.holders.get(kind, nobody)[i]) for kind in KINDS}
        yield DmaBuf(
            address=dma_buf.value_(),
            file=int(buffers.file[i]),
            exporter=exporters[which[i]],
            name=_name(dma_buf),
            size_bytes=int(buffers.size[i]),
            age_ns=_age(int(ages[i])),
            refcount=int(buffers.refcount[i]),
            **held,
            unexplained=int(audited.left[i]),
            verdict=Verdict(int(audited.verdict[i])).text,
            attachments=attachments,
            devices=devices,
            users=_shortened(users.get(int(buffers.file[i]), [])),
        )


def _name(dma_buf: Object) -> Maybe[str]:
    try:
        return dma_buf_name(dma_buf)
    except FaultError:
        return Absent("it is not in the dump")


def _attachments(dma_buf: Object) -> Tuple[Maybe[int], Maybe[str]]:
    """How many devices are attached, and their names."""
    try:
        names = [device_name(attachment.dev) for attachment in for_each_attachment(dma_buf)]
    except (FaultError, ValidationError) as error:
        absent = Absent(f"the list cannot be walked: {error}")
        return absent, absent
    return len(names), ", ".join(sorted(set(names)))


def _users(prog: Program, holders: DmaBufHolders) -> Dict[int, List[str]]:
    """Processes with a descriptor or a mapping of each file."""
    users: Dict[int, List[str]] = {}
    opened, mapped = holders.descriptors, holders.mappings
    names: Dict[int, str] = {}
    for table in set(opened.owner.tolist()):
        tasks = holders.users.get(table, [])
        names[table] = _process(tasks[0]) if tasks else "a process that is exiting"
    for file, table, number in zip(
        opened.file.tolist(), opened.owner.tolist(), opened.number.tolist()
    ):
        users.setdefault(file, []).append(f"{names[table]} fd {number}")
    spaces = _address_spaces(prog, mapped.owner.tolist())
    for file, vma in zip(mapped.file.tolist(), mapped.owner.tolist()):
        name = _process(spaces[vma]) if vma in spaces else "a process that is exiting"
        users.setdefault(file, []).append(f"{name} mapping")
    return users


def _process(task: Object) -> str:
    """The comm and the PID of a task's process."""
    leader = process_of(task)
    return f"{task_comm(leader)} ({leader.pid.value_()})"


def _shortened(users: List[str]) -> str:
    more = len(users) - _USERS_SHOWN
    return ", ".join(users[:_USERS_SHOWN]) + (f" and {more} more" if more > 0 else "")


ANALYSIS = Analysis(
    name="dma-bufs",
    analyze=analyze,
    tables=(DmaBuf, DmaBufProcess),
    rules=(LEAKED, UNKNOWN_HOLDER, DANGLING, STALE_CACHE, IMPORT_CYCLE),
    requires=Requires(builtin=("struct dma_buf",), symbols=("dma_buf_fops",)),
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
