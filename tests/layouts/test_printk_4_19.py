# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel log before v5.10: records of ``struct printk_log`` in one buffer."""

from __future__ import annotations

import struct
from typing import Iterator, List, Tuple

import pytest
from drgn.helpers import ValidationError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.layouts.machine import Machine
from vmcore_tools.kernel.printk import LogRecord, log_records

BUFFER_BYTES = 512
HEADER_BYTES = 16  # struct printk_log


@pytest.fixture
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine("linux_4_19.c", tmp_path_factory.mktemp("linux"), "4.19.90")
    yield machine
    machine.close()


class LogBuffer:
    """``log_store()`` and what it calls, of printk.c; a record has a dictionary, too."""

    def __init__(self) -> None:
        self.data = bytearray(BUFFER_BYTES)
        self.first = 0
        self.next = 0
        self.first_seq = 0
        self.next_seq = 0

    def store(self, text: bytes) -> None:
        dictionary = b"DEVICE=+pci:%04d" % self.next_seq
        size = -(-(HEADER_BYTES + len(text) + len(dictionary)) // 4) * 4
        while self.first_seq < self.next_seq and not self._has_space(size):
            self.first = self._next_index(self.first)
            self.first_seq += 1
        if self.next + size + HEADER_BYTES > BUFFER_BYTES:
            # An empty record says that the next one is at the start.
            self.data[self.next : self.next + HEADER_BYTES] = bytes(HEADER_BYTES)
            self.next = 0
        lengths = (size, len(text), len(dictionary))
        # Facility 0; LOG_NEWLINE and level 6.
        header = struct.pack("<QHHHBB", self.next_seq * 1000, *lengths, 0, 2 | 6 << 5)
        record = (header + text + dictionary).ljust(size, b"\0")
        self.data[self.next : self.next + size] = record
        self.next += size
        self.next_seq += 1

    def _has_space(self, size: int) -> bool:
        if self.next > self.first:
            free = max(BUFFER_BYTES - self.next, self.first)
        else:
            free = self.first - self.next
        return free >= size + HEADER_BYTES

    def _next_index(self, index: int) -> int:
        length = self.length_at(index)
        return index + length if length else self.length_at(0)

    def length_at(self, index: int) -> int:
        return int(struct.unpack_from("<H", self.data, index + 8)[0])


def boot(machine: Machine, log: LogBuffer) -> None:
    address = machine.alloc(BUFFER_BYTES)
    machine.write(address, bytes(log.data))
    for name, value in (
        ("log_buf", address),
        ("log_buf_len", BUFFER_BYTES),
        ("log_first_idx", log.first),
        ("log_next_idx", log.next),
        ("log_first_seq", log.first_seq),
        ("log_next_seq", log.next_seq),
    ):
        machine.set_variable(name, value)


def log_of(texts: List[bytes]) -> LogBuffer:
    log = LogBuffer()
    for text in texts:
        log.store(text)
    return log


@pytest.mark.parametrize("count", [0, 1, 5, 9, 12, 40])
def test_the_records_that_are_left(machine: Machine, count: int) -> None:
    texts = [b"INFO: task Xorg:%d blocked" % i + b"." * (i % 7) for i in range(count)]
    log = log_of(texts)
    boot(machine, log)

    assert log_records(machine.prog) == [
        LogRecord(seq, seq * 1000, 6, texts[seq], None) for seq in range(log.first_seq, count)
    ]
    assert count < 9 or log.first > log.next  # the end of the lap is on the way


@pytest.mark.parametrize("length", [0, 8, 60000])
def test_a_damaged_length_ends_the_log(machine: Machine, length: int) -> None:
    log = log_of([b"first", b"second", b"third"])
    struct.pack_into("<H", log.data, log.length_at(0) + 8, length)
    boot(machine, log)

    texts = [record.text for record in log_records(machine.prog)]
    assert texts == ([b"first", b"second"] if length > HEADER_BYTES else [b"first"])


def test_a_damaged_text_length_stays_in_the_record(machine: Machine) -> None:
    log = log_of([b"first", b"second"])
    struct.pack_into("<H", log.data, 10, 60000)
    boot(machine, log)

    texts = [record.text for record in log_records(machine.prog)]
    assert texts == [b"firstDEVICE=+pci:0000\0\0\0", b"second"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(
        st.binary(min_size=BUFFER_BYTES, max_size=BUFFER_BYTES),
        # Mostly small lengths, as the header's are.
        st.lists(st.sampled_from([0, 1, 4, 16, 17, 40, 200, 255]), min_size=256, max_size=256).map(
            lambda words: struct.pack("<256H", *words)
        ),
    ),
    indices=st.tuples(*(st.integers(0, 2 * BUFFER_BYTES),) * 2),
    sequences=st.tuples(*(st.integers(0, 2**64 - 1),) * 2),
    size=st.sampled_from([0, 1, 64, BUFFER_BYTES]),
)
def test_any_bytes_end(
    machine: Machine,
    data: bytes,
    indices: Tuple[int, int],
    sequences: Tuple[int, int],
    size: int,
) -> None:
    address = machine.alloc(BUFFER_BYTES)
    machine.write(address, data)
    for name, value in (
        ("log_buf", address),
        ("log_buf_len", size),
        ("log_first_idx", indices[0]),
        ("log_next_idx", indices[1]),
        ("log_first_seq", sequences[0]),
        ("log_next_seq", sequences[1]),
    ):
        machine.set_variable(name, value)
    try:
        records = log_records(machine.prog)
    except ValidationError:
        return
    # Each has at least a header, and nothing of it is from elsewhere.
    assert len(records) <= size // HEADER_BYTES + 1
    assert all(record.text in data[:size] for record in records)
