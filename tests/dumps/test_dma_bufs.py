# SPDX-License-Identifier: LGPL-2.1-or-later
"""dma-bufs and files on real dumps: their guests exported no buffer, and opened many files."""

from __future__ import annotations

import numpy as np

from tests.dumps.conftest import ShippedDump
from vmcore_tools.kernel.audit import count_by_address
from vmcore_tools.kernel.dma_buf import dma_buf_reservations
from vmcore_tools.kernel.files import (
    descriptors,
    file_counts,
    files_structs,
    files_with_ops,
    mappings,
)
from vmcore_tools.kernel.scm_rights import files_in_flight
from vmcore_tools.kernel.slab import slab_index
from vmcore_tools.model import Status


def test_nothing_is_said_of_dma_bufs_where_there_are_none(shipped: ShippedDump) -> None:
    (result,) = [a for a in shipped.report.analyses if a.name == "dma-bufs"]
    assert (result.status, result.gaps) == (Status.OK, ())
    assert [table.total for table in result.tables] == [0, 0]
    assert not [f for f in shipped.report.findings if f.rule.id.startswith("VT4")]
    assert dma_buf_reservations(slab_index(shipped.target.prog, shipped.target.memory)) == ([], [])


def test_the_descriptors_of_sync_files(shipped: ShippedDump) -> None:
    """Each sync_file that the guest recorded is open once, in the process that it named."""
    index = slab_index(shipped.target.prog, shipped.target.memory)
    prog = index.prog
    files = files_with_ops(index, prog["sync_file_fops"])
    tables = files_structs(index)
    found = descriptors(prog, list(tables), files)
    assert found.unread == ()
    held = [held for held in shipped.truth["held"] if held["why"] == "sync_file"]
    numbers = {
        (task.tgid.value_(), number)
        for table, number in zip(found.owner.tolist(), found.number.tolist())
        for task in tables[table]
    }
    assert {(fence["pid"], fence["number"]) for fence in held} <= numbers
    assert len(held) > 60
    counts, read = file_counts(prog, files.tolist())
    assert read.all()
    assert count_by_address(found.file, files).tolist() == counts.tolist()
    # Each word holds the file that it is said to hold.
    assert [prog.read_word(word) for word in found.word.tolist()] == found.file.tolist()


def test_the_executables_of_processes_are_mapped(shipped: ShippedDump) -> None:
    index = slab_index(shipped.target.prog, shipped.target.memory)
    executables = {
        task.mm.exe_file.value_()
        for tasks in files_structs(index).values()
        for task in tasks
        if task.mm
    }
    files = np.array(sorted(executables - {0}), dtype=np.uint64)
    found = mappings(index, files)
    assert found.unread == ()
    assert set(found.file.tolist()) == set(files.tolist())
    assert [len(found.file) for found in files_in_flight(index, files)] == [0, 0]
