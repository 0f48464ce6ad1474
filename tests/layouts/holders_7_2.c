// SPDX-License-Identifier: GPL-2.0
/* What holds fences and files in 7.2. */

#include "kernel.h"

struct dma_fence {
	union {
		spinlock_t *extern_lock;
		spinlock_t inline_lock;
	};
	const void *ops;
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

#include "holders.h"

struct drm_syncobj {
	struct kref refcount;
	struct dma_fence *fence;
	struct list_head cb_list;
	struct list_head ev_fd_list;
	spinlock_t lock;
	struct file *file;
};
struct drm_syncobj keep_drm_syncobj;

struct drm_prime_file_private {
	struct mutex lock;
	struct rb_root dmabufs;
	struct rb_root handles;
};

struct drm_file {
	struct xarray syncobj_xa;
	struct drm_prime_file_private prime;
};
struct drm_file keep_drm_file;

struct syncobj_eventfd_entry {
	struct list_head node;
	struct dma_fence *fence;
	struct dma_fence_cb fence_cb;
	struct drm_syncobj *syncobj;
	void *ev_fd_ctx;
	u64 point;
	u32 flags;
};
struct syncobj_eventfd_entry keep_syncobj_eventfd_entry;

static void syncobj_wait_fence_func(struct dma_fence *fence, struct dma_fence_cb *cb)
{
}
dma_fence_func_t keep_syncobj_wait_fence_func = syncobj_wait_fence_func;

static void syncobj_eventfd_entry_fence_func(struct dma_fence *fence, struct dma_fence_cb *cb)
{
}
dma_fence_func_t keep_syncobj_eventfd_entry_fence_func = syncobj_eventfd_entry_fence_func;

/* include/drm/gpu_scheduler.h, with the members that are walked in their order */

struct drm_gpu_scheduler;

struct drm_sched_fence {
	struct dma_fence scheduled;
	struct dma_fence finished;
	ktime_t deadline;
	struct dma_fence *parent;
	struct drm_gpu_scheduler *sched;
	spinlock_t lock;
	void *owner;
	u64 drm_client_id;
};
struct drm_sched_fence keep_drm_sched_fence;

struct drm_sched_rq {
	struct drm_gpu_scheduler *sched;
	spinlock_t lock;
	ktime_t rr_ts;
	struct list_head entities;
};
struct drm_sched_rq keep_drm_sched_rq;

struct drm_sched_entity {
	struct list_head list;
	spinlock_t lock;
	struct drm_sched_rq *rq;
	struct spsc_queue job_queue;
	struct dma_fence *dependency;
	struct dma_fence_cb cb;
	struct dma_fence *last_scheduled;
};
struct drm_sched_entity keep_drm_sched_entity;

struct drm_sched_job {
	ktime_t submit_ts;
	struct drm_gpu_scheduler *sched;
	struct drm_sched_fence *s_fence;
	struct drm_sched_entity *entity;
	u32 credits;
	unsigned int last_dependency;
	struct spsc_node queue_node;
	struct list_head list;
	union {
		struct dma_fence_cb finish_cb;
		struct work_struct work;
	};
	struct dma_fence_cb cb;
	struct xarray dependencies;
};
struct drm_sched_job keep_drm_sched_job;

struct drm_gpu_scheduler {
	const void *ops;
	u32 num_rqs;
	u32 num_user_rqs;
	struct drm_sched_rq **sched_rq;
	struct list_head pending_list;
	spinlock_t job_list_lock;
};
struct drm_gpu_scheduler keep_drm_gpu_scheduler;

/* include/linux/fs.h, fs/eventpoll.c */

typedef struct {
	atomic_long_t refcnt;
} file_ref_t;

struct file {
	spinlock_t f_lock;
	const struct file_operations *f_op;
	void *private_data;
	union {
		const struct path f_path;
		struct path __f_path;
	};
	struct hlist_head *f_ep;
	file_ref_t f_ref;
};
struct file keep_file;

struct epoll_key {
	struct file *file;
	int fd;
} __attribute__((packed));

struct epitem {
	struct rb_node rbn;
	struct list_head rdllink;
	struct epitem *ovflist_next;
	struct epoll_key ffd;
	void *pwqlist;
	struct eventpoll *ep;
	struct hlist_node fllink;
};
struct epitem keep_epitem;

struct eppoll_entry {
	struct eppoll_entry *next;
	struct epitem *base;
	wait_queue_entry_t wait;
	wait_queue_head_t *whead;
};
struct eppoll_entry keep_eppoll_entry;

/* include/linux/dma-buf.h */

struct iosys_map {
	void *vaddr;
	bool is_iomem;
};

struct dma_buf {
	size_t size;
	struct file *file;
	struct list_head attachments;
	const void *ops;
	unsigned int vmapping_counter;
	struct iosys_map vmap_ptr;
	const char *exp_name;
	const char *name;
	spinlock_t name_lock;
	void *owner;
	struct list_head list_node;
	void *priv;
	struct dma_resv *resv;
	wait_queue_head_t poll;
	struct dma_buf_poll_cb_t {
		struct dma_fence_cb cb;
		wait_queue_head_t *poll;
		unsigned int active;
	} cb_in, cb_out;
};
struct dma_buf keep_dma_buf;

struct dma_buf_attachment {
	struct dma_buf *dmabuf;
	struct device *dev;
	struct list_head node;
	bool peer2peer;
	const void *importer_ops;
	void *importer_priv;
	void *priv;
};
struct dma_buf_attachment keep_dma_buf_attachment;

/* include/drm/drm_gem.h, drivers/gpu/drm/drm_prime.c */

struct drm_gem_object {
	struct kref refcount;
	unsigned int handle_count;
	struct dma_buf *dma_buf;
	struct dma_buf_attachment *import_attach;
	struct dma_resv *resv;
};
struct drm_gem_object keep_drm_gem_object;

struct drm_prime_member {
	struct dma_buf *dma_buf;
	u32 handle;
	struct rb_node dmabuf_rb;
	struct rb_node handle_rb;
};
struct drm_prime_member keep_drm_prime_member;

/* include/net/af_unix.h, include/net/scm.h */

struct scm_fp_list {
	short count;
	short count_unix;
	short max;
	bool inflight;
	bool dead;
	struct list_head vertices;
	void *edges;
	void *user;
	struct file *fp[253];
};

struct unix_skb_parms {
	void *pid;
	u32 uid;
	u32 gid;
	struct scm_fp_list *fp;
	u32 secid;
	u32 consumed;
};
struct unix_skb_parms keep_unix_skb_parms;
