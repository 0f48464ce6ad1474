# SPDX-License-Identifier: LGPL-2.1-or-later
"""What objects look like."""

from __future__ import annotations

import numpy as np
import pytest

from drgn_scripts.kmalloc_objects import ANALYSIS, Content, classify
from vmcore_tools.asked import comma_separated
from vmcore_tools.model import Kind, columns

POINTER = (0xFFFF888000100000).to_bytes(8, "little")
NUMBER = (12345).to_bytes(8, "little")
ERROR = (-22 & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("data", "content"),
    [
        (b"", Content.ZERO),
        (b"\x6b" * 31 + b"\xa5", Content.POISON),
        (b"\x5a" * 32, Content.POISON),
        (b"virtio_gpu", Content.TEXT),
        (b"two\nlines\twith a tab", Content.TEXT),
        (b"text\0then" + b"\xff\x01" * 8, Content.TEXT),
        (b"x" * 32, Content.TEXT),
        (b"ab", Content.OTHER),
        (b"abc\x01", Content.OTHER),
        (b"caf\xc3\xa9", Content.OTHER),
        (POINTER, Content.POINTERS),
        (NUMBER + POINTER + POINTER, Content.POINTERS),
        (NUMBER + POINTER, Content.POINTERS),
        (NUMBER + NUMBER + POINTER, Content.OTHER),
        (ERROR + ERROR, Content.OTHER),
        (b"\x01", Content.OTHER),
    ],
)
def test_content_classes(data: bytes, content: Content) -> None:
    array = np.frombuffer(data.ljust(32, b"\0"), dtype=np.uint8).reshape(1, 32)
    assert classify(array).tolist() == [content]


def test_small_objects_are_classified_too() -> None:
    data = [b"sda\0\0\0\0\0", b"abcdefgh", POINTER, b"\0" * 8, b"\x01" * 8]
    array = np.frombuffer(b"".join(data), dtype=np.uint8).reshape(-1, 8)
    assert classify(array).tolist() == [
        Content.TEXT,
        Content.TEXT,
        Content.POINTERS,
        Content.ZERO,
        Content.OTHER,
    ]


def test_no_objects() -> None:
    assert classify(np.zeros((0, 96), dtype=np.uint8)).tolist() == []


def test_bytes_of_objects_are_sensitive_and_shown_on_request_only() -> None:
    for row_type in ANALYSIS.tables:
        kinds = dict(columns(row_type))
        if "example_bytes" in kinds:
            assert kinds["example_bytes"] is Kind.SENSITIVE
    (option,) = [option for option in ANALYSIS.options if option.name == "show-bytes"]
    assert option.type is bool and option.default is False


def test_cache_names_are_separated_by_commas() -> None:
    assert comma_separated("kmalloc-96, dentry") == ("kmalloc-96", "dentry")
