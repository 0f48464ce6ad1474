# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loaded modules."""

from __future__ import annotations

from typing import List

from drgn import Module, ModuleFileStatus, Program, RelocatableModule


def modules_without_debug_info(prog: Program) -> List[Module]:
    """The loaded modules whose debug info was not found, by name."""
    missing = [
        module
        for module in prog.modules()
        if isinstance(module, RelocatableModule)
        and module.debug_file_status != ModuleFileStatus.HAVE
    ]
    return sorted(missing, key=lambda module: module.name)
