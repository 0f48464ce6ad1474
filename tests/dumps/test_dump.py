# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the dump analysis says of whole, cut and thinned-out dumps."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict

import numpy as np

from drgn_scripts.dump import ANALYSIS, PagesByUse
from tests.dumps.conftest import ShippedDump
from vmcore_tools import runner
from vmcore_tools.dump.memory import Memory
from vmcore_tools.dump.page_map import PageMap, merge_runs
from vmcore_tools.kernel.page import PageClass, page_index
from vmcore_tools.model import AnalysisResult, Status


def run(dump: ShippedDump, page_map: PageMap) -> AnalysisResult:
    """The analysis on a dump of which a page map says what it has."""
    target = dataclasses.replace(dump.target, memory=Memory(dump.target.prog, page_map))
    report = runner.run(
        target, [ANALYSIS], {}, limit=None, progress=lambda items, _what, _total: items
    )
    return report.analyses[0]


def by_use(result: AnalysisResult) -> Dict[str, Any]:
    return {
        row.use: row for table in result.tables for row in table.rows if isinstance(row, PagesByUse)
    }


def test_a_whole_dump_has_all_pages_of_the_kernel(shipped: ShippedDump) -> None:
    result = run(shipped, shipped.target.memory.page_map)
    assert (result.status, result.findings, result.gaps) == (Status.OK, (), ())
    uses = by_use(result)
    for use in ("slab", "page table", "allocated"):
        assert uses[use].pages == uses[use].present > 0
    # makedumpfile -d 31 leaves these out.
    for use in ("free", "anonymous", "page cache"):
        assert uses[use].present == 0 < uses[use].absent


def test_a_slab_page_that_is_not_there_is_named(demo_dump: ShippedDump) -> None:
    whole = demo_dump.target.memory.page_map
    pages = page_index(demo_dump.target.prog, demo_dump.target.memory)
    lost = int(pages.slab_pfn[len(pages.slab_pfn) // 2])
    ranges = []
    for start, end in whole.runs.tolist():
        ranges += [(start, min(end, lost)), (max(start, lost + 1), end)]
    result = run(demo_dump, dataclasses.replace(whole, runs=merge_runs(ranges)))
    (finding,) = result.findings
    assert finding.rule.id == "VT903"
    assert {item.name: item.value for item in finding.evidence} == {"count": 1, "uses": ("slab",)}
    assert result.status is Status.PARTIAL
    assert by_use(result)["slab"].absent == 1


def test_a_truncated_dump_is_a_finding_and_incomplete(demo_dump: ShippedDump) -> None:
    whole = demo_dump.target.memory.page_map
    result = run(demo_dump, dataclasses.replace(whole, truncated="the file ends early"))
    assert [finding.rule.id for finding in result.findings] == ["VT901"]
    assert result.status is Status.PARTIAL


def test_page_frames_outside_ram_have_no_use(demo_dump: ShippedDump) -> None:
    pages = page_index(demo_dump.target.prog, demo_dump.target.memory)
    kinds = pages.kind_of(np.array([1 << 40], dtype=np.uint64))
    assert kinds.tolist() == [PageClass.UNREAD]
