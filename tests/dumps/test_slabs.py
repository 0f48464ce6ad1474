# SPDX-License-Identifier: LGPL-2.1-or-later
"""Slab caches of the shipped dumps: /proc/slabinfo as oracle, and planted damage."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import pytest
from drgn import FaultError, offsetof
from drgn.helpers.linux.mm import pfn_to_page, virt_to_phys
from drgn.helpers.linux.percpu import per_cpu_ptr
from drgn.helpers.linux.pid import for_each_task

from drgn_scripts import slabs
from drgn_scripts.slabs import ANALYSIS, SlabMemory, Slabs
from tests.dumps.conftest import ShippedDump
from vmcore_tools import target
from vmcore_tools.kernel import slabs_at_hand
from vmcore_tools.kernel.slab import SlabIndex, slab_index
from vmcore_tools.kernel.slab_aliases import merged_names
from vmcore_tools.kernel.slab_poison import Overwritten, Part
from vmcore_tools.kernel.task import live_range, words_at_hand
from vmcore_tools.model import Absent, AnalysisResult, Confidence, Kind, Status
from vmcore_tools.runner import run
from vmcore_tools.target import Target


def analysis(dump: ShippedDump) -> AnalysisResult:
    return next(result for result in dump.report.analyses if result.name == "slabs")


def rows(result: AnalysisResult) -> Dict[str, Slabs]:
    return {row.cache: row for row in result.tables[0].rows}


def test_nothing_is_wrong_and_all_was_read(shipped: ShippedDump) -> None:
    result = analysis(shipped)
    assert (result.status, result.findings, result.gaps) == (Status.OK, (), ())


def test_slabs_and_objects_equal_proc_slabinfo(shipped: ShippedDump) -> None:
    ours = {
        name: (row.objects, row.slabs, row.size_bytes, row.objects_per_slab)
        for name, row in rows(analysis(shipped)).items()
    }
    assert ours == {
        name: (line["num_objs"], line["num_slabs"], line["objsize_bytes"], line["objperslab"])
        for name, line in shipped.truth["slabinfo"].items()
    }


def test_active_objects_equal_proc_slabinfo(shipped: ShippedDump) -> None:
    different = {
        name: (row.active, shipped.truth["slabinfo"][name]["active_objs"])
        for name, row in rows(analysis(shipped)).items()
        if row.active != shipped.truth["slabinfo"][name]["active_objs"]
    }
    # The kernel ran on between its record and the dump. Frees of a cache with
    # slub_debug are seen at once; of others, once a CPU gives up a slab.
    debugged = re.search(r"slub_debug=U,(\S+)", shipped.truth["cmdline"])
    pattern = debugged.group(1) if debugged else ""
    assert [name for name in different if not fnmatch.fnmatch(name, pattern)] == []
    assert all(abs(ours - theirs) < 10 for ours, theirs in different.values())


def test_active_objects_are_the_allocated_ones_and_what_cpus_keep(shipped: ShippedDump) -> None:
    for row in rows(analysis(shipped)).values():
        assert row.active == row.allocated + row.free_on_cpus + row.free_on_cpu_partial, row
        assert row.objects == row.active + row.free_on_nodes
        assert (row.unread, row.free_elsewhere) == (0, 0)


def test_the_leak_is_in_its_cache(shipped: ShippedDump) -> None:
    leak = shipped.truth["leak"]
    assert rows(analysis(shipped))[leak["cache"]].allocated >= leak["objects"]


def test_the_biggest_cache_comes_first(shipped: ShippedDump) -> None:
    sizes = [row.total_bytes for row in analysis(shipped).tables[0].rows]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 0


def test_sums_equal_the_kernels_own_counters(shipped: ShippedDump) -> None:
    lines: Dict[str, SlabMemory] = {r.line: r for r in analysis(shipped).tables[1].rows}
    recorded = shipped.truth["meminfo_kib"]
    for line in lines.values():
        # The kernel ran on between its record and the dump.
        assert isinstance(line.meminfo_bytes, int)
        assert abs(line.meminfo_bytes - recorded[line.line] * 1024) < 256 << 10
    assert lines["SReclaimable"].not_in_slabs_bytes == 0
    for line in lines.values():
        assert line.counted_bytes == line.in_slabs_bytes + line.not_in_slabs_bytes
    assert lines["Slab"].in_slabs_bytes == sum(
        row.total_bytes for row in rows(analysis(shipped)).values()
    )
    # Large kmalloc allocations are whole pages.
    large = lines["SUnreclaim"].not_in_slabs_bytes
    assert isinstance(large, int) and 0 <= large < 1 << 20
    assert large % shipped.truth["page_size_bytes"] == 0


@pytest.mark.parametrize(
    ("order", "key"),
    [
        ("name", lambda row: row.cache),
        ("objects", lambda row: -row.objects),
        ("active", lambda row: -row.active),
        ("size", lambda row: -row.size_bytes),
    ],
)
def test_sort(demo_dump: ShippedDump, order: str, key: Callable[[Slabs], Any]) -> None:
    keys = [key(row) for row in analyze(demo_dump.target, sort=order).tables[0].rows]
    assert keys == sorted(keys)


def test_the_names_of_merged_caches(shipped: ShippedDump, monkeypatch: pytest.MonkeyPatch) -> None:
    # The lab's kernel merges none: SLAB_MERGE_DEFAULT is off.
    found = {name: (r.merged_caches, r.merged_names) for name, r in rows(analysis(shipped)).items()}
    assert set(found.values()) == {(0, "")}
    index = slab_index(shipped.target.prog, shipped.target.memory)
    links = {
        cache.cache.kobj.sd.value_(): (cache.name, "one", "other")
        for cache in index.caches
        if cache.name == "kmalloc-128"
    }
    monkeypatch.setattr(slabs, "merged_names", lambda prog: links)
    found_names = {name: row.merged_names for name, row in rows(analyze(shipped.target)).items()}
    assert found_names.pop("kmalloc-128") == "one, other"
    assert set(found_names.values()) == {""}
    monkeypatch.setattr(slabs, "merged_names", lambda prog: None)
    assert all(
        isinstance(row.merged_names, Absent) for row in rows(analyze(shipped.target)).values()
    )


def test_sysfs_has_a_link_for_each_cache_that_can_be_merged(shipped: ShippedDump) -> None:
    merged = merged_names(shipped.target.prog)
    assert merged is not None
    index = slab_index(shipped.target.prog, shipped.target.memory)
    known = {cache.name for cache in index.caches}
    assert {name for names in merged.values() for name in names} <= known


# --- damage --------------------------------------------------------------------


def analyze(opened: Target, **options: Any) -> AnalysisResult:
    report = run(
        opened,
        [ANALYSIS],
        {"slabs": options},
        limit=None,
        progress=lambda items, what, total: items,
    )
    return report.analyses[0]


class Damaged:
    """A dump of which some bytes are changed, as drgn reads it."""

    def __init__(self, dump: ShippedDump) -> None:
        self.target = target.open_core(dump.files.vmcore, dump.files.symbols)
        # The index of the undamaged dump, to choose victims.
        self.index: SlabIndex = slab_index(dump.target.prog, dump.target.memory)

    def victim(self) -> int:
        """A slab that no CPU has, with two free objects at least."""
        index = self.index
        free = index.objects - index.inuse
        return int(((free >= 2) & ~index.frozen & (index.freelist != 0)).nonzero()[0][0])

    def write(self, address: int, value: int, size: int = 8) -> None:
        """Change a word at an address of the direct map or of vmemmap."""
        data = value.to_bytes(size, "little")

        def read(at: int, count: int, offset: int, physical: bool) -> bytes:
            return data[offset : offset + count]

        prog = self.target.prog
        prog.add_memory_segment(address, size, read, False)
        try:
            physical = virt_to_phys(prog, address).value_()
        except ValueError:
            return  # in vmemmap, which nobody reads by physical address
        prog.add_memory_segment(physical, size, read, True)

    def remove(self, address: int, size: int) -> None:
        def read(at: int, count: int, offset: int, physical: bool) -> bytes:
            raise FaultError("removed", at)

        self.target.prog.add_memory_segment(address, size, read, False)

    def page(self, row: int, member: str) -> int:
        """Address of a member of a slab's page structure."""
        page = pfn_to_page(self.target.prog, int(self.index.pfn[row]))
        return int(page.value_()) + offsetof(page.type_.type, member)

    def encode(self, row: int, stored_at: int, pointer: int) -> int:
        """A free pointer as ``freelist_ptr()`` of mm/slub.c hardens it."""
        random = self.index.caches[self.index.cache[row]].random
        assert random is not None
        return pointer ^ random ^ int.from_bytes(stored_at.to_bytes(8, "little"), "big")


@pytest.fixture
def damaged(demo_dump: ShippedDump) -> Damaged:
    return Damaged(demo_dump)


def expect_one_finding(
    dump: ShippedDump, damaged: Damaged, row: int, rule: str
) -> Tuple[AnalysisResult, Any]:
    """One finding at the slab, and all the other caches as they were."""
    result = analyze(damaged.target)
    (finding,) = result.findings
    assert finding.rule.id == rule
    assert finding.subject.address == int(damaged.index.address[row])
    victim = damaged.index.caches[damaged.index.cache[row]].name
    before, after = rows(analysis(dump)), rows(result)
    assert {n: r for n, r in after.items() if n != victim} == {
        n: r for n, r in before.items() if n != victim
    }
    assert after[victim].objects == after[victim].allocated + after[victim].unread + (
        after[victim].free_on_cpus
        + after[victim].free_on_cpu_partial
        + after[victim].free_on_nodes
        + after[victim].free_elsewhere
    )
    return result, finding


def evidence(finding: Any) -> Dict[str, Any]:
    return {item.name: item.value for item in finding.evidence}


def test_a_freelist_in_a_circle(demo_dump: ShippedDump, damaged: Damaged) -> None:
    row = damaged.victim()
    cache = damaged.index.caches[damaged.index.cache[row]]
    head = int(damaged.index.freelist[row])
    stored_at = head + cache.freelist_offset
    damaged.write(stored_at, damaged.encode(row, stored_at, head))
    result, finding = expect_one_finding(demo_dump, damaged, row, "VT101")
    assert finding.confidence is Confidence.PROVEN
    assert evidence(finding)["reasons"] == ("its freelist runs in a circle",)
    assert result.status is Status.PARTIAL
    assert rows(result)[cache.name].unread == int(damaged.index.inuse[row])


def test_a_free_pointer_off_the_stride(demo_dump: ShippedDump, damaged: Damaged) -> None:
    row = damaged.victim()
    cache = damaged.index.caches[damaged.index.cache[row]]
    head = int(damaged.index.freelist[row])
    stored_at = head + cache.freelist_offset
    damaged.write(stored_at, damaged.encode(row, stored_at, head + 4))
    _, finding = expect_one_finding(demo_dump, damaged, row, "VT101")
    assert f"the pointer {head + 4:#x}" in evidence(finding)["first_reason"]
    assert all(item.kind in (Kind.UNTRUSTED, Kind.ADDRESS, Kind.COUNT) for item in finding.evidence)


def test_a_cache_pointer_overwritten(demo_dump: ShippedDump, damaged: Damaged) -> None:
    row = int((~damaged.index.frozen & (damaged.index.freelist == 0)).nonzero()[0][0])
    damaged.write(damaged.page(row, "slab_cache"), 0x4141414141414141)
    result, finding = expect_one_finding(demo_dump, damaged, row, "VT102")
    assert "0x4141414141414141" in evidence(finding)["first_reason"]
    victim = damaged.index.caches[damaged.index.cache[row]].name
    assert rows(result)[victim].slabs == rows(analysis(demo_dump))[victim].slabs - 1


def test_counters_wrong(demo_dump: ShippedDump, damaged: Damaged) -> None:
    row = damaged.victim()
    inuse, objects = int(damaged.index.inuse[row]), int(damaged.index.objects[row])
    # counters: inuse has 16 bits, objects 15, and frozen 1, which is 0 here.
    damaged.write(damaged.page(row, "counters"), (inuse + 1) | objects << 16)
    _, finding = expect_one_finding(demo_dump, damaged, row, "VT103")
    assert evidence(finding)["first_reason"] == (
        f"{inuse + 1} objects are in use by its counter, {inuse} by its freelist, of {objects}"
    )


def test_an_impossible_number_of_objects(demo_dump: ShippedDump, damaged: Damaged) -> None:
    row = damaged.victim()
    damaged.write(damaged.page(row, "counters"), 1 | 12345 << 16)
    result, finding = expect_one_finding(demo_dump, damaged, row, "VT103")
    assert evidence(finding)["first_reason"] == "it cannot hold 12345 objects"
    assert result.status is Status.PARTIAL


def test_a_node_list_that_does_not_link_back(demo_dump: ShippedDump, damaged: Damaged) -> None:
    row = damaged.victim()
    damaged.write(damaged.page(row, "slab_list.prev"), damaged.page(row, "slab_list"))
    result = analyze(damaged.target)
    assert result.findings == ()
    (gap,) = result.gaps
    assert gap.reason == "a slab on a node's partial list does not link back"
    before, after = rows(analysis(demo_dump)), rows(result)
    assert [row.allocated for row in before.values()] == [row.allocated for row in after.values()]
    # What is behind the break counts as free, but on no list.
    victim = damaged.index.caches[damaged.index.cache[row]].name
    lost = before[victim].free_on_nodes - after[victim].free_on_nodes
    assert lost == after[victim].free_elsewhere > 0


def test_a_cpu_list_in_a_circle(demo_dump: ShippedDump, damaged: Damaged) -> None:
    cache = next(
        cache
        for cache in damaged.index.caches
        if rows(analysis(demo_dump))[cache.name].free_on_cpu_partial
    )
    cpus = (per_cpu_ptr(cache.cache.cpu_slab, cpu) for cpu in (0, 1))
    page = next(cpu.partial for cpu in cpus if cpu.partial)
    damaged.write(page.next.address_of_().value_(), page.value_())
    result = analyze(damaged.target)
    assert result.findings == ()
    (gap,) = result.gaps
    assert gap.reason == "a CPU's partial list runs in a circle"


def test_page_structures_missing(demo_dump: ShippedDump, damaged: Damaged) -> None:
    row = damaged.victim()
    page_size = demo_dump.truth["page_size_bytes"]
    damaged.remove(damaged.page(row, "flags") // page_size * page_size, page_size)
    result = analyze(damaged.target)
    assert result.findings == ()
    gaps = {gap.reason: gap for gap in result.gaps}
    assert gaps["it is not in the dump"].what == "struct page"
    assert gaps["it is not in the dump"].count == page_size // 64
    # The slab is missed by the list that it is on, and by the kernel's count.
    assert any(gap.what == "list of slabs" for gap in result.gaps)
    lost: List[Slabs] = [
        row
        for name, row in rows(result).items()
        if row.slabs != rows(analysis(demo_dump))[name].slabs
    ]
    cache = damaged.index.caches[damaged.index.cache[row]].name
    assert cache in [row.cache for row in lost]
    assert gaps["the kernel counts it, but it was not found"].count == sum(
        rows(analysis(demo_dump))[row.cache].slabs - row.slabs for row in lost
    )


# The dumps have no red zones and no poison; tests/kernel/test_slab_poison.py and the lab have.


def test_bytes_that_are_not_guarded_after_all(demo_dump: ShippedDump, damaged: Damaged) -> None:
    number = max(
        range(len(damaged.index.caches)), key=lambda n: int((damaged.index.cache == n).sum())
    )
    cache = damaged.index.caches[number]
    flags = cache.cache.flags
    # SLAB_POISON and __OBJECT_POISON: no free object is filled with 0x6b.
    damaged.write(flags.address_of_().value_(), flags.value_() | 0x80000800, 4)
    result = analyze(damaged.target)
    assert result.findings == ()
    gaps = [gap for gap in result.gaps if gap.what == "guarded bytes"]
    assert f"the poison of {cache.name} is not where it should be" in [g.reason for g in gaps]
    assert {gap.addresses for gap in gaps} == {(cache.cache.value_(),)}


def some_overwritten(dump: ShippedDump, **changes: Any) -> Overwritten:
    """Two leaked fences, as if somebody had written behind them."""
    index = slab_index(dump.target.prog, dump.target.memory)
    addresses = sorted(int(a, 16) for a in dump.truth["leak"]["addresses_only_leaked"][:2])
    objects = np.array(addresses, dtype=np.uint64)
    rows_ = index.find(objects)
    found = Overwritten(
        cache=int(index.cache[rows_[0]]),
        part=Part.RIGHT_RED_ZONE,
        checked=5000,
        object=objects,
        row=rows_,
        allocated=np.array([True, True]),
        first=objects + np.uint64(90),
        length=np.array([1, 3]),
        found=np.array([0x41, 0x42], dtype=np.uint8),
        expected=np.array([0xCC, 0xCC], dtype=np.uint8),
    )
    return dataclasses.replace(found, **changes)


def test_who_allocated_overwritten_objects(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = some_overwritten(demo_dump)
    monkeypatch.setattr(slabs, "overwritten", lambda index, progress: [found])
    (finding,) = analyze(demo_dump.target).findings
    assert finding.rule.id == "VT104"
    assert finding.confidence is Confidence.PROVEN
    assert finding.subject.address == found.object[0]
    facts = evidence(finding)
    assert facts["object_addresses"] == tuple(found.object.tolist())
    assert (facts["found"], facts["expected"]) == ("0x41", "0xcc")
    assert facts["first_byte"] == int(found.object[0]) + 90
    assert facts["lengths_bytes"] == (1, 3)
    assert facts["allocated_by"] == ("virtio_gpu_fence_alloc",)
    assert "freed_by" not in facts
    assert finding.signature_key == (demo_dump.truth["leak"]["cache"], "right red zone")
    assert finding.clues == ("virtio_gpu_fence_alloc",)


def test_a_slab_that_is_being_set_up_is_not_damaged(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = slab_index(demo_dump.target.prog, demo_dump.target.memory)
    found = some_overwritten(demo_dump)
    every = next(index.batches(found.row[:1])).objects[0]
    new = some_overwritten(
        demo_dump,
        object=every,
        row=np.repeat(found.row[:1], len(every)),
        allocated=np.ones(len(every), dtype=bool),
        first=every,
        length=np.ones(len(every), dtype=np.int64),
        found=np.zeros(len(every), dtype=np.uint8),
        expected=np.zeros(len(every), dtype=np.uint8),
    )
    monkeypatch.setattr(slabs, "overwritten", lambda index, progress: [new])
    (finding,) = analyze(demo_dump.target).findings
    assert evidence(finding)["objects"] == len(every)
    page = pfn_to_page(demo_dump.target.prog, int(index.pfn[found.row[0]])).value_()
    words = np.array([page], dtype=np.uint64)
    monkeypatch.setattr(slabs_at_hand, "words_at_hand", lambda prog: words)
    assert analyze(demo_dump.target).findings == ()
    # A few objects of a slab are damaged all the same.
    monkeypatch.setattr(slabs, "overwritten", lambda index, progress: [found])
    assert len(analyze(demo_dump.target).findings) == 1


def test_what_a_task_that_waits_for_a_cpu_has_at_hand(demo_dump: ShippedDump) -> None:
    prog = demo_dump.target.prog
    # rt-hog keeps it from running, whatever it was doing.
    (task,) = (t for t in for_each_task(prog) if t.comm.string_() == b"kworker/1:1")
    low, high = live_range(task)
    words = np.frombuffer(prog.read(low, high - low), dtype=np.uint64)
    assert len(words)
    assert np.isin(words, words_at_hand(prog)).all()
