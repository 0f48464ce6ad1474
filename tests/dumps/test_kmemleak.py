# SPDX-License-Identifier: LGPL-2.1-or-later
"""
kmemleak's objects, in copies of the demo dump with objects laid over it.

The guest of the demo dump ran without kmemleak: its variables and objects are
written here. The lab compares them with a guest's own list (fixtures/check_kmemleak.py).
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import pytest
from drgn import Object, offsetof

from drgn_scripts import kmemleak as script
from drgn_scripts.kmemleak import KmemleakScan, UnreferencedByStack, UnreferencedObject
from tests.dumps.conftest import ShippedDump
from vmcore_tools import runner, target
from vmcore_tools.kernel.kmemleak import (
    OBJECT_ALLOCATED,
    OBJECT_PERCPU,
    OBJECT_REPORTED,
    kmemleak_objects,
    kmemleak_reported,
    kmemleak_state,
    object_stacks,
    reported_objects,
    unreferenced_objects,
)
from vmcore_tools.kernel.page import direct_map_offset
from vmcore_tools.kernel.slab import SlabIndex, slab_index
from vmcore_tools.model import Absent, Confidence, Report, Status

TICKS_A_SECOND = 250  # CONFIG_HZ of the lab's kernel
SECOND = 1_000_000_000
MIN_AGE = 5 * TICKS_A_SECOND
#: A cache with objects that are large enough for a struct kmemleak_object.
CACHE = "kmalloc-1k"
LEAKED = OBJECT_ALLOCATED | OBJECT_REPORTED


def objects_of(index: SlabIndex, name: str) -> Iterator[np.ndarray]:
    """The allocated objects of a cache."""
    for batch in index.batches():
        if batch.cache.name == name:
            yield batch.objects[batch.allocated]


class Copy:
    """A copy of the demo dump whose kernel has kmemleak on."""

    def __init__(self, dump: ShippedDump) -> None:
        self.target = target.open_core(dump.files.vmcore, dump.files.symbols)
        self.prog = self.target.prog
        self.type = self.prog.type("struct kmemleak_object")
        self.node = offsetof(self.type, "object_list")
        self.now: int = self.prog["jiffies_64"].value_()
        self.last_scan = self.now - 10 * TICKS_A_SECOND
        self.original = slab_index(dump.target.prog, dump.target.memory)
        cache = next(c for c in self.original.caches if c.name == CACHE)
        assert cache.object_size_bytes >= self.type.size
        slots = [int(a) for batch in objects_of(self.original, CACHE) for a in batch]
        for slot in slots:
            # What the guest had there is no object of kmemleak's.
            self.write(slot, bytes(self.type.size))
        self.slots = iter(slots)
        self.pool = self.variable("mem_pool")
        self.pool_used = 0
        for name, value in (
            ("kmemleak_enabled", 1),
            ("kmemleak_error", 0),
            ("jiffies_last_scan", self.last_scan),
            ("jiffies_min_age", MIN_AGE),
        ):
            self.set(name, value)
        self.set("object_cache", cache.cache.value_())

    def variable(self, name: str) -> Object:
        return self.prog.variable(name, "kmemleak.c")

    def set(self, name: str, value: int) -> None:
        variable = self.variable(name)
        self.write(variable.address_, value.to_bytes(variable.type_.size, "little"))

    def write(self, address: int, data: bytes) -> None:
        def read(_address: int, count: int, offset: int, _physical: bool) -> bytes:
            return data[offset : offset + count]

        self.prog.add_memory_segment(address, len(data), read, False)
        physical = address - direct_map_offset(self.prog)
        if 0 < physical < 1 << 40:
            self.prog.add_memory_segment(physical, len(data), read, True)

    def slot(self) -> int:
        """A place for an object in the slab cache."""
        return next(self.slots)

    def pool_slot(self) -> int:
        """A place for an object in the static pool."""
        self.pool_used += 1
        return int(self.pool[self.pool_used - 1].address_)

    def link(
        self,
        objects: Sequence[Tuple[int, Dict[str, Any]]],
        changed: Optional[Dict[int, int]] = None,
    ) -> None:
        """
        Write objects, and the list of them.

        :param objects: where each one is, and its members
        :param changed: position of an object to what its link to the next one is instead
        """
        head = self.variable("object_list").address_
        nodes = [head, *(address + self.node for address, _ in objects), head]
        links = {}
        for i, (address, members) in enumerate(objects, 1):
            following = (changed or {}).get(i - 1, nodes[i + 1])
            links[address] = (following, nodes[i - 1])
            self.write(address, self.bytes_of(members, *links[address]))
        self.write(head, nodes[1].to_bytes(8, "little") + nodes[-2].to_bytes(8, "little"))

    def bytes_of(self, members: Dict[str, Any], following: int, previous: int) -> bytes:
        values = {
            "pointer": 0,
            "size": 96,
            "min_count": 1,
            "count": 0,
            "flags": LEAKED,
            "jiffies": self.now - 60 * TICKS_A_SECOND,
            "pid": 47,
            "comm": b"Xorg",
            "trace": (),
            **members,
        }
        data = bytearray(self.type.size)

        def put(name: str, value: int, size: int) -> None:
            at = offsetof(self.type, name)
            data[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")

        for name in ("pointer", "size", "jiffies"):
            put(name, values[name], 8)
        for name in ("min_count", "count", "flags", "pid"):
            put(name, values[name], 4)
        put("object_list.next", following, 8)
        put("object_list.prev", previous, 8)
        at = offsetof(self.type, "comm")
        data[at : at + 16] = values["comm"].ljust(16, b"\0")
        put("trace_len", len(values["trace"]), 4)
        at = offsetof(self.type, "trace")
        # What an older record left behind the end.
        words = [*values["trace"], 0xFFFFFFFF81000001][:16]
        data[at : at + 8 * len(words)] = b"".join(w.to_bytes(8, "little") for w in words)
        return bytes(data)

    def index(self) -> SlabIndex:
        return slab_index(self.prog, self.target.memory)

    def report(self, **options: Any) -> Report:
        return runner.run(
            self.target,
            (script.ANALYSIS,),
            {"kmemleak": options},
            limit=None,
            progress=lambda items, _what, _total: items,
        )

    def address_in(self, function: str) -> int:
        return int(self.prog.symbol(function).address) + 16


@pytest.fixture
def copy(demo_dump: ShippedDump) -> Copy:
    return Copy(demo_dump)


def rows(report: Report, row_type: type) -> Tuple[Any, ...]:
    (result,) = report.analyses
    (table,) = [table for table in result.tables if table.row_type is row_type]
    return table.rows


def mixed(copy: Copy) -> List[Tuple[int, Dict[str, Any]]]:
    """One object of each kind; two of them are reported."""
    young = copy.last_scan - MIN_AGE + 1
    return [
        (copy.slot(), {"pointer": 0x1000}),
        (copy.pool_slot(), {"pointer": 0x2000, "size": 4096, "jiffies": young - 1}),
        (copy.slot(), {"pointer": 0x3000, "count": 1}),
        (copy.slot(), {"pointer": 0x4000, "jiffies": young}),
        (copy.slot(), {"pointer": 0x5000, "flags": OBJECT_ALLOCATED}),
        (copy.slot(), {"pointer": 0x6000, "flags": OBJECT_REPORTED}),
        (copy.pool_slot(), {"pointer": 0x7000, "min_count": -1}),
        (copy.slot(), {"pointer": 0x8000, "min_count": 0}),
        (copy.slot(), {"pointer": 0x9000, "count": -1, "min_count": 1}),
    ]


def test_the_state_is_that_of_the_variables(copy: Copy) -> None:
    state = kmemleak_state(copy.prog)
    assert (state.enabled, state.failed, state.scanning) == (True, False, False)
    assert (state.last_scan, state.min_age) == (copy.last_scan, MIN_AGE)


def test_only_unreferenced_objects_that_were_reported_are(copy: Copy) -> None:
    copy.link(mixed(copy))
    objects, state = kmemleak_objects(copy.index()), kmemleak_state(copy.prog)
    assert (objects.problem, objects.missed) == (None, 0)
    pointer = objects.records["pointer"]
    assert pointer.tolist() == [0x1000 * i for i in range(1, 10)]
    assert pointer[unreferenced_objects(state, objects)].tolist() == [0x1000, 0x2000, 0x5000]
    assert pointer[reported_objects(state, objects)].tolist() == [0x1000, 0x2000]
    assert kmemleak_reported(copy.index()).tolist() == [0x1000, 0x2000]


def test_per_cpu_pointers_are_no_addresses_to_compare_with(copy: Copy) -> None:
    copy.link(
        [
            (copy.slot(), {"pointer": 0x9000}),
            (copy.slot(), {"pointer": 0x1000, "flags": LEAKED | OBJECT_PERCPU}),
            (copy.slot(), {"pointer": 0x5000}),
        ]
    )
    assert kmemleak_reported(copy.index()).tolist() == [0x5000, 0x9000]
    assert [row.kind for row in rows(copy.report(), UnreferencedObject)] == [
        "virtual",
        "per-CPU",
        "virtual",
    ]


def test_tags_are_no_part_of_an_address(copy: Copy) -> None:
    fence = int(next(objects_of(copy.original, "kmalloc-96"))[0])
    tagged = fence & ~(0xFF << 56) | 0xF3 << 56
    copy.link([(copy.slot(), {"pointer": tagged})])
    assert kmemleak_reported(copy.index()).tolist() == [fence]
    (row,) = rows(copy.report(), UnreferencedObject)
    # As the kernel prints it.
    assert (row.address, row.cache) == (tagged, "kmalloc-96")


def test_during_a_scan_the_counts_do_not_count(copy: Copy) -> None:
    copy.link(mixed(copy))
    # Of this owner of the mutex, no stack can be read.
    copy.write(
        copy.variable("scan_mutex").owner.address_, (0xFFFF888000000000).to_bytes(8, "little")
    )
    state, objects = kmemleak_state(copy.prog), kmemleak_objects(copy.index())
    assert state.scanning
    reported = objects.records["pointer"][reported_objects(state, objects)]
    assert reported.tolist() == [0x1000, 0x2000, 0x3000, 0x4000, 0x7000, 0x8000, 0x9000]
    (result,) = copy.report().analyses
    assert result.status is Status.PARTIAL
    assert {finding.confidence for finding in result.findings} == {Confidence.SUSPECTED}


def test_who_reads_the_list_does_not_scan(copy: Copy) -> None:
    task = copy.prog["init_task"].address_
    copy.write(copy.variable("scan_mutex").owner.address_, task.to_bytes(8, "little"))
    assert not kmemleak_state(copy.prog).scanning


def test_an_object_that_is_in_no_slab_is_read_by_itself(copy: Copy) -> None:
    elsewhere = int(next(objects_of(copy.original, "kmalloc-512"))[0])
    copy.link(
        [(copy.slot(), {"pointer": 1}), (elsewhere, {"pointer": 2}), (copy.slot(), {"pointer": 3})]
    )
    objects = kmemleak_objects(copy.index())
    assert objects.problem is None
    assert objects.records["pointer"].tolist() == [1, 2, 3]
    assert int(objects.records["address"][1]) == elsewhere


@pytest.mark.parametrize("damage", ["nowhere", "itself", "the first", "over the next"])
def test_a_damaged_list_is_read_from_both_ends(copy: Copy, damage: str) -> None:
    objects = [(copy.slot(), {"pointer": i}) for i in range(10)]
    nodes = [address + copy.node for address, _ in objects]
    to = {"nowhere": 0x1234, "itself": nodes[4], "the first": nodes[0], "over the next": nodes[6]}
    copy.link(objects, {4: to[damage]})
    found = kmemleak_objects(copy.index())
    assert found.problem is not None
    assert sorted(found.records["pointer"].tolist()) == list(range(10))
    assert found.records["pointer"].tolist() == list(range(10))
    assert found.missed == 0
    (result,) = copy.report().analyses
    assert result.status is Status.OK, result.gaps


def test_what_lies_between_two_breaks_is_counted(copy: Copy) -> None:
    objects = [(copy.slot(), {"pointer": i}) for i in range(10)]
    copy.link(objects, {2: 0x1234, 6: 0x1234})
    found = kmemleak_objects(copy.index())
    assert found.records["pointer"].tolist() == [0, 1, 2, 7, 8, 9]
    assert found.missed == 4
    (result,) = copy.report().analyses
    assert result.status is Status.PARTIAL
    assert "links of" in result.gaps[0].reason or "not in the dump" in result.gaps[0].reason


def test_a_list_without_an_end(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcore_tools.kernel.kmemleak._OBJECTS_MAX", 5)
    copy.link([(copy.slot(), {"pointer": i}) for i in range(10)])
    found = kmemleak_objects(copy.index())
    assert found.problem == "it has no end"
    assert found.records["pointer"].tolist() == list(range(10))


def test_stacks_end_where_their_length_says(copy: Copy) -> None:
    alloc, ioctl = copy.address_in("virtio_gpu_fence_alloc"), copy.address_in("drm_ioctl")
    copy.link(
        [
            (copy.slot(), {"pointer": 1, "trace": (alloc, ioctl)}),
            (copy.slot(), {"pointer": 2, "trace": (ioctl,)}),
            (copy.slot(), {"pointer": 3}),
            (copy.slot(), {"pointer": 4, "trace": (alloc, ioctl)}),
        ]
    )
    objects = kmemleak_objects(copy.index())
    position, stacks = object_stacks(objects, objects.records)
    found = [stacks[i] if i >= 0 else None for i in position.tolist()]
    assert found == [(alloc, ioctl), (ioctl,), None, (alloc, ioctl)]


def leak(copy: Copy) -> List[Tuple[int, Dict[str, Any]]]:
    """Fences that two tasks leaked with one stack, and a page of another stack."""
    alloc, ioctl = copy.address_in("virtio_gpu_fence_alloc"), copy.address_in("drm_ioctl")
    fences = [int(a) for a in next(objects_of(copy.original, "kmalloc-96"))[:7]]
    made = [
        (
            copy.slot(),
            {
                "pointer": fence,
                "trace": (alloc, ioctl),
                "pid": 47 + number // 5,
                "comm": b"Xorg" if number < 5 else b"weston",
                "jiffies": copy.now - (60 + number) * TICKS_A_SECOND,
            },
        )
        for number, fence in enumerate(fences)
    ]
    return [*made, (copy.slot(), {"pointer": 0xFFFFC90000000000, "size": 400, "trace": (ioctl,)})]


def test_findings_are_by_stack_and_rows_by_comm(copy: Copy) -> None:
    copy.link(leak(copy))
    report = copy.report()
    (result,) = report.analyses
    assert (result.status, [gap.material for gap in result.gaps]) == (Status.OK, [])
    first, second = result.findings
    found = {item.name: item.value for item in first.evidence}
    assert (first.rule.id, first.confidence) == ("VT501", Confidence.LIKELY)
    assert (found["objects"], found["size_bytes"]) == (7, 7 * 96)
    assert found["function"] == "virtio_gpu_fence_alloc"
    assert (found["comms"], found["pids"]) == (("Xorg", "weston"), (47, 48))
    assert found["caches"] == ("kmalloc-96",)
    assert (found["oldest_ns"], found["newest_ns"]) == (66 * SECOND, 60 * SECOND)
    assert found["last_scan_ns"] == 10 * SECOND
    assert first.signature_key[0] == "kmemleak-unreferenced"
    assert {"virtio_gpu_fence_alloc", "drm_ioctl"} <= set(first.signature_key)
    assert {item.name: item.value for item in second.evidence}["caches"] == ()
    assert first.signature != second.signature

    assert [
        (row.function, row.comm, row.pids, row.objects, row.size_bytes, row.oldest_ns)
        for row in rows(report, UnreferencedByStack)
    ] == [
        ("virtio_gpu_fence_alloc", "Xorg", 1, 5, 480, 64 * SECOND),
        ("drm_ioctl", "Xorg", 1, 1, 400, 60 * SECOND),
        ("virtio_gpu_fence_alloc", "weston", 1, 2, 192, 66 * SECOND),
    ]
    (scan,) = rows(report, KmemleakScan)
    assert (scan.objects, scan.objects_reported, scan.reported_bytes) == (8, 8, 7 * 96 + 400)
    assert report.exit_code() == 0  # a warning


def test_the_same_leak_has_the_same_signature_whoever_leaks(
    copy: Copy, demo_dump: ShippedDump
) -> None:
    copy.link(leak(copy))
    other = Copy(demo_dump)
    other.link(
        [(place, {**members, "comm": b"sway", "pid": 9}) for place, members in leak(other)[:3]]
    )
    first, second = copy.report().findings[0], other.report().findings[0]
    assert first.signature == second.signature


def test_only_so_many_stacks_become_findings(copy: Copy) -> None:
    copy.link(leak(copy))
    (result,) = copy.report(findings=1).analyses
    assert len(result.findings) == 1
    assert [(gap.count, gap.material) for gap in result.gaps] == [(1, False)]
    assert sum(t.total for t in result.tables if t.row_type is UnreferencedByStack) == 3


def test_only_so_many_stacks_are_shown_whole(copy: Copy) -> None:
    copy.link(leak(copy))
    report = copy.report(findings=1, stacks=1)
    shown = {row.function: row.stack for row in rows(report, UnreferencedByStack)}
    assert isinstance(shown["virtio_gpu_fence_alloc"], str)
    assert shown["drm_ioctl"] == Absent("only for what takes most memory; more with --stacks")
    assert len(report.stacks) == 1


def test_a_comm_is_shown_as_it_is(copy: Copy) -> None:
    copy.link([(copy.slot(), {"pointer": 1, "comm": b"b\xe4d\0junk"})])
    (row,) = rows(copy.report(), UnreferencedObject)
    assert row.comm == "b\\xe4d"


def test_without_a_scan_nothing_found_is_not_nothing_there(copy: Copy) -> None:
    copy.set("jiffies_last_scan", 0)
    copy.link([(copy.slot(), {"pointer": 1, "flags": OBJECT_ALLOCATED})])
    (result,) = copy.report().analyses
    assert (result.status, result.findings) == (Status.PARTIAL, ())
    assert [gap.reason for gap in result.gaps] == ["kmemleak has not scanned yet"]


def test_what_kmemleak_found_before_it_gave_up_is_suspected(copy: Copy) -> None:
    copy.set("kmemleak_enabled", 0)
    copy.set("kmemleak_error", 1)
    copy.link(leak(copy))
    (result,) = copy.report().analyses
    assert result.status is Status.PARTIAL
    assert {finding.confidence for finding in result.findings} == {Confidence.SUSPECTED}


def test_objects_younger_than_the_last_scan_are_counted(copy: Copy) -> None:
    copy.link([(copy.slot(), {"pointer": i, "jiffies": copy.now, "flags": 1}) for i in range(3)])
    (result,) = copy.report().analyses
    assert result.status is Status.OK
    assert [(gap.count, gap.material) for gap in result.gaps] == [(3, False)]


def test_a_healthy_kmemleak_reports_nothing(copy: Copy) -> None:
    copy.link([(copy.slot(), {"pointer": i, "count": 1}) for i in range(3)])
    report = copy.report()
    assert (report.analyses[0].status, report.findings) == (Status.OK, ())
    (scan,) = rows(report, KmemleakScan)
    assert (scan.objects, scan.objects_unreferenced, scan.objects_reported) == (3, 0, 0)


def test_without_kmemleak_it_is_not_applicable(shipped: ShippedDump) -> None:
    (result,) = [a for a in shipped.report.analyses if a.name == "kmemleak"]
    assert result.status is Status.NOT_APPLICABLE
    assert result.reason == "kmemleak is off: boot with kmemleak=on"
    index = slab_index(shipped.target.prog, shipped.target.memory)
    assert kmemleak_reported(index).tolist() == []
