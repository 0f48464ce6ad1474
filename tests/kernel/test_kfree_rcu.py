# SPDX-License-Identifier: LGPL-2.1-or-later
"""What waits in kfree_rcu()'s lists, laid out as before and after v6.3; the lab has real ones."""

from __future__ import annotations

import struct
from typing import Any, Dict, List, Optional, Tuple

import pytest
from drgn import Architecture, FaultError, Object, Platform, Program, Type, TypeKind, TypeMember

from vmcore_tools.kernel.kfree_rcu import _Gathered

PAGE = 4096
KRC = 0xFFFF88800F000000
BLOCKS = [0xFFFF888001000000 + number * PAGE for number in range(4)]
OBJECTS = [0xFFFF888002000000 + number * 128 for number in range(10)]
HEAD_OFFSET = 24  # of the rcu_head in an object
CACHED = BLOCKS[3]


class Kernel:
    """Per-CPU lists with two channels, and one batch that waits already."""

    def __init__(self, chains: bool) -> None:
        self.prog = Program(Platform(Architecture.X86_64))
        self.prog.register_type_finder("fake", self._find, enable_index=0)
        self._memory: Dict[int, bytes] = {}
        self._chains = chains
        word = self.word = self.prog.int_type("unsigned long", 8, False)
        pointer = self.prog.pointer_type
        void = pointer(self.prog.void_type())
        self.head = self.prog.struct_type(
            "callback_head",
            16,
            (
                TypeMember(lambda: pointer(self.head), "next"),
                TypeMember(word, "func", 64),
            ),
        )
        self.list_head = self.prog.struct_type(
            "list_head",
            16,
            (
                TypeMember(lambda: pointer(self.list_head), "next"),
                TypeMember(lambda: pointer(self.list_head), "prev", 64),
            ),
        )
        self.node = self.prog.struct_type(
            "llist_node", 8, (TypeMember(lambda: pointer(self.node), "next"),)
        )
        self.first = self.prog.struct_type(
            "llist_head", 8, (TypeMember(pointer(self.node), "first"),)
        )
        records = self.prog.array_type(void)
        if chains:
            members = (
                TypeMember(word, "nr_records"),
                TypeMember(lambda: pointer(self.block), "next", 64),
                TypeMember(records, "records", 128),
            )
        else:
            members = (
                TypeMember(self.list_head, "list"),
                TypeMember(word, "nr_records", 128),
                TypeMember(records, "records", 192),
            )
        self.block: Type = self.prog.struct_type("kvfree_rcu_bulk_data", len(members) * 8, members)
        entry = pointer(self.block) if chains else self.list_head
        self._entry_bytes = 8 if chains else 16
        names = ("bkvhead_free", "bkvhead") if chains else ("bulk_head_free", "bulk_head")
        channels = self.prog.array_type(entry, 2)
        size = 8 + 2 * self._entry_bytes
        work = self.prog.struct_type(
            "kfree_rcu_cpu_work",
            size,
            (TypeMember(pointer(self.head), "head_free"), TypeMember(channels, names[0], 64)),
        )
        self.krc = self.prog.struct_type(
            "kfree_rcu_cpu",
            2 * size + 8,
            (
                TypeMember(pointer(self.head), "head"),
                TypeMember(channels, names[1], 64),
                TypeMember(self.prog.array_type(work, 1), "krw_arr", 8 * size),
                TypeMember(self.first, "bkvcache", 16 * size),
            ),
        )
        self._half_bytes = size

    def _find(self, prog: Program, kinds: Any, name: str, filename: Any) -> Optional[Type]:
        return self.block if TypeKind.STRUCT in kinds and name == "kvfree_rcu_bulk_data" else None

    def map(self, address: int, data: bytes) -> None:
        def read(at: int, count: int, offset: int, physical: bool) -> bytes:
            return data[offset : offset + count]

        self.prog.add_memory_segment(address, len(data), read, False)

    def fill(self, address: int, count: int, records: List[int], following: int = 0) -> None:
        """A block; *following* is the next one of a chain, or the list's head."""
        links = (count, following) if self._chains else (following, following, count)
        data = struct.pack(f"<{len(links) + len(records)}Q", *links, *records)
        self.map(address, data.ljust(PAGE, b"\xee"))

    def write(self, heads: Tuple[int, int], channels: Dict[int, int]) -> None:
        """*heads*: of objects without a block; *channels*: place to block."""
        data = b""
        for half in (0, 1):
            data += struct.pack("<Q", heads[half])
            for channel in (0, 1):
                at = KRC + half * self._half_bytes + 8 + channel * self._entry_bytes
                block = channels.get(2 * half + channel, 0 if self._chains else at)
                data += struct.pack("<Q", block) * (self._entry_bytes // 8)
        self.map(KRC, data + struct.pack("<Q", CACHED))
        self.map(CACHED, struct.pack("<2Q", 0, OBJECTS[9]).ljust(PAGE, b"\0"))

    def list_head_of(self, half: int, channel: int) -> int:
        return KRC + half * self._half_bytes + 8 + channel * self._entry_bytes

    def gathered(self) -> _Gathered:
        gathered = _Gathered(self.prog, PAGE)
        gathered.add(Object(self.prog, self.krc, address=KRC))
        return gathered


def waiting(gathered: _Gathered) -> List[int]:
    return sorted(int(address) for part in gathered.waiting for address in part)


@pytest.mark.parametrize("chains", [True, False], ids=["before v6.3", "since v6.3"])
def test_everything_that_waits_is_found(chains: bool) -> None:
    kernel = Kernel(chains)
    # Two blocks with a leftover behind the last record each, in both halves.
    for half, block in ((0, BLOCKS[0]), (1, BLOCKS[1])):
        head = 0 if chains else kernel.list_head_of(half, 0)
        kernel.fill(block, 2, OBJECTS[2 * half : 2 * half + 3], head)
    # Objects that found no block: one behind the other.
    for at, following in ((4, 5), (5, None)):
        address = OBJECTS[at] + HEAD_OFFSET
        link = 0 if following is None else OBJECTS[following] + HEAD_OFFSET
        kernel.map(address, struct.pack("<2Q", link, HEAD_OFFSET if chains else OBJECTS[at]))
    kernel.write((OBJECTS[4] + HEAD_OFFSET, 0), {0: BLOCKS[0], 2: BLOCKS[1]})
    gathered = kernel.gathered()
    assert waiting(gathered) == [OBJECTS[i] for i in (0, 1, 2, 3, 4, 5)]
    assert gathered.unread == []
    assert sorted(gathered.own) == sorted(
        [
            *((head, head + 8) for head in (KRC, kernel.list_head_of(1, 0) - 8)),
            *((block, block + PAGE) for block in (BLOCKS[0], BLOCKS[1], CACHED)),
        ]
    )


def test_lists_that_cannot_be_followed_cost_what_is_behind() -> None:
    kernel = Kernel(True)
    kernel.fill(BLOCKS[0], 1, [OBJECTS[0]], 0xDEAD000000000000)
    kernel.fill(BLOCKS[1], 5000, [OBJECTS[1]])
    kernel.write((0xDEAD000000000100, 0), {0: BLOCKS[0], 1: BLOCKS[1]})
    gathered = kernel.gathered()
    assert waiting(gathered) == [OBJECTS[0]]
    assert [address for address, _ in gathered.unread] == [
        0xDEAD000000000100,
        KRC + 8,
        KRC + 16,
    ]
    assert "cannot have 5000 records" in gathered.unread[2][1]
    with pytest.raises(FaultError):
        kernel.prog.read(0xDEAD000000000000, 8)


def test_lists_that_run_in_a_circle_end() -> None:
    kernel = Kernel(True)
    kernel.fill(BLOCKS[0], 1, [OBJECTS[0]], BLOCKS[0])
    address = OBJECTS[4] + HEAD_OFFSET
    kernel.map(address, struct.pack("<2Q", address, HEAD_OFFSET))
    kernel.write((0, address), {0: BLOCKS[0]})
    gathered = kernel.gathered()
    assert waiting(gathered) == [OBJECTS[0], OBJECTS[4]]
    assert [reason for _, reason in gathered.unread] == [
        "a list of kfree_rcu() breaks off: it has no end"
    ] * 2
