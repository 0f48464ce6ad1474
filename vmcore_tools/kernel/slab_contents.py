# SPDX-License-Identifier: LGPL-2.1-or-later
"""What slab objects hold, as a number: whether they are what they were when it is asked again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vmcore_tools.kernel.slab import SlabIndex

U64 = npt.NDArray[np.uint64]

#: Odd, and far from a regular pattern of bits: 2**64 divided by the golden ratio.
_STEP = 0x9E3779B97F4A7C15
#: The upper half of the addresses begins with so many ones on every architecture.
_POINTER_SHIFT = np.uint64(48)
_POINTER_TOP = np.uint64(0xFFFF)


def contents(index: SlabIndex, addresses: U64) -> U64:
    """
    A number for the words of each slab object, pointers to kernel memory apart.

    Another object in the same place has other counts, sizes, sequence numbers. Pointers
    change as well when something is put next to the object in a list or a tree.

    :param addresses: uint64 array of shape (n,): anywhere in the objects
    :return: uint64 array of shape (n,); 0 for what is in no slab that can be read
    """
    result = np.zeros(len(addresses), dtype=np.uint64)
    rows = index.find(addresses)
    for batch in index.batches(np.unique(rows[rows >= 0])):
        asked = np.flatnonzero(np.isin(rows, batch.rows))
        at = np.searchsorted(batch.rows, rows[asked])
        # Below the first object, in a red zone, this wraps around.
        number = (addresses[asked] - batch.objects[at, 0]) // np.uint64(batch.cache.size_bytes)
        inside = number < batch.objects.shape[1]
        asked, at, number = asked[inside], at[inside], number[inside].astype(np.int64)
        slots = np.ascontiguousarray(batch.slots()[at, number])
        whole = slots[:, : slots.shape[1] // 8 * 8]
        words = np.ascontiguousarray(whole).view(np.uint64)
        words = np.where(words >> _POINTER_SHIFT == _POINTER_TOP, np.uint64(0), words)
        factors = np.arange(1, words.shape[1] + 1, dtype=np.uint64) * np.uint64(_STEP)
        result[asked] = (words * (factors | np.uint64(1))).sum(axis=1, dtype=np.uint64)
    return result
