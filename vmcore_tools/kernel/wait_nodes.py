# SPDX-License-Identifier: LGPL-2.1-or-later
"""The nodes of the graph of who waits for whom, and how they belong together."""

from __future__ import annotations

import dataclasses
from typing import Optional

from drgn import Object

from vmcore_tools.kernel.waits import Wait

#: The kinds of nodes. OBJECT is anything else that is waited for, or has in it what is.
TASK, LOCK, WORK, WORKQUEUE, POOL, CPU = ("task", "lock", "work", "workqueue", "pool", "cpu")
FENCE, VIRTQUEUE, DEVICE, RCU, OBJECT = ("fence", "virtqueue", "device", "rcu", "object")

MEMORY = "memory"

#: How a lock and its holder, and a work and its worker, belong together.
HELD_BY = "is held by"
READ_BY = "was last taken by"
QUEUED_BEHIND = "is queued behind"
RUN_BY = "is run by"
PENDING_IN = "is pending in"
WOKEN = "has woken"
LEFT_TO = "leaves its works to"
#: What an RCU grace period waits for: a CPU, a reader, the kthread that drives it.
ON_CPU = "waits for a quiescent state of"
ON_READER = "waits for the critical section of"
DRIVEN_BY = "is driven by"
#: Its kthread, as long as that does what it is for: it sleeps for a moment at a time.
DRIVES = "drives"


@dataclasses.dataclass(frozen=True)
class Node:
    """
    :ivar object: a typed pointer; of a CPU, its ``struct rq *``
    :ivar name: what kind of lock or object it is
    :ivar wait: what a sleeping task waits for, None if that is not known
    :ivar state: of a task: ``running``, ``queued``, ``throttled`` (by its
        cgroup's CPU quota) or ``asleep``
    :ivar label: what it is called, where no symbol says
    """

    key: str
    kind: str
    object: Object
    name: str
    wait: Optional[Wait] = None
    state: str = ""
    label: str = ""

    @property
    def cpu(self) -> int:
        """The number of a CPU."""
        return int(self.key.partition(" ")[2])
