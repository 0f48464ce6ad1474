# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where KFENCE's pool is, as kernels before and after v6.6 keep it."""

from __future__ import annotations

from typing import Any, Dict

import pytest
from drgn import TypeKind

from vmcore_tools.kernel.kfence import kfence_pool

POOL = 0xFFFF888010000000


class Variable:
    def __init__(self, value: int = 0, length: Any = None) -> None:
        self._value = value
        self.type_ = self
        self.kind = TypeKind.POINTER if length is None else TypeKind.ARRAY
        self.length = length

    def value_(self) -> int:
        return self._value


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"__kfence_pool": Variable(0)}, None),
        (
            {"__kfence_pool": Variable(POOL), "kfence_metadata": Variable(length=63)},
            (POOL, POOL + 64 * 2 * 4096),
        ),
        (
            {"__kfence_pool": Variable(POOL), "kfence_metadata": Variable()},
            (POOL, POOL + 256 * 2 * 4096),
        ),
    ],
)
def test_the_pool_has_two_pages_for_each_object(variables: Dict[str, Any], expected: Any) -> None:
    assert kfence_pool(variables, 4096) == expected  # type: ignore[arg-type]
