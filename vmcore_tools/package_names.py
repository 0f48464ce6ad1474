# SPDX-License-Identifier: LGPL-2.1-or-later
"""The names of the packages with a kernel's debug info."""

from __future__ import annotations


def packages(release: str) -> str:
    """Where distributions keep the debug info of a kernel release, and of its modules."""
    return (
        f"linux-image-{release}-dbg (Debian), linux-image-unsigned-{release}-dbgsym (Ubuntu)"
        f" or kernel-debuginfo-{release} (Fedora, RHEL: debuginfo-install kernel-{release})"
    )
