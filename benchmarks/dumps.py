# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the benchmarks on the large dump share: the dump, fresh processes, words for results."""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import resource
import statistics
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence, Tuple

from fixtures.arch import X86_64
from fixtures.build import build
from fixtures.cache import Cache, default_root
from fixtures.scenario import scenario_named
from fixtures.slab_load import slab_load
from vmcore_tools.target import Target, open_core

MIB = 1 << 20
#: A scenario on the large dump's kernel, with 512 MiB.
_SMALLER = "fence-leak-debian-6.1"


@dataclasses.dataclass(frozen=True)
class Dump:
    """A dump and its debug info; the first of the symbols is vmlinux."""

    name: str
    core: Path
    symbols: Tuple[Path, ...]
    smaller: Optional[Dump] = None
    """One of the same kernel and kind with less RAM."""

    def open(self) -> Target:
        return open_core(self.core, self.symbols)


def parser(description: str) -> argparse.ArgumentParser:
    """The options that the benchmarks have in common."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--runs", type=int, default=3, help="the median of these counts")
    result.add_argument("--core", type=Path, action="append", default=[], help="default: the lab's")
    result.add_argument("--symbols", type=Path, action="append", default=[], help="vmlinux first")
    return result


def dumps(options: argparse.Namespace) -> List[Dump]:
    """Those of the command line, or the lab's large dump as ELF and filtered."""
    symbols = tuple(options.symbols)
    if options.core:
        return [Dump(core.name, core, symbols) for core in options.core]
    cache = Cache(default_root())
    load = slab_load(cache)
    symbols = tuple(load.symbols)
    small = build(cache, scenario_named(_SMALLER), X86_64)
    smaller = [
        Dump(name, small.folder / name, tuple(small.symbols))
        for name in ("live-000.elf", "filtered.kdump")
    ]
    return [
        Dump("ELF, all of RAM", load.elf, symbols, smaller[0]),
        Dump("kdump, makedumpfile -l -d 31", load.kdump, symbols, smaller[1]),
    ]


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What ``function`` returns in a new process: nothing cached, its own peak memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def peak_mib() -> float:
    """This process's peak resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def ram_gib(target: Target) -> float:
    """The guest's RAM, as far as its kernel knows it."""
    from drgn.helpers.linux.mm import totalram_pages

    pages: int = totalram_pages(target.prog)
    return pages * target.memory.page_map.page_size_bytes / (1 << 30)
