# SPDX-License-Identifier: LGPL-2.1-or-later
"""From a Linux crash dump to a proven cause."""

__version__ = "0.1.0"
