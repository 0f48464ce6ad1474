# SPDX-License-Identifier: LGPL-2.1-or-later
"""
GEM objects: 100,000 of them, against drgn's opening of the dump.

    python -m benchmarks.gem_objects [--runs 3]

Each measurement is a process of its own, and they alternate. The large dump is the lab's: one
client of virtio_gpu with 100,000 objects, and some others with leaked references.
"""

from __future__ import annotations

import argparse
import json
from typing import Any, List, Mapping

from benchmarks.commands import opening, timed_analysis
from benchmarks.dumps import median
from fixtures.cache import Cache, default_root
from fixtures.gem_load import GemLoad, gem_load

_RULE = "VT410"


def _objects(report: Mapping[str, Any]) -> int:
    """Of the client with most of them."""
    table = report["tables"]["gem-objects"]["GemMemory"]
    return max((row["objects"] for row in table["rows"]), default=0)


def _leaked(report: Mapping[str, Any]) -> int:
    evidence = [f["evidence"] for f in report["findings"] if f["rule"] == _RULE]
    return sum(found["references_leaked"] for found in evidence)


def measure(load: GemLoad, runs: int) -> None:
    opened: List[float] = []
    audited: List[float] = []
    peaks: List[float] = []
    objects, leaked = 0, 0
    for _ in range(runs):
        opened.append(opening(load.core, load.symbols))
        seconds, peak_mib, output = timed_analysis("gem-objects", load.core, load.symbols, "json")
        report = json.loads(output)
        objects, leaked = _objects(report), _leaked(report)
        audited.append(seconds)
        peaks.append(peak_mib)
    exact = (objects, leaked) == (load.objects, load.references_leaked)
    print(f"{objects:,} GEM objects of one client, {leaked:,} leaked references of others:")
    print(f"  {'as' if exact else 'NOT AS'} planted: {load.objects:,}, {load.references_leaked:,}")
    print(f"  drgn opens the dump: {median(opened):.2f} s")
    print(f"  gem-objects, with opening it: {median(audited):.2f} s (goal: at most 20)")
    print(f"  ratio: {median(audited) / median(opened):.1f}")
    print(f"  peak memory: {max(peaks):.0f} MiB (goal: at most 2048)")


def main() -> None:
    parser = argparse.ArgumentParser(description="100,000 GEM objects")
    parser.add_argument("--runs", type=int, default=3, help="the median of these counts")
    options = parser.parse_args()
    print(f"medians of {options.runs} runs")
    measure(gem_load(Cache(default_root())), options.runs)


if __name__ == "__main__":
    main()
