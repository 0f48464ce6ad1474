# SPDX-License-Identifier: LGPL-2.1-or-later
"""Virtio devices and disks that do not answer: the host is late (VT315)."""

from __future__ import annotations

import collections
import dataclasses
from typing import Iterator, List, Optional, Set, Tuple

from drgn import FaultError, Object
from drgn.helpers import ValidationError

from vmcore_tools.kernel.fence_waiters import for_each_waiting_task
from vmcore_tools.kernel.strings import name_text
from vmcore_tools.kernel.task import is_queued, is_uninterruptible, sleep_time_ns
from vmcore_tools.kernel.virtio_gpu import (
    commands,
    for_each_emitted_fence,
    for_each_virtio_gpu_device,
    last_completed_seqno,
    last_emitted_seqno,
)
from vmcore_tools.kernel.virtio_ring import RingState, ring_state
from vmcore_tools.kernel.wait_disks import direct_io_of
from vmcore_tools.kernel.wait_fences import fence_node
from vmcore_tools.kernel.wait_graph import Edge, Root
from vmcore_tools.kernel.wait_io import follow_io_wait
from vmcore_tools.kernel.wait_nodes import DEVICE, TASK, VIRTQUEUE, Node
from vmcore_tools.kernel.waits import Wait
from vmcore_tools.model import Confidence, Evidence, Finding, Kind, Rule, Severity
from vmcore_tools.wait_findings.disk import (
    DISK_LATE,
    INTERRUPT,
    UNHEARD,
    disk_late,
    fetched_words,
)
from vmcore_tools.wait_findings.view import NS_PER_SECOND, Cause, maybe
from vmcore_tools.words import plural

#: From when on a command takes too long: DRM's drivers of real GPUs give a job at most as long.
_LATE_NS = 10 * NS_PER_SECOND

DEVICE_LATE = Rule(
    id="VT315",
    slug="device-not-answering",
    severity=Severity.ERROR,
    ranked_with="VT310",
    summary="A virtio device has been given something to do and does not answer.",
    remedy=(
        "Look on the host: does QEMU run, and its main loop (does its monitor answer, where are "
        "its threads: gdb -p PID -batch -ex 'thread apply all bt')? For virtio-gpu, look at "
        "virglrenderer and the host's GPU driver as well. The guest itself is not to blame, unless "
        "it never told the device."
    ),
    page="""\
The ring of a virtqueue is shared with the host, so the dump says how far that is.
`unanswered` commands were put into the ring by the driver, and the device has
not put them back: the ring's `avail` index is ahead of its `used` index. Nothing
in the guest can go on with them. `not_fetched` of these the device has not even
taken out: it names in the ring of which entry it wants to be told next
(VIRTIO_RING_F_EVENT_IDX).

If all were fetched, the device has them for certain, and the finding is `proven`:
look at what the host does with them (a hung virglrenderer or GPU, a
storage that does not answer, a thread that waits for a lock). If some were not, the
host does not run this queue, or never heard of them: QEMU is stopped or stuck, the
ioeventfd or vhost thread is, or the notification was lost. It is `likely` then:
whether a notification arrived is not in the guest's memory. `not_announced`
counts commands of which the driver has not decided yet whether to tell the device;
if that are all, the driver is at fault, and the finding is `suspected`.

`answered` commands are the opposite: the device is done with them, but no
interrupt had the driver read the answers. It is `suspected`: QEMU ends what I/O it
can when it is stopped for a dump, so the answers can be younger than the wait.
Else look for a lost or a masked interrupt (/proc/interrupts, the MSI-X table, an
irqfd of the host). Where the work that reads them is queued and does not run, the
device is not to blame: VT311 or VT312 name what keeps the work from running.

Of a disk of virtio_blk (of others: VT319), `in_flight` requests were started and not
completed, the oldest `oldest_ns` ago, and the rings say how many the host has.
That is by when it was allocated, if its timer has started again since, or it was
kept back until then: it is `likely` as long as the driver may have had it for less
than is too long.

Tasks in interruptible sleep count as victims, too, if they wait for a fence of
the device: that is how Xorg mostly waits for a GPU. They may time out and
wait again, so they can have waited longer than `wait_ns` says.""",
)


class DeviceLate(Cause):
    rules = (DEVICE_LATE, DISK_LATE)

    def prepare(self) -> None:
        """Who waits for a device, and is on no list: for direct I/O, or where a signal helps."""
        for key in self.view.asleep:
            self._add_direct_io(key)
        try:
            for device in for_each_virtio_gpu_device(self.view.prog):
                for fence in for_each_emitted_fence(device):
                    self._add_waiters(fence.f.address_of_())
        except LookupError:
            pass  # no such driver, or none of its debug info
        except (FaultError, ValidationError) as error:
            self.view.ctx.coverage.gap("emitted fence", f"the list cannot be followed: {error}")

    def _add_direct_io(self, key: str) -> None:
        chains = self.view.chains
        node = chains.nodes[key]
        if node.wait is not None:
            return
        wait = direct_io_of(chains, node.object)
        if wait is not None:
            chains.nodes[key] = node = dataclasses.replace(node, wait=wait)
            for edge in follow_io_wait(chains, node, wait):
                chains.graph.add_edge(edge)
            chains.follow()

    def _add_waiters(self, fence: Object) -> None:
        try:
            for task in for_each_waiting_task(fence):
                if task.value_() in self.view.chains.tasks and not is_queued(task):
                    self._add_waiter(task, fence)
        except (FaultError, ValidationError, LookupError) as error:
            self.view.ctx.coverage.gap(
                "callback of a fence", f"it cannot be read: {error}", fence.value_()
            )

    def _add_waiter(self, task: Object, fence: Object) -> None:
        chains = self.view.chains
        key = chains.add_task(task)
        node = chains.nodes[key]
        if node.wait is None:
            # Who waits for any of several fences has nothing of that on its stack.
            wait = Wait("dma_fence", fence, "the fence has a callback that wakes it")
            chains.nodes[key] = dataclasses.replace(node, wait=wait)
            chains.graph.add_edge(Edge(key, fence_node(chains, fence), "waits for"))
            chains.follow()
        if key not in self.view.waits and not is_uninterruptible(task):
            self.view.waits[key] = sleep_time_ns(task, self.view.now_ns) or 0
            self.view.in_fences.append(key)

    def finding(self, root: Root) -> Optional[Finding]:
        node = self.view.node(root.nodes[0])
        if node.kind != DEVICE:
            return None
        if self.view.longest_ns(self._first_victims(node.key)) < self._late_ns:
            return None
        queues = self._queues(node)
        if node.name == "disk":
            return disk_late(self.view, root, DEVICE_LATE, self._late_ns)
        if not queues:
            return None
        queue = queues[0]
        try:
            state = ring_state(queue.object.vq)
            driver = name_text(node.object.dev.driver.name)
            more = tuple(self._of_gpu(queue.object))
        except (FaultError, ValidationError, LookupError) as error:
            self.view.ctx.coverage.gap("virtqueue", f"it cannot be read: {error}")
            return None
        confidence, what, unread = _verdict(state)
        return Finding(
            rule=DEVICE_LATE,
            confidence=confidence,
            message=(f"{what}; {self.view.waiting(root, 'for it')}{self.view.in_function(root)}."),
            subject=self.view.ref(node),
            evidence=(
                Evidence("device", Kind.UNTRUSTED, node.name),
                Evidence("driver", Kind.UNTRUSTED, driver),
                Evidence("queue", Kind.UNTRUSTED, queue.name),
                Evidence("unanswered", Kind.COUNT, state.with_device),
                Evidence("not_fetched", Kind.COUNT, maybe(state.not_fetched)),
                Evidence("not_announced", Kind.COUNT, state.not_announced),
                Evidence("answered", Kind.COUNT, state.answered),
                Evidence("free", Kind.COUNT, state.free),
                Evidence("size", Kind.COUNT, state.size),
                *more,
                *self.view.victims(root),
            ),
            signature_key=("device-late", driver, queue.name, _state_name(state)),
            related=(self.view.ref(queue), *self.view.related(root)),
            stacks=self.view.stack_ids(root.victims),
            unread=unread,
            graph=self.view.drawn(root),
        )

    def _first_victims(self, device: str) -> Set[str]:
        """
        The tasks that wait for a device themselves.

        Who waits for these, for a lock of theirs, can have waited for others before.
        """
        tasks: Set[str] = set()
        seen, todo = {device}, [device]
        while todo:
            for edge in self.view.graph.edges_to(todo.pop()):
                if self.view.node(edge.source).kind == TASK:
                    tasks.add(edge.source)
                elif edge.source not in seen:
                    seen.add(edge.source)
                    todo.append(edge.source)
        return tasks

    @property
    def _late_ns(self) -> int:
        return min(self.view.threshold_ns, _LATE_NS)

    def _queues(self, device: Node) -> List[Node]:
        """The queues of a device that somebody waits for."""
        keys = [edge.source for edge in self.view.graph.edges_to(device.key)]
        return [node for node in map(self.view.node, keys) if node.kind == VIRTQUEUE]

    def _of_gpu(self, queue: Object) -> Iterator[Evidence]:
        """What commands a queue of virtio_gpu has, and how far its fences are."""
        found = commands(queue)
        names = collections.Counter(c.name for c in found.with_device or found.answered)
        ordered = sorted(names, key=lambda name: (-names[name], name))
        yield Evidence("commands", Kind.TEXT, tuple(ordered))
        yield Evidence("of_each_command", Kind.COUNT, tuple(names[name] for name in ordered))
        for device in for_each_virtio_gpu_device(self.view.prog):
            if device.ctrlq.address_of_() == queue:
                yield Evidence("last_signaled", Kind.NUMBER, last_completed_seqno(device))
                yield Evidence("last_emitted", Kind.NUMBER, last_emitted_seqno(device))


def _state_name(state: RingState) -> str:
    if state.broken:
        return "broken"
    if state.answered:
        return "no interrupt"
    if state.not_announced >= state.with_device:
        return "not announced"
    return "not fetched" if state.not_fetched else "not answered"


def _verdict(state: RingState) -> Tuple[Confidence, str, Tuple[str, ...]]:
    """How sure it is that the device is to blame, in what words, and what was not seen."""
    queue = "in queue {queue} of {device} ({driver})"
    commands_left = f"{{unanswered}} {plural(state.with_device, 'command')}"
    name = _state_name(state)
    if name == "broken":
        what = f"The driver has given up {queue[3:]}, which had {commands_left}"
        return Confidence.PROVEN, what, ()
    if name == "no interrupt":
        commands_done = f"{{answered}} {plural(state.answered, 'command')}"
        return (
            Confidence.SUSPECTED,
            f"The host has answered {commands_done} {queue}, and no interrupt told the guest",
            (INTERRUPT,),
        )
    if name == "not announced":
        return (
            Confidence.SUSPECTED,
            f"The driver has not told the host of {commands_left} {queue}",
            ("why the driver has not told the host",),
        )
    what = f"The host has not answered {commands_left} {queue}"
    if name == "not answered":
        unread = ("which of them the host has fetched",) if state.not_fetched is None else ()
        confidence = Confidence.LIKELY if unread else Confidence.PROVEN
        fetched = "" if unread else f", {fetched_words(state.with_device, 0)}"
        return confidence, what + fetched, unread
    fetched = fetched_words(state.with_device, state.not_fetched or 0)
    return Confidence.LIKELY, f"{what}, {fetched}", (UNHEARD,)
