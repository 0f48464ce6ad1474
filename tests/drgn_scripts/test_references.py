# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an argument names, and how references are counted."""

from __future__ import annotations

from typing import Any, Optional

import pytest

from drgn_scripts.references import ANALYSIS, Holder, _kinds, _order
from vmcore_tools.asked import parse_address
from vmcore_tools.model import Absent, Kind, Maybe, columns


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0xffff888000100000", 0xFFFF888000100000),
        ("0XFFFF888000100000", 0xFFFF888000100000),
        ("ffff888000100000", 0xFFFF888000100000),
        ("0x10", 16),
        ("dead", None),  # may be the name of a cache
        ("struct file", None),
        ("0x", None),
        ("0xfence", None),
        ("0x1ffff888000100000", None),
        ("signal_cache_abc", None),
        ("-0x10", None),
        ("", None),
    ],
)
def test_addresses_are_told_from_names(text: str, address: Optional[int]) -> None:
    assert parse_address(text) == address


def holder(target: int, **changes: Any) -> Holder:
    no_task = Absent("it is no task's")
    values: dict[str, Any] = {
        "target": target,
        "target_offset": 0,
        "classed": "unexplained",
        "place": "slab object",
        "holder": "struct sync_file",
        "comm": no_task,
        "pid": no_task,
        "container": 0x1000,
        "offset": 88,
        "field": "fence",
    }
    return Holder(**{**values, **changes})


def test_references_are_counted_by_the_field_that_holds_them() -> None:
    free = "known non-reference: the slab object is free"
    no_type: Maybe[str] = Absent("the holder's type is not known")
    rows = [
        holder(1),
        holder(2, container=0x2000),
        holder(2, container=0x3000),
        holder(2, holder="struct file", offset=8, field="f_op"),
        holder(3, offset=16, field="cb"),
        holder(3, classed=free, offset=0, field=no_type),
        holder(4, classed=free, offset=24, field=no_type),
        holder(5, place="task stack", holder="frame of wait", offset=64, field=no_type),
        holder(6, place="task stack", holder="frame of wait", offset=72, field=no_type),
    ]
    found = [
        (kind.classed, kind.holder, kind.offset, kind.field, kind.references, kind.objects)
        for kind in _kinds(rows)
    ]
    several = Absent("several")
    assert found == [
        ("unexplained", "struct sync_file", 88, "fence", 3, 2),
        ("unexplained", "frame of wait", several, no_type, 2, 2),
        ("unexplained", "struct file", 8, "f_op", 1, 1),
        ("unexplained", "struct sync_file", 16, "cb", 1, 1),
        (free, "struct sync_file", several, no_type, 2, 2),
    ]
    assert next(iter(_kinds(rows))).example_container == 0x1000


def test_what_may_be_a_reference_comes_first() -> None:
    rows = [
        holder(1, classed="known non-reference: the slab object is free"),
        holder(2, container=0x3000),
        holder(3, place="kernel data", holder="init_task"),
        holder(4, container=0x2000),
    ]
    assert [row.target for row in sorted(rows, key=_order)] == [3, 4, 2, 1]


def test_a_comm_can_be_masked() -> None:
    assert dict(columns(Holder))["comm"] is Kind.SENSITIVE


def test_it_needs_an_argument_and_is_not_in_triage() -> None:
    assert ANALYSIS.argument is not None
    assert ANALYSIS.argument.metavar == "ADDRESS|TYPE"
    assert not ANALYSIS.in_triage
