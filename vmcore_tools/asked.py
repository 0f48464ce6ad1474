# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What analyses are asked for: values of their options and arguments, as text.

What is no such value is refused before anything is opened. What the target has not is
a :class:`~vmcore_tools.analysis.WrongArgument`, unless it may be there, unseen.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from typing import Callable, Collection, Optional, Sequence, Tuple

from vmcore_tools.analysis import Context, WrongArgument
from vmcore_tools.kernel.slab import SlabFault, SlabIndex

#: On 64 bits the kernel has the upper half; its last page is that of error pointers.
_KERNEL_FROM, _KERNEL_TO = 1 << 63, (1 << 64) - 4096


def number_from(least: int) -> Callable[[str], int]:
    """A type for options: a whole number of at least *least*."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise ArgumentTypeError(f"{text!r} is no number of {least} or more")
        return int(text)

    return number


def one_of(words: Collection[str]) -> Callable[[str], str]:
    """A type for options: one of some words."""

    def word(text: str) -> str:
        if text not in words:
            raise ArgumentTypeError(f"there is no {text!r}; give one of {', '.join(words)}")
        return text

    return word


def comma_separated(text: str) -> Tuple[str, ...]:
    """A type for options: names with commas between them."""
    found = tuple(name.strip() for name in text.split(","))
    if not all(found):
        raise ArgumentTypeError(f"{text!r} has an empty name; give them as A,B")
    return found


def parse_address(text: str) -> Optional[int]:
    """The address that a text is, with 0x in front or all of its 16 digits; else None."""
    if not text.lower().startswith("0x") and len(text) != 16:
        return None
    try:
        address = int(text, 16)
    except ValueError:
        return None
    return address if 0 <= address < 1 << 64 else None


def kernel_address(text: str) -> Optional[int]:
    """
    As :func:`parse_address`, of the kernel.

    :raises WrongArgument: if a text is another address: a small number is found
        all over memory, and is no reference
    """
    address = parse_address(text)
    if address is not None and not _KERNEL_FROM <= address < _KERNEL_TO:
        raise WrongArgument(
            f"{text} is no address of kernel memory, such as 0xffff888003f1a2c0; give one from a"
            " report or a stack"
        )
    return address


def check_caches(ctx: Context, index: SlabIndex, wanted: Sequence[str]) -> None:
    """
    See that there are slab caches of these names.

    :raises WrongArgument: if there is none of a name; it is a gap where not all caches were read
    """
    known = {cache.name for cache in index.caches}
    for name in wanted:
        if name in known:
            continue
        if all_caches_seen(index):
            raise WrongArgument(f"there is no slab cache {name!r}; 'run slabs' names them all")
        ctx.coverage.gap("slab cache", f"none with the name {name} was seen")


def all_caches_seen(index: SlabIndex) -> bool:
    """Whether a slab cache that was not read can be none."""
    return all(problem.fault is not SlabFault.CACHE_LIST for problem in index.problems)
