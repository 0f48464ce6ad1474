# SPDX-License-Identifier: LGPL-2.1-or-later
"""The frames of a sleeping task's stack, and what is in them."""

from __future__ import annotations

import itertools
from typing import Dict, Iterator, List, Optional, Pattern, Tuple

import numpy as np
from drgn import Architecture, FaultError, Object, Program, StackTrace
from drgn.helpers.linux.sched import task_on_cpu

from vmcore_tools.kernel.task import live_range

_FRAMES_MAX = 200

#: Stack pointer and functions, inline ones included.
Frame = Tuple[int, Tuple[str, ...]]


class TaskTrace:
    """
    The stack of a task.

    :ivar frames: the innermost first
    :ivar place: the program counters of its frames: where the task stands
    """

    def __init__(
        self,
        task: Object,
        frames: List[Frame],
        place: Tuple[int, ...],
        unwound: Optional[StackTrace] = None,
    ) -> None:
        self.frames = frames
        self.place = place
        self._task = task
        self._unwound = unwound

    @classmethod
    def of_unwound(cls, task: Object, unwound: StackTrace) -> TaskTrace:
        """
        :param task: ``struct task_struct *``
        """
        counters = (unwound[number].pc for number in range(len(unwound)))
        place = tuple(itertools.takewhile(lambda pc: pc >> 63, counters))  # not in user mode
        return cls(task, _frames(unwound), place, unwound)

    def unwound(self) -> StackTrace:
        """
        :raises ValueError, LookupError, FaultError: if it cannot be unwound
        """
        if self._unwound is None:
            self._unwound = self._task.prog_.stack_trace(self._task)
        return self._unwound


class Unwinder:
    """
    Unwinds the stacks of tasks: of those that stand in the same place, one.

    Unwinding takes long, and thousands of tasks can wait behind one lock. Two
    stacks are taken for the same if they are equally deep, have the same words
    that could be addresses of code at the same depths, and point into
    themselves alike: an unwinder looks at nothing else.
    """

    def __init__(self, prog: Program) -> None:
        self._prog = prog
        self._code = _code_start(prog)
        self._known: Dict[bytes, Tuple[List[Frame], Tuple[int, ...]]] = {}

    def trace(self, task: Object) -> TaskTrace:
        """
        :param task: ``struct task_struct *``
        :raises ValueError, LookupError, FaultError: if it cannot be unwound
        """
        key = self._key(task)
        low = task.stack.value_()
        if key is not None and key in self._known:
            known, place = self._known[key]
            return TaskTrace(task, [(low + depth, names) for depth, names in known], place)
        trace = TaskTrace.of_unwound(task, self._prog.stack_trace(task))
        # A live task may have gone on.
        if key is not None and key == self._key(task):
            depths = [(pointer - low, names) for pointer, names in trace.frames]
            self._known[key] = depths, trace.place
        return trace

    def _key(self, task: Object) -> Optional[bytes]:
        if self._code is None or task_on_cpu(task):
            return None
        try:
            low, high = live_range(task)
            words = np.frombuffer(self._prog.read(low, high - low), dtype=np.uint64)
        except FaultError:
            return None
        kept = np.where(words >= np.uint64(self._code), words, np.uint64(0))
        inside = (words >= np.uint64(low)) & (words < np.uint64(high))
        # Depths, which are no addresses of code.
        np.subtract(np.uint64(high), words, out=kept, where=inside)
        return kept.tobytes()


def _code_start(prog: Program) -> Optional[int]:
    """The lowest address of code, where such a word is code with no tag; else None."""
    # Documentation/arch/x86/x86_64/mm.rst: the kernel's text and its modules.
    platform = prog.platform
    if platform is not None and platform.arch is Architecture.X86_64:
        return 0xFFFFFFFF80000000
    return None


def frames_of(trace: Optional[TaskTrace]) -> List[Frame]:
    """The frames of a stack, none if it could not be unwound."""
    return [] if trace is None else trace.frames


def _frames(trace: StackTrace) -> List[Frame]:
    """Stack pointer and functions of each frame, the innermost first."""
    frames: List[Frame] = []
    for number in range(min(len(trace), _FRAMES_MAX)):
        frame = trace[number]
        if not frame.pc >> 63:
            break
        try:
            pointer = int(frame.sp)
        except LookupError:
            break
        name = (frame.name or "").partition(".")[0]
        if frames and frames[-1][0] == pointer:
            frames[-1] = (pointer, (*frames[-1][1], name))
        else:
            frames.append((pointer, (name,)))
    return frames


def functions_at(frames: List[Frame], address: int) -> Tuple[str, ...]:
    """The functions in whose frame an address of the stack is."""
    functions: Tuple[str, ...] = ()
    for pointer, names in frames:
        if pointer > address:
            break
        functions = names
    return functions


def frame_variables(trace: Optional[TaskTrace], type_name: str) -> Iterator[Object]:
    """The different pointers to a type that a stack's variables hold."""
    if trace is None:
        return
    try:
        unwound = trace.unwound()
    except (ValueError, LookupError, FaultError):
        return
    seen = set()
    for number in range(min(len(unwound), _FRAMES_MAX)):
        frame = unwound[number]
        for name in frame.locals():
            try:
                variable = frame[name]
                if variable.type_.type_name() != type_name + " *" or variable.absent_:
                    continue
                value = variable.value_()
            except (LookupError, FaultError):
                continue
            if value and value not in seen:
                seen.add(value)
                yield variable.read_()


def pointers_in(task: Object, frames: List[Frame], functions: Pattern[str]) -> List[int]:
    """
    The kernel addresses that a function may have at hand: those in its frame and below.

    The functions that it called save its registers in their frames.

    :param task: ``struct task_struct *``; it is on no CPU
    :param functions: the outermost function that fits counts
    :return: without repetition, the innermost first; none if no function fits
    :raises FaultError: if the stack is not in the dump
    """
    fitting = [
        number
        for number, (_, names) in enumerate(frames)
        if any(functions.fullmatch(name) for name in names)
    ]
    if not fitting:
        return []
    low, high = live_range(task)
    if fitting[-1] + 1 < len(frames):
        high = min(high, frames[fitting[-1] + 1][0])
    if high <= low:
        return []
    words = np.frombuffer(task.prog_.read(low, (high - low) // 8 * 8), dtype=np.uint64)
    return list(dict.fromkeys(words[words >> np.uint64(63) == 1].tolist()))
