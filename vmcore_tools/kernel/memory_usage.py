# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What each page of RAM is used for.

The page structures tell the classes of most pages. What they call reserved or
only allocated is told apart by who maps it: the kernel image, vmalloc areas,
kernel stacks, per-CPU units.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Program, sizeof
from drgn.helpers import ValidationError
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.hugetlb import for_each_hstate
from drgn.helpers.linux.mm import follow_phys, for_each_valid_page_range
from drgn.helpers.linux.module import for_each_module, module_address_regions
from drgn.helpers.linux.sched import idle_task

from vmcore_tools.dump.memory import Memory
from vmcore_tools.kernel.page import PageClass, direct_map_offset, page_index
from vmcore_tools.kernel.resource import for_each_resource, resource_name, system_ram
from vmcore_tools.kernel.task import for_each_bounded_task, stack_range
from vmcore_tools.kernel.virtual_map import virtual_map

Pfns = npt.NDArray[np.int64]

#: No stack, module or unit of per-CPU memory is larger.
_RANGE_BYTES_MAX = 1 << 32
#: The same of physical ranges: crash kernels of large machines have some GiB.
_RESOURCE_BYTES_MAX = 1 << 36
#: Page frames that are looked at at a time.
_CHUNK_PAGES = 1 << 20
_MODULES_MAX = 10_000
#: Pages of a block that are taken as contiguous if its ends are.
_BLOCK_PAGES = 512


class Use(enum.Enum):
    """What RAM is used for."""

    FREE = "free"
    FREE_ON_CPUS = "free, on lists of CPUs"
    FREE_HUGE_PAGES = "free huge pages"
    SLAB = "slab"
    PAGE_CACHE = "page cache"
    SHARED_MEMORY = "shared memory and tmpfs"
    ANONYMOUS = "anonymous"
    KERNEL_STACKS = "kernel stacks"
    PAGE_TABLES = "page tables"
    MODULES = "modules"
    PER_CPU = "per-CPU memory"
    VMALLOC = "vmalloc"
    LARGE_KMALLOC = "large kmalloc"
    KERNEL_IMAGE = "kernel image"
    CRASH_KERNEL = "reserved for a crash kernel"
    PAGE_STRUCTS = "page structures"
    RESERVED = "reserved at boot, otherwise"
    OFFLINE = "given back to the hypervisor"
    ALLOCATED = "allocated, by whom is not known"
    UNREAD = "not known: no page structure"


#: What nobody can say the use of.
UNACCOUNTED = (Use.ALLOCATED, Use.UNREAD)

_BY_CLASS = {
    PageClass.UNREAD: Use.UNREAD,
    PageClass.FREE: Use.FREE,
    # Nobody counts references of the rest of a higher-order allocation that is
    # no compound page. The few that are free are split off by their number.
    PageClass.IDLE: Use.ALLOCATED,
    PageClass.SLAB: Use.SLAB,
    PageClass.ANONYMOUS: Use.ANONYMOUS,
    PageClass.PAGE_CACHE: Use.PAGE_CACHE,
    PageClass.PAGE_TABLE: Use.PAGE_TABLES,
    PageClass.RESERVED: Use.RESERVED,
    PageClass.OFFLINE: Use.OFFLINE,
    PageClass.ALLOCATED: Use.ALLOCATED,
}
#: Classes that a mapping says more of.
_REFINED = (PageClass.RESERVED, PageClass.ALLOCATED, PageClass.IDLE)
#: Uses of what was set aside at boot: what was given back is reserved no more.
_AT_BOOT = (Use.CRASH_KERNEL, Use.KERNEL_IMAGE)
#: In place of the class of a page that is counted already.
_COUNTED = 255


@dataclasses.dataclass(frozen=True)
class MemoryUsage:
    """
    The pages of RAM by their use.

    :ivar pages: page frames of each use; their sum is all System RAM
    :ivar managed: of those, pages that the page allocator was ever given
    :ivar not_found: uses whose pages could not be found, and why; they count
        as allocated or reserved
    """

    pages: Dict[Use, int]
    managed: int
    not_found: Tuple[Tuple[Use, str], ...]

    def with_counted(self, use: Use, of: Use, pages: int) -> MemoryUsage:
        """
        Split off pages that the kernel has counted, but that cannot be told apart.

        :param use: what they are used for
        :param of: where they are among
        """
        counted = max(0, min(pages, self.pages[of]))
        changed = {use: self.pages[use] + counted, of: self.pages[of] - counted}
        return dataclasses.replace(self, pages={**self.pages, **changed})


def memory_usage(prog: Program, memory: Memory) -> MemoryUsage:
    """
    Sort all pages of System RAM by their use.

    :raises drgn.FaultError: if a structure of the memory map cannot be read
    :raises LookupError: without the debug info of it
    """
    pages = page_index(prog, memory)
    page_size = memory.page_map.page_size_bytes
    owners, not_found = _owners(prog, page_size)
    counts = dict.fromkeys(Use, 0)
    managed = 0
    try:
        ranges = [(-(-start // page_size), end // page_size) for start, end in system_ram(prog)]
    except (FaultError, ValidationError) as error:
        # All that has a page structure; what of it is no RAM is reserved.
        ranges = [(start, end) for start, end in pages.ranges.tolist()]
        not_found.append((Use.RESERVED, f"holes in RAM count as well, for {error}"))
    for first, last in ranges:
        # A damaged range can be as large as a number can be.
        counts[Use.UNREAD] += max(0, last - max(first, pages.end))
    managed += counts[Use.UNREAD]
    for pfns in _in_chunks((first, min(last, pages.end)) for first, last in sorted(ranges)):
        kinds = pages.kind_of(pfns)
        managed += int((kinds != PageClass.RESERVED).sum())
        for use, owned in owners:
            classes = (PageClass.RESERVED,) if use in _AT_BOOT else _REFINED
            mine = np.isin(kinds, classes) & _is_in(pfns, owned)
            counts[use] += int(mine.sum())
            kinds[mine] = _COUNTED
        for kind, use in _BY_CLASS.items():
            counts[use] += int((kinds == kind).sum())
    return MemoryUsage(counts, managed, tuple(not_found))


def free_huge_pages(prog: Program) -> int:
    """Free pages of the hugetlb pools, in base pages; their ``_refcount`` is 0."""
    return sum(
        int(hstate.free_huge_pages.value_()) << int(hstate.order.value_())
        for hstate in for_each_hstate(prog)
    )


def _in_chunks(ranges: Iterable[Tuple[int, int]]) -> Iterator[Pfns]:
    """The page frames of ranges ``[first, last)``, in arrays of bounded size."""
    for first, last in ranges:
        for at in range(first, last, _CHUNK_PAGES):
            yield np.arange(at, min(last, at + _CHUNK_PAGES), dtype=np.int64)


def _is_in(pfns: Pfns, owned: Pfns) -> npt.NDArray[np.bool_]:
    """Which page frames are in a sorted array."""
    if not len(owned):
        return np.zeros(len(pfns), dtype=bool)
    at = np.minimum(np.searchsorted(owned, pfns), len(owned) - 1)
    result: npt.NDArray[np.bool_] = owned[at] == pfns
    return result


def _owners(prog: Program, page_size: int) -> Tuple[List[Tuple[Use, Pfns]], List[Tuple[Use, str]]]:
    """Sorted page frames that have an owner, the first of them counts; and what failed."""
    owners: List[Tuple[Use, Pfns]] = []
    failed: List[Tuple[Use, str]] = []

    def own(use: Use, find: Callable[[], Pfns]) -> Pfns:
        try:
            found = np.unique(find())
        except (FaultError, LookupError, ValidationError) as error:
            failed.append((use, str(error)))
            found = np.zeros(0, dtype=np.int64)
        owners.append((use, found))
        return found

    own(Use.CRASH_KERNEL, lambda: _resource_pages(prog, page_size, "Crash kernel"))
    own(Use.KERNEL_IMAGE, lambda: _image_pages(prog, page_size))
    own(Use.PAGE_STRUCTS, lambda: _page_struct_pages(prog, page_size))
    mapped = _Mapped(prog, page_size)
    own(Use.KERNEL_STACKS, lambda: mapped.pages(_stacks(prog)))
    own(Use.MODULES, lambda: mapped.pages(_modules(prog)))
    own(Use.PER_CPU, lambda: mapped.pages(_first_chunk(prog, page_size)))
    own(Use.PER_CPU, lambda: mapped.pages(_chunks(prog, page_size)))
    own(Use.VMALLOC, lambda: virtual_map(prog, page_size).area_pages()[1])
    return owners, failed


class _Mapped:
    """Finds the pages behind virtual addresses."""

    def __init__(self, prog: Program, page_size: int) -> None:
        self._page_size = page_size
        self._offset = direct_map_offset(prog)
        try:
            self._addresses, self._pfns = virtual_map(prog, page_size).area_pages()
        except (FaultError, ValidationError):
            # Use.VMALLOC tells of it.
            self._addresses = np.zeros(0, dtype=np.uint64)
            self._pfns = np.zeros(0, dtype=np.int64)

    def pages(self, ranges: Iterable[Tuple[int, int]]) -> Pfns:
        """
        The page frames of virtual address ranges ``[start, end)``.

        :raises drgn.helpers.ValidationError: if one of them cannot be
        """
        found = [np.zeros(0, dtype=np.int64)]
        for start, end in ranges:
            if not 0 <= start <= end < 1 << 64 or end - start > _RANGE_BYTES_MAX:
                raise ValidationError(f"nothing can be at 0x{start:x}-0x{end:x}")
            bounds = np.array([start, end], dtype=np.uint64)
            low, high = np.searchsorted(self._addresses, bounds).tolist()
            if low < high:
                found.append(self._pfns[low:high])
            elif start >= self._offset:
                # In no vmalloc area: then it is in the direct map.
                first = (start - self._offset) // self._page_size
                last = -(-(end - self._offset) // self._page_size)
                found.append(np.arange(first, last, dtype=np.int64))
        return np.concatenate(found)


def _resource_pages(prog: Program, page_size: int, name: str) -> Pfns:
    found = [np.zeros(0, dtype=np.int64)]
    for resource in for_each_resource(prog["iomem_resource"].address_of_()):
        if resource_name(resource) == name.encode():
            start, end = resource.start.value_(), resource.end.value_() + 1
            if not start < end or end - start > _RESOURCE_BYTES_MAX:
                raise ValidationError(f"no {name} can be at 0x{start:x}-0x{end:x}")
            found.append(np.arange(start // page_size, -(-end // page_size), dtype=np.int64))
    return np.concatenate(found)


def _image_pages(prog: Program, page_size: int) -> Pfns:
    """From the first to the last of the kernel's own resources: code, data, bss."""
    names = ("Kernel code", "Kernel rodata", "Kernel data", "Kernel bss")
    parts = np.concatenate([_resource_pages(prog, page_size, name) for name in names])
    if not len(parts):
        return parts
    return np.arange(parts.min(), parts.max() + 1, dtype=np.int64)


def _page_struct_pages(prog: Program, page_size: int) -> Pfns:
    """The pages that hold the page structures themselves."""
    init_mm = prog["init_mm"].address_of_()
    size = sizeof(prog.type("struct page"))

    def pfn(address: int) -> Optional[int]:
        try:
            return int(follow_phys(init_mm, address).value_()) // page_size
        except FaultError:
            return None

    found = [np.zeros(0, dtype=np.int64)]
    for start, end, mem_map in for_each_valid_page_range(prog):
        base = mem_map.value_() & 0xFFFFFFFFFFFFFFFF
        low = (base + start * size) // page_size * page_size
        high = -(-(base + end * size) // page_size) * page_size
        for address in range(low, high, _BLOCK_PAGES * page_size):
            count = min(_BLOCK_PAGES, (high - address) // page_size)
            first, last = pfn(address), pfn(address + (count - 1) * page_size)
            if first is not None and last == first + count - 1:
                found.append(np.arange(first, first + count, dtype=np.int64))
                continue
            each = (pfn(address + number * page_size) for number in range(count))
            found.append(np.array([p for p in each if p is not None], dtype=np.int64))
    return np.concatenate(found)


def _stacks(prog: Program) -> Iterator[Tuple[int, int]]:
    """Address ranges of all tasks' kernel stacks, idle tasks included."""
    for task in for_each_bounded_task(prog):
        yield stack_range(task)
    for cpu in for_each_possible_cpu(prog):
        task = idle_task(prog, cpu)
        if task:
            yield stack_range(task)


def _modules(prog: Program) -> Iterator[Tuple[int, int]]:
    for number, module in enumerate(for_each_module(prog)):
        if number >= _MODULES_MAX:
            return
        for start, size in module_address_regions(module):
            yield start, start + size


def _first_chunk(prog: Program, page_size: int) -> Iterator[Tuple[int, int]]:
    """
    The units of static per-CPU variables, which were reserved at boot.

    Mirrors ``pcpu_embed_first_chunk()`` of mm/percpu.c: what a unit does not
    need was given back.
    """
    base = prog["pcpu_base_addr"].value_()
    chunk = prog["pcpu_first_chunk"].read_()
    size = chunk.base_addr.value_() - base + chunk.nr_pages.value_() * page_size
    offsets = prog["pcpu_unit_offsets"].read_()
    for cpu in for_each_possible_cpu(prog):
        start = base + offsets[cpu].value_()
        yield start, start + size


def _chunks(prog: Program, page_size: int) -> Iterator[Tuple[int, int]]:
    """The vmalloc areas that hold dynamic per-CPU memory."""
    for area in virtual_map(prog, page_size).areas:
        try:
            caller = prog.symbol(area.caller).name
        except LookupError:
            continue
        if caller == "pcpu_get_vm_areas":
            yield area.start, area.end
