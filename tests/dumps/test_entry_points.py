# SPDX-License-Identifier: LGPL-2.1-or-later
"""The same findings from the command line, from drgn scripts and from inside drgn."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, List, Sequence

import jsonschema
import pytest

from tests.dumps.conftest import ShippedDump
from vmcore_tools.runner import find_analyses

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def symbols(dump: ShippedDump) -> List[str]:
    return [part for path in dump.files.symbols for part in ("-s", str(path))]


def run(command: Sequence[str], expected: int) -> str:
    process = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False
    )
    assert process.returncode == expected, process.stderr
    return process.stdout


def drgn(dump: ShippedDump, *arguments: str, expected: int) -> str:
    base = [str(BIN / "drgn"), "-q", "--no-default-symbols", "-c", str(dump.files.vmcore)]
    return run([*base, *symbols(dump), *arguments], expected)


@pytest.fixture(scope="module")
def triage(demo_dump: ShippedDump) -> Any:
    command = [str(BIN / "vmcore-tools"), "triage", "-c", str(demo_dump.files.vmcore)]
    return json.loads(run([*command, *symbols(demo_dump), "--format", "json"], 1))


def test_the_json_report_keeps_the_published_schema(triage: Any) -> None:
    schema = ROOT / "vmcore_tools" / "report" / "schema-v1.json"
    jsonschema.validate(triage, json.loads(schema.read_text()))


def by_rule(report: Any, rule: str) -> Any:
    return [finding for finding in report["findings"] if finding["rule"] == rule]


@pytest.mark.parametrize(
    ("script", "rule"), [("dma_fences.py", "VT201"), ("hung_tasks.py", "VT301")]
)
def test_a_script_in_drgn_finds_what_triage_finds(
    demo_dump: ShippedDump, triage: Any, script: str, rule: str
) -> None:
    output = drgn(demo_dump, f"drgn_scripts/{script}", "--format", "json", expected=1)
    assert by_rule(json.loads(output), rule) == by_rule(triage, rule) != []


def test_the_command_in_drgn_finds_what_triage_finds(
    demo_dump: ShippedDump, triage: Any, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    code = (
        "from drgn.commands import run_command; "
        f"report = run_command(prog, 'vmcore triage --format json > {path}'); "
        "print(report.exit_code(), [f.rule.id for f in report.findings])"
    )
    output = drgn(demo_dump, "-e", code, expected=0)
    assert output == "1 ['VT201', 'VT311', 'VT301']\n"
    assert json.loads(path.read_text())["findings"] == triage["findings"]


def test_the_demo_option_opens_the_same_dump(triage: Any) -> None:
    output = run([str(BIN / "vmcore-tools"), "triage", "--demo", "--format", "json"], 1)
    assert json.loads(output)["findings"] == triage["findings"]


def test_the_same_dump_gives_the_same_bytes(demo_dump: ShippedDump) -> None:
    command = [str(BIN / "vmcore-tools"), "triage", "--demo"]
    assert run(command, 1) == run(command, 1)


def test_the_example_of_a_library(
    demo_dump: ShippedDump, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of README: it finds what triage does."""
    text = (ROOT / "README.md").read_text()
    (example,) = re.findall(r"^<!-- library -->\n```python\n(.*?)^```$", text, re.M | re.S)
    vmlinux = repr([str(path) for path in demo_dump.files.symbols])
    example = example.replace('"vmcore"', repr(str(demo_dump.files.vmcore)))
    exec(example.replace('["vmlinux"]', vmlinux), {})
    found = [line.split() for line in capsys.readouterr().out.splitlines()]
    asked_for = {analysis.name for analysis in find_analyses() if not analysis.in_triage}
    others = {
        f.signature for a in demo_dump.report.analyses if a.name in asked_for for f in a.findings
    }
    assert found == [
        *(
            [f.rule.id, f.confidence.name, f.signature]
            for f in demo_dump.report.findings
            if f.signature not in others
        ),
        ["complete:", "True"],
    ]
    assert len(found) >= 4
