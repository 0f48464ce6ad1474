# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Waits that the debug info of a module could explain, where it was not found.

A virtqueue, a fence or a lock of such a driver is an address in memory: who
would end a wait for it is not known, and who is known can be the wrong one.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Callable, Iterator, List, Set, Tuple

import numpy as np
from drgn import FaultError, Object
from drgn.helpers import ValidationError

from vmcore_tools.analysis import Context
from vmcore_tools.kernel.modules import module_without_debug_info, modules_without_debug_info
from vmcore_tools.kernel.symbols import symbol_address
from vmcore_tools.kernel.task import (
    is_killable,
    is_queued,
    is_uninterruptible,
    live_range,
    sleep_time_ns,
)
from vmcore_tools.kernel.wait_graph import Root
from vmcore_tools.kernel.wait_nodes import CPU, DEVICE, FENCE, POOL, TASK, Node
from vmcore_tools.model import Confidence, Evidence, Finding, Kind
from vmcore_tools.module_gaps import count_modules_without_debug_info
from vmcore_tools.wait_findings.view import WaitView

#: Ends of chains that say enough themselves, and things that end by themselves.
_KNOWN_KINDS = (CPU, POOL, DEVICE)
_ENDED_BY_TIME = ("timer", "CPU quota of the cgroup")
_UNSEEN = "virtqueues, fences and locks of these drivers are not recognised"
_UNREAD = "what a driver without debug info would do: the wait is in it"


def count_modules_of_waits(ctx: Context, view: WaitView, explained: Callable[[str], bool]) -> None:
    """
    Count the modules without debug info, if a wait that lasts too long can be in one.

    :param explained: whether it is known who would end a task's wait, by its key
    """
    if not modules_without_debug_info(ctx.prog):
        return
    last = (key for key in _last_tasks(view) if _lasts(view, key))
    if any(not explained(key) or modules_at(view, key) for key in last) or _in_fences(view):
        count_modules_without_debug_info(ctx, _UNSEEN)


def as_far_as_seen(view: WaitView, root: Root, finding: Finding) -> Finding:
    """
    A finding that says that nobody is known, of what is in modules without debug info or not.

    :param root: what is waited for, and who waits for it
    """
    tasks = _tasks_at(view, root.nodes[0])
    modules = sorted({name for key in tasks for name in modules_at(view, key)})
    if not modules:
        return finding
    return dataclasses.replace(
        finding,
        confidence=min(finding.confidence, Confidence.SUSPECTED),
        unread=(*finding.unread, _UNREAD),
        evidence=(
            *finding.evidence,
            Evidence("modules_without_debug_info", Kind.UNTRUSTED, tuple(modules)),
        ),
    )


def modules_at(view: WaitView, key: str) -> Tuple[str, ...]:
    """The modules without debug info that a task waits in: by its stack, and by what it is for."""
    missing = {module.name for module in modules_without_debug_info(view.prog)}
    task = view.node(key).object
    found = {frame.module for frame in view.stack(task).frames if frame.module in missing}
    for edge in view.graph.edges_from(key):
        found |= set(_modules_of(view.node(edge.target)))
    return tuple(sorted(name for name in found if name is not None))


def _modules_of(node: Node) -> Iterator[str]:
    """Where an object is, if that is in a module without debug info; of a fence, its functions."""
    prog, addresses = node.object.prog_, [int(node.object.value_())]
    if node.kind == FENCE:
        with contextlib.suppress(FaultError):  # following the fence has told
            addresses.append(int(node.object.ops.value_()))
    for address in addresses:
        module = module_without_debug_info(prog, address)
        if module is not None:
            yield module.name


def _last_tasks(view: WaitView) -> Set[str]:
    """The sleeping tasks at the ends of chains: of these the kernel does not say more."""
    found: Set[str] = set()
    for key in view.graph.ends():
        node = view.node(key)
        if node.kind not in _KNOWN_KINDS and node.name not in _ENDED_BY_TIME:
            found.update(_tasks_at(view, key))
    return {key for key in found if view.node(key).state == "asleep"}


def _tasks_at(view: WaitView, key: str) -> List[str]:
    """The tasks that wait for a node themselves; of a task, that one."""
    tasks: List[str] = []
    seen, todo = {key}, [key]
    while todo:
        key = todo.pop()
        if view.node(key).kind == TASK:
            tasks.append(key)
            continue
        new = {edge.source for edge in view.graph.edges_to(key)} - seen
        seen |= new
        todo += sorted(new)
    return tasks


def _lasts(view: WaitView, key: str) -> bool:
    """Whether a task has waited for too long, or one behind it that no signal would wake."""
    waiting = [one for one in view.graph.waiting_for([key]) | {key} if one in view.waits]
    return view.threshold_ns <= view.longest_ns(
        one for one in waiting if not is_killable(view.node(one).object)
    )


def _in_fences(view: WaitView) -> bool:
    """
    Whether a task in interruptible sleep has waited too long for a fence of such a module.

    On its stack there is the callback of ``dma_fence_default_wait()``.
    """
    callback = symbol_address(view.prog, "dma_fence_default_wait_cb")
    return bool(callback) and any(_is_in_fence(view, task, callback) for task in view.tasks)


def _is_in_fence(view: WaitView, task: Object, callback: int) -> bool:
    try:
        if is_uninterruptible(task) or is_queued(task):
            return False
        if (sleep_time_ns(task, view.now_ns) or 0) < view.threshold_ns:
            return False
        low, high = live_range(task)
        words = np.frombuffer(view.prog.read(low, high - low), dtype=np.uint64)
        if np.uint64(callback) not in words:
            return False
        node = view.node(view.chains.add_task(task))
    except (FaultError, ValidationError, LookupError):
        return False  # it has not slept uninterruptibly: nobody asks for it
    if node.wait is None or node.wait.kind != "dma_fence":
        return False
    return any(
        next(_modules_of(view.node(edge.target)), None) is not None
        for edge in view.graph.edges_from(node.key)
    )
