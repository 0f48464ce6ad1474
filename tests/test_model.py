# SPDX-License-Identifier: LGPL-2.1-or-later
"""The data of a report: signatures, order, completeness, exit codes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from tests.sample_report import HUNG, LEAK, STACK, Fence, hung, leak, report, result
from vmcore_tools.model import (
    Confidence,
    Coverage,
    Evidence,
    Finding,
    Gap,
    Kind,
    Ref,
    Severity,
    Stack,
    Status,
    columns,
)


def test_signature_ignores_addresses_counts_and_pids() -> None:
    other_boot = leak(
        subject=Ref("slab cache", "kmalloc-96", address=1, pid=1),
        evidence=(Evidence("references", Kind.COUNT, 1),),
        stacks=(),
        confidence=Confidence.PROVEN,
    )
    assert other_boot.signature == leak().signature == "VT201-fb799c17fe4b"


def test_signatures_of_two_bugs_differ() -> None:
    signatures = {
        leak().signature,
        leak(rule=HUNG).signature,
        leak(signature_key=("leaked", "i915")).signature,
        leak(signature_key=("leakedvirtio_gpu",)).signature,
        leak(signature_key=("leaked", "virtio_gpu", "")).signature,
    }
    assert len(signatures) == 5


def test_equal_stacks_have_equal_ids() -> None:
    assert Stack(STACK.frames, STACK.note).id == STACK.id
    moved = dataclasses.replace(STACK.frames[1], offset=1)
    assert Stack((STACK.frames[0], moved), STACK.note).id != STACK.id
    assert Stack(STACK.frames).id != STACK.id


def test_columns_are_in_order_with_their_kinds() -> None:
    assert columns(Fence)[:3] == (
        ("address", Kind.ADDRESS),
        ("driver", Kind.UNTRUSTED),
        ("size_bytes", Kind.BYTES),
    )


def test_coverage_counts_by_kind_and_keeps_the_first_addresses() -> None:
    coverage = Coverage()
    for address in range(100):
        coverage.gap("pages", "excluded", address)
    coverage.gap("pages", "excluded", count=5)
    coverage.gap("pages", "corrupt", material=False)
    assert coverage.gaps() == (
        Gap("pages", "corrupt", 1, False, ()),
        Gap("pages", "excluded", 105, True, tuple(range(8))),
    )


def test_findings_come_worst_then_surest_first() -> None:
    sure = leak(confidence=Confidence.PROVEN, signature_key=("sure",))
    first = leak(signature_key=("first",))
    second = leak(signature_key=("second",))
    made = report(result(findings=(hung(), first)), result("b", findings=(second, sure)))
    assert made.findings == (sure, first, second, hung())


@pytest.mark.parametrize(
    ("status", "complete", "code"),
    [
        (Status.OK, True, 0),
        (Status.NOT_APPLICABLE, True, 0),
        (Status.PARTIAL, False, 3),
        (Status.SKIPPED, False, 3),
        (Status.FAILED, False, 3),
    ],
)
def test_exit_code_without_findings(status: Status, complete: bool, code: int) -> None:
    made = report(result(status=status), result("other"))
    assert made.complete is complete
    assert made.exit_code() == code


def test_exit_code_with_findings() -> None:
    assert LEAK.severity is Severity.ERROR and HUNG.severity is Severity.WARNING
    assert report(result(findings=(leak(),))).exit_code() == 1
    assert report(result(findings=(leak(),))).exit_code(Severity.CRITICAL) == 0
    assert report(result(findings=(hung(),))).exit_code() == 0
    assert report(result(findings=(hung(),))).exit_code(Severity.WARNING) == 1
    # A finding is there however much was not read, and however sure it is.
    unsure = leak(confidence=Confidence.SUSPECTED)
    assert report(result(status=Status.PARTIAL, findings=(unsure,))).exit_code() == 1
    assert report(result(status=Status.PARTIAL, findings=(hung(),))).exit_code() == 3


def test_an_interrupted_report_is_incomplete() -> None:
    made = report(result(findings=(leak(),)), interrupted=True)
    assert not made.complete
    assert made.exit_code() == 3


def test_model_and_report_never_import_drgn() -> None:
    code = (
        "import sys, vmcore_tools.model, vmcore_tools.report;"
        "sys.exit(any(name.split('.')[0] in ('drgn', 'numpy') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_text_that_is_not_utf_8_has_ids_too() -> None:
    text = b"\xff".decode("utf-8", "surrogateescape")
    assert Stack((dataclasses.replace(STACK.frames[0], function=text),)).id
    assert leak(signature_key=(text,)).signature != leak(signature_key=("",)).signature


def test_rules_that_are_ranked_together_are_listed_as_the_analysis_has_them() -> None:
    together = dataclasses.replace(HUNG, ranked_with="VT310")
    last, first = (dataclasses.replace(together, id=id) for id in ("VT318", "VT311"))
    rules = [last, first, HUNG, dataclasses.replace(HUNG, id="VT401")]
    found = sorted((hung(rule=rule) for rule in rules), key=Finding.sort_key)
    assert [finding.rule.id for finding in found] == ["VT301", "VT318", "VT311", "VT401"]


def test_what_another_explains_is_listed_behind_it_and_before_what_is_less_severe() -> None:
    worse = dataclasses.replace(HUNG, severity=Severity.ERROR)
    rule = dataclasses.replace(worse, id="VT311")
    cause = hung(rule=rule, confidence=Confidence.SUSPECTED)
    symptom = hung(rule=worse, explained=True, confidence=Confidence.PROVEN)
    found = sorted([hung(), symptom, cause], key=Finding.sort_key)
    assert found == [cause, symptom, hung()]
