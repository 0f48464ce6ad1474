# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Who waits for whom, against drgn's own opening of the dump: the demo, and 5,116 waiting tasks.

    python -m benchmarks.wait_graph [--runs 7] [--only-demo]

The runs alternate, so that whatever else the machine does hits both alike. Prints the median
of each and their ratio (the goal is at most 3 on the demo, and 60 s with 5,000 tasks). The
large dump is the lab's, with Debian's own kernel (1 GB to download once); what is reported of
it is compared with what its guest planted.
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import List, Sequence

from benchmarks.triage_demo import timed
from fixtures.cache import Cache, default_root
from fixtures.wait_load import WaitLoad, wait_load
from vmcore_tools import demo

_SCRIPTS = Path(sys.executable).parent
_HOLDER_ASLEEP = "VT313"


def _opening(core: Path, symbols: Sequence[Path]) -> List[str]:
    vmlinux = next(path for path in symbols if "vmlinux" in path.name)
    command = [str(_SCRIPTS / "drgn"), "-q", "--no-default-symbols"]
    return [*command, "-c", str(core), "-s", str(vmlinux), "-e", "pass"]


def _analysis(core: Path, symbols: Sequence[Path]) -> List[str]:
    command = [str(_SCRIPTS / "vmcore-tools"), "run", "wait-graph", "-c", str(core)]
    return command + [word for path in symbols for word in ("-s", str(path))]


def _measure(name: str, core: Path, symbols: Sequence[Path], runs: int, goal: str) -> None:
    opened, analyzed = [], []
    for _ in range(runs):
        opened.append(timed(_opening(core, symbols), [0])[0])
        analyzed.append(timed(_analysis(core, symbols), [1])[0])
    floor, ours = statistics.median(opened), statistics.median(analyzed)
    print(f"{name}:")
    print(f"  drgn opens the dump: {floor:.2f} s (median of {runs})")
    print(f"  vmcore-tools run wait-graph: {ours:.2f} s (median of {runs})")
    print(f"  ratio: {ours / floor:.2f} ({goal})")


def _check(load: WaitLoad) -> None:
    """Stop where a planted cause is not found with all that wait behind it, or another is."""
    command = [*_analysis(load.core, load.symbols), "--format", "json", "--limit", "0"]
    report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout)
    planted = collections.Counter(wait.culprit_pid for wait in load.waits if wait.culprit_pid)
    found = {
        finding["subject"]["pid"]: finding["evidence"]["victims"]
        for finding in report["findings"]
        if finding["rule"] == _HOLDER_ASLEEP
    }
    if found != planted:
        sys.exit(f"planted {dict(planted)}, reported {found}")
    rows = len(report["tables"]["wait-graph"]["WaitingTask"]["rows"])
    print(f"all {len(planted)} causes with {sum(planted.values()):,} tasks behind; {rows:,} wait")


def main() -> None:
    parser = argparse.ArgumentParser(description="wait-graph against drgn's opening of dumps")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--only-demo", action="store_true", help="not the large dump")
    options = parser.parse_args()
    dump = demo.unpack()
    _measure("the demo dump", dump.vmcore, dump.symbols, options.runs, "goal: at most 3")
    if not options.only_demo:
        load = wait_load(Cache(default_root()))
        _check(load)
        _measure("5,116 waiting tasks", load.core, load.symbols, options.runs, "goal: 60 s")


if __name__ == "__main__":
    main()
