# SPDX-License-Identifier: LGPL-2.1-or-later
"""hung-tasks names what keeps its tasks waiting, and that is looked for once."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest
from drgn import Object
from drgn.helpers import ValidationError

from drgn_scripts import hung_tasks, wait_graph
from tests.dumps.conftest import ShippedDump
from vmcore_tools import runner
from vmcore_tools.kernel.waits import WaitFinder
from vmcore_tools.model import Absent, Report, Status
from vmcore_tools.wait_findings import causes


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
