# SPDX-License-Identifier: LGPL-2.1-or-later
"""References to a thing that none of its links is."""

from __future__ import annotations

from typing import Dict, List, Tuple

import numpy as np
import pytest

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


class Counted(BufferChains):
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
    assert Counted(holders, left).not_drawn(GEM, links(*references)) == expected


def test_things_with_a_count_of_their_own() -> None:
    assert Counted({}, 0, 3).not_drawn(FENCE, links(("", 1), ("", 1), ("", 2))) == 1
    assert Counted({}, 0, 0).not_drawn(OWNER, links(("", 1))) == 0


def test_a_chain_counts_what_was_followed_up() -> None:
    chains = Counted({"handle": 1}, 2, 5)
    chains.links = [Link(FENCE, GEM, "", "", 7), *links(("handle", 1))]
    chain = chain_of(chains, GEM, 100)
    assert set(chain.nodes) == {GEM, FENCE, OWNER}
    # Other buffers may have the fence: it is not followed.
    assert chain.not_drawn == {GEM: 2, OWNER: 5}
    assert chain_of(chains, FENCE, 100).not_drawn == {FENCE: 4, GEM: 2, OWNER: 5}
