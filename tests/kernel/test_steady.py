# SPDX-License-Identifier: LGPL-2.1-or-later
"""Objects of a live target that are the same, and wrong in the same way, look by look."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, List, Tuple

import numpy as np

from vmcore_tools import live
from vmcore_tools.kernel.steady import steady


def look(prog: Any, what: str, *objects: Tuple[int, int]) -> List[bool]:
    addresses = np.array([address for address, _ in objects], dtype=np.uint64)
    counts = np.array([count for _, count in objects], dtype=np.int64)
    return steady(prog, what, addresses, counts).tolist()


def test_what_was_the_same_in_all_looks_before() -> None:
    prog = SimpleNamespace(cache={})
    assert look(prog, "fences", (1, 1), (2, 1), (3, -5)) == [True] * 3
    assert look(prog, "fences", (1, 1), (2, 2), (3, -5), (4, 1)) == [True, False, True, False]
    # The second one stays as it is now, and was another before.
    assert look(prog, "fences", (2, 2), (3, -5)) == [False, True]
    assert look(prog, "fences", (1, 1), (3, -5)) == [False, True]
    assert look(prog, "fences") == []
    assert look(prog, "fences", (3, -5)) == [False]
    assert look(prog, "files", (4, 1)) == [True]


def test_looks_of_one_analysis_are_compared() -> None:
    prog: Any = SimpleNamespace(cache={"vmcore_tools.x": 1})
    assert not live.compares_objects(prog)
    look(prog, "fences", (1, 1))
    assert live.compares_objects(prog)
    live.forget(prog)
    assert "vmcore_tools.x" not in prog.cache
    assert look(prog, "fences", (1, 1), (2, 1)) == [True, False]
    live.begin(prog)
    assert not live.compares_objects(prog)
    assert look(prog, "fences", (3, 1)) == [True]
