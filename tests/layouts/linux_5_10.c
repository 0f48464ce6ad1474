// SPDX-License-Identifier: GPL-2.0
/* The fences and reservation objects of v5.10. */

#include "kernel.h"

/* include/linux/dma-fence.h */

struct dma_fence;

struct dma_fence_ops {
	bool use_64bit_seqno;
	const char *(*get_driver_name)(struct dma_fence *fence);
	const char *(*get_timeline_name)(struct dma_fence *fence);
	bool (*enable_signaling)(struct dma_fence *fence);
	bool (*signaled)(struct dma_fence *fence);
	long (*wait)(struct dma_fence *fence, bool intr, long timeout);
	void (*release)(struct dma_fence *fence);
	void (*fence_value_str)(struct dma_fence *fence, char *str, int size);
	void (*timeline_value_str)(struct dma_fence *fence, char *str, int size);
};

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

struct __call_single_node {
	struct llist_node llist;
	union {
		unsigned int u_flags;
		atomic_t a_flags;
	};
	u16 src, dst;
};

struct irq_work {
	union {
		struct __call_single_node node;
		struct {
			struct llist_node llnode;
			atomic_t flags;
		};
	};
	void (*func)(struct irq_work *);
};

/* include/linux/dma-fence-array.h and dma-fence-chain.h */

struct dma_fence_array;

struct dma_fence_array_cb {
	struct dma_fence_cb cb;
	struct dma_fence_array *array;
};
struct dma_fence_array_cb keep_dma_fence_array_cb;

void dma_fence_array_cb_func(struct dma_fence *f, struct dma_fence_cb *cb)
{
}

void dma_fence_chain_cb(struct dma_fence *f, struct dma_fence_cb *cb)
{
}

struct dma_fence_array {
	struct dma_fence base;
	spinlock_t lock;
	unsigned num_fences;
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

/* include/linux/dma-resv.h */

typedef struct seqcount {
	unsigned int sequence;
} seqcount_t;

typedef struct seqcount_ww_mutex {
	seqcount_t seqcount;
} seqcount_ww_mutex_t;

struct dma_resv_list {
	struct rcu_head rcu;
	u32 shared_count, shared_max;
	struct dma_fence *shared[];
};

struct dma_resv {
	struct ww_mutex lock;
	seqcount_ww_mutex_t seq;
	struct dma_fence *fence_excl;
	struct dma_resv_list *fence;
};
struct dma_resv keep_dma_resv;

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
