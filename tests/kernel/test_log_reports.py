# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's reports, from logs that kernels of several releases wrote."""

from __future__ import annotations

import re
from typing import List, Optional, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmcore_tools.kernel.log_reports import (
    FRAMES_MAX,
    REPORTS_MAX,
    LogReport,
    ReportKind,
    cause_functions,
    parse_reports,
)
from vmcore_tools.kernel.printk import LogRecord

KERN_ERR, KERN_INFO = 3, 6
NS = 1_000_000_000

# Of a guest with Debian's 6.1 kernel; the log of the scenario hung-lru-drain.
DEBIAN_6_1 = """\
[   20.921403] INFO: task Xorg:119 blocked for more than 10 seconds.
[   20.922245]       Tainted: G           OE      6.1.0-50-amd64 #1 Debian 6.1.176-1
[   20.922440] "echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.
[   20.922624] task:Xorg            state:D stack:0     pid:119   ppid:1      flags:0x00000002
[   20.923105] Call Trace:
[   20.923220]  <TASK>
[   20.923345]  __schedule+0x34d/0x9e0
[   20.923523]  schedule+0x5a/0xd0
[   20.923587]  schedule_timeout+0x11a/0x150
[   20.923666]  wait_for_completion+0x86/0x160
[   20.923746]  __flush_work.isra.0+0x173/0x280
[   20.923835]  ? flush_workqueue_prep_pwqs+0x110/0x110
[   20.923934]  __lru_add_drain_all+0x147/0x1f0
[   20.924067]  memfd_fcntl+0x46f/0x800
[   20.924141]  ? do_syscall_64+0x69/0xb0
[   20.924916]  entry_SYSCALL_64_after_hwframe+0x6e/0xd8
[   20.924916] RIP: 0033:0x439320
[   20.924916] RSP: 002b:00007ffed0634bc0 EFLAGS: 00000206 ORIG_RAX: 0000000000000048
[   20.924916]  </TASK>
[   28.652989] rcu: INFO: rcu_preempt self-detected stall on CPU
[   28.652989] rcu: \t1-....: (5250 ticks this GP) idle=4424/1/0x4000000000000000 softirq=255/257 fqs=2283
[   28.652989] \t(t=5250 jiffies g=-611 q=18 ncpus=2)
[   28.652989] CPU: 1 PID: 118 Comm: rt-hog Tainted: G           OE      6.1.0-50-amd64 #1  Debian 6.1.176-1
[   28.652989] Hardware name: QEMU Standard PC (i440FX + PIIX, 1996), BIOS 1.16.2-debian-1.16.2-1 04/01/2014
[   28.652989] RIP: 0033:0x4015fd
[   28.652989] RSP: 002b:00007ffec2a026f0 EFLAGS: 00000206
"""  # noqa: E501

# Of a guest with a 5.10 kernel whose module spins; of another, whose dma-buf has a BUG().
STALL_5_10 = """\
[   23.903800] rcu: INFO: rcu_sched self-detected stall on CPU
[   23.903800] rcu: \t1-....: (3825 ticks this GP) idle=d26/1/0x4000000000000000 softirq=60/60 fqs=2595
[   23.903800] \t(t=5251 jiffies g=-1067 q=126)
[   23.903800] NMI backtrace for cpu 1
[   23.903800] CPU: 1 PID: 45 Comm: vmrefs_spinner Tainted: G           O      5.10.262-vmlab #1
[   23.903800] Call Trace:
[   23.903800]  <IRQ>
[   23.903800]  dump_stack+0x57/0x6a
[   23.903800]  nmi_cpu_backtrace.cold+0x30/0x65
[   23.903800]  ? lapic_can_unplug_cpu+0x60/0x60
[   23.903800]  rcu_dump_cpu_stacks+0x95/0xc3
[   23.903800]  __sysvec_apic_timer_interrupt+0x47/0x60
[   23.903800]  asm_call_irq_on_stack+0xf/0x20
[   23.903800]  </IRQ>
[   23.903800]  sysvec_apic_timer_interrupt+0x66/0x70
[   23.903800]  asm_sysvec_apic_timer_interrupt+0xf/0x20
[   23.903800] RIP: 0010:vmrefs_spin+0x27/0x40 [vmrefs]
[   23.903800] Code: Unable to access opcode bytes at RIP 0xffffffffc03daffd.
[   23.903800] RAX: 00000000fffef626 RBX: ffff894fc1ac8b40 RCX: 0000000000000000
[   23.903800] R10: 0000000000000001 R11: 0000000000000000 R12: ffffa03cc051bcd8
[   23.903800]  ? 0xffffffffc03db000
[   23.903800]  kthread+0x108/0x120
[   23.903800]  ret_from_fork+0x1f/0x30
[   28.197430] input: ImExPS/2 Generic Explorer Mouse as /devices/platform/i8042/serio1/input/input3
"""  # noqa: E501
BUG_5_10 = """\
[    5.224913] ------------[ cut here ]------------
[    5.225083] kernel BUG at /usr/src/linux-source-5.10/drivers/dma-buf/dma-buf.c:75!
[    5.225475] invalid opcode: 0000 [#1] SMP
[    5.225741] CPU: 0 PID: 46 Comm: client Tainted: G           O      5.10.262-vmlab #1
[    5.226129] RIP: 0010:dma_buf_release+0x6a/0x80
[    5.226679] RSP: 0018:ffffbe9d4051bea8 EFLAGS: 00000206
[    5.228546] CS:  0010 DS: 0000 ES: 0000 CR0: 0000000080050033
[    5.228546] Call Trace:
[    5.228546]  __dentry_kill+0xe2/0x150
[    5.228546]  __fput+0xcf/0x1c0
[    5.228546] RIP: 0033:0x43a7e0
[    5.232089] Modules linked in: vmlab(O)
[    5.232647] ---[ end trace 3707c9d3d42e25f3 ]---
[    5.232762] RIP: 0010:dma_buf_release+0x6a/0x80
"""

# A report of v6.14 on linux-btrfs; one of v5.18 has the lines the other way round.
REFCOUNT_6_14 = """\
[1272.943000] ------------[ cut here ]------------
[1272.943527] refcount_t: underflow; use-after-free.
[1272.943967] WARNING: CPU: 1 PID: 61 at lib/refcount.c:28 refcount_warn_saturate+0xba/0x110
[1272.944731] Modules linked in: btrfs virtio_net xor zstd_compress [last unloaded: btrfs]
[1272.945550] CPU: 1 UID: 0 PID: 61 Comm: kworker/u32:1 Kdump: loaded Tainted: G        W          6.14.0-rc5+ #108
[1272.946368] Tainted: [W]=WARN
[1272.947273] Workqueue: btrfs_discard btrfs_discard_workfn [btrfs]
[1272.947788] RIP: 0010:refcount_warn_saturate+0xba/0x110
[1272.949532] RSP: 0018:ffffbf1200247df0 EFLAGS: 00010282
[1272.950000] Call Trace:
[1272.950000]  <TASK>
[1272.950000]  smb2_query_info_compound+0x29c/0x5c0 [cifs f90b72658819bd21c94769b6a652029a07a7172f]
[1272.950000]  </TASK>
[1272.950000] ---[ end trace 0000000000000000 ]---
"""  # noqa: E501
REFCOUNT_5_18 = """\
[  655.849327] ------------[ cut here ]------------
[  655.853961] WARNING: CPU: 1 PID: 0 at lib/refcount.c:28 finish_task_switch+0x208/0x268
[  655.861929] refcount_t: underflow; use-after-free.
[  655.866728] Modules linked in:
[  655.869802] CPU: 1 PID: 0 Comm: swapper/1 Tainted: G      D W         5.18.0-rc6 #47
"""

# Of a 4.19 kernel on arm64, whose log does not say who wrote a line.
TRACE_4_19 = """\
[  634.493181] TRACE kmalloc-128 alloc 0x000000006069c5b0 inuse=25 fp=0x          (null)
[  634.493185] CPU: 3 PID: 723 Comm: Xorg Tainted: G           O      4.19.0-arm64-desktop #5819
[  634.493187] Hardware name: QEMU KVM Virtual Machine, BIOS 0.0.0 02/06/2015
[  634.493189] Call trace:
[  634.493192]  dump_backtrace+0x0/0x190
[  634.493194]  show_stack+0x14/0x20
[  634.493197]  dump_stack+0xa8/0xcc
[  634.493200]  alloc_debug_processing+0x58/0x188
[  634.493206]  __kmalloc+0x284/0x2e0
[  634.493243]  ksys_ioctl+0x78/0xa8
[  634.493247] TRACE kmalloc-128 alloc 0x00000000c1c7d55e inuse=25 fp=0x          (null)
[  634.493251]  __arm64_sys_ioctl+0x1c/0x28
[  634.493256]  el0_svc_common+0x90/0x178
[  634.494274] TRACE kmalloc-128(522:accounts-daemon.service) free 0x0000000085d7b43a inuse=20 fp=0x0000000024f7d5b5
[  634.494279] Object 0000000085d7b43a: 80 80 2c d4 00 80 ff ff 80 80 2c d4 00 80 ff ff  ..,.......,.....
[  634.494284] Workqueue: events virtio_gpu_dequeue_ctrl_func
[  634.494293] Call trace:
[  634.494300]  dump_backtrace+0x0/0x190
[  634.494303] Object 00000000edcab07b: 6f 67 00 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b 6b  og.kkkkkkkkkkkkk
[  634.494335]  kfree+0x1d8/0x200
"""  # noqa: E501

# Of reports on the kernel's lists.
SOFT_LOCKUP_6_9 = """\
[  100.000000] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [kworker/1:0:82435]
[  100.000000] CPU: 1 PID: 82435 Comm: kworker/1:0 Tainted: G S  L   6.9.0-rc5-0-default #1
[  100.000000] Workqueue: xfs-inodegc/sda2 xfs_inodegc_worker
[  100.000000] NIP [c000000000beea10] xfs_extent_busy_trim+0x100/0x290
[  100.000000] LR [c000000000bee958] xfs_extent_busy_trim+0x48/0x290
[  100.000000] Call Trace:
[  100.000000]   xfs_alloc_get_rec+0x54/0x1b0 (unreliable)
[  100.000000]   xfs_alloc_compute_aligned+0x5c/0x144
"""
WORKQUEUE_5_10 = """\
[250336.887598] BUG: workqueue lockup - pool cpus=2 node=0 flags=0x0 nice=0 stuck for 72s!
[250336.887606] Showing busy workqueues and worker pools:
[250336.887607] workqueue events: flags=0x0
[250336.887608]   pwq 10: cpus=5 node=0 flags=0x0 nice=0 active=3/256 refcnt=4
[250336.887611]     pending: psi_avgs_work, psi_avgs_work, psi_avgs_work
[250336.887619]   pwq 4: cpus=2 node=0 flags=0x0 nice=0 active=15/256 refcnt=16
[250336.887621]     in-flight: 3760137:psi_avgs_work
"""
HARD_LOCKUP_7 = """\
[  164.964389] watchdog: CPU3: Watchdog detected hard LOCKUP on cpu 3
[  164.964407] Modules linked in: snd_hda_codec_alc662 i915 prime_numbers ttm
[  164.964500] CPU: 3 UID: 0 PID: 5941 Comm: dma_fence_chain Not tainted 6.13.0-rc5 #0
"""
OOM_5_15 = """\
[ 8523.347168] stress-ng-vm invoked oom-killer: gfp_mask=0x1100cca(GFP_HIGHUSER_MOVABLE), order=0, oom_score_adj=1000
[ 8523.347175] CPU: 1 PID: 183960 Comm: stress-ng-vm Not tainted 5.15.0-1041-azure #48-Ubuntu
[ 8523.347179] Call Trace:
[ 8523.347181]  <TASK>
[ 8523.347189]  dump_stack_lvl+0x38/0x4d
[ 8523.347200]  </TASK>
[ 8523.792676] [  pid  ]   uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents oom_score_adj name
[ 8523.792814] Out of memory: Killed process 49358 (grep) total-vm:9476316kB, anon-rss:6845824kB, file-rss:444kB, shmem-rss:0kB
"""  # noqa: E501
OOM_3_10 = """\
[1880957.563150] perl invoked oom-killer: gfp_mask=0x280da, order=0, oom_score_adj=0
[1880957.563400] Out of memory: Kill process 18694 (perl) score 246 or sacrifice child
[1880957.563408] Killed process 18694 (perl) total-vm:1972392kB, anon-rss:1953348kB, file-rss:0kB
"""
SLUB_5_9 = """\
[  100.000000] =============================================================================
[  100.000000] BUG kmalloc-64 (Tainted: G    B            ): Redzone overwritten
[  100.000000] -----------------------------------------------------------------------------
[  100.000000]
[  100.000000] INFO: 0xffff957ead1c05de-0xffff957ead1c05df @offset=1502. First byte 0x1a instead of 0xbb
[  100.000000] INFO: Allocated in open+0xb8/0x190 age=18922 cpu=1 pid=7095
[  100.000000] \t__slab_alloc+0x622/0x6d0
[  100.000000] INFO: Object 0xffff957ead1c05d8 @offset=1496 fp=0xffff957ead1c0620
[  100.000000]
[  100.000000] Redzone (____ptrval____): bb bb bb bb bb bb bb bb               ........
[  100.000000] CPU: 0 PID: 1 Comm: swapper/0 Tainted: G    B 5.2.0-rc5-next-20190620+ #2
[  100.000000] Call Trace:
[  100.000000] [c00000002b72f4b0] [c00000000089ce5c] dump_stack+0xb0/0xf4 (unreliable)
"""  # noqa: E501


def records(log: str, caller_tid: Optional[int] = None, level: int = KERN_ERR) -> List[LogRecord]:
    """The records of a console's log."""
    found: List[LogRecord] = []
    for line in log.splitlines():
        match = re.match(r"\[ *(\d+)\.(\d{6})\] ?(.*)", line)
        assert match, line
        ns = int(match.group(1)) * NS + int(match.group(2)) * 1000
        found.append(LogRecord(len(found), ns, level, match.group(3).encode(), caller_tid))
    return found


def reports(log: str) -> List[LogReport]:
    return parse_reports(records(log)).reports


def one(log: str) -> LogReport:
    (report,) = reports(log)
    return report


def test_hung_task_and_the_stall_behind_it() -> None:
    hung, stall = reports(DEBIAN_6_1)
    assert (hung.kind, hung.pid, hung.comm, hung.seconds) == (
        ReportKind.HUNG_TASK,
        119,
        "Xorg",
        10,
    )
    assert hung.timestamp_ns == 20_921_403_000
    assert [frame.function for frame in hung.frames if not frame.reliable] == [
        "flush_workqueue_prep_pwqs",
        "do_syscall_64",
    ]
    assert cause_functions(hung, 3) == (
        "wait_for_completion",
        "__flush_work",
        "__lru_add_drain_all",
    )
    assert (stall.kind, stall.detail, stall.cpu) == (ReportKind.RCU_STALL, "rcu_preempt", 1)
    assert (stall.cpus, stall.pid, stall.comm) == ([1], 118, "rt-hog")
    assert stall.frames == []  # it was in user mode


def test_what_the_stalled_cpu_was_at() -> None:
    stall = one(STALL_5_10)
    assert (stall.cpu, stall.pid, stall.comm) == (1, 45, "vmrefs_spinner")
    assert cause_functions(stall, 2) == ("vmrefs_spin", "kthread")
    (spin,) = [frame for frame in stall.frames if frame.function == "vmrefs_spin"]
    assert (spin.offset, spin.size, spin.module) == (0x27, 0x40, "vmrefs")


def test_a_bug_is_one_report() -> None:
    bug = one(BUG_5_10)
    assert (bug.kind, bug.detail, bug.cpu, bug.pid) == (ReportKind.OOPS, "BUG", 0, 46)
    assert [f.function for f in bug.frames] == ["dma_buf_release", "__dentry_kill", "__fput"]


def test_refcount_warnings() -> None:
    report = one(REFCOUNT_6_14)
    assert (report.kind, report.detail) == (ReportKind.REFCOUNT, "underflow; use-after-free")
    assert (report.cpu, report.pid, report.comm) == (1, 61, "kworker/u32:1")
    assert cause_functions(report, 4) == ("smb2_query_info_compound",)
    assert report.frames[-1].module == "cifs"
    older = one(REFCOUNT_5_18)
    assert (older.kind, older.detail) == (report.kind, report.detail)
    assert (older.cpu, older.pid, older.comm) == (1, 0, "swapper/1")


def test_mixed_lines_are_owned_up_to() -> None:
    first, second, third = reports(TRACE_4_19)
    assert [r.detail for r in (first, second, third)] == ["alloc", "alloc", "free"]
    assert first.object == 0x6069C5B0 and first.cache == "kmalloc-128"
    assert third.cache == "kmalloc-128(522:accounts-daemon.service)"
    assert [f.function for f in first.frames][-3:] == [
        "ksys_ioctl",
        "__arm64_sys_ioctl",
        "el0_svc_common",
    ]
    assert first.interleaved and second.interleaved and not second.frames
    assert [f.function for f in third.frames] == ["dump_backtrace", "kfree"]
    assert not third.interleaved


def test_lines_of_known_callers_do_not_mix() -> None:
    ours, theirs = records(BUG_5_10, caller_tid=46), records(STALL_5_10, caller_tid=47)
    mixed = [record for pair in zip(ours, theirs) for record in pair]
    mixed += theirs[len(ours) :]
    found = {r.kind: r for r in parse_reports(mixed).reports}
    alone = [one(BUG_5_10), one(STALL_5_10)]
    assert [found[r.kind].frames for r in alone] == [r.frames for r in alone]
    assert [found[r.kind].pid for r in alone] == [46, 45]


def test_lockups() -> None:
    soft = one(SOFT_LOCKUP_6_9)
    assert (soft.kind, soft.cpu, soft.seconds) == (ReportKind.SOFT_LOCKUP, 1, 22)
    assert (soft.pid, soft.comm) == (82435, "kworker/1:0")
    assert cause_functions(soft, 2) == ("xfs_extent_busy_trim", "xfs_alloc_get_rec")
    pool = one(WORKQUEUE_5_10)
    assert (pool.kind, pool.cpu, pool.seconds) == (ReportKind.WORKQUEUE_LOCKUP, 2, 72)
    assert pool.functions == ["psi_avgs_work"]
    hard = one(HARD_LOCKUP_7)
    assert (hard.kind, hard.cpu, hard.pid) == (ReportKind.HARD_LOCKUP, 3, 5941)


# Of the lab's guests worker-stuck on 5.10 and rcu-stall on 6.1.
IN_FLIGHT_5_10 = """\
[   15.030702] BUG: workqueue lockup - pool cpus=1 node=0 flags=0x0 nice=0 stuck for 3s!
[   15.030702] Showing busy workqueues and worker pools:
[   15.030702] workqueue events: flags=0x0
[   15.030702]   pwq 2: cpus=1 node=0 flags=0x0 nice=0 active=2/256 refcnt=4
[   15.030702]     in-flight: 20:vmspin_busy_function [vmspin]
[   15.030702]     pending: vmspin_behind_function [vmspin] BAR(52)
[   15.030702] workqueue vmspin_one: flags=0x20002
[   15.030702]   pwq 4: cpus=0-1 flags=0x4 nice=0 active=1/1 refcnt=5
[   15.030702]     in-flight: 27:vmspin_asleep_function [vmspin]
[   15.030702]     inactive: vmspin_kept_back_function [vmspin] BAR(53)
[   15.030702] pool 2: cpus=1 node=0 flags=0x0 nice=0 hung=3s workers=3 idle: 40 17"""
READERS_6_1 = """\
[   15.030702] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:
[   15.030702] rcu: \tTasks blocked on level-0 rcu_node (CPUs 0-1): P120/1:b..l P131/1:..el
[   15.030702] \t(detected by 0, t=752 jiffies, g=-519, q=3 ncpus=2)
[   15.030702] task:reader          state:D stack:0     pid:120   ppid:2      flags:0x00004000
[   15.030702] Call Trace:
[   15.030702]  <TASK>
[   15.030702]  __schedule+0x34d/0x9e0
[   15.030702]  wait_for_completion+0x86/0x160
[   15.030702]  </TASK>"""


def test_traces_of_before_addresses_could_be_hashed() -> None:
    # Of the lab's guest kernel-reports.
    lines = [
        "[   13.046779] TRACE UNIX alloc 0x(____ptrval____) inuse=17 fp=0x0000000000000000",
        "[   13.064773] TRACE UNIX free 0x(____ptrval____) inuse=1 fp=0x(____ptrval____)",
    ]
    found = parse_reports(records("\n".join(lines), level=KERN_INFO)).reports
    kinds = {(r.kind, r.cache, r.object) for r in found}
    assert kinds == {(ReportKind.SLUB_TRACE, "UNIX", None)}
    assert [r.detail for r in found] == ["alloc", "free"]


def test_tasks_that_are_named_by_their_pids_alone() -> None:
    pool = one(IN_FLIGHT_5_10)
    assert pool.functions == ["vmspin_busy_function", "vmspin_asleep_function"]
    assert (pool.pids, pool.pid) == ([20, 27], None)  # and none of those that wait
    stall = one(READERS_6_1)
    assert (stall.kind, stall.pids, stall.cpus) == (ReportKind.RCU_STALL, [120, 131], [])
    assert (stall.pid, stall.comm) == (120, "reader")


def test_what_the_oom_killer_killed() -> None:
    report = one(OOM_5_15)
    assert (report.kind, report.pid, report.comm) == (ReportKind.OOM, 49358, "grep")
    older = one(OOM_3_10)
    assert (older.pid, older.comm) == (18694, "perl")
    assert report.victim_bytes == {
        "total-vm": 9476316 << 10,
        "anon-rss": 6845824 << 10,
        "file-rss": 444 << 10,
        "shmem-rss": 0,
    }
    assert report.memory_pages == {}
    assert older.victim_bytes["anon-rss"] == 1953348 << 10  # a line of its own before v4.18
    (asked,) = reports(OOM_3_10.splitlines()[0])
    assert asked.pid is None and asked.comm is None  # who asked for memory is no victim


def test_what_memory_was_used_for_when_there_was_none() -> None:
    invoked, *killed = records(OOM_3_10)
    mem_info = """\
active_anon:804 inactive_anon:35364 isolated_anon:0
 active_file:0 inactive_file:0 isolated_file:0
 unevictable:1000 dirty:0 writeback:0
 slab_reclaimable:137 slab_unreclaimable:1328
 mapped:432 shmem:3805 pagetables:77 bounce:0
"""
    of_node = b"Node 0 active_anon:3216kB inactive_anon:141456kB shmem:15220kB"
    told = [invoked._replace(text=text) for text in (mem_info.encode(), of_node, of_node)]
    (report,) = parse_reports([invoked, *told, *killed]).reports
    assert report.memory_pages == {
        "active_anon": 804,
        "inactive_anon": 35364,
        "slab_reclaimable": 137,
        "slab_unreclaimable": 1328,
        "shmem": 3805,
    }
    assert report.victim_bytes["anon-rss"] == 1953348 << 10


def test_slub() -> None:
    report = one(SLUB_5_9)
    assert (report.kind, report.detail) == (ReportKind.SLUB, "Redzone overwritten")
    assert (report.cache, report.object) == ("kmalloc-64", 0xFFFF957EAD1C05D8)
    assert [f.function for f in report.frames] == ["dump_stack"]  # not who allocated it


@pytest.mark.parametrize(
    ("line", "kind", "detail"),
    [
        ("WARNING: drivers/x.c:7 at foo_bar+0x1/0x2 [m], CPU#3: a b/12", "warning", "foo_bar"),
        ("WARNING: possible circular locking dependency detected", "warning", None),
        ("BUG: kernel NULL pointer dereference, address: 0000000000000010", "oops", None),
        ("BUG: KASAN: slab-out-of-bounds in memcpy+0x1/0x2", "oops", "KASAN: slab-out-of-bounds"),
        ("BUG: Bad page state in process Xorg  pfn:12345", "oops", "Bad page state"),
        (
            "Unable to handle kernel paging request at virtual address dead000000000100",
            "oops",
            "kernel paging request",
        ),
        ("Internal error: Oops: 96000044 [#1] SMP", "oops", "Internal error"),
        ("Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b", "panic", None),
        (
            "kmemleak: 4990 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
            "kmemleak",
            "",
        ),
        ("INFO: task x blocked for more than ten seconds", None, None),
        ("Booting paravirtualized kernel on bare hardware, BUG: none", None, None),
    ],
)
def test_first_lines(line: str, kind: Optional[str], detail: Optional[str]) -> None:
    found = reports("[    1.000000] " + line)
    assert [report.kind.value for report in found] == ([] if kind is None else [kind])
    if detail is not None:
        assert found[0].detail == detail
    assert all(not re.search(r"\d", report.detail) for report in found)


def test_user_space_forges_no_report() -> None:
    line = b"BUG: evil"
    from_kmsg = LogRecord(1, NS, KERN_ERR, line, 5, facility=1)
    segfault = LogRecord(2, NS, 6, b"BUG: x[77]: segfault at 0 ip 0 sp 0 error 4", 77)
    second_line = LogRecord(3, NS, KERN_ERR, b"process a\nBUG: evil ended", 77)
    name = LogRecord(4, NS, KERN_ERR, b"INFO: task x\nBUG: y:9 blocked for more than 3 seconds.", 2)
    (hung,) = parse_reports([from_kmsg, segfault, second_line, name]).reports
    assert (hung.kind, hung.pid, hung.comm) == (ReportKind.HUNG_TASK, 9, "x\nBUG: y")


def test_a_log_that_begins_within_a_report() -> None:
    lost = records(DEBIAN_6_1)[8:12]
    found = parse_reports(lost)
    assert found.beginning_lost and not found.reports
    assert not parse_reports(records(DEBIAN_6_1)).beginning_lost


def test_a_stack_that_comes_later_is_anothers() -> None:
    log = records(SOFT_LOCKUP_6_9)[:2]
    later = [
        LogRecord(9, 110 * NS, KERN_ERR, text, None) for text in (b"Call Trace:", b" foo+0x1/0x2")
    ]
    (report,) = parse_reports(log + later).reports
    assert report.frames == []


def test_the_other_cpus_stacks_are_not_the_reports() -> None:
    log = records(HARD_LOCKUP_7)
    lines = (b"NMI backtrace for cpu 0", b"Call Trace:", b" other+0x1/0x2")
    log += [LogRecord(9, log[-1].timestamp_ns, KERN_ERR, line, None) for line in lines]
    (report,) = parse_reports(log).reports
    assert report.frames == []


def test_it_is_bounded() -> None:
    frames = [b" f+0x1/0x2"] * (FRAMES_MAX + 5)
    texts = [b"INFO: task a:1 blocked for more than 3 seconds.", b"Call Trace:", *frames]
    (report,) = parse_reports(LogRecord(0, 0, KERN_ERR, text, 1) for text in texts).reports
    assert len(report.frames) == FRAMES_MAX and report.more_frames
    many = parse_reports([LogRecord(0, 0, KERN_ERR, texts[0], 1)] * (REPORTS_MAX + 7))
    assert (len(many.reports), many.left_out) == (REPORTS_MAX, 7)


_LINES = [
    line.split("] ", 1)[-1].encode()
    for log in (DEBIAN_6_1, STALL_5_10, REFCOUNT_6_14, TRACE_4_19, OOM_5_15, SLUB_5_9)
    for line in log.splitlines()
]


@st.composite
def damaged_lines(draw: st.DrawFn) -> bytes:
    line = bytearray(draw(st.sampled_from(_LINES)))
    at = draw(st.integers(0, len(line)))
    line[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=6))
    return bytes(line)


@given(
    st.lists(
        st.tuples(
            st.one_of(st.binary(max_size=80), st.sampled_from(_LINES), damaged_lines()),
            st.integers(0, 2**64 - 1),
            st.integers(0, 7),
            st.one_of(st.none(), st.integers(0, 2)),
        ),
        max_size=60,
    )
)
@settings(deadline=None)
def test_any_bytes(lines: List[Tuple[bytes, int, int, Optional[int]]]) -> None:
    made = [(ns, level, text, tid) for text, ns, level, tid in lines]
    found = parse_reports(LogRecord(number, *line) for number, line in enumerate(made))
    assert len(found.reports) <= len(lines)
    for report in found.reports:
        assert cause_functions(report, 4) is not None
        assert not re.search(r"\d", report.detail)


def test_long_lines_take_no_time() -> None:
    texts = [
        b"BUG " + b"a(" * 4000,
        b"WARNING: CPU: 1 PID: 1 at " + b"a.c " * 2000,
        b"INFO: task " + b":1 blocked" * 800,
        b" " * 8000,
        b" [<" + b"0" * 8000,
    ]
    parse_reports(LogRecord(n, n, KERN_ERR, text, 1) for n, text in enumerate(texts * 50))
