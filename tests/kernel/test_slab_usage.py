# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sums over slabs, on made-up indices; tests/dumps has real ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Iterable, Optional, Sequence

import numpy as np
import pytest

from vmcore_tools.kernel import slab_usage as module
from vmcore_tools.kernel.slab_usage import slab_usage


def make_index(
    cache: Any,
    inuse: Sequence[int],
    allocated: Sequence[Sequence[bool]],
    frozen: bool = False,
    intact: bool = True,
    in_kfence: Sequence[bool] = (),
) -> Any:
    """An index of one cache with slabs of 4096 bytes."""
    rows = np.arange(len(inuse), dtype=np.int64)
    count = len(allocated[0])
    batch = SimpleNamespace(
        rows=rows,
        allocated=np.array(allocated) & intact,
        intact=np.full(len(inuse), intact),
        data=np.zeros((len(inuse), 4096), dtype=np.uint8),
    )
    return SimpleNamespace(
        caches=[cache],
        pfn=rows,
        cache=np.zeros(len(inuse), dtype=np.int64),
        objects=np.full(len(inuse), count, dtype=np.int64),
        inuse=np.array(inuse, dtype=np.int64),
        frozen=np.full(len(inuse), frozen),
        in_kfence=np.array(in_kfence or [False] * len(inuse)),
        changing=False,
        batches=lambda: iter([batch]),
    )


def no_progress(items: Iterable[Any], what: str, total: Optional[int]) -> Iterable[Any]:
    return items


@pytest.fixture(autouse=True)
def two_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_kernel_slabs", lambda index: np.array([2]))


SLAB = SimpleNamespace(index_bytes=1, cache=SimpleNamespace(cpu_cache=0))


def test_slab_counts_objects_in_array_caches_as_active() -> None:
    # All of the second slab is in use for it; a CPU has one of them set aside.
    index = make_index(SLAB, [3, 4], [[True, True, True, False], [True, False, True, True]])
    usage = slab_usage(index, no_progress)
    assert (usage.objects[0], usage.active[0], usage.allocated[0]) == (8, 7, 6)
    assert (usage.free_on_nodes[0], usage.free_elsewhere[0]) == (1, 1)
    assert (usage.slabs[0], usage.size_bytes[0]) == (2, 8192)
    assert usage.miscounted.tolist() == []


def test_more_allocated_than_in_use_is_wrong_even_for_slab() -> None:
    index = make_index(SLAB, [2, 4], [[True, True, True, False], [True] * 4])
    assert slab_usage(index, no_progress).miscounted.tolist() == [0]


def test_a_slab_that_is_not_there_keeps_what_its_page_structure_says() -> None:
    index = make_index(SLAB, [3, 4], [[True] * 4, [True] * 4], intact=False)
    usage = slab_usage(index, no_progress)
    assert (usage.active[0], usage.allocated[0], usage.unread[0]) == (7, 0, 7)
    assert usage.free_on_nodes[0] == 1
    assert usage.miscounted.tolist() == []


@pytest.mark.parametrize(("frozen", "wrong"), [(False, [1]), (True, [])])
def test_only_a_settled_slab_is_miscounted(
    frozen: bool, wrong: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    slub = SimpleNamespace(index_bytes=None, cache=SimpleNamespace(cpu_slab=0))
    index = make_index(slub, [3, 3], [[True, True, True, False], [True] * 4], frozen)
    nowhere = np.zeros(2, dtype=bool)
    lists = SimpleNamespace(
        rows=lambda walk: nowhere, node_partial=None, cpu_slabs=None, cpu_partial=None
    )
    monkeypatch.setattr(module, "_SlabLists", lambda index, broken: lists)
    assert slab_usage(index, no_progress).miscounted.tolist() == wrong


def test_what_is_in_kfences_pool_is_in_no_slab() -> None:
    index = make_index(SLAB, [1, 1, 0], [[True], [True], [False]], in_kfence=[False, True, True])
    usage = slab_usage(index, no_progress)
    assert (usage.slabs[0], usage.objects[0], usage.allocated[0]) == (1, 1, 1)
    assert (usage.active[0], usage.free_on_nodes[0], usage.size_bytes[0]) == (1, 0, 4096)
    assert usage.in_kfence[0] == 1
    assert usage.miscounted.tolist() == []
