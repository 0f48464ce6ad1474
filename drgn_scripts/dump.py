# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Whether the dump is whole, and what is missing to read it.

It finds dumps that were cut short (VT901) and loaded modules whose debug info
was not found (VT902): whatever those modules own cannot be understood. Pages
that makedumpfile left out on purpose are no finding.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Iterator

from drgn import ModuleFileStatus, RelocatableModule

from vmcore_tools.analysis import Analysis, Context
from vmcore_tools.model import Confidence, Evidence, Finding, Kind, Ref, Rule, Severity, column

TRUNCATED = Rule(
    id="VT901",
    slug="truncated-dump",
    severity=Severity.WARNING,
    summary="The dump was cut short: pages that it promises are missing.",
    remedy="Copy the dump again; if the original is short too, the disk was full when it was made.",
    page="""\
A kdump says so itself (makedumpfile's incomplete flag), or its page
descriptors or ELF segments point behind the end of the file. Everything that
is there is used; what could not be read is listed under coverage.""",
)
NO_DEBUG_INFO = Rule(
    id="VT902",
    slug="module-without-debug-info",
    severity=Severity.INFO,
    summary="Loaded modules have no debug info here, so what they own was not understood.",
    remedy="Install the kernel's debug package, or give the modules' .ko.debug files with -s.",
    page="""\
Structures and operations tables of such a module are unknown: its fences are
not recognised, and its frames have no names.""",
)


@dataclasses.dataclass(frozen=True)
class ModuleWithoutDebugInfo:
    """A loaded module whose debug info was not found."""

    module: str = column(Kind.UNTRUSTED)
    build_id: str = column(Kind.TEXT)


def analyze(ctx: Context) -> Iterator[Any]:
    page_map = ctx.memory.page_map
    if page_map.truncated:
        ctx.coverage.gap("dump", page_map.truncated)
        yield Finding(
            rule=TRUNCATED,
            confidence=Confidence.PROVEN,
            message="The dump is not whole: {reason}.",
            subject=Ref("dump", page_map.format),
            evidence=(
                Evidence("reason", Kind.TEXT, page_map.truncated),
                Evidence("pages_present", Kind.COUNT, page_map.present_pages),
            ),
            signature_key=("truncated",),
        )
    missing = sorted(
        (
            ModuleWithoutDebugInfo(module.name, module.build_id.hex() if module.build_id else "")
            for module in ctx.prog.modules()
            if isinstance(module, RelocatableModule)
            and module.debug_file_status != ModuleFileStatus.HAVE
        ),
        key=lambda row: row.module,
    )
    if missing:
        ctx.coverage.gap("module", "it has no debug info", count=len(missing))
        yield Finding(
            rule=NO_DEBUG_INFO,
            confidence=Confidence.PROVEN,
            message="{count} loaded modules have no debug info: {modules}.",
            subject=Ref("module", missing[0].module),
            evidence=(
                Evidence("count", Kind.COUNT, len(missing)),
                Evidence("modules", Kind.UNTRUSTED, tuple(row.module for row in missing)),
            ),
            signature_key=("module-without-debug-info",),
        )
    yield from missing


ANALYSIS = Analysis(
    name="dump",
    analyze=analyze,
    tables=(ModuleWithoutDebugInfo,),
    rules=(TRUNCATED, NO_DEBUG_INFO),
)

if __name__ == "__main__":
    from vmcore_tools.cli import run_script

    run_script(ANALYSIS)
