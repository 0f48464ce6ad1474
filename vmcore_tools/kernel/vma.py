# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an address space has at an address; drgn's look-up does not end in a damaged tree."""

from __future__ import annotations

from drgn import Object, container_of
from drgn.helpers import ValidationError

# include/linux/maple_tree.h, lib/maple_tree.c: macros.
_NODE_MASK = 255
_TYPE_SHIFT, _TYPE_MASK = 3, 15
_XA_INTERNAL_MAX = 4096
#: MAPLE_HEIGHT_MAX; a red-black tree of as many areas as fit is less than four times as deep.
_MAPLE_HEIGHT_MAX = 31
_RB_HEIGHT_MAX = 4 * _MAPLE_HEIGHT_MAX


def vma_at(mm: Object, address: int) -> int:
    """
    The area of an address space that an address is in. Mirrors ``vma_lookup()``.

    :param mm: ``struct mm_struct *``
    :return: address of a ``struct vm_area_struct``, 0 if there is none
    :raises drgn.FaultError: if a node is not in the dump
    :raises drgn.helpers.ValidationError: if the tree is damaged
    """
    # 524e00b36e8c ("mm: remove rb tree.") in v6.1.
    if hasattr(mm, "mm_mt"):
        return _in_maple_tree(mm.mm_mt.ma_root, address)
    return _in_rb_tree(mm.mm_rb.rb_node, address)


def _in_maple_tree(root: Object, index: int) -> int:
    """Mirrors ``mas_walk()``."""
    prog, entry = root.prog_, int(root.value_())
    leaf, ranges = (prog.constant(name).value_() for name in ("maple_leaf_64", "maple_range_64"))
    allocation = prog.constant("maple_arange_64").value_()
    if entry & 3 != 2 or entry <= _XA_INTERNAL_MAX:  # xa_is_node()
        return 0  # without any, or with one entry for the index 0
    for _ in range(_MAPLE_HEIGHT_MAX):
        node = Object(prog, "struct maple_node *", entry & ~_NODE_MASK)
        kind = entry >> _TYPE_SHIFT & _TYPE_MASK
        if kind not in (leaf, ranges, allocation):
            raise ValidationError(f"a maple tree has a node of type {kind}")
        part = (node.ma64 if kind == allocation else node.mr64).read_()
        pivots = [int(pivot.value_()) for pivot in part.pivot]
        # Behind the last entry pivots are 0; the last range goes up to the node's end.
        for slot, pivot in enumerate(pivots):
            if pivot >= index or (slot and not pivot):
                break
        else:
            slot = len(pivots)
        entry = int(part.slot[slot].value_())
        if kind == leaf:
            return entry if entry & 3 == 0 else 0
    raise ValidationError("a maple tree has no leaf")


def _in_rb_tree(node: Object, address: int) -> int:
    node = node.read_()
    for _ in range(_RB_HEIGHT_MAX):
        if not node:
            return 0
        vma = container_of(node, "struct vm_area_struct", "vm_rb")
        if address < vma.vm_start.value_():
            node = node.rb_left.read_()
        elif address >= vma.vm_end.value_():
            node = node.rb_right.read_()
        else:
            return int(vma.value_())
    raise ValidationError("a red-black tree does not end")
