# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which disk has a page: the requests that drivers have not completed, by their pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Optional

from drgn import FaultError, Object
from drgn.helpers import ValidationError
from drgn.helpers.linux.block import for_each_disk

from vmcore_tools.kernel.blk_mq import bio_waiter, for_each_bio, for_each_page, requests_in_flight
from vmcore_tools.kernel.waits import Wait

if TYPE_CHECKING:
    from vmcore_tools.kernel.wait_chain import WaitChains

_PAGES_KEY = "vmcore_tools.wait_disks.pages"
_BIOS_KEY = "vmcore_tools.wait_disks.bios"


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
