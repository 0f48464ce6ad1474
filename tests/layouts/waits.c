// SPDX-License-Identifier: GPL-2.0
/*
 * What tasks wait for: with FIRST_WAITER as in v7.2, where locks point to their first
 * waiter, else as in v5.10, where they have the head of a list.
 */

/* It has the older one. */
#define mutex mutex_of_kernel_h
#include "kernel.h"
#undef mutex

/* include/linux/mutex_types.h, kernel/locking/mutex.h */

struct mutex_waiter {
	struct list_head list;
	struct task_struct *task;
	struct ww_acquire_ctx *ww_ctx;
};
struct mutex_waiter keep_mutex_waiter;

struct mutex {
	atomic_long_t owner;
	raw_spinlock_t wait_lock;
	struct optimistic_spin_queue osq;
#ifdef FIRST_WAITER
	struct mutex_waiter *first_waiter;
#else
	struct list_head wait_list;
#endif
};
struct mutex keep_mutex;

/* include/linux/rwsem.h, kernel/locking/rwsem.c */

enum rwsem_waiter_type {
	RWSEM_WAITING_FOR_WRITE,
	RWSEM_WAITING_FOR_READ,
};

struct rwsem_waiter {
	struct list_head list;
	struct task_struct *task;
	enum rwsem_waiter_type type;
	unsigned long timeout;
};
struct rwsem_waiter keep_rwsem_waiter;

struct rw_semaphore {
	atomic_long_t count;
	atomic_long_t owner;
	struct optimistic_spin_queue osq;
	raw_spinlock_t wait_lock;
#ifdef FIRST_WAITER
	struct rwsem_waiter *first_waiter;
#else
	struct list_head wait_list;
#endif
};
struct rw_semaphore keep_rw_semaphore;

/* include/linux/swait.h, completion.h */

struct swait_queue_head {
	raw_spinlock_t lock;
	struct list_head task_list;
};

struct swait_queue {
	struct task_struct *task;
	struct list_head task_list;
};
struct swait_queue keep_swait_queue;

struct completion {
	unsigned int done;
	struct swait_queue_head wait;
};
struct completion keep_completion;

/* kernel/workqueue.c */

struct wq_barrier {
	struct work_struct work;
	struct completion done;
	struct task_struct *task;
};
struct wq_barrier keep_wq_barrier;

struct wq_flusher {
	struct list_head list;
	int flush_color;
	struct completion done;
};
struct wq_flusher keep_wq_flusher;

struct workqueue_struct {
	struct list_head list;
	struct wq_flusher *first_flusher;
	struct list_head flusher_queue;
	struct list_head flusher_overflow;
};
struct list_head workqueues = { &workqueues, &workqueues };
struct workqueue_struct keep_workqueue_struct;

/* include/linux/rcupdate_wait.h, kernel/rcu/update.c */

struct rcu_synchronize {
	struct rcu_head head;
	struct completion completion;
};
struct rcu_synchronize keep_rcu_synchronize;

void wakeme_after_rcu(struct rcu_head *head)
{
}

/* include/linux/percpu-rwsem.h, rcuwait.h */

struct rcuwait {
	struct task_struct *task;
};

struct percpu_rw_semaphore {
	unsigned int *read_count;
	struct rcuwait writer;
	atomic_t block;
};
struct percpu_rw_semaphore keep_percpu_rw_semaphore;

/* kernel/kthread.c */

struct kthread {
	unsigned long flags;
	struct completion parked;
	struct completion exited;
};
struct kthread keep_kthread;

/* include/linux/rtmutex.h, rwbase_rt.h of v5.15 */

struct rt_mutex_base {
	raw_spinlock_t wait_lock;
	void *waiters[2];
	struct task_struct *owner;
};

struct rwbase_rt {
	atomic_t readers;
	struct rt_mutex_base rtmutex;
};
struct rwbase_rt keep_rwbase_rt;

/* include/linux/dma-fence.h, and who waits for one by itself: drivers/gpu/drm/radeon */

struct dma_fence {
	spinlock_t *lock;
	const struct dma_fence_ops *ops;
	struct list_head cb_list;
};
struct dma_fence keep_dma_fence;

struct dma_fence_ops {
	bool use_64bit_seqno;
};
const struct dma_fence_ops radeon_fence_ops;
int no_fence_ops;

struct dma_fence_cb;
typedef void (*dma_fence_func_t)(struct dma_fence *fence, struct dma_fence_cb *cb);

struct dma_fence_cb {
	struct list_head node;
	dma_fence_func_t func;
};

struct default_wait_cb {
	struct dma_fence_cb base;
	struct task_struct *task;
};
struct default_wait_cb keep_default_wait_cb;

void dma_fence_default_wait_cb(struct dma_fence *fence, struct dma_fence_cb *cb)
{
}

void radeon_fence_wait_cb(struct dma_fence *fence, struct dma_fence_cb *cb)
{
}

/* include/linux/hrtimer.h, hrtimer_types.h */

struct hrtimer {
	s64 _softexpires;
	int (*function)(struct hrtimer *timer);
#ifdef FIRST_WAITER
	bool is_queued;
#else
	u8 state;
#endif
};

struct hrtimer_sleeper {
	struct hrtimer timer;
	struct task_struct *task;
};
struct hrtimer_sleeper keep_hrtimer_sleeper;

int hrtimer_wakeup(struct hrtimer *timer)
{
	return 0;
}
