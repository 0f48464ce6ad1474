# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stacks that the kernel recorded: arrays of addresses, and handles of the stack depot."""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
import pytest
from drgn import (
    Architecture,
    Object,
    Platform,
    Program,
    Symbol,
    SymbolBinding,
    SymbolKind,
    TypeMember,
)

from vmcore_tools.kernel import recorded_stacks
from vmcore_tools.kernel.recorded_stacks import (
    RecordedStacks,
    depot_stack,
    function_behind_allocator,
)

A, B, C = 0xFFFFFFFF81000010, 0xFFFFFFFF81000020, 0xFFFFFFFF81000030

POOL = 0xFFFF888000010000
POOLS = 0xFFFFFFFF82000000
POOLS_COUNT = 4


def words(*rows: List[int]) -> np.ndarray:
    return np.array(rows, dtype=np.uint64)


def plain() -> RecordedStacks:
    return RecordedStacks(Program(Platform(Architecture.X86_64)))


def test_equal_stacks_have_one_position() -> None:
    made = plain()
    position = made.add_arrays(words([A, B, 0], [C, 0, 0], [A, B, 0]))
    assert [made.stacks[i] for i in position] == [(A, B), (C,), (A, B)]
    assert len(made.stacks) == 2


def test_what_stands_behind_the_first_zero_is_an_older_records() -> None:
    made = plain()
    position = made.add_arrays(words([A, 0, B], [A, 0, C], [0, B, C]))
    assert position.tolist() == [0, 0, -1]
    assert made.stacks == ((A,),)


def test_positions_stay_when_more_is_added() -> None:
    made = plain()
    first = made.add_arrays(words([A, 0], [B, 0]))
    second = made.add_arrays(words([B, 0], [C, 0], [A, 0]))
    names = [made.stacks[i] for i in [*first, *second]]
    assert names == [(A,), (B,), (B,), (C,), (A,)]
    assert len(made.stacks) == 3


def test_no_records() -> None:
    made = plain()
    assert made.add_arrays(np.zeros((0, 16), dtype=np.uint64)).tolist() == []
    assert made.add_handles(np.zeros(0, dtype=np.uint32)).tolist() == []
    assert made.stacks == ()


def test_stacks_that_mix_alike_are_still_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_stacks, "_MIX", np.uint64(0))
    made = plain()
    position = made.add_arrays(words([A, B], [A, C], [A, B]))
    assert [made.stacks[i] for i in position] == [(A, B), (A, C), (A, B)]


def depot(kind: str) -> Program:
    """A program with a stack depot of this layout: "slab", "pool" or "pool plus 1"."""
    prog = Program(Platform(Architecture.X86_64))
    memory: Dict[int, bytes] = {}

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        for start, data in memory.items():
            if start <= address and address + count <= start + len(data):
                return data[address - start : address - start + count]
        raise recorded_stacks.FaultError("not there", address)

    prog.add_memory_segment(0, 0xFFFFFFFFFFFFFFFF, read)
    u32 = prog.int_type("unsigned int", 4, False)
    u64 = prog.int_type("unsigned long", 8, False)
    pointer = prog.pointer_type(prog.void_type())
    index = {"slab": "slabindex", "pool": "pool_index", "pool plus 1": "pool_index_plus_1"}[kind]
    fields = prog.struct_type(
        None,
        4,
        (
            TypeMember(Object(prog, u32, bit_field_size=17), index, 0),
            TypeMember(Object(prog, u32, bit_field_size=10), "offset", 17),
            TypeMember(Object(prog, u32, bit_field_size=5), "extra", 27),
        ),
    )
    handle = prog.typedef_type("depot_stack_handle_t", u32)
    parts = prog.union_type(
        "handle_parts", 4, (TypeMember(handle, "handle"), TypeMember(fields, None))
    )
    record = prog.struct_type(
        "stack_record",
        32,
        (
            TypeMember(u32, "hash", 64),
            TypeMember(u32, "size", 96),
            TypeMember(parts, "handle", 128),
            TypeMember(prog.array_type(u64, 1), "entries", 192),
        ),
    )
    types = {"depot_stack_handle_t": handle, "handle_parts": parts, "stack_record": record}
    prog.register_type_finder(
        "fake", lambda prog, kinds, name, filename: types.get(name), enable_index=0
    )
    name = "stack_slabs" if kind == "slab" else "stack_pools"
    pools = Object(prog, prog.array_type(pointer, POOLS_COUNT), address=POOLS)
    prog.register_object_finder(
        "fake",
        lambda prog, asked, flags, filename: pools if asked == name else None,
        enable_index=0,
    )
    memory[POOLS] = b"".join(int(a).to_bytes(8, "little") for a in (0, POOL, 0, 0))
    prog.cache["memory"] = memory
    return prog


def put(prog: Program, offset: int, stored: int, stack: Tuple[int, ...], size: int = -1) -> None:
    """A record at *offset* of the pool, which says that its handle is *stored*."""
    data = bytes(8) + bytes(4) + (len(stack) if size < 0 else size).to_bytes(4, "little")
    data += stored.to_bytes(4, "little") + bytes(4)
    data += b"".join(address.to_bytes(8, "little") for address in stack)
    prog.cache["memory"][POOL + offset] = data


def handle_of(kind: str, pool: int, offset: int, extra: int = 0) -> int:
    return (pool + (kind == "pool plus 1")) | offset >> 4 << 17 | extra << 27


@pytest.mark.parametrize("kind", ["slab", "pool", "pool plus 1"])
def test_a_handle_leads_to_its_stack(kind: str) -> None:
    prog = depot(kind)
    handle = handle_of(kind, 1, 0x40)
    put(prog, 0x40, handle, (A, B, C))
    assert depot_stack(prog, handle) == (A, B, C)
    # Users of the depot keep bits of their own in a handle.
    assert depot_stack(prog, handle_of(kind, 1, 0x40, extra=3)) == (A, B, C)


@pytest.mark.parametrize("kind", ["slab", "pool", "pool plus 1"])
def test_a_handle_that_leads_to_no_stack(kind: str) -> None:
    prog = depot(kind)
    put(prog, 0x40, handle_of(kind, 1, 0x80), (A, B))  # another one's record
    put(prog, 0x100, handle_of(kind, 1, 0x100), (A,), size=0xFFFFFFFF)  # a damaged one
    put(prog, 0x200, handle_of(kind, 1, 0x200), (A,), size=200)  # half of it is not there
    for pool, offset in ((1, 0x40), (1, 0x100), (1, 0x200), (1, 0x300), (2, 0), (9, 0)):
        assert depot_stack(prog, handle_of(kind, pool, offset)) is None, (pool, offset)
    assert depot_stack(prog, 0) is None


def test_each_handle_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: List[int] = []

    def fetch(prog: Program, handle: int) -> Tuple[int, ...]:
        asked.append(handle)
        return (A,) if handle < 10 else (B,)

    monkeypatch.setattr(recorded_stacks, "depot_stack", fetch)
    made = plain()
    assert made.add_handles(np.array([3, 0, 3, 11, 4], dtype=np.uint32)).tolist() == [
        0,
        -1,
        0,
        1,
        0,
    ]
    assert made.add_handles(np.array([11, 3], dtype=np.uint32)).tolist() == [1, 0]
    assert made.stacks == ((A,), (B,))
    assert sorted(asked) == [3, 4, 11]


FUNCTIONS = ["kmem_cache_alloc_trace", "kzalloc.part.0", "__kmalloc", "widget_create.isra.0"]


@pytest.fixture
def prog() -> Program:
    """Functions of 0x100 bytes, one behind the other from 0x1000 on."""
    made = Program(Platform(Architecture.X86_64))

    def find(prog: Program, name: Optional[str], address: Optional[int], one: bool) -> List[Symbol]:
        number = ((address or 0) - 0x1000) // 0x100
        if not 0 <= number < len(FUNCTIONS):
            return []
        start = 0x1000 + number * 0x100
        return [Symbol(FUNCTIONS[number], start, 0x100, SymbolBinding.GLOBAL, SymbolKind.FUNC)]

    made.register_symbol_finder("fake", find, enable_index=0)
    return made


@pytest.mark.parametrize(
    ("stack", "function"),
    [
        ([0x1010, 0x1110, 0x1210, 0x1310], "widget_create"),
        # A call was the function's last instruction.
        ([0x1300, 0x1400], "widget_create"),
        ([0x9000, 0x1310], "widget_create"),
        ([0x1010], None),
        ([], None),
    ],
)
def test_the_function_behind_the_allocator_is_named(
    prog: Program, stack: Sequence[int], function: Optional[str]
) -> None:
    assert function_behind_allocator(prog, stack) == function


def test_a_function_is_looked_up_once(prog: Program) -> None:
    lookups: List[int] = []

    def count(p: Program, name: Optional[str], address: Optional[int], one: bool) -> List[Symbol]:
        lookups.append(address or 0)
        return []

    prog.register_symbol_finder("count", count, enable_index=0)
    for stack in ([0x1010, 0x1310], [0x1020, 0x1320], [0x1300], [0x9000], [0x9000, 0x1330]):
        function_behind_allocator(prog, stack)
    assert lookups == [0x100F, 0x130F, 0x12FF, 0x8FFF]
