# SPDX-License-Identifier: LGPL-2.1-or-later
"""Unreachable slab objects of the shipped dumps, and of copies with pointers laid over them."""

from __future__ import annotations

from typing import Any, Dict, List, Set, Tuple

import numpy as np
import pytest
from drgn import offsetof
from drgn.helpers.linux.mm import follow_phys

from drgn_scripts import slab_leaks
from drgn_scripts.slab_leaks import Searched, SlabLeak, UnreachableObject
from tests.dumps.conftest import ShippedDump
from tests.dumps.test_corruption import Copy
from vmcore_tools import runner
from vmcore_tools.analysis import WrongArgument
from vmcore_tools.kernel import reachability
from vmcore_tools.kernel.object_types import is_kmalloc
from vmcore_tools.kernel.page import PageClass, direct_map_offset
from vmcore_tools.kernel.reachability import Unreachable, unreachable_objects
from vmcore_tools.kernel.slab import SlabIndex, slab_index
from vmcore_tools.kernel.sysctl import sysctl_headers
from vmcore_tools.kernel.task import live_range, stack_range
from vmcore_tools.kernel.virtual_map import virtual_map
from vmcore_tools.model import Absent, AnalysisResult, Confidence, Status

FENCE = "struct virtio_gpu_fence"
#: Leaked fences that a stray word points at: dma-fences calls them likely leaked, too.
HIDDEN = {"leak-and-hung-x86_64": 0, "fence-leak-arm64": 5}
#: A word of a fence that nobody looks at: the end of its list of callbacks.
LINK = "f.cb_list.prev"


def rows(result: AnalysisResult, row_type: type) -> Tuple[Any, ...]:
    (table,) = [table for table in result.tables if table.row_type is row_type]
    assert table.total == len(table.rows)
    return table.rows


def leaks(shipped: ShippedDump) -> AnalysisResult:
    return next(a for a in shipped.report.analyses if a.name == "slab-leaks")


def run_on(shipped: ShippedDump, *caches: str) -> AnalysisResult:
    (result,) = runner.run(
        shipped.target,
        (slab_leaks.ANALYSIS,),
        {"slab-leaks": {"caches": caches}},
        limit=None,
        progress=lambda items, _what, _total: items,
    ).analyses
    return result


def only_leaked(shipped: ShippedDump) -> Set[int]:
    return {int(text, 16) for text in shipped.truth["leak"]["addresses_only_leaked"]}


def test_exactly_the_fences_that_only_leaked_references_keep(shipped: ShippedDump) -> None:
    for result in (leaks(shipped), run_on(shipped, "all")):
        assert result.status is Status.OK
        found = [row.address for row in rows(result, UnreachableObject)]
        assert set(found) <= only_leaked(shipped)
        assert len(found) == len(set(found)) == len(only_leaked(shipped)) - HIDDEN[shipped.name]


def test_leaks_that_a_word_hides_are_those_that_the_audit_finds_a_pointer_to(
    shipped: ShippedDump,
) -> None:
    fences = next(a for a in shipped.report.analyses if a.name == "dma-fences")
    (table,) = fences.tables
    likely = {row.address for row in table.rows if row.verdict == "likely leaked"}
    found = {row.address for row in rows(leaks(shipped), UnreachableObject)}
    assert only_leaked(shipped) - found == likely & only_leaked(shipped)


def test_they_are_one_row_and_one_finding(shipped: ShippedDump) -> None:
    result = leaks(shipped)
    (row,) = rows(result, SlabLeak)
    leak = shipped.truth["leak"]
    planted = leak["objects_only_leaked"] - HIDDEN[shipped.name]
    assert (row.type, row.cache, row.objects) == (FENCE, leak["cache"], planted)
    assert row.objects_pointed_at == 0
    (total,) = rows(result, Searched)
    assert (total.unreachable_objects, total.unreachable_bytes) == (planted, row.size_bytes)
    assert total.objects > planted
    (finding,) = result.findings
    evidence = {item.name: item.value for item in finding.evidence}
    assert (finding.rule.id, finding.confidence) == ("VT105", Confidence.LIKELY)
    assert (evidence["objects"], evidence["type"]) == (planted, FENCE)
    # Those that are held rightly are of the same type.
    assert evidence["same_type_in_use"] == row.same_type_in_use >= len(shipped.truth["held"])


def test_the_stack_that_allocated_them_is_told(demo_dump: ShippedDump) -> None:
    result = leaks(demo_dump)
    (row,) = rows(result, SlabLeak)
    functions = [frame.function for frame in demo_dump.report.stacks[row.stack].frames]
    assert "virtio_gpu_execbuffer_ioctl" in functions
    assert row.allocated_by == "virtio_gpu_fence_alloc"
    assert {r.pid for r in rows(result, UnreachableObject)} == {demo_dump.truth["leak"]["pid"]}
    (finding,) = result.findings
    assert finding.stacks == (row.stack,)
    evidence = {item.name: item.value for item in finding.evidence}
    assert evidence["allocating_comms"] == (demo_dump.truth["leak"]["comm"],)
    assert evidence["allocating_function"] == row.allocated_by


def test_only_the_caches_that_are_named_are_judged(demo_dump: ShippedDump) -> None:
    (found,) = rows(run_on(demo_dump, demo_dump.truth["leak"]["cache"]), Searched)
    assert (found.caches, found.unreachable_objects) == (1, len(only_leaked(demo_dump)))
    result = run_on(demo_dump, "kmalloc-64")
    (found,) = rows(result, Searched)
    assert (found.caches, found.unreachable_objects, result.findings) == (1, 0, ())
    with pytest.raises(WrongArgument, match="there is no slab cache 'no-such-cache'; "):
        run_on(demo_dump, "kmalloc-64", "no-such-cache")


def test_pages_that_are_not_there_leave_a_doubt(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = {PageClass.ALLOCATED: 3}
    monkeypatch.setattr(reachability, "absent_kernel_pages", lambda memory, pages: absent)
    result = run_on(demo_dump, demo_dump.truth["leak"]["cache"])
    assert result.status is Status.PARTIAL
    assert [(gap.what, gap.count) for gap in result.gaps] == [("kernel page", 3)]
    (finding,) = result.findings
    assert finding.confidence is Confidence.SUSPECTED
    assert finding.unread == ("kernel pages that are not in the dump",)


def test_tagged_pointers_are_not_judged(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slab_leaks, "tags_pointers", lambda prog: True)
    result = run_on(demo_dump, "all")
    assert (result.status, result.findings) == (Status.PARTIAL, ())
    assert rows(result, UnreachableObject) == ()


def test_without_tracks_the_row_says_so(shipped: ShippedDump) -> None:
    tracked = "slub_debug" in shipped.truth["cmdline"]
    (row,) = rows(leaks(shipped), SlabLeak)
    assert isinstance(row.allocated_by, Absent) != tracked
    assert isinstance(row.stack, Absent) != tracked


def test_the_root_of_all_sysctl_tables_is_in_use(shipped: ShippedDump) -> None:
    prog = shipped.target.prog
    index = slab_index(prog, shipped.target.memory)
    offset = offsetof(prog.type("struct ctl_table_header"), "ctl_table_arg")
    table = prog["sysctl_base_table"].address_
    assert table is not None
    found = np.concatenate(
        [
            index.objects_with_word(number, offset, table)
            for number, cache in enumerate(index.caches)
            if is_kmalloc(cache) and cache.object_size_bytes > offset
        ]
    )
    # sysctl_init() forgets its only pointer to it.
    (root,) = found.tolist()
    fences = np.array(sorted(only_leaked(shipped)), dtype=np.uint64)
    addresses = np.append(fences, np.uint64(root))
    sizes = np.array([c.object_size_bytes for c in index.caches], dtype=np.uint64)
    headers = sysctl_headers(index, addresses, sizes[index.cache[index.find(addresses)]])
    assert addresses[headers].tolist() == [root]


# --- copies with other pointers ---------------------------------------------------


class Linked(Copy):
    """A copy of a dump in which pointers between leaked fences can be laid."""

    def __init__(self, dump: ShippedDump) -> None:
        super().__init__(dump)
        self.prog = self._target.prog
        self.fences: List[int] = sorted(only_leaked(dump))
        self._link = offsetof(self.prog.type(FENCE), LINK)

    def link(self, fence: int, other: int) -> None:
        self.write(fence + self._link, other)

    def write_mapped(self, address: int, value: int) -> None:
        """Change a word outside the direct map."""
        self._write(address, value, False)
        physical = follow_phys(self.prog["init_mm"].address_of_(), address).value_()
        self._write(physical, value, True)
        self._write(physical + direct_map_offset(self.prog), value, False)

    def search(self) -> Dict[int, bool]:
        """Unreachable objects, and whether another one points at them."""
        index = self.index()
        found = unreachable(index)
        return dict(zip(found.address.tolist(), found.pointed_at.tolist()))


def unreachable(index: SlabIndex) -> Unreachable:
    judged = np.array([is_kmalloc(cache) for cache in index.caches], dtype=bool)
    return unreachable_objects(index, judged, lambda items, _what, _total: items)


def test_a_circle_of_leaked_objects_stays_leaked(demo_dump: ShippedDump) -> None:
    copy = Linked(demo_dump)
    circle = copy.fences[100:103]
    for fence, other in zip(circle, [*circle[1:], circle[0]]):
        copy.link(fence, other)
    found = copy.search()
    assert sorted(found) == copy.fences
    assert sorted(fence for fence, pointed_at in found.items() if pointed_at) == circle


def test_what_a_variable_leads_to_is_reachable(demo_dump: ShippedDump) -> None:
    copy = Linked(demo_dump)
    first, second, third, inside, end = (copy.fences[i] for i in (7, 3000, 50, 400, 500))
    copy.link(first, second)
    copy.link(second, third + copy.prog.type(FENCE).size - 1)
    copy.link(third, inside + 8)
    size = copy.original.caches[copy.original.cache[copy.original.find(np.array([end]))[0]]]
    copy.link(inside, end + size.object_size_bytes)  # behind it
    copy.write_mapped(copy.prog["ioport_resource"].desc.address_of_().value_(), first)
    assert set(copy.fences) - set(copy.search()) == {first, second, third, inside}


def test_a_word_below_the_stack_pointer_keeps_nothing(demo_dump: ShippedDump) -> None:
    copy = Linked(demo_dump)
    task = copy.prog["init_task"].address_of_()
    sleeper = next(
        t
        for t in demo_tasks(copy)
        if live_range(t)[0] > stack_range(t)[0] + 1024 and t.value_() != task.value_()
    )
    dead, live = live_range(sleeper)[0] - 512, live_range(sleeper)[0] + 64
    copy.write_mapped(dead, copy.fences[0])
    copy.write_mapped(live, copy.fences[1])
    assert set(copy.fences) - set(copy.search()) == {copy.fences[1]}


def demo_tasks(copy: Linked) -> List[Any]:
    from drgn.helpers.linux.pid import for_each_task
    from drgn.helpers.linux.sched import task_on_cpu

    return [task for task in for_each_task(copy.prog) if not task_on_cpu(task)]


def test_addresses_of_pages_are_those_of_one_page_at_a_time(shipped: ShippedDump) -> None:
    prog = shipped.target.prog
    page_size = shipped.truth["page_size_bytes"]
    virtual = virtual_map(prog, page_size)
    physical = np.arange(0, shipped.target.memory.page_map.runs.max(), dtype=np.uint64)
    physical = physical * np.uint64(page_size) + np.uint64(24)
    one_by_one = [virtual.address_of(address) or 0 for address in physical.tolist()]
    assert virtual.addresses_of(physical).tolist() == one_by_one
    assert np.count_nonzero(one_by_one) > 100
