# SPDX-License-Identifier: LGPL-2.1-or-later
"""A leak is proven only as long as every page that could hold a pointer is in the dump."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytest
from drgn import FaultError, Program, sizeof
from drgn.helpers.linux.mm import follow_pfn, pfn_to_page, virt_to_pfn
from drgn.helpers.linux.pid import find_task
from drgn.helpers.linux.slab import find_slab_cache, slab_cache_for_each_allocated_object

from fixtures.drop_page import PAGE_SIZE_BYTES, drop_page
from tests.dumps.conftest import ShippedDump
from vmcore_tools import runner, target
from vmcore_tools.dump.page_map import page_map_of_file
from vmcore_tools.model import Confidence, Finding, Report, Status

_KTHREADD = 2


def page_of_slab(prog: Program) -> int:
    """A page of another cache's objects."""
    objects = slab_cache_for_each_allocated_object(find_slab_cache(prog, "dentry"), "void")
    return int(virt_to_pfn(next(objects)))


def page_of_stack(prog: Program) -> int:
    """The page where a sleeping thread's stack pointer is."""
    stack = find_task(prog, _KTHREADD).thread
    pointer = stack.sp if hasattr(stack, "sp") else stack.cpu_context.sp
    return int(follow_pfn(prog["init_mm"].address_of_(), pointer))


def page_of_vmalloc(prog: Program) -> int:
    """The fault module's own records."""
    return int(follow_pfn(prog["init_mm"].address_of_(), prog["vmlab_records"]))


PAGES = {"slab": page_of_slab, "stack": page_of_stack, "vmalloc": page_of_vmalloc}


def evidence(finding: Finding) -> Dict[str, Any]:
    return {item.name: item.value for item in finding.evidence}


def leak_in(report: Report) -> Finding:
    (finding,) = [finding for finding in report.findings if finding.rule.id == "VT201"]
    return finding


def dma_fences(shipped: ShippedDump, vmcore: Path) -> Report:
    opened = target.open_core(vmcore, shipped.files.symbols)
    analyses = [a for a in runner.find_analyses() if a.name == "dma-fences"]
    return runner.run(opened, analyses, {}, limit=None, progress=lambda items, _what, _total: items)


@pytest.mark.parametrize("use", PAGES)
def test_without_a_page_that_could_hold_a_pointer_nothing_is_proven(
    shipped: ShippedDump, tmp_path: Path, use: str
) -> None:
    copy = tmp_path / "vmcore"
    drop_page(shipped.files.vmcore, copy, PAGES[use](shipped.target.prog))
    report = dma_fences(shipped, copy)
    finding, planted = leak_in(report), shipped.truth["leak"]
    found = evidence(finding)
    assert leak_in(shipped.report).confidence == Confidence.PROVEN
    assert finding.confidence == Confidence.LIKELY
    assert found["references_leaked"] == planted["references_leaked"]
    assert (found["references_proven"], found["pages_unread"]) == (0, 1)
    assert finding.unread == ("kernel pages that are not in the dump",)
    (analysis,) = report.analyses
    assert analysis.status == Status.PARTIAL
    assert [gap.count for gap in analysis.gaps if gap.what == "kernel page"] == [1]
    assert not report.complete


def page_structs_of_absent_pages(shipped: ShippedDump) -> int:
    """The page with the ``struct page`` of pages that are all not in the dump."""
    prog, page_map = shipped.target.prog, shipped.target.memory.page_map
    described = PAGE_SIZE_BYTES // sizeof(prog.type("struct page"))
    kernel = prog["init_mm"].address_of_()
    start, end = int(page_map.runs[0, 0]), int(page_map.runs[-1, 1])
    for first in range(start - start % described + described, end, described):
        if page_map.present(np.arange(first, first + described, dtype=np.uint64)).any():
            continue
        structs = int(follow_pfn(kernel, pfn_to_page(prog, first)))
        if page_map.has_run(structs, structs + 1):
            return structs
    raise AssertionError("each page structure is of a page in the dump")


def test_without_the_structures_of_absent_pages_nothing_is_proven(
    shipped: ShippedDump, tmp_path: Path
) -> None:
    # Nobody knows then whether those pages were the kernel's.
    copy = tmp_path / "vmcore"
    drop_page(shipped.files.vmcore, copy, page_structs_of_absent_pages(shipped))
    finding = leak_in(dma_fences(shipped, copy))
    found = evidence(finding)
    assert finding.confidence == Confidence.LIKELY
    assert found["references_leaked"] == shipped.truth["leak"]["references_leaked"]
    assert found["references_proven"] == 0 and found["pages_unread"] >= 1


def test_pages_that_no_kernel_pointer_is_in_are_not_missed(shipped: ShippedDump) -> None:
    # makedumpfile -d 31 left out those of user space, of the page cache, and free ones.
    finding, page_map = leak_in(shipped.report), shipped.target.memory.page_map
    pages: int = shipped.truth["meminfo_kib"]["MemTotal"] * 1024 // PAGE_SIZE_BYTES
    assert pages - page_map.present_pages > 10_000
    assert (finding.confidence, evidence(finding)["pages_unread"]) == (Confidence.PROVEN, 0)


def test_the_copy_of_a_kdump_lacks_that_page_alone(demo_dump: ShippedDump, tmp_path: Path) -> None:
    whole, prog = demo_dump.target.memory.page_map, demo_dump.target.prog
    dropped, copy = page_of_slab(prog), tmp_path / "vmcore"
    drop_page(demo_dump.files.vmcore, copy, dropped)
    assert page_map_of_file(copy).present_pages == whole.present_pages - 1
    opened = target.open_core(copy, demo_dump.files.symbols).prog
    for start, end in whole.runs.tolist():
        for pfn in np.arange(start, end).tolist():
            at = pfn * PAGE_SIZE_BYTES
            if pfn == dropped:
                with pytest.raises(FaultError):
                    opened.read(at, PAGE_SIZE_BYTES, physical=True)
            else:
                ours = opened.read(at, PAGE_SIZE_BYTES, physical=True)
                assert ours == prog.read(at, PAGE_SIZE_BYTES, physical=True)
