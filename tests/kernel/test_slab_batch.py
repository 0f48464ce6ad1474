# SPDX-License-Identifier: LGPL-2.1-or-later
"""The objects of a batch of slabs, byte by byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vmcore_tools.kernel.slab import SlabBatch, SlabCache


@pytest.mark.parametrize(
    ("size", "pad", "count", "slab_bytes"),
    [(96, 0, 42, 4096), (456, 8, 8, 4096), (1024, 64, 4, 4096), (512, 64, 8, 4096)],
    ids=["rest", "red zone and rest", "full with red zone", "full with small objects"],
)
def test_each_slot_begins_with_its_object(size: int, pad: int, count: int, slab_bytes: int) -> None:
    nothing: Any = None
    cache = SlabCache(nothing, "a", size, size - pad, pad, size - pad, 0, None, {})
    data = np.arange(2 * slab_bytes, dtype=np.uint64).astype(np.uint8).reshape(2, slab_bytes)
    objects = np.arange(count, dtype=np.uint64)[None, :] * np.uint64(size) + np.uint64(pad)
    every = np.ones((2, count), dtype=bool)
    batch = SlabBatch(
        cache, np.arange(2), data, np.repeat(objects, 2, axis=0), every, np.ones(2, dtype=bool)
    )
    slots = batch.slots()
    assert slots.shape == (2, count, size)
    for slab in range(2):
        for number in range(count):
            start = pad + number * size
            expected = data[slab, start : start + size].tolist()
            assert slots[slab, number].tolist() == expected + [0] * (size - len(expected))
