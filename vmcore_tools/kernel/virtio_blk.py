# SPDX-License-Identifier: LGPL-2.1-or-later
"""The virtio_blk driver: the virtqueues of a disk."""

from __future__ import annotations

from typing import Iterator

from drgn import Object, cast
from drgn.helpers import ValidationError

from vmcore_tools.kernel.symbols import symbol_name

#: A device has at most so many.
_QUEUES_MAX = 65536


def is_virtio_disk(disk: Object) -> bool:
    """
    Whether a disk is one of virtio_blk, and its queues can be read.

    Without the driver's debug info it is a disk like any other.

    :param disk: ``struct gendisk *``
    """
    prog = disk.prog_
    if symbol_name(prog, disk.fops.value_()) != "virtblk_fops":
        return False
    try:
        prog.type("struct virtio_blk")
    except LookupError:
        return False
    return True


def for_each_disk_queue(disk: Object) -> Iterator[Object]:
    """
    Iterate over the virtqueues that the requests of a disk go through.

    :param disk: ``struct gendisk *`` of virtio_blk
    :return: Iterator of ``struct virtqueue *``
    :raises drgn.helpers.ValidationError: if there are too many
    """
    block = cast("struct virtio_blk *", disk.private_data)
    count = int(block.num_vqs.value_())
    if count > _QUEUES_MAX:
        raise ValidationError(f"a disk has {count} queues")
    for number in range(count):
        yield block.vqs[number].vq.read_()
