# SPDX-License-Identifier: LGPL-2.1-or-later
"""The frame of a stack that nobody writes to, and a stale word in it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, List, Tuple

import numpy as np
import pytest

from vmcore_tools.kernel import references
from vmcore_tools.kernel.references import Attribution
from vmcore_tools.kernel.stack_frames import Frame
from vmcore_tools.kernel.syscall_gap import syscall_gap

STACK = 0xFFFFC90000100000
STACK_BYTES = 16384


def frames(*named: Tuple[int, str]) -> List[Frame]:
    return [(STACK + depth, tuple(names.split())) for depth, names in named]


# As the guest of Debian 7.2 had it, asleep in pause().
PAUSE = frames(
    (15432, "context_switch __schedule"),
    (15544, "__schedule_loop schedule"),
    (15560, "__do_sys_pause"),
    (15576, "do_syscall_x64 do_syscall_64"),
    (16200, "entry_SYSCALL_64"),
)


def test_it_is_the_frame_of_who_enters_the_system_call() -> None:
    assert syscall_gap(PAUSE) == (STACK + 15576, STACK + 16200)
    arm64 = frames((15000, "do_epoll_wait"), (15600, "invoke_syscall"), (15900, "el0_svc_common"))
    assert syscall_gap(arm64) == (STACK + 15600, STACK + 15900)


def test_kernel_threads_have_none() -> None:
    assert syscall_gap(frames((15000, "schedule"), (15600, "kthread"))) is None
    assert syscall_gap([]) is None


def test_a_frame_that_is_too_large_is_none() -> None:
    assert syscall_gap(frames((13000, "do_syscall_64"), (16200, "entry_SYSCALL_64"))) is None


@pytest.mark.parametrize("on_cpu", [False, True])
def test_the_words_there_and_no_others_are_meant(
    monkeypatch: pytest.MonkeyPatch, on_cpu: bool
) -> None:
    task: Any = SimpleNamespace()
    its: Any = Attribution.__new__(Attribution)
    state = {"stack_bytes": STACK_BYTES, "stacks": {STACK: task}}
    trace = SimpleNamespace(trace=lambda _task: SimpleNamespace(frames=PAUSE))
    its.__dict__.update(state, _unwinder=trace)
    monkeypatch.setattr(references, "task_on_cpu", lambda _task: on_cpu)
    addresses = np.array([STACK + 15568, STACK + 15576, STACK + 16192, STACK + 16200], np.uint64)
    within = references.in_ranges(addresses, its._gaps(addresses))
    assert within.tolist() == [False, not on_cpu, not on_cpu, False]
