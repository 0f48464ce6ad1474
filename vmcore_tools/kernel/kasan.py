# SPDX-License-Identifier: LGPL-2.1-or-later
"""KASAN: what it does to pointers and to freed objects."""

from __future__ import annotations

from drgn import Program

from vmcore_tools.kernel.symbols import symbol_address


def tags_pointers(prog: Program) -> bool:
    """
    Whether pointers to slab objects have tags in their top byte.

    :raises drgn.FaultError: if KASAN's switch is not in the dump
    """
    # CONFIG_KASAN_SW_TAGS. Compilers call this function; it has been there since v5.0.
    if symbol_address(prog, "__hwasan_tag_memory"):
        return True
    # CONFIG_KASAN_HW_TAGS, which is in force only where the machine has such memory.
    if not symbol_address(prog, "kasan_init_hw_tags_cpu"):
        return False
    try:
        return bool(prog["kasan_flag_enabled"].key.enabled.counter.value_())
    except KeyError:
        return True  # it cannot be told


def has_quarantine(prog: Program) -> bool:
    """
    Whether freed objects are kept for a while, and look allocated (CONFIG_KASAN_GENERIC).

    The list of them goes through what KASAN has behind each object, or in it.
    """
    return bool(symbol_address(prog, "global_quarantine"))
