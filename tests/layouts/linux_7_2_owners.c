// SPDX-License-Identifier: GPL-2.0
/*
 * Who allocated what, in v7.2: SLUB's tracks and kmemleak's objects with
 * handles of the stack depot. With CONFIG_MEMCG, CONFIG_KFENCE and
 * CONFIG_SLAB_OBJ_EXT, on 4 KiB pages.
 */

#include "linux_7_2.c"

/* include/linux/stackdepot.h */

typedef u32 depot_stack_handle_t;

union handle_parts {
	depot_stack_handle_t handle;
	struct {
		u32 pool_index_plus_1 : 17;
		u32 offset : 10;
		u32 extra : 5;
	};
};

struct stack_record {
	struct list_head hash_list;
	u32 hash;
	u32 size;
	union handle_parts handle;
	refcount_t count;
	union {
		unsigned long entries[64];
		struct {
			struct list_head free_list;
			unsigned long rcu_state;
		};
	};
};
struct stack_record keep_stack_record;

/* include/linux/slab.h */

enum _slab_flag_bits {
	_SLAB_CONSISTENCY_CHECKS,
	_SLAB_RED_ZONE,
	_SLAB_POISON,
	_SLAB_KMALLOC,
	_SLAB_HWCACHE_ALIGN,
	_SLAB_CACHE_DMA,
	_SLAB_CACHE_DMA32,
	_SLAB_STORE_USER,
	_SLAB_PANIC,
	_SLAB_TYPESAFE_BY_RCU,
	_SLAB_TRACE,
	_SLAB_NOLEAKTRACE,
	_SLAB_NO_MERGE,
	_SLAB_ACCOUNT,
	_SLAB_NO_USER_FLAGS,
	_SLAB_SKIP_KFENCE,
	_SLAB_RECLAIM_ACCOUNT,
	_SLAB_OBJECT_POISON,
	_SLAB_CMPXCHG_DOUBLE,
	_SLAB_NO_OBJ_EXT,
	_SLAB_FLAGS_LAST_BIT
};
enum _slab_flag_bits keep_slab_flag_bits;

/* mm/slub.c */

struct track {
	unsigned long addr;
	depot_stack_handle_t handle;
	int cpu;
	int pid;
	unsigned long when;
};
struct track keep_track;

enum track_item { TRACK_ALLOC, TRACK_FREE };
enum track_item keep_track_item;

/* kernel/time/jiffies.c; the first members only. */

struct clocksource {
	u64 (*read)(struct clocksource *cs);
	u64 mask;
	u32 mult;
	u32 shift;
};
struct clocksource clocksource_jiffies;
u64 jiffies_64;

/* mm/kfence/kfence.h */

enum kfence_object_state {
	KFENCE_OBJECT_UNUSED,
	KFENCE_OBJECT_ALLOCATED,
	KFENCE_OBJECT_RCU_FREEING,
	KFENCE_OBJECT_FREED,
};

struct kfence_track {
	pid_t pid;
	int cpu;
	u64 ts_nsec;
	int num_stack_entries;
	unsigned long stack_entries[64];
};

struct slabobj_ext {
	struct obj_cgroup *objcg;
};

struct kfence_metadata {
	struct list_head list;
	struct rcu_head rcu_head;
	spinlock_t lock;
	enum kfence_object_state state;
	unsigned long addr;
	size_t size;
	struct kmem_cache *cache;
	unsigned long unprotected_page;
	struct kfence_track alloc_track;
	struct kfence_track free_track;
	u32 alloc_stack_hash;
	struct slabobj_ext obj_exts;
};

/* mm/kmemleak.c */

struct kmemleak_object {
	spinlock_t lock;
	unsigned int flags;
	struct list_head object_list;
	struct list_head gray_list;
	struct rb_node rb_node;
	struct rcu_head rcu;
	atomic_t use_count;
	unsigned int del_state;
	unsigned long pointer;
	size_t size;
	unsigned long excess_ref;
	int min_count;
	int count;
	u32 checksum;
	depot_stack_handle_t trace_handle;
	struct hlist_head area_list;
	unsigned long jiffies;
	pid_t pid;
	unsigned int dup_count;
	char comm[16];
};
struct kmemleak_object keep_kmemleak_object;

/* include/linux/page_ext.h; pgalloc_tag and others use the space behind. */

struct page_ext_operations {
	size_t offset;
	size_t size;
	bool (*need)(void);
	void (*init)(void);
	bool need_shared_flags;
};

enum page_ext_flags {
	PAGE_EXT_OWNER,
	PAGE_EXT_OWNER_ALLOCATED,
};
enum page_ext_flags keep_page_ext_flags;

struct static_key {
	atomic_t enabled;
};

struct static_key_false {
	struct static_key key;
};

/* mm/page_owner.c */

struct page_owner {
	unsigned short order;
	short last_migrate_reason;
	gfp_t gfp_mask;
	depot_stack_handle_t handle;
	depot_stack_handle_t free_handle;
	u64 ts_nsec;
	u64 free_ts_nsec;
	char comm[16];
	pid_t pid;
	pid_t tgid;
	pid_t free_pid;
	pid_t free_tgid;
};
struct page_owner keep_page_owner;

#line 1 "mm/page_owner.c"
struct static_key_false page_owner_inited;
struct page_ext_operations page_owner_ops;
unsigned long page_ext_size;
depot_stack_handle_t dummy_handle;
depot_stack_handle_t failure_handle;
depot_stack_handle_t early_handle;

#line 1 "mm/kfence/core.c"
char *__kfence_pool;
struct kfence_metadata *kfence_metadata;

#line 1 "lib/stackdepot.c"
void **stack_pools;

#line 1 "mm/kmemleak.c"
int kmemleak_enabled;
int kmemleak_error;
unsigned long jiffies_min_age;
unsigned long jiffies_last_scan;
struct mutex scan_mutex;
struct list_head object_list;
struct kmem_cache *object_cache;
struct kmemleak_object mem_pool[4];
