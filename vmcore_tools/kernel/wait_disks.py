# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which disk has a page: the requests that drivers have not completed, by their pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Optional

from drgn import FaultError, Object
from drgn.helpers import ValidationError
from drgn.helpers.linux.block import for_each_disk

from vmcore_tools.kernel.blk_mq import (
    bio_waiter,
    for_each_bio,
    for_each_page,
    for_each_tag_wait_queue,
    requests_in_flight,
)
from vmcore_tools.kernel.waits import Wait

if TYPE_CHECKING:
    from vmcore_tools.kernel.wait_chain import WaitChains

_PAGES_KEY = "vmcore_tools.wait_disks.pages"
_BIOS_KEY = "vmcore_tools.wait_disks.bios"
_TAGS_KEY = "vmcore_tools.wait_disks.tags"


def disk_with_page(chains: WaitChains, page: Object) -> Optional[Object]:
    """
    The disk whose driver has a request for a page.

    :param page: ``struct page *`` or ``struct folio *``
    :return: ``struct gendisk *``; None if no request in flight has the page
    """
    return _found(chains, _PAGES_KEY).get(page.value_())


def direct_io_of(chains: WaitChains, task: Object) -> Optional[Wait]:
    """
    The wait for the bio in flight that names a task as who sleeps until it ends.

    :param task: ``struct task_struct *``
    :return: None if there is none
    """
    bio = _found(chains, _BIOS_KEY).get(task.value_())
    return None if bio is None else Wait("bio", bio, "the bio names it as who sleeps")


def as_direct_io(chains: WaitChains, wait: Wait) -> Optional[Wait]:
    """The timer of ``blk_io_schedule()``, which only looks after the bio, as a wait for that."""
    return direct_io_of(chains, wait.object.task) if wait.kind == "timer" else None


def as_tag(chains: WaitChains, wait: Wait) -> Optional[Wait]:
    """The wait queue of those who wait until a request of a disk is free, as a wait for that."""
    if wait.kind != "wait queue":
        return None
    disk = _disks_by_tag_queues(chains).get(wait.object.value_())
    if disk is None:
        return None
    return Wait("tag", disk, "it is on a wait queue of the disk's tags", wait.proven)


def _disks_by_tag_queues(chains: WaitChains) -> Dict[int, Object]:
    """By the addresses of wait queues; without those that several disks have together."""
    if _TAGS_KEY in chains.found:
        return chains.found[_TAGS_KEY]
    disks = chains.found[_TAGS_KEY] = {}
    shared = set()
    try:
        for disk in for_each_disk(chains.prog):
            try:
                for queue in for_each_tag_wait_queue(disk.queue.read_()):
                    if disks.setdefault(queue.value_(), disk) != disk:
                        shared.add(queue.value_())
            except (FaultError, ValidationError) as error:
                chains.lost("tags of a disk", error, disk.value_())
    except (LookupError, AttributeError):
        pass  # no block devices, or none of their debug info
    except (FaultError, ValidationError) as error:
        chains.lost("list of disks", error, 0)
    for address in shared:
        del disks[address]
    return disks


def _found(chains: WaitChains, key: str) -> Dict[int, Object]:
    """What requests in flight have: pages, or bios by the tasks that sleep for them."""
    if key not in chains.found:
        chains.found[_PAGES_KEY] = {}
        chains.found[_BIOS_KEY] = {}
        try:
            for disk in for_each_disk(chains.prog):
                _look_at(chains, disk)
        except LookupError:
            pass  # no block devices, or none of their debug info
        except (FaultError, ValidationError) as error:
            chains.lost("list of disks", error, 0)
    return chains.found[key]


def _look_at(chains: WaitChains, disk: Object) -> None:
    pages, bios = chains.found[_PAGES_KEY], chains.found[_BIOS_KEY]
    try:
        for address in requests_in_flight(disk.queue.read_()).requests.tolist():
            request = Object(chains.prog, "struct request *", value=address)
            for page in for_each_page(request):
                pages[page.value_()] = disk
            for bio in for_each_bio(request):
                task = bio_waiter(bio)
                if task is not None:
                    bios[task.value_()] = bio
    except (FaultError, ValidationError) as error:
        chains.lost("requests of a disk", error, disk.value_())
