# SPDX-License-Identifier: LGPL-2.1-or-later
"""
page_owner's records, in copies of the shipped dumps with records laid over them.

The guests of these dumps ran without page_owner. The lab compares the records of a
guest that had it with its own list of them (fixtures/check_kmemleak.py).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import pytest
from drgn import FaultError, offsetof
from drgn.helpers.linux.mmzone import nr_to_section

from drgn_scripts import slab_tracks
from drgn_scripts.slab_tracks import SlabsByOwner
from tests.dumps.conftest import ShippedDump
from vmcore_tools import runner, target
from vmcore_tools.kernel import page_owner, recorded_stacks
from vmcore_tools.kernel.page_owner import has_page_owner, page_owners
from vmcore_tools.kernel.slab import SlabIndex, slab_index
from vmcore_tools.model import Status

ENTRIES = 0xFFFFE90000000000  # where the kernel has nothing
OFFSET = 8
EARLY, UNKNOWN = 0x100, 0x999

Record = Tuple[bool, int, int, int]  # allocated, order, gfp_mask, handle


class Copy:
    """A copy of a dump whose kernel has page_owner on."""

    def __init__(self, dump: ShippedDump) -> None:
        self.target = target.open_core(dump.files.vmcore, dump.files.symbols)
        self.prog = self.target.prog
        self.type = self.prog.type("struct page_owner")
        self.size = OFFSET + self.type.size
        self.records: Dict[int, Record] = {}
        self.absent: set[int] = set()
        self.write(self.prog["page_owner_inited"].key.enabled.address_of_().value_(), 1, 4)
        self.write(self.prog["page_owner_ops"].offset.address_of_().value_(), OFFSET, 8)
        self.write(self.prog["page_ext_size"].address_, self.size, 8)
        self.write(self.prog.variable("early_handle", "page_owner.c").address_, EARLY, 4)
        index = slab_index(dump.target.prog, dump.target.memory)
        self.first = int(index.pfn[0])
        last = int(index.pfn[-1]) + 5000
        for number in range(self.section_of(self.first), self.section_of(last) + 1):
            section = nr_to_section(self.prog, number)
            # As if the record of page frame 0 were there: so the kernel has it.
            self.write(section.page_ext.address_of_().value_(), ENTRIES, 8)
        self.prog.add_memory_segment(ENTRIES, (last + 1) * self.size, self.read, False)

    def section_of(self, pfn: int) -> int:
        return pfn >> int(self.prog["SECTION_SIZE_BITS"] - self.prog["PAGE_SHIFT"])

    def write(self, address: int, value: int, size: int) -> None:
        data = value.to_bytes(size, "little")

        def read(_address: int, count: int, offset: int, _physical: bool) -> bytes:
            return data[offset : offset + count]

        self.prog.add_memory_segment(address, size, read, False)

    def read(self, address: int, count: int, offset: int, _physical: bool) -> bytes:
        page_size = self.target.memory.page_map.page_size_bytes
        for page in range(address // page_size, (address + count - 1) // page_size + 1):
            if page in self.absent:
                raise FaultError("not in the dump", page * page_size)
        first = offset // self.size
        last = (offset + count - 1) // self.size
        data = b"".join(self.entry(pfn) for pfn in range(first, last + 1))
        return data[offset - first * self.size :][:count]

    def entry(self, pfn: int) -> bytes:
        data = bytearray(self.size)
        allocated, order, gfp_mask, handle = self.records.get(pfn, (False, 0, 0, 0))
        names = ("PAGE_EXT_OWNER", "PAGE_EXT_OWNER_ALLOCATED")
        bits = [1 << self.prog.constant(name).value_() for name in names]
        data[:8] = (bits[0] | (bits[1] if allocated else 0)).to_bytes(8, "little")
        for name, value, size in (
            ("order", order, 2),
            ("gfp_mask", gfp_mask, 4),
            ("handle", handle, 4),
        ):
            at = OFFSET + offsetof(self.type, name)
            data[at : at + size] = value.to_bytes(size, "little")
        return bytes(data)

    def page_of(self, pfn: int) -> int:
        """Where the record of a page frame is, in pages."""
        address = ENTRIES + pfn * self.size
        return address // self.target.memory.page_map.page_size_bytes


@pytest.fixture
def copy(shipped: ShippedDump) -> Copy:
    return Copy(shipped)


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> Dict[int, Tuple[int, ...]]:
    """What the stack depot has."""
    known: Dict[int, Tuple[int, ...]] = {}
    monkeypatch.setattr(recorded_stacks, "depot_stack", lambda prog, handle: known.get(handle))
    return known


def owners(copy: Copy, pfns: List[int]) -> Any:
    return page_owners(copy.prog, copy.target.memory, np.array(pfns, dtype=np.uint64))


def test_off_as_the_guests_had_it(shipped: ShippedDump) -> None:
    assert not has_page_owner(shipped.target.prog)


def test_a_record_is_that_of_its_page(copy: Copy, stacks: Dict[int, Tuple[int, ...]]) -> None:
    assert has_page_owner(copy.prog)
    stacks.update({7: (1, 2), 9: (3,)})
    pfns = [copy.first + i for i in (300, 0, 1, 170, 171, 5000)]
    for number, pfn in enumerate(pfns):
        copy.records[pfn] = (True, number, 0x100 + number, 7 if number % 2 else 9)
    found = owners(copy, pfns)
    assert found.read.all()
    assert found.order.tolist() == list(range(6))
    assert found.gfp_mask.tolist() == [0x100 + i for i in range(6)]
    assert [found.stacks[i] for i in found.stack] == [(3,), (1, 2)] * 3
    # 5.10 does not record the task.
    assert set(found.pid.tolist()) == {-1} and not found.comm.any()


def test_records_across_pages_are_whole(copy: Copy, stacks: Dict[int, Tuple[int, ...]]) -> None:
    stacks[7] = (1,)
    pfns = list(range(copy.first, copy.first + 2000))
    page_size = copy.target.memory.page_map.page_size_bytes
    assert page_size % copy.size
    for pfn in pfns:
        copy.records[pfn] = (True, pfn % 11, pfn, 7)
    found = owners(copy, pfns)
    assert found.gfp_mask.tolist() == pfns
    assert found.order.tolist() == [pfn % 11 for pfn in pfns]


def test_what_has_no_record(copy: Copy, stacks: Dict[int, Tuple[int, ...]]) -> None:
    stacks.update({7: (1,), EARLY: (5,)})
    first = copy.first
    copy.records = {
        first: (True, 0, 0, 7),
        first + 1: (False, 0, 0, 7),  # it is free by now
        first + 2: (True, 0, 0, EARLY),
        first + 3: (True, 0, 0, UNKNOWN),
        first + 5000: (True, 0, 0, 7),
    }
    copy.absent.add(copy.page_of(first + 5000))
    beyond = 1 << 40
    found = owners(copy, [first, first + 1, first + 2, first + 3, first + 5000, beyond])
    assert found.read.tolist() == [True, False, True, True, False, False]
    assert found.stack.tolist() == [0, -1, -1, -1, -1, -1]
    assert found.stacks == ((1,),)


def test_no_pages(copy: Copy) -> None:
    found = owners(copy, [])
    assert len(found.read) == 0 and found.stacks == ()


def slabs(copy: Copy) -> SlabIndex:
    return slab_index(copy.prog, copy.target.memory)


def test_slab_tracks_shows_who_allocated_the_slabs(
    copy: Copy, shipped: ShippedDump, stacks: Dict[int, Tuple[int, ...]]
) -> None:
    name = shipped.truth["leak"]["cache"]
    index = slabs(copy)
    number = next(i for i, cache in enumerate(index.caches) if cache.name == name)
    rows = np.flatnonzero(index.cache == number)
    functions = ("allocate_slab", "virtio_gpu_fence_alloc", "drm_ioctl")
    addresses = tuple(int(copy.prog.symbol(f).address) + 16 for f in functions)
    stacks.update({7: addresses, 9: addresses[::2]})
    for i, row in enumerate(rows.tolist()):
        order = index.caches[number].orders[int(index.objects[row])]
        copy.records[int(index.pfn[row])] = (True, order, 0, 9 if i < 3 else 7)
    copy.records[int(index.pfn[rows[-1]])] = (True, 0, 0, EARLY)
    result = runner.run(
        copy.target,
        (slab_tracks.ANALYSIS,),
        {"slab-tracks": {"caches": (name,)}},
        limit=None,
        progress=lambda items, _what, _total: items,
    ).analyses[0]
    assert result.status is Status.OK
    assert [(gap.count, gap.material) for gap in result.gaps] == [(1, False)]
    (table,) = [table for table in result.tables if table.row_type is SlabsByOwner]
    assert [(r.cache, r.function, r.slabs) for r in table.rows] == [
        (name, "virtio_gpu_fence_alloc", len(rows) - 4),
        (name, "drm_ioctl", 3),
    ]
    page_size = copy.target.memory.page_map.page_size_bytes
    sizes = {page_size << order for order in index.caches[number].orders.values()}
    assert table.rows[1].size_bytes // 3 in sizes


def value(number: int) -> SimpleNamespace:
    return SimpleNamespace(value_=lambda: number)


def test_a_section_that_goes_offline_has_no_records(
    copy: Copy, stacks: Dict[int, Tuple[int, ...]]
) -> None:
    stacks[7] = (1,)
    copy.records[copy.first] = (True, 0, 0, 7)
    section = nr_to_section(copy.prog, copy.section_of(copy.first))
    copy.write(section.page_ext.address_of_().value_(), ENTRIES + 1, 8)  # PAGE_EXT_INVALID
    assert owners(copy, [copy.first]).read.tolist() == [False]


def test_without_sections_a_node_has_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CONFIG_FLATMEM, which the lab's kernels do not have."""

    def node(array: int, start: int, pages: int) -> SimpleNamespace:
        zone = SimpleNamespace(free_area=SimpleNamespace(type_=SimpleNamespace(length=11)))
        return SimpleNamespace(
            node_page_ext=value(array),
            node_start_pfn=value(start),
            node_spanned_pages=value(pages),
            node_zones=[zone],
        )

    def nodes(prog: Any) -> Iterator[SimpleNamespace]:
        # The array begins with the frame at which the largest block does.
        yield node(ENTRIES, 1024 + 1, 3000)
        yield node(0, 8192, 1024)  # allocated later

    class Prog(Dict[str, Any]):
        def type(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(has_member=lambda member: member == "node_page_ext")

    monkeypatch.setattr(page_owner, "for_each_online_pgdat", nodes)
    pfns = np.array([1024, 1025, 2000, 4024, 4025, 8192], dtype=np.uint64)
    found = page_owner._entries(Prog(page_ext_size=value(24)), pfns)  # type: ignore[arg-type]
    assert found.tolist() == [0, ENTRIES + 24, ENTRIES + 976 * 24, ENTRIES + 3000 * 24, 0, 0]
