# SPDX-License-Identifier: LGPL-2.1-or-later
"""Block devices: the requests that a driver has and has not completed."""

from __future__ import annotations

import dataclasses
from typing import Iterator, List, Optional

import numpy as np
import numpy.typing as npt
from drgn import Object, cast
from drgn.helpers import ValidationError
from drgn.helpers.linux.timekeeping import ktime_get_coarse_ns

from vmcore_tools.kernel.id_slots import for_each_pointer
from vmcore_tools.kernel.jiffies import jiffies_age_ns
from vmcore_tools.kernel.layout import field_dtype, read_structs
from vmcore_tools.kernel.symbols import symbol_name

#: Bounds that no machine reaches; damaged counts must end.
_HW_QUEUES_MAX = 65536
_TAGS_MAX = 1 << 20
#: include/linux/sbitmap.h: SBQ_WAIT_QUEUES, a macro.
_WAIT_QUEUES = 8
#: Pages and bios of one request.
_PAGES_MAX = 1 << 20
#: Direct I/O by the function at its bios' end: what bi_private is, and who sleeps in it.
_DIRECT_IO = {
    "blkdev_bio_end_io": ("struct blkdev_dio", "waiter"),
    "iomap_dio_bio_end_io": ("struct iomap_dio", "submit.waiter"),
    "dio_bio_end_io": ("struct dio", "waiter"),
}


@dataclasses.dataclass(frozen=True)
class InFlight:
    """
    The requests that a driver has started and not completed.

    :ivar requests: uint64 array of ``struct request *``
    :ivar oldest_ns: how long ago the oldest one was allocated or, if that is not known, started;
        None if there is none
    :ivar started_ns: how long the driver has certainly had one of them
    """

    requests: npt.NDArray[np.uint64]
    oldest_ns: Optional[int]
    started_ns: Optional[int] = None


def for_each_hw_queue(queue: Object) -> Iterator[Object]:
    """
    Iterate over the hardware queues of a request queue. Mirrors ``queue_for_each_hw_ctx()``.

    :param queue: ``struct request_queue *``
    :return: Iterator of ``struct blk_mq_hw_ctx *``
    :raises drgn.helpers.ValidationError: if there are too many
    """
    # 4e5cc99e1e48 ("blk-mq: manage hctx map via xarray") in v5.18.
    if hasattr(queue, "hctx_table"):
        for number, hardware in for_each_pointer(queue.hctx_table, "struct blk_mq_hw_ctx"):
            if number >= _HW_QUEUES_MAX:
                raise ValidationError("a request queue has too many hardware queues")
            yield hardware
        return
    count = int(queue.nr_hw_queues.value_())
    if count > _HW_QUEUES_MAX:
        raise ValidationError(f"a request queue has {count} hardware queues")
    for number in range(count):
        hardware = queue.queue_hw_ctx[number].read_()
        if hardware:
            yield hardware


def requests_in_flight(queue: Object) -> InFlight:
    """
    The requests of a queue that its driver has started and not completed.

    Mirrors ``blk_mq_queue_tag_busy_iter()`` and ``blk_mq_request_started()``.

    :param queue: ``struct request_queue *``
    :raises FaultError: if the tags are not in the dump
    :raises drgn.helpers.ValidationError: if they are damaged
    :raises LookupError: without the debug info of blk-mq
    """
    prog = queue.prog_
    type_ = prog.type("struct request")
    members = {"queue": "q", "state": "state", "timeout": "timeout", "start": "start_time_ns"}
    # v4.19 has two helpers around it, and the underscores.
    if type_.has_member("io_start_time_ns"):
        members["begun"] = "io_start_time_ns"
    members["deadline"] = "deadline" if type_.has_member("deadline") else "__deadline"
    in_flight = prog.constant("MQ_RQ_IN_FLIGHT").value_()
    addresses = np.unique(np.concatenate([np.zeros(0, np.uint64), *_tagged(queue)])).tolist()
    structs, read = read_structs(prog, addresses, field_dtype(type_, members))
    if not read.all():
        # The first one that is missing tells of itself.
        prog.read(addresses[int(np.argmin(read))], type_.size)
    chosen = (structs["queue"] == queue.value_()) & (structs["state"] == in_flight)
    structs = structs[chosen]
    requests = np.array(addresses, dtype=np.uint64)[chosen]
    started = _started_ages(queue, structs)
    ages = started + _ages(queue, structs["start"])
    return InFlight(requests, max(ages, default=None), max(started, default=None))


def _tagged(queue: Object) -> Iterator[npt.NDArray[np.uint64]]:
    """What the tags of all hardware queues point to, or pointed to."""
    seen = set()
    for hardware in for_each_hw_queue(queue):
        tags = hardware.tags.read_()
        # Queues can have one set of tags together.
        if not tags or tags.value_() in seen:
            continue
        seen.add(tags.value_())
        count = int(tags.nr_tags.value_())
        if count > _TAGS_MAX:
            raise ValidationError(f"a hardware queue has {count} tags")
        data = queue.prog_.read(tags.rqs.value_(), 8 * count)
        order = "<" if queue.prog_.platform.flags.IS_LITTLE_ENDIAN else ">"
        requests = np.frombuffer(data, dtype=f"{order}u8").astype(np.uint64)
        yield requests[requests != 0]


def for_each_tag_wait_queue(queue: Object) -> Iterator[Object]:
    """
    Iterate over the wait queues of ``blk_mq_get_tag()``: until a request is free.

    :param queue: ``struct request_queue *``
    :return: Iterator of ``struct wait_queue_head *``
    :raises FaultError: if the tags are not in the dump
    :raises drgn.helpers.ValidationError: if there are too many hardware queues
    """
    for hardware in for_each_hw_queue(queue):
        for tags in (hardware.tags, hardware.sched_tags):
            if not tags:
                continue
            # From v5.10 to v5.15 they are pointers.
            for bits in (tags.bitmap_tags, tags.breserved_tags):
                states = bits.ws.read_()
                for number in range(_WAIT_QUEUES if states else 0):
                    yield states[number].wait.address_of_()


def _started_ages(queue: Object, structs: npt.NDArray[np.void]) -> List[int]:
    """
    How long ago requests were given to the driver.

    By their timers, which start again when they expire; and by the time that
    ``blk_mq_start_request()`` keeps for statistics, which not all have.
    """
    begun = structs["deadline"].astype(np.uint64) - structs["timeout"].astype(np.uint64)
    ages = [age for age in jiffies_age_ns(queue.prog_, begun).tolist() if age >= 0]
    if "begun" in (structs.dtype.names or ()):
        ages += _ages(queue, structs["begun"])
    return ages


def _ages(queue: Object, times: npt.NDArray[np.uint64]) -> List[int]:
    """How long ago some times of the monotonic clock were: 0 is none."""
    if not len(times):
        return []
    now_ns = int(ktime_get_coarse_ns(queue.prog_).value_())
    return [now_ns - time for time in times.tolist() if 0 < time <= now_ns]


def for_each_bio(request: Object) -> Iterator[Object]:
    """
    Iterate over the bios of a request.

    :param request: ``struct request *``
    :return: Iterator of ``struct bio *``
    :raises FaultError: if one is not in the dump
    :raises drgn.helpers.ValidationError: if there are too many
    """
    bio = request.bio.read_()
    for _ in range(_PAGES_MAX):
        if not bio:
            return
        yield bio
        bio = bio.bi_next.read_()
    raise ValidationError("the bios of a request do not end")


def bio_waiter(bio: Object) -> Optional[Object]:
    """
    The task that sleeps until a bio of direct I/O ends: no list has it.

    :param bio: ``struct bio *``
    :return: ``struct task_struct *``; None if it is another kind of bio, or nobody sleeps
    :raises FaultError: if what it is part of is not in the dump
    """
    function = symbol_name(bio.prog_, bio.bi_end_io.value_())
    if function == "blkdev_bio_end_io_simple":
        return cast("struct task_struct *", bio.bi_private)
    if function not in _DIRECT_IO:
        return None
    type_name, member = _DIRECT_IO[function]
    try:
        found = cast(f"{type_name} *", bio.bi_private)
        for name in member.split("."):
            found = found.member_(name)
    except LookupError:
        return None
    return found.read_() if found else None


def for_each_page(request: Object) -> Iterator[Object]:
    """
    Iterate over the pages that a request reads or writes. Mirrors ``bio_for_each_bvec()``.

    What is done of a bio is left out, and of a clone all but its part.

    :param request: ``struct request *``
    :return: Iterator of ``struct page *``, of each page of larger parts
    :raises FaultError: if a bio is not in the dump
    :raises drgn.helpers.ValidationError: if there are too many
    """
    page_size = int(request.prog_["PAGE_SIZE"].value_())
    limit = _PAGES_MAX
    for bio in for_each_bio(request):
        if not bio.bi_io_vec:
            continue  # a discard, a flush
        number = int(bio.bi_iter.bi_idx.value_())
        done = int(bio.bi_iter.bi_bvec_done.value_())
        left = int(bio.bi_iter.bi_size.value_())
        while left > 0:
            part = bio.bi_io_vec[number].read_()
            begin = int(part.bv_offset.value_()) + done
            length = min(int(part.bv_len.value_()) - done, left)
            if length <= 0:
                raise ValidationError("a part of a bio has no length")
            for page in range(begin // page_size, -(-(begin + length) // page_size)):
                yield part.bv_page + page
                limit -= 1
                if limit < 0:
                    raise ValidationError("a request has too many pages")
            left -= length
            number, done = number + 1, 0
