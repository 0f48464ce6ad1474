# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's resource tree: where RAM is."""

from __future__ import annotations

from typing import Iterator, List, Set, Tuple

from drgn import Object, Program
from drgn.helpers import ValidationError

from vmcore_tools.kernel.strings import c_string

#: More resources than any machine has; a damaged tree must end.
_RESOURCES_MAX = 100_000
#: Physical addresses have 52 bits at most, on x86-64 and arm64.
_PHYSICAL_END = 1 << 52


def for_each_resource(root: Object) -> Iterator[Object]:
    """
    Iterate over the resources below a root, parents first.

    Mirrors ``next_resource()`` of kernel/resource.c.

    :param root: ``struct resource *``
    :return: Iterator of ``struct resource *``
    """
    pending = [root.child.read_()]
    seen: Set[int] = set()
    while pending and len(seen) < _RESOURCES_MAX:
        resource = pending.pop()
        if not resource or resource.value_() in seen:
            continue  # a damaged tree can have circles
        seen.add(resource.value_())
        yield resource
        pending.append(resource.sibling.read_())
        pending.append(resource.child.read_())


def resource_name(resource: Object) -> bytes:
    """
    What a resource is called in /proc/iomem; empty where that has ``<BAD>``.

    :param resource: ``struct resource *``
    :raises drgn.FaultError: if it is not in the dump
    """
    return c_string(resource.name) if resource.name else b""


def system_ram(prog: Program) -> Iterator[Tuple[int, int]]:
    """
    Physical address ranges ``[start, end)`` of System RAM, hotplugged memory included.

    :raises drgn.FaultError: if the tree cannot be read
    :raises drgn.helpers.ValidationError: if a range cannot be
    :raises LookupError: without the debug info of ``iomem_resource``
    """
    for resource in for_each_resource(prog["iomem_resource"].address_of_()):
        # IORESOURCE_SYSTEM_RAM is a macro, which debug info does not have.
        # Drivers that add memory put their name behind: "System RAM (virtio_mem)".
        if resource_name(resource).startswith(b"System RAM"):
            start, end = resource.start.value_(), resource.end.value_() + 1
            if not start < end <= _PHYSICAL_END:
                raise ValidationError(f"no RAM can be at 0x{start:x}-0x{end:x}")
            yield start, end


def kernel_ram(prog: Program) -> List[Tuple[int, int]]:
    """
    Physical address ranges ``[start, end)`` of the RAM that this kernel uses.

    That is System RAM without what is reserved for a crash kernel, which no
    dump of this kernel has.

    :raises drgn.FaultError: if the tree cannot be read
    :raises drgn.helpers.ValidationError: if a range cannot be
    :raises LookupError: without the debug info of ``iomem_resource``
    """
    reserved = sorted(
        (resource.start.value_(), resource.end.value_() + 1)
        for resource in for_each_resource(prog["iomem_resource"].address_of_())
        if resource_name(resource) == b"Crash kernel"
    )
    ranges = []
    for start, end in system_ram(prog):
        for low, high in reserved:
            if low < end and start < high:
                ranges.append((start, low))
                start = high
        ranges.append((start, end))
    return [(start, end) for start, end in ranges if start < end]
