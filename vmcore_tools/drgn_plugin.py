# SPDX-License-Identifier: LGPL-2.1-or-later
"""
``%vmcore`` inside drgn.

drgn imports this at every start (entry point group ``drgn.plugins``): what
takes time to import waits until the command is run.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING, Any, Dict, NoReturn, Optional, Sequence

from drgn import Program
from drgn.commands import CommandArgumentError, CommandError, parse_shell_command
from drgn.commands.linux import linux_kernel_custom_command

if TYPE_CHECKING:
    from vmcore_tools.analysis import Analysis
    from vmcore_tools.model import Report

_USAGE = """\
vmcore triage [--only A,B] [OPTION...]
       vmcore ANALYSIS [ARGUMENT] [OPTION...]
       vmcore list
       vmcore explain NAME
       vmcore info"""

_DESCRIPTION = (
    "Run the analyses of vmcore-tools: leaked fences, hung tasks and more. "
    "'vmcore list' names them, 'vmcore ANALYSIS --help' shows an analysis's options. "
    "drgn.commands.run_command() returns the report."
)


class _HelpShown(Exception):
    """``--help`` was given, and is printed."""


class _Parser(argparse.ArgumentParser):
    """Raises drgn's errors where argparse would end the process."""

    def error(self, message: str) -> NoReturn:
        raise CommandArgumentError(f"{self.prog}: error: {message}")

    def exit(self, status: int = 0, message: Optional[str] = None) -> NoReturn:
        raise _HelpShown


def _vmcore(
    prog: Program,
    name: str,
    args: Sequence[str],
    *,
    parser: argparse.ArgumentParser,
    globals: Dict[str, Any],
) -> Optional[Report]:
    from vmcore_tools.arguments import left_out, request
    from vmcore_tools.cli import output, print_report, run_request, write
    from vmcore_tools.errors import TargetError
    from vmcore_tools.pages import explain_page, list_page
    from vmcore_tools.report.table import facts_text
    from vmcore_tools.runner import find_analyses
    from vmcore_tools.target import from_program

    analyses = find_analyses()
    try:
        parsed = _parser(name, analyses).parse_args(args)
        if parsed.command == "list":
            write(list_page(analyses), sys.stdout)
            return None
        if parsed.command == "explain":
            page = explain_page(analyses, parsed.name)
            if page is None:
                raise CommandError(f"no rule or analysis {parsed.name!r}; '{name} list' names them")
            write(page, sys.stdout)
            return None
        if parsed.command == "info":
            write(facts_text(from_program(prog).facts), sys.stdout)
            return None
        wanted = request(parsed, parsed.analyses)
        if parsed.command == "triage":
            not_run = left_out(parsed.analyses, analyses)
            wanted = dataclasses.replace(wanted, not_run=not_run)
        with output(wanted.output) as file:
            report = run_request(from_program(prog), wanted)
            print_report(report, wanted, file)
        return report
    except _HelpShown:
        return None
    except TargetError as e:
        raise CommandError(str(e)) from e


def _parser(name: str, analyses: Sequence[Analysis]) -> _Parser:
    from vmcore_tools.arguments import (
        add_analysis_options,
        add_only_option,
        add_report_options,
    )

    parser = _Parser(prog=name, description=_DESCRIPTION)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    triage = commands.add_parser(
        "triage", help="run all analyses but those that take long or need an argument"
    )
    add_only_option(triage, analyses)
    add_report_options(triage)
    run_parser = commands.add_parser("run", help="run one analysis, with its own options")
    names = run_parser.add_subparsers(metavar="ANALYSIS", required=True)
    commands.add_parser("list", help="the analyses, their rules and the known issues")
    commands.add_parser("info", help="what the target is")
    explain = commands.add_parser("explain", help="the page of a rule or an analysis")
    explain.add_argument("name", metavar="NAME", help="a rule, such as VT201, or an analysis")
    taken = set(commands.choices)
    for analysis in analyses:
        groups = [names] if analysis.name in taken else [names, commands]
        for group in groups:
            sub = group.add_parser(analysis.name, help=analysis.summary.replace("%", "%%"))
            add_analysis_options(sub, analysis)
            add_report_options(sub)
            sub.set_defaults(analyses=(analysis,))
    return parser


# Called, not used as a decorator: that would hide the function's type.
linux_kernel_custom_command(
    name="vmcore",
    description="find leaked fences, hung tasks and more",
    usage=_USAGE,
    long_description=_DESCRIPTION,
    parse=parse_shell_command,
)(_vmcore)
