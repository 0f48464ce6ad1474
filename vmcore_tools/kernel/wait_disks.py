# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which disk has a page: the requests that drivers have not completed, by their pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Iterator, Optional, Tuple

from drgn import FaultError, Object
from drgn.helpers import ValidationError
from drgn.helpers.linux.block import for_each_disk

from vmcore_tools.kernel.blk_mq import for_each_page, requests_in_flight

if TYPE_CHECKING:
    from vmcore_tools.kernel.wait_chain import WaitChains

_PAGES_KEY = "vmcore_tools.wait_disks.pages"


def disk_with_page(chains: WaitChains, page: Object) -> Optional[Object]:
    """
    The disk whose driver has a request for a page.

    :param page: ``struct page *`` or ``struct folio *``
    :return: ``struct gendisk *``; None if no request in flight has the page
    """
    if _PAGES_KEY not in chains.found:
        found = chains.found[_PAGES_KEY] = {}
        try:
            for disk in for_each_disk(chains.prog):
                _add_pages(chains, disk, found)
        except LookupError:
            pass  # no block devices, or none of their debug info
        except (FaultError, ValidationError) as error:
            chains.lost("list of disks", error, 0)
    return chains.found[_PAGES_KEY].get(page.value_())


def _add_pages(chains: WaitChains, disk: Object, found: Dict[int, Object]) -> None:
    try:
        for page, owner in _pages(chains, disk):
            found[page] = owner
    except (FaultError, ValidationError) as error:
        chains.lost("requests of a disk", error, disk.value_())


def _pages(chains: WaitChains, disk: Object) -> Iterator[Tuple[int, Object]]:
    for address in requests_in_flight(disk.queue.read_()).requests.tolist():
        request = Object(chains.prog, "struct request *", value=address)
        for page in for_each_page(request):
            yield page.value_(), disk
