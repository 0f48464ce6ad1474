# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where tasks sleep, by their stacks."""

from __future__ import annotations

from typing import List, Optional

import pytest

from vmcore_tools.wait_findings.place import SleepPlace, sleep_place

# Stacks as kernels print them; the first is of the case that this analysis grew from.
DRAIN_ALL_PAGES = [
    *("__schedule", "schedule", "schedule_timeout", "do_wait_for_common", "wait_for_common"),
    *("wait_for_completion", "__flush_work", "flush_work", "drain_all_pages"),
    *("__alloc_pages_nodemask", "ttm_pool_populate"),
]


@pytest.mark.parametrize(
    ("functions", "kind", "function", "called_from"),
    [
        (DRAIN_ALL_PAGES, "flush_work", "flush_work", "drain_all_pages"),
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
            "mutex_lock",
            "do_thing",
        ),
        (
            ["__schedule", "schedule", "rwsem_down_write_slowpath", "down_write", "do_mmap"],
            "rwsem",
            "down_write",
            "do_mmap",
        ),
        (
            ["__schedule", "schedule", "io_schedule", "wait_on_page_bit", "filemap_read"],
            "page",
            "wait_on_page_bit",
            "filemap_read",
        ),
        (
            ["__schedule", "schedule", "schedule_timeout", "io_schedule_timeout", "blk_thing"],
            "io",
            "io_schedule_timeout",
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
            "dma_fence_wait_timeout",
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
            "virtio_gpu_queue_fenced_ctrl_buffer",
            "virtio_gpu_cmd_submit",
        ),
        (
            ["__schedule", "schedule", "schedule_timeout", "wait_for_completion", "my_driver"],
            "completion",
            "wait_for_completion",
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
            "synchronize_rcu",
            "my_driver",
        ),
        (
            ["__schedule", "schedule", "some_driver_wait", "vfs_read"],
            None,
            "some_driver_wait",
            "vfs_read",
        ),
        # A part of it was made inline.
        (["schedule", "wait_event", "wait_event.part.0", "kthread"], None, "wait_event", "kthread"),
        (["__schedule", "schedule"], None, None, None),
        ([], None, None, None),
    ],
)
def test_the_wait_is_named_from_the_stack(
    functions: List[str],
    kind: Optional[str],
    function: Optional[str],
    called_from: Optional[str],
) -> None:
    assert sleep_place(functions) == SleepPlace(kind, function, called_from)


def test_a_wait_further_down_the_stack_is_not_this_wait() -> None:
    # The mutex is held by the caller; what sleeps now is the completion.
    functions = ["__schedule", "schedule", "wait_for_completion", "a", "b", "c", "d", "e"]
    place = sleep_place([*functions, "mutex_lock", "f"])
    assert place == SleepPlace("completion", "wait_for_completion", "a")
