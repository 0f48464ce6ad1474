// SPDX-License-Identifier: GPL-2.0
/* Fences that depend on each other and on timelines, and who waits for them, as in v5.10. */

#include "kernel.h"

/* include/linux/dma-fence.h */

struct dma_fence {
	spinlock_t *lock;
	const struct dma_fence_ops *ops;
	union {
		struct list_head cb_list;
		ktime_t timestamp;
		struct rcu_head rcu;
	};
	u64 context;
	u64 seqno;
	unsigned long flags;
	struct kref refcount;
	int error;
};
struct dma_fence keep_dma_fence;

struct dma_fence_ops {
	bool use_64bit_seqno;
	const char *(*get_driver_name)(struct dma_fence *fence);
};

enum dma_fence_flag_bits {
	DMA_FENCE_FLAG_SIGNALED_BIT,
	DMA_FENCE_FLAG_TIMESTAMP_BIT,
	DMA_FENCE_FLAG_ENABLE_SIGNAL_BIT,
	DMA_FENCE_FLAG_USER_BITS,
};
enum dma_fence_flag_bits keep_dma_fence_flag_bits;

struct dma_fence_cb;
typedef void (*dma_fence_func_t)(struct dma_fence *fence, struct dma_fence_cb *cb);

struct dma_fence_cb {
	struct list_head node;
	dma_fence_func_t func;
};
struct dma_fence_cb keep_dma_fence_cb;

const struct dma_fence_ops dma_fence_array_ops, dma_fence_chain_ops, timeline_fence_ops;
const struct dma_fence_ops drm_sched_fence_ops_finished, some_driver_fence_ops;

/* drivers/dma-buf/dma-fence.c, dma-fence-array.c, dma-fence-chain.c, drm_syncobj.c */

struct default_wait_cb {
	struct dma_fence_cb base;
	struct task_struct *task;
};
struct default_wait_cb keep_default_wait_cb;

struct irq_work {
	unsigned long flags;
	struct llist_node llnode;
	void (*func)(struct irq_work *work);
};

struct dma_fence_array_cb {
	struct dma_fence_cb cb;
	struct dma_fence_array *array;
};
struct dma_fence_array_cb keep_dma_fence_array_cb;

struct dma_fence_array {
	struct dma_fence base;
	spinlock_t lock;
	unsigned int num_fences;
	atomic_t num_pending;
	struct dma_fence **fences;
	struct irq_work work;
};
struct dma_fence_array keep_dma_fence_array;

struct dma_fence_chain {
	struct dma_fence base;
	spinlock_t lock;
	struct dma_fence *prev;
	u64 prev_seqno;
	struct dma_fence *fence;
	struct dma_fence_cb cb;
	struct irq_work work;
};
struct dma_fence_chain keep_dma_fence_chain;

struct syncobj_wait_entry {
	struct list_head node;
	struct task_struct *task;
	struct dma_fence *fence;
	struct dma_fence_cb fence_cb;
	u64 point;
};
struct syncobj_wait_entry keep_syncobj_wait_entry;

void dma_fence_default_wait_cb(struct dma_fence *fence, struct dma_fence_cb *cb)
{
}

void dma_fence_array_cb_func(struct dma_fence *fence, struct dma_fence_cb *cb)
{
}

void dma_fence_chain_cb(struct dma_fence *fence, struct dma_fence_cb *cb)
{
}

void syncobj_wait_fence_func(struct dma_fence *fence, struct dma_fence_cb *cb)
{
}

void fence_check_cb_func(struct dma_fence *fence, struct dma_fence_cb *cb)
{
}

/* include/drm/gpu_scheduler.h */

struct drm_sched_fence {
	struct dma_fence scheduled;
	struct dma_fence finished;
	struct dma_fence *parent;
	struct drm_gpu_scheduler *sched;
	spinlock_t lock;
	void *owner;
};
struct drm_sched_fence keep_drm_sched_fence;

/* drivers/dma-buf/sync_debug.h */

struct sync_timeline {
	struct kref kref;
	char name[32];
	u64 context;
	int value;
	struct rb_root pt_tree;
	struct list_head pt_list;
	spinlock_t lock;
	struct list_head sync_timeline_list;
};
struct sync_timeline keep_sync_timeline;
