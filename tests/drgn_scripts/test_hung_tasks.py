# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is said of tasks that hang, and what khungtaskd's messages say."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, Dict, Optional, Tuple

import pytest

from drgn_scripts import hung_tasks
from drgn_scripts.hung_tasks import HUNG, HUNG_KILLABLE, HungMessage, named_in_log
from tests.sample_report import hung
from vmcore_tools.kernel.printk import LogRecord
from vmcore_tools.model import Evidence, Finding, Kind, Ref, Rule, Severity, Stack
from vmcore_tools.report.format import message_text
from vmcore_tools.wait_findings.causes import Awaited
from vmcore_tools.wait_findings.lock import HOLDER_ASLEEP
from vmcore_tools.wait_findings.place import SleepPlace
from vmcore_tools.wait_findings.unknown import WAKER_UNKNOWN

SECOND = 1_000_000_000


def test_khungtaskd_messages_name_their_tasks() -> None:
    log = [
        b"INFO: task Xorg:48 blocked for more than 10 seconds.",
        b"      Not tainted 5.10.262-vmlab #1",
        b"INFO: task a:b c:1234 blocked for more than 120 seconds.",
        b"INFO: task kworker/0:1:77 blocked in I/O wait for more than 120 seconds.",
        b"INFO: task forged blocked for more than x seconds.",
    ]
    assert named_in_log(LogRecord(n, n, 3, text, 1) for n, text in enumerate(log)) == {
        (48, b"Xorg"): HungMessage(0, 10),
        (1234, b"a:b c"): HungMessage(2, 120),
        (77, b"kworker/0:1"): HungMessage(3, 120),
    }


def test_the_last_message_of_a_task_counts() -> None:
    text = b"INFO: task Xorg:48 blocked for more than %d seconds."
    log = [LogRecord(n, n * SECOND, 3, text % (10 * n), 1) for n in (1, 2)]
    assert named_in_log(log) == {(48, b"Xorg"): HungMessage(2 * SECOND, 20)}


@pytest.mark.parametrize(
    ("wait_ns", "is_of_it"),
    [
        (420 * SECOND, True),  # since before the message
        (365 * SECOND, True),  # as far as two clocks agree
        (299 * SECOND, False),  # it has run since
        (2_000_000, False),
        (None, False),
    ],
)
def test_a_message_is_of_a_sleep_that_began_before_it(
    wait_ns: Optional[int], is_of_it: bool
) -> None:
    message = HungMessage(700 * SECOND, 120)
    assert message.is_of_sleep(wait_ns, 1000 * SECOND) is is_of_it


def test_a_sleep_of_a_moment_is_not_what_a_message_of_now_names() -> None:
    assert HungMessage(1000 * SECOND, 120).is_of_sleep(121 * SECOND, 999 * SECOND)
    assert not HungMessage(1000 * SECOND, 120).is_of_sleep(2_000_000, 999 * SECOND)


def test_nobody_is_named_by_what_user_space_wrote() -> None:
    text = b"INFO: task Xorg:48 blocked for more than 10 seconds."
    # devkmsg_write() gives it LOG_USER; in the middle of a line the kernel never begins so.
    user, quoted = LogRecord(1, 0, 3, text, 1, facility=1), LogRecord(2, 0, 3, b"x " + text, 1)
    assert named_in_log([user, quoted]) == {}
    assert named_in_log([LogRecord(3, 0, 3, text.replace(b"Xorg", b"a\n:7"), 1)]) == {
        (48, b"a\n:7"): HungMessage(0, 10)
    }


# What is said of tasks that hang.


def cause(rule: Rule, pid: Optional[int], victims: int) -> Finding:
    subject = Ref("task", "holder", 0x1000 + pid, pid) if pid else Ref("rwsem", "", 0x9000)
    evidence = (Evidence("victims", Kind.COUNT, victims),)
    return dataclasses.replace(hung(), rule=rule, subject=subject, evidence=evidence)


def blocked(pid: int, **changed: Any) -> hung_tasks._Blocked:
    task: Any = SimpleNamespace(value_=lambda: 0x1000 + pid)
    place = SleepPlace("mutex", "mutex_lock.constprop.0", "do_thing")
    fields: Dict[str, Any] = {
        **dict.fromkeys(("cause", "causes", "awaited")),
        **dict.fromkeys(("in_circle", "not_found", "named"), False),
        "waits_for": "mutex",
        **changed,
    }
    return hung_tasks._Blocked(task, pid, "holder", 9 * SECOND, Stack(()), place, **fields)


def said(*tasks: hung_tasks._Blocked, rule: Rule = HUNG) -> Tuple[str, Finding]:
    found = hung_tasks._finding(rule, list(tasks), tasks[0].pid, 3 * SECOND)
    return message_text(found), found


BEHIND = cause(HOLDER_ASLEEP, 111, 250)


def test_who_waits_behind_a_cause_has_it_and_comes_after_it() -> None:
    text, found = said(blocked(112, cause=BEHIND))
    assert text == (
        "holder (112) has been in uninterruptible sleep for 9.0 s in mutex_lock, called from "
        "do_thing (no task in uninterruptible sleep has slept longer); wait-graph names the cause: "
        f"VT313 lock-holder-asleep ({BEHIND.confidence.name.lower()})."
    )
    assert found.related == (BEHIND.subject,)
    assert found.explained


def test_the_cause_itself_is_no_victim_of_it() -> None:
    never = Awaited("completion vmwaits_never", True)
    text, found = said(blocked(111, causes=BEHIND, awaited=never))
    assert "wait-graph names" not in text
    assert text.endswith(
        "; it is itself the cause of VT313 lock-holder-asleep (250 tasks wait behind it); what is "
        "waited for: completion vmwaits_never, which nobody is known to end."
    )
    assert found.related == ()
    assert found.explained


def test_a_cause_with_one_behind_it_that_waits_for_one_who_can_end_it() -> None:
    alone = cause(HOLDER_ASLEEP, 111, 1)
    text, _ = said(blocked(111, causes=alone, awaited=Awaited("timer", False)))
    assert text.endswith(" (1 task waits behind it); what is waited for: timer.")


def test_several_causes_with_one_stack() -> None:
    text, found = said(*(blocked(n, causes=cause(HOLDER_ASLEEP, n, 2)) for n in (111, 112)))
    assert text.endswith(
        "; PID 111, 112 are themselves the cause of VT313 lock-holder-asleep (4 tasks wait behind "
        "that)."
    )
    assert found.explained


def test_one_of_a_circle_is_part_of_it() -> None:
    text, found = said(blocked(111, cause=BEHIND, in_circle=True))
    assert f"; it is part of VT313 lock-holder-asleep ({BEHIND.confidence.name.lower()})." in text
    assert found.explained and found.related == ()


def test_what_nobody_is_known_to_end_is_no_cause() -> None:
    text, found = said(blocked(112, cause=cause(WAKER_UNKNOWN, None, 1)))
    assert text.endswith("; wait-graph knows nobody who would end it (VT318).")
    assert not found.explained
    text, found = said(
        blocked(111, cause=BEHIND), blocked(112, cause=cause(WAKER_UNKNOWN, None, 1))
    )
    assert text.endswith("; of others wait-graph knows nobody who would end it (VT318).")
    assert not found.explained


def test_a_wait_that_was_not_found_is_said_to_be() -> None:
    text, found = said(blocked(112, not_found=True))
    assert text.endswith("; wait-graph did not find what it waits for.")
    assert not found.explained
    text, _ = said(blocked(112, cause=BEHIND), blocked(113, not_found=True))
    assert text.endswith("; wait-graph did not find what 1 of them waits for.")


def test_nobody_is_related_to_himself_or_twice() -> None:
    other = dataclasses.replace(BEHIND, message="another")
    _, found = said(*(blocked(n, cause=c) for n, c in ((112, BEHIND), (113, other), (114, other))))
    assert [ref.address for ref in found.related] == [0x1000 + pid for pid in (111, 113, 114)]
    _, found = said(blocked(111, cause=BEHIND))
    assert found.related == ()


def test_a_sleep_that_a_fatal_signal_ends_is_killable() -> None:
    text, _ = said(blocked(112), rule=HUNG_KILLABLE)
    assert text.startswith("holder (112) has been in killable sleep for 9.0 s in mutex_lock")


def test_a_wait_of_unknown_kind_is_in_the_function_that_sleeps() -> None:
    place = SleepPlace(None, "some_driver_wait", "vfs_read")
    text, found = said(dataclasses.replace(blocked(112), place=place, waits_for="variable"))
    assert " in some_driver_wait, called from vfs_read" in text
    assert found.signature_key[0] == "unknown"


def test_causes_are_listed_before_what_they_explain() -> None:
    _, behind = said(blocked(112, cause=BEHIND))
    _, alone = said(blocked(113))
    surest = [behind, alone, BEHIND]
    assert sorted(surest, key=Finding.sort_key) == [alone, BEHIND, behind]
    assert (HUNG.severity, HOLDER_ASLEEP.severity) == (Severity.ERROR, Severity.ERROR)
