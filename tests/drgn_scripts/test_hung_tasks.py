# SPDX-License-Identifier: LGPL-2.1-or-later
"""How waits are named from stacks, and what khungtaskd's messages say."""

from __future__ import annotations

from typing import List, Optional

import pytest

from drgn_scripts.hung_tasks import HungMessage, name_wait, named_in_log
from vmcore_tools.kernel.printk import LogRecord

SECOND = 1_000_000_000

# Stacks as kernels print them; the first is of the case that this analysis grew from.
DRAIN_ALL_PAGES = [
    *("__schedule", "schedule", "schedule_timeout", "do_wait_for_common", "wait_for_common"),
    *("wait_for_completion", "__flush_work", "flush_work", "drain_all_pages"),
    *("__alloc_pages_nodemask", "ttm_pool_populate"),
]


@pytest.mark.parametrize(
    ("functions", "waits_for", "called_from"),
    [
        (DRAIN_ALL_PAGES, "flush_work", "drain_all_pages"),
        (
            [
                "context_switch",
                "__schedule",
                "schedule",
                "schedule_preempt_disabled",
                "__mutex_lock_common",
                "__mutex_lock.constprop.0",
                "mutex_lock",
                "do_thing",
                "vfs_x",
            ],
            "mutex",
            "do_thing",
        ),
        (
            ["__schedule", "schedule", "rwsem_down_write_slowpath", "down_write", "do_mmap"],
            "rwsem",
            "do_mmap",
        ),
        (
            ["__schedule", "schedule", "io_schedule", "wait_on_page_bit", "filemap_read"],
            "page",
            "filemap_read",
        ),
        (
            ["__schedule", "schedule", "schedule_timeout", "io_schedule_timeout", "blk_thing"],
            "io",
            "blk_thing",
        ),
        (
            [
                "__schedule",
                "schedule",
                "schedule_timeout",
                "dma_fence_default_wait",
                "dma_fence_wait_timeout",
                "virtio_gpu_wait_ioctl",
            ],
            "dma_fence",
            "virtio_gpu_wait_ioctl",
        ),
        (
            [
                "__schedule",
                "schedule",
                "virtio_gpu_queue_ctrl_sgs",
                "virtio_gpu_queue_fenced_ctrl_buffer",
                "virtio_gpu_cmd_submit",
            ],
            "virtqueue",
            "virtio_gpu_cmd_submit",
        ),
        (
            ["__schedule", "schedule", "schedule_timeout", "wait_for_completion", "my_driver"],
            "completion",
            "my_driver",
        ),
        (
            [
                "__schedule",
                "schedule",
                "schedule_timeout",
                "wait_for_completion",
                "__wait_rcu_gp",
                "synchronize_rcu",
                "my_driver",
            ],
            "rcu",
            "my_driver",
        ),
        (["__schedule", "schedule", "some_driver_wait", "vfs_read"], "unknown", "some_driver_wait"),
        (["__schedule", "schedule"], "unknown", None),
        ([], "unknown", None),
    ],
)
def test_the_wait_is_named_from_the_stack(
    functions: List[str], waits_for: str, called_from: Optional[str]
) -> None:
    assert name_wait(functions) == (waits_for, called_from)


def test_a_wait_further_down_the_stack_is_not_this_wait() -> None:
    # The mutex is held by the caller; what sleeps now is the completion.
    functions = ["__schedule", "schedule", "wait_for_completion", "a", "b", "c", "d", "e"]
    assert name_wait([*functions, "mutex_lock", "f"]) == ("completion", "a")


def test_khungtaskd_messages_name_their_tasks() -> None:
    log = [
        b"INFO: task Xorg:48 blocked for more than 10 seconds.",
        b"      Not tainted 5.10.262-vmlab #1",
        b"INFO: task a:b c:1234 blocked for more than 120 seconds.",
        b"INFO: task kworker/0:1:77 blocked in I/O wait for more than 120 seconds.",
        b"INFO: task forged blocked for more than x seconds.",
    ]
    assert named_in_log(LogRecord(n, n, 3, text, 1) for n, text in enumerate(log)) == {
        (48, b"Xorg"): HungMessage(0, 10),
        (1234, b"a:b c"): HungMessage(2, 120),
        (77, b"kworker/0:1"): HungMessage(3, 120),
    }


def test_the_last_message_of_a_task_counts() -> None:
    text = b"INFO: task Xorg:48 blocked for more than %d seconds."
    log = [LogRecord(n, n * SECOND, 3, text % (10 * n), 1) for n in (1, 2)]
    assert named_in_log(log) == {(48, b"Xorg"): HungMessage(2 * SECOND, 20)}


@pytest.mark.parametrize(
    ("wait_ns", "is_of_it"),
    [
        (420 * SECOND, True),  # since before the message
        (365 * SECOND, True),  # as far as two clocks agree
        (299 * SECOND, False),  # it has run since
        (2_000_000, False),
        (None, False),
    ],
)
def test_a_message_is_of_a_sleep_that_began_before_it(
    wait_ns: Optional[int], is_of_it: bool
) -> None:
    message = HungMessage(700 * SECOND, 120)
    assert message.is_of_sleep(wait_ns, 1000 * SECOND) is is_of_it


def test_a_sleep_of_a_moment_is_not_what_a_message_of_now_names() -> None:
    assert HungMessage(1000 * SECOND, 120).is_of_sleep(121 * SECOND, 999 * SECOND)
    assert not HungMessage(1000 * SECOND, 120).is_of_sleep(2_000_000, 999 * SECOND)


def test_nobody_is_named_by_what_user_space_wrote() -> None:
    text = b"INFO: task Xorg:48 blocked for more than 10 seconds."
    # devkmsg_write() gives it LOG_USER; in the middle of a line the kernel never begins so.
    user, quoted = LogRecord(1, 0, 3, text, 1, facility=1), LogRecord(2, 0, 3, b"x " + text, 1)
    assert named_in_log([user, quoted]) == {}
    assert named_in_log([LogRecord(3, 0, 3, text.replace(b"Xorg", b"a\n:7"), 1)]) == {
        (48, b"a\n:7"): HungMessage(0, 10)
    }
