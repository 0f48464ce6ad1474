# SPDX-License-Identifier: LGPL-2.1-or-later
"""The options of the slab caches' analysis; tests/dumps has its facts."""

from __future__ import annotations

import pytest

from vmcore_tools.cli import main


def test_an_unknown_order_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "slabs", "--demo", "--sort", "colour"])
    assert caught.value.code == 2
    error = (
        "argument --sort: there is no 'colour'; give one of bytes, objects, active, size, name\n"
    )
    assert capsys.readouterr().err.endswith(error)


def test_the_help_names_the_orders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "slabs"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "sort the caches by bytes, objects, active, size, name (default: bytes)" in page
