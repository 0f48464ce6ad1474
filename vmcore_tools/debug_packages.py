# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What is inside of a debug info package: a ``.deb``, ``.ddeb`` or ``.rpm`` file.

Nothing of a package is run, and no name in it decides where anything is written: a
package is a stream of names and contents here.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import shutil
import struct
import subprocess
import tarfile
import threading
import zlib
from pathlib import Path
from typing import IO, BinaryIO, Iterator, NamedTuple, Optional, Union, cast

from vmcore_tools.errors import TargetError, printable

PathLike = Union[str, Path]

_AR = b"!<arch>\n"
# ar(5): name, time, owner, group, mode, size, magic.
_AR_HEADER = struct.Struct("16s12s6s6s8s10s2s")
_RPM = b"\xed\xab\xee\xdb"
_RPM_LEAD_BYTES = 96
# rpm's lib/header: magic and version, reserved, entries, bytes of data.
_RPM_HEADER = struct.Struct(">4s4xII")
_RPM_HEADER_MAGIC = b"\x8e\xad\xe8\x01"
_RPM_ENTRY_BYTES = 16
_CPIO_MAGICS = (b"070701", b"070702")
#: rpm's own form, of packages with files of 4 GiB and of those of format 6: a file's number,
#: and all else in the package's header.
_RPM_CPIO_MAGIC = b"07070X"
_CPIO_HEADER_BYTES = 110
_CPIO_END = "TRAILER!!!"
_S_IFMT, _S_IFREG = 0o170000, 0o100000

_XZ, _GZIP, _BZIP2, _ZSTD = b"\xfd7zXZ\0", b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd"

#: Debian's kernel has some 5,000 files and 6 GiB.
_MEMBERS_MAX = 1_000_000
_NAME_BYTES_MAX = 4096

#: What the readers below raise for a damaged file.
DAMAGE = (EOFError, OSError, ValueError, lzma.LZMAError, struct.error, tarfile.TarError, zlib.error)


class _NamelessFilesError(Exception):
    """The payload of an RPM does not name its files."""


class Member(NamedTuple):
    """A regular file of a package; its contents can be read until the next one is asked for."""

    name: str
    size_bytes: int
    contents: BinaryIO


def is_package(head: bytes) -> bool:
    """Whether a file that begins so is a package."""
    return head.startswith((_AR, _RPM))


def is_compressed(head: bytes) -> bool:
    """Whether a file that begins so is one that :func:`decompressed` reads."""
    return head.startswith((_XZ, _GZIP, _BZIP2, _ZSTD))


@contextlib.contextmanager
def members(path: PathLike) -> Iterator[Iterator[Member]]:
    """
    The regular files in a package, in its own order.

    :raises TargetError: if it is damaged, or nothing can unpack it
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(_AR)) == _AR:
                with decompressed(_data_of_deb(file), str(path)) as data:
                    yield _of_tar(data)
            else:
                with decompressed(_payload_of_rpm(file), str(path)) as data:
                    yield _of_cpio(data)
    except _NamelessFilesError as error:
        raise TargetError(
            f"{printable(str(path))} cannot be unpacked: its files have no names but in the"
            " package's header; unpack it with rpm2archive, and give the folder with -s"
        ) from error
    except DAMAGE as error:
        raise TargetError(
            f"{printable(str(path))} cannot be unpacked: {printable(str(error))}; download it again"
        ) from error


class _Range(io.RawIOBase):
    """A part of a file, as a file that is read from its beginning to its end."""

    def __init__(self, file: BinaryIO, size: Optional[int]) -> None:
        super().__init__()
        self.file = file
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        wanted = len(buffer) if self._left is None else min(len(buffer), self._left)
        data = self.file.read(wanted)
        buffer[: len(data)] = data
        if self._left is not None:
            self._left -= len(data)
        return len(data)


@contextlib.contextmanager
def decompressed(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """
    The contents of a compressed file, whatever compressed it; of another one its own.

    :raises TargetError: if that takes a program that is not there
    """
    buffered = io.BufferedReader(cast(io.RawIOBase, file), 1 << 20)
    head = buffered.peek(len(_XZ))
    if head.startswith(_ZSTD):
        with _unzstd(cast(BinaryIO, buffered), name) as output:
            yield output
    elif head.startswith(_XZ):
        with lzma.open(buffered) as xz:
            yield cast(BinaryIO, xz)
    elif head.startswith(_GZIP):
        with gzip.open(buffered) as inflated:
            yield cast(BinaryIO, inflated)
    elif head.startswith(_BZIP2):
        with bz2.open(buffered) as bzip2:
            yield cast(BinaryIO, bzip2)
    else:
        yield cast(BinaryIO, buffered)


@contextlib.contextmanager
def _unzstd(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    # Python has a module for it from 3.14 on.
    program = shutil.which("zstd")
    if program is None:
        raise TargetError(
            f"{printable(name)} is compressed with zstd, which is not installed here; install"
            " the package zstd, or unpack it elsewhere and give the folder with -s"
        )
    with subprocess.Popen(
        [program, "-dcq"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        feeder = _Feeder(file, process.stdin)
        feeder.start()
        try:
            yield cast(BinaryIO, io.BufferedReader(_Output(process), 1 << 20))
        finally:
            process.stdout.close()
            process.kill()
            feeder.join()


class _Output(io.RawIOBase):
    """What a process writes; an error if it ends with one."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__()
        self._process = process

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        assert self._process.stdout is not None
        data = self._process.stdout.read1(len(buffer))  # type: ignore[attr-defined]
        buffer[: len(data)] = data
        if not data and self._process.wait():
            raise EOFError("its compressed data are damaged")
        return len(data)


class _Feeder(threading.Thread):
    """Writes a file into a process, while somebody else reads what that makes of it."""

    def __init__(self, file: BinaryIO, pipe: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._file = file
        self._pipe = pipe

    def run(self) -> None:
        # The reader may have had enough; what is damaged, the reader sees.
        with contextlib.suppress(OSError, ValueError), self._pipe:
            shutil.copyfileobj(self._file, self._pipe, 1 << 20)


def _data_of_deb(file: BinaryIO) -> BinaryIO:
    while True:
        header = file.read(_AR_HEADER.size)
        if len(header) < _AR_HEADER.size:
            raise ValueError("it has no data.tar")
        name, _, _, _, _, digits, _ = _AR_HEADER.unpack(header)
        size = int(digits)
        if size < 0:
            raise ValueError("a member has an impossible size")
        if name.startswith(b"data.tar"):
            return cast(BinaryIO, _Range(file, size))
        file.seek(size + size % 2, io.SEEK_CUR)


def _payload_of_rpm(file: BinaryIO) -> BinaryIO:
    file.seek(_RPM_LEAD_BYTES)
    for is_signature in (True, False):
        header = file.read(_RPM_HEADER.size)
        magic, entries, size = _RPM_HEADER.unpack(header)
        if magic != _RPM_HEADER_MAGIC:
            raise ValueError("its header is damaged")
        size += entries * _RPM_ENTRY_BYTES
        # The signature alone is padded to 8 bytes.
        file.seek(size + (-size % 8 if is_signature else 0), io.SEEK_CUR)
    return cast(BinaryIO, _Range(file, None))


def _of_tar(data: BinaryIO) -> Iterator[Member]:
    with tarfile.open(fileobj=data, mode="r|") as archive:
        for number, entry in enumerate(archive):
            if number == _MEMBERS_MAX:
                raise ValueError("it has too many members")
            contents = archive.extractfile(entry) if entry.isreg() else None
            if contents is not None:
                yield Member(entry.name, entry.size, cast(BinaryIO, contents))


def _of_cpio(data: BinaryIO) -> Iterator[Member]:
    """cpio(5), the new ASCII format: a header of hexadecimal numbers, the name, the contents."""
    for _ in range(_MEMBERS_MAX):
        header = _exactly(data, _CPIO_HEADER_BYTES)
        if header.startswith(_RPM_CPIO_MAGIC):
            raise _NamelessFilesError
        if not header.startswith(_CPIO_MAGICS):
            raise ValueError("its contents are of an unknown format")
        numbers = [int(header[at : at + 8], 16) for at in range(6, _CPIO_HEADER_BYTES, 8)]
        mode, size, name_size = numbers[1], numbers[6], numbers[11]
        if name_size > _NAME_BYTES_MAX:
            raise ValueError("a member has an impossible name")
        padded = name_size + -(_CPIO_HEADER_BYTES + name_size) % 4
        name = _exactly(data, padded)[: name_size - 1].decode("utf-8", "replace")
        if name == _CPIO_END:
            return
        contents = _Range(data, size)
        if mode & _S_IFMT == _S_IFREG and size:
            yield Member(name, size, cast(BinaryIO, contents))
        _skip(cast(BinaryIO, contents))
        _exactly(data, -size % 4)
    raise ValueError("it has too many members")


def _exactly(data: BinaryIO, size: int) -> bytes:
    found = data.read(size)
    if len(found) < size:
        raise EOFError("it ends in the middle")
    return found


def _skip(data: BinaryIO) -> None:
    while data.read(1 << 20):
        pass
