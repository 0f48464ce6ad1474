# SPDX-License-Identifier: LGPL-2.1-or-later
"""Words that go with a number."""

from __future__ import annotations

import doctest

from vmcore_tools import words


def test_the_examples_of_the_documentation_hold() -> None:
    assert doctest.testmod(words) == (0, 6)


def test_nothing_is_many() -> None:
    assert words.counted(0, "task") == "0 tasks"
    assert words.plural(0, "has", "have") == "have"
