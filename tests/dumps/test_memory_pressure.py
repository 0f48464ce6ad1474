# SPDX-License-Identifier: LGPL-2.1-or-later
"""Free pages of the shipped dumps, and who is said to wait for some."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Iterator, List

import pytest
from drgn import Object
from drgn.helpers.linux.pid import find_task

from drgn_scripts.wait_graph import ANALYSIS
from tests.dumps.conftest import ShippedDump
from vmcore_tools import runner
from vmcore_tools.kernel.memory_pressure import (
    NodePages,
    ZonePages,
    for_each_node,
    memory_stalled_percent,
    reclaim_queues,
    scan_control,
)
from vmcore_tools.kernel.task import for_each_bounded_task
from vmcore_tools.kernel.wait_chain import WaitChains
from vmcore_tools.kernel.wait_memory import as_reclaim
from vmcore_tools.kernel.waits import Wait, WaitFinder
from vmcore_tools.model import Confidence, Finding
from vmcore_tools.wait_findings import memory
from vmcore_tools.wait_findings.causes import CACHE

KIB_PER_PAGE = 4


def test_pages_are_those_that_the_guest_counted(shipped: ShippedDump) -> None:
    (node,) = for_each_node(shipped.target.prog)
    meminfo = shipped.truth["meminfo_kib"]
    assert sum(zone.managed for zone in node.zones) * KIB_PER_PAGE == meminfo["MemTotal"]
    free_kib = sum(zone.free for zone in node.zones) * KIB_PER_PAGE
    assert abs(free_kib - meminfo["MemFree"]) < meminfo["MemTotal"] / 10
    minimum_kib = sum(zone.minimum for zone in node.zones) * KIB_PER_PAGE
    asked_kib = shipped.target.prog["min_free_kbytes"].value_()
    assert asked_kib - KIB_PER_PAGE * len(node.zones) <= minimum_kib <= asked_kib
    assert not node.below_minimum
    assert not node.throttles
    assert node.failures <= 16  # there kswapd had given up for good once


def test_nobody_reclaims(shipped: ShippedDump) -> None:
    tasks = for_each_bounded_task(shipped.target.prog)
    assert [task for task in tasks if scan_control(task) is not None] == []
    assert memory_stalled_percent(shipped.target.prog) is None  # without CONFIG_PSI


def test_a_wait_on_the_nodes_queue_is_for_its_memory(demo_dump: ShippedDump) -> None:
    prog = demo_dump.target.prog
    (address,) = reclaim_queues(prog)
    chains = WaitChains(prog, [], {}, lambda _task: None, lambda *_: None)
    queue = Object(prog, "struct wait_queue_head *", value=address)
    named = as_reclaim(chains, Wait("wait queue", queue, "", proven=True))
    assert named is not None
    assert (named.kind, named.object.type_.type_name()) == ("reclaim", "struct pglist_data *")
    other = Object(prog, "struct wait_queue_head *", value=address + 24)
    assert as_reclaim(chains, Wait("wait queue", other, "")) is None


# Nobody in the demo dump waits for memory. Made up: Xorg sleeps in reclaim, and what it
# waits for there is not known.


def found(
    dump: ShippedDump, monkeypatch: pytest.MonkeyPatch, free: int, known: bool
) -> List[Finding]:
    (node,) = for_each_node(dump.target.prog)
    short = NodePages(node.pgdat, 0, (ZonePages("DMA", free, 100, 1000),), 3)
    nodes: List[NodePages] = [short]

    def control(task: Object) -> Any:
        reclaims = task.pid.value_() == dump.truth["hung"]["pid"]
        return SimpleNamespace(nr_reclaimed=SimpleNamespace(value_=lambda: 7)) if reclaims else None

    def each(_prog: object) -> Iterator[NodePages]:
        yield from nodes

    monkeypatch.setattr(memory, "for_each_node", each)
    monkeypatch.setattr(memory, "node_pages", lambda _pgdat: short)
    monkeypatch.setattr(memory, "scan_control", control)
    if not known:
        monkeypatch.setattr(WaitFinder, "find", lambda *_: None)
    monkeypatch.delitem(dump.target.prog.cache, CACHE, raising=False)
    report = runner.run(
        dump.target, [ANALYSIS], {}, limit=None, progress=lambda items, _what, _total: items
    )
    return [finding for finding in report.findings if finding.subject.type == "memory"]


def test_who_sleeps_in_reclaim_while_memory_is_short(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    (finding,) = found(demo_dump, monkeypatch, free=99, known=False)
    assert (finding.rule.id, finding.confidence) == ("VT317", Confidence.SUSPECTED)
    evidence = {item.name: item.value for item in finding.evidence}
    assert evidence["victim_pid"] == demo_dump.truth["hung"]["pid"]
    assert (evidence["free_pages"], evidence["minimum_pages"]) == (99, 100)
    assert (evidence["reclaimers"], evidence["pages_reclaimed"]) == (1, 7)


@pytest.mark.parametrize(("free", "known"), [(100, False), (99, True)])
def test_enough_memory_or_another_cause_is_no_pressure(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch, free: int, known: bool
) -> None:
    assert found(demo_dump, monkeypatch, free, known) == []


def test_the_demos_hang_is_the_cpus_fault(demo_dump: ShippedDump) -> None:
    assert find_task(demo_dump.target.prog, demo_dump.truth["hung"]["pid"])
    rules = [finding.rule.id for finding in demo_dump.report.findings]
    assert "VT317" not in rules
    assert "VT311" in rules


def test_when_reclaim_is_throttled() -> None:
    zone = ZonePages("Normal", 50, 100, 1000)
    pgdat: Any = None
    assert NodePages(pgdat, 0, (zone,), 0).throttles
    # kswapd has given up: then nobody is kept waiting for it.
    assert not NodePages(pgdat, 0, (zone,), 16).throttles
    full = ZonePages("DMA", 1, 0, 10)
    assert not NodePages(pgdat, 0, (zone, full), 0).throttles
