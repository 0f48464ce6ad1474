# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The search for unreachable objects against the scan for references to 10,000 objects.

    python -m benchmarks.slab_leaks [--caches all] [--runs 3] [--core VMCORE --symbols FILE ...]

Both read all of the kernel's memory once; the scan asks of each word whether it points to one
of a few objects, the search follows the pointers between all of them. Each measurement is a
process of its own, and they alternate. Naming what was found is not in it.
"""

from __future__ import annotations

import argparse
import time
from typing import List, Tuple

import numpy as np

from benchmarks.dumps import Dump, dumps, in_fresh_process, median, parser, peak_mib
from benchmarks.reference_scan import scanning
from vmcore_tools.kernel.object_types import is_kmalloc
from vmcore_tools.kernel.reachability import unreachable_objects
from vmcore_tools.kernel.slab import slab_index

_TARGETS = 10_000


def searching(dump: Dump, everything: bool) -> Tuple[float, int, int, float]:
    """Seconds, objects that are judged, those that are unreachable, peak MiB."""
    target = dump.open()
    index = slab_index(target.prog, target.memory)
    judged = np.array([everything or is_kmalloc(cache) for cache in index.caches], dtype=bool)
    start = time.perf_counter()
    found = unreachable_objects(index, judged, lambda items, _what, _total: items)
    seconds = time.perf_counter() - start
    return seconds, int(found.allocated.sum()), len(found.address), peak_mib()


def measure(dump: Dump, options: argparse.Namespace) -> None:
    searches: List[Tuple[float, int, int, float]] = []
    scans: List[float] = []
    for _ in range(options.runs):
        searches.append(in_fresh_process(searching, dump, options.caches == "all"))
        scans.append(in_fresh_process(scanning, dump, _TARGETS)[0])
    search_s, scan_s = median([search[0] for search in searches]), median(scans)
    _, judged, unreachable, peak = searches[0]
    print(f"{dump.name}: {judged:,} objects, {unreachable:,} unreachable")
    print(f"  search: {search_s:.2f} s (goal: at most 5)")
    print(f"  scan for {_TARGETS:,} targets: {scan_s:.2f} s")
    print(f"  ratio: {search_s / scan_s:.2f}")
    print(f"  peak memory: {peak:.0f} MiB", flush=True)


def main() -> None:
    options_parser = parser("the search for unreachable objects against the reference scan")
    options_parser.add_argument("--caches", choices=("kmalloc", "all"), default="kmalloc")
    options = options_parser.parse_args()
    print(f"medians of {options.runs} runs")
    for dump in dumps(options):
        measure(dump, options)


if __name__ == "__main__":
    main()
