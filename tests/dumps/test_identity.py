# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whom a dump tells of, compared with what the guest wrote down and with drgn's own walk."""

from __future__ import annotations

from drgn import Program, offsetof
from drgn.helpers.linux.pid import for_each_task

from tests.dumps.conftest import ShippedDump
from tests.dumps.test_hostile_strings import overwrite
from vmcore_tools import target
from vmcore_tools.kernel.identity import boot_secret, identifying_names
from vmcore_tools.masking import masking_of

#: Where nothing is.
_ELSEWHERE = 0xFFFFFFFFF0000000


def test_names(shipped: ShippedDump) -> None:
    prog = shipped.target.prog
    names = set(identifying_names(prog))
    programs = {task.comm.string_().decode() for task in for_each_task(prog) if task.mm}
    host = prog["init_uts_ns"].name.nodename.string_().decode()
    command_line = shipped.truth["cmdline"]
    assert {shipped.truth["leak"]["comm"], "init"} <= programs
    assert programs | {host, command_line, "vmcore_tools_lab=1"} <= names
    threads = {task.comm.string_().decode() for task in for_each_task(prog) if not task.mm}
    assert not {name for name in threads if name.startswith(("kworker", "ksoftirqd"))} & names


def test_what_is_looked_for_in_text_is_no_number(shipped: ShippedDump) -> None:
    names = masking_of(shipped.target.prog).names
    assert "Xorg" in names
    assert not [name for name in names if name.isdigit() or len(name) < 2 or name == "(none)"]


def test_secret_of_the_boot(shipped: ShippedDump, demo_dump: ShippedDump) -> None:
    prog = shipped.target.prog
    canary = prog["init_task"].stack_canary.value_()
    secret = boot_secret(prog)
    assert canary and secret.startswith(canary.to_bytes(8, "little"))
    same = shipped.name == demo_dump.name
    assert (secret == boot_secret(demo_dump.target.prog)) == same


def test_nothing_there() -> None:
    prog = Program()
    assert boot_secret(prog) == b""
    assert not list(identifying_names(prog))
    assert masking_of(prog).key == b""


def test_hosts_of_containers(shipped: ShippedDump) -> None:
    """A task in a UTS namespace of its own, written into a copy of the dump."""
    prog = target.open_core(shipped.files.vmcore, shipped.files.symbols).prog
    (task, *_) = (task for task in for_each_task(prog) if task.comm.string_() == b"Xorg")
    proxy = bytearray(prog.read(task.nsproxy.value_(), prog.type("struct nsproxy").size))
    uts = bytearray(prog.read(prog["init_uts_ns"].address_, prog["init_uts_ns"].type_.size))
    name = prog["init_uts_ns"].name.nodename.address_ - prog["init_uts_ns"].address_
    uts[name : name + 20] = b"tenant7.example.org\0"
    at = offsetof(prog.type("struct nsproxy"), "uts_ns")
    proxy[at : at + 8] = (_ELSEWHERE + 4096).to_bytes(8, "little")
    pointer = task.nsproxy.address_
    for address, data in (
        (_ELSEWHERE, bytes(proxy)),
        (_ELSEWHERE + 4096, bytes(uts)),
        (pointer, _ELSEWHERE.to_bytes(8, "little")),
    ):
        overwrite(prog, address, data)
    assert {"tenant7.example.org", "tenant7"} <= {*masking_of(prog).names}
