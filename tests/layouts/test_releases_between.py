# SPDX-License-Identifier: LGPL-2.1-or-later
"""What releases between those of the other tests have each for a while, on v4.19's machine."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Iterator

import numpy as np
import pytest
from drgn import offsetof, sizeof

from tests.layouts.machine import DIRECT_MAP, PAGE, Machine
from tests.layouts.slabs import Slabs, allocated, page_struct
from vmcore_tools.kernel.page import PageClass, page_index
from vmcore_tools.kernel.printk import LogRecord, log_records
from vmcore_tools.kernel.slab import slab_index


@contextlib.contextmanager
def machine_of(folder: Path, release: str, option: str, *note: str) -> Iterator[Machine]:
    machine = Machine("linux_4_19.c", folder, release, note, (option,))
    yield machine
    machine.close()


@pytest.fixture
def v4_15(tmp_path: Path) -> Iterator[Machine]:
    """``struct page`` before v4.18: its members in other unions, and no page_type."""
    # The kernel writes PAGE_BUDDY_MAPCOUNT_VALUE as it is.
    note = ("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-128", "NUMBER(PG_slab)=9")
    with machine_of(tmp_path, "4.15.0", "STRUCT_PAGE_4_15", *note) as machine:
        yield machine


def test_slabs_before_v4_18(v4_15: Machine) -> None:
    slabs = Slabs(v4_15)
    small = slabs.cache(b"kmalloc-128", 128)
    large = slabs.cache(b"kmalloc-1k", 1024, order=2)
    partial = slabs.slab(small, free=[5, 0, 31])
    of_cpu = slabs.slab(small, free=[7, 8], cpu=1)
    several_pages = slabs.slab(large, free=[15, 3])

    index = slab_index(v4_15.prog, v4_15.memory)

    assert index.objects.tolist() == [32, 32, 16]
    assert index.inuse.tolist() == [29, 32, 14]
    assert index.frozen.tolist() == [False, True, False]
    found = [
        address
        for batch in index.batches(np.arange(3))
        for address in batch.objects[batch.allocated].tolist()
    ]
    assert sorted(found) == sorted(
        allocated(partial, [5, 0, 31])
        + allocated(of_cpu, [7, 8])
        + allocated(several_pages, [15, 3])
    )
    assert index.problems == []


def test_pages_before_v4_18(v4_15: Machine) -> None:
    slabs = Slabs(v4_15)
    objects = slabs.slab(slabs.cache(b"kmalloc-1k", 1024, order=2))
    slab, free = (objects[0] - DIRECT_MAP) // PAGE, v4_15.alloc_pages(3)
    anonymous, driver = v4_15.alloc_pages(0), v4_15.alloc_pages(0)
    # __SetPageBuddy() sets _mapcount to -128; PAGE_KMEMCG_MAPCOUNT_VALUE is -512.
    v4_15.put("struct page", page_struct(free), {"_mapcount.counter": -128, "private": 3})
    used = {"_refcount.counter": 1}
    v4_15.put(
        "struct page",
        page_struct(anonymous),
        {**used, "_mapcount.counter": 0, "mapping": DIRECT_MAP | 1},
    )
    v4_15.put("struct page", page_struct(driver), {**used, "_mapcount.counter": -512})

    index = page_index(v4_15.prog, v4_15.memory)

    kinds = index.kind_of(np.array([*range(slab, slab + 4), *range(free, free + 8)]))
    assert kinds.tolist() == [PageClass.SLAB] * 4 + [PageClass.FREE] * 8
    assert index.kind_of(np.array([anonymous, driver])).tolist() == [
        PageClass.ANONYMOUS,
        PageClass.ALLOCATED,
    ]


def test_page_tables_of_v6_11(tmp_path: Path) -> None:
    """Types are bits of an enum, near the top, and what they are of is below."""
    note = ("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-1073741825", "NUMBER(PG_slab)=9")
    with machine_of(tmp_path, "6.11.0", "ENUM_PAGETYPE", *note) as machine:
        prog = machine.prog
        tables = [machine.alloc_pages(0) for _ in range(3)]
        hugetlb, free = machine.alloc_pages(0), machine.alloc_pages(1)
        for pfn, page_type in (*((pfn, 0x10000000) for pfn in tables), (hugetlb, 0x04000000)):
            members = {"page_type": 0xFFFFFFFF & ~page_type, "_refcount.counter": 1}
            machine.put("struct page", page_struct(pfn), members)
        members = {"page_type": 0xFFFFFFFF & ~0x40000000, "private": 1}
        machine.put("struct page", page_struct(free), members)
        number = prog.constant("NR_PAGETABLE").value_()
        machine.words(machine.variable("vm_zone_stat") + 8 * number, [3])
        pagesets = machine.alloc_per_cpu(sizeof(prog.type("struct per_cpu_pageset")))
        node = machine.new("struct pglist_data", {"nr_zones": 1})
        machine.put("struct zone", node, {"pageset": pagesets, "present_pages": 2048})
        machine.words(machine.variable("node_data"), [node])
        machine.words(machine.variable("node_states") + 8, [1])  # N_ONLINE

        index = page_index(prog, machine.memory)

        assert index.kind_of(np.array(tables)).tolist() == [PageClass.PAGE_TABLE] * 3
        assert index.kind_of(np.array([hugetlb, free, free + 1])).tolist() == [
            PageClass.ALLOCATED,
            PageClass.FREE,
            PageClass.FREE,
        ]


def test_who_wrote_a_message_from_v5_1_to_v5_9(tmp_path: Path) -> None:
    """With CONFIG_PRINTK_CALLER a record's header has 4 bytes more."""
    with machine_of(tmp_path, "5.4.0", "PRINTK_CALLER") as machine:
        type_ = machine.prog.type("struct printk_log")
        assert (sizeof(type_), offsetof(type_, "caller_id")) == (20, 16)
        data = b""
        for seq, (text, caller) in enumerate(((b"of a task", 1458), (b"of a CPU", 0x80000001))):
            size = -(-(20 + len(text)) // 4) * 4
            header = struct.pack("<QHHHBBI", seq, size, len(text), 0, 0, 2 | 6 << 5, caller)
            data += (header + text).ljust(size, b"\0")
        buffer = machine.alloc(512)
        machine.write(buffer, data)
        machine.set_variable("log_buf", buffer)
        machine.set_variable("log_buf_len", 512)
        machine.set_variable("log_next_idx", len(data))
        machine.set_variable("log_next_seq", 2)

        assert log_records(machine.prog) == [
            LogRecord(0, 0, 6, b"of a task", 1458),
            LogRecord(1, 1, 6, b"of a CPU", None, caller_cpu=1),
        ]
