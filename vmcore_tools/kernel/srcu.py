# SPDX-License-Identifier: LGPL-2.1-or-later
"""SRCU: whose grace period a callback waits for, and what holds that up."""

from __future__ import annotations

from typing import Iterable, Iterator, List, Optional

from drgn import FaultError, Object, container_of
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.percpu import per_cpu_ptr

#: Callbacks of a CPU that are looked at.
_CALLBACKS_MAX = 100_000


def srcu_of_callback(completion: Object, addresses: Iterable[int]) -> Optional[Object]:
    """
    The domain whose grace period ``synchronize_srcu()`` waits for.

    Its callback must be on one of the domain's lists.

    :param completion: ``struct completion *`` of a ``struct rcu_synchronize``
    :param addresses: where the domain may be
    :return: ``struct srcu_struct *``
    """
    prog = completion.prog_
    head = container_of(completion, "struct rcu_synchronize", "completion").head.address_of_()
    try:
        pointer_type = prog.pointer_type(prog.type("struct srcu_struct"))
    except LookupError:
        return None
    for address in addresses:
        srcu = Object(prog, pointer_type, address)
        try:
            if any(callback == head for callback in _callbacks(srcu)):
                return srcu
        except FaultError:
            continue
        except AttributeError:
            return None  # CONFIG_TINY_SRCU
    return None


def _per_cpu(srcu: Object) -> Iterator[Object]:
    """The ``struct srcu_data *`` of all CPUs, if this is a domain."""
    data = srcu.sda.read_()
    if not data:
        return
    for cpu in for_each_possible_cpu(srcu.prog_):
        of_cpu = per_cpu_ptr(data, cpu)
        if of_cpu.ssp != srcu:
            return
        yield of_cpu


def _callbacks(srcu: Object) -> Iterator[Object]:
    for of_cpu in _per_cpu(srcu):
        callback = of_cpu.srcu_cblist.head.read_()
        for _ in range(_CALLBACKS_MAX):
            if not callback:
                break
            yield callback
            callback = callback.next.read_()


def srcu_readers(srcu: Object) -> int:
    """
    How many readers a domain has; the kernel does not know who they are.

    :param srcu: ``struct srcu_struct *``
    """
    total = 0
    for of_cpu in _per_cpu(srcu):
        # "srcu: Pull ->srcu_{un,}lock_count into a new srcu_ctr structure" in v6.15.
        if hasattr(of_cpu, "srcu_ctrs"):
            for counter in of_cpu.srcu_ctrs:
                total += _count(counter.srcu_locks) - _count(counter.srcu_unlocks)
        else:
            total += sum(_count(count) for count in of_cpu.srcu_lock_count)
            total -= sum(_count(count) for count in of_cpu.srcu_unlock_count)
    return total


def _count(counter: Object) -> int:
    # "srcu: Convert ->srcu_lock_count and ->srcu_unlock_count to atomic" in v6.2.
    try:
        return int(counter.counter.value_())
    except AttributeError:
        return int(counter.value_())


def srcu_works(srcu: Object) -> List[Object]:
    """
    The works that advance a domain's grace period and call its callbacks.

    :param srcu: ``struct srcu_struct *``
    :return: ``struct work_struct *`` of each
    """
    # "srcu: Move work-scheduling fields from srcu_struct to srcu_usage" in v6.4.
    has_work = srcu if hasattr(srcu, "work") else srcu.srcu_sup
    works = [has_work.work.work.address_of_()]
    works += [of_cpu.work.address_of_() for of_cpu in _per_cpu(srcu)]
    return works
