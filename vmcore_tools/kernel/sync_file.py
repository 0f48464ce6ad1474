# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sync files: a fence behind a file descriptor."""

from __future__ import annotations

from typing import Iterator, Tuple

import numpy as np
from drgn import Object

from vmcore_tools.kernel.files import files_with_ops
from vmcore_tools.kernel.slab import SlabIndex


def for_each_sync_file(index: SlabIndex) -> Iterator[Tuple[Object, Object]]:
    """
    Iterate over all sync files, those whose descriptor is in flight included.

    They are found by their ``struct file`` in the file cache, not through the
    descriptor tables of all tasks.

    :return: Iterator of (``struct sync_file *``, ``struct file *``)
    :raises LookupError: without the debug info of sync_file or the file cache
    """
    prog = index.prog
    files = [
        Object(prog, "struct file *", value=address)
        for address in files_with_ops(index, prog["sync_file_fops"]).tolist()
    ]
    pointers = np.array([file.private_data.value_() for file in files], dtype=np.uint64)
    # A file outlives its sync file while it is being closed.
    for file, pointer, allocated in zip(files, pointers.tolist(), index.allocated(pointers)):
        sync_file = Object(prog, "struct sync_file *", value=pointer)
        if allocated and sync_file.file == file:
            yield sync_file, file
