# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Damage that random changes of the shipped dumps have shown to matter.

Each costs what depends on it, and says so; the planted leak is found whole.
"""

from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, Tuple

import pytest
from drgn import FaultError, Object
from drgn.helpers.linux.mm import for_each_vmap_area
from drgn.helpers.linux.percpu import per_cpu
from drgn.helpers.linux.pid import find_task

from fixtures.mutations.copy import Copy
from tests.dumps.conftest import ShippedDump
from vmcore_tools import runner, target
from vmcore_tools.kernel.gem_holders import gem_holders
from vmcore_tools.kernel.resource import for_each_resource
from vmcore_tools.kernel.slab import SlabFault, slab_index
from vmcore_tools.kernel.task import live_words
from vmcore_tools.kernel.virtual_map import virtual_map
from vmcore_tools.model import AnalysisResult, Confidence, Status
from vmcore_tools.target import Target

WORD = 8
ALL_ONES = (1 << 64) - 1


@pytest.fixture(scope="module")
def copy(demo_dump: ShippedDump, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    files = demo_dump.files
    return Copy(files.vmcore, files.symbols, tmp_path_factory.mktemp("copy"))


@contextlib.contextmanager
def damaged(copy: Copy, member: Object, value: int) -> Iterator[Target]:
    """The dump with another value in a word."""
    address = member.address_
    assert address is not None
    offset = copy.offset(address, WORD)
    assert offset is not None
    try:
        copy.write(offset, value.to_bytes(WORD, "little"))
        yield fresh(copy)
    finally:
        copy.restore()


def fresh(copy: Copy) -> Target:
    """The copy, with nothing known of what was in it before."""
    for key in [key for key in copy.prog.cache if str(key).startswith("vmcore_tools.")]:
        del copy.prog.cache[key]
    return target.from_program(copy.prog)


def run(opened: Target, name: str) -> AnalysisResult:
    analyses = [analysis for analysis in runner.find_analyses() if analysis.name == name]
    report = runner.run(opened, analyses, {}, limit=10, progress=lambda items, _what, _total: items)
    (result,) = report.analyses
    return result


def leaked(result: AnalysisResult) -> Tuple[str, int]:
    """How sure the leak is, and of how many references."""
    (finding,) = [finding for finding in result.findings if finding.rule.id == "VT201"]
    evidence: Dict[str, Any] = {item.name: item.value for item in finding.evidence}
    return finding.confidence.name, evidence["references_leaked"]


def gaps(result: AnalysisResult) -> Dict[str, str]:
    return {gap.what: gap.reason for gap in result.gaps if gap.material}


@pytest.mark.parametrize("member", ["next", "prev"])
@pytest.mark.parametrize("value", [0, ALL_ONES])
def test_a_damaged_list_of_slab_caches_hides_none(
    copy: Copy, demo_dump: ShippedDump, member: str, value: int
) -> None:
    index = slab_index(demo_dump.target.prog, demo_dump.target.memory)
    names = [cache.name for cache in index.caches]
    victim = Object(copy.prog, "struct kmem_cache *", index.caches[9].cache.value_())
    with damaged(copy, victim.list.member_(member), value) as opened:
        found = slab_index(opened.prog, opened.memory)
        assert sorted(cache.name for cache in found.caches) == sorted(names)
        assert [problem.fault for problem in found.problems] == [SlabFault.CACHE_LIST]
        assert len(found.pfn) == len(index.pfn)
        assert run(opened, "slabs").status is Status.PARTIAL
        expected = demo_dump.truth["leak"]["references_leaked"]
        assert leaked(run(opened, "dma-fences"))[1] == expected


@pytest.mark.parametrize("member", ["offset", "size", "object_size"])
def test_a_cache_that_cannot_be_costs_its_own_slabs_alone(
    copy: Copy, demo_dump: ShippedDump, member: str
) -> None:
    index = slab_index(demo_dump.target.prog, demo_dump.target.memory)
    (cache,) = [cache for cache in index.caches if cache.name == "dentry"]
    victim = Object(copy.prog, "struct kmem_cache *", cache.cache.value_())
    with damaged(copy, victim.member_(member), 0x27E729F4) as opened:
        found = slab_index(opened.prog, opened.memory)
        assert {c.name for c in index.caches} - {c.name for c in found.caches} == {"dentry"}
        # Nobody says of its slabs that their pointers to it are wrong.
        assert {problem.fault for problem in found.problems} == {
            SlabFault.CACHE_LIST,
            SlabFault.UNREAD,
        }
        slabs = run(opened, "slabs")
        assert slabs.status is Status.PARTIAL
        assert not slabs.findings
        assert leaked(run(opened, "dma-fences"))[1] == demo_dump.truth["leak"]["references_leaked"]


@pytest.mark.parametrize("both", [False, True])
def test_a_broken_list_of_vmalloc_areas_is_said(
    copy: Copy, demo_dump: ShippedDump, both: bool
) -> None:
    head, wrong = copy.prog["vmap_area_list"], 0xFFFFA99480150A28
    expected = demo_dump.truth["leak"]["references_leaked"]
    with damaged(copy, head.next, wrong) as opened:
        if both:
            offset = copy.offset(head.prev.address_, WORD)
            assert offset is not None
            copy.write(offset, wrong.to_bytes(WORD, "little"))
        result = run(opened, "dma-fences")
    assert result.status is Status.PARTIAL
    assert "list of vmalloc areas" in gaps(result)
    confidence, references = leaked(result)
    assert confidence == "LIKELY"
    if not both:
        # The areas are found from the list's other end.
        assert references == expected


def test_ram_that_no_machine_has_is_not_walked(copy: Copy, demo_dump: ShippedDump) -> None:
    resources = for_each_resource(copy.prog["iomem_resource"].address_of_())
    ram = [r for r in resources if r.name.string_().startswith(b"System RAM")][-1]
    expected = demo_dump.truth["leak"]["references_leaked"]
    for end in (ALL_ONES >> 1, (1 << 51) - 1):
        with damaged(copy, ram.end, end) as opened:
            assert run(opened, "memory").status is not Status.FAILED
            # Whether that memory had a pointer nobody knows.
            fences = run(opened, "dma-fences")
            assert leaked(fences) == ("LIKELY", expected)
            assert "kernel page" in gaps(fences)


def test_a_list_of_kfree_rcu_at_the_end_of_memory(copy: Copy, demo_dump: ShippedDump) -> None:
    krc = per_cpu(copy.prog["krc"], 0)
    with damaged(copy, krc.krw_arr[0].bkvhead_free[1], ALL_ONES) as opened:
        result = run(opened, "dma-fences")
    assert result.status is Status.PARTIAL
    assert "list of kfree_rcu()" in gaps(result)
    assert leaked(result)[1] == demo_dump.truth["leak"]["references_leaked"]


@pytest.mark.parametrize("name", ["hung-tasks", "wait-graph", "run-queues"])
def test_without_any_cpu_nothing_is_known_of_time(copy: Copy, name: str) -> None:
    with damaged(copy, copy.prog["__cpu_possible_mask"].bits[0], 0) as opened:
        result = run(opened, name)
    assert result.status is Status.PARTIAL
    assert not result.findings


def test_a_damaged_list_of_workers_hides_no_cause(copy: Copy, demo_dump: ShippedDump) -> None:
    rules = {finding.rule.id for finding in run(fresh(copy), "wait-graph").findings}
    assert "VT311" in rules
    pool = per_cpu(copy.prog["cpu_worker_pools"], 0)[0]
    with damaged(copy, pool.workers.next, 0) as opened:
        result = run(opened, "wait-graph")
    assert {finding.rule.id for finding in result.findings} == rules


def test_a_handle_that_is_damaged_proves_no_leak(copy: Copy) -> None:
    whole = fresh(copy)
    handles = gem_holders(slab_index(whole.prog, whole.memory)).handles
    slot = Object(copy.prog, "unsigned long", address=int(handles.word[0]))
    with damaged(copy, slot, ALL_ONES) as opened:
        result = run(opened, "gem-objects")
        (leak,) = [finding for finding in result.findings if finding.rule.id == "VT410"]
        assert leak.confidence is Confidence.LIKELY
        assert leak.subject.address == int(handles.gem[0])
        assert "GEM handle" in gaps(result)


def test_a_circle_of_resources_ends(copy: Copy) -> None:
    resources = list(for_each_resource(copy.prog["iomem_resource"].address_of_()))
    last = resources[-1]
    with damaged(copy, last.child, resources[0].value_()) as opened:
        again = list(for_each_resource(opened.prog["iomem_resource"].address_of_()))
        assert len(again) == len(resources)


def test_an_area_of_vmalloc_has_no_more_pages_than_it_is_large(
    copy: Copy, demo_dump: ShippedDump
) -> None:
    (area, *_) = [
        area.vm.read_() for area in for_each_vmap_area(copy.prog) if area.vm and area.vm.pages
    ]
    with damaged(copy, area.nr_pages, 0xFFFFFFFF) as opened:
        result = run(opened, "dma-fences")
        assert result.status in (Status.OK, Status.PARTIAL)
        assert leaked(result)[1] == demo_dump.truth["leak"]["references_leaked"]


def test_an_area_of_vmalloc_is_where_its_vmap_area_is(copy: Copy, demo_dump: ShippedDump) -> None:
    healthy = leaked(run(fresh(copy), "dma-fences"))
    areas = [area for area in for_each_vmap_area(copy.prog) if area.vm]
    other = next(area for area in areas if area.vm.pages)
    with damaged(copy, areas[0].vm, other.vm.value_() + WORD) as opened:
        index = virtual_map(opened.prog, opened.memory.page_map.page_size_bytes)
        assert index.unmapped_pages
        assert len(index.areas) < len(areas)
        # What is in its pages is read all the same: they are RAM.
        assert leaked(run(opened, "dma-fences")) == healthy


def test_a_task_whose_stack_cannot_be_has_nothing_at_hand(
    copy: Copy, demo_dump: ShippedDump
) -> None:
    task = find_task(copy.prog, demo_dump.truth["hung"]["pid"])
    with damaged(copy, task.stack, task.stack.value_() + 3) as opened:
        damaged_task = find_task(opened.prog, demo_dump.truth["hung"]["pid"])
        with pytest.raises(FaultError, match="not aligned"):
            live_words(damaged_task)


def test_without_the_place_of_page_structures_an_analysis_says_so(
    copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> Any:
        raise LookupError("could not find 'vmemmap'")

    opened = fresh(copy)
    monkeypatch.setattr("vmcore_tools.kernel.page.page_structs", lost)
    found = run(opened, "dma-fences")
    assert found.status is Status.PARTIAL
    assert "page structures cannot be found: could not find 'vmemmap'" in str(found.gaps)
