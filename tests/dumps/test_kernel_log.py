# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the shipped dumps' kernels reported, against what the guests recorded."""

from __future__ import annotations

from typing import Any, List, Tuple

import pytest
from drgn import FaultError, Object, Program

from drgn_scripts.kernel_log import ANALYSIS
from tests.dumps.conftest import ShippedDump
from vmcore_tools import runner
from vmcore_tools.kernel.printk import LogRecord, log_records
from vmcore_tools.model import Absent, Confidence, Finding, Severity, Status


def result(dump: ShippedDump) -> Any:
    (found,) = [a for a in dump.report.analyses if a.name == ANALYSIS.name]
    return found


def rows(dump: ShippedDump) -> List[Any]:
    return list(result(dump).tables[0].rows)


def hung_row(dump: ShippedDump) -> Any:
    (row,) = [row for row in rows(dump) if row.report == "hung task"]
    return row


def test_nothing_is_found_that_others_do_not_say(shipped: ShippedDump) -> None:
    # The one hang still is one, and it is hung-tasks' error.
    assert result(shipped).status is Status.OK
    assert not result(shipped).findings
    hung = shipped.truth.get("hung")
    assert [row.pid for row in rows(shipped) if row.report == "hung task"] == (
        [hung["pid"]] if hung else []
    )


def test_the_hung_task_is_linked(demo_dump: ShippedDump) -> None:
    row = hung_row(demo_dump)
    assert (row.pid, row.comm) == (demo_dump.truth["hung"]["pid"], "Xorg")
    assert row.still_blocked is True
    assert isinstance(row.rule, Absent)
    (blocked,) = [f for f in demo_dump.report.findings if f.rule.id == "VT301"]
    assert blocked.subject.address == row.task


def test_the_stack_is_the_one_that_drgn_unwinds(demo_dump: ShippedDump) -> None:
    printed = demo_dump.report.stacks[hung_row(demo_dump).stack].frames
    (blocked,) = [f for f in demo_dump.report.findings if f.rule.id == "VT301"]
    unwound = demo_dump.report.stacks[blocked.stacks[0]].frames
    # The trampoline into the kernel is one frame to the one, and maybe not to the other.
    places = [(f.function.partition(".")[0], f.offset) for f in unwound if not f.inline]
    assert len(printed) > 10
    for frame in printed[1:-1]:
        assert (frame.function.partition(".")[0], frame.offset) in places


def test_a_panic_that_follows_is_no_finding(demo_dump: ShippedDump) -> None:
    (row,) = [row for row in rows(demo_dump) if row.report == "panic"]
    assert row.detail == "hung_task: blocked tasks"
    assert row.comm == "khungtaskd"
    assert isinstance(row.rule, Absent)


def test_the_log_tells_who_wrote_it(demo_dump: ShippedDump) -> None:
    records = log_records(demo_dump.target.prog)
    (by,) = {r.caller_tid for r in records if r.text.startswith(b"INFO: task ")}
    (row,) = [row for row in rows(demo_dump) if row.report == "panic"]
    assert by == row.pid
    assert {r.facility for r in records if r.text.startswith(b"INFO: task ")} == {0}


def found_in(
    monkeypatch: pytest.MonkeyPatch,
    dump: ShippedDump,
    texts: List[bytes],
    status: Status = Status.OK,
) -> Tuple[Finding, ...]:
    """The findings, if these were the log's last lines."""
    prog = dump.target.prog
    last = log_records(prog)[-1]
    log = [LogRecord(n, last.timestamp_ns, 3, text, 1) for n, text in enumerate(texts)]
    monkeypatch.setattr("drgn_scripts.kernel_log.log_records", lambda _prog: log)
    report = runner.run(
        dump.target, [ANALYSIS], {}, limit=None, progress=lambda items, _what, _total: items
    )
    assert report.analyses[0].status is status
    return report.findings


def test_reports_are_linked_and_counted(
    monkeypatch: pytest.MonkeyPatch, demo_dump: ShippedDump
) -> None:
    task = hung_row(demo_dump)
    gone = b"INFO: task gone:31999 blocked for more than 10 seconds."
    slub = b"BUG kmalloc-64 (Not tainted): Redzone overwritten"
    texts = [
        *(gone, gone, b"WARNING: CPU: 1 PID: %d at a.c:1 foo+0x1/0x2" % task.pid),
        *(b"CPU: 1 PID: %d Comm: Xorg Not tainted 5.10" % task.pid, slub),
        b"Object 0x%016x @offset=8 fp=0" % task.task,
        b"Kernel panic - not syncing: sysrq triggered crash",
    ]
    by_rule = {finding.rule.id: finding for finding in found_in(monkeypatch, demo_dump, texts)}
    assert sorted(by_rule) == ["VT601", "VT607", "VT609"]
    assert by_rule["VT601"].subject.address is None
    assert by_rule["VT601"].evidence[0].value == 2
    assert by_rule["VT601"].rule.severity is Severity.INFO
    assert by_rule["VT609"].subject.address == task.task
    assert by_rule["VT609"].signature_key == ("warning", "foo")
    assert by_rule["VT609"].confidence is Confidence.PROVEN
    evidence = {item.name: item.value for item in by_rule["VT607"].evidence}
    assert (evidence["object"], evidence["object_state"]) == (task.task, "allocated")


def test_of_a_task_that_cannot_be_read_nobody_says_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, demo_dump: ShippedDump
) -> None:
    def find_task(prog: Program, pid: int) -> Object:
        raise FaultError("its page is damaged", 0)

    monkeypatch.setattr("drgn_scripts.kernel_log.find_task", find_task)
    texts = [b"INFO: task Xorg:%d blocked for more than 10 seconds." % hung_row(demo_dump).pid]
    (finding,) = found_in(monkeypatch, demo_dump, texts, Status.PARTIAL)
    assert (finding.rule.id, finding.confidence) == ("VT601", Confidence.LIKELY)
    assert finding.unread == ("whether the task is still blocked",)
    assert "not any more" not in finding.message
