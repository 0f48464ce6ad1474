# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ctrl-C at any time: what is done is written whole, or one line is; and exit code 3."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Tuple

ROOT = Path(__file__).parent.parent
NOTHING = "vmcore-tools: error: interrupted before there was anything to report\n"

#: The command on a target without a kernel; each test has its own line before the last.
COMMAND = """
import os, signal, sys, time
def ctrl_c(*args):
    os.kill(os.getpid(), signal.SIGINT)
from tests import fake_target, test_cli
from vmcore_tools import cli, runner
from vmcore_tools.__main__ import main
cli.open_core = lambda *args: fake_target.target()
cli.find_analyses = lambda: test_cli.ALL
cli.find_own_analysis = lambda name: None
sys.argv = ['vmcore-tools', 'triage', '-c', 'x', '--only', 'leaks,waits', '--format', 'json']
{}
sys.exit(main())
"""


def run(script: str, **options: Any) -> Tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )
    return done.returncode, done.stdout, done.stderr


def statuses(out: str) -> Any:
    made = json.loads(out)
    return made["coverage"]["interrupted"], [a["status"] for a in made["analyses"]]


def test_undisturbed() -> None:
    code, out, err = run(COMMAND.format(""))
    assert (code, statuses(out), err) == (1, (False, ["ok", "ok"]), "")


def test_during_the_imports() -> None:
    script = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'numpy':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.argv = ['vmcore-tools', 'list']\n"
        "from vmcore_tools.__main__ import main\n"
        "sys.exit(main())\n"
    )
    assert run(script) == (3, "", NOTHING)


def test_while_the_target_is_opened() -> None:
    assert run(COMMAND.format("cli.open_core = ctrl_c")) == (3, "", NOTHING)


def test_where_python_loses_it() -> None:
    """As in drgn's calls of its log: the exception is said to be ignored, and the run goes on."""
    script = COMMAND.format(
        "class Dies:\n"
        "    __del__ = ctrl_c\n"
        "def open_core(*args):\n"
        "    Dies()\n"
        "    for _ in range(3000):\n"
        "        time.sleep(0.02)\n"
        "cli.open_core = open_core"
    )
    assert run(script) == (3, "", NOTHING)


def test_in_text_that_is_executed() -> None:
    """Python remembers that, and would end by the signal."""
    script = COMMAND.format("cli.open_core = lambda *args: exec('ctrl_c()', {'ctrl_c': ctrl_c})")
    assert run(script) == (3, "", NOTHING)


def test_between_analyses() -> None:
    """The first has ended, of the second nothing is known yet."""
    script = COMMAND.format(
        "real, names = runner.with_known_issues, []\n"
        "def with_known_issues(finding, *args):\n"
        "    names.append(finding.rule.id)\n"
        "    if names == ['VT201', 'VT301']:\n"
        "        ctrl_c()\n"
        "    return real(finding, *args)\n"
        "runner.with_known_issues = with_known_issues"
    )
    code, out, err = run(script)
    assert (code, statuses(out), err) == (3, (True, ["ok", "skipped"]), "")
    assert [finding["rule"] for finding in json.loads(out)["findings"]] == ["VT201"]


def test_a_report_that_is_being_written_is_finished() -> None:
    script = COMMAND.format(
        "real = cli.render\n"
        "def render(*args, **options):\n"
        "    ctrl_c()\n"
        "    return real(*args, **options)\n"
        "cli.render = render"
    )
    code, out, err = run(script)
    assert (code, statuses(out), err) == (1, (False, ["ok", "ok"]), "")


def test_who_insists_does_not_wait_for_the_report() -> None:
    script = COMMAND.format("cli.render = lambda *args, **options: (ctrl_c(), ctrl_c())")
    code, out, err = run(script)
    assert (code, out) == (3, "")
    assert err == (
        "vmcore-tools: error: interrupted while the report was written: it may be cut off\n"
    )


def test_nothing_is_left_of_a_file(tmp_path: Path) -> None:
    script = COMMAND.format(f"cli.open_core = ctrl_c; sys.argv += ['-o', '{tmp_path}/report']")
    assert run(script) == (3, "", NOTHING)
    assert list(tmp_path.iterdir()) == []


def test_a_background_job_ignores_it() -> None:
    script = COMMAND.format(
        "real = cli.open_core\n"
        "def open_core(*args):\n"
        "    ctrl_c()\n"
        "    return real(*args)\n"
        "cli.open_core = open_core"
    )
    code, out, err = run(script, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert (code, statuses(out), err) == (1, (False, ["ok", "ok"]), "")
