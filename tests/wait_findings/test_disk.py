# SPDX-License-Identifier: LGPL-2.1-or-later
"""A disk is to blame for certain only if its driver has had a request for too long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Callable, List, Optional

import numpy as np
import pytest
from drgn import Program

from tests.wait_findings.test_device import ring
from vmcore_tools.kernel.blk_mq import InFlight
from vmcore_tools.kernel.wait_graph import Root
from vmcore_tools.kernel.wait_nodes import DEVICE
from vmcore_tools.model import Confidence, Finding, Ref
from vmcore_tools.report.format import message_text
from vmcore_tools.wait_findings import disk
from vmcore_tools.wait_findings.device import DEVICE_LATE

SECOND = 1_000_000_000


def found_late(
    monkeypatch: pytest.MonkeyPatch,
    label: str = "vda",
    virtio: bool = True,
    started_ns: Optional[int] = 40 * SECOND,
    queues: Callable[[Any], List[Any]] = lambda _disk: [SimpleNamespace(name="req.0")],
) -> Finding:
    flight = InFlight(np.array([64], dtype=np.uint64), 40 * SECOND, started_ns)
    monkeypatch.setattr(disk, "requests_in_flight", lambda _queue: flight)
    monkeypatch.setattr(disk, "is_virtio_disk", lambda _disk: virtio)
    monkeypatch.setattr(disk, "for_each_disk_queue", queues)
    monkeypatch.setattr(disk, "name_text", lambda name: name)
    monkeypatch.setattr(disk, "ring_state", lambda _queue: ring(with_device=1))
    gendisk = SimpleNamespace(queue=SimpleNamespace(read_=lambda: None))
    node = SimpleNamespace(key="disk", kind=DEVICE, object=gendisk, label=label)
    view: Any = SimpleNamespace(
        prog=Program(),
        node=lambda _key: node,
        graph=SimpleNamespace(edges_to=lambda _key: ()),
        ref=lambda _node: Ref("disk", label, 64),
        victims=lambda _root: (),
        waiting=lambda _root, what: f"1 task waits {what}",
        in_function=lambda _root: "",
        related=lambda _root: (),
        stack_ids=lambda _keys: (),
        drawn=lambda _root: None,
    )
    found = disk.disk_late(view, Root(("disk",), (), 0, 0), DEVICE_LATE, 10 * SECOND)
    assert found is not None
    return found


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
    found = found_late(monkeypatch, started_ns=started_ns)
    assert (found.rule, found.confidence) == (DEVICE_LATE, confidence)
    assert found.unread == (() if confidence is Confidence.PROVEN else (disk.STARTED,))
    assert message_text(found) == (
        "The disk vda has not completed 1 request for 40.0 s: the host has not answered it; 1 task "
        "waits for it."
    )


@pytest.mark.parametrize("label", ["sda", "nvme0n1", "dm-0"])
def test_a_disk_that_is_not_of_virtio_has_no_host(
    monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    found = found_late(monkeypatch, label, virtio=False)
    assert (found.rule, found.confidence) == (disk.DISK_LATE, Confidence.LIKELY)
    assert found.unread == (disk.HELD_BACK,)
    assert "host" not in message_text(found)
    assert "QEMU" not in found.rule.remedy and "not to blame" not in found.rule.remedy


def test_a_host_of_which_no_ring_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_disk: object) -> List[Any]:
        raise LookupError("could not find 'struct virtio_blk *'")

    found = found_late(monkeypatch, queues=unknown)
    assert (found.rule, found.confidence) == (DEVICE_LATE, Confidence.LIKELY)
    assert found.unread == (disk.NO_RINGS,)
    assert "the host" not in message_text(found)
