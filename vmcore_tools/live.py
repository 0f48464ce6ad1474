# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Analyses of a target that goes on while it is read.

What is read of it is of many moments: a list is followed into memory that was freed
meanwhile, and what holds an object is read before or after it let go. So an analysis that
could not go on is run again, and what it finds wrong has to be there a second time, when
everything is read anew. What is wrong stays; a race does not repeat itself. Where thousands
of objects are counted, some do repeat: analyses that compare objects are run :data:`LOOKS`
times, and each time there has to be the same wrong with the same object.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Callable, Mapping, Optional, Tuple

from vmcore_tools.kernel.steady import STEADY_KEY
from vmcore_tools.model import (
    AnalysisResult,
    Confidence,
    Finding,
    Gap,
    Severity,
    Stack,
    Status,
)

if TYPE_CHECKING:
    from drgn import Program

#: How often an analysis is begun that does not get through.
ATTEMPTS = 3

#: How often an object is looked at before it is said that something is wrong with it.
LOOKS = 4

#: Findings of less are no alarm; most are of what does not change, such as missing debug info.
_ALARMING = Severity.WARNING

_KEY = "vmcore_tools."

#: A result, and the stacks that it refers to.
Attempt = Tuple[AnalysisResult, Mapping[str, Stack]]

_OTHER_OBJECTS = "what changed meanwhile: it was found twice, and of different objects"
_ONCE = "what changed meanwhile: it could not be looked at a second time"
_GONE = "seen once, and not when it was read again: the target went on meanwhile"


def forget(prog: Program) -> None:
    """Drop what was kept of a target's memory: it is of a moment that is over."""
    for key in [key for key in prog.cache if isinstance(key, str) and key.startswith(_KEY)]:
        if key != STEADY_KEY:
            del prog.cache[key]


def begin(prog: Program) -> None:
    """Drop what the last analysis saw of objects, too: the next one compares its own looks."""
    prog.cache.pop(STEADY_KEY, None)


def compares_objects(prog: Program) -> bool:
    """Whether what has run since :func:`begin` compares objects with how they were before."""
    return bool(prog.cache.get(STEADY_KEY))


def settled(
    attempt: Callable[[], Attempt],
    broke_off: Callable[[AnalysisResult], bool],
    compares: Callable[[], bool] = lambda: False,
) -> Attempt:
    """
    What an analysis finds of a target that goes on.

    :param attempt: runs the analysis, on what is read anew
    :param broke_off: whether it did not get through, and may when it is run again
    :param compares: whether it compares objects with how they were the last time
    """
    result, stacks = _through(attempt, broke_off)
    looks = 1
    while any(map(_alarms, result.findings)) and looks < (LOOKS if compares() else 2):
        again, again_stacks = _through(attempt, broke_off)
        if again.status is Status.FAILED or broke_off(again):
            findings = tuple(_doubted(finding, _ONCE) for finding in result.findings)
            return dataclasses.replace(result, findings=findings), stacks
        result, stacks = _confirmed(result, again), again_stacks
        looks += 1
    return result, stacks


def _through(
    attempt: Callable[[], Attempt], broke_off: Callable[[AnalysisResult], bool]
) -> Attempt:
    made = attempt()
    for _ in range(ATTEMPTS - 1):
        if not broke_off(made[0]):
            break
        made = attempt()
    return made


def _alarms(finding: Finding) -> bool:
    return finding.rule.severity >= _ALARMING


def _subject(finding: Finding) -> Tuple[Any, ...]:
    return finding.signature, finding.subject.address, finding.subject.pid


def _doubted(finding: Finding, why: str) -> Finding:
    if not _alarms(finding):
        return finding
    return dataclasses.replace(
        finding,
        confidence=min(finding.confidence, Confidence.LIKELY),
        unread=(*finding.unread, why),
    )


def _confirmed(first: AnalysisResult, second: AnalysisResult) -> AnalysisResult:
    """The second result, with those of its findings that the first one has, too."""
    signatures = {finding.signature for finding in first.findings}
    subjects = {_subject(finding) for finding in first.findings}

    def confirmed(finding: Finding) -> Optional[Finding]:
        if not _alarms(finding) or _subject(finding) in subjects:
            return finding
        return _doubted(finding, _OTHER_OBJECTS) if finding.signature in signatures else None

    kept = tuple(filter(None, map(confirmed, second.findings)))
    there = {finding.signature for finding in kept}
    gone = {
        finding.signature: finding.rule.id
        for finding in (*first.findings, *second.findings)
        if _alarms(finding) and finding.signature not in there
    }
    gaps = tuple(
        Gap("finding", f"{rule} was {_GONE}", 1, True, ()) for rule in sorted(gone.values())
    )
    # Of the looks before these two.
    gaps += tuple(gap for gap in first.gaps if gap.reason.endswith(_GONE) and gap not in gaps)
    return dataclasses.replace(
        second,
        status=Status.PARTIAL if gaps and second.status is Status.OK else second.status,
        findings=kept,
        gaps=(*second.gaps, *gaps),
        seconds=first.seconds + second.seconds,
    )
