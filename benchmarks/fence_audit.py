# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The audit of fences: on the demo dump against drgn's opening of it, and with a million leaked.

    python -m benchmarks.fence_audit [--runs 5] [--only-demo]

Each measurement is a process of its own, and they alternate. The large dumps are the lab's:
100,000 and 1,000,000 leaked fences in one guest with Debian's own kernel (1 GB to download
once).
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any, List, Mapping, Tuple

from benchmarks.commands import opening, timed_analysis
from fixtures.cache import Cache, default_root
from fixtures.fence_load import FenceLoad, fence_loads
from vmcore_tools import demo


def _leaked(report: Mapping[str, Any]) -> Tuple[int, int]:
    """References that are reported as leaked, and those that are proven to be."""
    evidence = [f["evidence"] for f in report["findings"] if f["rule"] == "VT201"]
    return (
        sum(found["references_leaked"] for found in evidence),
        sum(found["references_proven"] for found in evidence),
    )


def measure_demo(runs: int) -> None:
    dump = demo.unpack()
    # vmlinux first.
    symbols = sorted(dump.symbols, key=lambda path: "vmlinux" not in path.name)
    opened: List[float] = []
    audited: List[float] = []
    for _ in range(runs):
        opened.append(opening(dump.vmcore, symbols))
        audited.append(timed_analysis("dma-fences", dump.vmcore, symbols, "table")[0])
    floor, ours = statistics.median(opened), statistics.median(audited)
    print("the demo dump:")
    print(f"  drgn opens it: {floor:.2f} s")
    print(f"  audit of its fences, with opening it: {ours:.2f} s")
    print(f"  ratio: {ours / floor:.2f} (goal: at most 3)", flush=True)


def measure_load(load: FenceLoad, runs: int) -> float:
    """Seconds of the audit beyond drgn's opening of the dump."""
    opened: List[float] = []
    audited: List[float] = []
    peaks: List[float] = []
    leaked, proven = 0, 0
    for _ in range(runs):
        opened.append(opening(load.core, load.symbols))
        seconds, peak_mib, output = timed_analysis("dma-fences", load.core, load.symbols, "json")
        leaked, proven = _leaked(json.loads(output))
        audited.append(seconds)
        peaks.append(peak_mib)
    floor, ours = statistics.median(opened), statistics.median(audited)
    exact = "as many as planted" if leaked == load.references_leaked else "NOT AS PLANTED"
    print(f"{load.references_leaked:,} leaked references:")
    print(f"  reported: {leaked:,}, {exact}; {proven:,} proven")
    print(f"  drgn opens the dump: {floor:.2f} s")
    print(f"  audit, with opening it: {ours:.2f} s (goal for 1,000,000: at most 30)")
    print(f"  peak memory: {max(peaks):.0f} MiB (goal: at most 2048)", flush=True)
    return ours - floor


def main() -> None:
    parser = argparse.ArgumentParser(description="the audit of fences")
    parser.add_argument("--runs", type=int, default=5, help="the median of these counts")
    parser.add_argument("--only-demo", action="store_true", help="nothing to download")
    options = parser.parse_args()
    print(f"medians of {options.runs} runs")
    measure_demo(options.runs)
    if options.only_demo:
        return
    few, many = fence_loads(Cache(default_root()))
    seconds = measure_load(few, options.runs), measure_load(many, options.runs)
    more = many.references_leaked / few.references_leaked
    print(f"{more:.0f} times the fences take {seconds[1] / seconds[0]:.1f} times as long, opening")
    print(f"the dump apart (goal: linear growth, at most {more:.0f})")


if __name__ == "__main__":
    main()
