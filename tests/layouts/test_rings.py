# SPDX-License-Identifier: LGPL-2.1-or-later
"""Virtqueues of v4.19, v5.10 and v7.2: how far a device is, in rings that a test writes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import pytest
from drgn import Object, offsetof, sizeof
from drgn.helpers import ValidationError

from tests.layouts.machine import Machine
from vmcore_tools.kernel.virtio_ring import buffers, for_each_virtqueue, ring_state

SIZE = 8
RELEASES = {"4.19.90": "RINGS_4_19", "5.10.262": "RINGS_5_10", "7.2.13": "RINGS_7_2"}
AVAIL, USED = 1 << 7, 1 << 15  #: flags of a descriptor of a packed ring


class Ring:
    """A virtqueue of eight entries on one of the releases."""

    def __init__(self, machine: Machine, release: str) -> None:
        self.machine, self.release = machine, release
        self.old = release.startswith("4.")
        self.new = release.startswith("7.")
        #: What a driver knows a buffer by, of the chain that begins at each descriptor.
        self.tokens = [machine.alloc(64) for _ in range(SIZE)]

    def _type(self, name: str) -> Any:
        return self.machine.prog.type(f"struct {name}")

    def _queue(self, members: Dict[str, Any], free: int) -> Object:
        name = "struct vring_virtqueue"
        extra = 2 * 8 * SIZE if self.old else 0
        ring = self.machine.new(name, {**members, "vq.num_free": free}, extra)
        return Object(self.machine.prog, "struct virtqueue *", value=ring)

    def split(
        self,
        added: Sequence[int],
        used: Sequence[int],
        last_used: int = 0,
        start: int = 0,
        event: int = -1,
        **members: int,
    ) -> Object:
        """
        :param added: the heads that the driver put into the ring
        :param used: the heads that the device put back
        :param last_used: how many of these the driver has taken off
        :param start: the index that both rings began with
        :param event: how many the device had fetched when it last asked to be told; -1: it
            never asked
        """
        machine = self.machine
        avail = bytearray(4 + 2 * SIZE + 2)
        back = bytearray(4 + 8 * SIZE + 2)
        for number, head in enumerate(added):
            struct.pack_into("<H", avail, 4 + 2 * ((start + number) % SIZE), head)
        for number, head in enumerate(used):
            struct.pack_into("<II", back, 4 + 8 * ((start + number) % SIZE), head, 99)
        struct.pack_into("<H", avail, 2, start + len(added) & 0xFFFF)
        struct.pack_into("<H", back, 2, start + len(used) & 0xFFFF)
        struct.pack_into("<H", back, 4 + 8 * SIZE, start + max(event, 0) & 0xFFFF)
        memory = machine.alloc(0x200)
        machine.write(memory, bytes(avail))
        machine.write(memory + 0x100, bytes(back))
        prefix = "" if self.old else "split."
        values: Dict[str, Any] = {
            f"{prefix}vring.num": SIZE,
            f"{prefix}vring.avail": memory,
            f"{prefix}vring.used": memory + 0x100,
            "last_used_idx": start + last_used,
            "event": int(event >= 0),
            **members,
        }
        busy = [head for head in added if head not in used[:last_used]]
        states = "vring_desc_state" if self.old else "vring_desc_state_split"
        array = 0 if self.old else machine.alloc(sizeof(self._type(states)) * SIZE)
        if not self.old:
            values["split.desc_state"] = array
        queue = self._queue(values, SIZE - len(busy))
        if self.old:
            array = queue.value_() + offsetof(self._type("vring_virtqueue"), "desc_state")
        for head in busy:
            machine.words(array + head * sizeof(self._type(states)), [self.tokens[head]])
        return queue

    def packed(
        self, chains: Sequence[Tuple[int, int]], used: Sequence[int], last_used: int, wrap: int
    ) -> Object:
        """
        :param chains: first descriptor (its ID, too) and length of each buffer in the ring
        :param used: IDs that the device wrote back, from ``last_used`` on
        :param wrap: the wrap counter of the round in which the driver reads
        """
        machine = self.machine
        state_type = self._type("vring_desc_state_packed")
        states = machine.alloc(sizeof(state_type) * SIZE)
        lengths = dict(chains)
        for id, length in chains:
            machine.put(
                "struct vring_desc_state_packed",
                states + id * sizeof(state_type),
                {"data": self.tokens[id], "num": length},
            )
        # Of this round are those before it, of the one before those behind it.
        flags = [self._used((i < last_used) == bool(wrap)) for i in range(SIZE)]
        ids = [0] * SIZE
        index = last_used
        for id in used:
            flags[index % SIZE] = self._used((index < SIZE) == bool(wrap))
            ids[index % SIZE] = id
            index += lengths[id]
        ring = machine.alloc(16 * SIZE)
        for number in range(SIZE):
            machine.write(
                ring + 16 * number, struct.pack("<QIHH", 0, 0, ids[number], flags[number])
            )
        values: Dict[str, Any] = {
            "packed.vring.num": SIZE,
            "packed.vring.desc": ring,
            "packed.desc_state": states,
        }
        if self.new:
            values.update({"layout": 1, "last_used_idx": last_used | wrap << 15})
        else:
            values.update({"packed_ring": 1, "last_used_idx": last_used})
            values["packed.used_wrap_counter"] = wrap
        return self._queue(values, SIZE - sum(lengths.values()))

    @staticmethod
    def _used(wrap: bool) -> int:
        """The flags of a descriptor that the device has put back in a round."""
        return AVAIL | USED if wrap else 0

    def tokens_of(self, heads: Sequence[int]) -> List[int]:
        return [self.tokens[head] for head in sorted(heads)]


@pytest.fixture(params=RELEASES)
def ring(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Ring]:
    machine = Machine("rings.c", tmp_path, request.param, config=[RELEASES[request.param]])
    yield Ring(machine, request.param)
    machine.close()


@pytest.fixture(params=["5.10.262", "7.2.13"])
def packed(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Ring]:
    machine = Machine("rings.c", tmp_path, request.param, config=[RELEASES[request.param]])
    yield Ring(machine, request.param)
    machine.close()


def test_the_host_is_late(ring: Ring) -> None:
    queue = ring.split([3, 1, 4, 0], [3], last_used=1, event=2)
    state = ring_state(queue)
    assert not state.packed
    assert (state.size, state.free) == (SIZE, 5)
    assert (state.with_device, state.answered, state.not_fetched) == (3, 0, 2)
    found = buffers(queue)
    assert found.with_device.tolist() == ring.tokens_of([0, 1, 4])
    assert found.answered.tolist() == []


def test_the_guest_is_late(ring: Ring) -> None:
    queue = ring.split([3, 1, 4], [4, 3, 1], last_used=1)
    state = ring_state(queue)
    assert (state.with_device, state.answered, state.not_fetched) == (0, 2, None)
    found = buffers(queue)
    assert found.with_device.tolist() == []
    assert found.answered.tolist() == ring.tokens_of([1, 3])


def test_both_are_under_way(ring: Ring) -> None:
    found = buffers(ring.split([3, 1, 4, 6], [1, 6], last_used=1))
    assert found.with_device.tolist() == ring.tokens_of([3, 4])
    assert found.answered.tolist() == ring.tokens_of([6])


def test_nothing_is_in_flight(ring: Ring) -> None:
    state = ring_state(ring.split([3], [3], last_used=1, event=1))
    assert (state.with_device, state.answered, state.not_fetched) == (0, 0, 0)
    assert not state.broken
    assert state.not_announced == 0


def test_indices_wrap(ring: Ring) -> None:
    queue = ring.split([0, 1, 2, 3, 4], [0, 1, 2], last_used=2, start=0xFFFE, event=3)
    state = ring_state(queue)
    assert (state.with_device, state.answered, state.not_fetched) == (2, 1, 2)
    found = buffers(queue)
    assert found.with_device.tolist() == ring.tokens_of([3, 4])
    assert found.answered.tolist() == ring.tokens_of([2])


def test_what_the_driver_has_not_told(ring: Ring) -> None:
    state = ring_state(ring.split([5], [], num_added=1, broken=1))
    assert (state.with_device, state.not_announced, state.broken) == (1, 1, True)


def test_an_event_that_is_no_position_says_nothing(ring: Ring) -> None:
    assert ring_state(ring.split([5, 6], [5], last_used=1, event=0)).not_fetched is None


def test_more_than_the_ring_has_is_damage(ring: Ring) -> None:
    queue = ring.split([0], [0], last_used=1)
    prefix = "" if ring.old else "split."
    member = offsetof(ring.machine.prog.type("struct vring_virtqueue"), f"{prefix}vring.avail")
    avail = int(ring.machine.prog.read_u64(queue.value_() + member))
    ring.machine.write(avail + 2, struct.pack("<H", 1 + SIZE + 1))
    with pytest.raises(ValidationError):
        ring_state(queue)


def test_a_used_entry_beyond_the_ring_is_damage(ring: Ring) -> None:
    with pytest.raises(ValidationError):
        buffers(ring.split([0, 1], [SIZE, 1], last_used=0))


def test_the_queues_of_a_device(ring: Ring) -> None:
    machine = ring.machine
    device = machine.new("struct virtio_device", {})
    head = device + offsetof(machine.prog.type("struct virtio_device"), "vqs")
    queues = [ring.split([], []).value_() for _ in range(2)]
    machine.link(head, queues)  # their list is their first member
    found = for_each_virtqueue(Object(machine.prog, "struct virtio_device *", value=device))
    assert [queue.value_() for queue in found] == queues


@pytest.mark.parametrize("wrap", [0, 1])
def test_a_packed_ring(packed: Ring, wrap: int) -> None:
    queue = packed.packed([(0, 2), (2, 1), (3, 3), (6, 1)], [3, 0], last_used=1, wrap=wrap)
    state = ring_state(queue)
    assert state.packed
    assert (state.size, state.with_device, state.answered) == (SIZE, 2, 2)
    assert (state.free, state.not_fetched) == (1, None)
    found = buffers(queue)
    assert found.with_device.tolist() == packed.tokens_of([2, 6])
    assert found.answered.tolist() == packed.tokens_of([0, 3])


@pytest.mark.parametrize("wrap", [0, 1])
def test_a_packed_ring_goes_round(packed: Ring, wrap: int) -> None:
    # The second one begins behind the end: the flags there are of the next round.
    queue = packed.packed([(5, 3), (1, 1), (2, 1)], [5, 1], last_used=6, wrap=wrap)
    assert ring_state(queue).answered == 2
    assert buffers(queue).with_device.tolist() == packed.tokens_of([2])


def test_an_unused_packed_ring(packed: Ring) -> None:
    state = ring_state(packed.packed([(0, 1)], [], last_used=0, wrap=1))
    assert (state.with_device, state.answered) == (1, 0)


def test_a_used_id_that_nobody_has_is_damage(packed: Ring) -> None:
    queue = packed.packed([(0, 1), (1, 1)], [0], last_used=0, wrap=1)
    machine = packed.machine
    states = queue.value_() + offsetof(
        machine.prog.type("struct vring_virtqueue"), "packed.desc_state"
    )
    machine.words(int(machine.prog.read_u64(states)), [0])
    with pytest.raises(ValidationError):
        ring_state(queue)


def test_in_order_one_used_entry_answers_several(tmp_path: Path) -> None:
    machine = Machine("rings.c", tmp_path, "7.2.13", config=["RINGS_7_2"])
    ring = Ring(machine, "7.2.13")
    # The device wrote only the last entry of a batch of three.
    queue = ring.split([4, 2, 6, 1], [7, 7, 6], layout=2)
    assert (ring_state(queue).with_device, ring_state(queue).answered) == (1, 3)
    found = buffers(queue)
    assert found.answered.tolist() == ring.tokens_of([2, 4, 6])
    assert found.with_device.tolist() == ring.tokens_of([1])
    machine.close()
