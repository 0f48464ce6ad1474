# SPDX-License-Identifier: LGPL-2.1-or-later
"""The text of log records, in rings that the test writes as printk_ringbuffer.c does."""

from __future__ import annotations

from typing import List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcore_tools.kernel.printk import block_text

RING_BYTES = 256
ID_BYTES = 8


def write_records(texts: List[bytes]) -> Tuple[bytes, List[Tuple[int, int]]]:
    """A data ring after ``data_alloc()`` of each text, and each block's positions."""
    ring = bytearray(b"\xee" * RING_BYTES)
    positions = []
    begin = RING_BYTES  # the first lap's positions are not those of the ring's start
    for number, text in enumerate(texts):
        # to_blk_size() and get_next_lpos() of printk_ringbuffer.c.
        size = -(-(ID_BYTES + len(text)) // 8) * 8
        following = begin + size
        at = begin % RING_BYTES
        if begin // RING_BYTES != (following - 1) // RING_BYTES:
            following = (begin // RING_BYTES + 1) * RING_BYTES + size
            at = 0
        ring[at : at + ID_BYTES] = number.to_bytes(ID_BYTES, "little")
        ring[at + ID_BYTES : at + ID_BYTES + len(text)] = text
        positions.append((begin, following))
        begin = following
    return bytes(ring), positions


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=40))
def test_the_records_that_still_fit_have_their_text(texts: List[bytes]) -> None:
    ring, positions = write_records(texts)
    head = positions[-1][1]
    for text, (begin, following) in zip(texts, positions):
        if begin >= head - RING_BYTES and following >= head - RING_BYTES + len(text) + 16:
            assert block_text(ring, begin, following, len(text)) == text


def test_the_record_that_wraps_is_whole() -> None:
    texts = [b"a" * 70, b"b" * 70, b"c" * 70, b"INFO: task Xorg:48 blocked"]
    ring, positions = write_records(texts)
    begin, following = positions[-1]
    assert begin // RING_BYTES != following // RING_BYTES  # it does wrap
    assert block_text(ring, begin, following, len(texts[-1])) == texts[-1]


def test_a_record_that_ends_with_the_ring_does_not_wrap() -> None:
    texts = [b"a" * 120, b"b" * 120]
    ring, positions = write_records(texts)
    assert positions[-1][1] % RING_BYTES == 0
    assert block_text(ring, *positions[-1], 120) == texts[-1]


@given(
    st.binary(min_size=16, max_size=64),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 16) - 1),
)
def test_a_damaged_record_has_no_more_text_than_the_ring(
    ring: bytes, begin: int, following: int, length: int
) -> None:
    text = block_text(ring, begin, following, length)
    assert text is None or (len(text) <= min(length, len(ring)) and text in ring)


def test_a_record_without_data_has_no_text() -> None:
    assert block_text(bytes(RING_BYTES), 1, 1, 0) is None


@pytest.mark.parametrize("length", [1000, 65535])
def test_a_damaged_length_stays_in_the_block(length: int) -> None:
    ring, positions = write_records([b"hello", b"other"])
    assert block_text(ring, *positions[0], length) == b"hello\xee\xee\xee"
