# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Slabs that change while they are read, made of a shipped dump: what is wrong for a moment is
no finding, what stays is, and what never settles is said.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Callable, Dict, Iterator

import numpy as np
import pytest
from drgn.helpers.linux.mm import virt_to_phys
from drgn.helpers.linux.percpu import per_cpu_ptr

from tests.dumps.conftest import ShippedDump
from tests.dumps.test_slabs import Damaged, analysis, analyze, evidence, rows
from vmcore_tools.dump.memory import Memory
from vmcore_tools.kernel import slab as slab_module
from vmcore_tools.kernel.slab import ObjectState, SlabFault, slab_index
from vmcore_tools.kernel.slab_contents import contents
from vmcore_tools.kernel.slab_moment import slab_moment, still_names
from vmcore_tools.target import Target

CHANGED = "it changed while it was read"


class Changing(Damaged):
    """A dump of which words are another at each read, as a live target's."""

    def change(self, address: int, values: Callable[[int], Iterator[int]]) -> None:
        """
        :param values: what is read there, one after the other, of what the dump has
        """
        prog = self.target.prog
        word = values(int.from_bytes(prog.read(address, 8), "little"))

        def read(at: int, count: int, offset: int, physical: bool) -> bytes:
            return next(word).to_bytes(8, "little")[offset : offset + count]

        prog.add_memory_segment(address, 8, read, False)
        try:
            physical = virt_to_phys(prog, address).value_()
        except ValueError:
            return  # in vmemmap
        prog.add_memory_segment(physical, 8, read, True)

    def reopened(self) -> Target:
        """The same with nothing of its memory kept: as read anew."""
        prog, memory = self.target.prog, self.target.memory
        return dataclasses.replace(self.target, memory=Memory(prog, memory.page_map, memory.plain))

    def at_first(self, address: int, value: int) -> None:
        """A word that was something else when everything was read."""
        self.change(address, lambda word: itertools.chain([value], itertools.repeat(word)))


@pytest.fixture
def changing(demo_dump: ShippedDump, monkeypatch: pytest.MonkeyPatch) -> Changing:
    made = Changing(demo_dump)
    monkeypatch.setattr(slab_module, "_goes_on", lambda prog: True)
    return made


def counts(result: Any) -> Dict[str, Any]:
    return {name: (row.allocated, row.unread) for name, row in rows(result).items()}


def test_a_slab_at_one_moment_is_what_the_index_has(demo_dump: ShippedDump) -> None:
    index = slab_index(demo_dump.target.prog, demo_dump.target.memory)
    row = Damaged(demo_dump).victim()
    cache = index.caches[index.cache[row]]
    size = int(index.page_counts[row]) * demo_dump.truth["page_size_bytes"]
    moment = slab_moment(index.prog, cache, int(index.address[row]), size)
    assert moment is not None
    assert (moment.freelist, moment.inuse) == (int(index.freelist[row]), int(index.inuse[row]))
    assert moment.objects == int(index.objects[row]) and not moment.of_cpu
    (batch,) = index.batches(np.array([row]))
    assert moment.data.tobytes() == batch.data.tobytes()
    now = index.look_again(row)
    assert now is not None and now.damage is None
    assert (~now.free).tolist() == batch.allocated[0].tolist()


def test_nothing_is_wrong_with_a_target_that_stands_still(
    demo_dump: ShippedDump, changing: Changing
) -> None:
    result = analyze(changing.target)
    assert (result.findings, result.gaps) == ((), ())
    assert rows(result) == rows(analysis(demo_dump))


def test_a_freelist_that_was_another_is_read_again(
    demo_dump: ShippedDump, changing: Changing
) -> None:
    row = changing.victim()
    changing.at_first(changing.page(row, "freelist"), int(changing.index.address[row]) + 4)
    result = analyze(changing.target)
    assert (result.findings, result.gaps) == ((), ())
    assert counts(result) == counts(analysis(demo_dump))


def test_a_free_object_that_was_allocated_meanwhile(
    demo_dump: ShippedDump, changing: Changing
) -> None:
    row = changing.victim()
    cache = changing.index.caches[changing.index.cache[row]]
    changing.at_first(int(changing.index.freelist[row]) + cache.freelist_offset, 0x6161616161616161)
    result = analyze(changing.target)
    assert (result.findings, result.gaps) == ((), ())
    assert counts(result) == counts(analysis(demo_dump))


def test_a_counter_that_was_another_is_read_again(changing: Changing) -> None:
    row = changing.victim()
    inuse, objects = int(changing.index.inuse[row]), int(changing.index.objects[row])
    changing.at_first(changing.page(row, "counters"), (inuse + 1) | objects << 16)
    result = analyze(changing.target)
    assert (result.findings, result.gaps) == ((), ())


def test_a_cache_pointer_of_a_slab_that_was_being_set_up(changing: Changing) -> None:
    row = int((~changing.index.frozen & (changing.index.freelist == 0)).nonzero()[0][0])
    changing.at_first(changing.page(row, "slab_cache"), 0)
    result = analyze(changing.target)
    assert result.findings == ()
    assert CHANGED in {gap.reason for gap in result.gaps}


def test_a_cpus_free_object_of_a_slab_that_is_newer(changing: Changing) -> None:
    cache = changing.index.caches[changing.index.cache[changing.victim()]]
    freelist = per_cpu_ptr(cache.cache.cpu_slab, 0).freelist.address_of_().value_()
    other = next(known for known in changing.index.caches if known.name != cache.name)
    number = changing.index.cache_number(other.cache)
    elsewhere = int(changing.index.address[changing.index.cache == number][0])
    changing.at_first(freelist, elsewhere)
    result = analyze(changing.target)
    assert result.findings == ()
    (gap,) = result.gaps
    assert (gap.what, gap.reason) == ("slab", CHANGED)


def test_damage_that_stays_is_found(demo_dump: ShippedDump, changing: Changing) -> None:
    row = changing.victim()
    cache = changing.index.caches[changing.index.cache[row]]
    head = int(changing.index.freelist[row])
    stored_at = head + cache.freelist_offset
    changing.write(stored_at, changing.encode(row, stored_at, head))
    (finding,) = analyze(changing.target).findings
    assert (finding.rule.id, finding.subject.address) == ("VT101", changing.index.address[row])
    assert evidence(finding)["reasons"] == ("its freelist runs in a circle",)


def test_a_wrong_counter_that_stays_is_found(changing: Changing) -> None:
    row = changing.victim()
    inuse, objects = int(changing.index.inuse[row]), int(changing.index.objects[row])
    changing.write(changing.page(row, "counters"), (inuse + 1) | objects << 16)
    (finding,) = analyze(changing.target).findings
    assert (finding.rule.id, finding.subject.address) == ("VT103", changing.index.address[row])


def test_a_cache_pointer_that_stays_is_found(changing: Changing) -> None:
    row = int((~changing.index.frozen & (changing.index.freelist == 0)).nonzero()[0][0])
    address = int(changing.index.address[row])
    changing.write(changing.page(row, "slab_cache"), 0x4141414141414141)
    (finding,) = analyze(changing.target).findings
    assert (finding.rule.id, finding.subject.address) == ("VT102", address)
    assert still_names(changing.target.prog, address, 0x4141414141414141)


def test_a_slab_that_never_stands_still_is_said(changing: Changing) -> None:
    row = changing.victim()
    start = int(changing.index.address[row])
    changing.change(
        changing.page(row, "freelist"), lambda word: (start + 4 + 8 * i for i in itertools.count())
    )
    index = slab_index(changing.target.prog, changing.target.memory)
    result = analyze(changing.target)
    assert result.findings == ()
    (gap,) = result.gaps
    assert (gap.what, gap.reason, gap.material) == ("slab", CHANGED, True)
    (problem,) = index.problems
    assert (problem.address, problem.fault) == (start, SlabFault.CHANGING)
    inside = changing.index.address[row : row + 1]
    assert index.object_states(inside).tolist() == [ObjectState.UNKNOWN]


def test_what_objects_hold_as_a_number(changing: Changing) -> None:
    original = changing.index
    (batch,) = original.batches(np.array([changing.victim()]))
    objects = batch.objects[0][batch.allocated[0]]
    before = contents(original, objects)
    assert len(set(before.tolist())) == len(objects) > 1
    assert contents(original, np.array([0x1000], dtype=np.uint64)).tolist() == [0]
    # Another count in the first, and another pointer in the second: that is no other object.
    first, second = objects[:2].tolist()
    changing.write(first, 0x1234)
    data = original.prog.read(second, batch.cache.size_bytes)
    pointers = [at for at in range(0, len(data), 8) if data[at + 6 : at + 8] == b"\xff\xff"]
    changing.write(second + pointers[0], 0xFFFF888812345678)
    after = contents(slab_index(changing.target.prog, changing.target.memory), objects)
    assert (after != before).tolist() == [True] + [False] * (len(objects) - 1)
