# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who keeps a CPU, and who waits for it: told from what the kernel notes of tasks."""

from __future__ import annotations

from typing import Any, Dict, Optional, cast

import pytest
from drgn import Object
from hypothesis import given
from hypothesis import strategies as st

from vmcore_tools.kernel.run_queue import (
    RunQueue,
    current_ran_anywhere_ns,
    current_ran_ns,
    is_of_low_weight,
    is_throttled,
    ran_at_least_ns,
    unlisted_tasks,
)

S = 1_000_000_000
NOW = 1000 * S
FIFO, NORMAL, BATCH, IDLE = 1, 0, 3, 5


class Value:
    """An integer of the kernel."""

    def __init__(self, value: int) -> None:
        self._value = value

    def value_(self) -> int:
        return self._value


class Struct:
    """As much of a ``drgn.Object`` of a structure, or of a pointer to one, as is needed."""

    def __init__(self, **members: Any) -> None:
        for name, value in members.items():
            setattr(self, name, Value(value) if isinstance(value, int) else value)

    def address_of_(self) -> Struct:
        return self

    def read_(self) -> Struct:
        return self


class Null:
    def read_(self) -> Null:
        return self

    def __bool__(self) -> bool:
        return False


FAIR_CLASS, RT_CLASS, DL_CLASS, EXT_CLASS = Struct(), Struct(), Struct(), Struct()
CLASSES: Dict[str, Struct] = {
    "fair_sched_class": FAIR_CLASS,
    "dl_sched_class": DL_CLASS,
    "ext_sched_class": EXT_CLASS,
}


def task(
    *,
    started: int = 0,
    runtime: int = 0,
    picked_at: int = 0,
    last_arrival: Optional[int] = None,
    sched_class: Struct = RT_CLASS,
    exec_start: int = NOW,
    migrations: int = 0,
    cpus_allowed: int = 2,
    **members: Any,
) -> Any:
    info = Struct() if last_arrival is None else Struct(last_arrival=last_arrival)
    return Struct(
        prog_=CLASSES,
        start_time=started,
        sched_info=info,
        sched_class=sched_class,
        se=Struct(
            exec_start=exec_start,
            sum_exec_runtime=runtime,
            prev_sum_exec_runtime=picked_at,
            nr_migrations=migrations,
        ),
        nr_cpus_allowed=cpus_allowed,
        **members,
    )


def queue(current: Any, runs_ns: Optional[int] = None, **members: Any) -> RunQueue:
    clocks = {"clock": NOW, "clock_task": NOW}
    rq = cast(Object, Struct(**clocks, idle=Struct(), prog_=members.pop("prog", {}), **members))
    return RunQueue(1, True, rq, current, runs_ns, ())


def test_a_task_that_ran_all_its_life_ran_all_the_time_that_others_waited() -> None:
    # It was preempted for 50 ms in all, which may have been within these 15 s.
    hog = task(started=NOW - 16 * S, runtime=16 * S - S // 20)
    assert 14.9 * S < current_ran_ns(queue(hog), 15 * S, NOW) < 15 * S


@pytest.mark.parametrize(
    ("members", "certain"),
    [
        ({"migrations": 1}, False),
        ({"migrations": 1, "cpus_allowed": 1}, True),
        ({"migrations": 1, "cpus_allowed": 1, "migration_disabled": 0}, True),
        ({"migrations": 1, "cpus_allowed": 1, "migration_disabled": 1}, False),
        ({"migration_disabled": 1}, True),
    ],
)
def test_a_task_may_have_run_on_another_cpu(members: Dict[str, int], certain: bool) -> None:
    # It came here a moment ago.
    hog = task(started=NOW - 16 * S, runtime=16 * S - S // 20, **members)
    here = queue(hog, S // 2)
    assert current_ran_anywhere_ns(here, 15 * S, NOW) > 14.9 * S
    assert (current_ran_ns(here, 15 * S, NOW) > 14.9 * S) is certain
    assert current_ran_ns(here, 15 * S, NOW) >= S // 2


def test_who_has_just_preempted_the_task_to_blame_has_run_for_no_time() -> None:
    thread = task(started=0, runtime=300 * S)
    assert current_ran_ns(queue(thread), 25 * S, NOW) == 0
    assert current_ran_ns(queue(thread, 2000), 25 * S, NOW) == 2000


def test_two_tasks_that_take_turns_have_each_run_half_of_the_time() -> None:
    one = task(started=NOW - 60 * S, runtime=30 * S)
    assert current_ran_ns(queue(one, S // 10), 25 * S, NOW) == S // 10


def test_an_arrival_long_ago_is_enough_and_a_cpu_without_ticks_as_well() -> None:
    assert current_ran_ns(queue(task(), 30 * S), 25 * S, NOW) == 25 * S
    stuck = task(exec_start=NOW - 22 * S)
    assert current_ran_ns(queue(stuck), 25 * S, NOW) == 22 * S


def test_the_life_of_a_task_is_told_by_the_clock_of_its_start() -> None:
    # The scheduler's clock is 100 ms behind: by that alone it ran for longer than it lived.
    hog = task(started=NOW - 16 * S, runtime=16 * S + S // 20)
    assert current_ran_ns(queue(hog), 15 * S, NOW) == 0
    timekeeper = Struct(
        xtime_sec=1_700_001_000,
        tkr_mono=Struct(xtime_nsec=S // 10 << 8, shift=8),
        wall_to_monotonic=Struct(tv_sec=-1_700_000_000, tv_nsec=0),
    )
    prog = {"tk_core": Struct(timekeeper=timekeeper)}
    assert 14.9 * S < current_ran_ns(queue(hog, prog=prog), 15 * S, NOW) < 15 * S


def test_clocks_that_do_not_go_together_prove_nothing() -> None:
    assert ran_at_least_ns(15 * S, 10 * S, 20 * S) == 0
    # 500 ppm of ten days are seven minutes.
    assert ran_at_least_ns(25 * S, 864_000 * S, 864_000 * S - S) == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 1000)), min_size=1), st.integers(0, 5000))
def test_no_task_has_run_for_less_than_is_claimed(life: Any, window: int) -> None:
    # What it did, the last first.
    runtime = sum(length for ran, length in life if ran)
    in_window, left = 0, window
    for ran, length in life:
        in_window += min(length, left) if ran else 0
        left -= min(length, left)
    assert ran_at_least_ns(window, sum(length for _, length in life), runtime) <= in_window


def group(parent: Any = None, **members: int) -> Struct:
    return Struct(cfs_rq=Struct(**members), parent=parent or Null())


@pytest.mark.parametrize(
    ("own", "above", "expected"),
    [
        ({"throttled": 0, "throttle_count": 0}, {"throttled": 0, "throttle_count": 0}, False),
        ({"throttled": 0, "throttle_count": 1}, {"throttled": 0, "throttle_count": 0}, True),
        ({"throttled": 0, "throttle_count": 0}, {"throttled": 1, "throttle_count": 1}, True),
        ({}, {}, False),  # no CONFIG_CFS_BANDWIDTH
    ],
)
def test_a_task_of_a_throttled_group_does_not_wait_for_the_cpu(
    own: Dict[str, int], above: Dict[str, int], expected: bool
) -> None:
    one: Any = Struct(prog_=CLASSES, sched_class=FAIR_CLASS, se=group(group(**above), **own))
    assert is_throttled(one) is expected
    # A real-time task is not in the fair class's groups.
    one.sched_class = RT_CLASS
    assert is_throttled(one) is False


def test_where_tasks_are_throttled_one_by_one_each_says_so() -> None:
    # It runs on in the kernel, though its group is throttled.
    se = group(throttled=1, throttle_count=1)
    one: Any = Struct(prog_=CLASSES, sched_class=FAIR_CLASS, se=se, throttled=0)
    assert is_throttled(one) is False
    one.throttled = Value(1)
    assert is_throttled(one) is True


@pytest.mark.parametrize(
    ("policy", "static_prio", "low"),
    [
        (NORMAL, 120, False),
        (NORMAL, 100, False),
        (NORMAL, 139, True),
        (BATCH, 130, True),
        (IDLE, 120, True),
        (FIFO, 139, False),
    ],
)
def test_who_may_wait_long_by_right(policy: int, static_prio: int, low: bool) -> None:
    one: Any = Struct(policy=policy, static_prio=static_prio)
    assert is_of_low_weight(one) is low


def test_sched_ext_tasks_are_counted_but_for_the_current_one() -> None:
    one, other = Struct(sched_class=EXT_CLASS, prog_=CLASSES), task()
    assert unlisted_tasks(queue(other)) == 0
    assert unlisted_tasks(queue(other, scx=Struct(nr_running=3))) == 3
    assert unlisted_tasks(queue(one, scx=Struct(nr_running=3))) == 2
