# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fences that leaked stay so in every look at a target that goes on; others only seem to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from drgn import offsetof

from tests.dumps.conftest import ShippedDump
from tests.dumps.test_slab_moment import Changing
from vmcore_tools.kernel import slab as slab_module
from vmcore_tools.kernel.audit import Audit, Verdict, audit
from vmcore_tools.kernel.fence_holders import fence_holders
from vmcore_tools.kernel.slab import slab_index
from vmcore_tools.live import begin, forget


def look(opened: Any) -> Audit:
    forget(opened.prog)
    index = slab_index(opened.prog, opened.memory)
    described = fence_holders(index).described
    return audit(index, described, lambda items, what, total: items)


def test_what_is_wrong_in_every_look(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slab_module, "_goes_on", lambda prog: True)
    dump = Changing(demo_dump)
    begin(dump.target.prog)
    first = look(dump.target)
    assert first.changing and not first.can_prove and first.unsteady == 0
    leaked = np.flatnonzero(first.verdict == Verdict.LEAKED)
    planted = demo_dump.truth["leak"]["objects"]
    assert len(leaked) == planted > 1000

    second = look(dump.target)
    assert second.unsteady == 0 and (second.verdict == first.verdict).all()

    # Two are others than they were: one by its count, and one by what else it holds.
    prog = dump.target.prog
    fences = fence_holders(slab_index(prog, dump.target.memory)).described.objects
    fence = prog.type("struct dma_fence")
    for i, member, value, size in (
        (leaked[0], "refcount.refcount.refs.counter", 2, 4),
        (leaked[1], "seqno", 12345678, 8),
    ):
        address = int(fences.address[i]) + offsetof(fence, member)
        dump.write(address, value, size)
    opened = dump.reopened()
    third = look(opened)
    assert third.unsteady == 2
    assert third.verdict[leaked[:2]].tolist() == [Verdict.IN_USE] * 2
    assert (third.verdict == Verdict.LEAKED).sum() == planted - 2
    # As they were others once, nothing is said of them in this run.
    fourth = look(opened)
    assert fourth.unsteady == 2 and (fourth.verdict == Verdict.LEAKED).sum() == planted - 2
