# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a dump is and holds: ``vmcore-tools info``.

Works without debug info, and says which debug info is needed.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Dict, List, Optional, Tuple, Union

from drgn import Program

from vmcore_tools import debug_info, vmcoreinfo
from vmcore_tools.dump.page_map import PageMap
from vmcore_tools.errors import TargetError, printable
from vmcore_tools.model import Absent, Evidence, Kind
from vmcore_tools.target import architecture_name, read_page_map, set_core_dump

#: The bits of makedumpfile's ``-d``: DL_EXCLUDE_* of its makedumpfile.h.
_DUMP_LEVEL_BITS = (
    (1, "zero pages"),
    (2, "page cache that is not private"),
    (4, "private page cache"),
    (8, "user pages"),
    (16, "free pages"),
)
_NOT_RECORDED = Absent("not recorded in the dump")


def describe(path: Union[str, Path]) -> Tuple[Evidence, ...]:
    """
    What the dump is and holds, in a fixed order.

    :raises TargetError: if it is no dump
    """
    page_map = read_page_map(path)
    facts = [
        Evidence("file", Kind.SENSITIVE, os.path.basename(path)),
        Evidence("format", Kind.TEXT, page_map.format),
        Evidence("flattened", Kind.TEXT, page_map.flattened),
        Evidence("truncated", Kind.TEXT, page_map.truncated),
        Evidence("file_size_bytes", Kind.BYTES, os.path.getsize(path)),
    ]
    try:
        with debug_info.drgn_log():
            prog = set_core_dump(path)
    except TargetError as error:
        # The user's folders are no fact about the dump.
        reason = str(error).replace(printable(str(path)), printable(os.path.basename(path)))
        facts.append(Evidence("kernel", Kind.UNTRUSTED, Absent(reason)))
    else:
        facts += _kernel(prog)
    return tuple(facts + _pages(page_map))


def excluded_by(dump_level: int) -> Tuple[str, ...]:
    """In words, what makedumpfile left out with this ``-d``."""
    return tuple(words for bit, words in _DUMP_LEVEL_BITS if dump_level & bit)


def _kernel(prog: Program) -> List[Evidence]:
    values = vmcoreinfo.of_program(prog)
    release = debug_info.release_of(prog)
    return [
        Evidence("kernel_release", Kind.UNTRUSTED, release),
        Evidence("build_id", Kind.TEXT, vmcoreinfo.build_id(values) or _NOT_RECORDED),
        Evidence("architecture", Kind.TEXT, architecture_name(prog)),
        Evidence("crash_time", Kind.UNTRUSTED, _crash_time(values) or _NOT_RECORDED),
        Evidence("kaslr_offset", Kind.ADDRESS, _kaslr_offset(values)),
        Evidence("debug_info_packages", Kind.UNTRUSTED, debug_info.packages(release)),
    ]


def _pages(page_map: PageMap) -> List[Evidence]:
    size = page_map.page_size_bytes
    facts = [
        Evidence("page_size_bytes", Kind.BYTES, size),
        Evidence("present_pages", Kind.COUNT, page_map.present_pages),
        Evidence("present_bytes", Kind.BYTES, page_map.present_pages * size),
    ]
    if page_map.present_pages:
        first, last = int(page_map.runs[0][0]), int(page_map.runs[-1][1])
        facts += [
            Evidence("lowest_physical_address", Kind.ADDRESS, first * size),
            Evidence("highest_physical_address", Kind.ADDRESS, last * size - 1),
        ]
    if page_map.dump_level is None:
        return [
            *facts,
            Evidence("dump_level", Kind.NUMBER, _NOT_RECORDED),
            Evidence("excluded", Kind.TEXT, _NOT_RECORDED),
        ]
    return [
        *facts,
        Evidence("dump_level", Kind.NUMBER, page_map.dump_level),
        Evidence("excluded", Kind.TEXT, excluded_by(page_map.dump_level)),
    ]


def _crash_time(values: Dict[str, str]) -> Optional[str]:
    text = values.get("CRASHTIME", "")
    try:
        time = datetime.datetime.fromtimestamp(int(text), datetime.timezone.utc)
    except (OverflowError, OSError, ValueError):
        return printable(text) or None
    return time.strftime("%Y-%m-%d %H:%M:%S UTC")


def _kaslr_offset(values: Dict[str, str]) -> Union[int, Absent]:
    offset = vmcoreinfo.number(values, "KERNELOFFSET")
    return _NOT_RECORDED if offset is None else offset
