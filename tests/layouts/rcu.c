// SPDX-License-Identifier: GPL-2.0
/*
 * RCU: with FLAVORS as in v4.19, where there are three kinds of it, else as in v7.2, where
 * synchronize_rcu() need not have a callback. Two CPUs, each a leaf of its own.
 */

#include "kernel.h"

/* kernel/rcu/tree.h, rcu_segcblist.h */

#define NUM_RCU_NODES 3
#define RCU_NUM_LVLS 2

struct swait_queue_head {
	raw_spinlock_t lock;
	struct list_head task_list;
};

struct completion {
	unsigned int done;
	struct swait_queue_head wait;
};
struct completion keep_completion;

/* include/linux/rcupdate_wait.h */

struct rcu_synchronize {
	struct rcu_head head;
	struct completion completion;
};
struct rcu_synchronize keep_rcu_synchronize;

struct rcu_segcblist {
	struct rcu_head *head;
	struct rcu_head **tails[4];
	unsigned long gp_seq[4];
	long len;
};

struct rcu_node {
	raw_spinlock_t lock;
	unsigned long gp_seq;
	unsigned long gp_seq_needed;
	unsigned long completedqs;
	unsigned long qsmask;
	unsigned long rcu_gp_init_mask;
	unsigned long qsmaskinit;
	unsigned long qsmaskinitnext;
	unsigned long expmask;
	unsigned long expmaskinit;
	unsigned long expmaskinitnext;
	unsigned long ffmask;
	unsigned long grpmask;
	int grplo;
	int grphi;
	u8 grpnum;
	u8 level;
	bool wait_blkd_tasks;
	struct rcu_node *parent;
	struct list_head blkd_tasks;
	struct list_head *gp_tasks;
	struct list_head *exp_tasks;
	spinlock_t exp_lock;
	unsigned long exp_seq_rq;
	wait_queue_head_t exp_wq[4];
	bool exp_need_flush;
};

struct rcu_data {
	unsigned long gp_seq;
	unsigned long gp_seq_needed;
	struct rcu_node *mynode;
	unsigned long grpmask;
	unsigned long ticks_this_gp;
	struct rcu_segcblist cblist;
	int cpu;
};

struct llist_head {
	struct llist_node *first;
};

struct sr_wait_node {
	atomic_t inuse;
	struct llist_node node;
};

struct rcu_state {
	struct rcu_node node[NUM_RCU_NODES];
	struct rcu_node *level[RCU_NUM_LVLS + 1];
#ifdef FLAVORS
	struct rcu_data *rda;
#endif
	int ncpus;
	unsigned long gp_seq;
	struct task_struct *gp_kthread;
	struct swait_queue_head gp_wq;
	short gp_flags;
	short gp_state;
	struct completion barrier_completion;
	unsigned long expedited_sequence;
	struct swait_queue_head expedited_wq;
	unsigned long gp_start;
	unsigned long gp_activity;
	const char *name;
	char abbr;
#ifdef FLAVORS
	struct list_head flavors;
#else
	struct llist_head srs_next;
	struct llist_node *srs_wait_tail;
	struct llist_node *srs_done_tail;
	struct sr_wait_node srs_wait_nodes[5];
#endif
};

int rcu_num_lvls = RCU_NUM_LVLS;
int rcu_num_nodes = NUM_RCU_NODES;
int rcu_cpu_stall_timeout = 21;

#ifdef FLAVORS
struct rcu_state rcu_sched_state, rcu_bh_state;
struct list_head rcu_struct_flavors;
struct rcu_data keep_rcu_data;
#else
struct rcu_state rcu_state;
PER_CPU struct rcu_data rcu_data;
#endif

/* kernel/time/jiffies.c, of which only the length of a jiffy matters: CONFIG_HZ=250. */

struct clocksource {
	u32 mult;
	u32 shift;
};
struct clocksource clocksource_jiffies = { .mult = 4000000u << 8, .shift = 8 };
u64 jiffies_64;
