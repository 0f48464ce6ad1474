# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Files that reports are written to: for their owner alone, and all of a report or nothing.

A name in a folder that anybody can write to, such as /tmp, may have been put there by
somebody who waits for it: a link to a file of the user's, or a pipe to read from. The kernel
refuses to follow such ones where fs.protected_symlinks, protected_fifos and
protected_regular say so; here they are refused everywhere.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from typing import Iterator, Optional, TextIO, Tuple

from vmcore_tools.errors import TargetError, printable

_LINKS_MAX = 40  # MAXSYMLINKS


@contextlib.contextmanager
def output_file(path: str) -> Iterator[TextIO]:
    """
    A file to write to; its folder has the file when all of it is written, and else nothing.

    A device or a pipe is written to as it is.

    :raises TargetError: if it cannot be written
    """
    _refuse_planted(path)
    target = os.path.realpath(path)
    try:
        descriptor, temporary = _open(target)
    except OSError as e:
        raise TargetError(
            f"cannot write {printable(path)}: {e.strerror}; name a file in a folder of yours"
            " with -o"
        ) from e
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            yield file
        if temporary is not None:
            os.replace(temporary, target)
    except BaseException:
        if temporary is not None:
            os.unlink(temporary)
        raise


def _open(target: str) -> Tuple[int, Optional[str]]:
    """A descriptor, and the name of the temporary file that it is of, if any."""
    if os.path.exists(target) and not os.path.isfile(target):
        return os.open(target, os.O_WRONLY), None
    # Its mode is 0600, whatever the umask, and so is that of the file which it becomes.
    return tempfile.mkstemp(prefix=".vmcore-tools-", dir=os.path.dirname(target))


def _refuse_planted(path: str) -> None:
    for _ in range(_LINKS_MAX):
        folder = os.path.dirname(path) or os.curdir
        try:
            if is_planted(os.stat(folder), os.lstat(path), os.geteuid()):
                raise TargetError(
                    f"cannot write {printable(path)}: it is there, somebody else's, in a folder"
                    " that anybody can write to; name a file in a folder of yours with -o"
                )
            path = os.path.join(folder, os.readlink(path))
        except OSError:
            return  # nothing is there, or no link


def is_planted(folder: os.stat_result, entry: os.stat_result, user: int) -> bool:
    """
    Whether *user* must not trust what is at a name (``may_follow_link()``).

    :param folder: of the folder
    :param entry: of the name in it, not of what it leads to
    """
    shared = stat.S_ISVTX | stat.S_IWOTH
    return folder.st_mode & shared == shared and entry.st_uid not in (user, folder.st_uid)
