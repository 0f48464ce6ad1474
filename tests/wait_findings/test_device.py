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
    assert disk._verdict([], True, 1) == ("not completed", "", (disk.NO_RINGS,))
    assert disk._verdict([ring()], True, 30) == (
        "not answered",
        ": the host has not answered {unanswered} of them",
        (),
    )
    answered = disk._verdict([ring(with_device=0, answered=4), ring(with_device=0)], True, 4)
    assert answered[:2] == (
        "no interrupt",
        ": the host has answered them, and no interrupt told the guest",
    )
    assert disk._verdict([ring(not_fetched=4), ring()], True, 52) == (
        "not fetched",
        ": the host has not answered them, {not_fetched} of which it has not even fetched",
        (disk.UNHEARD,),
    )
    # Of one of them nobody knows.
    assert disk._verdict([ring(not_fetched=None), ring()], True, 52)[2] == (disk.UNHEARD,)


@pytest.mark.parametrize(
    ("unanswered", "not_fetched", "words"),
    [
        (2, 2, "none of which it has fetched"),
        (1, 1, "nor fetched it"),
        (2, 0, "all of which it has fetched"),
        (1, 0, "which it has fetched"),
        (3, 1, "{not_fetched} of which it has not even fetched"),
    ],
)
def test_how_many_the_host_has_fetched(unanswered: int, not_fetched: int, words: str) -> None:
    assert disk.fetched_words(unanswered, not_fetched) == words
    state = ring(with_device=unanswered, not_fetched=not_fetched)
    many = "command" if unanswered == 1 else "commands"
    assert device._verdict(state)[1] == (
        f"The host has not answered {{unanswered}} {many} in queue {{queue}} of {{device}} "
        f"({{driver}}), {words}"
    )


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
