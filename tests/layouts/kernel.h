// SPDX-License-Identifier: GPL-2.0
/*
 * What all of the releases have, with the members of a 64-bit kernel with SMP
 * and without lock debugging.
 */
#pragma once

typedef unsigned char u8;
typedef signed char s8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int s32;
typedef unsigned long long u64;
typedef long long s64;
typedef u64 uint64_t;
typedef u32 uint32_t;
typedef unsigned long size_t;
typedef _Bool bool;
typedef unsigned int gfp_t;
typedef int pid_t;
typedef u64 phys_addr_t;
typedef s64 ktime_t;

#define NULL ((void *)0)
#define BITS_PER_LONG 64
#define NR_CPUS 2
#define MAX_NUMNODES 4

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	s64 counter;
} atomic64_t;

typedef atomic64_t atomic_long_t;

typedef struct refcount_struct {
	atomic_t refs;
} refcount_t;

struct kref {
	refcount_t refcount;
};

struct list_head {
	struct list_head *next, *prev;
};

struct hlist_node {
	struct hlist_node *next, **pprev;
};

struct hlist_head {
	struct hlist_node *first;
};

struct llist_node {
	struct llist_node *next;
};

struct rb_node {
	unsigned long __rb_parent_color;
	struct rb_node *rb_right;
	struct rb_node *rb_left;
} __attribute__((aligned(sizeof(long))));

struct rb_root {
	struct rb_node *rb_node;
};

struct callback_head {
	struct callback_head *next;
	void (*func)(struct callback_head *head);
} __attribute__((aligned(sizeof(void *))));
#define rcu_head callback_head

/* struct qspinlock behind three more structures of one member each. */
typedef struct raw_spinlock {
	atomic_t raw_lock;
} raw_spinlock_t;

typedef struct spinlock {
	struct raw_spinlock rlock;
} spinlock_t;

struct optimistic_spin_queue {
	atomic_t tail;
};

struct mutex {
	atomic_long_t owner;
	spinlock_t wait_lock;
	struct optimistic_spin_queue osq;
	struct list_head wait_list;
};

struct ww_acquire_ctx;

struct ww_mutex {
	struct mutex base;
	struct ww_acquire_ctx *ctx;
};

struct wait_queue_head {
	spinlock_t lock;
	struct list_head head;
};
typedef struct wait_queue_head wait_queue_head_t;

struct work_struct {
	atomic_long_t data;
	struct list_head entry;
	void (*func)(struct work_struct *work);
};

struct cpumask {
	unsigned long bits[1];
};

/* The machine itself: it is on every kernel the same. */

struct new_utsname {
	char sysname[65];
	char nodename[65];
	char release[65];
	char version[65];
	char machine[65];
	char domainname[65];
};

struct uts_namespace {
	struct new_utsname name;
};

struct mem_section {
	unsigned long section_mem_map;
	unsigned long *pageblock_flags;
};

struct uts_namespace init_uts_ns;
char *saved_command_line;
unsigned long swapper_pg_dir[512] __attribute__((aligned(4096)));
unsigned long page_offset_base = 0xffff888000000000;
struct mem_section **mem_section;
unsigned long __highest_present_section_nr;
struct cpumask __cpu_possible_mask;
struct cpumask __cpu_online_mask;
unsigned long __per_cpu_offset[NR_CPUS];
unsigned int nr_cpu_ids = NR_CPUS;
unsigned int nr_node_ids = 1;
phys_addr_t keep_phys_addr_t;

struct completion;

struct thread_struct {
	unsigned long sp;
};

struct pt_regs {
	unsigned long words[21];
};
struct pt_regs keep_pt_regs;

struct wake_q_node {
	struct wake_q_node *next;
};

struct task_struct {
	void *stack;
	int on_cpu;
	unsigned int cpu;
	pid_t pid;
	char comm[16];
	struct completion *vfork_done;
	int *set_child_tid;
	unsigned int flags;
	struct wake_q_node wake_q;
#ifdef PREEMPT_RCU
	struct list_head rcu_node_entry;
#endif
	struct thread_struct thread;
};

union thread_union {
	unsigned long stack[16384 / sizeof(long)];
};
union thread_union init_stack;

struct rq {
	struct task_struct *curr, *idle;
};

typedef struct {
	unsigned long pgd;
} pgd_t;

struct mm_struct {
	pgd_t *pgd;
};
struct mm_struct init_mm = {
	.pgd = (pgd_t *)swapper_pg_dir,
};

struct resource {
	u64 start;
	u64 end;
	const char *name;
	unsigned long flags;
	unsigned long desc;
	struct resource *parent, *sibling, *child;
};
struct resource iomem_resource;

/* Its address is added to a CPU's offset. */
#define PER_CPU __attribute__((section(".percpu")))
PER_CPU struct rq runqueues;

/* drgn knows vmlinux by this section. */
__attribute__((section(".init.text"))) void _start(void)
{
}

/* And by this function it knows that the page structures are one array. */
int vmemmap_populate(void)
{
	return 0;
}
