# SPDX-License-Identifier: LGPL-2.1-or-later
"""GEM objects on real dumps: thousands of buffers, with a fence in each, and nothing wrong."""

from __future__ import annotations

import dataclasses
from typing import Any, Iterator, List, Sequence, Tuple

import numpy as np
import pytest
from drgn import Object, Program
from drgn.helpers.linux.idr import idr_for_each

from drgn_scripts.gem_objects import ANALYSIS
from tests.dumps.conftest import ShippedDump
from vmcore_tools.kernel.drm import (
    for_each_drm_device,
    for_each_drm_file,
    for_each_framebuffer,
    minor_name,
)
from vmcore_tools.kernel.drm_clients import drm_clients
from vmcore_tools.kernel.drm_gem import gem_handles
from vmcore_tools.kernel.files import FileReferences
from vmcore_tools.kernel.gem_holders import gem_holders
from vmcore_tools.kernel.id_slots import idr_slots
from vmcore_tools.kernel.slab import slab_index
from vmcore_tools.model import Confidence, Report, Severity, Status
from vmcore_tools.report.format import message_text
from vmcore_tools.runner import run


def rows(shipped: ShippedDump, name: str) -> List[Any]:
    (result,) = [a for a in shipped.report.analyses if a.name == "gem-objects"]
    (table,) = [table for table in result.tables if table.row_type.__name__ == name]
    return list(table.rows)


def test_nothing_is_said_of_gem_objects(shipped: ShippedDump) -> None:
    (result,) = [a for a in shipped.report.analyses if a.name == "gem-objects"]
    assert result.status in (Status.OK, Status.PARTIAL)
    assert not [f for f in shipped.report.findings if f.rule.id.startswith("VT41")]


def test_the_buffers_of_the_guest(shipped: ShippedDump) -> None:
    """Each buffer whose fence the guest recorded is there, with its handle and its process."""
    held = [held for held in shipped.truth["held"] if held["why"] == "reservation"]
    users = {row.users for row in rows(shipped, "GemObject")}
    assert len(held) > 2000
    missing = [h for h in held if f"Xorg ({h['pid']}) handle {h['number']}" not in users]
    assert missing == []
    (pid,) = {fence["pid"] for fence in held}
    (memory,) = [row for row in rows(shipped, "GemMemory") if row.pid == pid]
    assert memory.objects >= len(held)
    assert (
        memory.size_bytes
        == memory.pages_bytes
        == sum(row.size_bytes for row in rows(shipped, "GemObject") if f"({pid})" in row.users)
    )


def test_every_reference_has_its_holder(shipped: ShippedDump) -> None:
    index = slab_index(shipped.target.prog, shipped.target.memory)
    found = gem_holders(index)
    assert found.gaps == ()
    verdicts = {row.address: row.verdict for row in rows(shipped, "GemObject")}
    assert sorted(verdicts) == found.gems.address[found.gems.refcount != 0].tolist()
    assert set(verdicts.values()) <= {"explained", "in use"}
    # The kernel's own count of handles is that of the handles that were found.
    gems, counts = np.unique(found.handles.gem, return_counts=True)
    at = np.searchsorted(found.gems.address, gems)
    assert (found.gems.address[at] == gems).all()
    assert found.gems.handle_count[at].tolist() == counts.tolist()
    assert int(found.gems.handle_count.sum()) == len(found.handles.gem)


def test_handles_as_drgn_has_them(shipped: ShippedDump) -> None:
    prog = shipped.target.prog
    walked = 0
    for device in for_each_drm_device(prog):
        for file in for_each_drm_file(device):
            expected = [(number, entry.value_()) for number, entry in _entries(file)]
            found = idr_slots(file.object_idr)
            assert list(zip(found.id.tolist(), found.entry.tolist())) == expected
            assert found.unread == ()
            assert [prog.read_word(word) for word in found.word.tolist()] == found.entry.tolist()
            assert len(gem_handles([file]).gem) == len(expected)
            walked += len(expected)
    assert walked > 2000


def _entries(file: Object) -> List[Tuple[int, Object]]:
    idr = file.object_idr
    return [(number, entry) for number, entry in idr_for_each(idr.address_of_()) if entry]


def test_clients_and_their_processes(shipped: ShippedDump) -> None:
    index = slab_index(shipped.target.prog, shipped.target.memory)
    files = [f for d in for_each_drm_device(shipped.target.prog) for f in for_each_drm_file(d)]
    found = drm_clients(index, files)
    assert (found.gaps, found.without_holder) == ((), [])
    pids = {held["pid"] for held in shipped.truth["held"]}
    assert pids <= {client.opener_pid for client in found.clients}
    for client in found.clients:
        assert client.minor == minor_name(client.file.minor)
        assert client.minor.startswith(("card", "renderD"))
        assert client.process is not None and client.opener is not None
        assert client.process.tgid.value_() == client.opener_pid
        assert client.opener.comm.string_() == b"Xorg"


def test_a_client_above_the_threshold_hoards(shipped: ShippedDump) -> None:
    """The threshold is exact, and the default leaves thousands of buffers alone."""
    (most,) = rows(shipped, "GemMemory")[:1]
    for objects, expected in ((most.objects, 1), (most.objects + 1, 0)):
        report = run(
            shipped.target,
            [ANALYSIS],
            {ANALYSIS.name: {"hoard_objects": objects}},
            limit=1,
            progress=lambda items, _what, _total: items,
        )
        found = [finding for finding in report.findings if finding.rule.id == "VT411"]
        assert len(found) == expected
        for finding in found:
            evidence = {item.name: item.value for item in finding.evidence}
            assert (evidence["pid"], evidence["objects"]) == (most.pid, most.objects)
            assert evidence["size_bytes"] == most.size_bytes


def _largest(shipped: ShippedDump) -> Tuple[int, int]:
    """The DRM file with most handles, and how many."""
    prog = shipped.target.prog
    files = [f.value_() for d in for_each_drm_device(prog) for f in for_each_drm_file(d)]
    counts = [
        len(gem_handles([Object(prog, "struct drm_file *", value=file)]).gem) for file in files
    ]
    return max(zip(files, counts), key=lambda pair: pair[1])


def _run_again(shipped: ShippedDump) -> Report:
    return run(
        shipped.target,
        [ANALYSIS],
        {},
        limit=None,
        progress=lambda items, _what, _total: items,
    )


def _table(report: Report, name: str) -> List[Any]:
    (result,) = report.analyses
    (table,) = [table for table in result.tables if table.row_type.__name__ == name]
    return list(table.rows)


def test_a_client_that_is_closing_its_file(
    shipped: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    """drm_close_helper() took its file off the list, and waits for the GPU since."""
    largest, handles = _largest(shipped)

    def without_it(device: Object) -> Iterator[Object]:
        return (file for file in for_each_drm_file(device) if file.value_() != largest)

    monkeypatch.setattr("vmcore_tools.kernel.gem_holders.for_each_drm_file", without_it)
    report = _run_again(shipped)
    assert [f.rule.id for f in report.findings if f.rule.id.startswith("VT41")] == []
    before = {row.address: row for row in rows(shipped, "GemObject")}
    after = {row.address: row for row in _table(report, "GemObject")}
    assert {a: (row.verdict, row.held_by_handle) for a, row in after.items()} == {
        a: (row.verdict, row.held_by_handle) for a, row in before.items()
    }
    assert sum(row.users.count("closing its file, handle") for row in after.values()) == handles
    assert largest not in {row.drm_file for row in _table(report, "GemClient")}


@pytest.mark.parametrize("known", [True, False])
def test_a_reference_too_many_on_what_a_process_has_open(
    shipped: ShippedDump, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Proven of virtio_gpu; another driver may have two references for one pointer."""
    held = gem_holders(slab_index(shipped.target.prog, shipped.target.memory))
    alone = [r for r in rows(shipped, "GemObject") if (r.refcount, r.held_by_handle) == (1, 1)]
    row = alone[len(alone) // 2]  # the first ones are pointed at by what the server does
    at = held.gems.address.tolist().index(row.address)
    counts = held.gems.refcount.copy()
    counts[at] += 1
    described = dataclasses.replace(
        held.described,
        objects=dataclasses.replace(held.described.objects, refcount=counts),
        driver_known=held.described.driver_known & known,
    )
    gems = dataclasses.replace(held.gems, refcount=counts)
    changed = dataclasses.replace(held, gems=gems, described=described)
    monkeypatch.setattr("drgn_scripts.gem_objects.gem_holders", lambda _index: changed)
    report = _run_again(shipped)
    (leak,) = [finding for finding in report.findings if finding.rule.id == "VT410"]
    assert leak.subject.address == row.address
    assert leak.confidence == (Confidence.PROVEN if known else Confidence.LIKELY)
    text = message_text(leak)
    assert text.startswith("1 reference leaked on 1 GEM object of virtio_gpu")
    assert ("its object has a stray pointer, or a driver that is not known" in text) != known
    assert "live" not in text


def test_what_is_left_of_an_object_is_no_row(
    shipped: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that is not cleared when something else gets it looks like one with a count of 0."""
    held = gem_holders(slab_index(shipped.target.prog, shipped.target.memory))
    counts = held.gems.refcount.copy()
    counts[0] = 0
    gone = int(held.gems.address[0])
    gems = dataclasses.replace(held.gems, refcount=counts)
    nobody = [
        dataclasses.replace(group, held=group.held[group.held != np.uint64(gone)])
        for group in held.described.holders
    ]
    objects = dataclasses.replace(held.described.objects, refcount=counts)
    described = dataclasses.replace(held.described, objects=objects, holders=nobody)
    changed = dataclasses.replace(held, gems=gems, described=described)
    monkeypatch.setattr("drgn_scripts.gem_objects.gem_holders", lambda _index: changed)
    report = _run_again(shipped)
    listed = {row.address for row in _table(report, "GemObject")}
    assert listed == {row.address for row in rows(shipped, "GemObject")} - {gone}
    (gap,) = [gap for gap in report.analyses[0].gaps if gap.what == "GEM object"]
    assert (gap.count, gap.material) == (1, False)


def test_framebuffers_with_one_reference_for_all_of_an_object(
    shipped: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As i915 has them: two of each, and a driver that is not known."""

    def twice(device: Object) -> Iterator[Object]:
        return (framebuffer for one in for_each_framebuffer(device) for framebuffer in (one, one))

    monkeypatch.setattr("vmcore_tools.kernel.gem_holders.for_each_framebuffer", twice)
    monkeypatch.setattr("vmcore_tools.kernel.gem_holders._KNOWN_DRIVERS", ())
    found = [f for f in _run_again(shipped).findings if f.rule.id == "VT414"]
    # Their destroy() drops a reference for each pointer, but who knows what the driver takes.
    assert {f.confidence for f in found} == {Confidence.SUSPECTED}
    monkeypatch.setattr(
        "vmcore_tools.kernel.gem_holders.destroyed_by_helper", lambda framebuffer: False
    )
    assert not [f for f in _run_again(shipped).findings if f.rule.id.startswith("VT41")]


def test_mappings_of_an_address_space_that_no_task_has_yet(
    shipped: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fork() puts the mapping there before it takes the reference."""
    index = slab_index(shipped.target.prog, shipped.target.memory)
    exact = gem_holders(index)
    monkeypatch.setattr("vmcore_tools.kernel.gem_holders.mm_users", lambda prog, mms: {})
    found = gem_holders(index)
    mapped = [group for group in found.described.holders if group.kind == "mapping"]
    assert all(group.at_most for group in mapped if len(group.held))
    before = [group for group in exact.described.holders if group.kind == "mapping"]
    assert sum(len(group.held) for group in mapped) == sum(len(group.held) for group in before)


def test_a_file_that_no_process_has_may_be_held_rightly(
    shipped: ShippedDump, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are registered with io_uring have no descriptor left."""

    def nobody(prog: Program, tables: Sequence[int], files: Any) -> FileReferences:
        return FileReferences.of([], [])

    monkeypatch.setattr("vmcore_tools.kernel.drm_clients.descriptors", nobody)
    found = [f for f in _run_again(shipped).findings if f.rule.id in ("VT412", "VT415")]
    # The tables of descriptors point at the files.
    assert found
    assert {(f.rule.id, f.rule.severity, f.confidence) for f in found} == {
        ("VT415", Severity.WARNING, Confidence.SUSPECTED)
    }
    for finding in found:
        evidence = {item.name: item.value for item in finding.evidence}
        assert evidence["pointed_at_from"]
        assert ("no GEM objects" in finding.message) == (evidence["objects"] == 0)
