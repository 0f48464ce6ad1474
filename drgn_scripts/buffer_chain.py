# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Who keeps this buffer: the chain from fences and GEM objects to processes.

Give an address (0x...), anywhere in a GEM object, a dma-buf or its file, a
fence, a sync_file or an open DRM file, or the PID of a process. All that the
thing keeps is looked up, and all that keeps any of it: reservation objects
keep fences, dma-bufs the GEM objects that they were exported from, imported
objects the dma-bufs that they are attached to, open DRM files their handles
and what PRIME remembers, processes what they have open or mapped. The result
is a graph, in the report of VT406, and a table of its links.

Framebuffers, the console, commands of virtio_gpu and other subsystems'
attachments are keepers, too. What a thing keeps is followed for what was asked
for alone, and a fence is not followed to all other buffers that have it. At
most --nodes things are shown, the others counted. How many references of a
thing have no keeper here is said of it; dma-bufs and gem-objects look for what
points at such an object.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Dict, Iterator, List, Optional, Tuple

from drgn import FaultError, Object, Program, ProgramFlags

from vmcore_tools.analysis import Analysis, Argument, Context, Option, Requires
from vmcore_tools.kernel.buffer_chain import BufferChains, Chain, Node, What, chain_of
from vmcore_tools.kernel.slab import slab_index
from vmcore_tools.kernel.strings import device_name, text_at
from vmcore_tools.kernel.task import task_comm
from vmcore_tools.model import (
    Absent,
    Confidence,
    Evidence,
    Finding,
    Graph,
    GraphEdge,
    GraphNode,
    Kind,
    Maybe,
    Ref,
    Rule,
    Severity,
    column,
)

_NODES_SHOWN = 100

CHAIN = Rule(
    id="VT406",
    slug="buffer-chain",
    severity=Severity.INFO,
    summary="What keeps a buffer, and what a process keeps: the answer of buffer-chain.",
    remedy=(
        "Follow the chain to its end: a process there has to close what it has; where no process "
        "is shown, look at the references that are not drawn, or at the circle."
    ),
    page="""\
It is no fault, and only reported when asked for. Each line of the tree is kept
by the one above it; what stands at the top is kept by nobody else that was
found. Where that is an object and no process, look at its references that are
not drawn, or at the circle that it is in.

`references_not_drawn` are those that the things shown have beyond their keepers
that are shown: somebody has them that is not known here. It is `proven` only
where there are none; of fences only the one that was asked for counts.""",
)


@dataclasses.dataclass(frozen=True)
class ChainLink:
    """One thing is kept by another."""

    kept_type: str = column(Kind.TEXT)
    kept: int = column(Kind.ADDRESS)
    why: str = column(Kind.TEXT)
    keeper_type: str = column(Kind.TEXT)
    keeper: int = column(Kind.ADDRESS)
    pid: Maybe[int] = column(Kind.PID)
    comm: Maybe[str] = column(Kind.SENSITIVE)


def analyze(ctx: Context) -> Iterator[Any]:
    chains = BufferChains(slab_index(ctx.prog, ctx.memory))
    for what, why, address in chains.gaps:
        ctx.coverage.gap(what, why, address)
    text = ctx.options["target"]
    start = _start(chains, text)
    if start is None:
        ctx.coverage.gap("target", f"there is no buffer, fence or process at {text}")
        return
    nodes_max = ctx.options["nodes"]
    chain = chain_of(chains, start, nodes_max)
    yield _finding(ctx, chains, chain)
    described = {node: _ref(ctx.prog, node) for node in chain.nodes}
    for link in chain.links:
        keeper = described[link.keeper]
        nobody = Absent("it is no process")
        is_process = link.keeper.what == What.PROCESS
        yield ChainLink(
            kept_type=link.kept.what.value,
            kept=link.kept.address,
            why=link.why,
            keeper_type=link.keeper.what.value,
            keeper=link.keeper.address,
            pid=keeper.pid if is_process and keeper.pid is not None else nobody,
            comm=keeper.name if is_process else nobody,
        )


def _start(chains: BufferChains, text: str) -> Optional[Node]:
    if text.lower().startswith("0x"):
        try:
            address = int(text, 16)
        except ValueError:
            return None
        return chains.at(address) if address < 1 << 64 else None
    return chains.process(int(text)) if text.isdecimal() else None


def _finding(ctx: Context, chains: BufferChains, chain: Chain) -> Finding:
    counts = {what: sum(node.what == what for node in chain.nodes) for what in What}
    missing = sum(chain.not_drawn.values())
    message = (
        "{dma_bufs} dma-bufs, {gem_objects} GEM objects and {fences} fences hang together "
        "here, in {processes} processes."
    )
    unread = []
    if missing:
        message += " {references_not_drawn} of the references are of holders that are not drawn."
        unread.append("who has the references that are not drawn")
    if ctx.prog.flags & ProgramFlags.IS_LIVE:
        unread.append("what changed meanwhile")
    return Finding(
        rule=CHAIN,
        confidence=Confidence.LIKELY if unread else Confidence.PROVEN,
        message=message,
        subject=_ref(ctx.prog, chain.nodes[0]),
        evidence=(
            Evidence("dma_bufs", Kind.COUNT, counts[What.DMA_BUF]),
            Evidence("gem_objects", Kind.COUNT, counts[What.GEM]),
            Evidence("fences", Kind.COUNT, counts[What.FENCE]),
            Evidence("processes", Kind.COUNT, counts[What.PROCESS]),
            Evidence("references_not_drawn", Kind.COUNT, missing),
            Evidence("left_out", Kind.COUNT, chain.left_out),
        ),
        signature_key=("buffer-chain", chain.nodes[0].what.value),
        graph=_graph(ctx.prog, chain),
        unread=tuple(unread),
    )


def _graph(prog: Program, chain: Chain) -> Graph:
    ids = {node: f"n{number}" for number, node in enumerate(chain.nodes)}
    keepers: Dict[Node, List[Node]] = {node: [] for node in chain.nodes}
    for link in chain.links:
        keepers[link.kept].append(link.keeper)
    return Graph(
        tuple(
            GraphNode(ids[node], _ref(prog, node), _facts(prog, chain, node))
            for node in chain.nodes
        ),
        tuple(GraphEdge(ids[link.kept], ids[link.keeper], link.why, True) for link in chain.links),
        tuple(ids[node] for node in _roots(keepers)),
        chain.left_out,
        "what is kept, under what keeps it",
    )


def _roots(keepers: Dict[Node, List[Node]]) -> List[Node]:
    """What nothing keeps; and where things keep each other, one of them."""
    below: Dict[Node, List[Node]] = {node: [] for node in keepers}
    for node, some in keepers.items():
        for keeper in some:
            below[keeper].append(node)
    roots = [node for node, some in keepers.items() if not some]
    reached = set(roots)
    pending = list(roots)
    rest = iter(keepers)
    while True:
        while pending:
            for node in below[pending.pop()]:
                if node not in reached:
                    reached.add(node)
                    pending.append(node)
        left = next((node for node in rest if node not in reached), None)
        if left is None:
            return roots
        roots.append(left)
        reached.add(left)
        pending.append(left)


def _ref(prog: Program, node: Node) -> Ref:
    """What a thing is called: a comm, a driver, an exporter."""
    pointer = Object(prog, f"{node.what.value} *", value=node.address)
    name: Maybe[str] = ""
    try:
        if node.what == What.PROCESS:
            pid = pointer.pid.value_()
            return Ref("process", task_comm(pointer), node.address, pid, Kind.SENSITIVE)
        if node.what == What.DMA_BUF:
            name = text_at(prog, pointer.exp_name.value_())
        elif node.what == What.GEM:
            name = text_at(prog, pointer.dev.driver.name.value_())
        elif node.what == What.DRM_FILE:
            name = text_at(prog, pointer.minor.dev.driver.name.value_())
        elif node.what == What.FRAMEBUFFER:
            comm = text_at(prog, pointer.comm.address_of_().value_())
            return Ref(node.what.value, comm, node.address, name_kind=Kind.SENSITIVE)
        elif node.what == What.ATTACHMENT:
            name = device_name(pointer.dev)
    except FaultError as error:
        name = Absent(f"it cannot be read: {error}")
    return Ref(node.what.value, name, node.address)


def _facts(prog: Program, chain: Chain, node: Node) -> Tuple[Evidence, ...]:
    pointer = Object(prog, f"{node.what.value} *", value=node.address)
    facts = []
    with contextlib.suppress(FaultError):
        if node.what == What.FENCE:
            facts.append(Evidence("seqno", Kind.NUMBER, int(pointer.seqno.value_())))
        if node.what in (What.DMA_BUF, What.GEM):
            facts.append(Evidence("size_bytes", Kind.BYTES, int(pointer.size.value_())))
    if node in chain.not_drawn:
        facts.append(Evidence("references_not_drawn", Kind.COUNT, chain.not_drawn[node]))
    return tuple(facts)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("it must be at least 1")
    return number


ANALYSIS = Analysis(
    name="buffer-chain",
    analyze=analyze,
    tables=(ChainLink,),
    rules=(CHAIN,),
    options=(
        Option(
            "nodes",
            f"how many things to show at most (default: {_NODES_SHOWN})",
            _positive,
            _NODES_SHOWN,
            "N",
        ),
    ),
    requires=Requires(types=("struct drm_gem_object", "struct dma_buf")),
    argument=Argument("target", "ADDRESS|PID", "where to begin: 0x..., or a process"),
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
