# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shipped dumps as they are read with the debug info of vmlinux and of no module."""

from __future__ import annotations

import functools
from typing import Dict, List, Set, Tuple

import pytest
from drgn import Program, SymbolKind
from drgn.helpers.linux.module import find_module

from tests.dumps.conftest import ShippedDump
from vmcore_tools import demo, runner, target
from vmcore_tools.frames import stack_of_addresses
from vmcore_tools.kernel.module_symbols import unread_module_symbols
from vmcore_tools.model import Report, Status
from vmcore_tools.target import Target

MODULE = "vmlab"


@functools.cache
def without_modules(name: str) -> Tuple[Target, Report]:
    files = demo.unpack(name)
    vmlinux = [path for path in files.symbols if path.name.startswith("vmlinux")]
    opened = target.open_core(files.vmcore, vmlinux)
    assert opened.debug_info.modules_missing == (MODULE,)
    analyses = [analysis for analysis in runner.find_analyses() if analysis.in_triage]
    return opened, runner.run(
        opened, analyses, {}, limit=None, progress=lambda items, _what, _total: items
    )


def functions(prog: Program) -> Dict[str, Set[Tuple[int, int]]]:
    """Of the module: addresses and sizes by name, as its own file has them."""
    found: Dict[str, Set[Tuple[int, int]]] = {}
    for symbol in prog.symbols():
        try:
            module = prog.module(symbol.address)
        except LookupError:
            continue
        if module.name == MODULE and symbol.kind == SymbolKind.FUNC:
            found.setdefault(symbol.name, set()).add((symbol.address, symbol.size))
    return found


def test_functions_are_those_of_the_debug_info(shipped: ShippedDump) -> None:
    opened, _ = without_modules(shipped.name)
    assert unread_module_symbols(opened.prog) == {}
    expected = functions(shipped.target.prog)
    assert len(expected) > 10
    for name, places in expected.items():
        assert places <= {(s.address, s.size) for s in opened.prog.symbols(name)}
        for address, size in places:
            for inside in (address, address + size - 1):
                symbol = opened.prog.symbol(inside)
                assert (symbol.address, symbol.size) == (address, size)


def test_no_symbol_is_nearly_that_of_an_address(shipped: ShippedDump) -> None:
    opened, _ = without_modules(shipped.name)
    module = next(m for m in opened.prog.modules() if m.name == MODULE)
    assert module.address_ranges
    for start, end in module.address_ranges:
        for address in range(start, end, 97):
            try:
                symbol = opened.prog.symbol(address)
            except LookupError:
                continue
            assert symbol.address <= address < symbol.address + symbol.size


def signatures(report: Report) -> List[Tuple[str, str]]:
    return sorted({(f.rule.id, f.signature) for f in report.findings if f.rule.id[2] == "3"})


def test_hung_tasks_have_the_same_signatures(shipped: ShippedDump) -> None:
    _, report = without_modules(shipped.name)
    assert signatures(report) == signatures(shipped.report)


def test_no_address_is_called_a_function(shipped: ShippedDump) -> None:
    _, report = without_modules(shipped.name)
    for stack in report.stacks.values():
        assert not any(frame.function.startswith("0x") for frame in stack.frames)


@pytest.mark.parametrize("member", ["num_symtab", "symtab", "strtab"])
def test_damaged_tables_give_the_module(demo_dump: ShippedDump, member: str) -> None:
    files = demo_dump.files
    vmlinux = [path for path in files.symbols if path.name.startswith("vmlinux")]
    prog = target.open_core(files.vmcore, vmlinux).prog
    field = find_module(prog, MODULE).kallsyms.member_(member)
    damaged = b"\xff" * field.type_.size
    prog.add_memory_segment(
        field.address_,
        len(damaged),
        lambda _address, count, offset, _physical: damaged[offset : offset + count],
    )
    name, places = min(functions(demo_dump.target.prog).items())
    address = min(places)[0]
    assert set(unread_module_symbols(prog)) == {MODULE}
    module = prog.module(address)
    assert module.address_ranges
    (frame,) = stack_of_addresses(prog, [address + 1]).frames
    assert frame.function == f"function in {MODULE}"
    assert frame.offset == address + 1 - module.address_ranges[0][0]
    with pytest.raises(LookupError):
        prog.symbol(name)


def test_what_is_explained_needs_no_module(shipped: ShippedDump) -> None:
    """The module has nothing to do with who waits: the same is said as with its debug info."""
    _, report = without_modules(shipped.name)
    for name in ("hung-tasks", "wait-graph"):
        (blind,) = [one for one in report.analyses if one.name == name]
        (seeing,) = [one for one in shipped.report.analyses if one.name == name]
        assert (blind.status, blind.gaps) == (seeing.status, seeing.gaps)


def test_kmemleak_is_shown_to_be_absent_or_there(shipped: ShippedDump) -> None:
    """It is built in, or not at all."""
    _, report = without_modules(shipped.name)
    (blind,) = [one for one in report.analyses if one.name == "kmemleak"]
    (seeing,) = [one for one in shipped.report.analyses if one.name == "kmemleak"]
    assert blind.status is seeing.status


@pytest.mark.parametrize("part", ["sections", "list"])
def test_modules_that_cannot_be_read_are_counted(demo_dump: ShippedDump, part: str) -> None:
    module = find_module(demo_dump.target.prog, MODULE)
    field = module.sect_attrs if part == "sections" else module.list.next
    nowhere = (0xFFFF_8000_0000_0000).to_bytes(8, "little")

    prog = Program()
    prog.set_core_dump(demo_dump.files.vmcore)
    prog.add_memory_segment(
        field.address_,
        len(nowhere),
        lambda _address, count, offset, _physical: nowhere[offset : offset + count],
    )
    prog.load_debug_info([p for p in demo_dump.files.symbols if "vmlinux" in p.name])
    opened = target.from_program(prog)
    assert opened.debug_info.modules_error is not None
    (dump,) = [analysis for analysis in runner.find_analyses() if analysis.name == "dump"]
    report = runner.run(opened, [dump], {}, limit=None, progress=lambda items, _what, _total: items)
    gaps = {(gap.what, gap.count) for gap in report.analyses[0].gaps if gap.material}
    left_out = not opened.debug_info.modules
    assert (("module", 1) in gaps) == (left_out or bool(opened.debug_info.modules_missing))
    assert (("list of modules", 1) in gaps) == (part == "list")
    assert report.analyses[0].status is Status.PARTIAL
