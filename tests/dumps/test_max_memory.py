# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much of a dump is held at a time."""

from __future__ import annotations

import dataclasses
import tracemalloc
from typing import Any, List

import numpy as np
import pytest

from tests.dumps.conftest import ShippedDump
from vmcore_tools import cli, target
from vmcore_tools.kernel.page import page_index
from vmcore_tools.kernel.references import Targets, scan
from vmcore_tools.kernel.slab import slab_index
from vmcore_tools.model import Report

MIB = 1 << 20


def walk(dump: ShippedDump, held_bytes_max: int) -> List[int]:
    """Bytes that are held after a walk of all slabs and a scan, and most at a time."""
    opened = target.open_core(dump.files.vmcore, dump.files.symbols)
    memory = dataclasses.replace(opened.memory, held_bytes_max=held_bytes_max)
    pages = page_index(opened.prog, memory)
    index = slab_index(opened.prog, memory)
    nowhere = Targets(np.array([1], dtype=np.uint64), np.array([2], dtype=np.uint64))
    tracemalloc.start()
    try:
        for batch in index.batches():
            assert len(batch.data)
        slabs = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        scan(memory, pages, nowhere, lambda items, _what, _total: items)
        return [*slabs, *tracemalloc.get_traced_memory()]
    finally:
        tracemalloc.stop()


def test_less_is_held_if_so_asked(demo_dump: ShippedDump) -> None:
    present = demo_dump.target.memory.page_map.present_pages * demo_dump.truth["page_size_bytes"]
    after_slabs, _, after_scan, _ = walk(demo_dump, present)
    # All that was read is kept.
    assert after_slabs > present // 4
    assert after_scan > present // 2
    after_slabs, most_of_slabs, after_scan, most_of_scan = walk(demo_dump, 16 * MIB)
    assert after_slabs < MIB
    assert after_scan < MIB
    assert most_of_slabs < 16 * MIB
    # The scan's buffers have one size for all.
    assert most_of_scan < 48 * MIB


def test_batches_get_smaller_with_what_is_held(demo_dump: ShippedDump) -> None:
    def batch_bytes(held_bytes_max: int) -> int:
        memory = demo_dump.target.memory
        return dataclasses.replace(memory, held_bytes_max=held_bytes_max).batch_bytes

    assert demo_dump.target.memory.batch_bytes == 16 * MIB
    assert batch_bytes(64 * MIB) == 4 * MIB
    assert batch_bytes(0) == MIB
    assert batch_bytes(1 << 40) == 16 * MIB


@pytest.mark.parametrize(
    ("text", "held"), [("64M", 64 << 20), ("1G", 1 << 30), ("512K", 512 << 10), ("0", 0)]
)
def test_the_command_lines_option(
    monkeypatch: pytest.MonkeyPatch, demo_dump: ShippedDump, text: str, held: int
) -> None:
    seen: List[int] = []

    def run_request(opened: Any, wanted: Any) -> Report:
        seen.append(opened.memory.held_bytes_max)
        return demo_dump.report

    monkeypatch.setattr(cli, "run_request", run_request)
    cli.main(["triage", "--demo", "--max-memory", text])
    cli.main(["run", "slabs", "--demo", "--max-memory", text])
    assert seen == [held, held]


@pytest.mark.parametrize("text", ["", "M", "1.5G", "-1", "1MM", "64MB", "much"])
def test_a_size_that_is_none(capsys: pytest.CaptureFixture[str], text: str) -> None:
    # argparse takes "-1" for an option unless it is bound.
    with pytest.raises(SystemExit) as ended:
        cli.main(["triage", "--demo", f"--max-memory={text}"])
    assert ended.value.code == 2
    assert "--max-memory" in capsys.readouterr().err
