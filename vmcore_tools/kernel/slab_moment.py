# SPDX-License-Identifier: LGPL-2.1-or-later
"""
One slab of a target that goes on, as it was at one moment.

The index has the page structures of all slabs, and their memory is read later: of a slab
that is in use they are of two moments, and its freelist leads into an object that was
allocated meanwhile. Here one slab is read between two looks at all that changes with its
freelist; if these are alike nothing of it changed.
"""

from __future__ import annotations

import dataclasses
from typing import Any, List, Optional, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Program, sizeof
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.mm import virt_to_page

from vmcore_tools.kernel.layout import field_dtype
from vmcore_tools.kernel.slab_layout import SlabCache, slab_fields

#: How often a slab is read that changes meanwhile.
_TRIES = 8


@dataclasses.dataclass(frozen=True)
class SlabMoment:
    """
    :ivar data: uint8 array of shape (slab size in bytes,)
    :ivar freelist: address of the slab's own first free object, or 0
    :ivar cpu_freelists: those that CPUs have of it
    :ivar objects: that it holds
    :ivar inuse: as the kernel counts them
    :ivar of_cpu: it is frozen, or a CPU allocates from it: ``inuse`` counts free ones, too
    """

    data: npt.NDArray[np.uint8]
    freelist: int
    cpu_freelists: Tuple[int, ...]
    objects: int
    inuse: int
    of_cpu: bool

    @property
    def heads(self) -> List[int]:
        """Where its freelists begin."""
        return [head for head in (self.freelist, *self.cpu_freelists) if head]


def slab_moment(prog: Program, cache: SlabCache, address: int, size: int) -> Optional[SlabMoment]:
    """
    Read a slab of SLUB's.

    Whoever takes an object from a CPU's freelist, or puts one there, changes the ``tid``
    of its ``struct kmem_cache_cpu`` (``slab_alloc_node()``, ``do_slab_free()``); a slab's own
    freelist changes together with its counters (``cmpxchg_double_slab()``).

    :param address: of its first page
    :param size: of the slab, in bytes
    :return: None if it changed each time, or is none of the cache's any more
    :raises drgn.FaultError: if it cannot be read
    """
    places = _Places.of(prog, cache, virt_to_page(prog, address).value_())
    for _ in range(_TRIES):
        # Nothing but the reads between the two looks.
        first = places.read()
        data = prog.read(address, size)
        second = places.read()
        state = places.state(first)
        if places.state(second) != state:
            continue
        owner, freelist, objects, inuse, frozen = state.page
        if owner != cache.cache.value_():
            return None
        return SlabMoment(
            np.frombuffer(data, dtype=np.uint8),
            freelist,
            tuple(head for head, _, _ in state.cpus if address <= head < address + size),
            objects,
            inuse,
            bool(frozen) or any(slab == places.page for _, _, slab in state.cpus),
        )
    return None


def still_names(prog: Program, address: int, owner: int) -> bool:
    """
    Whether a page's structure names a cache as it did, in two more looks.

    :param address: of the page
    :param owner: what it named when the index was made
    """
    places = _Places.of(prog, None, virt_to_page(prog, address).value_())
    try:
        return all(places.state(places.read()).page[0] == owner for _ in range(2))
    except FaultError:
        return False


@dataclasses.dataclass(frozen=True)
class _State:
    """
    What changes with a freelist.

    :ivar page: of the page structure: cache, freelist, objects, inuse, frozen
    :ivar cpus: of each CPU: freelist, tid, slab
    """

    page: Tuple[int, ...]
    cpus: Tuple[Tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class _Places:
    """Where that is, and how it looks."""

    prog: Program
    page: int
    page_bytes: int
    cpus: Tuple[int, ...]
    cpu_dtype: Optional[np.dtype[Any]]

    @staticmethod
    def of(prog: Program, cache: Optional[SlabCache], page: int) -> _Places:
        """
        :param cache: None for no CPU's
        :param page: address of the page structure
        """
        page_bytes = sizeof(prog.type("struct page"))
        if cache is None or not hasattr(cache.cache, "cpu_slab"):
            return _Places(prog, page, page_bytes, (), None)
        type_ = prog.type("struct kmem_cache_cpu")
        # bb192ed9aa71 ("mm/slub: Convert most struct page to struct slab by spatch") in v5.17.
        slab = "slab" if type_.has_member("slab") else "page"
        dtype = field_dtype(type_, {"freelist": "freelist", "tid": "tid", "slab": slab})
        base = cache.cache.cpu_slab.value_()
        offsets = prog["__per_cpu_offset"]
        cpus = tuple(
            (base + offsets[cpu].value_()) & 0xFFFFFFFFFFFFFFFF
            for cpu in for_each_possible_cpu(prog)
        )
        return _Places(prog, page, page_bytes, cpus, dtype)

    def read(self) -> List[bytes]:
        """All of it as it is now."""
        read = self.prog.read
        size = self.cpu_dtype.itemsize if self.cpu_dtype is not None else 0
        return [read(self.page, self.page_bytes), *(read(at, size) for at in self.cpus)]

    def state(self, raw: List[bytes]) -> _State:
        """What is in these bytes."""
        page, *cpus = raw
        fields = slab_fields(self.prog, np.frombuffer(page, dtype=np.uint8)[None, :])[0]
        names = ("slab_cache", "freelist", "objects", "inuse", "frozen")
        found = [np.frombuffer(cpu, dtype=self.cpu_dtype)[0] for cpu in cpus]
        return _State(
            tuple(int(fields[name]) for name in names),
            tuple(tuple(int(one[name]) for name in ("freelist", "tid", "slab")) for one in found),
        )
