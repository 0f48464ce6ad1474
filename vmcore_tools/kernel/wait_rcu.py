# SPDX-License-Identifier: LGPL-2.1-or-later
"""From RCU's grace periods to who keeps them from ending: a part of the wait-for graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Iterator, List, Optional

from drgn import Object, container_of
from drgn.helpers import ValidationError

from vmcore_tools.kernel.rcu import (
    GracePeriod,
    expedited_grace_period,
    for_each_rcu_state,
    for_each_ready_callback,
    for_each_synchronizer,
    grace_period,
    is_wait_queue_of_expedited,
    kthread_inactive_ns,
    rcu_data,
    rcu_name,
)
from vmcore_tools.kernel.task import is_queued
from vmcore_tools.kernel.wait_graph import Edge
from vmcore_tools.kernel.wait_nodes import DRIVEN_BY, DRIVES, ON_CPU, ON_READER, RCU, Node
from vmcore_tools.kernel.waits import Wait

if TYPE_CHECKING:
    from vmcore_tools.kernel.wait_chain import WaitChains

#: ``rcu_is_gp_kthread_starving()``: it acts every few jiffies.
_STARVING_NS = 2_000_000_000


def as_rcu(chains: WaitChains, wait: Wait) -> Optional[Wait]:
    """Waits that are for a grace period and do not show it by a callback's function."""
    if wait.kind not in ("completion", "wait queue", "swait"):
        return None
    address = wait.object.value_()
    for state in _states(chains):
        if wait.kind == "completion":
            if address == state.barrier_completion.address_of_().value_():
                return Wait("rcu barrier", state, "it is on rcu_barrier()'s completion")
            if address in _synchronizers(chains, state):
                request = container_of(wait.object, "struct rcu_synchronize", "completion")
                return Wait("rcu", request.completion.address_of_(), "it is on RCU's list")
        elif address == state.gp_wq.address_of_().value_():
            return Wait("rcu kthread", state, "it is on the grace periods' own wait queue")
        elif is_wait_queue_of_expedited(state, address):
            return Wait("rcu expedited", state, "it is on a wait queue for expedited ones")
    return None


def follow_rcu_wait(chains: WaitChains, node: Node, wait: Wait) -> Iterator[Edge]:
    """From a task in synchronize_rcu() to the grace period, or to who invokes its callback."""
    head = container_of(wait.object, "struct rcu_synchronize", "completion").head.address_of_()
    data = _ready(chains).get(head.value_())
    if data is not None:
        cpu = int(data.cpu.value_())
        yield Edge(node.key, chains.cpu(cpu), "waits for the RCU softirq of", wait.proven)
        return
    running = _running(chains)
    for state in running:
        # Which of the flavors of before v4.20 it is the callback does not say.
        yield Edge(node.key, add_rcu(chains, state), "waits for", len(running) == 1)
    if not running:
        yield Edge(node.key, chains.object(wait.kind, wait.object), "waits for", wait.proven)


def follow_state_wait(chains: WaitChains, node: Node, wait: Wait) -> Iterator[Edge]:
    """From a task that waits for a ``struct rcu_state *`` to its grace period."""
    expedited = wait.kind == "rcu expedited"
    current = expedited_grace_period if expedited else grace_period
    if current(wait.object) is None:
        yield Edge(node.key, chains.object(wait.kind, wait.object), "waits for", wait.proven)
    elif wait.kind == "rcu kthread" and is_kthread_starving(wait.object):
        return  # it is the grace period that waits for it
    else:
        key = add_rcu(chains, wait.object, expedited=expedited)
        why = DRIVES if wait.kind == "rcu kthread" else "waits for"
        yield Edge(node.key, key, why, wait.proven)


def add_rcu(chains: WaitChains, state: Object, *, expedited: bool = False) -> str:
    """
    The node of a grace period that is in progress.

    :param state: ``struct rcu_state *``
    """
    name = f"{rcu_name(state)} expedited grace period" if expedited else rcu_name(state)
    if not expedited:
        name += " grace period"
    return chains.add(Node(f"{name} {state.value_():#x}", RCU, state, name))


def grace_period_of(node: Node) -> Optional[GracePeriod]:
    """
    What a node stands for.

    :param node: one of :func:`add_rcu`
    """
    if "expedited" in node.name:
        return expedited_grace_period(node.object)
    return grace_period(node.object)


def follow_rcu(chains: WaitChains, node: Node) -> Iterator[Edge]:
    """From a grace period to the CPUs and readers that it waits for."""
    period = grace_period_of(node)
    if period is None:
        return
    if not period.expedited and is_kthread_starving(node.object):
        # Nobody looks whether the CPUs were idle since.
        yield Edge(node.key, chains.task(node.object.gp_kthread.read_()), DRIVEN_BY)
        return
    for cpu in period.cpus:
        queue = chains.run_queues.get(cpu)
        # One that is offline is not waited for; after a panic all may be that were stopped.
        if queue is None or queue.online:
            yield Edge(node.key, chains.cpu(cpu), ON_CPU)
    for reader in period.readers:
        yield Edge(node.key, chains.task(reader), ON_READER)


def is_kthread_starving(state: Object) -> bool:
    """
    Whether the kthread that drives the grace periods has not come to do so.

    :param state: ``struct rcu_state *``
    """
    kthread = state.gp_kthread
    if not kthread or kthread_inactive_ns(state) < _STARVING_NS:
        return False
    # Asleep it is only as long as it has nothing to do, if timers expire.
    return bool(is_queued(kthread)) or grace_period(state) is not None


def _states(chains: WaitChains) -> List[Object]:
    if "rcu" not in chains.found:
        try:
            states = {state.value_(): state for state in for_each_rcu_state(chains.prog)}
        except LookupError:
            states = {}  # TINY_RCU
        except ValidationError as error:
            chains.lost("kind of RCU", error, 0)
            states = {}
        chains.found["rcu"] = states
    return list(chains.found["rcu"].values())


def _running(chains: WaitChains) -> List[Object]:
    """The kinds of RCU that have a grace period in progress."""
    key = "rcu grace periods"
    if key not in chains.found:
        states = _states(chains)
        chains.found[key] = {s.value_(): s for s in states if grace_period(s) is not None}
    return list(chains.found[key].values())


def _ready(chains: WaitChains) -> Dict[int, Object]:
    """What has the callbacks that only have to be invoked, by their addresses: ``rcu_data *``."""
    key = "rcu callbacks"
    if key not in chains.found:
        chains.found[key] = {}
        for state in _states(chains):
            for cpu in chains.run_queues:
                data = rcu_data(state, cpu)
                for head in for_each_ready_callback(data):
                    chains.found[key][head.value_()] = data
    return chains.found[key]


def _synchronizers(chains: WaitChains, state: Object) -> List[int]:
    key = f"rcu synchronizers {state.value_():#x}"
    if key not in chains.found:
        completions = (call.completion.address_of_() for call in for_each_synchronizer(state))
        chains.found[key] = {completion.value_(): completion for completion in completions}
    return list(chains.found[key])
