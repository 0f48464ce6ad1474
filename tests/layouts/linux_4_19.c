// SPDX-License-Identifier: GPL-2.0
/*
 * v4.19, with SLUB, SLUB_DEBUG and memory cgroups, and without hardened or
 * randomised freelists.
 */

/* It has less of these. */
#define task_struct task_struct_of_kernel_h
#define thread_struct thread_struct_of_kernel_h
#define rq rq_of_kernel_h
#define runqueues runqueues_of_kernel_h
#include "kernel.h"
#undef task_struct
#undef thread_struct
#undef rq
#undef runqueues

#define TRACK_ADDRS_COUNT 16
#define WORK_NR_COLORS 15

/* include/linux/dma-fence.h */

struct dma_fence;

struct dma_fence_ops {
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
	struct kref refcount;
	const struct dma_fence_ops *ops;
	struct rcu_head rcu;
	struct list_head cb_list;
	spinlock_t *lock;
	u64 context;
	unsigned int seqno;
	unsigned long flags;
	ktime_t timestamp;
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

struct irq_work {
	unsigned long flags;
	struct llist_node llnode;
	void (*func)(struct irq_work *work);
};

/* include/linux/dma-fence-array.h */

struct dma_fence_array;

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

/* include/linux/reservation.h */

struct reservation_object_list {
	struct rcu_head rcu;
	u32 shared_count, shared_max;
	struct dma_fence *shared[];
};

typedef struct seqcount {
	unsigned int sequence;
} seqcount_t;

struct reservation_object {
	struct ww_mutex lock;
	seqcount_t seq;
	struct dma_fence *fence_excl;
	struct reservation_object_list *fence;
	struct reservation_object_list *staged;
};
struct reservation_object keep_reservation_object;

/* include/drm/gpu_scheduler.h */

struct drm_gpu_scheduler;

struct drm_sched_fence {
	struct dma_fence scheduled;
	struct dma_fence finished;
	struct dma_fence_cb cb;
	struct dma_fence *parent;
	struct drm_gpu_scheduler *sched;
	spinlock_t lock;
	void *owner;
};
struct drm_sched_fence keep_drm_sched_fence;

/* include/linux/sync_file.h, with CONFIG_DEBUG_FS */

struct file;

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

/* include/drm/drm_syncobj.h */

struct drm_syncobj {
	struct kref refcount;
	struct dma_fence *fence;
	struct list_head cb_list;
	spinlock_t lock;
	struct file *file;
};
struct drm_syncobj keep_drm_syncobj;

/* include/linux/dma-buf.h */

struct dma_buf;

struct dma_buf_poll_cb_t {
	struct dma_fence_cb cb;
	wait_queue_head_t *poll;
	u32 active;
};

struct dma_buf {
	size_t size;
	struct file *file;
	struct list_head attachments;
	const struct dma_buf_ops *ops;
	struct mutex lock;
	unsigned int vmapping_counter;
	void *vmap_ptr;
	const char *exp_name;
	struct module *owner;
	struct list_head list_node;
	void *priv;
	struct reservation_object *resv;
	wait_queue_head_t poll;
	struct dma_buf_poll_cb_t cb_excl, cb_shared;
};
struct dma_buf keep_dma_buf;

struct dma_buf_attachment {
	struct dma_buf *dmabuf;
	struct device *dev;
	struct list_head node;
	void *priv;
};
struct dma_buf_attachment keep_dma_buf_attachment;

/* include/drm/drm_gem.h */

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
};
struct drm_gem_object keep_drm_gem_object;

/* drivers/gpu/drm/virtio/virtgpu_drv.h */

struct virtio_gpu_fence_driver {
	atomic64_t last_seq;
	uint64_t sync_seq;
	uint64_t context;
	struct list_head fences;
	spinlock_t lock;
};
struct virtio_gpu_fence_driver keep_virtio_gpu_fence_driver;

struct virtio_gpu_fence {
	struct dma_fence f;
	struct virtio_gpu_fence_driver *drv;
	struct list_head node;
};
struct virtio_gpu_fence keep_virtio_gpu_fence;

struct virtio_gpu_vbuffer {
	char *buf;
	int size;
	void *data_buf;
	uint32_t data_size;
	char *resp_buf;
	int resp_size;
	void (*resp_cb)(void *vgdev, struct virtio_gpu_vbuffer *vbuf);
	struct list_head list;
};
struct virtio_gpu_vbuffer keep_virtio_gpu_vbuffer;

/* include/drm/ttm/ttm_bo_api.h; of these members' own only the sizes are known to be right */

struct ttm_mem_reg {
	char size[96] __attribute__((aligned(8)));
};

struct ttm_buffer_object {
	struct ttm_bo_device *bdev;
	int type;
	void (*destroy)(struct ttm_buffer_object *);
	unsigned long num_pages;
	size_t acc_size;
	struct kref kref;
	struct kref list_kref;
	struct ttm_mem_reg mem;
	struct file *persistent_swap_storage;
	struct ttm_tt *ttm;
	bool evicted;
	atomic_t cpu_writers;
	struct list_head lru;
	struct list_head ddestroy;
	struct list_head swap;
	struct list_head io_reserve_lru;
	struct dma_fence *moving;
	char vma_node[184] __attribute__((aligned(8)));
	unsigned priority;
	uint64_t offset;
	struct sg_table *sg;
	struct reservation_object *resv;
	struct reservation_object ttm_resv;
	struct mutex wu_mutex;
};

struct ttm_place {
	unsigned fpfn;
	unsigned lpfn;
	uint32_t flags;
};

struct ttm_placement {
	unsigned num_placement;
	const struct ttm_place *placement;
	unsigned num_busy_placement;
	const struct ttm_place *busy_placement;
};

struct ttm_bo_kmap_obj {
	void *virtual;
	struct page *page;
	int bo_kmap_type;
	struct ttm_buffer_object *bo;
};

struct virtio_gpu_object {
	struct drm_gem_object gem_base;
	uint32_t hw_res_handle;
	struct sg_table *pages;
	uint32_t mapped;
	void *vmap;
	bool dumb;
	struct ttm_place placement_code;
	struct ttm_placement placement;
	struct ttm_buffer_object tbo;
	struct ttm_bo_kmap_obj kmap;
	bool created;
};
struct virtio_gpu_object keep_virtio_gpu_object;

/* Of IDRs and DRM only what is on the way to the fences. */

struct radix_tree_node {
	unsigned char shift;
	unsigned char offset;
	unsigned char count;
	unsigned char exceptional;
	struct radix_tree_node *parent;
	struct radix_tree_root *root;
	struct list_head private_list;
	void *slots[64];
	unsigned long tags[3];
};
struct radix_tree_node keep_radix_tree_node;

struct radix_tree_root {
	spinlock_t xa_lock;
	gfp_t gfp_mask;
	struct radix_tree_node *rnode;
};

struct idr {
	struct radix_tree_root idr_rt;
	unsigned int idr_base;
	unsigned int idr_next;
};

struct file_operations;

struct drm_driver {
	char *name;
	const struct file_operations *fops;
};

struct drm_mode_config {
	struct list_head fb_list;
	struct list_head plane_list;
};

struct drm_fb_helper {
	struct drm_device *dev;
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
	int index;
	int type;
	struct device *kdev;
	struct drm_device *dev;
};
struct drm_minor keep_drm_minor;

struct drm_mode_object {
	uint32_t id;
	uint32_t type;
	struct drm_object_properties *properties;
	struct kref refcount;
	void (*free_cb)(struct kref *kref);
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
	char comm[16];
	const struct drm_format_info *format;
	const struct drm_framebuffer_funcs *funcs;
	unsigned int pitches[4];
	unsigned int offsets[4];
	uint64_t modifier;
	unsigned int width, height;
	int flags;
	int hot_x, hot_y;
	struct list_head filp_head;
	struct drm_gem_object *obj[4];
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

struct drm_plane_state {
	struct dma_fence *fence;
};

struct drm_plane {
	struct list_head head;
	struct drm_plane_state *state;
};
struct drm_plane keep_drm_plane;

struct drm_prime_file_private {
	struct mutex lock;
	struct rb_root dmabufs;
	struct rb_root handles;
};

typedef unsigned int drm_magic_t;

struct drm_file {
	unsigned authenticated : 1;
	unsigned stereo_allowed : 1;
	unsigned universal_planes : 1;
	unsigned atomic : 1;
	unsigned aspect_ratio_allowed : 1;
	unsigned writeback_connectors : 1;
	unsigned is_master : 1;
	struct drm_master *master;
	struct pid *pid;
	drm_magic_t magic;
	struct list_head lhead;
	struct drm_minor *minor;
	struct idr object_idr;
	spinlock_t table_lock;
	struct idr syncobj_idr;
	spinlock_t syncobj_table_lock;
	struct file *filp;
	void *driver_priv;
	struct list_head fbs;
	struct mutex fbs_lock;
	struct list_head blobs;
	wait_queue_head_t event_wait;
	struct list_head pending_event_list;
	struct list_head event_list;
	int event_space;
	struct mutex event_read_lock;
	struct drm_prime_file_private prime;
	unsigned long lock_count;
};
struct drm_file keep_drm_file;

struct virtio_gpu_framebuffer {
	struct drm_framebuffer base;
	int x1, y1, x2, y2;
	spinlock_t dirty_lock;
	uint32_t hw_res_handle;
	struct virtio_gpu_fence *fence;
};
struct virtio_gpu_framebuffer keep_virtio_gpu_framebuffer;

struct virtio_gpu_fpriv {
	uint32_t ctx_id;
};
struct virtio_gpu_fpriv keep_virtio_gpu_fpriv;

/* include/drm/ttm/ttm_bo_driver.h; of bdev's members only their order is known to be right */

#define TTM_NUM_MEM_TYPES 8
#define TTM_MAX_BO_PRIORITY 4

struct ttm_mem_type_manager {
	struct ttm_bo_device *bdev;
	struct list_head lru[TTM_MAX_BO_PRIORITY];
};

struct ttm_bo_global {
	char kobj[64];
	struct ttm_mem_global *mem_glob;
	struct page *dummy_read_page;
	struct mutex device_list_mutex;
	spinlock_t lru_lock;
	struct list_head device_list;
	struct list_head swap_lru[TTM_MAX_BO_PRIORITY];
	atomic_t bo_count;
};
struct ttm_bo_global keep_ttm_bo_global;

struct ttm_bo_device {
	struct list_head device_list;
	struct ttm_bo_global *glob;
	struct ttm_mem_type_manager man[TTM_NUM_MEM_TYPES];
	struct drm_vma_offset_manager vma_manager;
	struct list_head ddestroy;
};

/* Of its members only the size is known to be right. */
struct virtio_gpu_mman {
	struct ttm_bo_device bdev;
	char room_mman[1960 - sizeof(struct ttm_bo_device)];
};

struct ida {
	struct radix_tree_root ida_rt;
};

/* drivers/virtio/virtio_ring.c */

struct virtqueue {
	struct list_head list;
	void (*callback)(struct virtqueue *vq);
	const char *name;
	struct virtio_device *vdev;
	unsigned int index;
	unsigned int num_free;
	void *priv;
};

struct vring_desc {
	u64 addr;
	u32 len;
	u16 flags;
	u16 next;
};

struct vring_avail {
	u16 flags;
	u16 idx;
	u16 ring[];
};

struct vring_used_elem {
	u32 id;
	u32 len;
};

struct vring_used {
	u16 flags;
	u16 idx;
	struct vring_used_elem ring[];
};

struct vring {
	unsigned int num;
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
};

struct vring_desc_state {
	void *data;
	struct vring_desc *indir_desc;
};

typedef u64 dma_addr_t;

struct vring_virtqueue {
	struct virtqueue vq;
	struct vring vring;
	bool weak_barriers;
	bool broken;
	bool indirect;
	bool event;
	unsigned int free_head;
	unsigned int num_added;
	u16 last_used_idx;
	u16 avail_flags_shadow;
	u16 avail_idx_shadow;
	bool (*notify)(struct virtqueue *vq);
	bool we_own_ring;
	size_t queue_size_in_bytes;
	dma_addr_t queue_dma_addr;
	struct vring_desc_state desc_state[];
};
struct vring_virtqueue keep_vring_virtqueue;

struct virtio_gpu_queue {
	struct virtqueue *vq;
	spinlock_t qlock;
	wait_queue_head_t ack_queue;
	struct work_struct dequeue_work;
};

struct virtio_gpu_device {
	struct device *dev;
	struct drm_device *ddev;
	struct virtio_device *vdev;
	struct virtio_gpu_mman mman;
	/* Of its members only the size is known to be right. */
	char outputs[40192] __attribute__((aligned(8)));
	uint32_t num_scanouts;
	struct virtio_gpu_queue ctrlq;
	struct virtio_gpu_queue cursorq;
	struct kmem_cache *vbufs;
	bool vqs_ready;
	struct ida resource_ida;
	wait_queue_head_t resp_wq;
	spinlock_t display_info_lock;
	bool display_info_pending;
	struct virtio_gpu_fence_driver fence_drv;
	struct ida ctx_id_ida;
	bool has_virgl_3d;
	bool has_edid;
	struct work_struct config_changed_work;
	struct virtio_gpu_drv_capset *capsets;
	uint32_t num_capsets;
	struct list_head cap_cache;
};
struct virtio_gpu_device keep_virtio_gpu_device;

/* include/linux/swait.h */

struct swait_queue_head {
	raw_spinlock_t lock;
	struct list_head task_list;
};
struct swait_queue_head keep_swait_queue_head;

struct idr drm_minors_idr;

/* include/linux/mm_types.h */

struct kmem_cache;
struct mem_cgroup;

#ifdef STRUCT_PAGE_4_15
struct page {
	unsigned long flags;
	union {
		struct address_space *mapping;
		void *s_mem;
		atomic_t compound_mapcount;
	};
	union {
		unsigned long index;
		void *freelist;
	};
	union {
		unsigned long counters;
		struct {
			union {
				atomic_t _mapcount;
				unsigned int active;
				struct {
					unsigned inuse : 16;
					unsigned objects : 15;
					unsigned frozen : 1;
				};
				int units;
			};
			atomic_t _refcount;
		};
	};
	union {
		struct list_head lru;
		struct dev_pagemap *pgmap;
		struct {
			struct page *next;
			int pages;
			int pobjects;
		};
		struct rcu_head rcu_head;
		struct {
			unsigned long compound_head;
			unsigned int compound_dtor;
			unsigned int compound_order;
		};
	};
	union {
		unsigned long private;
		spinlock_t ptl;
		struct kmem_cache *slab_cache;
	};
	struct mem_cgroup *mem_cgroup;
} __attribute__((aligned(16)));
#else
struct page {
	unsigned long flags;
	union {
		struct { /* Page cache and anonymous pages */
			struct list_head lru;
			struct address_space *mapping;
			unsigned long index;
			unsigned long private;
		};
		struct { /* slab, slob and slub */
			union {
				struct list_head slab_list;
				struct {
					struct page *next;
					int pages;
					int pobjects;
				};
			};
			struct kmem_cache *slab_cache;
			void *freelist;
			union {
				void *s_mem;
				unsigned long counters;
				struct {
					unsigned inuse : 16;
					unsigned objects : 15;
					unsigned frozen : 1;
				};
			};
		};
		struct { /* Tail pages of a compound page */
			unsigned long compound_head;
			unsigned char compound_dtor;
			unsigned char compound_order;
			atomic_t compound_mapcount;
		};
		struct { /* The second tail page of a compound page */
			unsigned long _compound_pad_1;
			unsigned long _compound_pad_2;
			struct list_head deferred_list;
		};
		struct { /* Page tables */
			unsigned long _pt_pad_1;
			struct page *pmd_huge_pte;
			unsigned long _pt_pad_2;
			union {
				struct mm_struct *pt_mm;
				atomic_t pt_frag_refcount;
			};
			spinlock_t ptl;
		};
		struct { /* ZONE_DEVICE pages */
			struct dev_pagemap *pgmap;
			unsigned long hmm_data;
			unsigned long _zd_pad_1;
		};
		struct rcu_head callback_head;
	};
	union {
		atomic_t _mapcount;
		unsigned int page_type;
		unsigned int active;
		int units;
	};
	atomic_t _refcount;
	struct mem_cgroup *mem_cgroup;
} __attribute__((aligned(16)));
#endif
struct page keep_page;

#ifdef ENUM_PAGETYPE /* v6.11 */
enum pagetype {
	PG_buddy = 0x40000000,
	PG_offline = 0x20000000,
	PG_table = 0x10000000,
	PG_guard = 0x08000000,
	PG_hugetlb = 0x04000000,
	PG_zsmalloc = 0x01000000,
	PAGE_TYPE_BASE = 0x80000000,
	PAGE_MAPCOUNT_RESERVE = ~0x0000ffff,
};
enum pagetype keep_pagetype;
#endif

enum pageflags {
	PG_locked,
	PG_error,
	PG_referenced,
	PG_uptodate,
	PG_dirty,
	PG_lru,
	PG_active,
	PG_workingset,
	PG_waiters,
	PG_slab,
	PG_owner_priv_1,
	PG_arch_1,
	PG_reserved,
	PG_private,
	PG_private_2,
	PG_writeback,
	PG_head,
	PG_mappedtodisk,
	PG_reclaim,
	PG_swapbacked,
	PG_unevictable,
	PG_mlocked,
	__NR_PAGEFLAGS,
};
enum pageflags keep_pageflags;

/* include/linux/slub_def.h and mm/slab.h */

struct kmem_cache_order_objects {
	unsigned int x;
};

struct kmem_cache_cpu {
	void **freelist;
	unsigned long tid;
	struct page *page;
	struct page *partial;
};

struct kmem_cache_node {
	spinlock_t list_lock;
	unsigned long nr_partial;
	struct list_head partial;
	atomic_long_t nr_slabs;
	atomic_long_t total_objects;
	struct list_head full;
};

struct kobject {
	const char *name;
	struct list_head entry;
	struct kobject *parent;
	struct kset *kset;
	struct kobj_type *ktype;
	struct kernfs_node *sd;
	struct kref kref;
	unsigned int state : 5;
};

struct memcg_cache_params {
	struct kmem_cache *root_cache;
	union {
		struct {
			struct memcg_cache_array *memcg_caches;
			struct list_head __root_caches_node;
			struct list_head children;
		};
		struct {
			struct mem_cgroup *memcg;
			struct list_head children_node;
			struct list_head kmem_caches_node;
			void (*deact_fn)(struct kmem_cache *);
			union {
				struct rcu_head deact_rcu_head;
				struct work_struct deact_work;
			};
		};
	};
};

struct kmem_cache {
	struct kmem_cache_cpu *cpu_slab;
	unsigned int flags;
	unsigned long min_partial;
	unsigned int size;
	unsigned int object_size;
	unsigned int offset;
	unsigned int cpu_partial;
	struct kmem_cache_order_objects oo;
	struct kmem_cache_order_objects max;
	struct kmem_cache_order_objects min;
	gfp_t allocflags;
	int refcount;
	void (*ctor)(void *);
	unsigned int inuse;
	unsigned int align;
	unsigned int red_left_pad;
	const char *name;
	struct list_head list;
	struct kobject kobj;
	struct work_struct kobj_remove_work;
	struct memcg_cache_params memcg_params;
	unsigned int max_attr_size;
	struct kset *memcg_kset;
	unsigned int remote_node_defrag_ratio;
	unsigned int useroffset;
	unsigned int usersize;
	struct kmem_cache_node *node[MAX_NUMNODES];
};
struct list_head slab_caches;

struct track {
	unsigned long addr;
	unsigned long addrs[TRACK_ADDRS_COUNT];
	int cpu;
	int pid;
	unsigned long when;
};
struct track keep_track;

enum track_item {
	TRACK_ALLOC,
	TRACK_FREE,
};
enum track_item keep_track_item;
struct kmem_cache keep_kmem_cache;

/* include/linux/mmzone.h: of zones and nodes only what is asked of them */

#define MAX_ORDER 11
#define MIGRATE_PCPTYPES 3
#define NR_VM_NUMA_STAT_ITEMS 6

enum zone_stat_item {
	NR_FREE_PAGES,
	NR_ZONE_INACTIVE_ANON,
	NR_ZONE_ACTIVE_ANON,
	NR_ZONE_INACTIVE_FILE,
	NR_ZONE_ACTIVE_FILE,
	NR_ZONE_UNEVICTABLE,
	NR_ZONE_WRITE_PENDING,
	NR_MLOCK,
	NR_PAGETABLE,
	NR_KERNEL_STACK_KB,
	NR_BOUNCE,
	NR_FREE_CMA_PAGES,
	NR_VM_ZONE_STAT_ITEMS
};
enum zone_stat_item keep_zone_stat_item;

struct per_cpu_pages {
	int count;
	int high;
	int batch;
	struct list_head lists[MIGRATE_PCPTYPES];
};

struct per_cpu_pageset {
	struct per_cpu_pages pcp;
	s8 expire;
	u16 vm_numa_stat_diff[NR_VM_NUMA_STAT_ITEMS];
	s8 stat_threshold;
	s8 vm_stat_diff[NR_VM_ZONE_STAT_ITEMS];
};
struct per_cpu_pageset keep_per_cpu_pageset;

struct free_area {
	unsigned long nr_free;
};

struct zone {
	struct per_cpu_pageset *pageset;
	unsigned long present_pages;
	struct free_area free_area[MAX_ORDER];
};

struct pglist_data {
	struct zone node_zones[1];
	int nr_zones;
};
struct pglist_data *node_data[MAX_NUMNODES];

typedef struct {
	unsigned long bits[1];
} nodemask_t;

enum node_states {
	N_POSSIBLE,
	N_ONLINE,
	NR_NODE_STATES
};
enum node_states keep_node_states;
nodemask_t node_states[NR_NODE_STATES];
atomic_long_t vm_zone_stat[NR_VM_ZONE_STAT_ITEMS];

/* mm/kmemleak.c */

struct kmemleak_object {
	spinlock_t lock;
	unsigned int flags;
	struct list_head object_list;
	struct list_head gray_list;
	struct rb_node rb_node;
	struct rcu_head rcu;
	atomic_t use_count;
	unsigned long pointer;
	size_t size;
	unsigned long excess_ref;
	int min_count;
	int count;
	u32 checksum;
	struct hlist_head area_list;
	unsigned long trace[16];
	unsigned int trace_len;
	unsigned long jiffies;
	pid_t pid;
	char comm[16];
};
struct kmemleak_object keep_kmemleak_object;

/* Of tasks and vmalloc areas only what the search for pointers asks for. */

enum pid_type {
	PIDTYPE_PID,
	PIDTYPE_TGID,
	PIDTYPE_PGID,
	PIDTYPE_SID,
	PIDTYPE_MAX,
};
enum pid_type keep_pid_type;

struct upid {
	int nr;
	struct pid_namespace *ns;
};

struct pid {
	atomic_t count;
	unsigned int level;
	struct hlist_head tasks[PIDTYPE_MAX];
	struct rcu_head rcu;
	struct upid numbers[1];
};
struct pid keep_pid;

/* include/linux/sched.h; what is called room_* has members that nobody asks for */

struct load_weight {
	unsigned long weight;
	u32 inv_weight;
};

struct sched_entity {
	struct load_weight load;
	unsigned long runnable_weight;
	struct rb_node run_node;
	struct list_head group_node;
	unsigned int on_rq;
	u64 exec_start;
	u64 sum_exec_runtime;
	u64 vruntime;
	u64 prev_sum_exec_runtime;
	u64 nr_migrations;
	int depth;
	struct sched_entity *parent;
	struct cfs_rq *cfs_rq;
	struct cfs_rq *my_q;
	char avg[64] __attribute__((aligned(64)));
};

struct sched_rt_entity {
	struct list_head run_list;
	unsigned long timeout;
	unsigned long watchdog_stamp;
	unsigned int time_slice;
	unsigned short on_rq;
	unsigned short on_list;
	struct sched_rt_entity *back;
};

struct sched_dl_entity {
	struct rb_node rb_node;
	u64 dl_runtime;
	u64 dl_deadline;
	u64 dl_period;
	u64 dl_bw;
	u64 dl_density;
	s64 runtime;
	u64 deadline;
	unsigned int flags;
	unsigned int dl_throttled : 1;
	/* Two struct hrtimer. */
	u64 timers[16];
};

struct sched_info {
	unsigned long pcount;
	unsigned long long run_delay;
	unsigned long long last_arrival;
	unsigned long long last_queued;
};

struct sched_class {
	const struct sched_class *next;
};
const struct sched_class fair_sched_class, rt_sched_class;

/* The stack pointer is x86's, the size that of arm64. */
struct thread_struct {
	unsigned long sp;
	char room_thread[968];
};

struct task_struct {
	char thread_info[24];
	volatile long state;
	void *stack;
	atomic_t usage;
	unsigned int flags;
	unsigned int ptrace;
	struct llist_node wake_entry;
	int on_cpu;
	unsigned int cpu;
	char room_wakes[32];
	int on_rq;
	int prio;
	int static_prio;
	int normal_prio;
	unsigned int rt_priority;
	const struct sched_class *sched_class;
	struct sched_entity se __attribute__((aligned(64)));
	struct sched_rt_entity rt;
	struct task_group *sched_task_group;
	struct sched_dl_entity dl;
	unsigned int policy;
	int nr_cpus_allowed;
	char room_cpus[72];
	struct sched_info sched_info;
	struct list_head tasks;
	char room_pushable[64];
	struct mm_struct *mm;
	struct mm_struct *active_mm;
	char room_vmas[60];
	int exit_state;
	int exit_code;
	int exit_signal;
	int pdeath_signal;
	unsigned long jobctl;
	unsigned int personality;
	unsigned sched_reset_on_fork : 1;
	unsigned : 0;
	unsigned in_execve : 1;
	unsigned in_iowait : 1;
	unsigned long atomic_flags;
	char room_restart_block[48];
	pid_t pid;
	pid_t tgid;
	unsigned long stack_canary;
	struct task_struct *real_parent;
	struct task_struct *parent;
	struct list_head children;
	struct list_head sibling;
	struct task_struct *group_leader;
	struct list_head ptraced;
	struct list_head ptrace_entry;
	struct pid *thread_pid;
	struct hlist_node pid_links[PIDTYPE_MAX];
	struct list_head thread_group;
	struct list_head thread_node;
	struct completion *vfork_done;
	int *set_child_tid;
	int *clear_child_tid;
	u64 times[6];
	unsigned long nvcsw;
	unsigned long nivcsw;
	u64 start_time;
	u64 real_start_time;
	char room_faults[112];
	char comm[16];
	char room_ipc[32];
	unsigned long last_switch_count;
	unsigned long last_switch_time;
	struct fs_struct *fs;
	struct files_struct *files;
	char room_signals[200];
	/* Of these two only their order is known to be right. */
	struct wake_q_node wake_q;
	struct rt_mutex_waiter *pi_blocked_on;
	char room_limits[608];
	struct thread_struct thread;
};

/* kernel/sched/sched.h */

struct cfs_rq {
	struct load_weight load;
	unsigned long runnable_weight;
	unsigned int nr_running, h_nr_running;
	char room_cfs[352];
};

struct rt_prio_array {
	unsigned long bitmap[2];
	struct list_head queue[100];
};

struct rt_rq {
	struct rt_prio_array active;
	unsigned int rt_nr_running;
	unsigned int rr_nr_running;
	int highest_prio[2];
	unsigned long rt_nr_migratory;
	unsigned long rt_nr_total;
	int overloaded;
	struct list_head pushable_tasks;
	int rt_queued;
	int rt_throttled;
	u64 rt_time;
	u64 rt_runtime;
	raw_spinlock_t rt_runtime_lock;
};

struct rb_root_cached {
	struct rb_root rb_root;
	struct rb_node *rb_leftmost;
};

struct dl_rq {
	struct rb_root_cached root;
	unsigned long dl_nr_running;
	char room_dl[80];
};

struct llist_head {
	struct llist_node *first;
};

struct rq {
	raw_spinlock_t lock;
	unsigned int nr_running;
	unsigned int nr_numa_running;
	unsigned int nr_preferred_running;
	unsigned int numa_migrate_on;
	unsigned long cpu_load[5];
	unsigned long last_load_update_tick;
	unsigned long last_blocked_load_update_tick;
	unsigned int has_blocked_load;
	unsigned int nohz_tick_stopped;
	atomic_t nohz_flags;
	struct load_weight load;
	unsigned long nr_load_updates;
	u64 nr_switches;
	struct cfs_rq cfs;
	struct rt_rq rt;
	struct dl_rq dl;
	struct list_head leaf_cfs_rq_list;
	struct list_head *tmp_alone_branch;
	unsigned long nr_uninterruptible;
	struct task_struct *curr, *idle, *stop;
	unsigned long next_balance;
	struct mm_struct *prev_mm;
	unsigned int clock_update_flags;
	u64 clock;
	u64 clock_task;
	atomic_t nr_iowait;
	struct root_domain *rd;
	struct sched_domain *sd;
	unsigned long cpu_capacity;
	unsigned long cpu_capacity_orig;
	struct callback_head *balance_callback;
	unsigned char idle_balance;
	int active_balance;
	int push_cpu;
	u64 active_balance_work[5];
	int cpu;
	int online;
	struct list_head cfs_tasks;
	char avg_rt[64] __attribute__((aligned(64)));
	char avg_dl[64];
	char avg_irq[64];
	u64 idle_stamp;
	u64 avg_idle;
	u64 max_idle_balance_cost;
	u64 prev_irq_time;
	u64 prev_steal_time;
	unsigned long calc_load_update;
	long calc_load_active;
	int hrtick_csd_pending;
	char hrtick_csd[32] __attribute__((aligned(32)));
	u64 hrtick_timer[8];
	struct llist_head wake_list;
	struct cpuidle_state *idle_state;
} __attribute__((aligned(64)));
PER_CPU struct rq runqueues;

struct pid_namespace {
	struct idr idr;
};
struct pid_namespace init_pid_ns;

struct vm_struct {
	struct vm_struct *next;
	void *addr;
	unsigned long size;
	unsigned long flags;
	struct page **pages;
	unsigned int nr_pages;
	phys_addr_t phys_addr;
	const void *caller;
};

struct vmap_area {
	unsigned long va_start;
	unsigned long va_end;
	unsigned long flags;
	struct rb_node rb_node;
	struct list_head list;
	struct llist_node purge_list;
	struct vm_struct *vm;
	struct rcu_head rcu_head;
};
struct vmap_area keep_vmap_area;
struct list_head vmap_area_list = { &vmap_area_list, &vmap_area_list };

/* kernel/workqueue.c and its headers */

struct timer_list {
	struct hlist_node entry;
	unsigned long expires;
	void (*function)(struct timer_list *);
	u32 flags;
};

struct delayed_work {
	struct work_struct work;
	struct timer_list timer;
	struct workqueue_struct *wq;
	int cpu;
};
struct delayed_work keep_delayed_work;

struct completion {
	unsigned int done;
	wait_queue_head_t wait;
};

struct worker {
	union {
		struct list_head entry;
		struct hlist_node hentry;
	};
	struct work_struct *current_work;
	void (*current_func)(struct work_struct *work);
	struct pool_workqueue *current_pwq;
	struct list_head scheduled;
	struct task_struct *task;
	struct worker_pool *pool;
	struct list_head node;
	unsigned long last_active;
	unsigned int flags;
	int id;
	char desc[24];
	struct workqueue_struct *rescue_wq;
};
struct worker keep_worker;

struct workqueue_attrs {
	int nice;
	struct cpumask *cpumask;
	bool no_numa;
};

struct worker_pool {
	spinlock_t lock;
	int cpu;
	int node;
	int id;
	unsigned int flags;
	unsigned long watchdog_ts;
	struct list_head worklist;
	int nr_workers;
	int nr_idle;
	struct list_head idle_list;
	struct timer_list idle_timer;
	struct timer_list mayday_timer;
	struct hlist_head busy_hash[64];
	struct worker *manager;
	struct list_head workers;
	struct completion *detach_completion;
	struct ida worker_ida;
	struct workqueue_attrs *attrs;
	struct hlist_node hash_node;
	int refcnt;
	atomic_t nr_running __attribute__((aligned(64)));
	struct rcu_head rcu;
} __attribute__((aligned(64)));
struct worker_pool keep_worker_pool;
struct idr worker_pool_idr;

struct workqueue_struct {
	struct list_head pwqs;
	struct list_head list;
	struct mutex mutex;
	int work_color;
	int flush_color;
	atomic_t nr_pwqs_to_flush;
	struct wq_flusher *first_flusher;
	struct list_head flusher_queue;
	struct list_head flusher_overflow;
	struct list_head maydays;
	struct worker *rescuer;
	int nr_drainers;
#ifdef NODE_NR_ACTIVE /* v6.9 */
	int max_active;
	struct wq_node_nr_active **node_nr_active;
#endif
	int saved_max_active;
	struct workqueue_attrs *unbound_attrs;
	struct pool_workqueue *dfl_pwq;
	struct wq_device *wq_dev;
	char name[24];
	struct rcu_head rcu;
	unsigned int flags __attribute__((aligned(64)));
	struct pool_workqueue *cpu_pwqs;
	struct pool_workqueue *numa_pwq_tbl[];
};
struct workqueue_struct keep_workqueue_struct;

enum {
	WQ_UNBOUND = 1 << 1,
	WQ_FREEZABLE = 1 << 2,
} keep_wq_flags;

enum {
	WORK_STRUCT_PENDING_BIT = 0,
	WORK_STRUCT_DELAYED_BIT = 1,
	WORK_STRUCT_PWQ_BIT = 2,
	WORK_STRUCT_LINKED_BIT = 3,
	WORK_STRUCT_COLOR_SHIFT = 4,
	WORK_STRUCT_COLOR_BITS = 4,
	WORK_STRUCT_PENDING = 1 << WORK_STRUCT_PENDING_BIT,
	WORK_STRUCT_DELAYED = 1 << WORK_STRUCT_DELAYED_BIT,
	WORK_STRUCT_PWQ = 1 << WORK_STRUCT_PWQ_BIT,
	WORK_STRUCT_LINKED = 1 << WORK_STRUCT_LINKED_BIT,
	WORK_STRUCT_FLAG_BITS = WORK_STRUCT_COLOR_SHIFT + WORK_STRUCT_COLOR_BITS,
	WORK_OFFQ_FLAG_BASE = WORK_STRUCT_COLOR_SHIFT,
	WORK_OFFQ_FLAG_BITS = 1,
	WORK_OFFQ_POOL_SHIFT = WORK_OFFQ_FLAG_BASE + WORK_OFFQ_FLAG_BITS,
	WORK_OFFQ_LEFT = BITS_PER_LONG - WORK_OFFQ_POOL_SHIFT,
	WORK_OFFQ_POOL_BITS = WORK_OFFQ_LEFT <= 31 ? WORK_OFFQ_LEFT : 31,
} keep_work_bits;

enum {
	POOL_MANAGER_ACTIVE = 1 << 0,
	POOL_DISASSOCIATED = 1 << 2,
	WORKER_DIE = 1 << 1,
	WORKER_IDLE = 1 << 2,
} keep_worker_flags;

void wq_barrier_func(struct work_struct *work)
{
}

struct pool_workqueue {
	struct worker_pool *pool;
	struct workqueue_struct *wq;
	int work_color;
	int flush_color;
	int refcnt;
	int nr_in_flight[WORK_NR_COLORS];
#ifdef NODE_NR_ACTIVE
	bool plugged;
	int nr_active;
#else
	int nr_active;
	int max_active;
#endif
	struct list_head delayed_works;
	struct list_head pwqs_node;
	struct list_head mayday_node;
	struct work_struct unbound_release_work;
	struct rcu_head rcu;
} __attribute__((aligned(256)));
struct pool_workqueue keep_pool_workqueue;

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

struct rw_semaphore {
	atomic_long_t count;
	struct list_head wait_list;
	raw_spinlock_t wait_lock;
	struct optimistic_spin_queue osq;
	struct task_struct *owner;
};
struct rw_semaphore keep_rw_semaphore;
struct ww_mutex keep_ww_mutex;

/* On the way of an allocation. */

void kmem_cache_alloc(void)
{
}

void virtio_gpu_fence_alloc(void)
{
}

void virtio_gpu_execbuffer_ioctl(void)
{
}

void drm_ioctl(void)
{
}

/* Operations tables: a walker knows a fence by the table that it points to. */

static const char *get_name(struct dma_fence *fence)
{
	return "";
}

static void release(struct dma_fence *fence)
{
}

const struct dma_fence_ops virtio_gpu_fence_ops = {
	.get_driver_name = get_name,
	.get_timeline_name = get_name,
};

const struct dma_fence_ops dma_fence_array_ops = {
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

/* kernel/printk/printk.c */

struct printk_log {
	u64 ts_nsec;
	u16 len;
	u16 text_len;
	u16 dict_len;
	u8 facility;
	u8 flags : 5;
	u8 level : 3;
#ifdef PRINTK_CALLER /* v5.1 */
	u32 caller_id;
#endif
} __attribute__((packed, aligned(4)));

enum log_flags {
	LOG_NOCONS = 1,
	LOG_NEWLINE = 2,
	LOG_PREFIX = 4,
	LOG_CONT = 8,
};
enum log_flags keep_log_flags;
struct printk_log keep_printk_log;

/* There is a log_buf in kernel/bpf/verifier.c, too: drgn asks for the one of this file. */
#line 1 "kernel/printk/printk.c"
char *log_buf;
u32 log_buf_len;
u64 log_first_seq;
u32 log_first_idx;
u64 log_next_seq;
u32 log_next_idx;

/* mm/kmemleak.c */

#line 1 "mm/kmemleak.c"
int kmemleak_enabled;
int kmemleak_error;
unsigned long jiffies_min_age;
unsigned long jiffies_last_scan;
struct mutex scan_mutex;
struct list_head object_list;
struct kmem_cache *object_cache;
