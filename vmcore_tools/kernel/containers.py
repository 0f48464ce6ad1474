# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an address lies in: a slab object, a variable, or a task's stack; and who points there."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple

import numpy as np
from drgn import FaultError, Object, Program, Type, TypeKind, offsetof
from drgn.helpers.common.type import member_at_offset
from drgn.helpers.linux.mm import compound_head, compound_nr, page_to_virt, virt_to_page

from vmcore_tools.dump.memory import Memory
from vmcore_tools.kernel.object_types import Certainty, object_types
from vmcore_tools.kernel.page import page_index
from vmcore_tools.kernel.references import (
    Attribution,
    Reference,
    Targets,
    kernel_runs,
    register_references,
    scan,
)
from vmcore_tools.kernel.slab import ObjectState, slab_index
from vmcore_tools.kernel.stack_frames import TaskTrace, frames_of, functions_at
from vmcore_tools.kernel.task import stack_range
from vmcore_tools.kernel.virtual_map import virtual_map

#: The parts of ``a.b[2].c``.
_DESIGNATOR = re.compile(r"\.?(?P<name>\w+)|\[\d+\]")
#: What an address stands for that is in nothing known: a word.
_WORD_BYTES = 8


@dataclasses.dataclass(frozen=True)
class Container:
    """
    What an address lies in.

    :ivar place: ``slab object``, ``pages`` (allocated at once), ``variable``, ``module``
        (without debug info), ``stack`` or ``memory``
    :ivar name: of the cache, variable or module, or the function in whose frame it is
    :ivar start: where the object or variable begins; else the address itself
    :ivar size_bytes: of the object; of a variable, its symbol's
    :ivar offset: of the address in it
    :ivar type_name: ``struct foo``, None if it is not known
    :ivar field: the member at the offset, None if it is not known
    :ivar task: ``struct task_struct *`` whose stack it is
    :ivar freed: whether the slab object is free
    """

    place: str
    name: str
    start: int
    size_bytes: int
    offset: int = 0
    type_name: Optional[str] = None
    field: Optional[str] = None
    task: Optional[Object] = None
    freed: bool = False

    @property
    def in_words(self) -> str:
        """What it is, without addresses and tasks' names."""
        if self.place == "stack":
            return f"the frame of {self.name}" if self.name else "a stack"
        if self.place == "variable":
            if self.field:
                return self.name + ("" if self.field.startswith("[") else ".") + self.field
            return f"{self.name}+{self.offset:#x}" if self.offset else self.name
        if self.place == "pages":
            return f"an allocation of {self.name} at +{self.offset:#x}"
        if self.place == "module":
            return f"the data of {self.name}"
        if self.place == "memory":
            return "memory of unknown use"
        kind = self.type_name or "an object"
        field = f" ({self.field})" if self.field else ""
        freed = "freed " if self.freed else ""
        return f"{freed}{kind} of {self.name} at +{self.offset:#x}{field}"


class Containers:
    """
    Finds containers.

    :param tasks: by address: ``struct task_struct *``
    :param trace: unwinds a task's stack; None if that fails
    """

    def __init__(
        self,
        prog: Program,
        memory: Memory,
        tasks: Iterable[Object],
        trace: Callable[[Object], Optional[TaskTrace]],
    ) -> None:
        self._prog = prog
        self._memory = memory
        self._trace = trace
        self._stack_bytes = int(prog["THREAD_SIZE"].value_())
        self._stacks: Dict[int, Object] = {}
        for task in tasks:
            try:
                self._stacks[stack_range(task)[0]] = task
            except FaultError:
                continue

    def of(
        self, address: int, size_bytes: int = _WORD_BYTES, type_: Optional[Type] = None
    ) -> Container:
        """
        What a kernel address lies in.

        :param size_bytes: of what is at the address
        :param type_: its type, if that is known: the field is a member of it
        """
        task = self._stacks.get(address // self._stack_bytes * self._stack_bytes)
        if task is not None:
            names = functions_at(frames_of(self._trace(task)), address)
            return Container("stack", "/".join(names), address, size_bytes, task=task)
        try:
            symbol = self._prog.symbol(address)
        except LookupError:
            symbol = None
        if symbol is not None:
            return self._variable(symbol.name, symbol.address, symbol.size, address, type_)
        in_slab = self._slab_object(address, type_)
        if in_slab is not None:
            return in_slab
        try:
            module = self._prog.module(address)
        except LookupError:
            pages = self._pages(address)
            return pages or Container("memory", "", address, size_bytes)
        return Container("module", module.name, address, size_bytes)

    def _pages(self, address: int) -> Optional[Container]:
        """A compound page: what kmalloc() gives for more than a slab has."""
        page_size = self._memory.page_map.page_size_bytes
        try:
            head = compound_head(virt_to_page(self._prog, address))
            start, number = int(page_to_virt(head).value_()), int(compound_nr(head).value_())
        except (FaultError, LookupError):
            return None  # it is in no page of the direct map
        size_bytes = number * page_size
        if number == 1 or not start <= address < start + size_bytes:
            return None
        return Container("pages", f"{number} pages", start, size_bytes, address - start)

    def _variable(
        self, name: str, start: int, size_bytes: int, address: int, member: Optional[Type]
    ) -> Container:
        try:
            type_: Optional[Type] = self._prog.variable(name).type_
        except LookupError:
            type_ = None
        offset = address - start
        named = _named(type_, offset if offset else None, member)
        return Container("variable", name, start, size_bytes, offset, *named)

    def _slab_object(self, address: int, member: Optional[Type]) -> Optional[Container]:
        index = slab_index(self._prog, self._memory)
        one = np.array([address], dtype=np.uint64)
        row = int(index.find(one)[0])
        if row < 0:
            return None
        number = int(index.cache[row])
        cache = index.caches[number]
        first = int(index.address[row]) + cache.red_left_pad_bytes
        start = first + (address - first) // cache.size_bytes * cache.size_bytes
        offset = address - start
        if offset >= cache.object_size_bytes:
            return None  # a red zone
        types = object_types(index)
        type_ = types.cache_types.get(number)
        name: Optional[str] = None
        known = types.types[int(types.of(np.array([start], dtype=np.uint64))[0])]
        if type_ is None and known.certainty >= Certainty.SUSPECTED:
            name = known.name if known.certainty > Certainty.SUSPECTED else f"maybe {known.name}"
            if known.certainty > Certainty.SUSPECTED:
                type_ = _struct(self._prog, known.name)
        field = None
        if type_ is not None:
            name, field = _named(type_, offset, member)
        freed = int(index.object_states(one)[0]) == ObjectState.FREE
        return Container(
            "slab object", cache.name, start, cache.object_size_bytes, offset, name, field,
            freed=freed,
        )  # fmt: skip


def _struct(prog: Program, name: str) -> Optional[Type]:
    try:
        return prog.type(name)
    except (LookupError, SyntaxError):
        return None


def _named(
    type_: Optional[Type], offset: Optional[int], member: Optional[Type]
) -> Tuple[Optional[str], Optional[str]]:
    """The name of a type, and the member at an offset; if there is one, that of a type."""
    if type_ is None:
        return None, None
    field = None
    if offset is not None:
        try:
            field = member_at_offset(type_, offset).partition(" or ")[0]
        except (TypeError, ValueError):
            field = None  # it has no members, or is smaller
    if field and offset is not None and member is not None:
        field = _up_to(type_, field, offset, member)
    return type_.type_name(), field


def _up_to(type_: Type, field: str, offset: int, member: Type) -> str:
    """``cbs_wq`` of ``cbs_wq.lock.rlock``, if a member of its type is looked for."""
    inner = type_
    for part in _DESIGNATOR.finditer(field):
        name = part.group("name")
        try:
            inner = _plain(inner).member(name).type if name else _plain(inner).type
            found = field[: part.end()]
            if _names(inner) & _names(member) and offsetof(type_, found) == offset:
                return found
        except (LookupError, AttributeError, TypeError):
            break  # a range such as [3]+0x4, or padding
    return field


def _plain(type_: Type) -> Type:
    while type_.kind == TypeKind.TYPEDEF:
        type_ = type_.type
    return type_


def _names(type_: Type) -> Set[str]:
    """What a type is called: not all have more than the name of a typedef."""
    names = {type_.type_name(), _plain(type_).type_name()}
    return {name for name in names if "<anonymous>" not in name}


def pointers_to(
    prog: Program, memory: Memory, ranges: Sequence[Tuple[int, int]], pages_max: int
) -> Optional[List[Reference]]:
    """
    Who points into some ranges of memory, of all kernel memory.

    :param ranges: start and end of each, sorted; they do not overlap
    :param pages_max: read no more pages than that
    :return: without those that are known to be no references; the positions in *ranges*
        are their targets; None if there is too much memory
    :raises FaultError: if the list of tasks cannot be read
    """
    pages = page_index(prog, memory)
    runs = kernel_runs(memory, pages)
    if int((runs[:, 1] - runs[:, 0]).sum()) > pages_max:
        return None
    edges = np.array(ranges, dtype=np.uint64).reshape(-1, 2)
    targets = Targets(edges[:, 0].copy(), edges[:, 1].copy())
    hits, _ = scan(memory, pages, targets, _no_progress)
    index = slab_index(prog, memory)
    virtual = virtual_map(prog, memory.page_map.page_size_bytes)
    found = Attribution.of(prog, index, pages, virtual).references(targets, hits)
    found += register_references(prog, targets)[0]
    return [reference for reference in found if reference.non_reference is None]


def _no_progress(items: Iterable[Any], what: str, total: Optional[int]) -> Iterable[Any]:
    return items
