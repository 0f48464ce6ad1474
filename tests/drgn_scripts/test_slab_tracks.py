# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who allocated: comms, and PIDs that were used again."""

from __future__ import annotations

from collections import Counter
from typing import Dict, List, Optional, Tuple

import numpy as np
import pytest
from drgn import Architecture, Platform, Program

from drgn_scripts.slab_tracks import _groups, _joined, _who
from vmcore_tools.kernel.recorded_tasks import RecordedTasks

SECOND = 1_000_000_000
NOW = 100 * SECOND


class Known(RecordedTasks):
    """Threads by PID: comm, and when they started."""

    def __init__(self, threads: Dict[int, Tuple[str, int]], now_ns: Optional[int] = NOW) -> None:
        super().__init__(Program(Platform(Architecture.X86_64)))
        self._now_ns = now_ns
        self.threads = threads
        self.asked: List[int] = []

    def _look_up(self, pid: int) -> Tuple[Optional[str], int]:
        self.asked.append(pid)
        return self.threads.get(pid, (None, 0))


def text(tasks: RecordedTasks, *records: Tuple[int, int]) -> str:
    """What is said of records of (PID, age in seconds)."""
    pids = np.array([pid for pid, _ in records], dtype=np.int64)
    ages = np.array([-1 if age < 0 else age * SECOND for _, age in records], dtype=np.int64)
    return _who(tasks, pids, ages)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([(47, 20), (47, 10)], "Xorg"),
        ([(47, 20), (48, 10), (47, 5)], "Xorg, systemd"),
        # Both threads of one comm.
        ([(47, 20), (49, 10)], "Xorg"),
        ([(1000, 20)], "PID 1000, which has ended"),
        ([(1000, 20), (1001, 20), (1001, 7)], "2 ended tasks"),
        ([(47, 20), (1000, 20)], "Xorg, 1 ended task"),
        # PID 50 started 10 s ago: it is not who allocated 20 s ago.
        ([(50, 20)], "PID 50, which has ended"),
        ([(50, 20), (50, 9)], "young, 1 ended task"),
        # A tick later than its start by the other clock.
        ([(51, 0)], "newborn"),
        # No age: the PID is all that there is to go by.
        ([(50, -1)], "young"),
    ],
)
def test_comms(records: List[Tuple[int, int]], expected: str) -> None:
    comms = Known(
        {
            47: ("Xorg", 5 * SECOND),
            48: ("systemd", 0),
            49: ("Xorg", 6 * SECOND),
            50: ("young", 90 * SECOND),
            51: ("newborn", NOW + 3_000_000),
        }
    )
    assert text(comms, *records) == expected


def test_without_the_time_of_the_dump_a_pid_is_believed() -> None:
    assert text(Known({50: ("young", 90 * SECOND)}, now_ns=None), (50, 20)) == "young"


def test_a_pid_is_looked_up_once() -> None:
    comms = Known({47: ("Xorg", 0)})
    text(comms, (47, 1), (47, 2))
    text(comms, (47, 3), (48, 3))
    assert comms.asked == [47, 48]


def test_the_most_frequent_comms_are_named() -> None:
    assert _joined(Counter(a=1, b=5, c=1, d=1, e=1, f=1)) == "b, a, c, d and 2 others"
    assert _joined(Counter(a=1, b=1, c=1, d=1)) == "a, b, c, d"
    assert _joined(Counter()) == ""


def test_records_without_a_stack_are_in_no_group() -> None:
    found = {
        position: members.tolist()
        for position, members in _groups(np.array([3, -1, 0, 3, -1], dtype=np.int64))
    }
    assert found == {0: [2], 3: [0, 3]}
    assert list(_groups(np.array([-1, -1], dtype=np.int64))) == []
