# SPDX-License-Identifier: LGPL-2.1-or-later
"""The JSON report, and the schema that describes it."""

from __future__ import annotations

import copy
import dataclasses
import json
from importlib import resources
from typing import Any, Dict

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sample_report import STACK, fence, full_report, leak, report, result
from vmcore_tools.model import Absent, Evidence, Kind, Ref, Report, Status, Table
from vmcore_tools.report import render

SCHEMA: Dict[str, Any] = json.loads(
    resources.files("vmcore_tools.report").joinpath("schema-v1.json").read_text()
)


def strict(schema: Any) -> Any:
    """The schema, which then also refuses members that it does not describe."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        made.setdefault("additionalProperties", False)
    return made


def document(made: Report, **how: Any) -> Any:
    found = json.loads(render(made, "json", **how))
    jsonschema.Draft202012Validator(strict(copy.deepcopy(SCHEMA))).validate(found)
    return found


def test_the_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("redact", [False, True])
@pytest.mark.parametrize("timings", [False, True])
def test_a_full_report_is_valid(redact: bool, timings: bool) -> None:
    found = document(full_report(), redact=redact, timings=timings)
    assert [analysis.get("seconds") for analysis in found["analyses"]] == (
        [1.235 if timings else None] * 5
    )


def test_the_schema_refuses_what_is_wrong() -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for path, value in [
        (("schema_version",), 2),
        (("findings", 0, "rule"), "201"),
        (("findings", 0, "severity"), "bad"),
        (("findings", 0, "subject", "address"), 4096),
        (("findings", 0, "evidence", "references"), 1.5),
        (("analyses", 0, "status"), "fine"),
        (("coverage", "complete"), None),
        (("tables", "dma-fences", "Fence", "total"), "many"),
    ]:
        found = json.loads(render(full_report(), "json"))
        place = found
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        assert not validator.is_valid(found), path


def test_members_that_a_later_version_adds_are_allowed() -> None:
    found = json.loads(render(full_report(), "json"))
    found["graphs"] = {}
    found["findings"][0]["graph"] = "graph-1"
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(found)


def test_finding() -> None:
    found = document(full_report())["findings"][0]
    assert found == {
        "analysis": "dma-fences",
        "rule": "VT201",
        "slug": "leaked-dma-fence",
        "severity": "error",
        "confidence": "likely",
        "message": "5,107 references of Xorg to 468.8 KiB at 0xffff888000001000,"
        " 0xffff888000001060 have no holder",
        "subject": {
            "type": "slab cache",
            "name": "kmalloc-96",
            "address": "0xffff888000002000",
            "pid": None,
        },
        "evidence": {
            "references": 5107,
            "comm": "Xorg",
            "size_bytes": 480000,
            "first": ["0xffff888000001000", "0xffff888000001060"],
            "seqno": {"absent": "page 0x12345 is not in the dump"},
        },
        "related": [{"type": "task", "name": "Xorg", "address": "0xffff888000003000", "pid": 412}],
        "signature": "VT201-fb799c17fe4b",
        "remedy": "Look for a missing dma_fence_put() in the allocating function.",
        "stacks": [STACK.id],
        "unread": ["the vmalloc area"],
        "graph": None,
        "known_issues": [],
    }


def test_table() -> None:
    found = document(full_report())["tables"]
    assert list(found) == ["dma-fences"]
    table = found["dma-fences"]["Fence"]
    assert table["total"] == 5107
    assert table["columns"][0] == {"name": "address", "kind": "address"}
    assert table["rows"][1] == {
        "address": "0xffff888000001060",
        "driver": "virtio_gpu",
        "size_bytes": {"absent": "excluded page"},
        "age_ns": None,
        "comm": {"absent": "the task Xorg is gone"},
        "stack": {"absent": "no track"},
    }


def test_coverage() -> None:
    found = document(full_report())["coverage"]
    assert found["complete"] is False
    assert found["interrupted"] is False
    assert found["gaps"][0] == {
        "analysis": "dma-fences",
        "what": "slab pages",
        "reason": "corrupt freelist",
        "count": 9,
        "material": True,
        "addresses": ["0xffff888000004000"],
    }


def test_nothing_found_and_could_not_look_differ() -> None:
    clean = document(report(result()))
    blind = document(report(result(status=Status.SKIPPED, reason="no debug info")))
    assert clean["findings"] == blind["findings"] == []
    assert clean["coverage"]["complete"] is True
    assert blind["coverage"]["complete"] is False


def test_an_absent_name_is_valid() -> None:
    made = leak(subject=Ref("task", Absent("excluded page")))
    found = document(report(result(findings=(made,))))
    assert found["findings"][0]["subject"]["name"] == {"absent": "excluded page"}


def test_an_empty_table_is_there() -> None:
    found = document(report(result(tables=(Table(type(fence()), (), 0),))))
    assert found["tables"]["dma-fences"]["Fence"]["total"] == 0


def test_it_is_deterministic_and_ends_with_a_newline() -> None:
    text = render(full_report(), "json")
    shuffled = dataclasses.replace(full_report(), stacks={STACK.id: STACK})
    assert render(shuffled, "json") == text
    assert text.endswith("}\n")
    assert text.startswith('{\n  "schema_version": 1,\n')


@given(st.text(alphabet=st.characters(codec=None)))
def test_any_text_of_the_dump_is_kept_and_harmless(text: str) -> None:
    made = report(
        result(
            status=Status.FAILED,
            reason=text,
            findings=(leak(evidence=(Evidence("comm", Kind.SENSITIVE, text),), message="{comm}"),),
            tables=(Table(type(fence()), (fence(driver=text),), 1),),
        )
    )
    written = render(made, "json")
    assert all(c == "\n" or " " <= c <= "~" for c in written)
    found = document(made)
    assert found["findings"][0]["evidence"]["comm"] == text
    assert found["tables"]["dma-fences"]["Fence"]["rows"][0]["driver"] == text
