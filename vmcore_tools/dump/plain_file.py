# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dump files that have pages as they are, read by several threads at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Union

import numpy as np
import numpy.typing as npt


class PlainFile:
    """
    An ELF core file. A read lets other threads run, as drgn's does not.

    :param segments: int64 array of shape (n, 3): first page frame of each, the
        one behind its last, and where the first is in the file
    :raises OSError: if it cannot be opened
    """

    def __init__(self, path: Union[str, Path], segments: npt.NDArray[np.int64]) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (kept as long as the target)
        self._segments = segments[np.argsort(segments[:, 0], kind="stable")]

    def read(self, first: int, pages: npt.NDArray[np.uint8]) -> bool:
        """
        Read page frames that follow one another.

        :param first: the first page frame
        :param pages: uint8 array of shape (n, page size), filled with them
        :return: whether all of them were read
        """
        row = int(np.searchsorted(self._segments[:, 0], first, side="right")) - 1
        if row < 0:
            return False
        start, end, offset = self._segments[row].tolist()
        if first + len(pages) > end:
            return False
        at = offset + (first - start) * pages.shape[1]
        try:
            return os.preadv(self._file.fileno(), [pages.data], at) == pages.nbytes
        except OSError:
            return False
