# SPDX-License-Identifier: LGPL-2.1-or-later
"""RCU of the shipped dumps, in which nothing stalls, and stalls that are made up there."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Tuple

import pytest
from drgn import Object
from drgn.helpers.linux.pid import find_task

from drgn_scripts.wait_graph import ANALYSIS
from tests.dumps.conftest import ShippedDump
from vmcore_tools import runner
from vmcore_tools.kernel import wait_rcu
from vmcore_tools.kernel.cpu_state import (
    in_kernel,
    interrupts_off,
    ns_since_panic,
    panic_cpu,
    pending_stops,
)
from vmcore_tools.kernel.printk import log_records
from vmcore_tools.kernel.rcu import (
    GracePeriod,
    expedited_grace_period,
    for_each_rcu_state,
    for_each_synchronizer,
    grace_period,
    is_wait_queue_of_expedited,
    kthread_inactive_ns,
    rcu_name,
    stall_timeout_ns,
)
from vmcore_tools.kernel.run_queue import for_each_run_queue
from vmcore_tools.kernel.task import sched_now_ns, task_comm
from vmcore_tools.kernel.wait_graph import Edge
from vmcore_tools.kernel.wait_rcu import add_rcu
from vmcore_tools.model import Confidence, Evidence, Finding
from vmcore_tools.wait_findings import rcu, view
from vmcore_tools.wait_findings.causes import CACHE

S = 1_000_000_000


def state_of(dump: ShippedDump) -> Object:
    (state,) = for_each_rcu_state(dump.target.prog)
    return state


def test_nothing_stalls(shipped: ShippedDump) -> None:
    state = state_of(shipped)
    assert rcu_name(state) == "rcu_sched"  # CONFIG_PREEMPT_VOLUNTARY
    assert task_comm(state.gp_kthread) == "rcu_sched"
    assert stall_timeout_ns(shipped.target.prog) == 21 * S
    assert kthread_inactive_ns(state) < 60 * S
    period = grace_period(state)
    assert period is None or (period.age_ns or 0) < 5 * S
    assert expedited_grace_period(state) is None
    assert list(for_each_synchronizer(state)) == []
    assert is_wait_queue_of_expedited(state, state.expedited_wq.address_of_().value_())
    assert "VT316" not in [finding.rule.id for finding in shipped.report.findings]


def test_what_the_cpus_were_in_the_middle_of(demo_dump: ShippedDump) -> None:
    prog = demo_dump.target.prog
    queues = {queue.cpu: queue for queue in for_each_run_queue(prog, sched_now_ns(prog))}
    culprit = demo_dump.truth["culprit"]
    # It spins in user mode; khungtaskd panicked on the other CPU.
    hog = queues[culprit["cpu"]].current
    assert hog.pid.value_() == culprit["pid"]
    assert (in_kernel(hog), interrupts_off(hog)) == (False, False)
    assert panic_cpu(prog) == 1 - culprit["cpu"]
    assert in_kernel(queues[1 - culprit["cpu"]].current) is True
    assert pending_stops(prog, 1 - culprit["cpu"]) == []


@dataclasses.dataclass(frozen=True)
class Stall:
    """What keeps a made up grace period, which is 30 s old."""

    cpus: Tuple[int, ...] = ()
    reader_pid: int = 0


def blamed(
    dump: ShippedDump, monkeypatch: pytest.MonkeyPatch, stall: Stall, starving: bool = False
) -> Dict[str, Finding]:
    prog, state = dump.target.prog, state_of(dump)
    readers = (find_task(prog, stall.reader_pid).read_(),) if stall.reader_pid else ()
    period = GracePeriod(state, False, 30 * S, stall.cpus, readers)
    for module in (rcu, wait_rcu):
        monkeypatch.setattr(module, "grace_period", lambda _state: period)
        monkeypatch.setattr(module, "is_kthread_starving", lambda _state: starving)
    monkeypatch.delitem(prog.cache, CACHE, raising=False)
    report = runner.run(
        dump.target, [ANALYSIS], {}, limit=None, progress=lambda items, _what, _total: items
    )
    return {finding.rule.id: finding for finding in report.findings}


def evidence(finding: Finding) -> Dict[str, Any]:
    return {item.name: item.value for item in finding.evidence}


def kthread_of(finding: Finding) -> Tuple[str, Tuple[Evidence, ...]]:
    """How the kthread is drawn: what it does, and what is said of it."""
    graph = finding.graph
    assert graph is not None
    (node,) = (node for node in graph.nodes if node.ref.name == "rcu_sched")
    (why,) = (edge.why for edge in graph.edges if edge.source == node.id)
    return why, node.facts


def test_a_reader_that_sleeps_keeps_the_grace_period(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = blamed(demo_dump, monkeypatch, Stall(reader_pid=1))
    stalled = found["VT316"]
    assert (stalled.subject.pid, stalled.confidence) == (1, Confidence.PROVEN)
    assert stalled.signature_key[:2] == ("rcu-stall", "reader")
    said = evidence(stalled)
    assert (said["grace_period_ns"], said["rcu"]) == (30 * S, "rcu_sched")
    # Nobody waits: its kthread drives it, and sleeps for a moment at a time.
    assert said["victims"] == 0
    assert "victim" not in said and "wait_ns" not in said
    assert kthread_of(stalled) == ("drives", ())
    assert {"VT311", "VT316"} <= set(found)  # the hang of that dump is another thing


@pytest.mark.parametrize("by_reader", [False, True])
def test_where_a_cpu_is_kept_that_is_the_cause(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch, by_reader: bool
) -> None:
    hung, culprit = demo_dump.truth["hung"], demo_dump.truth["culprit"]
    # The hung task itself waits for that CPU.
    stall = Stall(reader_pid=hung["pid"]) if by_reader else Stall(cpus=(culprit["cpu"],))
    found = blamed(demo_dump, monkeypatch, stall)
    assert list(found) == ["VT311"]
    assert found["VT311"].subject.pid == culprit["pid"]
    assert "rcu_sched" not in evidence(found["VT311"])["victim_comms"]
    assert kthread_of(found["VT311"]) == ("drives", ())


@pytest.mark.parametrize(("since_panic_s", "old_enough"), [(0, True), (8, True), (10, False)])
def test_the_time_since_a_panic_does_not_count(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch, since_panic_s: int, old_enough: bool
) -> None:
    monkeypatch.setattr(view, "ns_since_panic", lambda *_: since_panic_s * S)
    # That is for which the kernel reports it, 21 s, and by itself: nobody else waits.
    found = blamed(demo_dump, monkeypatch, Stall(reader_pid=1))
    assert ("VT316" in found) == old_enough
    if old_enough:
        assert evidence(found["VT316"])["grace_period_ns"] == (30 - since_panic_s) * S


@pytest.mark.parametrize(("waited_s", "old_enough"), [(1, False), (30, True)])
def test_an_expedited_one_is_as_old_as_who_waits_for_it(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch, waited_s: int, old_enough: bool
) -> None:
    prog, state = demo_dump.target.prog, state_of(demo_dump)
    reader, waiter, other = (find_task(prog, pid) for pid in (2, 1, 3))
    period = GracePeriod(state, True, None, (), (reader.read_(),))

    def prepare(cause: rcu.RcuStall) -> None:
        chains, waits = cause.view.chains, cause.view.waits
        grace = add_rcu(chains, state, expedited=True)
        for task, target, seconds in ((waiter, grace, waited_s), (other, chains.task(reader), 99)):
            key = chains.add_task(task)
            waits[key] = seconds * S
            chains.graph.add_edge(Edge(key, target, "waits for"))
        chains.follow()

    monkeypatch.setattr(wait_rcu, "expedited_grace_period", lambda _state: period)
    monkeypatch.setattr(rcu.RcuStall, "prepare", prepare)
    monkeypatch.delitem(prog.cache, CACHE, raising=False)
    report = runner.run(
        demo_dump.target, [ANALYSIS], {}, limit=None, progress=lambda items, _what, _total: items
    )
    found = [finding for finding in report.findings if finding.rule.id == "VT316"]
    assert [finding.subject.pid for finding in found] == ([2] if old_enough else [])


def test_a_crash_kernel_stops_the_clocks(shipped: ShippedDump) -> None:
    prog = shipped.target.prog
    now_ns = sched_now_ns(prog)
    assert ns_since_panic(prog, now_ns) == 0
    (panicked,) = [r for r in log_records(prog) if r.text.startswith(b"Kernel panic")]
    assert ns_since_panic(prog, panicked.timestamp_ns + 300 * S) == 300 * S


def test_a_kthread_that_does_nothing_waits_for_no_cpus(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    stall = Stall(cpus=(demo_dump.truth["culprit"]["cpu"],))
    found = blamed(demo_dump, monkeypatch, stall, starving=True)
    assert "rcu_sched" not in evidence(found["VT311"])["victim_comms"]
