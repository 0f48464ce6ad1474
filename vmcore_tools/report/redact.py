# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Masks what may identify people, and addresses, in a report.

The same value has the same mask everywhere, so that a masked report can still be reasoned
about: in all formats, with all options, and in all reports on the same boot of a kernel. A
mask is a keyed hash, and the key is a secret of that kernel: nobody can find out by trying
what a mask stands for, but who has the dump, and masks it again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import os
import re
from typing import Any, Dict, Iterable, Iterator, List, Match, Optional, Set, Tuple, cast

from vmcore_tools.model import (
    Absent,
    AnalysisResult,
    Evidence,
    Finding,
    Gap,
    Graph,
    Kind,
    Masking,
    Ref,
    Report,
    Stack,
    Status,
    Table,
    columns,
)
from vmcore_tools.report.format import escape

#: An address in free text: after 0x, or the 16 digits that the kernel prints.
_ADDRESS = re.compile(
    r"(?<![0-9a-zA-Z])(?:0x)?"
    r"(?P<digits>(?<=0x)[0-9a-fA-F]{5,16}|(?<!0x)[0-9a-fA-F]{16})(?![0-9a-zA-Z])"
)

#: Who built a module, in the paths of its sources.
_HOME = re.compile(r"(?<=^/home/)[^/]+")

#: A pattern that nothing matches.
_NEVER = r"(?!)"

#: Hexadecimal digits of a mask; more where two would be the same.
_DIGITS = 10

#: Comms that kernels give their own threads, and that tell nothing of whom they work for. Not
#: so others: nfs names one by its server, md and drbd by their devices.
_KERNELS_OWN = re.compile(
    r"(?:swapper|migration|ksoftirqd|cpuhp|watchdog|idle_inject|irq_work|ktimers|rcuc|rcuop|rcuos"
    r"|rcuog|rcub)/\d+"
    r"|kworker/(?:u?\d+:\d+H?|dying)"
    r"|rcu_(?:gp|par_gp|sched|preempt|bh|tasks_\w+|exp_\w+)"
    r"|(?:kswapd|kcompactd|scsi_eh_|scsi_tmf_)\d+"
    r"|kthreadd|khungtaskd|khugepaged|ksmd|oom_reaper|watchdogd|kdevtmpfs|kauditd|kblockd"
    r"|kintegrityd|kthrotld|writeback|kmemleak|mm_percpu_wq|slub_flushwq|inet_frag_wq|netns"
    r"|ata_sff|hwrng"
)

#: What analyses write around the names of processes, and in place of one: with that, a
#: sensitive value is masked by its names, and else as a whole.
_AROUND = r"(?: \(\d+\))?(?: fd \d+| handle \d+| mapping)?"
_NOBODY = (
    r"the kernel|an unknown process|a process that is exiting|PID \d+, which has ended"
    r"|\d+ ended tasks?|\d+ commands? in flight"
)
_COMPOSED = re.compile(r"[(,]| (?:fd|handle|mapping|and)\b")


def redact(report: Report) -> Report:
    """
    A copy of *report* with values of the kinds SENSITIVE and ADDRESS masked.

    A masked address is the text of its mask, where an integer was.
    """
    values = set(_sensitive_values(report))
    return _Redactor(report.masking, values).report(report)


class _Masks:
    """What stands for a value: a keyed hash of it, which no other value in the report has."""

    def __init__(self, key: bytes) -> None:
        self._key = key or os.urandom(32)
        self._masks: Dict[Tuple[str, str], str] = {}
        self._taken: Dict[str, str] = {}

    def of(self, kind: str, value: str) -> str:
        known = self._masks.get((kind, value))
        if known is not None:
            return known
        message = f"{kind}\0{value}".encode("utf-8", "surrogatepass")
        digest = hmac.new(self._key, message, hashlib.sha256).hexdigest()
        length = _DIGITS
        while self._taken.setdefault(f"{kind}-{digest[:length]}", value) != value:
            length += 1
        return self._masks.setdefault((kind, value), f"{kind}-{digest[:length]}")


def _sensitive_values(report: Report) -> Iterator[str]:
    for item in report.target:
        yield from _sensitive(item.kind, item.value)
    for analysis in report.analyses:
        for finding in analysis.findings:
            yield from _of_finding(finding)
        for table in analysis.tables:
            names = [name for name, kind in columns(table.row_type) if kind is Kind.SENSITIVE]
            for row in table.rows:
                for name in names:
                    yield from _sensitive(Kind.SENSITIVE, getattr(row, name))


def _of_finding(finding: Finding) -> Iterator[str]:
    nodes = () if finding.graph is None else finding.graph.nodes
    for ref in (finding.subject, *finding.related, *(node.ref for node in nodes)):
        yield from _sensitive(ref.name_kind, ref.name)
    facts = [*finding.evidence, *(fact for node in nodes for fact in node.facts)]
    for item in facts:
        yield from _sensitive(item.kind, item.value)


def _sensitive(kind: Kind, value: Any) -> Iterator[str]:
    if kind is Kind.SENSITIVE:
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, str) and item:
                yield item


class _Redactor:
    def __init__(self, masking: Masking, values: Set[str]) -> None:
        self._masks = _Masks(masking.key)
        single = {value for value in values if not _COMPOSED.search(value)}
        self._processes = {*masking.names, *single}
        #: What is looked for in text; how it is escaped there, too, with the name itself.
        self._names: Dict[str, str] = {}
        for name in {*masking.names, *values}:
            if not _KERNELS_OWN.fullmatch(name):
                for written in (name, escape(name), ascii(name)[1:-1]):
                    self._names.setdefault(written, name)
        self._texts: Dict[str, str] = {}

    def report(self, report: Report) -> Report:
        return dataclasses.replace(
            report,
            target=tuple(
                # A host name can be part of it by chance, and without it nothing is known.
                item if item.name == "kernel_release" else self._evidence((item,))[0]
                for item in report.target
            ),
            analyses=tuple(self._analysis(analysis) for analysis in report.analyses),
            stacks={id: self._stack(stack) for id, stack in report.stacks.items()},
        )

    def _analysis(self, analysis: AnalysisResult) -> AnalysisResult:
        reason = analysis.reason
        if reason is not None:
            if analysis.status is Status.FAILED:
                # The message of an exception can hold anything; its type cannot.
                reason = reason.partition(":")[0]
            reason = self._text(reason)
        return dataclasses.replace(
            analysis,
            reason=reason,
            findings=tuple(self._finding(finding) for finding in analysis.findings),
            tables=tuple(self._table(table) for table in analysis.tables),
            gaps=tuple(self._gap(gap) for gap in analysis.gaps),
        )

    def _finding(self, finding: Finding) -> Finding:
        return dataclasses.replace(
            finding,
            subject=self._ref(finding.subject),
            evidence=self._evidence(finding.evidence),
            related=tuple(self._ref(ref) for ref in finding.related),
            unread=tuple(self._text(text) for text in finding.unread),
            graph=self._graph(finding.graph),
        )

    def _graph(self, graph: Optional[Graph]) -> Optional[Graph]:
        if graph is None:
            return None
        return dataclasses.replace(
            graph,
            nodes=tuple(
                dataclasses.replace(node, ref=self._ref(node.ref), facts=self._evidence(node.facts))
                for node in graph.nodes
            ),
            edges=tuple(
                dataclasses.replace(edge, why=self._text(edge.why)) for edge in graph.edges
            ),
        )

    def _table(self, table: Table) -> Table:
        kinds = columns(table.row_type)
        rows = tuple(
            dataclasses.replace(
                row, **{name: self._value(kind, getattr(row, name)) for name, kind in kinds}
            )
            for row in table.rows
        )
        return dataclasses.replace(table, rows=rows)

    def _gap(self, gap: Gap) -> Gap:
        addresses = tuple(self._address(address) for address in gap.addresses)
        return dataclasses.replace(
            gap,
            what=self._text(gap.what),
            reason=self._text(gap.reason),
            addresses=cast(Tuple[int, ...], addresses),
        )

    def _stack(self, stack: Stack) -> Stack:
        return dataclasses.replace(
            stack,
            # A frame without a symbol has an address for its name; a symbol has to stay.
            frames=tuple(
                dataclasses.replace(
                    frame,
                    function=self._without_addresses(frame.function),
                    file=None if frame.file is None else self._without_home(frame.file),
                )
                for frame in stack.frames
            ),
            note=None if stack.note is None else self._text(stack.note),
        )

    def _ref(self, ref: Ref) -> Ref:
        address = None if ref.address is None else self._address(ref.address)
        return dataclasses.replace(
            ref,
            name=self._value(ref.name_kind, ref.name),
            address=cast(Optional[int], address),
        )

    def _evidence(self, items: Tuple[Evidence, ...]) -> Tuple[Evidence, ...]:
        return tuple(
            dataclasses.replace(item, value=self._value(item.kind, item.value)) for item in items
        )

    def _value(self, kind: Kind, value: Any) -> Any:
        if isinstance(value, Absent):
            return Absent(self._text(value.reason))
        if isinstance(value, tuple):
            return tuple(self._value(kind, item) for item in value)
        if isinstance(value, str):
            if kind is Kind.SENSITIVE:
                return self._name(value)
            if kind is Kind.UNTRUSTED:
                return self._text(value)
            if kind is Kind.TEXT:
                return self._without_addresses(value)
        elif kind is Kind.ADDRESS and isinstance(value, int):
            return self._address(value)
        return value

    def _address(self, address: int) -> Any:
        # That there is none is no secret.
        return address and self._masks.of("address", f"{address:x}")

    def _name(self, text: str) -> str:
        """Sensitive text: a process's name, several with what is said of them, or anything."""
        if not text or _KERNELS_OWN.fullmatch(text):
            return text
        if text in self._processes or not _COMPOSED.search(text):
            return self._masks.of("sensitive", text)
        known = "|".join(map(re.escape, _longest_first(self._processes, text))) or _NEVER
        one = rf"(?:{known}|{_KERNELS_OWN.pattern}|{_NOBODY}){_AROUND}"
        if not re.fullmatch(rf"{one}(?:, {one})*(?: and \d+ (?:more|others))?", text):
            return self._masks.of("sensitive", text)
        return re.sub(
            rf"(?:^|(?<=, ))(?P<name>{known})(?={_AROUND}(?:,|$| and \d))",
            lambda match: self._name(match["name"]),
            text,
        )

    def _text(self, text: str) -> str:
        """Free text: addresses are masked, and every name that is known."""
        masked = self._texts.get(text)
        if masked is None:
            names = [_alone(name) for name in _longest_first(self._names, text)]
            known = "|".join(names) or _NEVER
            masked = re.sub(f"(?P<name>{known})|{_ADDRESS.pattern}", self._mask, text)
            self._texts[text] = masked
        return masked

    def _without_addresses(self, text: str) -> str:
        return _ADDRESS.sub(self._mask_address, text)

    def _without_home(self, path: str) -> str:
        return _HOME.sub(lambda match: self._masks.of("sensitive", match[0]), path)

    def _mask_address(self, match: Match[str]) -> str:
        return self._address(int(match["digits"], 16)) or match[0]

    def _mask(self, match: Match[str]) -> str:
        if match["digits"] is not None:
            return self._mask_address(match)
        return self._masks.of("sensitive", self._names[match["name"]])


def _longest_first(names: Iterable[str], text: str) -> List[str]:
    """Those in a text; one name can be part of another."""
    return sorted((name for name in names if name in text), key=lambda name: (-len(name), name))


def _alone(name: str) -> str:
    """A pattern for a name that is no part of a longer word."""
    before = r"(?<!\w)" if re.match(r"\w", name) else ""
    after = r"(?!\w)" if re.match(r"\w", name[-1]) else ""
    return f"{before}{re.escape(name)}{after}"
