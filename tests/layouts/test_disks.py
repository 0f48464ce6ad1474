# SPDX-License-Identifier: LGPL-2.1-or-later
"""Requests that a disk's driver has: of v4.19, v5.10 and v7.2."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List, Optional, Sequence

import pytest
from drgn import Object, offsetof, sizeof
from drgn.helpers import ValidationError

from tests.layouts.machine import Machine, Value
from vmcore_tools.kernel import blk_mq, wait_disks
from vmcore_tools.kernel.blk_mq import bio_waiter, for_each_page, requests_in_flight
from vmcore_tools.kernel.wait_disks import as_tag
from vmcore_tools.kernel.waits import Wait

RELEASES = {"4.19.90": "DISKS_4_19", "5.10.262": "DISKS_5_10", "7.2.13": "DISKS_7_2"}
IDLE, IN_FLIGHT, COMPLETE = 0, 1, 2
JIFFY_NS = 4_000_000
NOW_NS, NOW = 50_000_000_000, 100_000
TIMEOUT = 7500  #: 30 s in jiffies


class Disk:
    """A request queue with one hardware queue of four tags."""

    def __init__(self, machine: Machine, release: str) -> None:
        self.machine, self.release = machine, release
        self.slots = machine.alloc(8 * 4)
        self.tags = machine.new("struct blk_mq_tags", {"nr_tags": 4, "rqs": self.slots})
        self.queue = self.new_queue()
        machine.set_variable("jiffies_64", NOW)

    def new_queue(self) -> int:
        machine = self.machine
        hardware = machine.new("struct blk_mq_hw_ctx", {"tags": self.tags})
        if self.release.startswith("7."):
            return machine.new("struct request_queue", {"hctx_table.xa_head": hardware})
        array = machine.words(machine.alloc(8), [hardware])
        return machine.new("struct request_queue", {"queue_hw_ctx": array, "nr_hw_queues": 1})

    def request(
        self,
        state: int = IN_FLIGHT,
        begun: int = NOW,
        start_ns: int = 0,
        queue: int = 0,
        io_start_ns: int = 0,
    ) -> int:
        """:param begun: jiffies when its timer started"""
        deadline = "__deadline" if self.release.startswith("4.") else "deadline"
        members = {
            "q": queue or self.queue,
            "state": state,
            "timeout": TIMEOUT,
            deadline: begun + TIMEOUT,
            "start_time_ns": start_ns,
            "io_start_time_ns": io_start_ns,
        }
        return self.machine.new("struct request", members)

    def tagged(self, requests: Sequence[int]) -> None:
        self.machine.words(self.slots, requests)

    def in_flight(self) -> blk_mq.InFlight:
        return requests_in_flight(self.object("request_queue", self.queue))

    def object(self, name: str, address: int) -> Object:
        return Object(self.machine.prog, f"struct {name} *", value=address)

    def bio(
        self, parts: Sequence[Sequence[int]] = (), end: str = "mpage_end_io", **more: Value
    ) -> int:
        """:param parts: page, length and offset of each"""
        machine = self.machine
        size = sizeof(machine.prog.type("struct bio_vec"))
        array = machine.alloc(size * len(parts)) if parts else 0
        for number, (page, length, offset) in enumerate(parts):
            machine.put(
                "struct bio_vec",
                array + number * size,
                {"bv_page": page, "bv_len": length, "bv_offset": offset},
            )
        members: Dict[str, Value] = {
            "bi_iter.bi_size": sum(length for _, length, _ in parts),
            "bi_io_vec": array,
            "bi_end_io": machine.prog.symbol(end).address,
        }
        return machine.new("struct bio", {**members, **more})

    def waiter(self, bio: int) -> Optional[int]:
        task = bio_waiter(self.object("bio", bio))
        return None if task is None else int(task.value_())


@pytest.fixture(params=RELEASES)
def disk(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Disk]:
    # The time of day of these machines is not the subject.
    now = SimpleNamespace(value_=lambda: NOW_NS)
    monkeypatch.setattr(blk_mq, "ktime_get_coarse_ns", lambda _prog: now)
    machine = Machine("disks.c", tmp_path, request.param, config=[RELEASES[request.param]])
    yield Disk(machine, request.param)
    machine.close()


def test_what_the_driver_has_started(disk: Disk) -> None:
    started = [disk.request(begun=NOW - 250), disk.request(begun=NOW - 500)]
    # A tag keeps its last request, and queues can have their tags together.
    others = [disk.request(state=COMPLETE), disk.request(queue=disk.new_queue())]
    disk.tagged([started[1], others[0], started[0], others[1]])
    found = disk.in_flight()
    assert found.requests.tolist() == sorted(started)
    assert found.oldest_ns == 500 * JIFFY_NS


def test_an_idle_disk(disk: Disk) -> None:
    disk.tagged([disk.request(state=IDLE), 0, 0, disk.request(state=COMPLETE)])
    assert disk.in_flight().requests.tolist() == []
    assert (disk.in_flight().oldest_ns, disk.in_flight().started_ns) == (None, None)


def test_the_timer_starts_again_but_not_the_request(disk: Disk) -> None:
    disk.tagged([disk.request(begun=NOW - 250, start_ns=NOW_NS - 40_000_000_000), 0, 0, 0])
    assert disk.in_flight().oldest_ns == 40_000_000_000
    # It need not have been the driver's all that time.
    assert disk.in_flight().started_ns == 250 * JIFFY_NS


def test_statistics_know_when_the_driver_got_it(disk: Disk) -> None:
    times = {
        "start_ns": NOW_NS - 40_000_000_000,
        "io_start_ns": NOW_NS - 30_000_000_000,
    }
    disk.tagged([disk.request(begun=NOW - 250, **times), 0, 0, 0])
    assert disk.in_flight().oldest_ns == 40_000_000_000
    assert disk.in_flight().started_ns == 30_000_000_000


def test_a_damaged_number_of_tags(disk: Disk) -> None:
    disk.machine.put("struct blk_mq_tags", disk.tags, {"nr_tags": 1 << 31})
    with pytest.raises(ValidationError):
        disk.in_flight()


def pages(disk: Disk, bio: int) -> List[int]:
    request = disk.machine.new("struct request", {"bio": bio})
    return [page.value_() for page in for_each_page(disk.object("request", request))]


def test_the_pages_of_a_request(disk: Disk) -> None:
    page = disk.machine.alloc(64 * 8, 64)
    second = disk.bio([(page + 64 * 6, 512, 1024)])
    first = disk.bio([(page, 4096, 0), (page + 64 * 2, 8192, 2048)], bi_next=second)
    assert pages(disk, first) == [page + 64 * number for number in (0, 2, 3, 4, 6)]


def test_a_clone_has_its_part_of_the_pages(disk: Disk) -> None:
    page = disk.machine.alloc(64 * 8, 64)
    parts = [(page, 8192, 0), (page + 64 * 4, 8192, 0)]
    # Behind the first page: two pages, of which one is in the second part.
    its = {"bi_iter.bi_idx": 0, "bi_iter.bi_bvec_done": 4096, "bi_iter.bi_size": 8192}
    assert pages(disk, disk.bio(parts, **its)) == [page + 64, page + 64 * 4]
    assert pages(disk, disk.bio(parts, **{"bi_iter.bi_idx": 1, "bi_iter.bi_size": 4096})) == [
        page + 64 * 4
    ]


def test_a_discard_has_no_pages(disk: Disk) -> None:
    assert pages(disk, disk.bio(**{"bi_iter.bi_size": 1 << 30})) == []


def test_parts_without_a_length_are_damage(disk: Disk) -> None:
    page = disk.machine.alloc(64, 64)
    with pytest.raises(ValidationError):
        pages(disk, disk.bio([(page, 0, 0)], **{"bi_iter.bi_size": 4096}))


def test_bios_in_a_circle_end(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blk_mq, "_PAGES_MAX", 100)
    bio = disk.bio()
    disk.machine.put("struct bio", bio, {"bi_next": bio})
    with pytest.raises(ValidationError):
        pages(disk, bio)


def test_who_sleeps_for_direct_io(disk: Disk) -> None:
    machine = disk.machine
    task = machine.new("struct task_struct", {})
    assert disk.waiter(disk.bio(end="blkdev_bio_end_io_simple", bi_private=task)) == task
    dio = machine.new("struct blkdev_dio", {"waiter": task})
    assert disk.waiter(disk.bio(end="blkdev_bio_end_io", bi_private=dio)) == task
    dio = machine.new("struct iomap_dio", {"submit.waiter": task})
    assert disk.waiter(disk.bio(end="iomap_dio_bio_end_io", bi_private=dio)) == task
    nobody = machine.new("struct iomap_dio", {})
    assert disk.waiter(disk.bio(end="iomap_dio_bio_end_io", bi_private=nobody)) is None
    assert disk.waiter(disk.bio(bi_private=task)) is None


def wait_queues(disk: Disk) -> List[int]:
    """Gives the disk's tags wait queues: the addresses of those of ``bitmap_tags``."""
    machine = disk.machine
    state = machine.prog.type("struct sbq_wait_state")
    heads = []
    for name in ("bitmap_tags", "breserved_tags"):
        states = machine.alloc(8 * sizeof(state), 64)
        if disk.release.startswith("5."):
            bits = machine.new("struct sbitmap_queue", {"ws": states})
            machine.put("struct blk_mq_tags", disk.tags, {name: bits})
        else:
            machine.put("struct blk_mq_tags", disk.tags, {f"{name}.ws": states})
        heads.append([states + n * sizeof(state) + offsetof(state, "wait") for n in range(8)])
    return heads[0]


def as_tag_of(disk: Disk, queues: Sequence[int], address: int) -> Optional[Wait]:
    """What a wait on a queue is taken for, where each of the request queues is a disk's."""
    disks = [
        disk.object("gendisk", disk.machine.new("struct gendisk", {"queue": queue}))
        for queue in queues
    ]
    chains: Any = SimpleNamespace(prog=disk.machine.prog, found={}, lost=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wait_disks, "for_each_disk", lambda _prog: iter(disks))
        found = as_tag(chains, Wait("wait queue", disk.object("wait_queue_head", address), ""))
    assert found is None or found.object.queue.value_() == queues[0]
    return found


def test_who_waits_for_a_free_request_waits_for_the_disk(disk: Disk) -> None:
    third = wait_queues(disk)[2]
    found = as_tag_of(disk, [disk.queue], third)
    assert found is not None
    assert (found.kind, found.proven) == ("tag", True)
    assert as_tag_of(disk, [disk.queue], third + 8) is None


def test_of_tags_of_several_disks_it_is_not_known(disk: Disk) -> None:
    third = wait_queues(disk)[2]
    assert as_tag_of(disk, [disk.queue, disk.new_queue()], third) is None
