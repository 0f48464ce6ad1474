# SPDX-License-Identifier: LGPL-2.1-or-later
"""The free pages of CPUs against the counts that the kernel keeps of them."""

from __future__ import annotations

import numpy as np
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.mmzone import for_each_online_pgdat
from drgn.helpers.linux.percpu import per_cpu_ptr

from tests.dumps.conftest import ShippedDump
from vmcore_tools.kernel.page import PageClass, page_index
from vmcore_tools.kernel.page_lists import for_each_cpu_free_page


def test_as_many_pages_as_the_kernel_counts(shipped: ShippedDump) -> None:
    prog = shipped.target.prog
    counted = sum(
        per_cpu_ptr(zone.pageset, cpu).pcp.count.value_()
        for node in for_each_online_pgdat(prog)
        for zone in node.node_zones
        if zone.present_pages
        for cpu in for_each_possible_cpu(prog)
    )
    pages = list(for_each_cpu_free_page(prog))
    assert len(set(pages)) == len(pages) == counted > 0
    kinds = page_index(prog, shipped.target.memory).kind_of(np.array(pages))
    assert set(kinds.tolist()) == {PageClass.IDLE}
