# SPDX-License-Identifier: LGPL-2.1-or-later
"""buffer-chain on real dumps: from the fences that their guests recorded to who holds them."""

from __future__ import annotations

from typing import Any, Dict, List, Set, Tuple

import pytest

from drgn_scripts.buffer_chain import ANALYSIS, ChainLink
from drgn_scripts.gem_objects import GemMemory
from tests.dumps.conftest import ShippedDump
from vmcore_tools import runner
from vmcore_tools.analysis import WrongArgument
from vmcore_tools.kernel.audit import count_holders
from vmcore_tools.kernel.buffer_chain import BufferChains, Node, What, chain_of
from vmcore_tools.kernel.slab import slab_index
from vmcore_tools.model import AnalysisResult, Confidence, Finding, Severity, Status
from vmcore_tools.report.format import message_text


def run(
    shipped: ShippedDump, target: str, nodes: int = 100
) -> Tuple[AnalysisResult, List[Finding]]:
    options = {"target": target, "nodes": nodes}
    report = runner.run(
        shipped.target,
        [ANALYSIS],
        {ANALYSIS.name: options},
        limit=None,
        progress=lambda items, _what, _total: items,
    )
    return report.analyses[0], list(report.findings)


def rows(result: AnalysisResult) -> List[ChainLink]:
    (table,) = result.tables
    return list(table.rows)


def drm_objects(shipped: ShippedDump, pid: int) -> Tuple[int, int]:
    """Objects and DRM files of a process, of which gem-objects says the same as the guest."""
    (row,) = [
        row
        for analysis in shipped.report.analyses
        for table in analysis.tables
        if table.row_type is GemMemory
        for row in table.rows
        if row.pid == pid
    ]
    return row.objects, row.drm_files


def held(shipped: ShippedDump, why: str) -> Dict[str, Any]:
    found = [fence for fence in shipped.truth["held"] if fence["why"] == why]
    return dict(found[len(found) // 2])


def test_a_fence_of_a_sync_file(shipped: ShippedDump) -> None:
    fence = held(shipped, "sync_file")
    result, (finding,) = run(shipped, fence["address"])
    assert result.status == Status.OK
    links = rows(result)
    (of_file,) = [link for link in links if link.keeper_type == "struct sync_file"]
    assert of_file.kept == int(fence["address"], 16)
    opened = [(link.why, link.pid) for link in links if link.kept == of_file.keeper]
    assert opened == [(f"is fd {fence['number']} of", fence["pid"])]
    assert finding.graph is not None
    assert [node.ref.pid for node in finding.graph.nodes if node.id in finding.graph.roots] == [
        fence["pid"]
    ]
    assert finding.rule.severity == Severity.INFO


def test_a_fence_of_a_buffer(shipped: ShippedDump) -> None:
    """The same from an address within it."""
    fence = held(shipped, "reservation")
    address = int(fence["address"], 16)
    result, _ = run(shipped, hex(address + 8))
    links = rows(result)
    gems = [link.keeper for link in links if link.kept == address]
    handles = [link for link in links if link.kept in gems]
    assert f"is handle {fence['number']} of" in {link.why for link in handles}
    drm_files = {link.keeper for link in handles}
    assert fence["pid"] in {link.pid for link in links if link.kept in drm_files}
    assert {link.kept_type for link in links if link.kept == address} == {"struct dma_fence"}


def test_a_process_and_its_bound(shipped: ShippedDump) -> None:
    pid = held(shipped, "sync_file")["pid"]
    result, (finding,) = run(shipped, str(pid), nodes=20)
    graph = finding.graph
    assert graph is not None
    assert len(graph.nodes) == 20
    assert graph.left_out > 0
    assert finding.subject.pid == pid
    ids = {node.id for node in graph.nodes}
    assert {end for edge in graph.edges for end in (edge.source, edge.target)} <= ids
    assert len(rows(result)) >= 19
    # Of its sync_files each has the descriptor that the guest recorded.
    numbers = {f["number"] for f in shipped.truth["held"] if f["pid"] == pid}
    for link in rows(result):
        if link.kept_type == "struct sync_file" and link.pid == pid:
            assert int(link.why.split()[2]) in numbers


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("0x10", "0x10 is no address of kernel memory"),
        ("0xffff888000000008", "there is no buffer or fence 0xffff888000000008; "),
        ("4000000", "there is no process 4000000; "),
        ("Xorg", "'Xorg' is neither an address, which begins with 0x, nor a PID; "),
        ("0xzz", "'0xzz' is neither an address"),
        ("0x1" + "0" * 16, "'0x10000000000000000' is neither an address"),
    ],
)
def test_what_is_no_buffer(demo_dump: ShippedDump, target: str, error: str) -> None:
    with pytest.raises(WrongArgument) as caught:
        run(demo_dump, target)
    assert str(caught.value).startswith(error)


def test_each_thing_is_found_by_any_address_in_it(shipped: ShippedDump) -> None:
    chains = BufferChains(slab_index(shipped.target.prog, shipped.target.memory))
    gems = chains.gems.gems
    for number in range(0, len(gems.address), max(1, len(gems.address) // 20)):
        address = int(gems.address[number])
        for offset in (0, 8, 100):
            assert chains.at(address + offset) == Node(What.GEM, address)


def test_a_chain_ends(shipped: ShippedDump) -> None:
    """With no bound to stop it: all that the busiest process has."""
    chains = BufferChains(slab_index(shipped.target.prog, shipped.target.memory))
    start = chains.process(held(shipped, "sync_file")["pid"])
    assert start is not None
    chain = chain_of(chains, start, 100_000)
    assert chain.left_out == {}
    seen: Set[Node] = set(chain.nodes)
    assert len(seen) == len(chain.nodes) > 60
    assert all(link.kept in seen and link.keeper in seen for link in chain.links)


def test_each_reference_is_of_a_keeper(shipped: ShippedDump) -> None:
    """Nothing was leaked of these; in one dump Xorg is just making a buffer."""
    chains = BufferChains(slab_index(shipped.target.prog, shipped.target.memory))
    gems = [Node(What.GEM, address) for address in chains.gems.gems.address.tolist()]
    assert len(gems) > 60
    keepers = {gem: list(chains.keepers(gem)) for gem in gems}
    assert all(keepers.values())
    missing = [chains.not_drawn(gem, links) for gem, links in keepers.items()]
    assert sum(missing) <= 1
    described = chains.gems.described
    assert missing == count_holders(described.objects, described.holders)[1].tolist()
    above = {link.keeper for links in keepers.values() for link in links}
    assert {node.what for node in above} >= {What.DRM_FILE}
    assert {chains.not_drawn(node, list(chains.keepers(node))) for node in above} == {0}


def test_a_buffer_that_processes_keep_is_proven(shipped: ShippedDump) -> None:
    _, (finding,) = run(shipped, held(shipped, "sync_file")["address"])
    counted = {evidence.name: evidence.value for evidence in finding.evidence}
    missing = counted["references_not_drawn"]
    assert (finding.confidence == Confidence.PROVEN) == (missing == 0)
    assert bool(finding.unread) == (missing != 0)
    assert "references_leaked" not in counted


def test_a_leaked_fence_is_held_by_nobody(shipped: ShippedDump) -> None:
    """What triage calls VT201 [proven], buffer-chain does, too."""
    _, (finding,) = run(shipped, shipped.truth["leak"]["addresses_only_leaked"][7])
    assert message_text(finding) == (
        "1 fence hangs here. Nobody holds 1 reference to 1 of these: "
        "VT201 leaked-dma-fence [proven]."
    )
    assert (finding.confidence, finding.unread) == (Confidence.PROVEN, ())
    assert finding.graph is not None
    (node,) = finding.graph.nodes
    assert ("nobody_has_it", "VT201 [proven]") in {(fact.name, fact.value) for fact in node.facts}


def test_a_leaked_fence_that_is_also_held(shipped: ShippedDump) -> None:
    _, (finding,) = run(shipped, shipped.truth["leak"]["addresses_also_held"][0])
    counted = {evidence.name: evidence.value for evidence in finding.evidence}
    assert (counted["references_leaked"], counted["references_not_drawn"]) == (1, 0)
    assert finding.graph is not None
    facts = {(fact.name, fact.value) for node in finding.graph.nodes for fact in node.facts}
    assert ("nobody_has_all_references", "VT201 [proven]") in facts


def test_what_is_not_drawn_is_in_the_total(shipped: ShippedDump) -> None:
    """No more than some things are drawn; the message has the number of all that were seen."""
    fences = [fence for fence in shipped.truth["held"] if fence["why"] == "reservation"]
    pid = max((fence["pid"] for fence in fences), key=[f["pid"] for f in fences].count)
    _, (finding,) = run(shipped, str(pid), nodes=200)
    counted = {evidence.name: evidence.value for evidence in finding.evidence}
    gems, _ = drm_objects(shipped, pid)
    assert counted["gem_objects"] == gems
    drawn = counted["gem_objects_drawn"]
    assert isinstance(drawn, int) and drawn < gems
    text = message_text(finding)
    assert f"{drawn} of at least {gems:,} GEM objects" in text
    assert drawn > 0 and "dma-buf" not in text
    assert (finding.confidence, len(finding.unread)) == (Confidence.LIKELY, 1)
    _, (finding,) = run(shipped, str(pid), nodes=1)
    assert message_text(finding).startswith("No buffer and no fence is drawn; ")
    assert finding.confidence == Confidence.LIKELY
