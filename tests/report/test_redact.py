# SPDX-License-Identifier: LGPL-2.1-or-later
"""What --redact masks, and what it leaves."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sample_report import STACK, Fence, fence, full_report, leak, report, result
from vmcore_tools.model import (
    Absent,
    AnalysisResult,
    Evidence,
    Frame,
    Gap,
    Kind,
    Ref,
    Stack,
    Status,
    Table,
)
from vmcore_tools.report import FORMATS, render
from vmcore_tools.report.redact import redact


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_sensitive_is_left(format: str) -> None:
    text = render(full_report(), format, redact=True)
    for secret in ("Xorg", "host7", "ffff8880"):
        assert secret not in text
    for kept in ("412", "kmalloc-96", "virtio_gpu", "5.10.262", "__schedule"):
        assert kept in text


def test_the_same_value_has_the_same_pseudonym_everywhere() -> None:
    made = redact(full_report())
    leaked, waits = made.findings
    evidence = {item.name: item.value for item in leaked.evidence}
    pseudonyms: Any = (leaked.subject.address, made.analyses[0].gaps[0].addresses)
    assert pseudonyms == ("address-3", ("address-5",))
    assert made.target[0].value == "sensitive-1"
    assert evidence["comm"] == "sensitive-2"
    assert evidence["first"] == ("address-1", "address-2")
    assert leaked.subject.name == "kmalloc-96"
    assert leaked.related[0].name == "sensitive-2"
    assert leaked.related[0].pid == 412
    assert waits.subject.name == "sensitive-2"
    rows = made.analyses[0].tables[0].rows
    assert [row.address for row in rows] == ["address-1", "address-2"]
    assert [row.comm for row in rows] == ["sensitive-2", Absent("the task sensitive-2 is gone")]


def test_the_report_itself_is_left_alone() -> None:
    original = full_report()
    redact(original)
    assert original == full_report()


def test_signatures_and_stack_ids_do_not_change() -> None:
    original, made = full_report(), redact(full_report())
    assert [f.signature for f in made.findings] == [f.signature for f in original.findings]
    assert list(made.stacks) == list(original.stacks)


def one(**changes: Any) -> AnalysisResult:
    """The only result of a report with a comm, ``Xorg``, and an address; masked."""
    changes.setdefault("tables", (Table(Fence, (fence(),), 1),))
    return redact(report(result(**changes), target=())).analyses[0]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Xorg is gone", "sensitive-1 is gone"),
        ("Xorgs and aXorg", "Xorgs and aXorg"),
        ("task Xorg:412", "task sensitive-1:412"),
        ("fault at 0xffff888000001000", "fault at address-1"),
        ("fault at FFFF888000001000", "fault at address-1"),
        ("fault at 0xdead0000", "fault at address-2"),
        ("4096 bytes, offset 0x10", "4096 bytes, offset 0x10"),
        ("build 0123456789abcdef0123456789abcdef01234567",) * 2,
    ],
)
def test_free_text(text: str, masked: str) -> None:
    assert one(status=Status.SKIPPED, reason=text).reason == masked
    assert one(gaps=(Gap(text, text, 1, True, ()),)).gaps == (Gap(masked, masked, 1, True, ()),)
    finding = leak(
        unread=(text,),
        evidence=(Evidence("x", Kind.UNTRUSTED, text), Evidence("y", Kind.PID, Absent(text))),
        subject=Ref("task", Absent(text)),
        related=(),
    )
    (found,) = one(findings=(finding,)).findings
    assert found.unread == (masked,)
    assert [item.value for item in found.evidence] == [masked, Absent(masked)]
    assert found.subject.name == Absent(masked)


def test_a_name_that_looks_like_a_pseudonym() -> None:
    rows = (fence(comm="sensitive"), fence(comm="1"), fence(comm="Xorg (old)"))
    made = one(
        tables=(Table(Fence, rows, 3),), status=Status.SKIPPED, reason="sensitive 1 Xorg (old)!"
    )
    assert made.reason == "sensitive-1 sensitive-2 sensitive-3!"


def test_exceptions_lose_their_message() -> None:
    assert one(status=Status.FAILED, reason="KeyError: '/home/x'").reason == "KeyError"
    assert one(status=Status.FAILED, reason="interrupted").reason == "interrupted"


def test_frames_without_a_symbol() -> None:
    frame = Frame("0xffff888000001000", None, None, None, None, None, False)
    stack = Stack((*STACK.frames, frame), note="no frame at 0xffff888000001000")
    made = redact(report(result(), stacks={stack.id: stack})).stacks[stack.id]
    assert made.frames == (*STACK.frames, dataclasses.replace(frame, function="address-1"))
    assert made.note == "no frame at address-1"


def test_absent_values_and_none_stay() -> None:
    made = one(tables=(Table(Fence, (fence(comm=None, address=Absent("gone")),), 1),))
    assert made.tables[0].rows[0].comm is None
    assert made.tables[0].rows[0].address == Absent("gone")


@given(st.lists(st.text(min_size=4), min_size=1), st.sampled_from(FORMATS))
def test_any_name_is_masked(names: list[str], format: str) -> None:
    comms = [f"secret{name}" for name in names]
    rows = tuple(fence(comm=comm) for comm in comms)
    made = report(
        result(
            tables=(Table(Fence, rows, len(rows)),),
            status=Status.SKIPPED,
            reason=", ".join(comms),
        )
    )
    assert "secret" not in render(made, format, redact=True)
