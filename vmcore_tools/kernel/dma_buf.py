# SPDX-License-Identifier: LGPL-2.1-or-later
"""
dma-bufs: found by their files, whose reference count is theirs, and who holds them.

A dma-buf is freed with the last reference to its ``struct file``
(``get_dma_buf()`` is ``get_file()``), but who holds one has a pointer to the
``struct dma_buf``.
"""

from __future__ import annotations

import dataclasses
from typing import Iterator, List, Tuple

import numpy as np
import numpy.typing as npt
from drgn import Object, Program, offsetof

from vmcore_tools.kernel.files import (
    file_counts,
    files_with_ops,
    list_heads,
    waiter_words,
    watch_words,
)
from vmcore_tools.kernel.layout import field_dtype, read_structs
from vmcore_tools.kernel.lists import for_each_entry
from vmcore_tools.kernel.slab import SlabIndex
from vmcore_tools.kernel.strings import text_at

U64 = npt.NDArray[np.uint64]

#: Bounds that no machine reaches; a damaged list must end.
_ATTACHMENTS_MAX = 100_000
_NS_PER_S = 1_000_000_000

#: Exporters whose own structure, ``dma_buf.priv``, points back at the dma-buf
#: that it is freed with: their operations, the structure, and its member.
_BACK_POINTERS = (
    # The dma-buf heaps up to v5.10.
    ("heap_helper_ops", "struct heap_helper_buffer", "dmabuf"),
)


@dataclasses.dataclass(frozen=True)
class DmaBufs:
    """
    All dma-bufs, as arrays of shape (n,), sorted by the address of the file.

    :ivar address: uint64, ``struct dma_buf *``
    :ivar file: uint64, ``struct file *``
    :ivar refcount: int64, the file's
    :ivar size: uint64, of the buffer
    :ivar reservation: uint64, ``struct dma_resv *``
    :ivar priv: uint64, what the exporter has it for; a GEM object with many
    :ivar ops: uint64, ``const struct dma_buf_ops *``
    :ivar exporter: uint64, ``const char *``: what the exporter calls itself
    :ivar unread: addresses of files and dma-bufs that could not be read
    """

    address: U64
    file: U64
    refcount: npt.NDArray[np.int64]
    size: U64
    reservation: U64
    priv: U64
    ops: U64
    exporter: U64
    unread: Tuple[int, ...]

    def files_of(self, dma_bufs: U64) -> U64:
        """
        The files of dma-bufs; what is no dma-buf stays as it is.

        :param dma_bufs: uint64 array of any addresses
        """
        result = dma_bufs.copy()
        if len(self.address):
            order = np.argsort(self.address)
            near = np.searchsorted(self.address[order], dma_bufs)
            at = order[np.minimum(near, len(order) - 1)]
            known = self.address[at] == dma_bufs
            result[known] = self.file[at[known]]
        return result


def dma_bufs(index: SlabIndex) -> DmaBufs:
    """
    All dma-bufs; those that are being built or already torn down are left out.

    By their files: the kernel's own list had three names, and v6.12 has it only
    with debugfs.

    :raises LookupError: without the debug info of dma-buf
    """
    prog = index.prog
    files = files_with_ops(index, prog["dma_buf_fops"])
    members = {"address": "private_data"}
    structs, read = read_structs(
        prog, files.tolist(), field_dtype(prog.type("struct file"), members)
    )
    counts, counted = file_counts(prog, files.tolist())
    unread = files[~(read & counted)].tolist()
    addresses = structs["address"].astype(np.uint64)
    allocated = index.allocated(addresses)
    members = {
        "file": "file",
        "size": "size",
        "reservation": "resv",
        "priv": "priv",
        "ops": "ops",
        "exporter": "exp_name",
    }
    buffers, read = read_structs(
        prog, addresses.tolist(), field_dtype(prog.type("struct dma_buf"), members)
    )
    unread += addresses[allocated & ~read].tolist()
    # The file exists before its dma-buf knows it, and after the dma-buf is freed.
    kept = allocated & read & (buffers["file"] == files)
    return DmaBufs(
        address=addresses[kept],
        file=files[kept],
        refcount=counts[kept],
        size=buffers["size"][kept].astype(np.uint64),
        reservation=buffers["reservation"][kept].astype(np.uint64),
        priv=buffers["priv"][kept].astype(np.uint64),
        ops=buffers["ops"][kept].astype(np.uint64),
        exporter=buffers["exporter"][kept].astype(np.uint64),
        unread=tuple(unread),
    )


def dma_buf_reservations(index: SlabIndex) -> Tuple[List[int], List[int]]:
    """
    The reservation objects of all dma-bufs.

    That of a dma-buf whose exporter has none is in the same memory block.

    :return: addresses of ``struct dma_resv``, sorted: of dma-bufs in use, and
        of those that are being freed; empty on a kernel without dma-buf
    """
    try:
        buffers = dma_bufs(index)
    except LookupError:
        return [], []
    alive = buffers.refcount > 0
    used, ending = (
        sorted(set(buffers.reservation[wanted].tolist()) - {0}) for wanted in (alive, ~alive)
    )
    return used, ending


@dataclasses.dataclass(frozen=True)
class Attachments:
    """
    Devices' attachments to dma-bufs, as arrays of shape (n,).

    :ivar address: uint64, ``struct dma_buf_attachment *``
    :ivar dma_buf: uint64
    :ivar word: uint64, the address of the pointer to it
    :ivar unread: addresses of dma-bufs whose list breaks off
    """

    address: U64
    dma_buf: U64
    word: U64
    unread: Tuple[int, ...] = ()


def attachments(prog: Program, buffers: DmaBufs) -> Attachments:
    """
    All attachments to dma-bufs: all lists are followed at once.

    Who attaches to a dma-buf holds a reference to it until it detaches
    (``dma_buf_attach()``).
    """
    type_, attachment_type = prog.type("struct dma_buf"), prog.type("struct dma_buf_attachment")
    node_offset = np.uint64(offsetof(attachment_type, "node"))
    head = buffers.address + np.uint64(offsetof(type_, "attachments"))
    first, read = read_structs(
        prog, buffers.address.tolist(), field_dtype(type_, {"next": "attachments.next"})
    )
    dma_buf, node = buffers.address[read], first["next"][read].astype(np.uint64)
    head = before = head[read]
    unread: List[int] = []
    rows: List[Tuple[U64, U64]] = []
    members = {"next": "node.next", "prev": "node.prev", "dma_buf": "dmabuf"}
    dtype = field_dtype(attachment_type, members)
    for _ in range(_ATTACHMENTS_MAX):
        more = node != head
        dma_buf, head, before, node = dma_buf[more], head[more], before[more], node[more]
        if not len(node):
            break
        address = node - node_offset
        structs, read = read_structs(prog, address.tolist(), dtype)
        # A list that leads elsewhere, or back, is damaged: its rest is not believed.
        read &= (structs["dma_buf"] == dma_buf) & (structs["prev"] == before)
        unread += dma_buf[~read].tolist()
        rows.append((address[read], dma_buf[read]))
        dma_buf, head, before = dma_buf[read], head[read], node[read]
        node = structs["next"][read].astype(np.uint64)
    else:
        unread += dma_buf.tolist()
    nothing = np.zeros(0, dtype=np.uint64)
    address = np.concatenate([nothing, *(row[0] for row in rows)])
    return Attachments(
        address,
        np.concatenate([nothing, *(row[1] for row in rows)]),
        address + np.uint64(offsetof(attachment_type, "dmabuf")),
        tuple(unread),
    )


def for_each_attachment(dma_buf: Object) -> Iterator[Object]:
    """
    Iterate over the devices' attachments to a dma-buf.

    :param dma_buf: ``struct dma_buf *``
    :return: Iterator of ``struct dma_buf_attachment *``
    :raises drgn.helpers.ValidationError: if the list is damaged
    """
    yield from for_each_entry(
        "struct dma_buf_attachment", dma_buf.attachments.address_of_(), "node", _ATTACHMENTS_MAX
    )


def ages_ns(prog: Program, buffers: DmaBufs) -> npt.NDArray[np.int64]:
    """
    How long ago dma-bufs were made, to the second.

    By the change time of their inode, which ``alloc_anon_inode()`` sets, and
    the clock of the kernel.

    :return: int64 array of shape (n,); -1 where it is not known: not in the
        dump, or the clock was set back since
    :raises LookupError: without the debug info of the timekeeper, or if these are elsewhere
    :raises drgn.FaultError: if the timekeeper is not in the dump
    """
    now_s = _timekeeper(prog).member_("xtime_sec").value_()
    file_type, inode_type = prog.type("struct file"), prog.type("struct inode")
    files, read = read_structs(
        prog, buffers.file.tolist(), field_dtype(file_type, {"inode": "f_inode"})
    )
    # "fs: rename i_ctime field to __i_ctime" of v6.6, "fs: switch timespec64 fields in
    # inode to discrete integers" of v6.11.
    members = ("i_ctime", "__i_ctime", "i_ctime_sec")
    member = next((name for name in members if inode_type.has_member(name)), None)
    if member is None:
        raise LookupError("an inode's change time is not where it was up to v7.2")
    designator = member if member == "i_ctime_sec" else f"{member}.tv_sec"
    inodes, inode_read = read_structs(
        prog, files["inode"].tolist(), field_dtype(inode_type, {"s": designator})
    )
    age_s = now_s - inodes["s"].astype(np.int64)
    return np.where(read & inode_read & (age_s >= 0), age_s * _NS_PER_S, -1)


def _timekeeper(prog: Program) -> Object:
    """``struct timekeeper``, the one of all clocks but the auxiliary ones."""
    # "timekeeping: Prepare for multiple timekeepers" of v6.17 made an array of them.
    try:
        return prog["tk_core"].member_("timekeeper")
    except KeyError:
        return prog["timekeeper_data"][0].member_("timekeeper")


def weak_words(prog: Program, buffers: DmaBufs) -> Tuple[U64, Tuple[int, ...]]:
    """
    The pointers to dma-bufs and to their files that are known to hold no reference.

    These are their own pointers to each other, the list of all dma-bufs, that
    of the attachments, what epoll instances watch them by, and some exporters'
    own pointers.

    :return: uint64 array of the pointers' addresses, and what could not be read
    """
    type_, file_type = prog.type("struct dma_buf"), prog.type("struct file")
    dentries, read = read_structs(
        prog, buffers.file.tolist(), field_dtype(file_type, {"dentry": "f_path.dentry"})
    )
    unread = buffers.file[~read].tolist()
    fsdata = np.uint64(offsetof(prog.type("struct dentry"), "d_fsdata"))
    words = [
        buffers.address + np.uint64(offsetof(type_, "file")),
        buffers.file + np.uint64(offsetof(file_type, "private_data")),
        dentries["dentry"] + fsdata,
    ]
    # v6.12 has no list of all without debugfs.
    lists = ["attachments", *(["list_node"] if type_.has_member("list_node") else []), "poll.head"]
    heads, read = list_heads(prog, buffers.address, type_, lists)
    words += [found.words for found in heads.values()]
    unread += buffers.address[~read].tolist()
    if type_.has_member("sysfs_entry"):  # CONFIG_DMABUF_SYSFS_STATS, from v5.14 on
        entries, _ = read_structs(
            prog, buffers.address.tolist(), field_dtype(type_, {"entry": "sysfs_entry"})
        )
        back = np.uint64(offsetof(type_.member("sysfs_entry").type.type, "dmabuf"))
        words.append(entries["entry"] + back)
    words += _back_pointers(prog, buffers)
    waited_on = buffers.address[heads["poll.head"].used] + np.uint64(offsetof(type_, "poll"))
    for found, missed in (watch_words(prog, buffers.file), waiter_words(prog, waited_on)):
        words.append(found)
        unread += missed
    return np.concatenate(words).astype(np.uint64), tuple(unread)


def _back_pointers(prog: Program, buffers: DmaBufs) -> Iterator[U64]:
    for operations, type_name, member in _BACK_POINTERS:
        try:
            address, type_ = prog.variable(operations).address_, prog.type(type_name)
        except LookupError:
            continue
        mine = buffers.priv[buffers.ops == np.uint64(address)]
        yield mine + np.uint64(offsetof(type_, member))


def dma_buf_name(dma_buf: Object) -> str:
    """
    What user space called it (``DMA_BUF_SET_NAME``); empty without a name.

    :param dma_buf: ``struct dma_buf *``
    :raises drgn.FaultError: if it is not in the dump
    """
    # "dma-buf: add DMA_BUF_SET_NAME ioctls" of v5.3.
    return _text(dma_buf.name) if hasattr(dma_buf, "name") else ""


def _text(string: Object) -> str:
    return text_at(string.prog_, string.value_())
