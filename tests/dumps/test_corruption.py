# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Damage in copies of the shipped dumps: it is named, and every other slab is as it was.

The copies are the dumps with changed bytes laid over them. What the analyses
report of it is tested beside them; here it is the index, object by object.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Set

import numpy as np
import pytest
from drgn import FaultError, offsetof
from drgn.helpers.linux.mm import pfn_to_page

from tests.dumps.conftest import ShippedDump
from vmcore_tools import target
from vmcore_tools.kernel.page import direct_map_offset
from vmcore_tools.kernel.slab import SlabFault, SlabIndex, SlabProblem, slab_index
from vmcore_tools.kernel.slab_usage import slab_usage

Objects = Dict[int, Set[int]]


class Copy:
    """
    A copy of a dump that can be damaged until it is indexed.

    :ivar original: the index of the undamaged dump
    """

    def __init__(self, dump: ShippedDump) -> None:
        self._target = target.open_core(dump.files.vmcore, dump.files.symbols)
        self.page_size: int = dump.truth["page_size_bytes"]
        self.original = slab_index(dump.target.prog, dump.target.memory)

    def index(self) -> SlabIndex:
        return slab_index(self._target.prog, self._target.memory)

    def write(self, address: int, value: int) -> None:
        """Change a word in the direct map."""
        self._write(address, value, False)
        self._write(address - direct_map_offset(self._target.prog), value, True)

    def write_page_struct(self, row: int, member: str, value: int) -> None:
        """Change a word of a slab's page structure."""
        self._write(self._page_struct(row) + self._offset(member), value, False)

    def _write(self, address: int, value: int, physical: bool) -> None:
        data = value.to_bytes(8, "little")

        def read(_address: int, count: int, offset: int, _physical: bool) -> bytes:
            return data[offset : offset + count]

        self._target.prog.add_memory_segment(address, len(data), read, physical)

    def remove_page_structs(self, row: int) -> None:
        """Take the page of the vmemmap away that has a slab's page structure."""

        def read(address: int, _count: int, _offset: int, _physical: bool) -> bytes:
            raise FaultError("not in the dump", address)

        start = self._page_struct(row) // self.page_size * self.page_size
        self._target.prog.add_memory_segment(start, self.page_size, read, False)

    def _page_struct(self, row: int) -> int:
        return int(pfn_to_page(self._target.prog, int(self.original.pfn[row])).value_())

    def _offset(self, member: str) -> int:
        return int(offsetof(self._target.prog.type("struct page"), member))

    def free_pointer(self, row: int, pointer: int) -> None:
        """Let the first free object of a slab point to *pointer*, hardened as the others."""
        cache = self.original.caches[self.original.cache[row]]
        at = int(self.original.freelist[row]) + cache.freelist_offset
        assert cache.random is not None
        swapped = int.from_bytes(at.to_bytes(8, "little"), "big")
        self.write(at, pointer ^ cache.random ^ swapped)


def victims(index: SlabIndex) -> List[int]:
    """Slabs that no CPU has, with two free objects at least; of one cache."""
    free = index.objects - index.inuse
    settled = (free >= 2) & ~index.frozen & (index.freelist != 0)
    busiest = int(np.bincount(index.cache[settled]).argmax())
    found: List[int] = np.flatnonzero(settled & (index.cache == busiest)).tolist()
    return found


def allocated(index: SlabIndex) -> Objects:
    """The allocated objects of each slab, by its page frame."""
    return {
        int(index.pfn[row]): set(objects[taken].tolist())
        for batch in index.batches()
        for row, objects, taken in zip(batch.rows, batch.objects, batch.allocated)
    }


def cycle(copy: Copy, row: int) -> None:
    copy.free_pointer(row, int(copy.original.freelist[row]))


def pointer_out_of_the_slab(copy: Copy, row: int) -> None:
    other = next(other for other in victims(copy.original) if other != row)
    copy.free_pointer(row, int(copy.original.freelist[other]))


def pointer_into_an_object(copy: Copy, row: int) -> None:
    copy.free_pointer(row, int(copy.original.freelist[row]) + 8)


def cache_overwritten(copy: Copy, row: int) -> None:
    copy.write_page_struct(row, "slab_cache", int(copy.original.address[row]))


def objects_wrong(copy: Copy, row: int) -> None:
    # inuse in the lower half, objects above it, frozen in the highest bit.
    copy.write_page_struct(row, "counters", 1 | 32767 << 16)


@pytest.mark.parametrize(
    ("damage", "fault", "reason"),
    [
        (cycle, SlabFault.FREELIST, "its freelist runs in a circle"),
        (pointer_out_of_the_slab, SlabFault.FREELIST, "which is none of its objects"),
        (pointer_into_an_object, SlabFault.FREELIST, "which is none of its objects"),
        (cache_overwritten, SlabFault.CACHE_POINTER, "is no slab cache"),
        (objects_wrong, SlabFault.OBJECTS, "it cannot hold 32767 objects"),
    ],
)
def test_damage_is_named_at_its_address_and_costs_one_slab(
    shipped: ShippedDump, damage: Callable[[Copy, int], None], fault: SlabFault, reason: str
) -> None:
    copy = Copy(shipped)
    row = victims(copy.original)[0]
    damage(copy, row)
    index = copy.index()
    after = allocated(index)
    (problem,) = index.problems
    assert problem.address == int(copy.original.address[row])
    assert problem.fault is fault
    assert reason in problem.reason
    expected = allocated(copy.original)
    victim = int(copy.original.pfn[row])
    assert expected.pop(victim)
    # Nothing is known of the objects of a slab that is damaged.
    assert after.pop(victim, set()) == set()
    assert after == expected


def test_a_wrong_count_costs_nothing(shipped: ShippedDump) -> None:
    copy = Copy(shipped)
    row = victims(copy.original)[0]
    inuse, objects = int(copy.original.inuse[row]), int(copy.original.objects[row])
    copy.write_page_struct(row, "counters", (inuse + 1) | objects << 16)
    index = copy.index()
    usage = slab_usage(index, lambda items, _what, _total: items)
    assert [int(index.address[wrong]) for wrong in usage.miscounted] == [int(index.address[row])]
    assert allocated(index) == allocated(copy.original)
    assert index.problems == []


def test_a_page_of_page_structures_costs_the_slabs_in_it(shipped: ShippedDump) -> None:
    copy = Copy(shipped)
    original = copy.original
    row = victims(original)[0]
    copy.remove_page_structs(row)
    index = copy.index()
    struct_bytes = index.prog.type("struct page").size
    assert struct_bytes is not None
    structs = copy.page_size // struct_bytes
    assert index.unread_page_structs == original.unread_page_structs + structs
    lost = {pfn for pfn in original.pfn.tolist() if pfn // structs == original.pfn[row] // structs}
    kept = allocated(original)
    for pfn in lost:
        del kept[pfn]
    assert allocated(index) == kept


def test_all_damage_at_once_is_named_slab_by_slab(shipped: ShippedDump) -> None:
    copy = Copy(shipped)
    damages = (cycle, pointer_into_an_object, cache_overwritten, objects_wrong)
    rows = victims(copy.original)[: len(damages)]
    assert len(rows) == len(damages)
    for damage, row in zip(damages, rows):
        damage(copy, row)
    index = copy.index()
    after = allocated(index)
    problems: List[SlabProblem] = index.problems
    assert {problem.address for problem in problems} == {
        int(copy.original.address[row]) for row in rows
    }
    assert len(problems) == len(damages)
    expected = allocated(copy.original)
    for row in rows:
        pfn = int(copy.original.pfn[row])
        del expected[pfn]
        assert after.pop(pfn, set()) == set()
    assert after == expected
