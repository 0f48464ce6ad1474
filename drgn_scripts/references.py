# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Who still points at an object, or at all objects of a type.

Give an address (0x...), anywhere in the object, the name of a structure
("struct dma_fence": objects that have one in them count as well), or the name
of a slab cache. Every aligned word of every page of kernel memory in the dump,
and the registers of the CPUs, are compared with the objects.

It is classed as a `reference` where it is a pointer of a structure that is known,
as `unexplained` in other memory, or as known to be none: the holder is free memory
or the object itself, a stack slot is below the stack pointer, or the word is the
allocator's own. Which of the first two are counted in a reference count is not
decided here (dma-fences does so for fences). It misses pointers that are not
stored as such: in compressed or device memory, with bits in the upper half.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, StackTrace, Type, TypeKind, sizeof
from drgn.helpers.common.type import member_at_offset

from vmcore_tools.analysis import Analysis, Argument, Context, Requires, WrongArgument
from vmcore_tools.asked import all_caches_seen, kernel_address, parse_address
from vmcore_tools.kernel.embedding import members
from vmcore_tools.kernel.modules import modules_without_debug_info
from vmcore_tools.kernel.object_types import Certainty, ObjectTypes, object_types
from vmcore_tools.kernel.page import page_index
from vmcore_tools.kernel.references import (
    Attribution,
    Place,
    Reference,
    ScanCoverage,
    Targets,
    register_references,
    scan,
)
from vmcore_tools.kernel.slab import ObjectState, SlabIndex, slab_index
from vmcore_tools.kernel.task import task_comm
from vmcore_tools.kernel.virtual_map import virtual_map
from vmcore_tools.model import Absent, Kind, Maybe, column

U64 = npt.NDArray[np.uint64]

#: What an address outside slab memory stands for: a word.
_WORD_BYTES = 8
_FRAMES_MAX = 200
_REFERENCE = "reference"
_UNEXPLAINED = "unexplained"
_COUNTED = (_REFERENCE, _UNEXPLAINED)
_PLACES_WITH_FIELDS = frozenset(
    place.value
    for place in (
        *(Place.SLAB_OBJECT, Place.PAGE_STRUCT),
        *(Place.IMAGE, Place.MODULE, Place.PER_CPU),
    )
)


@dataclasses.dataclass(frozen=True)
class Scanned:
    """What was looked for, and where."""

    name: str = column(Kind.TEXT)
    objects: int = column(Kind.COUNT)
    objects_unreferenced: int = column(Kind.COUNT)
    references: int = column(Kind.COUNT)
    non_references: int = column(Kind.COUNT)
    pages_scanned: int = column(Kind.COUNT)
    pages_not_kernel: int = column(Kind.COUNT)
    pages_absent: int = column(Kind.COUNT)


@dataclasses.dataclass(frozen=True)
class HolderKind:
    """References from the same field of the same kind of holder."""

    classed: str = column(Kind.TEXT)
    place: str = column(Kind.TEXT)
    holder: str = column(Kind.UNTRUSTED)
    offset: Maybe[int] = column(Kind.NUMBER)
    field: Maybe[str] = column(Kind.TEXT)
    references: int = column(Kind.COUNT)
    objects: int = column(Kind.COUNT)
    example_container: int = column(Kind.ADDRESS)
    example_target: int = column(Kind.ADDRESS)


@dataclasses.dataclass(frozen=True)
class Holder:
    """A word that points into a target."""

    target: int = column(Kind.ADDRESS)
    target_offset: int = column(Kind.NUMBER)
    classed: str = column(Kind.TEXT)
    place: str = column(Kind.TEXT)
    holder: str = column(Kind.UNTRUSTED)
    comm: Maybe[str] = column(Kind.SENSITIVE)
    pid: Maybe[int] = column(Kind.PID)
    container: int = column(Kind.ADDRESS)
    offset: int = column(Kind.NUMBER)
    field: Maybe[str] = column(Kind.TEXT)


@dataclasses.dataclass(frozen=True)
class Target:
    """An object that was looked for; those that nothing points at come first."""

    address: int = column(Kind.ADDRESS)
    size_bytes: int = column(Kind.BYTES)
    type: str = column(Kind.TEXT)
    cache: Maybe[str] = column(Kind.UNTRUSTED)
    state: str = column(Kind.TEXT)
    references: int = column(Kind.COUNT)
    non_references: int = column(Kind.COUNT)


def analyze(ctx: Context) -> Iterator[Any]:
    text = ctx.options["target"]
    kernel_address(text)
    index = slab_index(ctx.prog, ctx.memory)
    names = _Names(ctx.prog, index, object_types(index))
    targets = _targets(ctx, names, text)
    if targets is None:
        if not all_caches_seen(index):
            ctx.coverage.gap("target", f"no structure and no slab cache {text} was seen")
            return
        where = ""
        if modules_without_debug_info(ctx.prog):
            where = ", unless it is in a module without debug info, which -s names"
        raise WrongArgument(
            f"there is no structure and no slab cache {text!r}{where}; 'run slabs' names the"
            " caches, and an address begins with 0x"
        )
    pages = page_index(ctx.prog, ctx.memory)
    hits, read = scan(ctx.memory, pages, targets, ctx.progress)
    _count_gaps(ctx, index, read)
    virtual = virtual_map(ctx.prog, ctx.memory.page_map.page_size_bytes)
    if virtual.broken is not None:
        ctx.coverage.gap("list of vmalloc areas", f"it breaks off: {virtual.broken}")
    attribution = Attribution.of(ctx.prog, index, pages, virtual)
    found = attribution.references(targets, hits)
    in_registers, registers_unread = register_references(ctx.prog, targets)
    found += in_registers
    if registers_unread:
        ctx.coverage.gap("CPU's registers", "they are not in the dump", count=registers_unread)
    counts = np.zeros((len(targets.start), 2), dtype=np.int64)
    for reference in found:
        counts[reference.target, int(reference.non_reference is not None)] += 1
    slab_objects = [r.container for r in found if r.place is Place.SLAB_OBJECT]
    names.learn(np.concatenate((targets.start, np.array(slab_objects, dtype=np.uint64))))
    rows = [_holder(names, attribution, targets, reference) for reference in found]
    yield Scanned(
        name=text,
        objects=len(targets.start),
        objects_unreferenced=int((counts[:, 0] == 0).sum()),
        references=int(counts[:, 0].sum()),
        non_references=int(counts[:, 1].sum()),
        pages_scanned=read.pages_read,
        pages_not_kernel=read.pages_skipped,
        pages_absent=sum(read.pages_absent.values()),
    )
    yield from _kinds(rows)
    yield from sorted(rows, key=_order)
    yield from _target_rows(names, targets, counts)


def _count_gaps(ctx: Context, index: SlabIndex, read: ScanCoverage) -> None:
    for problem in index.problems:
        ctx.coverage.gap("slab", problem.reason, problem.address)
    for kind, count in read.pages_absent.items():
        ctx.coverage.gap("page", f"it is not in the dump ({kind.name.lower()})", count=count)
    if read.pages_unread:
        ctx.coverage.gap("page", "it is damaged in the dump", count=read.pages_unread)


# --- what is looked for ----------------------------------------------------


def _targets(ctx: Context, names: _Names, text: str) -> Optional[Targets]:
    """The objects that the argument names; None if there is nothing of the name."""
    index = names.index
    address = parse_address(text)
    if address is not None:
        return _target_at(index, address)
    caches = [i for i, cache in enumerate(index.caches) if cache.name == text]
    if caches:
        return _objects_of(index, caches)
    try:
        type_ = ctx.prog.type(text)
    except (LookupError, SyntaxError):
        return None
    suspected, found = names.objects_with(type_)
    if suspected:
        ctx.coverage.gap(
            "object", "that it has such a structure is only suspected", count=suspected
        )
    return found


def _target_at(index: SlabIndex, address: int) -> Targets:
    row = int(index.find(np.array([address], dtype=np.uint64))[0])
    start, size = address, _WORD_BYTES
    if row >= 0:
        cache = index.caches[index.cache[row]]
        first = int(index.address[row]) + cache.red_left_pad_bytes
        start = max(first, first + (address - first) // cache.size_bytes * cache.size_bytes)
        size = cache.object_size_bytes
    return Targets(np.array([start], dtype=np.uint64), np.array([start + size], dtype=np.uint64))


def _objects_of(index: SlabIndex, caches: List[int]) -> Targets:
    """All allocated objects of caches."""
    start = [np.zeros(0, dtype=np.uint64)]
    size = [np.zeros(0, dtype=np.uint64)]
    for batch in index.batches(np.flatnonzero(np.isin(index.cache, caches))):
        objects = batch.objects[batch.allocated]
        start.append(objects)
        size.append(np.full(len(objects), batch.cache.object_size_bytes, dtype=np.uint64))
    return _joined(np.concatenate(start), np.concatenate(size))


def _joined(start: U64, size: U64) -> Targets:
    start, first = np.unique(start, return_index=True)
    return Targets(start, start + size[first])


class _Names:
    """What objects and their fields are called."""

    def __init__(self, prog: Program, index: SlabIndex, types: ObjectTypes) -> None:
        self.prog = prog
        self.index = index
        self.types = types
        self._objects: Dict[int, Tuple[str, Optional[Type]]] = {}
        self._structs: Dict[str, Optional[Type]] = {}
        self._fields: Dict[Tuple[str, int], str] = {}
        self._pointers: Dict[Tuple[str, int], bool] = {}
        self._traces: Dict[int, Optional[StackTrace]] = {}

    def objects_with(self, type_: Type) -> Tuple[int, Targets]:
        """
        Objects that are of a type or have one in them.

        :return: how many more may be such, and the objects
        """
        sure: List[int] = []
        suspected: List[int] = []
        for number, known in enumerate(self.types.types):
            # "struct a or something with a struct b at 8"
            names = re.sub(r"something with a (.*?) at \d+", r"\1", known.name).split(" or ")
            structs = [struct for struct in map(self._struct, names) if struct is not None]
            if any(_has(struct, type_) for struct in structs):
                (suspected if known.certainty <= Certainty.SUSPECTED else sure).append(number)
        caches = [i for i, struct in self.types.cache_types.items() if _has(struct, type_)]
        named = _objects_of(self.index, caches)
        start = self.types.address[np.isin(self.types.number, sure)]
        sizes = np.array([c.object_size_bytes for c in self.index.caches], dtype=np.uint64)
        size = sizes[self.index.cache[self.index.find(start)]] if len(start) else start
        return int(np.isin(self.types.number, suspected).sum()), _joined(
            np.concatenate((start, named.start)), np.concatenate((size, named.end - named.start))
        )

    def _struct(self, name: str) -> Optional[Type]:
        if name not in self._structs:
            try:
                type_ = self.prog.type(name)
                self._structs[name] = type_ if type_.kind == TypeKind.STRUCT else None
            except (LookupError, SyntaxError):
                self._structs[name] = None
        return self._structs[name]

    def learn(self, addresses: U64) -> None:
        """Find out what the slab objects that begin at addresses are, all at once."""
        addresses = np.unique(addresses)
        rows = self.index.find(addresses)
        addresses, rows = addresses[rows >= 0], rows[rows >= 0]
        caches = self.index.cache[rows].tolist()
        for address, cache, number in zip(
            addresses.tolist(), caches, self.types.of(addresses).tolist()
        ):
            self._objects[address] = self._name(cache, number)

    def of_object(self, address: int) -> Tuple[str, Optional[Type]]:
        """
        The type of a slab object that was learned.

        :return: what to call it, and the structure if it is clear
        """
        # A hit in front of the first object, in a red zone, is in none.
        return self._objects.get(address, ("slab memory", None))

    def _name(self, cache: int, number: int) -> Tuple[str, Optional[Type]]:
        struct = self.types.cache_types.get(cache)
        if struct is not None:
            return struct.type_name(), struct
        known = self.types.types[number]
        if known.certainty == Certainty.UNKNOWN:
            return f"object of {self.index.caches[cache].name}", None
        if known.certainty == Certainty.SUSPECTED:
            return f"maybe {known.name}", None
        return known.name, self._struct(known.name)

    def field(self, type_: Optional[Type], offset: int) -> Maybe[str]:
        if type_ is None:
            return Absent("the holder's type is not known")
        key = (type_.type_name(), offset)
        if key not in self._fields:
            self._fields[key] = member_at_offset(type_, offset)
        return self._fields[key]

    def is_pointer(self, type_: Optional[Type], offset: int) -> bool:
        """Whether a structure has a pointer there, that is not in a union."""
        if type_ is None:
            return False
        key = (type_.type_name(), offset)
        if key not in self._pointers:
            self._pointers[key] = any(
                _has_pointer(member.type, offset - member.offset)
                for member in members(type_)
                if member.offset <= offset
            )
        return self._pointers[key]

    def variable(self, name: str, offset: int) -> Optional[Type]:
        """The type of a variable, if it is a structure that reaches beyond an offset."""
        try:
            type_ = self.prog.variable(name).type_.unaliased()
        except LookupError:
            return None
        is_struct = type_.kind == TypeKind.STRUCT
        return type_ if is_struct and offset < (type_.size or 0) else None

    def function(self, task: Object, address: int) -> Optional[str]:
        """The function in whose stack frame an address is."""
        key = task.value_()
        if key not in self._traces:
            try:
                self._traces[key] = self.prog.stack_trace(task)
            except (ValueError, LookupError, FaultError):
                self._traces[key] = None
        trace = self._traces[key]
        name = None
        for number in range(min(len(trace or ()), _FRAMES_MAX)):
            assert trace is not None
            frame = trace[number]
            try:
                sp = frame.sp
            except LookupError:
                break
            # A frame reaches from its stack pointer up to its caller's.
            if sp > address:
                return name
            if not frame.is_inline:
                name = frame.name or f"0x{frame.pc:x}"
        return None


def _has_pointer(type_: Type, offset: int) -> bool:
    """Whether a member is a pointer or an array of such, with one at the offset."""
    if type_.kind == TypeKind.ARRAY:
        element = type_.type.unaliased()
        # Of the last member of a structure there can be any number.
        inside = not type_.length or offset < sizeof(type_)
        return bool(element.kind == TypeKind.POINTER and inside and offset % sizeof(element) == 0)
    return type_.kind == TypeKind.POINTER and offset == 0


def _has(type_: Type, inner: Type) -> bool:
    if type_.type_name() == inner.type_name():
        return True
    return any(
        member.type.kind == TypeKind.STRUCT and member.type.type_name() == inner.type_name()
        for member in members(type_)
    )


# --- what points at it -----------------------------------------------------


def _holder(
    names: _Names, attribution: Attribution, targets: Targets, reference: Reference
) -> Holder:
    start = int(targets.start[reference.target])
    holder, struct = reference.holder, None
    comm: Maybe[str] = Absent("it is no task's")
    pid: Maybe[int] = Absent("it is no task's")
    reason = reference.non_reference
    field: Optional[Maybe[str]] = None
    if reference.place is Place.SLAB_OBJECT:
        holder, struct = names.of_object(reference.container)
        if reason is not None:
            struct = None
            holder = f"object of {reference.holder}"
    elif reference.place is Place.PAGE_STRUCT:
        struct = names.prog.type("struct page")
    elif reference.place in (Place.IMAGE, Place.MODULE):
        struct = names.variable(reference.holder, reference.offset)
    elif reference.place is Place.TASK_STACK:
        task = attribution.stacks[reference.container]
        comm, pid = task_comm(task), task.pid.value_()
        function = None if reason is not None else names.function(task, reference.address)
        holder = "stack" if function is None else f"frame of {function}"
        field = Absent("a stack has no fields")
    elif reference.place is Place.REGISTER:
        task = Object(names.prog, "struct task_struct *", value=reference.container)
        comm, pid = task_comm(task), task.pid.value_()
        holder = reference.holder.partition(" of ")[0]
        field = Absent("a register has no fields")
    if reason is not None:
        classed = f"known non-reference: {reason}"
    else:
        explained = names.is_pointer(struct, reference.offset)
        classed = _REFERENCE if explained else _UNEXPLAINED
    return Holder(
        target=start,
        target_offset=reference.value - start,
        classed=classed,
        place=reference.place.value,
        holder=holder,
        comm=comm,
        pid=pid,
        container=reference.container,
        offset=reference.offset,
        field=names.field(struct, reference.offset) if field is None else field,
    )


def _order(row: Holder) -> Tuple[Any, ...]:
    return (row.classed not in _COUNTED, row.place, row.holder, row.container, row.offset)


def _kinds(rows: List[Holder]) -> Iterator[HolderKind]:
    groups: Dict[Tuple[Any, ...], List[Holder]] = {}
    for row in rows:
        # Where in a stack, in free memory or in pages of unknown use says nothing.
        says = row.place in _PLACES_WITH_FIELDS and row.classed in _COUNTED
        same = row.offset if says else None
        groups.setdefault((row.classed, row.place, row.holder, same), []).append(row)
    kinds = [
        HolderKind(
            classed=classed,
            place=place,
            holder=holder,
            offset=Absent("several") if offset is None else offset,
            field=group[0].field,
            references=len(group),
            objects=len({row.target for row in group}),
            example_container=group[0].container,
            example_target=group[0].target,
        )
        for (classed, place, holder, offset), group in groups.items()
    ]
    yield from sorted(
        kinds,
        key=lambda kind: (
            kind.classed not in _COUNTED,
            -kind.references,
            kind.place,
            kind.holder,
            str(kind.offset),
        ),
    )


def _target_rows(
    names: _Names, targets: Targets, counts: npt.NDArray[np.int64]
) -> Iterator[Target]:
    rows = names.index.find(targets.start)
    states = names.index.object_states(targets.start)
    for i in np.lexsort((targets.start, counts[:, 1], counts[:, 0])).tolist():
        address, row = int(targets.start[i]), int(rows[i])
        name, state = "memory", "unknown"
        cache: Maybe[str] = Absent("it is in no slab")
        if row >= 0:
            number = int(names.index.cache[row])
            name, _ = names.of_object(address)
            cache = names.index.caches[number].name
            state = ObjectState(int(states[i])).name.lower()
        yield Target(
            address=address,
            size_bytes=int(targets.end[i]) - address,
            type=name,
            cache=cache,
            state=state,
            references=int(counts[i, 0]),
            non_references=int(counts[i, 1]),
        )


ANALYSIS = Analysis(
    name="references",
    analyze=analyze,
    tables=(Scanned, HolderKind, Holder, Target),
    rules=(),
    requires=Requires(builtin=("struct kmem_cache", "struct page")),
    argument=Argument(
        "target",
        "ADDRESS|TYPE",
        "an address in the object, with 0x; or a type such as 'struct dma_fence', or a"
        " slab cache, for all such objects",
    ),
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
