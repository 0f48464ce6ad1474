# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What an IDR, an XArray or a radix tree has, with the words that hold it.

drgn's helpers read one entry at a time, do not say where it is, and do not end
where a damaged node is below itself. Here the nodes of each level are read together.
"""

from __future__ import annotations

import dataclasses
from typing import Iterator, List, Set, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, offsetof, sizeof

from vmcore_tools.kernel.layout import read_structs

U64 = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]

#: More than memory has room for on any machine; a damaged tree must end.
_NODES_MAX = 1 << 22
#: Levels of a tree of 64-bit indices: 6 bits each, or 4 with CONFIG_BASE_SMALL.
_LEVELS_MAX = 17
#: ``xa_is_node()`` of include/linux/xarray.h: entries up to here mean something else.
_XA_INTERNAL_MAX = 4096
_TAG_MASK = 3


@dataclasses.dataclass(frozen=True)
class Slots:
    """
    The pointers that an IDR has, one entry for each, as arrays of shape (n,).

    :ivar id: int64
    :ivar entry: uint64, the pointer
    :ivar word: uint64, the address of the slot that holds it
    :ivar unread: addresses of nodes that are damaged or could not be read
    """

    id: Ints
    entry: U64
    word: U64
    unread: Tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Tags:
    """
    How entries are told apart, by their two lowest bits.

    :ivar node: of a pointer to a node
    :ivar nodes_above: such pointers are greater than this
    """

    node: int
    nodes_above: int

    def is_node(self, entry: int) -> bool:
        return entry & _TAG_MASK == self.node and entry > self.nodes_above


def idr_slots(idr: Object) -> Slots:
    """
    All pointers of an IDR, in the order of their IDs.

    :param idr: ``struct idr *``
    :raises drgn.FaultError: if the IDR itself is not in the dump
    """
    found = _slots(idr.prog_, idr.idr_rt)
    # "idr: Permit any valid kernel pointer to be stored" and idr_base: v4.17.
    base = int(idr.idr_base.value_()) if hasattr(idr, "idr_base") else 0
    return dataclasses.replace(found, id=found.id + base)


def xarray_slots(xarray: Object) -> Slots:
    """
    All pointers of an XArray, in the order of their indices.

    :param xarray: ``struct xarray *``
    :raises drgn.FaultError: if the XArray itself is not in the dump
    """
    return _slots(xarray.prog_, xarray)


def for_each_pointer(tree: Object, type_name: str) -> Iterator[Tuple[int, Object]]:
    """
    Iterate over the pointers of an IDR or an XArray, in the order of their IDs.

    :param tree: ``struct idr *`` or ``struct xarray *``
    :param type_name: what they point to
    :return: Iterator of each ID and ``type_name *``
    :raises drgn.FaultError: behind the last one, if nodes are damaged or not in the dump
    """
    found = idr_slots(tree) if hasattr(tree, "idr_rt") else xarray_slots(tree)
    type_ = tree.prog_.pointer_type(tree.prog_.type(type_name))
    for id, entry in zip(found.id.tolist(), found.entry.tolist()):
        yield id, Object(tree.prog_, type_, entry)
    if found.unread:
        reason = "a node of a tree of IDs is damaged or not in the dump"
        raise FaultError(reason, found.unread[0])


def find_pointer(idr: Object, id: int, type_name: str) -> Object:
    """
    The pointer that an IDR has for an ID.

    :param idr: ``struct idr *``
    :param type_name: what it points to
    :return: ``type_name *``, NULL if it has none
    :raises drgn.FaultError: if a node is damaged or not in the dump
    """
    prog = idr.prog_
    head, type_name_of_node, tags = _head(idr.idr_rt)
    entry, above = int(head.value_()), 64
    index = id - (int(idr.idr_base.value_()) if hasattr(idr, "idr_base") else 0)
    while tags.is_node(entry):
        node = Object(prog, type_name_of_node + " *", entry - tags.node)
        shift = int(node.shift.value_())
        if shift >= above:
            raise FaultError("a node of a tree of IDs is damaged", node.value_())
        above, slot = shift, index >> shift
        index -= slot << shift
        entry = int(node.slots[slot].value_()) if 0 <= slot < len(node.slots) else 0
    found = 0 if index or entry & _TAG_MASK else entry
    return Object(prog, prog.pointer_type(prog.type(type_name)), found)


def _head(root: Object) -> Tuple[Object, str, _Tags]:
    """The first entry of a tree, the type of its nodes, and how entries are told apart."""
    # "xarray: Replace exceptional entries", "radix tree: Remove radix_tree_root": v4.20.
    if hasattr(root, "xa_head"):
        return root.xa_head, "struct xa_node", _Tags(2, _XA_INTERNAL_MAX)
    return root.rnode, "struct radix_tree_node", _Tags(1, 0)


def _slots(prog: Program, root: Object) -> Slots:
    head, type_name, tags = _head(root)
    dtype = _node_dtype(prog, type_name)
    entry, word = head.value_(), head.address_
    assert word is not None
    entries = np.array([entry], dtype=np.uint64)
    words = np.array([word], dtype=np.uint64)
    start, shift = np.zeros(1, dtype=np.int64), np.full(1, 64, dtype=np.int64)
    ids: List[Ints] = []
    found: List[Tuple[U64, U64]] = []
    unread: List[int] = []
    seen: Set[int] = set()
    for _ in range(_LEVELS_MAX):
        is_entry = (entries & np.uint64(_TAG_MASK) == 0) & (entries != 0)
        ids.append(start[is_entry])
        found.append((entries[is_entry], words[is_entry]))
        is_node = (entries & np.uint64(_TAG_MASK) == tags.node) & (entries > tags.nodes_above)
        nodes = entries[is_node] - np.uint64(tags.node)
        if not len(nodes):
            break
        structs, read = read_structs(prog, nodes.tolist(), dtype)
        node_shift = structs["shift"].astype(np.int64)
        fresh = np.array([node not in seen for node in nodes.tolist()], dtype=bool)
        seen.update(nodes.tolist())
        # Each level is below the one before it, or the tree would not end.
        good = read & fresh & (node_shift < shift[is_node]) & (len(seen) <= _NODES_MAX)
        unread += nodes[~good].tolist()
        slots = structs["slots"][good]
        count = slots.shape[1]
        step = np.arange(count, dtype=np.int64)
        entries = slots.reshape(-1).astype(np.uint64)
        first = nodes[good] + np.uint64(offsetof(prog.type(type_name), "slots"))
        words = (first[:, None] + step.astype(np.uint64) * np.uint64(8)).reshape(-1)
        shift = np.repeat(node_shift[good], count)
        start = np.repeat(start[is_node][good], count) + (np.tile(step, len(slots)) << shift)
    at = np.concatenate(ids)
    order = np.argsort(at, kind="stable")
    return Slots(
        at[order],
        np.concatenate([entry for entry, _ in found])[order],
        np.concatenate([word for _, word in found])[order],
        tuple(unread),
    )


def _node_dtype(prog: Program, type_name: str) -> np.dtype[np.void]:
    type_ = prog.type(type_name)
    order = "<" if prog.platform.flags.IS_LITTLE_ENDIAN else ">"
    slots = type_.member("slots").type
    return np.dtype(
        {
            "names": ["shift", "slots"],
            "formats": ["u1", (f"{order}u8", (slots.length,))],
            "offsets": [offsetof(type_, "shift"), offsetof(type_, "slots")],
            "itemsize": sizeof(type_),
        }
    )
