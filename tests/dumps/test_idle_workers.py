# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is on the stacks of idle kworkers, which the guests named, is no reference."""

from __future__ import annotations

from typing import Any, Dict, Set, Tuple

import numpy as np
from drgn import Object, Program
from drgn.helpers.linux.mm import follow_phys
from drgn.helpers.linux.pid import find_task

from tests.dumps.conftest import ShippedDump
from vmcore_tools import target
from vmcore_tools.kernel.page import page_index
from vmcore_tools.kernel.references import NON_REFERENCES, Attribution
from vmcore_tools.kernel.slab import slab_index
from vmcore_tools.kernel.task import live_range
from vmcore_tools.kernel.virtual_map import virtual_map
from vmcore_tools.kernel.workqueue import for_each_idle_task, for_each_worker, for_each_worker_pool

IDLE = "it is the stack of an idle kworker"
#: /proc's letter of a kernel thread that sleeps and is not counted in the load.
IDLE_STATE = "I"


def attribution_of(dump: ShippedDump) -> Attribution:
    prog, memory = dump.target.prog, dump.target.memory
    page_size = dump.truth["page_size_bytes"]
    return Attribution.of(
        prog,
        slab_index(prog, memory),
        page_index(prog, memory),
        virtual_map(prog, page_size),
    )


def reasons(attribution: Attribution, task: Object) -> Set[str]:
    """Why the words in the live part of a task's stack are no references."""
    prog = attribution.index.prog
    low, high = live_range(task)
    words = [follow_phys(prog["init_mm"].address_of_(), at).value_() for at in range(low, high, 8)]
    numbers = attribution.non_references(np.array(words, dtype=np.uint64))
    return {NON_REFERENCES[number] or "" for number in numbers.tolist()}


def kworkers(tasks: Tuple[Dict[str, Any], ...], state: str) -> Set[int]:
    return {
        task["pid"]
        for task in tasks
        if task["comm"].startswith("kworker/") and task["state"] == state
    }


def test_what_idle_kworkers_have_on_their_stacks(shipped: ShippedDump) -> None:
    attribution = attribution_of(shipped)
    prog, tasks = shipped.target.prog, tuple(shipped.truth["tasks"])
    idle = kworkers(tasks, IDLE_STATE)
    assert len(idle) >= 10
    found = {pid: reasons(attribution, find_task(prog, pid)) for pid in idle}
    assert found == {pid: {IDLE} for pid in idle}
    # Among them kthreadd, rescuers, and who hangs.
    others = {task["pid"] for task in tasks if not task["comm"].startswith("kworker/")}
    alive = [task for task in (find_task(prog, pid) for pid in sorted(others)) if task]
    assert len(alive) > len(idle)
    assert not [task.pid for task in alive if IDLE in reasons(attribution, task)]


def overlay(prog: Program, value: Object, number: int) -> None:
    """Have something else in a member than the dump has."""
    data = number.to_bytes(value.type_.size, "little")

    def read(_address: int, count: int, offset: int, _physical: bool) -> bytes:
        return data[offset : offset + count]

    prog.add_memory_segment(value.address_, len(data), read, False)


def test_what_makes_a_worker_busy(demo_dump: ShippedDump) -> None:
    prog = target.open_core(demo_dump.files.vmcore, demo_dump.files.symbols).prog
    idle = [task.pid.value_() for task in for_each_idle_task(prog)]
    # This one was woken for a work, and never ran.
    (woken,) = kworkers(tuple(demo_dump.truth["tasks"]), "R")
    assert set(idle) == kworkers(tuple(demo_dump.truth["tasks"]), IDLE_STATE) | {woken}

    first, second, third, fourth = idle[:4]
    workers = {
        worker.task.pid.value_(): worker
        for pool in for_each_worker_pool(prog)
        for worker in for_each_worker(pool)
    }
    overlay(prog, workers[first].current_work, 0xFFFF888000001000)
    overlay(prog, workers[second].flags, 0)
    overlay(prog, workers[third].scheduled.next, 0xFFFF888000001000)
    overlay(prog, workers[fourth].task.on_cpu, 1)

    assert [task.pid.value_() for task in for_each_idle_task(prog)] == idle[4:]
