# SPDX-License-Identifier: LGPL-2.1-or-later
"""Red-black trees, sound ones and those with any of their pointers damaged."""

from __future__ import annotations

from typing import Dict, Iterable, List, Optional, Set, Tuple

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
from hypothesis import given, settings
from hypothesis import strategies as st

from vmcore_tools.kernel.rb_trees import for_each_rb_entry

ROOT = 0x1000
NODE_OFFSET = 32
PARENT, RIGHT, LEFT = 0, 8, 16


def entry_at(number: int) -> int:
    return 0x2000 + 0x100 * number


def node_at(number: Optional[int]) -> int:
    return 0 if number is None else entry_at(number) + NODE_OFFSET


class Tree:
    """A balanced tree of numbered entries."""

    def __init__(self, count: int) -> None:
        self.words: Dict[int, int] = {}
        self.words[ROOT] = node_at(self._add(0, count))

    def _add(self, low: int, high: int) -> Optional[int]:
        if low == high:
            return None
        middle = (low + high) // 2
        node = node_at(middle)
        self.words[node + PARENT] = 0
        self.words[node + LEFT] = node_at(self._add(low, middle))
        self.words[node + RIGHT] = node_at(self._add(middle + 1, high))
        return middle

    def _read(self, address: int, count: int, _offset: int, _physical: bool) -> bytes:
        if address not in self.words or count != 8:
            raise FaultError("not in the dump", address)
        return self.words[address].to_bytes(8, "little")

    def walk(self, limit: int = 1000) -> Tuple[List[int], Optional[str]]:
        """The entries' addresses, and what is raised behind them."""
        prog = Program(Platform(Architecture.X86_64))
        prog.add_memory_segment(0, 1 << 63, self._read)
        types: Dict[str, Type] = {}

        def find(
            prog: Program, kinds: Iterable[TypeKind], name: str, _filename: Optional[str]
        ) -> Optional[Type]:
            return types.get(name) if TypeKind.STRUCT in kinds else None

        prog.register_type_finder("trees", find, enable_index=0)
        word = prog.int_type("unsigned long", 8, False)

        def to_node() -> Type:
            return prog.pointer_type(types["rb_node"])

        types["rb_node"] = prog.struct_type(
            "rb_node",
            24,
            (
                TypeMember(word, "__rb_parent_color", 0),
                TypeMember(to_node, "rb_right", 8 * RIGHT),
                TypeMember(to_node, "rb_left", 8 * LEFT),
            ),
        )
        types["rb_root"] = prog.struct_type("rb_root", 8, (TypeMember(to_node, "rb_node", 0),))
        types["entry"] = prog.struct_type(
            "entry", 64, (TypeMember(types["rb_node"], "node", 8 * NODE_OFFSET),)
        )
        root = Object(prog, prog.pointer_type(types["rb_root"]), ROOT)
        found: List[int] = []
        try:
            for entry in for_each_rb_entry("struct entry", root, "node", limit):
                found.append(entry.value_())
        except (FaultError, ValidationError) as error:
            return found, str(error)
        return found, None


@pytest.mark.parametrize("count", [0, 1, 2, 7, 40])
def test_a_sound_tree_in_its_order(count: int) -> None:
    assert Tree(count).walk() == ([entry_at(number) for number in range(count)], None)


def test_a_tree_with_too_many_entries_ends() -> None:
    found, damage = Tree(40).walk(limit=7)
    assert damage is not None
    assert len(found) <= 7


@settings(deadline=None)
@given(
    damaged=st.integers(0, 14),
    member=st.sampled_from([LEFT, RIGHT]),
    target=st.one_of(st.integers(0, 14).map(node_at), st.sampled_from([ROOT, 0x7000])),
)
def test_any_pointer_may_lead_anywhere(damaged: int, member: int, target: int) -> None:
    tree = Tree(15)
    tree.words[node_at(damaged) + member] = target
    expected: List[int] = []
    seen: Set[int] = set()

    def in_order(node: int) -> bool:
        """Whether all below a node is a tree."""
        if not node:
            return True
        if node in seen or node + LEFT not in tree.words:
            return False
        seen.add(node)
        if not in_order(tree.words[node + LEFT]):
            return False
        expected.append(node - NODE_OFFSET)
        return in_order(tree.words[node + RIGHT])

    sound = in_order(tree.words[ROOT])
    found, damage = tree.walk()
    assert (found, damage is None) == (expected, sound)
