# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Which structure holds a pointer to an operations table, from the debug info.

Debug info cannot be asked for "all structures with such a member". But the
table names them: its functions take the structure that has the pointer
(``dma_fence_ops.release()`` takes a ``struct dma_fence *``), and the code of
these functions, and of those around them, has variables of the driver's own
structure around it (``struct virtio_gpu_fence *``).
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import logging
from typing import Dict, Iterator, List, Optional, Set, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Program, SymbolKind, Type, TypeKind

#: Bytes of code from one look at a function's variables to the next: those of
#: inner blocks are seen only there.
_CODE_STEP_BYTES = 64
_CODE_BYTES_MAX = 16 << 10
#: Functions of one source file that are looked at.
_FUNCTIONS_MAX = 400
_NESTING_MAX = 12


@dataclasses.dataclass(frozen=True)
class Member:
    """
    A member of a structure, at any depth.

    :ivar offset: from the outermost structure's start, in bytes
    :ivar type: its type, without qualifiers and typedefs
    """

    offset: int
    type: Type


def members(type_: Type) -> Iterator[Member]:
    """All members of a structure, those of structures in it too, but no union's."""
    yield from _members(type_, 0, _NESTING_MAX)


def _members(type_: Type, start: int, depth: int) -> Iterator[Member]:
    for member in type_.members or ():
        if member.bit_field_size is not None:
            continue
        inner = member.type.unaliased().unqualified()
        offset = start + member.bit_offset // 8
        yield Member(offset, inner)
        if inner.kind == TypeKind.STRUCT and inner.is_complete() and depth:
            yield from _members(inner, offset, depth - 1)


def pointed_struct(type_: Type) -> Optional[Type]:
    """The structure that a pointer type points to; None for other types."""
    type_ = type_.unaliased()
    if type_.kind != TypeKind.POINTER:
        return None
    target = type_.type.unaliased().unqualified()
    if target.kind != TypeKind.STRUCT or not target.tag or not target.is_complete():
        return None
    return target


def has_flexible_array(type_: Type) -> bool:
    """Whether objects of a structure may be larger than it is."""
    last = type_.members[-1].type.unaliased() if type_.members else None
    return last is not None and last.kind == TypeKind.ARRAY and not last.length


@dataclasses.dataclass(frozen=True)
class OpsTable:
    """
    A variable with an operations table.

    :ivar name: of the variable
    :ivar type: a structure with pointers to functions
    :ivar bases: structures that point to such tables, and where in them
    :ivar functions: addresses of the functions in it
    """

    name: str
    type: Type
    bases: Tuple[Tuple[Type, int], ...]
    functions: Tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Structure:
    """
    What an object is.

    :ivar type: the structure
    :ivar offset: where it begins in the object
    :ivar whole: it is the object; otherwise it is in something larger
    """

    type: Type
    offset: int
    whole: bool


class StructureFinder:
    """Finds structures by operations tables; it remembers what it has looked at."""

    def __init__(self, prog: Program) -> None:
        self._prog = prog
        self._names: Dict[int, Tuple[str, int]] = {}
        functions = []
        for symbol in prog.symbols():
            if symbol.kind == SymbolKind.OBJECT and symbol.size:
                self._names[symbol.address] = (symbol.name, symbol.size)
            elif symbol.kind == SymbolKind.FUNC and symbol.size:
                functions.append((symbol.address, symbol.size))
        self._functions = sorted(set(functions))
        self._tables: Dict[int, Optional[OpsTable]] = {}
        self._bases: Dict[str, Tuple[Tuple[Type, int], ...]] = {}
        self._variables: Dict[int, Dict[str, Type]] = {}
        self._files: Dict[str, Dict[str, Type]] = {}
        #: Addresses of all variables: uint64 array, sorted.
        self.variables: npt.NDArray[np.uint64] = np.array(sorted(self._names), dtype=np.uint64)

    def table(self, address: int) -> Optional[OpsTable]:
        """The operations table at an address; None if there is something else."""
        if address not in self._tables:
            self._tables[address] = self._read_table(address)
        return self._tables[address]

    def _read_table(self, address: int) -> Optional[OpsTable]:
        name, size = self._names.get(address, ("", 0))
        try:
            type_ = self._prog.variable(name).type_.unaliased().unqualified()
        except LookupError:
            return None
        # The debug info may have found another file's variable of that name.
        if type_.kind != TypeKind.STRUCT or not type_.tag or type_.size != size:
            return None
        if type_.tag not in self._bases:
            self._bases[type_.tag] = tuple(_bases(type_))
        bases = self._bases[type_.tag]
        if not bases:
            return None
        return OpsTable(name, type_, bases, self._table_functions(address, type_))

    def _table_functions(self, address: int, type_: Type) -> Tuple[int, ...]:
        functions = []
        for member in type_.members or ():
            if _function(member.type) is not None:
                try:
                    functions.append(self._prog.read_word(address + member.bit_offset // 8))
                except FaultError:
                    continue
        return tuple(function for function in functions if function)

    def structures(
        self, table: OpsTable, offset: int, smallest: int, largest: int, whole_files: bool
    ) -> List[Structure]:
        """
        What an object can be that points to a table.

        :param offset: of the pointer in the object
        :param smallest: size of the object in bytes, at least
        :param largest: likewise, at most
        :param whole_files: look at all functions of the table's functions' files
        :return: structures that are the object, by size; if there are none,
            those that the object has in it
        """
        bases = [
            (base, offset - at)
            for base, at in table.bases
            if offset - at >= 0 and offset - at + base.size <= largest
        ]
        whole = {
            type_.type_name(): Structure(type_, 0, True)
            for base, start in bases
            for type_ in self._around(table, base, whole_files)
            if type_.size <= largest
            and (smallest <= type_.size or has_flexible_array(type_))
            and has_at(type_, base, start)
        }
        found = list(whole.values()) or [Structure(base, start, False) for base, start in bases]
        return sorted(found, key=lambda s: (s.type.size, s.type.type_name()))

    def _around(self, table: OpsTable, base: Type, whole_files: bool) -> Iterator[Type]:
        """Structures that may be, or be around, one that points to a table."""
        yield base
        for function in table.functions:
            at = bisect.bisect_right(self._functions, (function, 1 << 64)) - 1
            if at >= 0 and self._functions[at][0] == function:
                yield from self._struct_pointers(at).values()
                if whole_files:
                    yield from self._in_file_of(at).values()

    def _in_file_of(self, at: int) -> Dict[str, Type]:
        """Structures that variables in a function's source file point to, by tag."""
        file = self._file(self._functions[at][0])
        if file is None:
            return {}
        if file not in self._files:
            self._files[file] = found = {}
            # The linker puts the functions of one file side by side.
            for positions in (range(at, len(self._functions)), range(at - 1, -1, -1)):
                for position in positions[: _FUNCTIONS_MAX // 2]:
                    if self._file(self._functions[position][0]) != file:
                        break
                    found.update(self._struct_pointers(position))
        return self._files[file]

    def _file(self, address: int) -> Optional[str]:
        try:
            return str(self._prog.source_location(address)[-1].filename)
        except LookupError:
            return None

    def _struct_pointers(self, at: int) -> Dict[str, Type]:
        """Structures that variables of a function point to, by tag."""
        if at not in self._variables:
            address, size = self._functions[at]
            self._variables[at] = found = {}
            with _quiet():
                for pc in range(address, address + min(size, _CODE_BYTES_MAX), _CODE_STEP_BYTES):
                    for type_ in _local_types(self._prog, pc):
                        target = pointed_struct(type_)
                        if target is not None and target.tag:
                            found[target.tag] = target
        return self._variables[at]


def _function(type_: Type) -> Optional[Type]:
    type_ = type_.unaliased()
    if type_.kind != TypeKind.POINTER:
        return None
    target = type_.type.unaliased()
    return target if target.kind == TypeKind.FUNCTION else None


def _bases(table: Type) -> Iterator[Tuple[Type, int]]:
    """Structures that functions of a table take and that point to such a table."""
    seen: Set[str] = set()
    for member in table.members or ():
        function = _function(member.type)
        for parameter in function.parameters if function is not None else ():
            taken = pointed_struct(parameter.type)
            if taken is None or taken.tag in seen:
                continue
            seen.add(taken.tag)
            for inner in members(taken):
                target = pointed_struct(inner.type)
                if target is not None and target.tag == table.tag:
                    yield taken, inner.offset


def has_at(type_: Type, inner: Type, offset: int) -> bool:
    """Whether a structure is, or has at an offset, another one."""
    if type_.tag == inner.tag:
        return offset == 0
    return any(
        member.offset == offset
        and member.type.kind == TypeKind.STRUCT
        and member.type.tag == inner.tag
        for member in members(type_)
    )


def _local_types(prog: Program, pc: int) -> Iterator[Type]:
    for frame in prog.stack_trace_from_pcs([pc]):
        for name in frame.locals():
            try:
                yield frame[name].type_
            except (LookupError, FaultError, ValueError):
                continue


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Only types are wanted: drgn need not tell which values it cannot compute."""
    logger = logging.getLogger("drgn")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
