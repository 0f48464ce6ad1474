# SPDX-License-Identifier: LGPL-2.1-or-later
"""Types of kmalloc objects, and who points at them, against what the guests recorded."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest

from drgn_scripts import references
from drgn_scripts.kmalloc_objects import ObjectsByContent, ObjectsByStack, ObjectsByType
from drgn_scripts.references import Holder, Scanned
from drgn_scripts.references import Target as TargetRow
from tests.dumps.conftest import ShippedDump
from vmcore_tools import runner
from vmcore_tools.analysis import WrongArgument
from vmcore_tools.kernel import object_types as object_types_module
from vmcore_tools.kernel.object_types import Certainty, is_kmalloc, object_types
from vmcore_tools.kernel.slab import slab_index
from vmcore_tools.model import Absent, AnalysisResult

ROOT = Path(__file__).resolve().parent.parent.parent

FENCE = "struct virtio_gpu_fence"
GEM_OBJECT = "struct virtio_gpu_object_shmem"

#: Who holds a fence, by the guest's word for it.
HOLDERS = {
    "reservation": (GEM_OBJECT, "base.base.base._resv.fence_excl"),
    "sync_file": ("struct sync_file", "fence"),
}


def rows(result: AnalysisResult, row_type: type) -> Tuple[Any, ...]:
    (table,) = [table for table in result.tables if table.row_type is row_type]
    assert table.total == len(table.rows)
    return table.rows


def objects(shipped: ShippedDump) -> AnalysisResult:
    return next(a for a in shipped.report.analyses if a.name == "kmalloc-objects")


def run_references(shipped: ShippedDump, text: str) -> AnalysisResult:
    """The analysis of an argument, made once for a dump."""
    made = shipped.target.prog.cache.setdefault("tests.references", {})
    if text not in made:
        (made[text],) = runner.run(
            shipped.target,
            (references.ANALYSIS,),
            {"references": {"target": text}},
            limit=None,
            progress=lambda items, _what, _total: items,
        ).analyses
    result: AnalysisResult = made[text]
    return result


def of_type(shipped: ShippedDump, name: str) -> List[int]:
    """Addresses of the objects that are surely of a type."""
    types = object_types(slab_index(shipped.target.prog, shipped.target.memory))
    numbers = [
        i
        for i, known in enumerate(types.types)
        if known.name == name and known.certainty >= Certainty.LIKELY
    ]
    return [int(address) for address in types.address[np.isin(types.number, numbers)]]


def recorded_fences(shipped: ShippedDump) -> List[int]:
    leak = shipped.truth["leak"]
    texts = leak["addresses_only_leaked"] + leak["addresses_also_held"]
    texts += [entry["address"] for entry in shipped.truth["held"]]
    return sorted({int(text, 16) for text in texts})


def test_every_fence_of_the_guest_is_named(shipped: ShippedDump) -> None:
    fences = set(of_type(shipped, FENCE))
    assert set(recorded_fences(shipped)) <= fences


def test_what_is_named_a_fence_is_one(shipped: ShippedDump) -> None:
    # Its lock pointer is that of the device's timeline, in every one.
    prog = shipped.target.prog
    fences = of_type(shipped, FENCE)
    offset = prog.type(FENCE).member("f").offset
    lock = offset + prog.type("struct dma_fence").member("lock").offset
    assert len({prog.read_word(address + lock) for address in fences}) == 1


def test_each_held_fence_has_a_gem_object_or_a_sync_file(shipped: ShippedDump) -> None:
    held = Counter(entry["why"] for entry in shipped.truth["held"])
    assert len(of_type(shipped, "struct sync_file")) == held["sync_file"] == 64
    gem_objects = of_type(shipped, GEM_OBJECT)
    assert len(gem_objects) >= held["reservation"] > 2000


def test_all_allocated_objects_are_counted_once(shipped: ShippedDump) -> None:
    index = slab_index(shipped.target.prog, shipped.target.memory)
    found = objects(shipped)
    allocated: Dict[str, int] = Counter()
    for batch in index.batches():
        allocated[batch.cache.name] += int(batch.allocated.sum())
    by_type: Dict[str, int] = Counter()
    by_content: Dict[str, int] = Counter()
    for row in rows(found, ObjectsByType):
        by_type[row.cache] += row.objects
    for row in rows(found, ObjectsByContent):
        by_content[row.cache] += row.objects
    kmalloc = {cache.name for cache in index.caches if is_kmalloc(cache)}
    assert set(by_type) <= kmalloc
    assert len(by_type) == 10 or not any(allocated[name] for name in kmalloc - set(by_type))
    assert by_type == by_content == {name: allocated[name] for name in by_type}


def test_kmalloc_objects_are_sorted_and_show_no_bytes(shipped: ShippedDump) -> None:
    for row_type in (ObjectsByType, ObjectsByStack, ObjectsByContent):
        sizes = [row.size_bytes for row in rows(objects(shipped), row_type)]
        assert sizes == sorted(sizes, reverse=True)
    for row in rows(objects(shipped), ObjectsByType):
        assert row.example_bytes == Absent("only with --show-bytes")


def test_the_leaking_cache_is_full_of_fences(shipped: ShippedDump) -> None:
    cache = shipped.truth["leak"]["cache"]
    (row,) = [
        r for r in rows(objects(shipped), ObjectsByType) if (r.cache, r.type) == (cache, FENCE)
    ]
    assert row.objects == len(of_type(shipped, FENCE)) >= len(recorded_fences(shipped))
    assert row.certainty == "likely"
    assert row.recognised_by.startswith("virtio_fence_ops (struct dma_fence_ops) at ")


def test_the_leaking_stack_comes_first(demo_dump: ShippedDump) -> None:
    leak = demo_dump.truth["leak"]
    by_stack = [r for r in rows(objects(demo_dump), ObjectsByStack) if r.cache == leak["cache"]]
    assert by_stack[0].allocated_by == "virtio_gpu_fence_alloc"
    fences = [r for r in by_stack if r.allocated_by == "virtio_gpu_fence_alloc"]
    assert sum(r.objects for r in fences) == len(of_type(demo_dump, FENCE))
    functions = [f.function for f in demo_dump.report.stacks[by_stack[0].stack].frames]
    assert "virtio_gpu_fence_alloc" in functions


def test_references_name_the_holder_that_the_guest_recorded(shipped: ShippedDump) -> None:
    result = run_references(shipped, "struct dma_fence")
    # Where small objects share a cache with fences, some are only suspected to be one.
    assert {gap.what for gap in result.gaps} <= {"object"}
    holders: Dict[int, List[Holder]] = {}
    for row in rows(result, Holder):
        if not row.classed.startswith("known"):
            holders.setdefault(row.target, []).append(row)
    for entry in shipped.truth["held"]:
        found = holders[int(entry["address"], 16)]
        assert HOLDERS[entry["why"]] in [(row.holder, row.field) for row in found], entry
        # Each of them is a pointer, of a structure whose type is known.
        classed = [row.classed for row in found if (row.holder, row.field) in HOLDERS.values()]
        assert set(classed) == {"reference"}


def test_a_leaked_fence_has_no_reference(shipped: ShippedDump) -> None:
    result = run_references(shipped, "struct dma_fence")
    (scanned,) = rows(result, Scanned)
    assert scanned.pages_absent == 0
    assert scanned.pages_scanned + scanned.pages_not_kernel == (
        shipped.target.memory.page_map.present_pages
    )
    counts = {row.address: row.references for row in rows(result, TargetRow)}
    assert len(counts) == scanned.objects == len(of_type(shipped, FENCE))
    only_leaked = {int(text, 16) for text in shipped.truth["leak"]["addresses_only_leaked"]}
    stray = {address for address in only_leaked if counts[address]}
    # Memory that was not cleared has a pointer to a few of them.
    assert len(stray) <= 0.01 * len(only_leaked)
    holders = {(r.holder, r.field) for r in rows(result, Holder) if r.target in only_leaked}
    assert not holders & set(HOLDERS.values())


def test_any_address_in_an_object_stands_for_it(shipped: ShippedDump) -> None:
    entry = next(e for e in shipped.truth["held"] if e["why"] == "reservation")
    address = int(entry["address"], 16)
    result = run_references(shipped, hex(address + 17))
    (target,) = rows(result, TargetRow)
    assert (target.address, target.type, target.state) == (address, FENCE, "allocated")
    (row,) = [row for row in rows(result, Holder) if row.classed == "reference"]
    assert (row.holder, row.field) == HOLDERS["reservation"]
    assert row.container in of_type(shipped, GEM_OBJECT)


def test_task_stacks_and_registers_are_looked_at(shipped: ShippedDump) -> None:
    result = run_references(shipped, "task_struct")
    counted = [row for row in rows(result, Holder) if not row.classed.startswith("known")]
    places = Counter(row.place for row in counted)
    assert {"slab object", "task stack", "kernel data", "per-CPU variable"} <= set(places)
    frames = {row.holder for row in rows(result, Holder) if row.place == "task stack"}
    assert "frame of __schedule" in frames
    fields = {row.field for row in rows(result, Holder) if row.holder == "struct pid"}
    assert "tasks[0].first" in fields
    # What is on a stack may have been left there.
    assert {r.classed for r in counted if r.place == "task stack"} == {"unexplained"}


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("struct no_such_thing", "there is no structure and no slab cache 'struct no_such_thing'"),
        ("67", "there is no structure and no slab cache '67'"),
        # Numbers that are all over memory: integers, and error pointers.
        ("0x1234", "0x1234 is no address of kernel memory"),
        ("fffffffffffffff2", "fffffffffffffff2 is no address of kernel memory"),
    ],
)
def test_what_is_not_there_is_a_wrong_argument(
    shipped: ShippedDump, target: str, error: str
) -> None:
    with pytest.raises(WrongArgument) as caught:
        run_references(shipped, target)
    assert str(caught.value).startswith(error)


def documented_recogniser() -> Any:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    match = re.search(r"<!-- recogniser -->\n```python\n(.*?)^```$", text, re.M | re.S)
    assert match is not None
    names: Dict[str, Any] = {}
    exec(match[1], names)
    return names["freelist_orders"]


class EntryPoint:
    name = value = "my_package:freelist_orders"

    @staticmethod
    def load() -> Any:
        return documented_recogniser()


def test_the_documented_recogniser_names_objects(
    shipped: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_types_module, "_entry_points", lambda: [EntryPoint()])
    prog, index = shipped.target.prog, slab_index(shipped.target.prog, shipped.target.memory)
    usual = prog.cache.pop(object_types_module._CACHE_KEY, None)
    try:
        types = object_types(index)
    finally:
        prog.cache[object_types_module._CACHE_KEY] = usual
    assert types.failures == ()
    (number,) = [i for i, known in enumerate(types.types) if known.name == "freelist order"]
    orders = {cache.cache.random_seq.value_() for cache in index.caches} - {0}
    named = set(types.address[types.number == number].tolist())
    assert named == orders & set(types.address.tolist())
    assert len(named) > 20
