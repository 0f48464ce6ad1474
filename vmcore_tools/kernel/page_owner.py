# SPDX-License-Identifier: LGPL-2.1-or-later
"""page_owner's records: who allocated a page."""

from __future__ import annotations

import dataclasses
from typing import Iterator, List, Tuple

import numpy as np
import numpy.typing as npt
from drgn import Program, offsetof
from drgn.helpers.linux.mmzone import for_each_online_pgdat, nr_to_section

from vmcore_tools.dump.memory import Memory
from vmcore_tools.kernel.layout import as_structs, field_dtype
from vmcore_tools.kernel.recorded_stacks import RecordedStacks

# mm/page_ext.c, a macro: such a section is going offline.
_PAGE_EXT_INVALID = 0x1
#: Bit of ``page_ext->flags`` of a page that is allocated, by its newest name.
_ALLOCATED_BITS = ("PAGE_EXT_OWNER_ALLOCATED", "PAGE_EXT_OWNER_ACTIVE", "PAGE_EXT_OWNER")
#: Records that are read at a time.
_CHUNK_RECORDS = 8192
_COMM_BYTES = 16

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True)
class PageOwners:
    """
    The allocation records of n pages; the arrays have shape (n,).

    :ivar read: bool: which pages' records are in the dump, and are of a page
        that is allocated
    :ivar order: int64, of the allocation
    :ivar gfp_mask: int64, of the allocation
    :ivar pid: int64, of the thread; -1 where the kernel does not record it
    :ivar comm: bytes, of the thread; empty where the kernel does not record it
    :ivar stack: int64, position in :attr:`stacks`; -1 without one, as for what
        was allocated before page_owner began, early in boot
    :ivar stacks: return addresses, the innermost first
    """

    read: Bools
    order: Ints
    gfp_mask: Ints
    pid: Ints
    comm: npt.NDArray[np.bytes_]
    stack: Ints
    stacks: Tuple[Tuple[int, ...], ...]


def has_page_owner(prog: Program) -> bool:
    """Whether the kernel was booted with ``page_owner=on``."""
    try:
        key = prog["page_owner_inited"].key
    except KeyError:
        return False  # CONFIG_PAGE_OWNER is off
    return bool(key.enabled.counter.value_() > 0)


def page_owners(prog: Program, memory: Memory, pfns: U64) -> PageOwners:
    """
    The allocation records of pages, where ``get_page_owner()`` of mm/page_owner.c has them.

    :param pfns: uint64 array of shape (n,): page frames
    :raises LookupError: if the kernel has no page_owner
    :raises drgn.FaultError: if what leads to the records is not in the dump
    """
    owner_type = prog.type("struct page_owner")
    offset = prog["page_owner_ops"].offset.value_()
    entry_bytes = offset + owner_type.size
    flag = _allocated_flag(prog)
    addresses = _entries(prog, pfns)
    members = {name: name for name in ("order", "gfp_mask", "handle")}
    # Since v5.11; comm since v5.18.
    if owner_type.has_member("pid"):
        members["pid"] = "pid"
    has_comm = owner_type.has_member("comm")
    no_stack = _handles_without_stack(prog)

    count = len(pfns)
    owners = PageOwners(
        read=np.zeros(count, dtype=bool),
        order=np.zeros(count, dtype=np.int64),
        gfp_mask=np.zeros(count, dtype=np.int64),
        pid=np.full(count, -1, dtype=np.int64),
        comm=np.zeros(count, dtype=f"S{_COMM_BYTES}"),
        stack=np.full(count, -1, dtype=np.int64),
        stacks=(),
    )
    stacks = RecordedStacks(prog)
    for start in range(0, count, _CHUNK_RECORDS):
        part = slice(start, min(count, start + _CHUNK_RECORDS))
        raw, read = _read(memory, addresses[part], entry_bytes)
        flags = np.ascontiguousarray(raw[:, :8]).view(np.uint64)[:, 0]
        owners.read[part] = read & (flags & flag != 0)
        owner = np.ascontiguousarray(raw[:, offset:])
        fields = as_structs(owner, field_dtype(owner_type, members))
        owners.order[part] = fields["order"]
        owners.gfp_mask[part] = fields["gfp_mask"]
        if "pid" in members:
            owners.pid[part] = fields["pid"].astype(np.int32)
        if has_comm:
            comm = offsetof(owner_type, "comm")
            text = np.ascontiguousarray(owner[:, comm : comm + _COMM_BYTES])
            owners.comm[part] = text.view(f"S{_COMM_BYTES}")[:, 0]
        known = owners.read[part] & ~np.isin(fields["handle"], no_stack)
        owners.stack[part] = stacks.add_handles(np.where(known, fields["handle"], 0))
    return dataclasses.replace(owners, stacks=stacks.stacks)


def _allocated_flag(prog: Program) -> np.uint64:
    for name in _ALLOCATED_BITS:
        try:
            return np.uint64(1 << prog.constant(name).value_())
        except LookupError:
            continue
    raise LookupError("enum page_ext_flags has no bit of page_owner")


def _handles_without_stack(prog: Program) -> List[int]:
    """The handles of allocations before page_owner began, inside of it, and without memory."""
    names = ("early_handle", "dummy_handle", "failure_handle")
    return [prog.variable(name, "page_owner.c").value_() for name in names]


def _entries(prog: Program, pfns: U64) -> U64:
    """Addresses of ``struct page_ext``, 0 where there is none; mirrors ``lookup_page_ext()``."""
    size = np.uint64(prog["page_ext_size"].value_())
    bases = np.zeros(len(pfns), dtype=np.uint64)
    firsts = np.zeros(len(pfns), dtype=np.uint64)
    for which, base, first in _arrays(prog, pfns):
        bases[which] = base
        firsts[which] = first
    return np.where(bases != 0, bases + size * (pfns - firsts), np.uint64(0))


def _arrays(prog: Program, pfns: U64) -> Iterator[Tuple[Bools, np.uint64, np.uint64]]:
    """Page frames, the array of their records, and the page frame of its first one."""
    if not prog.type("struct pglist_data").has_member("node_page_ext"):
        yield from _section_arrays(prog, pfns)
        return
    for node in for_each_online_pgdat(prog):
        base, start = node.node_page_ext.value_(), node.node_start_pfn.value_()
        end = start + node.node_spanned_pages.value_()
        if base:
            inside = (pfns >= np.uint64(start)) & (pfns < np.uint64(end))
            # round_down(start, MAX_ORDER_NR_PAGES): there is a list for each order.
            block = 1 << (node.node_zones[0].free_area.type_.length - 1)
            yield inside, np.uint64(base), np.uint64(start // block * block)


def _section_arrays(prog: Program, pfns: U64) -> Iterator[Tuple[Bools, np.uint64, np.uint64]]:
    """As :func:`_arrays`, with CONFIG_SPARSEMEM."""
    shift = int(prog["SECTION_SIZE_BITS"] - prog["PAGE_SHIFT"])
    numbers = pfns >> np.uint64(shift)
    for number in np.unique(numbers).tolist():
        section = nr_to_section(prog, number)
        base = section.page_ext.value_() if section else 0
        if base and not base & _PAGE_EXT_INVALID:
            # It points to where the record of page frame 0 would be.
            yield numbers == np.uint64(number), np.uint64(base), np.uint64(0)


def _read(memory: Memory, addresses: U64, size: int) -> Tuple[npt.NDArray[np.uint8], Bools]:
    """
    Read *size* bytes, less than a page, at each of many addresses.

    :return: uint8 array of shape (n, size), and bool array of shape (n,):
        which rows were read
    """
    page_size = memory.page_map.page_size_bytes
    first = addresses // np.uint64(page_size)
    last = (addresses + np.uint64(size - 1)) // np.uint64(page_size)
    pages = np.unique(np.concatenate([first, last])[np.concatenate([addresses, addresses]) != 0])
    data = np.zeros((len(pages) + 1, page_size), dtype=np.uint8)
    there = np.zeros(len(pages) + 1, dtype=bool)
    for run in np.split(np.arange(len(pages)), np.flatnonzero(np.diff(pages) != 1) + 1):
        if len(run):
            start, end = int(run[0]), int(run[-1]) + 1
            raw, read = memory.read_virtual(int(pages[start]) * page_size, len(run) * page_size)
            data[start:end], there[start:end] = raw.reshape(-1, page_size), read
    # The row behind the last stands for addresses that are none.
    at = np.where(addresses != 0, np.searchsorted(pages, first), len(pages))
    behind = np.where(addresses != 0, np.searchsorted(pages, last), len(pages))
    where = (addresses % np.uint64(page_size)).astype(np.int64)[:, None] + np.arange(size)
    row = np.where(where < page_size, at[:, None], behind[:, None])
    return data[row, where % page_size], there[at] & there[behind]
