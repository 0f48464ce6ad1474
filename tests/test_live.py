# SPDX-License-Identifier: LGPL-2.1-or-later
"""Of a target that goes on, an alarm counts that is there twice."""

from __future__ import annotations

from typing import Any, Iterator, List, Tuple
from unittest import mock

import pytest

from tests import fake_target
from tests.sample_report import LEAK, STACK, leak, result
from vmcore_tools import live, runner
from vmcore_tools.analysis import Analysis, Context
from vmcore_tools.live import settled
from vmcore_tools.model import AnalysisResult, Confidence, Gap, Ref, Severity, Status
from vmcore_tools.target import Target

PROVEN = {"confidence": Confidence.PROVEN, "unread": ()}
BROKEN = result(gaps=(Gap(runner.BROKE_OFF, "x", 1, True, ()),), status=Status.PARTIAL)


def run(*results: AnalysisResult, compares: bool = False) -> Tuple[AnalysisResult, int]:
    """What comes of an analysis that ends so, one time after the other, and how often it ran."""
    attempts: List[AnalysisResult] = []

    def attempt() -> live.Attempt:
        attempts.append(results[len(attempts)])
        return attempts[-1], {STACK.id: STACK}

    made, stacks = settled(attempt, runner._broke_off, lambda: compares)
    assert stacks == {STACK.id: STACK}
    return made, len(attempts)


def test_nothing_found_is_read_once() -> None:
    assert run(result()) == (result(), 1)


def test_what_is_no_alarm_is_read_once() -> None:
    info = leak(rule=LEAK.__class__("VT999", "x", Severity.INFO, "x", "y"))
    assert run(result(findings=(info,))) == (result(findings=(info,)), 1)


def test_what_is_there_twice_stays() -> None:
    made, times = run(result(findings=(leak(**PROVEN),)), result(findings=(leak(**PROVEN),)))
    assert times == 2
    assert made.findings == (leak(**PROVEN),)
    assert made.status is Status.OK and not made.gaps


def test_objects_that_are_counted_are_looked_at_more_often() -> None:
    wrong = result(findings=(leak(**PROVEN),))
    made, times = run(*[wrong] * live.LOOKS, compares=True)
    assert (made.findings, times) == (wrong.findings, live.LOOKS)
    # In the third look it is gone, and there is nothing left to be looked at.
    made, times = run(wrong, wrong, result(), compares=True)
    assert (made.findings, times) == ((), 3)
    assert made.status is Status.PARTIAL and len(made.gaps) == 1
    # What was gone in the second look stays said.
    other = leak(signature_key=("other",))
    both = result(findings=(leak(**PROVEN), other))
    made, times = run(both, *[wrong] * (live.LOOKS - 1), compares=True)
    assert (made.findings, times) == (wrong.findings, live.LOOKS)
    assert len(made.gaps) == 1


def test_what_is_gone_is_no_finding_but_said() -> None:
    for results in ((leak(),), ()), ((), ()):
        first, second = (result(findings=found) for found in results)
        made, _ = run(first, second)
        assert made.findings == ()
    made, _ = run(result(findings=(leak(),)), result())
    (gap,) = made.gaps
    assert made.status is Status.PARTIAL
    assert (gap.what, gap.material) == ("finding", True)
    assert gap.reason.startswith("VT201 was seen once, and not when it was read again")


def test_what_is_new_the_second_time_is_no_finding_either() -> None:
    other = leak(signature_key=("other",))
    made, _ = run(result(findings=(leak(**PROVEN),)), result(findings=(leak(**PROVEN), other)))
    assert made.findings == (leak(**PROVEN),)
    assert len(made.gaps) == 1 and made.status is Status.PARTIAL


def test_the_same_of_other_objects_is_not_proven() -> None:
    moved = leak(**{**PROVEN, "subject": Ref("slab cache", "kmalloc-96", address=0x5000)})
    made, _ = run(result(findings=(leak(**PROVEN),)), result(findings=(moved,)))
    (finding,) = made.findings
    assert finding.confidence is Confidence.LIKELY
    assert finding.unread == (
        "what changed meanwhile: it was found twice, and of different objects",
    )
    assert finding.subject.address == 0x5000


@pytest.mark.parametrize(
    "broken", [BROKEN, result(status=Status.FAILED, reason="IndexError: x")], ids=["gap", "failed"]
)
def test_an_analysis_that_did_not_get_through_is_run_again(broken: AnalysisResult) -> None:
    assert run(broken, result()) == (result(), 2)
    assert run(broken, broken, result()) == (result(), 3)
    assert run(broken, broken, broken) == (broken, 3)


def test_an_alarm_that_cannot_be_looked_at_twice_is_not_proven() -> None:
    made, times = run(result(findings=(leak(**PROVEN),)), *[BROKEN] * 3)
    assert times == 4
    (finding,) = made.findings
    assert finding.confidence is Confidence.LIKELY and "second time" in finding.unread[0]


def test_ctrl_c_is_not_tried_again() -> None:
    interrupted = result(status=Status.FAILED, reason=runner.INTERRUPTED)
    assert run(interrupted) == (interrupted, 1)


def test_the_runner_reads_a_live_target_anew_each_time() -> None:
    cached: List[bool] = []

    def analyze(ctx: Context) -> Iterator[Any]:
        cached.append("vmcore_tools.x" in ctx.prog.cache)
        ctx.prog.cache["vmcore_tools.x"] = ctx.prog.cache["theirs"] = 1
        if len(cached) < 3:
            raise IndexError
        return iter(())

    analysis = Analysis("x", analyze, tables=(), rules=())
    with mock.patch.object(Target, "live", True):
        report = fake_target.run_all(analysis, analysis)
    assert [made.status for made in report.analyses] == [Status.OK, Status.OK]
    assert cached == [False] * 4
    cached.clear()
    # The same of a dump: kept, and not tried again.
    report = fake_target.run_all(analysis, analysis)
    assert [made.status for made in report.analyses] == [Status.FAILED, Status.FAILED]
    assert cached == [False, True]
