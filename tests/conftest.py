# SPDX-License-Identifier: LGPL-2.1-or-later
"""For all tests: none of them asks the user's debuginfod servers."""

from __future__ import annotations

import os

os.environ.pop("DEBUGINFOD_URLS", None)
