# SPDX-License-Identifier: LGPL-2.1-or-later
"""RCU's grace periods in the layouts of v4.19, with three kinds of RCU, and of v7.2."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List

import pytest
from drgn import Object, Program, offsetof, sizeof
from drgn.helpers import ValidationError

from tests.layouts.machine import Machine
from vmcore_tools.kernel import wait_rcu
from vmcore_tools.kernel.rcu import (
    expedited_grace_period,
    for_each_rcu_state,
    for_each_ready_callback,
    for_each_synchronizer,
    grace_period,
    is_wait_queue_of_expedited,
    kthread_inactive_ns,
    rcu_data,
    rcu_name,
    stall_timeout_ns,
)
from vmcore_tools.kernel.wait_nodes import DRIVEN_BY, ON_CPU, ON_READER, RCU, TASK, Node
from vmcore_tools.kernel.wait_rcu import follow_rcu, follow_rcu_wait
from vmcore_tools.kernel.waits import Wait

NOW = 5_000
JIFFY_NS = 4_000_000
IN_PROGRESS = 400 << 2 | 1


class Chains:
    """As much of WaitChains as following RCU needs: keys of nodes, and which CPUs are online."""

    def __init__(self, prog: Program) -> None:
        self.prog = prog
        self.found: Dict[str, Dict[int, Object]] = {}
        self.run_queues = {0: SimpleNamespace(online=True), 1: SimpleNamespace(online=False)}

    def cpu(self, cpu: int) -> str:
        return f"cpu {cpu}"

    def task(self, task: Object) -> str:
        return f"task {task.value_():#x}"

    def add(self, node: Node) -> str:
        return node.key


class Rcu:
    """One kind of RCU on the machine's two CPUs: the root, and a leaf for each CPU."""

    def __init__(self, machine: Machine, variable: str, name: bytes) -> None:
        self.machine, self.address = machine, machine.variable(variable)
        self.type = machine.prog.type("struct rcu_state")
        node = machine.prog.type("struct rcu_node")
        self.nodes = [self.address + number * sizeof(node) for number in range(3)]
        level = self.address + offsetof(self.type, "level")
        machine.words(level, [self.nodes[0], self.nodes[1]])
        for number, address in enumerate(self.nodes):
            low = max(0, number - 1)
            machine.put("struct rcu_node", address, {"grplo": low, "grphi": low or number == 0})
            machine.link(address + offsetof(node, "blkd_tasks"))
        self.put(name=machine.string(name), gp_activity=NOW - 1)

    def put(self, **members: int) -> None:
        self.machine.put("struct rcu_state", self.address, dict(members))

    def at(self, designator: str) -> int:
        return self.address + offsetof(self.type, designator)

    def leaf(self, cpu: int, **members: int) -> None:
        self.machine.put("struct rcu_node", self.nodes[1 + cpu], dict(members))

    def readers(self, cpu: int, count: int) -> List[int]:
        """Blocked readers on a leaf, the last that was preempted first."""
        machine = self.machine
        entry = offsetof(machine.prog.type("struct task_struct"), "rcu_node_entry")
        tasks = [machine.new("struct task_struct", {"pid": 100 + n}) for n in range(count)]
        head = self.nodes[1 + cpu] + offsetof(machine.prog.type("struct rcu_node"), "blkd_tasks")
        machine.link(head, [task + entry for task in tasks])
        return [task + entry for task in tasks]

    @property
    def state(self) -> Object:
        return Object(self.machine.prog, "struct rcu_state *", value=self.address)


def kernel(folder: Path, release: str, *config: str) -> Machine:
    machine = Machine("rcu.c", folder, release, config=("PREEMPT_RCU", *config))
    machine.set_variable("jiffies_64", NOW)
    return machine


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Dict[str, Rcu]]:
    machine = kernel(tmp_path, "4.19.90", "FLAVORS")
    flavors = {
        "rcu_sched": Rcu(machine, "rcu_sched_state", b"rcu_sched"),
        "rcu_bh": Rcu(machine, "rcu_bh_state", b"rcu_bh"),
    }
    nodes = [rcu.at("flavors") for rcu in flavors.values()]
    machine.link(machine.variable("rcu_struct_flavors"), nodes)
    yield flavors
    machine.close()


@pytest.fixture
def new(tmp_path: Path) -> Iterator[Rcu]:
    machine = kernel(tmp_path, "7.2.13")
    yield Rcu(machine, "rcu_state", b"rcu_preempt")
    machine.close()


def test_each_kind_has_grace_periods_of_its_own(old: Dict[str, Rcu]) -> None:
    states = list(for_each_rcu_state(old["rcu_bh"].machine.prog))
    assert [rcu_name(state) for state in states] == ["rcu_sched", "rcu_bh"]
    old["rcu_bh"].put(gp_seq=IN_PROGRESS, gp_start=NOW - 1000)
    old["rcu_bh"].leaf(1, qsmask=1)
    assert grace_period(states[0]) is None
    period = grace_period(states[1])
    assert period is not None
    assert (period.age_ns, period.cpus, period.readers) == (1000 * JIFFY_NS, (1,), ())
    assert not period.expedited


def test_what_a_cpu_knows_is_per_flavor_and_cpu(old: Dict[str, Rcu]) -> None:
    machine = old["rcu_sched"].machine
    pointer = machine.alloc_per_cpu(sizeof(machine.prog.type("struct rcu_data")))
    old["rcu_sched"].put(rda=pointer)
    for cpu in range(2):
        machine.put("struct rcu_data", machine.per_cpu(pointer, cpu), {"ticks_this_gp": 7 + cpu})
    data = [rcu_data(old["rcu_sched"].state, cpu) for cpu in range(2)]
    assert [one.ticks_this_gp.value_() for one in data] == [7, 8]


def test_both_leaves_keep_a_grace_period(new: Rcu) -> None:
    (state,) = for_each_rcu_state(new.machine.prog)
    assert grace_period(state) is None
    new.put(gp_seq=IN_PROGRESS, gp_start=NOW - 3)
    # The root has a bit for each leaf, and is none itself.
    new.machine.put("struct rcu_node", new.nodes[0], {"qsmask": 3})
    new.leaf(0, qsmask=1)
    new.leaf(1, qsmask=1)
    period = grace_period(state)
    assert period is not None
    assert (period.age_ns, period.cpus) == (3 * JIFFY_NS, (0, 1))
    assert expedited_grace_period(state) is None
    assert stall_timeout_ns(new.machine.prog) == 21_000_000_000
    assert kthread_inactive_ns(state) == JIFFY_NS


def test_readers_from_the_first_that_it_waits_for(new: Rcu) -> None:
    entries = new.readers(1, 4)
    new.put(gp_seq=IN_PROGRESS, expedited_sequence=8 << 2 | 1)
    new.leaf(1, gp_tasks=entries[1], exp_tasks=entries[3], expmask=1)
    period, expedited = grace_period(new.state), expedited_grace_period(new.state)
    assert period is not None
    assert expedited is not None
    assert [reader.pid.value_() for reader in period.readers] == [101, 102, 103]
    assert [reader.pid.value_() for reader in expedited.readers] == [103]
    assert (expedited.expedited, expedited.age_ns, expedited.cpus) == (True, None, (1,))


def test_a_damaged_list_of_readers_ends(new: Rcu) -> None:
    entries = new.readers(0, 3)
    new.put(gp_seq=IN_PROGRESS)
    new.leaf(0, gp_tasks=entries[0])
    new.machine.words(entries[2], [entries[1]])
    with pytest.raises(ValidationError):
        grace_period(new.state)


@pytest.mark.parametrize(("levels", "nodes"), [(0, 3), (9, 3), (2, 1 << 30)])
def test_a_tree_that_cannot_be_is_not_walked(new: Rcu, levels: int, nodes: int) -> None:
    new.put(gp_seq=IN_PROGRESS)
    new.machine.set_variable("rcu_num_lvls", levels)
    new.machine.set_variable("rcu_num_nodes", nodes)
    with pytest.raises(ValidationError):
        grace_period(new.state)


def test_callbacks_whose_grace_period_is_over(new: Rcu) -> None:
    machine = new.machine
    address = machine.per_cpu(machine.variable("rcu_data"), 1)
    heads = [machine.new("struct callback_head", {}) for _ in range(3)]
    for head, following in zip(heads, heads[1:]):
        machine.words(head, [following])
    list_ = address + offsetof(machine.prog.type("struct rcu_data"), "cblist")
    # The first two are done: the segment ends in the place of the pointer to the third.
    machine.words(list_, [heads[0], heads[1], heads[2], heads[2], heads[2]])
    data = rcu_data(new.state, 1)
    assert [head.value_() for head in for_each_ready_callback(data)] == heads[:2]
    machine.words(list_ + 8, [list_])
    assert list(for_each_ready_callback(data)) == []


def test_synchronizers_without_a_callback(new: Rcu) -> None:
    machine = new.machine
    calls = [machine.new("struct rcu_synchronize", {}) for _ in range(2)]
    mark = new.at("srs_wait_nodes") + offsetof(machine.prog.type("struct sr_wait_node"), "node")
    machine.words(new.at("srs_next"), [calls[0]])
    machine.words(calls[0], [mark])
    machine.words(mark, [calls[1]])
    assert [call.value_() for call in for_each_synchronizer(new.state)] == calls


def test_before_they_all_had_a_callback(old: Dict[str, Rcu]) -> None:
    assert list(for_each_synchronizer(old["rcu_bh"].state)) == []


def test_wait_queues_of_expedited_grace_periods(new: Rcu) -> None:
    queues = new.nodes[2] + offsetof(new.machine.prog.type("struct rcu_node"), "exp_wq")
    size = sizeof(new.machine.prog.type("wait_queue_head_t"))
    assert is_wait_queue_of_expedited(new.state, queues + 3 * size)
    assert is_wait_queue_of_expedited(new.state, new.at("expedited_wq"))
    assert not is_wait_queue_of_expedited(new.state, queues - 8)
    assert not is_wait_queue_of_expedited(new.state, queues + 4 * size)
    assert not is_wait_queue_of_expedited(new.state, new.at("gp_wq"))


def test_a_callback_that_only_has_to_be_invoked_leads_to_its_cpu(new: Rcu) -> None:
    machine = new.machine
    new.put(gp_seq=IN_PROGRESS, gp_start=NOW - 1000)
    calls = [machine.new("struct rcu_synchronize", {}) for _ in range(2)]
    data = machine.per_cpu(machine.variable("rcu_data"), 1)
    machine.put("struct rcu_data", data, {"cpu": 1})
    list_ = data + offsetof(machine.prog.type("struct rcu_data"), "cblist")
    # The grace period of the second call is still to come.
    machine.words(list_, [calls[0], calls[0], calls[1], calls[1], calls[1]])
    machine.words(calls[0], [calls[1]])

    chains: Any = Chains(machine.prog)
    done = offsetof(machine.prog.type("struct rcu_synchronize"), "completion")
    edges = []
    for call in calls:
        completion = Object(machine.prog, "struct completion *", value=call + done)
        wait = Wait("rcu", completion, "")
        node = Node(f"task {call:#x}", TASK, completion, "task", wait)
        edges += follow_rcu_wait(chains, node, wait)
    assert [(edge.target, edge.why) for edge in edges] == [
        ("cpu 1", "waits for the RCU softirq of"),
        (f"rcu_preempt grace period {new.address:#x}", "waits for"),
    ]
    assert all(edge.proven for edge in edges)


def test_a_grace_period_waits_for_cpus_and_readers_and_else_for_its_kthread(
    new: Rcu, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = new.readers(1, 1)
    kthread = new.machine.new("struct task_struct", {"pid": 16})
    new.put(gp_seq=IN_PROGRESS, gp_start=NOW - 1000, gp_kthread=kthread)
    new.leaf(0, qsmask=1)
    new.leaf(1, qsmask=1, gp_tasks=entries[0])
    chains: Any = Chains(new.machine.prog)
    node = Node("rcu", RCU, new.state, "rcu_preempt grace period")
    entry = offsetof(new.machine.prog.type("struct task_struct"), "rcu_node_entry")
    # CPU 1 is offline: it is not waited for.
    assert [(edge.target, edge.why) for edge in follow_rcu(chains, node)] == [
        ("cpu 0", ON_CPU),
        (f"task {entries[0] - entry:#x}", ON_READER),
    ]
    monkeypatch.setattr(wait_rcu, "is_queued", lambda _task: True)
    new.put(gp_activity=NOW - 600)
    assert [(edge.target, edge.why) for edge in follow_rcu(chains, node)] == [
        (f"task {kthread:#x}", DRIVEN_BY)
    ]
