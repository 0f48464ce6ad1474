# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Who waits for whom in the demo dump, against drgn's own opening of it.

    python -m benchmarks.wait_graph [--runs 7]

The runs alternate, so that whatever else the machine does hits both alike.
Prints the median of each and their ratio (the goal is at most 3).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from benchmarks.triage_demo import timed
from vmcore_tools import demo


def main() -> None:
    parser = argparse.ArgumentParser(description="wait-graph against drgn's opening of the demo")
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    dump = demo.unpack()
    scripts = Path(sys.executable).parent
    vmlinux = next(path for path in dump.symbols if "vmlinux" in path.name)
    opening = [str(scripts / "drgn"), "-q", "--no-default-symbols"]
    opening += ["-c", str(dump.vmcore), "-s", str(vmlinux), "-e", "pass"]
    analysis = [str(scripts / "vmcore-tools"), "run", "wait-graph", "-c", str(dump.vmcore)]
    for path in dump.symbols:
        analysis += ["-s", str(path)]

    opened, analyzed = [], []
    for _ in range(runs):
        opened.append(timed(opening, [0])[0])
        analyzed.append(timed(analysis, [1])[0])
    floor, ours = statistics.median(opened), statistics.median(analyzed)
    print(f"drgn opens the dump: {floor:.2f} s (median of {runs})")
    print(f"vmcore-tools run wait-graph: {ours:.2f} s (median of {runs})")
    print(f"ratio: {ours / floor:.2f} (goal: at most 3)")


if __name__ == "__main__":
    main()
