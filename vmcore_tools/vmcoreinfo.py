# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The VMCOREINFO note: what the kernel writes about itself for dump tools.

It is in every kdump and every ELF vmcore, so it can be read without debug
info. See Documentation/admin-guide/kdump/vmcoreinfo.rst of the kernel.
"""

from __future__ import annotations

from typing import Dict, Optional

from drgn import Architecture, Program


def parse(note: str) -> Dict[str, str]:
    """The ``KEY=value`` lines; the first of equal keys counts, as for drgn."""
    values: Dict[str, str] = {}
    for line in note.split("\n"):
        key, separator, value = line.partition("=")
        if separator:
            values.setdefault(key, value)
    return values


def of_program(prog: Program) -> Dict[str, str]:
    """The VMCOREINFO of a program that is set to a Linux kernel."""
    return parse(prog["VMCOREINFO"].string_().decode("utf-8", "replace"))


def build_id(values: Dict[str, str]) -> Optional[str]:
    """The build ID of vmlinux in hex; the kernel writes it since 5.9."""
    value = values.get("BUILD-ID", "").lower()
    return value if value and set(value) <= set("0123456789abcdef") else None


def architecture(values: Dict[str, str]) -> Optional[Architecture]:
    """The architecture, told by what only its kernel writes."""
    if "NUMBER(kimage_voffset)" in values:
        return Architecture.AARCH64
    if "NUMBER(phys_base)" in values:
        return Architecture.X86_64
    return None


def number(values: Dict[str, str], key: str) -> Optional[int]:
    """A hexadecimal value, such as ``KERNELOFFSET`` or ``SYMBOL(_stext)``."""
    try:
        return int(values[key], 16)
    except (KeyError, ValueError):
        return None
