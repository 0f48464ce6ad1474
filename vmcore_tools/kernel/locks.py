# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Sleeping locks: whether one is what it is taken for, and who holds it.

A lock is believed only if its own words agree with having waiters: memory
that merely lies where a lock would be does not.
"""

from __future__ import annotations

import dataclasses
from typing import Container, Optional

from drgn import Object, cast
from drgn.helpers.linux.locking import RwsemLocked, mutex_owner, rwsem_locked, rwsem_owner

# kernel/locking/mutex.h, rwsem.c and rtmutex_common.h: macros, which debug
# info does not have. The first is from v4.10, the second from v5.3.
_MUTEX_FLAG_WAITERS = 1
_MUTEX_FLAG_PICKUP = 4
_RWSEM_FLAG_WAITERS = 2
_RWSEM_READER_OWNED = 1
_RT_MUTEX_HAS_WAITERS = 1


@dataclasses.dataclass(frozen=True)
class Holder:
    """
    Who holds a lock.

    :ivar task: ``struct task_struct *``
    :ivar certain: False of a reader: the lock keeps only the last one's name,
        and that one may have let go
    """

    task: Object
    certain: bool


def is_mutex_with_waiters(mutex: Object, tasks: Container[int]) -> bool:
    """
    Whether this is a mutex that somebody waits for.

    :param mutex: ``struct mutex *``
    :param tasks: the addresses of all tasks
    :raises FaultError: if it cannot be read
    """
    owner = mutex_owner(mutex).value_()
    flagged = bool(mutex.owner.counter.value_() & _MUTEX_FLAG_WAITERS)
    return flagged and (owner == 0 or owner in tasks)


def mutex_holder(mutex: Object) -> Optional[Holder]:
    """
    The task that has a mutex.

    :param mutex: ``struct mutex *``
    :return: None also while it is handed over to a waiter that has not run yet
    """
    if mutex.owner.counter.value_() & _MUTEX_FLAG_PICKUP:
        return None
    owner = mutex_owner(mutex)
    return Holder(owner, True) if owner else None


def is_rwsem_with_waiters(sem: Object, tasks: Container[int]) -> bool:
    """
    Whether this is a read-write semaphore that somebody waits for.

    :param sem: ``struct rw_semaphore *``
    :param tasks: the addresses of all tasks
    :raises FaultError: if it cannot be read
    """
    owner = rwsem_owner(sem).value_()
    # A reader's name stays when it has let go, and even when it has ended.
    if owner and owner not in tasks and not _owner_word(sem) & _RWSEM_READER_OWNED:
        return False
    count = int(sem.count.counter.value_())
    # 64489e78004c ("locking/rwsem: Implement a new locking scheme") in v5.3;
    # before, waiters made the count negative.
    return bool(count & _RWSEM_FLAG_WAITERS) or count < 0


def rwsem_holder(sem: Object, tasks: Container[int]) -> Optional[Holder]:
    """
    The writer that has a read-write semaphore, or its last reader.

    :param sem: ``struct rw_semaphore *``
    :param tasks: the addresses of all tasks
    """
    locked = rwsem_locked(sem)
    owner = rwsem_owner(sem)
    if locked is RwsemLocked.UNLOCKED or owner.value_() not in tasks:
        return None
    return Holder(owner, locked is RwsemLocked.WRITE_LOCKED)


def _owner_word(sem: Object) -> int:
    try:
        return int(sem.owner.counter.value_())
    except AttributeError:
        return int(sem.owner.value_())


def semaphore_holder(semaphore: Object, tasks: Container[int]) -> Optional[Holder]:
    """
    The last task that took a semaphore, where the kernel keeps its name.

    :param semaphore: ``struct semaphore *``
    :param tasks: the addresses of all tasks
    """
    # 194a9b9e843b ("hung_task: show the blocker task if the task is hung on
    # semaphore") in v6.16, with CONFIG_DETECT_HUNG_TASK_BLOCKER.
    if not hasattr(semaphore, "last_holder"):
        return None
    holder = cast("struct task_struct *", semaphore.last_holder)
    return Holder(holder, False) if holder.value_() in tasks else None


def rt_mutex_holder(lock: Object, tasks: Container[int]) -> Optional[Holder]:
    """
    The task that has an rt_mutex.

    :param lock: ``struct rt_mutex *`` or ``struct rt_mutex_base *``
    :param tasks: the addresses of all tasks
    """
    owner = lock.owner.value_() & ~_RT_MUTEX_HAS_WAITERS
    if owner not in tasks:
        return None
    return Holder(Object(lock.prog_, "struct task_struct *", owner), True)
