# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Count the tests of a JUnit report, and fail on a skip that is not allowed.

Usage: check_tests.py REPORT.xml ALLOWED-SKIPS
"""

from __future__ import annotations

import fnmatch
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import List


def allowed_patterns(text: str) -> List[str]:
    """The first word of each line that is no comment."""
    return [line.split()[0] for line in text.splitlines() if line.strip() and line[0] != "#"]


def check(report: str, patterns: List[str]) -> List[str]:
    """The lines to show; one that begins with ``not allowed`` is a failure."""
    cases = list(ElementTree.fromstring(report).iter("testcase"))
    lines: List[str] = []
    skipped = 0
    for case in cases:
        skip = case.find("skipped")
        # An expected failure (xfail) stands in the report as a skip, too.
        if skip is None:
            continue
        skipped += 1
        name = f"{case.get('classname')}::{case.get('name')}"
        allowed = any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        verdict = "allowed skip" if allowed else "not allowed to be skipped"
        lines.append(f"{verdict}: {name}: {skip.get('message')}")
    failed = sum(
        case.find("failure") is not None or case.find("error") is not None for case in cases
    )
    passed = len(cases) - skipped - failed
    lines.append(f"{len(cases)} tests: {passed} passed, {failed} failed, {skipped} skipped")
    if not cases:
        lines.append("not allowed: a run without tests")
    return lines


def main() -> int:
    report, allowed = (Path(argument).read_text(encoding="utf-8") for argument in sys.argv[1:])
    lines = check(report, allowed_patterns(allowed))
    sys.stdout.write("\n".join(lines) + "\n")
    return int(any(line.startswith("not allowed") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
