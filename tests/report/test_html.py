# SPDX-License-Identifier: LGPL-2.1-or-later
"""The report as HTML: all of it is there, and nothing that a dump says is markup."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Dict, List, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sample_report import STACK, Fence, fence, full_report, hung, leak, report, result
from vmcore_tools.model import (
    Absent,
    Evidence,
    Gap,
    Graph,
    GraphEdge,
    GraphNode,
    Kind,
    Ref,
    Status,
    Table,
)
from vmcore_tools.report import render

HOSTILE = "</pre></td><script>alert(1)</script>\"'><img src=x onerror=y>&lt;\n\x1b[2J\u202e"

#: All that the renderer writes itself.
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "p", "ol"),
    *("ul", "li", "a", "article", "span", "strong", "dl", "dt", "dd", "pre", "code", "details"),
    *("summary", "div", "table", "thead", "tbody", "tr", "th", "td", "footer"),
}
VOID = {"meta"}


class Page(HTMLParser):
    """What a browser would make of it, and that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: List[str] = []
        self.tags: List[Tuple[str, Dict[str, Optional[str]]]] = []
        self.words = ""
        self.style = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.words += data


def assert_harmless(page: Page) -> None:
    assert {tag for tag, _ in page.tags} <= TAGS
    allowed = {"class", "id", "href", "open", "lang", "aria-label"}
    for tag, attributes in page.tags:
        if tag != "meta":
            assert set(attributes) <= allowed
        if tag == "a":
            assert (attributes["href"] or "").startswith("#")


def test_full_report_says_it_all() -> None:
    page = Page(render(full_report(), "html"))
    assert_harmless(page)
    for word in (
        "2 findings: 1 error, 1 warning. The report is INCOMPLETE: broken failed; ",
        "VT201 leaked-dma-fence",
        "likely",
        "5,107 references of Xorg to 468.8 KiB at 0xffff888000001000, 0xffff888000001060 have",
        "slab cache kmalloc-96 at 0xffff888000002000",
        "? (page 0x12345 is not in the dump)",
        "task Xorg, PID 412 at 0xffff888000003000",
        "the vmalloc area",
        "Look for a missing dma_fence_put() in the allocating function.",
        "VT201-fb799c17fe4b",
        "#1  __schedule+0x2f1/0x7a0 (kernel/sched/core.c:4567)",
        "(the rest of the stack is not in the dump)",
        "NOT looked at",
        "9 slab pages: corrupt freelist (at 0xffff888000004000, ...)",
        "Not looked at, which changes no answer",
        "dma-fences: Fence, showing 2 of 5,107",
        "slab: SKIPPED (struct page not found)",
        "vmcore-tools 0.1.0",
    ):
        assert word in page.words, word
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    ids = {f"#{attributes['id']}" for _, attributes in page.tags if "id" in attributes}
    assert links == ids == {"#finding-1", "#finding-2", f"#{STACK.id}"}


def test_nothing_is_run_or_loaded() -> None:
    text = render(full_report(), "html")
    page = Page(text)
    (policy,) = (
        attributes["content"] or ""
        for tag, attributes in page.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"url\(|@import|https?:|<script|javascript:", text)


def graph(name: str) -> Graph:
    return Graph(
        nodes=(
            GraphNode("a", Ref("CPU", name), (Evidence("runs", Kind.SENSITIVE, name),)),
            GraphNode("b", Ref("task", "b", pid=2)),
            GraphNode("c", Ref("task", "c", pid=3)),
        ),
        edges=(
            GraphEdge("b", "a", "is queued on", True),
            GraphEdge("c", "b", "waits for", False),
        ),
        roots=("a",),
    )


def test_graph_is_drawn() -> None:
    page = Page(render(report(result(findings=(hung(graph=graph("1")),))), "html"))
    drawn = (
        "CPU 1 (runs 1)\n"
        "└─ task b, PID 2 is queued on it\n"
        "   └─ task c, PID 3 waits for it (not proven)"
    )
    assert drawn in page.words
    assert ("span", {"class": "root"}) in page.tags


@pytest.mark.parametrize("name", ["|- x", "`- ", "   ", "|  |- "])
def test_what_looks_like_a_branch_is_none(name: str) -> None:
    page = Page(render(report(result(findings=(hung(graph=graph(name)),))), "html"))
    assert f"CPU {name}" in page.words


def test_could_not_look_does_not_look_like_nothing_found() -> None:
    clean = Page(render(report(result()), "html"))
    blind = Page(render(report(result(status=Status.SKIPPED, reason="no debug info")), "html"))
    kinds = [
        next(attributes["class"] for tag, attributes in page.tags if tag == "header")
        for page in (clean, blind)
    ]
    assert kinds == ["verdict", "verdict warning"]
    assert "No findings. Everything relevant was read." in clean.words
    assert "No findings, BUT the report is INCOMPLETE: dma-fences did not run." in blind.words


@given(st.one_of(st.just(HOSTILE), st.text(alphabet=st.characters(codec=None)), st.text("<>&\"'/")))
def test_any_text_of_the_dump_is_text(text: str) -> None:
    marked = f"MARK{text}MARK"
    frame = STACK.frames[0].__class__(marked, marked, 1, 1, marked, 1, False)
    stack = STACK.__class__((frame,), note=marked)
    made = report(
        result(
            status=Status.PARTIAL,
            reason=marked,
            findings=(
                leak(
                    message="{comm} and {comm}",
                    evidence=(
                        Evidence("comm", Kind.SENSITIVE, marked),
                        Evidence("other", Kind.TEXT, (marked, text)),
                    ),
                    subject=Ref(marked, marked),
                    related=(Ref("task", Absent(marked)),),
                    stacks=(stack.id,),
                    unread=(marked, text),
                    graph=graph(marked),
                ),
            ),
            tables=(Table(Fence, (fence(driver=text, comm=Absent(marked)),), 1),),
            gaps=(Gap(marked, text, 1, True, ()),),
        ),
        target=(Evidence("kernel_release", Kind.UNTRUSTED, marked),),
        stacks={stack.id: stack, STACK.id: STACK},
    )
    written = render(made, "html")
    assert re.sub("[\n├─└│]", "", written).isprintable()
    page = Page(written)
    assert_harmless(page)
    plain = Page(render(report(result()), "html"))
    assert page.style == plain.style
