# SPDX-License-Identifier: LGPL-2.1-or-later
"""How kernels with KASAN are told apart, by the symbols that a test makes up."""

from __future__ import annotations

import types
from typing import Any, Dict, Optional

import pytest

from vmcore_tools.kernel.kasan import has_quarantine, tags_pointers


class Kernel:
    """A program with symbols, and maybe KASAN's switch."""

    def __init__(self, *symbols: str, switch: Optional[int] = None) -> None:
        self.cache: Dict[str, Any] = {}
        self._symbols = symbols
        self._switch = switch

    def symbol(self, name: str) -> Any:
        if name not in self._symbols:
            raise LookupError(name)
        return types.SimpleNamespace(address=0xFFFFFFFF81000000)

    def __getitem__(self, name: str) -> Any:
        assert name == "kasan_flag_enabled"
        if self._switch is None:
            raise KeyError(name)
        counter = types.SimpleNamespace(value_=lambda: self._switch)
        enabled = types.SimpleNamespace(counter=counter)
        return types.SimpleNamespace(key=types.SimpleNamespace(enabled=enabled))


@pytest.mark.parametrize(
    ("kernel", "tags", "quarantine"),
    [
        (Kernel(), False, False),
        (Kernel("global_quarantine"), False, True),
        (Kernel("__hwasan_tag_memory"), True, False),
        (Kernel("kasan_init_hw_tags_cpu", switch=1), True, False),
        (Kernel("kasan_init_hw_tags_cpu", switch=0), False, False),
        (Kernel("kasan_init_hw_tags_cpu"), True, False),
        # Since v6.18 the switch is there in other modes, too.
        (Kernel("global_quarantine", switch=1), False, True),
    ],
    ids=["none", "generic", "software tags", "hardware", "off", "switch unknown", "generic, v6.18"],
)
def test_modes(kernel: Any, tags: bool, quarantine: bool) -> None:
    assert (tags_pointers(kernel), has_quarantine(kernel)) == (tags, quarantine)
