// SPDX-License-Identifier: GPL-2.0
/*
 * Run queues of v6.12, with tasks of the deadline class and the server that counts as one,
 * and the list of tasks that other CPUs woke: with WAKE_LIST as before v5.8.
 */

/* It has less of these. */
#define task_struct task_struct_of_kernel_h
#define rq rq_of_kernel_h
#define runqueues runqueues_of_kernel_h
#include "kernel.h"
#undef task_struct
#undef rq
#undef runqueues

struct rb_root_cached {
	struct rb_root rb_root;
	struct rb_node *rb_leftmost;
};

/* include/linux/sched.h */

struct sched_dl_entity {
	struct rb_node rb_node;
	u64 dl_runtime;
	u64 deadline;
	unsigned int dl_throttled : 1;
	unsigned int dl_server : 1;
};

struct sched_rt_entity {
	struct list_head run_list;
};

struct sched_entity {
	struct list_head group_node;
	u64 exec_start;
	unsigned char sched_delayed;
};

struct sched_info {
	unsigned long long last_queued;
};

/* include/linux/smp_types.h, smp.h */

enum {
	CSD_FLAG_LOCK = 0x01,
	CSD_TYPE_ASYNC = 0x00,
	CSD_TYPE_SYNC = 0x10,
	CSD_TYPE_IRQ_WORK = 0x20,
	CSD_TYPE_TTWU = 0x30,
	CSD_FLAG_TYPE_MASK = 0xF0,
} keep_csd_flags;

struct __call_single_node {
	struct llist_node llist;
	union {
		unsigned int u_flags;
		atomic_t a_flags;
	};
	u16 src, dst;
};

struct __call_single_data {
	struct __call_single_node node;
	void (*func)(void *info);
	void *info;
};
struct __call_single_data keep_call_single_data;

struct llist_head {
	struct llist_node *first;
};

struct task_struct {
	void *stack;
	unsigned int __state;
	int on_cpu;
	int on_rq;
	unsigned int cpu;
#ifdef WAKE_LIST
	struct llist_node wake_entry;
#else
	struct __call_single_node wake_entry;
#endif
	pid_t pid;
	char comm[16];
	struct sched_entity se;
	struct sched_rt_entity rt;
	struct sched_dl_entity dl;
	struct sched_info sched_info;
	bool throttled;
	struct thread_struct thread;
};

/* kernel/sched/sched.h */

struct dl_rq {
	struct rb_root_cached root;
	unsigned int dl_nr_running;
};

struct rt_prio_array {
	struct list_head queue[2];
};

struct rt_rq {
	struct rt_prio_array active;
	unsigned int rt_nr_running;
};

struct rq {
	struct task_struct *curr, *idle;
	struct rt_rq rt;
	struct dl_rq dl;
	struct sched_dl_entity fair_server;
	struct list_head cfs_tasks;
	u64 clock, clock_task;
#ifdef WAKE_LIST
	struct llist_head wake_list;
#endif
};
PER_CPU struct rq runqueues;
#ifndef WAKE_LIST
PER_CPU struct llist_head call_single_queue;
#endif
