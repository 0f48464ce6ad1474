// SPDX-License-Identifier: GPL-2.0
/* What holds fences and files in 5.10. */

#include "kernel.h"

struct dma_fence {
	spinlock_t *lock;
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

struct idr {
	struct xarray idr_rt;
	unsigned int idr_base;
	unsigned int idr_next;
};

struct drm_syncobj {
	struct kref refcount;
	struct dma_fence *fence;
	struct list_head cb_list;
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
	struct idr syncobj_idr;
	struct drm_prime_file_private prime;
};
struct drm_file keep_drm_file;

static void syncobj_wait_fence_func(struct dma_fence *fence, struct dma_fence_cb *cb)
{
}
dma_fence_func_t keep_syncobj_wait_fence_func = syncobj_wait_fence_func;

/* drivers/gpu/drm/scheduler, with the members that are walked in their order */

struct drm_gpu_scheduler;

struct drm_sched_fence {
	struct dma_fence scheduled;
	struct dma_fence finished;
	struct dma_fence *parent;
	struct drm_gpu_scheduler *sched;
	spinlock_t lock;
	void *owner;
};
struct drm_sched_fence keep_drm_sched_fence;

struct drm_sched_rq {
	spinlock_t lock;
	struct drm_gpu_scheduler *sched;
	struct list_head entities;
	struct drm_sched_entity *current_entity;
};

struct drm_sched_entity {
	struct list_head list;
	struct drm_sched_rq *rq;
	struct spsc_queue job_queue;
	struct dma_fence *dependency;
	struct dma_fence_cb cb;
	struct dma_fence *last_scheduled;
};
struct drm_sched_entity keep_drm_sched_entity;

struct drm_sched_job {
	struct spsc_node queue_node;
	struct drm_gpu_scheduler *sched;
	struct drm_sched_fence *s_fence;
	struct dma_fence_cb finish_cb;
	struct list_head node;
	u64 id;
	struct drm_sched_entity *entity;
	struct dma_fence_cb cb;
};
struct drm_sched_job keep_drm_sched_job;

struct drm_gpu_scheduler {
	const void *ops;
	struct drm_sched_rq sched_rq[4];
	struct list_head ring_mirror_list;
	spinlock_t job_list_lock;
};
struct drm_gpu_scheduler keep_drm_gpu_scheduler;

/* include/linux/fs.h, fs/eventpoll.c */

struct file {
	struct path f_path;
	const struct file_operations *f_op;
	atomic_long_t f_count;
	void *private_data;
	struct list_head f_ep_links;
};
struct file keep_file;

struct epoll_filefd {
	struct file *file;
	int fd;
} __attribute__((packed));

struct epitem {
	struct rb_node rbn;
	struct list_head rdllink;
	struct epitem *next;
	struct epoll_filefd ffd;
	int nwait;
	struct list_head pwqlist;
	struct eventpoll *ep;
	struct list_head fllink;
};
struct epitem keep_epitem;

struct eppoll_entry {
	struct list_head llink;
	struct epitem *base;
	wait_queue_entry_t wait;
	wait_queue_head_t *whead;
};
struct eppoll_entry keep_eppoll_entry;

/* include/linux/dma-buf.h */

struct dma_buf {
	size_t size;
	struct file *file;
	struct list_head attachments;
	const void *ops;
	struct mutex lock;
	unsigned int vmapping_counter;
	void *vmap_ptr;
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
	} cb_excl, cb_shared;
};
struct dma_buf keep_dma_buf;

struct dma_buf_attachment {
	struct dma_buf *dmabuf;
	struct device *dev;
	struct list_head node;
	void *sgt;
	int dir;
	bool peer2peer;
	const void *importer_ops;
	void *importer_priv;
	void *priv;
};
struct dma_buf_attachment keep_dma_buf_attachment;

/* drivers/dma-buf/heaps/heap-helpers.h */

struct heap_helper_buffer {
	void *heap;
	struct dma_buf *dmabuf;
	size_t size;
};
struct heap_helper_buffer keep_heap_helper_buffer;

struct dma_buf_ops {
	bool cache_sgt_mapping;
};
const struct dma_buf_ops heap_helper_ops;

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
	short max;
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
