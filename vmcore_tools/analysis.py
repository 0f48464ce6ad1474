# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The contract that an analysis keeps.

An analysis is a module with a docstring for its user, the row dataclasses
that are its tables, its rules, a generator ``analyze(ctx)`` that yields
:class:`~vmcore_tools.model.Finding`, :class:`~vmcore_tools.model.Stack` and
row objects, and one ``ANALYSIS``. It prints nothing and keeps no state.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from typing import Any, Callable, Iterable, Iterator, Mapping, Optional, Tuple, TypeVar

from drgn import Program

from vmcore_tools.dump.memory import Memory
from vmcore_tools.errors import TargetError
from vmcore_tools.model import Coverage, Rule

T = TypeVar("T")

#: ``progress(iterable, description, total)`` gives the items of the iterable.
Progress = Callable[[Iterable[Any], str, Optional[int]], Iterable[Any]]


def no_progress(items: Iterable[Any], description: str, total: Optional[int]) -> Iterable[Any]:
    """Shows nothing."""
    return items


@dataclasses.dataclass(frozen=True)
class Option:
    """
    An option of one analysis: ``--name`` on the command line.

    Of the type :class:`bool` it is a flag, without a value.
    """

    name: str  #: with dashes
    help: str
    type: Callable[[str], Any]
    default: Any = None
    metavar: Optional[str] = None

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")


@dataclasses.dataclass(frozen=True)
class Argument:
    """What an analysis must be given, behind its name on the command line."""

    name: str  #: the key in :attr:`Context.options`
    metavar: str  #: what the help calls it
    help: str
    type: Callable[[str], Any] = str


class NotApplicable(Exception):
    """
    Raised by ``analyze()``: the target has nothing that the analysis looks at.

    The text says how that was shown and, where it helps, what to do for
    another time. What merely could not be read is a gap, and not this.
    """


class WrongArgument(TargetError):
    """
    Raised by ``analyze()``: the target was seen to have nothing of what was asked for.

    The command ends with exit code 2, as for any other wrong argument. What may be
    there, and was not seen, is a gap, and not this.
    """


@dataclasses.dataclass(frozen=True)
class Requires:
    """
    What must be in the debug info.

    Types identify the subsystem: where vmlinux and every loaded module have
    debug info and a type is nowhere in it, the kernel has no such subsystem
    and the analysis is not applicable. Without full debug info it is skipped,
    unless the type could not be in what has none.
    """

    types: Tuple[str, ...] = ()
    symbols: Tuple[str, ...] = ()
    builtin: Tuple[str, ...] = ()  #: types of what is in vmlinux, or not in the kernel
    module: Optional[str] = None  #: what *types* are of, where it is not in vmlinux


@dataclasses.dataclass(frozen=True)
class Context:
    """What an analysis is given."""

    prog: Program
    memory: Memory  #: the pages that the target holds, and bulk reads of them
    coverage: Coverage  #: where it counts what it could not read
    options: Mapping[str, Any]  #: by :attr:`Option.key` and :attr:`Argument.name`
    progress: Progress


@dataclasses.dataclass(frozen=True)
class ManyRows:
    """
    Rows of one type, counted without being made.

    An analysis that would make a row for each of a million objects yields
    this instead; no more rows are taken than ``--limit`` asks for.
    """

    row_type: type
    total: int
    rows: Iterable[Any]


@dataclasses.dataclass(frozen=True)
class Analysis:
    name: str
    analyze: Callable[[Context], Iterator[Any]]
    tables: Tuple[type, ...]
    rules: Tuple[Rule, ...]
    options: Tuple[Option, ...] = ()
    requires: Requires = Requires()
    argument: Optional[Argument] = None
    on_demand: bool = False  #: it takes long, and triage's answer does not need it

    @property
    def in_triage(self) -> bool:
        """Whether triage runs it without being asked."""
        return self.argument is None and not self.on_demand

    @property
    def doc(self) -> str:
        """The module's docstring, for the analysis's user."""
        module = sys.modules[self.analyze.__module__]
        return inspect.cleandoc(module.__doc__ or "")

    @property
    def summary(self) -> str:
        return self.doc.partition("\n")[0]
