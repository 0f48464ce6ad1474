# SPDX-License-Identifier: LGPL-2.1-or-later
"""Values as text."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sample_report import STACK, leak
from vmcore_tools.model import Absent, Frame, Gap, Kind, Ref
from vmcore_tools.report import format as report_format
from vmcore_tools.report.format import (
    escape,
    evidence_lines,
    frame_text,
    gap_text,
    label,
    message_text,
    ref_text,
    stack_lines,
    value_text,
)


def test_examples() -> None:
    failed, tried = doctest.testmod(report_format)
    assert (failed, tried > 0) == (0, True)


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (Kind.ADDRESS, 0xFFFF888000001000, "0xffff888000001000"),
        (Kind.ADDRESS, 0, "0x0"),
        (Kind.ADDRESS, "address-1", "address-1"),
        (Kind.ADDRESS, (1, 2), "0x1, 0x2"),
        (Kind.ADDRESS, None, "none"),
        (Kind.PID, 12345, "12345"),
        (Kind.NUMBER, 4294967295, "4294967295"),
        (Kind.COUNT, 5107, "5,107"),
        (Kind.COUNT, (), "none"),
        (Kind.BYTES, 0, "0 B"),
        (Kind.BYTES, 1023, "1023 B"),
        (Kind.BYTES, 1024, "1.0 KiB"),
        (Kind.BYTES, 480000, "468.8 KiB"),
        (Kind.BYTES, (1 << 20) - 1, "1.0 MiB"),
        (Kind.BYTES, 3 << 30, "3.0 GiB"),
        (Kind.BYTES, -2048, "-2.0 KiB"),
        (Kind.DURATION, 850, "850 ns"),
        (Kind.DURATION, 12_345, "12.3 us"),
        (Kind.DURATION, 300_000_000, "300.0 ms"),
        (Kind.DURATION, 15_200_000_000, "15.2 s"),
        (Kind.DURATION, 59_999_999_999, "59.9 s"),
        (Kind.DURATION, 131_000_000_000, "2 min 11 s"),
        (Kind.DURATION, 11_520_000_000_000, "3 h 12 min"),
        (Kind.DURATION, 356_400_000_000_000, "4 d 3 h"),
        (Kind.DURATION, -1_500_000_000, "-1.5 s"),
        (Kind.TEXT, True, "yes"),
        (Kind.TEXT, False, "no"),
        (Kind.SENSITIVE, "Xorg\x1b[2J", "Xorg\\x1b[2J"),
        (Kind.BYTES, Absent("page\n is gone"), "? (page\\x0a is gone)"),
    ],
)
def test_value_text(kind: Kind, value: Any, text: str) -> None:
    assert value_text(kind, value) == text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("kworker/0:1H", "kworker/0:1H"),
        ("Grüße", "Grüße"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("\x7f\x80\x9b31m", "\\x7f\\x80\\x9b31m"),
        ("a\r\n\tb", "a\\x0d\\x0a\\x09b"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
        ("\u2028\u2029\u2066\u200b\ufeff", "\\u2028\\u2029\\u2066\\u200b\\ufeff"),
        ("\U000e0041", "\\U000e0041"),
        (b"\xff\xfe".decode("utf-8", "surrogateescape"), "\\xff\\xfe"),
        ("\ud800", "\\ud800"),
    ],
)
def test_escape(text: str, escaped: str) -> None:
    assert escape(text) == escaped


@given(st.text(alphabet=st.characters(codec=None)))
def test_escaped_text_is_printable_and_can_be_encoded(text: str) -> None:
    escaped = escape(text)
    assert escaped.isprintable()
    escaped.encode()
    assert escape(escaped) == escaped


@given(st.integers(min_value=0, max_value=1 << 64))
def test_sizes_and_durations_are_short(value: int) -> None:
    assert len(value_text(Kind.BYTES, value)) <= 10
    assert len(value_text(Kind.DURATION, value)) <= 13


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("wait_ns", Kind.DURATION, "wait"),
        ("size_bytes", Kind.BYTES, "size"),
        ("size_bytes", Kind.NUMBER, "size bytes"),
        ("kernel_release", Kind.TEXT, "kernel release"),
    ],
)
def test_label(name: str, kind: Kind, text: str) -> None:
    assert label(name, kind) == text


def test_message() -> None:
    assert message_text(leak()) == (
        "5,107 references of Xorg to 468.8 KiB at 0xffff888000001000, 0xffff888000001060"
        " have no holder"
    )
    assert [item.name for item in evidence_lines(leak())] == ["seqno"]


def test_a_message_can_have_braces() -> None:
    assert message_text(leak(message="struct {{ {references} }}")) == "struct { 5,107 }"


@pytest.mark.parametrize(
    ("ref", "text"),
    [
        (Ref("task", "Xorg", pid=412), "task Xorg, PID 412"),
        (Ref("struct dma_fence", "", address=0x10), "struct dma_fence at 0x10"),
        (Ref("task", Absent("excluded page"), pid=0), "task ? (excluded page), PID 0"),
    ],
)
def test_ref_text(ref: Ref, text: str) -> None:
    assert ref_text(ref) == text


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (
            Frame("__schedule", None, 0x2F1, 0x7A0, "kernel/sched/core.c", 4567, False),
            "__schedule+0x2f1/0x7a0 (kernel/sched/core.c:4567)",
        ),
        (
            Frame("context_switch", None, None, None, "kernel/sched/core.c", 3600, True),
            "context_switch (kernel/sched/core.c:3600) (inlined)",
        ),
        (
            Frame("queue_cmd", "virtio_gpu", 0x10, 0x20, "a.c", None, False),
            "queue_cmd+0x10/0x20 [virtio_gpu] (a.c)",
        ),
        (Frame("0xffffffff81000000", None, None, None, None, None, False), "0xffffffff81000000"),
        (Frame("f", None, 0x10, None, None, None, False), "f+0x10"),
    ],
)
def test_frame_text(frame: Frame, text: str) -> None:
    assert frame_text(frame) == text


def test_frames_are_numbered_as_drgn_does() -> None:
    numbers = [line.split(" ")[0] for line in stack_lines(STACK.frames * 4)]
    assert numbers == [f"#{i}" for i in range(12)]
    assert {
        len(line) - len(line.split(" ", 1)[1].lstrip()) for line in stack_lines(STACK.frames * 4)
    } == {4}


@pytest.mark.parametrize(
    ("gap", "text"),
    [
        (Gap("task", "excluded", 5107, True, ()), "5,107 tasks: excluded"),
        (Gap("task", "excluded", 1, True, (0x10,)), "1 task: excluded (at 0x10)"),
        (Gap("task", "excluded", 3, True, (1, 2)), "3 tasks: excluded (at 0x1, 0x2, ...)"),
        (Gap("list of tasks", "cut off", 2, True, ()), "2 lists of tasks: cut off"),
        (Gap("CPU's registers", "absent", 2, True, ()), "2 CPU's registers: absent"),
        (Gap("page", "it is excluded", 1, True, ()), "1 page: it is excluded"),
        (Gap("page", "it is excluded", 2, True, ()), "2 pages: they are excluded"),
        (Gap("pointer of a holder", "its end", 3, True, ()), "3 pointers of a holder: their end"),
    ],
)
def test_gap_text(gap: Gap, text: str) -> None:
    assert gap_text(gap) == text


def test_a_name_that_comes_many_times_is_written_once() -> None:
    comms = ("sshd", "sshd", "sshd", "cron", "cron", "sshd")
    assert value_text(Kind.SENSITIVE, comms) == "sshd (3 times), cron, cron, sshd"
    assert value_text(Kind.PID, (7, 7, 7)) == "7, 7, 7"
