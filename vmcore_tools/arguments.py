# SPDX-License-Identifier: LGPL-2.1-or-later
"""The options that the command line, analyses as scripts and ``%vmcore`` share."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from vmcore_tools.analysis import Analysis
from vmcore_tools.asked import number_from
from vmcore_tools.dump.memory import HELD_BYTES
from vmcore_tools.model import Severity
from vmcore_tools.report import FORMATS

#: Rows of each table, by format, if --limit does not say.
DEFAULT_LIMIT = {"table": 20, "markdown": 20, "html": 200, "json": 1000}

#: Keeps an analysis's options apart from ours in the namespace.
_PREFIX = "analysis_option_"

#: What --only calls all analyses that need no argument.
_ALL = "all"

_SEVERITIES = {severity.name.lower(): severity for severity in Severity}


@dataclasses.dataclass(frozen=True)
class Request:
    """What to run, and how to show it."""

    analyses: Tuple[Analysis, ...]
    options: Mapping[str, Mapping[str, Any]]  #: by analysis name
    format: str
    output: Optional[str]  #: a file's name, None for standard output
    limit: Optional[int]
    redact: bool
    timings: bool
    fail_on: Severity
    not_run: Tuple[str, ...] = ()  #: analyses that triage leaves out


def add_memory_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-memory",
        metavar="SIZE",
        type=_size,
        help="hold no more of the target's own pages than SIZE, such as 64M; larger targets"
        f" are read again by each analysis (default: {HELD_BYTES >> 20}M). What is found in"
        " them, and the debug info, come on top",
    )


def add_report_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("report")
    group.add_argument(
        "--format", choices=FORMATS, default="table", help="how to write it (default: table)"
    )
    group.add_argument(
        "-o", "--output", metavar="FILE", help="write to FILE, readable by its owner only"
    )
    group.add_argument(
        "--limit",
        metavar="N",
        type=number_from(0),
        help="show N rows of each table, 0 for all"
        f" (default: {DEFAULT_LIMIT['table']}, with --format json {DEFAULT_LIMIT['json']})",
    )
    group.add_argument(
        "--redact",
        action="store_true",
        help="mask addresses and what may identify people, such as commands' names",
    )
    group.add_argument(
        "--timings", action="store_true", help="say how many seconds each analysis took"
    )
    group.add_argument(
        "--fail-on",
        metavar="SEVERITY",
        choices=_SEVERITIES,
        default="error",
        help=f"end with 1 for a finding at least as bad: {', '.join(_SEVERITIES)} (default: error)",
    )


def add_analysis_options(parser: argparse.ArgumentParser, analysis: Analysis) -> None:
    if analysis.argument is not None:
        parser.add_argument(
            _PREFIX + analysis.argument.name,
            metavar=analysis.argument.metavar,
            type=analysis.argument.type,
            help=_help(analysis.argument.help),
        )
    if not analysis.options:
        return
    group = parser.add_argument_group(f"options of {analysis.name}")
    for option in analysis.options:
        kind: Dict[str, Any] = {"type": option.type, "metavar": option.metavar}
        group.add_argument(
            f"--{option.name}",
            dest=_PREFIX + option.key,
            # Absent unless given: the runner knows the defaults.
            default=argparse.SUPPRESS,
            help=_help(option.help),
            **({"action": "store_true"} if option.type is bool else kind),
        )


def add_only_option(parser: argparse.ArgumentParser, analyses: Sequence[Analysis]) -> None:
    analyses = [analysis for analysis in analyses if analysis.argument is None]
    by_name = {analysis.name: analysis for analysis in analyses}

    def selection(text: str) -> Tuple[Analysis, ...]:
        names = [name.strip() for name in text.split(",")]
        if names == [_ALL]:
            return tuple(analyses)
        for name in names:
            if name not in by_name:
                raise argparse.ArgumentTypeError(
                    f"no analysis {name!r}; there are {', '.join(by_name)}"
                )
        return tuple(analysis for analysis in analyses if analysis.name in names)

    parser.add_argument(
        "--only",
        dest="analyses",
        metavar="A,B",
        type=selection,
        default=tuple(analysis for analysis in analyses if analysis.in_triage),
        help=f"run these analyses only, or '{_ALL}', also those that take long",
    )


def left_out(chosen: Sequence[Analysis], analyses: Sequence[Analysis]) -> Tuple[str, ...]:
    """What triage leaves to whoever asks for it; nothing if somebody chose."""
    default = {analysis.name for analysis in analyses if analysis.in_triage}
    if {analysis.name for analysis in chosen} != default:
        return ()
    return tuple(analysis.name for analysis in analyses if not analysis.in_triage)


def request(args: argparse.Namespace, analyses: Sequence[Analysis]) -> Request:
    """What the parsed arguments ask for; options are those of a single analysis."""
    options: Dict[str, Mapping[str, Any]] = {}
    if len(analyses) == 1:
        keys = [option.key for option in analyses[0].options]
        if analyses[0].argument is not None:
            keys.append(analyses[0].argument.name)
        options[analyses[0].name] = {
            key: getattr(args, _PREFIX + key) for key in keys if hasattr(args, _PREFIX + key)
        }
    limit = DEFAULT_LIMIT[args.format] if args.limit is None else args.limit
    return Request(
        analyses=tuple(analyses),
        options=options,
        format=args.format,
        output=args.output,
        limit=limit or None,
        redact=args.redact,
        timings=args.timings,
        fail_on=_SEVERITIES[args.fail_on],
    )


def _help(text: str) -> str:
    return text.replace("%", "%%")


_UNITS = {"": 0, "K": 10, "M": 20, "G": 30}


def _size(text: str) -> int:
    digits, unit = (text[:-1], text[-1:]) if text[-1:] in _UNITS else (text, "")
    if not digits.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give one such as 64M or 2G")
    return int(digits) << _UNITS[unit]
