# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reports made by hand, for the tests of the renderers."""

from __future__ import annotations

import dataclasses
from typing import Any, Tuple

from vmcore_tools.model import (
    Absent,
    AnalysisResult,
    Confidence,
    Evidence,
    Finding,
    Frame,
    Gap,
    Kind,
    Maybe,
    Ref,
    Report,
    Rule,
    Severity,
    Stack,
    Status,
    Table,
    column,
)

LEAK = Rule(
    id="VT201",
    slug="leaked-dma-fence",
    severity=Severity.ERROR,
    summary="References to fences were never dropped.",
    remedy="Look for a missing dma_fence_put() in the allocating function.",
    page="How it is decided.",
)
HUNG = Rule(
    id="VT301",
    slug="hung-task",
    severity=Severity.WARNING,
    summary="A task waits for too long.",
    remedy="Look at what it waits for.",
)

STACK = Stack(
    (
        Frame("context_switch", None, None, None, "kernel/sched/core.c", 3600, True),
        Frame("__schedule", None, 0x2F1, 0x7A0, "kernel/sched/core.c", 4567, False),
        Frame("virtio_gpu_cmd", "virtio_gpu", 0x10, 0x20, None, None, False),
    ),
    note="the rest of the stack is not in the dump",
)


@dataclasses.dataclass(frozen=True)
class Fence:
    address: int = column(Kind.ADDRESS)
    driver: str = column(Kind.UNTRUSTED)
    size_bytes: Maybe[int] = column(Kind.BYTES)
    age_ns: Maybe[int] = column(Kind.DURATION)
    comm: Maybe[str] = column(Kind.SENSITIVE)
    stack: Maybe[str] = column(Kind.STACK)


def fence(**changes: Any) -> Fence:
    values: dict[str, Any] = {
        "address": 0xFFFF888000001000,
        "driver": "virtio_gpu",
        "size_bytes": 96,
        "age_ns": 131_000_000_000,
        "comm": "Xorg",
        "stack": STACK.id,
    }
    return Fence(**{**values, **changes})


def leak(**changes: Any) -> Finding:
    values: dict[str, Any] = {
        "rule": LEAK,
        "confidence": Confidence.LIKELY,
        "message": "{references} references of {comm} to {size_bytes} at {first} have no holder",
        "subject": Ref("slab cache", "kmalloc-96", address=0xFFFF888000002000),
        "evidence": (
            Evidence("references", Kind.COUNT, 5107),
            Evidence("comm", Kind.SENSITIVE, "Xorg"),
            Evidence("size_bytes", Kind.BYTES, 480000),
            Evidence("first", Kind.ADDRESS, (0xFFFF888000001000, 0xFFFF888000001060)),
            Evidence("seqno", Kind.NUMBER, Absent("page 0x12345 is not in the dump")),
        ),
        "signature_key": ("leaked", "virtio_gpu"),
        "related": (
            Ref("task", "Xorg", address=0xFFFF888000003000, pid=412, name_kind=Kind.SENSITIVE),
        ),
        "stacks": (STACK.id,),
        "unread": ("the vmalloc area",),
    }
    return Finding(**{**values, **changes})


def hung(**changes: Any) -> Finding:
    values: dict[str, Any] = {
        "rule": HUNG,
        "confidence": Confidence.PROVEN,
        "message": "{comm} waits for {wait_ns}",
        "subject": Ref("task", "Xorg", pid=412, name_kind=Kind.SENSITIVE),
        "evidence": (
            Evidence("comm", Kind.SENSITIVE, "Xorg"),
            Evidence("wait_ns", Kind.DURATION, 131_000_000_000),
        ),
        "signature_key": ("hung", "flush_work"),
        "stacks": (STACK.id,),
    }
    return Finding(**{**values, **changes})


def result(name: str = "dma-fences", **changes: Any) -> AnalysisResult:
    values: dict[str, Any] = {
        "name": name,
        "status": Status.OK,
        "reason": None,
        "findings": (),
        "tables": (),
        "gaps": (),
        "seconds": 1.23456,
    }
    return AnalysisResult(**{**values, **changes})


def report(*analyses: AnalysisResult, **changes: Any) -> Report:
    values: dict[str, Any] = {
        "tool_version": "0.1.0",
        "target": (
            Evidence("file", Kind.SENSITIVE, "vmcore-of-host7"),
            Evidence("kernel_release", Kind.UNTRUSTED, "5.10.262"),
            Evidence("truncated", Kind.TEXT, None),
            Evidence("ram_bytes", Kind.BYTES, 1 << 30),
        ),
        "analyses": analyses,
        "stacks": {STACK.id: STACK},
    }
    return Report(**{**values, **changes})


def full_report() -> Report:
    """A report with something in every place."""
    rows: Tuple[Fence, ...] = (
        fence(),
        fence(
            address=0xFFFF888000001060,
            size_bytes=Absent("excluded page"),
            age_ns=None,
            comm=Absent("the task Xorg is gone"),
            stack=Absent("no track"),
        ),
    )
    return report(
        result(
            status=Status.PARTIAL,
            findings=(leak(),),
            tables=(Table(Fence, rows, 5107),),
            gaps=(
                Gap("slab pages", "corrupt freelist", 9, True, (0xFFFF888000004000,)),
                Gap("user pages", "excluded by the dump level", 77, False, ()),
            ),
        ),
        result("hung-tasks", findings=(hung(),)),
        result("slab", status=Status.SKIPPED, reason="struct page not found"),
        result("gem", status=Status.NOT_APPLICABLE, reason="no struct drm_device"),
        result("broken", status=Status.FAILED, reason="KeyError: 'Xorg'"),
    )
