# SPDX-License-Identifier: LGPL-2.1-or-later
"""
References that a task has not in its own variables, but in a structure that it has.

A driver collects the objects of a request in an array, and only its stack has
the pointer to the array. For as long as that takes, the references in it are
as much in use as those on the stack itself.
"""

from __future__ import annotations

import dataclasses
from typing import Dict, Set

import numpy as np

from vmcore_tools.kernel.at_hand import at_hand
from vmcore_tools.kernel.audit import Audit, Verdict
from vmcore_tools.kernel.references import Place
from vmcore_tools.kernel.slab import SlabIndex


def with_containers_in_use(index: SlabIndex, result: Audit) -> Audit:
    """
    Take objects for in use that tasks have through another slab object.

    Of the objects with unknown holders, those with as many references left as
    tasks have pointers to them, and to slab objects with a pointer to them.

    :raises drgn.FaultError: if the list of tasks cannot be read
    """
    unknown = np.flatnonzero(
        np.isin(result.verdict, [Verdict.UNKNOWN_HOLDER, Verdict.NOT_JUDGED])
    ).tolist()
    containers: Dict[int, Set[int]] = {
        i: {r.container for r in result.pointers[i] if r.place == Place.SLAB_OBJECT}
        for i in unknown
    }
    every = np.array(sorted({c for some in containers.values() for c in some}), dtype=np.uint64)
    if not len(every):
        return result
    busy = set(every[at_hand(index, every)].tolist())
    verdict = result.verdict.copy()
    for i in unknown:
        tasks = sum(r.place in (Place.TASK_STACK, Place.REGISTER) for r in result.pointers[i])
        if tasks + len(containers[i] & busy) >= result.left[i]:
            verdict[i] = Verdict.IN_USE
    return dataclasses.replace(result, verdict=verdict)
