# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The scan for references to 10,000 objects against only reading the same pages once.

    python -m benchmarks.reference_scan [--targets 10000] [--runs 3] [--core VMCORE ... ...]

The pages are read in bulk through drgn, as large as drgn takes them. Each measurement is a
process of its own, and they alternate.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, Iterator, List, Tuple

import numpy as np

from benchmarks.dumps import Dump, dumps, in_fresh_process, median, parser, peak_mib
from vmcore_tools.dump.memory import CHUNK_BYTES
from vmcore_tools.kernel.page import NOT_KERNEL, page_index
from vmcore_tools.kernel.references import Targets, scan
from vmcore_tools.kernel.slab import slab_index
from vmcore_tools.target import Target


def _targets(target: Target, count: int) -> Targets:
    """Objects of the cache that has the most slabs."""
    index = slab_index(target.prog, target.memory)
    number = int(np.bincount(index.cache).argmax())
    size = np.uint64(index.caches[number].size_bytes)
    found: List[Any] = []
    for batch in index.batches(np.flatnonzero(index.cache == number)):
        found.append(batch.objects[batch.allocated])
        if sum(len(part) for part in found) >= count:
            break
    start = np.sort(np.concatenate(found)[:count])
    return Targets(start, start + size)


def scanning(dump: Dump, count: int) -> Tuple[float, int, int, int, float]:
    """Seconds, pages read, targets, hits, peak MiB."""
    target = dump.open()
    pages = page_index(target.prog, target.memory)
    targets = _targets(target, count)
    start = time.perf_counter()
    hits, coverage = scan(target.memory, pages, targets, lambda items, _what, _total: items)
    seconds = time.perf_counter() - start
    return seconds, coverage.pages_read, len(targets.start), len(hits.value), peak_mib()


def _kernel_runs(target: Target) -> Iterator[Tuple[int, int]]:
    """The runs of page frames that the scan reads, no longer than one bulk read."""
    pages = page_index(target.prog, target.memory)
    for start, end in target.memory.page_map.runs.tolist():
        pfns = np.arange(start, end, dtype=np.uint64)
        kernel = np.flatnonzero(~np.isin(pages.kind_of(pfns), NOT_KERNEL))
        if not len(kernel):
            continue
        most = CHUNK_BYTES // target.memory.page_map.page_size_bytes
        for run in np.split(kernel, np.flatnonzero(np.diff(kernel) != 1) + 1):
            for first in range(0, len(run), most):
                yield start + int(run[first]), len(run[first : first + most])


def reading(dump: Dump) -> Tuple[float, int]:
    """Seconds and pages of reading alone."""
    target = dump.open()
    page_size = target.memory.page_map.page_size_bytes
    runs = list(_kernel_runs(target))
    start = time.perf_counter()
    for first, count in runs:
        target.prog.read(first * page_size, count * page_size, physical=True)
    return time.perf_counter() - start, sum(count for _, count in runs)


def measure(dump: Dump, options: argparse.Namespace) -> None:
    scans: List[Tuple[float, int, int, int, float]] = []
    reads: List[Tuple[float, int]] = []
    for _ in range(options.runs):
        scans.append(in_fresh_process(scanning, dump, options.targets))
        reads.append(in_fresh_process(reading, dump))
    scan_s, read_s = median([s[0] for s in scans]), median([r[0] for r in reads])
    _, pages, targets, hits, peak = scans[0]
    print(f"{dump.name}: {pages:,} pages of kernel memory")
    print(f"  scan for {targets:,} targets: {scan_s:.2f} s, {hits:,} hits")
    print(f"  reading alone: {read_s:.2f} s, {reads[0][1]:,} pages")
    print(f"  ratio: {scan_s / read_s:.2f} (goal: at most 2)")
    print(f"  peak memory: {peak:.0f} MiB", flush=True)


def main() -> None:
    options_parser = parser("the reference scan against reading the same pages")
    options_parser.add_argument("--targets", type=int, default=10_000)
    options = options_parser.parse_args()
    print(f"medians of {options.runs} runs")
    for dump in dumps(options):
        measure(dump, options)


if __name__ == "__main__":
    main()
