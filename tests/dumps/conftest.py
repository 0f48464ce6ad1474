# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shipped dumps, opened once for all tests, and what their guests recorded."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any, Dict

import pytest

from vmcore_tools import demo, runner, target
from vmcore_tools.demo import DemoDump
from vmcore_tools.model import Report
from vmcore_tools.target import Target


@dataclasses.dataclass(frozen=True)
class ShippedDump:
    """A shipped dump: its files, its guest's record, and our view of it."""

    name: str
    files: DemoDump
    truth: Dict[str, Any]
    target: Target
    report: Report


@functools.cache
def _open(name: str) -> ShippedDump:
    files = demo.unpack(name)
    opened = target.open_core(files.vmcore, files.symbols)
    analyses = [analysis for analysis in runner.find_analyses() if analysis.argument is None]
    report = runner.run(
        opened, analyses, {}, limit=None, progress=lambda items, _what, _total: items
    )
    return ShippedDump(name, files, json.loads(files.truth.read_text()), opened, report)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shipped" in metafunc.fixturenames:
        metafunc.parametrize("shipped", demo.shipped_dumps(), indirect=True)


@pytest.fixture(scope="session")
def shipped(request: pytest.FixtureRequest) -> ShippedDump:
    """Each of the shipped dumps."""
    return _open(request.param)


@pytest.fixture(scope="session")
def demo_dump() -> ShippedDump:
    """The dump of ``--demo``."""
    return _open(demo.DEFAULT_DUMP)
