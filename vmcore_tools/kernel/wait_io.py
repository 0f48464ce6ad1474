# SPDX-License-Identifier: LGPL-2.1-or-later
"""From buffers, bios, requests and pages to their block device: a part of the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator, Optional

from drgn import FaultError, Object

from vmcore_tools.kernel.io_waits import disk_name, disk_of_block_device, disk_of_io
from vmcore_tools.kernel.wait_disks import disk_with_page
from vmcore_tools.kernel.wait_graph import Edge
from vmcore_tools.kernel.wait_nodes import DEVICE, Node
from vmcore_tools.kernel.waits import Wait

if TYPE_CHECKING:
    from vmcore_tools.kernel.wait_chain import WaitChains

#: include/linux/mm.h: the low bits of page->mapping that say that it is no inode's.
_MAPPING_FLAGS = 3


def follow_io_wait(chains: WaitChains, node: Node, wait: Wait) -> Iterator[Edge]:
    """From a task that waits for a bio, a request or a buffer to that, and to the disk."""
    key = chains.object(wait.kind, wait.object)
    yield Edge(node.key, key, "waits for", wait.proven)
    disk = disk_of_io(wait.object)
    if disk is not None:
        # Whoever locked the buffer need not have sent it to the device.
        yield Edge(key, _disk(chains, disk), "is an I/O of", wait.kind != "buffer")


def follow_tag_wait(chains: WaitChains, node: Node, wait: Wait) -> Iterator[Edge]:
    """From a task that waits until a request of a disk is free to the disk."""
    yield Edge(node.key, _disk(chains, wait.object), "waits for a free request of", wait.proven)


def follow_page_wait(chains: WaitChains, node: Node, wait: Wait) -> Iterator[Edge]:
    """From a task that waits for a page to that, and to the disk that reads or writes it."""
    key = chains.object(wait.kind, wait.object)
    yield Edge(node.key, key, "waits for", wait.proven)
    disk = disk_with_page(chains, wait.object)
    if disk is not None:
        yield Edge(key, _disk(chains, disk), "is in a request of")
        return
    disk = _disk_of_page(wait)
    if disk is not None:
        yield Edge(key, _disk(chains, disk), "is under writeback to", False)


def _disk(chains: WaitChains, disk: Object) -> str:
    key = f"disk {disk.value_():#x}"
    return chains.add(Node(key, DEVICE, disk, "disk", label=disk_name(disk)))


def _disk_of_page(wait: Wait) -> Optional[Object]:
    """The disk of the file system of a page that is under writeback."""
    page = wait.object
    try:
        if wait.bit != page.prog_.constant("PG_writeback").value_():
            return None
        mapping = page.mapping.read_()
        if not mapping or mapping.value_() & _MAPPING_FLAGS:
            return None
        device = mapping.host.i_sb.s_bdev.read_()
        return disk_of_block_device(device) if device else None
    except (FaultError, LookupError, AttributeError):
        return None
