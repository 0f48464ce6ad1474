# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where in the kernel a task sleeps, by the functions on its stack."""

from __future__ import annotations

import dataclasses
import re
from typing import List, Optional, Tuple

#: Functions that wait, and the kernel's word for the wait. The generic ones
#: are used by the others: a specific one within a few frames names the wait.
_SPECIFIC_WAITS: Tuple[Tuple[str, str], ...] = (
    (r"(__)?flush_work", "flush_work"),
    (r"(__)?flush_workqueue|drain_workqueue", "flush_workqueue"),
    (r"(__)?cancel_(delayed_)?work.*", "cancel_work_sync"),
    (r"(__)?mutex_lock.*|__ww_mutex_lock.*|ww_mutex_lock.*", "mutex"),
    (r"(__)?rt_mutex_.*lock.*|rtlock_slowlock.*", "rt_mutex"),
    (r"(rwsem_down_|__?down_read|__?down_write|down_read|down_write).*", "rwsem"),
    (r"percpu_(down_|rwsem_).*|__percpu_down_read", "percpu_rwsem"),
    (r"__down(_.*)?|down(_timeout|_killable|_interruptible)?", "semaphore"),
    (r"dma_fence_(default_)?wait.*|dma_resv_wait.*", "dma_fence"),
    (r"synchronize_rcu.*|__wait_rcu_gp|rcu_barrier|wait_rcu_.*", "rcu"),
    (r"__?synchronize_srcu.*", "srcu"),
    (r"kthread_(stop|park).*", "kthread"),
    (r"virtio_gpu_queue_.*", "virtqueue"),
    (r"(wait_on_page|folio_wait|wait_on_folio|__lock_page|__folio_lock|page_lock).*", "page"),
    (r"(__)?wait_on_buffer|__lock_buffer", "buffer"),
    (r"(out_of_line_)?wait_on_bit.*|__wait_on_bit.*", "bit"),
    (r"kernel_clone|_do_fork|wait_for_vfork_done", "vfork"),
    (r"msleep|schedule_timeout_uninterruptible|usleep_range.*|schedule_hrtimeout.*", "timer"),
)
_GENERIC_WAITS: Tuple[Tuple[str, str], ...] = (
    (r"wait_for_(common|completion).*|do_wait_for_common|__wait_for_common", "completion"),
    (r"io_schedule.*|blk_mq_get_tag|bit_wait_io", "io"),
    (r"prepare_to_wait.*|do_wait_intr.*|wait_woken", "wait queue"),
)
#: Frames behind a generic wait in which the specific one must stand.
_CALLERS_LOOKED_AT = 4
#: What is between a wait and the switch to another task.
_SCHEDULER = re.compile(
    r"(__)?schedule(_timeout|_preempt_disabled)?|context_switch|__switch_to(_asm)?"
    r"|preempt_schedule.*|schedule_rtlock|__schedule_loop"
)


def _match(function: str, waits: Tuple[Tuple[str, str], ...]) -> Optional[str]:
    # GCC's clones: foo.isra.0, foo.constprop.1, foo.part.2.
    base = function.partition(".")[0]
    for pattern, name in waits:
        if re.fullmatch(pattern, base):
            return name
    return None


@dataclasses.dataclass(frozen=True)
class SleepPlace:
    """
    :ivar kind: the kernel's word for the wait, None if no function tells
    :ivar function: the outermost function of the wait
    :ivar called_from: the first function behind that
    """

    kind: Optional[str]
    function: Optional[str]
    called_from: Optional[str]


def sleep_place(functions: List[str]) -> SleepPlace:
    """
    Where a stack sleeps.

    :param functions: names, the innermost first
    """
    names = list(functions)
    while names and _SCHEDULER.fullmatch(names[0].partition(".")[0]):
        names.pop(0)
    kind: Optional[str] = None
    last = -1
    for number, name in enumerate(names[: _CALLERS_LOOKED_AT + last + 2]):
        generic = _match(name, _GENERIC_WAITS)
        if generic is not None and kind is None:
            kind, last = generic, number
        elif generic is not None:
            last = number
    limit = last + 1 + _CALLERS_LOOKED_AT
    for number, name in enumerate(names[:limit]):
        specific = _match(name, _SPECIFIC_WAITS)
        if specific is not None:
            kind, last = specific, number
            # The outermost function of the same wait: flush_work, not __flush_work.
            while last + 1 < len(names) and _match(names[last + 1], _SPECIFIC_WAITS) == specific:
                last += 1
            break
    if kind is None:
        last = 0
    if not names:
        return SleepPlace(kind, None, None)
    function = names[last]
    behind = (name for name in names[last + 1 :] if not _are_one(name, function))
    return SleepPlace(kind, function, next(behind, None))


def _are_one(name: str, other: str) -> bool:
    """Whether it is the same function, a part of which was made inline."""
    return name.partition(".")[0] == other.partition(".")[0]
