# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A real dump in which every name is an attack: on terminals, browsers, and what shows Markdown.

Written into a copy of it, as a program can call itself, or a container its host, and as a
damaged kernel can call its caches.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from typing import Iterator, Tuple

import pytest
from drgn import Program
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.pid import for_each_task

from tests.dumps.conftest import ShippedDump
from tests.dumps.test_redact import texts
from tests.report.test_html import Page, assert_harmless
from tests.report.test_markdown import outside_of_code
from vmcore_tools import demo, runner, target
from vmcore_tools.masking import masking_of
from vmcore_tools.model import Report, Status
from vmcore_tools.report import FORMATS, render

#: What all of them begin with, and what Xorg is called, in the log, too: a report of another
#: task than the one that is there would be another finding.
_MARK, _XORG = b"Zq7", b"Zq\x1b["

#: Terminal escapes, HTML, Markdown, format strings, shell, the other way of writing, two lines.
_ATTACKS = (
    b"Zq7\x1b[2J\x1b]0;x",
    b"Zq7<script>a()",
    b"Zq7</pre><b>",
    b"Zq7`|*_[x](y)",
    b"Zq7{comm}%s%n",
    b"Zq7$(id);`id`",
    b"Zq7\xe2\x80\xae\xe2\x80\x8b\x9b",
    b"Zq7\n# x\r\x08\x00",
    b"Zq7\xff\xfe&lt;\"'",
    b"Zq7@x #1 ](z)",
)


def attack(number: int, size: int) -> bytes:
    """One that fits into as many bytes, with its end."""
    return _ATTACKS[number % len(_ATTACKS)][: size - 1].ljust(size, b"\0")


def overwrite(prog: Program, address: int, data: bytes) -> None:
    def read(_address: int, count: int, offset: int, _physical: bool) -> bytes:
        return data[offset : offset + count]

    prog.add_memory_segment(address, len(data), read, False)


def places(prog: Program) -> Iterator[Tuple[int, int]]:
    """Where names are, and how many bytes they may have."""
    for task in for_each_task(prog):
        if task.comm.string_() != b"Xorg":
            yield task.comm.address_, 16
    uts = prog["init_uts_ns"].name
    for name in (uts.nodename, uts.domainname):
        yield name.address_, 64
    for cache in list_for_each_entry(
        "struct kmem_cache", prog["slab_caches"].address_of_(), "list"
    ):
        text = cache.name.string_()
        # Those that analyses look for by their names stay.
        if not text.startswith((b"kmalloc", b"task", b"shmem")) and len(text) > len(_MARK):
            yield cache.name.value_(), len(text) + 1


def log_with_attacks(prog: Program) -> Tuple[int, bytes]:
    """The text of the log, with another name for the task that it tells of."""
    ring = prog["prb"].text_data_ring
    address, size = ring.data.value_(), 1 << ring.size_bits.value_()
    return address, prog.read(address, size).replace(b"Xorg", _XORG)


@functools.cache
def attacked(name: str) -> Report:
    files = demo.unpack(name)
    opened = target.open_core(files.vmcore, files.symbols)
    prog = opened.prog
    found = sorted(set(places(prog)))
    log = log_with_attacks(prog)
    named = [task for task in for_each_task(prog) if task.comm.string_() == b"Xorg"]
    for task in named:
        overwrite(prog, task.comm.address_, _XORG.ljust(16, b"\0"))
    for number, (address, size) in enumerate(found):
        overwrite(prog, address, attack(number, size))
    overwrite(prog, *log)
    analyses = [analysis for analysis in runner.find_analyses() if analysis.argument is None]
    report = runner.run(opened, analyses, {}, limit=100, progress=lambda items, *_: items)
    return dataclasses.replace(report, masking=masking_of(prog))


@pytest.fixture
def report(shipped: ShippedDump) -> Report:
    return attacked(shipped.name)


def test_it_finds_what_it_finds_without_them(shipped: ShippedDump, report: Report) -> None:
    assert not [a for a in report.analyses if a.status is Status.FAILED]
    found = [(finding.rule.id, finding.confidence) for finding in report.findings]
    assert found == [(finding.rule.id, finding.confidence) for finding in shipped.report.findings]


@pytest.mark.parametrize("redact", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_can_be_shown_anywhere(report: Report, format: str, redact: bool) -> None:
    text = render(report, format, redact=redact)
    assert text.replace("\n", "").isprintable()
    assert redact or text.count("Zq7") > 10


@pytest.mark.parametrize("redact", [False, True])
def test_nothing_is_markup(report: Report, redact: bool) -> None:
    page = Page(render(report, "html", redact=redact))
    assert_harmless(page)
    assert "Zq7" in page.words or redact
    ticket = render(report, "markdown", redact=redact)
    # In a graph's labels all but letters and digits are codes: test_graph.py.
    outside = outside_of_code(re.sub(r"```mermaid\n.*?```", "", ticket, flags=re.DOTALL))
    assert "Zq7" not in outside and "<script" not in outside


def test_programs_can_tell_what_it_was(report: Report) -> None:
    found = json.loads(render(report, "json"))
    text = json.dumps(found, ensure_ascii=False)
    assert any(attack.decode() in text for attack in _ATTACKS[1:5])


def test_masked_as_other_names_are(report: Report) -> None:
    comms = [name for name in report.masking.names if "Zq7" in name]
    plain, masked = (
        list(texts(json.loads(render(report, "json", redact=r)))) for r in (False, True)
    )
    assert set(comms) & set(plain)
    assert not [text for text in masked for name in comms if name in text]
