# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Structures in slab objects, found by their pointer to an operations table.

A ``struct dma_fence`` may be embedded anywhere in an object of any cache; its
``ops`` member points to a variable of type ``struct dma_fence_ops`` in vmlinux
or a module. So every word of every allocated object is compared with the
addresses of such variables, for several structures in one pass.
"""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Mapping, Optional, Sequence

import numpy as np
import numpy.typing as npt
from drgn import Program, SymbolKind, TypeKind, offsetof, sizeof

from vmcore_tools.kernel.slab import SlabBatch, SlabIndex

_CACHE_KEY = "vmcore_tools.kernel.typed_objects.tables"
#: Of a word, what tells most others from it.
_LOW_BITS = 0xFFFF


@dataclasses.dataclass(frozen=True)
class Embedded:
    """
    A structure to look for.

    :ivar type_name: ``struct dma_fence``
    :ivar ops_member: its member that points to the operations table
    :ivar ops_type_name: ``struct dma_fence_ops``
    """

    type_name: str
    ops_member: str
    ops_type_name: str


@dataclasses.dataclass(frozen=True)
class Found:
    """
    The structures of one kind that were found.

    :ivar address: uint64 array of shape (n,): of each structure, sorted
    :ivar container: uint64 array of shape (n,): of the slab object around it
    :ivar ops: uint64 array of shape (n,): the operations table it points to
    :ivar cache: int64 array of shape (n,): position in ``SlabIndex.caches``
    :ivar structs: uint8 array of shape (n, size of the structure): their bytes
    :ivar tables: operations table's address to its symbol's name
    """

    address: npt.NDArray[np.uint64]
    container: npt.NDArray[np.uint64]
    ops: npt.NDArray[np.uint64]
    cache: npt.NDArray[np.int64]
    structs: npt.NDArray[np.uint8]
    tables: Dict[int, str]

    def chosen(self, wanted: npt.NDArray[np.bool_]) -> Found:
        """
        Some of them.

        :param wanted: bool array of shape (n,)
        """
        return Found(
            self.address[wanted],
            self.container[wanted],
            self.ops[wanted],
            self.cache[wanted],
            self.structs[wanted],
            self.tables,
        )

    def joined(self, other: Found) -> Found:
        """These and others of the same structure, none of them twice."""
        address = np.concatenate([self.address, other.address])
        order = np.argsort(address, kind="stable")
        return Found(
            address[order],
            np.concatenate([self.container, other.container])[order],
            np.concatenate([self.ops, other.ops])[order],
            np.concatenate([self.cache, other.cache])[order],
            np.concatenate([self.structs, other.structs])[order],
            {**self.tables, **other.tables},
        )


def ops_tables(prog: Program, ops_type_names: Sequence[str]) -> Dict[str, Dict[int, str]]:
    """
    All variables of operations table types, in vmlinux and in modules.

    :return: type name to (address to variable name)
    """
    sizes = {}
    for name in ops_type_names:
        try:
            sizes[name] = prog.type(name).size
        except LookupError:
            continue
    cache: Dict[str, Dict[int, str]] = prog.cache.setdefault(_CACHE_KEY, {})
    wanted = {name: size for name, size in sizes.items() if name not in cache}
    for name in ops_type_names:
        cache.setdefault(name, {})
    if wanted:
        of_size: Dict[int, List[str]] = {}
        for name, size in wanted.items():
            of_size.setdefault(size, []).append(name)
        for symbol in prog.symbols():
            for name in of_size.get(symbol.size, ()):
                if symbol.kind == SymbolKind.OBJECT and _is_of_type(prog, symbol.name, name):
                    cache[name][symbol.address] = symbol.name
    return {name: cache[name] for name in ops_type_names}


def _is_of_type(prog: Program, variable: str, type_name: str) -> bool:
    try:
        type_ = prog.variable(variable).type_
    except LookupError:
        return False
    while type_.kind == TypeKind.TYPEDEF:
        type_ = type_.type
    return type_.kind == TypeKind.STRUCT and f"struct {type_.tag}" == type_name


def find_embedded(
    index: SlabIndex,
    kinds: Sequence[Embedded],
    known: Optional[Mapping[Embedded, Dict[int, str]]] = None,
) -> Dict[Embedded, Found]:
    """
    Find structures in allocated slab objects, one pass for all kinds.

    An object whose slab is corrupt or absent is not looked at; the index
    counts it.

    :param known: more kinds, which point to something else than a variable:
        what they point to, and what to call it
    :raises LookupError: if a kind's type is not in the debug info
    """
    prog = index.prog
    known = known or {}
    variables = ops_tables(prog, [kind.ops_type_name for kind in kinds])
    tables = {**{kind: variables[kind.ops_type_name] for kind in kinds}, **known}
    searches = [_Search.of(prog, kind, table) for kind, table in tables.items()]
    all_ops = np.array(sorted({a for t in tables.values() for a in t}), dtype=np.uint64)
    # They are all over the address space: most other words differ in the low bits.
    may_be_ops = np.zeros(_LOW_BITS + 1, dtype=bool)
    may_be_ops[_low_bits(all_ops)] = True
    parts: Dict[Embedded, List[Found]] = {kind: [] for kind in tables}
    if len(all_ops):
        smallest = min(search.size for search in searches)
        large_enough = np.array([c.object_size_bytes >= smallest for c in index.caches], dtype=bool)
        for batch in index.batches(np.flatnonzero(large_enough[index.cache])):
            words = batch.data.view(np.uint64)
            slab, word = np.nonzero(may_be_ops[_low_bits(words)])
            values = words[slab, word]
            at = np.minimum(np.searchsorted(all_ops, values), len(all_ops) - 1)
            is_ops = all_ops[at] == values
            if not is_ops.any():
                continue
            for search in searches:
                parts[search.kind].append(
                    search.in_batch(index, batch, slab[is_ops], word[is_ops], values[is_ops])
                )
    return {search.kind: search.joined(parts[search.kind]) for search in searches}


def _low_bits(addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Those above the three that are 0 in pointers to words."""
    return (addresses >> np.uint64(3)) & np.uint64(_LOW_BITS)


@dataclasses.dataclass(frozen=True)
class _Search:
    kind: Embedded
    ops_offset: int
    size: int
    tables: Dict[int, str]

    @staticmethod
    def of(prog: Program, kind: Embedded, tables: Dict[int, str]) -> _Search:
        type_ = prog.type(kind.type_name)
        return _Search(kind, offsetof(type_, kind.ops_member), sizeof(type_), tables)

    def in_batch(
        self,
        index: SlabIndex,
        batch: SlabBatch,
        slab: npt.NDArray[np.int64],
        word: npt.NDArray[np.int64],
        values: npt.NDArray[np.uint64],
    ) -> Found:
        """The structures whose operations pointers are these words of the slabs."""
        cache = batch.cache
        start = word * 8 - self.ops_offset
        relative = start - cache.red_left_pad_bytes
        number = relative // cache.size_bytes
        within = relative - number * cache.size_bytes
        wanted = (
            np.isin(values, np.array(list(self.tables), dtype=np.uint64))
            & (relative >= 0)
            & (number < batch.objects.shape[1])
            & (within + self.size <= cache.object_size_bytes)
        )
        slab, number, start, values = slab[wanted], number[wanted], start[wanted], values[wanted]
        wanted = batch.allocated[slab, number]
        slab, number, start, values = slab[wanted], number[wanted], start[wanted], values[wanted]
        rows = batch.rows[slab]
        return Found(
            address=index.address[rows] + start.astype(np.uint64),
            container=batch.objects[slab, number],
            ops=values,
            cache=index.cache[rows],
            structs=batch.data[slab[:, None], start[:, None] + np.arange(self.size)],
            tables=self.tables,
        )

    def joined(self, parts: List[Found]) -> Found:
        empty = np.zeros(0, dtype=np.uint64)
        parts = [
            Found(
                empty,
                empty,
                empty,
                empty.astype(np.int64),
                np.zeros((0, self.size), dtype=np.uint8),
                self.tables,
            ),
            *parts,
        ]
        address = np.concatenate([part.address for part in parts])
        order = np.argsort(address, kind="stable")
        return Found(
            address=address[order],
            container=np.concatenate([part.container for part in parts])[order],
            ops=np.concatenate([part.ops for part in parts])[order],
            cache=np.concatenate([part.cache for part in parts])[order],
            structs=np.concatenate([part.structs for part in parts])[order],
            tables=self.tables,
        )
