# SPDX-License-Identifier: LGPL-2.1-or-later
"""Debug info from debuginfod servers: of who has named some, and only what is nowhere else."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path
from typing import Dict, Iterator, List, Sequence

import pytest
from drgn import Program

from tests.bad_input import files
from vmcore_tools import demo, target
from vmcore_tools.build_id import build_id_of_file
from vmcore_tools.errors import TargetError

pytestmark = pytest.mark.skipif(
    "debuginfod" not in Program().registered_debug_info_finders(),
    reason="drgn was built without debuginfod",
)


class Server:
    """A debuginfod server on the loopback: what it has, and what it was asked for."""

    def __init__(self) -> None:
        self.files: Dict[str, bytes] = {}
        self.asked: List[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                _, kind, build_id, what = self.path.split("/")
                assert (kind, what) == ("buildid", "debuginfo")
                outer.asked.append(build_id)
                data = outer.files.get(build_id)
                self.send_response(404 if data is None else 200)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("DEBUGINFOD_URLS", made.url)
    monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(tmp_path / "debuginfod"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


@pytest.fixture(scope="module")
def dump() -> demo.DemoDump:
    if demo.DEFAULT_DUMP not in demo.shipped_dumps():
        pytest.skip(f"fixtures/dumps has no {demo.DEFAULT_DUMP} yet")
    return demo.unpack()


@pytest.fixture
def symbols(dump: demo.DemoDump) -> Dict[str, Path]:
    """The files with debug info by build ID, the kernel's first."""
    paths = sorted(dump.symbols, key=lambda path: not path.name.startswith("vmlinux"))
    return {str(build_id_of_file(path)): path for path in paths}


def error_of(dump: demo.DemoDump, symbols: Sequence[Path] = ()) -> str:
    with pytest.raises(TargetError) as caught:
        target.open_core(dump.vmcore, symbols)
    message = str(caught.value)
    assert message.isprintable() and "; install linux-image-" in message
    return message


def test_all_of_it(dump: demo.DemoDump, server: Server, symbols: Dict[str, Path]) -> None:
    server.files = {build_id: path.read_bytes() for build_id, path in symbols.items()}
    found = target.open_core(dump.vmcore)
    assert found.debug_info.complete
    assert found.debug_info.modules == ("vmlab",)
    assert server.asked == list(symbols)


def test_only_what_is_not_given(
    dump: demo.DemoDump, server: Server, symbols: Dict[str, Path]
) -> None:
    (_, vmlinux), (module_id, module) = symbols.items()
    server.files = {module_id: module.read_bytes()}
    assert target.open_core(dump.vmcore, [vmlinux]).debug_info.complete
    assert server.asked == [module_id]
    assert target.open_core(dump.vmcore, [vmlinux, module]).debug_info.complete
    assert server.asked == [module_id]


def test_nobody_is_asked_who_was_not_named(
    dump: demo.DemoDump, server: Server, symbols: Dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files = {build_id: path.read_bytes() for build_id, path in symbols.items()}
    monkeypatch.delenv("DEBUGINFOD_URLS")
    assert "or set DEBUGINFOD_URLS to fetch it, or give its vmlinux" in error_of(dump)
    monkeypatch.setenv("DEBUGINFOD_URLS", "")
    error_of(dump)
    assert server.asked == []


def test_servers_that_do_not_have_it(
    dump: demo.DemoDump, server: Server, symbols: Dict[str, Path]
) -> None:
    kernel, _ = symbols
    message = error_of(dump)
    assert f"(build ID {kernel}), nor on the servers of DEBUGINFOD_URLS; install" in message
    assert "set DEBUGINFOD_URLS" not in message
    assert server.asked == [kernel]


def test_module_that_no_server_has(
    dump: demo.DemoDump, server: Server, symbols: Dict[str, Path]
) -> None:
    found = target.open_core(dump.vmcore, list(symbols.values())[:1])
    assert found.debug_info.modules_missing == ("vmlab",)


def test_servers_that_cannot_be_reached(
    dump: demo.DemoDump, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEBUGINFOD_URLS", "http://127.0.0.1:9")
    assert "nor on the servers of DEBUGINFOD_URLS" in error_of(dump)


def test_server_that_sends_something_else(
    dump: demo.DemoDump, server: Server, symbols: Dict[str, Path]
) -> None:
    """What it sends has to have the build ID that was asked for."""
    kernel = next(iter(symbols))
    for data in (files.elf_with_build_id(files.OTHER_BUILD_ID), b"<html>", b""):
        server.files = {kernel: data}
        assert f"no debug info for kernel 5.10.262-vmlab (build ID {kernel})" in error_of(dump)
