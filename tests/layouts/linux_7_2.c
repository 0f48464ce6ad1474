// SPDX-License-Identifier: GPL-2.0
/*
 * v7.2, with SLUB_DEBUG, NUMA and memory cgroups. Compiled with
 * -DCONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP, with -DCONFIG_SLAB_FREELIST_HARDENED
 * or without them.
 */

#include "kernel.h"

/* include/linux/dma-fence.h */

struct dma_fence;

struct dma_fence_ops {
	const char *(*get_driver_name)(struct dma_fence *fence);
	const char *(*get_timeline_name)(struct dma_fence *fence);
	bool (*enable_signaling)(struct dma_fence *fence);
	bool (*signaled)(struct dma_fence *fence);
	long (*wait)(struct dma_fence *fence, bool intr, long timeout);
	void (*release)(struct dma_fence *fence);
	void (*set_deadline)(struct dma_fence *fence, ktime_t deadline);
};

struct dma_fence {
	union {
		spinlock_t *extern_lock;
		spinlock_t inline_lock;
	};
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
	DMA_FENCE_FLAG_INITIALIZED_BIT,
	DMA_FENCE_FLAG_INLINE_LOCK_BIT,
	DMA_FENCE_FLAG_SEQNO64_BIT,
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

struct rcuwait {
	struct task_struct *task;
};

struct irq_work {
	struct __call_single_node node;
	void (*func)(struct irq_work *);
	struct rcuwait irqwait;
};

/* include/linux/dma-fence-array.h and dma-fence-chain.h */

struct dma_fence_array;

struct dma_fence_array_cb {
	struct dma_fence_cb cb;
	struct dma_fence_array *array;
};
struct dma_fence_array_cb keep_dma_fence_array_cb;

struct dma_fence_array {
	struct dma_fence base;
	unsigned num_fences;
	atomic_t num_pending;
	struct dma_fence **fences;
	struct irq_work work;
	struct dma_fence_array_cb callbacks[];
};
struct dma_fence_array keep_dma_fence_array;

struct dma_fence_chain {
	struct dma_fence base;
	struct dma_fence *prev;
	u64 prev_seqno;
	struct dma_fence *fence;
	union {
		struct dma_fence_cb cb;
		struct irq_work work;
	};
};
struct dma_fence_chain keep_dma_fence_chain;

/* include/linux/dma-resv.h and drivers/dma-buf/dma-resv.c */

enum dma_resv_usage {
	DMA_RESV_USAGE_KERNEL,
	DMA_RESV_USAGE_WRITE,
	DMA_RESV_USAGE_READ,
	DMA_RESV_USAGE_BOOKKEEP,
};
enum dma_resv_usage keep_dma_resv_usage;

struct dma_resv_list {
	struct rcu_head rcu;
	u32 num_fences, max_fences;
	struct dma_fence *table[];
};

struct dma_resv {
	struct ww_mutex lock;
	struct dma_resv_list *fences;
};
struct dma_resv keep_dma_resv;

struct file;

/* include/linux/fs.h: only what is asked of it; and include/linux/sync_file.h */

struct file_operations {
	int (*release)(void *inode, struct file *file);
};

typedef struct {
	atomic64_t refcnt;
} file_ref_t;

struct file {
	spinlock_t f_lock;
	unsigned int f_mode;
	const struct file_operations *f_op;
	void *private_data;
	file_ref_t f_ref;
};
struct file keep_file;

struct sync_file {
	struct file *file;
	char user_name[32];
	struct list_head sync_file_list;
	wait_queue_head_t wq;
	unsigned long flags;
	struct dma_fence *fence;
	struct dma_fence_cb cb;
};
struct sync_file keep_sync_file;

struct kmem_cache;

/* include/drm/gpu_scheduler.h */

struct drm_sched_fence {
	struct dma_fence scheduled;
	struct dma_fence finished;
	ktime_t deadline;
	struct dma_fence *parent;
	struct drm_gpu_scheduler *sched;
	spinlock_t lock;
	void *owner;
	uint64_t drm_client_id;
};
struct drm_sched_fence keep_drm_sched_fence;

/* drivers/gpu/drm/virtio/virtgpu_drv.h */

struct virtio_gpu_fence_driver {
	atomic64_t last_fence_id;
	uint64_t current_fence_id;
	uint64_t context;
	struct list_head fences;
	spinlock_t lock;
};
struct virtio_gpu_fence_driver keep_virtio_gpu_fence_driver;

struct virtio_gpu_fence_event;

struct virtio_gpu_fence {
	struct dma_fence f;
	uint32_t ring_idx;
	uint64_t fence_id;
	bool emit_fence_info;
	struct virtio_gpu_fence_event *e;
	struct virtio_gpu_fence_driver *drv;
	struct list_head node;
};
struct virtio_gpu_fence keep_virtio_gpu_fence;

/* include/linux/xarray.h, and of DRM only what is on the way to the fences */

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
	struct list_head private_list;
	void *slots[64];
	unsigned long tags[3];
};
struct xa_node keep_xa_node;

struct idr {
	struct xarray idr_rt;
	unsigned int idr_base;
	unsigned int idr_next;
};

struct drm_driver {
	char *name;
	const struct file_operations *fops;
};

struct drm_mode_config {
	struct list_head fb_list;
	struct list_head plane_list;
};

struct drm_client_buffer {
	void *client;
	struct drm_gem_object *gem;
};

struct drm_fb_helper {
	struct drm_client_buffer *buffer;
};
struct drm_fb_helper keep_drm_fb_helper;

struct drm_vma_offset_manager {
	atomic_t vm_lock;
	unsigned long vm_addr_space_mm[32];
};
struct drm_vma_offset_manager keep_drm_vma_offset_manager;

struct drm_device {
	struct drm_driver *driver;
	void *dev_private;
	struct list_head filelist;
	struct list_head filelist_internal;
	struct drm_mode_config mode_config;
	struct idr object_name_idr;
	struct drm_vma_offset_manager *vma_offset_manager;
	struct drm_fb_helper *fb_helper;
};

struct drm_minor {
	struct drm_device *dev;
};
struct drm_minor keep_drm_minor;

struct drm_file {
	struct list_head lhead;
	struct idr object_idr;
	struct xarray syncobj_xa;
};
struct drm_file keep_drm_file;

struct drm_syncobj {
	struct kref refcount;
	struct dma_fence *fence;
	struct list_head cb_list;
	struct list_head ev_fd_list;
	spinlock_t lock;
	struct file *file;
};
struct drm_syncobj keep_drm_syncobj;

struct drm_plane_state {
	struct drm_plane *plane;
	struct dma_fence *fence;
};

struct drm_plane {
	struct list_head head;
	struct drm_plane_state *state;
};
struct drm_plane keep_drm_plane;

struct drm_gem_object;

struct drm_gem_object_funcs {
	void (*free)(struct drm_gem_object *obj);
};

struct drm_vma_offset_node {
	atomic_t vm_lock;
	/* Of this one only the size is known to be right. */
	char vm_node[160] __attribute__((aligned(8)));
	struct rb_root vm_files;
	bool readonly : 1;
};

struct drm_vma_offset_file {
	struct rb_node vm_rb;
	void *vm_tag;
	unsigned long vm_count;
};
struct drm_vma_offset_file keep_drm_vma_offset_file;

struct drm_gem_object {
	struct kref refcount;
	unsigned int handle_count;
	struct drm_device *dev;
	struct file *filp;
	struct drm_vma_offset_node vma_node;
	size_t size;
	int name;
	struct dma_buf *dma_buf;
	struct dma_buf_attachment *import_attach;
	struct dma_resv *resv;
	struct dma_resv _resv;
	const struct drm_gem_object_funcs *funcs;
};
struct drm_gem_object keep_drm_gem_object;

static void gem_free(struct drm_gem_object *obj)
{
}

const struct drm_gem_object_funcs virtio_gpu_shmem_funcs = {
	.free = gem_free,
};

struct drm_mode_object {
	uint32_t id;
	uint32_t type;
	void *properties;
	struct kref refcount;
};

struct drm_framebuffer;

struct drm_framebuffer_funcs {
	void (*destroy)(struct drm_framebuffer *fb);
};

/* drivers/gpu/drm/drm_gem_framebuffer_helper.c */

void drm_gem_fb_destroy(struct drm_framebuffer *fb)
{
}

const struct drm_framebuffer_funcs virtio_gpu_fb_funcs = {
	.destroy = drm_gem_fb_destroy,
};

/* drivers/gpu/drm/i915/display/intel_fb.c */

static void intel_user_framebuffer_destroy(struct drm_framebuffer *fb)
{
}

const struct drm_framebuffer_funcs intel_fb_funcs = {
	.destroy = intel_user_framebuffer_destroy,
};

struct drm_framebuffer {
	struct drm_device *dev;
	struct list_head head;
	struct drm_mode_object base;
	unsigned int internal_flags;
	const struct drm_framebuffer_funcs *funcs;
	struct drm_gem_object *obj[4];
};
struct drm_framebuffer keep_drm_framebuffer;

struct virtio_gpu_framebuffer {
	struct drm_framebuffer base;
};
struct virtio_gpu_framebuffer keep_virtio_gpu_framebuffer;

/* include/drm/drm_gem_shmem_helper.h */

struct drm_gem_shmem_object {
	struct drm_gem_object base;
	struct page **pages;
	refcount_t pages_use_count;
	refcount_t pages_pin_count;
};

struct virtio_gpu_object {
	struct drm_gem_shmem_object base;
	struct sg_table *sgt;
	uint32_t hw_res_handle;
};
struct virtio_gpu_object keep_virtio_gpu_object;

struct virtio_gpu_object_array {
	char ticket[24] __attribute__((aligned(8)));
	struct list_head next;
	u32 nents, total;
	struct drm_gem_object *objs[];
};
struct virtio_gpu_object_array keep_virtio_gpu_object_array;

struct virtio_gpu_vbuffer {
	char *buf;
	int size;
	void *data_buf;
	uint32_t data_size;
	char *resp_buf;
	int resp_size;
	void *resp_cb;
	void *resp_cb_data;
	struct virtio_gpu_object_array *objs;
	struct list_head list;
	uint32_t seqno;
	bool sync_for_cpu;
};
struct virtio_gpu_vbuffer keep_virtio_gpu_vbuffer;

struct virtio_gpu_queue {
	struct virtqueue *vq;
};

/* include/linux/mm_types.h and mm.h, of which nothing is mapped here */

struct vm_area_struct;

struct vm_operations_struct {
	void (*open)(struct vm_area_struct *area);
	void (*close)(struct vm_area_struct *area);
};

struct vm_area_struct {
	unsigned long vm_start;
	struct mm_struct *vm_mm;
	const struct vm_operations_struct *vm_ops;
	struct file *vm_file;
	void *vm_private_data;
};
struct vm_area_struct keep_vm_area_struct;
struct kmem_cache *vm_area_cachep;

struct virtio_gpu_plane_state {
	struct drm_plane_state base;
	struct virtio_gpu_fence *fence;
};
struct virtio_gpu_plane_state keep_virtio_gpu_plane_state;

struct virtio_gpu_device {
	struct drm_device *ddev;
	struct virtio_gpu_queue ctrlq;
	struct virtio_gpu_queue cursorq;
	struct kmem_cache *vbufs;
	struct virtio_gpu_fence_driver fence_drv;
	struct list_head obj_free_list;
};
struct virtio_gpu_device keep_virtio_gpu_device;

struct xarray drm_minors_xa;
struct xarray accel_minors_xa;

/* Of tasks and vmalloc areas only what the search for pointers asks for. */

enum pid_type {
	PIDTYPE_PID,
	PIDTYPE_TGID,
	PIDTYPE_PGID,
	PIDTYPE_SID,
	PIDTYPE_MAX,
};
enum pid_type keep_pid_type;

struct pid {
	atomic_t count;
	unsigned int level;
	struct hlist_head tasks[PIDTYPE_MAX];
};
struct pid keep_pid;

struct pid_namespace {
	struct idr idr;
};
struct pid_namespace init_pid_ns;

struct vmap_node;
struct vmap_node *vmap_nodes;
unsigned int nr_vmap_nodes;

/* include/linux/mm_types.h */

typedef struct {
	unsigned long f;
} memdesc_flags_t;

struct page {
	memdesc_flags_t flags;
	union {
		struct { /* Page cache and anonymous pages */
			union {
				struct list_head lru;
				struct list_head buddy_list;
				struct list_head pcp_list;
				struct llist_node pcp_llist;
			};
			struct address_space *mapping;
			union {
				unsigned long __folio_index;
				unsigned long share;
			};
			unsigned long private;
		};
		struct { /* Tail pages of compound page */
			unsigned long compound_info;
		};
		struct rcu_head rcu_head;
	};
	union {
		unsigned int page_type;
		atomic_t _mapcount;
	};
	atomic_t _refcount;
	unsigned long memcg_data;
} __attribute__((aligned(16)));
struct page keep_page;

enum pageflags {
	PG_locked,
	PG_writeback,
	PG_referenced,
	PG_uptodate,
	PG_dirty,
	PG_lru,
	PG_head,
	PG_waiters,
	PG_active,
	PG_workingset,
	PG_owner_priv_1,
	PG_owner_2,
	PG_arch_1,
	PG_reserved,
	PG_private,
	PG_private_2,
	PG_reclaim,
	PG_swapbacked,
	PG_unevictable,
	PG_dropbehind,
	PG_mlocked,
	__NR_PAGEFLAGS,
};
enum pageflags keep_pageflags;

enum pagetype {
	PGTY_buddy = 0xf0,
	PGTY_offline = 0xf1,
	PGTY_table = 0xf2,
	PGTY_guard = 0xf3,
	PGTY_hugetlb = 0xf4,
	PGTY_slab = 0xf5,
	PGTY_zsmalloc = 0xf6,
	PGTY_unaccepted = 0xf7,
	PGTY_large_kmalloc = 0xf8,
	PGTY_mapcount_underflow = 0xff
};
enum pagetype keep_pagetype;

/* include/linux/mmzone.h: only what is asked of it */

#define NR_PAGE_ORDERS 11

struct free_area {
	unsigned long nr_free;
};

struct zone {
	struct free_area free_area[NR_PAGE_ORDERS];
#ifdef CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP
	struct page *vmemmap_tails[4];
#endif
};
struct zone keep_zone;

enum {
	SECTION_MARKED_PRESENT_BIT,
	SECTION_HAS_MEM_MAP_BIT,
	SECTION_IS_ONLINE_BIT,
	SECTION_IS_EARLY_BIT,
	SECTION_MAP_LAST_BIT,
} keep_section_flags;

/* mm/slab.h and mm/slub.c */

struct freelist_counters {
	union {
		struct {
			void *freelist;
			union {
				unsigned long counters;
				struct {
					unsigned inuse : 16;
					unsigned objects : 15;
					unsigned frozen : 1;
					unsigned int stride;
				};
			};
		};
		unsigned __int128 freelist_counters;
	};
};

struct slab {
	memdesc_flags_t flags;
	struct kmem_cache *slab_cache;
	union {
		struct {
			struct list_head slab_list;
			struct freelist_counters;
		};
		struct rcu_head rcu_head;
	};
	unsigned int __page_type;
	atomic_t __page_refcount;
	unsigned long obj_exts;
};
struct slab keep_slab;

struct kmem_cache_order_objects {
	unsigned int x;
};

struct node_barn {
	spinlock_t lock;
	struct list_head sheaves_full;
	struct list_head sheaves_empty;
	unsigned int nr_full;
	unsigned int nr_empty;
};

struct slab_sheaf {
	union {
		struct rcu_head rcu_head;
		struct list_head barn_list;
		struct {
			unsigned int capacity;
			bool pfmemalloc;
		};
	};
	struct kmem_cache *cache;
	unsigned int size;
	int node;
	void *objects[];
};

typedef struct {
	u8 acquired;
} local_trylock_t;

struct slub_percpu_sheaves {
	local_trylock_t lock;
	struct slab_sheaf *main;
	struct slab_sheaf *spare;
	struct slab_sheaf *rcu_free;
};

struct kmem_cache_node {
	spinlock_t list_lock;
	unsigned long nr_partial;
	struct list_head partial;
	atomic_long_t nr_slabs;
	atomic_long_t total_objects;
	struct list_head full;
};

struct kmem_cache_per_node_ptrs {
	struct node_barn *barn;
	struct kmem_cache_node *node;
};

struct reciprocal_value {
	u32 m;
	u8 sh1, sh2;
};

struct kmem_cache {
	struct slub_percpu_sheaves *cpu_sheaves;
	unsigned int flags;
	unsigned long min_partial;
	unsigned int size;
	unsigned int object_size;
	struct reciprocal_value reciprocal_size;
	unsigned int offset;
	unsigned int sheaf_capacity;
	struct kmem_cache_order_objects oo;
	struct kmem_cache_order_objects min;
	gfp_t allocflags;
	int refcount;
	void (*ctor)(void *object);
	unsigned int inuse;
	unsigned int align;
	unsigned int red_left_pad;
	const char *name;
	struct list_head list;
#ifdef CONFIG_SLAB_FREELIST_HARDENED
	unsigned long random;
#endif
	unsigned int remote_node_defrag_ratio;
	struct kmem_cache_per_node_ptrs per_node[MAX_NUMNODES];
};
struct kmem_cache keep_kmem_cache;
struct list_head slab_caches;

/* Operations tables: a walker knows a fence by the table that it points to. */

static const char *get_name(struct dma_fence *fence)
{
	return "";
}

static void release(struct dma_fence *fence)
{
}

static bool signaled(struct dma_fence *fence)
{
	return 0;
}

const struct dma_fence_ops virtio_gpu_fence_ops = {
	.get_driver_name = get_name,
	.get_timeline_name = get_name,
	.signaled = signaled,
};

const struct dma_fence_ops dma_fence_stub_ops = {
	.get_driver_name = get_name,
	.get_timeline_name = get_name,
};
struct dma_fence dma_fence_stub;

const struct dma_fence_ops dma_fence_array_ops = {
	.get_driver_name = get_name,
	.get_timeline_name = get_name,
	.release = release,
};

const struct dma_fence_ops dma_fence_chain_ops = {
	.get_driver_name = get_name,
	.get_timeline_name = get_name,
	.release = release,
};

const struct dma_fence_ops drm_sched_fence_ops_scheduled = {
	.get_driver_name = get_name,
	.get_timeline_name = get_name,
	.release = release,
};

const struct dma_fence_ops drm_sched_fence_ops_finished = {
	.get_driver_name = get_name,
	.get_timeline_name = get_name,
	.release = release,
};

static int file_release(void *inode, struct file *file)
{
	return 0;
}

const struct file_operations sync_file_fops = {
	.release = file_release,
};

const struct file_operations drm_syncobj_file_fops = {
	.release = file_release,
};
