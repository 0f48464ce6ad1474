# SPDX-License-Identifier: LGPL-2.1-or-later
"""References to a thing that none of its links is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Dict, List, Tuple

import numpy as np
import pytest

from vmcore_tools.kernel.audit import Counted, Holders, Refcounted
from vmcore_tools.kernel.buffer_chain import (
    BufferChains,
    Link,
    Node,
    What,
    _Counts,
    chain_of,
)

GEM = Node(What.GEM, 0x1000)
FENCE = Node(What.FENCE, 0x2000)
OWNER = Node(What.DRM_FILE, 0x3000)


class OneGem(BufferChains):
    """Holders by kind and references left of one GEM object; and the count of the others."""

    def __init__(self, holders: Dict[str, int], left: int, refcount: int = 0) -> None:
        held = {kind: np.array([count]) for kind, count in holders.items()}
        self._audited = {What.GEM: _Counts({GEM.address: 0}, held, np.array([left]))}
        self.refcount = refcount
        self.links: List[Link] = []

    def _refcount(self, node: Node) -> int:
        return self.refcount

    def keepers(self, node: Node) -> List[Link]:  # type: ignore[override]
        return [link for link in self.links if link.kept == node]

    def kept(self, node: Node) -> List[Link]:  # type: ignore[override]
        return [link for link in self.links if link.keeper == node]


def links(*references: Tuple[str, int], kept: Node = GEM) -> List[Link]:
    return [Link(kept, OWNER, "", kind, word) for kind, word in references]


@pytest.mark.parametrize(
    ("holders", "left", "references", "expected"),
    [
        # All handles are one reference, and a framebuffer can have the last of them.
        ({"handle": 1}, 0, [("handle", 1), ("handle", 2)], 0),
        ({"handle": 1, "framebuffer": 1}, 0, [("framebuffer", 1)], 0),
        ({"handle": 1}, 0, [], 1),
        ({"mapping": 2}, 0, [("mapping", 1)], 1),
        # The table of descriptors is that of two processes.
        ({"descriptor": 2}, 0, [("descriptor", 1), ("descriptor", 1)], 1),
        ({"console": 1}, 0, [("command", 1), ("mapping", 2)], 1),
        ({"handle": 1}, 3, [("handle", 1)], 3),
        ({"handle": 1, "command": 2}, 1, [("handle", 1)], 3),
        # One that holds nothing does not stand for another.
        ({"mapping": 0}, 1, [("mapping", 1)], 1),
    ],
)
def test_what_the_audit_counts_and_no_link_is(
    holders: Dict[str, int], left: int, references: List[Tuple[str, int]], expected: int
) -> None:
    assert OneGem(holders, left).not_drawn(GEM, links(*references)) == expected


@pytest.mark.parametrize(
    ("refcount", "expected"), [(1, 0), (2, 1), (0, 0), (-(1 << 30), 1), (-5, 1), (1 << 25, 1)]
)
def test_a_count_that_cannot_be_is_of_somebody_else(refcount: int, expected: int) -> None:
    address, sizes = np.array([GEM.address], dtype=np.uint64), np.array([8])
    counted = Counted(address, np.array([refcount]), address, sizes, np.array([0]))
    handles = [Holders("handle", address, address, at_most=True)]
    everything = np.ones(1, dtype=bool)
    chains = OneGem({}, 0)
    chains._audited = {}
    chains.gems = SimpleNamespace(  # type: ignore[assignment]
        described=Refcounted(counted, handles, everything, everything),
        gems=SimpleNamespace(address=address),
    )
    assert chains.not_drawn(GEM, links(("handle", 1))) == expected


def test_things_with_a_count_of_their_own() -> None:
    assert OneGem({}, 0, 3).not_drawn(FENCE, links(("", 1), ("", 1), ("", 2))) == 1
    assert OneGem({}, 0, 0).not_drawn(OWNER, links(("", 1))) == 0


def test_what_is_left_out_is_counted_by_kind() -> None:
    chains = OneGem({"handle": 1}, 0)
    others = [Node(What.GEM, address) for address in range(0x4000, 0x4500, 0x100)]
    chains.links = [Link(gem, OWNER, "") for gem in (GEM, *others)] + [Link(FENCE, GEM, "")]
    assert chain_of(chains, OWNER, 3).left_out == {What.GEM: 4, What.FENCE: 1}
    assert chain_of(chains, OWNER, 100).left_out == {}


def test_a_chain_counts_what_was_followed_up() -> None:
    chains = OneGem({"handle": 1}, 2, 5)
    chains.links = [Link(FENCE, GEM, "", "", 7), *links(("handle", 1))]
    chain = chain_of(chains, GEM, 100)
    assert set(chain.nodes) == {GEM, FENCE, OWNER}
    assert chain.left_out == {}
    # Other buffers may have the fence: it is not followed.
    assert chain.not_drawn == {GEM: 2, OWNER: 5}
    assert chain_of(chains, FENCE, 100).not_drawn == {FENCE: 4, GEM: 2, OWNER: 5}
