# SPDX-License-Identifier: LGPL-2.1-or-later
"""What waits for kfree_rcu() to free it points at nothing; the lab has real objects that wait."""

from __future__ import annotations

from typing import List

import numpy as np
import pytest

from tests.dumps.conftest import ShippedDump
from vmcore_tools.kernel import references
from vmcore_tools.kernel.kfree_rcu import KfreeRcu, kfree_rcu
from vmcore_tools.kernel.page import page_index
from vmcore_tools.kernel.references import Attribution, Place, Reference, Targets, scan
from vmcore_tools.kernel.slab import slab_index
from vmcore_tools.kernel.virtual_map import virtual_map


def references_to(dump: ShippedDump, address: int) -> List[Reference]:
    prog, memory = dump.target.prog, dump.target.memory
    pages = page_index(prog, memory)
    targets = Targets(
        np.array([address], dtype=np.uint64), np.array([address + 8], dtype=np.uint64)
    )
    hits, _ = scan(memory, pages, targets, lambda items, _what, _total: items)
    virtual = virtual_map(prog, memory.page_map.page_size_bytes)
    made = Attribution.of(prog, slab_index(prog, memory), pages, virtual)
    return made.references(targets, hits)


def test_nothing_waits_long_after_the_last_free(shipped: ShippedDump) -> None:
    found = kfree_rcu(shipped.target.prog, shipped.truth["page_size_bytes"])
    assert found.unread == ()
    # Each CPU has its own lists, if nothing else.
    assert len(found.own) >= 2
    leaked = shipped.truth["leak"]["addresses_only_leaked"]
    assert not found.waits(np.array([int(a, 16) for a in leaked], dtype=np.uint64)).any()


def test_a_holder_that_waits_to_be_freed_holds_nothing(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = next(h for h in demo_dump.truth["held"] if h["why"] == "reservation")
    fence = int(held["address"], 16)
    before = [
        reference
        for reference in references_to(demo_dump, fence)
        if reference.place is Place.SLAB_OBJECT and reference.non_reference is None
    ]
    assert before
    holder = before[0].container
    waiting = KfreeRcu(np.array([holder], dtype=np.uint64), np.zeros((0, 2), dtype=np.uint64), ())
    monkeypatch.setattr(references, "kfree_rcu", lambda prog, page_size: waiting)
    after = {r.container: r.non_reference for r in references_to(demo_dump, fence)}
    assert after[holder] == "the slab object waits to be freed (kfree_rcu)"
