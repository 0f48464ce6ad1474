# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read-write locks of PREEMPT_RT: who waits for the readers."""

from __future__ import annotations

import re
from typing import List, Optional

from drgn import FaultError, Object

from vmcore_tools.kernel.stack_frames import Frame, pointers_in
from vmcore_tools.kernel.task import stack_range

#: What the writer waits for: the kernel does not know who they are.
READERS = "readers"

_WRITE_LOCK = re.compile(r"rwbase_write_lock|_*(down_write|rt_write_lock).*")
_HAS_WAITERS = 1


def rwbase_of_writer(task: Object, frames: List[Frame]) -> Optional[Object]:
    """
    The lock whose readers a task waits for, in ``rwbase_write_lock()``.

    It is on no list: it has the lock's rt_mutex, which keeps all others out, and
    the last reader wakes that one's owner.

    :param task: ``struct task_struct *``
    :param frames: of its stack
    :return: ``struct rwbase_rt *``
    :raises FaultError: if its stack is not in the dump
    """
    prog = task.prog_
    try:
        pointer_type = prog.pointer_type(prog.type("struct rwbase_rt"))
    except LookupError:
        return None  # before v5.15, or without PREEMPT_RT
    low, high = stack_range(task)
    for address in pointers_in(task, frames, _WRITE_LOCK):
        rwbase = Object(prog, pointer_type, address)
        try:
            owner = rwbase.rtmutex.owner.value_() & ~_HAS_WAITERS
            # READER_BIAS, which makes the count negative, is taken off.
            waits = owner == task.value_() and rwbase.readers.counter.value_() > 0
        except FaultError:
            continue
        if waits and not low <= address < high:
            return rwbase
    return None
