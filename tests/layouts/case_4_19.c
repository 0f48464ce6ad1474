// SPDX-License-Identifier: GPL-2.0
/*
 * v4.19 with the rest of what a whole dump is looked at for: waits and their stacks, the
 * clocks, and who may hang.
 */

#include "linux_4_19.c"

/* include/linux/wait.h */

struct wait_queue_entry;
typedef int (*wait_queue_func_t)(struct wait_queue_entry *wq_entry);

struct wait_queue_entry {
	unsigned int flags;
	void *private;
	wait_queue_func_t func;
	struct list_head entry;
};
struct wait_queue_entry keep_wait_queue_entry;

/* kernel/locking/mutex.h, rwsem-xadd.c */

struct mutex_waiter {
	struct list_head list;
	struct task_struct *task;
	struct ww_acquire_ctx *ww_ctx;
};
struct mutex_waiter keep_mutex_waiter;

enum rwsem_waiter_type {
	RWSEM_WAITING_FOR_WRITE,
	RWSEM_WAITING_FOR_READ
};

struct rwsem_waiter {
	struct list_head list;
	struct task_struct *task;
	enum rwsem_waiter_type type;
};
struct rwsem_waiter keep_rwsem_waiter;

/* include/linux/fs.h and fdtable.h, with members that are asked for only */

struct file_operations {
	struct module *owner;
};
const struct file_operations dma_buf_fops, drm_driver_fops;

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct file {
	u64 f_u[2];
	struct path f_path;
	struct inode *f_inode;
	const struct file_operations *f_op;
	spinlock_t f_lock;
	int f_write_hint;
	atomic_long_t f_count;
	unsigned int f_flags;
	unsigned int f_mode;
	void *private_data;
	struct list_head f_ep_links;
};
struct file keep_file;

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
	unsigned long open_fds_init[1];
	struct file *fd_array[64];
};
struct files_struct keep_files_struct;
struct kmem_cache *files_cachep, *filp_cachep;

/* include/linux/mmzone.h: slabs were counted by node, in pages */

enum node_stat_item {
	NR_SLAB_RECLAIMABLE = 5,
	NR_SLAB_UNRECLAIMABLE,
	NR_VM_NODE_STAT_ITEMS = 29,
};
enum node_stat_item keep_node_stat_item;
atomic_long_t vm_node_stat[NR_VM_NODE_STAT_ITEMS];

/* mm/percpu.c, kernel/module.c */

struct pcpu_chunk {
	void *base_addr;
	int nr_pages;
};
void *pcpu_base_addr;
const unsigned long *pcpu_unit_offsets;
struct pcpu_chunk *pcpu_first_chunk;

struct module {
	struct list_head list;
};
struct module keep_module;
struct list_head modules = { &modules, &modules };

/* include/linux/device.h, of which only the name is asked for */

struct device {
	struct device *parent;
	struct device_private *p;
	struct kobject kobj;
	const char *init_name;
};
struct device keep_device;

/* kernel/kthread.c */

struct kthread {
	unsigned long flags;
	unsigned int cpu;
	void *data;
	struct completion parked;
	struct completion exited;
};
struct kthread keep_kthread;

/* include/linux/crash_core.h, kernel/kexec_core.c: where each CPU saves its registers */

typedef u32 note_buf_t[128];
note_buf_t *crash_notes;

/* arch/x86/include/asm/switch_to.h */

struct inactive_task_frame {
	unsigned long r15, r14, r13, r12, bx, bp;
	unsigned long ret_addr;
};
struct inactive_task_frame keep_inactive_task_frame;

/* kernel/time/jiffies.c: HZ is 250 */

struct clocksource {
	u32 mult;
	u32 shift;
};
struct clocksource clocksource_jiffies = { .mult = 4000000u << 8, .shift = 8 };
u64 jiffies_64;

/* kernel/hung_task.c, kernel/watchdog.c, kernel/sched/rt.c, kernel/panic.c */

unsigned long sysctl_hung_task_timeout_secs = 60;
int watchdog_thresh = 10;
int sysctl_sched_rt_runtime = -1;
atomic_t panic_cpu;

/* kernel/workqueue.c */

struct list_head workqueues = { &workqueues, &workqueues };

enum {
	CREATE_COOLDOWN = 250, /* HZ */
} keep_create_cooldown;

/* mm/page_alloc.c */

struct mutex pcpu_drain_mutex;

void drain_local_pages_wq(struct work_struct *work)
{
}

/* Who wakes, and the frames of the stack. */

int default_wake_function(struct wait_queue_entry *wq_entry)
{
	return 0;
}

#define FUNCTION(name)                                                                     \
	void name(void)                                                                    \
	{                                                                                  \
	}

FUNCTION(__schedule)
FUNCTION(schedule)
FUNCTION(schedule_timeout)
FUNCTION(wait_for_completion)
FUNCTION(__flush_work)
FUNCTION(flush_work)
FUNCTION(drain_all_pages)
FUNCTION(__alloc_pages_nodemask)
FUNCTION(ttm_pool_populate)
FUNCTION(ttm_tt_bind)
FUNCTION(ttm_bo_handle_move_mem)
FUNCTION(ttm_bo_validate)
FUNCTION(virtio_gpu_object_create)
FUNCTION(virtio_gpu_resource_create_ioctl)
FUNCTION(drm_ioctl_kernel)
FUNCTION(do_vfs_ioctl)
FUNCTION(schedule_preempt_disabled)
FUNCTION(__mutex_lock)
FUNCTION(mutex_lock)
FUNCTION(rwsem_down_read_failed)
FUNCTION(down_read)
FUNCTION(proc_pid_cmdline_read)
FUNCTION(worker_thread)
FUNCTION(kthread_function)
FUNCTION(panic)
