# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files with reports in them: who can read them, and what they are written over."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator

import pytest

from vmcore_tools.errors import TargetError
from vmcore_tools.output_file import is_planted, output_file

NOBODY = 65534


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def write(path: Path, text: str = "report") -> None:
    with output_file(str(path)) as file:
        file.write(text)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("before", [None, 0o644, 0o666, 0o600])
def test_only_its_owner_can_read_it(tmp_path: Path, before: int | None) -> None:
    path = tmp_path / "report"
    if before is not None:
        path.write_text("old")
        path.chmod(before)
    write(path)
    assert (path.read_text(), mode(path)) == ("report", 0o600)


def test_it_is_never_readable_by_others_while_it_is_written(tmp_path: Path) -> None:
    with output_file(str(tmp_path / "report")) as file:
        file.write("half")
        file.flush()
        (unfinished,) = tmp_path.iterdir()
        assert mode(unfinished) == 0o600
        assert unfinished.name != "report"


def test_another_name_of_the_old_file_keeps_the_old_contents(tmp_path: Path) -> None:
    """Who opened it when it could be read by all does not see the new contents."""
    path, other = tmp_path / "report", tmp_path / "other"
    path.write_text("old")
    os.link(path, other)
    write(path)
    assert (path.read_text(), other.read_text()) == ("report", "old")


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), output_file(str(tmp_path / "report")) as file:
        file.write("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_a_folder_of_ones_own_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("report")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "report").read_text() == "report"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder as /tmp is."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def test_ones_own_file_and_link_in_a_shared_folder(shared: Path) -> None:
    (shared / "report").write_text("old")
    (shared / "link").symlink_to("report")
    write(shared / "link")
    assert (shared / "report").read_text() == "report"
    assert mode(shared / "report") == 0o600


def owned_by_nobody(path: Path) -> None:
    try:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    except PermissionError:
        pytest.skip("only root gives files away")


def assert_refused(path: Path) -> None:
    with pytest.raises(TargetError) as caught, output_file(str(path)):
        pass
    assert str(caught.value) == (
        f"cannot write {path}: it is there, somebody else's, in a folder that anybody can"
        " write to; name a file in a folder of yours with -o"
    )


def test_a_link_that_somebody_else_put_there(shared: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    link = shared / "report"
    link.symlink_to(precious)
    owned_by_nobody(link)
    assert_refused(link)
    # Nor at the end of a link of one's own.
    own = tmp_path / "own"
    own.symlink_to(link)
    with pytest.raises(TargetError, match="somebody else's"), output_file(str(own)):
        pass
    assert precious.read_text() == "precious"


def test_a_pipe_that_somebody_else_put_there(shared: Path) -> None:
    pipe = shared / "report"
    os.mkfifo(pipe, 0o666)
    pipe.chmod(0o666)
    owned_by_nobody(pipe)
    assert_refused(pipe)


def test_a_file_that_somebody_else_put_there(shared: Path) -> None:
    (shared / "report").write_text("theirs")
    owned_by_nobody(shared / "report")
    assert_refused(shared / "report")
    assert (shared / "report").read_text() == "theirs"


def test_ones_own_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write(pipe)
    reader.join()
    assert read == ["report"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize(
    ("folder_mode", "folder_owner", "owner", "planted"),
    [
        (0o1777, 0, 1000, False),  # the user's own
        (0o1777, 0, 1001, True),
        (0o1777, 0, 0, False),  # the folder's owner could do anything anyway
        (0o1777, 1000, 0, True),
        (0o0755, 0, 1001, False),  # nobody else can put anything there
        (0o1775, 0, 1001, False),
    ],
)
def test_whom_to_trust(folder_mode: int, folder_owner: int, owner: int, planted: bool) -> None:
    folder: Any = SimpleNamespace(st_mode=stat.S_IFDIR | folder_mode, st_uid=folder_owner)
    entry: Any = SimpleNamespace(st_mode=stat.S_IFLNK | 0o777, st_uid=owner)
    assert is_planted(folder, entry, 1000) == planted
