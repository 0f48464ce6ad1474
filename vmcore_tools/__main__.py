# SPDX-License-Identifier: LGPL-2.1-or-later
"""``python -m vmcore_tools`` is ``vmcore-tools``."""

import sys

from vmcore_tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
