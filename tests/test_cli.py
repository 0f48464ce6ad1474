# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line: options, exit codes, where output goes."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import drgn
import pytest

from tests import fake_target
from tests.sample_report import HUNG, LEAK, STACK, Fence, fence, hung, leak
from vmcore_tools import cli, demo
from vmcore_tools.analysis import Analysis, Argument, Context, Option, Requires, WrongArgument
from vmcore_tools.errors import TargetError
from vmcore_tools.model import Evidence, Kind
from vmcore_tools.target import Target


def find_leaks(ctx: Context) -> Iterator[Any]:
    yield STACK
    yield leak(confidence=leak().confidence)
    for i in range(ctx.options["rows"]):
        yield fence(address=0x1000 + i, driver="evil\x1b[2J")


def find_hung(ctx: Context) -> Iterator[Any]:
    yield STACK
    yield hung()


def find_nothing(ctx: Context) -> Iterator[Any]:
    yield from ()


def find_one(ctx: Context) -> Iterator[Any]:
    yield fence(address=ctx.options["where"], driver=f"quick={ctx.options['quick']}", stack=None)


def break_off(ctx: Context) -> Iterator[Any]:
    yield STACK
    yield leak()
    os.kill(os.getpid(), signal.SIGINT)


LEAKS = Analysis(
    "leaks",
    find_leaks,
    (Fence,),
    (LEAK,),
    options=(Option("rows", "how many rows (100%)", int, default=3, metavar="N"),),
)
WAITS = Analysis("waits", find_hung, (), (HUNG,))
CLEAN = Analysis("clean", find_nothing, (), ())
ABSENT = Analysis("absent", find_nothing, (), (), requires=Requires(types=("struct nothing",)))
BLIND = Analysis("blind", find_nothing, (), (), requires=Requires(symbols=("nothing",)))
BROKEN_OFF = Analysis("broken-off", break_off, (Fence,), (LEAK,))
ONE = Analysis(
    "one",
    find_one,
    (Fence,),
    (),
    options=(Option("quick", "do it quickly", bool, default=False),),
    argument=Argument("where", "ADDRESS", "where it is (100%)", lambda text: int(text, 16)),
)

ALL = (LEAKS, WAITS, CLEAN, ABSENT, BLIND, BROKEN_OFF, ONE)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> List[Tuple[Any, ...]]:
    """Targets without a kernel; holds what was opened, and how."""
    calls: List[Tuple[Any, ...]] = []

    def opener(kind: str) -> Any:
        def open_target(*args: Any) -> Target:
            calls.append((kind, *args))
            return fake_target.target()

        return open_target

    for kind in ("open_core", "open_live", "open_qemu"):
        monkeypatch.setattr(cli, kind, opener(kind))
    monkeypatch.setattr(cli, "find_analyses", lambda: ALL)
    monkeypatch.setattr(cli, "find_own_analysis", lambda name: None)
    return calls


Capture = pytest.CaptureFixture[str]

USAGE = pytest.mark.usefixtures("opened")


def triage(only: str, *options: str) -> int:
    return cli.main(["triage", "-c", "vmcore", "--only", only, *options])


@USAGE
@pytest.mark.parametrize(
    ("only", "options", "code"),
    [
        ("clean", (), 0),
        ("clean,absent", (), 0),
        ("leaks", (), 1),
        ("leaks,blind", (), 1),
        ("waits", (), 0),
        ("waits", ("--fail-on", "warning"), 1),
        ("waits", ("--fail-on", "info"), 1),
        ("leaks", ("--fail-on", "critical"), 0),
        ("blind", (), 3),
        ("waits,blind", (), 3),
        ("broken-off", (), 3),
    ],
)
def test_exit_codes(only: str, options: Sequence[str], code: int) -> None:
    assert triage(only, *options) == code


def test_target_options(opened: List[Tuple[Any, ...]]) -> None:
    where = ("--kernel-directory", "K", "--debug-directory", "D", "--vmcoreinfo", "V")
    for options in (("-c", "vmcore"), ("-k",), ("--qemu", "sock")):
        cli.main(["triage", *options, "--only", "clean", "-s", "a", "--symbols", "b", *where])
    cli.main(["triage", "--core", "vmcore", "--only", "clean"])
    assert opened == [
        ("open_core", "vmcore", ["a", "b"], ["K"], ["D"], "V"),
        ("open_live", ["a", "b"], ["K"], ["D"], "V"),
        ("open_qemu", "sock", ["a", "b"], ["K"], ["D"], "V"),
        ("open_core", "vmcore", [], [], [], None),
    ]


@pytest.mark.parametrize("options", [("--demo",), ("--demo", "fence-leak-arm64")])
def test_demo(
    opened: List[Tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, options: Sequence[str]
) -> None:
    def unpack(name: str) -> demo.DemoDump:
        folder = Path(name)
        return demo.DemoDump(folder / "vmcore", (folder / "vmlinux.debug",), folder / "truth.json")

    monkeypatch.setattr(demo, "unpack", unpack)
    assert cli.main(["triage", *options, "--only", "clean"]) == 0
    folder = Path(options[-1] if len(options) > 1 else demo.DEFAULT_DUMP)
    assert opened == [
        ("open_core", folder / "vmcore", [folder / "vmlinux.debug"], [], [], None),
    ]


@pytest.mark.parametrize("command", [("triage",), ("run", "clean"), ("info",)])
def test_no_target_is_an_error_never_the_live_kernel(
    opened: List[Tuple[Any, ...]], command: Sequence[str], capsys: Capture
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(command)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.endswith(
        f"vmcore-tools {' '.join(command)}: error: name what to look at: -c VMCORE, -k for the"
        " running kernel, --qemu ADDRESS for a guest, or --demo\n"
    )
    assert opened == []


@USAGE
@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("triage", "-c", "x", "-k"), "argument -k/--kernel: not allowed with argument -c/--core"),
        (
            ("triage", "-c", "x", "--only", "leaks,lost"),
            "argument --only: no analysis 'lost'; there are leaks, waits, clean, absent, blind,"
            " broken-off",
        ),
        (
            ("triage", "-c", "x", "--limit", "-1"),
            "argument --limit: '-1' is no number of 0 or more",
        ),
        (("triage", "-c", "x", "--limit", "x"), "argument --limit: 'x' is no number of 0 or more"),
        (
            ("triage", "-c", "x", "--max-memory", "lots"),
            "argument --max-memory: 'lots' is no size; give one such as 64M or 2G",
        ),
        (("run", "leaks", "-c", "x", "--rows", "x"), "argument --rows: invalid int value: 'x'"),
        (("run", "one", "-c", "x"), "the following arguments are required: ADDRESS"),
        (("run", "one", "x", "-c", "x"), "argument ADDRESS: invalid <lambda> value: 'x'"),
        (
            ("triage", "-c", "x", "--only", "one"),
            "argument --only: no analysis 'one'; there are leaks, waits, clean, absent, blind,"
            " broken-off",
        ),
    ],
)
def test_usage_errors(argv: Sequence[str], error: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.endswith(f"error: {error}\n")
    assert captured.out == ""


def test_a_target_error_is_one_line(
    opened: List[Tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(*args: Any) -> Target:
        raise TargetError("no debug info\x1b[2J\nfor it; install it")

    monkeypatch.setattr(cli, "open_core", fail)
    assert triage("clean") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ("vmcore-tools: error: no debug info\\x1b[2J\\x0afor it; install it\n")


@USAGE
def test_formats(capsys: Capture) -> None:
    triage("clean")
    assert "\nNo findings. Everything relevant was read.\n" in capsys.readouterr().out
    triage("clean", "--format", "markdown")
    assert capsys.readouterr().out.startswith("**No findings. Everything relevant was read.**\n")
    triage("clean", "--format", "json")
    assert json.loads(capsys.readouterr().out)["analyses"] == [
        {"name": "clean", "status": "ok", "reason": None}
    ]


@USAGE
@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (("--format", "json", "--limit", "2"), 2),
        (("--format", "json", "--limit", "0"), 1500),
        (("--format", "json"), 1000),
        ((), 20),
        (("--format", "markdown"), 20),
        (("--limit", "1234"), 1234),
    ],
)
def test_limit(options: Sequence[str], rows: int, capsys: Capture) -> None:
    assert cli.main(["run", "leaks", "-c", "x", "--rows", "1500", *options]) == 1
    out = capsys.readouterr().out
    if "json" in options:
        table = json.loads(out)["tables"]["leaks"]["Fence"]
        assert (len(table["rows"]), table["total"]) == (rows, 1500)
    else:
        assert f"leaks: Fence, showing {rows:,} of 1,500" in out


@USAGE
def test_an_analysis_has_its_own_options(capsys: Capture) -> None:
    cli.main(["run", "leaks", "-c", "x"])
    assert "leaks: Fence, 3 rows:" in capsys.readouterr().out
    cli.main(["run", "leaks", "-c", "x", "--rows", "5"])
    assert "leaks: Fence, 5 rows:" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["run", "leaks", "--help"])
    assert "how many rows (100%)" in capsys.readouterr().out


@USAGE
def test_an_analysis_that_needs_an_argument(capsys: Capture) -> None:
    for options, quick in (((), "False"), (("--quick",), "True")):
        assert cli.main(["run", "one", "1f00", "-c", "x", "--format", "json", *options]) == 0
        (row,) = json.loads(capsys.readouterr().out)["tables"]["one"]["Fence"]["rows"]
        assert (row["address"], row["driver"]) == ("0x1f00", f"quick={quick}")
    cli.main(["list"])
    assert "\none ADDRESS (not in triage): " in capsys.readouterr().out
    cli.main(["explain", "one"])
    assert (
        "ADDRESS: where it is (100%)\n\nOptions:\n  --quick: do it quickly\n"
        in capsys.readouterr().out
    )


@USAGE
def test_triage_leaves_out_what_needs_an_argument(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(cli, "find_analyses", lambda: (CLEAN, ONE))
    monkeypatch.setattr(cli, "find_own_analysis", lambda name: None)
    assert cli.main(["triage", "-c", "x", "--format", "json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [a["name"] for a in made["analyses"]] == ["clean"]
    assert made["coverage"]["not_run"] == ["one"]
    for format in ("table", "markdown", "html"):
        assert cli.main(["triage", "-c", "x", "--format", format]) == 0
        out = capsys.readouterr().out
        assert "not run by triage: one: vmcore-tools run NAME" in out
        assert "No findings of the analyses that ran. All that these look at was read." in out
        assert "Everything relevant" not in out
        # Who chose knows what was left out.
        assert cli.main(["run", "clean", "-c", "x", "--format", format]) == 0
        assert "not run by triage" not in capsys.readouterr().out


@USAGE
def test_all_analyses_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    long = dataclasses.replace(WAITS, on_demand=True)
    monkeypatch.setattr(cli, "find_analyses", lambda: (CLEAN, long, ONE))
    for options, names, left_out in (
        ((), ["clean"], ["waits", "one"]),
        (("--only", "all"), ["clean", "waits"], []),
        (("--only", "waits"), ["waits"], []),
    ):
        cli.main(["triage", "-c", "x", "--format", "json", *options])
        made = json.loads(capsys.readouterr().out)
        assert [a["name"] for a in made["analyses"]] == names
        assert made["coverage"]["not_run"] == left_out


@USAGE
def test_what_the_target_has_not_is_a_wrong_argument(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    def find(ctx: Context) -> Iterator[Any]:
        yield STACK
        raise WrongArgument("there is no such thing; 'run slabs' names them all")

    monkeypatch.setattr(cli, "find_analyses", lambda: (Analysis("asks", find, (), ()),))
    assert cli.main(["run", "asks", "-c", "x", "-o", str(tmp_path / "report")]) == 2
    assert capsys.readouterr() == (
        "",
        "vmcore-tools: error: there is no such thing; 'run slabs' names them all\n",
    )
    assert list(tmp_path.iterdir()) == []


@USAGE
def test_text_of_the_dump_is_escaped(capsys: Capture) -> None:
    for format in ("table", "markdown", "html", "json"):
        triage("leaks", "--format", format)
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert ("evil\\u001b[2J" if format == "json" else "evil\\x1b[2J") in out


@USAGE
def test_redact_and_timings(capsys: Capture) -> None:
    triage("leaks", "--redact", "--format", "json")
    out = capsys.readouterr().out
    assert "Xorg" not in out and "0x1000" not in out and "seconds" not in out
    triage("leaks", "--timings", "--format", "json")
    assert json.loads(capsys.readouterr().out)["analyses"][0]["seconds"] >= 0


@USAGE
def test_output_is_the_same_each_time(capsys: Capture) -> None:
    for format in ("table", "markdown", "html", "json"):
        outs = []
        for _ in range(2):
            triage("leaks,waits,clean,blind", "--format", format)
            outs.append(capsys.readouterr().out)
        assert outs[0] == outs[1]


@USAGE
def test_ctrl_c_gives_what_is_done(capsys: Capture) -> None:
    assert triage("waits,broken-off", "--format", "json") == 3
    found = json.loads(capsys.readouterr().out)
    assert [finding["rule"] for finding in found["findings"]] == ["VT201", "VT301"]
    assert found["coverage"]["interrupted"] is True
    assert found["coverage"]["complete"] is False
    assert found["analyses"][1]["status"] == "failed"
    assert found["analyses"][1]["reason"] == "interrupted"


def test_a_bug_does_not_look_like_a_finding(
    opened: List[Tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def bug(*args: Any) -> Target:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(cli, "open_core", bug)
    assert triage("clean") == 2
    line = bug.__code__.co_firstlineno + 1
    assert capsys.readouterr().err == (
        "vmcore-tools: error: internal error: ZeroDivisionError: division by zero"
        f" (test_cli.py:{line}); please report it\n"
    )


def test_a_bug_tells_nothing_of_a_dump_that_is_masked(
    opened: List[Tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def bug(*args: Any) -> Target:
        raise KeyError("Xorg")

    monkeypatch.setattr(cli, "open_core", bug)
    assert triage("clean", "--redact") == 2
    assert "internal error: KeyError (test_cli.py" in capsys.readouterr().err


def test_ctrl_c_before_there_is_anything(
    opened: List[Tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def interrupted(*args: Any) -> Target:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "open_core", interrupted)
    assert triage("clean") == 3
    assert capsys.readouterr() == (
        "",
        "vmcore-tools: error: interrupted before there was anything to report\n",
    )


@USAGE
def test_output_file(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    path.chmod(0o644)
    assert triage("leaks", "--format", "json", "-o", str(path)) == 1
    assert capsys.readouterr() == ("", "")
    assert json.loads(path.read_text())["findings"][0]["rule"] == "VT201"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_a_failure_leaves_the_output_file_alone(
    opened: List[Tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: Any) -> Target:
        raise TargetError("no debug info")

    path = tmp_path / "report.json"
    path.write_text("old")
    monkeypatch.setattr(cli, "open_core", fail)
    assert triage("clean", "-o", str(path)) == 2
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_an_output_file_that_cannot_be_is_an_error_at_once(
    opened: List[Tuple[Any, ...]], tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "nowhere" / "report"
    assert triage("clean", "-o", str(path)) == 2
    assert capsys.readouterr().err == (
        f"vmcore-tools: error: cannot write {path}: No such file or directory;"
        " name a file in a folder of yours with -o\n"
    )
    assert triage("clean", "-o", str(tmp_path)) == 2
    assert capsys.readouterr().err.startswith(
        f"vmcore-tools: error: cannot write {tmp_path}: Is a directory;"
    )
    assert opened == []


@USAGE
def test_a_device_is_written_to_and_stays_one() -> None:
    assert triage("clean", "-o", os.devnull) == 0
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@USAGE
def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("report")
    assert triage("clean", "-o", str(link)) == 0
    assert link.is_symlink()
    assert (tmp_path / "report").is_file()


@USAGE
def test_list(capsys: Capture) -> None:
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "leaks: The command line: options, exit codes, where output goes.\n" in out
    assert "  VT201 error    leaked-dma-fence: References to fences were never dropped.\n" in out
    assert "  VT301 warning  hung-task: A task waits for too long.\n" in out
    assert "\n  virtio-gpu-execbuffer-fence (VT201): virtio_gpu_execbuffer_ioctl() " in out


@USAGE
@pytest.mark.parametrize("name", ["VT201", "vt201", "leaked-dma-fence"])
def test_explain_a_rule(name: str, capsys: Capture) -> None:
    assert cli.main(["explain", name]) == 0
    page, _, issues = capsys.readouterr().out.partition("\nKnown issues")
    assert page == (
        "VT201 leaked-dma-fence (error, found by leaks)\n"
        "\n"
        "References to fences were never dropped.\n"
        "\n"
        "How it is decided.\n"
        "\n"
        "What to do: Look for a missing dma_fence_put() in the allocating function.\n"
    )
    assert "  virtio-gpu-execbuffer-fence: " in issues


@USAGE
def test_explain_an_analysis(capsys: Capture) -> None:
    assert cli.main(["explain", "leaks"]) == 0
    assert capsys.readouterr().out == (
        "leaks: The command line: options, exit codes, where output goes.\n"
        "\n"
        "Options:\n"
        "  --rows N: how many rows (100%)\n"
        "\n"
        "Rules:\n"
        "  VT201 error    leaked-dma-fence: References to fences were never dropped.\n"
    )


@USAGE
def test_explain_what_is_not_there(capsys: Capture) -> None:
    assert cli.main(["explain", "VT999"]) == 2
    assert capsys.readouterr() == (
        "",
        "vmcore-tools: error: no rule or analysis 'VT999'; 'vmcore-tools list' names them\n",
    )


def test_info(
    opened: List[Tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(
        cli, "describe", lambda path: (Evidence("size_bytes", Kind.BYTES, len(str(path)) << 10),)
    )
    assert cli.main(["info", "-c", "vmcore"]) == 0
    assert capsys.readouterr().out == "size: 6.0 KiB\n"
    assert cli.main(["info", "-c", "vmcore", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"] == {"size_bytes": 6144}
    assert found["tool"]["name"] == "vmcore-tools"
    assert opened == []
    assert cli.main(["info", "-k"]) == 0
    assert capsys.readouterr().out == "kernel release: 5.10.262\n"


def test_write_replaces_what_the_encoding_lacks() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    cli.write("Grüße\n", file)
    assert raw.getvalue() == b"Gr\\xfc\\xdfe\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@USAGE
def test_progress_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:

    def slow(ctx: Context) -> Iterator[Any]:
        for _ in ctx.progress(range(3), "counting pages", 3):
            pass
        yield from ()

    monkeypatch.setattr(cli, "find_analyses", lambda: (Analysis("slow", slow, (), ()),))
    monkeypatch.setattr(cli, "find_own_analysis", lambda name: None)
    pipe, terminal = io.StringIO(), Terminal()
    for stderr in (pipe, terminal):
        monkeypatch.setattr(sys, "stderr", stderr)
        assert triage("slow") == 0
    assert pipe.getvalue() == ""
    assert "counting pages:" in terminal.getvalue()


def test_broken_pipe_is_quiet() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "vmcore_tools", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 0


def shell(command: str) -> Tuple[int, str, str]:
    """Run a command line in which VT stands for the command."""
    done = subprocess.run(
        ["sh", "-c", command.replace("VT", f"{sys.executable} -m vmcore_tools")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_full_disk_is_named() -> None:
    error = "vmcore-tools: error: cannot write {}: No space left on device; make room there, or"
    for command, name in (
        ("VT list >/dev/full", "standard output"),
        ("VT info --demo >/dev/full", "standard output"),
        ("VT run dump --demo -o /dev/full", "/dev/full"),
        ("VT run dump --demo >/dev/full", "standard output"),
    ):
        assert shell(command) == (2, "", error.format(name) + " name another file\n")
    # Nor does Python have a last word where standard error is full, too.
    assert shell("VT list >/dev/full 2>/dev/full") == (2, "", "")


def test_closed_standard_output_and_error(tmp_path: Path) -> None:
    closed = "vmcore-tools: error: standard output is closed; direct it to a file or a pipe\n"
    assert shell("VT list >&-") == (2, "", closed)
    assert shell("VT run dump --demo >&-") == (2, "", closed)
    assert shell("VT list >&- 2>&-") == (2, "", "")
    report = tmp_path / "report"
    assert shell(f"VT run dump --demo >&- 2>&- <&- -o {report}") == (0, "", "")
    assert report.read_text().endswith("Analyses (vmcore-tools 0.1.0):\n  dump: ok\n")
    code, out, err = shell("VT run dump --demo 2>&-")
    assert (code, out, err) == (0, report.read_text(), "")


def test_diff_says_what_it_takes(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("hello\n")
    (tmp_path / "packed").write_bytes(b"\xfd7zXZ\0")
    give = "give a dump, or a report that triage --format json wrote\n"
    for name, error in (
        ("nosuch", f"there is no file {tmp_path}/nosuch; {give}"),
        ("", f"there is no file {tmp_path}/; {give}"),
        ("text.txt", f"{text} is neither a dump nor a report; {give}"),
        ("packed", f"{tmp_path}/packed is compressed with xz; unpack it with: xz -dk"),
    ):
        code, out, err = shell(f"VT diff {tmp_path}/{name} x")
        assert (code, out) == (2, "")
        assert err.startswith(f"vmcore-tools: error: {error}")


def test_a_script_outside_drgn_says_how_to_run_it() -> None:
    script = "drgn_scripts/hung_tasks.py"
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "hung_tasks.py: error: hung_tasks.py runs inside drgn; run it as:"
        f" drgn -c VMCORE {script}\n",
    )


def test_broken_pipe_keeps_the_exit_code(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from tests import fake_target, test_cli\n"
        "from vmcore_tools import cli\n"
        "cli.open_core = lambda *args: fake_target.target()\n"
        "cli.find_analyses = lambda: test_cli.ALL\n"
        "cli.find_own_analysis = lambda name: None\n"
        "sys.exit(cli.main(['triage', '-c', 'x', '--only', 'leaks']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 1


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Dict[str, Any]:
    """The conditions of drgn running an analysis's file."""
    prog = fake_target.program()
    seen: Dict[str, Any] = {}

    def from_program(found: drgn.Program) -> Target:
        seen["prog"] = found
        return fake_target.target(found)

    monkeypatch.setattr(cli, "from_program", from_program)
    monkeypatch.setattr(drgn, "get_default_prog", lambda: prog)
    seen["expected"] = prog
    return seen


def test_run_script(
    script: Dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys, "argv", ["drgn_scripts/leaks.py", "--rows", "30", "--limit", "4"])
    with pytest.raises(SystemExit) as caught:
        cli.run_script(LEAKS)
    assert caught.value.code == 1
    assert script["prog"] is script["expected"]
    out = capsys.readouterr().out
    assert "1 finding: 1 error.\n" in out
    assert "leaks: Fence, showing 4 of 30:" in out


def test_run_script_usage_error(
    script: Dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys, "argv", ["drgn_scripts/leaks.py", "--core", "x"])
    with pytest.raises(SystemExit) as caught:
        cli.run_script(LEAKS)
    assert caught.value.code == 2
    assert "leaks.py: error: unrecognized arguments: --core x\n" in capsys.readouterr().err


def test_run_script_target_error(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(sys, "argv", ["drgn_scripts/leaks.py"])
    monkeypatch.setattr(drgn, "get_default_prog", fake_target.program)
    with pytest.raises(SystemExit) as caught:
        cli.run_script(LEAKS)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("leaks.py: error: drgn is not debugging a Linux")


@pytest.mark.parametrize("options", [("--version",), ("--help",), ("triage", "--help")])
def test_help_and_version(options: Sequence[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vmcore_tools", *options], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(("vmcore-tools 0.", "usage: vmcore-tools"))
