# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine whose memory a test writes, and its vmcore."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Dict, Iterator, Sequence, Tuple, Union

import pytest
from drgn import Program, Type, TypeKind, offsetof, sizeof
from elftools.elf.elffile import ELFFile

from tests.bad_input.files import ET_CORE, elf_header, notes
from vmcore_tools.dump.memory import Memory
from vmcore_tools.dump.page_map import page_map_of_file

HERE = Path(__file__).resolve().parent

PAGE = 4096
PAGES_PER_SECTION = 1 << 15  # SECTION_SIZE_BITS of x86-64 is 27
CPUS = 2

# Virtual addresses of x86-64 without KASLR. All three map RAM from its start,
# but that the array of page structures is at MEMMAP.
DIRECT_MAP = 0xFFFF888000000000
VMEMMAP = 0xFFFFEA0000000000
IMAGE = 0xFFFFFFFF80000000

#: Where per-CPU variables begin; behind them is what alloc_per_cpu() gives.
PER_CPU = 0x1000

# Physical addresses.
PAGE_TABLES = 0x1000
KERNEL = 0x100000
OBJECTS = 0x200000  #: what new() gives
MEMMAP = 0x400000
SLABS = 0x600000  #: what pages() gives
RAM = 0x800000

Value = Union[int, bytes]


@functools.cache
def compile_kernel(source: str, config: Tuple[str, ...]) -> bytes:
    """vmlinux, or rather its debug info and variables, from one of the C files."""
    gcc = shutil.which("x86_64-linux-gnu-gcc")
    if gcc is None and platform.machine() == "x86_64":
        gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("no gcc for x86-64: it makes the debug info of kernels that are not at hand")
    with tempfile.TemporaryDirectory() as folder:
        vmlinux = Path(folder) / "vmlinux"
        command = [
            gcc,
            "-g",
            *(f"-D{option}" for option in config),
            "-std=gnu11",
            "-Wall",
            "-Werror",
            "-ffreestanding",
            "-fno-pic",
            "-fno-common",
            "-mcmodel=kernel",
            "-fms-extensions",
            "-nostdlib",
            "-static",
            "-no-pie",
            "-Wl,--build-id=sha1",
            f"-Wl,-Ttext-segment={IMAGE + KERNEL:#x}",
            f"-Wl,--section-start=.percpu={PER_CPU:#x}",
            "-o",
            str(vmlinux),
            str(HERE / source),
        ]
        subprocess.run(command, check=True)
        return vmlinux.read_bytes()


class Machine:
    """
    A machine that runs one of the kernels of this folder.

    What is put into its memory can be read at once through :attr:`prog`.

    :ivar prog: the program, with the vmcore and the debug info
    :ivar memory: the same for the walkers that read in bulk
    """

    def __init__(
        self,
        source: str,
        folder: Path,
        release: str,
        note: Sequence[str] = (),
        config: Sequence[str] = (),
    ) -> None:
        """
        :param source: one of the C files
        :param note: what the release writes into its VMCOREINFO for the walkers
        :param config: options of the kernel's configuration that the C file has
        """
        vmlinux = folder / "vmlinux"
        vmlinux.write_bytes(compile_kernel(source, tuple(config)))
        self._objects = OBJECTS
        self._slabs = SLABS
        self._per_cpu = PER_CPU + 0x1000
        symbols = dict(_symbols(vmlinux))
        text = "\n".join(
            [
                f"OSRELEASE={release}",
                # Kernels before v5.9 have none, but something has to say
                # that this vmlinux is the one.
                f"BUILD-ID={_build_id(vmlinux)}",
                f"PAGESIZE={PAGE}",
                f"SYMBOL(init_uts_ns)={symbols['init_uts_ns']:x}",
                f"SYMBOL(swapper_pg_dir)={symbols['swapper_pg_dir']:x}",
                "NUMBER(phys_base)=0",
                "NUMBER(pgtable_l5_enabled)=0",
                "KERNELOFFSET=0",
                "LENGTH(mem_section)=1",
                *note,
                "",
            ]
        )
        path = folder / "vmcore"
        head = _core_headers(text.encode())
        path.write_bytes(head + bytes(RAM))
        self._memory_offset = len(head)
        self._file = path.open("r+b", buffering=0)
        self._load(vmlinux)
        self._map(symbols["swapper_pg_dir"])
        self.write(symbols["init_uts_ns"] + 130, release.encode())

        self.prog = Program()
        self.prog.set_core_dump(path)
        self.prog.load_debug_info([vmlinux])
        self.memory = Memory(self.prog, page_map_of_file(path))

        self.set_variable("saved_command_line", self.alloc(8))
        self.set_variable("__cpu_possible_mask", (1 << CPUS) - 1)
        self.set_variable("__cpu_online_mask", (1 << CPUS) - 1)
        for cpu in range(CPUS):
            area = self.alloc(0x4000, PAGE)
            self.write(self.variable("__per_cpu_offset") + 8 * cpu, _word(area))
            # On each CPU its idle task, and no others.
            stack = self.alloc(0x4000, 0x4000)
            idle = self.new("struct task_struct", {"stack": stack, "cpu": cpu, "comm": b"swapper"})
            queue = self.per_cpu(self.variable("runqueues"), cpu)
            self.put("struct rq", queue, {"curr": idle, "idle": idle})
        ram = self.new("struct resource", {"end": RAM - 1, "name": self.string(b"System RAM")})
        self.put("struct resource", self.variable("iomem_resource"), {"child": ram})
        # SECTION_MARKED_PRESENT, SECTION_HAS_MEM_MAP and, from v5.3, SECTION_IS_EARLY.
        root = self.alloc(PAGE, PAGE)
        self.write(root, _word(VMEMMAP | 0xB))
        roots = self.alloc(PAGE, PAGE)
        self.write(roots, _word(root))
        self.set_variable("mem_section", roots)

    def close(self) -> None:
        self._file.close()

    # Memory.

    def write(self, address: int, data: bytes) -> None:
        os.pwrite(self._file.fileno(), data, self._memory_offset + _physical(address, len(data)))

    def read(self, address: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), size, self._memory_offset + _physical(address, size))

    def alloc(self, size: int, align: int = 16) -> int:
        """Zeroed memory in the direct map that no slab has."""
        self._objects = -(-self._objects // align) * align
        address = DIRECT_MAP + self._objects
        self._objects += size
        assert self._objects <= MEMMAP
        return address

    def alloc_pages(self, order: int) -> int:
        """The first page frame of a free block of that order, aligned to its size."""
        size = PAGE << order
        self._slabs = -(-self._slabs // size) * size
        pfn = self._slabs // PAGE
        self._slabs += size
        assert self._slabs <= RAM
        return pfn

    def alloc_per_cpu(self, size: int) -> int:
        """What ``alloc_percpu()`` gives; :meth:`per_cpu` has the CPUs' addresses."""
        pointer = self._per_cpu
        self._per_cpu += -(-size // 16) * 16
        assert self._per_cpu <= 0x4000
        return pointer

    def per_cpu(self, pointer: int, cpu: int) -> int:
        offset = self.read(self.variable("__per_cpu_offset") + 8 * cpu, 8)
        return pointer + int.from_bytes(offset, "little")

    # Objects.

    def variable(self, name: str) -> int:
        address = self.prog[name].address_
        assert address is not None
        return address

    def set_variable(self, name: str, value: int) -> None:
        self.write(self.variable(name), value.to_bytes(sizeof(self.prog[name]), "little"))

    def put(self, type_name: str, address: int, members: Dict[str, Value]) -> int:
        """Set members, by their designators, of a structure; returns its address."""
        type_ = self.prog.type(type_name)
        for designator, value in members.items():
            data = value
            if isinstance(data, int):
                size = _size(type_, designator)
                data = (data & ((1 << 8 * size) - 1)).to_bytes(size, "little")
            self.write(address + offsetof(type_, designator), data)
        return address

    def new(self, type_name: str, members: Dict[str, Value], extra_bytes: int = 0) -> int:
        """Allocate a structure and set its members."""
        size = sizeof(self.prog.type(type_name))
        return self.put(type_name, self.alloc(size + extra_bytes), members)

    def link(self, head: int, nodes: Sequence[int] = ()) -> None:
        """Make a list of ``struct list_head`` at these addresses."""
        ring = [head, *nodes]
        for number, node in enumerate(ring):
            following = ring[(number + 1) % len(ring)]
            self.write(node, _word(following) + _word(ring[number - 1]))

    def string(self, text: bytes) -> int:
        address = self.alloc(len(text) + 1)
        self.write(address, text)
        return address

    def words(self, address: int, values: Sequence[int]) -> int:
        self.write(address, b"".join(map(_word, values)))
        return address

    # The parts of it that are no objects.

    def _load(self, vmlinux: Path) -> None:
        """What a boot loader does with the kernel's image."""
        for address, data in _segments(vmlinux):
            if address >= IMAGE:  # the others are templates of per-CPU variables
                self.write(address, data)

    def _map(self, pgd: int) -> None:
        """Page tables with pages of 2 MiB."""
        tables = iter(range(PAGE_TABLES, KERNEL, PAGE))
        present, large = 0x63, 0x80
        for virtual, physical, size in (
            (DIRECT_MAP, 0, RAM),
            (IMAGE, 0, RAM),
            (VMEMMAP, MEMMAP, 2 << 20),
        ):
            pud, pmd = next(tables), next(tables)
            self.write(pgd + (virtual >> 39 & 511) * 8, _word(pud | present))
            self.write(DIRECT_MAP + pud + (virtual >> 30 & 511) * 8, _word(pmd | present))
            for offset in range(0, size, 2 << 20):
                entry = DIRECT_MAP + pmd + ((virtual + offset) >> 21 & 511) * 8
                self.write(entry, _word(physical + offset | present | large))


def _word(value: int) -> bytes:
    return (value & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")


def _physical(address: int, size: int) -> int:
    if VMEMMAP <= address < VMEMMAP + (2 << 20):
        return MEMMAP + address - VMEMMAP
    base = IMAGE if address >= IMAGE else DIRECT_MAP
    assert base <= address and address + size <= base + RAM, hex(address)
    return address - base


def _size(type_: Type, designator: str) -> int:
    for part in designator.split("."):
        while type_.kind == TypeKind.TYPEDEF:
            type_ = type_.type
        type_ = type_.member(part).type
    return sizeof(type_)


def _core_headers(information: bytes) -> bytes:
    """All of an ELF vmcore but the memory, which is one segment."""
    note = notes([(b"VMCOREINFO", 0, information)])
    start = 64 + 2 * 56
    memory = -(-(start + len(note)) // PAGE) * PAGE
    segments = (
        struct.pack("<IIQQQQQQ", 4, 0, start, 0, 0, len(note), len(note), 4),
        struct.pack("<IIQQQQQQ", 1, 7, memory, DIRECT_MAP, 0, RAM, RAM, PAGE),
    )
    return b"".join((elf_header(ET_CORE, phnum=2), *segments, note)).ljust(memory, b"\0")


def _segments(path: Path) -> Iterator[Tuple[int, bytes]]:
    with path.open("rb") as file:
        for segment in ELFFile(file).iter_segments("PT_LOAD"):
            yield segment["p_vaddr"], segment.data()


def _symbols(path: Path) -> Iterator[Tuple[str, int]]:
    with path.open("rb") as file:
        for symbol in ELFFile(file).get_section_by_name(".symtab").iter_symbols():
            yield symbol.name, symbol["st_value"]


def _build_id(path: Path) -> str:
    with path.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".note.gnu.build-id")
        return str(next(section.iter_notes())["n_desc"])
