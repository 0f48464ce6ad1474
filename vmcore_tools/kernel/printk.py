# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The kernel log, where it wraps included.

drgn 0.3's ``get_printk_records()`` gives the record that wraps the ring with
8 bytes of descriptor ID in front and the last 8 bytes lost; before v5.10 it
takes what ends a lap of the buffer for an empty record. Here the log is read
in bulk, which is also faster.
"""

from __future__ import annotations

from typing import Any, List, NamedTuple, Optional

import numpy as np
import numpy.typing as npt
from drgn import Object, Program, Type
from drgn.helpers import ValidationError

from vmcore_tools.kernel.layout import field_dtype

# caller_id of printk.c: else it is a thread's ID.
_CALLER_IS_CPU = 0x80000000
# LOG_BUF_LEN_MAX of printk.c.
_BUFFER_BYTES_MAX = 1 << 31


class LogRecord(NamedTuple):
    """
    A record of the kernel log.

    :ivar seq: sequence number
    :ivar timestamp_ns: nanoseconds since boot, of the local clock
    :ivar level: log level
    :ivar text: the message
    :ivar caller_tid: the thread that wrote it, None if unknown or not in a task
    :ivar facility: 0 for what the kernel wrote itself
    :ivar caller_cpu: the CPU that wrote it in an interrupt, None if unknown
    """

    seq: int
    timestamp_ns: int
    level: int
    text: bytes
    caller_tid: Optional[int]
    facility: int = 0
    caller_cpu: Optional[int] = None


def log_records(prog: Program) -> List[LogRecord]:
    """
    The records of the kernel log, the oldest first.

    :raises drgn.FaultError: if the log is not in the dump
    :raises drgn.helpers.ValidationError: if it cannot be as large as it says
    :raises LookupError: without the log's debug info
    """
    try:
        ring = prog["prb"].read_()
    except KeyError:
        # 896fbe20b4e2 ("printk: use the lockless ringbuffer") in v5.10.
        return _buffer_records(prog)
    return _lockless_records(prog, ring)


def _buffer_records(prog: Program) -> List[LogRecord]:
    """The log before v5.10; mirrors ``log_next()`` of kernel/printk/printk.c."""
    record_type = prog.type("struct printk_log")
    members = {name: name for name in ("ts_nsec", "len", "text_len", "facility")}
    # 15ff2069cb7f ("printk: Add caller information to printk() output.") in v5.1.
    if record_type.has_member("caller_id"):
        members["caller_id"] = "caller_id"
    dtype = field_dtype(record_type, members)
    level_offset = _level_offset(record_type)
    # kernel/bpf/verifier.c had a variable of that name until v4.15.
    address = prog.object("log_buf", filename="printk.c").value_()
    size = prog["log_buf_len"].value_()
    if size > _BUFFER_BYTES_MAX:
        raise ValidationError(f"the log cannot have {size} bytes")
    data = prog.read(address, size)
    first, following = prog["log_first_idx"].value_(), prog["log_next_idx"].value_()
    # A record without a length ends a lap.
    laps = [(first, following)] if first <= following else [(first, len(data)), (0, following)]
    seq = prog["log_first_seq"].value_()
    records: List[LogRecord] = []
    for index, end in laps:
        while index + dtype.itemsize <= min(end, len(data)):
            fields = np.frombuffer(data, dtype=dtype, count=1, offset=index)[0]
            text, behind = index + dtype.itemsize, index + int(fields["len"])
            if behind < text:
                break
            caller = int(fields["caller_id"]) if "caller_id" in members else None
            records.append(
                LogRecord(
                    seq,
                    int(fields["ts_nsec"]),
                    data[index + level_offset] >> 5,
                    data[text : min(text + int(fields["text_len"]), behind)],
                    _caller_tid(caller),
                    int(fields["facility"]),
                    _caller_cpu(caller),
                )
            )
            index = behind
            seq += 1
    return records


def _lockless_records(prog: Program, ring: Object) -> List[LogRecord]:
    desc_ring = ring.desc_ring.read_()
    bits, data_bits = desc_ring.count_bits.value_(), ring.text_data_ring.size_bits.value_()
    if 1 << min(data_bits, 64) > _BUFFER_BYTES_MAX or bits > data_bits:
        raise ValidationError(f"the log cannot have 2^{bits} records in 2^{data_bits} bytes")
    count, data_size = 1 << bits, 1 << data_bits
    descs = _array(
        desc_ring.descs,
        count,
        {
            "state_var": "state_var.counter",
            "begin": "text_blk_lpos.begin",
            "next": "text_blk_lpos.next",
        },
    )
    infos = _array(
        desc_ring.infos,
        count,
        {name: name for name in ("seq", "ts_nsec", "text_len", "facility", "caller_id")},
    )
    level_offset = _level_offset(prog.type("struct printk_info"))
    levels = infos.view(np.uint8).reshape(count, -1)[:, level_offset] >> 5
    data = prog.read(ring.text_data_ring.data, data_size)

    # kernel/printk/printk_ringbuffer.h: the two top bits of state_var are the
    # state, the others the descriptor's ID.
    state_shift = np.uint64(62)
    id_mask = (1 << 62) - 1
    readable = [prog[name].value_() for name in ("desc_committed", "desc_finalized")]
    tail = desc_ring.tail_id.counter.value_() & id_mask
    head = desc_ring.head_id.counter.value_() & id_mask
    ids = (tail + np.arange(min(count, ((head - tail) & id_mask) + 1))) & id_mask
    index = (ids & (count - 1)).astype(np.int64)
    states = descs["state_var"][index]
    valid = np.isin(states >> state_shift, readable) & (
        (states & np.uint64(id_mask)) == ids.astype(np.uint64)
    )
    records = []
    for i in index[valid].tolist():
        text = block_text(
            data, int(descs["begin"][i]), int(descs["next"][i]), int(infos["text_len"][i])
        )
        if text is None:
            continue
        caller = int(infos["caller_id"][i])
        records.append(
            LogRecord(
                int(infos["seq"][i]),
                int(infos["ts_nsec"][i]),
                int(levels[i]),
                text,
                _caller_tid(caller),
                int(infos["facility"][i]),
                _caller_cpu(caller),
            )
        )
    return records


def _caller_tid(caller_id: Optional[int]) -> Optional[int]:
    return None if caller_id is None or caller_id & _CALLER_IS_CPU else caller_id


def _caller_cpu(caller_id: Optional[int]) -> Optional[int]:
    if caller_id is None or not caller_id & _CALLER_IS_CPU:
        return None
    return caller_id & ~_CALLER_IS_CPU


def block_text(data: bytes, begin: int, next_: int, text_len: int) -> Optional[bytes]:
    """
    The text of a data block, as ``get_data()`` of printk_ringbuffer.c finds it.

    :param data: the data ring
    :param begin: logical position where the block begins
    :param next_: logical position behind it
    :param text_len: bytes of text
    :return: None for a record without data
    """
    id_size = 8
    if begin & 1 and next_ & 1:
        return None  # BLK_DATALESS(): such positions are odd
    size = len(data)
    start = begin % size
    if begin // size == next_ // size or next_ % size == 0:
        end = start + (next_ - begin)
    else:
        # The block did not fit behind its begin: it is at the ring's start.
        start, end = 0, next_ % size
    start += id_size
    return data[start : max(start, min(end, start + text_len, size))]


def _array(first: Object, count: int, members: Any) -> npt.NDArray[Any]:
    dtype = field_dtype(first.type_.type, members)
    return np.frombuffer(first.prog_.read(first, count * dtype.itemsize), dtype=dtype)


def _level_offset(record_type: Type) -> int:
    """Byte of a record's structure whose three top bits are the level."""
    for member in record_type.members or ():
        if member.name == "level":
            return int(member.bit_offset) // 8
    raise LookupError(f"{record_type.type_name()} has no member level")
