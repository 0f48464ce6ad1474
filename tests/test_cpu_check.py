# SPDX-License-Identifier: LGPL-2.1-or-later
"""A CPU on which NumPy sorts wrongly is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vmcore_tools import cpu_check
from vmcore_tools.errors import TargetError


def test_this_one_is_right() -> None:
    cpu_check.check_cpu()


def test_two_that_are_in_the_wrong_order(monkeypatch: pytest.MonkeyPatch) -> None:
    right = np.argsort

    def wrong(values: Any) -> Any:
        order = right(values)
        order[[500, 501]] = order[[501, 500]]
        return order

    monkeypatch.setattr(np, "argsort", wrong)
    with pytest.raises(TargetError, match="NPY_DISABLE_CPU_FEATURES=X86_V3"):
        cpu_check.check_cpu()
