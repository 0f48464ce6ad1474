# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The dumps that ship with the source: unpacked once, into the user's cache.
"""

from __future__ import annotations

import dataclasses
import hashlib
import lzma
import shutil
import tempfile
from pathlib import Path
from typing import Dict, Tuple

from vmcore_tools.cache import cache_folder, make_private
from vmcore_tools.errors import TargetError

DEFAULT_DUMP = "leak-and-hung-x86_64"

_CHECKSUMS = "SHA256SUMS"
_VMCORE = "vmcore"
_TRUTH = "truth.json"
_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class DemoDump:
    """
    An unpacked dump.

    :ivar vmcore: the dump
    :ivar symbols: its debug info, for ``-s``
    :ivar truth: what the guest wrote about itself while it ran
    """

    vmcore: Path
    symbols: Tuple[Path, ...]
    truth: Path


def dumps_directory() -> Path:
    """Where the shipped dumps lie in a source checkout."""
    return Path(__file__).resolve().parent.parent / "fixtures" / "dumps"


def cache_directory() -> Path:
    """Where they are unpacked."""
    return cache_folder("dumps")


def shipped_dumps() -> Tuple[str, ...]:
    """The names of the dumps that this source checkout has."""
    return tuple(sorted(path.parent.name for path in dumps_directory().glob(f"*/{_CHECKSUMS}")))


def is_unpacked(name: str = DEFAULT_DUMP) -> bool:
    """Whether :func:`unpack` would be quick."""
    return _destination(_source(name)).is_dir()


def unpack(name: str = DEFAULT_DUMP) -> DemoDump:
    """
    Check and unpack a shipped dump; quick when that has been done before.

    Runs at the same time do not disturb each other: each unpacks into a
    folder of its own, and the first to finish wins.

    :raises TargetError: if it is not there or damaged
    """
    source = _source(name)
    destination = _destination(source)
    if not destination.is_dir():
        _verify(source)
        try:
            make_private(destination.parent)
            _unpack(source, destination)
        except OSError as error:
            raise TargetError(
                f"cannot unpack the demo dump to {destination}: {error.strerror}; free some"
                " space, or set XDG_CACHE_HOME to a folder that can be written"
            ) from error
    return DemoDump(
        vmcore=destination / _VMCORE,
        symbols=tuple(sorted(destination.glob("*.debug"))),
        truth=destination / _TRUTH,
    )


def _source(name: str) -> Path:
    source = dumps_directory() / name
    if (source / _CHECKSUMS).is_file():
        return source
    available = shipped_dumps()
    if available:
        raise TargetError(f"there is no demo dump {name!r}; there are: {', '.join(available)}")
    raise TargetError(
        "the demo dumps come with the source only; clone the repository and run `make demo` in it"
    )


def _destination(source: Path) -> Path:
    checksum = hashlib.sha256((source / _CHECKSUMS).read_bytes()).hexdigest()
    return cache_directory() / f"{source.name}-{checksum[:12]}"


def _checksums(source: Path) -> Dict[str, str]:
    """File names and their SHA-256, in ``sha256sum``'s format."""
    checksums = {}
    for line in (source / _CHECKSUMS).read_text().splitlines():
        checksum, _, name = line.partition("  ")
        if name:
            checksums[name] = checksum
    return checksums


def _verify(source: Path) -> None:
    for name, expected in _checksums(source).items():
        digest = hashlib.sha256()
        try:
            with open(source / name, "rb") as file:
                for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""):
                    digest.update(chunk)
        except OSError as error:
            raise TargetError(
                f"the demo dump's file {source / name} cannot be read: {error.strerror};"
                " check it out again with git"
            ) from error
        if digest.hexdigest() != expected:
            raise TargetError(
                f"the demo dump's file {source / name} is damaged: its SHA-256 differs from"
                f" {_CHECKSUMS}; check it out again with git"
            )


def _unpack(source: Path, destination: Path) -> None:
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".unpacking-") as temporary:
        unpacked = Path(temporary) / "dump"
        unpacked.mkdir(mode=0o700)
        for name in _checksums(source):
            if name.endswith(".xz"):
                with lzma.open(source / name) as packed, open(unpacked / name[:-3], "wb") as file:
                    shutil.copyfileobj(packed, file, _CHUNK_BYTES)
            else:
                shutil.copy(source / name, unpacked / name)
        try:
            unpacked.rename(destination)
        except OSError:
            # Another run was faster. A folder that is not empty is never replaced.
            if not destination.is_dir():
                raise
