# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Sleeping locks: whether one is what it is taken for, and who holds it.

A lock is believed only if its own words agree with having waiters: memory
that merely lies where a lock would be does not.
"""

from __future__ import annotations

import dataclasses
from itertools import islice
from typing import Container, Iterator, Optional, Tuple

from drgn import Object, cast, container_of
from drgn.helpers.linux.list import list_empty, validate_list_for_each_entry
from drgn.helpers.linux.locking import RwsemLocked, mutex_owner, rwsem_locked, rwsem_owner

# kernel/locking/mutex.h, rwsem.c and rtmutex_common.h: macros, which debug
# info does not have. The first is from v4.10, the second from v5.3.
_MUTEX_FLAG_WAITERS = 1
_MUTEX_FLAG_PICKUP = 4
_RWSEM_FLAG_WAITERS = 2
_RWSEM_READER_OWNED = 1
#: RWSEM_FLAG_WAITERS and RWSEM_FLAG_HANDOFF.
_RWSEM_FLAGS_OF_WAITERS = 6
_RWSEM_WRITER_LOCKED = 1
_RWSEM_READER_SHIFT = 8
#: Before v5.3, on 64-bit machines.
_RWSEM_WAITING_BIAS = -(1 << 32)
_RT_MUTEX_HAS_WAITERS = 1

#: Waiters of one lock that are followed.
_WAITERS_MAX = 4 << 20


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


def mutex_is_free(mutex: Object) -> bool:
    """
    Whether nobody has a mutex, nor is it handed over to a waiter.

    :param mutex: ``struct mutex *``
    """
    return not mutex_owner(mutex) and not mutex.owner.counter.value_() & _MUTEX_FLAG_PICKUP


def mutex_is_handed_to(mutex: Object) -> Optional[Object]:
    """
    The waiter that a mutex is handed over to, and that has not taken it yet.

    :param mutex: ``struct mutex *``
    :return: ``struct task_struct *``; None if it is not being handed over
    """
    if not mutex.owner.counter.value_() & _MUTEX_FLAG_PICKUP:
        return None
    owner = mutex_owner(mutex)
    return owner if owner else None


def next_owner(kind: str, lock: Object) -> Optional[Object]:
    """
    The waiter that is to take a lock which nobody has.

    :param kind: ``mutex``, ``rwsem`` or ``rt_mutex``
    :param lock: a pointer to it
    :return: ``struct task_struct *``; None if somebody has it, or nobody waits
    """
    if kind == "mutex":
        handed_to = mutex_is_handed_to(lock)
        if handed_to is not None:
            return handed_to
        return first_waiter(lock) if mutex_is_free(lock) else None
    if kind == "rwsem":
        return first_waiter(lock) if rwsem_is_free(lock) else None
    if kind == "rt_mutex":
        return rt_mutex_top_waiter(lock) if rt_mutex_is_free(lock) else None
    return None


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
    if _has_flags(sem):
        return bool(count & _RWSEM_FLAG_WAITERS)
    return count < 0


def _has_flags(sem: Object) -> bool:
    """Whether the count has flags; before, waiters and writers made it negative."""
    # 64489e78004c ("locking/rwsem: Implement a new locking scheme") in v5.3; of the same
    # series is 94a9717b3c40 ("locking/rwsem: Make rwsem->owner an atomic_long_t").
    return hasattr(sem.owner, "counter")


def rwsem_is_free(sem: Object) -> bool:
    """
    Whether nobody has a read-write semaphore, whoever waits for it.

    :param sem: ``struct rw_semaphore *``
    """
    count = int(sem.count.counter.value_())
    if _has_flags(sem):
        return not count & ~_RWSEM_FLAGS_OF_WAITERS
    return count == 0 or count == _RWSEM_WAITING_BIAS


def rwsem_holder(sem: Object, tasks: Container[int]) -> Optional[Holder]:
    """
    The writer that has a read-write semaphore, or its last reader.

    :param sem: ``struct rw_semaphore *``
    :param tasks: the addresses of all tasks
    """
    locked = rwsem_locked(sem)
    owner = rwsem_owner(sem)
    if rwsem_is_free(sem) or owner.value_() not in tasks:
        return None
    # With CONFIG_DEBUG_RWSEMS a reader that lets go takes its name away.
    certain = locked is RwsemLocked.WRITE_LOCKED or hasattr(sem, "magic")
    return Holder(owner, certain)


def rwsem_readers(sem: Object) -> Optional[int]:
    """
    How many readers have a read-write semaphore; the kernel does not know who they are.

    :param sem: ``struct rw_semaphore *``
    :return: 0 if a writer has it, or nobody; None before v5.3, where who waits is counted, too
    """
    if not _has_flags(sem):
        return None
    count = int(sem.count.counter.value_())
    return 0 if count & _RWSEM_WRITER_LOCKED else count >> _RWSEM_READER_SHIFT


def rwsem_readers_behind_writers(sem: Object) -> Iterator[Tuple[Object, Object]]:
    """
    Iterate over the readers that would have a semaphore if no writer waited before them.

    :param sem: ``struct rw_semaphore *``
    :return: Iterator of ``struct task_struct *``: the reader, and the nearest writer
        before it
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    if rwsem_locked(sem) is not RwsemLocked.READ_LOCKED:
        return
    for_write = sem.prog_.constant("RWSEM_WAITING_FOR_WRITE").value_()
    writer = None
    for waiter in _rwsem_waiters(sem):
        if waiter.type.value_() == for_write:
            writer = waiter.task.read_()
        elif writer is not None:
            yield waiter.task.read_(), writer


def first_waiter(lock: Object) -> Optional[Object]:
    """
    The task that is to have a mutex or a read-write semaphore next.

    :param lock: ``struct mutex *`` or ``struct rw_semaphore *``
    :return: ``struct task_struct *``
    """
    is_mutex = lock.type_.type_name() == "struct mutex *"
    type_name = "struct mutex_waiter" if is_mutex else "struct rwsem_waiter"
    if hasattr(lock, "first_waiter"):
        return lock.first_waiter.task.read_() if lock.first_waiter else None
    head = lock.wait_list.address_of_()
    if list_empty(head):
        return None
    return container_of(lock.wait_list.next, type_name, "list").task.read_()


def _rwsem_waiters(sem: Object) -> Iterator[Object]:
    """
    :return: Iterator of ``struct rwsem_waiter *``, the next one first
    """
    if not hasattr(sem, "first_waiter"):
        yield from islice(
            validate_list_for_each_entry(
                "struct rwsem_waiter", sem.wait_list.address_of_(), "list"
            ),
            _WAITERS_MAX,
        )
    elif sem.first_waiter:
        # From v7.1 the lock has no head of the list.
        yield sem.first_waiter.read_()
        yield from islice(
            validate_list_for_each_entry(
                "struct rwsem_waiter", sem.first_waiter.list.address_of_(), "list"
            ),
            _WAITERS_MAX,
        )


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


def rt_mutex_is_free(lock: Object) -> bool:
    """
    Whether nobody has an rt_mutex.

    :param lock: ``struct rt_mutex *`` or ``struct rt_mutex_base *``
    """
    return not lock.owner.value_() & ~_RT_MUTEX_HAS_WAITERS


def rt_mutex_top_waiter(lock: Object) -> Optional[Object]:
    """
    The task that is to have an rt_mutex next.

    :param lock: ``struct rt_mutex *`` or ``struct rt_mutex_base *``
    :return: ``struct task_struct *``
    """
    node = lock.waiters.rb_leftmost.read_()
    if not node:
        return None
    # "locking/rtmutex: Fix task->pi_waiters integrity" in v6.5 put the node into a structure.
    type_ = lock.prog_.type("struct rt_mutex_waiter")
    member = "tree_entry" if type_.has_member("tree_entry") else "tree.entry"
    return container_of(node, type_, member).task.read_()
