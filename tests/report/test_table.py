# SPDX-License-Identifier: LGPL-2.1-or-later
"""The report as text for a terminal."""

from __future__ import annotations

import dataclasses
import json

from hypothesis import given
from hypothesis import strategies as st

from tests.sample_report import STACK, Fence, fence, full_report, hung, leak, report, result
from vmcore_tools.model import Absent, Evidence, Gap, Kind, Maybe, Ref, Stack, Status, Table, column
from vmcore_tools.report import render
from vmcore_tools.report.table import facts_text

FULL = """\
file vmcore-of-host7; kernel release 5.10.262; ram managed by the kernel 1.0 GiB

2 findings: 1 error, 1 warning. The report is INCOMPLETE: broken failed; slab did not run;
dma-fences could not read everything.

ERROR VT201 leaked-dma-fence [likely]: 5,107 references of Xorg to 468.8 KiB at 0xffff888000001000,
  0xffff888000001060 have no holder
WARNING VT301 hung-task [proven]: Xorg waits for 2 min 11 s

NOT looked at:
  dma-fences: 9 slab pages: corrupt freelist (at 0xffff888000004000, ...)
  slab: skipped: struct page not found
  broken: failed: KeyError: 'Xorg'

Not looked at, which changes no answer:
  dma-fences: 77 user pages: excluded by the dump level

ERROR VT201 leaked-dma-fence [likely]
  5,107 references of Xorg to 468.8 KiB at 0xffff888000001000, 0xffff888000001060 have no holder
  subject: slab cache kmalloc-96 at 0xffff888000002000
  seqno: ? (page 0x12345 is not in the dump)
  related: task Xorg, PID 412 at 0xffff888000003000
  stack-c3468492db:
    #0  context_switch (kernel/sched/core.c:3600) (inlined)
    #1  __schedule+0x2f1/0x7a0 (kernel/sched/core.c:4567)
    #2  virtio_gpu_cmd+0x10/0x20 [virtio_gpu]
    (the rest of the stack is not in the dump)
  unread: the vmalloc area
  what to do: Look for a missing dma_fence_put() in the allocating function.
  signature: VT201-fb799c17fe4b

WARNING VT301 hung-task [proven]
  Xorg waits for 2 min 11 s
  subject: task Xorg, PID 412
  stack-c3468492db: shown above
  what to do: Look at what it waits for.
  signature: VT301-3251b1d4acaf

dma-fences: Fence, showing 2 of 5,107:
address             driver                   size         age  comm                       stack
------------------  ----------  -----------------  ----------  -------------------------  ----------------
0xffff888000001000  virtio_gpu               96 B  2 min 11 s  Xorg                       stack-c3468492db
0xffff888000001060  virtio_gpu  ? (excluded page)        none  ? (the task Xorg is gone)  ? (no track)

Analyses (vmcore-tools 0.1.0):
  dma-fences: partial: see above what was not looked at
  hung-tasks: ok
  slab: SKIPPED (struct page not found)
  gem: not applicable (no struct drm_device)
  broken: FAILED (KeyError: 'Xorg')
"""  # noqa: E501 (a table's line)


@dataclasses.dataclass(frozen=True)
class Wide:
    a: int = column(Kind.COUNT)
    b: int = column(Kind.COUNT)
    c: int = column(Kind.COUNT)
    d: int = column(Kind.COUNT)
    e_size_bytes: int = column(Kind.BYTES)
    f: int = column(Kind.COUNT)
    g: Maybe[int] = column(Kind.COUNT)
    h: Maybe[str] = column(Kind.UNTRUSTED)
    i: int = column(Kind.COUNT)


def wide(a: int, h: Maybe[str] = "8") -> Wide:
    return Wide(a, 2, 3, 4, 5, 6, Absent("not read"), h, 9)


def test_full_report() -> None:
    assert render(full_report(), "table") == FULL


def test_nothing_found() -> None:
    text = render(report(result()), "table")
    assert "\nNo findings. Everything relevant was read.\n" in text
    assert "INCOMPLETE" not in text


def test_could_not_look_does_not_look_like_nothing_found() -> None:
    made = report(
        result(status=Status.PARTIAL, gaps=(Gap("slab pages", "corrupt", 2, True, ()),)),
        result("hung-tasks", status=Status.SKIPPED, reason="no debug info for vmlinux"),
    )
    text = render(made, "table")
    assert "Everything relevant was read" not in text
    assert (
        "\nNo findings, BUT the report is INCOMPLETE: hung-tasks did not run;"
        " dma-fences could not read\neverything.\n"
    ) in text
    assert (
        "NOT looked at:\n"
        "  dma-fences: 2 slab pages: corrupt\n"
        "  hung-tasks: skipped: no debug info for vmlinux\n"
    ) in text


def test_what_every_dump_leaves_out_is_no_gap() -> None:
    made = report(result(gaps=(Gap("user pages", "excluded", 7, False, ()),)))
    text = render(made, "table")
    assert "No findings. Everything relevant was read." in text
    assert "Not looked at, which changes no answer:\n  dma-fences: 7 user pages: excluded\n" in text


def test_interrupted() -> None:
    made = report(
        result(status=Status.FAILED, reason="interrupted"),
        result("hung-tasks", status=Status.SKIPPED, reason="interrupted"),
        interrupted=True,
    )
    assert (
        "No findings, BUT the report is INCOMPLETE: it was interrupted; dma-fences failed;"
        " hung-tasks did not run.\n"
    ) in render(made, "table", width=120)


def test_a_remedy_is_given_once_for_each_rule() -> None:
    made = report(result(findings=(hung(), hung(signature_key=("other",)))))
    assert render(made, "table").count("what to do: Look at what it waits for.") == 1


def test_of_many_findings_that_are_alike_some_are_written() -> None:
    alike = tuple(leak(subject=Ref("lock", f"lock{number}")) for number in range(30))
    made = report(result(findings=(*alike, hung())))
    text = render(made, "table")
    assert "31 findings: 30 errors, 1 warning." in text
    assert text.count("\nERROR VT201 leaked-dma-fence [likely]: ") == 3
    assert "\nVT201 leaked-dma-fence: 27 more with signature VT201-fb799c17fe4b\n" in text
    assert text.count("\nERROR VT201 leaked-dma-fence [likely]\n") == 10
    assert "subject: lock lock9\n" in text and "lock10" not in text
    assert "\nVT201 leaked-dma-fence: 20 more with signature VT201-fb799c17fe4b\n" in text
    assert text.count("WARNING VT301") == 2
    assert len(json.loads(render(made, "json"))["findings"]) == 31
    ticket = render(made, "markdown")
    assert ticket.count("### ERROR") == 10
    assert "\nVT201 leaked-dma-fence: 20 more with `VT201-fb799c17fe4b`\n" in ticket


def test_tables_without_rows() -> None:
    table = Table(Fence, (), 0)
    assert "dma-fences: Fence, none\n" in render(report(result(tables=(table,))), "table")
    partial = result(status=Status.PARTIAL, tables=(table,))
    assert "dma-fences: Fence, none seen\n" in render(report(partial), "table")


def test_all_rows_shown() -> None:
    made = report(result(tables=(Table(Fence, (fence(stack=None),), 1),)))
    assert "dma-fences: Fence, 1 row:\n" in render(made, "table")


def test_numbers_are_not_parsed_again() -> None:
    made = report(result(tables=(Table(Fence, (fence(driver="1e5", comm="007"),), 1),)))
    row = render(made, "table").split("----\n")[1].split("\n")[0]
    assert "1e5 " in row and " 007 " in row


def test_headings_are_not_wider_than_their_columns() -> None:
    @dataclasses.dataclass(frozen=True)
    class Holder:
        held_by_reservation_objects: int = column(Kind.COUNT)
        name: str = column(Kind.UNTRUSTED)

    made = report(result(tables=(Table(Holder, (Holder(3, "a name"),), 1),)))
    assert (
        "dma-fences: Holder, 1 row:\n"
        "      held by  name\n"
        "  reservation\n"
        "      objects\n"
        "-------------  ------\n"
        "            3  a name\n"
    ) in render(made, "table")


def test_a_wide_table_names_once_what_all_rows_have() -> None:
    made = report(result(tables=(Table(Wide, (wide(1), wide(2, h=Absent("gone"))), 2),)))
    assert (
        "dma-fences: Wide, 2 rows:\n"
        "  the same in all rows: b 2, c 3, d 4, e size 5 B, f 6, g ? (not read), i 9\n"
        "  a  h\n"
        "---  --------\n"
        "  1  8\n"
        "  2  ? (gone)\n"
    ) in render(made, "table")


def test_the_first_column_stays_and_rows_not_shown_may_differ() -> None:
    made = report(result(tables=(Table(Wide, (wide(1), wide(1)), 3),)))
    text = render(made, "table")
    assert "  the same in all rows shown: b 2, " in text
    assert "\n  a\n---\n  1\n  1\n" in text


def test_one_row_or_few_columns_are_shown_whole() -> None:
    one = report(result(tables=(Table(Wide, (wide(1),), 1),)))
    few = report(result(tables=(Table(Fence, (fence(), fence()), 2),)))
    for made in (one, few):
        assert "the same in all rows" not in render(made, "table")


def test_json_and_markdown_of_a_wide_table() -> None:
    made = report(result(tables=(Table(Wide, (wide(1), wide(2)), 2),)))
    rows = json.loads(render(made, "json"))["tables"]["dma-fences"]["Wide"]["rows"]
    assert [len(row) for row in rows] == [9, 9]
    assert (
        "### dma-fences: Wide, 2 rows\n"
        "\n"
        "The same in all rows: b 2, c 3, d 4, e size 5 B, f 6, g ? (`not read`), h `8`, i 9\n"
        "\n"
        "| a |\n"
        "| ---: |\n"
        "| 1 |\n"
        "| 2 |\n"
    ) in render(made, "markdown")


def test_the_findings_counted() -> None:
    one = render(report(result(findings=(hung(),))), "table")
    assert "\n1 finding: 1 warning.\n\nWARNING VT301 hung-task [proven]\n" in one
    many = render(report(result(findings=(hung(), hung(), leak()))), "table")
    assert "\n3 findings: 1 error, 2 warnings.\n" in many


def test_stacks_of_rows_follow_the_tables_once() -> None:
    rows = (fence(), fence(address=1), fence(stack=Absent("no track")))
    made = report(result(tables=(Table(Fence, rows, 3),)))
    assert render(made, "table").count(f"  {STACK.id}:\n    #0  context_switch") == 1


def test_long_values_are_wrapped_without_being_cut() -> None:
    addresses = tuple(0xFFFF888000001000 + i for i in range(12))
    made = leak(evidence=(Evidence("first", Kind.ADDRESS, addresses),), message="leaked", stacks=())
    for width in (60, 100):
        text = render(report(result(findings=(made,))), "table", width=width)
        assert all(f"{address:#x}" in text for address in addresses)
        assert max(map(len, text.split("\n"))) <= width


def test_timings_only_when_asked_for() -> None:
    assert "dma-fences: ok, 1.23 s\n" in render(report(result()), "table", timings=True)
    assert "1.23" not in render(report(result()), "table")


def test_facts() -> None:
    facts = (
        Evidence("format", Kind.TEXT, "ELF vmcore"),
        Evidence("ram_bytes", Kind.BYTES, 1 << 30),
        Evidence("build_id", Kind.TEXT, Absent("not recorded")),
    )
    assert facts_text(facts) == (
        "format:                    ELF vmcore\n"
        "ram managed by the kernel: 1.0 GiB\n"
        "build id:                  ? (not recorded)\n"
    )


@given(st.text(alphabet=st.characters(codec=None)))
def test_any_text_of_the_dump_is_harmless(text: str) -> None:
    stack = Stack(
        (dataclasses.replace(STACK.frames[0], function=text, file=text, module=text),), note=text
    )
    made = report(
        result(
            status=Status.PARTIAL,
            reason=text,
            findings=(
                leak(
                    message="{comm}",
                    evidence=(Evidence("comm", Kind.SENSITIVE, text),),
                    subject=Ref(text, text),
                    related=(Ref("task", Absent(text)),),
                    stacks=(stack.id,),
                    unread=(text,),
                ),
            ),
            tables=(Table(Fence, (fence(driver=text, comm=Absent(text)),), 1),),
            gaps=(Gap(text, text, 1, True, ()),),
        ),
        target=(Evidence("release", Kind.UNTRUSTED, text),),
        stacks={stack.id: stack, STACK.id: STACK},
    )
    assert render(made, "table").replace("\n", "").isprintable()


def test_what_was_not_read_is_on_the_first_screen() -> None:
    text = render(full_report(), "table")
    short, whole = (
        "ERROR VT201 leaked-dma-fence [likely]: ",
        "ERROR VT201 leaked-dma-fence [likely]\n",
    )
    assert text.index(short) < text.index("NOT looked at:") < text.index(whole)


@dataclasses.dataclass(frozen=True)
class Long:
    address: int = column(Kind.ADDRESS)
    what: str = column(Kind.UNTRUSTED)
    why: Maybe[str] = column(Kind.TEXT)
    size_bytes: Maybe[int] = column(Kind.BYTES)


def test_tables_fit_a_terminal() -> None:
    reason = "it is no report of a blocked task, and nothing else says so"
    rows = tuple(
        Long(0xFFFF888000001000 + n, "x" * 60 + str(n), Absent(reason), Absent(reason))
        for n in range(3)
    )
    made = report(result(tables=(Table(Long, rows, 3),)))
    text = render(made, "table", width=80, fit=80)
    assert max(map(len, text.splitlines())) <= 80
    for row in rows:
        assert f"\n{row.address:#x}  xxx" in text
    assert "xxx...  ?" in text
    assert f"  ? in why: {reason}\n  ? in size: {reason}\n" in text
    assert "  Cells were cut to fit the terminal; they are whole with -o FILE.\n" in text
    # What has room is as it is anywhere.
    assert render(made, "table", width=80, fit=400) == render(made, "table", width=80)
    # Where there is no terminal, everything is there.
    assert text.count(reason) == 2 and render(made, "table", width=80).count(reason) == 6
