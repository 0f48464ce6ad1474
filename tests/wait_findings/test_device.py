# SPDX-License-Identifier: LGPL-2.1-or-later
"""How sure it is that a device is late, by what its ring says."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, Tuple

import pytest

from vmcore_tools.kernel.virtio_ring import RingState
from vmcore_tools.kernel.wait_graph import Edge, WaitGraph
from vmcore_tools.kernel.wait_nodes import LOCK, OBJECT, TASK
from vmcore_tools.model import Confidence
from vmcore_tools.wait_findings import device, disk

RING = RingState(
    size=256,
    packed=False,
    with_device=26,
    answered=0,
    not_fetched=0,
    not_announced=0,
    free=230,
    indirect=True,
    broken=False,
)


def ring(**changed: Any) -> RingState:
    return dataclasses.replace(RING, **changed)


def verdict(**changed: Any) -> Tuple[Confidence, int]:
    confidence, _, unread = device._verdict(ring(**changed))
    return confidence, len(unread)


def test_what_the_host_has_fetched_and_not_answered_is_its_fault() -> None:
    assert verdict() == (Confidence.PROVEN, 0)


@pytest.mark.parametrize(
    ("changed", "confidence"),
    [
        ({"not_fetched": 26}, Confidence.LIKELY),  # it may not have heard of them
        ({"not_fetched": 1}, Confidence.LIKELY),
        ({"not_fetched": None}, Confidence.LIKELY),  # without VIRTIO_RING_F_EVENT_IDX
        ({"not_announced": 26, "not_fetched": 26}, Confidence.SUSPECTED),
        ({"answered": 3}, Confidence.SUSPECTED),
    ],
)
def test_what_could_refute_it(changed: Any, confidence: Confidence) -> None:
    assert verdict(**changed) == (confidence, 1)


def test_a_queue_that_the_driver_gave_up() -> None:
    assert verdict(broken=True) == (Confidence.PROVEN, 0)


def test_states_have_names_of_their_own() -> None:
    states = [
        ring(),
        ring(not_fetched=3),
        ring(not_announced=26, not_fetched=26),
        ring(answered=3, with_device=0),
        ring(broken=True),
    ]
    names = {device._state_name(state) for state in states}
    assert len(names) == len(states)


def test_commands_that_were_announced_once_count_as_announced() -> None:
    # The driver added three since, and the host has 23 of before.
    assert device._state_name(ring(not_announced=3)) == "not answered"


def test_the_rings_of_a_disk() -> None:
    assert disk._verdict([])[0] == "not completed"
    assert disk._verdict([ring()]) == (
        "not answered",
        ": the host has not answered {unanswered} of them",
        (),
    )
    assert (
        disk._verdict([ring(with_device=0, answered=4), ring(with_device=0)])[0] == "no interrupt"
    )
    assert disk._verdict([ring(not_fetched=4), ring()])[2] == (disk.UNHEARD,)
    # Of one of them nobody knows.
    assert disk._verdict([ring(not_fetched=None), ring()])[2] == (disk.UNHEARD,)


def test_who_waits_for_a_lock_of_a_victim_has_not_waited_for_the_device() -> None:
    graph = WaitGraph()
    edges = [
        ("virtqueue", "device"),
        ("fence", "virtqueue"),
        ("array", "fence"),
        ("task Xorg", "array"),
        ("task flip", "virtqueue"),
        ("mutex", "task Xorg"),
        ("task long before", "mutex"),
    ]
    for source, target in edges:
        graph.add_edge(Edge(source, target, "waits for"))
    kinds = {"task": TASK, "mutex": LOCK}

    def node(key: str) -> SimpleNamespace:
        return SimpleNamespace(kind=kinds.get(key.partition(" ")[0], OBJECT))

    view: Any = SimpleNamespace(graph=graph, node=node)
    assert device.DeviceLate(view)._first_victims("device") == {"task Xorg", "task flip"}
