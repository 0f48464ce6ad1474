# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The command ``vmcore-tools``, and analyses run as scripts of drgn.

Exit codes: 0 nothing found and all was read, 1 a finding, 3 incomplete,
2 wrong usage or a target that cannot be looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import shutil
import sys
import traceback
from typing import Any, Callable, Iterable, Iterator, NoReturn, Optional, Sequence, TextIO, Tuple

from vmcore_tools import __version__, demo, interrupts
from vmcore_tools.analysis import Analysis, Progress, no_progress
from vmcore_tools.arguments import (
    Request,
    add_analysis_options,
    add_memory_option,
    add_only_option,
    add_report_options,
    left_out,
    request,
)
from vmcore_tools.diff import diff as compare
from vmcore_tools.diff import read_report
from vmcore_tools.errors import TargetError, printable
from vmcore_tools.info import describe
from vmcore_tools.masking import masking_of
from vmcore_tools.model import Evidence, Report
from vmcore_tools.output_file import output_file
from vmcore_tools.pages import explain_page, list_page
from vmcore_tools.preflight import foreign_format, is_dump
from vmcore_tools.report import DEFAULT_WIDTH, json, render
from vmcore_tools.report.format import escape
from vmcore_tools.report.table import facts_text
from vmcore_tools.runner import find_analyses, find_own_analysis, run
from vmcore_tools.target import Target, from_program, open_core, open_live, open_qemu

_PROGRAM = "vmcore-tools"

_USAGE_ERROR = 2

#: Rows of a dump's tables that diff compares: more than any of its tables has.
_DIFF_ROWS = 100_000

#: Of a file, to see what it is.
_HEAD_BYTES = 1024

#: Columns that text is wrapped to on a terminal, at least and at most.
_WIDTH_RANGE = (60, 120)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return _guarded(_PROGRAM, argv, lambda: _main(argv))


def run_script(analysis: Analysis) -> NoReturn:
    """
    Run one analysis on the program that drgn has set up, and exit.

    The last line of an analysis's file calls this where drgn runs it:
    ``drgn -c vmcore drgn_scripts/hung_tasks.py [OPTION...]``.
    """
    name = os.path.basename(sys.argv[0])
    sys.exit(_guarded(name, sys.argv[1:], lambda: _script(name, analysis)))


def run_request(target: Target, wanted: Request) -> Report:
    """Run what is asked for, with a progress bar if standard error is a terminal."""
    report = run(
        target,
        wanted.analyses,
        wanted.options,
        limit=wanted.limit,
        progress=_progress(),
    )
    report = dataclasses.replace(report, not_run=wanted.not_run)
    if wanted.redact:
        return dataclasses.replace(report, masking=masking_of(target.prog))
    return report


def print_report(report: Report, wanted: Request, file: TextIO) -> None:
    """Write the report as it is asked for."""
    write(
        render(
            report,
            wanted.format,
            redact=wanted.redact,
            timings=wanted.timings,
            width=_width(file),
            fit=shutil.get_terminal_size().columns if file.isatty() else None,
        ),
        file,
        wanted.output,
    )


def write(text: str, file: TextIO, path: Optional[str] = None) -> None:
    """
    Write text; what the file's encoding lacks becomes a backslash escape.

    :param path: what the user calls the file, None for standard output
    :raises TargetError: if it cannot be written; a broken pipe stays one
    """
    encoding = file.encoding or "utf-8"
    try:
        file.write(text.encode(encoding, "backslashreplace").decode(encoding))
        file.flush()
    except BrokenPipeError:
        raise
    except OSError as e:
        if path is not None:
            _discard(file)
        raise TargetError(
            f"cannot write {'standard output' if path is None else printable(path)}:"
            f" {e.strerror}; make room there, or name another file"
        ) from e


def _discard(file: TextIO) -> None:
    """Let what is still to be written go nowhere: Python would fail again to flush it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno())
    os.close(nowhere)


@contextlib.contextmanager
def output(path: Optional[str]) -> Iterator[TextIO]:
    """Where the report goes: standard output, or a file of the owner's alone."""
    if path is None:
        yield _standard_output()
        return
    with output_file(path) as file:
        yield file


def _standard_output() -> TextIO:
    # None where the descriptor was closed, whatever the types say.
    file: Optional[TextIO] = sys.stdout
    if file is None:
        raise TargetError("standard output is closed; direct it to a file or a pipe")
    return file


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """The last that a command does: to write, to a reader that may have had enough."""
    interrupts.finish_writing()
    try:
        yield
    except BrokenPipeError:
        _discard(sys.stdout)
    except TargetError:
        if sys.stdout is not None:
            _discard(sys.stdout)
        raise


def _guarded(name: str, argv: Sequence[str], command: Callable[[], int]) -> int:
    """Run a command; what is wrong outside this program becomes one line."""
    _open_what_is_closed()
    try:
        with interrupts.raised():
            return command()
    except TargetError as e:
        return _error(name, str(e))
    except OSError as e:
        return _error(name, _of_a_file(e))
    except KeyboardInterrupt as e:
        _error(name, str(e) or interrupts.NOTHING_YET)
        return interrupts.EXIT_CODE
    except Exception as e:
        # A bug. Python would end with 1, which means that something was found.
        place = traceback.extract_tb(e.__traceback__)[-1]
        # What an exception says can quote the dump; its type cannot.
        is_redacted = any(len(arg) > 4 and "--redact".startswith(arg) for arg in argv)
        told = type(e).__name__ if is_redacted else f"{type(e).__name__}: {e}"
        return _error(
            name,
            f"internal error: {told}"
            f" ({os.path.basename(place.filename)}:{place.lineno}); please report it",
        )


def _open_what_is_closed() -> None:
    """No file that is opened shall take the place of standard output or error."""
    descriptor = 0
    while descriptor <= 2:
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _of_a_file(error: OSError) -> str:
    if error.filename is None:
        return f"{error.strerror or error}; look at the disks of the dump and of what is written"
    name = printable(os.fsdecode(error.filename))
    return f"cannot use {name}: {error.strerror}; see that it may be, and that its disk has room"


def _error(name: str, message: str) -> int:
    try:
        write(f"{name}: error: {escape(message)}\n", sys.stderr)
    except (BrokenPipeError, TargetError):
        _discard(sys.stderr)
    return _USAGE_ERROR


def _analyses(argv: Sequence[str]) -> Tuple[Analysis, ...]:
    """All that are installed; for ``run NAME`` that one alone, as loading all takes a while."""
    if len(argv) > 1 and argv[0] == "run" and re.fullmatch(r"[a-z][a-z-]*", argv[1]):
        analysis = find_own_analysis(argv[1])
        if analysis is not None:
            return (analysis,)
    return find_analyses()


def _main(argv: Sequence[str]) -> int:
    analyses = _analyses(argv)
    parser = _parser(analyses)
    args = parser.parse_args(argv)
    if args.command == "list":
        return _print(list_page(analyses))
    if args.command == "explain":
        page = explain_page(analyses, args.name)
        if page is None:
            raise TargetError(f"no rule or analysis {args.name!r}; '{_PROGRAM} list' names them")
        return _print(page)
    if args.command == "diff":
        return _diff(args, analyses)
    if not (args.core or args.kernel or args.qemu or args.demo):
        args.parser.error(
            "name what to look at: -c VMCORE, -k for the running kernel,"
            " --qemu ADDRESS for a guest, or --demo"
        )
    if args.command == "info":
        return _info(args)
    if args.command == "triage":
        return _report(args, args.analyses, left_out(args.analyses, analyses))
    return _report(args, (args.analysis,))


def _parser(analyses: Sequence[Analysis]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="From a Linux crash dump to a proven cause.",
        epilog="Exit codes: 0 nothing found and all was read; 1 a finding at or above --fail-on;"
        " 3 something was not read; 2 wrong usage, or the target cannot be looked at.",
    )
    parser.add_argument("--version", action="version", version=f"{_PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    triage = commands.add_parser(
        "triage",
        help="run all analyses but those that take long or need an argument",
        description="Run all analyses but those that take long or need an argument, which the"
        " report names.",
    )
    triage.set_defaults(parser=triage)
    _add_target_options(triage)
    add_memory_option(triage)
    add_only_option(triage, analyses)
    add_report_options(triage)

    run_parser = commands.add_parser(
        "run", help="run one analysis, with its own options", description="Run one analysis."
    )
    names = run_parser.add_subparsers(dest="name", metavar="ANALYSIS", required=True)
    for analysis in analyses:
        _add_analysis_parser(names, analysis)

    info = commands.add_parser(
        "info",
        help="what a dump is and holds; needs no debug info",
        description="Show what a dump is and holds. Needs no debug info.",
    )
    info.set_defaults(parser=info)
    _add_target_options(info)
    info.add_argument("--format", choices=("table", "json"), default="table")

    diff = commands.add_parser(
        "diff",
        help="what grew from one dump to another",
        description="Show what grew, and which findings are new, from A to B. A report that is"
        " kept for this is made with: triage --only all --limit 0 --format json -o FILE",
    )
    diff.set_defaults(parser=diff)
    for name in ("A", "B"):
        diff.add_argument(name, help="a vmcore, or a report that was kept")
    _add_symbol_options(diff)
    add_memory_option(diff)
    add_only_option(diff, analyses)
    # None chosen: all, also those that take long, as what grew is seen by type and stack.
    diff.set_defaults(analyses=None)
    add_report_options(diff)

    commands.add_parser("list", help="the analyses, their rules and the known issues")

    explain = commands.add_parser(
        "explain", help="the page of a rule, an analysis or a known issue"
    )
    explain.add_argument(
        "name", metavar="NAME", help="a rule, such as VT201, an analysis, or a known issue"
    )
    return parser


def _add_analysis_parser(names: Any, analysis: Analysis) -> None:
    parser: argparse.ArgumentParser = names.add_parser(
        analysis.name,
        help=analysis.summary.replace("%", "%%"),
        description=analysis.summary.replace("%", "%%"),
    )
    parser.set_defaults(parser=parser, analysis=analysis)
    _add_target_options(parser)
    add_memory_option(parser)
    add_analysis_options(parser, analysis)
    add_report_options(parser)


def _add_target_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("target, one of")
    target = group.add_mutually_exclusive_group()
    target.add_argument("-c", "--core", metavar="PATH", help="the given vmcore")
    target.add_argument("-k", "--kernel", action="store_true", help="the running kernel")
    target.add_argument(
        "--qemu",
        metavar="ADDRESS",
        help="a QEMU guest, by the Unix socket or the host:port of its QMP",
    )
    target.add_argument(
        "--demo",
        nargs="?",
        const=demo.DEFAULT_DUMP,
        metavar="NAME",
        help="a dump that ships with this project",
    )
    _add_symbol_options(parser)


def _add_symbol_options(parser: argparse.ArgumentParser) -> None:
    symbols = parser.add_argument_group("debugging symbols")
    symbols.add_argument(
        "-s",
        "--symbols",
        metavar="PATH",
        action="append",
        default=[],
        help="debugging symbols of vmlinux or modules: a file, a folder, or a debug package"
        " (.deb, .ddeb, .rpm); can be repeated",
    )
    symbols.add_argument(
        "--kernel-directory",
        dest="kernel_directories",
        metavar="PATH",
        action="append",
        default=[],
        help="search the kernel and its modules there; can be repeated",
    )
    symbols.add_argument(
        "--debug-directory",
        dest="debug_directories",
        metavar="PATH",
        action="append",
        default=[],
        help="search debugging symbols there; can be repeated",
    )
    symbols.add_argument(
        "--vmcoreinfo", metavar="PATH", help="a file to use in place of the dump's VMCOREINFO"
    )


def _where(args: argparse.Namespace) -> Tuple[Any, ...]:
    return args.kernel_directories, args.debug_directories, args.vmcoreinfo


def _limited(target: Target, args: argparse.Namespace) -> Target:
    if args.max_memory is None:
        return target
    memory = dataclasses.replace(target.memory, held_bytes_max=args.max_memory)
    return dataclasses.replace(target, memory=memory)


def _open(args: argparse.Namespace) -> Target:
    where = _where(args)
    if args.kernel:
        return open_live(args.symbols, *where)
    if args.qemu:
        return open_qemu(args.qemu, args.symbols, *where)
    if args.demo:
        dump = demo.unpack(args.demo)
        return open_core(dump.vmcore, [*dump.symbols, *args.symbols], *where)
    return open_core(args.core, args.symbols, *where)


def _report(
    args: argparse.Namespace, analyses: Sequence[Analysis], not_run: Tuple[str, ...] = ()
) -> int:
    wanted = dataclasses.replace(request(args, analyses), not_run=not_run)
    # Opened first: who cannot write there shall not wait to learn it.
    with output(wanted.output) as file:
        report = run_request(_limited(_open(args), args), wanted)
        with _writing():
            print_report(report, wanted, file)
    return report.exit_code(wanted.fail_on)


def _diff(args: argparse.Namespace, analyses: Sequence[Analysis]) -> int:
    chosen: Optional[Tuple[Analysis, ...]] = args.analyses
    only = None if chosen is None else {analysis.name for analysis in chosen}
    wanted = request(args, chosen or tuple(a for a in analyses if a.argument is None))
    with output(wanted.output) as file:
        before, after = (_document(args, wanted, path) for path in (args.A, args.B))
        report = compare(before, after, wanted.limit, only)
        with _writing():
            # Its parts are masked already.
            print_report(report, dataclasses.replace(wanted, redact=False), file)
    return report.exit_code(wanted.fail_on)


def _document(args: argparse.Namespace, wanted: Request, path: str) -> Any:
    """One side of a comparison: a JSON report as it is, or the triage of a dump."""
    name = printable(path)
    give = "give a dump, or a report that triage --format json wrote"
    if not os.path.isfile(path):
        raise TargetError(f"there is no file {name}; {give}")
    document = None
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
        if head.lstrip()[:1] == b"{":
            file.seek(0)
            document = read_report(file.read(), path)
    if document is None:
        if not is_dump(head):
            known = foreign_format(head, name)
            raise TargetError(f"{name} {known or f'is neither a dump nor a report; {give}'}")
        target = _limited(open_core(path, args.symbols, *_where(args)), args)
        report = run_request(target, dataclasses.replace(wanted, limit=_DIFF_ROWS))
        return read_report(render(report, "json", redact=wanted.redact).encode(), path)
    if wanted.redact:
        raise TargetError(f"{path} is a report: make it with --redact instead")
    return document


def _info(args: argparse.Namespace) -> int:
    facts = _facts(args)
    if args.format == "json":
        return _print(json.dump(json.head(__version__, facts)))
    return _print(facts_text(facts))


def _facts(args: argparse.Namespace) -> Tuple[Evidence, ...]:
    if args.kernel or args.qemu:
        return _open(args).facts
    return describe(demo.unpack(args.demo).vmcore if args.demo else args.core)


def _print(text: str) -> int:
    file = _standard_output()
    with _writing():
        write(text, file)
    return 0


def _script(name: str, analysis: Analysis) -> int:
    from drgn import NoDefaultProgramError, get_default_prog

    parser = argparse.ArgumentParser(prog=name, description=analysis.summary.replace("%", "%%"))
    add_analysis_options(parser, analysis)
    add_report_options(parser)
    wanted = request(parser.parse_args(), (analysis,))
    try:
        prog = get_default_prog()
    except NoDefaultProgramError:
        raise TargetError(
            f"{name} runs inside drgn; run it as: drgn -c VMCORE {printable(sys.argv[0])}"
        ) from None
    with output(wanted.output) as file:
        report = run_request(from_program(prog), wanted)
        with _writing():
            print_report(report, wanted, file)
    return report.exit_code(wanted.fail_on)


def _width(file: TextIO) -> int:
    if not file.isatty():
        return DEFAULT_WIDTH
    low, high = _WIDTH_RANGE
    return max(low, min(shutil.get_terminal_size().columns, high))


def _progress() -> Progress:
    if not sys.stderr.isatty():
        return no_progress
    # Only where there is somebody to look at it: it takes a while to import.
    from tqdm import tqdm

    def bar(items: Iterable[Any], description: str, total: Optional[int]) -> Iterable[Any]:
        return tqdm(items, desc=description, total=total, leave=False, file=sys.stderr)

    return bar
