# SPDX-License-Identifier: LGPL-2.1-or-later
"""Values as text, by kind, with what the dump says made harmless."""

from __future__ import annotations

import itertools
import string
from typing import Any, Callable, Iterable, Iterator, Tuple, Union

from vmcore_tools.model import (
    HAS_THE_FIX,
    Absent,
    Evidence,
    Finding,
    Frame,
    Gap,
    Kind,
    KnownIssue,
    Ref,
)
from vmcore_tools.words import counted, several

_BYTES_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")

_NS_PER_US = 1000
_NS_PER_MS = 1000 * _NS_PER_US
_NS_PER_S = 1000 * _NS_PER_MS

#: What text shows instead of the unit that a name ends in.
_UNIT_SUFFIX = {Kind.BYTES: "_bytes", Kind.DURATION: "_ns"}

#: How often in a row a text is written out.
_REPEATED_MIN = 3

#: How reasons of gaps begin, of one thing and of several.
_OF_SEVERAL = (
    ("it is ", "they are "),
    ("it was ", "they were "),
    ("it has ", "they have "),
    ("it cannot ", "they cannot "),
    ("its ", "their "),
)

#: Kinds whose columns are aligned at the right.
NUMERIC_KINDS = frozenset((Kind.PID, Kind.BYTES, Kind.DURATION, Kind.COUNT, Kind.NUMBER))


def escape(text: str) -> str:
    r"""
    *text* on one line and without anything that a terminal obeys.

    Control characters (C0, C1, DEL), line and paragraph separators, bidi
    controls, other invisible characters and lone surrogates become ``\xNN``
    or ``\uNNNN``.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape_character(c) for c in text)


def _escape_character(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        # A byte that was not UTF-8, as Python's surrogateescape keeps it.
        code -= 0xDC00
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def value_text(kind: Kind, value: Any) -> str:
    """A cell, or a piece of evidence, as escaped text."""
    if isinstance(value, Absent):
        return f"? ({escape(value.reason)})"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(list_texts(value, lambda item: value_text(kind, item))) or "none"
    if isinstance(value, str):
        # Also the pseudonym of a masked address.
        return escape(value)
    return _number_text(kind, value)


def list_texts(values: Iterable[Any], text: Callable[[Any], str]) -> Iterator[str]:
    """
    The values of a list, where a text that comes many times is written once.

    >>> list(list_texts(("sshd", "sshd", "sshd", "cron"), str))
    ['sshd (3 times)', 'cron']
    """
    for value, run in itertools.groupby(values):
        same = list(run)
        if isinstance(value, str) and len(same) >= _REPEATED_MIN:
            yield f"{text(value)} ({len(same)} times)"
        else:
            yield from map(text, same)


def _number_text(kind: Kind, value: int) -> str:
    if kind is Kind.ADDRESS:
        return address_text(value)
    if kind is Kind.BYTES:
        return bytes_text(value)
    if kind is Kind.DURATION:
        return duration_text(value)
    if kind is Kind.COUNT:
        return f"{value:,}"
    return str(value)


def address_text(address: Union[int, str]) -> str:
    """A masked address is its pseudonym already."""
    return address if isinstance(address, str) else f"{address:#x}"


def bytes_text(value: int) -> str:
    """
    >>> bytes_text(480000)
    '468.8 KiB'
    """
    size = float(abs(value))
    unit = 0
    # Not 1024: what rounds to 1024.0 belongs to the next unit.
    while size >= 1023.95 and unit + 1 < len(_BYTES_UNITS):
        size /= 1024
        unit += 1
    sign = "-" if value < 0 else ""
    number = f"{size:.1f}" if unit else f"{size:.0f}"
    return f"{sign}{number} {_BYTES_UNITS[unit]}"


def duration_text(ns: int) -> str:
    """
    >>> duration_text(131_000_000_000)
    '2 min 11 s'
    """
    if ns < 0:
        return f"-{duration_text(-ns)}"
    if ns < _NS_PER_US:
        return f"{ns} ns"
    if ns < _NS_PER_MS:
        return f"{_tenths(ns, _NS_PER_US)} us"
    if ns < _NS_PER_S:
        return f"{_tenths(ns, _NS_PER_MS)} ms"
    seconds = ns // _NS_PER_S
    if seconds < 60:
        return f"{_tenths(ns, _NS_PER_S)} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    minutes = seconds // 60
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = minutes // 60
    return f"{hours // 24} d {hours % 24} h"


def _tenths(value: int, unit: int) -> str:
    # Cut, not rounded: 59.96 s is not 60.0 s.
    return f"{value // unit}.{value % unit * 10 // unit}"


def label(name: str, kind: Kind) -> str:
    """
    A name for people, without the unit that the value's text carries.

    >>> label("wait_ns", Kind.DURATION)
    'wait'
    """
    suffix = _UNIT_SUFFIX.get(kind)
    if suffix and name.endswith(suffix) and name != suffix:
        name = name[: -len(suffix)]
    return name.replace("_", " ")


def message_text(
    finding: Finding,
    value: Callable[[Evidence], str] = lambda item: value_text(item.kind, item.value),
    literal: Callable[[str], str] = escape,
) -> str:
    """
    The finding's message with the evidence in its places.

    :param value: formats a piece of evidence
    :param literal: formats the text between them
    """
    evidence = {item.name: item for item in finding.evidence}
    parts = []
    for text, name, _, _ in string.Formatter().parse(finding.message):
        parts.append(literal(text))
        if name is not None:
            parts.append(value(evidence[name]))
    return "".join(parts)


def evidence_lines(finding: Finding) -> Iterator[Evidence]:
    """The evidence that the message does not show."""
    shown = {name for _, name, _, _ in string.Formatter().parse(finding.message)}
    return (item for item in finding.evidence if item.name not in shown)


def known_issue_facts(issue: KnownIssue) -> Iterator[Tuple[str, str]]:
    """Name and text of each thing to say of a known issue that a finding looks like."""
    begins = "looks like" if issue.missing is None else "may be"
    text = f"{issue.title} ({issue.id})"
    if issue.this_kernel == HAS_THE_FIX:
        # Whoever reads no more than this line shall not take it for the cause.
        releases = " and ".join(dict.fromkeys(commit.release for commit in issue.fixed))
        text += f", fixed in {releases}, which this kernel has"
    yield f"{begins} the known issue", text
    if issue.missing is not None:
        yield "not known", issue.missing
    yield "known issue", issue.explanation
    for name, commits in (("brought by", issue.introduced), ("fixed by", issue.fixed)):
        for commit in commits:
            yield name, f'{commit.commit} ("{commit.subject}") in {commit.release}'
    if issue.this_kernel is not None:
        yield "this kernel", issue.this_kernel
    for reference in issue.references:
        yield "see", reference


def ref_text(ref: Ref) -> str:
    """
    >>> ref_text(Ref("task", "Xorg", pid=412))
    'task Xorg, PID 412'
    """
    text = escape(ref.type)
    if ref.name != "":
        text += f" {value_text(ref.name_kind, ref.name)}"
    if ref.pid is not None:
        text += f", PID {ref.pid}"
    if ref.address is not None:
        text += f" at {address_text(ref.address)}"
    return text


def frame_text(frame: Frame) -> str:
    """
    >>> frame_text(Frame("schedule", None, 0x46, 0xb0, "kernel/sched/core.c", 4567, False))
    'schedule+0x46/0xb0 (kernel/sched/core.c:4567)'
    """
    text = escape(frame.function)
    if frame.offset is not None:
        text += f"+{frame.offset:#x}"
        if frame.size is not None:
            text += f"/{frame.size:#x}"
    if frame.module is not None:
        text += f" [{escape(frame.module)}]"
    if frame.file is not None:
        line = "" if frame.line is None else f":{frame.line}"
        text += f" ({escape(frame.file)}{line})"
    return text + " (inlined)" if frame.inline else text


def stack_lines(frames: Tuple[Frame, ...]) -> Iterator[str]:
    for number, frame in enumerate(frames):
        yield f"{f'#{number}':<3} {frame_text(frame)}"


def _of_several(reason: str) -> str:
    """What is said of one thing, of several."""
    for one, more in _OF_SEVERAL:
        if reason.startswith(one):
            return more + reason[len(one) :]
    return reason


def gap_text(gap: Gap) -> str:
    """
    A gap in a line.

    The reason is that of one thing: where it begins with the words for one, with
    those for several instead.

    >>> gap_text(Gap("slab page", "corrupt freelist", 2, True, (0x1000,)))
    '2 slab pages: corrupt freelist (at 0x1000, ...)'
    """
    things = counted(gap.count, gap.what, several(gap.what))
    reason = gap.reason if gap.count == 1 else _of_several(gap.reason)
    text = f"{escape(things)}: {escape(reason)}"
    if gap.addresses:
        shown = ", ".join(address_text(address) for address in gap.addresses)
        more = ", ..." if gap.count > len(gap.addresses) else ""
        text += f" (at {shown}{more})"
    return text
