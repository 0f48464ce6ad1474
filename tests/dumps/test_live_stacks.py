# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which part of a stack is in use, with frames that the test makes up on a real one."""

from __future__ import annotations

import types
from typing import Any, List

import pytest
from drgn import sizeof
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.sched import cpu_curr

from tests.dumps.conftest import ShippedDump
from vmcore_tools.kernel import task as task_module
from vmcore_tools.kernel.task import live_range, stack_range


class Trace(List[Any]):
    """Stack pointers of frames, all of them of the kernel's code."""

    def __init__(self, *pointers: int) -> None:
        super().__init__(types.SimpleNamespace(pc=1 << 63, sp=sp) for sp in pointers)


def test_an_interrupt_saves_registers_below_the_stack_pointer(
    shipped: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    prog = shipped.target.prog
    task = cpu_curr(prog, next(for_each_online_cpu(prog)))
    low, high = stack_range(task)
    pt_regs = sizeof(prog.type("struct pt_regs"))
    elsewhere, own = 0xFFFF800010003D40, high - 2048
    assert not low <= elsewhere < high

    def live_from(*pointers: int) -> int:
        monkeypatch.setattr(task_module, "_trace", lambda task: Trace(*pointers))
        start, end = live_range(task)
        assert end == high
        return start

    assert live_from(own, own + 64, own + 512) == own
    assert live_from(elsewhere, elsewhere + 64, own, own + 512) == own - pt_regs
    assert live_from(elsewhere, low + 16) == low
    assert live_from(elsewhere) == low
