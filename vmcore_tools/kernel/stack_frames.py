# SPDX-License-Identifier: LGPL-2.1-or-later
"""The frames of a sleeping task's stack, and what is in them."""

from __future__ import annotations

from typing import Iterator, List, Optional, Pattern, Tuple

import numpy as np
from drgn import FaultError, Object, StackTrace

from vmcore_tools.kernel.task import live_range

_FRAMES_MAX = 200

#: Stack pointer and functions, inline ones included.
Frame = Tuple[int, Tuple[str, ...]]


def frames_of(trace: Optional[StackTrace]) -> List[Frame]:
    """Stack pointer and functions of each frame, the innermost first."""
    frames: List[Frame] = []
    if trace is None:
        return frames
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


def frame_variables(trace: Optional[StackTrace], type_name: str) -> Iterator[Object]:
    """The different pointers to a type that a stack's variables hold."""
    seen = set()
    for number in range(0 if trace is None else min(len(trace), _FRAMES_MAX)):
        frame = trace[number]  # type: ignore[index]
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
