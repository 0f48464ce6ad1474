// SPDX-License-Identifier: GPL-2.0
/*
 * Run queues of v6.12, with tasks of the deadline class and the server that counts as one.
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
};

struct task_struct {
	void *stack;
	int on_cpu;
	unsigned int cpu;
	pid_t pid;
	char comm[16];
	struct sched_entity se;
	struct sched_rt_entity rt;
	struct sched_dl_entity dl;
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
};
PER_CPU struct rq runqueues;
