# SPDX-License-Identifier: LGPL-2.1-or-later
"""Types of kmalloc objects: what can be told without a kernel."""

from __future__ import annotations

from typing import Any, Iterator, List, Tuple

import numpy as np
import numpy.typing as npt
import pytest
from drgn import Architecture, Platform, Program, Type, TypeMember, TypeParameter

from vmcore_tools.kernel import object_types
from vmcore_tools.kernel.embedding import (
    Member,
    Structure,
    _bases,
    has_at,
    has_flexible_array,
    members,
    pointed_struct,
)
from vmcore_tools.kernel.object_types import (
    Certainty,
    ObjectType,
    ObjectTypes,
    _narrowed,
    _object_words,
    _pointed_type,
    _recognisers,
    _used_bytes,
    is_kmalloc,
    smallest_object_bytes,
)
from vmcore_tools.kernel.slab import SlabBatch, SlabCache

OPS = 0xFFFFFFFF82000000
FIRST = 0xFFFF888000100000


def cache(name: str, size: int = 96, object_size: int = 0, pad: int = 0) -> SlabCache:
    no_object: Any = None
    return SlabCache(
        cache=no_object,
        name=name,
        size_bytes=size,
        object_size_bytes=object_size or size,
        red_left_pad_bytes=pad,
        inuse_bytes=size,
        freelist_offset=0,
        random=None,
        orders={},
    )


def batch(of: SlabCache, objects: List[List[List[int]]], allocated: List[List[bool]]) -> SlabBatch:
    """Slabs of a cache: for each object its words, behind the pad."""
    slabs = []
    for slab in objects:
        words = [0] * (of.red_left_pad_bytes // 8)
        for each in slab:
            words += each + [0] * (of.size_bytes // 8 - len(each))
        slabs.append(words + [OPS] * 3)  # the rest behind the last object
    data = np.array(slabs, dtype=np.uint64)
    first = [FIRST + slab * 4096 + of.red_left_pad_bytes for slab in range(len(slabs))]
    addresses = [[start + i * of.size_bytes for i in range(len(objects[0]))] for start in first]
    return SlabBatch(
        of,
        np.arange(len(slabs)),
        data.view(np.uint8),
        np.array(addresses, dtype=np.uint64),
        np.array(allocated),
        np.ones(len(slabs), dtype=bool),
    )


# --- caches --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "yes"),
    [
        ("kmalloc-96", True),
        ("kmalloc-4k", True),
        ("kmalloc-8M", True),
        ("kmalloc-rcl-192", True),
        ("kmalloc-cg-1k", True),
        ("dma-kmalloc-512", True),
        ("kmalloc-rnd-07-64", True),
        ("dentry", False),
        ("kmalloc", False),
        ("kmalloc-", False),
        ("my-kmalloc-96", False),
    ],
)
def test_kmalloc_caches_are_known_by_name(name: str, yes: bool) -> None:
    assert is_kmalloc(cache(name)) == yes


def test_an_object_is_larger_than_the_next_smaller_cache_of_its_kind() -> None:
    sizes = [("kmalloc-64", 64), ("kmalloc-96", 96), ("kmalloc-128", 128), ("dentry", 120)]
    caches = [cache(name, size) for name, size in [*sizes, ("kmalloc-rcl-128", 128)]]
    assert [smallest_object_bytes(caches, i) for i in range(3)] == [1, 65, 97]
    assert smallest_object_bytes(caches, 4) == 1


def test_debugging_data_around_an_object_is_no_part_of_it() -> None:
    caches = [cache("kmalloc-64", 192, 64, 64), cache("kmalloc-96", 400, 96, 64)]
    assert smallest_object_bytes(caches, 1) == 65


# --- words of objects ------------------------------------------------------------


def test_tables_are_looked_for_in_allocated_objects_only() -> None:
    of = cache("kmalloc-32", 48, 32, 16)
    slabs = batch(
        of,
        [
            [[1, OPS], [OPS + 64], [0, 0, 0, 0, OPS]],  # the last one is behind the object
            [[OPS], [OPS + 8], [0, 0, 0, OPS + 64]],
        ],
        [[True, True, True], [False, True, True]],
    )
    slab, which, offset, value = _object_words(slabs, np.array([OPS, OPS + 64], dtype=np.uint64))
    assert list(zip(slab.tolist(), which.tolist(), offset.tolist(), value.tolist())) == [
        (0, 0, 8, OPS),
        (0, 1, 0, OPS + 64),
        (1, 2, 24, OPS + 64),
    ]


def test_no_tables_no_words() -> None:
    slabs = batch(cache("kmalloc-32", 32), [[[OPS]]], [[True]])
    assert [len(array) for array in _object_words(slabs, np.zeros(0, dtype=np.uint64))] == [0] * 4


def test_used_bytes_end_with_the_last_word_that_is_not_0() -> None:
    of = cache("kmalloc-32", 48, 32, 16)
    slabs = batch(of, [[[1], [0, 0, 5], [0], [0, 0, 0, 0, 9]]], [[True] * 4])
    assert _used_bytes(slabs).tolist() == [[8, 24, 0, 0]]


# --- types -----------------------------------------------------------------------


@pytest.fixture
def prog() -> Program:
    return Program(Platform(Architecture.X86_64))


class Types:
    """``struct fence`` and what is around it."""

    def __init__(self, prog: Program) -> None:
        self.long = prog.int_type("unsigned long", 8, False)
        self.void = prog.void_type()
        self.ops = prog.struct_type(
            "fence_ops",
            16,
            (
                TypeMember(self.long, "owner", 0),
                TypeMember(lambda: prog.pointer_type(self.release(prog)), "release", 64),
            ),
        )
        self.fence = prog.struct_type(
            "fence",
            24,
            (
                TypeMember(self.long, "refcount", 0),
                TypeMember(prog.pointer_type(self.ops), "ops", 64),
                TypeMember(self.long, "flags", 128),
            ),
        )
        self.driver_fence = prog.struct_type(
            "driver_fence",
            40,
            (TypeMember(self.fence, "base", 0), TypeMember(self.long, "id", 192)),
        )
        self.queue = prog.struct_type(
            "queue",
            32,
            (TypeMember(self.long, "length", 0), TypeMember(self.fence, "last", 64)),
        )
        self.message = prog.struct_type(
            "message",
            8,
            (
                TypeMember(self.long, "length", 0),
                TypeMember(prog.array_type(self.long), "words", 64),
            ),
        )

    def release(self, prog: Program) -> Type:
        return prog.function_type(
            self.void,
            (
                TypeParameter(self.long, "number"),
                TypeParameter(prog.pointer_type(self.fence), "fence"),
            ),
        )


@pytest.fixture
def types(prog: Program) -> Types:
    return Types(prog)


def test_a_table_tells_the_structure_that_points_to_it(types: Types) -> None:
    assert [(base.tag, offset) for base, offset in _bases(types.ops)] == [("fence", 8)]


def test_members_are_those_of_inner_structures_too(types: Types) -> None:
    found = [(member.offset, member.type.type_name()) for member in members(types.queue)]
    assert found == [
        (0, "unsigned long"),
        (8, "struct fence"),
        (8, "unsigned long"),
        (16, "struct fence_ops *"),
        (24, "unsigned long"),
    ]


def test_a_structure_in_a_structure(types: Types) -> None:
    assert has_at(types.driver_fence, types.fence, 0)
    assert has_at(types.queue, types.fence, 8)
    assert not has_at(types.queue, types.fence, 0)
    assert has_at(types.fence, types.fence, 0)
    assert not has_at(types.fence, types.fence, 8)


def test_a_flexible_array_lets_an_object_be_larger(types: Types) -> None:
    assert has_flexible_array(types.message)
    assert not has_flexible_array(types.queue)


def test_what_a_pointer_points_to(prog: Program, types: Types) -> None:
    pointer = prog.pointer_type(prog.typedef_type("fence_t", types.fence))
    found = pointed_struct(pointer)
    assert found is not None and found.tag == "fence"
    assert pointed_struct(types.fence) is None
    assert pointed_struct(prog.pointer_type(types.void)) is None
    assert pointed_struct(prog.pointer_type(prog.struct_type("incomplete"))) is None


def test_a_pointer_to_pointers_is_an_array(prog: Program, types: Types) -> None:
    fences = prog.pointer_type(prog.pointer_type(types.fence))
    found = _pointed_type(types.queue, Member(0, fences))
    assert found is not None
    assert (found.name, found.pointer) == ("array of struct fence *", "struct fence **")
    assert found.grows and found.is_array and found.struct is None and found.size == 8


def test_a_pointer_to_no_structure_tells_whose_data_it_is(prog: Program, types: Types) -> None:
    link = prog.struct_type(
        "list_head",
        16,
        (
            TypeMember(lambda: prog.pointer_type(link), "next", 0),
            TypeMember(lambda: prog.pointer_type(link), "prev", 64),
        ),
    )
    holder = prog.struct_type(
        "holder",
        48,
        (
            TypeMember(prog.pointer_type(types.void), "private", 0),
            TypeMember(prog.pointer_type(prog.int_type("char", 1, True)), "name", 64),
            TypeMember(prog.pointer_type(link), "first", 128),
            TypeMember(prog.pointer_type(types.release(prog)), "done", 192),
            TypeMember(link, "items", 256),
        ),
    )
    found = [_pointed_type(holder, member) for member in members(holder)]
    assert [(pointed.name, pointed.is_data) for pointed in found if pointed] == [
        ("data of struct holder.private", True),
        ("data of struct holder.name", True),
        ("linked from struct holder.first", True),
        ("linked from struct holder.items", True),
        ("linked from struct holder.items", True),
    ]
    assert _pointed_type(holder, Member(0, types.fence)) is None


def structures(*found: Type) -> List[Structure]:
    return [Structure(type_, 0, True) for type_ in found]


@pytest.mark.parametrize(
    ("used", "tags"),
    [
        (0, ["fence"]),
        (24, ["fence"]),
        (32, ["driver_fence"]),
        (40, ["driver_fence"]),
        # Something is behind both: it says nothing.
        (48, ["fence", "driver_fence"]),
    ],
)
def test_what_an_object_uses_tells_the_structure(types: Types, used: int, tags: List[str]) -> None:
    found = _narrowed(structures(types.fence, types.driver_fence), used)
    assert [structure.type.tag for structure in found] == tags


def test_structures_that_do_not_begin_alike_stay_apart(prog: Program, types: Types) -> None:
    other = prog.struct_type("other", 32, (TypeMember(types.long, "x", 0),))
    found = _narrowed(structures(types.fence, other), 8)
    assert [structure.type.tag for structure in found] == ["fence", "other"]


# --- looking types up, and recognisers ---------------------------------------------


def test_types_are_looked_up_by_where_objects_begin() -> None:
    unknown = ObjectType("unknown", Certainty.UNKNOWN, "")
    fence = ObjectType("struct fence", Certainty.LIKELY, "fence_ops at 8")
    found = ObjectTypes(
        (unknown, fence),
        np.array([FIRST, FIRST + 96], dtype=np.uint64),
        np.array([1, 0]),
        {},
        (),
    )
    asked = np.array([FIRST + 96, FIRST, FIRST + 8, 0, FIRST + 4096], dtype=np.uint64)
    assert found.of(asked).tolist() == [0, 1, 0, 0, 0]


def test_without_objects_no_type_is_known() -> None:
    nothing = np.zeros(0, dtype=np.uint64)
    found = ObjectTypes((), nothing, nothing.astype(np.int64), {}, ())
    assert found.of(np.array([FIRST], dtype=np.uint64)).tolist() == [0]


class FakeEntryPoint:
    def __init__(self, value: str, loaded: Any) -> None:
        self.name = value
        self.value = value
        self._loaded = loaded

    def load(self) -> Any:
        if isinstance(self._loaded, Exception):
            raise self._loaded
        return self._loaded


def widgets(index: Any) -> Iterator[Tuple[str, npt.NDArray[np.uint64]]]:
    # FIRST + 8 is in an object, but not where it begins: it names nothing.
    yield "struct widget", np.array([FIRST + 96, FIRST + 8], dtype=np.uint64)


def broken(index: Any) -> Iterator[Tuple[str, npt.NDArray[np.uint64]]]:
    yield "struct early", np.array([FIRST], dtype=np.uint64)
    raise ZeroDivisionError("no widgets")


def test_recognisers_of_other_packages(monkeypatch: pytest.MonkeyPatch, prog: Program) -> None:
    points = [
        FakeEntryPoint("c:missing", ImportError("no module c")),
        FakeEntryPoint("a:widgets", widgets),
        FakeEntryPoint("b:broken", broken),
    ]
    monkeypatch.setattr(object_types, "_entry_points", lambda: points)
    assert [name for name, _ in _recognisers()] == [
        "sync_file", "virtio_gpu_fence", "a:widgets", "b:broken", "c:missing",
    ]  # fmt: skip
    monkeypatch.setattr(object_types, "_sync_files", lambda index: iter(()))
    monkeypatch.setattr(object_types, "_detached_fences", lambda index: iter(()))

    work: Any = object_types._Typing.__new__(object_types._Typing)
    work._prog = prog
    work._index = type("Index", (), {"caches": [cache("kmalloc-96")]})
    work._types = {ObjectType("unknown", Certainty.UNKNOWN, ""): 0}
    work._structs = {}
    work._address = np.array([FIRST, FIRST + 96, FIRST + 192], dtype=np.uint64)
    work._cache = np.zeros(3, dtype=np.int64)
    work._number = np.zeros(3, dtype=np.int64)
    failures = work._run_recognisers()
    named = [list(work._types)[number] for number in work._number]
    assert [(known.name, known.certainty) for known in named] == [
        ("struct early", Certainty.KNOWN),
        ("struct widget", Certainty.KNOWN),
        ("unknown", Certainty.UNKNOWN),
    ]
    assert named[1].how == "recogniser a:widgets"
    assert failures == (
        ("b:broken", "ZeroDivisionError: no widgets"),
        ("c:missing", "ImportError: no module c"),
    )
