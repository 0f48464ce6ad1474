# SPDX-License-Identifier: LGPL-2.1-or-later
"""What holds for the whole project: imports, printing, licences, documents."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Dict, Iterator, List, Set, Tuple

import pytest

from vmcore_tools import demo
from vmcore_tools.analysis import Analysis
from vmcore_tools.cli import main
from vmcore_tools.runner import find_analyses

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("vmcore_tools", "drgn_scripts")

#: What each part may import of this project, itself always; the first that
#: fits counts. A name stands for the module and everything below it.
DIRECTION: Tuple[Tuple[str, Set[str]], ...] = (
    (
        "drgn_scripts",
        {
            "vmcore_tools.analysis",
            "vmcore_tools.asked",
            "vmcore_tools.audit_findings",
            "vmcore_tools.dma_buf_findings",
            "vmcore_tools.dump",
            "vmcore_tools.frames",
            "vmcore_tools.gem_findings",
            "vmcore_tools.kernel",
            "vmcore_tools.model",
            "vmcore_tools.module_gaps",
            "vmcore_tools.package_names",
            "vmcore_tools.wait_findings",
            "vmcore_tools.words",
        },
    ),
    (
        "vmcore_tools.wait_findings",
        {
            "vmcore_tools.analysis",
            "vmcore_tools.frames",
            "vmcore_tools.kernel",
            "vmcore_tools.model",
            "vmcore_tools.module_gaps",
            "vmcore_tools.words",
        },
    ),
    (
        "vmcore_tools.dma_buf_findings",
        {
            "vmcore_tools.analysis",
            "vmcore_tools.kernel",
            "vmcore_tools.model",
            "vmcore_tools.words",
        },
    ),
    (
        "vmcore_tools.gem_findings",
        {
            "vmcore_tools.analysis",
            "vmcore_tools.audit_findings",
            "vmcore_tools.kernel",
            "vmcore_tools.model",
            "vmcore_tools.words",
        },
    ),
    (
        "vmcore_tools.audit_findings",
        {
            "vmcore_tools.analysis",
            "vmcore_tools.frames",
            "vmcore_tools.kernel",
            "vmcore_tools.model",
            "vmcore_tools.module_gaps",
            "vmcore_tools.words",
        },
    ),
    ("vmcore_tools.kernel", {"vmcore_tools.dump"}),
    ("vmcore_tools.dump", set()),
    ("vmcore_tools.knowledge", {"vmcore_tools.model"}),
    ("vmcore_tools.model", set()),
    ("vmcore_tools.errors", set()),
    ("vmcore_tools.frames", {"vmcore_tools.model"}),
    ("vmcore_tools.report", {"vmcore_tools.model", "vmcore_tools.words"}),
    ("vmcore_tools.words", set()),
    ("vmcore_tools.module_gaps", {"vmcore_tools.analysis", "vmcore_tools.kernel"}),
    ("vmcore_tools.package_names", set()),
    ("vmcore_tools.analysis", {"vmcore_tools.dump", "vmcore_tools.errors", "vmcore_tools.model"}),
    ("vmcore_tools.asked", {"vmcore_tools.analysis", "vmcore_tools.kernel"}),
    ("vmcore_tools.interrupts", set()),
    (
        "vmcore_tools.runner",
        {
            "drgn_scripts",  # whose analyses it finds
            "vmcore_tools.__version__",
            "vmcore_tools.analysis",
            "vmcore_tools.knowledge",
            "vmcore_tools.live",
            "vmcore_tools.model",
            "vmcore_tools.module_gaps",
            "vmcore_tools.target",
            "vmcore_tools.unloadable",
        },
    ),
    ("vmcore_tools.live", {"vmcore_tools.kernel.steady", "vmcore_tools.model"}),
    (
        "vmcore_tools.target",
        {
            "vmcore_tools.cpu_check",
            "vmcore_tools.debug_info",
            "vmcore_tools.dump",
            "vmcore_tools.errors",
            "vmcore_tools.kernel",
            "vmcore_tools.model",
            "vmcore_tools.preflight",
            "vmcore_tools.vmcoreinfo",
        },
    ),
)
#: The last lines of an analysis: it hands itself to the command line.
SCRIPT_END = [
    "if __name__ == '__main__':",
    "    from vmcore_tools.cli import run_script",
    "    run_script(ANALYSIS)",
]


def modules(*packages: str) -> Iterator[Tuple[str, Path]]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def tracked_files() -> List[Path]:
    output = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True
    ).stdout.decode()
    return [ROOT / name for name in output.split("\0") if name and (ROOT / name).is_file()]


def without_script_end(tree: ast.Module) -> ast.Module:
    if tree.body and ast.unparse(tree.body[-1]).splitlines() == SCRIPT_END:
        return ast.Module(tree.body[:-1], tree.type_ignores)
    return tree


def imports(tree: ast.AST) -> Set[str]:
    """Everything that is imported, wherever in the file; ``a.b`` for ``from a import b``."""
    found: Set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import is absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, parents: Set[str]) -> bool:
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


# --- the code ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path"), list(modules(*PACKAGES)), ids=lambda v: v if isinstance(v, str) else ""
)
def test_dependencies_point_one_way(name: str, path: Path) -> None:
    tree = ast.parse(path.read_text())
    if name.startswith("drgn_scripts."):
        tree = without_script_end(tree)
    ours = {imported for imported in imports(tree) if within(imported, {*PACKAGES, "fixtures"})}
    for part, allowed in DIRECTION:
        if within(name, {part}):
            wrong = {imported for imported in ours if not within(imported, {part, *allowed})}
            assert not wrong
            break
    assert not within("fixtures", ours)


@pytest.mark.parametrize("part", ["vmcore_tools.model", "vmcore_tools.report"])
def test_no_drgn_in(part: str) -> None:
    for name, path in modules(*PACKAGES):
        if within(name, {part}):
            tree = ast.parse(path.read_text())
            assert not [i for i in imports(tree) if within(i, {"drgn", "_drgn"})], name


def test_only_the_command_line_is_imported_by_nobody_else() -> None:
    for name, path in modules(*PACKAGES):
        if name in ("vmcore_tools.cli", "vmcore_tools.drgn_plugin", "vmcore_tools.__main__"):
            continue
        tree = without_script_end(ast.parse(path.read_text()))
        entries = {"vmcore_tools.cli", "vmcore_tools.drgn_plugin"}
        assert not [i for i in imports(tree) if within(i, entries)], name


def test_nobody_else_prints() -> None:
    for name, path in modules(*PACKAGES):
        if name in ("vmcore_tools.cli", "vmcore_tools.drgn_plugin"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Name) and node.id == "print"), name
            assert not (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "sys"
                and node.attr in ("stdout", "stderr")
            ), name


def test_analyses_are_scripts_too() -> None:
    for analysis in find_analyses():
        path = Path(str(sys.modules[analysis.analyze.__module__].__file__))
        assert ast.unparse(ast.parse(path.read_text()).body[-1]).splitlines() == SCRIPT_END


def test_sources_name_their_licence() -> None:
    for path in tracked_files():
        if path.suffix in (".py", ".c", ".h", ".sh") and path.stat().st_size:
            head = path.read_text().splitlines()[:2]
            assert any("SPDX-License-Identifier: " in line for line in head), path


def test_no_trace_of_the_building_machine() -> None:
    """No path of a work folder, in what is committed as text and runs on the host."""
    # The brackets keep the pattern from matching itself.
    pattern = re.compile(r"(?<![\w.])/[r]oot/|/[w]ork/|/[t]mp/[a-z]")
    for path in tracked_files():
        if path.suffix != ".xz" and "guest" not in path.parts:
            assert not pattern.findall(path.read_text(errors="replace")), path


# --- README.md, CONTRIBUTING.md ------------------------------------------------


def readme() -> str:
    return (ROOT / "README.md").read_text()


def readme_commands() -> List[str]:
    """The ``$ vmcore-tools …`` lines of README's console blocks."""
    blocks = re.findall(r"^```console\n(.*?)^```$", readme(), re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_readme_has_examples() -> None:
    commands = {shlex.split(line)[1] for line in readme_commands()}
    assert commands == {"triage", "run", "list", "explain", "info"}


@pytest.mark.parametrize("line", readme_commands())
def test_readme_example(
    line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, *arguments = shlex.split(line)
    assert program == "vmcore-tools"
    demonstrates = "--demo" in arguments
    if demonstrates and demo.DEFAULT_DUMP not in demo.shipped_dumps():
        pytest.skip(f"fixtures/dumps has no {demo.DEFAULT_DUMP} yet")
    monkeypatch.chdir(tmp_path)
    code = main(arguments)
    output = capsys.readouterr()
    assert output.err == ""
    finds = arguments[0] == "triage" or arguments[:2] == ["run", "hung-tasks"]
    assert code == (1 if finds else 0)
    if "-o" in arguments:
        assert output.out == ""
        assert (tmp_path / arguments[arguments.index("-o") + 1]).stat().st_size > 0
    else:
        assert output.out


def test_readme_shows_real_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    """Shortened where a line is three dots, and indented less."""
    if demo.DEFAULT_DUMP not in demo.shipped_dumps():
        pytest.skip(f"fixtures/dumps has no {demo.DEFAULT_DUMP} yet")
    main(["triage", "--demo"])
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for name in ("demo-output", "demo-graph"):
        match = re.search(rf"<!-- {name}.*?-->\n```\n(.*?)^```$", readme(), re.M | re.S)
        assert match is not None
        output = iter(printed)
        for line in match[1].splitlines():
            assert line.strip() == "..." or line.strip() in output


def help_of(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "vmcore_tools", *arguments, "--help"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def options_in(text: str) -> Set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text))


def test_the_help_has_every_option_that_the_documents_name() -> None:
    known: Set[str] = set()
    for command in ("triage", "info", "list", "explain"):
        known |= options_in(help_of(command))
    for analysis in find_analyses():
        known |= options_in(help_of("run", analysis.name))
    named = {
        option
        for line in [*readme_commands(), *re.findall(r"`(-[^`]*)`", readme())]
        for option in options_in(line)
    }
    assert named <= known | {"-e"}, "-e is pip's"


def test_the_documents_have_every_way_to_name_a_target() -> None:
    for option in ("-c", "-k", "--qemu", "-s", "--demo", "--vmcoreinfo"):
        assert f"`{option}" in readme(), option
        assert option in options_in(help_of("triage"))


def test_readme_and_help_agree_on_exit_codes() -> None:
    rows: Dict[str, str] = dict(re.findall(r"^\| (\d) \| (.*) \|$", readme(), re.MULTILINE))
    text = " ".join(help_of().split())
    assert set(rows) == set(re.findall(r"(?<=[:;] )(\d)(?= )", text[text.index("Exit codes") :]))


def test_links_in_the_documents_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text()):
            assert link.startswith("https://") or (ROOT / link).exists(), link


def test_changelog_names_every_rule() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    for analysis in find_analyses():
        for rule in analysis.rules:
            assert rule.id in changelog, rule.id


def test_rule_ids_and_slugs_are_unique_and_well_formed() -> None:
    rules = [rule for analysis in find_analyses() for rule in analysis.rules]
    assert len({rule.id for rule in rules}) == len({rule.slug for rule in rules}) == len(rules)
    for rule in rules:
        assert re.fullmatch(r"VT[1-69]\d\d", rule.id)
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", rule.slug)
        assert rule.summary and rule.remedy and rule.page


def contributing_example() -> Tuple[str, str]:
    """File name and source of CONTRIBUTING's example of an analysis."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    match = re.search(r"<!-- example: (\S+) -->\n```python\n(.*?)^```$", text, re.M | re.S)
    assert match is not None
    return match[1], match[2]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Analysis:
    """The example, found among the other analyses as if it lay beside them."""
    import drgn_scripts

    name, source = contributing_example()
    path = tmp_path / name
    path.parent.mkdir()
    path.write_text(source)
    monkeypatch.setattr(drgn_scripts, "__path__", [*drgn_scripts.__path__, str(path.parent)])
    yield next(analysis for analysis in find_analyses() if analysis.name == path.stem)
    del sys.modules[f"drgn_scripts.{path.stem}"]


def test_example_of_an_analysis_is_found(
    example: Analysis, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list"]) == 0
    assert "zombies: Tasks that ended and were never waited for.\n" in capsys.readouterr().out


def test_example_of_an_analysis_keeps_the_rules(tmp_path: Path) -> None:
    _, source = contributing_example()
    path = tmp_path / "example.py"
    path.write_text(source)
    ours = {i for i in imports(without_script_end(ast.parse(source))) if within(i, set(PACKAGES))}
    assert not [i for i in ours if not within(i, DIRECTION[0][1])]
    for check in (["check"], ["format", "--check"]):
        subprocess.run(
            [sys.executable, "-m", "ruff", *check, "--config", str(ROOT / "pyproject.toml"), path],
            cwd=ROOT,
            check=True,
        )


def test_example_of_an_analysis_runs(example: Analysis, capsys: pytest.CaptureFixture[str]) -> None:
    if demo.DEFAULT_DUMP not in demo.shipped_dumps():
        pytest.skip(f"fixtures/dumps has no {demo.DEFAULT_DUMP} yet")
    # A warning is below --fail-on; nothing of a task_struct is missing.
    assert main(["run", "zombies", "--demo"]) == 0
    assert "zombies: ok" in capsys.readouterr().out


# --- .ci ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def check_tests() -> ModuleType:
    path = ROOT / ".ci" / "check_tests.py"
    spec = importlib.util.spec_from_file_location("check_tests", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


JUNIT = """\
<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_ok"/>
<testcase classname="tests.test_a" name="test_skip[1]"><skipped message="no gcc"/></testcase>
<testcase classname="tests.test_b" name="test_bad"><failure message="x">y</failure></testcase>
</testsuite></testsuites>
"""


def test_ci_fails_on_a_skip_that_is_not_listed(check_tests: ModuleType) -> None:
    assert check_tests.check(JUNIT, []) == [
        "not allowed to be skipped: tests.test_a::test_skip[1]: no gcc",
        "3 tests: 1 passed, 1 failed, 1 skipped",
    ]


def test_ci_lets_a_listed_skip_pass(check_tests: ModuleType) -> None:
    patterns = check_tests.allowed_patterns("# why\n\ntests.test_a::test_skip*  there is no gcc\n")
    assert patterns == ["tests.test_a::test_skip*"]
    assert check_tests.check(JUNIT, patterns) == [
        "allowed skip: tests.test_a::test_skip[1]: no gcc",
        "3 tests: 1 passed, 1 failed, 1 skipped",
    ]


def test_ci_fails_on_a_run_without_tests(check_tests: ModuleType) -> None:
    assert check_tests.check("<testsuites/>", []) == [
        "0 tests: 0 passed, 0 failed, 0 skipped",
        "not allowed: a run without tests",
    ]


def test_ci_script_is_valid_and_executable() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
