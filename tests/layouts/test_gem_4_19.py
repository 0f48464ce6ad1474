# SPDX-License-Identifier: LGPL-2.1-or-later
"""GEM objects of v4.19: no operations of their own, on TTM, with handles in a radix tree."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator, List, Sequence

import numpy as np
import pytest
from drgn import Object, offsetof

from drgn_scripts.gem_objects import ttm_rows
from tests.layouts.machine import Machine, Value
from tests.layouts.slabs import Slabs
from vmcore_tools.kernel.audit import Audit, Verdict, audit
from vmcore_tools.kernel.gem_holders import GemHolders, gem_holders
from vmcore_tools.kernel.id_slots import idr_slots
from vmcore_tools.kernel.slab import slab_index
from vmcore_tools.kernel.ttm import for_each_buffer, for_each_lru, ttm_buffers
from vmcore_tools.kernel.virtio_gpu_objects import object_layout, pages_in_memory

COUNT = "gem_base.refcount.refcount.refs.counter"
KREF = "tbo.kref.refcount.refs.counter"
LIST_KREF = "tbo.list_kref.refcount.refs.counter"
OBJECT, BUFFER = "struct virtio_gpu_object", "struct ttm_buffer_object"
PAGES = 0xFFFF888000300000


class Gpu:
    """A virtio_gpu device with one client, and its objects in kmalloc-1024."""

    def __init__(self, machine: Machine) -> None:
        self.machine, prog = machine, machine.prog
        slabs = Slabs(machine)
        self.objects = iter(slabs.slab(slabs.cache(b"kmalloc-1024", 1024, order=3)))
        self.shared = machine.new("struct ttm_bo_global", {})
        self.device = machine.new(
            "struct virtio_gpu_device", {"mman.bdev.glob": self.shared, "fence_drv.context": 1}
        )
        driver = machine.new("struct drm_driver", {"name": machine.string(b"virtio_gpu")})
        manager = machine.new("struct drm_vma_offset_manager", {})
        self.drm = machine.new(
            "struct drm_device",
            {"driver": driver, "dev_private": self.device, "vma_offset_manager": manager},
        )
        machine.put("struct virtio_gpu_device", self.device, {"ddev": self.drm})
        minor = machine.new("struct drm_minor", {"dev": self.drm})
        machine.put("struct idr", machine.variable("drm_minors_idr"), {"idr_rt.rnode": minor})
        self.file = machine.new("struct drm_file", {})
        drm_type = prog.type("struct drm_device")
        self.link("filelist", [self.file + offsetof(prog.type("struct drm_file"), "lhead")])
        for name in ("filelist_internal", "mode_config.fb_list", "mode_config.plane_list"):
            self.link(name, [])
        fence_list = offsetof(prog.type("struct virtio_gpu_device"), "fence_drv.fences")
        machine.link(self.device + fence_list)
        assert drm_type.has_member("object_name_idr")

    def link(self, name: str, nodes: Sequence[int]) -> None:
        head = self.drm + offsetof(self.machine.prog.type("struct drm_device"), name)
        self.machine.link(head, nodes)

    def object(self, refcount: int, handles: int, members: Dict[str, Value]) -> int:
        """What ``virtio_gpu_object_create()`` gives."""
        address = self.machine.put(
            OBJECT,
            next(self.objects),
            {
                COUNT: refcount,
                "gem_base.handle_count": handles,
                "gem_base.dev": self.drm,
                "gem_base.size": 4096,
                "tbo.num_pages": 1,
                KREF: 1,
                LIST_KREF: 1,
                **members,
            },
        )
        for name in ("lru", "swap", "ddestroy"):
            self.machine.link(self.at(address, f"tbo.{name}"))
        return address

    def at(self, address: int, member: str) -> int:
        return address + offsetof(self.machine.prog.type(OBJECT), member)

    def handles(self, gems: Dict[int, int]) -> Dict[int, int]:
        """Give the client handles, in a tree of two levels; where each pointer is."""
        machine = self.machine
        slots = offsetof(machine.prog.type("struct radix_tree_node"), "slots")
        root = machine.new("struct radix_tree_node", {"shift": 6})
        words = {}
        for number in sorted({handle >> 6 for handle in gems}):
            node = machine.new("struct radix_tree_node", {"shift": 0, "offset": number})
            machine.words(root + slots + 8 * number, [node | 1])
            for handle, gem in gems.items():
                if handle >> 6 == number:
                    words[handle] = node + slots + 8 * (handle & 63)
                    machine.words(words[handle], [gem])
        machine.put("struct drm_file", self.file, {"object_idr.idr_rt.rnode": root | 1})
        return words

    def walk(self) -> GemHolders:
        return gem_holders(slab_index(self.machine.prog, self.machine.memory))

    def audit(self) -> Audit:
        index = slab_index(self.machine.prog, self.machine.memory)
        return audit(index, gem_holders(index).described, lambda items, what, total: items)


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[Gpu]:
    machine = Machine("linux_4_19.c", tmp_path, "4.19.90")
    yield Gpu(machine)
    machine.close()


def verdicts(gpu: Gpu) -> Dict[int, Verdict]:
    gems = gpu.walk().gems.address.tolist()
    return {gem: Verdict(int(v)) for gem, v in zip(gems, gpu.audit().verdict)}


def test_handles_in_a_radix_tree(gpu: Gpu) -> None:
    first, second = (gpu.object(1, 1, {}) for _ in range(2))
    words = gpu.handles({1: first, 63: second, 64: second, 200: first})
    file = Object(gpu.machine.prog, "struct drm_file *", value=gpu.file)
    found = idr_slots(file.object_idr)
    assert found.unread == ()
    assert found.id.tolist() == [1, 63, 64, 200]
    assert found.entry.tolist() == [first, second, second, first]
    assert found.word.tolist() == [words[handle] for handle in (1, 63, 64, 200)]


def test_a_damaged_node_is_counted_and_the_others_are_walked(gpu: Gpu) -> None:
    gem = gpu.object(1, 1, {})
    gpu.handles({1: gem})
    prog = gpu.machine.prog
    file = Object(prog, "struct drm_file *", value=gpu.file)
    root = file.object_idr.idr_rt.rnode.value_() - 1
    slots = root + offsetof(prog.type("struct radix_tree_node"), "slots")
    # One that leads back to the root, and one that is in no memory.
    gpu.machine.words(slots + 8 * 5, [root | 1, 0xFFFF8880F0000001])
    found = idr_slots(file.object_idr)
    assert found.entry.tolist() == [gem]
    assert sorted(found.unread) == sorted([root, 0xFFFF8880F0000000])


def test_objects_are_found_by_their_device(gpu: Gpu) -> None:
    held, leaked = gpu.object(1, 1, {}), gpu.object(1, 0, {})
    gpu.handles({1: held})
    # A pointer to the device where no GEM object is.
    gpu.machine.words(next(gpu.objects) + 8, [gpu.drm])
    assert gpu.walk().gems.address.tolist() == sorted([held, leaked])
    assert gpu.walk().gaps == ()


def test_a_kernel_without_a_device(gpu: Gpu) -> None:
    gpu.object(1, 0, {})
    gpu.machine.put("struct idr", gpu.machine.variable("drm_minors_idr"), {"idr_rt.rnode": 0})
    found = gpu.walk()
    assert (len(found.gems.address), found.devices, found.gaps) == (0, (), ())
    assert len(gpu.audit().verdict) == 0


def test_verdicts_of_objects_on_ttm(gpu: Gpu) -> None:
    machine, prog = gpu.machine, gpu.machine.prog
    held, leaked, twice = gpu.object(1, 2, {}), gpu.object(1, 0, {}), gpu.object(3, 1, {})
    shown, ending = gpu.object(1, 0, {}), gpu.object(0, 0, {})
    missing = gpu.object(1, 1, {})
    gpu.handles({1: held, 64: held, 2: twice, 3: missing})
    framebuffers = []
    for gem in (shown, missing):
        members: Dict[str, Value] = {
            "base.base.refcount.refcount.refs.counter": 1,
            "base.funcs": machine.variable("virtio_gpu_fb_funcs"),
        }
        framebuffer = machine.new("struct virtio_gpu_framebuffer", members)
        array = offsetof(prog.type("struct virtio_gpu_framebuffer"), "base.obj")
        machine.words(framebuffer + array, [gem])
        node = offsetof(prog.type("struct virtio_gpu_framebuffer"), "base.head")
        framebuffers.append(framebuffer + node)
    gpu.link("mode_config.fb_list", framebuffers)
    assert verdicts(gpu) == {
        held: Verdict.EXPLAINED,
        leaked: Verdict.LEAKED,
        twice: Verdict.LEAKED,
        shown: Verdict.EXPLAINED,
        ending: Verdict.FREEING,
        missing: Verdict.DANGLING,
    }


def show(gpu: Gpu, gems: Sequence[int]) -> None:
    machine = gpu.machine
    type_ = machine.prog.type("struct drm_framebuffer")
    nodes = []
    for gem in gems:
        members: Dict[str, Value] = {
            "base.refcount.refcount.refs.counter": 1,
            "funcs": machine.variable("virtio_gpu_fb_funcs"),
        }
        framebuffer = machine.new("struct drm_framebuffer", members)
        machine.words(framebuffer + offsetof(type_, "obj"), [gem])
        nodes.append(framebuffer + offsetof(type_, "head"))
    gpu.link("mode_config.fb_list", nodes)


def test_a_framebuffer_with_a_handle_and_no_reference(gpu: Gpu) -> None:
    """As kernels have it that took only the first of two backports from v6.16."""
    handled, alone, twice = gpu.object(1, 2, {}), gpu.object(1, 1, {}), gpu.object(1, 2, {})
    # What neither backport's kernel has: too few references for the framebuffer's own.
    missing = gpu.object(1, 1, {})
    leaked = gpu.object(2, 1, {})
    gpu.handles({1: handled, 2: missing})
    show(gpu, [handled, alone, twice, twice, missing, leaked])
    assert verdicts(gpu) == {
        handled: Verdict.EXPLAINED,
        alone: Verdict.EXPLAINED,
        twice: Verdict.EXPLAINED,
        missing: Verdict.DANGLING,
        leaked: Verdict.LEAKED,
    }


def test_lists_of_ttm_hold_no_gem_object(gpu: Gpu) -> None:
    """Daniel Vetter's question: here the list keeps memory, by a count of its own."""
    machine, prog = gpu.machine, gpu.machine.prog
    leaked: List[int] = [gpu.object(1, 0, {}) for _ in range(3)]
    lru = gpu.device + offsetof(prog.type("struct virtio_gpu_device"), "mman.bdev.man[1].lru[2]")
    swap = gpu.shared + offsetof(prog.type("struct ttm_bo_global"), "swap_lru[0]")
    machine.link(lru, [gpu.at(gem, "tbo.lru") for gem in leaked])
    machine.link(swap, [gpu.at(gem, "tbo.swap") for gem in leaked])
    assert set(verdicts(gpu).values()) == {Verdict.LEAKED}
    bdev = Object(prog, "struct virtio_gpu_device *", value=gpu.device).mman.bdev
    heads = [head.value_() for head in for_each_lru(bdev)]
    assert (len(heads), lru in heads) == (8 * 4, True)
    for head in heads:
        # The others are not initialised here.
        if head != lru:
            machine.link(head)
    found = [
        buffer.value_() for head in for_each_lru(bdev) for buffer in for_each_buffer(head, "lru")
    ]
    assert found == [gpu.at(gem, "tbo") for gem in leaked]


def test_what_somebody_unknown_points_at_is_not_called_leaked(gpu: Gpu) -> None:
    leaked, kept = (gpu.object(1, 0, {}) for _ in range(2))
    gpu.machine.words(gpu.machine.alloc(16), [gpu.at(kept, "tbo")])
    assert verdicts(gpu) == {leaked: Verdict.LEAKED, kept: Verdict.UNKNOWN_HOLDER}


def test_counts_of_ttm_buffers(gpu: Gpu) -> None:
    machine, prog = gpu.machine, gpu.machine.prog
    listed = gpu.object(1, 1, {KREF: 2, LIST_KREF: 3, "pages": PAGES})
    alone = gpu.object(1, 1, {})
    dying = gpu.object(0, 0, {KREF: 0, LIST_KREF: 1})
    swap = gpu.shared + offsetof(prog.type("struct ttm_bo_global"), "swap_lru[0]")
    machine.link(swap, [gpu.at(listed, "tbo.swap")])
    lru, destroyed = machine.alloc(16), machine.alloc(16)
    machine.link(lru, [gpu.at(listed, "tbo.lru")])
    machine.link(destroyed, [gpu.at(dying, "tbo.ddestroy")])
    gems = np.array([listed, alone, dying], dtype=np.uint64)
    found = ttm_buffers(prog, gems)
    assert found.read.all()
    assert found.address.tolist() == [gpu.at(gem, "tbo") for gem in gems.tolist()]
    assert found.kref.tolist() == [2, 1, 0]
    assert found.list_kref.tolist() == found.list_holders.tolist() == [3, 1, 1]
    assert (found.in_lru.tolist(), found.ending.tolist()) == (
        [True, False, False],
        [False, False, True],
    )
    rows = {row.gem_object: row for row in ttm_rows(prog, gpu.walk())}
    assert sorted(rows) == gems.tolist()
    assert (rows[listed].list_kref, rows[listed].list_holders, rows[listed].kref) == (3, 3, 2)
    assert (rows[listed].can_be_swapped, rows[dying].being_destroyed) == (True, True)
    layout = object_layout(prog, "virtio_gpu")
    assert layout is not None
    there, read = pages_in_memory(prog, layout, gems)
    assert (there.tolist(), read.all()) == ([True, False, False], True)
