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
most --nodes things are shown; the others are counted, and what hangs on them is
not looked at.

The references of each buffer and open DRM file that is shown, and of the fence
that was asked for, are judged as gem-objects, dma-bufs and dma-fences do: what
nobody has leaked, and the rule of that is named.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Dict, Iterator, List, Optional, Tuple

from drgn import FaultError, Object, Program, ProgramFlags

from drgn_scripts import dma_bufs, dma_fences
from vmcore_tools import gem_findings
from vmcore_tools.analysis import Analysis, Argument, Context, Option, Requires, WrongArgument
from vmcore_tools.asked import kernel_address, number_from
from vmcore_tools.kernel.audit import Audit, Verdict
from vmcore_tools.kernel.buffer_chain import BufferChains, Chain, Node, What, chain_of
from vmcore_tools.kernel.drm_clients import drm_clients
from vmcore_tools.kernel.fence_holders import fence_holders
from vmcore_tools.kernel.judged import (
    judged_dma_bufs,
    judged_drm_files,
    judged_fences,
    judged_gems,
)
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
from vmcore_tools.words import plural

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

Each buffer and open DRM file that is shown is judged as triage does: what
nobody has, what something unknown has and what has more holders than references
is said of it, with its rule. `references_not_drawn` are the others that a thing
has beyond its keepers that are shown. Of fences only the one that was asked for
counts.

It is `proven` where all references are drawn or proven to be leaked, and all
things were followed. Where there were more than `--nodes`, counts are of what
was seen: there can be more behind what was left out.""",
)
#: What has a reference to a fence and is drawn.
_DRAWN_OF_FENCES = ("sync_file", "reservation")


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
    text = ctx.options["target"]
    address = kernel_address(text)
    if address is None and not text.isdecimal():
        raise WrongArgument(
            f"{text!r} is neither an address, which begins with 0x, nor a PID; 'run gem-objects'"
            " and 'run dma-bufs' tell some"
        )
    chains = BufferChains(slab_index(ctx.prog, ctx.memory))
    for what, why, at in chains.gaps:
        ctx.coverage.gap(what, why, at)
    start = chains.process(int(text)) if address is None else chains.at(address)
    if start is None:
        if not chains.gaps:
            raise WrongArgument(
                f"there is no {'process' if address is None else 'buffer or fence'} {text};"
                " 'run gem-objects' and 'run dma-bufs' tell some"
            )
        ctx.coverage.gap("target", f"no buffer, fence or process {text} was seen")
        return
    nodes_max = ctx.options["nodes"]
    chain = chain_of(chains, start, nodes_max)
    yield _finding(ctx, chains, chain, _judged(ctx, chains, chain))
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


@dataclasses.dataclass(frozen=True)
class _Judged:
    """
    What is to be said of the references of a thing that is drawn.

    :ivar references: that nobody has, or that something unknown has; or holders without one
    :ivar all: whether these are all that it has
    :ivar rule: None if there is none for it
    :ivar others: kinds of holders that are known and not drawn
    """

    verdict: Verdict
    references: int
    all: bool
    rule: Optional[Rule]
    confidence: Confidence
    others: Tuple[str, ...]

    @property
    def named(self) -> str:
        certainty = f"[{self.confidence.name.lower()}]"
        return certainty if self.rule is None else f"{self.rule.id} {certainty}"


_LEAKED = (Verdict.LEAKED, Verdict.LIKELY_LEAKED)
_UNKNOWN = (Verdict.UNKNOWN_HOLDER, Verdict.NOT_JUDGED)
#: Rules of what leaked, of what something unknown has, and of what is held without a reference.
_RULES: Dict[What, Tuple[Optional[Rule], Optional[Rule], Optional[Rule]]] = {
    What.FENCE: (dma_fences.LEAKED, dma_fences.UNKNOWN_HOLDER, dma_fences.DANGLING),
    What.GEM: (gem_findings.LEAKED, gem_findings.UNKNOWN_HOLDER, gem_findings.DANGLING),
    What.DMA_BUF: (dma_bufs.LEAKED, dma_bufs.UNKNOWN_HOLDER, dma_bufs.DANGLING),
    What.DRM_FILE: (gem_findings.DEAD_CLIENT, gem_findings.UNKNOWN_HOLDER, None),
}


def _judged(ctx: Context, chains: BufferChains, chain: Chain) -> Dict[Node, _Judged]:
    """What the audits say of the buffers and DRM files that are drawn, where it is anything."""
    found: Dict[Node, _Judged] = {}
    for what in _RULES:
        wanted = [node for node in chain.nodes if node.what == what]
        if what == What.FENCE:  # others are not followed
            wanted = [node for node in wanted if node == chain.nodes[0]]
        if wanted:
            result, position = _audit(ctx, chains, what)
            for node in wanted:
                at = position.get(node.address)
                judged = None if at is None else _judge(chains, node, result, at)
                if judged is not None:
                    found[node] = judged
    return found


def _audit(ctx: Context, chains: BufferChains, what: What) -> Tuple[Audit, Dict[int, int]]:
    """The audit of a kind, and the position in it of each thing by its address."""
    index = chains.index
    if what == What.GEM:
        result, _ = judged_gems(index, chains.gems, ctx.progress)
        addresses = chains.gems.gems.address.tolist()
    elif what == What.FENCE:
        holders = fence_holders(index)
        result = judged_fences(index, holders, ctx.progress)
        addresses = holders.fences.found.address.tolist()
    elif what == What.DMA_BUF and chains.holders is not None:
        result = judged_dma_bufs(index, chains.holders, ctx.progress)
        addresses = chains.buffers.address.tolist()
    else:
        devices = chains.gems.devices
        clients = drm_clients(index, [file for known in devices for file in known.files])
        result = judged_drm_files(index, clients, ctx.progress)
        files = clients.described.objects.address.tolist()
        at = {file: number for number, file in enumerate(files)}
        return result, {
            client.file.value_(): at[client.filp] for client in clients.clients if client.filp in at
        }
    return result, {address: number for number, address in enumerate(addresses)}


def _judge(chains: BufferChains, node: Node, result: Audit, at: int) -> Optional[_Judged]:
    verdict = Verdict(int(result.verdict[at]))
    kinds = {kind: int(counts[at]) for kind, counts in result.holders.items() if counts[at]}
    held, left = sum(kinds.values()), int(result.left[at])
    leaked, unknown, dangling = _RULES[node.what]
    others: Tuple[str, ...] = ()
    if node.what == What.FENCE:
        others = tuple(sorted(set(kinds) - set(_DRAWN_OF_FENCES)))
    if verdict in _LEAKED:
        sure = verdict == Verdict.LEAKED and result.can_prove
        if node.what == What.DRM_FILE and held:
            leaked = None  # somebody still can close it
        confidence = Confidence.PROVEN if sure else Confidence.LIKELY
        return _Judged(verdict, left, not held, leaked, confidence, others)
    if verdict in _UNKNOWN:
        if verdict == Verdict.NOT_JUDGED:
            unknown = None
        return _Judged(verdict, left, not held, unknown, Confidence.SUSPECTED, others)
    if verdict == Verdict.DANGLING:
        known = True
        if node.what == What.GEM:
            known = bool(chains.gems.described.driver_known[at])
            if "command" in kinds:
                dangling = gem_findings.UNHELD_COMMAND
                known = True
        sure = result.can_prove_dangling and at not in result.pointers
        confidence = Confidence.PROVEN if sure else Confidence.LIKELY
        confidence = confidence if known else Confidence.SUSPECTED
        return _Judged(verdict, int(result.excess[at]), False, dangling, confidence, others)
    if verdict == Verdict.EXPLAINED and not others:
        return None
    return _Judged(verdict, 0, False, None, Confidence.PROVEN, others)


def _finding(
    ctx: Context, chains: BufferChains, chain: Chain, judged: Dict[Node, _Judged]
) -> Finding:
    left_out = sum(chain.left_out.values())
    not_drawn = _not_drawn(chain, judged)
    missing = sum(not_drawn.values())
    sentences = [_sentence(chain)]
    unread = []
    evidence = []
    for what, (_, name) in _NAMES.items():
        drawn, left = sum(node.what == what for node in chain.nodes), chain.left_out.get(what, 0)
        if drawn or left:
            evidence.append(Evidence(name, Kind.COUNT, drawn + left))
        if left:
            evidence.append(Evidence(f"{name}_drawn", Kind.COUNT, drawn))
    for name, verdicts, who in (
        ("references_leaked", _LEAKED, "Nobody holds"),
        ("references_of_unknown", _UNKNOWN, "Something that is not known here holds"),
        ("holders_without_reference", (Verdict.DANGLING,), ""),
    ):
        some = [found for found in judged.values() if found.verdict in verdicts]
        references = sum(found.references for found in some)
        if not some:
            continue
        evidence.append(Evidence(name, Kind.COUNT, references))
        if who:
            text = f"{who} {{{name}}} {plural(references, 'reference')} to {len(some):,} of these"
        else:
            these = plural(references, "holder has", "holders have")
            text = f"{{{name}}} {these} no reference"
        rules = sorted({_rule_text(found) for found in some})
        sentences.append(f"{text}: {', '.join(rules)}.")
        if any(found.confidence != Confidence.PROVEN for found in some):
            unread.append("what is said of the references with rules that are not proven")
    evidence.append(Evidence("references_not_drawn", Kind.COUNT, missing))
    evidence.append(Evidence("left_out", Kind.COUNT, left_out))
    if missing:
        kinds = " and ".join(sorted({node.what.value for node in not_drawn}))
        these = plural(missing, "reference", "references")
        holder = plural(missing, "is of a holder that is", "are of holders that are")
        sentences.append(f"{{references_not_drawn}} {these} to {kinds} {holder} not drawn.")
        unread.append("who has the references that are not drawn")
    if left_out:
        unread.append("what hangs on the things that are left out: --nodes shows more")
    if chains.gaps:
        unread.append("what could not be walked")
    if ctx.prog.flags & ProgramFlags.IS_LIVE:
        unread.append("what changed meanwhile")
    return Finding(
        rule=CHAIN,
        confidence=Confidence.LIKELY if unread else Confidence.PROVEN,
        message=" ".join(sentences),
        subject=_ref(ctx.prog, chain.nodes[0]),
        evidence=tuple(evidence),
        signature_key=("buffer-chain", chain.nodes[0].what.value),
        graph=_graph(ctx.prog, chain, judged),
        unread=tuple(dict.fromkeys(unread)),
    )


#: A thing of each kind that is counted; the names of the counts are the plurals.
_NAMES = {
    What.DMA_BUF: ("dma-buf", "dma_bufs"),
    What.GEM: ("GEM object", "gem_objects"),
    What.FENCE: ("fence", "fences"),
    What.PROCESS: ("process", "processes"),
}


def _sentence(chain: Chain) -> str:
    """How much of what hangs together; of what is only drawn in part, both numbers."""
    parts: Dict[What, str] = {}
    total = 0
    some_drawn = any(node.what in _NAMES and node.what != What.PROCESS for node in chain.nodes)
    for what, (one, name) in _NAMES.items():
        drawn = sum(node.what == what for node in chain.nodes)
        seen = drawn + chain.left_out.get(what, 0)
        if not seen or (some_drawn and not drawn):
            continue
        count = f"{{{name}}}" if drawn == seen else f"{{{name}_drawn}} of at least {{{name}}}"
        words = plural(seen, one, "processes" if what == What.PROCESS else None)
        parts[what] = f"{count} {words}"
        total += seen if what != What.PROCESS else 0
    processes = parts.pop(What.PROCESS, "")
    things = list(parts.values())
    if not things:
        if chain.left_out:
            return "No buffer and no fence is drawn; {left_out} of what hangs here is left out."
        return "No buffer and no fence hangs here."
    text = " and ".join([", ".join(things[:-1]), things[-1]] if things[1:] else things)
    where = f", in {processes}" if processes else ""
    if not chain.left_out:
        return f"{text} {plural(total, 'hangs', 'hang together')} here{where}."
    others = plural(sum(chain.left_out.values()), "other thing", "other things")
    return f"{text}{where}, are drawn; what hangs on {{left_out}} {others} is not looked at."


def _rule_text(judged: _Judged) -> str:
    if judged.rule is None:
        return f"[{judged.confidence.name.lower()}]"
    return f"{judged.rule.id} {judged.rule.slug} [{judged.confidence.name.lower()}]"


def _not_drawn(chain: Chain, judged: Dict[Node, _Judged]) -> Dict[Node, int]:
    """References of things that are of nobody who is drawn, and of which nothing else is said."""
    result = {}
    for node, missing in chain.not_drawn.items():
        found = judged.get(node)
        if found is not None and found.verdict in (*_LEAKED, *_UNKNOWN):
            missing = max(missing - found.references, 0)
        if missing and not (found is not None and found.others):
            result[node] = missing
    return result


def _graph(prog: Program, chain: Chain, judged: Dict[Node, _Judged]) -> Graph:
    ids = {node: f"n{number}" for number, node in enumerate(chain.nodes)}
    keepers: Dict[Node, List[Node]] = {node: [] for node in chain.nodes}
    for link in chain.links:
        keepers[link.kept].append(link.keeper)
    not_drawn = _not_drawn(chain, judged)
    return Graph(
        tuple(
            GraphNode(
                ids[node],
                _ref(prog, node),
                (*_verdict_facts(judged.get(node)), *_facts(prog, node, not_drawn)),
            )
            for node in chain.nodes
        ),
        tuple(
            GraphEdge(ids[link.kept], ids[link.keeper], link.why, link.sure) for link in chain.links
        ),
        tuple(ids[node] for node in _roots(keepers)),
        sum(chain.left_out.values()),
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


def _verdict_facts(judged: Optional[_Judged]) -> Iterator[Evidence]:
    if judged is None:
        return
    if judged.verdict in _LEAKED:
        name = "nobody_has_it" if judged.all else "nobody_has_all_references"
        yield Evidence(name, Kind.TEXT, judged.named)
    elif judged.verdict in _UNKNOWN:
        yield Evidence("something_unknown_has_it", Kind.TEXT, judged.named)
    elif judged.verdict == Verdict.DANGLING:
        yield Evidence("more_holders_than_references", Kind.TEXT, judged.named)
    elif judged.verdict != Verdict.EXPLAINED:
        yield Evidence("verdict", Kind.TEXT, judged.verdict.text)
    if judged.others:
        yield Evidence("also_held_by", Kind.TEXT, judged.others)


def _facts(prog: Program, node: Node, not_drawn: Dict[Node, int]) -> Tuple[Evidence, ...]:
    pointer = Object(prog, f"{node.what.value} *", value=node.address)
    facts = []
    with contextlib.suppress(FaultError):
        if node.what == What.FENCE:
            facts.append(Evidence("seqno", Kind.NUMBER, int(pointer.seqno.value_())))
        if node.what in (What.DMA_BUF, What.GEM):
            facts.append(Evidence("size_bytes", Kind.BYTES, int(pointer.size.value_())))
    if node in not_drawn:
        facts.append(Evidence("references_not_drawn", Kind.COUNT, not_drawn[node]))
    return tuple(facts)


ANALYSIS = Analysis(
    name="buffer-chain",
    analyze=analyze,
    tables=(ChainLink,),
    rules=(CHAIN,),
    options=(
        Option(
            "nodes",
            f"how many things to show at most (default: {_NODES_SHOWN})",
            number_from(1),
            _NODES_SHOWN,
            "N",
        ),
    ),
    requires=Requires(types=("struct drm_gem_object",), builtin=("struct dma_buf",), module="drm"),
    argument=Argument("target", "ADDRESS|PID", "where to begin: 0x..., or a process"),
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
