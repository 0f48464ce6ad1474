# SPDX-License-Identifier: LGPL-2.1-or-later
"""What changed between two reports."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import jsonschema
import pytest

from tests.sample_report import LEAK, STACK, hung, leak, report, result
from vmcore_tools.cli import main
from vmcore_tools.diff import _GROWING, diff, read_report
from vmcore_tools.errors import TargetError
from vmcore_tools.model import (
    Evidence,
    Finding,
    Kind,
    Maybe,
    Severity,
    Status,
    Table,
    column,
    columns,
)
from vmcore_tools.report import json as json_report
from vmcore_tools.report import render
from vmcore_tools.runner import find_analyses


@dataclasses.dataclass(frozen=True)
class Slabs:
    cache: str = column(Kind.UNTRUSTED)
    allocated: int = column(Kind.COUNT)
    allocated_bytes: int = column(Kind.BYTES)


@dataclasses.dataclass(frozen=True)
class ObjectsByType:
    cache: str = column(Kind.UNTRUSTED)
    type: str = column(Kind.TEXT)
    objects: int = column(Kind.COUNT)
    size_bytes: int = column(Kind.BYTES)


@dataclasses.dataclass(frozen=True)
class ObjectsByStack:
    cache: str = column(Kind.UNTRUSTED)
    allocated_by: str = column(Kind.TEXT)
    objects: int = column(Kind.COUNT)
    size_bytes: int = column(Kind.BYTES)
    stack: Maybe[str] = column(Kind.STACK)


@dataclasses.dataclass(frozen=True)
class MemoryUse:
    use: str = column(Kind.TEXT)
    pages: int = column(Kind.COUNT)
    size_bytes: int = column(Kind.BYTES)


def table(rows: Sequence[Any], row_type: type, left_out: int = 0) -> Table:
    return Table(row_type, tuple(rows), len(rows) + left_out)


def document(
    slabs: Sequence[Tuple[str, int, int]] = (),
    types: Sequence[Tuple[str, str, int, int]] = (),
    stacks: Sequence[Tuple[str, str, int, int, str]] = (),
    findings: Sequence[Finding] = (),
    left_out: int = 0,
    **changes: Any,
) -> Any:
    made = report(
        result("slabs", tables=(table([Slabs(*row) for row in slabs], Slabs, left_out),)),
        result(
            "kmalloc-objects",
            tables=(
                table([ObjectsByType(*row) for row in types], ObjectsByType),
                table([ObjectsByStack(*row) for row in stacks], ObjectsByStack),
            ),
        ),
        result("memory", tables=(table([MemoryUse("slab", 10, 40960)], MemoryUse),)),
        result("dma-fences", findings=tuple(findings), **changes),
    )
    return json.loads(render(made, "json"))


BEFORE: Dict[str, Any] = {
    "slabs": [("dentry", 100, 19200), ("kmalloc-96", 50, 8192), ("filp", 7, 4096)],
    "types": [("kmalloc-96", "struct virtio_gpu_fence", 20, 1920)],
    "stacks": [("kmalloc-96", "virtio_gpu_fence_alloc", 20, 1920, STACK.id)],
}
AFTER: Dict[str, Any] = {
    "slabs": [("dentry", 90, 15104), ("kmalloc-96", 5050, 487424), ("filp", 9, 4096)],
    "types": [
        ("kmalloc-96", "struct virtio_gpu_fence", 5020, 481920),
        ("kmalloc-96", "unknown", 3, 288),
    ],
    "stacks": [("kmalloc-96", "virtio_gpu_fence_alloc", 5020, 481920, STACK.id)],
}


def rows(made: Any, name: str) -> List[Tuple[Any, ...]]:
    (analysis,) = made.analyses
    (found,) = [t for t in analysis.tables if t.row_type.__name__ == name]
    return [dataclasses.astuple(row) for row in found.rows]


def leaked(references: int) -> Finding:
    return leak(
        message="{references_leaked} references leaked",
        evidence=(Evidence("references_leaked", Kind.COUNT, references),),
    )


def test_what_grew_most_comes_first() -> None:
    made = diff(document(**BEFORE), document(**AFTER), None)
    assert rows(made, "CacheGrowth") == [
        ("kmalloc-96", 479232, 5000, 50, 5050),
        ("filp", 0, 2, 7, 9),
        ("dentry", -4096, -10, 100, 90),
    ]
    assert rows(made, "TypeGrowth") == [
        ("kmalloc-96", "struct virtio_gpu_fence", 480000, 5000, 20, 5020),
        ("kmalloc-96", "unknown", 288, 3, 0, 3),
    ]
    assert rows(made, "StackGrowth") == [
        ("kmalloc-96", "virtio_gpu_fence_alloc", STACK.id, 480000, 5000, 20, 5020)
    ]
    assert made.stacks == {STACK.id: STACK}
    assert rows(made, "MemoryGrowth") == []
    assert (made.complete, made.exit_code()) == (True, 0)


def test_rows_of_one_type_are_added() -> None:
    before = document(types=[("kmalloc-96", "unknown", 1, 96)])
    after = document(
        types=[("kmalloc-96", "unknown", 1, 96), ("kmalloc-96", "unknown", 4, 384)],
    )
    assert rows(diff(before, after, None), "TypeGrowth") == [
        ("kmalloc-96", "unknown", 384, 4, 1, 5)
    ]


def test_the_text_names_the_growing_cache_type_and_stack_first() -> None:
    text = render(diff(document(**BEFORE), document(**AFTER), 20), "table")
    for heading, first in (
        ("diff: CacheGrowth, 3 rows", "kmalloc-96"),
        ("diff: TypeGrowth, 2 rows", "kmalloc-96  struct virtio_gpu_fence"),
        ("diff: StackGrowth, 1 row", f"kmalloc-96  virtio_gpu_fence_alloc  {STACK.id}"),
    ):
        lines = text[text.index(heading) :].splitlines()
        rule = next(n for n, line in enumerate(lines) if line.startswith("---"))
        assert lines[rule + 1].startswith(first)
    assert "virtio_gpu_cmd+0x10/0x20 [virtio_gpu]" in text


@pytest.mark.parametrize(
    ("before", "after", "change", "amounts", "code"),
    [
        ([], [leaked(5)], "new", (0, 5), 1),
        ([leaked(4)], [leaked(5)], "grown", (4, 5), 1),
        ([leaked(5)], [leaked(4)], "shrunk", (5, 4), 0),
        ([leaked(5)], [], "gone", (5, 0), 0),
    ],
)
def test_findings(
    before: List[Finding],
    after: List[Finding],
    change: str,
    amounts: Tuple[int, int],
    code: int,
) -> None:
    made = diff(document(findings=before), document(findings=after), None)
    signature = leaked(1).signature
    assert rows(made, "FindingChange") == [
        (change, "VT201", LEAK.slug, "error", signature, "references_leaked", *amounts)
    ]
    assert [finding.signature for finding in made.findings] == ([signature] if code else [])
    assert made.exit_code() == code


def test_a_grown_finding_says_by_how_much() -> None:
    made = diff(document(findings=[leaked(4)]), document(findings=[leaked(5)]), None)
    text = render(made, "table")
    assert (
        "ERROR VT201 leaked-dma-fence [likely]\n"
        "  grown (references leaked 4 -> 5): 5 references leaked\n"
    ) in text
    assert "what to do: Look for a missing dma_fence_put()" in text
    assert json.loads(render(made, "json"))["findings"][0]["signature"] == leaked(1).signature


def test_the_same_findings_are_no_change() -> None:
    both = document(findings=[leaked(5), hung()])
    made = diff(both, both, None)
    assert (made.findings, rows(made, "FindingChange"), made.exit_code()) == ((), [], 0)


def test_the_severity_decides_the_exit_code() -> None:
    made = diff(document(), document(findings=[hung()]), None)
    assert made.exit_code(Severity.ERROR) == 0
    assert made.exit_code(Severity.WARNING) == 1


def test_incomplete_reports_are_named() -> None:
    made = diff(document(), document(status=Status.FAILED, reason="KeyError"), None)
    assert made.exit_code() == 3
    (gap,) = made.analyses[0].gaps
    assert (gap.what, gap.reason) == (
        "analysis of the report after",
        "dma-fences: failed (KeyError)",
    )


def test_what_a_limit_cut_off_is_not_compared() -> None:
    before = document(slabs=[("dentry", 1, 4096)], left_out=5)
    after = document(slabs=[("dentry", 2, 8192), ("filp", 9, 4096)])
    made = diff(before, after, None)
    assert rows(made, "CacheGrowth") == [("dentry", 4096, 1, 1, 2)]
    (gap,) = made.analyses[0].gaps
    assert (gap.count, gap.what) == (5, "row")
    assert gap.reason == "the report before leaves it out of slabs Slabs; make it with --limit 0"
    assert made.exit_code() == 3


def test_types_of_a_cache_that_one_report_did_not_look_into_are_not_new() -> None:
    before = document(types=[("kmalloc-96", "unknown", 1, 96)])
    after = document(types=[("kmalloc-96", "unknown", 2, 192), ("kmalloc-8k", "unknown", 9, 73728)])
    made = diff(before, after, None)
    assert rows(made, "TypeGrowth") == [("kmalloc-96", "unknown", 96, 1, 1, 2)]
    (gap,) = made.analyses[0].gaps
    assert (gap.reason, gap.material) == (
        "only one of the reports has kmalloc-objects ObjectsByType of kmalloc-8k",
        False,
    )


def test_a_table_that_one_report_does_not_have() -> None:
    before = document(**BEFORE)
    del before["tables"]["slabs"]
    made = diff(before, document(**AFTER), None)
    assert rows(made, "CacheGrowth") == []
    assert [gap.reason for gap in made.analyses[0].gaps] == ["the report before has no slabs Slabs"]
    assert made.complete


def test_the_limit_caps_rows() -> None:
    made = diff(document(**BEFORE), document(**AFTER), 1)
    assert "diff: CacheGrowth, showing 1 of 3:" in render(made, "table")


def test_the_analyses_have_the_tables_and_columns_that_are_compared() -> None:
    analyses = {analysis.name: analysis for analysis in find_analyses()}
    for growing in _GROWING:
        tables = {t.__name__: dict(columns(t)) for t in analyses[growing.analysis].tables}
        kinds = tables[growing.table]
        assert set(growing.key) <= set(kinds)
        assert kinds[growing.number] is Kind.COUNT
        assert kinds[growing.size_bytes] is Kind.BYTES


# --- files and the command -----------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "begins like JSON, but is damaged"),
        (b"{}", "is JSON, but no report"),
        (b'{"schema_version": 99}', "is a report of another version"),
    ],
)
def test_other_json(data: bytes, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        read_report(data, "x.json")


def test_what_is_no_json() -> None:
    assert read_report(b"KDUMP   ", "vmcore") is None
    assert read_report(b"", "vmcore") is None


@pytest.mark.parametrize("part", ["tables", "findings", "coverage", "stacks", "target", "analyses"])
@pytest.mark.parametrize("wrong", [7, None, [1], {"slabs": 7}])
def test_damaged_reports(part: str, wrong: Any) -> None:
    damaged = document(**BEFORE)
    damaged[part] = wrong
    try:
        diff(damaged, document(**AFTER, findings=[leaked(1)]), None)
    except TargetError as error:
        assert "one of the reports is damaged" in str(error)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(json.dumps(document(**BEFORE)))
    after.write_text(json.dumps(document(**AFTER, findings=[leaked(5)])))
    assert main(["diff", str(before), str(after), "--format", "json"]) == 1
    made = json.loads(capsys.readouterr().out)
    assert made["tables"]["diff"]["CacheGrowth"]["rows"][0]["cache"] == "kmalloc-96"
    schema = json.loads((Path(json_report.__file__).parent / "schema-v1.json").read_text())
    jsonschema.validate(made, schema)
    assert main(["diff", str(before), str(before)]) == 0
    assert "\nNothing is new or has grown.\n" in capsys.readouterr().out
    assert main(["diff", str(after), str(after)]) == 0
    text = "\nNothing is new or has grown; 1 finding is in both: VT201.\n"
    assert text in capsys.readouterr().out
    assert main(["diff", str(before), str(after), "--fail-on", "critical"]) == 0


def test_what_is_in_both_is_said_beside_what_is_new() -> None:
    both = document(findings=[leaked(5)])
    made = diff(both, document(findings=[leaked(5), hung()]), None)
    assert made.in_both == ("VT201",)
    verdict = render(made, "markdown").partition("\n")[0]
    assert verdict == "**1 finding: 1 warning. 1 finding is in both: VT201.**"
    assert json.loads(render(made, "json"))["in_both"] == ["VT201"]
    # What shrank has not grown; what has grown is a finding of the comparison.
    assert diff(document(findings=[leaked(9)]), both, None).in_both == ("VT201",)
    assert diff(both, document(findings=[leaked(9)]), None).in_both == ()


def test_a_report_without_types_cannot_tell_which_grew() -> None:
    """A plain triage leaves them out: that they did not grow is not known."""
    plain = document(**BEFORE)
    plain["analyses"] = [a for a in plain["analyses"] if a["name"] != "kmalloc-objects"]
    del plain["tables"]["kmalloc-objects"]
    made = diff(plain, document(**BEFORE), None)
    assert (made.complete, made.exit_code()) == (False, 3)
    (analysis,) = made.analyses
    advice = "; make it with triage --only all --limit 0 --format json"
    assert [(gap.reason, gap.material) for gap in analysis.gaps] == [
        (f"the report before has no kmalloc-objects {name}{advice}", True)
        for name in ("ObjectsByStack", "ObjectsByType")
    ]
    # Nor does who asked for something else alone miss it.
    made = diff(plain, document(**BEFORE), None, {"slabs", "dma-fences"})
    assert (made.complete, made.exit_code()) == (True, 0)


def test_a_report_cannot_be_masked_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "before.json"
    path.write_text(json.dumps(document()))
    assert main(["diff", str(path), str(path), "--redact"]) == 2
    assert "is a report: make it with --redact instead" in capsys.readouterr().err


def test_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "a" in capsys.readouterr().err


def test_findings_of_an_analysis_that_did_not_run_before_are_not_new() -> None:
    before, after = document(), document(findings=[leaked(5)])
    before["analyses"] = [a for a in before["analyses"] if a["name"] != "dma-fences"]
    made = diff(before, after, None)
    assert rows(made, "FindingChange") == []
    assert [(gap.what, gap.count) for gap in made.analyses[0].gaps] == [
        ("finding of one report", 1)
    ]
    assert (made.complete, made.exit_code()) == (False, 3)


def test_findings_of_reports_that_do_not_say_their_analysis_are_compared() -> None:
    before, after = document(), document(findings=[leaked(5)])
    del after["findings"][0]["analysis"]
    assert [row[0] for row in rows(diff(before, after, None), "FindingChange")] == ["new"]
