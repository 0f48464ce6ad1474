# SPDX-License-Identifier: LGPL-2.1-or-later
"""The known issues: the files, what looks like them, and how that is shown."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import jsonschema
import pytest

from tests.sample_report import full_report
from vmcore_tools import knowledge as knowledge_module
from vmcore_tools.cli import main
from vmcore_tools.knowledge import (
    KnowledgeError,
    knowledge,
    read_entries,
    with_known_issues,
)
from vmcore_tools.model import (
    HAS_THE_FIX,
    Confidence,
    Finding,
    KernelCommit,
    KnownIssue,
    Ref,
    Report,
    Rule,
    Severity,
)
from vmcore_tools.report import json as json_report
from vmcore_tools.report import markdown, table
from vmcore_tools.report.format import known_issue_facts
from vmcore_tools.runner import find_analyses

FILE = Path(knowledge_module.__file__).parent / "knowledge.json"
ISSUES: List[Dict[str, Any]] = json.loads(FILE.read_bytes())["issues"]

VT201 = Rule("VT201", "leaked-dma-fence", Severity.ERROR, "leaked", "look")
VT202 = Rule("VT202", "other", Severity.ERROR, "other", "look")
EXECBUFFER = ("struct virtio_gpu_fence", "virtio_gpu_execbuffer_ioctl")


def finding(*key: str, rule: Rule = VT201, clues: Optional[Tuple[str, ...]] = ()) -> Finding:
    return Finding(rule, Confidence.PROVEN, "leaked.", Ref("struct x", ""), (), key, clues=clues)


def ids(of: Finding, release: str = "5.4.0") -> List[str]:
    found = with_known_issues(of, release, knowledge().entries)
    return [issue.id for issue in found.known_issues]


# The file.


def test_every_rule_of_the_file_exists() -> None:
    rules = {rule.id for analysis in find_analyses() for rule in analysis.rules}
    assert {issue["rule"] for issue in ISSUES} <= rules


def test_the_file_is_read_whole() -> None:
    assert [entry.issue.id for entry in knowledge().entries] == [issue["id"] for issue in ISSUES]
    assert not knowledge().unloadable


def test_no_key_fits_all_findings_of_a_rule() -> None:
    for entry in knowledge().entries:
        assert all(len(key) >= 2 for key in entry.keys), entry.issue.id


def edited(**members: Any) -> bytes:
    issue = copy.deepcopy(ISSUES[0])
    issue.update(members)
    return json.dumps({"issues": [issue]}).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"issues": {}}',
        b'{"issues": [1]}',
        b'{"issues": [], "more": 1}',
        json.dumps({"issues": [ISSUES[0], ISSUES[0]]}).encode(),
        edited(id="Not An ID"),
        edited(title=""),
        edited(rule="VT2"),
        edited(keys=[]),
        edited(keys=["struct virtio_gpu_fence"]),
        edited(keys=[[]]),
        edited(keys=[["struct virtio_gpu_fence"]]),
        edited(keys=[[[]]]),
        edited(keys=[[[1]]]),
        edited(more=1),
        edited(fixed=[{"commit": "8b6ec99", "subject": "s", "release": "v5.9"}]),
        edited(fixed=[{"commit": "8b6ec999b198", "subject": "s", "release": "5.9"}]),
        edited(fixed=[{"commit": "8b6ec999b198", "subject": "s"}]),
        edited(references=["javascript:alert(1)"]),
        edited(references=[1]),
    ],
)
def test_a_slip_in_a_file_is_an_error(text: bytes) -> None:
    with pytest.raises(KnowledgeError):
        read_entries(text)


def test_an_issue_with_less_than_all_members_is_an_error() -> None:
    for name in ISSUES[0]:
        issue = {key: value for key, value in ISSUES[0].items() if key != name}
        with pytest.raises(KnowledgeError):
            read_entries(json.dumps({"issues": [issue]}).encode())


# What looks like an issue.


def test_a_finding_looks_like_the_issue_of_its_key() -> None:
    assert ids(finding(*EXECBUFFER)) == ["virtio-gpu-execbuffer-fence"]
    assert ids(finding("struct virtio_gpu_fence", "virtio_gpu_cursor_prepare_fb")) == [
        "virtio-gpu-plane-fence"
    ]


@pytest.mark.parametrize(
    "key",
    [
        (),
        ("struct virtio_gpu_fence",),
        ("struct virtio_gpu_fence", "virtio_gpu_resource_create_ioctl"),
        ("struct dma_fence", "virtio_gpu_execbuffer_ioctl"),
        ("virtio_gpu_execbuffer_ioctl", "struct virtio_gpu_fence"),
    ],
)
def test_another_key_looks_like_none(key: Sequence[str]) -> None:
    assert ids(finding(*key)) == []


def test_the_clues_are_compared_behind_the_signature_key() -> None:
    fence, function = EXECBUFFER
    assert ids(finding(fence, clues=(function,))) == ["virtio-gpu-execbuffer-fence"]
    assert ids(finding(fence, clues=("virtio_gpu_resource_create_ioctl",))) == []


@pytest.mark.parametrize(
    ("release", "may_be"),
    [
        ("5.4.0", ["virtio-gpu-execbuffer-fence", "virtio-gpu-plane-fence"]),
        ("6.1.0-50-amd64", ["virtio-gpu-plane-fence"]),
        ("6.14.0", []),
        ("mainline", ["virtio-gpu-execbuffer-fence", "virtio-gpu-plane-fence"]),
    ],
)
def test_without_tracks_it_may_be_what_the_release_has(release: str, may_be: List[str]) -> None:
    no_tracks = finding("struct virtio_gpu_fence", clues=None)
    found = with_known_issues(no_tracks, release, knowledge().entries).known_issues
    assert [issue.id for issue in found] == may_be
    assert all("slub_debug=U" in str(issue.missing) for issue in found)
    assert ids(finding("struct dma_fence", clues=None)) == []


def test_another_rule_looks_like_none() -> None:
    assert ids(finding(*EXECBUFFER, rule=VT202)) == []


@pytest.mark.parametrize(
    ("release", "begins"),
    [
        ("4.19.90-arm64-desktop", "older than the issue"),
        ("4.20.17", "older than the issue"),
        ("5.0.0", "has the issue"),
        ("5.8.18", "has the issue"),
        ("5.9.1", "has the fix"),
        ("5.10.262-vmlab", "has the fix"),
        ("6.1.0-50-amd64", "has the fix"),
    ],
)
def test_the_release_is_told_and_decides_nothing(release: str, begins: str) -> None:
    (issue,) = with_known_issues(finding(*EXECBUFFER), release, knowledge().entries).known_issues
    assert issue.this_kernel is not None
    assert issue.this_kernel.startswith(begins)


def test_without_a_release_nothing_is_said_of_it() -> None:
    for release in (None, "", "mainline"):
        found = with_known_issues(finding(*EXECBUFFER), release, knowledge().entries)
        assert [issue.this_kernel for issue in found.known_issues] == [None]


# Other packages' files.


class Point:
    """An entry point that loads something."""

    name = "issues"
    value = "package:ISSUES"

    def __init__(self, loaded: Any) -> None:
        self._loaded = loaded

    def load(self) -> Any:
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


@pytest.fixture
def entry_point(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def install(loaded: Any) -> None:
        points = (Point(loaded),)
        monkeypatch.setattr(knowledge_module, "_entry_points", lambda: points)
        knowledge.cache_clear()

    yield install
    monkeypatch.undo()
    knowledge.cache_clear()


def test_another_package_adds_issues(entry_point: Any, tmp_path: Path) -> None:
    path = tmp_path / "issues.json"
    keys = [[["struct virtio_gpu_fence"], ["vendor_ioctl"]]]
    path.write_bytes(edited(id="vendor-fence", keys=keys))
    entry_point(path)
    assert ids(finding("struct virtio_gpu_fence", "vendor_ioctl")) == ["vendor-fence"]
    assert ids(finding(*EXECBUFFER)) == ["virtio-gpu-execbuffer-fence"]


@pytest.mark.parametrize("kind", ["raises", "no path", "no file", "damaged", "same ID"])
def test_a_file_that_cannot_be_loaded_is_reported(
    entry_point: Any, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "issues.json"
    if kind == "damaged":
        path.write_text("{}")
    if kind == "same ID":
        path.write_bytes(edited())
    loaded: Dict[str, Any] = {"raises": ImportError("no module"), "no path": 1}
    entry_point(loaded.get(kind, path))
    assert [value for value, _ in knowledge().unloadable] == ["package:ISSUES"]
    assert "package:ISSUES" in [analysis.name for analysis in find_analyses()]
    assert len(knowledge().entries) == len(ISSUES)


# How it is shown.

ISSUE = KnownIssue(
    id="an-issue",
    title="a_function() does not put",
    explanation="It is so.",
    introduced=(KernelCommit("0123456789ab", "bring it", "v5.0"),),
    fixed=(KernelCommit("ba9876543210", "fix it", "v5.9"),),
    references=("https://example.org/1",),
    this_kernel="has the issue",
)


@pytest.fixture
def report() -> Report:
    """Its first finding looks like an issue."""
    whole = full_report()
    first, *others = whole.analyses
    (leak,) = first.findings
    leak = dataclasses.replace(leak, known_issues=(ISSUE,))
    changed = dataclasses.replace(first, findings=(leak,))
    return dataclasses.replace(whole, analyses=(changed, *others))


def test_json_has_the_whole_issue(report: Report) -> None:
    document = json.loads(json_report.render(report))
    schema = json.loads((FILE.parent / "report" / "schema-v1.json").read_text(encoding="utf-8"))
    jsonschema.validate(document, schema)
    (shown,) = [f["known_issues"] for f in document["findings"] if f["known_issues"]]
    assert shown == [
        {
            "id": "an-issue",
            "title": "a_function() does not put",
            "explanation": "It is so.",
            "introduced": [{"commit": "0123456789ab", "subject": "bring it", "release": "v5.0"}],
            "fixed": [{"commit": "ba9876543210", "subject": "fix it", "release": "v5.9"}],
            "references": ["https://example.org/1"],
            "this_kernel": "has the issue",
            "missing": None,
        }
    ]


def test_text_and_markdown_say_that_it_looks_like_it(report: Report) -> None:
    for text in (table.render(report), markdown.render(report)):
        plain = " ".join(text.replace("\\", "").split())
        assert "looks like the known issue: a_function() does not put (an-issue)" in plain
        assert 'brought by: 0123456789ab ("bring it") in v5.0' in plain
        assert 'fixed by: ba9876543210 ("fix it") in v5.9' in plain
        assert "this kernel: has the issue" in plain
        assert "(an-issue), fixed in" not in plain


def test_the_first_line_says_that_the_kernel_has_the_fix() -> None:
    issue = dataclasses.replace(ISSUE, this_kernel=HAS_THE_FIX)
    assert next(known_issue_facts(issue)) == (
        "looks like the known issue",
        "a_function() does not put (an-issue), fixed in v5.9, which this kernel has",
    )


def test_text_says_what_is_missing(report: Report) -> None:
    first, *others = report.analyses
    (leak,) = first.findings
    issue = dataclasses.replace(ISSUE, missing="who allocates")
    changed = dataclasses.replace(
        first, findings=(dataclasses.replace(leak, known_issues=(issue,)),)
    )
    made = dataclasses.replace(report, analyses=(changed, *others))
    plain = " ".join(table.render(made).split())
    assert "may be the known issue: a_function() does not put (an-issue)" in plain
    assert "not known: who allocates" in plain


def test_explain_has_issues_and_their_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "VT201"]) == 0
    assert "virtio-gpu-execbuffer-fence" in capsys.readouterr().out
    assert main(["explain", "virtio-gpu-execbuffer-fence"]) == 0
    page = capsys.readouterr().out
    assert "8b6ec999b198" in page
    assert "virtio_gpu_execbuffer_ioctl" in page
