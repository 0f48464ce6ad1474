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

struct dentry {
	struct dentry *d_parent;
	void *d_fsdata;
};
struct dentry keep_dentry;

struct path {
	void *mnt;
	struct dentry *dentry;
};

struct eventpoll;
struct epitem;

struct wait_queue_entry {
	unsigned int flags;
	void *private;
	int (*func)(struct wait_queue_entry *wait, unsigned int mode, int flags, void *key);
	struct list_head entry;
};
typedef struct wait_queue_entry wait_queue_entry_t;

/* fs/eventpoll.c */
static int ep_poll_callback(struct wait_queue_entry *wait, unsigned int mode, int flags, void *key)
{
	return 0;
}
void *keep_ep_poll_callback = ep_poll_callback;

const struct file_operations {
	void *owner;
} dma_buf_fops;

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
	unsigned long *close_on_exec;
	unsigned long *open_fds;
	unsigned long *full_fds_bits;
	struct rcu_head rcu;
};

struct files_struct {
	atomic_t count;
	bool resize_in_progress;
	wait_queue_head_t resize_wait;
	struct fdtable *fdt;
	struct fdtable fdtab;
	spinlock_t file_lock;
	unsigned int next_fd;
	unsigned long close_on_exec_init[1];
	unsigned long open_fds_init[1];
	unsigned long full_fds_bits_init[1];
	struct file *fd_array[64];
};
struct files_struct keep_files_struct;

/* What a reservation object holds is not tested here. */
struct dma_resv;

/* include/linux/skbuff.h, include/net/af_unix.h, include/net/scm.h */

struct sk_buff {
	struct sk_buff *next;
	struct sk_buff *prev;
	char cb[48] __attribute__((aligned(8)));
};

struct sk_buff_head {
	struct sk_buff *next;
	struct sk_buff *prev;
	u32 qlen;
	spinlock_t lock;
};

struct sock {
	struct {
		void *skc_prot;
	} __sk_common;
	struct sk_buff_head sk_receive_queue;
};

struct unix_sock {
	struct sock sk;
};
struct unix_sock keep_unix_sock;
