# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where the slab allocators, SLUB and the old SLAB, keep what the index needs."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Iterator, Optional, Tuple

import numpy as np
import numpy.typing as npt
from drgn import Object, Program, offsetof, sizeof
from drgn.helpers import ValidationError
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.list import validate_list_for_each_entry
from drgn.helpers.linux.nodemask import nr_node_ids
from drgn.helpers.linux.percpu import per_cpu_ptr

from vmcore_tools.kernel.layout import bit_field
from vmcore_tools.kernel.strings import name_text

#: No page allocator gives more pages at once (MAX_ORDER was never higher).
_ORDER_MAX = 20
#: More objects than a sheaf or an array cache can have.
_SET_ASIDE_MAX = 65536
_WORD_BYTES = 8
_OO_SHIFT = 16  # mm/slub.c
_OO_MASK = (1 << _OO_SHIFT) - 1


@dataclasses.dataclass(frozen=True)
class SlabCache:
    """
    What the index needs of a ``struct kmem_cache``.

    :ivar cache: ``struct kmem_cache *``
    :ivar name: its name
    :ivar size_bytes: from one object to the next, metadata included
    :ivar object_size_bytes: what the user of an object may touch
    :ivar red_left_pad_bytes: in front of the first object
    :ivar inuse_bytes: where metadata behind the object begins
    :ivar freelist_offset: of the free pointer in a free object
    :ivar random: the freelist's secret; None without hardening
    :ivar orders: objects in a slab to the slab's order
    :ivar index_bytes: SLAB's free indices have this size; None for SLUB
    :ivar root: address of the cache that this one is a control group's copy of; 0 if of none
    """

    cache: Object
    name: str
    size_bytes: int
    object_size_bytes: int
    red_left_pad_bytes: int
    inuse_bytes: int
    freelist_offset: int
    random: Optional[int]
    orders: Dict[int, int]
    index_bytes: Optional[int] = None
    root: int = 0

    @property
    def kind(self) -> str:
        """What its objects are called by: a copy has the group in its name, too."""
        return self.name.partition("(")[0] if self.root else self.name


_SLAB_FIELDS = np.dtype(
    [
        ("pfn", np.uint64),
        ("slab_cache", np.uint64),
        ("freelist", np.uint64),
        ("objects", np.uint32),
        ("inuse", np.uint32),
        ("frozen", np.uint32),
        ("s_mem", np.uint64),  # SLAB: the first object
    ]
)


def uses_slab(prog: Program) -> bool:
    """Whether the kernel has SLAB, which v6.8 removed, and not SLUB."""
    try:
        prog.type("freelist_idx_t")
    except LookupError:
        return False
    return True


def slab_fields(prog: Program, structs: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """
    What the page structures of slabs say.

    :param structs: uint8 array of shape (n, ``sizeof(struct page)``)
    :return: array of shape (n,); "pfn" is 0
    """
    # d122019bf061 ("mm: Split slab into its own type") in v5.17 moved these
    # members from struct page into struct slab, which overlays it.
    try:
        slab_type = prog.type("struct slab")
    except LookupError:
        slab_type = prog.type("struct page")
    rows = np.zeros(len(structs), dtype=_SLAB_FIELDS)
    for name in ("slab_cache", "freelist", "s_mem"):
        if not slab_type.has_member(name):
            continue  # s_mem went with SLAB
        at = offsetof(slab_type, name)
        rows[name] = structs[:, at : at + 8].copy().view(np.uint64)[:, 0]
    if uses_slab(prog):
        at = offsetof(slab_type, "active")
        rows["inuse"] = structs[:, at : at + 4].copy().view(np.uint32)[:, 0]
        return rows
    for name in ("objects", "inuse", "frozen"):
        if not slab_type.has_member(name):
            continue  # kernels without CPU slabs have no frozen ones
        field = bit_field(slab_type, name)
        at = field.byte_offset
        rows[name] = field.extract(structs[:, at : at + 4].copy().view(np.uint32)[:, 0])
    return rows


def read_slab_cache(cache: Object) -> SlabCache:
    """
    :param cache: ``struct kmem_cache *``
    :raises drgn.FaultError: if it is not in the dump
    :raises drgn.helpers.ValidationError: if no cache can be like that
    """
    found = _read_slab_cache(cache)
    sizes = (found.size_bytes, found.object_size_bytes, found.inuse_bytes)
    orders = found.orders.values()
    if (
        not 0 < found.object_size_bytes <= found.size_bytes
        or not 0 < found.inuse_bytes <= found.size_bytes
        or not 0 <= found.red_left_pad_bytes < found.size_bytes
        or max(orders) > _ORDER_MAX
        or (
            found.index_bytes is None
            and (
                found.size_bytes % _WORD_BYTES
                or found.freelist_offset % _WORD_BYTES
                or not 0 <= found.freelist_offset <= found.size_bytes - _WORD_BYTES
            )
        )
    ):
        raise ValidationError(
            f"no slab cache has objects of {sizes} bytes, with their free pointer at"
            f" {found.freelist_offset}, in slabs of the orders {sorted(orders)}"
        )
    return found


def _read_slab_cache(cache: Object) -> SlabCache:
    # Member by member: it was allocated without the nodes that the machine has not.
    cache = cache.read_()
    name = name_text(cache.name)
    if uses_slab(cache.prog_):
        return SlabCache(
            cache=cache,
            name=name,
            size_bytes=cache.size.value_(),
            object_size_bytes=cache.object_size.value_(),
            # With CONFIG_DEBUG_SLAB a red zone stands in front of an object.
            red_left_pad_bytes=cache.obj_offset.value_() if hasattr(cache, "obj_offset") else 0,
            inuse_bytes=cache.object_size.value_(),
            freelist_offset=0,
            random=None,
            orders={cache.num.value_(): cache.gfporder.value_()},
            index_bytes=sizeof(cache.prog_.type("freelist_idx_t")),
            root=_root_of(cache),
        )
    red_left_pad = cache.red_left_pad.value_() if hasattr(cache, "red_left_pad") else 0
    random = cache.random.value_() if hasattr(cache, "random") else None
    orders = {}
    for member in ("min", "oo"):
        x = cache.member_(member).x.value_()
        orders[x & _OO_MASK] = x >> _OO_SHIFT
    return SlabCache(
        cache=cache,
        name=name,
        size_bytes=cache.size.value_(),
        object_size_bytes=cache.object_size.value_(),
        red_left_pad_bytes=red_left_pad,
        inuse_bytes=cache.inuse.value_(),
        freelist_offset=cache.offset.value_(),
        random=random,
        orders=orders,
        root=_root_of(cache),
    )


def _root_of(cache: Object) -> int:
    """Mirrors ``is_root_cache()`` and what is beside it in mm/slab.h."""
    # 10befea91b61 ("mm: memcg/slab: use a single set of kmem_caches for all allocations")
    # in v5.9 ended the copies.
    try:
        return int(cache.memcg_params.root_cache.value_())
    except AttributeError:
        return 0


def objects_set_aside(cache: Object) -> npt.NDArray[np.uint64]:
    """
    Free objects that no freelist has: those in SLUB's sheaves and SLAB's array caches.

    "slab: add opt-in caching layer of percpu sheaves" of v6.18 brought the
    sheaves; since v7.0 every cache has them.

    :param cache: ``struct kmem_cache *``
    :return: sorted uint64 array of addresses
    :raises drgn.FaultError: if one of them is not in the dump
    :raises drgn.helpers.ValidationError: if a list of sheaves is damaged
    """
    parts = [np.zeros(0, dtype=np.uint64)]
    if hasattr(cache, "cpu_sheaves"):
        parts += [_pointers(sheaf.objects, sheaf.size) for sheaf in _for_each_sheaf(cache)]
    elif hasattr(cache, "cpu_cache"):
        parts += [_pointers(array.entry, array.avail) for array in _for_each_array_cache(cache)]
    return np.sort(np.concatenate(parts))


def free_object_arrays(cache: Object) -> Iterator[Tuple[int, int]]:
    """
    Where the arrays of :func:`objects_set_aside` are, unused entries included.

    What stands in them is no reference: the objects are free, or were once.

    :param cache: ``struct kmem_cache *``
    :return: Iterator of address ranges ``[start, end)``
    :raises drgn.FaultError: if one of them is not in the dump
    :raises drgn.helpers.ValidationError: if a list of sheaves is damaged
    """
    if hasattr(cache, "cpu_sheaves"):
        size_bytes = 8 * min(cache.sheaf_capacity.value_(), _SET_ASIDE_MAX)
        for sheaf in _for_each_sheaf(cache):
            start = sheaf.objects.address_of_().value_()
            yield start, start + size_bytes
    elif hasattr(cache, "cpu_cache"):
        for array in _for_each_array_cache(cache):
            start = array.entry.address_of_().value_()
            yield start, start + 8 * min(array.limit.value_(), _SET_ASIDE_MAX)


def rcu_sheaf_words(prog: Program) -> Dict[int, int]:
    """
    What marks a sheaf that was given to call_rcu(), and is on no list of the allocator.

    :return: address of the callback to its offset in ``struct slab_sheaf``; the
        kernel clears it before it calls it
    """
    try:
        type_ = prog.type("struct slab_sheaf")
    except LookupError:
        return {}
    words = {}
    # The kernel's headers define rcu_head as callback_head, members included.
    head = "rcu_head" if type_.has_member("rcu_head") else "callback_head"
    offset = offsetof(type_, head) + offsetof(type_.member(head).type, "func")
    for name in ("rcu_free_sheaf", "rcu_free_sheaf_nobarn"):
        address = _function(prog, name)
        if address is not None:
            words[address] = int(offset)
    return words


def rcu_sheaf(
    prog: Program, address: int
) -> Tuple[Object, Tuple[int, int], npt.NDArray[np.uint64]]:
    """
    A sheaf that waits for a grace period.

    :return: its ``struct kmem_cache *``, where its array is, and the objects in it
    :raises drgn.FaultError: if it, or its cache, is not in the dump
    """
    sheaf = Object(prog, "struct slab_sheaf *", value=address)
    cache = sheaf.cache.read_()
    start = sheaf.objects.address_of_().value_()
    end = start + 8 * min(cache.sheaf_capacity.value_(), _SET_ASIDE_MAX)
    return cache, (start, end), _pointers(sheaf.objects, sheaf.size)


def _function(prog: Program, name: str) -> Optional[int]:
    try:
        return int(prog.symbol(name).address)
    except LookupError:
        return None


def _pointers(array: Object, count: Object) -> npt.NDArray[np.uint64]:
    raw = array.prog_.read(array.address_, 8 * min(count.value_(), _SET_ASIDE_MAX))
    return np.frombuffer(raw, dtype=np.uint64)


def _for_each_array_cache(cache: Object) -> Iterator[Object]:
    """
    Iterate over SLAB's array caches: of CPUs, shared ones, and other nodes'.

    :param cache: ``struct kmem_cache *``
    :return: Iterator of ``struct array_cache *``
    """
    prog = cache.prog_
    per_cpu = cache.cpu_cache.read_()
    for cpu in for_each_possible_cpu(prog):
        yield per_cpu_ptr(per_cpu, cpu)
    nodes = nr_node_ids(prog)
    for node in cache.node[:nodes]:
        if not node:
            continue
        if node.shared:
            yield node.shared.read_()
        if node.alien:
            for number in range(nodes):
                alien = node.alien[number].read_()
                if alien:
                    yield alien.ac.address_of_()


def _for_each_sheaf(cache: Object) -> Iterator[Object]:
    """
    Iterate over the sheaves with free objects of a cache.

    Those of ``rcu_free`` wait for a grace period: they are freed all the same.

    :param cache: ``struct kmem_cache *``
    :return: Iterator of ``struct slab_sheaf *``
    """
    prog = cache.prog_
    per_cpu = cache.cpu_sheaves.read_()
    if per_cpu:
        for cpu in for_each_possible_cpu(prog):
            sheaves = per_cpu_ptr(per_cpu, cpu)
            for member in ("main", "spare", "rcu_free"):
                sheaf = sheaves.member_(member).read_()
                if sheaf:
                    yield sheaf
    # "slab: decouple pointer to barn from kmem_cache_node" of v7.1.
    nodes = cache.per_node if hasattr(cache, "per_node") else cache.node
    for node in nodes[: nr_node_ids(prog)]:
        holder = node if hasattr(cache, "per_node") else node.read_()
        if not hasattr(cache, "per_node") and not holder:
            continue
        barn = holder.barn.read_()
        if barn:
            yield from validate_list_for_each_entry(
                "struct slab_sheaf", barn.sheaves_full.address_of_(), "barn_list"
            )
