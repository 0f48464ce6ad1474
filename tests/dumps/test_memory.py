# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the RAM of the shipped dumps went, against the kernels' own counters."""

from __future__ import annotations

from typing import Dict

from drgn.helpers.linux.mm import totalram_pages
from drgn.helpers.linux.percpu import per_cpu_ptr

from drgn_scripts.memory import ANALYSIS, MemoryUse, Ram
from tests.dumps.conftest import ShippedDump
from tests.dumps.test_slabs import Damaged
from vmcore_tools.kernel.memory_usage import Use
from vmcore_tools.kernel.page import PageClass, page_index
from vmcore_tools.kernel.resource import system_ram
from vmcore_tools.kernel.task import for_each_bounded_task, stack_range
from vmcore_tools.kernel.vmstat import Counter, page_counter, pages_on_cpu_lists
from vmcore_tools.model import AnalysisResult, Status
from vmcore_tools.runner import run


def analysis(dump: ShippedDump) -> AnalysisResult:
    return next(result for result in dump.report.analyses if result.name == "memory")


def uses(dump: ShippedDump) -> Dict[Use, int]:
    rows: Dict[str, MemoryUse] = {row.use: row for row in analysis(dump).tables[0].rows}
    return {use: rows[use.value].pages if use.value in rows else 0 for use in Use}


def ram(dump: ShippedDump) -> Ram:
    (row,) = analysis(dump).tables[1].rows
    assert isinstance(row, Ram)
    return row


def test_all_was_read(shipped: ShippedDump) -> None:
    assert (analysis(shipped).status, analysis(shipped).gaps) == (Status.OK, ())


def test_every_page_of_ram_is_counted_once(shipped: ShippedDump) -> None:
    page_size = shipped.truth["page_size_bytes"]
    frames = sum(
        end // page_size - -(-start // page_size) for start, end in system_ram(shipped.target.prog)
    )
    assert sum(uses(shipped).values()) == frames
    assert ram(shipped).ram_bytes == frames * page_size


def test_what_the_page_allocator_was_given_is_mem_total(shipped: ShippedDump) -> None:
    total = ram(shipped).managed_bytes
    assert total == ram(shipped).mem_total_bytes == shipped.truth["meminfo_kib"]["MemTotal"] * 1024
    page_size = shipped.truth["page_size_bytes"]
    assert total == totalram_pages(shipped.target.prog) * page_size


def test_pages_equal_the_kernels_own_counters(shipped: ShippedDump) -> None:
    prog, pages = shipped.target.prog, uses(shipped)
    page_size = shipped.truth["page_size_bytes"]

    def counter(name: str) -> int:
        return page_counter(prog, name).exact

    assert pages[Use.FREE] == counter("NR_FREE_PAGES")
    assert pages[Use.PAGE_TABLES] == counter("NR_PAGETABLE")
    assert pages[Use.PAGE_CACHE] + pages[Use.SHARED_MEMORY] == counter("NR_FILE_PAGES")
    assert pages[Use.SLAB] + pages[Use.LARGE_KMALLOC] == (
        counter("NR_SLAB_RECLAIMABLE_B") + counter("NR_SLAB_UNRECLAIMABLE_B")
    )
    assert pages[Use.KERNEL_STACKS] * page_size == counter("NR_KERNEL_STACK_KB") * 1024
    assert pages[Use.FREE_ON_CPUS] == pages_on_cpu_lists(prog) > 0
    per_cpu = prog["pcpu_nr_populated"].value_() * prog["pcpu_nr_units"].value_()
    assert pages[Use.PER_CPU] == per_cpu
    # Pages that were unmapped a moment ago wait in a batch to be freed.
    assert 0 <= pages[Use.ANONYMOUS] - counter("NR_ANON_MAPPED") < 16
    # The kernel's counter has stacks and modules, and does not have vmap().
    vmalloc = pages[Use.VMALLOC] + pages[Use.KERNEL_STACKS] + pages[Use.MODULES]
    assert 0 <= vmalloc - prog["nr_vmalloc_pages"].counter.value_() < 64


def test_kernel_stacks_are_those_of_the_tasks(shipped: ShippedDump) -> None:
    task = next(iter(for_each_bounded_task(shipped.target.prog)))
    low, high = stack_range(task)
    pages = (high - low) // shipped.truth["page_size_bytes"]
    # One idle task for each CPU but the first, whose stack is in the kernel image.
    tasks = len(shipped.truth["tasks"])
    assert uses(shipped)[Use.KERNEL_STACKS] % pages == 0
    assert abs(uses(shipped)[Use.KERNEL_STACKS] // pages - tasks) <= 4


def test_the_crash_kernels_reservation(shipped: ShippedDump) -> None:
    (size,) = [
        word.partition("=")[2]
        for word in shipped.truth["cmdline"].split()
        if word.startswith("crashkernel=")
    ]
    reserved = uses(shipped)[Use.CRASH_KERNEL] * shipped.truth["page_size_bytes"]
    assert size == f"{reserved >> 20}M"


def test_page_structures_are_those_of_ram(shipped: ShippedDump) -> None:
    # 64 bytes for each page, for whole sections of RAM.
    needed = sum(uses(shipped).values()) * 64
    page_size = shipped.truth["page_size_bytes"]
    found = uses(shipped)[Use.PAGE_STRUCTS] * page_size
    assert needed <= found < needed * 4


def test_per_cents_are_rounded(shipped: ShippedDump) -> None:
    pages = uses(shipped)
    for row in analysis(shipped).tables[0].rows:
        assert abs(row.percent - row.pages * 100 / sum(pages.values())) <= 0.5


def test_nearly_all_is_accounted_for(shipped: ShippedDump) -> None:
    row = ram(shipped)
    assert row.accounted_bytes + row.unaccounted_bytes == row.ram_bytes
    assert row.accounted_bytes >= 0.95 * row.ram_bytes
    # Of what the kernel could use at all, too.
    assert row.unaccounted_bytes <= 0.05 * row.managed_bytes


def test_the_largest_use_comes_first(shipped: ShippedDump) -> None:
    sizes = [row.size_bytes for row in analysis(shipped).tables[0].rows]
    assert sizes == sorted(sizes, reverse=True)


def test_ram_without_page_structures_is_not_accounted_for(demo_dump: ShippedDump) -> None:
    damaged = Damaged(demo_dump)
    page_size = demo_dump.truth["page_size_bytes"]
    damaged.remove(damaged.page(damaged.victim(), "flags") // page_size * page_size, page_size)
    report = run(
        damaged.target, [ANALYSIS], {}, limit=None, progress=lambda items, what, total: items
    )
    (result,) = report.analyses
    (gap,) = result.gaps
    assert (gap.what, gap.count) == ("page of RAM", page_size // 64)
    rows = {row.use: row.pages for row in result.tables[0].rows}
    assert rows[Use.UNREAD.value] == page_size // 64
    assert sum(rows.values()) == sum(uses(demo_dump).values())


def test_page_tables_are_told_by_the_exact_counter(demo_dump: ShippedDump) -> None:
    """Their page type is found by their number, most of which CPUs may have to themselves."""
    damaged = Damaged(demo_dump)
    prog = damaged.target.prog
    item = prog.constant("NR_PAGETABLE")
    pages = page_counter(prog, "NR_PAGETABLE").exact
    shown = prog["vm_zone_stat"][item].counter
    zone = next(zone for zone in prog["contig_page_data"].node_zones if zone.present_pages)
    difference = per_cpu_ptr(zone.pageset, 0).vm_stat_diff[item]
    moved = min(100, shown.value_())
    damaged.write(difference.address_of_().value_(), difference.value_() + moved, 1)
    damaged.write(shown.address_of_().value_(), shown.value_() - moved)
    assert page_counter(prog, "NR_PAGETABLE") == Counter(shown=pages - moved, exact=pages)
    kinds = page_index(prog, damaged.target.memory).kind
    assert int((kinds == PageClass.PAGE_TABLE).sum()) == pages
