# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Triage of the demo dump against drgn's own opening of it.

    python benchmarks/triage_demo.py [--runs 7] [--core VMCORE --symbols FILE ...]

The runs alternate, so that whatever else the machine does hits both alike.
Prints the median of each, their ratio (the goal is at most 4), and triage's
peak memory (the goal is less than 1 GiB).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import List, Sequence, Tuple

from vmcore_tools import demo


def timed(command: Sequence[str], expected: Sequence[int]) -> Tuple[float, int]:
    """Seconds and peak resident KiB of a command."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in expected:
        sys.exit(f"{command[0]} ended with {process.returncode}")
    return seconds, usage.ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description="triage against drgn's opening of the demo dump")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--core", type=Path)
    parser.add_argument("--symbols", type=Path, action="append", default=[])
    arguments = parser.parse_args()
    if arguments.core is None:
        dump = demo.unpack()
        core, symbols = dump.vmcore, list(dump.symbols)
    else:
        core, symbols = arguments.core, arguments.symbols
    scripts = Path(sys.executable).parent
    vmlinux = next(path for path in symbols if "vmlinux" in path.name)
    opening = [str(scripts / "drgn"), "-q", "--no-default-symbols"]
    opening += ["-c", str(core), "-s", str(vmlinux), "-e", "pass"]
    triage = [str(scripts / "vmcore-tools"), "triage", "-c", str(core)]
    for path in symbols:
        triage += ["-s", str(path)]

    opened: List[float] = []
    triaged: List[float] = []
    peak_kib = 0
    for _ in range(arguments.runs):
        opened.append(timed(opening, [0])[0])
        seconds, kib = timed(triage, [0, 1, 3])
        triaged.append(seconds)
        peak_kib = max(peak_kib, kib)
    floor, ours = statistics.median(opened), statistics.median(triaged)
    print(f"drgn opens the dump: {floor:.2f} s (median of {arguments.runs})")
    print(f"vmcore-tools triage: {ours:.2f} s (median of {arguments.runs})")
    print(f"ratio: {ours / floor:.2f} (goal: at most 4)")
    print(f"peak memory of triage: {peak_kib / 1024:.0f} MiB (goal: less than 1024)")


if __name__ == "__main__":
    main()
