# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loaded modules."""

from __future__ import annotations

import dataclasses
from typing import List, Optional, Tuple

from drgn import FaultError, Module, ModuleFileStatus, Program, RelocatableModule
from drgn.helpers import ValidationError

from vmcore_tools.kernel.lists import for_each_entry

#: More than any kernel loads; a cycle must end.
_MODULES_MAX = 65536


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


@dataclasses.dataclass(frozen=True)
class ModuleList:
    """
    The kernel's own list of its modules.

    :ivar names: of those that could be read
    :ivar damage: why it is not whole, None if it is
    """

    names: Tuple[str, ...]
    damage: Optional[str]


def module_list(prog: Program) -> ModuleList:
    """
    The loaded modules, also those that drgn could not make use of.

    :raises LookupError: if there is no list (CONFIG_MODULES is off)
    """
    names: List[str] = []
    damage = None
    head = prog["modules"].address_of_()
    try:
        for module in for_each_entry("struct module", head, "list", _MODULES_MAX):
            names.append(module.name.string_().decode(errors="backslashreplace"))
    except (FaultError, ValidationError) as error:
        damage = str(error)
    return ModuleList(tuple(names), damage)


def modules_left_out(prog: Program, listed: ModuleList) -> List[str]:
    """Loaded modules of which drgn knows nothing."""
    known = {module.name for module in prog.modules() if isinstance(module, RelocatableModule)}
    return sorted(set(listed.names) - known)
