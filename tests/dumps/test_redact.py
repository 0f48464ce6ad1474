# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nothing of a real dump that identifies somebody gets through --redact, in any format."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from typing import Any, Iterator, List, Mapping, Set

import pytest
from drgn.helpers.linux.pid import for_each_task

from tests.dumps.conftest import ShippedDump
from vmcore_tools import runner
from vmcore_tools.cli import main
from vmcore_tools.masking import masking_of
from vmcore_tools.model import Report
from vmcore_tools.report import FORMATS, render

#: What the kernel prints addresses as, and shorter ones after 0x.
_ADDRESS = re.compile(r"(?:0x)?[fF]{4}[0-9a-fA-F]{12}")

_ROWS = 300


def texts(value: Any) -> Iterator[str]:
    """All strings in what a guest wrote down of itself."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
    elif isinstance(value, str):
        yield value


@pytest.fixture
def report(shipped: ShippedDump) -> Report:
    """The findings, and the first rows of each table."""
    analyses = tuple(
        dataclasses.replace(
            analysis,
            tables=tuple(
                dataclasses.replace(table, rows=table.rows[:_ROWS]) for table in analysis.tables
            ),
        )
        for analysis in shipped.report.analyses
    )
    masking = masking_of(shipped.target.prog)
    return dataclasses.replace(shipped.report, analyses=analyses, masking=masking)


@pytest.fixture
def secrets(shipped: ShippedDump) -> Set[str]:
    """Names of programs and of the host, and the command line that the guest wrote down."""
    prog = shipped.target.prog
    names = {task.comm.string_().decode() for task in for_each_task(prog) if task.mm}
    host = prog["init_uts_ns"].name.nodename.string_().decode()
    words = shipped.truth["cmdline"].split()
    # PID 1 has the name of a word.
    return {*names, host, shipped.truth["cmdline"], *words} - {"init"}


def masked_text(report: Report, format: str) -> str:
    text = html.unescape(render(report, format, redact=True))
    # The lab's host is called as its module is, and as its kernel's release ends.
    for own in ("5.10.262-vmlab", "[vmlab]", '"module": "vmlab"'):
        text = text.replace(own, "")
    return text


@pytest.mark.parametrize("format", FORMATS)
def test_no_secret_is_left(
    shipped: ShippedDump, report: Report, secrets: Set[str], format: str
) -> None:
    plain = html.unescape(render(report, format))
    masked = masked_text(report, format)
    assert {"Xorg", "vmlab", "console=ttyS0"} & secrets and "Xorg" in plain
    assert _ADDRESS.search(plain)
    for secret in sorted(secrets):
        assert not re.search(rf"(?<![\w-]){re.escape(secret)}(?![\w-])", masked), secret
    assert not _ADDRESS.findall(masked)


@pytest.mark.parametrize("format", FORMATS)
def test_no_planted_address_is_left(shipped: ShippedDump, report: Report, format: str) -> None:
    planted = {text for text in texts(shipped.truth) if _ADDRESS.fullmatch(text)}
    words = re.compile(r"[0-9a-f]{12,}")
    plain, masked = (
        {word[-16:] for word in words.findall(render(report, format, redact=redact))}
        for redact in (False, True)
    )
    digits = {address[2:] for address in planted}
    assert len(digits & plain) > 100
    assert not digits & masked


@pytest.mark.parametrize("format", FORMATS)
def test_what_helps_stays(shipped: ShippedDump, report: Report, format: str) -> None:
    masked = html.unescape(render(report, format, redact=True))
    for kept in ("VT201", "virtio_gpu_fence", "address-", "sensitive-", "5.10.262-vmlab"):
        assert kept in masked
    for finding in report.findings:
        assert finding.signature in masked
    leak = shipped.truth["leak"]
    assert f"{leak['references_leaked']:,}" in masked or str(leak["references_leaked"]) in masked


def test_all_but_names_and_addresses_stays(report: Report) -> None:
    """Word by word: numbers, symbols and texts are what they were."""
    plain, masked = (json.loads(render(report, "json", redact=redact)) for redact in (False, True))
    for before, after in zip(texts(plain), texts(masked)):
        if before != after:
            assert re.search(r"(?:sensitive|address)-[0-9a-f]{10}", after)
    assert numbers(plain) == numbers(masked)


def numbers(value: Any) -> List[int]:
    if isinstance(value, Mapping):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, int) else []


def comm_mask(shown: Report, comm: str) -> Set[str]:
    """What stands for a comm, wherever it is all of a value."""
    plain = json.loads(render(shown, "json"))
    masked = json.loads(render(shown, "json", redact=True))
    return {after for before, after in zip(texts(plain), texts(masked)) if before == comm}


def test_masks_are_the_same_in_all_formats_and_analyses(
    shipped: ShippedDump, report: Report
) -> None:
    comm = shipped.truth["leak"]["comm"]
    (mask,) = comm_mask(report, comm)
    for format in FORMATS:
        assert mask in html.unescape(render(report, format, redact=True))
    (alone,) = (a for a in runner.find_analyses() if a.name == "gem-objects")
    few = runner.run(shipped.target, (alone,), {}, limit=5, progress=lambda items, *_: items)
    few = dataclasses.replace(few, masking=masking_of(shipped.target.prog))
    assert comm_mask(few, comm) == {mask}


def test_masks_are_the_same_in_another_run(
    shipped: ShippedDump, report: Report, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a user runs it, and nothing of it on standard error."""
    main(["run", "gem-objects", "--demo", shipped.name, "--redact", "--format", "json"])
    out, err = capfd.readouterr()
    assert err == ""
    mask = comm_mask(report, shipped.truth["leak"]["comm"]).pop()
    assert mask in out
    assert shipped.truth["leak"]["comm"] not in out
