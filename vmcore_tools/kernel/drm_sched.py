# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The DRM GPU scheduler: the fences that its jobs, entities and fences hold.

Everything is found from the scheduler's own fences, which know their
scheduler: an idle one has none.
"""

from __future__ import annotations

from typing import Iterator, List, Sequence, Set, Tuple

import numpy as np
from drgn import FaultError, Object, Program, TypeKind, container_of, offsetof
from drgn.helpers import ValidationError
from drgn.helpers.linux.list import validate_list_for_each_entry

from vmcore_tools.kernel.dma_fence import U64, HeldFences
from vmcore_tools.kernel.layout import field_dtype, read_structs

#: Bounds that no machine reaches; a damaged list must end.
_LIST_MAX = 1_000_000
_RUN_QUEUES_MAX = 1024
_NODES_MAX = 100_000

#: The operations table of the fence at the front of a ``struct drm_sched_fence``.
SCHEDULED_OPS = "drm_sched_fence_ops_scheduled"
FINISHED_OPS = "drm_sched_fence_ops_finished"

#: Of a structure: held fence, and the address of the word that holds it.
_Pairs = List[Tuple[int, int]]


def fences_of_sched_fences(prog: Program, scheduled: U64) -> HeldFences:
    """
    The fences that the scheduler's fences hold.

    The ``finished`` fence holds the ``scheduled`` one
    (``drm_sched_fence_release_finished()``), and that one holds the
    hardware's, ``parent`` (``drm_sched_fence_release_scheduled()``).

    :param scheduled: uint64 array of ``struct dma_fence *`` with :data:`SCHEDULED_OPS`
    :raises LookupError: without the debug info of the scheduler
    """
    type_ = prog.type("struct drm_sched_fence")
    addresses = scheduled - np.uint64(offsetof(type_, "scheduled"))
    count = "refcount.refcount.refs.counter"
    dtype = field_dtype(
        type_,
        {"parent": "parent", "first": f"scheduled.{count}", "last": f"finished.{count}"},
    )
    structs, read = read_structs(prog, addresses.tolist(), dtype)
    # Where the last reference is gone, what it held was put already.
    alive = structs["last"].astype(np.int32) > 0
    # No word points from the one to the other: they are in one structure.
    inside = addresses[alive] + np.uint64(offsetof(type_, "finished"))
    with_parent = (structs["first"].astype(np.int32) > 0) & (structs["parent"] != 0)
    words = addresses[with_parent] + np.uint64(offsetof(type_, "parent"))
    return HeldFences(
        np.concatenate((scheduled[alive], structs["parent"][with_parent])).astype(np.uint64),
        np.concatenate((inside, words)),
        tuple(addresses[~read].tolist()),
    )


def fences_of_jobs(prog: Program, scheduled: U64) -> HeldFences:
    """
    The fences that the jobs and the entities of schedulers hold.

    Jobs that are queued or were given to the hardware: each holds its own
    ``finished`` fence (``drm_sched_job_cleanup()``) and what it depends on;
    an entity holds the fence it waits for and that of its last job.

    :param scheduled: uint64 array of ``struct dma_fence *`` with :data:`SCHEDULED_OPS`
    :raises LookupError: without the debug info of the scheduler
    """
    type_ = prog.type("struct drm_sched_fence")
    addresses = (scheduled - np.uint64(offsetof(type_, "scheduled"))).tolist()
    structs, _ = read_structs(prog, addresses, field_dtype(type_, {"sched": "sched"}))
    pairs: _Pairs = []
    unread: List[int] = []
    jobs: Set[int] = set()
    for address in sorted(set(structs["sched"].tolist()) - {0}):
        scheduler = Object(prog, "struct drm_gpu_scheduler *", value=address)
        try:
            for job in _pending_jobs(scheduler):
                jobs.add(job.value_())
            for entity in _entities(scheduler):
                pairs += _words(entity, ("dependency", "last_scheduled"))
                for job in _queued_jobs(entity):
                    jobs.add(job.value_())
        except (FaultError, ValidationError):
            unread.append(address)
    for address in sorted(jobs):
        try:
            pairs += _fences_of_job(Object(prog, "struct drm_sched_job *", value=address))
        except (FaultError, ValidationError):
            unread.append(address)
    table = np.array(pairs, dtype=np.uint64).reshape(-1, 2)
    return HeldFences(table[:, 0], table[:, 1], tuple(unread))


def _words(structure: Object, members: Sequence[str]) -> _Pairs:
    """The fences that members of a structure point to."""
    pairs = []
    for name in members:
        member = structure.member_(name)
        if member and member.address_ is not None:
            pairs.append((member.value_(), member.address_))
    return pairs


def _pending_jobs(scheduler: Object) -> Iterator[Object]:
    """What the hardware was given and has not been cleaned up: ``struct drm_sched_job *``."""
    # "gpu/drm: ring_mirror_list --> pending_list" and "... node --> list" of v5.11.
    old = hasattr(scheduler, "ring_mirror_list")
    head = scheduler.ring_mirror_list if old else scheduler.pending_list
    yield from _entries("struct drm_sched_job", head, "node" if old else "list")


def _entities(scheduler: Object) -> Iterator[Object]:
    """The entities that have had a job: ``struct drm_sched_entity *``."""
    queues = scheduler.sched_rq
    if queues.type_.kind == TypeKind.ARRAY:
        queues = [queues[i] for i in range(len(queues))]
    else:  # "drm/sched: Convert the GPU scheduler to variable number of run-queues" of v6.7
        count = scheduler.num_rqs.value_()
        if count > _RUN_QUEUES_MAX:
            raise ValidationError("a scheduler has too many run queues")
        queues = [queues[i][0] for i in range(count)]
    for queue in queues:
        yield from _entries("struct drm_sched_entity", queue.entities, "list")


def _entries(type_name: str, head: Object, member: str) -> Iterator[Object]:
    entries = validate_list_for_each_entry(type_name, head.address_of_(), member)
    for number, entry in enumerate(entries):
        if number >= _LIST_MAX:
            raise ValidationError("a list does not end")
        yield entry


def _queued_jobs(entity: Object) -> Iterator[Object]:
    """What waits in an entity: ``struct drm_sched_job *``; mirrors ``spsc_queue_pop()``."""
    node = entity.job_queue.head.read_()
    for _ in range(_LIST_MAX):
        if not node:
            return
        yield container_of(node, "struct drm_sched_job", "queue_node")
        node = node.next.read_()
    raise ValidationError("a queue of jobs does not end")


def _fences_of_job(job: Object) -> _Pairs:
    pairs: _Pairs = []
    fence = job.s_fence.read_()
    # Not armed yet: its fences are not initialised.
    if fence and fence.finished.refcount.refcount.refs.counter.value_() > 0:
        finished, word = fence.finished.address_, job.s_fence.address_
        assert finished is not None and word is not None
        pairs.append((finished, word))
    # "drm/sched: Add dependency tracking" of v5.16; drivers did it before.
    if hasattr(job, "dependencies"):
        pairs += _slots(job.dependencies)
    return pairs


def _slots(array: Object) -> _Pairs:
    """
    The pointers in an XArray, and the addresses of the words that have them.

    :param array: ``struct xarray``
    """
    entry, word = array.xa_head.value_(), array.xa_head.address_
    assert word is not None
    pairs: _Pairs = []
    pending = [(entry, word)]
    seen: Set[int] = set()
    while pending:
        entry, word = pending.pop()
        if not entry & 3:
            if entry:
                pairs.append((entry, word))
        elif entry & 3 == 2 and entry > 4096:  # xa_is_node()
            if entry in seen or len(seen) > _NODES_MAX:
                raise ValidationError("an XArray does not end")
            seen.add(entry)
            slots = Object(array.prog_, "struct xa_node *", value=entry - 2).slots
            for i in range(len(slots)):
                slot = slots[i]
                assert slot.address_ is not None
                pending.append((slot.value_(), slot.address_))
    return pairs
