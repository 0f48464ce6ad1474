# SPDX-License-Identifier: LGPL-2.1-or-later
"""The structures of linux_4_19.c against those of a real 4.19 kernel."""

from __future__ import annotations

import re
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

import pytest
from drgn import Program, Type, sizeof

from tests.layouts.machine import HERE, Machine

TABLE = HERE / "linux-4.19-arm64.md"


class Member(NamedTuple):
    offset: int
    size: Optional[int]  #: None for an array with no length
    name: str
    bits: Optional[int]


class Structure(NamedTuple):
    size: int
    members: List[Member]


def read_table(text: str) -> Dict[str, Structure]:
    """Structure's name to what the table says of it."""
    found: Dict[str, Structure] = {}
    for part in text.split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        match = re.fullmatch(r"(struct \w+) \((\d+) bytes.*\)", heading)
        assert match, heading
        members = []
        for line in body.splitlines():
            row = re.match(r"\| (\d+) \| (\d+|\?) \| (\w+)(?::(\d+))? \|", line)
            if row:
                offset, size, name, bits = row.groups()
                members.append(
                    Member(
                        int(offset),
                        None if size == "?" else int(size),
                        name,
                        int(bits) if bits else None,
                    )
                )
        found[match.group(1)] = Structure(int(match.group(2)), members)
    return found


STRUCTURES = read_table(TABLE.read_text(encoding="utf-8"))

#: What the walkers read of a 4.19 kernel.
WRITTEN_OUT = (
    "struct completion",
    "struct delayed_work",
    "struct dma_buf",
    "struct dma_buf_attachment",
    "struct dma_fence",
    "struct dma_fence_array",
    "struct dma_fence_cb",
    "struct dma_fence_ops",
    "struct drm_file",
    "struct drm_gem_object",
    "struct drm_prime_file_private",
    "struct drm_syncobj",
    "struct kmem_cache",
    "struct kmem_cache_cpu",
    "struct kmem_cache_node",
    "struct kmemleak_object",
    "struct mutex",
    "struct page",
    "struct per_cpu_pages",
    "struct per_cpu_pageset",
    "struct pool_workqueue",
    "struct printk_log",
    "struct reservation_object",
    "struct reservation_object_list",
    "struct rw_semaphore",
    "struct swait_queue_head",
    "struct sync_file",
    "struct track",
    "struct ttm_bo_global",
    "struct ttm_buffer_object",
    "struct virtio_gpu_device",
    "struct virtio_gpu_fence",
    "struct virtio_gpu_fence_driver",
    "struct virtio_gpu_fpriv",
    "struct virtio_gpu_framebuffer",
    "struct virtio_gpu_object",
    "struct virtio_gpu_queue",
    "struct virtio_gpu_vbuffer",
    "struct vring_virtqueue",
    "struct wait_queue_head",
    "struct work_struct",
    "struct worker",
    "struct worker_pool",
    "struct workqueue_struct",
    "struct wq_barrier",
    "struct wq_flusher",
)


#: With members that nobody asks for only as room.
WRITTEN_OUT_IN_PART = ("struct rq", "struct task_struct")


@pytest.fixture(scope="module")
def prog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    machine = Machine("linux_4_19.c", tmp_path_factory.mktemp("linux"), "4.19.90")
    yield machine.prog
    machine.close()


def members_of(type_: Type, base_bits: int = 0) -> Iterator[Tuple[str, int, Type, Optional[int]]]:
    """Name, offset in bits, type and width of a bit field, of anonymous members' too."""
    for member in type_.members or ():
        at = base_bits + member.bit_offset
        if member.name is None:
            yield from members_of(member.type, at)
        else:
            yield member.name, at, member.type, member.bit_field_size


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_the_members_are_where_a_real_kernel_has_them(prog: Program, name: str) -> None:
    known = STRUCTURES[name]
    type_ = prog.type(name)
    assert sizeof(type_) == known.size
    written = {
        member: (bits // 8, None if width else member_type, width)
        for member, bits, member_type, width in members_of(type_)
    }
    assert set(written) == {member.name for member in known.members}
    for member in known.members:
        offset, member_type, width = written[member.name]
        assert (member.name, offset, width) == (member.name, member.offset, member.bits)
        if member_type is not None and member.size is not None:
            assert (member.name, sizeof(member_type)) == (member.name, member.size)


@pytest.mark.parametrize("name", WRITTEN_OUT_IN_PART)
def test_the_members_that_are_asked_for_are_where_a_real_kernel_has_them(
    prog: Program, name: str
) -> None:
    known = STRUCTURES[name]
    type_ = prog.type(name)
    assert sizeof(type_) == known.size
    written = {
        member: (bits // 8, None if width else sizeof(member_type))
        for member, bits, member_type, width in members_of(type_)
    }
    for member in known.members:
        offset, size = written[member.name]
        assert (member.name, offset) == (member.name, member.offset)
        assert size is None or (member.name, size) == (member.name, member.size)


def test_all_of_the_table_is_read() -> None:
    assert {*WRITTEN_OUT, *WRITTEN_OUT_IN_PART} == set(STRUCTURES)
    assert len(STRUCTURES) == TABLE.read_text(encoding="utf-8").count("\n## ")
    assert all(structure.members for structure in STRUCTURES.values())
    assert STRUCTURES["struct dma_fence"].members[6] == Member(64, 4, "seqno", None)
    assert STRUCTURES["struct printk_log"].members[-1] == Member(15, 1, "level", 3)
