# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stacks of tasks that stand in the same place are unwound once, and are the same."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

from drgn import Architecture, Object
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.sched import task_on_cpu

from tests.dumps.conftest import ShippedDump
from vmcore_tools.kernel.stack_frames import Frame, Unwinder


def sleepers(dump: ShippedDump) -> List[Object]:
    return [task for task in for_each_task(dump.target.prog) if not task_on_cpu(task)]


def unwound_alone(task: Object) -> Tuple[List[Frame], Tuple[int, ...]]:
    trace = Unwinder(task.prog_).trace(task)
    return trace.frames, trace.place


class CountedUnwinding:
    """A program that counts how often it unwinds."""

    def __init__(self, prog: Any) -> None:
        self.prog = prog
        self.stacks = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prog, name)

    def stack_trace(self, task: Object) -> Any:
        self.stacks += 1
        return self.prog.stack_trace(task)


def test_a_stack_is_what_it_is_alone(shipped: ShippedDump) -> None:
    unwinder = Unwinder(shipped.target.prog)
    tasks = sleepers(shipped)
    assert len(tasks) > 20
    for task in tasks:
        trace = unwinder.trace(task)
        assert (trace.frames, trace.place) == unwound_alone(task)
        low, high = task.stack.value_(), task.stack.value_() + task.prog_["THREAD_SIZE"].value_()
        assert all(low <= pointer < high for pointer, _ in trace.frames)
        whole = trace.unwound()
        assert trace.place == tuple(
            whole[number].pc for number in range(len(whole)) if whole[number].pc >> 63
        )


def test_those_in_the_same_place_are_unwound_once(demo_dump: ShippedDump) -> None:
    prog = demo_dump.target.prog
    assert prog.platform is not None and prog.platform.arch is Architecture.X86_64
    counted: Any = CountedUnwinding(prog)
    unwinder = Unwinder(counted)
    places: Dict[Tuple[int, ...], int] = {}
    for task in sleepers(demo_dump):
        place = unwinder.trace(task).place
        places[place] = places.get(place, 0) + 1
    # Idle workers, and threads that wait to be told what to do.
    assert max(places.values()) >= 3
    assert len(places) <= counted.stacks < sum(places.values())
    before = counted.stacks
    for task in sleepers(demo_dump):
        unwinder.trace(task)
    assert counted.stacks == before
