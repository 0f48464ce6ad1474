# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names in the kernel's memory: short ones, those without an end, those not in the dump."""

from __future__ import annotations

import pytest
from drgn import Architecture, FaultError, Object, Platform, Program

from vmcore_tools.kernel.strings import NAME_BYTES_MAX, c_string, name_text, text_at

START, SIZE = 0xFFFF888000000000, 1 << 30


class Memory:
    """Memory that begins with a string, behind which no byte is 0."""

    def __init__(self, string: bytes = b"") -> None:
        self.string = string
        self.read_bytes = 0
        self.prog = Program(Platform(Architecture.X86_64))
        self.prog.add_memory_segment(START, SIZE, self._read, False)

    def _read(self, _address: int, count: int, offset: int, _physical: bool) -> bytes:
        self.read_bytes += count
        return self.string[offset : offset + count].ljust(count, b"A")

    def pointer(self, address: int = START) -> Object:
        character = self.prog.int_type("char", 1, True)
        return Object(self.prog, self.prog.pointer_type(character), address)


@pytest.mark.parametrize(
    ("string", "text"),
    [
        (b"kmalloc-128", "kmalloc-128"),
        (b"", ""),
        ("größe".encode(), "größe"),
        (b"\xff\x80a", r"\xff\x80a"),
        (b"x" * NAME_BYTES_MAX, "x" * NAME_BYTES_MAX),
    ],
)
def test_a_name(string: bytes, text: str) -> None:
    memory = Memory(string + b"\0")
    assert c_string(memory.pointer()) == string
    assert name_text(memory.pointer()) == text_at(memory.prog, START) == text


def test_a_name_without_an_end_is_cut_and_no_more_is_read() -> None:
    memory = Memory()
    assert c_string(memory.pointer()) == b"A" * NAME_BYTES_MAX
    assert memory.read_bytes <= 1024


def test_a_name_that_is_not_in_the_dump() -> None:
    memory = Memory()
    for address in (0, START - 8):
        with pytest.raises(FaultError):
            name_text(memory.pointer(address))
    assert text_at(memory.prog, 0) == ""
