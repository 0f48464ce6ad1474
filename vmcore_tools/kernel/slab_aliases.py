# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The names of slab caches that SLUB merged into others.

The list of caches has only the one that was there first. The names of the
others live on in /sys/kernel/slab, as links to it.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple

from drgn import FaultError, Program
from drgn.helpers import ValidationError

from vmcore_tools.kernel.rb_trees import for_each_rb_entry
from vmcore_tools.kernel.slab import SlabCache
from vmcore_tools.kernel.strings import name_text

#: More names than any kernel has.
_NAMES_MAX = 1_000_000
# KERNFS_TYPE_MASK of include/linux/kernfs.h; a macro.
_TYPE_MASK = 0x000F


def merged_names(prog: Program) -> Optional[Dict[int, Tuple[str, ...]]]:
    """
    The names in /sys/kernel/slab that are links, by what they lead to.

    :return: address of a ``struct kernfs_node`` to the sorted names of its
        links; None if the kernel keeps no names, or they cannot be read
    """
    found: Dict[int, List[str]] = {}
    try:
        link = prog.constant("KERNFS_LINK").value_()
        folder = prog["slab_kset"].kobj.sd
        children = folder.dir.children.address_of_()
        for node in for_each_rb_entry("struct kernfs_node", children, "rb", _NAMES_MAX):
            if node.flags.value_() & _TYPE_MASK == link:
                found.setdefault(node.symlink.target_kn.value_(), []).append(name_text(node.name))
    except (AttributeError, LookupError, FaultError, ValidationError):
        return None
    return {target: tuple(sorted(names)) for target, names in found.items()}


def names_of(cache: SlabCache, merged: Dict[int, Tuple[str, ...]]) -> Tuple[str, ...]:
    """
    The names of the caches that were merged into one.

    :param merged: of :func:`merged_names`
    :raises drgn.FaultError: if the cache's own node cannot be read
    """
    names = merged.get(cache.cache.kobj.sd.value_(), ())
    return tuple(name for name in names if name != cache.name)
