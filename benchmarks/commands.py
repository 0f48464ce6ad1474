# SPDX-License-Identifier: LGPL-2.1-or-later
"""Commands that benchmarks run as a user would, with their time and peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Sequence, Tuple

_SCRIPTS = Path(sys.executable).parent
# Clean, with a finding, and where something could not be read.
_EXPECTED_STATUS = (0, 1, 3)


def timed(command: Sequence[str], expected: Sequence[int]) -> Tuple[float, float, bytes]:
    """Seconds, peak resident MiB and output of a command."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        output = process.stdout.read() if process.stdout else b""
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in expected:
        sys.exit(f"{command[0]} ended with {process.returncode}")
    return seconds, usage.ru_maxrss / 1024, output


def opening(core: Path, symbols: Sequence[Path]) -> float:
    """Seconds in which drgn opens a dump with its kernel's debug info."""
    command = [str(_SCRIPTS / "drgn"), "-q", "--no-default-symbols"]
    command += ["-c", str(core), "-s", str(symbols[0]), "-e", "pass"]
    return timed(command, [0])[0]


def timed_analysis(
    name: str, core: Path, symbols: Sequence[Path], output_format: str
) -> Tuple[float, float, bytes]:
    """Seconds, peak MiB and output of an analysis, as a user runs it."""
    command = [sys.executable, "-m", "vmcore_tools", "run", name, "-c", str(core)]
    for path in symbols:
        command += ["-s", str(path)]
    return timed([*command, "--format", output_format], _EXPECTED_STATUS)
