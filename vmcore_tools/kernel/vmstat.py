# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's own counters of pages, also what CPUs have not added up yet."""

from __future__ import annotations

import dataclasses
from typing import Iterator

from drgn import Object, Program
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.mmzone import for_each_online_pgdat
from drgn.helpers.linux.percpu import per_cpu_ptr
from drgn.helpers.linux.vmstat import global_node_page_state, global_zone_page_state


@dataclasses.dataclass(frozen=True)
class Counter:
    """
    A counter, in its own unit: pages for nearly all of them.

    :ivar shown: what /proc/vmstat and /proc/meminfo show
    :ivar exact: with the differences that the CPUs keep to themselves
    """

    shown: int
    exact: int


def page_counter(prog: Program, name: str) -> Counter:
    """
    Read a counter of ``enum node_stat_item`` or ``enum zone_stat_item``.

    Mirrors ``global_node_page_state()`` and ``zone_page_state_snapshot()`` of
    include/linux/vmstat.h, for all CPUs that can be: one that a panic stopped
    is not online, and its differences were never added.

    :param name: such as ``"NR_FILE_PAGES"``
    :raises LookupError: if the kernel has no such counter
    :raises drgn.FaultError: if it cannot be read
    """
    item = prog.constant(name)
    if item.type_.type_name() == "enum node_stat_item":
        shown = int(global_node_page_state(prog, item))
        return Counter(shown, max(0, shown + _node_differences(prog, item)))
    shown = int(global_zone_page_state(prog, item))
    return Counter(shown, max(0, shown + _zone_differences(prog, item)))


def _node_differences(prog: Program, item: Object) -> int:
    return sum(
        per_cpu_ptr(pgdat.per_cpu_nodestats, cpu).vm_node_stat_diff[item].value_()
        for pgdat in for_each_online_pgdat(prog)
        for cpu in for_each_possible_cpu(prog)
    )


def pages_on_cpu_lists(prog: Program) -> int:
    """
    Free pages that the CPUs keep for themselves (``struct per_cpu_pages``).

    :raises drgn.FaultError: if they cannot be read
    """
    total = 0
    for zone in _populated_zones(prog):
        for cpu in for_each_possible_cpu(prog):
            try:
                lists = per_cpu_ptr(zone.per_cpu_pageset.read_(), cpu)
            except AttributeError:  # before v5.14, as below
                lists = per_cpu_ptr(zone.pageset.read_(), cpu).pcp
            total += lists.count.value_()
    return total


def _zone_differences(prog: Program, item: Object) -> int:
    total = 0
    for zone in _populated_zones(prog):
        # 28f836b6777b ("mm/page_alloc: split per cpu page lists and zone
        # stats") in v5.14.
        try:
            per_cpu = zone.per_cpu_zonestats.read_()
        except AttributeError:
            per_cpu = zone.pageset.read_()
        for cpu in for_each_possible_cpu(prog):
            total += per_cpu_ptr(per_cpu, cpu).vm_stat_diff[item].value_()
    return total


def _populated_zones(prog: Program) -> Iterator[Object]:
    """``populated_zone()``: the other zones share the CPUs' boot-time structures."""
    for pgdat in for_each_online_pgdat(prog):
        for zone in pgdat.node_zones[: pgdat.nr_zones]:
            if zone.present_pages.value_():
                yield zone
