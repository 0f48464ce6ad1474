# SPDX-License-Identifier: LGPL-2.1-or-later
"""A disk is to blame for certain only if its driver has had a request for too long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Optional

import numpy as np
import pytest
from drgn import Program

from tests.wait_findings.test_device import ring
from vmcore_tools.kernel.blk_mq import InFlight
from vmcore_tools.kernel.wait_graph import Root
from vmcore_tools.kernel.wait_nodes import DEVICE
from vmcore_tools.model import Confidence, Ref
from vmcore_tools.wait_findings import disk
from vmcore_tools.wait_findings.device import DEVICE_LATE

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("started_ns", "confidence"),
    [
        (40 * SECOND, Confidence.PROVEN),
        (1 * SECOND, Confidence.LIKELY),  # its timer has started again, or it was kept back
        (None, Confidence.LIKELY),
    ],
)
def test_how_long_the_driver_has_had_it(
    monkeypatch: pytest.MonkeyPatch, started_ns: Optional[int], confidence: Confidence
) -> None:
    flight = InFlight(np.array([64], dtype=np.uint64), 40 * SECOND, started_ns)
    named: Any = SimpleNamespace(name="req.0")
    monkeypatch.setattr(disk, "requests_in_flight", lambda _queue: flight)
    monkeypatch.setattr(disk, "is_virtio_disk", lambda _disk: True)
    monkeypatch.setattr(disk, "for_each_disk_queue", lambda _disk: [named])
    monkeypatch.setattr(disk, "name_text", lambda name: name)
    monkeypatch.setattr(disk, "ring_state", lambda _queue: ring())
    gendisk = SimpleNamespace(queue=SimpleNamespace(read_=lambda: None))
    node = SimpleNamespace(key="disk", kind=DEVICE, object=gendisk, label="vda")
    view: Any = SimpleNamespace(
        prog=Program(),
        node=lambda _key: node,
        graph=SimpleNamespace(edges_to=lambda _key: ()),
        ref=lambda _node: Ref("disk", "vda", 64),
        victims=lambda _root: (),
        related=lambda _root: (),
        stack_ids=lambda _keys: (),
        drawn=lambda _root: None,
    )
    found = disk.disk_late(view, Root(("disk",), (), 0, 0), DEVICE_LATE, 10 * SECOND)
    assert found is not None
    assert found.confidence is confidence
    assert found.unread == (() if confidence is Confidence.PROVEN else (disk.STARTED,))
