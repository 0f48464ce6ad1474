# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Whether the dump is whole, and what is missing to read it.

It finds dumps that were cut short (VT901), loaded modules whose debug info
was not found (VT902): whatever those modules own cannot be understood, and
pages of the kernel's own that are not in the dump (VT903). For each page frame
its struct page tells what it is used for: free pages and those of user space,
which makedumpfile leaves out on purpose, are no finding.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Iterator, Tuple

import numpy as np
from drgn import FaultError, Program

from vmcore_tools.analysis import Analysis, Context
from vmcore_tools.kernel.module_symbols import unread_module_symbols
from vmcore_tools.kernel.modules import (
    module_list,
    modules_left_out,
    modules_without_debug_info,
)
from vmcore_tools.kernel.page import PageClass, PageIndex, page_index
from vmcore_tools.kernel.references import absent_kernel_pages
from vmcore_tools.model import Confidence, Evidence, Finding, Kind, Ref, Rule, Severity, column
from vmcore_tools.module_gaps import count_modules_without_debug_info
from vmcore_tools.package_names import packages
from vmcore_tools.words import plural

TRUNCATED = Rule(
    id="VT901",
    slug="truncated-dump",
    severity=Severity.WARNING,
    summary="The dump was cut short: pages that it promises are missing.",
    remedy="Copy the dump again; if the original is short too, the disk was full when it was made.",
    page="""\
A kdump says so itself (makedumpfile's incomplete flag), or its page
descriptors or ELF segments point behind the end of the file. Everything that
is there is used; what could not be read is listed under coverage.""",
)
NO_DEBUG_INFO = Rule(
    id="VT902",
    slug="module-without-debug-info",
    severity=Severity.INFO,
    summary="Loaded modules have no debug info here, so what they own was not understood.",
    remedy=(
        "Give the debug package that the vmlinux is of, or the folder that it was unpacked to, "
        "with -s; for modules that were built apart, give their .ko files with -s, too."
    ),
    page="""\
Structures of such a module are unknown: its fences, queues and locks are not
recognised. The names of its functions are those that the kernel keeps of them
(CONFIG_KALLSYMS), without inlined ones and source lines. The debug package of
a distribution's kernel has the vmlinux and the modules.""",
)


KERNEL_PAGES_MISSING = Rule(
    id="VT903",
    slug="kernel-pages-missing",
    severity=Severity.WARNING,
    summary="Pages that the kernel itself uses are not in the dump.",
    remedy="Make the dump with a lower level: makedumpfile -d 31 keeps all kernel pages.",
    page="""\
A page counts if its struct page says that it is neither free nor user space's,
and it is neither in the dump nor part of a crash kernel's reservation. Anything
may have been in it, so nothing that such a page could refute is called proven.
Pages whose struct page is not in the dump are listed as unread.""",
)


@dataclasses.dataclass(frozen=True)
class PagesByUse:
    """The page frames of one use, and how many of them are in the dump."""

    use: str = column(Kind.TEXT)
    pages: int = column(Kind.COUNT)
    present: int = column(Kind.COUNT)
    absent: int = column(Kind.COUNT)


@dataclasses.dataclass(frozen=True)
class ModuleWithoutDebugInfo:
    """A loaded module whose debug info was not found."""

    module: str = column(Kind.UNTRUSTED)
    build_id: str = column(Kind.TEXT)


def analyze(ctx: Context) -> Iterator[Any]:
    page_map = ctx.memory.page_map
    if page_map.truncated:
        ctx.coverage.gap("dump", page_map.truncated)
        yield Finding(
            rule=TRUNCATED,
            confidence=Confidence.PROVEN,
            message="The dump is not whole: {reason}.",
            subject=Ref("dump", page_map.format),
            evidence=(
                Evidence("reason", Kind.TEXT, page_map.truncated),
                Evidence("pages_present", Kind.COUNT, page_map.present_pages),
            ),
            signature_key=("truncated",),
        )
    _count_unknown_modules(ctx)
    missing = [
        ModuleWithoutDebugInfo(module.name, module.build_id.hex() if module.build_id else "")
        for module in modules_without_debug_info(ctx.prog)
    ]
    if missing:
        count_modules_without_debug_info(ctx, "what only they have cannot be read")
        for module, problem in sorted(unread_module_symbols(ctx.prog).items()):
            ctx.coverage.gap("symbols of a module", f"{module}: they cannot be read: {problem}")
        yield Finding(
            rule=NO_DEBUG_INFO,
            confidence=Confidence.PROVEN,
            message=(
                f"{{count}} loaded {plural(len(missing), 'module has', 'modules have')} no debug"
                " info: {modules}. That of those which came with the kernel is in {packages}."
            ),
            subject=Ref("module", missing[0].module),
            evidence=(
                Evidence("count", Kind.COUNT, len(missing)),
                Evidence("modules", Kind.UNTRUSTED, tuple(row.module for row in missing)),
                Evidence("packages", Kind.UNTRUSTED, packages(_release(ctx.prog))),
            ),
            signature_key=("module-without-debug-info",),
        )
    yield from missing
    try:
        yield from _pages(ctx)
    except (FaultError, LookupError) as error:
        ctx.coverage.gap("struct page", f"page structures cannot be read: {error}")


def _count_unknown_modules(ctx: Context) -> None:
    try:
        listed = module_list(ctx.prog)
    except LookupError:
        return  # a kernel without modules
    if listed.damage is not None:
        ctx.coverage.gap("list of modules", f"it breaks off: {listed.damage}")
    for name in modules_left_out(ctx.prog, listed):
        ctx.coverage.gap("module", f"{name}: where it is cannot be read, nor what it has")


def _release(prog: Program) -> str:
    release: bytes = prog["UTS_RELEASE"].string_()
    return release.decode(errors="backslashreplace")


def _pages(ctx: Context) -> Iterator[Any]:
    pages = page_index(ctx.prog, ctx.memory)
    absent = absent_kernel_pages(ctx.memory, pages)
    if absent:
        total = sum(absent.values())
        ctx.coverage.gap("kernel page", "it is not in the dump", count=total)
        yield Finding(
            rule=KERNEL_PAGES_MISSING,
            confidence=Confidence.PROVEN,
            message=(
                f"{{count}} {plural(total, 'page')} that the kernel uses"
                f" {plural(total, 'is', 'are')} not in the dump: {{uses}}."
            ),
            subject=Ref("dump", ctx.memory.page_map.format),
            evidence=(
                Evidence("count", Kind.COUNT, total),
                Evidence("uses", Kind.TEXT, tuple(sorted(kind.text for kind in absent))),
            ),
            signature_key=("kernel-pages-missing",),
        )
    for kind in PageClass:
        total, present = _count(ctx, pages, kind)
        if total:
            yield PagesByUse(kind.text, total, present, total - present)


def _count(ctx: Context, pages: PageIndex, kind: PageClass) -> Tuple[int, int]:
    """Page frames of a use, and those of them that the dump has."""
    total = present = 0
    for (start, end), position in zip(pages.ranges.tolist(), pages.position.tolist()):
        of_kind = np.flatnonzero(pages.kind[position : position + end - start] == kind)
        total += len(of_kind)
        pfns = (of_kind + start).astype(np.uint64)
        present += int(ctx.memory.page_map.present(pfns).sum())
    return total, present


ANALYSIS = Analysis(
    name="dump",
    analyze=analyze,
    tables=(ModuleWithoutDebugInfo, PagesByUse),
    rules=(TRUNCATED, NO_DEBUG_INFO, KERNEL_PAGES_MISSING),
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
