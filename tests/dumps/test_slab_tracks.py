# SPDX-License-Identifier: LGPL-2.1-or-later
"""The analysis slab-tracks on real dumps, against what the guests recorded."""

from __future__ import annotations

from typing import Any, Dict, Tuple

import pytest

from drgn_scripts import slab_tracks
from drgn_scripts.slab_tracks import ObjectsByTrack, SlabsByOwner, TrackedCache
from tests.dumps.conftest import ShippedDump
from vmcore_tools import runner
from vmcore_tools.analysis import WrongArgument
from vmcore_tools.kernel.slab import slab_index
from vmcore_tools.kernel.slub_tracks import has_tracks
from vmcore_tools.model import AnalysisResult, Report, Status


def run(shipped: ShippedDump, **options: Any) -> Tuple[AnalysisResult, Report]:
    report = runner.run(
        shipped.target,
        (slab_tracks.ANALYSIS,),
        {"slab-tracks": options},
        limit=None,
        progress=lambda items, _what, _total: items,
    )
    return report.analyses[0], report


def rows(result: AnalysisResult, row_type: type) -> Tuple[Any, ...]:
    (table,) = [table for table in result.tables if table.row_type is row_type]
    return table.rows


def test_the_leak_is_all_in_rows_of_its_task_and_function(demo_dump: ShippedDump) -> None:
    leak = demo_dump.truth["leak"]
    result, report = run(demo_dump, caches=(leak["cache"],))
    assert (result.status, result.gaps) == (Status.OK, ())
    fences = [r for r in rows(result, ObjectsByTrack) if r.function == "virtio_gpu_fence_alloc"]
    # The leaked ones, and those that buffers hold.
    assert sum(r.objects for r in fences) >= leak["objects"] + len(demo_dump.truth["held"]) - 12
    assert {r.comms for r in fences} == {leak["comm"]}
    functions = {
        frame.function for r in fences for frame in report.stacks[r.stack].frames if r.stack
    }
    assert {"virtio_gpu_fence_alloc", "virtio_gpu_execbuffer_ioctl", "drm_ioctl"} <= functions


def test_each_object_is_counted_once(demo_dump: ShippedDump) -> None:
    result, _ = run(demo_dump)
    index = slab_index(demo_dump.target.prog, demo_dump.target.memory)
    allocated: Dict[str, int] = {}
    for batch in index.batches():
        if has_tracks(batch.cache):
            name = batch.cache.name
            allocated[name] = allocated.get(name, 0) + int(batch.allocated.sum())
    caches = {row.cache: row for row in rows(result, TrackedCache)}
    assert len(caches) == 10
    assert {name: row.objects for name, row in caches.items()} == {
        name: allocated[name] for name in caches
    }
    by_stack = dict.fromkeys(caches, 0)
    for row in rows(result, ObjectsByTrack):
        by_stack[row.cache] += row.objects
    assert by_stack == {name: row.objects_with_track for name, row in caches.items()}
    assert all(row.objects == row.objects_with_track for row in caches.values())
    sizes = [row.size_bytes for row in rows(result, ObjectsByTrack)]
    assert sizes == sorted(sizes, reverse=True)
    assert rows(result, SlabsByOwner) == ()


def test_only_the_first_stacks_are_shown_whole(demo_dump: ShippedDump) -> None:
    result, report = run(demo_dump, stacks=3)
    stacks = [row.stack for row in rows(result, ObjectsByTrack)]
    assert all(isinstance(stack, str) for stack in stacks[:3])
    assert not any(isinstance(stack, str) for stack in stacks[3:])
    assert set(stacks[:3]) == set(report.stacks)


def test_by_who_freed_an_object_before(demo_dump: ShippedDump) -> None:
    leak = demo_dump.truth["leak"]
    result, _ = run(demo_dump, caches=(leak["cache"],), freed=True)
    assert (result.status, result.gaps) == (Status.OK, ())
    (cache,) = rows(result, TrackedCache)
    assert 0 < cache.objects_with_track < cache.objects
    freed = rows(result, ObjectsByTrack)
    assert sum(row.objects for row in freed) == cache.objects_with_track
    assert "virtio_gpu_fence_alloc" not in {row.function for row in freed}


def test_without_tracks_it_says_what_to_boot_with(shipped: ShippedDump) -> None:
    result, report = run(shipped, stacks=0)
    if "slub_debug=U" in shipped.truth["cmdline"]:
        assert (result.status, result.reason) == (Status.OK, None)
    else:
        assert result.status is Status.NOT_APPLICABLE
        assert "boot with slub_debug=U" in str(result.reason)
    assert report.exit_code() == 0


def test_a_cache_without_tracks_is_a_gap_if_it_was_asked_for(demo_dump: ShippedDump) -> None:
    result, report = run(demo_dump, caches=("task_struct",))
    assert result.status is Status.PARTIAL
    reasons = {gap.reason for gap in result.gaps}
    assert reasons == {"it keeps no tracks: boot with slub_debug=U"}
    assert report.exit_code() == 3


def test_there_is_no_such_cache(shipped: ShippedDump) -> None:
    with pytest.raises(WrongArgument, match="there is no slab cache 'no-such-cache'; "):
        run(shipped, caches=("task_struct", "no-such-cache"))
