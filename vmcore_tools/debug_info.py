# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Find the debug info of a target, and say exactly what is missing.

drgn does the searching. It ignores a file that does not fit, and a module
list that breaks off, with a line in its log: here they become an error or a
stated gap.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
import types
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from drgn import (
    MainModule,
    MissingDebugInfoError,
    Module,
    ModuleFileStatus,
    Program,
    RelocatableModule,
)

from vmcore_tools import preflight, vmcoreinfo
from vmcore_tools.build_id import build_id_of_file as build_id_of_file
from vmcore_tools.compressed_sections import has_compressed_sections
from vmcore_tools.debug_packages import is_compressed
from vmcore_tools.debug_sources import Source, source_of, unpacked, with_plain_sections
from vmcore_tools.errors import TargetError, printable
from vmcore_tools.package_names import packages as packages

PathLike = Union[str, Path]

#: The environment variable with the servers, and drgn's finder that asks them.
_SERVERS = "DEBUGINFOD_URLS"
_DEBUGINFOD = "debuginfod"

#: Where distributions put a vmlinux, below / or a folder with debug info.
_USUAL_PLACES = ("boot/vmlinux-{}", "lib/modules/{}/vmlinux", "lib/modules/{}/build/vmlinux")

#: Symbols whose run-time address VMCOREINFO has had since before 4.0.
_VMCOREINFO_SYMBOLS = ("init_uts_ns", "_stext", "node_online_map", "swapper_pg_dir")

#: How drgn's warnings begin when it gives up on the list of modules.
_MODULE_LIST_WARNINGS = ("can't find", "ignoring module")


@dataclasses.dataclass(frozen=True)
class DebugInfo:
    """
    The debug info that was found.

    :ivar vmlinux_loaded: the kernel's own is there
    :ivar modules: names of the loaded modules, sorted
    :ivar modules_missing: those of them without debug info
    :ivar modules_error: why the list of modules is not whole, None if it is
    :ivar unused_symbols: files of ``-s`` that fit nothing in the dump
    """

    vmlinux_loaded: bool
    modules_missing: Tuple[str, ...] = ()
    modules: Tuple[str, ...] = ()
    modules_error: Optional[str] = None
    unused_symbols: Tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether a type that is nowhere in it is nowhere in the kernel."""
        return self.vmlinux_loaded and not self.modules_missing and self.modules_error is None

    def has_not_loaded(self, module: str) -> bool:
        """Whether it is certain that a module is not loaded."""
        return self.modules_error is None and module not in self.modules


class CompressedModules(Exception):
    """
    Files of modules that drgn cannot read, and the program is of no use any more.

    :ivar instead: for each, a copy that it can read
    """

    def __init__(self, instead: Mapping[str, str]) -> None:
        super().__init__("the sections of a module's debug info are compressed")
        self.instead = instead


def load(
    prog: Program,
    symbols: Sequence[PathLike],
    kernel_directories: Sequence[PathLike],
    debug_directories: Sequence[PathLike],
    instead: Mapping[str, str] = types.MappingProxyType({}),
) -> DebugInfo:
    """
    Load the files given, then what drgn's own search finds for the rest.

    :param symbols: ELF files, compressed or not, packages, and folders that are searched
    :param instead: what to use for some files, by their paths without links
    :raises TargetError: if a file does not fit, or the kernel's own debug
        info is not found
    :raises CompressedModules: if it has to be done again, with another program
    """
    given, sources = _given(symbols)
    for option, directories in (
        ("--kernel-directory", kernel_directories),
        ("--debug-directory", debug_directories),
    ):
        for directory in directories:
            if not os.path.isdir(directory):
                raise TargetError(
                    f"there is no directory {printable(str(directory))}; give an existing"
                    f" one with {option}"
                )
    options = prog.debug_info_options
    options.kernel_directories = (*map(str, kernel_directories), *options.kernel_directories)
    options.directories = (*map(str, debug_directories), *options.directories)

    # What is missing is told below, by name.
    with drgn_log() as messages, contextlib.suppress(MissingDebugInfoError):
        found = _vmlinux(prog, list(given), sources)
        paths = [*given, *itertools.chain(*found.values())]
        paths = [path for path in paths if os.path.realpath(path) not in instead]
        _load(prog, [*paths, *instead.values()], default=True)
    if main_module(prog).debug_file_status == ModuleFileStatus.WANT and _asks_servers(prog):
        with drgn_log() as messages, contextlib.suppress(MissingDebugInfoError):
            _load_from_servers(prog, [main_module(prog)])
            _load(prog, [], default=True)
    unused = _unused(prog, [path for path in given if path in paths])
    _refuse_wrong_vmlinux(prog, [path for path in unused if preflight.is_linked(given[path])])
    if sources and main_module(prog).debug_file_status == ModuleFileStatus.HAVE:
        for source in sources:
            modules = source.modules(_modules_missing(prog))
            found[source.path] += modules
            with drgn_log(), contextlib.suppress(MissingDebugInfoError):
                _load(prog, modules, default=False)
    if _asks_servers(prog):
        missing = _modules_missing(prog)
        with drgn_log(), contextlib.suppress(MissingDebugInfoError):
            _load_from_servers(prog, [m for m in prog.modules() if m.name in missing])
    for path, files in found.items():
        # What is used instead of a file does not tell whose it is.
        if len(_unused(prog, files)) == len(files) and not instead:
            unused.append(path)
    _refuse_wrong_source(prog, sources)
    return _state(prog, messages, tuple(unused))


def _given(symbols: Sequence[PathLike]) -> Tuple[Dict[str, int], List[Source]]:
    """The ELF types of the files of ``-s``, and its folders and packages."""
    files: Dict[str, int] = {}
    sources: List[Source] = []
    for path in map(str, symbols):
        source = None
        if not os.path.isdir(path):
            head = preflight.read_head(path, "vmlinux", "-s")
            if is_compressed(head):
                file = unpacked(path)
                files[file] = preflight.check_symbols(file, path)
                continue
        source = source_of(path)
        if source is None:
            files[path] = preflight.check_symbols(path)
        else:
            sources.append(source)
    return files, sources


def _load(prog: Program, paths: Sequence[str], default: bool) -> None:
    with _loading(prog):
        prog.load_debug_info(paths, default=default)


@contextlib.contextmanager
def _loading(prog: Program) -> Iterator[None]:
    try:
        yield
    except MissingDebugInfoError:
        _refuse_compressed(prog)
        raise
    except Exception as error:  # drgn raises Exception itself for what libelf says
        _refuse_compressed(prog)
        raise TargetError(
            f"the debug info cannot be read: {printable(str(error))}; install or copy it again"
        ) from error
    else:
        # In what is compressed in the old way drgn has found nothing.
        _refuse_compressed(prog)


def _refuse_compressed(prog: Program) -> None:
    files = [module.debug_file_path for module in prog.modules()]
    packed = [path for path in files if path and has_compressed_sections(path)]
    if packed:
        raise CompressedModules({path: with_plain_sections(path) for path in packed})


def _asks_servers(prog: Program) -> bool:
    """Whether the user has named debuginfod servers, and drgn can ask them."""
    return bool(os.environ.get(_SERVERS)) and _DEBUGINFOD in prog.registered_debug_info_finders()


def _load_from_servers(prog: Program, modules: Sequence[Module]) -> None:
    """
    Ask the debuginfod servers, for these modules alone.

    For kernels drgn leaves them out, as a vmlinux takes some servers minutes: they are asked
    for what is nowhere else.
    """
    enabled = prog.enabled_debug_info_finders()
    prog.set_enabled_debug_info_finders([_DEBUGINFOD])
    try:
        with _loading(prog):
            prog.load_module_debug_info(*modules)
    finally:
        prog.set_enabled_debug_info_finders(enabled)


def _vmlinux(
    prog: Program, files: Sequence[str], sources: Sequence[Source]
) -> Dict[str, List[str]]:
    """Files of the kernel itself, by the path of their source; one that was given suffices."""
    found: Dict[str, List[str]] = {source.path: [] for source in sources}
    ours = build_id(prog)
    if ours is None or ours not in map(build_id_of_file, files):
        for source in sources:
            found[source.path] = source.vmlinux(ours, release_of(prog))
            if found[source.path]:
                break
    return found


def _modules_missing(prog: Program) -> Dict[str, Optional[str]]:
    """Build IDs of the loaded modules that have no debug info yet, by name."""
    return {
        module.name: module.build_id.hex() if module.build_id else None
        for module in prog.modules()
        if isinstance(module, RelocatableModule)
        and module.debug_file_status not in (ModuleFileStatus.HAVE, ModuleFileStatus.DONT_NEED)
    }


def _refuse_wrong_source(prog: Program, sources: Sequence[Source]) -> None:
    """A folder or package with the vmlinux of another kernel, where none was found."""
    if main_module(prog).debug_file_status == ModuleFileStatus.HAVE:
        return
    for source in sources:
        if source.other_build_id is not None:
            raise TargetError(
                f"wrong debug info: the dump's kernel {release_of(prog)} has the build ID"
                f" {build_id(prog) or 'that it does not record'}, but the vmlinux in"
                f" {printable(source.path)} has {source.other_build_id}; give the debug info"
                f" of {packages(release_of(prog))}"
            )


def of_program(prog: Program) -> DebugInfo:
    """
    What is loaded in a program that the user set up; loads nothing.

    :raises TargetError: if the kernel's own debug info is not loaded
    """
    with drgn_log() as messages:
        try:
            prog.create_loaded_modules()
        except MemoryError:
            messages.append("can't find loaded modules: their list is damaged")
    return _state(prog, messages, ())


def _state(prog: Program, messages: Sequence[str], unused: Tuple[str, ...]) -> DebugInfo:
    main = main_module(prog)
    if main.debug_file_status != ModuleFileStatus.HAVE:
        raise TargetError(_missing_vmlinux(prog, main, unused))
    _refuse_other_build(prog, main)
    modules: Dict[str, bool] = {}
    for module in prog.modules():
        if isinstance(module, RelocatableModule):
            modules[module.name] = module.debug_file_status in (
                ModuleFileStatus.HAVE,
                ModuleFileStatus.DONT_NEED,
            )
    errors = [message for message in messages if message.startswith(_MODULE_LIST_WARNINGS)]
    return DebugInfo(
        vmlinux_loaded=True,
        modules=tuple(sorted(modules)),
        modules_missing=tuple(sorted(name for name, found in modules.items() if not found)),
        modules_error=printable(errors[0]) if errors else None,
        unused_symbols=unused,
    )


def main_module(prog: Program) -> MainModule:
    """The module of vmlinux; creates it, and no other, if it is not there."""
    try:
        return prog.main_module()
    except LookupError:
        next(iter(prog.loaded_modules()))
        return prog.main_module()


def build_id(prog: Program) -> Optional[str]:
    """The build ID of the target's kernel in hex, None where it is not known."""
    value = main_module(prog).build_id
    return None if value is None else value.hex()


def release_of(prog: Program) -> str:
    """The kernel release by VMCOREINFO."""
    return printable(prog["UTS_RELEASE"].string_().decode("utf-8", "replace"))


@contextlib.contextmanager
def drgn_log() -> Iterator[List[str]]:
    """Collect drgn's warnings instead of showing them."""
    messages: List[str] = []

    def collect(record: logging.LogRecord) -> bool:
        messages.append(record.getMessage())
        return False

    logger = logging.getLogger("drgn")
    level = logger.level
    logger.addFilter(collect)
    # `drgn -q` raises the level so far that a warning is not even made.
    if not logger.isEnabledFor(logging.WARNING):
        logger.setLevel(logging.WARNING)
    try:
        yield messages
    finally:
        logger.setLevel(level)
        logger.removeFilter(collect)


def _unused(prog: Program, paths: Sequence[str]) -> List[str]:
    used = set()
    for module in prog.modules():
        used |= {
            module.loaded_file_path,
            module.debug_file_path,
            module.supplementary_debug_file_path,
        }
    return [path for path in paths if os.path.realpath(path) not in used]


def _refuse_wrong_vmlinux(prog: Program, paths: Sequence[str]) -> None:
    """A vmlinux that was given and not used is of another kernel, or a double."""
    ours = build_id(prog)
    for path in paths:
        theirs = build_id_of_file(path)
        if ours is not None and theirs == ours:
            continue
        name = printable(path)
        if theirs is None:
            raise TargetError(
                f"{name} has no build ID, so drgn cannot tell that it fits; give the"
                f" vmlinux of {packages(release_of(prog))}"
            )
        if ours is None:
            raise TargetError(
                f"wrong debug info: {name} (build ID {theirs}) is not of the dump's kernel"
                f" {release_of(prog)} (build ID not recorded in the dump); give the vmlinux"
                f" of {packages(release_of(prog))}"
            )
        raise TargetError(
            f"wrong debug info: the dump's kernel {release_of(prog)} has the build ID {ours},"
            f" but {name} has {theirs}; give the vmlinux of {packages(release_of(prog))}"
        )


def _missing_vmlinux(prog: Program, main: MainModule, unused: Sequence[str]) -> str:
    release = release_of(prog)
    identity = f"kernel {release} (build ID {build_id(prog) or 'not recorded in the dump'})"
    fetch = ""
    if _asks_servers(prog):
        identity += f", nor on the servers of {_SERVERS}"
    elif _DEBUGINFOD in prog.registered_debug_info_finders():
        fetch = f" or set {_SERVERS} to fetch it,"
    step = f"install {packages(release)},{fetch} or give its vmlinux, or the package file, with -s"
    if main.debug_file_status == ModuleFileStatus.WANT_SUPPLEMENTARY:
        wanted = printable(main.wanted_supplementary_debug_file().supplementary_path)
        return (
            f"the debug info of {identity} needs a supplementary file, {wanted}, that is not"
            f" there; give it with another -s, or {step}"
        )
    # A file without debug info may be used as the loaded file, or not at all.
    ours = build_id(prog)
    stripped = [main.loaded_file_path, *(path for path in unused if build_id_of_file(path) == ours)]
    for path in stripped:
        if path is not None and ours is not None:
            return f"{printable(path)} of {identity} was stripped of its debug info; {step}"
    return f"no debug info for {identity}{_other_builds(prog, release)}; {step}"


def _other_builds(prog: Program, release: str) -> str:
    """In words, what was in one of the usual places and is not of this kernel."""
    for folder in ("/", *prog.debug_info_options.directories):
        for place in _USUAL_PLACES:
            path = os.path.join(folder, place.format(release))
            theirs = build_id_of_file(path)
            if theirs is not None and theirs != build_id(prog):
                return f": {printable(path)} is of another build (build ID {theirs})"
    return ""


def _refuse_other_build(prog: Program, main: MainModule) -> None:
    """
    Refuse another build of the same release where no build ID tells.

    Before 0935288c6e00 ("kdump: append kernel build-id string to VMCOREINFO")
    (5.9) drgn takes any vmlinux of the same release.
    """
    values = vmcoreinfo.of_program(prog)
    if vmcoreinfo.build_id(values) is not None:
        return
    for name in _VMCOREINFO_SYMBOLS:
        expected = vmcoreinfo.number(values, f"SYMBOL({name})")
        if expected is None:
            continue
        try:
            address = prog.symbol(name).address
        except LookupError:
            continue
        if address != expected:
            path = printable(main.debug_file_path or "the vmlinux")
            raise TargetError(
                f"wrong debug info: {name} is at {expected:#x} in the dump and at"
                f" {address:#x} by {path} (build ID {build_id_of_file(path)}; the dump's is"
                f" not recorded), another build of {release_of(prog)}; give the vmlinux of"
                f" {packages(release_of(prog))}"
            )
