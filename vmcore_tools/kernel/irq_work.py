# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the members of a ``struct irq_work`` are."""

from __future__ import annotations

from drgn import Type, TypeKind

#: IRQ_WORK_PENDING and IRQ_WORK_BUSY, macros in include/linux/irq_work.h.
CLAIMED = 3


def flags_member(type_: Type, work: str) -> str:
    """
    The designator of an irq_work's flags.

    :param type_: the structure that has it
    :param work: the name of its member
    """
    irq_work = type_.member(work).type
    # Up to v5.10 there is a member of its own; before v5.8 only that.
    if irq_work.has_member("node"):
        return f"{work}.node.a_flags.counter"
    # "irq_work: Convert flags to atomic_t" of v5.5.
    is_atomic = irq_work.member("flags").type.kind == TypeKind.TYPEDEF
    return f"{work}.flags.counter" if is_atomic else f"{work}.flags"


def link_member(type_: Type, work: str) -> str:
    """
    The designator of its link to the one that was queued before it; nobody ever clears it.

    :param type_: the structure that has it
    :param work: the name of its member
    """
    has_node = type_.member(work).type.has_member("node")
    return f"{work}.node.llist.next" if has_node else f"{work}.llnode.next"
