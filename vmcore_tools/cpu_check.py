# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether the CPU computes what NumPy means: emulated ones may not."""

from __future__ import annotations

import numpy as np

from vmcore_tools.errors import TargetError

#: As many as NumPy sorts with vector instructions.
_COUNT = 1024
#: 2**64 divided by the golden ratio: its multiples are in no order.
_STEP = 0x9E3779B97F4A7C15


def check_cpu() -> None:
    """
    Have NumPy sort something.

    QEMU 7.2 without KVM emulates AVX2 so that ``numpy.argsort()`` of NumPy 2 sorts wrongly,
    and with it everything that looks up addresses: nothing that is found would be true.

    :raises TargetError: if it sorts wrongly
    """
    values = np.arange(_COUNT, dtype=np.uint64) * np.uint64(_STEP)
    ordered = values[np.argsort(values)]
    if not (ordered[1:] > ordered[:-1]).all():
        raise TargetError(
            "NumPy sorts wrongly on this CPU, as it does where QEMU emulates AVX2; run it again"
            " with NPY_DISABLE_CPU_FEATURES=X86_V3 in the environment (AVX2 up to NumPy 2.3), or"
            " open a dump of this machine on another one"
        )
