# SPDX-License-Identifier: LGPL-2.1-or-later
"""Open files: found in the file cache, their reference counts, and who holds them."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Dict, Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np
import numpy.typing as npt
from drgn import FaultError, Object, Program, Type, container_of, offsetof, sizeof
from drgn.helpers import ValidationError
from drgn.helpers.linux.list import (
    hlist_for_each_entry,
    validate_list_for_each_entry,
)

from vmcore_tools.kernel.layout import field_dtype, read_structs
from vmcore_tools.kernel.slab import SlabIndex
from vmcore_tools.kernel.task import for_each_bounded_task
from vmcore_tools.kernel.vma import vma_at

U64 = npt.NDArray[np.uint64]

_CACHE_KEY = "vmcore_tools.kernel.files"
#: More descriptors than a table can have: "mm: don't allow oversized kvmalloc() calls" of
#: v5.15 gives INT_MAX bytes at most.
_DESCRIPTORS_MAX = 1 << 28
#: Descriptors that are read at once: what is no table breaks off before there are many.
_DESCRIPTORS_AT_ONCE = 1 << 16
#: Watches of one file; a damaged list must end.
_WATCHES_MAX = 100_000


@dataclasses.dataclass(frozen=True)
class FileReferences:
    """
    References to files, one entry for each, as arrays of shape (n,).

    :ivar file: uint64, ``struct file *``
    :ivar word: uint64, the address of the pointer to it
    :ivar owner: uint64, the structure that the pointer belongs to
    :ivar number: int64, the file descriptor; -1 where it has none
    :ivar unread: addresses that could not be read
    """

    file: U64
    word: U64
    owner: U64
    number: npt.NDArray[np.int64]
    unread: Tuple[int, ...] = ()

    def chosen(self, wanted: npt.NDArray[np.bool_]) -> FileReferences:
        """Some of the references; *unread* stays with all."""
        return FileReferences(
            self.file[wanted], self.word[wanted], self.owner[wanted], self.number[wanted]
        )

    @staticmethod
    def of(rows: Sequence[Tuple[int, int, int, int]], unread: Sequence[int] = ()) -> FileReferences:
        """
        :param rows: file, word, owner and number of each reference
        """
        table = np.array(rows, dtype=object).reshape(-1, 4)
        return FileReferences(
            table[:, 0].astype(np.uint64),
            table[:, 1].astype(np.uint64),
            table[:, 2].astype(np.uint64),
            table[:, 3].astype(np.int64),
            tuple(unread),
        )


def files_with_ops(index: SlabIndex, fops: Object) -> U64:
    """
    All allocated files with an operations table, those of no descriptor included.

    :param fops: ``struct file_operations``, a variable
    :return: uint64 array of ``struct file *``, sorted
    :raises LookupError: without the debug info of the file cache
    """
    assert fops.address_ is not None
    addresses, ops = _files(index)
    result: U64 = addresses[ops == np.uint64(fops.address_)]
    return result


def _files(index: SlabIndex) -> Tuple[U64, U64]:
    """All allocated files, sorted, and their operations tables; read once for an index."""
    prog = index.prog
    cached: Optional[Tuple[SlabIndex, U64, U64]] = prog.cache.get(_CACHE_KEY)
    if cached is not None and cached[0] is index:
        return cached[1:]
    addresses, ops = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.uint64)]
    offset = offsetof(prog.type("struct file"), "f_op")
    for batch in index.batches(index.rows_of(_file_cache_number(index))):
        start = batch.cache.red_left_pad_bytes + offset
        at = start + np.arange(batch.objects.shape[1]) * batch.cache.size_bytes
        words = batch.data.view(np.uint64)[:, at // 8]
        addresses.append(batch.objects[batch.allocated])
        ops.append(words[batch.allocated])
    order = np.argsort(np.concatenate(addresses))
    found = np.concatenate(addresses)[order], np.concatenate(ops)[order]
    prog.cache[_CACHE_KEY] = (index, *found)
    return found


def _file_cache_number(index: SlabIndex) -> Optional[int]:
    try:
        return index.cache_number(index.prog["filp_cachep"].read_())
    except KeyError:
        # A runtime constant in v7.2: the instructions have it, and no variable need be left.
        # SLAB_TYPESAFE_BY_RCU keeps the cache from being merged with others, so that it has
        # its name for itself.
        named = [number for number, known in enumerate(index.caches) if known.name == "filp"]
        if not named:
            raise LookupError("there is no slab cache filp") from None
        return named[0]


def file_counts(
    prog: Program, files: Sequence[int]
) -> Tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """
    The reference counts of files, as ``file_count()`` gives them; 0 while it is being freed.

    :param files: addresses of ``struct file``
    :return: int64 array and bool array of shape (n,): the counts, and which could be read
    """
    type_ = prog.type("struct file")
    # "fs: port files to file_ref" of v6.13: it begins at 0 for one reference,
    # and is negative, in several ranges, when there is none.
    one = type_.has_member("f_ref")
    member = "f_ref.refcnt.counter" if one else "f_count.counter"
    structs, read = read_structs(prog, files, field_dtype(type_, {"count": member}))
    counts = structs["count"].astype(np.int64)
    return (np.where(counts < 0, 0, counts + 1) if one else counts), read


def files_structs(index: SlabIndex) -> Dict[int, List[Object]]:
    """
    The descriptor tables of all processes, and the tasks that share each.

    Tables that no task has, as that of one which is just exiting, have none.

    :return: address of each ``struct files_struct`` to ``struct task_struct *``
    """
    tables: Dict[int, List[Object]] = {}
    for task in for_each_bounded_task(index.prog):
        address = task.files.value_()
        if address:
            tables.setdefault(address, []).append(task)
    cache = index.cache_number(index.prog["files_cachep"].read_())
    for batch in index.batches(index.rows_of(cache)):
        for address in batch.objects[batch.allocated].tolist():
            tables.setdefault(address, [])
    return tables


def descriptors(prog: Program, tables: Sequence[int], files: U64) -> FileReferences:
    """
    The descriptors of files: each holds a reference (``fd_install()``).

    :param tables: addresses of ``struct files_struct``
    :param files: uint64 array, sorted
    :return: with the ``struct files_struct`` as owner
    """
    rows: List[Tuple[int, int, int, int]] = []
    heads, read = read_structs(
        prog, tables, field_dtype(prog.type("struct files_struct"), {"fdt": "fdt"})
    )
    unread = [table for table, ok in zip(tables, read) if not ok]
    members = {"max_fds": "max_fds", "fd": "fd"}
    fdts = heads["fdt"].tolist()
    arrays, read = read_structs(prog, fdts, field_dtype(prog.type("struct fdtable"), members))
    for table, fdt, array, ok in zip(tables, fdts, arrays, read):
        if not fdt:
            continue
        count, first = int(array["max_fds"]), int(array["fd"])
        mine: List[Tuple[int, int, int, int]] = []
        try:
            if not ok or count > _DESCRIPTORS_MAX:
                raise FaultError("no descriptor table", fdt)
            for start in range(0, count, _DESCRIPTORS_AT_ONCE):
                size = min(count - start, _DESCRIPTORS_AT_ONCE)
                pointers = np.frombuffer(prog.read(first + 8 * start, 8 * size), dtype=np.uint64)
                for at in np.flatnonzero(np.isin(pointers, files)).tolist():
                    number = start + at
                    mine.append((int(pointers[at]), first + 8 * number, table, number))
        except FaultError:
            unread.append(table)
            continue
        rows += mine
    return FileReferences.of(rows, unread)


def outgrown_descriptor_words(prog: Program, tables: Sequence[int], files: U64) -> U64:
    """
    The pointers to files in arrays of descriptors that are no longer used.

    The first array is part of ``struct files_struct``, and a table that grew
    leaves its pointers in it (``expand_fdtable()``): they hold no reference.

    :param tables: addresses of ``struct files_struct``
    :param files: uint64 array, sorted
    :return: uint64 array: addresses of the pointers
    """
    type_ = prog.type("struct files_struct")
    first = offsetof(type_, "fd_array")
    size = sizeof(type_.member("fd_array").type)
    heads, _ = read_structs(prog, tables, field_dtype(type_, {"fdt": "fdt"}))
    own = np.array(tables, dtype=np.uint64) + np.uint64(offsetof(type_, "fdtab"))
    words = [np.zeros(0, dtype=np.uint64)]
    for table, used in zip(tables, (heads["fdt"] == own).tolist()):
        if used:
            continue
        # What cannot be read here has no pointers that could be found, either.
        with contextlib.suppress(FaultError):
            pointers = np.frombuffer(prog.read(table + first, size), dtype=np.uint64)
            at = np.flatnonzero(np.isin(pointers, files)).astype(np.uint64)
            words.append(np.uint64(table + first) + np.uint64(8) * at)
    return np.concatenate(words)


def mappings(index: SlabIndex, files: U64) -> FileReferences:
    """
    The memory mappings of files: each holds a reference (``vma->vm_file``).

    :param files: uint64 array, sorted
    :return: with the ``struct vm_area_struct`` as owner
    """
    return mappings_and_parting(index, files)[0]


def mappings_and_parting(index: SlabIndex, files: U64) -> Tuple[FileReferences, FileReferences]:
    """
    The memory mappings of files, and those that are in no address space.

    These are just being made, or gone: from v6.4 on, a structure stays allocated
    for a while after the reference was dropped.

    :param files: uint64 array, sorted
    :return: with the ``struct vm_area_struct`` as owner
    """
    found = mappings_of(index, "vm_file", files)
    mapped = dataclasses.replace(found.chosen(found.number > 0), unread=found.unread)
    return mapped, found.chosen(found.number == 0)


def mappings_of(index: SlabIndex, member: str, targets: U64) -> FileReferences:
    """
    The memory mappings that point at something.

    :param member: of ``struct vm_area_struct``, with the pointer
    :param targets: uint64 array, sorted
    :return: with the ``struct vm_area_struct`` as owner, and as number 1 where it
        is in its process's address space, 0 where it is not: it is just being made or gone
    """
    prog = index.prog
    cache = index.cache_number(prog["vm_area_cachep"].read_())
    if cache is None or not len(targets):
        return FileReferences.of([], [])
    offset = offsetof(prog.type("struct vm_area_struct"), member)
    rows: List[Tuple[int, int, int, int]] = []
    unread: List[int] = []
    for address, target in _objects_pointing(index, cache, offset, targets):
        vma = Object(prog, "struct vm_area_struct *", value=address)
        try:
            mapped = vma_at(vma.vm_mm.read_(), vma.vm_start.value_()) == address
        except (FaultError, ValidationError):
            unread.append(address)
            continue
        rows.append((target, address + offset, address, int(mapped)))
    return FileReferences.of(rows, unread)


def _objects_pointing(
    index: SlabIndex, cache: int, offset: int, targets: U64
) -> Iterator[Tuple[int, int]]:
    """The allocated objects of a cache whose word at an offset is one of some, and that word."""
    for batch in index.batches(index.rows_of(cache)):
        size = batch.cache.size_bytes
        start = batch.cache.red_left_pad_bytes + offset
        at = (start + np.arange(batch.objects.shape[1]) * size) // 8
        words = batch.data.view(np.uint64)[:, at]
        found = batch.allocated & np.isin(words, targets)
        yield from zip(batch.objects[found].tolist(), words[found].tolist())


def mm_users(prog: Program, mms: Set[int]) -> Dict[int, Object]:
    """
    One task of each address space.

    :param mms: addresses of ``struct mm_struct``
    :return: address to ``struct task_struct *``; without those that no task has
    """
    users: Dict[int, Object] = {}
    if mms:
        for task in for_each_bounded_task(prog):
            mm = task.mm.value_()
            if mm in mms:
                users.setdefault(mm, task)
    return users


def watch_words(prog: Program, files: U64) -> Tuple[U64, Tuple[int, ...]]:
    """
    The pointers by which epoll instances watch files: they hold no reference.

    :param files: uint64 array of ``struct file *``
    :return: uint64 array of the pointers' addresses, and what could not be read
    """
    type_ = prog.type("struct file")
    # "epoll: take epitem list out of struct file" of v5.11.
    if type_.has_member("f_ep"):
        structs, read = read_structs(prog, files.tolist(), field_dtype(type_, {"head": "f_ep"}))
        watched = structs["head"] != 0
        links = np.zeros(0, dtype=np.uint64)
    elif type_.has_member("f_ep_links"):
        heads, read = list_heads(prog, files, type_, ["f_ep_links"])
        watched = heads["f_ep_links"].used
        links = heads["f_ep_links"].words
    else:
        return np.zeros(0, dtype=np.uint64), ()  # a kernel without epoll
    unread = files[~read].tolist()
    words: List[int] = []
    for address in files[watched].tolist():
        try:
            words += [_address(item.ffd.file) for item in _watches(prog, address)]
        except (FaultError, ValidationError):
            unread.append(address)
    return np.concatenate((links, np.array(words, dtype=np.uint64))), tuple(unread)


def _watches(prog: Program, address: int) -> Iterator[Object]:
    """The epoll items of a file: ``struct epitem *``."""
    file = Object(prog, "struct file *", value=address)
    if hasattr(file, "f_ep"):
        items = hlist_for_each_entry("struct epitem", file.f_ep.read_(), "fllink")
    else:
        items = validate_list_for_each_entry(
            "struct epitem", file.f_ep_links.address_of_(), "fllink"
        )
    for number, item in enumerate(items):
        if number >= _WATCHES_MAX:
            raise ValidationError("a list of watches does not end")
        yield item


def waiter_words(prog: Program, queues: U64) -> Tuple[U64, Tuple[int, ...]]:
    """
    The pointers at wait queues that epoll instances keep beside their entries in it.

    :param queues: uint64 array of ``struct wait_queue_head *``
    :return: uint64 array of the pointers' addresses, and what could not be read
    """
    type_ = prog.type("struct wait_queue_head")
    unread: List[int] = []
    words: List[int] = []
    for address in queues.tolist():
        try:
            words += _epoll_waiters(Object(prog, type_, address=address))
        except (FaultError, ValidationError):
            unread.append(address)
    return np.array(words, dtype=np.uint64), tuple(unread)


def _epoll_waiters(queue: Object) -> Iterator[int]:
    callback = queue.prog_["ep_poll_callback"].address_of_().value_()
    for number, entry in enumerate(
        validate_list_for_each_entry("struct wait_queue_entry", queue.head.address_of_(), "entry")
    ):
        if number >= _WATCHES_MAX:
            raise ValidationError("a wait queue does not end")
        if entry.func.value_() == callback:
            yield _address(container_of(entry, "struct eppoll_entry", "wait").whead)


@dataclasses.dataclass(frozen=True)
class ListHeads:
    """
    List heads or nodes in structures.

    :ivar used: bool array of shape (n,): those that are in a list, or have one
    :ivar words: uint64 array: the addresses of the neighbours' links to them
    """

    used: npt.NDArray[np.bool_]
    words: U64


def list_heads(
    prog: Program, structures: U64, type_: Type, members: Sequence[str]
) -> Tuple[Dict[str, ListHeads], npt.NDArray[np.bool_]]:
    """
    The ``struct list_head`` members of many structures.

    :param structures: uint64 array of shape (n,)
    :param members: their designators
    :return: by designator, and bool array of shape (n,): which could be read
    """
    designators = {}
    for member in members:
        designators[f"{member}.next"] = f"{member}.next"
        designators[f"{member}.prev"] = f"{member}.prev"
    structs, read = read_structs(prog, structures.tolist(), field_dtype(type_, designators))
    heads = {}
    for member in members:
        following, previous = structs[f"{member}.next"], structs[f"{member}.prev"]
        used = read & (following != structures + np.uint64(offsetof(type_, member)))
        # The previous one's next points here, and the next one's prev, which is 8 bytes behind.
        words = np.concatenate((previous[used], following[used] + np.uint64(8)))
        heads[member] = ListHeads(used, words.astype(np.uint64))
    return heads, read


def _address(member: Object) -> int:
    assert member.address_ is not None
    return int(member.address_)
