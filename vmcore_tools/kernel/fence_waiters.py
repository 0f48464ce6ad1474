# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tasks that wait for a fence, as the fence itself knows them: by its callbacks."""

from __future__ import annotations

from typing import Iterator, List, Set

from drgn import Object, container_of

from vmcore_tools.kernel.dma_fence import for_each_callback
from vmcore_tools.kernel.symbols import symbol_name
from vmcore_tools.kernel.wait_fences import is_signaled

#: Callbacks in which is who waits: the function, the type, the callback in it.
_TASKS = {
    "dma_fence_default_wait_cb": ("struct default_wait_cb", "base"),
    "syncobj_wait_fence_func": ("struct syncobj_wait_entry", "fence_cb"),
}
#: Fences that depend on each other.
_FENCES_MAX = 100_000


def for_each_waiting_task(fence: Object) -> Iterator[Object]:
    """
    Iterate over the tasks that wait for a fence, or for one that needs it.

    Those in interruptible sleep, and those that wait for any of several fences
    (whose callbacks are not on their stacks), are among them.

    :param fence: ``struct dma_fence *``
    :return: Iterator of ``struct task_struct *``
    :raises FaultError: if a callback is not in the dump
    :raises drgn.helpers.ValidationError: if a list is damaged
    :raises LookupError: without the debug info of what waits
    """
    todo: List[Object] = [fence]
    seen: Set[int] = set()
    while todo and len(seen) < _FENCES_MAX:
        fence = todo.pop()
        if fence.value_() in seen or is_signaled(fence):
            continue  # the list is gone: a time is in its place
        seen.add(fence.value_())
        for callback in for_each_callback(fence):
            function = symbol_name(fence.prog_, callback.func.value_())
            if function in _TASKS:
                yield container_of(callback, *_TASKS[function]).task.read_()
            elif function == "dma_fence_array_cb_func":
                array = container_of(callback, "struct dma_fence_array_cb", "cb").array
                todo.append(array.base.address_of_())
            elif function == "dma_fence_chain_cb":
                link = container_of(callback, "struct dma_fence_chain", "cb")
                todo.append(link.base.address_of_())
