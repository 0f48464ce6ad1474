# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who waits for whom in the shipped dumps, against what their guests recorded."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Set

import pytest
from drgn import Object, container_of
from drgn.helpers.linux.pid import find_task, for_each_task

from drgn_scripts.wait_graph import ANALYSIS
from tests.dumps.conftest import ShippedDump
from vmcore_tools import demo, runner
from vmcore_tools.kernel import run_queue, wait_chain
from vmcore_tools.kernel.run_queue import (
    for_each_run_queue,
    need_resched,
    rt_throttling_off,
    scheduling_policy,
)
from vmcore_tools.kernel.task import sched_now_ns
from vmcore_tools.kernel.workqueue import (
    barrier_target,
    for_each_inactive_work,
    for_each_pending_work,
    for_each_pool_workqueue,
    for_each_worker,
    for_each_worker_pool,
    for_each_workqueue,
    is_barrier,
    is_mayday,
    jiffies_per_second,
    pool_highpri,
    pool_is_managed,
    pool_nr_running,
    pool_without_progress_ns,
    work_is_linked,
    work_is_pending,
    work_pool,
    work_pwq,
    worker_is_idle,
)
from vmcore_tools.model import Absent, Confidence, Finding
from vmcore_tools.report.graph import tree_lines
from vmcore_tools.report.table import render
from vmcore_tools.wait_findings import cpu
from vmcore_tools.wait_findings.causes import CACHE

RULES = {rule.id for rule in ANALYSIS.rules}
_KWORKER = re.compile(r"kworker/(u?)(\d+):\d+(H?)(-.*)?")


def found(dump: ShippedDump) -> List[Finding]:
    return [finding for finding in dump.report.findings if finding.rule.id in RULES]


def evidence(finding: Finding) -> Dict[str, Any]:
    return {item.name: item.value for item in finding.evidence}


def tasks(dump: ShippedDump) -> List[Dict[str, Any]]:
    recorded: List[Dict[str, Any]] = dump.truth["tasks"]
    return recorded


def pools(dump: ShippedDump) -> List[Object]:
    return list(for_each_worker_pool(dump.target.prog))


# The demo dump: rt-hog keeps CPU 1 to itself, and Xorg waits for a work there.


def test_the_task_that_keeps_the_cpu_is_to_blame(demo_dump: ShippedDump) -> None:
    culprit, hung = demo_dump.truth["culprit"], demo_dump.truth["hung"]
    (finding,) = found(demo_dump)
    assert (finding.rule.id, finding.confidence) == ("VT311", Confidence.PROVEN)
    assert (finding.subject.name, finding.subject.pid) == (culprit["comm"], culprit["pid"])
    assert culprit["policy"] == 1
    facts = evidence(finding)
    assert facts["policy"] == "SCHED_FIFO"
    assert (facts["cpu"], facts["rt_priority"]) == (culprit["cpu"], culprit["rt_priority"])
    assert facts["rt_throttling_off"] is True
    assert (facts["victim"], facts["victim_pid"]) == (hung["comm"], hung["pid"])
    assert facts["waits_for"] == "flush_work"
    # It has run from before Xorg began to wait, and not from before it was started.
    started_ns = find_task(demo_dump.target.prog, culprit["pid"]).start_time.value_()
    now_ns = sched_now_ns(demo_dump.target.prog)
    assert facts["wait_ns"] <= facts["held_ns"] <= now_ns - started_ns


def found_where(dump: ShippedDump, monkeypatch: pytest.MonkeyPatch, *, others_ran: bool) -> Finding:
    """The finding if the kernel did not tell that the current task has run for long."""
    monkeypatch.setattr(cpu, "current_ran_ns", lambda *_: 0)
    monkeypatch.setattr(cpu, "current_ran_anywhere_ns", lambda *_: 0)
    if others_ran:
        monkeypatch.setattr(cpu, "since_run_ns", lambda *_: 1000)
    return found_again(dump, monkeypatch)


def found_again(dump: ShippedDump, monkeypatch: pytest.MonkeyPatch) -> Finding:
    monkeypatch.delitem(dump.target.prog.cache, CACHE, raising=False)
    report = runner.run(
        dump.target, [ANALYSIS], {}, limit=None, progress=lambda items, _what, _total: items
    )
    (finding,) = report.findings
    return finding


def test_where_it_is_not_known_for_how_long_the_task_ran_it_is_likely_if_no_other_did(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = found_where(demo_dump, monkeypatch, others_ran=False)
    assert (finding.rule.id, finding.confidence) == ("VT311", Confidence.LIKELY)
    assert finding.subject.pid == demo_dump.truth["culprit"]["pid"]


def test_a_task_that_may_just_have_preempted_the_culprit_is_not_blamed(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = found_where(demo_dump, monkeypatch, others_ran=True)
    assert (finding.rule.id, finding.confidence) == ("VT311", Confidence.SUSPECTED)
    assert (finding.subject.type, finding.subject.name) == ("CPU", "1")
    facts = evidence(finding)
    assert facts["not_run"].startswith("kworker/1:")
    assert facts["waited_ns"] > facts["wait_ns"]
    assert isinstance(facts["since_switch_ns"], Absent)
    assert "held_ns" not in facts and "before" not in facts


def test_a_worker_that_the_cpu_has_only_to_queue_waits_for_it(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if CPUs woke each other's tasks by interrupts, which CPU 1 does not take.
    kept = demo_dump.truth["culprit"]["cpu"]
    (waiting,) = (
        task
        for task in for_each_task(demo_dump.target.prog)
        if task.comm.string_() == b"kworker/1:1"
    )
    of_list = run_queue.for_each_queued_task
    monkeypatch.setattr(
        run_queue,
        "for_each_queued_task",
        lambda rq: iter(()) if rq.cpu.value_() == kept else of_list(rq),
    )
    monkeypatch.setattr(
        run_queue,
        "for_each_pending_wakeup",
        lambda _prog, cpu: iter([waiting] if cpu == kept else []),
    )
    finding = found_again(demo_dump, monkeypatch)
    assert (finding.rule.id, finding.confidence) == ("VT311", Confidence.PROVEN)
    assert finding.subject.pid == demo_dump.truth["culprit"]["pid"]


def test_a_task_that_may_have_run_on_another_cpu_first_is_likely_to_be_the_one(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "current_ran_ns", lambda *_: 0)
    finding = found_again(demo_dump, monkeypatch)
    assert (finding.rule.id, finding.confidence) == ("VT311", Confidence.LIKELY)
    assert finding.subject.pid == demo_dump.truth["culprit"]["pid"]
    assert finding.unread == ("since when the task has been on this CPU",)


@pytest.mark.parametrize(
    ("off", "expected"), [(False, Confidence.LIKELY), (True, Confidence.PROVEN)]
)
def test_a_cpu_without_ticks_may_not_run_where_interrupts_are_on(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch, off: bool, expected: Confidence
) -> None:
    monkeypatch.setattr(cpu, "_TICKS_MISSED_NS", 0)
    monkeypatch.setattr(cpu, "interrupts_off", lambda _task: off)
    finding = found_again(demo_dump, monkeypatch)
    assert (finding.rule.id, finding.confidence) == ("VT311", expected)
    assert finding.unread == (() if off else ("whether the host ran the CPU",))


def test_ordinary_load_of_the_fair_class_is_nobodys_fault(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "is_realtime", lambda _task: False)
    monkeypatch.setattr(cpu, "is_of_low_weight", lambda _task: True)
    monkeypatch.delitem(demo_dump.target.prog.cache, CACHE, raising=False)
    report = runner.run(
        demo_dump.target, [ANALYSIS], {}, limit=None, progress=lambda items, _what, _total: items
    )
    assert report.findings == ()


def test_what_nobody_is_known_to_end_is_shown_with_what_it_is_part_of(
    demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it were not known that the completion is a flush_work()'s."""
    follow = {**wait_chain.FOLLOW_WAIT}
    del follow["flush_work"]
    monkeypatch.setattr(wait_chain, "FOLLOW_WAIT", follow)
    monkeypatch.setattr(cpu.CpuMonopolised, "prepare", lambda _cause: None)
    monkeypatch.delitem(demo_dump.target.prog.cache, CACHE, raising=False)
    report = runner.run(
        demo_dump.target, [ANALYSIS], {}, limit=None, progress=lambda items, _what, _total: items
    )
    (finding,) = report.findings
    assert (finding.rule.id, finding.confidence) == ("VT318", Confidence.LIKELY)
    facts, hung = evidence(finding), demo_dump.truth["hung"]
    assert (facts["victim_pid"], facts["victims"]) == (hung["pid"], 1)
    assert facts["part_of"].startswith("the frame of ") and "__flush_work" in facts["part_of"]
    assert (facts["stack_of"], facts["stack_of_pid"]) == (hung["comm"], hung["pid"])
    # The barrier is in the pool's list, behind the work that another word of it names.
    assert facts["pointed_at_by"] != ()
    assert finding.graph is not None
    assert [node.ref.type for node in finding.graph.nodes] == ["flush_work", "task"]


def test_the_chain_from_the_hung_task_to_the_cpu(demo_dump: ShippedDump) -> None:
    (finding,) = found(demo_dump)
    graph = finding.graph
    assert graph is not None
    refs = {node.id: node.ref for node in graph.nodes}
    (key,) = (id for id, ref in refs.items() if ref.pid == demo_dump.truth["hung"]["pid"])
    chain = []
    while key not in graph.roots:
        (edge,) = (edge for edge in graph.edges if edge.source == key)
        assert edge.proven
        chain.append((edge.why, refs[edge.target].type, refs[edge.target].name))
        key = edge.target
    (worker,) = (
        task["comm"].partition("-")[0]
        for task in tasks(demo_dump)
        if task["state"] == "R" and task["comm"].startswith("kworker/1:")
    )
    assert chain == [
        ("flushes", "work", "drain_local_pages_wq"),
        ("is pending in", "worker pool", "CPU 1"),
        ("has woken", "task", worker),
        ("is queued on", "CPU", "1"),
    ]


def test_the_tree_reads_from_the_cause_down(demo_dump: ShippedDump) -> None:
    (finding,) = found(demo_dump)
    assert finding.graph is not None
    lines = list(tree_lines(finding.graph, 96))
    assert lines[0].startswith("CPU 1 (runs rt-hog, ")
    wanted = ["rt-hog", "kworker/1:1", "worker pool", "drain_local_pages_wq", "Xorg"]
    positions = [next(i for i, line in enumerate(lines) if word in line) for word in wanted]
    assert positions == sorted(positions)
    shown = render(demo_dump.report, width=100)
    assert all(f"    {line}\n" in shown for line in lines)
    assert max(map(len, lines)) <= 96


def test_barrier_and_work_lie_in_the_pool_behind_each_other(demo_dump: ShippedDump) -> None:
    prog = demo_dump.target.prog
    (pool,) = (pool for pool in pools(demo_dump) if pool_without_progress_ns(pool) is not None)
    assert (pool.cpu.value_(), pool_highpri(pool)) == (demo_dump.truth["culprit"]["cpu"], False)
    assert (pool_nr_running(pool), pool_is_managed(pool)) == (0, False)
    works = list(for_each_pending_work(pool))
    assert [is_barrier(work) for work in works].count(True) == 1
    number = [is_barrier(work) for work in works].index(True)
    drain, work = works[number - 1], works[number]
    assert prog.symbol(drain.func.value_()).name == "drain_local_pages_wq"
    assert work_is_linked(drain) and not work_is_linked(work)
    assert work_is_pending(drain)
    assert work_pool(drain) == work_pool(work) == pool
    barrier = container_of(work, "struct wq_barrier", "work")
    assert barrier.task.pid.value_() == demo_dump.truth["hung"]["pid"]
    target = barrier_target(barrier)
    assert target is not None
    assert (target.work, target.inactive, bool(target.worker)) == (drain, False, False)
    assert not target.executing
    assert target.pwq.wq.name.string_() == b"mm_percpu_wq"


def rows(dump: ShippedDump, analysis: str, table: str) -> List[Any]:
    return [
        row
        for result in dump.report.analyses
        if result.name == analysis
        for rows_of in result.tables
        if rows_of.row_type.__name__ == table
        for row in rows_of.rows
    ]


def test_the_table_of_works(demo_dump: ShippedDump) -> None:
    (pool,) = (row for row in rows(demo_dump, "workqueues", "WorkerPool") if row.pending)
    assert (pool.cpu, pool.high_priority) == (demo_dump.truth["culprit"]["cpu"], False)
    # 15 s, and the kernel's watchdog waits for 30 s.
    assert pool.overdue is False
    (worker,) = rows(demo_dump, "workqueues", "Worker")
    assert (worker.state, worker.pool_id) == ("woken", pool.pool_id)
    assert worker.pid in {task["pid"] for task in tasks(demo_dump) if task["state"] == "R"}
    works = rows(demo_dump, "workqueues", "QueuedWork")
    assert len(works) == pool.pending
    assert [w.work_function for w in works][-2:] == ["drain_local_pages_wq", "wq_barrier_func"]
    assert works[-1].flusher_pid == demo_dump.truth["hung"]["pid"]
    assert works[-1].flusher_comm == demo_dump.truth["hung"]["comm"]


def test_the_tables_of_run_queues(demo_dump: ShippedDump) -> None:
    culprit = demo_dump.truth["culprit"]
    cpu = rows(demo_dump, "run-queues", "Cpu")[culprit["cpu"]]
    assert (cpu.cpu, cpu.pid, cpu.policy) == (culprit["cpu"], culprit["pid"], "SCHED_FIFO")
    assert cpu.rt_priority == culprit["rt_priority"]
    queued = [r for r in rows(demo_dump, "run-queues", "QueuedTask") if r.cpu == cpu.cpu]
    assert {row.pid for row in queued} == {
        task["pid"]
        for task in tasks(demo_dump)
        if task["state"] == "R" and task["cpu"] == cpu.cpu and task["pid"] != culprit["pid"]
    }


# Any dump.


def test_who_is_on_a_list_of_waiters_is_found(shipped: ShippedDump) -> None:
    waiting = rows(shipped, "wait-graph", "WaitingTask")
    assert {row.pid for row in waiting} == {
        task["pid"] for task in tasks(shipped) if task["state"] == "D"
    }
    assert all(isinstance(row.waits_for, str) for row in waiting)


def test_without_a_hang_nobody_is_to_blame(shipped: ShippedDump) -> None:
    assert bool(found(shipped)) == bool(shipped.truth["hung"])


def test_workers_are_the_kworkers_of_their_pools(shipped: ShippedDump) -> None:
    recorded = {
        task["pid"]: match
        for task in tasks(shipped)
        for match in [_KWORKER.fullmatch(task["comm"])]
        if match
    }
    workers: Set[int] = set()
    for pool in pools(shipped):
        for worker in for_each_worker(pool):
            pid = worker.task.pid.value_()
            workers.add(pid)
            assert worker.pool == pool
            match = recorded.get(pid)
            if match is not None and not match[1]:
                assert int(match[2]) == pool.cpu.value_()
                assert bool(match[3]) == pool_highpri(pool)
            elif match is not None:
                assert pool.cpu.value_() == -1
    # The guest went on after it had recorded its tasks.
    assert len(workers & set(recorded)) >= len(recorded) - 1
    assert len(workers) <= len(recorded) + 1


def test_pools_of_all_cpus_and_idle_workers(shipped: ShippedDump) -> None:
    cpus = len(list(for_each_run_queue(shipped.target.prog, 0)))
    bound = [(p.cpu.value_(), pool_highpri(p)) for p in pools(shipped) if p.cpu.value_() >= 0]
    assert bound == [(cpu, highpri) for cpu in range(cpus) for highpri in (False, True)]
    for pool in pools(shipped):
        idle = [worker for worker in for_each_worker(pool) if worker_is_idle(worker)]
        assert len(idle) == pool.nr_idle.value_()
        assert len(list(for_each_worker(pool))) == pool.nr_workers.value_()


def test_workqueues_have_a_pwq_in_a_pool_of_each_cpu(shipped: ShippedDump) -> None:
    known = {pool.value_() for pool in pools(shipped)}
    names = set()
    for workqueue in for_each_workqueue(shipped.target.prog):
        names.add(workqueue.name.string_().decode())
        for pwq in for_each_pool_workqueue(workqueue):
            assert pwq.wq == workqueue
            assert pwq.pool.value_() in known
            assert list(for_each_inactive_work(pwq)) == []
            assert not is_mayday(pwq)
    assert {"events", "events_highpri", "events_unbound", "mm_percpu_wq"} <= names


def test_works_know_their_pwq(shipped: ShippedDump) -> None:
    for pool in pools(shipped):
        for work in for_each_pending_work(pool):
            assert work_pwq(work).pool == pool


def test_run_queues_hold_the_tasks_that_could_run(demo_dump: ShippedDump) -> None:
    prog = demo_dump.target.prog
    culprit = demo_dump.truth["culprit"]
    queues = {queue.cpu: queue for queue in for_each_run_queue(prog, sched_now_ns(prog))}
    held = queues[culprit["cpu"]]
    assert held.online and not held.idle and not held.rt_throttled
    assert held.current.pid.value_() == culprit["pid"]
    assert scheduling_policy(held.current) == "SCHED_FIFO"
    assert need_resched(held) is False
    assert rt_throttling_off(prog) is True
    running = {held.current.pid.value_(), *(q.task.pid.value_() for q in held.queued)}
    assert running == {
        task["pid"]
        for task in tasks(demo_dump)
        if task["state"] == "R" and task["cpu"] == culprit["cpu"]
    }
    assert held.nr_running == len(running)


def test_jiffies(shipped: ShippedDump) -> None:
    config = (demo.dumps_directory() / shipped.name / "kernel.config").read_text()
    hz = jiffies_per_second(shipped.target.prog)
    assert f"CONFIG_HZ={hz}\n" in config
