# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lists with any of their pointers damaged."""

from __future__ import annotations

from typing import Dict, Iterable, List, Optional, Tuple

import pytest
from drgn import (
    Architecture,
    FaultError,
    Object,
    Platform,
    Program,
    Type,
    TypeKind,
    TypeMember,
)
from drgn.helpers import ValidationError

from vmcore_tools.kernel.lists import for_each_entry

HEAD = 0x1000
ENTRIES = [0x2000 + 0x100 * number for number in range(6)]
NODE_OFFSET = 16
NEXT, PREV = 0, 8


class Memory:
    """A head and entries, linked as ``list_add_tail()`` does."""

    def __init__(self) -> None:
        ring = [HEAD, *(entry + NODE_OFFSET for entry in ENTRIES)]
        self.words: Dict[int, int] = {}
        for number, node in enumerate(ring):
            self.words[node + NEXT] = ring[(number + 1) % len(ring)]
            self.words[node + PREV] = ring[number - 1]

    def read(self, address: int, count: int, _offset: int, _physical: bool) -> bytes:
        if count == 16:
            return self.read(address, 8, 0, False) + self.read(address + 8, 8, 0, False)
        if address not in self.words:
            raise FaultError("not in the dump", address)
        return self.words[address].to_bytes(8, "little")

    def walk(self, limit: int = 100) -> Tuple[List[int], Optional[str]]:
        """The entries, and what is raised behind them."""
        prog = Program(Platform(Architecture.X86_64))
        prog.add_memory_segment(0, 1 << 63, self.read)
        types: Dict[str, Type] = {}

        def find(
            prog: Program, kinds: Iterable[TypeKind], name: str, _filename: Optional[str]
        ) -> Optional[Type]:
            return types.get(name) if TypeKind.STRUCT in kinds else None

        prog.register_type_finder("lists", find, enable_index=0)
        node = prog.struct_type(
            "list_head",
            16,
            (
                TypeMember(lambda: prog.pointer_type(types["list_head"]), "next", 0),
                TypeMember(lambda: prog.pointer_type(types["list_head"]), "prev", 64),
            ),
        )
        types["list_head"] = node
        types["entry"] = prog.struct_type("entry", 64, (TypeMember(node, "list", 8 * NODE_OFFSET),))
        head = Object(prog, prog.pointer_type(node), HEAD)
        found: List[int] = []
        try:
            for entry in for_each_entry("struct entry", head, "list", limit):
                found.append(entry.value_())
        except (FaultError, ValidationError) as error:
            return found, str(error)
        return found, None


def test_a_sound_list() -> None:
    assert Memory().walk() == (ENTRIES, None)


@pytest.mark.parametrize("node", [HEAD, *(entry + NODE_OFFSET for entry in ENTRIES)])
@pytest.mark.parametrize("member", [NEXT, PREV])
@pytest.mark.parametrize("value", [0, 0xDEAD000000000100 >> 1, HEAD, 0x2110, 0x2310])
def test_one_wrong_pointer_hides_no_entry(node: int, member: int, value: int) -> None:
    memory = Memory()
    if memory.words[node + member] == value:
        return
    memory.words[node + member] = value
    found, damage = memory.walk()
    assert damage is not None
    # None is told twice, and what a wrong pointer leads to may be among them only if it
    # is an entry anyway.
    assert len(set(found)) == len(found)
    assert set(found) >= set(ENTRIES)
    assert set(found) <= {*ENTRIES, value - NODE_OFFSET}


def test_a_list_that_ends_early_is_not_known_to() -> None:
    # Nothing but the way back shows that there is more.
    memory = Memory()
    memory.words[ENTRIES[2] + NODE_OFFSET + NEXT] = HEAD
    found, damage = memory.walk()
    assert damage is not None
    assert sorted(found) == ENTRIES


def test_two_wrong_pointers_hide_what_is_between_them() -> None:
    memory = Memory()
    memory.words[ENTRIES[1] + NODE_OFFSET + NEXT] = 0
    memory.words[ENTRIES[4] + NODE_OFFSET + PREV] = 0
    found, damage = memory.walk()
    assert damage is not None
    assert found == [ENTRIES[0], ENTRIES[1], ENTRIES[4], ENTRIES[5]]


def test_a_list_that_is_too_long_ends() -> None:
    found, damage = Memory().walk(limit=3)
    assert damage is not None
    assert found[:3] == ENTRIES[:3]
