# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What is in the kmalloc caches: objects by type, by allocating stack, by content.

The objects of kmalloc-128 and its like are anonymous. A type is told by
pointers to operations tables in the object (a pointer to virtio_fence_ops at 8
in an object of 65 to 96 bytes is a struct virtio_gpu_fence), by typed pointers
to it from objects of known types, and by recognisers, which other packages can
add (entry point group vmcore_tools.object_types). `known` is what a recogniser
checked, `likely` the only structure of the debug info that fits, `suspected`
one of several or only a part. Objects without a type are named after the
function that allocated them, where SLUB tracks are on (slub_debug=U).

It looks at allocated objects only, of the ten kmalloc caches with the most
memory if --caches does not name others. It shows no bytes of an object unless
--show-bytes is given: they can be anybody's data.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import numpy.typing as npt
from drgn import Program

from vmcore_tools.analysis import Analysis, Context, Option, Requires
from vmcore_tools.asked import check_caches, comma_separated
from vmcore_tools.frames import stack_of_addresses
from vmcore_tools.kernel.object_types import Certainty, ObjectTypes, is_kmalloc, object_types
from vmcore_tools.kernel.recorded_stacks import function_behind_allocator
from vmcore_tools.kernel.slab import SlabCache, SlabIndex, slab_index
from vmcore_tools.kernel.slub_tracks import has_tracks, object_tracks
from vmcore_tools.model import Absent, Kind, Maybe, column

#: Caches that are looked at if none is named.
_CACHES_DEFAULT = 10
#: Bytes of an example that --show-bytes shows.
_BYTES_SHOWN = 32
#: A string is at least this long.
_TEXT_BYTES_MIN = 3
#: Stacks that are shown whole; the rows of the others only name the function.
_STACKS_SHOWN = 5

U64 = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class ObjectsByType:
    """Objects of one type in one cache; what takes most memory comes first."""

    cache: str = column(Kind.UNTRUSTED)
    type: str = column(Kind.TEXT)
    certainty: str = column(Kind.TEXT)
    recognised_by: str = column(Kind.TEXT)
    objects: int = column(Kind.COUNT)
    size_bytes: int = column(Kind.BYTES)
    example: int = column(Kind.ADDRESS)
    example_bytes: Maybe[str] = column(Kind.SENSITIVE)


@dataclasses.dataclass(frozen=True)
class ObjectsByStack:
    """Objects that were allocated with the same stack, where SLUB tracks are on."""

    cache: str = column(Kind.UNTRUSTED)
    allocated_by: str = column(Kind.TEXT)
    objects: int = column(Kind.COUNT)
    size_bytes: int = column(Kind.BYTES)
    example: int = column(Kind.ADDRESS)
    stack: Maybe[str] = column(Kind.STACK)


@dataclasses.dataclass(frozen=True)
class ObjectsByContent:
    """Objects of one cache by what is in them."""

    cache: str = column(Kind.UNTRUSTED)
    content: str = column(Kind.TEXT)
    objects: int = column(Kind.COUNT)
    objects_without_type: int = column(Kind.COUNT)
    size_bytes: int = column(Kind.BYTES)
    example: int = column(Kind.ADDRESS)
    example_bytes: Maybe[str] = column(Kind.SENSITIVE)


class Content(enum.IntEnum):
    """What the bytes of an object look like."""

    OTHER = 0
    ZERO = 1  #: all bytes are 0
    POISON = 2  #: nothing was written since the allocation
    TEXT = 3  #: printable up to the first 0
    POINTERS = 4  #: at least half of the words that are not 0 are kernel addresses


#: POISON_INUSE, POISON_FREE and POISON_END of include/linux/poison.h.
_POISON = (0x5A, 0x6B, 0xA5)
#: Canonical addresses of the kernel begin with these bits, small negative
#: numbers and error values aside.
_KERNEL_BITS = np.uint64(0xFF << 56)
_NEGATIVE = np.uint64((1 << 64) - (1 << 20))


def classify(data: npt.NDArray[np.uint8]) -> Ints:
    """
    What objects look like.

    :param data: uint8 array of shape (n, size of an object)
    :return: int64 array of shape (n,) of :class:`Content`
    """
    size = data.shape[1]
    words = np.ascontiguousarray(data[:, : size // 8 * 8]).view(np.uint64)
    kernel = (words & _KERNEL_BITS == _KERNEL_BITS) & (words < _NEGATIVE)
    some = (words != 0).sum(axis=1)
    pointers = kernel.sum(axis=1)

    printable = ((data >= 0x20) & (data < 0x7F)) | (data == 0x09) | (data == 0x0A)
    length = np.where((data == 0).any(axis=1), np.argmax(data == 0, axis=1), size)
    odd = np.where(printable.all(axis=1), size, np.argmax(~printable, axis=1))

    found = np.full(len(data), Content.OTHER, dtype=np.int64)
    found[(pointers > 0) & (2 * pointers >= some)] = Content.POINTERS
    found[(length >= min(_TEXT_BYTES_MIN, size)) & (odd >= length)] = Content.TEXT
    found[np.isin(data, _POISON).all(axis=1)] = Content.POISON
    found[~data.any(axis=1)] = Content.ZERO
    return found


@dataclasses.dataclass(frozen=True)
class _Objects:
    """
    The allocated objects of one cache.

    *number* is the type, *allocator* the position of the allocating stack or
    -1, *content* a Content, and *first* the first bytes, which are kept only
    if they are to be shown.
    """

    cache: SlabCache
    address: U64
    number: Ints
    allocator: Ints
    content: Ints
    first: Optional[npt.NDArray[np.uint8]]


def analyze(ctx: Context) -> Iterator[Any]:
    index = slab_index(ctx.prog, ctx.memory)
    types = object_types(index)
    for name, reason in types.failures:
        ctx.coverage.gap("object types", f"the recogniser {name} failed: {reason}")
    by_type: List[ObjectsByType] = []
    by_stack: List[Tuple[ObjectsByStack, Tuple[int, ...]]] = []
    by_content: List[ObjectsByContent] = []
    numbers = _wanted_caches(ctx, index)
    for number in ctx.progress(numbers, "kmalloc caches", len(numbers)):
        objects, stacks = _read(ctx, index, types, number)
        allocators = [
            function_behind_allocator(ctx.prog, stack) or "an unknown function" for stack in stacks
        ]
        by_stack += _by_stack(objects, allocators, stacks)
        by_type += _by_type(types, index, number, objects, allocators)
        by_content += _by_content(types, number, objects)
    for problem in index.problems:
        ctx.coverage.gap("slab", problem.reason, problem.address)
    yield from sorted(by_type, key=lambda row: (-row.size_bytes, row.cache, row.type, row.example))
    yield from _with_stacks(ctx.prog, by_stack)
    yield from sorted(by_content, key=lambda row: (-row.size_bytes, row.cache, row.content))


def _wanted_caches(ctx: Context, index: SlabIndex) -> List[int]:
    """Positions of the caches, those with the most memory first."""
    sizes = np.array([cache.size_bytes for cache in index.caches], dtype=np.int64)
    used = np.zeros(len(sizes), dtype=np.int64)
    np.add.at(used, index.cache, index.objects * sizes[index.cache])
    largest = [int(i) for i in np.argsort(-used, kind="stable") if used[i]]
    names = ctx.options["caches"]
    if names is None:
        return [i for i in largest if is_kmalloc(index.caches[i])][:_CACHES_DEFAULT]
    check_caches(ctx, index, names)
    return [i for i in largest if index.caches[i].name in names]


def _read(
    ctx: Context, index: SlabIndex, types: ObjectTypes, number: int
) -> Tuple[_Objects, Tuple[Tuple[int, ...], ...]]:
    """The objects of a cache, and the stacks that allocated them."""
    address: List[U64] = [np.zeros(0, dtype=np.uint64)]
    content: List[Ints] = [np.zeros(0, dtype=np.int64)]
    cache = index.caches[number]
    shown = min(_BYTES_SHOWN, cache.object_size_bytes)
    first = [np.zeros((0, shown), dtype=np.uint8)]
    for batch in index.batches(np.flatnonzero(index.cache == number)):
        data = batch.slots()[:, :, : cache.object_size_bytes][batch.allocated]
        address.append(batch.objects[batch.allocated])
        content.append(classify(data))
        if ctx.options["show_bytes"]:
            first.append(data[:, :shown].copy())
    unsorted = np.concatenate(address)
    order = np.argsort(unsorted)
    addresses = unsorted[order]
    allocator, stacks = _tracks(ctx, index, number, addresses)
    objects = _Objects(
        cache,
        addresses,
        types.of(addresses),
        allocator,
        np.concatenate(content)[order],
        np.concatenate(first)[order] if ctx.options["show_bytes"] else None,
    )
    return objects, stacks


def _by_type(
    types: ObjectTypes,
    index: SlabIndex,
    cache_number: int,
    objects: _Objects,
    allocators: Sequence[str],
) -> Iterator[ObjectsByType]:
    named = types.cache_types.get(cache_number)
    # Objects without a type are told apart by who allocated them.
    allocator = np.where(objects.number == 0, objects.allocator, -1)
    keys, inverse, counts = np.unique(
        np.stack((objects.number, allocator)), axis=1, return_inverse=True, return_counts=True
    )
    groups: Dict[Tuple[str, Certainty], List[Tuple[int, int, str]]] = {}
    for i, (number, who) in enumerate(keys.T.tolist()):
        name, certainty, how = dataclasses.astuple(types.types[number])
        if number == 0 and named is not None:
            name, certainty, how = named.type_name(), Certainty.LIKELY, "the cache's name"
        elif who >= 0:
            name, how = f"allocated by {allocators[who]}", "SLUB track"
        example = int(np.flatnonzero(inverse.reshape(-1) == i)[0])
        groups.setdefault((name, certainty), []).append((int(counts[i]), -example, how))
    for (name, certainty), parts in groups.items():
        count = sum(count for count, _, _ in parts)
        _, example, how = max(parts)
        yield ObjectsByType(
            cache=objects.cache.name,
            type=name,
            certainty=certainty.name.lower(),
            recognised_by=how,
            objects=count,
            size_bytes=count * objects.cache.size_bytes,
            example=int(objects.address[-example]),
            example_bytes=_bytes(objects, -example),
        )


def _by_content(
    types: ObjectTypes, cache_number: int, objects: _Objects
) -> Iterator[ObjectsByContent]:
    typed = (objects.number != 0) | (cache_number in types.cache_types)
    for content in Content:
        members = np.flatnonzero(objects.content == content)
        if len(members):
            yield ObjectsByContent(
                cache=objects.cache.name,
                content=content.name.lower(),
                objects=len(members),
                objects_without_type=int((~typed[members]).sum()),
                size_bytes=len(members) * objects.cache.size_bytes,
                example=int(objects.address[members[0]]),
                example_bytes=_bytes(objects, int(members[0])),
            )


def _bytes(objects: _Objects, which: int) -> Maybe[str]:
    if objects.first is None:
        return Absent("only with --show-bytes")
    data: bytes = objects.first[which].tobytes()
    return data.hex(" ", 8)


def _by_stack(
    objects: _Objects, allocators: Sequence[str], stacks: Sequence[Tuple[int, ...]]
) -> Iterator[Tuple[ObjectsByStack, Tuple[int, ...]]]:
    """Rows and the return addresses of their stacks."""
    found, first, counts = np.unique(objects.allocator, return_index=True, return_counts=True)
    for which, example, count in zip(found.tolist(), first.tolist(), counts.tolist()):
        if which >= 0:
            row = ObjectsByStack(
                cache=objects.cache.name,
                allocated_by=allocators[which],
                objects=count,
                size_bytes=count * objects.cache.size_bytes,
                example=int(objects.address[example]),
                stack=Absent(f"only for the first {_STACKS_SHOWN} rows"),
            )
            yield row, stacks[which]


def _with_stacks(
    prog: Program, rows: List[Tuple[ObjectsByStack, Tuple[int, ...]]]
) -> Iterator[Any]:
    rows.sort(key=lambda pair: (-pair[0].size_bytes, pair[0].cache, pair[0].example))
    for row, addresses in rows[:_STACKS_SHOWN]:
        stack = stack_of_addresses(prog, addresses)
        yield stack
        yield dataclasses.replace(row, stack=stack.id)
    for row, _ in rows[_STACKS_SHOWN:]:
        yield row


def _tracks(
    ctx: Context, index: SlabIndex, cache_number: int, addresses: U64
) -> Tuple[Ints, Tuple[Tuple[int, ...], ...]]:
    """Positions of the objects' allocating stacks, -1 where unknown, and the stacks."""
    unknown = np.full(len(addresses), -1, dtype=np.int64)
    if not has_tracks(index.caches[cache_number]):
        return unknown, ()
    try:
        tracks = object_tracks(index, cache_number, addresses)
    except LookupError as error:
        ctx.coverage.gap("SLUB tracks", f"they cannot be read: {error}")
        return unknown, ()
    missing = int((~tracks.read).sum())
    if missing:
        ctx.coverage.gap("SLUB track", "it is empty or not in the dump", count=missing)
    return tracks.stack, tracks.stacks


ANALYSIS = Analysis(
    name="kmalloc-objects",
    analyze=analyze,
    tables=(ObjectsByType, ObjectsByStack, ObjectsByContent),
    rules=(),
    options=(
        Option(
            "caches",
            "look at these caches, of any kind (default: the ten kmalloc caches with most memory)",
            comma_separated,
            metavar="A,B",
        ),
        Option(
            "show-bytes",
            f"show the first {_BYTES_SHOWN} bytes of an example of each row; they can be"
            " anybody's data",
            bool,
            default=False,
        ),
    ),
    requires=Requires(builtin=("struct kmem_cache", "struct page")),
    on_demand=True,
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
