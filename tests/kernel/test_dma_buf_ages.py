# SPDX-License-Identifier: LGPL-2.1-or-later
"""Ages of dma-bufs on kernels whose clock or inodes are laid out in another way."""

from __future__ import annotations

from typing import Dict, List

import numpy as np
import pytest
from drgn import Architecture, Object, Platform, Program, Type, TypeMember

from vmcore_tools.kernel.dma_buf import DmaBufs, ages_ns

PROG = Program(Platform(Architecture.X86_64))
S64 = PROG.int_type("long", 8, True)
KEEPER = PROG.struct_type("timekeeper", 8, [TypeMember(S64, "xtime_sec")])
TIME = PROG.struct_type("timespec64", 8, [TypeMember(S64, "tv_sec")])
POINTER = PROG.pointer_type(PROG.void_type())


def struct(name: str, members: Dict[str, Type]) -> Type:
    return PROG.struct_type(name, 8, [TypeMember(type_, each) for each, type_ in members.items()])


class Kernel:
    """What a kernel without memory knows of its types and its clock."""

    def __init__(self, core: Dict[str, Type], inode: Dict[str, Type]) -> None:
        data = struct("tk_data", core)
        self.core = Object(PROG, data, value={each: {} for each in core})
        self.types = {
            "struct inode": struct("inode", inode),
            "struct file": struct("file", {"f_inode": POINTER}),
        }

    def type(self, name: str) -> Type:
        return self.types[name]

    def __getitem__(self, name: str) -> Object:
        if name == "tk_core":
            return self.core
        raise KeyError(name)


def ages(core: Dict[str, Type], inode: Dict[str, Type]) -> List[int]:
    nothing = np.zeros(0, dtype=np.uint64)
    none = DmaBufs(
        *(nothing, nothing, nothing.astype(np.int64), nothing, nothing, nothing, nothing, nothing),
        unread=(),
    )
    return list(ages_ns(Kernel(core, inode), none).tolist())  # type: ignore[arg-type]


@pytest.mark.parametrize("inode", [{"i_ctime": TIME}, {"__i_ctime": TIME}, {"i_ctime_sec": S64}])
def test_layouts_that_are_known(inode: Dict[str, Type]) -> None:
    assert ages({"timekeeper": KEEPER}, inode) == []


@pytest.mark.parametrize(
    ("core", "inode"),
    [
        ({"timekeeper": KEEPER}, {"changed": S64}),
        ({"keeper": KEEPER}, {"i_ctime": TIME}),
        ({"timekeeper": TIME}, {"i_ctime": TIME}),
    ],
)
def test_others_are_no_error_that_nobody_expects(
    core: Dict[str, Type], inode: Dict[str, Type]
) -> None:
    with pytest.raises(LookupError):
        ages(core, inode)
