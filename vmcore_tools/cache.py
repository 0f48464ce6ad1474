# SPDX-License-Identifier: LGPL-2.1-or-later
"""The user's cache: what was unpacked once, for its owner alone."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder below ``$XDG_CACHE_HOME``, or ``~/.cache``; it need not be there."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    return base / "vmcore-tools" / name


def make_private(folder: Path) -> None:
    """
    Make a folder, and those above it, if they are not there; nobody else may look inside.

    :raises OSError: if it cannot be made
    """
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
