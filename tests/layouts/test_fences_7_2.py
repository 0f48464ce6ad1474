# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Fences of v7.2, which lose their operations when they signal.

"dma-buf: detach fence ops on signal" (541c8f2468b9) clears ``ops`` where the
table has neither ``release`` nor ``wait``, as that of virtio_gpu.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator, List, Sequence

import pytest
from drgn import offsetof

from drgn_scripts.dma_fences import ANALYSIS
from tests.layouts.machine import Machine, Value
from tests.layouts.slabs import Slabs
from tests.layouts.test_slabs_7_2 import NOTE
from vmcore_tools.kernel.fence_holders import FenceHolders, fence_holders
from vmcore_tools.kernel.found_fences import detached_fences
from vmcore_tools.kernel.slab import slab_index
from vmcore_tools.model import Confidence, Report
from vmcore_tools.runner import run
from vmcore_tools.target import DebugInfo, Target

REFCOUNT = "refcount.refcount.refs.counter"
LIST_POISON1, LIST_POISON2 = 0xDEAD000000000100, 0xDEAD000000000122


class Gpu:
    """A virtio_gpu device, with fences in kmalloc-128 and others' in kmalloc-64."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        prog = machine.prog
        driver = machine.new("struct drm_driver", {"name": machine.string(b"virtio_gpu")})
        self.device = machine.new("struct virtio_gpu_device", {})
        self.drm = machine.new("struct drm_device", {"driver": driver, "dev_private": self.device})
        drm_type = prog.type("struct drm_device")
        for head in ("filelist", "mode_config.fb_list", "mode_config.plane_list"):
            machine.link(self.drm + offsetof(drm_type, head))
        minor = machine.new("struct drm_minor", {"dev": self.drm})
        machine.write(
            machine.variable("drm_minors_xa") + offsetof(prog.type("struct xarray"), "xa_head"),
            minor.to_bytes(8, "little"),
        )
        device_type = prog.type("struct virtio_gpu_device")
        self.timeline = self.device + offsetof(device_type, "fence_drv")
        driver_type = prog.type("struct virtio_gpu_fence_driver")
        self.lock = self.timeline + offsetof(driver_type, "lock")
        self.list = self.timeline + offsetof(driver_type, "fences")
        machine.put(
            "struct virtio_gpu_device",
            self.device,
            {"ddev": self.drm, "fence_drv.context": 7, "fence_drv.last_fence_id.counter": 90},
        )
        slabs = Slabs(machine)
        self.free: Dict[int, List[int]] = {}
        for size in (64, 128, 512):
            cache = slabs.cache(b"kmalloc-%d" % size, size)
            self.free[size] = slabs.slab(cache)
        files = slabs.cache(b"filp", 256)
        # As on the real v7.2: no variable points to the cache, only its name tells it.
        self.files = slabs.slab(files)
        self.emitted: List[int] = []
        machine.link(self.list)

    def flags(self, *names: str) -> int:
        prog = self.machine.prog
        return sum(1 << prog.constant(f"DMA_FENCE_FLAG_{name}_BIT").value_() for name in names)

    def fence(self, seqno: int, signaled: bool, members: Dict[str, Value]) -> int:
        """``virtio_gpu_fence_alloc()``, ``_emit()`` and, if signaled, ``_event_process()``."""
        machine = self.machine
        ops = machine.variable("virtio_gpu_fence_ops")
        states = ("INITIALIZED", "SIGNALED", "TIMESTAMP") if signaled else ("INITIALIZED",)
        fence = machine.put(
            "struct virtio_gpu_fence",
            self.free[128].pop(),
            {
                "f.extern_lock": self.lock,
                "f.ops": 0 if signaled else ops,
                "f.context": 7,
                "f.seqno": seqno,
                "f.flags": self.flags(*states),
                f"f.{REFCOUNT}": 1,
                "fence_id": seqno,
                "drv": self.timeline,
                "node.next": LIST_POISON1,
                "node.prev": LIST_POISON2,
                **members,
            },
        )
        if signaled:
            machine.put("struct virtio_gpu_fence", fence, {"f.timestamp": 12345})
            return fence
        machine.link(fence + offsetof(machine.prog.type("struct dma_fence"), "cb_list"))
        self.emitted.append(fence)
        node = offsetof(machine.prog.type("struct virtio_gpu_fence"), "node")
        machine.link(self.list, [emitted + node for emitted in self.emitted])
        return fence

    def other(self, size: int, members: Dict[str, Value]) -> int:
        """A fence of somebody else, with its lock inside."""
        fence = self.machine.put(
            "struct dma_fence",
            self.free[size].pop(),
            {"flags": self.flags("INITIALIZED", "INLINE_LOCK"), REFCOUNT: 1, **members},
        )
        self.machine.link(fence + offsetof(self.machine.prog.type("struct dma_fence"), "cb_list"))
        return fence


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[Gpu]:
    machine = Machine("linux_7_2.c", tmp_path, "7.2.13", NOTE)
    yield Gpu(machine)
    machine.close()


def walk(gpu: Gpu) -> FenceHolders:
    result = fence_holders(slab_index(gpu.machine.prog, gpu.machine.memory))
    assert result.gaps == ()
    return result


def held(result: FenceHolders, kind: str) -> List[int]:
    return sorted(
        fence
        for holders in result.described.holders
        if holders.kind == kind
        for fence in holders.held.tolist()
        if fence
    )


def test_a_signaled_fence_is_found_without_its_operations(gpu: Gpu) -> None:
    leaked = [gpu.fence(seqno, True, {}) for seqno in (11, 12, 13)]
    emitted = [gpu.fence(seqno, False, {f"f.{REFCOUNT}": 2}) for seqno in (91, 92)]

    every = walk(gpu).fences

    expected = sorted([*leaked, *emitted])
    assert every.found.address.tolist() == expected
    index = slab_index(gpu.machine.prog, gpu.machine.memory)
    assert detached_fences(index).tolist() == sorted(leaked)
    assert every.signaled.tolist() == [fence in leaked for fence in expected]
    seqnos = dict(zip(every.found.address.tolist(), every.seqno.tolist()))
    assert [seqnos[fence] for fence in (*leaked, *emitted)] == [11, 12, 13, 91, 92]
    counts = dict(zip(every.found.address.tolist(), every.refcount.tolist()))
    assert [counts[fence] for fence in (*leaked, *emitted)] == [1, 1, 1, 2, 2]
    assert set(every.context.tolist()) == {7}
    assert set(every.lock.tolist()) == {gpu.lock}


def test_the_device_and_its_list(gpu: Gpu) -> None:
    gpu.fence(11, True, {})
    emitted = [gpu.fence(seqno, False, {f"f.{REFCOUNT}": 2}) for seqno in (91, 92)]

    result = walk(gpu)

    assert result.virtio_gpu.tolist() == [True] * 3
    assert result.last_completed.tolist() == [90] * 3
    assert held(result, "driver") == sorted(emitted)


def test_the_lock_is_a_pointer_or_inside(gpu: Gpu) -> None:
    machine = gpu.machine
    ops = machine.variable("dma_fence_array_ops")
    # The lock itself, taken by somebody: 4 bytes, and what stands behind it.
    inside = gpu.other(64, {"ops": ops, "inline_lock.rlock.raw_lock.counter": 1})

    result = walk(gpu)

    assert result.fences.found.address.tolist() == [inside]
    assert result.fences.lock.tolist() == [0]
    assert result.virtio_gpu.tolist() == [False]


def test_what_only_looks_like_a_fence_is_none(gpu: Gpu) -> None:
    machine = gpu.machine
    drv = offsetof(machine.prog.type("struct virtio_gpu_fence"), "drv")
    # Something with a pointer to the timeline where a fence has it, and zeros.
    machine.words(gpu.free[128].pop() + drv, [gpu.timeline])
    # A fence that was allocated and not initialised yet.
    machine.put("struct virtio_gpu_fence", gpu.free[128].pop(), {"drv": gpu.timeline})

    assert walk(gpu).fences.found.address.tolist() == []


def test_containers_keep_their_operations(gpu: Gpu) -> None:
    machine = gpu.machine
    first, second = gpu.fence(11, True, {}), gpu.fence(12, True, {})
    chain = machine.put(
        "struct dma_fence_chain",
        gpu.free[128].pop(),
        {
            "base.ops": machine.variable("dma_fence_chain_ops"),
            "base.flags": gpu.flags("INITIALIZED", "INLINE_LOCK", "SEQNO64", "SIGNALED"),
            f"base.{REFCOUNT}": 1,
            "fence": first,
        },
    )
    table = machine.words(machine.alloc(8), [second])
    array = machine.put(
        "struct dma_fence_array",
        gpu.free[128].pop(),
        {
            "base.ops": machine.variable("dma_fence_array_ops"),
            "base.flags": gpu.flags("INITIALIZED", "INLINE_LOCK", "SIGNALED"),
            f"base.{REFCOUNT}": 1,
            "num_fences": 1,
            "fences": table,
        },
    )

    result = walk(gpu)

    assert result.fences.found.address.tolist() == sorted([first, second, chain, array])
    assert held(result, "chain") == [first]
    assert held(result, "array") == [second]


def test_a_modules_list_of_sections_is_no_gem_object(gpu: Gpu) -> None:
    # Its address of .rodata can be that of the operations; a size comes before it.
    gpu.machine.put(
        "struct drm_gem_object",
        gpu.free[512].pop(),
        {REFCOUNT: 19, "resv": 0x100, "funcs": gpu.machine.variable("virtio_gpu_shmem_funcs")},
    )
    assert held(walk(gpu), "reservation") == []


def test_slots_of_a_reservation_object_with_their_usage(gpu: Gpu) -> None:
    machine = gpu.machine
    fences = [gpu.fence(seqno, True, {}) for seqno in (11, 12, 13, 14)]
    table = machine.new("struct dma_resv_list", {"num_fences": 4, "max_fences": 4}, 32)
    slots = offsetof(machine.prog.type("struct dma_resv_list"), "table")
    machine.words(table + slots, [fence | usage for usage, fence in enumerate(fences)])
    gem = gpu.free[512].pop()
    resv = gem + offsetof(machine.prog.type("struct drm_gem_object"), "_resv")
    machine.put(
        "struct drm_gem_object",
        gem,
        {
            REFCOUNT: 1,
            "size": 4096,
            "resv": resv,
            "_resv.fences": table,
            "funcs": machine.variable("virtio_gpu_shmem_funcs"),
        },
    )

    assert held(walk(gpu), "reservation") == sorted(fences)


def test_the_fence_of_a_plane_update(gpu: Gpu) -> None:
    machine = gpu.machine
    fence = gpu.fence(91, False, {f"f.{REFCOUNT}": 3})
    state = machine.new("struct virtio_gpu_plane_state", {"fence": fence})
    plane = machine.new("struct drm_plane", {"state": state})
    head = offsetof(machine.prog.type("struct drm_plane"), "head")
    planes = offsetof(machine.prog.type("struct drm_device"), "mode_config.plane_list")
    machine.link(gpu.drm + planes, [plane + head])

    assert held(walk(gpu), "plane") == [fence]


def test_a_synchronization_object_by_its_handle(gpu: Gpu) -> None:
    machine, prog = gpu.machine, gpu.machine.prog
    fence = gpu.fence(11, True, {})
    syncobj = machine.new("struct drm_syncobj", {REFCOUNT: 1, "fence": fence})
    # The only entry of an XArray, if it is the first, is in its head.
    file = machine.new("struct drm_file", {"syncobj_xa.xa_head": syncobj})
    head = offsetof(prog.type("struct drm_device"), "filelist")
    machine.link(gpu.drm + head, [file + offsetof(prog.type("struct drm_file"), "lhead")])

    assert held(walk(gpu), "syncobj") == [fence]


def test_a_synchronization_object_and_a_sync_file_by_their_files(gpu: Gpu) -> None:
    machine = gpu.machine
    fences = [gpu.fence(seqno, True, {}) for seqno in (11, 12, 13)]
    syncobj = machine.put(
        "struct drm_syncobj", gpu.free[64].pop(), {REFCOUNT: 1, "fence": fences[0]}
    )
    open_file, closing = gpu.files[0], gpu.files[1]
    sync_file, ended = gpu.free[128].pop(), gpu.free[128].pop()
    machine.put("struct sync_file", sync_file, {"file": open_file, "fence": fences[1]})
    machine.put("struct sync_file", ended, {"file": closing, "fence": fences[2]})
    # file_ref_t counts from 0 on; without a reference it is negative.
    for file, fops, data, count in (
        (gpu.files[2], "drm_syncobj_file_fops", syncobj, 0),
        (open_file, "sync_file_fops", sync_file, 1),
        (closing, "sync_file_fops", ended, -(1 << 61)),
    ):
        members = {"f_op": machine.variable(fops), "private_data": data}
        machine.put("struct file", file, {**members, "f_ref.refcnt.counter": count})

    result = walk(gpu)

    assert held(result, "syncobj") == [fences[0]]
    # sync_file_release() puts the fence and leaves the pointer.
    assert {
        (fence, holders.at_most)
        for holders in result.described.holders
        if holders.kind == "sync_file"
        for fence in holders.held.tolist()
    } == {(fences[1], False), (fences[2], True)}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_detached_fences_are_sorted_among_the_others(gpu: Gpu, order: Sequence[int]) -> None:
    made = [gpu.fence(20 + number, bool(number), {f"f.{REFCOUNT}": 1}) for number in order]
    assert walk(gpu).fences.found.address.tolist() == sorted(made)


# The whole analysis.


def run_analysis(gpu: Gpu) -> Report:
    machine = gpu.machine
    target = Target(machine.prog, machine.memory, (), DebugInfo(vmlinux_loaded=True))
    report = run(target, [ANALYSIS], {}, limit=None, progress=lambda items, what, total: items)
    assert report.complete, report.analyses[0].reason
    return report


def test_leaked_fences_without_operations_are_proven(gpu: Gpu) -> None:
    leaked = [gpu.fence(seqno, True, {}) for seqno in range(11, 21)]
    gpu.fence(91, False, {})  # the device has its only reference

    (finding,) = run_analysis(gpu).findings

    evidence = {item.name: item.value for item in finding.evidence}
    assert (finding.rule.id, finding.confidence) == ("VT201", Confidence.PROVEN)
    assert finding.subject.type == "struct virtio_gpu_fence"
    assert evidence["references_leaked"] == evidence["references_proven"] == len(leaked)
    assert evidence["objects_only_leaked"] == len(leaked)
    assert evidence["cache"] == "kmalloc-128"


def test_held_and_emitted_and_freed_fences_are_no_leak(gpu: Gpu) -> None:
    machine = gpu.machine
    gpu.fence(91, False, {})
    gpu.fence(50, True, {f"f.{REFCOUNT}": 0})
    table = machine.words(machine.alloc(8), [gpu.fence(11, True, {})])
    array = machine.put(
        "struct dma_fence_array",
        gpu.free[128].pop(),
        {
            "base.ops": machine.variable("dma_fence_array_ops"),
            "base.flags": gpu.flags("INITIALIZED", "INLINE_LOCK", "SIGNALED"),
            f"base.{REFCOUNT}": 1,
            "num_fences": 1,
            "fences": table,
        },
    )
    state = machine.new("struct virtio_gpu_plane_state", {"base.fence": array})
    plane = machine.new("struct drm_plane", {"state": state})
    head = offsetof(machine.prog.type("struct drm_plane"), "head")
    planes = offsetof(machine.prog.type("struct drm_device"), "mode_config.plane_list")
    machine.link(gpu.drm + planes, [plane + head])

    assert run_analysis(gpu).findings == ()


def test_what_somebody_unknown_points_at_is_not_called_leaked(gpu: Gpu) -> None:
    gpu.machine.words(gpu.machine.alloc(8), [gpu.fence(11, True, {})])
    assert "VT201" not in [finding.rule.id for finding in run_analysis(gpu).findings]


def test_leaked_fence_arrays_have_a_context_each(gpu: Gpu) -> None:
    members: Dict[str, Value] = {
        "base.ops": gpu.machine.variable("dma_fence_array_ops"),
        "base.flags": gpu.flags("INITIALIZED", "INLINE_LOCK", "SIGNALED"),
        f"base.{REFCOUNT}": 1,
    }
    for context in range(100, 120):
        array = {**members, "base.context": context}
        gpu.machine.put("struct dma_fence_array", gpu.free[128].pop(), array)

    (finding,) = run_analysis(gpu).findings

    evidence = {item.name: item.value for item in finding.evidence}
    assert (finding.rule.id, finding.confidence) == ("VT201", Confidence.PROVEN)
    assert finding.subject.type == "struct dma_fence_array"
    assert evidence["references_leaked"] == evidence["contexts"] == 20
    assert evidence["context"] == tuple(range(100, 116))
