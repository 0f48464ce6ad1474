# SPDX-License-Identifier: LGPL-2.1-or-later
"""What addresses of a real kernel lie in."""

from __future__ import annotations

import pytest
from drgn import offsetof
from drgn.helpers.linux.pid import find_task

from tests.dumps.conftest import ShippedDump
from vmcore_tools.kernel.containers import Containers, pointers_to
from vmcore_tools.kernel.stack_frames import Unwinder


@pytest.fixture(scope="module")
def containers(demo_dump: ShippedDump) -> Containers:
    prog = demo_dump.target.prog
    task = find_task(prog, demo_dump.truth["hung"]["pid"])
    return Containers(prog, demo_dump.target.memory, [task], Unwinder(prog).trace)


def test_a_variable(demo_dump: ShippedDump, containers: Containers) -> None:
    init = demo_dump.target.prog["init_task"]
    start = init.address_of_().value_()
    found = containers.of(init.comm.address_of_().value_())
    assert (found.place, found.name, found.start) == ("variable", "init_task", start)
    assert found.in_words.startswith("init_task.comm")
    assert containers.of(start).in_words == "init_task"


def test_a_variable_without_members(demo_dump: ShippedDump, containers: Containers) -> None:
    counter = demo_dump.target.prog["jiffies"].address_of_().value_()
    found = containers.of(counter + 4)
    assert (found.place, found.offset, found.field) == ("variable", 4, None)


def test_a_slab_object(demo_dump: ShippedDump, containers: Containers) -> None:
    prog = demo_dump.target.prog
    task = find_task(prog, demo_dump.truth["hung"]["pid"])
    offset = offsetof(prog.type("struct task_struct"), "vfork_done")
    found = containers.of(task.value_() + offset)
    assert (found.place, found.name, found.start) == ("slab object", "task_struct", task.value_())
    assert (found.type_name, found.field) == ("struct task_struct", "vfork_done")
    assert found.in_words == f"struct task_struct of task_struct at +{offset:#x} (vfork_done)"
    assert not found.freed


def test_a_frame_of_a_stack(demo_dump: ShippedDump, containers: Containers) -> None:
    prog = demo_dump.target.prog
    task = find_task(prog, demo_dump.truth["hung"]["pid"])
    frames = prog.stack_trace(task)
    number = next(n for n in range(len(frames)) if frames[n].name == "__flush_work")
    found = containers.of(frames[number].sp)
    assert (found.place, found.task) == ("stack", task)
    assert "__flush_work" in found.name
    assert "__flush_work" not in containers.of(frames[number].sp - 8).name


def test_what_nothing_is_known_of(containers: Containers) -> None:
    assert containers.of(0xFFFFFFFFFFFFF000).place == "memory"


def test_who_points_at_a_task(demo_dump: ShippedDump, containers: Containers) -> None:
    """The hung task's barrier names it."""
    target = demo_dump.target
    task = find_task(target.prog, demo_dump.truth["hung"]["pid"])
    ranges = [(task.value_(), task.value_() + 8)]
    found = pointers_to(target.prog, target.memory, ranges, 1 << 30)
    assert found is not None
    places = {containers.of(reference.address).in_words for reference in found}
    assert "the frame of __flush_work" in places
    assert pointers_to(target.prog, target.memory, ranges, 1) is None


def test_the_field_is_what_is_waited_for_and_not_its_first_member(
    demo_dump: ShippedDump, containers: Containers
) -> None:
    init = demo_dump.target.prog["init_task"]
    lists = init.pending.list.address_of_()
    assert containers.of(lists.value_()).in_words == "init_task.pending.list.next"
    pending = containers.of(lists.value_(), 8, init.pending.type_)
    assert pending.in_words == "init_task.pending"
    found = containers.of(lists.value_(), 8, demo_dump.target.prog.type("struct list_head"))
    assert found.in_words == "init_task.pending.list"
    other = containers.of(lists.value_(), 8, demo_dump.target.prog.type("struct completion"))
    assert other.in_words == "init_task.pending.list.next"
    # A typedef of it.
    bits = init.pending.signal
    inside = containers.of(bits.address_of_().value_(), 8, bits.type_)
    assert inside.in_words == "init_task.pending.signal"


def test_the_field_of_an_array(demo_dump: ShippedDump, containers: Containers) -> None:
    prog = demo_dump.target.prog
    heads = prog["init_task"].pid_links
    third = containers.of(heads[2].address_of_().value_(), 8, prog.type("struct hlist_node"))
    assert third.in_words == "init_task.pid_links[2]"
