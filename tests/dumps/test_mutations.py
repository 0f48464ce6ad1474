# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Damage at random to the shipped dumps: a part of what docs/robustness.md records.

No analysis fails or hangs, and no finding about what is whole is changed or lost in silence.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.mutations.copy import flattened, plain_elf
from fixtures.mutations.dumps import DUMPS
from fixtures.mutations.judge import REFUSED, UNCHANGED, WITH_GAPS, WRONG
from fixtures.mutations.run import Mutator
from fixtures.mutations.whole_files import FileDamager
from tests.dumps.conftest import ShippedDump

_EACH = 10
_MUTATIONS = 50
_FILES = 4
_ANALYSES = ("dump", "hung-tasks", "slabs")


@pytest.fixture(scope="module")
def mutator(shipped: ShippedDump, tmp_path_factory: pytest.TempPathFactory) -> Mutator:
    analyses, _ = DUMPS[shipped.name].analyses()
    folder = tmp_path_factory.mktemp("mutations")
    return Mutator(shipped.name, shipped.files.vmcore, shipped.files.symbols, folder, analyses)


def test_words_of_structures(mutator: Mutator, shipped: ShippedDump) -> None:
    runs = list(mutator.run(range(_MUTATIONS), _EACH))
    wrong = [run for run in runs if run.outcome == WRONG]
    assert not wrong, "\n".join(str(run.to_json()) for run in wrong)
    assert len(runs) == _MUTATIONS // _EACH
    # They do hit something that is looked at.
    assert any(run.outcome == WITH_GAPS for run in runs)
    assert len({mutator.mutation(seed).place.kind for seed in range(_MUTATIONS)}) > 20


def test_a_mutation_is_decided_by_its_number_and_undone(
    mutator: Mutator, shipped: ShippedDump
) -> None:
    assert mutator.mutation(7) == mutator.mutation(7)
    (run,) = mutator.run([7], 1)
    assert [mutation.seed for mutation in run.mutations] == [7]
    # The copy is in another format, and what is found in it is the same: before and after.
    names = {analysis.name for analysis in mutator.before.analyses}
    expected = {
        finding.signature: finding.confidence
        for analysis in shipped.report.analyses
        for finding in analysis.findings
        if analysis.name in names
    }
    for report in (mutator.before, mutator.report()):
        assert {f.signature: f.confidence for f in report.findings} == expected


@pytest.mark.parametrize("format", ["as it is", "elf", "flattened"])
def test_whole_files(demo_dump: ShippedDump, tmp_path: Path, format: str) -> None:
    dump = demo_dump.files.vmcore
    if format == "elf":
        dump = plain_elf(dump, demo_dump.files.symbols, tmp_path)
    elif format == "flattened":
        dump = flattened(dump, tmp_path)
    name = f"{demo_dump.name} as {format}"
    damager = FileDamager(name, dump, demo_dump.files.symbols, tmp_path, _ANALYSES)
    runs = list(damager.run(range(_FILES)))
    wrong = [run for run in runs if run.outcome == WRONG]
    assert not wrong, "\n".join(str(run.to_json()) for run in wrong)
    assert {run.outcome for run in runs} <= {REFUSED, UNCHANGED, WITH_GAPS}
