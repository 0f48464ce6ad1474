# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Where all of RAM went: each page frame counted once, under one use.

The uses come from the page structures themselves, from who maps a page
(kernel image, kernel stacks, modules, per-CPU memory, vmalloc), and, where
pages cannot be told apart, from the kernel's own numbers: those on CPUs' free
lists, shared memory, free huge pages and large kmalloc allocations. The sum
is all System RAM. `counted_pages` is what the kernel itself counts, where it
does, by the name in `counter`.

What was allocated page by page and is in no mapping cannot be told to
anybody: buffers of drivers, for example. It is the unaccounted part, and if it
is large, that is where a leak is. Boot with page_owner=on to see its owners.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

from drgn import FaultError, Program

from vmcore_tools.analysis import Analysis, Context, Requires
from vmcore_tools.kernel.memory_usage import (
    UNACCOUNTED,
    MemoryUsage,
    Use,
    free_huge_pages,
    memory_usage,
)
from vmcore_tools.kernel.virtual_map import virtual_map
from vmcore_tools.kernel.vmstat import page_counter, pages_on_cpu_lists
from vmcore_tools.model import Absent, Kind, Maybe, column


@dataclasses.dataclass(frozen=True)
class MemoryUse:
    """A use of RAM, the largest first."""

    use: str = column(Kind.TEXT)
    size_bytes: int = column(Kind.BYTES)
    percent: int = column(Kind.NUMBER)
    pages: int = column(Kind.COUNT)
    counted_pages: Maybe[Optional[int]] = column(Kind.COUNT)
    counter: Optional[str] = column(Kind.TEXT)


@dataclasses.dataclass(frozen=True)
class Ram:
    """All of RAM, and how much of it is accounted for."""

    ram_bytes: int = column(Kind.BYTES)
    managed_bytes: int = column(Kind.BYTES)
    mem_total_bytes: Maybe[int] = column(Kind.BYTES)
    accounted_bytes: int = column(Kind.BYTES)
    unaccounted_bytes: int = column(Kind.BYTES)
    accounted_percent: int = column(Kind.NUMBER)


#: Reads one of the kernel's own numbers of pages.
Reader = Callable[[Program, int], int]


def analyze(ctx: Context) -> Iterator[Any]:
    page_size = ctx.memory.page_map.page_size_bytes
    usage = memory_usage(ctx.prog, ctx.memory)
    counted = {use: _read(ctx, reader, page_size) for use, (_, reader) in _COUNTERS.items()}
    usage = _split(usage, counted)
    _count_gaps(ctx, usage, page_size)
    yield from _rows(usage, counted, page_size)
    yield _ram(ctx, usage, page_size)


def _split(usage: MemoryUsage, counted: Dict[Use, Maybe[int]]) -> MemoryUsage:
    """Split off what only the kernel's numbers tell."""
    for use, of in (
        (Use.SHARED_MEMORY, Use.PAGE_CACHE),
        (Use.FREE_ON_CPUS, Use.ALLOCATED),
        (Use.FREE_HUGE_PAGES, Use.ALLOCATED),
    ):
        pages = counted[use]
        if isinstance(pages, int):
            usage = usage.with_counted(use, of, pages)
    slab = counted[Use.SLAB]
    if isinstance(slab, int):
        # 6a486c0ad4dc ("mm, sl[ou]b: improve memory accounting") in v5.4
        # counts them as slab memory.
        large = slab - usage.pages[Use.SLAB]
        usage = usage.with_counted(Use.LARGE_KMALLOC, Use.ALLOCATED, large)
    return usage


def _counter(name: str) -> Reader:
    return lambda prog, page_size: page_counter(prog, name).exact


def _slab_pages(prog: Program, page_size: int) -> int:
    # d42f3245c7e2 ("mm: memcg: convert vmstat slab counters to bytes") in v5.9.
    suffix = "_B" if "NR_SLAB_RECLAIMABLE_B" in prog else ""
    return sum(
        page_counter(prog, name + suffix).exact
        for name in ("NR_SLAB_RECLAIMABLE", "NR_SLAB_UNRECLAIMABLE")
    )


def _kernel_stack_pages(prog: Program, page_size: int) -> int:
    return page_counter(prog, "NR_KERNEL_STACK_KB").exact * 1024 // page_size


def _per_cpu_pages(prog: Program, page_size: int) -> int:
    return int(prog["pcpu_nr_populated"].value_() * prog["pcpu_nr_units"].value_())


def _vmalloc_pages(prog: Program, page_size: int) -> int:
    return int(prog["nr_vmalloc_pages"].counter.value_())


#: The kernel's own numbers, and what to call them.
_COUNTERS: Dict[Use, Tuple[str, Reader]] = {
    Use.FREE: ("NR_FREE_PAGES", _counter("NR_FREE_PAGES")),
    Use.FREE_ON_CPUS: ("struct per_cpu_pages", lambda prog, _: pages_on_cpu_lists(prog)),
    Use.FREE_HUGE_PAGES: ("hstates", lambda prog, _: free_huge_pages(prog)),
    Use.SLAB: ("NR_SLAB_RECLAIMABLE + NR_SLAB_UNRECLAIMABLE, with large kmalloc", _slab_pages),
    Use.PAGE_CACHE: ("NR_FILE_PAGES, with shared memory", _counter("NR_FILE_PAGES")),
    Use.SHARED_MEMORY: ("NR_SHMEM", _counter("NR_SHMEM")),
    Use.ANONYMOUS: ("NR_ANON_MAPPED", _counter("NR_ANON_MAPPED")),
    Use.KERNEL_STACKS: ("NR_KERNEL_STACK_KB", _kernel_stack_pages),
    Use.PAGE_TABLES: ("NR_PAGETABLE", _counter("NR_PAGETABLE")),
    Use.PER_CPU: ("pcpu_nr_populated * pcpu_nr_units", _per_cpu_pages),
    Use.VMALLOC: ("nr_vmalloc_pages, with kernel stacks and modules", _vmalloc_pages),
}


def _read(ctx: Context, reader: Reader, page_size: int) -> Maybe[int]:
    try:
        return reader(ctx.prog, page_size)
    except (AttributeError, LookupError):
        return Absent("the kernel does not count it")
    except FaultError as error:
        ctx.coverage.gap("page counter", "it is not in the dump", error.address)
        return Absent("it is not in the dump")


def _count_gaps(ctx: Context, usage: MemoryUsage, page_size: int) -> None:
    if usage.pages[Use.UNREAD]:
        ctx.coverage.gap(
            "page of RAM", "its page structure is not in the dump", count=usage.pages[Use.UNREAD]
        )
    for use, reason in usage.not_found:
        ctx.coverage.gap(use.value, f"the pages were not found: {reason}")
    if all(use is not Use.VMALLOC for use, _ in usage.not_found):
        areas = virtual_map(ctx.prog, page_size)
        if areas.unmapped_pages:
            ctx.coverage.gap(
                "page of a vmalloc area", "it was not found", count=areas.unmapped_pages
            )
        if areas.broken is not None:
            ctx.coverage.gap("list of vmalloc areas", f"it breaks off: {areas.broken}")


def _rows(
    usage: MemoryUsage, counted: Dict[Use, Maybe[int]], page_size: int
) -> Iterator[MemoryUse]:
    total = sum(usage.pages.values())
    for use in sorted(Use, key=lambda use: (-usage.pages[use], use.value)):
        pages = usage.pages[use]
        if not pages and use not in UNACCOUNTED:
            continue
        yield MemoryUse(
            use=use.value,
            size_bytes=pages * page_size,
            percent=round(pages * 100 / total) if total else 0,
            pages=pages,
            counted_pages=counted.get(use),
            counter=_COUNTERS[use][0] if use in _COUNTERS else None,
        )


def _ram(ctx: Context, usage: MemoryUsage, page_size: int) -> Ram:
    total = sum(usage.pages.values())
    unaccounted = sum(usage.pages[use] for use in UNACCOUNTED)
    mem_total = _read(ctx, _total_ram_pages, page_size)
    return Ram(
        ram_bytes=total * page_size,
        managed_bytes=usage.managed * page_size,
        mem_total_bytes=mem_total if isinstance(mem_total, Absent) else mem_total * page_size,
        accounted_bytes=(total - unaccounted) * page_size,
        unaccounted_bytes=unaccounted * page_size,
        # Cut, not rounded: 99.6 per cent are not all of it.
        accounted_percent=(total - unaccounted) * 100 // total if total else 0,
    )


def _total_ram_pages(prog: Program, page_size: int) -> int:
    # ca79b0c211af ("mm: convert totalram_pages and totalhigh_pages variables
    # to atomic") in v5.0.
    if "_totalram_pages" in prog:
        return int(prog["_totalram_pages"].counter.value_())
    return int(prog["totalram_pages"].value_())


ANALYSIS = Analysis(
    name="memory",
    analyze=analyze,
    tables=(MemoryUse, Ram),
    rules=(),
    requires=Requires(builtin=("struct page",), symbols=("iomem_resource",)),
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
