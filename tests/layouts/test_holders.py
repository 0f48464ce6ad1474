# SPDX-License-Identifier: LGPL-2.1-or-later
"""Holders of fences, dma-bufs and files, also those that no guest of the lab has."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

import numpy as np
import pytest
from drgn import Object, offsetof, sizeof

from tests.layouts.machine import DIRECT_MAP, RAM, Machine, Value
from vmcore_tools.kernel import files
from vmcore_tools.kernel.dma_buf import (
    DmaBufs,
    attachments,
    dma_bufs,
    weak_words,
)
from vmcore_tools.kernel.dma_fence import HeldFences
from vmcore_tools.kernel.drm_prime import (
    entries_of_other_objects,
    gem_dma_bufs,
    kept_by_themselves,
    prime_entries,
)
from vmcore_tools.kernel.drm_sched import fences_of_jobs, fences_of_sched_fences
from vmcore_tools.kernel.drm_syncobj import (
    awaited_fences,
    for_each_syncobj_handle,
    syncobj_fences,
)
from vmcore_tools.kernel.files import (
    descriptors,
    file_counts,
    outgrown_descriptor_words,
    watch_words,
)
from vmcore_tools.kernel.scm_rights import files_in_flight

OLD, NEW = "holders_5_10.c", "holders_7_2.c"
COUNT = "refcount.refcount.refs.counter"
#: An address behind all memory.
RAM_END = DIRECT_MAP + RAM


@pytest.fixture(params=[OLD, NEW])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    release = {OLD: "5.10.262", NEW: "7.2.13"}[request.param]
    machine = Machine(request.param, tmp_path, release)
    yield machine
    machine.close()


def is_new(machine: Machine) -> bool:
    return bool(machine.prog.type("struct file").has_member("f_ref"))


def offset(machine: Machine, type_name: str, member: str) -> int:
    return offsetof(machine.prog.type(type_name), member)


def pairs(held: HeldFences) -> List[Tuple[int, int]]:
    assert held.unread == ()
    return sorted(zip(held.fence.tolist(), held.word.tolist()))


def addresses(values: Sequence[int]) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def fence(machine: Machine) -> int:
    address = machine.new("struct dma_fence", {COUNT: 1})
    machine.link(address + offset(machine, "struct dma_fence", "cb_list"))
    return address


def node_of(machine: Machine, entries: Dict[int, int]) -> int:
    """An XArray's head with entries below 64: a node, unless index 0 is the only one."""
    if set(entries) == {0}:
        return entries[0]
    node = machine.new("struct xa_node", {"count": len(entries)})
    slots = node + offset(machine, "struct xa_node", "slots")
    for index, entry in entries.items():
        machine.words(slots + 8 * index, [entry])
    return node | 2


# Synchronization objects.


def drm_file(machine: Machine, entries: Dict[int, int]) -> Object:
    member = "syncobj_xa.xa_head" if is_new(machine) else "syncobj_idr.idr_rt.xa_head"
    address = machine.new("struct drm_file", {member: node_of(machine, entries)})
    return Object(machine.prog, "struct drm_file *", value=address)


@pytest.mark.parametrize("handles", [(), (1,), (1, 2, 9)])
def test_the_handles_of_a_file(machine: Machine, handles: Sequence[int]) -> None:
    objects = {handle: machine.new("struct drm_syncobj", {}) for handle in handles}
    found = for_each_syncobj_handle(drm_file(machine, objects))
    assert {handle: syncobj.value_() for handle, syncobj in found} == objects


def test_a_syncobj_holds_its_fence(machine: Machine) -> None:
    shared, alone = fence(machine), fence(machine)
    objects = [
        machine.new("struct drm_syncobj", {"fence": value}) for value in (shared, 0, shared, alone)
    ]
    word = offset(machine, "struct drm_syncobj", "fence")
    expected = [(shared, objects[0]), (shared, objects[2]), (alone, objects[3])]
    assert pairs(syncobj_fences(machine.prog, objects)) == sorted(
        (held, address + word) for held, address in expected
    )


def callback(machine: Machine, type_name: str, function: str, waited: int, held: int) -> int:
    """A waiter with a callback on one fence, that holds perhaps another one."""
    func = machine.prog[function].address_
    assert func is not None
    entry = machine.new(type_name, {"fence": held, "fence_cb.func": func})
    node = entry + offset(machine, type_name, "fence_cb.node")
    machine.link(waited + offset(machine, "struct dma_fence", "cb_list"), [node])
    return entry + offset(machine, type_name, "fence")


def test_who_waits_for_a_syncobj_holds_the_fence(machine: Machine) -> None:
    wait = "struct syncobj_wait_entry"
    waited, other, nobodys = fence(machine), fence(machine), fence(machine)
    word = callback(machine, wait, "syncobj_wait_fence_func", waited, waited)
    # The fence of a chain is waited for, and the chain's own is held.
    callback(machine, wait, "syncobj_wait_fence_func", other, nobodys)
    expected = [(waited, word)]
    fences = [waited, other, nobodys]
    if is_new(machine):
        event = fence(machine)
        by_event = callback(
            machine,
            "struct syncobj_eventfd_entry",
            "syncobj_eventfd_entry_fence_func",
            event,
            event,
        )
        expected.append((event, by_event))
        fences.append(event)
    assert pairs(awaited_fences(machine.prog, addresses(fences))) == sorted(expected)


def test_other_callbacks_are_none_of_a_syncobj(machine: Machine) -> None:
    waited = fence(machine)
    entry = machine.new("struct syncobj_wait_entry", {"fence": waited, "fence_cb.func": 0x1234})
    machine.link(
        waited + offset(machine, "struct dma_fence", "cb_list"),
        [entry + offset(machine, "struct syncobj_wait_entry", "fence_cb.node")],
    )
    assert pairs(awaited_fences(machine.prog, addresses([waited]))) == []


def test_a_damaged_list_of_callbacks_is_counted(machine: Machine) -> None:
    waited = fence(machine)
    head = waited + offset(machine, "struct dma_fence", "cb_list")
    machine.words(head, [waited + 8, waited + 8])
    held = awaited_fences(machine.prog, addresses([waited]))
    assert held.unread == (waited,)


# The scheduler.


def sched_fence(machine: Machine, scheduler: int, parent: int, counts: Tuple[int, int]) -> int:
    return machine.new(
        "struct drm_sched_fence",
        {
            f"scheduled.{COUNT}": counts[0],
            f"finished.{COUNT}": counts[1],
            "parent": parent,
            "sched": scheduler,
        },
    )


def scheduler_with(machine: Machine, jobs: Sequence[int], entities: Sequence[int]) -> int:
    """A scheduler that gave *jobs* to the hardware; the entities are in its last run queue."""
    new = is_new(machine)
    scheduler = machine.new("struct drm_gpu_scheduler", {})
    head, node = ("pending_list", "list") if new else ("ring_mirror_list", "node")
    link = offset(machine, "struct drm_sched_job", node)
    machine.link(
        scheduler + offset(machine, "struct drm_gpu_scheduler", head), [job + link for job in jobs]
    )
    if new:
        queues = [machine.new("struct drm_sched_rq", {}) for _ in range(3)]
        array = machine.words(machine.alloc(8 * len(queues)), queues)
        machine.put("struct drm_gpu_scheduler", scheduler, {"num_rqs": 3, "sched_rq": array})
    else:
        first = scheduler + offset(machine, "struct drm_gpu_scheduler", "sched_rq")
        size = sizeof(machine.prog.type("struct drm_sched_rq"))
        queues = [first + number * size for number in range(4)]
    for queue in queues:
        machine.link(queue + offset(machine, "struct drm_sched_rq", "entities"))
    link = offset(machine, "struct drm_sched_entity", "list")
    machine.link(
        queues[-1] + offset(machine, "struct drm_sched_rq", "entities"),
        [entity + link for entity in entities],
    )
    return scheduler


def test_finished_holds_scheduled_and_that_its_parent(machine: Machine) -> None:
    parent = fence(machine)
    finished = offset(machine, "struct drm_sched_fence", "finished")
    word = offset(machine, "struct drm_sched_fence", "parent")
    with_parent = sched_fence(machine, 0, parent, (1, 2))
    not_run = sched_fence(machine, 0, 0, (1, 1))
    # finished is freed: it has put scheduled, which somebody else still has.
    only_scheduled = sched_fence(machine, 0, parent, (1, 0))
    # Both are freed: the parent was put, too.
    freed = sched_fence(machine, 0, parent, (0, 0))
    assert offset(machine, "struct drm_sched_fence", "scheduled") == 0
    all_of_them = [with_parent, not_run, only_scheduled, freed]
    assert pairs(fences_of_sched_fences(machine.prog, addresses(all_of_them))) == sorted(
        [
            (with_parent, with_parent + finished),
            (parent, with_parent + word),
            (not_run, not_run + finished),
            (parent, only_scheduled + word),
        ]
    )


def test_jobs_and_entities_hold_fences(machine: Machine) -> None:
    job_type, entity_type = "struct drm_sched_job", "struct drm_sched_entity"
    finished = offset(machine, "struct drm_sched_fence", "finished")
    needed = [fence(machine) for _ in range(4)]
    fences = [sched_fence(machine, 0, 0, (1, 1)) for _ in range(3)]
    # Not armed: its fence has no references yet.
    fences.append(sched_fence(machine, 0, 0, (0, 0)))
    pending, first, second, not_armed = [
        machine.new(job_type, {"s_fence": address}) for address in fences
    ]
    queue_node = offset(machine, job_type, "queue_node")
    machine.put(job_type, first, {"queue_node.next": second + queue_node})
    machine.put(job_type, second, {"queue_node.next": not_armed + queue_node})
    entity = machine.new(
        entity_type,
        {
            "job_queue.head": first + queue_node,
            "dependency": needed[0],
            "last_scheduled": fences[0] + finished,
        },
    )
    idle = machine.new(entity_type, {})
    scheduler = scheduler_with(machine, [pending], [idle, entity])
    for address in fences:
        machine.put("struct drm_sched_fence", address, {"sched": scheduler})
    word = offset(machine, job_type, "s_fence")
    expected = [
        (needed[0], entity + offset(machine, entity_type, "dependency")),
        (fences[0] + finished, entity + offset(machine, entity_type, "last_scheduled")),
        (fences[0] + finished, pending + word),
        (fences[1] + finished, first + word),
        (fences[2] + finished, second + word),
    ]
    if is_new(machine):
        # One dependency is in the XArray's head, two are in a node.
        head = offset(machine, job_type, "dependencies.xa_head")
        machine.put(job_type, pending, {"dependencies.xa_head": needed[1]})
        node = node_of(machine, {0: needed[2], 63: needed[3]})
        machine.put(job_type, second, {"dependencies.xa_head": node})
        slots = node - 2 + offset(machine, "struct xa_node", "slots")
        expected += [(needed[1], pending + head)]
        expected += [(needed[2], slots), (needed[3], slots + 8 * 63)]
    assert pairs(fences_of_jobs(machine.prog, addresses(fences))) == sorted(expected)


def test_a_queue_of_jobs_that_does_not_end_is_counted(machine: Machine) -> None:
    address = sched_fence(machine, 0, 0, (1, 1))
    entity = machine.new("struct drm_sched_entity", {"job_queue.head": 0xDEAD0000})
    scheduler = scheduler_with(machine, [], [entity])
    machine.put("struct drm_sched_fence", address, {"sched": scheduler})
    assert scheduler in fences_of_jobs(machine.prog, addresses([address])).unread


# Files.


def test_the_reference_counts_of_files(machine: Machine) -> None:
    if is_new(machine):
        # One, three; FILE_REF_DEAD, and what it becomes by a late get and put.
        values = [0, 2, 0xE000000000000000, 0xE000000000000001, 0xFFFFFFFFFFFFFFFF]
        expected = [1, 3, 0, 0, 0]
        member = "f_ref.refcnt.counter"
    else:
        values, expected, member = [1, 3, 0], [1, 3, 0], "f_count.counter"
    files = [machine.new("struct file", {member: value}) for value in values]
    counts, read = file_counts(machine.prog, [*files, 0xDEAD0000])
    assert counts.tolist()[:-1] == expected
    assert read.tolist() == [True] * len(files) + [False]


def test_epolls_pointers_to_a_file(machine: Machine) -> None:
    watched, other = (machine.new("struct file", {}) for _ in range(2))
    items = [machine.new("struct epitem", {"ffd.file": watched}) for _ in range(2)]
    links = [item + offset(machine, "struct epitem", "fllink") for item in items]
    expected = [item + offset(machine, "struct epitem", "ffd.file") for item in items]
    if is_new(machine):
        head = machine.words(machine.alloc(8), [links[0]])
        machine.put("struct file", watched, {"f_ep": head})
        machine.words(links[0], [links[1], head])
        machine.words(links[1], [0, links[0]])
    else:
        member = offset(machine, "struct file", "f_ep_links")
        machine.link(watched + member, links)
        machine.link(other + member)
        # The neighbours in the list: the first one's prev and the last one's next.
        expected += [links[0] + 8, links[1]]
    words, unread = watch_words(machine.prog, addresses([watched, other]))
    assert sorted(words.tolist()) == sorted(expected)
    assert unread == ()


# dma-bufs.


class FilesOnly:
    """What :func:`dma_bufs` asks an index for; *freed* are the objects that are not allocated."""

    def __init__(self, machine: Machine, freed: Sequence[int] = ()) -> None:
        self.prog = machine.prog
        self._freed = freed

    def allocated(self, objects: np.ndarray) -> np.ndarray:
        return ~np.isin(objects, np.array(self._freed, dtype=np.uint64))


def count_member(machine: Machine, references: int) -> Dict[str, Value]:
    if is_new(machine):
        return {"f_ref.refcnt.counter": references - 1}
    return {"f_count.counter": references}


def dma_buf(machine: Machine, references: int, **members: Value) -> Tuple[int, int]:
    """A dma-buf and its file, on no list."""
    dentry = machine.new("struct dentry", {})
    file = machine.new(
        "struct file", {"f_path.dentry": dentry, **count_member(machine, references)}
    )
    address = machine.new("struct dma_buf", {"file": file, **members})
    machine.put("struct file", file, {"private_data": address})
    machine.put("struct dentry", dentry, {"d_fsdata": address})
    for member in ("attachments", "list_node", "poll.head"):
        machine.link(address + offset(machine, "struct dma_buf", member))
    if not is_new(machine):
        machine.link(file + offset(machine, "struct file", "f_ep_links"))
    return address, file


def find(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    files: Sequence[int],
    freed: Sequence[int] = (),
) -> DmaBufs:
    monkeypatch.setattr(
        "vmcore_tools.kernel.dma_buf.files_with_ops",
        lambda index, fops: addresses(sorted(files)),
    )
    return dma_bufs(FilesOnly(machine, freed))  # type: ignore[arg-type]


def test_the_dma_bufs_of_files(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [
        dma_buf(machine, 3, size=8192, resv=0x1000, priv=0x2000),
        dma_buf(machine, 1, size=4096),
    ]
    freed, of_freed = dma_buf(machine, 1)
    # Its dma-buf does not know it yet.
    _, being_built = dma_buf(machine, 1, file=0)
    files = [file for _, file in known] + [of_freed, being_built]
    found = find(machine, monkeypatch, files, [freed])
    assert list(zip(found.address.tolist(), found.file.tolist())) == known
    assert (found.refcount.tolist(), found.size.tolist()) == ([3, 1], [8192, 4096])
    assert (found.reservation.tolist(), found.priv.tolist()) == ([0x1000, 0], [0x2000, 0])
    assert found.unread == ()
    other = [0x1234, *(address for address, _ in known)]
    assert found.files_of(addresses(other)).tolist() == [0x1234, *(file for _, file in known)]


def test_what_points_at_a_dma_buf_and_holds_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, file = dma_buf(machine, 1)
    dentry = Object(machine.prog, "struct file *", value=file).f_path.dentry.value_()
    head = machine.alloc(16)
    attachment = machine.new("struct dma_buf_attachment", {"dmabuf": address})
    node = attachment + offset(machine, "struct dma_buf_attachment", "node")
    machine.link(address + offset(machine, "struct dma_buf", "attachments"), [node])
    machine.link(head, [address + offset(machine, "struct dma_buf", "list_node")])
    # One waits by epoll, and one by poll(), which holds the file elsewhere.
    func = machine.prog["ep_poll_callback"].address_
    assert func is not None
    waiter = machine.new("struct eppoll_entry", {"wait.func": func})
    poller = machine.new("struct wait_queue_entry", {"func": 0x1234})
    entries = [
        waiter + offset(machine, "struct eppoll_entry", "wait.entry"),
        poller + offset(machine, "struct wait_queue_entry", "entry"),
    ]
    machine.link(address + offset(machine, "struct dma_buf", "poll.head"), entries)
    expected = [
        address + offset(machine, "struct dma_buf", "file"),
        file + offset(machine, "struct file", "private_data"),
        dentry + offset(machine, "struct dentry", "d_fsdata"),
        *(node, node + 8),
        *(head, head + 8),
        *(entries[0] + 8, entries[1]),
        waiter + offset(machine, "struct eppoll_entry", "whead"),
    ]
    words, unread = weak_words(machine.prog, find(machine, monkeypatch, [file]))
    assert sorted(words.tolist()) == sorted(expected)
    assert unread == ()


@pytest.mark.parametrize("machine", [OLD], indirect=True)
def test_a_heaps_own_pointer_is_weak(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    ops = machine.variable("heap_helper_ops")
    buffer = machine.new("struct heap_helper_buffer", {})
    _, file = dma_buf(machine, 1, ops=ops, priv=buffer)
    _, other = dma_buf(machine, 1, ops=ops + 8, priv=buffer + 0x100)
    words, _ = weak_words(machine.prog, find(machine, monkeypatch, [file, other]))
    member = offset(machine, "struct heap_helper_buffer", "dmabuf")
    assert buffer + member in words.tolist()
    assert buffer + 0x100 + member not in words.tolist()


def test_gem_objects_and_their_dma_bufs(machine: Machine) -> None:
    (exported, _), (imported, _) = dma_buf(machine, 1), dma_buf(machine, 3)
    attachment = machine.new("struct dma_buf_attachment", {"dmabuf": imported})
    count = {COUNT: 2, "handle_count": 1}
    gems = [
        machine.new("struct drm_gem_object", {"dma_buf": exported, **count}),
        machine.new(
            "struct drm_gem_object", {"dma_buf": imported, "import_attach": attachment, **count}
        ),
        # Its last handle was closed.
        machine.new("struct drm_gem_object", {"import_attach": attachment}),
        machine.new("struct drm_gem_object", {}),
    ]
    found = gem_dma_bufs(machine.prog, [*gems, RAM_END])
    assert found.unread == (RAM_END,)
    known = found.gem != RAM_END
    assert found.gem[known].tolist() == sorted(gems) == gems
    assert found.dma_buf[known].tolist() == [exported, imported, 0, 0]
    word = offset(machine, "struct drm_gem_object", "dma_buf")
    assert found.dma_buf_word[known].tolist() == [gem + word for gem in gems]
    assert found.attachment[known].tolist() == [0, attachment, attachment, 0]
    assert found.attached[known].tolist() == [0, imported, imported, 0]
    word = attachment + offset(machine, "struct dma_buf_attachment", "dmabuf")
    assert found.attached_word[known][1:3].tolist() == [word, word]
    assert found.refcount[known].tolist() == [2, 2, 0, 0]
    assert found.handles[known].tolist() == [1, 1, 0, 0]


def attach(machine: Machine, buffer: int, count: int) -> List[int]:
    made = [machine.new("struct dma_buf_attachment", {"dmabuf": buffer}) for _ in range(count)]
    node = offset(machine, "struct dma_buf_attachment", "node")
    machine.link(
        buffer + offset(machine, "struct dma_buf", "attachments"), [one + node for one in made]
    )
    return made


def test_attachments_and_a_list_that_leads_back(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plain, first), (shared, second), (looped, third) = (dma_buf(machine, 1) for _ in range(3))
    expected = attach(machine, shared, 3)
    before = attach(machine, looped, 2)
    node = offset(machine, "struct dma_buf_attachment", "node")
    # The last one leads to the first instead of the head.
    machine.words(before[1] + node, [before[0] + node])
    buffers = find(machine, monkeypatch, [first, second, third])
    found = attachments(machine.prog, buffers)
    assert sorted(zip(found.dma_buf.tolist(), found.address.tolist())) == sorted(
        [(shared, one) for one in expected] + [(looped, one) for one in before]
    )
    assert found.unread == (looped,)
    word = offset(machine, "struct dma_buf_attachment", "dmabuf")
    assert found.word.tolist() == [address + word for address in found.address.tolist()]
    assert plain not in found.dma_buf.tolist()


def prime_file(machine: Machine, entries: Sequence[Tuple[int, int]]) -> Tuple[int, List[int]]:
    """A DRM file that remembers (dma-buf, handle), the first one at the root; and its members."""
    node = offset(machine, "struct drm_prime_member", "dmabuf_rb")
    members = [
        machine.new("struct drm_prime_member", {"dma_buf": buffer, "handle": handle})
        for buffer, handle in entries
    ]
    links = zip(("left", "right"), members[1:])
    machine.put(
        "struct drm_prime_member",
        members[0],
        {f"dmabuf_rb.rb_{side}": member + node for side, member in links},
    )
    file = machine.new("struct drm_file", {"prime.dmabufs.rb_node": members[0] + node})
    return file, members


def test_what_drm_files_remember_of_prime(machine: Machine) -> None:
    buffers = [dma_buf(machine, 1)[0] for _ in range(3)]
    file, members = prime_file(machine, list(zip(buffers, (3, 1, 2))))
    other, others = prime_file(machine, [(buffers[0], 7)])
    empty = machine.new("struct drm_file", {})
    word = offset(machine, "struct drm_prime_member", "dma_buf")
    found = prime_entries(machine.prog, [file, empty, other])
    rows = zip(*(a.tolist() for a in (found.file, found.dma_buf, found.word, found.handle)))
    assert sorted(rows) == sorted(
        [
            *((file, b, m + word, h) for b, m, h in zip(buffers, members, (3, 1, 2))),
            (other, buffers[0], others[0] + word, 7),
        ]
    )
    assert found.unread == ()


def test_a_prime_cache_whose_tree_is_damaged(machine: Machine) -> None:
    """It ends, and says so."""
    buffer, _ = dma_buf(machine, 1)
    file, (member,) = prime_file(machine, [(buffer, 1)])
    node = offset(machine, "struct drm_prime_member", "dmabuf_rb")
    machine.put(
        "struct drm_prime_member",
        member,
        {"dmabuf_rb.rb_left": member + node, "dmabuf_rb.rb_right": RAM_END + node},
    )
    assert prime_entries(machine.prog, [file]).unread


def test_entries_whose_handle_is_of_another_object(machine: Machine) -> None:
    buffers = [dma_buf(machine, 1)[0] for _ in range(3)]
    attachment = machine.new("struct dma_buf_attachment", {"dmabuf": buffers[1]})
    exported = machine.new("struct drm_gem_object", {"dma_buf": buffers[0]})
    imported = machine.new("struct drm_gem_object", {"import_attach": attachment})
    plain = machine.new("struct drm_gem_object", {})
    file, _ = prime_file(machine, [(buffers[0], 1), (buffers[1], 2), (buffers[2], 3)])
    closed, _ = prime_file(machine, [(buffers[0], 1)])
    entries = prime_entries(machine.prog, [file, closed])
    handles = {(file, 1): exported, (file, 2): imported, (file, 3): plain}
    gems = gem_dma_bufs(machine.prog, [exported, imported, plain])
    stale = entries_of_other_objects(entries, handles, gems)
    found = {
        (file, handle): wrong
        for file, handle, wrong in zip(
            entries.file.tolist(), entries.handle.tolist(), stale.tolist()
        )
    }
    assert found == {(file, 1): False, (file, 2): False, (file, 3): True, (closed, 1): True}
    nothing = gem_dma_bufs(machine.prog, [])
    assert entries_of_other_objects(entries, {}, nothing).all()


def test_entries_of_objects_that_cannot_be_read(machine: Machine) -> None:
    """They are not called stale."""
    buffers = [dma_buf(machine, 1)[0] for _ in range(2)]
    lost = machine.new("struct drm_gem_object", {"import_attach": RAM_END + 0x100})
    file, _ = prime_file(machine, [(buffers[0], 1), (buffers[1], 2)])
    entries = prime_entries(machine.prog, [file])
    gems = gem_dma_bufs(machine.prog, [RAM_END, lost])
    assert sorted(gems.unread) == [RAM_END, RAM_END + 0x100]
    handles = {(file, 1): RAM_END, (file, 2): lost}
    assert not entries_of_other_objects(entries, handles, gems).any()


@pytest.mark.parametrize("kept_by", ["nothing", "handle", "descriptor", "count"])
def test_imports_in_a_circle(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, kept_by: str
) -> None:
    """Two objects that are made of each other's dma-buf, and a chain of imports as it should be."""
    handles = int(kept_by == "handle")
    gems = [
        machine.new(
            "struct drm_gem_object",
            {COUNT: count, "handle_count": handles},
        )
        for count in (1, 1 + (kept_by == "count"))
    ]
    made = [dma_buf(machine, 1, priv=gems[0])]
    made.append(dma_buf(machine, 1 + (kept_by == "descriptor"), priv=gems[1]))
    for gem, (other, _) in zip(gems, reversed(made)):
        (attachment,) = attach(machine, other, 1)
        machine.put("struct drm_gem_object", gem, {"import_attach": attachment})
    # An object with a handle imports what another one was exported as.
    exporter = machine.new("struct drm_gem_object", {COUNT: 1})
    shared, file = dma_buf(machine, 1, priv=exporter)
    (attachment,) = attach(machine, shared, 1)
    importer = machine.new(
        "struct drm_gem_object",
        {
            COUNT: 1,
            "handle_count": 1,
            "import_attach": attachment,
        },
    )
    buffers = find(machine, monkeypatch, [*(file for _, file in made), file])
    found = gem_dma_bufs(machine.prog, [*gems, exporter, importer])
    circles = kept_by_themselves(buffers, found)
    if kept_by != "nothing":
        assert circles == []
        return
    (circle,) = circles
    assert found.gem[circle.gem].tolist() == sorted(gems)
    assert sorted(buffers.address[circle.dma_buf].tolist()) == sorted(a for a, _ in made)


def test_two_circles_are_two(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    files, gems = [], []
    for _ in range(2):
        gem = machine.new("struct drm_gem_object", {COUNT: 1})
        buffer, file = dma_buf(machine, 1, priv=gem)
        (attachment,) = attach(machine, buffer, 1)
        machine.put("struct drm_gem_object", gem, {"import_attach": attachment})
        files.append(file)
        gems.append(gem)
    buffers = find(machine, monkeypatch, files)
    found = gem_dma_bufs(machine.prog, gems)
    circles = kept_by_themselves(buffers, found)
    assert [found.gem[circle.gem].tolist() for circle in circles] == [[gem] for gem in gems]


# Descriptors.


def test_descriptors_and_what_a_table_outgrew(machine: Machine) -> None:
    watched, other = (machine.new("struct file", {}) for _ in range(2))
    table_type, array = "struct files_struct", offset(machine, "struct files_struct", "fd_array")
    own = offset(machine, table_type, "fdtab")
    small = machine.new(table_type, {})
    machine.put(
        table_type,
        small,
        {"fdt": small + own, "fdtab.max_fds": 64, "fdtab.fd": small + array},
    )
    machine.words(small + array, [other, watched, 0, watched])
    grown = machine.new(table_type, {})
    larger = machine.words(machine.alloc(8 * 256), [0, watched])
    fdt = machine.new("struct fdtable", {"max_fds": 256, "fd": larger})
    machine.put(table_type, grown, {"fdt": fdt})
    # What was copied, and closed since then.
    machine.words(grown + array, [watched, 0, other])
    tables = [small, grown]
    found = descriptors(machine.prog, tables, addresses([watched]))
    assert found.unread == ()
    assert list(zip(found.owner.tolist(), found.number.tolist(), found.word.tolist())) == [
        (small, 1, small + array + 8),
        (small, 3, small + array + 24),
        (grown, 1, larger + 8),
    ]
    assert set(found.file.tolist()) == {watched}
    outgrown = outgrown_descriptor_words(machine.prog, tables, addresses([watched]))
    assert outgrown.tolist() == [grown + array]


def test_a_damaged_table_of_descriptors_is_counted(machine: Machine) -> None:
    fdt = machine.new("struct fdtable", {"max_fds": 1 << 31, "fd": 0x1000})
    table = machine.new("struct files_struct", {"fdt": fdt})
    assert descriptors(machine.prog, [table], addresses([1])).unread == (table,)


def test_a_table_that_never_had_as_many_descriptors_is_read_in_pieces(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """max_fds of a table that was freed and written over: it has no memory for them."""
    monkeypatch.setattr(files, "_DESCRIPTORS_AT_ONCE", 4)
    watched = machine.new("struct file", {})
    array = machine.words(machine.alloc(8 * 11), [0, watched, 0, 0, 0, 0, watched, *[0] * 4])
    machine.words(array + 80, [watched])
    tables = []
    for count in (11, (1 << 28) - 1):
        fdt = machine.new("struct fdtable", {"max_fds": count, "fd": array})
        tables.append(machine.new("struct files_struct", {"fdt": fdt}))
    sizes: List[int] = []
    read = machine.prog.read

    class Recorded:
        def __getattr__(self, name: str) -> object:
            return getattr(machine.prog, name)

        def read(self, address: int, size: int) -> bytes:
            sizes.append(size)
            return read(address, size)

    found = descriptors(Recorded(), tables, addresses([watched]))  # type: ignore[arg-type]
    assert found.unread == (tables[1],)
    assert found.number.tolist() == [1, 6, 10]
    assert found.word.tolist() == [array + 8 * number for number in (1, 6, 10)]
    assert max(sizes) < 4096


# Descriptors on their way.


def message(machine: Machine, files_list: int) -> int:
    address = machine.new("struct sk_buff", {})
    control = address + offset(machine, "struct sk_buff", "cb")
    machine.put("struct unix_skb_parms", control, {"fp": files_list})
    return address


def socket_with(machine: Machine, messages: Sequence[int]) -> int:
    address = machine.new("struct unix_sock", {"sk.sk_receive_queue.qlen": len(messages)})
    queue = address + offset(machine, "struct unix_sock", "sk.sk_receive_queue")
    machine.link(queue, messages)
    return address


def test_the_files_in_messages(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    passed, other = (machine.new("struct file", {}) for _ in range(2))
    first = offset(machine, "struct scm_fp_list", "fp")
    many = machine.new("struct scm_fp_list", {"count": 3})
    machine.words(many + first, [other, passed, passed, passed])
    # scm_fp_dup() allocates no more than is used: behind it is no memory.
    short = DIRECT_MAP + RAM - first - 8
    machine.put("struct scm_fp_list", short, {"count": 1})
    machine.words(short + first, [passed])
    damaged = machine.new("struct scm_fp_list", {"count": 254})
    sockets = [
        socket_with(machine, [message(machine, many), message(machine, 0)]),
        socket_with(machine, [message(machine, short), message(machine, damaged)]),
    ]
    monkeypatch.setattr(
        "vmcore_tools.kernel.scm_rights._unix_sockets",
        lambda index: [
            Object(machine.prog, "struct unix_sock *", value=address) for address in sockets
        ],
    )
    # One that is in no queue, one that is in a queue as well, and something else.
    machine.put("struct scm_fp_list", other, {"count": -1})
    sending = machine.new("struct scm_fp_list", {"count": 2})
    machine.words(sending + first, [other, passed])
    monkeypatch.setattr(
        "vmcore_tools.kernel.scm_rights._lists", lambda index: addresses([many, sending, other])
    )
    index = FilesOnly(machine)
    found, passing = files_in_flight(index, addresses([passed]))  # type: ignore[arg-type]
    assert (passing.word.tolist(), passing.owner.tolist()) == ([sending + first + 8], [sending])
    assert passing.unread == ()
    assert list(zip(found.word.tolist(), found.owner.tolist())) == [
        (many + first + 8, sockets[0]),
        (many + first + 16, sockets[0]),
        (short + first, sockets[1]),
    ]
    assert set(found.file.tolist()) == {passed}
    assert found.unread == (damaged,)
