# SPDX-License-Identifier: LGPL-2.1-or-later
"""What --redact masks, and what it leaves."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
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
    Masking,
    Ref,
    Report,
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


def keyed(made: Report, **changes: Any) -> Report:
    return dataclasses.replace(made, masking=Masking(**{"key": b"of this boot", **changes}))


def mask(kind: str, value: str) -> str:
    """What stands for a value in reports of this boot, by what the module says of masks."""
    digest = hmac.new(b"of this boot", f"{kind}\0{value}".encode(), hashlib.sha256)
    return f"{kind}-{digest.hexdigest()[:10]}"


XORG = mask("sensitive", "Xorg")
FIRST, SECOND = mask("address", "ffff888000001000"), mask("address", "ffff888000001060")


def test_the_same_value_has_the_same_mask_everywhere() -> None:
    made = redact(keyed(full_report()))
    leaked, waits = made.findings
    evidence = {item.name: item.value for item in leaked.evidence}
    masked: Any = (leaked.subject.address, made.analyses[0].gaps[0].addresses)
    assert masked == (
        mask("address", "ffff888000002000"),
        (mask("address", "ffff888000004000"),),
    )
    assert made.target[0].value == mask("sensitive", "vmcore-of-host7")
    assert evidence["comm"] == XORG
    assert evidence["first"] == (FIRST, SECOND)
    assert leaked.subject.name == "kmalloc-96"
    assert leaked.related[0].name == XORG
    assert leaked.related[0].pid == 412
    assert waits.subject.name == XORG
    rows = made.analyses[0].tables[0].rows
    assert [row.address for row in rows] == [FIRST, SECOND]
    assert [row.comm for row in rows] == [XORG, Absent(f"the task {XORG} is gone")]


def test_masks_of_a_report_are_those_of_any_other_of_the_same_boot() -> None:
    """Also of one with other analyses, other rows, in another order."""
    rows = (fence(comm="other", address=1 << 40), fence())
    other = keyed(report(result("slab", tables=(Table(Fence, rows, 2),))))
    row = redact(other).analyses[0].tables[0].rows[1]
    assert (row.comm, row.address) == (XORG, FIRST)


def test_masks_of_another_boot_are_others() -> None:
    assert redact(keyed(full_report(), key=b"another")) != redact(keyed(full_report()))


def test_without_a_key_each_report_has_masks_of_its_own() -> None:
    one, other = redact(full_report()), redact(full_report())
    assert one.target[0].value != other.target[0].value
    assert one.findings[0].related[0].name == one.findings[1].subject.name


def test_no_two_values_have_one_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcore_tools.report.redact._DIGITS", 1)
    rows = tuple(fence(comm=f"task{n}", address=4096 * n) for n in range(1, 500))
    made = redact(report(result(tables=(Table(Fence, rows, 500),)))).analyses[0].tables[0].rows
    assert len({row.comm for row in made}) == len({row.address for row in made}) == len(rows)


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
    masking = changes.pop("names", ())
    return redact(keyed(report(result(**changes), target=()), names=masking)).analyses[0]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Xorg is gone", f"{XORG} is gone"),
        ("Xorgs and aXorg", "Xorgs and aXorg"),
        ("task Xorg:412", f"task {XORG}:412"),
        ("fault at 0xffff888000001000", f"fault at {FIRST}"),
        ("fault at FFFF888000001000", f"fault at {FIRST}"),
        ("of_ffff888000001000_", f"of_{FIRST}_"),
        ("fault at 0xdead0000", f"fault at {mask('address', 'dead0000')}"),
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
    masks = [mask("sensitive", name) for name in ("sensitive", "1", "Xorg (old)")]
    assert made.reason == " ".join(masks) + "!"


def test_exceptions_lose_their_message() -> None:
    assert one(status=Status.FAILED, reason="KeyError: '/home/x'").reason == "KeyError"
    assert one(status=Status.FAILED, reason="interrupted").reason == "interrupted"


def test_frames_without_a_symbol() -> None:
    frame = Frame("0xffff888000001000", None, None, None, None, None, False)
    stack = Stack((*STACK.frames, frame), note="no frame at 0xffff888000001000")
    made = redact(keyed(report(result(), stacks={stack.id: stack}))).stacks[stack.id]
    assert made.frames == (*STACK.frames, dataclasses.replace(frame, function=FIRST))
    assert made.note == f"no frame at {FIRST}"


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


def test_names_that_only_the_dump_tells() -> None:
    """Of tasks in no shown row, of the host, of the command line."""
    names = ("secret-job", "host7", "host7.example.org", "root=UUID=1-2", "(job-pam)")
    text = "secret-job on host7 (host7.example.org), root=UUID=1-2, of (job-pam)"
    made = one(
        names=names, gaps=(Gap(text, text, 1, True, ()),), status=Status.SKIPPED, reason=text
    )
    masks = [mask("sensitive", name) for name in names]
    masked = f"{masks[0]} on {masks[1]} ({masks[2]}), {masks[3]}, of {masks[4]}"
    assert made.gaps == (Gap(masked, masked, 1, True, ()),)
    assert made.reason == masked


def test_symbols_are_no_names() -> None:
    """A program can be called as a function is; a stack would be worth nothing without it."""
    made = redact(keyed(full_report(), names=("__schedule", "virtio_gpu")))
    assert made.stacks == full_report().stacks


def test_who_built_a_module() -> None:
    stack = Stack((dataclasses.replace(STACK.frames[0], file="/home/jdoe/home/x/mod.c"),))
    made = redact(keyed(report(result(), stacks={"stack-x": stack}))).stacks["stack-x"]
    assert made.frames[0].file == f"/home/{mask('sensitive', 'jdoe')}/home/x/mod.c"


def test_the_release_of_the_kernel_stays() -> None:
    target = (Evidence("kernel_release", Kind.UNTRUSTED, "5.10.262-host7"),)
    made = redact(keyed(report(result(), target=target), names=("host7",)))
    assert made.target == target


def test_what_is_no_address_stays() -> None:
    made = one(tables=(Table(Fence, (fence(address=0, size_bytes=0xFFFF888000001000),), 1),))
    row = made.tables[0].rows[0]
    assert (row.address, row.size_bytes) == (0, 0xFFFF888000001000)


@pytest.mark.parametrize("name", ["kworker/1:1", "kworker/u8:3", "ksoftirqd/0", "kswapd0"])
def test_threads_of_any_kernel_keep_their_names(name: str) -> None:
    made = one(tables=(Table(Fence, (fence(comm=name),), 1),), status=Status.SKIPPED, reason=name)
    assert made.tables[0].rows[0].comm == made.reason == name


@pytest.mark.parametrize("name", ["10.0.0.5-manager", "drbd_r_payroll", "kworker/R-payroll"])
def test_threads_that_work_for_somebody_do_not(name: str) -> None:
    made = one(tables=(Table(Fence, (fence(comm=name),), 1),))
    assert made.tables[0].rows[0].comm == mask("sensitive", name)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Xorg (412) handle 3", f"{XORG} (412) handle 3"),
        (
            "Xorg (412) fd 5, Xorg (7) mapping and 12 more",
            f"{XORG} (412) fd 5, {XORG} (7) mapping and 12 more",
        ),
        ("Xorg, ksmd, PID 7, which has ended", f"{XORG}, ksmd, PID 7, which has ended"),
        ("the kernel handle 3", "the kernel handle 3"),
        ("Xorg (412) says hello", mask("sensitive", "Xorg (412) says hello")),
        ("Xorg (412), secret (5)", mask("sensitive", "Xorg (412), secret (5)")),
    ],
)
def test_lists_of_processes(text: str, masked: str) -> None:
    made = one(tables=(Table(Fence, (fence(comm=text), fence()), 2),))
    assert made.tables[0].rows[0].comm == masked


@given(st.lists(st.text(min_size=1), min_size=1), st.text(), st.sampled_from(FORMATS))
def test_any_name_of_the_dump_is_masked(names: list[str], text: str, format: str) -> None:
    secrets = [f"secret{name}secret" for name in names]
    about = Evidence("x", Kind.UNTRUSTED, " ".join(secrets))
    made = report(
        result(
            findings=(leak(evidence=(about,), message="{x}", unread=(f"{text} {secrets[0]}",)),),
            gaps=tuple(Gap("task", f"({name})", 1, True, ()) for name in secrets),
        )
    )
    assert "secret" not in render(keyed(made, names=tuple(secrets)), format, redact=True)
