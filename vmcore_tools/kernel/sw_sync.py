# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fences of sw_sync, the software timelines for tests (CONFIG_SW_SYNC)."""

from __future__ import annotations

import numpy as np
from drgn import Object, Program, container_of, offsetof, sizeof

from vmcore_tools.kernel.dma_fence import U64, HeldFences
from vmcore_tools.kernel.layout import field_dtype, read_structs

#: The operations table of ``struct sync_pt``.
OPS = "timeline_fence_ops"

_WORD_BYTES = 8


def timeline_words(prog: Program, fences: U64) -> HeldFences:
    """
    The words with which timelines and their fences point at fences.

    None of them counts a reference: ``timeline_fence_release()`` takes the
    fence out of its timeline. ``rb_erase()`` leaves the pointers in the node,
    so those of signaled fences are stale.

    :param fences: uint64 array of the ``struct dma_fence *`` in ``struct sync_pt``
    :return: the words alone
    """
    point, timeline = prog.type("struct sync_pt"), prog.type("struct sync_timeline")
    points = fences - np.uint64(offsetof(point, "base"))
    link, node = offsetof(point, "link"), offsetof(point, "node")
    in_point = [
        *range(link, link + sizeof(prog.type("struct list_head")), _WORD_BYTES),
        *range(node, node + sizeof(prog.type("struct rb_node")), _WORD_BYTES),
    ]
    base = field_dtype(prog.type("struct dma_fence"), {"lock": _lock_member(prog)})
    structs, read = read_structs(prog, fences.tolist(), base)
    # dma_fence_parent()
    timelines = np.unique(structs["lock"][read]) - np.uint64(offsetof(timeline, "lock"))
    first = offsetof(timeline, "pt_list")
    in_timeline = [offsetof(timeline, "pt_tree.rb_node"), first, first + _WORD_BYTES]
    words = [
        (starts[:, None] + np.array(offsets, dtype=np.uint64)).ravel()
        for starts, offsets in ((points, in_point), (timelines, in_timeline))
    ]
    nothing = np.zeros(0, dtype=np.uint64)
    return HeldFences(nothing, np.concatenate(words), tuple(fences[~read].tolist()))


def timeline_of(fence: Object) -> Object:
    """
    The timeline that a fence is a point of. Mirrors ``dma_fence_parent()``.

    :param fence: ``struct dma_fence *`` with :data:`OPS`
    :return: ``struct sync_timeline *``
    :raises LookupError: without the debug info of sw_sync
    """
    lock = fence.member_(_lock_member(fence.prog_)).read_()
    return container_of(lock, "struct sync_timeline", "lock")


def _lock_member(prog: Program) -> str:
    # v7.2 has a union of the lock and the pointer to it.
    return "lock" if prog.type("struct dma_fence").has_member("lock") else "extern_lock"
