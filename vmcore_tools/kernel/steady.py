# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which objects of a target that goes on were the same when they were looked at before."""

from __future__ import annotations

from typing import Any, Dict

import numpy as np
import numpy.typing as npt
from drgn import Program

#: What is here outlives the other caches, from one look of an analysis to the next.
STEADY_KEY = "vmcore_tools.steady"


def steady(prog: Program, what: str, *facts: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """
    Compare what is wrong with objects of a live target with what was in the last look.

    A count and the holders that explain it are read one after the other. Of an object that
    is in use they differ at any moment, and differently in the next look; what is wrong stays.

    :param what: a name for what the objects are
    :param facts: arrays of shape (n,): the address of each, and what is wrong with it
    :return: bool array of shape (n,): those that were there with these facts; all in
        the first look
    """
    rows = np.stack([np.asarray(fact).astype(np.uint64) for fact in facts], axis=1)
    seen: Dict[str, npt.NDArray[np.uint64]] = prog.cache.setdefault(STEADY_KEY, {})
    before = seen.get(what)
    seen[what] = rows
    if before is None:
        return np.ones(len(rows), dtype=bool)
    known = set(map(tuple, before.tolist()))
    return np.array([tuple(row) in known for row in rows.tolist()], dtype=bool)
