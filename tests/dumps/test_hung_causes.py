# SPDX-License-Identifier: LGPL-2.1-or-later
"""hung-tasks names what keeps its tasks waiting, and that is looked for once."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest
from drgn import Object
from drgn.helpers import ValidationError
from drgn.helpers.linux.pid import find_task

from drgn_scripts import hung_tasks, wait_graph
from tests.dumps.conftest import ShippedDump
from vmcore_tools import runner
from vmcore_tools.kernel import wait_chain
from vmcore_tools.kernel.wait_graph import Edge
from vmcore_tools.kernel.wait_nodes import HELD_BY, LOCK, Node
from vmcore_tools.kernel.waits import WaitFinder
from vmcore_tools.model import Absent, Report, Status
from vmcore_tools.wait_findings import causes
from vmcore_tools.wait_findings.cpu import CpuMonopolised


def run(dump: ShippedDump) -> Report:
    analyses = [hung_tasks.ANALYSIS, wait_graph.ANALYSIS]
    return runner.run(
        dump.target, analyses, {}, limit=None, progress=lambda items, _what, _total: items
    )


def evidence(report: Report, rule: str) -> Dict[str, Any]:
    (finding,) = [finding for finding in report.findings if finding.rule.id == rule]
    return {item.name: item.value for item in finding.evidence}


def test_the_cause_is_that_of_wait_graph(demo_dump: ShippedDump) -> None:
    report, culprit = demo_dump.report, demo_dump.truth["culprit"]
    (hung,) = [finding for finding in report.findings if finding.rule.id == "VT301"]
    assert evidence(report, "VT301")["causes"] == ("VT311 cpu-monopolised (proven)",)
    assert hung.related[0].pid == culprit["pid"]
    (row,) = [
        row
        for analysis in report.analyses
        for table in analysis.tables
        for row in table.rows
        if isinstance(row, hung_tasks.BlockedTask) and row.pid == demo_dump.truth["hung"]["pid"]
    ]
    assert (row.cause, row.cause_pid) == ("VT311", culprit["pid"])


def test_it_is_looked_for_once(demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch) -> None:
    made: List[object] = []

    class Counted(causes.WaitView):
        def __init__(self, ctx: Any) -> None:
            made.append(ctx)
            super().__init__(ctx)

    monkeypatch.setattr(causes, "WaitView", Counted)
    monkeypatch.delitem(demo_dump.target.prog.cache, causes.CACHE, raising=False)
    report = run(demo_dump)
    assert len(made) == 1
    assert [analysis.status for analysis in report.analyses] == [Status.OK, Status.OK]
    again = {finding.signature for finding in run(demo_dump).findings}
    assert again == {finding.signature for finding in report.findings}
    assert len(made) == 1


def test_what_could_not_be_read_is_counted_by_wait_graph_each_time(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lossy(causes.WaitView):
        def __init__(self, ctx: Any) -> None:
            super().__init__(ctx)
            for address in range(10):
                ctx.coverage.gap("lock", "it cannot be followed", address)

    monkeypatch.setattr(causes, "WaitView", Lossy)
    monkeypatch.delitem(demo_dump.target.prog.cache, causes.CACHE, raising=False)
    for _ in range(2):
        hung, waits = run(demo_dump).analyses
        assert hung.status is Status.OK
        (gap,) = waits.gaps
        assert (gap.what, gap.count, len(gap.addresses)) == ("lock", 10, 8)
        assert waits.status is Status.PARTIAL


def test_without_a_cause_the_task_is_reported_all_the_same(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_ctx: object) -> None:
        raise LookupError("no such member")

    monkeypatch.setattr(hung_tasks, "explain_waits", fail)
    report = runner.run(
        demo_dump.target,
        [hung_tasks.ANALYSIS],
        {},
        limit=None,
        progress=lambda items, _what, _total: items,
    )
    said = evidence(report, "VT301")
    assert said["pid"] == demo_dump.truth["hung"]["pid"]
    assert "causes" not in said
    (analysis,) = report.analyses
    assert [(gap.what, gap.material) for gap in analysis.gaps] == [("cause of a wait", True)]
    assert isinstance(analysis.tables[0].rows[0].cause, Absent)


def test_a_wait_that_was_lost_is_a_gap_of_its_cause(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One damaged list takes no more than the waits that it would tell of."""

    def fail(_finder: object, task: Object, _trace: object) -> None:
        lost.append(task.value_())
        raise ValidationError("the list leads back")

    lost: List[int] = []
    monkeypatch.setattr(WaitFinder, "find", fail)
    monkeypatch.delitem(demo_dump.target.prog.cache, causes.CACHE, raising=False)
    hung, waits = run(demo_dump).analyses
    assert lost
    (gap,) = hung.gaps
    assert (gap.what, gap.material, gap.count) == ("cause of a wait", True, 1)
    assert list(gap.addresses) == lost[:1]
    assert [(gap.what, gap.count) for gap in waits.gaps] == [("wait of a task", len(lost))]
    assert [analysis.status for analysis in (hung, waits)] == [Status.PARTIAL, Status.PARTIAL]


def test_a_wait_that_was_not_found_is_not_looked_at(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WaitFinder, "find", lambda *_: None)
    monkeypatch.delitem(demo_dump.target.prog.cache, causes.CACHE, raising=False)
    report = run(demo_dump)
    hung, waits = report.analyses
    task = find_task(demo_dump.target.prog, demo_dump.truth["hung"]["pid"])
    (gap,) = (gap for gap in waits.gaps if gap.what == "task")
    assert (gap.reason, gap.material) == ("what it waits for was not found", True)
    assert (gap.count, gap.addresses) == (1, (task.value_(),))
    assert (hung.status, waits.status) == (Status.OK, Status.PARTIAL)
    assert evidence(report, "VT301")["not_found"] == 1
    assert "causes" not in evidence(report, "VT301")


def test_the_cause_comes_before_the_task_that_it_hangs(demo_dump: ShippedDump) -> None:
    ids = [finding.rule.id for finding in demo_dump.report.findings]
    assert ids.index("VT311") < ids.index("VT301")


def test_who_keeps_others_waiting_is_no_victim_of_that(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the hung task had a lock that init wants, and nobody were known to end its wait."""
    prog, pid = demo_dump.target.prog, demo_dump.truth["hung"]["pid"]

    def prepare(cause: CpuMonopolised) -> None:
        chains, waits = cause.view.chains, cause.view.waits
        behind, holder = (chains.add_task(find_task(prog, number).read_()) for number in (1, pid))
        lock = chains.add(Node("mutex", LOCK, chains.nodes[holder].object, "mutex"))
        chains.graph.add_edge(Edge(behind, lock, "waits for"))
        chains.graph.add_edge(Edge(lock, holder, HELD_BY))
        waits[behind] = 100_000_000_000

    follow = {**wait_chain.FOLLOW_WAIT}
    del follow["flush_work"]
    monkeypatch.setattr(wait_chain, "FOLLOW_WAIT", follow)
    monkeypatch.setattr(wait_chain, "FOLLOW_NODE", {})
    monkeypatch.setattr(CpuMonopolised, "prepare", prepare)
    monkeypatch.delitem(prog.cache, causes.CACHE, raising=False)
    report = run(demo_dump)
    assert [finding.rule.id for finding in report.findings] == ["VT313", "VT301"]
    assert report.findings[0].subject.pid == pid
    said = evidence(report, "VT301")
    assert "causes" not in said
    assert said["cause_of"] == ("VT313 lock-holder-asleep",)
    assert (said["behind_it"], said["awaited"]) == (1, "flush_work")
    assert report.findings[1].related == ()
    for analysis in report.analyses:
        (row,) = (row for row in analysis.tables[0].rows if row.pid == pid)
        assert row.cause == Absent("none was found: it is itself that of VT313")
        assert row.cause_pid == Absent("the task is itself a cause")
