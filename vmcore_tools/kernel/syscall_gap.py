# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a system call's stack begins: at a random depth, above what nobody writes."""

from __future__ import annotations

import re
from typing import List, Optional, Tuple

from vmcore_tools.kernel.stack_frames import Frame

#: Who calls add_random_kstack_offset(), which allocates up to 1 KiB on its stack and writes
#: nothing there: "stack: Optionally randomize kernel stack offset each syscall" in v5.13.
_ENTRIES = re.compile(
    r"do_syscall_64|__do_fast_syscall_32|do_int80_syscall_32|(do_)?int80_emulation|invoke_syscall"
)
#: The gap, the frames around it and the registers of user mode lie in this.
SYSCALL_GAP_BYTES_MAX = 2048


def syscall_gap(frames: List[Frame]) -> Optional[Tuple[int, int]]:
    """
    The frame of a task's stack that has the gap in it.

    What else is there are the number and the saved registers of the system call;
    all that it works with is in the frames of its own function, which the table
    of system calls names and which is not inlined.

    :param frames: of its stack
    :return: ``[low, high)``; None if it is in no system call
    """
    for (pointer, names), (above, _) in zip(frames, frames[1:]):
        if any(_ENTRIES.fullmatch(name) for name in names):
            return (pointer, above) if above - pointer <= SYSCALL_GAP_BYTES_MAX else None
    return None
