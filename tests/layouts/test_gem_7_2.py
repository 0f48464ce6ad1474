# SPDX-License-Identifier: LGPL-2.1-or-later
"""GEM objects of v7.2: commands in flight, and framebuffers that count as handles."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

import numpy as np
import pytest
from drgn import Object, Program, offsetof, sizeof

from tests.layouts.machine import Machine, Value
from tests.layouts.slabs import Slabs
from tests.layouts.test_fences_7_2 import NOTE
from vmcore_tools.gem_findings import GemAudit, dangling
from vmcore_tools.kernel.audit import Audit, Verdict, audit
from vmcore_tools.kernel.gem_holders import gem_holders
from vmcore_tools.kernel.id_slots import xarray_slots
from vmcore_tools.kernel.slab import slab_index
from vmcore_tools.kernel.virtio_gpu_objects import (
    command_objects,
    is_left_over,
    object_layout,
    pages_in_memory,
)
from vmcore_tools.model import Confidence, Finding

COUNT = "refcount.refcount.refs.counter"
GEM, ARRAY = "struct drm_gem_object", "struct virtio_gpu_object_array"
VBUFFER = "struct virtio_gpu_vbuffer"
RING_SIZE = 8


class Gpu:
    """A virtio_gpu device with a client, and its objects in kmalloc-512."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        slabs = Slabs(machine)
        self.objects = iter(slabs.slab(slabs.cache(b"kmalloc-512", 512, order=3)))
        self.arrays = iter(slabs.slab(slabs.cache(b"kmalloc-64", 64)))
        vbufs = slabs.cache(b"virtio-gpu-vbufs", 256)
        self.vbuffers = iter(slabs.slab(vbufs))
        self.device = machine.new("struct virtio_gpu_device", {"vbufs": vbufs.address})
        driver = machine.new("struct drm_driver", {"name": machine.string(b"virtio_gpu")})
        manager = machine.new("struct drm_vma_offset_manager", {})
        self.drm = machine.new(
            "struct drm_device",
            {"driver": driver, "dev_private": self.device, "vma_offset_manager": manager},
        )
        minor = machine.new("struct drm_minor", {"dev": self.drm})
        machine.put("struct xarray", machine.variable("drm_minors_xa"), {"xa_head": minor})
        self.file = machine.new("struct drm_file", {})
        self.link("filelist", [self.file + self.offset("struct drm_file", "lhead")])
        for name in ("filelist_internal", "mode_config.fb_list", "mode_config.plane_list"):
            self.link(name, [])
        self.answered([])
        machine.link(self.device + self.offset("struct virtio_gpu_device", "fence_drv.fences"))
        self.queues({})

    def offset(self, type_name: str, member: str) -> int:
        return offsetof(self.machine.prog.type(type_name), member)

    def link(self, name: str, nodes: Sequence[int]) -> None:
        self.machine.link(self.drm + self.offset("struct drm_device", name), nodes)

    def object(self, refcount: int, handles: int, members: Dict[str, Value]) -> int:
        address = next(self.objects)
        return self.machine.put(
            GEM,
            address,
            {
                COUNT: refcount,
                "handle_count": handles,
                "dev": self.drm,
                "size": 4096,
                "resv": address + self.offset(GEM, "_resv"),
                "funcs": self.machine.variable("virtio_gpu_shmem_funcs"),
                **members,
            },
        )

    def handles(self, gems: Dict[int, int]) -> None:
        node = self.machine.new("struct xa_node", {"count": len(gems)})
        for handle, gem in gems.items():
            slot = node + self.offset("struct xa_node", "slots") + 8 * handle
            self.machine.words(slot, [gem])
        members: Dict[str, Value] = {"object_idr.idr_rt.xa_head": node | 2}
        self.machine.put("struct drm_file", self.file, members)

    def array(self, gems: Sequence[int]) -> int:
        address = self.machine.put(
            ARRAY, next(self.arrays), {"nents": len(gems), "total": len(gems)}
        )
        self.machine.words(address + self.offset(ARRAY, "objs"), gems)
        return address

    def command(self, array: int) -> int:
        address = next(self.vbuffers)
        behind = address + sizeof(self.machine.prog.type(VBUFFER))
        return self.machine.put(VBUFFER, address, {"buf": behind, "objs": array})

    def queues(self, commands: Dict[int, int]) -> None:
        """The commands in the control queue, by their descriptors; the cursor's is empty."""
        machine = self.machine
        state = "struct vring_desc_state_split"
        size = sizeof(machine.prog.type(state))
        states = machine.alloc(size * RING_SIZE)
        for head, command in commands.items():
            machine.put(state, states + size * head, {"data": command})
        empty = machine.alloc(size * RING_SIZE)
        rings = [self._ring(states, list(commands)), self._ring(empty, [])]
        members: Dict[str, Value] = {"ctrlq.vq": rings[0], "cursorq.vq": rings[1]}
        machine.put("struct virtio_gpu_device", self.device, members)

    def _ring(self, states: int, heads: List[int]) -> int:
        machine = self.machine
        memory = machine.alloc(0x200)
        available = b"".join(head.to_bytes(2, "little") for head in heads)
        machine.write(memory, bytes(2) + len(heads).to_bytes(2, "little") + available)
        return machine.new(
            "struct vring_virtqueue",
            {
                "split.vring.num": RING_SIZE,
                "split.vring.avail": memory,
                "split.vring.used": memory + 0x100,
                "split.desc_state": states,
                "vq.num_free": RING_SIZE - len(heads),
            },
        )

    def answered(self, arrays: Sequence[int]) -> None:
        head = self.device + self.offset("struct virtio_gpu_device", "obj_free_list")
        self.machine.link(head, [array + self.offset(ARRAY, "next") for array in arrays])

    def show(
        self, framebuffers: Sequence[Tuple[int, int, int]], funcs: str = "virtio_gpu_fb_funcs"
    ) -> None:
        """
        :param framebuffers: object, reference count and flags of each
        """
        machine, nodes = self.machine, []
        for gem, count, flags in framebuffers:
            members: Dict[str, Value] = {
                f"base.{COUNT}": count,
                "internal_flags": flags,
                "funcs": machine.variable(funcs),
            }
            framebuffer = machine.new("struct drm_framebuffer", members)
            machine.words(framebuffer + self.offset("struct drm_framebuffer", "obj"), [gem])
            nodes.append(framebuffer + self.offset("struct drm_framebuffer", "head"))
        self.link("mode_config.fb_list", nodes)

    def dangling(self) -> List[Finding]:
        index = slab_index(self.machine.prog, self.machine.memory)
        holders = gem_holders(index)
        audited = audit(index, holders.described, lambda items, what, total: items)
        # No CPU of this machine has its registers in the dump.
        audited = dataclasses.replace(audited, registers_unread=0)
        pages = np.zeros(len(audited.verdict), dtype=np.int64)
        return list(dangling(index, GemAudit(holders, audited, pages)))

    def audit(self) -> Audit:
        index = slab_index(self.machine.prog, self.machine.memory)
        found = gem_holders(index)
        assert found.gaps == ()
        return audit(index, found.described, lambda items, what, total: items)

    def verdicts(self) -> Dict[int, Verdict]:
        index = slab_index(self.machine.prog, self.machine.memory)
        gems = gem_holders(index).gems.address.tolist()
        return {gem: Verdict(int(verdict)) for gem, verdict in zip(gems, self.audit().verdict)}


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[Gpu]:
    machine = Machine("gem_7_2.c", tmp_path, "7.2.13", NOTE)
    yield Gpu(machine)
    machine.close()


def test_commands_hold_what_they_use(gpu: Gpu) -> None:
    """Who holds references onto these buffers now? The array of the command in flight."""
    flying, answered, queued = (gpu.object(1, 0, {}) for _ in range(3))
    both, unheld = gpu.object(3, 1, {}), gpu.object(1, 1, {})
    gpu.handles({1: both, 2: unheld})
    commands = [gpu.command(gpu.array(gems)) for gems in ([flying, both], [unheld], [queued])]
    gpu.queues({0: commands[0], 3: commands[1]})
    # That of a command that was taken off, and which a worker has still to drop.
    gpu.answered([gpu.array([answered, both])])
    assert gpu.verdicts() == {
        flying: Verdict.EXPLAINED,
        answered: Verdict.EXPLAINED,
        # A task is about to queue it, or has just taken it off.
        queued: Verdict.EXPLAINED,
        both: Verdict.EXPLAINED,
        unheld: Verdict.DANGLING,
    }
    index = slab_index(gpu.machine.prog, gpu.machine.memory)
    device = Object(gpu.machine.prog, "struct virtio_gpu_device *", value=gpu.device)
    found = command_objects(index, device)
    assert found is not None and found.gaps == ()
    assert sorted(found.in_flight.gem.tolist()) == sorted([flying, both, unheld])
    assert found.in_flight.owner.tolist() == [commands[0], commands[0], commands[1]]
    assert sorted(found.answered.gem.tolist()) == sorted([answered, both])
    assert found.passing.gem.tolist() == [queued]


def test_an_array_with_more_objects_than_it_has_room_for_is_counted(gpu: Gpu) -> None:
    gem = gpu.object(1, 0, {})
    array = gpu.array([gem])
    gpu.machine.put(ARRAY, array, {"nents": 2})
    gpu.queues({0: gpu.command(array)})
    index = slab_index(gpu.machine.prog, gpu.machine.memory)
    found = gem_holders(index)
    assert [gap[2] for gap in found.gaps] == [array]
    assert len(found.commands.gem) == 0


def test_what_an_array_left_behind(gpu: Gpu) -> None:
    prog: Program = gpu.machine.prog
    gem = gpu.object(1, 0, {})
    array, other = gpu.array([gem]), gpu.array([gem])
    gpu.machine.put(ARRAY, other, {"nents": 0xFFFF8880, "total": 7})
    offset = gpu.offset(ARRAY, "objs")
    assert not is_left_over(prog, array, 64, offset)
    assert is_left_over(prog, other, 64, offset)
    assert not is_left_over(prog, other, 64, offset - 8)
    # list_del() of the worker that dropped it.
    gpu.machine.put(ARRAY, array, {"next.prev": 0xDEAD000000000122})
    assert is_left_over(prog, array, 64, offset)
    # Somebody else's array of objects, in a larger cache.
    assert not is_left_over(prog, other, 512, offset)


def test_a_framebuffer_counts_as_a_handle(gpu: Gpu) -> None:
    # Since v6.16: one reference of the framebuffer's, and one of its handle.
    shown, old, lost = gpu.object(2, 1, {}), gpu.object(1, 0, {}), gpu.object(1, 1, {})
    # drm_gem_fb_destroy() drops the reference, and then the handle.
    dying, dropped, gone = gpu.object(2, 1, {}), gpu.object(1, 1, {}), gpu.object(1, 0, {})
    leaked = gpu.object(3, 1, {})
    framebuffers = [(shown, 1, 1), (old, 1, 0), (lost, 1, 1)]
    framebuffers += [(gem, 0, 1) for gem in (dying, dropped, gone, leaked)]
    gpu.show(framebuffers)
    expected = dict.fromkeys([shown, old, dying, dropped, gone], Verdict.EXPLAINED)
    assert gpu.verdicts() == {**expected, lost: Verdict.DANGLING, leaked: Verdict.LEAKED}


def test_framebuffers_of_a_driver_with_one_reference_for_all(gpu: Gpu) -> None:
    """i915's: two of an object, and a second plane, with the intel_frontbuffer's reference."""
    shown, leaked = gpu.object(1, 0, {}), gpu.object(3, 0, {})
    gpu.show([(shown, 1, 0), (shown, 1, 0), (leaked, 1, 0)], "intel_fb_funcs")
    assert gpu.verdicts() == {shown: Verdict.EXPLAINED, leaked: Verdict.LEAKED}
    gpu.show([(shown, 1, 0), (shown, 1, 0)], "virtio_gpu_fb_funcs")
    assert gpu.verdicts()[shown] == Verdict.DANGLING


def test_too_few_references_prove_nothing_where_the_driver_is_not_known(gpu: Gpu) -> None:
    driver = gpu.machine.new("struct drm_driver", {"name": gpu.machine.string(b"amdgpu")})
    shown = gpu.object(1, 0, {})
    gpu.show([(shown, 1, 0), (shown, 1, 0)])
    (known,) = gpu.dangling()
    assert (known.rule.id, known.confidence, known.unread) == ("VT414", Confidence.PROVEN, ())
    gpu.machine.put("struct drm_device", gpu.drm, {"driver": driver})
    (found,) = gpu.dangling()
    assert (found.rule.id, found.confidence) == ("VT414", Confidence.SUSPECTED)
    assert any("amdgpu" in unread for unread in found.unread)


def test_objects_of_an_accelerator(gpu: Gpu) -> None:
    machine = gpu.machine
    gem, lost = (
        gpu.object(1, 1, {}),
        gpu.object(1, 0, {"dev": machine.new("struct drm_device", {})}),
    )
    gpu.handles({1: gem})
    minor = machine.new("struct drm_minor", {"dev": gpu.drm})
    machine.put("struct xarray", machine.variable("drm_minors_xa"), {"xa_head": 0})
    found = gem_holders(slab_index(machine.prog, machine.memory))
    assert sorted(found.without_device.tolist()) == sorted([gem, lost])
    machine.put("struct xarray", machine.variable("accel_minors_xa"), {"xa_head": minor})
    machine.prog.cache.clear()
    found = gem_holders(slab_index(machine.prog, machine.memory))
    assert found.without_device.tolist() == [lost]
    assert (found.handles.gem.tolist(), len(found.devices)) == ([gem], 1)


def test_the_console_s_buffer(gpu: Gpu) -> None:
    machine = gpu.machine
    gem, leaked = gpu.object(1, 0, {}), gpu.object(1, 0, {})
    buffer = machine.new("struct drm_client_buffer", {"gem": gem})
    helper = machine.new("struct drm_fb_helper", {"buffer": buffer})
    machine.put("struct drm_device", gpu.drm, {"fb_helper": helper})
    assert gpu.verdicts() == {gem: Verdict.EXPLAINED, leaked: Verdict.LEAKED}


def test_trees_of_the_mmap_offsets_hold_nothing(gpu: Gpu) -> None:
    machine = gpu.machine
    node = gpu.offset(GEM, "vma_node.vm_node")
    first, second = (gpu.object(1, 0, {}) for _ in range(2))
    machine.words(first + node + 32, [second + node + 32])
    machine.words(second + node + 32, [first + node + 32])
    # The memory behind such a note is what was left there.
    note = next(gpu.arrays)
    machine.put(GEM, first, {"vma_node.vm_files.rb_node": note})
    machine.words(note + 48, [second])
    assert set(gpu.verdicts().values()) == {Verdict.LEAKED}


@pytest.mark.parametrize("larger", [False, True])
def test_what_is_not_where_such_a_note_is_may_hold_something(gpu: Gpu, larger: bool) -> None:
    first, second = (gpu.object(1, 0, {}) for _ in range(2))
    stray = next(gpu.objects) if larger else next(gpu.arrays) + 8
    gpu.machine.put(GEM, first, {"vma_node.vm_files.rb_node": stray})
    gpu.machine.words(stray + 48, [second])
    assert gpu.verdicts() == {first: Verdict.LEAKED, second: Verdict.UNKNOWN_HOLDER}


def test_pages_and_xarrays(gpu: Gpu) -> None:
    prog = gpu.machine.prog
    gems = [gpu.object(1, 0, {}) for _ in range(2)]
    type_ = "struct virtio_gpu_object"
    gpu.machine.put(type_, gems[1], {"base.pages": gems[0]})
    layout = object_layout(prog, "virtio_gpu")
    assert layout is not None
    there, read = pages_in_memory(prog, layout, np.array(gems, dtype=np.uint64))
    assert (there.tolist(), read.tolist()) == ([False, True], [True, True])
    only = gpu.machine.new("struct xarray", {"xa_head": gems[0]})
    found = xarray_slots(Object(prog, "struct xarray", address=only))
    assert (found.id.tolist(), found.entry.tolist()) == ([0], [gems[0]])
    head = gpu.offset("struct xarray", "xa_head")
    assert found.word.tolist() == [only + head]
