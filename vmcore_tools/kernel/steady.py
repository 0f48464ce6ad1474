# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which objects of a target that goes on were the same each time that they were looked at."""

from __future__ import annotations

from typing import Any, Dict

import numpy as np
import numpy.typing as npt
from drgn import Program

#: What is here outlives the other caches, from one look of an analysis to the next.
STEADY_KEY = "vmcore_tools.steady"

# Odd, and without a pattern of bits: 2**64 divided by the golden ratio.
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)


def steady(prog: Program, what: str, *facts: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """
    Compare what is wrong with objects of a live target with what was in all looks before.

    A count and the holders that explain it are read one after the other. Of an object that
    is in use they differ at any moment, and differently in the next look; what is wrong stays.

    :param what: a name for what the objects are
    :param facts: arrays of shape (n,): the address of each, and what is wrong with it
    :return: bool array of shape (n,): those that were there with these facts each time;
        all in the first look
    """
    keys = np.zeros(len(facts[0]), dtype=np.uint64)
    for fact in facts:
        keys = (keys ^ fact.astype(np.uint64)) * _FACTOR
        keys ^= keys >> _SHIFT
    seen: Dict[str, npt.NDArray[np.uint64]] = prog.cache.setdefault(STEADY_KEY, {})
    same = np.isin(keys, seen[what]) if what in seen else np.ones(len(keys), dtype=bool)
    seen[what] = keys[same]
    return same
