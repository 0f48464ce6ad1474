# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What kfree_rcu() and kvfree_rcu() were given and have not freed yet.

They gather pointers by CPU, in pages of their own, until a grace period has
passed. Such a pointer holds nothing; nor does what an earlier batch left
behind in the pages.
"""

from __future__ import annotations

import dataclasses
from typing import Dict, Iterator, List, Set, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, offsetof, sizeof
from drgn.helpers import ValidationError
from drgn.helpers.linux.cpumask import for_each_possible_cpu
from drgn.helpers.linux.llist import llist_for_each
from drgn.helpers.linux.percpu import per_cpu

from vmcore_tools.kernel.lists import for_each_entry

U64 = npt.NDArray[np.uint64]

_CACHE_KEY = "vmcore_tools.kernel.kfree_rcu"
#: Pages, or objects without a page to note them in, of one CPU's list.
_LIST_MAX = 1_000_000
#: What kfree_rcu() takes for the offset of the rcu_head (__is_kvfree_rcu_offset()).
_OFFSET_MAX = 4096
_ADDRESS_MAX = (1 << 64) - 1


@dataclasses.dataclass(frozen=True)
class KfreeRcu:
    """
    Memory that waits to be freed; get it with :func:`kfree_rcu`.

    Objects in SLUB's sheaves, where newer kernels gather them first, are free
    for the slab index and not here.

    :ivar waiting: uint64 array of shape (n,), sorted: what waits to be freed
    :ivar own: uint64 array of shape (m, 2), sorted ranges ``[start, end)``:
        what kfree_rcu() keeps its pointers in
    :ivar unread: (address, what is wrong) of lists that could not be followed
    """

    waiting: U64
    own: U64
    unread: Tuple[Tuple[int, str], ...]

    def waits(self, addresses: U64) -> npt.NDArray[np.bool_]:
        """Which addresses are where something begins that waits to be freed."""
        return np.isin(addresses, self.waiting)


def kfree_rcu(prog: Program, page_size_bytes: int) -> KfreeRcu:
    """What waits, read once for a program."""
    if _CACHE_KEY not in prog.cache:
        prog.cache[_CACHE_KEY] = _read(prog, page_size_bytes)
    found: KfreeRcu = prog.cache[_CACHE_KEY]
    return found


def _read(prog: Program, page_size: int) -> KfreeRcu:
    try:
        krc = prog["krc"]
    except KeyError:
        # Before v5.5, or with TINY_RCU, each object waits by its own rcu_head.
        return KfreeRcu(np.zeros(0, dtype=np.uint64), np.zeros((0, 2), dtype=np.uint64), ())
    gathered = _Gathered(prog, page_size)
    for cpu in for_each_possible_cpu(prog):
        gathered.add(per_cpu(krc, cpu))
    waiting = np.concatenate([np.zeros(0, dtype=np.uint64), *gathered.waiting])
    own = np.array(sorted(gathered.own), dtype=np.uint64).reshape(-1, 2)
    return KfreeRcu(np.unique(waiting), own, tuple(gathered.unread))


class _Gathered:
    """What the lists of all CPUs have."""

    def __init__(self, prog: Program, page_size: int) -> None:
        self.waiting: List[U64] = []
        self.own: List[Tuple[int, int]] = []
        self.unread: List[Tuple[int, str]] = []
        self._prog = prog
        self._page_size = page_size

    def add(self, krc: Object) -> None:
        """
        :param krc: ``struct kfree_rcu_cpu`` of a CPU
        """
        start = krc.address_
        assert start is not None
        self._follow(krc.head)
        for number in range(krc.krw_arr.type_.length or 0):
            work = krc.krw_arr[number]
            self._follow(work.head_free)
            self._blocks(work, "bkvhead_free", "bulk_head_free")
        self._blocks(krc, "bkvhead", "bulk_head")
        try:
            for number, node in enumerate(llist_for_each(krc.bkvcache.first)):
                if number >= _LIST_MAX:
                    raise ValidationError("a list of cached pages has no end")
                self._own_page(node.value_())
        except (AttributeError, FaultError, ValidationError) as error:
            self.unread.append((start, f"the cached pages of kfree_rcu() cannot be read: {error}"))

    def _own_page(self, address: int) -> None:
        self.own.append((address, min(address + self._page_size, _ADDRESS_MAX)))

    def _blocks(self, holder: Object, chain: str, list_: str) -> None:
        """The blocks of pointers of one holder: slab objects' and vmalloc areas'."""
        # 27538e18b62f ("rcu/kvfree: Switch to a generic linked list API") in v6.3.
        is_chain = hasattr(holder, chain)
        if not is_chain and not hasattr(holder, list_):
            self.unread.append((holder.address_ or 0, "its members are not known here"))
            return
        heads = holder.member_(chain if is_chain else list_)
        for channel in range(heads.type_.length or 0):
            try:
                for block in _chain(heads[channel]) if is_chain else _list(heads[channel]):
                    self._block(block)
            except (FaultError, ValidationError) as error:
                address = heads[channel].address_ or 0
                self.unread.append((address, f"a list of kfree_rcu() breaks off: {error}"))

    def _block(self, block: Object) -> None:
        """
        :param block: ``struct kvfree_rcu_bulk_data *``, which fills a page
        """
        address = block.value_()
        records = (address + offsetof(block.type_.type, "records")) & _ADDRESS_MAX
        count = block.nr_records.value_()
        if records + 8 * count > address + self._page_size:
            raise ValidationError(f"a block cannot have {count} records")
        self._own_page(address)
        self.waiting.append(np.frombuffer(self._prog.read(records, 8 * count), dtype=np.uint64))

    def _follow(self, head: Object) -> None:
        """
        The objects for which there was no page.

        :param head: ``struct callback_head *``
        """
        # No more than these words of a CPU's structure: its own rcu_head, work and
        # timer are on lists of others, to whose objects they lead.
        where = head.address_
        assert where is not None
        self.own.append((where, where + sizeof(head)))
        found: Dict[int, int] = {}  # where each rcu_head is, to its object
        start = head.value_()
        try:
            while head:
                at, func = head.value_(), head.func.value_()
                if at in found or len(found) >= _LIST_MAX:
                    raise ValidationError("it has no end")
                # It was the offset up to 04a522b7da3d ("rcu: Refactor kvfree_call_rcu()
                # and high-level helpers") in v6.3, and is the object since.
                found[at] = (at - func) & _ADDRESS_MAX if func < _OFFSET_MAX else func
                head = head.next.read_()
        except (FaultError, ValidationError) as error:
            self.unread.append((start, f"a list of kfree_rcu() breaks off: {error}"))
        self.waiting.append(np.array(list(found.values()), dtype=np.uint64))


def _chain(first: Object) -> Iterator[Object]:
    """
    :param first: ``struct kvfree_rcu_bulk_data *``
    """
    seen: Set[int] = set()
    block = first.read_()
    while block:
        if block.value_() in seen or len(seen) >= _LIST_MAX:
            raise ValidationError("it has no end")
        seen.add(block.value_())
        yield block
        block = block.next.read_()


def _list(head: Object) -> Iterator[Object]:
    """
    :param head: ``struct list_head``
    """
    yield from for_each_entry("struct kvfree_rcu_bulk_data", head.address_of_(), "list", _LIST_MAX)
