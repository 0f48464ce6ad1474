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
which the structures of ``linux_4_19.c`` have to have (``test_linux_4_19.py``).

What is different from one release to the other, and what looks at it:

- v4.15: ``struct page`` without a page_type (``test_releases_between.py``)
- v4.19: fences with 32 bits of seqno, ``reservation_object`` (``test_fences_4_19.py``);
  SLUB in ``struct page``, copies of caches for control groups, tracks that are arrays of
  addresses (``test_slabs_4_19.py``); ``printk_log`` (``test_printk_4_19.py``); TTM
  (``test_gem_4_19.py``); works that max_active keeps back (``test_workqueue_4_19.py``,
  ``test_max_active.py``); semaphores with a signed count (``test_locks_4_19.py``);
  kmemleak's stacks (``test_kmemleak_4_19.py``); RCU's three kinds (``test_rcu.py``); rings
  (``test_rings.py``); radix trees (``test_id_trees.py``); red-black trees of mappings
  (``test_vma.py``); and all of triage on one dump (``test_case_4_19.py``)
- v5.1: messages with their callers (``test_releases_between.py``)
- v5.10, v6.1: holders of fences and buffers (``test_fence_holders.py``,
  ``test_holders.py``); lists of waiters (``waits.c``, ``fence_waits.c``); disks
  (``test_disks.py``); maple trees (``test_vma.py``)
- v6.9: works of a NUMA node (``test_max_active.py``)
- v6.11: types of pages that are bits of an enum (``test_releases_between.py``)
- v6.12: delayed sleepers and the fair server (``test_run_queue.py``)
- v6.18: sheaves; v7.1: page heads, fences without operations and with their lock inside,
  locks without a list's head (``test_slabs_7_2.py``, ``test_fences_7_2.py``, ``waits.c``);
  GEM handles of framebuffers (``test_gem_7_2.py``); handles of stacks
  (``test_owners_7_2.py``)

Without a gcc for x86-64 these tests are skipped.
"""
