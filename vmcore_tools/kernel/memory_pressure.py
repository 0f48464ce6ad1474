# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nodes that are short of free pages, and tasks that reclaim some. Mirrors ``mm/vmscan.c``."""

from __future__ import annotations

import dataclasses
from typing import Dict, Iterator, Optional, Tuple

from drgn import Object, Program, container_of
from drgn.helpers.linux.mmzone import for_each_online_pgdat

from vmcore_tools.kernel.strings import name_text
from vmcore_tools.kernel.task import stack_range

# mm/internal.h: MAX_RECLAIM_RETRIES, a macro; the same since v4.11.
_RECLAIM_RETRIES_MAX = 16
_FIXED_1 = 1 << 11  # include/linux/sched/loadavg.h


@dataclasses.dataclass(frozen=True)
class ZonePages:
    """
    :ivar free: pages, as far as the CPUs have added them up
    :ivar minimum: the watermark below which only those that free memory get some
    """

    name: str
    free: int
    minimum: int
    managed: int


@dataclasses.dataclass(frozen=True)
class NodePages:
    """
    A node and the pages of its zones.

    :ivar pgdat: ``struct pglist_data *``
    :ivar failures: how often kswapd has in a row reclaimed nothing
    """

    pgdat: Object
    number: int
    zones: Tuple[ZonePages, ...]
    failures: int

    @property
    def below_minimum(self) -> bool:
        """Whether no zone has as many free pages as its watermark."""
        return bool(self.zones) and all(zone.free < zone.minimum for zone in self.zones)

    @property
    def throttles(self) -> bool:
        """Whether ``allow_direct_reclaim()`` keeps tasks waiting, as near as pages tell."""
        reserve = sum(zone.minimum for zone in self.zones)
        free = sum(zone.free for zone in self.zones)
        return self.failures < _RECLAIM_RETRIES_MAX and reserve > 0 and free <= reserve // 2


def node_pages(pgdat: Object) -> NodePages:
    """
    :param pgdat: ``struct pglist_data *``
    """
    prog = pgdat.prog_
    free, minimum = prog.constant("NR_FREE_PAGES"), prog.constant("WMARK_MIN")
    zones = []
    for zone in pgdat.node_zones[: pgdat.nr_zones]:
        managed = zone.managed_pages
        # 9705bea5f833 ("mm: convert zone->managed_pages to atomic variable") in v5.0.
        managed = managed.counter if hasattr(managed, "counter") else managed
        if not managed.value_():
            continue
        # a9214443c254 ("mm: move zone watermark accesses behind an accessor") in v5.0.
        marks = zone.member_("_watermark") if hasattr(zone, "_watermark") else zone.watermark
        zones.append(
            ZonePages(
                name_text(zone.name),
                max(0, int(zone.vm_stat[free].counter.value_())),
                int(marks[minimum].value_()),
                int(managed.value_()),
            )
        )
    failures = pgdat.kswapd_failures
    # It became atomic in v6.18.
    failures = failures.counter if hasattr(failures, "counter") else failures
    number = int(pgdat.node_id.value_())
    return NodePages(pgdat, number, tuple(zones), int(failures.value_()))


def reclaim_queues(prog: Program) -> Dict[int, Object]:
    """
    The wait queues of tasks that reclaim too fast, or for nothing, by their addresses.

    :return: ``struct pglist_data *`` of each
    """
    queues = {}
    for pgdat in for_each_online_pgdat(prog):
        queues[pgdat.pfmemalloc_wait.address_of_().value_()] = pgdat
        # 8cd7c588decf ("mm/vmscan: throttle reclaim until some writeback
        # completes if congested") in v5.16.
        if hasattr(pgdat, "reclaim_wait"):
            for queue in pgdat.reclaim_wait:
                queues[queue.address_of_().value_()] = pgdat
    return queues


def scan_control(task: Object) -> Optional[Object]:
    """
    What a task reclaims pages for.

    :param task: ``struct task_struct *``
    :return: ``struct scan_control *`` on its stack; None if it reclaims none
    """
    # 1732d2b01194 ("mm/vmscan.c: calculate reclaimed slab caches in all
    # reclaim paths") in v5.4: before, it is not in the same structure.
    state = task.reclaim_state.read_()
    low, high = stack_range(task)
    if not low <= state.value_() < high:
        return None
    try:
        control = container_of(state, "struct scan_control", "reclaim_state")
    except LookupError:
        return None
    return control if low <= control.value_() else None


def memory_stalled_percent(prog: Program) -> Optional[float]:
    """
    For how much of the last minute nobody got on for want of memory (/proc/pressure/memory).

    :return: None without CONFIG_PSI, or where it is turned off
    """
    try:
        group = prog["psi_system"]
        full = prog.constant("PSI_MEM_FULL").value_()
        return float(group.avg[full][1].value_()) / _FIXED_1
    except (LookupError, AttributeError):
        return None


def for_each_node(prog: Program) -> Iterator[NodePages]:
    """Iterate over the nodes that have memory."""
    for pgdat in for_each_online_pgdat(prog):
        pages = node_pages(pgdat)
        if pages.zones:
            yield pages
