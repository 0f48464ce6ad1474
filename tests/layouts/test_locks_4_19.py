# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mutexes and read-write semaphores of v4.19: the latter's count is signed, its owner a pointer."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

import pytest
from drgn import Object

from tests.layouts.machine import Machine
from vmcore_tools.kernel.locks import (
    is_mutex_with_waiters,
    is_rwsem_with_waiters,
    mutex_holder,
    rwsem_holder,
)

# kernel/locking/rwsem.h of that release, on a 64-bit machine.
ACTIVE = 1
WAITING = -(1 << 32)
READER_OWNED = 1
# kernel/locking/mutex.c: MUTEX_FLAG_WAITERS, _HANDOFF.
WAITERS, HANDOFF = 1, 2


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine("linux_4_19.c", tmp_path, "4.19.90")
    yield machine
    machine.close()


def new_task(machine: Machine) -> int:
    address = machine.alloc(machine.prog.type("struct task_struct").size or 0, 64)
    return machine.put("struct task_struct", address, {"pid": 412, "comm": b"Xorg"})


def test_who_has_a_mutex(machine: Machine) -> None:
    task = new_task(machine)
    for flags, waiters in ((0, False), (WAITERS, True), (WAITERS | HANDOFF, True)):
        address = machine.new("struct mutex", {"owner.counter": task | flags})
        mutex = Object(machine.prog, "struct mutex *", value=address)
        assert is_mutex_with_waiters(mutex, {task}) == waiters
        holder = mutex_holder(mutex)
        assert holder is not None
        assert (holder.task.value_(), holder.certain) == (task, True)
    garbage = machine.new("struct mutex", {"owner.counter": 0x1234501})
    assert not is_mutex_with_waiters(Object(machine.prog, "struct mutex *", value=garbage), {task})


def test_who_has_a_read_write_semaphore(machine: Machine) -> None:
    task = new_task(machine)

    def semaphore(count: int, owner: int) -> Object:
        members = {"count.counter": count, "owner": owner}
        address = machine.new("struct rw_semaphore", members)
        return Object(machine.prog, "struct rw_semaphore *", value=address)

    written = semaphore(WAITING + ACTIVE + WAITING, task)
    assert is_rwsem_with_waiters(written, {task})
    holder = rwsem_holder(written, {task})
    assert holder is not None
    assert (holder.task.value_(), holder.certain) == (task, True)

    read = semaphore(2 * ACTIVE + WAITING, READER_OWNED)
    assert is_rwsem_with_waiters(read, {task})
    assert rwsem_holder(read, {task}) is None  # readers have no name

    assert not is_rwsem_with_waiters(semaphore(ACTIVE, READER_OWNED), {task})
    assert not is_rwsem_with_waiters(semaphore(WAITING + ACTIVE, task + 64), {task})
