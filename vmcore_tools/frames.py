# SPDX-License-Identifier: LGPL-2.1-or-later
"""drgn's stack traces as the report's stacks."""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

from drgn import FaultError, Module, Object, Program, StackFrame, StackTrace

from vmcore_tools.model import Frame, Stack

_CACHE_KEY = "vmcore_tools.frames.source_root"
_FRAMES_MAX = 200


def task_stack(task: Object) -> Stack:
    """
    A task's kernel stack, inline frames included.

    :param task: ``struct task_struct *``
    """
    try:
        trace = task.prog_.stack_trace(task)
    except (ValueError, LookupError, FaultError) as error:
        return Stack((), note=f"it cannot be unwound: {error}")
    return stack_of_trace(task.prog_, trace)


def stack_of_addresses(prog: Program, addresses: Sequence[int]) -> Stack:
    """
    A stack from recorded return addresses, the innermost first.

    Such records have no inline frames; the debug info gives them.
    """
    return stack_of_trace(prog, prog.stack_trace_from_pcs(list(addresses)))


def stack_of_trace(prog: Program, trace: StackTrace) -> Stack:
    """A drgn stack trace as plain data."""
    frames: List[Frame] = []
    for number in range(len(trace)):
        if not trace[number].pc >> 63:
            break  # user mode: none of this report's business
        if number == _FRAMES_MAX:
            return Stack(tuple(frames), note=f"it has more than {_FRAMES_MAX} frames")
        frames.append(_frame(prog, trace[number]))
    return Stack(tuple(frames))


def signature_functions(stack: Stack) -> List[str]:
    """
    The functions of a stack that are the same in any dump of a bug, the innermost first.

    What the compiler has made part of another function of a module, only the
    module's debug info tells; of vmlinux that is always there.
    """
    return [frame.function for frame in stack.frames if not (frame.inline and frame.module)]


def _frame(prog: Program, frame: StackFrame) -> Frame:
    offset: Optional[int] = None
    size: Optional[int] = None
    name = frame.name
    module = _module(prog, frame)
    if not frame.is_inline:
        try:
            symbol = frame.symbol()
            offset, size = frame.pc - symbol.address, symbol.size
        except LookupError:
            if frame.function_name is None:
                name, offset = _unknown_function(module, frame.pc)
    file: Optional[str] = None
    line: Optional[int] = None
    try:
        path, line, _ = frame.source()
        root = _source_root(prog)
        file = path[len(root) :] if path.startswith(root) else path
    except LookupError:
        pass
    return Frame(
        function=name,
        module=None if module is None else module.name,
        offset=offset,
        size=size,
        file=file,
        line=line,
        inline=frame.is_inline,
    )


def _source_root(prog: Program) -> str:
    """Where the kernel was built, as its debug info names files; it ends in a slash."""
    if _CACHE_KEY not in prog.cache:
        known = "init/main.c"  # start_kernel() has been there since Linux 1.0
        try:
            path = list(prog.source_location("start_kernel"))[-1].filename
        except LookupError:
            path = known
        prog.cache[_CACHE_KEY] = path[: -len(known)] if path.endswith("/" + known) else ""
    root: str = prog.cache[_CACHE_KEY]
    return root


def _module(prog: Program, frame: StackFrame) -> Optional[Module]:
    """The loadable module that a frame is in, None for vmlinux."""
    try:
        module = prog.module(frame.pc)
    except LookupError:
        return None
    return None if module == prog.main_module() else module


def _unknown_function(module: Optional[Module], address: int) -> Tuple[str, Optional[int]]:
    """
    What to call a function without a name; drgn says its address, which each boot changes.

    :return: with the offset in the module
    """
    if module is None or not module.address_ranges:
        return "unknown function", None
    return f"function in {module.name}", address - min(module.address_ranges)[0]
