# SPDX-License-Identifier: LGPL-2.1-or-later
"""The comparison of a shipped dump with an earlier report of the same guest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, List

import pytest

from tests.dumps.conftest import ShippedDump
from vmcore_tools.cli import main


def compare(dump: ShippedDump, before: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    symbols = [part for path in dump.files.symbols for part in ("-s", str(path))]
    command = ["diff", str(before), str(dump.files.vmcore), *symbols, "--format", "json"]
    code = main(command)
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def saved(demo_dump: ShippedDump, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole report of the dump."""
    path = tmp_path_factory.mktemp("saved") / "report.json"
    symbols = [part for path in demo_dump.files.symbols for part in ("-s", str(path))]
    command = ["triage", "-c", str(demo_dump.files.vmcore), *symbols, "--only", "all"]
    assert main([*command, "--format", "json", "--limit", "0", "-o", str(path)]) == 1
    return path


def test_nothing_grows_from_a_dump_to_itself(
    demo_dump: ShippedDump, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, made = compare(demo_dump, saved, capsys)
    assert [table["total"] for table in made["tables"]["diff"].values()] == [0, 0, 0, 0, 0]
    assert (code, made["findings"], made["coverage"]["gaps"]) == (0, [], [])


def test_a_leak_that_went_on_is_named_first(
    demo_dump: ShippedDump, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report before is that of the dump, less half of what the guest says it leaked."""
    leak = demo_dump.truth["leak"]
    before = json.loads(saved.read_text())

    def lessen(table: Any, number: str, size: str, **wanted: str) -> None:
        row = next(r for r in table["rows"] if all(r[k] == v for k, v in wanted.items()))
        row[size] -= row[size] // row[number] * (leak["objects"] // 2)
        row[number] -= leak["objects"] // 2

    objects = before["tables"]["kmalloc-objects"]
    fence = "struct virtio_gpu_fence"
    cache = leak["cache"]
    lessen(before["tables"]["slabs"]["Slabs"], "allocated", "allocated_bytes", cache=cache)
    lessen(objects["ObjectsByType"], "objects", "size_bytes", cache=cache, type=fence)
    stack = next(r["stack"] for r in objects["ObjectsByStack"]["rows"] if r["cache"] == cache)
    lessen(objects["ObjectsByStack"], "objects", "size_bytes", cache=cache, stack=stack)
    (finding,) = [f for f in before["findings"] if f["rule"] == "VT201"]
    finding["evidence"]["references_leaked"] -= leak["objects"] // 2
    path = tmp_path / "before.json"
    path.write_text(json.dumps(before))

    code, made = compare(demo_dump, path, capsys)
    tables = made["tables"]["diff"]

    def first(name: str, *keys: str) -> List[Any]:
        return [tables[name]["rows"][0][key] for key in keys]

    grown = leak["objects"] // 2
    assert first("CacheGrowth", "cache", "grown_objects") == [cache, grown]
    assert first("TypeGrowth", "type", "grown_objects") == [fence, grown]
    assert first("StackGrowth", "stack", "grown_objects") == [stack, grown]
    assert stack in made["stacks"]
    assert first("FindingChange", "change", "rule", "after") == [
        "grown",
        "VT201",
        leak["references_leaked"],
    ]
    assert code == 1
    assert [f["signature"] for f in made["findings"]] == [finding["signature"]]
