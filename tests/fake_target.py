# SPDX-License-Identifier: LGPL-2.1-or-later
"""A target without a kernel: for the tests of what runs analyses."""

from __future__ import annotations

from typing import Any, Iterable, List, Optional, Sequence, cast

from drgn import (
    Architecture,
    Platform,
    Program,
    Symbol,
    SymbolBinding,
    SymbolKind,
    Type,
    TypeKind,
)

from vmcore_tools.analysis import Analysis
from vmcore_tools.debug_info import DebugInfo
from vmcore_tools.dump.memory import Memory
from vmcore_tools.model import Evidence, Kind, Report
from vmcore_tools.runner import run
from vmcore_tools.target import Target

COMPLETE = DebugInfo(vmlinux_loaded=True)

FACTS = (Evidence("kernel_release", Kind.UNTRUSTED, "5.10.262"),)


def program(
    types: Sequence[str] = (), incomplete: Sequence[str] = (), symbols: Sequence[str] = ()
) -> Program:
    """A program in whose debug info are these structures (by tag) and symbols."""
    prog = Program(Platform(Architecture.X86_64))

    def find_type(
        prog: Program, kinds: Iterable[TypeKind], name: str, filename: Optional[str]
    ) -> Optional[Type]:
        if TypeKind.STRUCT not in kinds:
            return None
        if name in types:
            return prog.struct_type(name, 8, ())
        return prog.struct_type(name) if name in incomplete else None

    def find_symbol(
        prog: Program, name: Optional[str], address: Optional[int], one: bool
    ) -> List[Symbol]:
        if name not in symbols:
            return []
        return [Symbol(cast(str, name), 0x1000, 8, SymbolBinding.GLOBAL, SymbolKind.FUNC)]

    prog.register_type_finder("fake", find_type, enable_index=0)
    prog.register_symbol_finder("fake", find_symbol, enable_index=0)
    return prog


def target(prog: Optional[Program] = None, debug_info: DebugInfo = COMPLETE) -> Target:
    return Target(prog or program(), cast(Memory, None), FACTS, debug_info)


def run_all(
    *analyses: Analysis,
    on: Optional[Target] = None,
    limit: Optional[int] = None,
    **options: Any,
) -> Report:
    """Run on a fake target, without a progress bar."""
    return run(
        on or target(), analyses, options, limit=limit, progress=lambda items, what, total: items
    )
