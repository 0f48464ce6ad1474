# SPDX-License-Identifier: LGPL-2.1-or-later
"""``%vmcore`` inside drgn."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest
from drgn import Program
from drgn.commands import (
    CommandArgumentError,
    CommandError,
    CommandNotFoundError,
    parse_shell_command,
    run_command,
)

from tests import fake_target
from tests.test_cli import ALL, LEAKS
from vmcore_tools import drgn_plugin, runner, target
from vmcore_tools.analysis import Analysis
from vmcore_tools.errors import TargetError
from vmcore_tools.model import Report
from vmcore_tools.target import Target

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def prog(monkeypatch: pytest.MonkeyPatch) -> Program:
    """A program without a kernel, which the command takes for one's."""
    made = fake_target.program()

    def from_program(found: Program) -> Target:
        assert found is made
        return fake_target.target(found)

    monkeypatch.setattr(target, "from_program", from_program)
    monkeypatch.setattr(runner, "find_analyses", lambda: ALL)
    return made


def command(prog: Program, line: str) -> Any:
    """Run the words of a command line, as drgn does once it has parsed it."""
    args = parse_shell_command(line).args
    return drgn_plugin._vmcore(prog, "vmcore", args, parser=ArgumentParser(), globals={})


def test_it_is_for_kernels_only() -> None:
    with pytest.raises(CommandNotFoundError):
        run_command(fake_target.program(), "vmcore list")


def test_triage_prints_and_returns_the_report(prog: Program, capsys: Capture) -> None:
    report = command(prog, "triage --only leaks,waits")
    assert isinstance(report, Report)
    assert [finding.rule.id for finding in report.findings] == ["VT201", "VT301"]
    assert "\n2 findings: 1 error, 1 warning.\n" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["one 1f00", "run one 1f00"])
def test_an_analysis_with_its_argument(prog: Program, line: str) -> None:
    (table,) = command(prog, line).analyses[0].tables
    assert [row.address for row in table.rows] == [0x1F00]
    with pytest.raises(CommandArgumentError):
        command(prog, line[:-4])


@pytest.mark.parametrize("line", ["leaks --rows 7", "run leaks --rows 7"])
def test_an_analysis_with_its_options(prog: Program, line: str, capsys: Capture) -> None:
    report = command(prog, f"{line} --format json --limit 2")
    assert report.analyses[0].tables[0].total == 7
    found = json.loads(capsys.readouterr().out)
    assert len(found["tables"]["leaks"]["Fence"]["rows"]) == 2


def test_an_analysis_named_as_a_command_is_run_by_name(
    prog: Program, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    named = Analysis("list", LEAKS.analyze, LEAKS.tables, LEAKS.rules, LEAKS.options)
    monkeypatch.setattr(runner, "find_analyses", lambda: (named,))
    assert command(prog, "list") is None
    assert command(prog, "run list").analyses[0].name == "list"


def test_list_explain_and_info(prog: Program, capsys: Capture) -> None:
    assert command(prog, "list") is None
    assert "leaks: The command line" in capsys.readouterr().out
    assert command(prog, "explain VT201") is None
    assert capsys.readouterr().out.startswith("VT201 leaked-dma-fence (error, found by leaks)\n")
    assert command(prog, "info") is None
    assert capsys.readouterr().out == "kernel release: 5.10.262\n"


def test_help_is_no_error(prog: Program, capsys: Capture) -> None:
    assert command(prog, "leaks --help") is None
    out = capsys.readouterr().out
    assert out.startswith("usage: vmcore leaks ")
    assert "--rows N" in out


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("", "vmcore: error: the following arguments are required: COMMAND"),
        ("leaks --rows x", "vmcore leaks: error: argument --rows: invalid int value: 'x'"),
        ("triage -c x", "vmcore: error: unrecognized arguments: -c x"),
    ],
)
def test_usage_errors_are_drgns(prog: Program, line: str, error: str, capsys: Capture) -> None:
    with pytest.raises(CommandArgumentError) as caught:
        command(prog, line)
    assert str(caught.value) == error
    assert capsys.readouterr() == ("", "")


def test_other_errors_are_one_line(prog: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError) as caught:
        command(prog, "explain VT999")
    assert str(caught.value) == "no rule or analysis 'VT999'; 'vmcore list' names them"

    def fail(found: Program) -> Target:
        raise TargetError("the dump cannot be read; copy it again")

    monkeypatch.setattr(target, "from_program", fail)
    with pytest.raises(CommandError) as caught:
        command(prog, "leaks")
    assert str(caught.value) == "the dump cannot be read; copy it again"


def test_output_file(prog: Program, tmp_path: Path, capsys: Capture) -> None:
    command(prog, f"leaks --format json -o {tmp_path}/report")
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "report").read_text())["analyses"][0]["name"] == "leaks"


def test_loading_it_is_quick() -> None:
    """drgn imports it at every start."""
    code = (
        "import sys, vmcore_tools.drgn_plugin;"
        "sys.exit(any(name in sys.modules for name in"
        " ('numpy', 'tabulate', 'vmcore_tools.cli', 'vmcore_tools.runner')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
