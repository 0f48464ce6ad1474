// SPDX-License-Identifier: GPL-2.0
/*
 * What drm_syncobj.c, sched_main.c and fs/file_table.c have in 5.10 and in 7.2 alike, once
 * struct dma_fence is known.
 */

struct xarray {
	spinlock_t xa_lock;
	gfp_t xa_flags;
	void *xa_head;
};

struct xa_node {
	unsigned char shift;
	unsigned char offset;
	unsigned char count;
	unsigned char nr_values;
	struct xa_node *parent;
	struct xarray *array;
	union {
		struct list_head private_list;
		struct rcu_head rcu_head;
	};
	void *slots[64];
	unsigned long marks[3];
};
struct xa_node keep_xa_node;

struct task_struct;

struct dma_fence_cb;
typedef void (*dma_fence_func_t)(struct dma_fence *fence, struct dma_fence_cb *cb);

struct dma_fence_cb {
	struct list_head node;
	dma_fence_func_t func;
};

struct syncobj_wait_entry {
	struct list_head node;
	struct task_struct *task;
	struct dma_fence *fence;
	struct dma_fence_cb fence_cb;
	u64 point;
};
struct syncobj_wait_entry keep_syncobj_wait_entry;

struct spsc_node {
	struct spsc_node *next;
};

struct spsc_queue {
	struct spsc_node *head;
	struct spsc_node **tail;
	atomic_t job_count;
	spinlock_t lock;
};

struct file_operations;

/* include/linux/eventpoll.h */

struct eventpoll;
