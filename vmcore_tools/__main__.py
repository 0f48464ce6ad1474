# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command ``vmcore-tools``, which is ``python -m vmcore_tools``."""

import sys

from vmcore_tools import interrupts


def main() -> int:
    # Before what takes long to import.
    interrupts.end_at_once()
    from vmcore_tools.cli import main

    code = main()
    interrupts.ignore()
    return code


if __name__ == "__main__":
    sys.exit(main())
