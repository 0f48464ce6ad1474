# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Fences of v4.19 in slab memory: the reference count at the front, 32 bits of seqno.

As on arm64, where the smallest kmalloc cache has 128 bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator, List

import numpy as np
import pytest
from drgn import offsetof

from tests.layouts.machine import Machine, Value
from tests.layouts.slabs import Slabs
from vmcore_tools.kernel.dma_fence import DMA_FENCE, by_name, fences, with_callbacks
from vmcore_tools.kernel.fence_holders import fence_holders
from vmcore_tools.kernel.slab import slab_index
from vmcore_tools.kernel.typed_objects import find_embedded

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


def test_the_device_its_list_and_its_framebuffers(machine: Machine) -> None:
    prog = machine.prog
    slabs = Slabs(machine)
    objects = iter(slabs.slab(slabs.cache(b"kmalloc-128", 128)))
    fence_type = prog.type("struct virtio_gpu_fence")
    device = machine.new("struct virtio_gpu_device", {"fence_drv.last_seq.counter": 90})
    timeline = device + offsetof(prog.type("struct virtio_gpu_device"), "fence_drv")
    driver_type = prog.type("struct virtio_gpu_fence_driver")
    members: Dict[str, Value] = {
        "f.lock": timeline + offsetof(driver_type, "lock"),
        "drv": timeline,
    }
    driver = machine.new("struct drm_driver", {"name": machine.string(b"virtio_gpu")})
    drm = machine.new("struct drm_device", {"driver": driver, "dev_private": device})
    machine.put("struct virtio_gpu_device", device, {"ddev": drm})
    minor = machine.new("struct drm_minor", {"dev": drm})
    # The only entry of a radix tree, if it is the first, is in its root.
    machine.put("struct idr", machine.variable("drm_minors_idr"), {"idr_rt.rnode": minor})

    signaled: Dict[str, Value] = {f"f.{REFCOUNT}": 1, "f.flags": SIGNALED, **members}
    leaked = put_fence(machine, next(objects), {"f.seqno": 17, **signaled})
    emitted = [
        put_fence(machine, next(objects), {"f.seqno": seqno, f"f.{REFCOUNT}": 2, **members})
        for seqno in (91, 92)
    ]
    shown = put_fence(machine, next(objects), {"f.seqno": 18, **signaled})
    known = put_fence(machine, next(objects), {"f.seqno": 19, **signaled})
    node = offsetof(fence_type, "node")
    machine.link(timeline + offsetof(driver_type, "fences"), [fence + node for fence in emitted])
    framebuffer = machine.new("struct virtio_gpu_framebuffer", {"fence": shown})
    syncobj = machine.new("struct drm_syncobj", {REFCOUNT: 1, "fence": known})
    # Handles begin at 1: the entry is in a node.
    handles = machine.new("struct radix_tree_node", {"count": 1})
    slots = offsetof(prog.type("struct radix_tree_node"), "slots")
    machine.words(handles + slots + 8, [syncobj])
    file = machine.new("struct drm_file", {"syncobj_idr.idr_rt.rnode": handles | 1})
    drm_type = prog.type("struct drm_device")
    lists = {
        "filelist": [file + offsetof(prog.type("struct drm_file"), "lhead")],
        "mode_config.fb_list": [
            framebuffer + offsetof(prog.type("struct virtio_gpu_framebuffer"), "base.head")
        ],
        "mode_config.plane_list": [],
    }
    for name, nodes in lists.items():
        machine.link(drm + offsetof(drm_type, name), nodes)

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
