# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nothing of a real dump that identifies somebody gets through --redact, in any format."""

from __future__ import annotations

import html
import re
from typing import Set

import pytest
from drgn.helpers.linux.pid import for_each_task

from tests.dumps.conftest import ShippedDump
from vmcore_tools.report import FORMATS, render

#: What the kernel prints addresses as, and shorter ones after 0x.
_ADDRESS = re.compile(r"\b(?:0x)?[fF]{4}[0-9a-fA-F]{12}\b")


@pytest.fixture
def secrets(shipped: ShippedDump) -> Set[str]:
    """The names of programs; those of kernel threads are the kernel's own."""
    programs = (
        task.comm.string_().decode() for task in for_each_task(shipped.target.prog) if task.mm
    )
    # PID 1 has the name of a word.
    return {name for name in programs if name != "init"}


@pytest.mark.parametrize("format", FORMATS)
def test_no_secret_is_left(shipped: ShippedDump, secrets: Set[str], format: str) -> None:
    plain = html.unescape(render(shipped.report, format))
    masked = html.unescape(render(shipped.report, format, redact=True))
    assert "Xorg" in secrets and "Xorg" in plain
    assert _ADDRESS.search(plain)
    for secret in sorted(secrets):
        assert not re.search(rf"(?<![\w-]){re.escape(secret)}(?![\w-])", masked), secret
    assert not _ADDRESS.findall(masked)


@pytest.mark.parametrize("format", FORMATS)
def test_what_helps_stays(shipped: ShippedDump, format: str) -> None:
    masked = html.unescape(render(shipped.report, format, redact=True))
    for kept in ("VT201", "virtio_gpu_fence", "address-1", "sensitive-1"):
        assert kept in masked
    for finding in shipped.report.findings:
        assert finding.signature in masked


def test_masks_are_stable(shipped: ShippedDump) -> None:
    assert render(shipped.report, "json", redact=True) == render(
        shipped.report, "json", redact=True
    )
