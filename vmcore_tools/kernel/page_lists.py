# SPDX-License-Identifier: LGPL-2.1-or-later
"""Free pages that CPUs keep for themselves."""

from __future__ import annotations

from typing import Iterator

from drgn import Object, Program
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.list import validate_list_for_each_entry
from drgn.helpers.linux.mm import page_to_pfn
from drgn.helpers.linux.mmzone import for_each_online_pgdat
from drgn.helpers.linux.percpu import per_cpu_ptr

#: CPUs keep a few hundred pages each; a damaged list must end.
_PAGES_MAX = 100_000


def for_each_cpu_free_page(prog: Program) -> Iterator[int]:
    """
    The frames of pages on CPUs' free lists: the first one of each block.

    Mirrors ``free_pcppages_bulk()`` of mm/page_alloc.c.

    :raises drgn.FaultError: if a list is not in the dump
    :raises drgn.helpers.ValidationError: if a list is damaged
    """
    count = 0
    for node in for_each_online_pgdat(prog):
        for zone in node.node_zones:
            for lists in _lists(zone):
                for head in lists:
                    for page in validate_list_for_each_entry(
                        "struct page", head.address_of_(), "lru"
                    ):
                        count += 1
                        if count > _PAGES_MAX:
                            return
                        yield page_to_pfn(page).value_()


def _lists(zone: Object) -> Iterator[Object]:
    """``struct list_head []`` of each CPU."""
    # "mm/page_alloc: Split per cpu page lists and zone stats" of v5.14.
    split = hasattr(zone, "per_cpu_pageset")
    per_cpu = zone.per_cpu_pageset if split else zone.pageset
    if not per_cpu:
        return  # an empty zone
    for cpu in for_each_possible_cpu(zone.prog_):
        pageset = per_cpu_ptr(per_cpu, cpu)
        yield pageset.lists if split else pageset.pcp.lists
