# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Kernels that are not at hand: their structures in C, on machines written by hand.

``linux_4_19.c`` and its like have the structures of one release, with that
release's members: those that the walkers read, and what is needed to put
them at their offsets. ``gcc -g`` makes debug info of them. A
:class:`~tests.layouts.machine.Machine` has RAM in which a test puts objects,
page structures and slabs; it is an ELF vmcore with page tables, which drgn
reads as it reads any other. What is in it is known, so the walkers' answers
can be compared with it.

``linux-4.19-arm64.md`` are offsets from the debug info of a real 4.19 kernel,
which the structures of ``linux_4_19.c`` have to have.

Without a gcc for x86-64 these tests are skipped.
"""
