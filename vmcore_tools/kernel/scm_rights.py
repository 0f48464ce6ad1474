# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files on their way through unix sockets: sent (SCM_RIGHTS), and not received yet."""

from __future__ import annotations

import dataclasses
from typing import Dict, Iterator, List, Tuple

import numpy as np
from drgn import FaultError, Object, Program, cast, offsetof, sizeof

from vmcore_tools.kernel.files import U64, FileReferences
from vmcore_tools.kernel.slab import SlabIndex

#: Messages in one socket's queue; a damaged queue must end.
_MESSAGES_MAX = 1_000_000


def files_in_flight(index: SlabIndex, files: U64) -> Tuple[FileReferences, FileReferences]:
    """
    The files in messages of unix sockets: each holds a reference (``scm_fp_copy()``).

    :param files: uint64 array, sorted
    :return: those in messages that wait in a socket, with its ``struct
        unix_sock`` as owner; and those that a task is just sending or
        receiving, with their ``struct scm_fp_list``: it may be dropping them
    :raises LookupError: without the debug info of unix sockets
    """
    lists: Dict[int, int] = {}
    unread: List[int] = []
    for socket in _unix_sockets(index):
        try:
            for message in _messages(socket):
                address = _passed_files(message)
                if address:
                    lists[address] = socket.value_()
        except FaultError:
            unread.append(socket.value_())
    queued = _files_of_lists(index.prog, lists, files)
    others = {address: address for address in _lists(index).tolist() if address not in lists}
    # What has no plausible number of files is something else.
    passing = dataclasses.replace(_files_of_lists(index.prog, others, files), unread=())
    unread += queued.unread
    return dataclasses.replace(queued, unread=tuple(unread)), passing


def _files_of_lists(prog: Program, owners: Dict[int, int], files: U64) -> FileReferences:
    """
    The files in lists of passed files.

    :param owners: address of each ``struct scm_fp_list`` to what it belongs to
    """
    list_type = prog.type("struct scm_fp_list")
    first = offsetof(list_type, "fp")
    slots = (sizeof(list_type) - first) // 8
    rows: List[Tuple[int, int, int, int]] = []
    unread: List[int] = []
    for address, owner in owners.items():
        passed = Object(prog, "struct scm_fp_list *", value=address)
        try:
            # Only as many slots as are used were allocated (scm_fp_dup()).
            count = passed.count.value_()
            if not 0 <= count <= slots:
                raise FaultError("no list of files", address)
            pointers = np.frombuffer(prog.read(address + first, count * 8), dtype=np.uint64)
        except FaultError:
            unread.append(address)
            continue
        for at in np.flatnonzero(np.isin(pointers, files)).tolist():
            rows.append((int(pointers[at]), address + first + 8 * at, owner, -1))
    return FileReferences.of(rows, unread)


def _lists(index: SlabIndex) -> U64:
    """
    All that can be a ``struct scm_fp_list``: objects that point to a user where it does.

    While a message is sent or received, its list is in no queue.
    """
    list_type = index.prog.type("struct scm_fp_list")
    user, smallest = offsetof(list_type, "user"), offsetof(list_type, "fp") + 8
    users = _users(index)
    found = [np.zeros(0, dtype=np.uint64)]
    for number, cache in enumerate(index.caches):
        if not cache.name.startswith("kmalloc") or cache.object_size_bytes < smallest:
            continue
        for batch in index.batches(np.flatnonzero(index.cache == number)):
            start = cache.red_left_pad_bytes + np.arange(batch.objects.shape[1]) * cache.size_bytes
            words = batch.data.view(np.uint64)[:, (start + user) // 8]
            found.append(batch.objects[batch.allocated & np.isin(words, users)])
    return np.concatenate(found)


def _users(index: SlabIndex) -> U64:
    """All of ``struct user_struct *``; root's is a variable."""
    prog = index.prog
    root = prog["root_user"].address_
    users = [np.array([root], dtype=np.uint64)]
    cache = index.cache_number(prog["uid_cachep"].read_())
    for batch in index.batches(index.rows_of(cache)):
        users.append(batch.objects[batch.allocated])
    return np.concatenate(users)


def _unix_sockets(index: SlabIndex) -> Iterator[Object]:
    """All unix sockets with messages that were not received yet: ``struct unix_sock *``."""
    prog = index.prog
    socket_type = prog.type("struct unix_sock")
    queued = offsetof(socket_type, "sk.sk_receive_queue.qlen")
    protocol = offsetof(socket_type, "sk.__sk_common.skc_prot")
    for address, proto in _protocols(prog):
        for batch in index.batches(index.rows_of(index.cache_number(proto.slab))):
            size = batch.cache.size_bytes
            start = batch.cache.red_left_pad_bytes + np.arange(batch.objects.shape[1]) * size
            lengths = batch.data.view(np.uint32)[:, (start + queued) // 4]
            protocols = batch.data.view(np.uint64)[:, (start + protocol) // 8]
            found = batch.allocated & (lengths > 0) & (protocols == np.uint64(address))
            for socket in batch.objects[found].tolist():
                yield Object(prog, "struct unix_sock *", value=socket)


def _protocols(prog: Program) -> Iterator[Tuple[int, Object]]:
    # "af_unix: Add unix_stream_proto for sockmap" of v5.15 made two of one.
    for name in ("unix_proto", "unix_dgram_proto", "unix_stream_proto"):
        try:
            proto = prog.variable(name)
        except LookupError:
            continue
        assert proto.address_ is not None
        yield proto.address_, proto


def _messages(socket: Object) -> Iterator[Object]:
    """What a socket has not received yet: ``struct sk_buff *``."""
    queue = socket.sk.sk_receive_queue
    end = queue.address_
    message = queue.next.read_()
    for _ in range(_MESSAGES_MAX):
        if message.value_() == end:
            return
        yield message
        message = message.next.read_()


def _passed_files(message: Object) -> int:
    """The ``struct scm_fp_list *`` of a message, 0 without one; mirrors ``UNIXCB()``."""
    control = cast("struct unix_skb_parms *", message.cb.address_of_())
    return int(control.fp.value_())
