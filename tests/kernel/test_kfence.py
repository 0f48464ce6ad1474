# SPDX-License-Identifier: LGPL-2.1-or-later
"""KFENCE's records, as kernels before and after v6.6 keep them."""

from __future__ import annotations

import struct
from typing import Any, Dict, List, Optional, Tuple

import pytest
from drgn import (
    Architecture,
    FaultError,
    Object,
    Platform,
    Program,
    Type,
    TypeEnumerator,
    TypeMember,
)

from vmcore_tools.kernel import kfence
from vmcore_tools.kernel.kfence import KfencePool, kfence_pool

PAGE = 4096
POOL = 0xFFFF888010000000
RECORDS = 0xFFFF888020000000
CACHE = 0xFFFF888001042000
RECORD_BYTES = 56
# enum kfence_object_state up to v6.11, and from v6.12 on.
OLD_STATES = ("UNUSED", "ALLOCATED", "FREED")
NEW_STATES = ("UNUSED", "ALLOCATED", "RCU_FREEING", "FREED")


def page_of(number: int) -> int:
    return POOL + (number + 1) * 2 * PAGE


def record(state: int, address: int, size: int = 0, cache: int = 0, rcu_func: int = 0) -> bytes:
    # list_head list; rcu_head (next, func); state; addr; size; cache
    return struct.pack("<6Q", 0, rcu_func, state, address, size, cache).ljust(RECORD_BYTES, b"\0")


class Kernel:
    """A program that has KFENCE's variables, and nothing else."""

    def __init__(
        self, records: List[Optional[bytes]], *, is_array: bool, states: Tuple[str, ...]
    ) -> None:
        self.prog = Program(Platform(Architecture.X86_64))
        self._is_array = is_array
        self._records = records
        self._enum = self.prog.enum_type(
            "kfence_object_state",
            self.prog.int_type("unsigned int", 4, False),
            [TypeEnumerator(f"KFENCE_OBJECT_{name}", i) for i, name in enumerate(states)],
        )
        self.prog.register_object_finder("fake", self._find, enable_index=0)
        for number, data in enumerate(records):
            self._map(RECORDS + number * RECORD_BYTES, data)
        # What comes behind the last record is no record.
        self._map(RECORDS + len(records) * RECORD_BYTES, b"\xff" * RECORD_BYTES)
        self._map(POOL - 16, struct.pack("<Q", POOL))
        self._map(POOL - 8, struct.pack("<Q", RECORDS))

    def _map(self, address: int, data: Optional[bytes]) -> None:
        def read(at: int, count: int, offset: int, physical: bool) -> bytes:
            if data is None:
                raise FaultError("not in the dump", at)
            return data[offset : offset + count]

        self.prog.add_memory_segment(address, len(data or b"") or RECORD_BYTES, read, False)

    def _word(self) -> Type:
        return self.prog.int_type("unsigned long", 8, False)

    def _record_type(self) -> Type:
        prog, word = self.prog, self._word()
        head = prog.struct_type("callback_head", 16, [TypeMember(word, "next"),
                                                      TypeMember(word, "func", 64)])  # fmt: skip
        members = [
            TypeMember(head, "callback_head", 0),
            TypeMember(self._enum, "state", 128),
            TypeMember(word, "addr", 192),
            TypeMember(word, "size", 256),
            TypeMember(prog.pointer_type(prog.void_type()), "cache", 320),
        ]
        return prog.struct_type("kfence_metadata", RECORD_BYTES, members)

    def _find(self, prog: Program, name: str, flags: Any, filename: Any) -> Optional[Object]:
        if name == "__kfence_pool":
            return Object(prog, prog.pointer_type(prog.void_type()), address=POOL - 16)
        if name.startswith("KFENCE_OBJECT_"):
            for enumerator in self._enum.enumerators or ():
                if enumerator.name == name:
                    return Object(prog, self._enum, value=enumerator.value)
        if name == "kfence_metadata" and self._is_array:
            type_ = prog.array_type(self._record_type(), len(self._records))
            return Object(prog, type_, address=RECORDS)
        if name == "kfence_metadata":
            return Object(prog, prog.pointer_type(self._record_type()), address=POOL - 8)
        return None


@pytest.fixture(autouse=True)
def physical(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no page tables here."""
    monkeypatch.setattr(kfence, "_physical", lambda _prog, _start, size: (0x5000, 0x5000 + size))


def facts(pool: Optional[KfencePool]) -> Dict[int, Tuple[int, int, bool]]:
    assert pool is not None
    columns = (pool.address, pool.size_bytes, pool.cache, pool.allocated)
    return {a: (s, c, t) for a, s, c, t in zip(*(column.tolist() for column in columns))}


@pytest.mark.parametrize("is_array", [True, False])
def test_each_record_says_where_its_object_is(is_array: bool) -> None:
    right = page_of(1) + PAGE - 104
    records: List[Optional[bytes]] = [
        record(1, page_of(0), 184, CACHE),
        record(1, right, 100, CACHE),
        record(2, page_of(2), 64, CACHE),
        record(0, page_of(3)),
        record(2, page_of(4) + 8, 32),  # its cache was destroyed
    ]
    pool = kfence_pool(Kernel(records, is_array=is_array, states=OLD_STATES).prog, PAGE)
    assert facts(pool) == {
        page_of(0): (184, CACHE, True),
        right: (100, CACHE, True),
        page_of(2): (64, CACHE, False),
    }
    assert pool is not None
    assert (pool.start, pool.end) == (POOL, POOL + 6 * 2 * PAGE)
    assert pool.records == (0x5000, 0x5000 + 5 * RECORD_BYTES)
    assert pool.unread == []


def test_what_waits_for_a_grace_period_is_freed() -> None:
    waiting = [record(1, page_of(0), 8, CACHE, rcu_func=0xFFFFFFFF81000000)]
    pool = kfence_pool(Kernel([*waiting], is_array=True, states=OLD_STATES).prog, PAGE)
    assert facts(pool) == {page_of(0): (8, CACHE, False)}
    waiting = [record(2, page_of(0), 8, CACHE, rcu_func=0xFFFFFFFF81000000)]
    pool = kfence_pool(Kernel([*waiting], is_array=False, states=NEW_STATES).prog, PAGE)
    assert facts(pool) == {page_of(0): (8, CACHE, False)}


def test_records_that_say_nothing_are_named() -> None:
    records = [
        record(1, page_of(0), 8, CACHE),
        None,
        record(1, page_of(7), 8, CACHE),
        record(1, page_of(3) + PAGE - 8, 16, CACHE),
        record(1, page_of(4), 8, CACHE),
    ]
    pool = kfence_pool(Kernel(records, is_array=False, states=NEW_STATES).prog, PAGE)
    assert list(facts(pool)) == [page_of(0), page_of(4)]
    assert pool is not None
    assert pool.unread == [
        (RECORDS + RECORD_BYTES, "KFENCE's record is not in the dump"),
        (RECORDS + 2 * RECORD_BYTES, "KFENCE's record is damaged"),
        (RECORDS + 3 * RECORD_BYTES, "KFENCE's record is damaged"),
    ]
    assert pool.end == POOL + 6 * 2 * PAGE


def test_without_any_record_the_pool_is_as_large_as_usual() -> None:
    pool = kfence_pool(Kernel([None, None], is_array=False, states=NEW_STATES).prog, PAGE)
    assert pool is not None
    assert pool.end == POOL + 256 * 2 * PAGE
    assert len(pool.address) == 0
    assert len(pool.unread) == 255


def test_a_kernel_without_a_pool() -> None:
    assert kfence_pool(Program(Platform(Architecture.X86_64)), PAGE) is None
