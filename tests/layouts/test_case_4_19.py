# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The first two cases in one dump of v4.19: Xorg hangs, and kmalloc-128 has filled with fences.

Xorg has waited in ``drain_all_pages()`` for the work of CPU 1, whose kworker was woken
and does not get to run, as a real-time task keeps that CPU. Meanwhile nothing put the
fences of its execbuffers.
"""

from __future__ import annotations

import struct
import unicodedata
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

import pytest
from drgn import offsetof, sizeof

from tests.bad_input.files import NT_PRSTATUS, notes
from tests.layouts.machine import PAGE, RAM, Machine, Value
from tests.layouts.test_fences_4_19 import Gpu
from vmcore_tools.kernel.strings import NAME_BYTES_MAX
from vmcore_tools.model import Confidence, Evidence, Finding, Kind, Report, Status
from vmcore_tools.report import FORMATS, render
from vmcore_tools.runner import BROKE_OFF, find_analyses, run
from vmcore_tools.target import DebugInfo, Target

#: The kernel writes what ~PG_buddy is, as a signed number, and when it crashed.
NOTE = (
    "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129",
    "NUMBER(PG_slab)=9",
    "CRASHTIME=1706521058",
)
SECOND = 1_000_000_000
NOW = 1200 * SECOND
HZ = 250
JIFFIES = (1 << 32) + 1200 * HZ - 300 * HZ  # INITIAL_JIFFIES
HUNG_FOR, STARVED_FOR, LATER_FOR = 130, 129, 100
UNINTERRUPTIBLE, RUNNING = 2, 0
FIFO, NORMAL = 1, 0
KTHREAD, WQ_WORKER = 0x200000, 0x20
IDLE_WORKER = 4
LEAKED = 40
XORG, KHUNGTASKD, SPINNER, KWORKER = 1458, 33, 2100, 57
DRAINER, READER = 2200, 2201

#: Where struct elf_prstatus has some of the registers.
_IN_PRSTATUS = {"rbp": 144, "rip": 240, "rflags": 256, "rsp": 264}

#: From the innermost; the wait queue's entry and the barrier are in two of the frames.
STACK = (
    "__schedule",
    "schedule",
    "schedule_timeout",
    "wait_for_completion",
    "__flush_work",
    "flush_work",
    "drain_all_pages",
    "__alloc_pages_nodemask",
    "ttm_pool_populate",
    "ttm_tt_bind",
    "ttm_bo_handle_move_mem",
    "ttm_bo_validate",
    "virtio_gpu_object_create",
    "virtio_gpu_resource_create_ioctl",
    "drm_ioctl_kernel",
    "drm_ioctl",
    "do_vfs_ioctl",
)


class Case:
    """The machine of the dump, task by task."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.gpu = Gpu(machine, with_tracks=True)
        self.tasks: Dict[int, int] = {}
        for cpu in (0, 1):
            self.put_queue(cpu, {"clock": NOW, "clock_task": NOW, "cpu": cpu, "online": 1})
            machine.link(self.at_queue(cpu, "cfs_tasks"))
            heads = self.at_queue(cpu, "rt.active.queue")
            for number in range(100):
                machine.link(heads + 16 * number)
        machine.set_variable("jiffies_64", JIFFIES)
        offsets = machine.alloc(16)
        chunk = machine.new("struct pcpu_chunk", {"nr_pages": 4})
        machine.set_variable("pcpu_unit_offsets", offsets)
        machine.set_variable("pcpu_first_chunk", chunk)
        machine.link(machine.variable("object_list"))
        machine.set_variable("panic_cpu", 0xFFFFFFFF)  # PANIC_CPU_INVALID
        self.notes = machine.alloc_per_cpu(sizeof(machine.prog.type("note_buf_t")))
        machine.set_variable("crash_notes", self.notes)

    def open_gpu(self, task: int) -> None:
        """The descriptor of a client of the GPU, which has no buffers at the moment."""
        machine, prog = self.machine, self.machine.prog
        file_type = prog.type("struct file")
        (file, *_) = self.slab(b"filp", "filp_cachep", sizeof(file_type))
        pid = prog.read_u64(self.at_task(task, "thread_pid"))
        device = machine.new("struct device", {"kobj.name": machine.string(b"card0")})
        machine.put("struct drm_minor", self.gpu.minor, {"kdev": device})
        client = machine.new("struct drm_file", {"filp": file, "minor": self.gpu.minor, "pid": pid})
        machine.put(
            "struct file",
            file,
            {
                "f_op": machine.variable("drm_driver_fops"),
                "f_count.counter": 1,
                "private_data": client,
            },
        )
        machine.link(file + offsetof(file_type, "f_ep_links"))
        self.gpu.set_list("filelist_internal", [])
        self.gpu.set_list("filelist", [client + offsetof(prog.type("struct drm_file"), "lhead")])
        table_type = prog.type("struct files_struct")
        (table, *_) = self.slab(b"files_cache", "files_cachep", sizeof(table_type))
        slots = table + offsetof(table_type, "fd_array")
        bits = table + offsetof(table_type, "open_fds_init")
        machine.put(
            "struct files_struct",
            table,
            {
                "count.counter": 1,
                "fdt": table + offsetof(table_type, "fdtab"),
                "fdtab.max_fds": 64,
                "fdtab.fd": slots,
                "fdtab.open_fds": bits,
            },
        )
        machine.words(bits, [1 << 11])
        machine.words(slots + 8 * 11, [file])
        machine.put("struct task_struct", task, {"files": table})

    def slab(self, name: bytes, variable: str, size: int) -> List[int]:
        """
        A cache of which one object is allocated, in the copy that Xorg's control group has.

        :return: the objects of a slab of that
        """
        slabs, aligned = self.gpu.slabs, -(-size // 64) * 64
        root = slabs.cache(name, size, aligned)
        self.machine.set_variable(variable, root.address)
        cache = slabs.cache(name + b"(723:lightdm.service)", size, aligned, root=root.address)
        return slabs.slab(cache, free=range(1, cache.objects))

    # Tasks.

    def task(self, pid: int, comm: bytes, cpu: int, members: Dict[str, Value]) -> int:
        machine = self.machine
        stack = machine.alloc(0x4000, 0x4000)
        size = sizeof(machine.prog.type("struct task_struct"))
        everyone: Dict[str, Value] = {
            "stack": stack,
            "comm": comm,
            "pid": pid,
            "tgid": pid,
            "cpu": cpu,
            "usage.counter": 2,
            "static_prio": 120,
            "prio": 120,
            "nr_cpus_allowed": 2,
            "sched_class": machine.variable("fair_sched_class"),
            "start_time": 5 * SECOND,
            "se.sum_exec_runtime": SECOND,
        }
        address = machine.alloc(size, 64)
        number = machine.new("struct pid", {"count.counter": 2})
        pid_type = machine.prog.type("struct pid")
        machine.put("struct upid", number + offsetof(pid_type, "numbers"), {"nr": pid})
        machine.words(number + offsetof(pid_type, "tasks"), [self.at_task(address, "pid_links")])
        everyone.update({"thread_pid": number, "group_leader": address})
        self.tasks[pid] = machine.put("struct task_struct", address, {**everyone, **members})
        return address

    def kthread(self, pid: int, comm: bytes, cpu: int, members: Dict[str, Value]) -> int:
        private = self.machine.new("struct kthread", {"cpu": cpu})
        known: Dict[str, Value] = {"flags": KTHREAD, "set_child_tid": private}
        return self.task(pid, comm, cpu, {**known, **members})

    def at_task(self, task: int, designator: str) -> int:
        return task + offsetof(self.machine.prog.type("struct task_struct"), designator)

    def hash_tasks(self) -> None:
        """``init_pid_ns.idr``, which is a radix tree."""
        machine, prog = self.machine, self.machine.prog
        slots = offsetof(prog.type("struct radix_tree_node"), "slots")
        root = machine.new("struct radix_tree_node", {"shift": 6})
        for pid, task in self.tasks.items():
            number = prog.read_u64(self.at_task(task, "thread_pid"))
            at = root + slots + 8 * (pid >> 6)
            leaf = prog.read_u64(at) & ~1
            if not leaf:
                leaf = machine.new("struct radix_tree_node", {"parent": root, "offset": pid >> 6})
                machine.words(at, [leaf | 1])
            machine.words(leaf + slots + 8 * (pid & 63), [number])
        namespace = machine.variable("init_pid_ns")
        machine.put("struct pid_namespace", namespace, {"idr.idr_rt.rnode": root | 1})

    # Run queues.

    def at_queue(self, cpu: int, designator: str) -> int:
        machine = self.machine
        queue = machine.per_cpu(machine.variable("runqueues"), cpu)
        return queue + offsetof(machine.prog.type("struct rq"), designator)

    def put_queue(self, cpu: int, members: Dict[str, Value]) -> None:
        self.machine.put("struct rq", self.at_queue(cpu, "lock"), members)

    # Stacks, as the compiler makes them with frame pointers.

    def sleep_in(self, task: int, functions: Sequence[str]) -> Dict[str, int]:
        """Let a task sleep, and tell where each function's frame has room."""
        machine, prog = self.machine, self.machine.prog
        room, low = 256, prog.read_u64(self.at_task(task, "stack"))
        frame_type = prog.type("struct inactive_task_frame")
        pointer = low + 0x4000 - len(functions) * (room + 16) - sizeof(frame_type) - 64
        machine.put("struct task_struct", task, {"thread.sp": pointer})
        at = pointer + sizeof(frame_type)
        rooms = {name: at + number * (room + 16) for number, name in enumerate(functions)}
        inside = [self.inside(name) for name in functions]
        first = at + room
        machine.put("struct inactive_task_frame", pointer, {"bp": first, "ret_addr": inside[0]})
        for number, name in enumerate(functions):
            base = rooms[name] + room
            last = number + 1 == len(functions)
            caller = [0, 0] if last else [base + room + 16, inside[number + 1]]
            machine.words(base, caller)
        return rooms

    def inside(self, function: str) -> int:
        """Behind its prologue."""
        symbol = self.machine.prog.symbol(function)
        return symbol.address + symbol.size - 2

    def save_registers(self, cpu: int, registers: Dict[str, int]) -> None:
        """``crash_save_cpu()``."""
        status = bytearray(336)  # struct elf_prstatus of x86-64
        for name, value in registers.items():
            struct.pack_into("<Q", status, _IN_PRSTATUS[name], value)
        note = notes([(b"CORE", NT_PRSTATUS, bytes(status))])
        self.machine.write(self.machine.per_cpu(self.notes, cpu), note)

    # What happened.

    def starve_cpu_1(self, seconds: int = STARVED_FOR) -> None:
        """A real-time task has CPU 1 to itself, and its woken kworker waits."""
        since = NOW - seconds * SECOND
        machine = self.machine
        spinner = self.task(
            SPINNER,
            b"rt-spinner",
            1,
            {
                "state": RUNNING,
                "on_cpu": 1,
                "on_rq": 1,
                "policy": FIFO,
                "prio": 49,
                "rt_priority": 50,
                "sched_class": machine.variable("rt_sched_class"),
                "start_time": since - SECOND,
                "se.exec_start": NOW,
                "se.sum_exec_runtime": seconds * SECOND,
                "sched_info.last_arrival": since,
            },
        )
        # In user mode.
        self.save_registers(1, {"rip": 0x555500001000, "rflags": 0x246, "rsp": 0x7FFC00001000})
        queue = self.at_queue(1, "rt.active.queue") + 16 * 49
        machine.link(queue, [self.at_task(spinner, "rt.run_list")])
        kworker = self.kthread(
            KWORKER,
            b"kworker/1:1",
            1,
            {
                "state": RUNNING,
                "on_rq": 1,
                "flags": KTHREAD | WQ_WORKER,
                "nr_cpus_allowed": 1,
                "se.exec_start": since - SECOND,
                "sched_info.last_queued": since,
            },
        )
        self.sleep_in(kworker, ["__schedule", "schedule", "worker_thread", "kthread_function"])
        machine.link(self.at_queue(1, "cfs_tasks"), [self.at_task(kworker, "se.group_node")])
        self.put_queue(1, {"curr": spinner, "nr_running": 2, "rt.rt_nr_running": 1})

    def hang_xorg(self, seconds: int = HUNG_FOR) -> None:
        """``drain_all_pages()`` flushes the work that it queued on CPU 1."""
        machine, prog = self.machine, self.machine.prog
        since = NOW - seconds * SECOND
        members: Dict[str, Value] = {"state": UNINTERRUPTIBLE, "se.exec_start": since}
        xorg = self.task(XORG, b"Xorg", 0, members)
        rooms = self.sleep_in(xorg, STACK)
        pool_type, work_type = prog.type("struct worker_pool"), prog.type("struct work_struct")
        pool = machine.new(
            "struct worker_pool",
            {
                "attrs": machine.new("struct workqueue_attrs", {}),
                "cpu": 1,
                "id": 2,
                "nr_workers": 1,
                "nr_idle": 1,
                "watchdog_ts": JIFFIES - (seconds - 1) * HZ,
            },
        )
        worker = machine.new(
            "struct worker",
            {"pool": pool, "task": self.tasks[KWORKER], "flags": IDLE_WORKER},
        )
        machine.link(worker + offsetof(prog.type("struct worker"), "scheduled"))
        machine.link(
            pool + offsetof(pool_type, "workers"),
            [worker + offsetof(prog.type("struct worker"), "node")],
        )
        machine.link(
            pool + offsetof(pool_type, "idle_list"),
            [worker + offsetof(prog.type("struct worker"), "entry")],
        )
        node = machine.new("struct radix_tree_node", {"count": 1})
        slots = offsetof(prog.type("struct radix_tree_node"), "slots")
        machine.words(node + slots + 8 * 2, [pool])
        machine.put("struct idr", machine.variable("worker_pool_idr"), {"idr_rt.rnode": node | 1})
        workqueue = machine.new("struct workqueue_struct", {"name": b"mm_percpu_wq"})
        pwq_type, wq_type = prog.type("struct pool_workqueue"), prog.type("struct workqueue_struct")
        pwq = machine.alloc(256, 256)
        members = {"pool": pool, "wq": workqueue, "nr_active": 1, "max_active": 256, "refcnt": 1}
        machine.put("struct pool_workqueue", pwq, members)
        machine.link(pwq + offsetof(pwq_type, "delayed_works"))
        machine.link(workqueue + offsetof(wq_type, "pwqs"), [pwq + offsetof(pwq_type, "pwqs_node")])
        for name in ("flusher_queue", "flusher_overflow", "maydays"):
            machine.link(workqueue + offsetof(wq_type, name))
        machine.link(machine.variable("workqueues"), [workqueue + offsetof(wq_type, "list")])
        drain = machine.new(
            "struct work_struct",
            {
                "data.counter": pwq | 3 << 4 | 1 | 4 | 8,  # PENDING, PWQ, LINKED
                "func": prog.symbol("drain_local_pages_wq").address,
            },
        )
        barrier = machine.put(
            "struct wq_barrier",
            rooms["__flush_work"] + 64,
            {
                "work.data.counter": pwq | 15 << 4 | 1 | 4,  # WORK_NO_COLOR
                "work.func": prog.symbol("wq_barrier_func").address,
                "task": xorg,
            },
        )
        machine.link(
            pool + offsetof(pool_type, "worklist"),
            [work + offsetof(work_type, "entry") for work in (drain, barrier)],
        )
        entry_type = prog.type("struct wait_queue_entry")
        entry = machine.put(
            "struct wait_queue_entry",
            rooms["wait_for_completion"] + 64,
            {"private": xorg, "func": prog.symbol("default_wake_function").address, "flags": 1},
        )
        head = barrier + offsetof(prog.type("struct wq_barrier"), "done.wait.head")
        machine.link(head, [entry + offsetof(entry_type, "entry")])
        self.drain = drain
        self.open_gpu(xorg)

    def wait_behind_xorg(self) -> None:
        """
        Somebody else drains, and somebody looks at Xorg's memory.

        The mutex is that of ``drain_all_pages()``; the semaphore is one that Xorg took
        for writing, and was then out of memory.
        """
        machine, prog, xorg = self.machine, self.machine.prog, self.tasks[XORG]
        since = NOW - LATER_FOR * SECOND
        members: Dict[str, Value] = {"state": UNINTERRUPTIBLE, "se.exec_start": since}
        drainer = self.task(DRAINER, b"cc1plus", 0, members)
        names = ("__schedule", "schedule", "schedule_preempt_disabled", "__mutex_lock")
        rooms = self.sleep_in(drainer, (*names, "mutex_lock", "drain_all_pages", "do_vfs_ioctl"))
        waiter = rooms["__mutex_lock"] + 64
        machine.put("struct mutex_waiter", waiter, {"task": drainer})
        mutex = machine.variable("pcpu_drain_mutex")
        machine.put("struct mutex", mutex, {"owner.counter": xorg | 1})  # MUTEX_FLAG_WAITERS
        machine.link(mutex + offsetof(prog.type("struct mutex"), "wait_list"), [waiter])

        reader = self.task(READER, b"ps", 0, members)
        names = ("__schedule", "schedule", "rwsem_down_read_failed", "down_read")
        rooms = self.sleep_in(reader, (*names, "proc_pid_cmdline_read", "do_vfs_ioctl"))
        waiter = rooms["rwsem_down_read_failed"] + 64
        machine.put("struct rwsem_waiter", waiter, {"task": reader, "type": 1})
        # RWSEM_WAITING_BIAS for the writer and for who waits, RWSEM_ACTIVE_BIAS.
        count = -(1 << 32) + 1 - (1 << 32)
        lock = machine.new("struct rw_semaphore", {"count.counter": count, "owner": xorg})
        machine.link(lock + offsetof(prog.type("struct rw_semaphore"), "wait_list"), [waiter])

    def panic(self) -> None:
        """khungtaskd does, on CPU 0, and says why."""
        self.stop()
        self.log(
            (6, b"Booting Linux on physical CPU 0x0000000000 [0x481fd010]"),
            (3, b"INFO: task Xorg:1458 blocked for more than 60 seconds."),
            (3, b"      Tainted: G           O      4.19.90 #5819"),
            (3, b'"echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.'),
            (6, b"Xorg            D    0  1458   1433 0x00000001"),
            (6, b"Call trace:"),
            (6, b" __switch_to+0xdc/0x148"),
            (6, b" __flush_work+0x110/0x250"),
            (6, b" flush_work+0x10/0x18"),
            (6, b" drain_all_pages+0x178/0x248"),
            (6, b" __alloc_pages_nodemask+0x4c0/0xce0"),
            (6, b" ttm_pool_populate+0x314/0x460"),
            (0, b"Kernel panic - not syncing: hung_task: blocked tasks"),
        )
        self.machine.set_variable("panic_cpu", 0)

    def stop(self) -> None:
        """The dump is taken while khungtaskd is on CPU 0."""
        task = self.kthread(
            KHUNGTASKD,
            b"khungtaskd",
            0,
            {"on_cpu": 1, "on_rq": 1, "se.exec_start": NOW, "sched_info.last_arrival": NOW - 1000},
        )
        self.put_queue(0, {"curr": task, "nr_running": 1})
        machine = self.machine
        top = machine.prog.read_u64(self.at_task(task, "stack")) + 0x4000
        registers = {"rip": self.inside("panic"), "rflags": 2, "rsp": top - 128, "rbp": top - 64}
        self.save_registers(0, registers)

    def log(self, *lines: Tuple[int, bytes]) -> None:
        """
        Records of ``struct printk_log``, the last one 2 ms ago.

        :param lines: level and text of each
        """
        data = b""
        for number, (level, text) in enumerate(lines):
            when = NOW - 2_000_000 - (len(lines) - 1 - number) * 1000
            size = -(-(16 + len(text)) // 4) * 4
            header = struct.pack("<QHHHBB", when, size, len(text), 0, 0, 2 | level << 5)
            data += (header + text).ljust(size, b"\0")
        machine = self.machine
        buffer = machine.alloc(4096)
        machine.write(buffer, data)
        machine.set_variable("log_buf", buffer)
        machine.set_variable("log_buf_len", 4096)
        machine.set_variable("log_next_idx", len(data))
        machine.set_variable("log_next_seq", len(lines))


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    machine = Machine("case_4_19.c", tmp_path, "4.19.90", NOTE)
    yield Case(machine)
    machine.close()


def triage(case: Case, complete: bool = True) -> Report:
    """
    All of it: nothing may fail.

    :param complete: nor may anything be unread
    """
    case.hash_tasks()
    machine = case.machine
    release = Evidence("kernel_release", Kind.UNTRUSTED, "4.19.90")
    target = Target(machine.prog, machine.memory, (release,), DebugInfo(vmlinux_loaded=True))
    analyses = [one for one in find_analyses() if one.argument is None and not one.on_demand]
    report = run(target, analyses, {}, limit=None, progress=lambda items, what, total: items)
    results = {one.name: (one.status, one.reason, one.gaps) for one in report.analyses}
    off = results.pop("kmemleak")
    assert off[0] is Status.NOT_APPLICABLE
    assert {status for status, _, _ in results.values()} <= {Status.OK, Status.PARTIAL}, results
    assert not complete or set(results.values()) == {(Status.OK, None, ())}, results
    return report


def findings_of(report: Report) -> Dict[str, Finding]:
    found = [finding for one in report.analyses for finding in one.findings]
    assert len({finding.rule.id for finding in found}) == len(found)
    return {finding.rule.id: finding for finding in found}


def values(finding: Finding) -> Dict[str, object]:
    return {item.name: item.value for item in finding.evidence}


def test_both_causes_are_found(case: Case) -> None:
    leaked = [case.gpu.fence(seqno, 1) for seqno in range(LEAKED)]
    emitted = case.gpu.fence(91, 1, 0)
    case.gpu.set_emitted([emitted])
    case.starve_cpu_1()
    case.hang_xorg()
    case.panic()

    report = triage(case)
    found = findings_of(report)

    assert {rule: finding.confidence for rule, finding in found.items()} == {
        "VT201": Confidence.PROVEN,
        "VT301": Confidence.PROVEN,
        "VT311": Confidence.PROVEN,
    }
    leak = values(found["VT201"])
    assert leak["references_leaked"] == leak["objects_only_leaked"] == len(leaked)
    assert leak["cache"] == "kmalloc-128"
    assert leak["type"] == "struct virtio_gpu_fence"
    assert leak["allocating_function"] == "virtio_gpu_execbuffer_ioctl"
    assert leak["allocating_comms"] == ("Xorg",)
    hung = values(found["VT301"])
    assert (hung["pid"], hung["wait_ns"]) == (XORG, HUNG_FOR * SECOND)
    assert (hung["waits_for"], hung["called_from"]) == ("flush_work", "drain_all_pages")
    assert hung["named_by_khungtaskd"] == (XORG,)
    assert hung["causes"] == ("VT311 cpu-monopolised (proven)",)
    (stack,) = found["VT301"].stacks
    assert tuple(frame.function for frame in report.stacks[stack].frames) == STACK
    cause = found["VT311"]
    assert (cause.subject.pid, values(cause)["cpu"]) == (SPINNER, 1)
    assert values(cause)["held_ns"] == STARVED_FOR * SECOND
    assert values(cause)["victim_pids"] == (XORG, KWORKER)
    # From Xorg to the task that keeps the CPU, over what each waits for.
    graph = cause.graph
    assert graph is not None
    nodes = {node.id: node.ref.address for node in graph.nodes}
    assert case.drain in nodes.values()
    assert [edge.why for edge in graph.edges if nodes[edge.source] == case.tasks[XORG]] == [
        "flushes"
    ]


def test_who_waits_behind_xorg_waits_for_the_same(case: Case) -> None:
    """Over a mutex, and over a semaphore whose count is signed and whose owner is a pointer."""
    case.starve_cpu_1()
    case.hang_xorg()
    case.wait_behind_xorg()
    case.stop()

    found = [finding for one in triage(case).analyses for finding in one.findings]

    (cause,) = (finding for finding in found if finding.rule.id == "VT311")
    assert cause.confidence is Confidence.PROVEN
    assert values(cause)["victim_pids"] == (XORG, DRAINER, READER, KWORKER)
    hung = {finding.subject.pid: finding for finding in found if finding.rule.id == "VT301"}
    assert {pid: values(finding)["waits_for"] for pid, finding in hung.items()} == {
        XORG: "flush_work",
        DRAINER: "mutex",
        READER: "rwsem",
    }
    for finding in hung.values():
        assert values(finding)["causes"] == ("VT311 cpu-monopolised (proven)",)
    assert len(found) == 4
    graph = cause.graph
    assert graph is not None
    names = {node.id: node.ref.pid or node.ref.name for node in graph.nodes}
    edges = {(names[edge.source], edge.why): edge.proven for edge in graph.edges}
    assert all(edges.values())
    assert {source for source, _ in edges} >= {XORG, DRAINER, READER, KWORKER}


def test_the_tables_say_what_is_there(case: Case) -> None:
    for seqno in range(LEAKED):
        case.gpu.fence(seqno, 1)
    case.starve_cpu_1()
    case.hang_xorg()
    case.panic()

    tables = {
        table.row_type.__name__: table.rows for one in triage(case).analyses for table in one.tables
    }

    # What is no fence in kmalloc-128 is allocated, too.
    assert {row.cache: row.allocated for row in tables["Slabs"]} == {
        "kmalloc-128": 75,
        "filp": 0,
        "filp(723:lightdm.service)": 1,
        "files_cache": 0,
        "files_cache(723:lightdm.service)": 1,
    }
    (blocked,) = tables["BlockedTask"]
    assert (blocked.pid, blocked.cause, blocked.cause_pid) == (XORG, "VT311", SPINNER)
    (client,) = tables["GemClient"]
    assert (client.opener_pid, client.minor) == (XORG, "card0")
    hung, panic = tables["LogReport"]
    assert (hung.report, hung.pid, hung.task) == ("hung task", XORG, case.tasks[XORG])
    assert hung.still_blocked and panic.report == "panic"


def test_a_task_whose_stack_is_missing_is_likely_hung(case: Case) -> None:
    """It may have been frozen on purpose."""
    case.starve_cpu_1()
    case.hang_xorg()
    case.stop()
    case.machine.put("struct task_struct", case.tasks[XORG], {"thread.sp": 0xFFFF8880F0000000})

    report = triage(case, complete=False)

    found = findings_of(report)
    # Its words are all there, and one of them is on a wait queue.
    assert set(found) == {"VT301", "VT311", "VT318"}
    assert found["VT318"].confidence is Confidence.LIKELY
    hung = found["VT301"]
    assert (hung.confidence, hung.unread) == (Confidence.LIKELY, ("the stack behind the wait",))
    assert (values(hung)["pid"], values(hung)["wait_ns"]) == (XORG, HUNG_FOR * SECOND)
    # The kworker alone is known to wait for the CPU.
    assert found["VT311"].confidence is Confidence.PROVEN
    assert values(found["VT311"])["victim_pids"] == (KWORKER,)


def test_a_range_of_ram_that_cannot_be_costs_no_analysis(case: Case) -> None:
    case.starve_cpu_1()
    case.hang_xorg()
    case.stop()
    machine = case.machine
    ram = machine.prog["iomem_resource"].child.value_()
    machine.put("struct resource", ram, {"end": 2**63 - 1})
    for one in triage(case, complete=False).analyses:
        assert BROKE_OFF not in [gap.what for gap in one.gaps]


@pytest.mark.parametrize("member", ["name", "child"])
def test_without_the_tree_of_resources_the_pages_are_still_counted(case: Case, member: str) -> None:
    case.starve_cpu_1()
    case.hang_xorg()
    case.stop()
    machine = case.machine
    ram = machine.prog["iomem_resource"].child.value_()
    target = machine.variable("iomem_resource") if member == "child" else ram
    machine.put("struct resource", target, {member: 0x7F3A5C001000})

    report = triage(case, complete=False)

    (memory,) = (one for one in report.analyses if one.name == "memory")
    assert memory.status is Status.PARTIAL
    pages = {row.use: row.pages for row in memory.tables[0].rows}
    # kmalloc-128's slab is of 8 pages, those of filp and files_cache are of one.
    assert pages["slab"] == 10
    # RAM ends in the middle of the only section, and what is behind it is in no dump.
    assert sum(pages.values()) >= RAM // PAGE


#: What clears a terminal, rings, goes back, is no UTF-8, turns text around and is markup.
HOSTILE = b"\x1b[2J\x07\r\xff\xe2\x80\xae<b>|_*"


def test_no_name_of_the_dump_gets_through_as_it_is(case: Case) -> None:
    """A comm has no end, either: all its 16 bytes are used."""
    assert len(HOSTILE) == 16
    case.gpu.fence(17, 1)
    case.starve_cpu_1()
    case.hang_xorg()
    case.stop()
    machine = case.machine
    machine.put("struct task_struct", case.tasks[XORG], {"comm": HOSTILE})
    (cache, *_) = case.gpu.slabs.caches
    name = machine.string(b"\x1b]0;title\x07" + b"a\nb" * 500)
    machine.put("struct kmem_cache", cache.address, {"name": name})
    case.log((3, b"INFO: task " + HOSTILE + b":1458 blocked for more than 60 seconds."))

    report = triage(case)

    found = findings_of(report)
    assert {"VT201", "VT301", "VT311"} == set(found)
    assert values(found["VT301"])["comm"] == HOSTILE.decode(errors="backslashreplace")
    assert values(found["VT301"])["named_by_khungtaskd"] == (XORG,)
    leaked_from = values(found["VT201"])["cache"]
    assert isinstance(leaked_from, str) and len(leaked_from) == NAME_BYTES_MAX
    for format in FORMATS:
        text = render(report, format)
        kinds = {unicodedata.category(character) for character in text if character != "\n"}
        assert not kinds & {"Cc", "Cf", "Cs"}
        assert "2J" in text and "title" in text
        assert format != "html" or "<b>" not in text


@pytest.mark.parametrize("leader", ["nothing", "a task of another process", "no task"])
def test_a_damaged_pointer_to_the_leader_makes_no_other_process(case: Case, leader: str) -> None:
    case.starve_cpu_1()
    case.hang_xorg()
    case.stop()
    xorg, spinner = case.tasks[XORG], case.tasks[SPINNER]
    # Which itself says that it is no leader.
    case.machine.put("struct task_struct", spinner, {"group_leader": xorg})
    address = {"nothing": 0, "a task of another process": spinner, "no task": xorg + 64}[leader]
    case.machine.put("struct task_struct", xorg, {"group_leader": address})

    clients = [
        row
        for one in triage(case).analyses
        for table in one.tables
        if table.row_type.__name__ == "GemClient"
        for row in table.rows
    ]

    assert [(row.opener_pid, row.opener_comm) for row in clients] == [(XORG, "Xorg")]


def test_a_kernel_that_does_the_same_and_is_well(case: Case) -> None:
    """Fences are emitted; Xorg has only just begun to wait, and the kworker runs."""
    emitted = [case.gpu.fence(seqno, 1, 0) for seqno in range(91, 91 + LEAKED)]
    case.gpu.set_emitted(emitted)
    case.starve_cpu_1(seconds=1)
    case.hang_xorg(seconds=2)
    case.stop()

    assert findings_of(triage(case)) == {}
