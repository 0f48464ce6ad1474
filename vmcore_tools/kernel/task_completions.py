# SPDX-License-Identifier: LGPL-2.1-or-later
"""The completions that tasks complete: when they end, or when a kernel thread parks."""

from __future__ import annotations

import dataclasses
from typing import Dict, Iterable, Optional

from drgn import FaultError, Object, cast

#: include/linux/sched.h: a macro.
_PF_KTHREAD = 0x00200000


@dataclasses.dataclass(frozen=True)
class CompletedByTasks:
    """
    Who completes what: address of a ``struct completion`` to ``struct task_struct *``.

    :ivar at_end: of vfork(), and of kthread_stop()
    :ivar when_parked: of kthread_park()
    """

    at_end: Dict[int, Object]
    when_parked: Dict[int, Object]


def completed_by_tasks(tasks: Iterable[Object]) -> CompletedByTasks:
    """
    The completions of tasks; a task that cannot be read has none.

    :param tasks: ``struct task_struct *`` of each
    """
    found = CompletedByTasks({}, {})
    for task in tasks:
        try:
            at_end = task.vfork_done.value_()
            kthread = to_kthread(task)
        except FaultError:
            continue
        if at_end:
            found.at_end[at_end] = task
        if kthread is not None:
            found.when_parked[kthread.parked.address_of_().value_()] = task
    return found


def to_kthread(task: Object) -> Optional[Object]:
    """
    What the kernel keeps of a kernel thread; mirrors the function of that name.

    :param task: ``struct task_struct *``
    :return: ``struct kthread *``; None if it is no such thread
    """
    if not task.flags.value_() & _PF_KTHREAD:
        return None
    # e32cf5dfbe22 ("kthread: Generalize pf_io_worker so it can point to
    # struct kthread") in v5.17; before, set_child_tid had it.
    try:
        pointer = task.worker_private
    except AttributeError:
        pointer = task.set_child_tid
    try:
        kthread = cast("struct kthread *", pointer)
    except LookupError:
        return None
    return kthread.read_() if kthread else None
