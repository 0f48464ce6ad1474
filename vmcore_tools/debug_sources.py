# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Debug info in what users have at hand: a folder, a package, a compressed file.

A folder is any tree with the files of a debug info package in it. Files are recognised by
their build ID, never by their path. What has to be unpacked goes to the user's cache, under
the name of its build ID, and is there the next time.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from pathlib import Path
from typing import (
    BinaryIO,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    Union,
)

from vmcore_tools import debug_packages
from vmcore_tools.build_id import build_id_of_file
from vmcore_tools.cache import cache_folder, make_private
from vmcore_tools.compressed_sections import without_compression
from vmcore_tools.errors import TargetError, printable

PathLike = Union[str, Path]

_PACKED = r"(?:\.(?:xz|gz|zst|bz2))?"
_VMLINUX = re.compile(rf"vmlinux(?:[-.].+?)?{_PACKED}")
_MODULE = re.compile(rf"(?P<name>.+?)\.ko(?:\.debug)?{_PACKED}")
_OF_BUILD_ID = re.compile(r"(?:^|/)\.build-id/([0-9a-f]{2})/([0-9a-f]+)\.debug$")
#: A vmlinux with DWARF has some 500 MB; nothing else of a kernel is larger.
_FILE_BYTES_MAX = 4 << 30
#: Of a folder that is searched: a package has some 5,000.
_FILES_MAX = 500_000


class Source(Protocol):
    """
    Where debug info may be.

    :ivar other_build_id: that of a vmlinux which is there, and is of another kernel
    """

    path: str
    other_build_id: Optional[str]

    def vmlinux(self, build_id: Optional[str], release: str) -> List[str]:
        """
        Files of the kernel itself; one of them may lack debug info.

        :param build_id: None if it is not known: then the file's name has to have the release
        :raises TargetError: if it cannot be unpacked
        """

    def modules(self, wanted: Mapping[str, Optional[str]]) -> List[str]:
        """
        The files of modules.

        :param wanted: build IDs by the kernel's name of the module, None if not known
        :raises TargetError: if they cannot be unpacked
        """


def module_name(path: str) -> Optional[str]:
    """
    The kernel's name of a module, by that of its file; None if that is no module's.

    >>> module_name("kernel/drivers/gpu/drm/virtio/virtio-gpu.ko.debug")
    'virtio_gpu'
    """
    match = _MODULE.fullmatch(os.path.basename(path))
    return match["name"].replace("-", "_") if match else None


def is_vmlinux(path: str) -> bool:
    """Whether a file's name is that of a kernel with its symbols."""
    return _VMLINUX.fullmatch(os.path.basename(path)) is not None


def build_id_in(path: str) -> Optional[str]:
    """
    The build ID that a file of a ``.build-id`` tree is named by; None for others.

    >>> build_id_in("usr/lib/debug/.build-id/a1/99ec.debug")
    'a199ec'
    """
    match = _OF_BUILD_ID.search(path)
    return match[1] + match[2] if match else None


def source_of(path: PathLike) -> Optional[Source]:
    """The folder or package at *path*; None if it is another file."""
    if os.path.isdir(path):
        return Tree(str(path))
    with open(path, "rb") as file:
        head = file.read(16)
    return Package(str(path)) if debug_packages.is_package(head) else None


def unpacked(path: PathLike) -> str:
    """
    A compressed file's contents, as a file of the cache.

    :raises TargetError: if it cannot be unpacked
    """
    stem = re.sub(rf"{_PACKED}$", "", os.path.basename(path))
    destination = _cache() / "files" / _identity(path) / (stem or "file")
    if not destination.exists():
        try:
            with open(path, "rb") as file, debug_packages.decompressed(file, str(path)) as data:
                _write(data, destination)
        except debug_packages.DAMAGE as error:
            raise TargetError(
                f"{printable(str(path))} cannot be unpacked: {printable(str(error))}; copy or"
                " download it again"
            ) from error
    return str(destination)


def with_plain_sections(path: PathLike) -> str:
    """
    A module whose sections are compressed, as a file of the cache where they are not.

    :raises TargetError: if it is damaged
    """
    destination = _cache() / "files" / _identity(path) / os.path.basename(path)
    if not destination.exists():
        try:
            data = without_compression(Path(path).read_bytes())
        except (*debug_packages.DAMAGE, IndexError) as error:
            raise TargetError(
                f"{printable(str(path))} cannot be decompressed: {printable(str(error))}; copy"
                " or install it again"
            ) from error
        _write(io.BytesIO(data), destination)
    return str(destination)


class Tree:
    """A folder, searched with all that is below it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.other_build_id: Optional[str] = None
        self._files: Optional[List[str]] = None

    def vmlinux(self, build_id: Optional[str], release: str) -> List[str]:
        found = list(self._by_build_id(build_id))
        for path in filter(is_vmlinux, self._all()):
            file = _file(path)
            theirs = build_id_of_file(file)
            if (release in path) if build_id is None else (theirs == build_id):
                found.append(file)
            else:
                self.other_build_id = theirs or self.other_build_id
        return found

    def modules(self, wanted: Mapping[str, Optional[str]]) -> List[str]:
        found: Dict[str, str] = {}
        for name, build_id in wanted.items():
            for path in self._by_build_id(build_id):
                found[name] = path
        for path in self._all():
            module = module_name(path)
            if module is None or module not in wanted or module in found:
                continue
            file = _file(path)
            if wanted[module] is None or build_id_of_file(file) == wanted[module]:
                found[module] = file
        return list(found.values())

    def _by_build_id(self, build_id: Optional[str]) -> Iterator[str]:
        """Files of a ``.build-id`` tree; drgn checks that they have the ID."""
        if build_id is None:
            return
        end = os.path.join(".build-id", build_id[:2], f"{build_id[2:]}.debug")
        for path in self._all():
            if path.endswith(end) and build_id_of_file(path) == build_id:
                yield path

    def _all(self) -> Sequence[str]:
        if self._files is None:
            self._files = []
            for folder, folders, names in os.walk(self.path):
                folders.sort()
                self._files += (os.path.join(folder, name) for name in sorted(names))
                if len(self._files) > _FILES_MAX:
                    raise TargetError(
                        f"{printable(self.path)} has more than {_FILES_MAX:,} files; give the"
                        " folder with the debug info inside it with -s"
                    )
            # A pipe or a device is not even opened.
            self._files = [
                path
                for path in self._files
                if is_vmlinux(path) or path.endswith(".debug") or module_name(path)
                if os.path.isfile(path)
            ]
        return self._files


class Package:
    """A ``.deb``, ``.ddeb`` or ``.rpm`` file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.other_build_id: Optional[str] = None

    def vmlinux(self, build_id: Optional[str], release: str) -> List[str]:
        if build_id is None:
            raise TargetError(
                f"the dump does not record its kernel's build ID, so it cannot be looked up in"
                f" {printable(self.path)}; unpack the package, and give its vmlinux with -s"
            )
        cached = _cached(build_id)
        if cached is not None:
            return [cached]
        with debug_packages.members(self.path) as members:
            for member in members:
                if is_vmlinux(member.name) or build_id_in(member.name) == build_id:
                    path, theirs = _kept(member, build_id)
                    if path is not None:
                        return [path]
                    self.other_build_id = theirs or self.other_build_id
        return []

    def modules(self, wanted: Mapping[str, Optional[str]]) -> List[str]:
        missing: Dict[str, str] = {}
        found: List[str] = []
        for name, build_id in wanted.items():
            cached = None if build_id is None else _cached(build_id)
            if cached is not None:
                found.append(cached)
            elif build_id is not None:
                missing[name] = build_id
        index = _cache() / "files" / _identity(self.path) / "modules"
        if index.exists():
            # A module that no distribution has is not looked for in all of it each time.
            there = set(index.read_text("utf-8").split("\n"))
            missing = {name: id for name, id in missing.items() if {name, id} & there}
        if not missing:
            return found
        names = {build_id: name for name, build_id in missing.items()}
        seen = set()
        with debug_packages.members(self.path) as members:
            for member in members:
                build_id = build_id_in(member.name)
                module = module_name(member.name) or names.get(build_id or "", "")
                seen.add(build_id or module)
                if module in missing:
                    path, _ = _kept(member, missing[module])
                    if path is not None:
                        found.append(path)
                        del missing[module]
                        if not missing:
                            return found
            _write(io.BytesIO("\n".join(sorted(seen)).encode("utf-8", "replace")), index)
        return found


def _file(path: str) -> str:
    """The file, unpacked if it is compressed."""
    try:
        with open(path, "rb") as file:
            packed = debug_packages.is_compressed(file.read(16))
    except OSError:
        return path  # what cannot be read has no build ID
    return unpacked(path) if packed else path


def _identity(path: PathLike) -> str:
    """Of a file whose build ID is known only when it is unpacked."""
    about = os.stat(path)
    return f"{about.st_dev:x}-{about.st_ino:x}-{about.st_size:x}-{about.st_mtime_ns:x}"


def _cache() -> Path:
    return cache_folder("debug-info")


def _place(build_id: str) -> Path:
    return _cache() / "build-id" / f"{build_id}.debug"


def _cached(build_id: str) -> Optional[str]:
    place = _place(build_id)
    return str(place) if place.exists() else None


def _kept(member: debug_packages.Member, build_id: str) -> Tuple[Optional[str], Optional[str]]:
    """A member as a file of the cache if it has that build ID, and the one that it has."""
    if member.size_bytes > _FILE_BYTES_MAX:
        raise ValueError(f"{printable(member.name)} has an impossible size")
    with tempfile.TemporaryDirectory(dir=_made(_cache()), prefix=".unpacking-") as folder:
        path = Path(folder) / "file"
        with debug_packages.decompressed(member.contents, member.name) as data:
            _write(data, path)
        theirs = build_id_of_file(path)
        if theirs != build_id:
            return None, theirs
        place = _place(build_id)
        _made(place.parent)
        os.replace(path, place)
        return str(place), build_id


def _made(folder: Path) -> Path:
    try:
        make_private(folder)
    except OSError as error:
        raise TargetError(
            f"cannot unpack debug info to {printable(str(folder))}: {error.strerror}; free some"
            " space, or set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return folder


def _write(data: BinaryIO, path: Path) -> None:
    """All of *data*, or no file."""
    _made(path.parent)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".unpacking-")
    try:
        with open(descriptor, "wb") as file:
            left = _FILE_BYTES_MAX
            while left > 0:
                chunk = data.read(min(1 << 20, left))
                if not chunk:
                    break
                file.write(chunk)
                left -= len(chunk)
            else:
                raise ValueError("it has more than a kernel's debug info has")
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
