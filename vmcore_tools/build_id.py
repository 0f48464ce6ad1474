# SPDX-License-Identifier: LGPL-2.1-or-later
"""The build ID of an ELF file: what tells whether debug info is that of a kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Union


def build_id_of_file(path: Union[str, Path]) -> Optional[str]:
    """The GNU build ID of an ELF file in hex, None if it has none or is damaged."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import NoteSection

    try:
        with open(path, "rb") as file:
            for section in ELFFile(file).iter_sections():
                # A vmlinux has it in .notes, a module in .note.gnu.build-id.
                if isinstance(section, NoteSection):
                    for note in section.iter_notes():
                        # Xen's notes in a vmlinux have one of the same number.
                        if (note["n_name"], note["n_type"]) == ("GNU", "NT_GNU_BUILD_ID"):
                            return str(note["n_desc"])
    except (ELFError, OSError, ValueError):
        pass
    return None
