# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a kernel's memory says of the people and machines that it worked for, and what it
keeps to itself.
"""

from __future__ import annotations

import contextlib
from typing import Iterator, Set

from drgn import FaultError, Object, Program
from drgn.helpers import ValidationError

from vmcore_tools.kernel.task import for_each_bounded_task, task_comm

# COMMAND_LINE_SIZE: 2048 on x86 and arm64, at most 4096 elsewhere.
_COMMAND_LINE_BYTES_MAX = 4096
_KTHREADD_PID = 2  # rest_init()


def boot_secret(prog: Program) -> bytes:
    """
    Random numbers that the kernel drew at boot and tells nobody; empty if there are none.

    They are the same in all dumps of one boot, and in no others.
    """
    found = b""
    # boot_init_stack_canary(): that of the first task, from start_kernel() on.
    with contextlib.suppress(AttributeError, FaultError, LookupError):
        found += prog["init_task"].stack_canary.to_bytes_()
    # lib/vsprintf.c: what %p is hashed with, ad67b74d2469 ("printk: hash addresses printed
    # with %p") in v4.15.
    with contextlib.suppress(FaultError, LookupError):
        found += prog["ptr_key"].to_bytes_()
    return found if any(found) else b""


def identifying_names(prog: Program) -> Iterator[str]:
    """
    The comms of user tasks, names of hosts and domains, and words of the command line.

    They come in no order, and more than once. What cannot be read is left out.
    """
    yield from _command_line(prog)
    namespaces: Set[int] = set()
    try:
        yield from _of_uts(prog["init_uts_ns"])
        for task in for_each_bounded_task(prog):
            try:
                if not _is_kernel_thread(task):
                    yield task_comm(task)
                proxy = task.nsproxy.read_()
                # A task that has ended has none.
                if proxy and proxy.value_() not in namespaces:
                    namespaces.add(proxy.value_())
                    yield from _of_uts(proxy.uts_ns[0])
            except FaultError:
                continue
    except (FaultError, LookupError, ValidationError):
        return


def _is_kernel_thread(task: Object) -> bool:
    return _KTHREADD_PID in (task.pid.value_(), task.real_parent.pid.value_())


def _of_uts(namespace: Object) -> Iterator[str]:
    """
    :param namespace: ``struct uts_namespace``
    """
    for name in (namespace.name.nodename, namespace.name.domainname):
        text = name.string_().decode(errors="backslashreplace")
        yield text
        yield text.partition(".")[0]


def _command_line(prog: Program) -> Iterator[str]:
    try:
        line = prog["saved_command_line"]
        text = prog.read_c_string(line.value_(), max_size=_COMMAND_LINE_BYTES_MAX)
    except (FaultError, LookupError):
        return
    decoded = text.decode(errors="backslashreplace")
    yield decoded
    # "quiet" tells nothing, "root=UUID=..." and "ip=..." do.
    yield from (word for word in decoded.split() if "=" in word)
