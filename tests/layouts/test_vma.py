# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an address space has at an address: in red-black trees and maple trees, damaged too."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

import pytest
from drgn import FaultError, Object, offsetof
from drgn.helpers import ValidationError

from tests.layouts.machine import Machine
from vmcore_tools.kernel.vma import vma_at

#: First address, and that behind the last one.
AREAS = [(0x1000 * start, 0x1000 * (start + 2)) for start in (1, 3, 10, 20, 22, 40, 60)]
LEAF, RANGE, ALLOCATION = 1, 2, 3
NOT_THERE = 0xFFFF8880F0000000


class Space:
    """An address space with these areas."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.areas = [
            machine.new("struct vm_area_struct", {"vm_start": start, "vm_end": end})
            for start, end in AREAS
        ]

    def at(self, address: int) -> int:
        mm = Object(self.machine.prog, "struct mm_struct *", self.machine.variable("init_mm"))
        return vma_at(mm, address)

    def set_root(self, designator: str, value: int) -> None:
        self.machine.put("struct mm_struct", self.machine.variable("init_mm"), {designator: value})


class RedBlack(Space):
    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.set_root("mm_rb.rb_node", self.tree(0, len(self.areas)))

    def node(self, number: int) -> int:
        type_ = self.machine.prog.type("struct vm_area_struct")
        return self.areas[number] + offsetof(type_, "vm_rb")

    def tree(self, low: int, high: int) -> int:
        if low == high:
            return 0
        middle = (low + high) // 2
        left, right = self.tree(low, middle), self.tree(middle + 1, high)
        return self.link(middle, left, right)

    def link(self, number: int, left: int, right: int) -> int:
        node = self.node(number)
        self.machine.put("struct rb_node", node, {"rb_left": left, "rb_right": right})
        return node


class Maple(Space):
    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        ranges: List[Tuple[int, int]] = []  # the last address of each, and what is there
        end = 0
        for (start, behind), area in zip(AREAS, self.areas):
            if start > end:
                ranges.append((start - 1, 0))
            ranges.append((behind - 1, area))
            end = behind
        half = len(ranges) // 2
        # The last pivot of a node can be missing: its range goes up to the node's end.
        lower = self.node(LEAF, [pivot for pivot, _ in ranges[: half - 1]], ranges[:half])
        upper = self.node(
            LEAF, [pivot for pivot, _ in ranges[half:]], [*ranges[half:], (2**64 - 1, 0)]
        )
        last = ranges[half - 1][0]
        self.inner = self.node(RANGE, [last], [(last, lower), (2**64 - 1, upper)])
        nothing = self.node(LEAF, [2**64 - 1], [(2**64 - 1, 0)])
        slots = [(2**47 - 1, self.inner), (2**64 - 1, nothing)]
        self.root = self.node(ALLOCATION, [2**47 - 1], slots)
        self.set_root("mm_mt.ma_root", self.root | 2)  # MAPLE_ROOT_NODE

    def node(self, kind: int, pivots: Sequence[int], slots: Sequence[Tuple[int, int]]) -> int:
        """``mt_mk_node()`` of a new node."""
        node = self.machine.alloc(256, 256)
        part = "ma64" if kind == ALLOCATION else "mr64"
        self.machine.words(self.member(node, f"{part}.pivot"), pivots)
        self.machine.words(self.member(node, f"{part}.slot"), [entry for _, entry in slots])
        return node | kind << 3 | 4

    def member(self, node: int, designator: str) -> int:
        return node + offsetof(self.machine.prog.type("struct maple_node"), designator)


@pytest.fixture(params=["red-black", "maple"])
def space(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Space]:
    config = ("MAPLE_TREE",) if request.param == "maple" else ()
    machine = Machine("vma.c", tmp_path, "6.1.0", config=config)
    yield Maple(machine) if config else RedBlack(machine)
    machine.close()


def test_each_address_is_in_its_area(space: Space) -> None:
    expected: Dict[int, int] = {}
    for (start, end), area in zip(AREAS, space.areas):
        for address in (start, (start + end) // 2, end - 1):
            expected[address] = area
    for address in (0, 0xFFF, 0x5000, 0x9FFF, 0xC000, 0x18000, 0x3E000, 2**47, 2**64 - 1):
        expected[address] = 0
    assert {address: space.at(address) for address in expected} == expected


def test_an_empty_address_space(space: Space) -> None:
    space.set_root("mm_mt.ma_root" if isinstance(space, Maple) else "mm_rb.rb_node", 0)
    assert space.at(0x1000) == 0


def test_a_damaged_tree_ends(space: Space) -> None:
    if isinstance(space, RedBlack):
        # The second area's node is on the way to the first, and leads back to itself.
        space.link(1, space.node(1), space.node(2))
    else:
        assert isinstance(space, Maple)
        slots = space.member(space.inner & ~255, "mr64.slot")
        space.machine.words(slots, [space.inner])
    with pytest.raises(ValidationError):
        space.at(0x1000)
    assert space.at(AREAS[-1][0]) == space.areas[-1]


@pytest.mark.parametrize("kind", [0, 4, 15])
def test_a_node_of_no_type(tmp_path: Path, kind: int) -> None:
    machine = Machine("vma.c", tmp_path, "6.1.0", config=("MAPLE_TREE",))
    space = Maple(machine)
    space.set_root("mm_mt.ma_root", (space.root & ~(15 << 3)) | kind << 3 | 2)
    with pytest.raises(ValidationError):
        space.at(0x1000)
    machine.close()


def test_a_node_that_is_not_in_the_dump(space: Space) -> None:
    designator = "mm_mt.ma_root" if isinstance(space, Maple) else "mm_rb.rb_node"
    space.set_root(designator, NOT_THERE | (LEAF << 3 | 6 if isinstance(space, Maple) else 0))
    with pytest.raises(FaultError):
        space.at(0x1000)
