# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Names of functions and variables of modules without debug info.

With CONFIG_KALLSYMS the kernel keeps a symbol table of each module, for its own
stack traces; with CONFIG_KALLSYMS_ALL variables are in it, too.
"""

from __future__ import annotations

import dataclasses
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Module, Object, Program, Symbol, SymbolBinding, SymbolKind
from drgn.helpers import ValidationError

from vmcore_tools.kernel.modules import module_without_debug_info, modules_without_debug_info

FINDER = "vmcore_tools.module_symbols"
_CACHE_KEY = "vmcore_tools.module_symbols"

#: The largest modules have some 20,000 symbols; a damaged count must end.
_SYMBOLS_MAX = 1 << 20
_STRINGS_MAX_BYTES = 64 << 20
_SIZE_MAX_BYTES = 64 << 20
#: KSYM_NAME_LEN, the largest it has been, since v6.1.
_NAME_MAX_BYTES = 512

#: ``Elf64_Sym``
_ELF_SYM = np.dtype(
    [
        ("st_name", "<u4"),
        ("st_info", "u1"),
        ("st_other", "u1"),
        ("st_shndx", "<u2"),
        ("st_value", "<u8"),
        ("st_size", "<u8"),
    ]
)
_SHN_UNDEF = 0
_STB_GLOBAL, _STB_WEAK = 1, 2
_STT_OBJECT, _STT_FUNC, _STT_SECTION, _STT_FILE = 1, 2, 3, 4
_BINDINGS = {
    0: SymbolBinding.LOCAL,
    _STB_GLOBAL: SymbolBinding.GLOBAL,
    _STB_WEAK: SymbolBinding.WEAK,
}
_KINDS = {_STT_OBJECT: SymbolKind.OBJECT, _STT_FUNC: SymbolKind.FUNC}


def find_module_symbols(prog: Program) -> None:
    """
    Have drgn find symbols of modules without debug info in the kernel's own tables.

    They are read when an address or a name is in none of the files.
    """
    if FINDER not in prog.registered_symbol_finders():
        prog.register_symbol_finder(FINDER, _find, enable_index=-1)


def unread_module_symbols(prog: Program) -> Dict[str, str]:
    """Modules without debug info whose symbols are not known, and why."""
    tables = (_table(prog, module) for module in modules_without_debug_info(prog))
    return {table.module: table.problem for table in tables if table.problem is not None}


@dataclasses.dataclass(frozen=True)
class SymbolTable:
    """
    The symbols of a module.

    :ivar symbols: those with a name that are in the module, by ``st_value``; of equals the
        one that says most is the last
    :ivar ends: behind the last byte of each
    :ivar strings: what ``st_name`` counts in
    :ivar typed: whether ``st_info`` is what ELF says
    :ivar problem: why there are none, None if they could be read
    """

    module: str
    symbols: npt.NDArray[np.void] = dataclasses.field(
        default_factory=lambda: np.empty(0, dtype=_ELF_SYM)
    )
    ends: npt.NDArray[np.uint64] = dataclasses.field(
        default_factory=lambda: np.empty(0, dtype=np.uint64)
    )
    strings: bytes = b""
    typed: bool = True
    problem: Optional[str] = None

    def at(self, address: int) -> Optional[Symbol]:
        """As ``find_kallsyms_symbol()``, but nothing behind a symbol's own end."""
        values = self.symbols["st_value"]
        i = int(np.searchsorted(values, np.uint64(address), side="right")) - 1
        return self._symbol(i) if i >= 0 and address < int(self.ends[i]) else None

    def named(self, name: bytes) -> Iterator[Symbol]:
        wanted = []
        position = self.strings.find(name + b"\0")
        while position >= 0:
            wanted.append(position)
            position = self.strings.find(name + b"\0", position + 1)
        if not wanted:
            return
        for i in np.nonzero(np.isin(self.symbols["st_name"], wanted))[0].tolist():
            yield self._symbol(i)

    def every(self) -> Iterator[Symbol]:
        for i in range(len(self.symbols)):
            yield self._symbol(i)

    def _symbol(self, i: int) -> Symbol:
        symbol = self.symbols[i]
        start, value, info = (int(symbol[f]) for f in ("st_name", "st_value", "st_info"))
        name = self.strings[start : self.strings.index(b"\0", start)]
        return Symbol(
            name.decode(errors="backslashreplace"),
            value,
            int(self.ends[i]) - value,
            _BINDINGS.get(info >> 4, SymbolBinding.UNKNOWN)
            if self.typed
            else SymbolBinding.UNKNOWN,
            _KINDS.get(info & 0xF, SymbolKind.UNKNOWN) if self.typed else SymbolKind.UNKNOWN,
        )


def module_symbols(module: Object, ranges: Sequence[Tuple[int, int]]) -> SymbolTable:
    """
    The symbols that the kernel keeps of a module.

    :param module: ``struct module *``
    :param ranges: of addresses, where the module is
    :raises FaultError: if they are not in the dump
    :raises ValidationError: if they are damaged
    :raises LookupError: if the kernel has no such tables (CONFIG_KALLSYMS)
    """
    prog = module.prog_
    name = module.name.string_().decode(errors="backslashreplace")
    try:
        # 8244062ef1e5 ("modules: fix longstanding /proc/kallsyms vs module
        # insertion race.") in v4.5.
        table = module.kallsyms.read_()
    except AttributeError:
        raise LookupError("the kernel keeps no symbols of modules") from None
    count = int(table.num_symtab.value_())
    if not 0 < count <= _SYMBOLS_MAX:
        raise ValidationError(f"there are {count} of them")
    data = prog.read(table.symtab.value_(), count * _ELF_SYM.itemsize)
    symbols = np.frombuffer(data, dtype=_ELF_SYM)
    strings = _strings(prog, table.strtab.value_(), int(symbols["st_name"].max()))

    value = symbols["st_value"]
    inside = np.zeros(count, dtype=bool)
    for start, end in ranges:
        inside |= (value >= np.uint64(start)) & (value < np.uint64(end))
    # 1c7651f43777 ("kallsyms: store type information in its own array") in v5.2:
    # before, the type was written over st_info, and from v5.0 on over st_size.
    typed = bool(table.prog_.type("struct mod_kallsyms").has_member("typetab"))
    kept = inside & (symbols["st_shndx"] != _SHN_UNDEF) & _has_name(symbols, strings)
    rank = np.zeros(count, dtype=np.int64)
    if typed:
        kind, binding = symbols["st_info"] & 0xF, symbols["st_info"] >> 4
        kept &= (kind != _STT_SECTION) & (kind != _STT_FILE)
        rank = 2 * np.isin(kind, (_STT_FUNC, _STT_OBJECT)) + (binding == _STB_GLOBAL)
    order = np.lexsort((rank, value))
    symbols = symbols[order[kept[order]]]
    return SymbolTable(name, symbols, _ends(symbols, ranges, typed), strings, typed)


def _strings(prog: Program, address: int, last: int) -> bytes:
    """A table of strings up to its last one, which begins at an offset."""
    if last >= _STRINGS_MAX_BYTES:
        raise ValidationError(f"a name is {last} bytes behind the first")
    before: bytes = prog.read(address, last)
    end: bytes = prog.read_c_string(address + last, max_size=_NAME_MAX_BYTES)
    return before + end + b"\0"


def _has_name(symbols: npt.NDArray[np.void], strings: bytes) -> npt.NDArray[np.bool_]:
    """Whether each has a name, and is not one that assemblers make (``is_mapping_symbol()``)."""
    text = np.frombuffer(strings + b"\0", dtype=np.uint8)
    first, second = text[symbols["st_name"]], text[symbols["st_name"] + 1]
    mapping = (
        (first == ord("$"))
        | ((first == ord(".")) & (second == ord("L")))
        | ((first == ord("L")) & (second == ord("0")))
    )
    named: npt.NDArray[np.bool_] = (first != 0) & ~mapping
    return named


def _ends(
    symbols: npt.NDArray[np.void], ranges: Sequence[Tuple[int, int]], sized: bool
) -> npt.NDArray[np.uint64]:
    """Where symbols end: by their size, if it is known, else where the next one begins."""
    value = np.ascontiguousarray(symbols["st_value"])
    if sized:
        # What has none is a place in something else.
        sizes = np.clip(symbols["st_size"], 1, _SIZE_MAX_BYTES)
        return np.asarray(value + sizes, dtype=np.uint64)
    ends = np.zeros(len(value), dtype=np.uint64)
    for start, end in ranges:
        ends[(value >= np.uint64(start)) & (value < np.uint64(end))] = end
    following = np.searchsorted(value, value, side="right")
    more = following < len(value)
    ends[more] = np.minimum(ends[more], value[following[more]])
    return ends


# What drgn asks.


def _find(
    prog: Program, name: Optional[str], address: Optional[int], one: bool
) -> Sequence[Symbol]:
    found: List[Symbol] = []
    for symbol in _candidates(prog, name, address):
        if name is None or symbol.name == name:
            found.append(symbol)
            if one:
                break
    return found


def _candidates(prog: Program, name: Optional[str], address: Optional[int]) -> Iterator[Symbol]:
    if address is not None:
        module = module_without_debug_info(prog, address)
        symbol = None if module is None else _table(prog, module).at(address)
        if symbol is not None:
            yield symbol
        return
    for module in modules_without_debug_info(prog):
        table = _table(prog, module)
        yield from table.every() if name is None else table.named(name.encode())


def _table(prog: Program, module: Module) -> SymbolTable:
    """The symbols of a module, none if they cannot be read; once read they are kept."""
    tables: Dict[str, SymbolTable] = prog.cache.setdefault(_CACHE_KEY, {})
    if module.name not in tables:
        try:
            table = module_symbols(module.object, module.address_ranges or ())
        except (FaultError, LookupError, ValidationError) as error:
            table = SymbolTable(module.name, problem=str(error))
        tables[module.name] = table
    return tables[module.name]
