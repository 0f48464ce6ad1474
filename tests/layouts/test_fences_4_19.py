# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Fences of v4.19 in slab memory: the reference count at the front, 32 bits of seqno.

As on arm64, where the smallest kmalloc cache has 128 bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator, List, Sequence

import numpy as np
import pytest
from drgn import offsetof

from drgn_scripts.dma_fences import ANALYSIS
from tests.layouts.machine import Machine, Value
from tests.layouts.slabs import SLAB_STORE_USER, Slabs
from vmcore_tools.kernel.dma_fence import (
    DMA_FENCE,
    by_name,
    fences,
    reserved_fences,
    with_callbacks,
)
from vmcore_tools.kernel.fence_holders import fence_holders
from vmcore_tools.kernel.slab import slab_index
from vmcore_tools.kernel.typed_objects import find_embedded
from vmcore_tools.model import Confidence, Evidence, Kind, Report
from vmcore_tools.runner import run
from vmcore_tools.target import DebugInfo, Target

REFCOUNT = "refcount.refcount.refs.counter"
#: Bits 0, 1 and 2 of enum dma_fence_flag_bits.
SIGNALED, TIMESTAMP, ENABLE_SIGNAL = 1, 2, 4
TIMELINE = 0xFFFF888000301000


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine("linux_4_19.c", tmp_path, "4.19.90")
    yield machine
    machine.close()


def put_fence(machine: Machine, address: int, members: Dict[str, Value]) -> int:
    machine.put(
        "struct virtio_gpu_fence",
        address,
        {
            "f.ops": machine.variable("virtio_gpu_fence_ops"),
            "f.lock": TIMELINE + 40,
            "f.context": 1,
            "drv": TIMELINE,
            **members,
        },
    )
    machine.link(address + offsetof(machine.prog.type("struct dma_fence"), "cb_list"))
    # What stands in the gap behind the 32 bits of seqno belongs to nobody.
    machine.write(address + 68, b"\xff\xff\xff\xff")
    return address


def test_fences_of_a_kmalloc_cache_and_of_one_with_red_zones(machine: Machine) -> None:
    slabs = Slabs(machine)
    plain = slabs.slab(slabs.cache(b"kmalloc-128", 128), free=[30, 31])
    padded = slabs.slab(
        slabs.cache(b"fences", 120, 256, order=1, inuse=128, offset=128, red_left_pad=128)
    )
    leaked = put_fence(
        machine,
        plain[3],
        {f"f.{REFCOUNT}": 1, "f.seqno": 0xFFFFFFFE, "f.flags": SIGNALED | TIMESTAMP},
    )
    pending = put_fence(
        machine, plain[4], {f"f.{REFCOUNT}": 3, "f.seqno": 17, "f.flags": ENABLE_SIGNAL}
    )
    ending = put_fence(machine, padded[7], {f"f.{REFCOUNT}": 0, "f.seqno": 18, "f.flags": SIGNALED})
    # Freed: the contents are left, but for the free pointer at its start, the list's end.
    machine.words(put_fence(machine, plain[31], {}), [0])
    callback = machine.new("struct dma_fence_cb", {"func": 0x1234})
    machine.link(pending + offsetof(machine.prog.type("struct dma_fence"), "cb_list"), [callback])

    index = slab_index(machine.prog, machine.memory)
    every = fences(machine.prog, find_embedded(index, [DMA_FENCE])[DMA_FENCE])

    expected = sorted([leaked, pending, ending])
    assert every.found.address.tolist() == expected
    assert every.found.container.tolist() == expected
    values = dict(
        zip(
            expected,
            zip(every.refcount.tolist(), every.seqno.tolist(), every.signaled.tolist()),
        )
    )
    assert values == {
        leaked: (1, 0xFFFFFFFE, True),
        pending: (3, 17, False),
        ending: (0, 18, True),
    }
    assert set(every.context.tolist()) == {1}
    assert set(every.lock.tolist()) == {TIMELINE + 40}
    assert by_name(every.found.tables, every.found.ops, "virtio_gpu_fence_ops").all()
    assert with_callbacks(machine.prog, every).tolist() == [pending]


def test_fences_inside_of_a_scheduler_s_fence(machine: Machine) -> None:
    slabs = Slabs(machine)
    size = 512  # SLAB_HWCACHE_ALIGN
    (fence, *_) = slabs.slab(slabs.cache(b"drm_sched_fence", 256, size))
    type_ = machine.prog.type("struct drm_sched_fence")
    for name in ("scheduled", "finished"):
        ops = machine.variable(f"drm_sched_fence_ops_{name}")
        machine.put("struct drm_sched_fence", fence, {f"{name}.ops": ops, f"{name}.{REFCOUNT}": 1})

    index = slab_index(machine.prog, machine.memory)
    found = find_embedded(index, [DMA_FENCE])[DMA_FENCE]

    assert found.address.tolist() == [
        fence + offsetof(type_, "scheduled"),
        fence + offsetof(type_, "finished"),
    ]
    assert np.unique(found.container).tolist() == [fence]


class Gpu:
    """A virtio_gpu device, and its fences in a cache for objects of 128 bytes."""

    def __init__(self, machine: Machine, with_tracks: bool = False) -> None:
        self.machine, prog = machine, machine.prog
        self.slabs = slabs = Slabs(machine)
        if with_tracks:
            cache = slabs.cache(b"kmalloc-128", 128, 128 + 2 * 152, 3, flags=SLAB_STORE_USER)
        else:
            cache = slabs.cache(b"kmalloc-128", 128)
        self.with_tracks = with_tracks
        self.objects = iter(slabs.slab(cache))
        self.device = machine.new("struct virtio_gpu_device", {"fence_drv.last_seq.counter": 90})
        driver_type = prog.type("struct virtio_gpu_fence_driver")
        self.timeline = self.device + offsetof(prog.type("struct virtio_gpu_device"), "fence_drv")
        self.lock = self.timeline + offsetof(driver_type, "lock")
        self.emitted: List[int] = []
        driver = machine.new("struct drm_driver", {"name": machine.string(b"virtio_gpu")})
        self.drm = machine.new("struct drm_device", {"driver": driver, "dev_private": self.device})
        machine.put("struct virtio_gpu_device", self.device, {"ddev": self.drm})
        self.minor = machine.new("struct drm_minor", {"dev": self.drm})
        # The only entry of a radix tree, if it is the first, is in its root.
        machine.put("struct idr", machine.variable("drm_minors_idr"), {"idr_rt.rnode": self.minor})
        for name in ("filelist", "mode_config.fb_list", "mode_config.plane_list"):
            self.set_list(name, [])
        self.set_emitted([])

    def set_list(self, name: str, nodes: Sequence[int]) -> None:
        """One of the lists of the ``struct drm_device``."""
        head = offsetof(self.machine.prog.type("struct drm_device"), name)
        self.machine.link(self.drm + head, nodes)

    def set_emitted(self, fences: Sequence[int]) -> None:
        prog = self.machine.prog
        node = offsetof(prog.type("struct virtio_gpu_fence"), "node")
        head = offsetof(prog.type("struct virtio_gpu_fence_driver"), "fences")
        self.machine.link(self.timeline + head, [fence + node for fence in fences])

    def fence(self, seqno: int, refcount: int, flags: int = SIGNALED | TIMESTAMP) -> int:
        machine = self.machine
        fence = put_fence(
            machine,
            next(self.objects),
            {
                "f.lock": self.lock,
                "f.seqno": seqno,
                f"f.{REFCOUNT}": refcount,
                "f.flags": flags,
                "drv": self.timeline,
            },
        )
        if self.with_tracks:
            names = ("kmem_cache_alloc", "virtio_gpu_fence_alloc", "virtio_gpu_execbuffer_ioctl")
            stack = [machine.prog.symbol(name).address + 4 for name in (*names, "drm_ioctl")]
            track = fence + 128
            machine.put("struct track", track, {"addr": stack[0], "pid": 1458, "cpu": 1})
            machine.words(track + 8, stack)
        return fence


def test_the_device_its_list_and_its_framebuffers(machine: Machine) -> None:
    gpu, prog = Gpu(machine), machine.prog
    leaked = gpu.fence(17, 1)
    emitted = [gpu.fence(seqno, 2, 0) for seqno in (91, 92)]
    shown, known = gpu.fence(18, 1), gpu.fence(19, 1)
    gpu.set_emitted(emitted)
    framebuffer = machine.new("struct virtio_gpu_framebuffer", {"fence": shown})
    node = offsetof(prog.type("struct virtio_gpu_framebuffer"), "base.head")
    gpu.set_list("mode_config.fb_list", [framebuffer + node])
    syncobj = machine.new("struct drm_syncobj", {REFCOUNT: 1, "fence": known})
    handles = new_idr_node(machine, syncobj)
    file = machine.new("struct drm_file", {"syncobj_idr.idr_rt.rnode": handles})
    gpu.set_list("filelist", [file + offsetof(prog.type("struct drm_file"), "lhead")])

    result = fence_holders(slab_index(prog, machine.memory))

    assert result.gaps == ()
    every = sorted([leaked, *emitted, shown, known])
    assert result.fences.found.address.tolist() == every
    assert result.virtio_gpu.all()
    assert result.last_completed.tolist() == [90] * 5
    held: Dict[str, List[int]] = {}
    for holders in result.described.holders:
        held.setdefault(holders.kind, []).extend(holders.held.tolist())
    assert {kind: sorted(fences) for kind, fences in held.items() if fences} == {
        "driver": sorted(emitted),
        "plane": [shown],
        "syncobj": [known],
    }


def new_idr_node(machine: Machine, entry: int) -> int:
    """What an IDR has that gave out the ID 1, as handles begin."""
    node = machine.new("struct radix_tree_node", {"count": 1})
    slots = offsetof(machine.prog.type("struct radix_tree_node"), "slots")
    machine.words(node + slots + 8, [entry])
    return node | 1  # RADIX_TREE_INTERNAL_NODE


def test_the_reservation_object_of_a_gem_object_s_buffer(machine: Machine) -> None:
    """TTM has it; the GEM object itself has none before v5.2."""
    gpu, prog = Gpu(machine), machine.prog
    exclusive, *shared = (gpu.fence(seqno, 1) for seqno in (17, 18, 19))
    counts = {"shared_count": 2, "shared_max": 4}
    table = machine.new("struct reservation_object_list", counts, 16)
    slots = offsetof(prog.type("struct reservation_object_list"), "shared")
    machine.words(table + slots, shared)
    gem = machine.new(
        "struct virtio_gpu_object",
        {"tbo.ttm_resv.fence_excl": exclusive, "tbo.ttm_resv.fence": table},
    )
    resv = gem + offsetof(prog.type("struct virtio_gpu_object"), "tbo.ttm_resv")
    machine.put("struct virtio_gpu_object", gem, {"tbo.resv": resv})
    file = machine.new("struct drm_file", {"object_idr.idr_rt.rnode": new_idr_node(machine, gem)})
    gpu.set_list("filelist", [file + offsetof(prog.type("struct drm_file"), "lhead")])

    result = fence_holders(slab_index(prog, machine.memory))

    assert sorted(
        fence
        for holders in result.described.holders
        if holders.kind == "reservation"
        for fence in holders.held.tolist()
    ) == sorted([exclusive, *shared])
    assert run_analysis(machine).findings == ()


# The whole analysis.


def run_analysis(machine: Machine, complete: bool = True) -> Report:
    release = Evidence("kernel_release", Kind.UNTRUSTED, "4.19.90")
    target = Target(machine.prog, machine.memory, (release,), DebugInfo(vmlinux_loaded=True))
    report = run(target, [ANALYSIS], {}, limit=None, progress=lambda items, what, total: items)
    assert report.complete == complete, report.analyses[0].reason
    return report


def test_leaked_fences_are_proven_and_named(machine: Machine) -> None:
    """The first case: kmalloc-128 of arm64 fills with fences of execbuffers."""
    gpu = Gpu(machine, with_tracks=True)
    leaked = [gpu.fence(seqno, 1) for seqno in range(40)]
    # The device has it, and the ioctl has not put it.
    both = gpu.fence(91, 2, 0)
    gpu.set_emitted([both])
    gpu.fence(50, 0)  # being freed

    report = run_analysis(machine)

    (finding,) = report.findings
    evidence = {item.name: item.value for item in finding.evidence}
    assert (finding.rule.id, finding.confidence) == ("VT201", Confidence.PROVEN)
    assert evidence["references_leaked"] == evidence["references_proven"] == len(leaked) + 1
    assert evidence["objects_only_leaked"] == len(leaked)
    assert evidence["cache"] == "kmalloc-128"
    assert evidence["allocating_function"] == "virtio_gpu_execbuffer_ioctl"
    assert evidence["allocating_pids"] == (1458,)
    (issue,) = finding.known_issues
    assert issue.id == "virtio-gpu-execbuffer-fence"
    # Vendors took the cause back to v4.19.
    assert issue.this_kernel is not None
    assert issue.this_kernel.startswith("older than the issue")


def test_held_and_emitted_and_freed_fences_are_no_leak(machine: Machine) -> None:
    gpu = Gpu(machine)
    emitted = [gpu.fence(seqno, 1, 0) for seqno in (91, 92)]
    gpu.set_emitted(emitted)
    gpu.fence(50, 0)
    shown = gpu.fence(18, 1)
    framebuffer = machine.new("struct virtio_gpu_framebuffer", {"fence": shown})
    node = offsetof(machine.prog.type("struct virtio_gpu_framebuffer"), "base.head")
    gpu.set_list("mode_config.fb_list", [framebuffer + node])

    assert run_analysis(machine).findings == ()


@pytest.mark.parametrize("count", [-1, -5, -(1 << 31), 0x7FFFFFFF])
def test_a_count_that_none_can_be_leaks_nothing(machine: Machine, count: int) -> None:
    gpu = Gpu(machine)
    fence = gpu.fence(17, count)
    report = run_analysis(machine, complete=False)
    assert report.findings == ()
    (gap,) = report.analyses[0].gaps
    assert (gap.count, gap.material) == (1, True)
    (row,) = report.analyses[0].tables[0].rows
    assert (row.address, row.refcount) == (fence, count)


def test_a_saturated_count_is_said_to_be(machine: Machine) -> None:
    gpu = Gpu(machine)
    gpu.fence(17, 0xC0000000)
    (finding,) = run_analysis(machine).findings
    evidence = {item.name: item.value for item in finding.evidence}
    assert (finding.rule.id, evidence["objects_saturated"]) == ("VT203", 1)


def test_what_somebody_unknown_points_at_is_not_called_leaked(machine: Machine) -> None:
    gpu = Gpu(machine)
    machine.words(machine.alloc(8), [gpu.fence(17, 1)])
    assert "VT201" not in [finding.rule.id for finding in run_analysis(machine).findings]


def test_a_list_with_more_fences_than_it_has_room_for_holds_nothing(machine: Machine) -> None:
    """What stands behind it would be taken for its fences."""
    gpu, prog = Gpu(machine), machine.prog
    fences = [gpu.fence(seqno, 1) for seqno in (17, 18)]
    counts = {"shared_count": 2, "shared_max": 1}
    table = machine.new("struct reservation_object_list", counts, 16)
    slots = offsetof(prog.type("struct reservation_object_list"), "shared")
    machine.words(table + slots, fences)
    reservation = machine.new("struct reservation_object", {"fence": table})
    held = reserved_fences(prog, [reservation])
    assert (held.fence.tolist(), held.unread) == ([], (table,))
