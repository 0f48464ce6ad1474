# SPDX-License-Identifier: LGPL-2.1-or-later
"""
An installed analysis that cannot be loaded.

It stands in for the analysis, so that the report says ``failed``, with the
reason, and the others run.
"""

from __future__ import annotations

from typing import Any, Iterator

from vmcore_tools.analysis import Analysis, Context


class UnloadableError(Exception):
    """The analysis of an entry point could not be loaded."""


def unloadable(name: str, reason: str) -> Analysis:
    """
    An analysis that fails with *reason*.

    :param name: the entry point's value, ``package.module:ANALYSIS``
    """

    def analyze(ctx: Context) -> Iterator[Any]:
        raise UnloadableError(reason)

    return Analysis(name=name, analyze=analyze, tables=(), rules=())
