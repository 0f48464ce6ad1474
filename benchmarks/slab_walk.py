# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Walks of slab caches against drgn's and against the start of crash.

    python -m benchmarks.slab_walk [--cache NAME] [--runs 3] [--core VMCORE ... --symbols FILE ...]

Each measurement is a process of its own, and they alternate, so that whatever else the
machine does hits all alike. Without --core, the lab makes a dump of 4 GiB (1 GB to download
once), and one of 512 MiB with the same kernel: the difference is what a GiB of RAM costs.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
import sys
import time
import zlib
from typing import List, Optional, Tuple

import numpy as np
from drgn.helpers.linux.slab import find_slab_cache, slab_cache_for_each_allocated_object

from benchmarks.dumps import Dump, dumps, in_fresh_process, median, parser, peak_mib, ram_gib
from vmcore_tools.kernel.slab import slab_index

#: Seconds after which crash has not started.
_CRASH_TIMEOUT_S = 300.0


def _checksum(addresses: np.typing.NDArray[np.uint64]) -> int:
    return zlib.crc32(np.sort(addresses).tobytes())


def ours_of_one_cache(dump: Dump, name: str) -> Tuple[float, int, int]:
    """Seconds, objects and a checksum of their addresses; the opening does not count."""
    target = dump.open()
    start = time.perf_counter()
    index = slab_index(target.prog, target.memory)
    number = [cache.name for cache in index.caches].index(name)
    rows = np.flatnonzero(index.cache == number)
    objects = [batch.objects[batch.allocated] for batch in index.batches(rows)]
    found = np.concatenate([np.zeros(0, dtype=np.uint64), *objects])
    seconds = time.perf_counter() - start
    return seconds, len(found), _checksum(found)


def drgn_of_one_cache(dump: Dump, name: str) -> Tuple[float, int, int]:
    """The same by drgn."""
    target = dump.open()
    start = time.perf_counter()
    cache = find_slab_cache(target.prog, name)
    found = [obj.value_() for obj in slab_cache_for_each_allocated_object(cache, "void")]
    seconds = time.perf_counter() - start
    return seconds, len(found), _checksum(np.array(found, dtype=np.uint64))


def ours_of_all_caches(dump: Dump, keeps: bool = True) -> Tuple[float, int, float]:
    """Seconds with the opening, allocated objects, peak MiB; *keeps*: pages that were read."""
    start = time.perf_counter()
    target = dump.open()
    memory = target.memory if keeps else dataclasses.replace(target.memory, held_bytes_max=0)
    index = slab_index(target.prog, memory)
    count = sum(int(batch.allocated.sum()) for batch in index.batches())
    return time.perf_counter() - start, count, peak_mib()


def opening(dump: Dump) -> Tuple[float, float, float]:
    """Seconds and peak MiB of only opening the dump, and GiB of RAM in it."""
    start = time.perf_counter()
    target = dump.open()
    return time.perf_counter() - start, peak_mib(), ram_gib(target)


def crash_start(dump: Dump) -> Optional[float]:
    """Seconds until crash takes its first command; None if it does not get there."""
    command = ["crash", "-s", str(dump.symbols[0]), str(dump.core)]
    start = time.perf_counter()
    try:
        result = subprocess.run(
            command,
            input=b"quit\n",
            capture_output=True,
            timeout=_CRASH_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    return time.perf_counter() - start if result.returncode == 0 else None


def over_the_open_program(dump: Dump, runs: int) -> Tuple[float, float]:
    """Peak MiB of a walk of all caches that keeps no page of the dump, and GiB of RAM in it."""
    walks = [in_fresh_process(ours_of_all_caches, dump, False)[2] for _ in range(runs)]
    opened = [in_fresh_process(opening, dump) for _ in range(runs)]
    return median(walks) - median([o[1] for o in opened]), opened[0][2]


def print_growth(dump: Dump, runs: int) -> None:
    """What each GiB of RAM adds, from a smaller dump of the same kernel to this one."""
    if dump.smaller is None:
        return
    small_mib, small_gib = over_the_open_program(dump.smaller, runs)
    large_mib, large_gib = over_the_open_program(dump, runs)
    slope = (large_mib - small_mib) / (large_gib - small_gib)
    print(f"  growth with --max-memory 0: {slope:.0f} MiB for each GiB of RAM", end="")
    print(f" ({small_mib:.0f} MiB at {small_gib:.1f} GiB, {large_mib:.0f} at {large_gib:.1f})")


def measure(dump: Dump, options: argparse.Namespace) -> None:
    ours: List[Tuple[float, int, int]] = []
    drgn: List[Tuple[float, int, int]] = []
    everything: List[Tuple[float, int, float]] = []
    opened: List[Tuple[float, float, float]] = []
    crash: List[Optional[float]] = []
    for _ in range(options.runs):
        ours.append(in_fresh_process(ours_of_one_cache, dump, options.cache))
        drgn.append(in_fresh_process(drgn_of_one_cache, dump, options.cache))
        everything.append(in_fresh_process(ours_of_all_caches, dump))
        opened.append(in_fresh_process(opening, dump))
        if shutil.which("crash"):
            crash.append(crash_start(dump))
    ours_s, drgn_s = median([o[0] for o in ours]), median([d[0] for d in drgn])
    all_s = median([e[0] for e in everything])
    print(f"{dump.name}: {opened[0][2]:.1f} GiB of RAM, {everything[0][1]:,} allocated objects")
    print(f"  {options.cache}, vmcore-tools: {ours_s:.3f} s, {ours[0][1]:,} objects")
    print(f"  {options.cache}, drgn:         {drgn_s:.3f} s, {drgn[0][1]:,} objects")
    same = ours[0][1:] == drgn[0][1:]
    print(f"  the same addresses: {'yes' if same else 'NO'}")
    print(f"  ratio: {drgn_s / ours_s:.1f} (goal: at least 20)")
    print(f"  all caches, with opening the dump: {all_s:.2f} s")
    started = [seconds for seconds in crash if seconds is not None]
    if started:
        faster = median(started) / all_s
        print(f"  crash, start alone: {median(started):.2f} s; ratio: {faster:.1f} (goal: over 1)")
    else:
        print(f"  crash: {'did not start' if crash else 'is not installed'}")
    over = max(e[2] for e in everything) - max(o[1] for o in opened)
    print(f"  peak memory over the open program: {over:.0f} MiB (goal: less than 1024)")
    print_growth(dump, options.runs)
    sys.stdout.flush()


def main() -> None:
    options_parser = parser("slab walks against drgn and crash")
    options_parser.add_argument("--cache", default="kmalloc-128", help="the one cache")
    options = options_parser.parse_args()
    print(f"medians of {options.runs} runs")
    for dump in dumps(options):
        measure(dump, options)


if __name__ == "__main__":
    main()
