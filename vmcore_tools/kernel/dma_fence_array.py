# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fence arrays (``struct dma_fence_array``): what they hold, and what holds them."""

from __future__ import annotations

from typing import Tuple

import numpy as np
import numpy.typing as npt
from drgn import Program, offsetof, sizeof

from vmcore_tools.kernel.dma_fence import U64, HeldFences
from vmcore_tools.kernel.irq_work import CLAIMED, flags_member, link_member
from vmcore_tools.kernel.layout import field_dtype, read_structs

#: The operations table of an array's own fence.
OPS = "dma_fence_array_ops"

#: Fences in one array; a damaged count must end.
_FENCES_MAX = 65536
_POINTER = np.dtype([("pointer", np.uint64)])
_WORD_BYTES = 8


class FenceArrays:
    """
    Fence arrays, read once.

    :ivar fence: uint64 array of shape (n,): the ``struct dma_fence *`` in each
    :ivar slots: uint64 array of shape (n,): the ``struct dma_fence **`` of each
    :ivar count: int64 array of shape (n,): of slots
    :ivar unread: the fences in those that could not be read, or have too many slots
    """

    def __init__(self, prog: Program, fences: U64) -> None:
        """:param fences: uint64 array of the ``struct dma_fence *`` in the arrays"""
        self._prog = prog
        self._type = prog.type("struct dma_fence_array")
        address = fences - np.uint64(offsetof(self._type, "base"))
        members = {
            "count": "num_fences",
            "slots": "fences",
            "flags": flags_member(self._type, "work"),
        }
        structs, read = read_structs(prog, address.tolist(), field_dtype(self._type, members))
        read = read & (structs["count"] <= _FENCES_MAX)
        structs = structs[read]
        self.fence: U64 = fences[read]
        self.slots: U64 = structs["slots"].astype(np.uint64)
        self.unread: Tuple[int, ...] = tuple(fences[~read].tolist())
        self._address = address[read]
        self.count = structs["count"].astype(np.int64)
        self._work_is_claimed = structs["flags"].astype(np.uint64) & np.uint64(CLAIMED) != 0

    def held(self) -> HeldFences:
        """The fences in the arrays, one reference each."""
        _, slots = self._each(self.slots, _WORD_BYTES)
        values, read = read_structs(self._prog, slots.tolist(), _POINTER)
        fence = values["pointer"].astype(np.uint64)
        unread = (*self.unread, *slots[~read].tolist())
        return HeldFences(fence[fence != 0], slots[fence != 0], unread)

    def callbacks(self) -> HeldFences:
        """
        The arrays' own fences, once for each callback that is on one of their fences.

        ``dma_fence_array_enable_signaling()`` takes a reference for each, and
        ``dma_fence_array_cb_func()`` drops it; that of the last one is left to
        the irq_work. A callback is off its list before it is called.
        """
        type_ = self._prog.type("struct dma_fence_array_cb")
        # They follow the other members; v7.2 has a name for them.
        array, address = self._each(self._address + np.uint64(sizeof(self._type)), sizeof(type_))
        dtype = field_dtype(type_, {"next": "cb.node.next"})
        structs, read = read_structs(self._prog, address.tolist(), dtype)
        following = structs["next"].astype(np.uint64)
        # Nobody has asked the array yet, or the callback was called.
        node = address + np.uint64(offsetof(type_, "cb.node"))
        queued = (following != 0) & (following != node)
        nothing = np.zeros(0, dtype=np.uint64)
        return HeldFences(self.fence[array[queued]], nothing, tuple(address[~read].tolist()))

    def with_irq_work(self) -> U64:
        """
        The arrays' own fences, where the irq_work that signals them may still have a reference.

        :return: uint64 array of ``struct dma_fence *``
        """
        result: U64 = self.fence[self._work_is_claimed]
        return result

    def stale_words(self, slots_end: U64) -> U64:
        """
        Words with which the arrays may point at fences that they do not hold.

        ``sync_file_merge()`` stores each fence before it looks whether it has
        signaled, and so does not count: pointers stay behind those that do.
        From v5.19 on the memory there is not even cleared. An irq_work keeps
        its link to the one that was queued before it.

        :param slots_end: uint64 array of shape (n,): where the memory of the slots ends
        :return: uint64 array: addresses of the words
        """
        used = self.slots + self.count.astype(np.uint64) * np.uint64(_WORD_BYTES)
        behind = [
            np.arange(start, end, _WORD_BYTES, dtype=np.uint64)
            for start, end in zip(used.tolist(), slots_end.tolist())
            if start < end
        ]
        link = np.uint64(offsetof(self._type, link_member(self._type, "work")))
        return np.concatenate([self._address + link, *behind])

    def _each(self, table: U64, item_bytes: int) -> Tuple[npt.NDArray[np.int64], U64]:
        """
        The items of tables with one for each fence.

        :param table: uint64 array of shape (n,): where they begin
        :return: for each item the position of its array, and its address
        """
        array = np.repeat(np.arange(len(self.count)), self.count)
        number = np.arange(len(array)) - np.repeat(np.cumsum(self.count) - self.count, self.count)
        return array, table[array] + (number * item_bytes).astype(np.uint64)
