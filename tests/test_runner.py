# SPDX-License-Identifier: LGPL-2.1-or-later
"""The runner: what an analysis may yield, and what becomes of one that fails."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from typing import Any, Callable, Iterator, List, Tuple

import numpy as np
import pytest
from drgn import FaultError
from drgn.helpers import ValidationError

from tests import fake_target
from tests.sample_report import HUNG, LEAK, STACK, Fence, fence, hung, leak
from vmcore_tools import runner
from vmcore_tools.analysis import (
    Analysis,
    Argument,
    Context,
    ManyRows,
    NotApplicable,
    Option,
    Requires,
)
from vmcore_tools.debug_info import DebugInfo
from vmcore_tools.model import Evidence, Finding, Gap, Kind, Ref, Stack, Status
from vmcore_tools.module_gaps import NEXT_STEP


def analysis(
    analyze: Callable[[Context], Iterator[Any]], name: str = "fake", **changes: Any
) -> Analysis:
    values: dict[str, Any] = {"tables": (Fence,), "rules": (LEAK,)}
    return Analysis(name=name, analyze=analyze, **{**values, **changes})


def yields(*items: Any, **changes: Any) -> Analysis:
    def analyze(ctx: Context) -> Iterator[Any]:
        yield from items

    return analysis(analyze, **changes)


def outcome(made: Analysis, **how: Any) -> Tuple[Status, Any]:
    result = fake_target.run_all(made, **how).analyses[0]
    return result.status, result.reason


def test_rows_and_findings_are_collected() -> None:
    report = fake_target.run_all(yields(STACK, fence(), leak(), fence(address=1)))
    (result,) = report.analyses
    assert (result.status, result.reason) == (Status.OK, None)
    assert result.findings == (leak(),)
    (table,) = result.tables
    assert table.row_type is Fence
    assert table.rows == (fence(), fence(address=1))
    assert table.total == 2
    assert report.stacks == {STACK.id: STACK}
    assert report.target == fake_target.FACTS
    assert report.complete
    assert report.exit_code() == 1


def test_a_table_without_rows_is_there() -> None:
    (result,) = fake_target.run_all(yields()).analyses
    assert [(table.row_type, table.total) for table in result.tables] == [(Fence, 0)]


def test_limit_keeps_the_first_rows_and_counts_all() -> None:
    made = yields(*(fence(address=i, stack=None) for i in range(5107)))
    (result,) = fake_target.run_all(made, limit=20).analyses
    (table,) = result.tables
    assert [row.address for row in table.rows] == list(range(20))
    assert table.total == 5107


def test_many_rows_are_counted_and_only_those_under_the_limit_are_made() -> None:
    made: List[int] = []

    def rows() -> Iterator[Fence]:
        for i in range(1_000_000):
            made.append(i)
            yield fence(address=i, stack=None)

    many = ManyRows(Fence, 1_000_000, rows())
    (result,) = fake_target.run_all(yields(fence(address=7, stack=None), many), limit=3).analyses
    (table,) = result.tables
    assert [row.address for row in table.rows] == [7, 0, 1]
    assert table.total == 1_000_001
    assert made == [0, 1]


def test_many_rows_of_a_type_that_is_no_table_fail() -> None:
    status, reason = outcome(yields(ManyRows(int, 1, [1])))
    assert status is Status.FAILED
    assert "none of its tables" in reason
    status, reason = outcome(yields(ManyRows(Fence, 1, [1])))
    assert status is Status.FAILED
    assert "have a int among them" in reason


def test_stacks_of_dropped_rows_are_dropped() -> None:
    other = Stack((), note="other")
    made = yields(STACK, other, fence(), fence(stack=other.id))
    assert set(fake_target.run_all(made, limit=1).stacks) == {STACK.id}
    assert set(fake_target.run_all(made).stacks) == {STACK.id, other.id}


def test_gaps_make_it_partial_only_if_material() -> None:
    def analyze(ctx: Context) -> Iterator[Any]:
        ctx.coverage.gap("pages", "excluded", material=ctx.options["material"])
        yield fence(stack=None)

    made = analysis(analyze, options=(Option("material", "", bool, default=True),))
    report = fake_target.run_all(made)
    assert report.analyses[0].status is Status.PARTIAL
    assert report.analyses[0].gaps == (Gap("pages", "excluded", 1, True, ()),)
    assert not report.complete
    assert report.exit_code() == 3
    report = fake_target.run_all(made, fake={"material": False})
    assert report.analyses[0].status is Status.OK
    assert report.exit_code() == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("two\n lines"), "ValueError: two lines"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_an_exception_fails_one_analysis_only(error: Exception, reason: str) -> None:
    def analyze(ctx: Context) -> Iterator[Any]:
        yield fence(stack=None)
        ctx.coverage.gap("pages", "excluded")
        raise error

    report = fake_target.run_all(analysis(analyze), yields(fence(stack=None), name="next"))
    failed, following = report.analyses
    assert failed.status is Status.FAILED
    assert re.fullmatch(rf"{reason} \(test_runner\.py:\d+\)", failed.reason or "")
    assert failed.tables[0].total == 1
    assert len(failed.gaps) == 1
    assert following.status is Status.OK
    assert following.tables[0].total == 1
    assert report.exit_code() == 3


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            FaultError("could not read memory", 0x1000),
            "what it needs cannot be read: could not read memory: 0x1000",
        ),
        (ValidationError("a list is broken"), "what it needs cannot be read: a list is broken"),
    ],
)
def test_damage_that_an_analysis_cannot_go_on_from_is_a_gap(error: Exception, reason: str) -> None:
    def analyze(ctx: Context) -> Iterator[Any]:
        yield fence(stack=None)
        raise error

    report = fake_target.run_all(analysis(analyze), yields(fence(stack=None), name="next"))
    broken, following = report.analyses
    assert (broken.status, broken.reason) == (Status.PARTIAL, None)
    assert broken.gaps == (Gap(runner.BROKE_OFF, reason, 1, True, ()),)
    assert broken.tables[0].total == 1
    assert following.status is Status.OK
    assert not report.complete
    assert report.exit_code() == 3


@pytest.mark.parametrize(
    ("gap", "status", "code"), [(False, Status.NOT_APPLICABLE, 0), (True, Status.SKIPPED, 3)]
)
def test_an_analysis_can_find_that_there_is_nothing_for_it(
    gap: bool, status: Status, code: int
) -> None:
    def analyze(ctx: Context) -> Iterator[Any]:
        if gap:
            ctx.coverage.gap("slab cache", "the list of slab caches breaks off")
        raise NotApplicable("no cache keeps tracks")
        yield

    report = fake_target.run_all(analysis(analyze))
    (result,) = report.analyses
    assert (result.status, result.reason) == (status, "no cache keeps tracks")
    assert report.exit_code() == code


def test_interrupt_keeps_what_there_is() -> None:
    ran: List[str] = []

    def analyze(ctx: Context) -> Iterator[Any]:
        yield STACK
        yield leak()
        yield fence()
        raise KeyboardInterrupt

    def later(ctx: Context) -> Iterator[Any]:
        ran.append("later")
        yield fence(stack=None)

    report = fake_target.run_all(
        yields(fence(stack=None), name="before"),
        analysis(analyze),
        analysis(later, name="later"),
    )
    before, interrupted, skipped = report.analyses
    assert before.status is Status.OK
    assert (interrupted.status, interrupted.reason) == (Status.FAILED, "interrupted")
    assert interrupted.findings == (leak(),)
    assert interrupted.tables[0].rows == (fence(),)
    assert (skipped.status, skipped.reason) == (Status.SKIPPED, "interrupted")
    assert ran == []
    assert report.interrupted
    assert report.stacks == {STACK.id: STACK}
    assert report.exit_code() == 3


def test_options_are_the_given_ones_over_the_defaults() -> None:
    seen: List[Any] = []

    def analyze(ctx: Context) -> Iterator[Any]:
        seen.append(dict(ctx.options))
        yield from ()

    made = analysis(
        analyze, options=(Option("min-age", "", int, default=5), Option("cpu", "", int))
    )
    fake_target.run_all(made, fake={"cpu": 3}, other={"min_age": 7})
    assert seen == [{"min_age": 5, "cpu": 3}]


def test_without_its_argument_an_analysis_does_not_run() -> None:
    made = yields(fence(stack=None), argument=Argument("where", "ADDRESS", ""))
    assert not made.in_triage
    assert outcome(made) == (Status.SKIPPED, "no ADDRESS was given")
    assert outcome(made, fake={"where": "x"}) == (Status.OK, None)


@dataclasses.dataclass(frozen=True)
class Undeclared:
    pass


@dataclasses.dataclass(frozen=True)
class NoKinds:
    address: int


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (Undeclared(), "yielded a Undeclared, which is none of its tables"),
        ("text", "yielded a str, which is none of its tables"),
        (hung(), "a finding's rule VT301 is not declared"),
        (
            leak(message="{nothing} leaked", stacks=()),
            "the message of VT201 needs {nothing}, which is no name of its evidence",
        ),
        (
            leak(message="{references.real}", stacks=()),
            "the message of VT201 needs {references.real}, which is no name of its evidence",
        ),
        (
            leak(message="{references:x}", stacks=()),
            "the message of VT201 needs {references}, which is no name of its evidence",
        ),
        (leak(), "VT201 names a stack that was not yielded before it"),
        (fence(), "Fence.stack names a stack that was not yielded before it"),
        (
            fence(address=np.uint64(1)),
            "Fence.address is address and must hold int, not uint64",
        ),
        (fence(driver=b"x"), "Fence.driver is untrusted and must hold str, not bytes"),
        (
            leak(evidence=(Evidence("x", Kind.COUNT, (1, "2")),), message="", stacks=()),
            "VT201 x is count and must hold int, not str",
        ),
    ],
)
def test_a_broken_contract_is_a_failure(item: Any, reason: str) -> None:
    assert outcome(yields(item)) == (Status.FAILED, f"ContractError: {reason}")


def test_a_malformed_message_is_a_failure() -> None:
    status, reason = outcome(yields(leak(message="{", stacks=())))
    assert status is Status.FAILED
    assert reason.startswith("ValueError: ")


def test_a_table_that_is_no_dataclass_of_columns_is_a_failure() -> None:
    made = yields(tables=(NoKinds,))
    status, reason = outcome(made)
    assert status is Status.FAILED
    assert reason == "ContractError: the table NoKinds is no dataclass whose fields are columns"
    assert fake_target.run_all(made, yields(name="next")).analyses[1].status is Status.OK


def test_findings_are_sorted_worst_and_surest_first() -> None:
    made = yields(STACK, hung(), leak(), rules=(LEAK, HUNG))
    report = fake_target.run_all(made)
    assert [finding.rule.id for finding in report.findings] == ["VT201", "VT301"]


COMPLETE = DebugInfo(vmlinux_loaded=True, modules=("a",))
NEEDS = Requires(types=("struct one", "struct two"), symbols=("f",))


@pytest.mark.parametrize(
    ("found", "info", "expected"),
    [
        ({"types": ("one", "two"), "symbols": ("f",)}, COMPLETE, (Status.OK, None)),
        (
            {"types": ("one",), "symbols": ("f",)},
            COMPLETE,
            (
                Status.NOT_APPLICABLE,
                "no struct two in the debug info of vmlinux or any loaded module",
            ),
        ),
        (
            {},
            COMPLETE,
            (
                Status.NOT_APPLICABLE,
                "no struct one and no struct two in the debug info of vmlinux or any loaded module",
            ),
        ),
        (
            {"types": ("one", "two")},
            COMPLETE,
            (Status.SKIPPED, "f not found"),
        ),
        (
            {"types": ("one",), "incomplete": ("two",), "symbols": ("f",)},
            DebugInfo(vmlinux_loaded=True, modules_missing=tuple("abcdefg")),
            (
                Status.SKIPPED,
                "struct two not found; it may be in a module without debug info"
                f" (a, b, c, d, e and 2 more): {NEXT_STEP}",
            ),
        ),
        (
            {"types": ("one",), "symbols": ("f",)},
            DebugInfo(vmlinux_loaded=True, modules_error="fault at 0x1"),
            (
                Status.SKIPPED,
                "struct two not found; the list of modules is not whole: fault at 0x1",
            ),
        ),
        (
            {"symbols": ("f",)},
            DebugInfo(vmlinux_loaded=False),
            (
                Status.SKIPPED,
                "struct one, struct two not found: there is no debug info for vmlinux;"
                " name the file with -s",
            ),
        ),
    ],
)
def test_requirements(found: Any, info: DebugInfo, expected: Any) -> None:
    target = fake_target.target(fake_target.program(**found), info)
    made = yields(fence(stack=None), requires=NEEDS)
    assert outcome(made, on=target) == expected
    report = fake_target.run_all(made, on=target)
    assert report.exit_code() == (3 if expected[0] is Status.SKIPPED else 0)
    # What did not run has no tables: "none" would be a lie.
    assert bool(report.analyses[0].tables) == (expected[0] is Status.OK)


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        (
            DebugInfo(vmlinux_loaded=True, modules=("a",), modules_missing=("a",)),
            (
                Status.NOT_APPLICABLE,
                "no struct two in the debug info of vmlinux, where it would be",
            ),
        ),
        (
            DebugInfo(vmlinux_loaded=False),
            (
                Status.SKIPPED,
                "struct two not found: there is no debug info for vmlinux; name the file with -s",
            ),
        ),
    ],
)
def test_what_can_only_be_built_in_is_in_no_module(info: DebugInfo, expected: Any) -> None:
    target = fake_target.target(fake_target.program(types=("one",)), info)
    made = yields(requires=Requires(types=("struct one",), builtin=("struct two",)))
    assert outcome(made, on=target) == expected


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        (
            DebugInfo(vmlinux_loaded=True, modules=("a",), modules_missing=("a",)),
            (
                Status.NOT_APPLICABLE,
                "no struct two in the debug info of vmlinux, and no module drm is loaded",
            ),
        ),
        (
            DebugInfo(vmlinux_loaded=True, modules=("drm",), modules_missing=("drm",)),
            (
                Status.SKIPPED,
                "struct two not found; it may be in a module without debug info (drm):"
                f" {NEXT_STEP}",
            ),
        ),
        (
            DebugInfo(vmlinux_loaded=True, modules_error="fault at 0x1"),
            (
                Status.SKIPPED,
                "struct two not found; the list of modules is not whole: fault at 0x1",
            ),
        ),
    ],
)
def test_what_is_of_a_module_that_is_not_loaded(info: DebugInfo, expected: Any) -> None:
    target = fake_target.target(fake_target.program(), info)
    made = yields(requires=Requires(types=("struct two",), module="drm"))
    assert outcome(made, on=target) == expected


def test_the_projects_own_analyses_are_found_and_sound() -> None:
    found = runner.find_analyses()
    names = [a.name for a in found]
    assert names == sorted(names)
    assert {"dma-fences", "dump", "hung-tasks", "slabs", "wait-graph"} <= set(names)
    for name in names:
        assert runner.find_own_analysis(name) in found
    assert runner.find_own_analysis("nothing") is None
    rules = [rule for a in found for rule in a.rules]
    assert len({rule.id for rule in rules}) == len(rules)
    assert len({rule.slug for rule in rules}) == len(rules)
    assert all(a.summary for a in found)


class FakeEntryPoint:
    def __init__(self, value: str, loaded: Any) -> None:
        self.name = value
        self.value = value
        self._loaded = loaded

    def load(self) -> Any:
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


def test_analyses_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    other = yields(name="other")
    points = [
        FakeEntryPoint("d:X", ImportError("no module d")),
        FakeEntryPoint("c:X", "text"),
        FakeEntryPoint("b:X", yields(name="dump")),
        FakeEntryPoint("a:X", other),
    ]
    monkeypatch.setattr(runner, "_entry_points", lambda: points)
    found = runner.find_analyses()
    assert [a.name for a in found[-4:]] == ["other", "b:X", "c:X", "d:X"]
    assert found[-4] is other
    report = fake_target.run_all(*found[-3:])
    assert [(a.status, a.reason) for a in report.analyses] == [
        (Status.FAILED, "UnloadableError: another analysis has the name dump"),
        (Status.FAILED, "UnloadableError: it is a str, not an Analysis"),
        (Status.FAILED, "UnloadableError: ImportError: no module d"),
    ]
    assert found[-1].summary == "An installed analysis that cannot be loaded."


def test_entry_points_are_read() -> None:
    for point in runner._entry_points():
        assert isinstance(point, importlib.metadata.EntryPoint)


def test_a_finding_without_evidence_in_its_message() -> None:
    finding = Finding(LEAK, leak().confidence, "leaked", Ref("fence", "x"), (), ("k",))
    assert outcome(yields(finding)) == (Status.OK, None)
