# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a CPU was in the middle of: interrupts off, calls from other CPUs, stop-machine."""

from __future__ import annotations

from typing import Iterator, List, Optional

from drgn import Object, Program, cast, container_of
from drgn.helpers.linux.list import validate_list_for_each_entry
from drgn.helpers.linux.llist import llist_for_each
from drgn.helpers.linux.percpu import per_cpu
from drgn.helpers.linux.sched import cpu_rq

from vmcore_tools.kernel.printk import log_records
from vmcore_tools.kernel.symbols import symbol_name
from vmcore_tools.kernel.task import live_registers

#: Bounds that no machine reaches; a damaged list must end.
_CALLS_MAX = 1 << 16
#: Names that are given.
_NAMES_MAX = 8
_WAKEUP = "a wakeup"
_PANIC = b"Kernel panic - not syncing: "
_NS_PER_SECOND = 1_000_000_000

_X86_EFLAGS_IF = 1 << 9  # arch/x86/include/uapi/asm/processor-flags.h
_ARM64_PSR_I_BIT = 1 << 7  # arch/arm64/include/uapi/asm/ptrace.h


def interrupts_off(task: Object) -> Optional[bool]:
    """
    Whether the task on a CPU had interrupts off when its registers were saved.

    :param task: ``struct task_struct *`` that is on a CPU
    :return: None if the dump does not have the registers
    """
    registers = live_registers(task) or {}
    if "rflags" in registers:
        return not registers["rflags"] & _X86_EFLAGS_IF
    if "pstate" in registers:
        return bool(registers["pstate"] & _ARM64_PSR_I_BIT)
    return None


def in_kernel(task: Object) -> Optional[bool]:
    """
    Whether the task on a CPU was in the kernel.

    :param task: ``struct task_struct *`` that is on a CPU
    :return: None if the dump does not have its registers
    """
    try:
        trace = task.prog_.stack_trace(task)
    except (ValueError, LookupError):
        return None
    return bool(trace[0].pc >> 63) if len(trace) else None


def is_up(prog: Program, cpu: int) -> bool:
    """
    Whether a CPU has been brought up and not been taken down.

    Other than the mask of those online, from which ``stop_this_cpu()`` takes
    each at a panic, this goes on to say so.
    """
    try:
        state = per_cpu(prog["cpuhp_state"], cpu).state.value_()
        return bool(state != prog.constant("CPUHP_OFFLINE").value_())
    except LookupError:
        return True


def panic_cpu(prog: Program) -> Optional[int]:
    """
    The CPU that panicked: it runs nothing any more, and stopped the others.

    :return: None if none did
    """
    try:
        cpu = int(prog["panic_cpu"].counter.value_())
    except KeyError:
        return None
    return None if cpu < 0 else cpu  # PANIC_CPU_INVALID is -1


def ns_since_panic(prog: Program, now_ns: int) -> int:
    """
    How long the clocks went on after a panic, though no task runs any more.

    A crash kernel stops them at once; without one, the CPU that panicked waits
    for ever, with its tick, until somebody dumps the machine.

    :param now_ns: of :func:`vmcore_tools.kernel.task.sched_now_ns`
    :return: 0 if it is less than a second, or if there was no panic
    :raises FaultError: if the log is not in the dump
    :raises LookupError: without the log's debug info
    """
    if panic_cpu(prog) is None:
        return 0
    texts = [record for record in log_records(prog) if record.text.startswith(_PANIC)]
    if not texts or texts[-1].facility:
        return 0
    since_ns = now_ns - texts[-1].timestamp_ns
    return since_ns if since_ns >= _NS_PER_SECOND else 0


def pending_calls(prog: Program, cpu: int) -> List[str]:
    """
    The functions that other CPUs want a CPU to call, by an interrupt that it did not take.

    Mirrors ``flush_smp_call_function_queue()``. A caller that waits spins in
    ``csd_lock_wait()`` until then.

    :return: names, ``?`` for what has none, at most 8
    """
    try:
        queue = per_cpu(prog["call_single_queue"], cpu)
    except KeyError:
        return []
    names: List[str] = []
    for number, node in enumerate(llist_for_each(queue.first)):
        if number >= _CALLS_MAX or len(names) >= _NAMES_MAX:
            break
        # The node is the first member of all that is queued there, and in all
        # but wakeups of tasks the function is behind it.
        call = cast("struct __call_single_data *", node)
        names.append(_WAKEUP if _is_wakeup(node) else symbol_name(prog, call.func.value_()) or "?")
    return names


def for_each_pending_wakeup(prog: Program, cpu: int) -> Iterator[Object]:
    """
    Iterate over the tasks that other CPUs woke and a CPU has not yet queued.

    Mirrors ``sched_ttwu_pending()``.

    :return: Iterator of ``struct task_struct *``
    """
    rq = cpu_rq(prog, cpu)
    # a148866489fb ("sched: Replace rq::wake_list") in v5.8.
    before = hasattr(rq, "wake_list")
    try:
        first = rq.wake_list.first if before else per_cpu(prog["call_single_queue"], cpu).first
    except KeyError:
        return  # a kernel for one CPU
    for number, node in enumerate(llist_for_each(first)):
        if number >= _CALLS_MAX:
            return
        if before:
            yield container_of(node, "struct task_struct", "wake_entry")
        elif _is_wakeup(node):
            yield container_of(node, "struct task_struct", "wake_entry.llist")


def _is_wakeup(node: Object) -> bool:
    # a148866489fb ("sched: Replace rq::wake_list") in v5.8.
    try:
        wakeup = node.prog_.constant("CSD_TYPE_TTWU").value_()
        mask = node.prog_.constant("CSD_FLAG_TYPE_MASK").value_()
        flags = cast("struct __call_single_node *", node).u_flags.value_()
    except LookupError:
        return False
    return bool(flags & mask == wakeup)


def pending_stops(prog: Program, cpu: int) -> List[str]:
    """
    The functions that wait for a CPU's stopper, the task before all others.

    ``multi_cpu_stop`` is that of stop_machine(): all other CPUs wait with
    interrupts off until this one comes to it.

    :return: names, ``?`` for what has none, at most 8
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    try:
        works = per_cpu(prog["cpu_stopper"], cpu).works
    except KeyError:
        return []
    names: List[str] = []
    for work in validate_list_for_each_entry("struct cpu_stop_work", works.address_of_(), "list"):
        if len(names) >= _NAMES_MAX:
            break
        names.append(symbol_name(prog, work.fn.value_()) or "?")
    return names
