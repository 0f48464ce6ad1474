# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Open a vmcore, the live kernel or a QEMU guest.

Everything that can be wrong with what the user gave ends as a
:class:`TargetError`: one sentence and the next step. Damage inside the dump
is no such thing: it opens, and the facts say what is missing.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple, Union

from drgn import Architecture, BadDataError, FaultError, Platform, Program, ProgramFlags
from drgn.helpers import ValidationError

from vmcore_tools import debug_info, preflight
from vmcore_tools.cpu_check import check_cpu
from vmcore_tools.debug_info import DebugInfo
from vmcore_tools.dump.memory import Memory
from vmcore_tools.dump.page_map import DumpError, PageMap, merge_runs, page_map_of_file
from vmcore_tools.dump.plain_file import PlainFile
from vmcore_tools.dump.vmcoreinfo_note import vmcoreinfo_in_memory
from vmcore_tools.errors import TargetError, printable
from vmcore_tools.kernel.module_symbols import find_module_symbols
from vmcore_tools.kernel.resource import system_ram
from vmcore_tools.model import Absent, Evidence, Kind, Scalar
from vmcore_tools.vmcoreinfo import architecture as vmcoreinfo_architecture
from vmcore_tools.vmcoreinfo import of_program as vmcoreinfo_of_program

__all__ = [
    "DebugInfo",
    "Target",
    "TargetError",
    "from_program",
    "open_core",
    "open_live",
    "open_qemu",
]

PathLike = Union[str, Path]

_LACKS_VMCOREINFO = ("unrecognized QEMU memory dump", "vmcoreinfo.raw is not set")
_NO_KCORE_PERMISSION = (
    "no permission to read /proc/kcore; the live kernel needs root (CAP_SYS_RAWIO), and a"
    " kernel that is not locked down; a dump is opened with -c"
)
#: Set where a dump lacks the note, and the guest's memory has it.
_FOUND_NOTE = "vmcore_tools.vmcoreinfo_in_memory"
_QMP_HINT = "start QEMU with -qmp unix:PATH,server=on,wait=off and give PATH with --qemu"


@dataclasses.dataclass(frozen=True)
class Target:
    """What is looked at, opened and ready to read."""

    prog: Program
    memory: Memory
    facts: Tuple[Evidence, ...]  #: what it is and holds, in a fixed order
    debug_info: DebugInfo

    @property
    def live(self) -> bool:
        """Whether it goes on while it is read."""
        return bool(self.prog.flags & ProgramFlags.IS_LIVE)


def open_core(
    path: PathLike,
    symbols: Sequence[PathLike] = (),
    kernel_directories: Sequence[PathLike] = (),
    debug_directories: Sequence[PathLike] = (),
    vmcoreinfo: Optional[PathLike] = None,
) -> Target:
    """
    Open a dump file.

    :param path: a kdump, flattened or not, or an ELF vmcore
    :param symbols: files with debug info (vmlinux, modules), tried first
    :param kernel_directories: where kernels and modules lie, searched first
    :param debug_directories: where debug info lies, searched first
    :param vmcoreinfo: a file with the VMCOREINFO, if the dump has none
    :raises TargetError: if it cannot be looked at
    """
    page_map = read_page_map(path)

    def program() -> Program:
        with debug_info.drgn_log():
            return set_core_dump(path, _read_vmcoreinfo(vmcoreinfo))

    prog, found = _loaded(program, symbols, kernel_directories, debug_directories)
    return _target(prog, page_map, found, _plain_file(path, page_map))


def open_live(
    symbols: Sequence[PathLike] = (),
    kernel_directories: Sequence[PathLike] = (),
    debug_directories: Sequence[PathLike] = (),
    vmcoreinfo: Optional[PathLike] = None,
) -> Target:
    """
    Open the running kernel, through /proc/kcore.

    :raises TargetError: if it cannot be looked at
    """
    prog, found = _loaded(
        lambda: _set_kernel(_read_vmcoreinfo(vmcoreinfo)),
        symbols,
        kernel_directories,
        debug_directories,
    )
    return _target(prog, _page_map_of_live(prog), found)


def _set_kernel(note: Optional[bytes]) -> Program:
    prog = Program(vmcoreinfo=note)
    try:
        prog.set_kernel()
    except PermissionError:
        raise TargetError(_NO_KCORE_PERMISSION) from None
    except FileNotFoundError:
        raise TargetError(
            "there is no /proc/kcore: this kernel (or container) does not offer it; make a"
            " dump of the machine and open it with -c"
        ) from None
    except Exception as error:  # drgn raises Exception itself for what it has no class for
        raise TargetError(
            f"cannot read the live kernel: {printable(str(error))}; make a dump of the"
            " machine and open it with -c"
        ) from error
    return prog


def open_qemu(
    address: str,
    symbols: Sequence[PathLike] = (),
    kernel_directories: Sequence[PathLike] = (),
    debug_directories: Sequence[PathLike] = (),
    vmcoreinfo: Optional[PathLike] = None,
) -> Target:
    """
    Open a QEMU guest through its QMP socket; the guest is not stopped.

    :param address: path of a Unix socket, or host:port
    :raises TargetError: if it cannot be looked at
    """
    prog, found = _loaded(
        lambda: _set_qemu(address, _read_vmcoreinfo(vmcoreinfo)),
        symbols,
        kernel_directories,
        debug_directories,
    )
    return _target(prog, _page_map_of_live(prog), found)


def _set_qemu(address: str, note: Optional[bytes]) -> Program:
    name = printable(address)
    prog = Program(vmcoreinfo=note)
    try:
        prog.set_qemu_qmp(address)
    except FileNotFoundError:
        raise TargetError(f"there is no QMP socket {name}; {_QMP_HINT}") from None
    except ConnectionRefusedError:
        raise TargetError(f"nothing listens on the QMP socket {name}; {_QMP_HINT}") from None
    except PermissionError:
        raise TargetError(
            f"no permission for the QMP socket {name}; run as the user that runs QEMU, or as root"
        ) from None
    except Exception as error:  # as above
        raise TargetError(
            f"cannot talk QMP with {name}: {printable(str(error))}; {_QMP_HINT}"
        ) from error
    if not prog.flags & ProgramFlags.IS_LINUX_KERNEL:
        raise TargetError(
            f"no Linux kernel was recognised in the guest of {name}; run QEMU with -device"
            " vmcoreinfo and load qemu_fw_cfg in the guest, or give the guest's VMCOREINFO"
            " with --vmcoreinfo"
        )
    return prog


def _loaded(
    program: Callable[[], Program],
    symbols: Sequence[PathLike],
    kernel_directories: Sequence[PathLike],
    debug_directories: Sequence[PathLike],
) -> Tuple[Program, DebugInfo]:
    """
    A program with debug info.

    :param program: makes one without
    """
    where = symbols, kernel_directories, debug_directories
    instead: Dict[str, str] = {}
    while True:
        prog = program()
        try:
            return prog, debug_info.load(prog, *where, instead)
        except debug_info.CompressedModules as error:
            if error.instead.keys() <= instead.keys():
                raise TargetError(f"{error}, and it cannot be read; give it with -s") from error
            instead.update(error.instead)


def from_program(prog: Program) -> Target:
    """
    Use a program that is set up already, inside drgn; loads nothing.

    All that it changes: names in modules without debug info are found.

    :raises TargetError: if it cannot be looked at
    """
    if not prog.flags & ProgramFlags.IS_LINUX_KERNEL:
        raise TargetError(
            "drgn is not debugging a Linux kernel; start it with -c VMCORE, -k or --qemu ADDRESS"
        )
    found = debug_info.of_program(prog)
    if prog.core_dump_path is not None and not prog.flags & ProgramFlags.IS_LIVE:
        page_map = read_page_map(prog.core_dump_path)
        return _target(prog, page_map, found, _plain_file(prog.core_dump_path, page_map))
    return _target(prog, _page_map_of_live(prog), found)


def read_page_map(path: PathLike) -> PageMap:
    """
    The page map of a dump file, with errors for its user.

    :raises TargetError: if it is no dump
    """
    preflight.check_dump(path)
    try:
        return page_map_of_file(path)
    except (DumpError, OSError) as error:
        reason = str(error)
    except ValueError as error:  # offsets that no file has
        reason = f"its headers are damaged: {error}"
    raise TargetError(
        f"{printable(str(path))} cannot be used: {printable(reason)}; copy the dump again and"
        " compare the sizes, or make a new one"
    )


def set_core_dump(path: PathLike, note: Optional[bytes] = None) -> Program:
    """
    A program that reads a kernel dump, without debug info.

    :param note: the VMCOREINFO to use instead of the dump's
    :raises TargetError: if drgn cannot read it
    """
    name = printable(str(path))
    prog = Program(vmcoreinfo=note)
    try:
        prog.set_core_dump(path)
    except Exception as error:  # drgn raises Exception itself for what libkdumpfile says
        helped = None
        if "ARCH_NAME" in str(error):
            helped = _set_core_dump_without_utsname(path, note)
        elif any(text in str(error) for text in _LACKS_VMCOREINFO) and note is None:
            helped = _set_core_dump_with_note_in_memory(path)
        if helped is None:
            raise TargetError(_refused(name, str(error))) from error
        prog = helped
    if not prog.flags & ProgramFlags.IS_LINUX_KERNEL:
        raise TargetError(
            f"{name} is the core dump of a process or of a machine without VMCOREINFO, not a"
            " kernel's; give a kernel dump, or the machine's VMCOREINFO with --vmcoreinfo"
        )
    return prog


def _set_core_dump_without_utsname(path: PathLike, note: Optional[bytes]) -> Optional[Program]:
    """
    Open a kdump whose header does not name the architecture.

    QEMU writes such ones when it finds no utsname in the guest's VMCOREINFO.
    """
    for architecture in (Architecture.X86_64, Architecture.AARCH64):
        prog = Program(Platform(architecture), vmcoreinfo=note)
        try:
            prog.set_core_dump(path)
        except Exception:  # the caller has the first error to show
            continue
        if vmcoreinfo_architecture(vmcoreinfo_of_program(prog)) == architecture:
            return prog
    return None


def _set_core_dump_with_note_in_memory(path: PathLike) -> Optional[Program]:
    """
    Open QEMU's dump of a guest without ``-device vmcoreinfo``.

    That the note is this boot's is seen when the kernel's own name is read by it.
    """
    try:
        notes = vmcoreinfo_in_memory(path, page_map_of_file(path))
    except (OSError, ValueError):
        return None
    if len(notes) != 1:
        return None
    prog = Program(vmcoreinfo=notes[0])
    try:
        prog.set_core_dump(path)
    except Exception:  # the caller has the first error to show
        again = _set_core_dump_without_utsname(path, notes[0])
        if again is None:
            return None
        prog = again
    prog.cache[_FOUND_NOTE] = True
    return prog


def _refused(name: str, error: str) -> str:
    if "without libkdumpfile" in error:
        return (
            f"{name} is a kdump, and this drgn was built without libkdumpfile; install drgn"
            " from PyPI, or build it with libkdumpfile (see Installation in README.md)"
        )
    if any(text in error for text in _LACKS_VMCOREINFO):
        return (
            f"{name} has no VMCOREINFO, so the kernel in it cannot be found; give it with"
            " --vmcoreinfo, or dump again from a QEMU with -device vmcoreinfo and"
            " qemu_fw_cfg loaded in the guest"
        )
    if "ARCH_NAME" in error:
        return (
            f"the header of {name} names no architecture (QEMU's kdump formats do that for"
            " some guests); dump the guest again in the ELF format: dump-guest-memory"
            " without -z"
        )
    return (
        f"{name} cannot be opened: {printable(error)}; copy the dump again and compare the"
        " sizes, or make a new one"
    )


def _read_vmcoreinfo(path: Optional[PathLike]) -> Optional[bytes]:
    if path is None:
        return None
    preflight.read_head(path, "VMCOREINFO", "--vmcoreinfo")
    note = Path(path).read_bytes()
    if b"OSRELEASE=" not in note:
        raise TargetError(
            f"{printable(str(path))} is not VMCOREINFO: it has no OSRELEASE; give the text of"
            " the note"
        )
    return note


def _page_map_of_live(prog: Program) -> PageMap:
    """The RAM that a running kernel says it has."""
    page_size_bytes = int(prog["PAGE_SIZE"])
    try:
        ranges = [
            (start // page_size_bytes, end // page_size_bytes) for start, end in system_ram(prog)
        ]
    except (FaultError, LookupError, ValidationError) as error:
        raise TargetError(
            f"the kernel's list of System RAM cannot be read: {printable(str(error))}; make a"
            " dump of the machine and open it with -c"
        ) from error
    local = prog.flags & ProgramFlags.IS_LOCAL
    return PageMap("live kernel" if local else "QEMU guest", page_size_bytes, merge_runs(ranges))


def _plain_file(path: PathLike, page_map: PageMap) -> Optional[PlainFile]:
    if not len(page_map.segments):
        return None
    try:
        return PlainFile(path, page_map.segments)
    except OSError:
        return None  # drgn has it open


def _target(
    prog: Program, page_map: PageMap, found: DebugInfo, plain: Optional[PlainFile] = None
) -> Target:
    check_cpu()
    _check_identity(prog, page_map)
    if found.modules_missing:
        find_module_symbols(prog)
    return Target(prog, Memory(prog, page_map, plain), _facts(prog, page_map, found), found)


def _check_identity(prog: Program, page_map: PageMap) -> None:
    """
    Read the kernel's own name where the debug info says that it is.

    If that fails nothing else can be believed. init_uts_ns is in the
    kernel's image, which every dump level keeps.
    """
    expected = prog["UTS_RELEASE"].string_()
    try:
        release = prog["init_uts_ns"].name.release.string_()
        problem = f'its name reads "{printable(release.decode("utf-8", "replace"))}"'
    except (BadDataError, FaultError, LookupError) as error:
        release = None
        problem = printable(str(error))
    if release == expected:
        return
    cause = f" ({page_map.truncated})" if page_map.truncated else ""
    raise TargetError(
        f"nothing of the kernel {debug_info.release_of(prog)} can be read{cause}: {problem};"
        f" {_next_step(page_map)}"
    )


def _next_step(page_map: PageMap) -> str:
    if page_map.split:
        return "open what this writes: makedumpfile --reassemble PART1 PART2 ... vmcore"
    if page_map.incomplete:
        return (
            "its machine had no room to write all of it: give it more, or make a smaller"
            " dump with makedumpfile -d 31"
        )
    return "copy the dump again and compare the sizes, or make a new one"


def _facts(prog: Program, page_map: PageMap, found: DebugInfo) -> Tuple[Evidence, ...]:
    from drgn.helpers.linux.cpumask import num_online_cpus, num_present_cpus
    from drgn.helpers.linux.mm import totalram_pages
    from drgn.helpers.linux.timekeeping import ktime_get_seconds

    def read(function: Callable[[], int]) -> Union[int, Absent]:
        try:
            return int(function())
        except (FaultError, LookupError, ValueError) as error:
            return Absent(printable(str(error)))

    facts: List[Evidence] = []

    def fact(name: str, kind: Kind, value: Union[Scalar, Absent, Tuple[Scalar, ...]]) -> None:
        facts.append(Evidence(name, kind, value))

    if prog.core_dump_path is not None and not prog.flags & ProgramFlags.IS_LIVE:
        fact("file", Kind.SENSITIVE, os.path.basename(prog.core_dump_path))
    fact("format", Kind.TEXT, page_map.format)
    fact("flattened", Kind.TEXT, page_map.flattened)
    fact("truncated", Kind.TEXT, page_map.truncated)
    if _FOUND_NOTE in prog.cache:
        fact("vmcoreinfo", Kind.TEXT, "not among the dump's notes; found in the guest's memory")
    fact("kernel_release", Kind.UNTRUSTED, debug_info.release_of(prog))
    fact("build_id", Kind.TEXT, debug_info.build_id(prog) or Absent("not recorded in the dump"))
    fact("architecture", Kind.TEXT, architecture_name(prog))
    fact("page_size_bytes", Kind.BYTES, page_map.page_size_bytes)
    fact("cpus_present", Kind.COUNT, read(lambda: num_present_cpus(prog)))
    fact("cpus_online", Kind.COUNT, read(lambda: num_online_cpus(prog)))
    fact(
        "ram_bytes",
        Kind.BYTES,
        read(lambda: totalram_pages(prog) * page_map.page_size_bytes),
    )
    fact(
        "uptime_ns",
        Kind.DURATION,
        read(lambda: ktime_get_seconds(prog).value_() * 1_000_000_000),
    )
    fact("dump_level", Kind.NUMBER, page_map.dump_level)
    fact("present_pages", Kind.COUNT, page_map.present_pages)
    fact("vmlinux_debug_info", Kind.TEXT, found.vmlinux_loaded)
    if found.modules_error is not None and not found.modules:
        fact("modules", Kind.COUNT, Absent(found.modules_error))
        fact("modules_without_debug_info", Kind.UNTRUSTED, Absent("the modules are not known"))
    else:
        fact("modules", Kind.COUNT, len(found.modules))
        fact("modules_without_debug_info", Kind.UNTRUSTED, found.modules_missing)
    if found.modules_error is not None and found.modules:
        fact("modules_error", Kind.UNTRUSTED, found.modules_error)
    if found.unused_symbols:
        fact(
            "unused_symbols",
            Kind.SENSITIVE,
            tuple(os.path.basename(path) for path in found.unused_symbols),
        )
    return tuple(facts)


def architecture_name(prog: Program) -> str:
    """The architecture in the kernel's word: ``x86_64``, ``arm64``."""
    platform = prog.platform
    if platform is None:
        return "unknown"
    if platform.arch == Architecture.AARCH64:
        return "arm64"
    return str(platform.arch.name).lower()
