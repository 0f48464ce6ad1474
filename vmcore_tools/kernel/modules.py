# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loaded modules."""

from __future__ import annotations

from typing import List, Optional

from drgn import Module, ModuleFileStatus, Program, RelocatableModule


def lacks_debug_info(module: Module) -> bool:
    """Whether it is a loaded module whose debug info was not found."""
    return (
        isinstance(module, RelocatableModule) and module.debug_file_status != ModuleFileStatus.HAVE
    )


def modules_without_debug_info(prog: Program) -> List[Module]:
    """The loaded modules whose debug info was not found, by name."""
    missing = [module for module in prog.modules() if lacks_debug_info(module)]
    return sorted(missing, key=lambda module: module.name)


def module_without_debug_info(prog: Program, address: int) -> Optional[Module]:
    """The module at an address, None if none is there or its debug info was found."""
    try:
        module = prog.module(address)
    except LookupError:
        return None
    return module if lacks_debug_info(module) else None
