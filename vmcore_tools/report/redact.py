# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Masks what may identify people, and addresses, in a report.

The same value gets the same pseudonym everywhere, numbered in order of first
appearance, so that a masked report can still be reasoned about.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Callable, Dict, Mapping, Match, Optional, Tuple, cast

from vmcore_tools.model import (
    Absent,
    AnalysisResult,
    Evidence,
    Finding,
    Gap,
    Graph,
    Kind,
    Ref,
    Report,
    Stack,
    Status,
    Table,
    columns,
)

#: An address in free text: after 0x, or the 16 digits that the kernel prints.
_ADDRESS = r"\b(?:0x)?(?P<digits>(?<=0x)[0-9a-fA-F]{5,16}|(?<!0x)[0-9a-fA-F]{16})\b"


def redact(report: Report) -> Report:
    """
    A copy of *report* with values of the kinds SENSITIVE and ADDRESS masked.

    A masked address is the text of its pseudonym, where an integer was.
    """
    return _Redactor().report(report)


class _Redactor:
    def __init__(self) -> None:
        self._addresses: Dict[int, str] = {}
        self._names: Dict[str, str] = {}

    def report(self, report: Report) -> Report:
        masked = dataclasses.replace(
            report,
            target=self._evidence(report.target),
            analyses=tuple(self._analysis(analysis) for analysis in report.analyses),
        )
        # Values first: free text can repeat any of them.
        scrub = _Scrubber(self._names, self._address)
        return dataclasses.replace(
            masked,
            target=scrub.evidence(masked.target),
            analyses=tuple(scrub.analysis(analysis) for analysis in masked.analyses),
            stacks={id: scrub.stack(stack) for id, stack in masked.stacks.items()},
        )

    def _analysis(self, analysis: AnalysisResult) -> AnalysisResult:
        return dataclasses.replace(
            analysis,
            findings=tuple(self._finding(finding) for finding in analysis.findings),
            tables=tuple(self._table(table) for table in analysis.tables),
            gaps=tuple(self._gap(gap) for gap in analysis.gaps),
        )

    def _finding(self, finding: Finding) -> Finding:
        return dataclasses.replace(
            finding,
            # First, as the message shows it before the rest.
            evidence=self._evidence(finding.evidence),
            subject=self._ref(finding.subject),
            related=tuple(self._ref(ref) for ref in finding.related),
            graph=_map_graph(finding.graph, self._ref, self._evidence),
        )

    def _table(self, table: Table) -> Table:
        masked = [
            (name, kind)
            for name, kind in columns(table.row_type)
            if kind in (Kind.ADDRESS, Kind.SENSITIVE)
        ]
        rows = tuple(
            dataclasses.replace(
                row, **{name: self._value(kind, getattr(row, name)) for name, kind in masked}
            )
            for row in table.rows
        )
        return dataclasses.replace(table, rows=rows)

    def _gap(self, gap: Gap) -> Gap:
        addresses = tuple(self._address(address) for address in gap.addresses)
        return dataclasses.replace(gap, addresses=cast(Tuple[int, ...], addresses))

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
        if isinstance(value, tuple):
            return tuple(self._value(kind, item) for item in value)
        if kind is Kind.SENSITIVE and isinstance(value, str):
            return self._names.setdefault(value, f"sensitive-{len(self._names) + 1}")
        if kind is Kind.ADDRESS and isinstance(value, int):
            return self._address(value)
        return value

    def _address(self, address: int) -> str:
        return self._addresses.setdefault(address, f"address-{len(self._addresses) + 1}")


def _map_graph(
    graph: Optional[Graph],
    ref: Callable[[Ref], Ref],
    facts: Callable[[Tuple[Evidence, ...]], Tuple[Evidence, ...]],
) -> Optional[Graph]:
    if graph is None:
        return None
    nodes = tuple(
        dataclasses.replace(node, ref=ref(node.ref), facts=facts(node.facts))
        for node in graph.nodes
    )
    return dataclasses.replace(graph, nodes=nodes)


class _Scrubber:
    """Masks addresses, and every name that was masked as a value, in free text."""

    def __init__(self, names: Mapping[str, str], address: Callable[[int], str]) -> None:
        self._names = names
        self._address = address
        # The longest first: one name can be part of another.
        known = sorted(filter(None, names), key=lambda name: (-len(name), name))
        alternatives = (
            [rf"(?<!\w)(?P<name>{'|'.join(map(re.escape, known))})(?!\w)"] if known else []
        )
        self._pattern = re.compile("|".join([*alternatives, _ADDRESS]))

    def analysis(self, analysis: AnalysisResult) -> AnalysisResult:
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
            gaps=tuple(
                dataclasses.replace(gap, what=self._text(gap.what), reason=self._text(gap.reason))
                for gap in analysis.gaps
            ),
        )

    def evidence(self, items: Tuple[Evidence, ...]) -> Tuple[Evidence, ...]:
        return tuple(
            dataclasses.replace(item, value=self._value(item.kind, item.value)) for item in items
        )

    def stack(self, stack: Stack) -> Stack:
        return dataclasses.replace(
            stack,
            # A frame without a symbol has an address for its name.
            frames=tuple(
                dataclasses.replace(frame, function=self._text(frame.function))
                for frame in stack.frames
            ),
            note=None if stack.note is None else self._text(stack.note),
        )

    def _finding(self, finding: Finding) -> Finding:
        return dataclasses.replace(
            finding,
            subject=self._ref(finding.subject),
            evidence=self.evidence(finding.evidence),
            related=tuple(self._ref(ref) for ref in finding.related),
            unread=tuple(self._text(text) for text in finding.unread),
            graph=_map_graph(finding.graph, self._ref, self.evidence),
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

    def _ref(self, ref: Ref) -> Ref:
        return dataclasses.replace(ref, name=self._value(ref.name_kind, ref.name))

    def _value(self, kind: Kind, value: Any) -> Any:
        if isinstance(value, Absent):
            return Absent(self._text(value.reason))
        if isinstance(value, tuple):
            return tuple(self._value(kind, item) for item in value)
        if kind is Kind.UNTRUSTED and isinstance(value, str):
            return self._text(value)
        return value

    def _text(self, text: str) -> str:
        return self._pattern.sub(self._pseudonym, text)

    def _pseudonym(self, match: Match[str]) -> str:
        if match["digits"] is not None:
            return self._address(int(match["digits"], 16))
        return self._names[match["name"]]
