# SPDX-License-Identifier: LGPL-2.1-or-later
"""Slab caches and slabs on a :class:`~tests.layouts.machine.Machine`, as SLUB makes them."""

from __future__ import annotations

import dataclasses
from typing import Collection, Dict, List, Optional, Sequence

from drgn import Type, sizeof

from tests.layouts.machine import CPUS, DIRECT_MAP, PAGE, VMEMMAP, Machine, Value

SLAB_STORE_USER = 0x00010000
#: What CONFIG_SLAB_FREELIST_HARDENED hides free pointers with.
_RANDOM = 0x8EEDFACE12345678


@dataclasses.dataclass(frozen=True)
class Cache:
    """
    A slab cache that was made.

    :ivar address: ``struct kmem_cache *``
    :ivar size: from one object to the next
    :ivar offset: of the free pointer in an object
    :ivar objects: in each slab
    """

    machine: Machine
    address: int
    size: int
    order: int
    red_left_pad: int
    offset: int
    random: Optional[int]
    objects: int


class Slabs:
    """
    The slab allocator of a machine.

    :ivar caches: what was made, in the order of ``slab_caches``
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._type = machine.prog.type("struct kmem_cache")
        self.caches: List[Cache] = []
        machine.link(machine.variable("slab_caches"))

    def cache(
        self,
        name: bytes,
        object_size: int,
        size: Optional[int] = None,
        order: int = 0,
        inuse: Optional[int] = None,
        offset: int = 0,
        red_left_pad: int = 0,
        flags: int = 0,
        root: int = 0,
    ) -> Cache:
        """
        :param root: the cache that this one is a control group's copy of
        """
        machine = self._machine
        size = size or object_size
        objects = (PAGE << order) // size
        members: Dict[str, Value] = {
            "name": machine.string(name),
            "flags": flags,
            "size": size,
            "object_size": object_size,
            "inuse": object_size if inuse is None else inuse,
            "offset": offset,
            "red_left_pad": red_left_pad,
            "oo.x": order << 16 | objects,
            "min.x": order << 16 | objects,
        }
        if root:
            members["memcg_params.root_cache"] = root
        random = _RANDOM if self._type.has_member("random") else None
        if random is not None:
            members["random"] = random
        address = machine.new("struct kmem_cache", members)
        if self._type.has_member("cpu_slab"):
            pointer = machine.alloc_per_cpu(sizeof(machine.prog.type("struct kmem_cache_cpu")))
            machine.put("struct kmem_cache", address, {"cpu_slab": pointer})
        self.caches.append(
            Cache(machine, address, size, order, red_left_pad, offset, random, objects)
        )
        machine.link(
            machine.variable("slab_caches"),
            [cache.address + _offset(self._type, "list") for cache in self.caches],
        )
        return self.caches[-1]

    def slab(self, cache: Cache, free: Sequence[int] = (), cpu: Optional[int] = None) -> List[int]:
        """
        A slab all of whose objects are allocated, but for some.

        :param free: the free objects, by number, in the order of the freelist
        :param cpu: whose slab it is; the freelist is then the CPU's
        :return: the addresses of all objects
        """
        machine = self._machine
        pfn = machine.alloc_pages(cache.order)
        start = DIRECT_MAP + pfn * PAGE
        objects = [start + cache.red_left_pad + i * cache.size for i in range(cache.objects)]
        chain = [objects[i] for i in free]
        for address, following in zip(chain, [*chain[1:], 0]):
            stored_at = address + cache.offset
            if cache.random is not None:
                following ^= cache.random ^ int.from_bytes(stored_at.to_bytes(8, "little"), "big")
            machine.write(stored_at, following.to_bytes(8, "little"))
        first = chain[0] if chain else 0
        on_cpu = cpu is not None
        # struct slab overlays struct page; before v5.17 it is one of its variants.
        mark_slab(machine, pfn, cache.order)
        type_name = "struct slab" if _has_type(machine, "struct slab") else "struct page"
        inuse = len(objects) if on_cpu else len(objects) - len(chain)
        machine.put(
            type_name,
            page_struct(pfn),
            {
                "slab_cache": cache.address,
                "freelist": 0 if on_cpu else first,
                "counters": inuse | len(objects) << 16 | on_cpu << 31,
            },
        )
        if cpu is not None:
            pointer = machine.prog.read_u64(cache.address + _offset(self._type, "cpu_slab"))
            machine.put("struct kmem_cache_cpu", machine.per_cpu(pointer, cpu), {"freelist": first})
        return objects


def allocated(objects: Sequence[int], free: Collection[int]) -> List[int]:
    """The objects without those of these numbers."""
    return [address for number, address in enumerate(objects) if number not in free]


def page_struct(pfn: int) -> int:
    return VMEMMAP + pfn * 64


def mark_slab(machine: Machine, pfn: int, order: int) -> None:
    """``__SetPageSlab()``, and ``prep_compound_page()``."""
    head = page_struct(pfn)
    page = machine.prog.type("struct page")
    if _has_constant(machine, "PGTY_slab"):
        page_type = machine.prog.constant("PGTY_slab").value_() << 24
        machine.put("struct page", head, {"page_type": page_type, "_refcount.counter": 1})
    else:
        flag = 1 << machine.prog.constant("PG_slab").value_()
        machine.put("struct page", head, {"flags": flag, "_refcount.counter": 1})
    for tail in range(1, 1 << order):
        at = page_struct(pfn + tail)
        if page.has_member("compound_info"):
            machine.put("struct page", at, {"compound_info": tail_info(machine, head, order)})
        else:
            machine.put("struct page", at, {"compound_head": head | 1})


def tail_info(machine: Machine, head: int, order: int) -> int:
    """What ``set_compound_head()`` of v7.1 writes into a tail page."""
    # compound_info_has_mask(): CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP, and the
    # size of struct page is a power of two.
    if not machine.prog.type("struct zone").has_member("vmemmap_tails"):
        return head | 1
    return -(1 << order) * 64 | 1


def _offset(type_: Type, member: str) -> int:
    return next(m.bit_offset for m in type_.members or () if m.name == member) // 8


def _has_type(machine: Machine, name: str) -> bool:
    try:
        machine.prog.type(name)
    except LookupError:
        return False
    return True


def _has_constant(machine: Machine, name: str) -> bool:
    try:
        machine.prog.constant(name)
    except LookupError:
        return False
    return True


def set_up_sheaves(
    machine: Machine,
    cache: Cache,
    capacity: int,
    cpus: Sequence[Dict[str, Sequence[int]]],
    full: Sequence[Sequence[int]] = (),
) -> None:
    """
    Give a cache sheaves, as v6.18 and later have them.

    :param capacity: of a sheaf
    :param cpus: for each CPU the sheaves by member, with the addresses in them
    :param full: the sheaves in the barn of the only node
    """
    assert len(cpus) == CPUS
    pointer = machine.alloc_per_cpu(sizeof(machine.prog.type("struct slub_percpu_sheaves")))
    for cpu, sheaves in enumerate(cpus):
        machine.put(
            "struct slub_percpu_sheaves",
            machine.per_cpu(pointer, cpu),
            {
                member: _sheaf(machine, cache, capacity, objects)
                for member, objects in sheaves.items()
            },
        )
    in_barn = [_sheaf(machine, cache, capacity, objects) for objects in full]
    barn = machine.new("struct node_barn", {"nr_full": len(in_barn)})
    machine.link(barn + _offset(machine.prog.type("struct node_barn"), "sheaves_full"), in_barn)
    machine.link(barn + _offset(machine.prog.type("struct node_barn"), "sheaves_empty"))
    machine.put(
        "struct kmem_cache",
        cache.address,
        {"cpu_sheaves": pointer, "sheaf_capacity": capacity},
    )
    if machine.prog.type("struct kmem_cache").has_member("per_node"):
        node = machine.new("struct kmem_cache_node", {})
        per_node = machine.prog.type("struct kmem_cache")
        at = cache.address + _offset(per_node, "per_node")
        machine.put("struct kmem_cache_per_node_ptrs", at, {"barn": barn, "node": node})
    else:
        node = machine.new("struct kmem_cache_node", {"barn": barn})
        at = cache.address + _offset(machine.prog.type("struct kmem_cache"), "node")
        machine.words(at, [node])


def _sheaf(machine: Machine, cache: Cache, capacity: int, objects: Sequence[int]) -> int:
    # Objects that were taken leave their addresses behind.
    left = [objects[0]] * (capacity - len(objects)) if objects else [0] * capacity
    sheaf = machine.new(
        "struct slab_sheaf", {"cache": cache.address, "size": len(objects)}, 8 * capacity
    )
    at = sheaf + sizeof(machine.prog.type("struct slab_sheaf"))
    machine.words(at, [*objects, *left])
    return sheaf
