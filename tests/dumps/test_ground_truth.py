# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every finding on the shipped dumps against what the guests recorded while they ran."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

import pytest
from drgn.helpers.linux.slab import find_slab_cache, slab_cache_for_each_allocated_object

from drgn_scripts.dma_fences import Fence
from drgn_scripts.hung_tasks import BlockedTask
from tests.dumps.conftest import ShippedDump
from vmcore_tools.kernel.printk import log_records
from vmcore_tools.kernel.slab import slab_index
from vmcore_tools.model import Confidence, Finding, Status


def findings(shipped: ShippedDump, rule: str) -> List[Finding]:
    return [finding for finding in shipped.report.findings if finding.rule.id == rule]


def evidence(finding: Finding) -> Dict[str, Any]:
    return {item.name: item.value for item in finding.evidence}


def rows(shipped: ShippedDump, row_type: type) -> Tuple[Any, ...]:
    (table,) = [
        table
        for analysis in shipped.report.analyses
        for table in analysis.tables
        if table.row_type is row_type
    ]
    assert table.total == len(table.rows)
    return table.rows


def addresses(texts: List[str]) -> set[int]:
    return {int(text, 16) for text in texts}


def test_every_analysis_read_everything(shipped: ShippedDump) -> None:
    # These guests were booted without kmemleak, and not all with tracks.
    absent = {"kmemleak"}
    if "slub_debug=U" not in shipped.truth["cmdline"]:
        absent.add("slab-tracks")
    assert {a.name: (a.status, a.gaps) for a in shipped.report.analyses} == {
        a.name: (Status.NOT_APPLICABLE if a.name in absent else Status.OK, ())
        for a in shipped.report.analyses
    }
    assert shipped.report.exit_code() == 1


def test_the_leak_is_counted_to_the_last_reference(shipped: ShippedDump) -> None:
    (finding,) = findings(shipped, "VT201")
    leak, found = shipped.truth["leak"], evidence(finding)
    assert found["references_leaked"] == leak["references_leaked"] >= 5000
    assert found["objects"] == leak["objects"]
    assert found["objects_only_leaked"] == leak["objects_only_leaked"]
    assert found["cache"] == leak["cache"]
    assert found["seqno_first"] == leak["seqno_first"]
    assert found["seqno_last"] == leak["seqno_last"]
    assert found["context"] == (leak["context"],)


def test_exactly_the_leaked_fences_have_unexplained_references(shipped: ShippedDump) -> None:
    leak = shipped.truth["leak"]
    leaked = {r.address: r for r in rows(shipped, Fence) if r.verdict.endswith("leaked")}
    only = addresses(leak["addresses_only_leaked"])
    also = addresses(leak["addresses_also_held"])
    assert set(leaked) == only | also
    assert sum(row.unexplained for row in leaked.values()) == leak["references_leaked"]
    assert {row.address for row in leaked.values() if row.refcount == row.unexplained} == only


def test_the_leak_is_proven_but_for_stray_pointers(shipped: ShippedDump) -> None:
    (finding,) = findings(shipped, "VT201")
    found, leaked = evidence(finding), shipped.truth["leak"]["references_leaked"]
    assert finding.confidence == Confidence.PROVEN
    assert found["references_proven"] + found["references_likely"] == leaked
    assert found["references_proven"] >= 0.99 * leaked


def test_held_fences_have_the_holder_that_the_guest_recorded(shipped: ShippedDump) -> None:
    fences = {row.address: row for row in rows(shipped, Fence)}
    held = shipped.truth["held"]
    assert len(held) > 2000
    for entry in held:
        fence = fences[int(entry["address"], 16)]
        assert getattr(fence, f"held_by_{entry['why']}") == 1, entry
        assert fence.seqno == entry["seqno"]
        assert fence.refcount == entry["refcount"]
        assert fence.unexplained == (1 if entry["also_leaked"] else 0)


def test_with_slub_tracks_the_allocating_function_and_comm_are_named(
    demo_dump: ShippedDump,
) -> None:
    (finding,) = findings(demo_dump, "VT201")
    found, leak = evidence(finding), demo_dump.truth["leak"]
    assert found["allocating_function"] == "virtio_gpu_execbuffer_ioctl"
    assert found["allocating_pids"] == (leak["pid"],)
    assert found["allocating_comms"] == (leak["comm"],)
    assert sum(found["objects_by_stack"]) == leak["objects"]
    functions = [f.function for f in demo_dump.report.stacks[finding.stacks[0]].frames]
    assert "virtio_gpu_fence_alloc" in functions
    assert functions.index("virtio_gpu_fence_alloc") < functions.index("drm_ioctl_kernel")


def test_the_hung_task_is_the_one_that_the_guest_saw_hang(demo_dump: ShippedDump) -> None:
    (finding,) = findings(demo_dump, "VT301")
    hung, found = demo_dump.truth["hung"], evidence(finding)
    assert (found["pid"], found["comm"]) == (hung["pid"], hung["comm"]) == (hung["pid"], "Xorg")
    assert found["waits_for"] == "flush_work"
    assert found["called_from"] == "drain_all_pages"
    assert found["named_by_khungtaskd"] == (hung["pid"],)
    timeout_ns = hung["timeout_secs"] * 1_000_000_000
    assert found["threshold_ns"] == timeout_ns
    # khungtaskd looks every timeout, so it is late by less than two of them.
    assert timeout_ns <= found["wait_ns"] < 3 * timeout_ns


def test_the_hung_stack_has_every_function_of_proc_pid_stack(demo_dump: ShippedDump) -> None:
    (finding,) = findings(demo_dump, "VT301")
    frames = demo_dump.report.stacks[finding.stacks[0]].frames
    ours = [f"{frame.function}+{frame.offset:#x}" for frame in frames if not frame.inline]
    theirs = [
        # The kernel names clones, DWARF names functions.
        line.split("/")[0].replace(".isra.0", "").replace(".constprop.0", "")
        for line in demo_dump.truth["hung"]["stack"]
        # A label in the middle of entry_SYSCALL_64, which our last frame names.
        if not line.startswith("entry_SYSCALL_64_after_hwframe")
    ]
    assert [line for line in ours if line in theirs] == theirs


def test_only_the_hung_task_is_blocked(demo_dump: ShippedDump) -> None:
    recorded = {task["pid"] for task in demo_dump.truth["tasks"] if task["state"] == "D"}
    blocked = {row.pid for row in rows(demo_dump, BlockedTask)}
    assert demo_dump.truth["hung"]["pid"] in blocked
    assert recorded <= blocked | {demo_dump.truth["culprit"]["pid"]}


def test_the_log_ends_with_the_panic(demo_dump: ShippedDump) -> None:
    texts = [record.text for record in log_records(demo_dump.target.prog)]
    assert any(b"Kernel panic - not syncing: hung_task: blocked tasks" in text for text in texts)
    sequence = [record.seq for record in log_records(demo_dump.target.prog)]
    assert sequence == list(range(sequence[0], sequence[0] + len(sequence)))


@pytest.mark.parametrize("cache", ["virtio-gpu-vbufs", "task_struct"])
def test_allocated_objects_are_those_of_drgn(shipped: ShippedDump, cache: str) -> None:
    index = slab_index(shipped.target.prog, shipped.target.memory)
    theirs = find_slab_cache(shipped.target.prog, cache)
    number = index.cache_number(theirs)
    assert number is not None
    ours = {
        int(address)
        for batch in index.batches((index.cache == number).nonzero()[0])
        for address in batch.objects[batch.allocated]
    }
    assert ours == {o.value_() for o in slab_cache_for_each_allocated_object(theirs, "char")}


def test_no_slab_is_corrupt(shipped: ShippedDump) -> None:
    assert slab_index(shipped.target.prog, shipped.target.memory).problems == []
