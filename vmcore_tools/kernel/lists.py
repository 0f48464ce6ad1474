# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lists that may be damaged: what can be reached from either end."""

from __future__ import annotations

from typing import Iterator, List, Optional, Set

from drgn import FaultError, Object, container_of
from drgn.helpers import ValidationError
from drgn.helpers.linux.list import validate_list_for_each


def for_each_entry(type_name: str, head: Object, member: str, limit: int) -> Iterator[Object]:
    """
    Iterate over the entries of a list, from both ends if it is damaged.

    A wrong pointer hides nothing that the pointers the other way lead to: first come
    the entries up to the damage, then those behind it, and then it is raised.

    :param type_name: of an entry: ``struct kmem_cache``
    :param head: ``struct list_head *``
    :param member: the list's member of an entry
    :param limit: more entries than there can be
    :return: Iterator of pointers to entries
    :raises drgn.FaultError: at the end, if a part could not be read
    :raises drgn.helpers.ValidationError: at the end, if it is damaged
    """
    type_ = head.prog_.type(type_name)
    seen: Set[int] = set()
    damage: Optional[Exception] = None
    try:
        # drgn looks at the links between entries only: the first one's could lead anywhere.
        if head.next.prev != head:
            raise ValidationError(f"the list at 0x{head.value_():x} does not begin there")
        for node in validate_list_for_each(head):
            address = node.value_()
            if address in seen or len(seen) >= limit:
                raise ValidationError(f"the list comes back to 0x{address:x}")
            seen.add(address)
            yield container_of(node, type_, member)
    except (FaultError, ValidationError) as error:
        damage = error
    if damage is not None:
        for node in reversed(_backwards(head, seen, limit)):
            yield container_of(node, type_, member)
        raise damage


def _backwards(head: Object, seen: Set[int], limit: int) -> List[Object]:
    """The nodes from the end up to one that was seen, or is linked to no other."""
    found: List[Object] = []
    addresses: Set[int] = set()
    head = following = head.read_()
    try:
        while len(found) < limit:
            node = following.prev.read_()
            address = node.value_()
            if node == head or address in seen or address in addresses or node.next != following:
                break
            addresses.add(address)
            found.append(node)
            following = node
    except FaultError:
        pass  # the damage on the way there is told
    return found
