# SPDX-License-Identifier: LGPL-2.1-or-later
"""The report as Markdown."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sample_report import STACK, Fence, fence, full_report, leak, report, result
from vmcore_tools.model import Absent, Evidence, Gap, Kind, Ref, Status, Table
from vmcore_tools.report import render
from vmcore_tools.report.markdown import code, code_block, plain

FULL = """\
**2 findings: 1 error, 1 warning. The report is INCOMPLETE: broken failed; slab did not run; dma-fences could not read everything.**

### ERROR VT201 leaked-dma-fence (likely)

5,107 references of `Xorg` to 468.8 KiB at `0xffff888000001000`, `0xffff888000001060` have no holder

- subject: `slab cache` `kmalloc-96` at `0xffff888000002000`
- seqno: ? (`page 0x12345 is not in the dump`)
- related: `task` `Xorg`, PID 412 at `0xffff888000003000`
- unread: `the vmalloc area`
- what to do: Look for a missing dma_fence_put() in the allocating function.
- signature: `VT201-fb799c17fe4b`

`stack-c3468492db`:

```text
#0  context_switch (kernel/sched/core.c:3600) (inlined)
#1  __schedule+0x2f1/0x7a0 (kernel/sched/core.c:4567)
#2  virtio_gpu_cmd+0x10/0x20 [virtio_gpu]
(the rest of the stack is not in the dump)
```

### WARNING VT301 hung-task (proven)

`Xorg` waits for 2 min 11 s

- subject: `task` `Xorg`, PID 412
- what to do: Look at what it waits for.
- signature: `VT301-3251b1d4acaf`

`stack-c3468492db`: shown above

### Target

- file: `vmcore-of-host7`
- kernel release: `5.10.262`
- truncated: none
- ram managed by the kernel: 1.0 GiB

### NOT looked at

- `dma-fences`: `9 slab pages: corrupt freelist (at 0xffff888000004000, ...)`
- `slab`: `skipped: struct page not found`
- `broken`: `failed: KeyError: 'Xorg'`

### Not looked at, which changes no answer

- `dma-fences`: `77 user pages: excluded by the dump level`

### dma-fences: Fence, showing 2 of 5,107

| address | driver | size | age | comm | stack |
| --- | --- | ---: | ---: | --- | --- |
| `0xffff888000001000` | `virtio_gpu` | 96 B | 2 min 11 s | `Xorg` | `stack-c3468492db` |
| `0xffff888000001060` | `virtio_gpu` | ? (`excluded page`) | none | ? (`the task Xorg is gone`) | ? (`no track`) |

### Analyses

- `dma-fences: partial: see above what was not looked at`
- `hung-tasks: ok`
- `slab: SKIPPED (struct page not found)`
- `gem: not applicable (no struct drm_device)`
- `broken: FAILED (KeyError: 'Xorg')`

vmcore-tools 0.1.0
"""  # noqa: E501 (a line of Markdown is a paragraph)

HOSTILE = "`|</details><script>alert(1)</script> [x](http://e.org) @root #1 ```\n\x1b[2J"


def test_full_report() -> None:
    assert render(full_report(), "markdown") == FULL


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("Xorg", "`Xorg`"),
        ("a`b", "``a`b``"),
        ("``", "``` `` ```"),
        ("", "` `"),
        ("a|b", "`a\\x7cb`"),
        ("a\nb", "`a\\x0ab`"),
        (" a ", "`  a  `"),
        ("<b>&amp;</b>", "`<b>&amp;</b>`"),
    ],
)
def test_code(text: str, span: str) -> None:
    assert code(text) == span


def test_plain() -> None:
    assert plain("dma_fence_put() of __free *x* <b> [a](b) ~~a~~ a|b `c` \\") == (
        "dma_fence_put() of \\_\\_free \\*x\\* \\<b\\> \\[a\\](b) \\~\\~a\\~\\~ a\\|b \\`c\\` \\\\"
    )


def test_a_code_block_cannot_be_left() -> None:
    assert code_block(["```", "````", "x"]) == "`````text\n```\n````\nx\n`````\n"


def test_long_tables_are_folded() -> None:
    rows = tuple(fence(address=i, stack=None) for i in range(11))
    text = render(report(result(tables=(Table(Fence, rows, 11),))), "markdown")
    assert "<details><summary>dma-fences: Fence, 11 rows</summary>\n\n| address |" in text
    assert text.count("</details>") == 1


def test_could_not_look_does_not_look_like_nothing_found() -> None:
    clean = render(report(result()), "markdown")
    blind = render(report(result(status=Status.SKIPPED, reason="no debug info")), "markdown")
    assert clean.startswith("**No findings. Everything relevant was read.**\n")
    assert blind.startswith(
        "**No findings, BUT the report is INCOMPLETE: dma-fences did not run.**"
    )


def outside_of_code(text: str) -> str:
    """The Markdown without its code, found as CommonMark says."""
    text = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", "", text)


@given(st.one_of(st.just(HOSTILE), st.text(alphabet=st.characters(codec=None)), st.text("`|\\ <")))
def test_any_text_of_the_dump_stays_in_code(text: str) -> None:
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
                ),
            ),
            tables=(Table(Fence, (fence(driver=text, comm=Absent(marked)),), 1),),
            gaps=(Gap(marked, text, 1, True, ()),),
        ),
        target=(Evidence("release", Kind.UNTRUSTED, marked), Evidence("x", Kind.TEXT, text)),
        stacks={stack.id: stack, STACK.id: STACK},
    )
    written = render(made, "markdown")
    assert written.replace("\n", "").isprintable()
    outside = outside_of_code(written)
    assert "MARK" not in outside
    assert "`" not in outside and "<" not in outside and "[" not in outside
    rows = [line for line in written.split("\n") if line.startswith("| ")]
    assert {line.count("|") for line in rows} == {7}
