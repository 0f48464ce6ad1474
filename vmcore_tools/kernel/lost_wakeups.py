# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Sleepers whose wait is over: what they wait for has come, and nobody wakes them.

That can be told only of waits whose condition is a kernel object's own word: a
completion that is done, a bit that is clear, a fence that is signaled, a lock
that is free. Of a plain wait queue the condition is known to the sleeper alone.
"""

from __future__ import annotations

from typing import Callable, Dict

import numpy as np
import numpy.typing as npt
from drgn import Object, sizeof

from vmcore_tools.kernel.locks import next_owner
from vmcore_tools.kernel.waits import Wait


def is_over(wait: Wait, task: Object) -> bool:
    """
    Whether what a sleeping task waits for has come.

    :param task: ``struct task_struct *``; it is on no CPU and no run queue
    :return: False also if that cannot be told
    :raises FaultError: if the object cannot be read
    """
    condition = _CONDITIONS.get(wait.kind)
    return condition is not None and condition(wait, task)


def may_be_about_to_wake(wait: Wait, task: Object, at_hand: npt.NDArray[np.uint64]) -> bool:
    """
    Whether somebody who can run may be about to wake a task whose wait is over.

    Between the two steps of ending a wait, the waker has the object at hand, or
    the task is on its list of tasks to wake (``wake_q``).

    :param task: ``struct task_struct *``
    :param at_hand: of :func:`vmcore_tools.kernel.task.words_at_hand`
    :raises FaultError: if the task cannot be read
    """
    if task.wake_q.next:
        return True
    start = wait.object.value_()
    for first, size in ((start, _size(wait)), (task.value_(), sizeof(task.type_.type))):
        low, high = np.searchsorted(at_hand, np.array([first, first + size], dtype=np.uint64))
        if low < high:
            return True
    return False


def _size(wait: Wait) -> int:
    try:
        return max(8, int(sizeof(wait.object.type_.type)))
    except TypeError:
        return 8  # of void


def _completion(wait: Wait, task: Object) -> bool:
    return bool(wait.object.done.value_())


def _flush_work(wait: Wait, task: Object) -> bool:
    return bool(wait.object.done.done.value_())


def _bit(wait: Wait, task: Object) -> bool:
    assert wait.bit is not None
    word = task.prog_.read_u64(wait.object.value_() + wait.bit // 64 * 8)
    return not word >> wait.bit % 64 & 1


def _dma_fence(wait: Wait, task: Object) -> bool:
    bit = task.prog_.constant("DMA_FENCE_FLAG_SIGNALED_BIT").value_()
    return bool(wait.object.flags.value_() >> bit & 1)


def _semaphore(wait: Wait, task: Object) -> bool:
    return bool(wait.object.count.value_())


def _lock(wait: Wait, task: Object) -> bool:
    return bool(next_owner(wait.kind, wait.object) == task)


_CONDITIONS: Dict[str, Callable[[Wait, Object], bool]] = {
    "completion": _completion,
    "rcu": _completion,
    "flush_work": _flush_work,
    "bit": _bit,
    "buffer": _bit,
    "page": _bit,
    "dma_fence": _dma_fence,
    "semaphore": _semaphore,
    "mutex": _lock,
    "rwsem": _lock,
    "rt_mutex": _lock,
}
