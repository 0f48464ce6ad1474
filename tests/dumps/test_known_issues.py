# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What was planted in the shipped dumps looks like the issues that it copies.

The fault module takes one reference more to each fence of an execbuffer, and
drops none: as kernels before 8b6ec999b198 ("drm/virtio: fix missing
dma_fence_put() in virtio_gpu_execbuffer_ioctl()") do. v5.10 has that commit.
"""

from __future__ import annotations

from typing import Dict, List

from tests.dumps.conftest import ShippedDump
from vmcore_tools.model import HAS_THE_FIX


def issues_by_rule(dump: ShippedDump) -> Dict[str, List[str]]:
    found: Dict[str, List[str]] = {}
    for finding in dump.report.findings:
        found.setdefault(finding.rule.id, []).extend(issue.id for issue in finding.known_issues)
    return found


def test_the_findings_look_like_what_was_planted(demo_dump: ShippedDump) -> None:
    found = issues_by_rule(demo_dump)
    assert found["VT201"] == ["virtio-gpu-execbuffer-fence"]
    assert found["VT301"] == ["drain-all-pages-work"]
    assert set(found) - {rule for rule, issues in found.items() if not issues} == {
        "VT201",
        "VT301",
    }


def test_the_same_leak_has_the_same_signature(shipped: ShippedDump) -> None:
    """The one has SLUB tracks, the other has none."""
    (leak,) = [finding for finding in shipped.report.findings if finding.rule.id == "VT201"]
    assert leak.signature_key == ("struct virtio_gpu_fence",)
    assert leak.signature == "VT201-4ed92ec94311"
    tracks = any(item.name == "allocating_function" for item in leak.evidence)
    assert leak.clues == (("virtio_gpu_execbuffer_ioctl",) if tracks else None)
    assert tracks == (shipped.name == "leak-and-hung-x86_64")


def test_the_release_says_that_it_was_fixed(demo_dump: ShippedDump) -> None:
    (issue,) = [
        issue
        for finding in demo_dump.report.findings
        for issue in finding.known_issues
        if finding.rule.id == "VT201"
    ]
    assert issue.this_kernel == HAS_THE_FIX


def test_dumps_without_these_faults_look_like_no_issue(shipped: ShippedDump) -> None:
    planted = {"VT201", "VT301"}
    for rule, issues in issues_by_rule(shipped).items():
        assert rule in planted or not issues
