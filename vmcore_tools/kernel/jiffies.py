# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's jiffies, in nanoseconds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from drgn import Program


def jiffy_ns(prog: Program) -> int:
    """
    The length of a jiffy in nanoseconds.

    Neither the debug info nor VMCOREINFO has CONFIG_HZ. The clock source
    "jiffies" has TICK_NSEC, in ``mult`` and ``shift``, and no clock adjustment
    changes it there.

    :raises LookupError: without the debug info of ``clocksource_jiffies``
    """
    clock = prog["clocksource_jiffies"]
    return int(clock.mult.value_() >> clock.shift.value_())


def jiffies_now(prog: Program) -> int:
    """``jiffies`` when the dump was taken; ``jiffies_64`` is the variable that it names."""
    return int(prog["jiffies_64"].value_())


def jiffies_age_ns(prog: Program, when: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """
    How long ago it was that jiffies had these values.

    :param when: uint64 array of shape (n,) of ``jiffies``
    :return: int64 array of shape (n,), nanoseconds; negative in the future
    :raises LookupError: without the debug info of the variables
    """
    # The counter wraps: the difference does not.
    passed = np.uint64(jiffies_now(prog)) - when.astype(np.uint64)
    result: npt.NDArray[np.int64] = passed.view(np.int64) * jiffy_ns(prog)
    return result
