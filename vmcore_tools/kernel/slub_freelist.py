# SPDX-License-Identifier: LGPL-2.1-or-later
"""
SLUB freelists of many slabs, followed in lockstep.

Only NumPy here: the slabs' bytes in, a mask of free objects out.
"""

from __future__ import annotations

import dataclasses
from typing import Dict, Optional, Sequence, Tuple

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True)
class FreelistLayout:
    """
    Where the objects and their free pointers are in a cache's slabs.

    :ivar size_bytes: from one object to the next
    :ivar red_left_pad_bytes: in front of the first object
    :ivar offset: of the free pointer in a free object
    :ivar random: the freelist's secret; None without hardening
    :ivar count: objects in each slab
    """

    size_bytes: int
    red_left_pad_bytes: int
    offset: int
    random: Optional[int]
    count: int


class HardenedVotes:
    """
    Which way of hardening the kernel uses, decided by what makes sense.

    1ad53d9fa3f6 ("slub: improve bit diffusion for freelist ptr obfuscation")
    added a byte swap in v5.7 and was backported, so a version tells nothing,
    nor does a single pointer. Each decoded pointer that is an object of its
    slab, or the end, is a vote.
    """

    def __init__(self) -> None:
        self._votes = [0, 0]  # with the byte swap, without it

    def decode(self, layout: FreelistLayout, word: U64, address: U64, first: U64) -> U64:
        """
        Free pointers as ``freelist_dereference()`` of mm/slub.c reads them.

        :param word: what is stored
        :param address: where it is stored
        :param first: the first object of each pointer's slab
        """
        if layout.random is None:
            return word
        plain = word ^ np.uint64(layout.random)
        decoded = (plain ^ address.byteswap(), plain ^ address)
        for variant, pointer in enumerate(decoded):
            self._votes[variant] += int((is_object(layout, pointer - first) | (pointer == 0)).sum())
        return decoded[0] if self._votes[0] >= self._votes[1] else decoded[1]


def is_object(layout: FreelistLayout, offset: U64) -> npt.NDArray[np.bool_]:
    """Whether offsets from a slab's first object are where objects begin."""
    size = np.uint64(layout.size_bytes)
    result: npt.NDArray[np.bool_] = (offset < size * np.uint64(layout.count)) & (offset % size == 0)
    return result


def follow_freelists(
    layout: FreelistLayout,
    data: npt.NDArray[np.uint8],
    first: U64,
    heads: Sequence[Tuple[int, int]],
    votes: HardenedVotes,
) -> Tuple[npt.NDArray[np.bool_], Dict[int, str]]:
    """
    Find the free objects of slabs.

    :param data: uint8 array of shape (n, slab size in bytes)
    :param first: uint64 array of shape (n,): address of each slab's first object
    :param heads: (slab, address of its first free object); a slab can have several
    :return: bool array of shape (n, objects), and slab to what is wrong with it
    """
    free = np.zeros((len(data), layout.count), dtype=bool)
    corrupt: Dict[int, str] = {}
    words = data.view(np.uint64)
    slab = np.array([i for i, _ in heads], dtype=np.int64)
    pointer = np.array([head for _, head in heads], dtype=np.uint64)
    several = len(np.unique(slab)) < len(slab)
    # Each step marks an object that was not marked, so this ends.
    while len(slab):
        sound = is_object(layout, pointer - first[slab])
        for i, bad in zip(slab[~sound].tolist(), pointer[~sound].tolist()):
            corrupt[i] = f"its freelist has the pointer 0x{bad:x}, which is none of its objects"
        slab, pointer = slab[sound], pointer[sound]
        number = ((pointer - first[slab]) // np.uint64(layout.size_bytes)).astype(np.int64)
        seen = free[slab, number]
        for i in slab[seen].tolist():
            corrupt[i] = "its freelist runs in a circle"
        if several:
            # Two lists of a slab can come to the same object in the same step.
            _, once = np.unique(slab * layout.count + number, return_index=True)
            twice = np.ones(len(slab), dtype=bool)
            twice[once] = False
            for i in slab[twice & ~seen].tolist():
                corrupt[i] = "an object is on two of its freelists"
            seen |= twice
        slab, pointer, number = slab[~seen], pointer[~seen], number[~seen]
        free[slab, number] = True
        stored_at = layout.red_left_pad_bytes + number * layout.size_bytes + layout.offset
        pointer = votes.decode(
            layout,
            words[slab, stored_at // 8],
            pointer + np.uint64(layout.offset),
            first[slab],
        )
        slab, pointer = slab[pointer != 0], pointer[pointer != 0]
    return free, corrupt
