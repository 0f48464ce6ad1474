# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loaded modules."""

from __future__ import annotations

from typing import List, Optional

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


def module_list_problem(prog: Program) -> Optional[str]:
    """Why modules can be missing in drgn's list of them, None if none is."""
    try:
        head = prog["modules"].address_of_()
        for module in for_each_entry("struct module", head, "list", _MODULES_MAX):
            module.name.string_()
    except KeyError:
        return None  # CONFIG_MODULES is off
    except (FaultError, ValidationError) as error:
        return str(error)
    return None
