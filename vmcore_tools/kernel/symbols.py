# SPDX-License-Identifier: LGPL-2.1-or-later
"""Symbols of functions and variables."""

from __future__ import annotations

from typing import Dict, Optional

from drgn import Program

_CACHE_KEY = "vmcore_tools.symbols"


def symbol_address(prog: Program, name: str) -> int:
    """
    The address of a function or variable.

    :return: 0 if the kernel has no such symbol
    """
    known: Dict[str, int] = prog.cache.setdefault(_CACHE_KEY, {})
    if name not in known:
        try:
            known[name] = prog.symbol(name).address
        except LookupError:
            known[name] = 0
    return known[name]


def symbol_name(prog: Program, address: int) -> Optional[str]:
    """
    The function or variable that begins at an address.

    :return: without the compiler's suffix (``foo.isra.0``); None if there is none
    """
    try:
        symbol = prog.symbol(address)
    except LookupError:
        return None
    return symbol.name.partition(".")[0] if symbol.address == address else None
