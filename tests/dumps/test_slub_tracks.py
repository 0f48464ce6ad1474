# SPDX-License-Identifier: LGPL-2.1-or-later
"""SLUB's tracks on a real dump, against what the guest recorded."""

from __future__ import annotations

from typing import List

import numpy as np
import pytest

from tests.dumps.conftest import ShippedDump
from vmcore_tools.kernel.slab import SlabIndex, slab_index
from vmcore_tools.kernel.slub_tracks import TrackItem, has_tracks, object_tracks


@pytest.fixture
def index(demo_dump: ShippedDump) -> SlabIndex:
    return slab_index(demo_dump.target.prog, demo_dump.target.memory)


def number_of(index: SlabIndex, name: str) -> int:
    return next(i for i, cache in enumerate(index.caches) if cache.name == name)


def leaked(demo_dump: ShippedDump) -> np.ndarray:
    leak = demo_dump.truth["leak"]
    texts = leak["addresses_only_leaked"] + leak["addresses_also_held"]
    return np.array([int(text, 16) for text in texts], dtype=np.uint64)


def names(index: SlabIndex, stack: List[int]) -> List[str]:
    return [index.prog.symbol(address - 1).name.partition(".")[0] for address in stack]


def test_every_leaked_fence_was_allocated_by_the_task_that_leaks(
    demo_dump: ShippedDump, index: SlabIndex
) -> None:
    leak = demo_dump.truth["leak"]
    tracks = object_tracks(index, number_of(index, leak["cache"]), leaked(demo_dump))
    assert len(tracks.address) == leak["objects"] == 5004
    assert tracks.read.all()
    assert set(tracks.pid.tolist()) == {leak["pid"]}
    for i in set(tracks.stack.tolist()):
        stack = names(index, tracks.stacks[i])
        assert stack.index("virtio_gpu_fence_alloc") + 1 == stack.index(
            "virtio_gpu_execbuffer_ioctl"
        )


def test_fences_are_older_the_earlier_they_were_emitted(
    demo_dump: ShippedDump, index: SlabIndex
) -> None:
    leak, prog = demo_dump.truth["leak"], index.prog
    fences = leaked(demo_dump)
    tracks = object_tracks(index, number_of(index, leak["cache"]), fences)
    offset = prog.type("struct virtio_gpu_fence").member("f").offset
    offset += prog.type("struct dma_fence").member("seqno").offset
    seqno = np.array([prog.read_u64(int(address) + offset) for address in fences])
    assert (np.diff(tracks.age_ns[np.argsort(seqno)]) <= 0).all()
    # The guest hung for longer than its timeout after it had leaked.
    assert tracks.age_ns.min() > demo_dump.truth["hung"]["timeout_secs"] * 10**9


def test_no_record_is_older_than_the_machine(demo_dump: ShippedDump, index: SlabIndex) -> None:
    uptime_ns = index.prog["last_jiffies_update"].value_()
    cpus = index.prog["nr_cpu_ids"].value_()
    for number, cache in enumerate(index.caches):
        if has_tracks(cache):
            tracks = object_tracks(index, number)
            assert tracks.read.all(), cache.name
            assert (tracks.stack >= 0).all(), cache.name
            assert ((tracks.age_ns >= 0) & (tracks.age_ns <= uptime_ns)).all(), cache.name
            assert set(tracks.cpu.tolist()) <= set(range(cpus)), cache.name


def test_only_the_caches_of_the_command_line_have_tracks(
    shipped: ShippedDump, index: SlabIndex
) -> None:
    index = slab_index(shipped.target.prog, shipped.target.memory)
    tracked = {cache.name for cache in index.caches if has_tracks(cache)}
    everything = {cache.name for cache in index.caches if cache.name.startswith("kmalloc-")}
    asked = "slub_debug=U,kmalloc-*" in shipped.truth["cmdline"]
    assert tracked == (everything if asked else set())
    assert not asked or len(tracked) > 10


def test_all_allocated_objects_of_a_cache_are_those_of_the_index(index: SlabIndex) -> None:
    number = number_of(index, "kmalloc-64")
    tracks = object_tracks(index, number)
    allocated = np.concatenate(
        [b.objects[b.allocated] for b in index.batches(np.flatnonzero(index.cache == number))]
    )
    assert tracks.address.tolist() == sorted(allocated.tolist())
    again = object_tracks(index, number, tracks.address[::-1].copy())
    assert again.pid[::-1].tolist() == tracks.pid.tolist()
    assert [again.stacks[i] for i in again.stack[::-1]] == [tracks.stacks[i] for i in tracks.stack]


def test_a_free_comes_before_the_allocation_that_used_the_object_again(index: SlabIndex) -> None:
    number = number_of(index, "kmalloc-96")
    alloc, free = object_tracks(index, number), object_tracks(index, number, item=TrackItem.FREE)
    assert alloc.address.tolist() == free.address.tolist()
    assert 0 < free.read.sum() < len(free.read)
    assert (free.age_ns[free.read] >= alloc.age_ns[free.read]).all()
    assert (free.stack[~free.read] == -1).all() and (free.age_ns[~free.read] == -1).all()
    frees = {name for i in free.stack[free.read].tolist() for name in names(index, free.stacks[i])}
    assert frees and "virtio_gpu_fence_alloc" not in frees


def test_addresses_that_are_no_objects_of_the_cache_have_no_record(index: SlabIndex) -> None:
    number = number_of(index, "kmalloc-96")
    other = object_tracks(index, number_of(index, "kmalloc-64")).address[:1]
    mine = object_tracks(index, number).address[:1]
    asked = np.concatenate([other, mine, np.array([0, 0x1234], dtype=np.uint64)])
    tracks = object_tracks(index, number, asked)
    assert tracks.read.tolist() == [False, True, False, False]
    assert tracks.stack.tolist()[0] == -1
    # A pointer into an object stands for it.
    assert (
        object_tracks(index, number, mine + np.uint64(17)).pid
        == object_tracks(index, number, mine).pid
    )


def test_without_objects(index: SlabIndex) -> None:
    tracks = object_tracks(index, number_of(index, "kmalloc-96"), np.zeros(0, dtype=np.uint64))
    assert len(tracks.address) == len(tracks.stack) == 0 and tracks.stacks == ()


def test_a_cache_without_tracks_has_no_room_for_them(index: SlabIndex) -> None:
    with pytest.raises(LookupError, match="has no room for tracks"):
        object_tracks(index, number_of(index, "task_struct"))
