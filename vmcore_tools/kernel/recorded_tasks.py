# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who the tasks are whose PIDs the kernel has recorded."""

from __future__ import annotations

from collections import Counter
from typing import Dict, Optional, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Program

from vmcore_tools.kernel.task import find_task, task_comm

#: How far a task's start and a record's jiffies can be apart: they tick at 100 Hz at least.
_TICK_NS_MAX = 20_000_000

Ints = npt.NDArray[np.int64]


class RecordedTasks:
    """The threads of PIDs, each looked up once."""

    def __init__(self, prog: Program) -> None:
        self._prog = prog
        self._known: Dict[int, Tuple[Optional[str], int]] = {}
        try:
            # The time since boot at which jiffies got their value.
            self._now_ns: Optional[int] = prog["last_jiffies_update"].value_()
        except LookupError:
            self._now_ns = None

    def comms(self, pids: Ints, ages_ns: Ints) -> Tuple[Counter[str], Counter[int]]:
        """
        How many of n records each comm has, and each PID whose thread has ended.

        A thread that started after a record was made is not the one of the
        record: it only has the same PID.

        :param pids: int64 array of shape (n,)
        :param ages_ns: int64 array of shape (n,), -1 where it is not known
        """
        living: Counter[str] = Counter()
        ended: Counter[int] = Counter()
        order = np.argsort(pids, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(pids[order])) + 1) if len(pids) else []
        for members in groups:
            pid = int(pids[members[0]])
            comm, start_ns = self._of(pid)
            its = self._since(ages_ns[members], start_ns) if comm is not None else 0
            if comm is not None and its:
                living[comm] += its
            if its < len(members):
                ended[pid] += len(members) - its
        return living, ended

    def _since(self, ages_ns: Ints, start_ns: int) -> int:
        """How many records were made when the thread had started."""
        if self._now_ns is None:
            return len(ages_ns)
        made_ns = self._now_ns - ages_ns + _TICK_NS_MAX
        return int(((ages_ns < 0) | (made_ns >= start_ns)).sum())

    def _of(self, pid: int) -> Tuple[Optional[str], int]:
        """A thread's comm, and when it started, since boot."""
        if pid not in self._known:
            self._known[pid] = self._look_up(pid)
        return self._known[pid]

    def _look_up(self, pid: int) -> Tuple[Optional[str], int]:
        if pid == 0:
            return "swapper", 0
        try:
            task = find_task(self._prog, pid)
            return (task_comm(task), task.start_time.value_()) if task else (None, 0)
        except FaultError:
            return None, 0
