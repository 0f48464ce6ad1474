# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is found wrong with GEM objects and with the clients that have them."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import numpy.typing as npt

from vmcore_tools.analysis import Context
from vmcore_tools.audit_findings import (
    Allocators,
    Dangling,
    Proof,
    kmemleak_evidence,
    live_only_through_these,
    more_than_known_holders,
    pointed_at_from,
    references_leaked,
)
from vmcore_tools.kernel.audit import Audit, Verdict
from vmcore_tools.kernel.drm_clients import DrmClient
from vmcore_tools.kernel.gem_holders import GemHolders
from vmcore_tools.kernel.slab import SlabIndex
from vmcore_tools.kernel.task import task_comm
from vmcore_tools.model import (
    Absent,
    Confidence,
    Evidence,
    Finding,
    Kind,
    Ref,
    Rule,
    Severity,
)
from vmcore_tools.words import plural

Ints = npt.NDArray[np.int64]

TYPE = "struct drm_gem_object"
#: Example addresses in a finding.
_EXAMPLES_SHOWN = 4
#: Functions that only allocate a GEM object for their caller.
_WRAPPERS = (
    "__?drm_gem_shmem_create.*|virtio_gpu_create_object|virtio_gpu_object_create"
    "|virtio_gpu_alloc_object|virtio_gpu_vram_create|__?vgem_gem_create.*"
)
#: The kind of holder that a command is.
_COMMAND = "command"

LEAKED = Rule(
    id="VT410",
    slug="leaked-gem-object",
    severity=Severity.ERROR,
    summary="References to GEM objects were taken and never dropped.",
    remedy=(
        "Look for a missing drm_gem_object_put() behind a drm_gem_object_lookup() or "
        "drm_gem_object_get() in the driver; the allocating stack names the ioctl where SLUB "
        "tracks are on (boot with slub_debug=U)."
    ),
    page="""\
The reference count of each GEM object is compared with the holders that were
found: its handles, which hold one reference together; framebuffers; the dma-buf
that it was exported as; memory mappings; commands that the GPU has not
finished; the console's buffer. Flink names, PRIME caches, lists and trees of
the driver hold none. For objects with references left over, every word of
kernel memory in the dump and all registers are searched for pointers to them.

`references_leaked` counts references, `objects` the GEM objects that have them,
and `objects_only_leaked` those that nothing else holds: they stay for ever, and
with them `size_bytes` of buffers, `pages_bytes` of which are in memory.

It is `proven` if every page that could hold a pointer was read, and the
registers of all CPUs; otherwise `likely`. An object to which any pointer is
found that is not explained is never counted here, but under VT415. Of drivers
other than virtio_gpu and vgem it is `likely` where somebody known holds the
object as well: such a driver may have two references for one pointer. It is
`likely`, too, where the object may be that of a dma-buf that does not lead to
its own: the damaged dma-buf may hold it.""",
)
HOARD = Rule(
    id="VT411",
    slug="gem-hoarding-client",
    severity=Severity.WARNING,
    summary="A process has very many GEM objects, or most of the memory in them.",
    remedy=(
        "Look whether the process closes the handles of buffers that it no longer needs "
        "(DRM_IOCTL_GEM_CLOSE); the kernel keeps them until then, or until it ends."
    ),
    page="""\
All handles that a process has of a device, in all DRM files that it opened,
name at least `--hoard-objects` GEM objects, or buffers of at least
`--hoard-percent` per cent of RAM. All of them are held rightly, so this is no
fault of the kernel's. It is `suspected`: a large desktop may need as many.""",
)
DEAD_CLIENT = Rule(
    id="VT412",
    slug="dead-gem-client",
    severity=Severity.ERROR,
    summary="Buffers of a DRM file stay in memory, and no process has the file.",
    remedy=(
        "Look for who took a reference to the DRM device's open file and never dropped it: a "
        "get_file() or fget() without its fput()."
    ),
    page="""\
The handles of an open DRM file are closed with its last reference. This file
has one left, but no descriptor, no message on its way through a socket and no
mapping is one: no process can close it any more. Its GEM objects stay, with
their pages: `pages_bytes` of `size_bytes`.

`proven` if no pointer to the file is in all of kernel memory, and this was read
in full; `likely` otherwise. Where something unknown points at the file it may be
held rightly, as by io_uring that it was registered with: this is VT415.""",
)
UNHELD_COMMAND = Rule(
    id="VT413",
    slug="in-flight-unheld",
    severity=Severity.ERROR,
    summary="A command in flight uses a GEM object without a reference of its own.",
    remedy=(
        "Look for a drm_gem_object_put() too many, or for a reference that is dropped before the "
        "GPU is done with the buffer, in the path that submits the command."
    ),
    page="""\
The GPU has been given a command, or has done it and the driver has not taken
it back yet; the command has a list of the GEM objects that it uses, and each
must have a reference for it. These objects have fewer references than holders,
or are freed already. Who closes the next handle frees a buffer that the GPU
reads or writes.

`objects` are those that live, `freed_objects` places where a holder points to
memory that is free. `likely` where registers are not in the dump, or the
target is live.""",
)
DANGLING = Rule(
    id="VT414",
    slug="dangling-gem-pointer",
    severity=Severity.ERROR,
    summary="GEM objects have more holders than references, or are freed and still held.",
    remedy=(
        "Look for a drm_gem_object_put() too many, or for a pointer that is kept after the put, "
        "in the code of the holders that are named."
    ),
    page="""\
The opposite of VT410: each holder must have a reference of its own. `objects`
are GEM objects that live and have fewer references than holders;
`freed_objects` are places where a holder points to memory that is free: the
next use of it is a use after free, or of another object. Those that a command
in flight uses are under VT413.

An object that a task has on its stack or in a register is left out: its count
may be changing. `likely` where registers are not in the dump, or the target is
live. `suspected` for objects that live of drivers other than virtio_gpu and
vgem: such a driver may have one reference for several pointers.""",
)
UNKNOWN_HOLDER = Rule(
    id="VT415",
    slug="gem-object-with-unknown-holder",
    severity=Severity.WARNING,
    summary="GEM objects have more references than known holders, and are pointed at.",
    remedy=(
        "Look at what points at the objects: a holder that this version does not know is no "
        "leak, a stale pointer may be the trace of one."
    ),
    page="""\
As VT410, but something points at the objects that is neither a known holder nor
a task's stack or register, nor anything that a task has. It may be a holder of
a kind that is not known here, so a leak is not claimed. Objects of drivers
other than virtio_gpu and vgem are not reported: their own holders are not
known.

The same is said of an open DRM file that no process has, and that something
unknown points at: a file that was registered with io_uring is held like this,
and so are its buffers.""",
)
RULES = (LEAKED, HOARD, DEAD_CLIENT, UNHELD_COMMAND, DANGLING, UNKNOWN_HOLDER)


@dataclasses.dataclass(frozen=True)
class GemAudit:
    """
    GEM objects and their audit; arrays of shape (n,) in the objects' order.

    :ivar pages: int64: bytes of each object's pages in memory; -1 if it is not known
    """

    holders: GemHolders
    audit: Audit
    pages: Ints

    def with_verdict(self, *verdicts: Verdict) -> Ints:
        """Positions of the objects with one of these verdicts."""
        return np.flatnonzero(np.isin(self.audit.verdict, verdicts))

    def driver(self, position: int) -> str:
        """The name of an object's driver."""
        return self.holders.drivers.get(int(self.holders.gems.device[position]), "")

    def size_bytes(self, positions: Ints) -> int:
        return int(self.holders.gems.size[positions].sum())

    def pages_bytes(self, positions: Ints) -> int:
        """Of those of which it is known."""
        return int(np.maximum(self.pages[positions], 0).sum())


def _groups(result: GemAudit, chosen: Ints) -> Iterator[Tuple[str, int, Ints]]:
    """Driver, cache and positions of some objects, alike ones together."""
    gems = result.holders.gems
    keys = np.stack([gems.device[chosen].astype(np.int64), gems.cache[chosen]])
    pairs, group = np.unique(keys, axis=1, return_inverse=True)
    found = []
    for number, (_, cache) in enumerate(pairs.T.tolist()):
        some = chosen[group.reshape(-1) == number]
        found.append((result.driver(int(some[0])), cache, some))
    yield from sorted(found, key=lambda item: (item[0], item[1], int(item[2][0])))


def leaks(ctx: Context, index: SlabIndex, result: GemAudit) -> Iterator[Any]:
    """VT410, with the stacks that allocated the objects."""
    gems = result.holders.gems
    chosen = result.with_verdict(Verdict.LEAKED, Verdict.LIKELY_LEAKED)
    doubtful = result.holders.doubtful[chosen]
    for driver, cache, group, doubted in (
        (*group, doubted)
        for doubted, some in ((False, chosen[~doubtful]), (True, chosen[doubtful]))
        for group in _groups(result, some)
    ):
        references = result.audit.left[group]
        only = group[gems.refcount[group] == references]
        total = int(references.sum())
        sure = result.audit.verdict[group] == Verdict.LEAKED
        proof = Proof.of(result.audit, total, int(references[sure].sum()))
        if doubted:
            proof = dataclasses.replace(
                proof,
                message="; a dma-buf that does not lead to its own object may hold them.",
                unread=(*proof.unread, "its dma-buf's own pointer does not lead back to it"),
            )
        addresses = gems.address[group]
        allocators = Allocators()
        name = "no slab"
        related: Tuple[Ref, ...] = ()
        if cache >= 0:
            known = index.caches[cache]
            name = known.name
            related = (Ref("slab cache", name, known.cache.value_()),)
            allocators = Allocators.of(ctx, index, gems.container[group], cache, _WRAPPERS)
        yield from allocators.stacks
        number = len(group)
        buffers = plural(len(only), "a buffer of {size_bytes}", "buffers of {size_bytes} together")
        what = f"{plural(number, 'GEM object')} of {{driver}}"
        message = references_leaked(total, number, what)
        message += live_only_through_these(total, number, len(only), f", {buffers},")
        if allocators.evidence:
            message += ", allocated by {allocating_comms} in {allocating_function}"
        yield Finding(
            rule=LEAKED,
            confidence=proof.confidence,
            message=message + proof.message,
            subject=Ref(TYPE, driver, int(addresses[0])),
            evidence=(
                Evidence("references_leaked", Kind.COUNT, total),
                Evidence("objects", Kind.COUNT, len(group)),
                Evidence("objects_only_leaked", Kind.COUNT, len(only)),
                Evidence("size_bytes", Kind.BYTES, result.size_bytes(only)),
                Evidence("pages_bytes", Kind.BYTES, result.pages_bytes(only)),
                Evidence("driver", Kind.UNTRUSTED, driver),
                Evidence("cache", Kind.UNTRUSTED, name),
                Evidence("examples", Kind.ADDRESS, tuple(addresses[:_EXAMPLES_SHOWN].tolist())),
                *proof.evidence,
                *allocators.evidence,
                *kmemleak_evidence(index, gems.container[group]),
            ),
            signature_key=(TYPE, driver, *(("doubtful",) if doubted else ())),
            clues=allocators.clues,
            related=related,
            stacks=tuple(stack.id for stack in allocators.stacks),
            unread=proof.unread,
        )


def unknown_holders(result: GemAudit) -> Iterator[Finding]:
    """VT415."""
    gems = result.holders.gems
    for driver, _, group in _groups(result, result.with_verdict(Verdict.UNKNOWN_HOLDER)):
        places = pointed_at_from(result.audit, group)
        examples = tuple(gems.address[group[:_EXAMPLES_SHOWN]].tolist())
        yield Finding(
            rule=UNKNOWN_HOLDER,
            confidence=Confidence.SUSPECTED,
            message=more_than_known_holders(
                int(result.audit.left[group].sum()),
                len(group),
                f"{plural(len(group), 'GEM object')} of {{driver}}",
            ),
            subject=Ref(TYPE, driver, examples[0]),
            evidence=(
                Evidence("objects", Kind.COUNT, len(group)),
                Evidence("references", Kind.COUNT, int(result.audit.left[group].sum())),
                Evidence("driver", Kind.UNTRUSTED, driver),
                Evidence("pointed_at_from", Kind.UNTRUSTED, places),
                Evidence("examples", Kind.ADDRESS, examples),
            ),
            signature_key=(TYPE, driver, *places),
            unread=("what the unknown pointers mean",),
        )


def dangling(index: SlabIndex, result: GemAudit) -> Iterator[Finding]:
    """VT413 of what commands use, and VT414 of the rest: each may well have one cause."""
    stale, alive = result.audit.stale, result.with_verdict(Verdict.DANGLING)
    nobody = np.zeros(len(result.audit.verdict), dtype=np.int64)
    used = result.audit.holders.get(_COMMAND, nobody)[alive] > 0
    by_command = np.array([_COMMAND in kinds for kinds in stale.kinds], dtype=bool)
    known = result.holders.described.driver_known[alive]
    for rule, some, freed, sure in (
        (UNHELD_COMMAND, alive[used], by_command, True),
        (DANGLING, alive[~used & known], ~by_command, True),
        (DANGLING, alive[~used & ~known], np.zeros_like(by_command), False),
    ):
        yield from _dangling(index, result, rule, some, freed, sure)


def _dangling(
    index: SlabIndex,
    result: GemAudit,
    rule: Rule,
    alive: Ints,
    freed: npt.NDArray[np.bool_],
    driver_known: bool,
) -> Iterator[Finding]:
    if not (len(alive) or freed.any()):
        return
    audit = dataclasses.replace(result.audit, stale=result.audit.stale.chosen(freed))
    found = Dangling.of(audit, alive)
    examples = (
        *audit.stale.address[:_EXAMPLES_SHOWN].tolist(),
        *result.holders.gems.address[alive[:_EXAMPLES_SHOWN]].tolist(),
    )
    caches = audit.stale.cache[audit.stale.cache >= 0]
    confidence, unread, signature = found.confidence, found.unread, found.kinds
    if not driver_known:
        drivers = sorted({result.driver(i) or "an unknown driver" for i in alive.tolist()})
        confidence, signature = Confidence.SUSPECTED, (*signature, *drivers)
        unread = (*unread, f"for which pointers {', '.join(drivers)} has a reference")
    yield Finding(
        rule=rule,
        confidence=confidence,
        message=(
            ("In use by commands in flight: " if rule is UNHELD_COMMAND else "")
            + found.message("GEM object")
        ),
        subject=Ref(TYPE, "", examples[0]),
        evidence=(*found.evidence, Evidence("examples", Kind.ADDRESS, examples)),
        signature_key=("dangling", TYPE, *signature),
        related=tuple(
            Ref("slab cache", index.caches[number].name, index.caches[number].cache.value_())
            for number in sorted(set(caches.tolist()))
        ),
        unread=unread,
    )


@dataclasses.dataclass(frozen=True)
class Usage:
    """
    What a process has of a device.

    :ivar objects: int64 array: positions of the GEM objects, each once
    :ivar files: how many DRM files it has it in
    """

    pid: int
    comm: str
    driver: str
    device: int
    objects: Ints
    files: int


def hoards(
    result: GemAudit, usages: Sequence[Usage], objects_min: int, bytes_min: Optional[int]
) -> Iterator[Finding]:
    """
    VT411.

    :param bytes_min: None if it is not known how much RAM there is
    """
    for usage in usages:
        size = result.size_bytes(usage.objects)
        if len(usage.objects) < objects_min and (bytes_min is None or size < bytes_min):
            continue
        yield Finding(
            rule=HOARD,
            confidence=Confidence.SUSPECTED,
            message=(
                f"{{comm}} ({{pid}}) has {{objects}} GEM {plural(len(usage.objects), 'object')} of"
                " {driver} open, of {size_bytes} together; {pages_bytes} of these are in memory."
            ),
            subject=Ref("task", usage.comm, None, usage.pid, Kind.SENSITIVE),
            evidence=(
                Evidence("comm", Kind.SENSITIVE, usage.comm),
                Evidence("pid", Kind.PID, usage.pid),
                Evidence("driver", Kind.UNTRUSTED, usage.driver),
                Evidence("objects", Kind.COUNT, len(usage.objects)),
                Evidence("size_bytes", Kind.BYTES, size),
                Evidence("pages_bytes", Kind.BYTES, result.pages_bytes(usage.objects)),
                Evidence("drm_files", Kind.COUNT, usage.files),
            ),
            signature_key=("hoard", usage.driver),
            unread=("what the process still needs",),
        )


def _they_stay(objects: int) -> str:
    buffers = plural(objects, "GEM object, a buffer", "GEM objects, buffers")
    return (
        f": its {{objects}} {buffers} of {{size_bytes}} with {{pages_bytes}} in memory, "
        f"{plural(objects, 'stays', 'stay')}."
    )


def dead_clients(
    result: GemAudit,
    files: Audit,
    addresses: Dict[int, int],
    clients: Sequence[Tuple[DrmClient, Ints]],
) -> Iterator[Finding]:
    """
    VT412, or VT415 where something unknown points at the file.

    :param files: the audit of the clients' files
    :param addresses: address of each ``struct file`` to its position there
    :param clients: those that nobody has, with the positions of their GEM objects
    """
    for client, objects in clients:
        at = addresses[client.filp]
        verdict = Verdict(int(files.verdict[at]))
        if verdict not in (Verdict.LEAKED, Verdict.UNKNOWN_HOLDER):
            continue
        places: Tuple[str, ...] = ()
        unread: List[str] = []
        references = int(files.left[at])
        are = plural(references, "is", "are")
        rule, holder = DEAD_CLIENT, f"{are} left"
        confidence = Confidence.PROVEN if files.can_prove else Confidence.LIKELY
        if verdict == Verdict.UNKNOWN_HOLDER:
            rule, holder = UNKNOWN_HOLDER, f"{are} held by something that is not known here"
            places, confidence = pointed_at_from(files, np.array([at])), Confidence.SUSPECTED
            unread.append("what the unknown pointers mean")
        elif not files.can_prove:
            unread.append("all that could hold a pointer to the file")
        opener: Any = client.opener_pid
        comm: Any = Absent("the process has ended")
        if client.opener is not None:
            comm = task_comm(client.opener)
        driver = result.holders.drivers.get(client.device, "")
        yield Finding(
            rule=rule,
            confidence=confidence,
            message=(
                "No process has the DRM file of {minor} any more that PID {opener_pid} opened, "
                f"but {{references}} {plural(references, 'reference')} to it {holder}"
                + (_they_stay(len(objects)) if len(objects) else "; it has no GEM objects.")
            ),
            subject=Ref("struct drm_file", client.minor, client.file.value_()),
            evidence=(
                Evidence("minor", Kind.UNTRUSTED, client.minor),
                Evidence("driver", Kind.UNTRUSTED, driver),
                Evidence(
                    "opener_pid",
                    Kind.PID,
                    opener if opener is not None else Absent("it could not be read"),
                ),
                Evidence("opener_comm", Kind.SENSITIVE, comm),
                Evidence("references", Kind.COUNT, references),
                Evidence("objects", Kind.COUNT, len(objects)),
                Evidence("size_bytes", Kind.BYTES, result.size_bytes(objects)),
                Evidence("pages_bytes", Kind.BYTES, result.pages_bytes(objects)),
                Evidence("pointed_at_from", Kind.UNTRUSTED, places),
            ),
            signature_key=("dead client", driver),
            unread=tuple(unread),
        )
