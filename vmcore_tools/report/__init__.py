# SPDX-License-Identifier: LGPL-2.1-or-later
"""Turns a Report into text. Nothing here touches the kernel."""

from __future__ import annotations

from typing import Optional

from vmcore_tools.model import Report
from vmcore_tools.report import html, json, markdown, table
from vmcore_tools.report.redact import redact as _redact

FORMATS = ("table", "json", "markdown", "html")

#: Columns of text where no terminal says how wide it is.
DEFAULT_WIDTH = 100


def render(
    report: Report,
    format: str,
    *,
    redact: bool = False,
    timings: bool = False,
    width: int = DEFAULT_WIDTH,
    fit: Optional[int] = None,
) -> str:
    """
    The report as text that ends with a newline.

    :param format: one of :data:`FORMATS`
    :param redact: mask what may identify people, and addresses
    :param timings: say how long each analysis took, which differs from run to run
    :param width: columns to wrap text to (table)
    :param fit: columns of a terminal, which long cells of tables are cut for (table)
    """
    if redact:
        report = _redact(report)
    if format == "json":
        return json.render(report, timings=timings)
    if format == "markdown":
        return markdown.render(report, timings=timings)
    if format == "html":
        return html.render(report, timings=timings)
    if format == "table":
        return table.render(report, timings=timings, width=width, fit=fit)
    raise ValueError(f"no such format: {format}")
