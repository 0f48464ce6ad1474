# SPDX-License-Identifier: LGPL-2.1-or-later
"""Per-CPU read-write semaphores: who waits for the readers, and how many these are."""

from __future__ import annotations

import re
from typing import List, Optional

from drgn import FaultError, Object
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.percpu import per_cpu_ptr

from vmcore_tools.kernel.stack_frames import Frame, pointers_in
from vmcore_tools.kernel.task import stack_range

_DOWN_WRITE = re.compile(r"_*percpu_down_write.*")


def percpu_rwsem_of_writer(task: Object, frames: List[Frame]) -> Optional[Object]:
    """
    The semaphore whose readers a task waits for, in ``percpu_down_write()``.

    It is on no list: the semaphore names it (``sem->writer.task``).

    :param task: ``struct task_struct *``
    :param frames: of its stack
    :return: ``struct percpu_rw_semaphore *``
    :raises FaultError: if its stack is not in the dump
    """
    prog = task.prog_
    try:
        pointer_type = prog.pointer_type(prog.type("struct percpu_rw_semaphore"))
    except LookupError:
        return None
    low, high = stack_range(task)
    for address in pointers_in(task, frames, _DOWN_WRITE):
        if low <= address < high:
            continue  # there the task's address is at many places
        sem = Object(prog, pointer_type, address)
        try:
            names = sem.writer.task == task and sem.read_count
            if names and percpu_rwsem_blocks_readers(sem):
                return sem
        except FaultError:
            continue
        except AttributeError:
            return None  # before v4.11 it was a wait queue
    return None


def percpu_rwsem_blocks_readers(sem: Object) -> bool:
    """
    Whether new readers must wait: a writer has the semaphore, or waits for the readers.

    :param sem: ``struct percpu_rw_semaphore *``
    """
    # 7f26482a872c ("locking/percpu-rwsem: Remove the embedded rwsem") in v5.7.
    try:
        return bool(sem.block.counter.value_() == 1)
    except AttributeError:
        return bool(sem.readers_block.value_() == 1)


def percpu_rwsem_writer(sem: Object) -> Optional[Object]:
    """
    The writer that waits until the readers have let go.

    :param sem: ``struct percpu_rw_semaphore *``
    :return: ``struct task_struct *``; None also of a writer that has the semaphore
    """
    task = sem.writer.task.read_()
    return task if task else None


def percpu_rwsem_readers(sem: Object) -> int:
    """
    How many readers have a semaphore; the kernel does not know who they are.

    :param sem: ``struct percpu_rw_semaphore *``
    """
    prog = sem.prog_
    counts = sem.read_count.read_()
    total = sum(int(per_cpu_ptr(counts, cpu)[0].value_()) for cpu in for_each_possible_cpu(prog))
    return total & 0xFFFFFFFF
