# SPDX-License-Identifier: LGPL-2.1-or-later
"""Red-black trees, damaged ones as well: drgn's helpers do not end where they have a cycle."""

from __future__ import annotations

from typing import Iterator, List, Set

from drgn import Object, container_of
from drgn.helpers import ValidationError


def for_each_rb_entry(type_name: str, root: Object, member: str, limit: int) -> Iterator[Object]:
    """
    Iterate over the entries of a red-black tree in their order, with an end.

    :param type_name: the entries' type
    :param root: ``struct rb_root *``
    :param member: name of the ``struct rb_node`` in it
    :param limit: no tree has more entries
    :return: Iterator of ``type_name *``
    :raises drgn.FaultError: if a node is not in the dump
    :raises drgn.helpers.ValidationError: if the tree has a cycle, or too many entries
    """
    type_ = root.prog_.type(type_name)
    seen: Set[int] = set()
    above: List[Object] = []
    node = root.rb_node.read_()
    while node or above:
        while node:
            address = node.value_()
            if address in seen or len(seen) >= limit:
                raise ValidationError("a red-black tree has a cycle")
            seen.add(address)
            above.append(node)
            node = node.rb_left.read_()
        node = above.pop()
        yield container_of(node, type_, member)
        node = node.rb_right.read_()
