# SPDX-License-Identifier: LGPL-2.1-or-later
"""GEM objects whose dma-buf holds them, and does not lead to them any more."""

from __future__ import annotations

import dataclasses
from typing import Any, List, Optional, Tuple

import numpy as np
import pytest
from drgn import Program, sizeof

from drgn_scripts.gem_objects import ANALYSIS
from tests.dumps.conftest import ShippedDump
from vmcore_tools.kernel.dma_buf import DmaBufs
from vmcore_tools.kernel.drm_gem import GemObjects, gem_objects
from vmcore_tools.kernel.gem_exports import gem_exports
from vmcore_tools.kernel.gem_holders import gem_holders
from vmcore_tools.kernel.slab import slab_index
from vmcore_tools.model import Confidence, Finding, Gap, Report
from vmcore_tools.report.format import message_text
from vmcore_tools.runner import run

POISON = 0xDEAD000000000100
#: Where nothing is: dma-bufs that no dump has.
BUFFER = 0xFFFF888FFFF00000
OTHER = BUFFER + 0x10000
OPS = 0xFFFFFFFFFFF00000


def _u64(*values: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.array(values, dtype=np.uint64)


def _buffers(*rows: Tuple[int, int, int]) -> DmaBufs:
    """
    :param rows: address, ``priv`` and reservation object of each
    """
    address, priv, reservation = (_u64(*column) for column in zip(*rows))
    return DmaBufs(
        address=address,
        file=address + np.uint64(0x1000),
        refcount=np.ones(len(rows), dtype=np.int64),
        size=np.full(len(rows), 4096, dtype=np.uint64),
        reservation=reservation,
        priv=priv,
        ops=np.full(len(rows), OPS, dtype=np.uint64),
        exporter=np.zeros(len(rows), dtype=np.uint64),
        unread=(),
    )


class Exported:
    """A dump with a GEM object that has one more reference: that of a dma-buf made up for it."""

    def __init__(self, shipped: ShippedDump, patch: pytest.MonkeyPatch) -> None:
        self.shipped, self.patch = shipped, patch
        self.prog: Program = shipped.target.prog
        gems = gem_holders(slab_index(self.prog, shipped.target.memory)).gems
        (result,) = [a for a in shipped.report.analyses if a.name == "gem-objects"]
        alone = [
            row.address
            for row in result.tables[0].rows
            if (row.refcount, row.held_by_handle) == (1, 1)
        ]
        # The first ones are pointed at by what the server does.
        self.gem, self.other = alone[len(alone) // 2], alone[len(alone) // 2 + 1]
        at = gems.address.tolist()
        self.at = at.index(self.gem)
        self.resv = int(gems.reservation[self.at])
        self.other_resv = int(gems.reservation[at.index(self.other)])

    def report(self, buffers: DmaBufs) -> Report:
        def counted(*arguments: Any) -> Tuple[GemObjects, List[int]]:
            gems, unread = gem_objects(*arguments)
            counts = gems.refcount.copy()
            counts[self.at] += 1
            return dataclasses.replace(gems, refcount=counts), unread

        where = "vmcore_tools.kernel.gem_holders"
        self.patch.setattr(f"{where}.gem_objects", counted)
        self.patch.setattr(f"{where}.dma_bufs", lambda _index: buffers)
        self.patch.setattr("vmcore_tools.kernel.gem_exports._exporters", lambda _prog: [OPS])
        return run(
            self.shipped.target,
            [ANALYSIS],
            {},
            limit=None,
            progress=lambda items, _what, _total: items,
        )


@pytest.fixture
def exported(demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch) -> Exported:
    return Exported(demo_dump, monkeypatch)


def _found(report: Report) -> List[Finding]:
    return [finding for finding in report.findings if finding.rule.id.startswith("VT41")]


def _gaps(report: Report) -> List[Gap]:
    return [gap for gap in report.analyses[0].gaps if gap.what == "dma-buf of a GEM object"]


def test_a_dma_buf_that_leads_to_its_object_holds_it(exported: Exported) -> None:
    report = exported.report(_buffers((BUFFER, exported.gem, exported.resv)))
    assert (_found(report), _gaps(report)) == ([], [])


@pytest.mark.parametrize("priv", [POISON, None])
def test_nothing_is_proven_of_the_object_of_a_damaged_dma_buf(
    exported: Exported, priv: Optional[int]
) -> None:
    """Its pointer is poison, or names another object."""
    where = exported.other if priv is None else priv
    report = exported.report(_buffers((BUFFER, where, exported.resv)))
    (leak,) = _found(report)
    assert (leak.rule.id, leak.confidence) == ("VT410", Confidence.LIKELY)
    assert leak.subject.address == exported.gem
    assert any("does not lead back to it" in unread for unread in leak.unread)
    assert "a dma-buf that does not lead to its own object" in message_text(leak)
    (gap,) = _gaps(report)
    assert (gap.count, gap.material) == (1, True)


def test_a_leak_beside_a_whole_dma_buf_is_proven(exported: Exported) -> None:
    report = exported.report(_buffers((BUFFER, exported.other, exported.other_resv)))
    leaks = [finding for finding in _found(report) if finding.subject.address == exported.gem]
    assert [(leak.rule.id, leak.confidence) for leak in leaks] == [("VT410", Confidence.PROVEN)]
    assert _gaps(report) == []


def test_which_objects_a_lost_dma_buf_may_be_of(exported: Exported) -> None:
    prog = exported.prog
    behind = sizeof(prog.type("struct dma_buf"))
    zeros = np.zeros(3, dtype=np.int64)
    gems = GemObjects(
        address=_u64(0x1000, 0x2000, 0x3000),
        container=_u64(0x1000, 0x2000, 0x3000),
        cache=zeros,
        refcount=zeros + 1,
        handle_count=zeros,
        device=_u64(1, 1, 1),
        size=_u64(4096, 8192, 4096),
        name=zeros,
        dma_buf=_u64(0, BUFFER, 0),
        import_attach=_u64(0, 0, 0x9000),
        reservation=_u64(0x1100, 0x2100, 0x1100),
        structs=np.zeros((3, 0), dtype=np.uint8),
    )

    def doubtful(objects: GemObjects, *rows: Tuple[int, int, int]) -> List[bool]:
        found = gem_exports(prog, objects, _buffers(*rows))
        # Each dma-buf counts once: it is known what it holds, or not.
        assert len(found.exact.gem) + len(found.lost) == len(rows)
        return found.doubtful.tolist()  # type: ignore[no-any-return]

    exported.patch.setattr("vmcore_tools.kernel.gem_exports._exporters", lambda _prog: [OPS])
    nothing = [False, False, False]
    assert doubtful(gems, (BUFFER, 0x2000, 0x2100), (OTHER, 0x1000, 0x1100)) == nothing
    # By the reservation object, which an importer has of its exporter; by the object's pointer.
    assert doubtful(gems, (OTHER, POISON, 0x1100)) == [True, False, False]
    assert doubtful(gems, (OTHER, 0x2000, 0x1100)) == [True, False, False]
    assert doubtful(gems, (BUFFER, POISON, 0x7700)) == [False, True, False]
    # That of an object which was not found.
    assert doubtful(gems, (OTHER, POISON, 0x7700)) == nothing
    # Where there is none in common, by what the object points at, and by the size.
    bare = dataclasses.replace(gems, reservation=_u64(0, 0, 0))
    assert doubtful(bare, (BUFFER, 0x2000, BUFFER + behind)) == nothing
    assert doubtful(bare, (BUFFER, 0x1000, BUFFER + behind)) == [True, True, False]
    assert doubtful(bare, (OTHER, POISON, OTHER + behind)) == [True, False, False]
    # Who does not export GEM objects has something else there.
    exported.patch.setattr("vmcore_tools.kernel.gem_exports._exporters", lambda _prog: [])
    found = gem_exports(prog, gems, _buffers((OTHER, POISON, OTHER + behind)))
    assert len(found.lost) == 0
