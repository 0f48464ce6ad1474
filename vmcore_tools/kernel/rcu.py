# SPDX-License-Identifier: LGPL-2.1-or-later
"""
RCU's grace periods, and which CPUs and readers keep them from ending.

Each CPU has a bit in a leaf of the tree of ``struct rcu_node``: it is set until
the CPU has passed a quiescent state. Where readers can be preempted
(CONFIG_PREEMPT_RCU), those that were are on their leaf's list. Names and rules
are those of ``kernel/rcu/tree.c``, ``tree_exp.h`` and ``tree_stall.h``.
"""

from __future__ import annotations

import dataclasses
from typing import Iterator, List, Optional, Set, Tuple

from drgn import Object, Program, cast, container_of, sizeof
from drgn.helpers import ValidationError
from drgn.helpers.linux.list import validate_list_for_each_entry
from drgn.helpers.linux.llist import llist_for_each
from drgn.helpers.linux.percpu import per_cpu, per_cpu_ptr

from vmcore_tools.kernel.jiffies import jiffies_now, jiffy_ns
from vmcore_tools.kernel.strings import name_text

#: Bounds that no machine reaches; a damaged list must end.
_FLAVORS_MAX = 16
_READERS_MAX = 4 << 20
_WAITERS_MAX = 1 << 20
_CALLBACKS_MAX = 100_000

# kernel/rcu/rcu.h: RCU_SEQ_STATE_MASK, a macro; the same since it is there (v4.12).
_SEQ_STATE_MASK = 3
_NS_PER_SECOND = 1_000_000_000
_WORD_MASK = 0xFFFFFFFFFFFFFFFF


@dataclasses.dataclass(frozen=True)
class GracePeriod:
    """
    A grace period that has not ended.

    :ivar state: ``struct rcu_state *``
    :ivar age_ns: since when it is; None for expedited ones, of which the kernel does not note it
    :ivar cpus: that have not passed a quiescent state
    :ivar readers: ``struct task_struct *`` of each preempted or sleeping reader it waits for
    """

    state: Object
    expedited: bool
    age_ns: Optional[int]
    cpus: Tuple[int, ...]
    readers: Tuple[Object, ...]


def for_each_rcu_state(prog: Program) -> Iterator[Object]:
    """
    Iterate over the kinds of RCU that have grace periods of their own.

    :return: Iterator of ``struct rcu_state *``
    :raises LookupError: without the debug info of either layout
    :raises drgn.helpers.ValidationError: if the list of flavors is damaged
    """
    # 709fdce7545c ("rcu: Express Tree RCU updates in terms of RCU-preempt or
    # RCU-sched") and those around it in v4.20 left one of three.
    try:
        flavors = prog["rcu_struct_flavors"].address_of_()
    except KeyError:
        yield prog["rcu_state"].address_of_()
        return
    for number, state in enumerate(
        validate_list_for_each_entry("struct rcu_state", flavors, "flavors")
    ):
        if number >= _FLAVORS_MAX:
            return
        yield state


def rcu_name(state: Object) -> str:
    """
    What the kernel's log calls it: ``rcu_sched``, ``rcu_preempt``.

    :param state: ``struct rcu_state *``
    """
    return name_text(state.name)


def grace_period(state: Object) -> Optional[GracePeriod]:
    """
    The normal grace period in progress.

    :param state: ``struct rcu_state *``
    :return: None if there is none
    :raises LookupError: without the debug info of the jiffies
    :raises drgn.helpers.ValidationError: if a list of readers is damaged
    """
    if not state.gp_seq.value_() & _SEQ_STATE_MASK:
        return None
    age_ns = _age_ns(state.prog_, state.gp_start.value_())
    return GracePeriod(state, False, age_ns, *_held_up_by(state, "qsmask", "gp_tasks"))


def expedited_grace_period(state: Object) -> Optional[GracePeriod]:
    """
    The expedited grace period in progress.

    :param state: ``struct rcu_state *``
    :return: None if there is none
    :raises drgn.helpers.ValidationError: if a list of readers is damaged
    """
    if not state.expedited_sequence.value_() & _SEQ_STATE_MASK:
        return None
    return GracePeriod(state, True, None, *_held_up_by(state, "expmask", "exp_tasks"))


def kthread_inactive_ns(state: Object) -> int:
    """
    How long ago the kthread that drives the grace periods last did something for one.

    ``rcu_check_gp_kthread_starvation()`` reports it from 2 s on.

    :param state: ``struct rcu_state *``
    :raises LookupError: without the debug info of the jiffies
    """
    return _age_ns(state.prog_, state.gp_activity.value_())


def stall_timeout_ns(prog: Program) -> Optional[int]:
    """
    From when on the kernel reports a grace period that does not end.

    :return: None where the kernel does not say
    """
    try:
        return int(prog["rcu_cpu_stall_timeout"].value_()) * _NS_PER_SECOND
    except KeyError:
        return None


def rcu_data(state: Object, cpu: int) -> Object:
    """
    What a CPU knows of the grace periods.

    :param state: ``struct rcu_state *``
    :return: ``struct rcu_data *``
    """
    # da1df50d16171 ("rcu: Remove rcu_state structure's ->rda field") in v4.20.
    if hasattr(state, "rda"):
        return per_cpu_ptr(state.rda, cpu)
    return per_cpu(state.prog_["rcu_data"], cpu).address_of_()


def for_each_ready_callback(data: Object) -> Iterator[Object]:
    """
    Iterate over the callbacks of a CPU whose grace period is over.

    They are the first segment of its list; a softirq of that CPU invokes them.

    :param data: ``struct rcu_data *``
    :return: Iterator of ``struct callback_head *``, which ends after 100,000
    """
    callbacks = data.cblist
    end = callbacks.tails[0].value_()  # RCU_DONE_TAIL: the place behind the last of them
    head = callbacks.head.read_()
    place = callbacks.head.address_of_().value_()
    for _ in range(_CALLBACKS_MAX):
        if place == end or not head:
            return
        yield head
        place, head = head.next.address_of_().value_(), head.next.read_()


def for_each_synchronizer(state: Object) -> Iterator[Object]:
    """
    Iterate over the calls of synchronize_rcu() that wait without a callback.

    :param state: ``struct rcu_state *``
    :return: Iterator of ``struct rcu_synchronize *``
    """
    # 988f569ae041 ("rcu: Reduce synchronize_rcu() latency") in v6.10.
    if not hasattr(state, "srs_next"):
        return
    # Between them are the nodes that mark where a grace period's waiters begin.
    marks = state.srs_wait_nodes
    first = marks.address_of_().value_()
    end = first + sizeof(marks)
    for number, node in enumerate(llist_for_each(state.srs_next.first)):
        if number >= _WAITERS_MAX:
            return
        if not first <= node.value_() < end:
            head = cast("struct callback_head *", node)
            yield container_of(head, "struct rcu_synchronize", "head")


def is_wait_queue_of_expedited(state: Object, queue: int) -> bool:
    """
    Whether tasks on a wait queue wait for an expedited grace period.

    :param state: ``struct rcu_state *``
    :param queue: address of a ``wait_queue_head`` or ``swait_queue_head``
    """
    if queue == state.expedited_wq.address_of_().value_():
        return True
    nodes = state.node
    first = nodes.address_of_().value_()
    if not first <= queue < first + sizeof(nodes):
        return False
    node = nodes[(queue - first) // sizeof(nodes[0])]
    heads = node.exp_wq
    start = heads.address_of_().value_()
    return bool(start <= queue < start + sizeof(heads))


def _age_ns(prog: Program, when: int) -> int:
    passed = jiffies_now(prog) - int(when) & _WORD_MASK
    # What is in the future by a jiffy or two has just been noted.
    return 0 if passed >> 63 else passed * jiffy_ns(prog)


def _leaf_nodes(state: Object) -> Iterator[Object]:
    """Mirrors ``rcu_for_each_leaf_node()``."""
    prog = state.prog_
    levels, nodes = prog["rcu_num_lvls"].value_(), prog["rcu_num_nodes"].value_()
    if not (0 < levels <= len(state.level) and nodes <= len(state.node)):
        raise ValidationError("RCU's tree has more levels or nodes than there is room for")
    leaf = state.level[levels - 1].read_()
    first = state.node.address_of_().value_()
    end = first + nodes * sizeof(state.node[0])
    if not first <= leaf.value_():
        raise ValidationError("RCU's leaf nodes are not in its tree")
    while leaf.value_() < end:
        yield leaf
        leaf += 1


def _held_up_by(
    state: Object, mask_name: str, first_name: str
) -> Tuple[Tuple[int, ...], Tuple[Object, ...]]:
    cpus: List[int] = []
    readers: List[Object] = []
    for leaf in _leaf_nodes(state):
        mask, low = leaf.member_(mask_name).value_(), leaf.grplo.value_()
        cpus += [low + bit for bit in range(mask.bit_length()) if mask >> bit & 1]
        readers += _blocked_readers(leaf, leaf.member_(first_name).read_())
    return tuple(cpus), tuple(readers)


def _blocked_readers(leaf: Object, node: Object) -> Iterator[Object]:
    """
    Mirrors ``rcu_print_task_stall()``: the readers from a place of the list on to its end.

    :param node: ``struct list_head *`` of the first one, NULL if there is none
    """
    if not node:
        return
    head = leaf.blkd_tasks.address_of_()
    seen: Set[int] = set()
    while node != head:
        if node.value_() in seen or len(seen) >= _READERS_MAX:
            raise ValidationError("the list of blocked RCU readers has a cycle")
        seen.add(node.value_())
        yield container_of(node, "struct task_struct", "rcu_node_entry")
        following = node.next.read_()
        if following.prev != node:
            raise ValidationError("the list of blocked RCU readers is damaged")
        node = following
