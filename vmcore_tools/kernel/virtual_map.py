# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Where kernel pages are mapped besides the direct map.

A word is found by its physical address. To say what it belongs to, that is
turned into the address that the kernel uses: in the kernel image, in a
vmalloc area (task stacks and modules are such), in a per-CPU unit.
"""

from __future__ import annotations

import bisect
import dataclasses
from typing import Iterator, List, Optional, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, ObjectAbsentError, Program, sizeof
from drgn.helpers import ValidationError
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.mm import follow_phys, page_to_pfn

from vmcore_tools.kernel.lists import for_each_entry

_CACHE_KEY = "vmcore_tools.kernel.virtual_map"
_AREAS_MAX = 10_000_000
#: More lists than vmap_init_nodes() makes.
_NODES_MAX = 1 << 16
#: Pages of areas that have no array of their pages, which are walked one by one.
_WALKED_PAGES_MAX = 200_000
# include/linux/vmalloc.h; a macro. Device memory is no RAM.
_VM_IOREMAP = 0x1


@dataclasses.dataclass(frozen=True)
class VmallocArea:
    """
    A vmalloc area.

    :ivar start: its address
    :ivar end: behind its last page
    :ivar caller: address of the function that asked for it
    """

    start: int
    end: int
    caller: int


@dataclasses.dataclass(frozen=True)
class PerCpuVariable:
    """
    A place in a per-CPU unit.

    :ivar cpu: whose copy it is
    :ivar name: the static variable; None in the dynamic part
    :ivar offset: in the variable, or from the unit's start
    """

    cpu: int
    name: Optional[str]
    offset: int


@dataclasses.dataclass(frozen=True)
class _PerCpuUnit:
    cpu: int
    start: int
    end: int
    offset: int  # __per_cpu_offset[cpu]


class VirtualMap:
    """
    The map of one kernel; get it with :func:`virtual_map`.

    :ivar areas: the vmalloc areas, by address
    :ivar unmapped_pages: pages of vmalloc areas whose frame is not known
    :ivar broken: why the list of vmalloc areas is not whole, None if it is
    """

    def __init__(self, prog: Program, page_size_bytes: int) -> None:
        self._prog = prog
        self._page_size = page_size_bytes
        self.unmapped_pages = 0
        self.broken: Optional[str] = None
        self._read_areas()
        self._area_starts = [area.start for area in self.areas]
        self._image = self._read_image()
        self._units = self._read_per_cpu_units()
        self._per_cpu_symbols = self._read_per_cpu_symbols()

    def address_of(self, physical: int) -> Optional[int]:
        """The address in the kernel image or a vmalloc area, if it is there."""
        start, end, offset = self._image
        if start <= physical < end:
            return physical + offset
        pfn, within = divmod(physical, self._page_size)
        at = int(np.searchsorted(self._pfns, pfn))
        if at < len(self._pfns) and int(self._pfns[at]) == pfn:
            return int(self._addresses[at]) + within
        return None

    def addresses_of(self, physical: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """As :meth:`address_of`, for an array of shape (n,); 0 for what is not there."""
        result = np.zeros(len(physical), dtype=np.uint64)
        page_size = np.uint64(self._page_size)
        pfns = (physical // page_size).astype(np.int64)
        if len(self._pfns):
            at = np.minimum(np.searchsorted(self._pfns, pfns), len(self._pfns) - 1)
            in_area = self._pfns[at] == pfns
            result[in_area] = self._addresses[at[in_area]] + physical[in_area] % page_size
        start, end, offset = self._image
        in_image = (physical >= np.uint64(start)) & (physical < np.uint64(end))
        result[in_image] = physical[in_image] + np.uint64(offset % (1 << 64))
        return result

    def area_pages(self) -> Tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """
        The pages of all vmalloc areas.

        :return: uint64 array of shape (n,): their addresses, sorted, and int64
            array of shape (n,): their page frames
        """
        order = np.argsort(self._addresses, kind="stable")
        return self._addresses[order], self._pfns[order]

    def area_at(self, address: int) -> Optional[VmallocArea]:
        """The vmalloc area that holds an address."""
        at = bisect.bisect_right(self._area_starts, address) - 1
        if at >= 0 and address < self.areas[at].end:
            return self.areas[at]
        return None

    def per_cpu_at(self, address: int) -> Optional[PerCpuVariable]:
        """The per-CPU variable at an address of the first chunk's units."""
        unit = next((unit for unit in self._units if unit.start <= address < unit.end), None)
        if unit is None:
            return None
        variable = (address - unit.offset) & 0xFFFFFFFFFFFFFFFF
        at = bisect.bisect_right(self._per_cpu_symbols, (variable, 1 << 64, "")) - 1
        if at >= 0:
            symbol, size, name = self._per_cpu_symbols[at]
            if variable < symbol + max(size, 1):
                return PerCpuVariable(unit.cpu, name, variable - symbol)
        return PerCpuVariable(unit.cpu, None, address - unit.start)

    def _read_areas(self) -> None:
        areas: List[VmallocArea] = []
        pfns: List[npt.NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
        addresses: List[npt.NDArray[np.uint64]] = [np.zeros(0, dtype=np.uint64)]
        walked = 0
        for vmap_area in self._vmap_areas():
            try:
                area = vmap_area.vm.read_()
                if not area or area.flags.value_() & _VM_IOREMAP:
                    continue
                start, count = area.addr.value_(), area.nr_pages.value_()
                end = start + area.size.value_()
                # setup_vmalloc_vm() takes both from the vmap_area.
                if start != vmap_area.va_start.value_() or end > vmap_area.va_end.value_():
                    raise FaultError("an area is not where its vmap_area is", start)
                areas.append(VmallocArea(start, end, area.caller.value_()))
                if not area.pages:
                    # A chunk of per-CPU memory, or somebody's vmap().
                    count = (end - start) // self._page_size
                    walked += count
                    if walked > _WALKED_PAGES_MAX:
                        self.unmapped_pages += count
                        continue
                    found = self._walk(start, count)
                elif count > (end - start) // self._page_size:
                    raise FaultError("an area has more pages than it is large", start)
                else:
                    found = self._pfns_of_pages(area.pages, count)
            except FaultError:
                self.unmapped_pages += 1
                continue
            there = found >= 0
            steps = np.arange(len(found), dtype=np.uint64) * np.uint64(self._page_size)
            pfns.append(found[there])
            addresses.append((np.uint64(start) + steps)[there])
        areas.sort(key=lambda area: area.start)
        self.areas = tuple(areas)
        joined = np.concatenate(pfns)
        order = np.argsort(joined, kind="stable")
        self._pfns = joined[order]
        self._addresses = np.concatenate(addresses)[order]

    def _vmap_areas(self) -> Iterator[Object]:
        """The kernel's lists of areas, as far as they go."""
        for head in _vmap_area_lists(self._prog):
            try:
                yield from for_each_entry("struct vmap_area", head, "list", _AREAS_MAX)
            except (FaultError, ValidationError) as error:
                self.broken = str(error)

    def _pfns_of_pages(self, pages: Object, count: int) -> npt.NDArray[np.int64]:
        if not count:
            return np.zeros(0, dtype=np.int64)  # it is being allocated
        raw = self._prog.read(pages, 8 * count)
        pointers = np.frombuffer(raw, dtype=np.uint64)
        first = Object(self._prog, "struct page *", value=int(pointers[0]))
        base = int(pointers[0]) - page_to_pfn(first).value_() * sizeof(first.type_.type)
        distance = pointers - np.uint64(base & 0xFFFFFFFFFFFFFFFF)
        return (distance // np.uint64(sizeof(first.type_.type))).astype(np.int64)

    def _walk(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Page frames by the page tables; -1 where nothing is mapped."""
        found = np.full(count, -1, dtype=np.int64)
        init_mm = self._prog["init_mm"].address_of_()
        for number in range(count):
            try:
                physical = follow_phys(init_mm, start + number * self._page_size)
            except FaultError:
                continue
            found[number] = physical.value_() // self._page_size
        return found

    def _read_image(self) -> Tuple[int, int, int]:
        """Physical start and end of the kernel image, and what to add for its address."""
        start, end = self._prog.main_module().address_range or (0, 0)
        if not start:
            return 0, 0, 0
        # It is contiguous, but its first pages need not be mapped: arm64's map_kernel()
        # begins at _stext (seen on 6.1), and so does not map _text.
        init_mm = self._prog["init_mm"].address_of_()
        offset = init_mm.value_() - follow_phys(init_mm, init_mm).value_()
        return start - offset, end - offset, offset

    def _read_per_cpu_units(self) -> Tuple[_PerCpuUnit, ...]:
        try:
            base = self._prog["pcpu_base_addr"].value_()
            size = self._prog["pcpu_unit_size"].value_()
            unit_offsets = self._prog["pcpu_unit_offsets"].read_()
        except (KeyError, FaultError):
            return ()
        units = []
        for cpu in for_each_possible_cpu(self._prog):
            start = base + unit_offsets[cpu].value_()
            offset = self._prog["__per_cpu_offset"][cpu].value_()
            units.append(_PerCpuUnit(cpu, start, start + size, offset))
        return tuple(units)

    def _read_per_cpu_symbols(self) -> List[Tuple[int, int, str]]:
        """Address, size and name of static per-CPU variables, by address."""
        try:
            start = self._prog.symbol("__per_cpu_start").address
            end = self._prog.symbol("__per_cpu_end").address
        except LookupError:
            return []
        return sorted(
            (symbol.address, symbol.size, symbol.name)
            for symbol in self._prog.symbols()
            if start <= symbol.address < end and symbol.size
        )


def virtual_map(prog: Program, page_size_bytes: int) -> VirtualMap:
    """
    The map, made once for a program.

    :raises drgn.FaultError: if the page tables cannot be read
    :raises drgn.helpers.ValidationError: if the list of areas is damaged
    """
    if _CACHE_KEY not in prog.cache:
        prog.cache[_CACHE_KEY] = VirtualMap(prog, page_size_bytes)
    found: VirtualMap = prog.cache[_CACHE_KEY]
    return found


def _vmap_area_lists(prog: Program) -> Iterator[Object]:
    """
    The heads of the lists of vmalloc areas: ``struct list_head *``.

    d093602919ad ("mm: vmalloc: remove global vmap_area_root rb-tree") in v6.9 has
    several. On a kernel for one CPU GCC leaves out where these variables are.
    """
    try:
        nodes = prog["vmap_nodes"].read_()
    except KeyError:
        yield prog["vmap_area_list"].address_of_()
        return
    except ObjectAbsentError:
        nodes = prog.variable("single", "mm/vmalloc.c").address_of_()
    try:
        count = prog["nr_vmap_nodes"].value_()
    except ObjectAbsentError:
        count = 1
    for number in range(min(count, _NODES_MAX)):
        yield nodes[number].busy.head.address_of_()
