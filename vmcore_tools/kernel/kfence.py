# SPDX-License-Identifier: LGPL-2.1-or-later
"""KFENCE's pool: pages that look like slabs and are none."""

from __future__ import annotations

from typing import Optional, Tuple

from drgn import Program, TypeKind

# CONFIG_KFENCE_NUM_OBJECTS' default, where the debug info does not tell.
_OBJECTS_DEFAULT = 255


def kfence_pool(prog: Program, page_size_bytes: int) -> Optional[Tuple[int, int]]:
    """
    The address range ``[start, end)`` of the pool of mm/kfence/core.c.

    Its pages are marked as slab pages of the caches whose objects they guard,
    but an object is anywhere in a page, and every other page is a guard.

    :return: None if the kernel has no pool
    :raises drgn.FaultError: if the pointer to it is not in the dump
    """
    try:
        start = prog["__kfence_pool"].value_()
    except KeyError:
        return None
    if not start:
        return None
    objects = _OBJECTS_DEFAULT
    metadata = prog["kfence_metadata"].type_
    if metadata.kind == TypeKind.ARRAY and metadata.length is not None:
        objects = metadata.length
    # KFENCE_POOL_SIZE: a page and a guard page each, and two more in front.
    return start, start + (objects + 1) * 2 * page_size_bytes
