# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the anonymous objects of the kmalloc caches are.

In this order, and each only for objects that nothing before it has named:

1. recognisers: functions that know a structure, ours and those of the entry
   point group ``vmcore_tools.object_types``;
2. operations tables: a pointer to a table tells the structure that has it
   (:mod:`vmcore_tools.kernel.embedding`);
3. typed pointers: what a ``struct x *`` in an object of a known type points
   to, if it is the start of an object in which an x fits; what a ``x **``
   points to is an array of pointers; and what nothing else names is "data of"
   the ``char *`` or the like that points to it, or "linked from" the list or
   tree. Debug info does not tell what a list is of.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib.metadata
import re
import sys
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import numpy.typing as npt
from drgn import Program, Type, TypeKind
from drgn.helpers.common.type import member_at_offset

from vmcore_tools.kernel.embedding import (
    Member,
    OpsTable,
    Structure,
    StructureFinder,
    has_at,
    has_flexible_array,
    members,
    pointed_struct,
)
from vmcore_tools.kernel.found_fences import detached_fences
from vmcore_tools.kernel.slab import SlabBatch, SlabCache, SlabIndex
from vmcore_tools.kernel.sync_file import for_each_sync_file

U64 = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]

ENTRY_POINT_GROUP = "vmcore_tools.object_types"

_CACHE_KEY = "vmcore_tools.kernel.object_types"
_KMALLOC = re.compile(r"((?:dma-)?kmalloc(?:-[a-z]+)*(?:-rnd-\d+)?)-\d+[kM]?")
#: Of so many equal objects a whole source file is worth looking at.
_MANY = 8
#: How often typed pointers are followed from what they have typed.
_ROUNDS = 3
#: Structures that link others: a pointer to one does not say what it is in.
_LINKS = frozenset(
    (
        *("list_head", "hlist_head", "hlist_node", "hlist_bl_node", "llist_node"),
        *("rb_node", "rb_root", "plist_node", "callback_head", "xarray"),
    )
)

#: What a buffer is declared as.
_DATA_KINDS = (TypeKind.VOID, TypeKind.INT, TypeKind.BOOL)


class Certainty(enum.IntEnum):
    """How sure a type is."""

    UNKNOWN = 0
    SUSPECTED = 1  #: one of several that fit, or a part of it only
    LIKELY = 2  #: the only structure that fits
    KNOWN = 3  #: a recogniser, which checks what it names, says so


@dataclasses.dataclass(frozen=True)
class ObjectType:
    """
    What an object is.

    :ivar name: ``struct virtio_gpu_fence``
    :ivar certainty: how sure it is
    :ivar how: what it was recognised by
    """

    name: str
    certainty: Certainty
    how: str


#: Yields (type name, uint64 array of addresses of slab objects) from an index.
Recogniser = Callable[[SlabIndex], Iterable[Tuple[str, U64]]]


@dataclasses.dataclass(frozen=True)
class ObjectTypes:
    """
    The types of all allocated kmalloc objects; get it with :func:`object_types`.

    :ivar types: the types, the first of which is "unknown"
    :ivar address: uint64 array of shape (n,), sorted: the objects
    :ivar number: int64 array of shape (n,): position of each one's type in *types*
    :ivar cache_types: position of a named cache in ``SlabIndex.caches`` to
        the structure that its objects are
    :ivar failures: recognisers of other packages that failed, and why
    """

    types: Tuple[ObjectType, ...]
    address: U64
    number: Ints
    cache_types: Dict[int, Type]
    failures: Tuple[Tuple[str, str], ...]

    def of(self, addresses: U64) -> Ints:
        """
        The types of objects, as positions in :attr:`types`; 0 if not known.

        :param addresses: uint64 array of shape (n,): where the objects begin
        """
        if not len(self.address):
            return np.zeros(len(addresses), dtype=np.int64)
        at = np.minimum(np.searchsorted(self.address, addresses), len(self.address) - 1)
        return np.where(self.address[at] == addresses, self.number[at], 0)


def is_kmalloc(cache: SlabCache) -> bool:
    """Whether a cache holds objects of any kind, by size."""
    return _KMALLOC.fullmatch(cache.kind) is not None


def smallest_object_bytes(caches: Sequence[SlabCache], number: int) -> int:
    """The least that somebody asks for who gets an object of this kmalloc cache."""
    cache = caches[number]
    match = _KMALLOC.fullmatch(cache.kind)
    kind = match[1] if match else None
    smaller = [
        other.object_size_bytes
        for other in caches
        if other.object_size_bytes < cache.object_size_bytes
        for found in [_KMALLOC.fullmatch(other.kind)]
        if found and found[1] == kind
    ]
    return max(smaller, default=0) + 1


def object_types(index: SlabIndex) -> ObjectTypes:
    """
    The types of all allocated objects of kmalloc caches, made once for a program.

    :raises LookupError: without debug info
    """
    cache = index.prog.cache
    if _CACHE_KEY not in cache:
        cache[_CACHE_KEY] = _Typing(index).run()
    types: ObjectTypes = cache[_CACHE_KEY]
    return types


class _Typing:
    """The work of :func:`object_types`."""

    def __init__(self, index: SlabIndex) -> None:
        self._index = index
        self._prog = index.prog
        self._finder = StructureFinder(index.prog)
        self._types: Dict[ObjectType, int] = {ObjectType("unknown", Certainty.UNKNOWN, ""): 0}
        #: By type number, where it is a structure that begins with the object.
        self._structs: Dict[int, Type] = {}
        self._pointers: Dict[str, Tuple[Ints, Ints]] = {}
        #: What typed pointers point to: type name to (position, type).
        self._targets: Dict[str, Tuple[int, _Pointed]] = {}
        #: What pointers to no structure point to, as :meth:`_pointed` has it.
        self._data: List[npt.NDArray[np.int64]] = [np.zeros((2, 0), dtype=np.int64)]
        caches = index.caches
        kmalloc = np.array([is_kmalloc(cache) for cache in caches], dtype=bool)
        self._kmalloc_rows = np.flatnonzero(kmalloc[index.cache])
        self._smallest = {
            i: smallest_object_bytes(caches, i) for i in np.flatnonzero(kmalloc).tolist()
        }
        self._cache_types = {
            i: type_
            for i in np.flatnonzero(~kmalloc).tolist()
            for type_ in [_type_of_cache(self._prog, caches[i])]
            if type_ is not None
        }

    def run(self) -> ObjectTypes:
        self._read_anchors()
        failures = self._run_recognisers()
        self._resolve_tables()
        fresh = np.ones(len(self._address), dtype=bool)
        for round_ in range(_ROUNDS):
            named = self._follow_pointers(fresh, named_caches=round_ == 0)
            fresh = np.zeros(len(self._address), dtype=bool)
            fresh[named] = True
        # Last: a structure says more of an object than whose buffer it is.
        self._name_pointed(*np.unique(np.concatenate(self._data, axis=1), axis=1))
        return ObjectTypes(
            tuple(self._types), self._address, self._number, self._cache_types, failures
        )

    def _type_number(self, type_: ObjectType, struct: Optional[Type] = None) -> int:
        number = self._types.setdefault(type_, len(self._types))
        if struct is not None:
            self._structs[number] = struct
        return number

    # Operations tables.

    def _read_anchors(self) -> None:
        """All objects, and their words that point to a variable of the kernel."""
        nothing = np.zeros(0, dtype=np.uint64)
        addresses, caches = [nothing], [nothing.astype(np.int64)]
        used = [nothing.astype(np.int64)]
        anchors = [nothing]
        offsets = [nothing.astype(np.int64)]
        values = [nothing]
        for batch in self._index.batches(self._kmalloc_rows):
            number = self._index.cache[batch.rows[0]]
            objects = batch.objects[batch.allocated]
            addresses.append(objects)
            caches.append(np.full(len(objects), number))
            used.append(_used_bytes(batch)[batch.allocated])
            slab, which, offset, value = _object_words(batch, self._finder.variables)
            anchors.append(batch.objects[slab, which])
            offsets.append(offset)
            values.append(value)
        joined = np.concatenate(addresses)
        order = np.argsort(joined)
        self._address = joined[order]
        self._cache = np.concatenate(caches)[order]
        self._used = np.concatenate(used)[order]
        self._number: Ints = np.zeros(len(joined), dtype=np.int64)
        self._anchor_at = np.searchsorted(self._address, np.concatenate(anchors))
        self._anchor_offset = np.concatenate(offsets)
        self._anchor_value = np.concatenate(values)

    def _resolve_tables(self) -> None:
        """Name objects by their best anchor."""
        used = self._used[self._anchor_at]
        number = np.zeros(len(used), dtype=np.int64)
        rank = np.zeros(len(used), dtype=np.int64)
        for cache, offset, value, group in self._anchor_groups():
            table = self._finder.table(value)
            if table is None:
                continue
            found = self._finder.structures(
                table,
                offset,
                self._smallest[cache],
                self._index.caches[cache].object_size_bytes,
                whole_files=len(group) >= _MANY,
            )
            if not found:
                continue
            # What most objects of a kind use, the others have too, though 0.
            needed = np.maximum(used[group], int(np.median(used[group])))
            for size in np.unique(needed).tolist():
                mine = group[needed == size]
                number[mine], rank[mine] = self._named(table, offset, _narrowed(found, size))
        # The surest anchor last, so that it is the one that stays; among
        # equals the first in the object.
        order = np.lexsort((-self._anchor_offset, rank))
        best = np.zeros(len(self._address), dtype=np.int64)
        best[self._anchor_at[order]] = number[order]
        self._number = np.where(self._number == 0, best, self._number)

    def _anchor_groups(self) -> Iterator[Tuple[int, int, int, Ints]]:
        """Caches, offsets and words of anchors in sorted order, and the anchors that have them."""
        keys = (self._cache[self._anchor_at], self._anchor_offset, self._anchor_value)
        order = np.lexsort(keys[::-1])
        if not len(order):
            return
        differs = [key[order][1:] != key[order][:-1] for key in keys]
        for group in np.split(order, np.flatnonzero(np.logical_or.reduce(differs)) + 1):
            cache, offset, value = (int(key[group[0]]) for key in keys)
            yield cache, offset, value, group

    def _named(self, table: OpsTable, offset: int, found: List[Structure]) -> Tuple[int, int]:
        """Number of the type, and its rank."""
        sure = len(found) == 1 and found[0].whole
        number = self._type_number(
            ObjectType(
                " or ".join(_structure_name(structure) for structure in found),
                Certainty.LIKELY if sure else Certainty.SUSPECTED,
                f"{table.name} ({table.type.type_name()}) at {offset}",
            ),
            found[0].type if sure else None,
        )
        return number, 1 + int(sure) + int(found[0].whole)

    # Recognisers.

    def _run_recognisers(self) -> Tuple[Tuple[str, str], ...]:
        failures = []
        for name, load in _recognisers():
            # Another package's code: whatever it raises is that package's failure.
            try:
                for type_name, addresses in load()(self._index):
                    self._recognised(type_name, np.asarray(addresses, dtype=np.uint64), name)
            except Exception as error:
                failures.append((name, f"{type(error).__name__}: {error}"))
        return tuple(failures)

    def _recognised(self, type_name: str, addresses: U64, recogniser: str) -> None:
        at = self._positions(addresses)
        at = at[at >= 0]
        at = at[self._number[at] == 0]
        type_ = ObjectType(type_name, Certainty.KNOWN, f"recogniser {recogniser}")
        largest = min(
            (self._index.caches[i].object_size_bytes for i in np.unique(self._cache[at]).tolist()),
            default=0,
        )
        try:
            struct: Optional[Type] = self._prog.type(type_name)
        except (LookupError, SyntaxError):
            struct = None
        if struct is None or struct.kind != TypeKind.STRUCT or (struct.size or 0) > largest:
            struct = None  # only a name: it says nothing of what is where
        self._number[at] = self._type_number(type_, struct)

    def _positions(self, addresses: U64) -> Ints:
        """Positions of objects that begin at addresses, -1 for others."""
        if not len(self._address):
            return np.full(addresses.shape, -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._address, addresses), len(self._address) - 1)
        return np.where(self._address[at] == addresses, at, -1)

    # Typed pointers.

    def _follow_pointers(self, fresh: npt.NDArray[np.bool_], named_caches: bool) -> Ints:
        """
        Name what objects of known types point to.

        :param fresh: bool array of shape (n,): objects whose pointers are followed
        :param named_caches: follow those of objects in other caches as well
        :return: positions of the objects that are named now
        """
        rows = self._kmalloc_rows
        if named_caches:
            named = np.isin(self._index.cache, list(self._cache_types))
            rows = np.concatenate((rows, np.flatnonzero(named)))
        parts: List[npt.NDArray[np.int64]] = [np.zeros((2, 0), dtype=np.int64)]
        for batch in self._index.batches(rows):
            for type_, slab, which in self._typed_in(batch, fresh):
                parts.append(self._pointed(batch, type_, slab, which))
        pairs = np.unique(np.concatenate(parts, axis=1), axis=1)
        data = np.array([target.is_data for _, target in self._targets.values()], dtype=bool)
        is_data = data[pairs[1]]
        self._data.append(pairs[:, is_data])
        return self._name_pointed(*pairs[:, ~is_data])

    def _typed_in(
        self, batch: SlabBatch, fresh: npt.NDArray[np.bool_]
    ) -> Iterator[Tuple[Type, Ints, Ints]]:
        """Structures in a batch, and the slab and position of each one's objects."""
        named = self._cache_types.get(int(self._index.cache[batch.rows[0]]))
        if named is not None:
            yield (named, *np.nonzero(batch.allocated))
            return
        at = self._positions(batch.objects)
        numbers = np.where((at >= 0) & fresh[at] & batch.allocated, self._number[at], 0)
        for number in np.unique(numbers).tolist():
            if number in self._structs:
                yield (self._structs[number], *np.nonzero(numbers == number))

    def _pointed(
        self, batch: SlabBatch, type_: Type, slab: Ints, which: Ints
    ) -> npt.NDArray[np.int64]:
        """
        Objects that are pointed to, those without a name or that it speaks against.

        :return: int64 array of shape (2, m): position of the object, and what
            type the pointer has, as a position in ``self._targets``
        """
        offsets, targets = self._pointer_members(type_)
        inside = offsets + 8 <= batch.cache.object_size_bytes
        offsets, targets = offsets[inside], targets[inside]
        words = batch.data.view(np.uint64)
        start = batch.cache.red_left_pad_bytes + which * batch.cache.size_bytes
        at = self._positions(words[slab[:, None], (start[:, None] + offsets) // 8])
        array = np.array([target.is_array for _, target in self._targets.values()], dtype=bool)
        # An array of pointers is no structure, whatever table it has in it.
        hit, column = np.nonzero((at >= 0) & ((self._number[at] == 0) | array[targets]))
        pairs: npt.NDArray[np.int64] = np.stack((at[hit, column], targets[column]))
        return np.unique(pairs, axis=1)

    def _pointer_members(self, type_: Type) -> Tuple[Ints, Ints]:
        """Offsets of pointers, and positions in ``self._targets``."""
        name = type_.type_name()
        if name not in self._pointers:
            found = []
            for member in members(type_):
                target = _pointed_type(type_, member)
                if target is not None and member.offset % 8 == 0:
                    number = self._targets.setdefault(target.name, (len(self._targets), target))[0]
                    found.append((member.offset, number))
            pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
            self._pointers[name] = (pairs[:, 0], pairs[:, 1])
        return self._pointers[name]

    def _name_pointed(self, at: Ints, target: Ints) -> Ints:
        types = [type_ for _, type_ in self._targets.values()]
        free = self._number[at] == 0
        for i, which in zip(at[~free].tolist(), target[~free].tolist()):
            if types[which].is_array:
                self._contest(i, types[which])
        at, target = at[free], target[free]
        size = np.array([type_.size for type_ in types] or [0], dtype=np.int64)[target]
        grows = np.array([type_.grows for type_ in types] or [False], dtype=bool)[target]
        largest = np.array([c.object_size_bytes for c in self._index.caches], dtype=np.int64)
        smallest = np.zeros(len(largest), dtype=np.int64)
        for which, least in self._smallest.items():
            smallest[which] = least
        cache = self._cache[at]
        fits = (size > 0) & (size <= largest[cache])
        whole = fits & ((size >= smallest[cache]) | grows)
        at, target, size, whole = at[fits], target[fits], size[fits], whole[fits]
        # The best type of each object last, so that it is the one that stays.
        order = np.lexsort((-target, size, whole))
        number = np.zeros(len(at), dtype=np.int64)
        _, inverse, counts = np.unique(
            np.stack((at, whole.astype(np.int64))), axis=1, return_inverse=True, return_counts=True
        )
        alone = whole & (counts[inverse.reshape(-1)] == 1)
        for kind, sure in sorted(set(zip(target.tolist(), alone.tolist()))):
            type_ = types[kind]
            named = ObjectType(
                type_.name,
                Certainty.LIKELY if sure else Certainty.SUSPECTED,
                f"{'' if type_.is_data else 'a '}{type_.pointer} points to it",
            )
            mine = (target == kind) & (alone == sure)
            number[mine] = self._type_number(named, type_.struct if sure else None)
        self._number[at[order]] = number[order]
        return np.unique(at)

    def _contest(self, at: int, pointed: _Pointed) -> None:
        """
        Doubt a type that an operations table gave.

        The table may be what is left of the object before, behind the end of
        a small array: on arm64 the smallest object has 128 bytes.
        """
        known = list(self._types)[self._number[at]]
        if known.certainty is Certainty.LIKELY:
            self._number[at] = self._type_number(
                ObjectType(
                    f"{known.name} or {pointed.name}",
                    Certainty.SUSPECTED,
                    f"{known.how}, but a {pointed.pointer} points to it",
                )
            )


@dataclasses.dataclass(frozen=True)
class _Pointed:
    """
    What a pointer points to: a *struct*, an array of pointers, or just data or
    a link.

    *grows*: it may be larger than *size*.
    """

    name: str
    pointer: str
    size: int
    grows: bool
    struct: Optional[Type] = None
    is_array: bool = False
    is_data: bool = False


def _pointed_type(holder: Type, member: Member) -> Optional[_Pointed]:
    """
    What a member points to, None if that says nothing.

    :param holder: the structure with the member
    """
    if member.type.kind != TypeKind.POINTER:
        return None
    struct = pointed_struct(member.type)
    if struct is not None and struct.tag in _LINKS:
        # The list head's own name, without next or prev.
        path = member_at_offset(holder, member.offset).rpartition(".")
        name = f"{holder.type_name()}.{path[0] or path[2]}"
        return _Pointed(f"linked from {name}", name, 1, True, is_data=True)
    if struct is not None:
        name, size = struct.type_name(), struct.size or 0
        return _Pointed(name, f"{name} *", size, has_flexible_array(struct), struct)
    target = member.type.type.unaliased()
    if target.kind == TypeKind.POINTER:
        name, size = member.type.type.unqualified().type_name(), target.size or 0
        return _Pointed(f"array of {name}", member.type.type_name(), size, True, is_array=True)
    if target.kind in _DATA_KINDS:
        name = f"{holder.type_name()}.{member_at_offset(holder, member.offset)}"
        return _Pointed(f"data of {name}", name, 1, True, is_data=True)
    return None


def _object_words(batch: SlabBatch, values: U64) -> Tuple[Ints, Ints, Ints, U64]:
    """
    Words of allocated objects that are one of some values.

    :param values: uint64 array, sorted
    :return: of each such word the slab, the object, the offset in it, the word
    """
    words = batch.data.view(np.uint64)
    nothing = np.zeros(0, dtype=np.int64)
    if not len(values):
        return nothing, nothing, nothing, nothing.astype(np.uint64)
    slab, word = np.nonzero((words >= values[0]) & (words <= values[-1]))
    value = words[slab, word]
    at = np.minimum(np.searchsorted(values, value), len(values) - 1)
    wanted = values[at] == value
    slab, word, value = slab[wanted], word[wanted], value[wanted]
    relative = word * 8 - batch.cache.red_left_pad_bytes
    which, offset = np.divmod(relative, batch.cache.size_bytes)
    inside = (
        (relative >= 0)
        & (which < batch.objects.shape[1])
        & (offset + 8 <= batch.cache.object_size_bytes)
    )
    slab, which, offset, value = slab[inside], which[inside], offset[inside], value[inside]
    live = batch.allocated[slab, which]
    return slab[live], which[live], offset[live], value[live]


def _used_bytes(batch: SlabBatch) -> Ints:
    """
    Bytes of each object up to the last word that is not 0.

    :return: int64 array of shape (n, objects)
    """
    words = np.ascontiguousarray(batch.slots()).view(np.uint64)
    words = words[:, :, : -(-batch.cache.object_size_bytes // 8)]
    some = words[:, :, ::-1] != 0
    last = words.shape[2] - np.argmax(some, axis=2)
    return np.where(some.any(axis=2), last * 8, 0)


def _narrowed(found: List[Structure], used: int) -> List[Structure]:
    """
    The structures that fit best what is in the objects.

    Who allocates a small structure with kzalloc() leaves the rest of the
    object 0; in objects of a larger one, something is there.

    :param found: structures, by size
    """
    if not found[0].whole:
        return found
    enough = [s for s in found if -(-s.type.size // 8) * 8 >= used]
    if not enough:
        return found
    size = enough[0].type.size
    return [s for s in enough if s.type.size == size or not has_at(s.type, enough[0].type, 0)]


def _structure_name(structure: Structure) -> str:
    name = structure.type.type_name()
    return name if structure.whole else f"something with a {name} at {structure.offset}"


def _recognisers() -> Iterator[Tuple[str, Callable[[], Recogniser]]]:
    """Names of all recognisers, and what loads them, in a fixed order."""
    yield "sync_file", lambda: _sync_files
    yield "virtio_gpu_fence", lambda: _detached_fences
    for entry_point in sorted(_entry_points(), key=lambda e: (e.value, e.name)):
        yield entry_point.value, entry_point.load


def _entry_points() -> Iterable[importlib.metadata.EntryPoint]:
    if sys.version_info >= (3, 10):
        return importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    return importlib.metadata.entry_points().get(ENTRY_POINT_GROUP, ())


def _sync_files(index: SlabIndex) -> Iterator[Tuple[str, U64]]:
    """A sync_file has no table, but its file and it point to each other."""
    try:
        found = [sync_file.value_() for sync_file, _ in for_each_sync_file(index)]
    except LookupError:
        return  # a kernel without sync_files
    yield "struct sync_file", np.array(found, dtype=np.uint64)


def _detached_fences(index: SlabIndex) -> Iterator[Tuple[str, U64]]:
    """Since v7.1 a fence of virtio_gpu that has signaled has no table."""
    try:
        yield "struct virtio_gpu_fence", detached_fences(index)
    except LookupError:
        return  # a kernel without fences


def _type_of_cache(prog: Program, cache: SlabCache) -> Optional[Type]:
    """The structure that a cache is named after and that has its size."""
    name = cache.kind
    stem = re.sub(r"(_head)?(_cachep?|_jar)$", "", name)
    for tag in (name, stem, f"{stem}_struct", f"{stem}_info", *_CACHE_TAGS.get(name, ())):
        try:
            type_ = prog.type(f"struct {tag}")
        except (LookupError, SyntaxError):
            continue
        if type_.kind != TypeKind.STRUCT or not type_.is_complete():
            continue
        # The end of a task_struct depends on the CPU, that of an mm_struct on
        # how many there are.
        if type_.size == cache.object_size_bytes or (
            tag == name and cache.object_size_bytes < 2 * type_.size < 4 * cache.object_size_bytes
        ):
            return type_
    return None


#: Caches that are named otherwise than their structures.
_CACHE_TAGS = {
    "filp": ("file",),
    "mnt_cache": ("mount",),
    "radix_tree_node": ("xa_node", "radix_tree_node"),
    "skbuff_head_cache": ("sk_buff",),
    "sock_inode_cache": ("socket_alloc",),
}
