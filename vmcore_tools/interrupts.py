# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Ctrl-C: what is done so far is written, and the command ends with 3.

Until there is something to clean up, the process ends at once. While the
target is looked at, :exc:`KeyboardInterrupt` is raised, again and again where
it is lost. A report that is being written is finished.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
from typing import Any, Iterator, List, NoReturn

EXIT_CODE = 3

NOTHING_YET = "interrupted before there was anything to report"
_CUT_OFF = "interrupted while the report was written: it may be cut off"

#: Until a lost interrupt comes again.
_AGAIN_S = 0.05


def end_at_once() -> bool:
    """
    From here on Ctrl-C ends the process, with no exception that an import could lose.

    :return: False where SIGINT is ignored, as it is for a shell's background jobs: so it stays
    """

    def end(number: int, frame: Any) -> NoReturn:
        os.write(2, f"vmcore-tools: error: {NOTHING_YET}\n".encode())
        os._exit(EXIT_CODE)

    return _handle(end)


def ignore() -> None:
    """From here on there is nothing left to interrupt."""
    _handle(signal.SIG_IGN)


def finish_writing() -> None:
    """From here on the first Ctrl-C has no effect; another one is not waited for."""
    seen: List[int] = []

    def hold(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt(_CUT_OFF)
        seen.append(number)

    _handle(hold)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Ctrl-C raises :exc:`KeyboardInterrupt`, also where one was lost."""
    handler, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook

    def interrupt(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt(NOTHING_YET)

    def unraisable(what: Any) -> None:
        if what.exc_type is not KeyboardInterrupt:
            hook(what)
            return
        # drgn calls Python's log from C, for one, where an exception goes nowhere.
        again = threading.Timer(_AGAIN_S, _thread.interrupt_main)
        again.daemon = True
        again.start()

    handled = _handle(interrupt)
    if handled:
        sys.unraisablehook = unraisable
    try:
        yield
    finally:
        if handled:
            sys.unraisablehook = hook
            signal.signal(signal.SIGINT, handler)
            # An exec() of text that an interrupt left, such as that of a dataclass which was
            # being imported, makes Python end by the signal, whoever catches it. The next one
            # clears that.
            exec("")


def _handle(handler: Any) -> bool:
    """Set a handler of SIGINT, where there may be one."""
    # Only the main thread can.
    if threading.current_thread() is not threading.main_thread():
        return False
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return False
    signal.signal(signal.SIGINT, handler)
    return True
