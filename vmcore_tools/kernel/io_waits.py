# SPDX-License-Identifier: LGPL-2.1-or-later
"""Waits for a block device: of a buffer, of a bio, of a request."""

from __future__ import annotations

import re
from typing import List, Optional, Tuple

from drgn import FaultError, Object, container_of

from vmcore_tools.kernel.stack_frames import Frame, pointers_in

_SUBMIT_BIO_WAIT = re.compile(r"submit_bio_wait|bio_await.*")
_EXECUTE_REQUEST = re.compile(r"blk_execute_rq.*")


def io_of_completion(
    completion: Object, task: Object, frames: List[Frame]
) -> Optional[Tuple[str, Object]]:
    """
    The bio or request that names a completion as what to complete at its end.

    :param completion: ``struct completion *``
    :param task: ``struct task_struct *`` that waits for it
    :param frames: of its stack
    :return: ``bio`` and ``struct bio *``, or ``request`` and ``struct request *``
    """
    prog = task.prog_
    for kind, functions, member in (
        ("bio", _SUBMIT_BIO_WAIT, "bi_private"),
        ("request", _EXECUTE_REQUEST, "end_io_data"),
    ):
        for address in pointers_in(task, frames, functions):
            try:
                io = Object(prog, f"struct {kind} *", value=address)
                names = io.member_(member).value_() == completion.value_()
                if names and disk_of_io(io) is not None:
                    return kind, io
            except FaultError:
                continue
            except (LookupError, AttributeError):
                break  # a kernel without block devices
    return None


def buffer_head_of(word: Object, bit: int) -> Optional[Object]:
    """
    The buffer whose lock a bit is.

    :param word: ``unsigned long *`` or ``void *`` that has the bit
    :return: ``struct buffer_head *``; None if it is something else
    :raises FaultError: if the word is nowhere
    """
    prog = word.prog_
    try:
        if bit != prog.constant("BH_Lock").value_():
            return None
        buffer = container_of(
            Object(prog, "unsigned long *", value=word.value_()), "struct buffer_head", "b_state"
        )
        if not buffer.b_size.value_() or disk_of_block_device(buffer.b_bdev) is None:
            return None
        # The buffers of a page are linked in a ring.
        ring = buffer.b_this_page.read_()
        return buffer if not ring or ring.b_bdev == buffer.b_bdev else None
    except (FaultError, LookupError, AttributeError):
        return None


def disk_of_io(io: Object) -> Optional[Object]:
    """
    The disk that a bio or request is for.

    :param io: ``struct bio *``, ``struct request *`` or ``struct buffer_head *``
    :return: ``struct gendisk *``; None if it is not one
    :raises FaultError: if it cannot be read
    """
    if hasattr(io, "b_bdev"):
        return disk_of_block_device(io.b_bdev)
    # 309dca309fc3 ("block: store a block_device pointer in struct bio") in v5.12.
    if hasattr(io, "bi_bdev"):
        return disk_of_block_device(io.bi_bdev)
    if hasattr(io, "bi_disk"):
        return _checked(io.bi_disk.read_())
    # f3fa33acca9f ("block: remove the ->rq_disk field in struct request") in v5.17.
    disk = io.rq_disk.read_() if hasattr(io, "rq_disk") else io.q.disk.read_()
    return _checked(disk)


def disk_of_block_device(device: Object) -> Optional[Object]:
    """
    :param device: ``struct block_device *``
    :return: ``struct gendisk *``; None if it is not one
    :raises FaultError: if it cannot be read
    """
    return _checked(device.bd_disk.read_()) if device else None


def _checked(disk: Object) -> Optional[Object]:
    """A disk, if its first partition, which is the disk itself, names it."""
    if not disk:
        return None
    part = disk.part0
    # cb8432d650fe ("block: allocate struct hd_struct as part of struct
    # bdev_inode") in v5.11 made it a pointer to a block_device.
    try:
        known = part.bd_disk == disk
    except AttributeError:
        known = bool(disk.queue)
    return disk if known and disk_name(disk) else None


def disk_name(disk: Object) -> str:
    """
    :param disk: ``struct gendisk *``
    """
    name: bytes = disk.disk_name.string_()
    return name.decode(errors="backslashreplace")
