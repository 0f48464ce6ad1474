// SPDX-License-Identifier: GPL-2.0
/* Address spaces: with MAPLE_TREE as from v6.1 on, else with a red-black tree. */

/* It has less of these. */
#define mm_struct mm_struct_of_kernel_h
#define init_mm init_mm_of_kernel_h
#include "kernel.h"
#undef mm_struct
#undef init_mm

struct vm_area_struct {
	unsigned long vm_start;
	unsigned long vm_end;
	struct rb_node vm_rb;
	struct mm_struct *vm_mm;
};
struct vm_area_struct keep_vm_area_struct;

/* include/linux/maple_tree.h */

#define MAPLE_RANGE64_SLOTS 16
#define MAPLE_ARANGE64_SLOTS 10

enum maple_type {
	maple_dense,
	maple_leaf_64,
	maple_range_64,
	maple_arange_64,
};
enum maple_type keep_maple_type;

struct maple_metadata {
	unsigned char end;
	unsigned char gap;
};

struct maple_range_64 {
	struct maple_pnode *parent;
	unsigned long pivot[MAPLE_RANGE64_SLOTS - 1];
	union {
		void *slot[MAPLE_RANGE64_SLOTS];
		struct {
			void *pad[MAPLE_RANGE64_SLOTS - 1];
			struct maple_metadata meta;
		};
	};
};

struct maple_arange_64 {
	struct maple_pnode *parent;
	unsigned long pivot[MAPLE_ARANGE64_SLOTS - 1];
	void *slot[MAPLE_ARANGE64_SLOTS];
	unsigned long gap[MAPLE_ARANGE64_SLOTS];
	struct maple_metadata meta;
};

struct maple_node {
	union {
		struct maple_range_64 mr64;
		struct maple_arange_64 ma64;
	};
};
struct maple_node keep_maple_node;

struct maple_tree {
	spinlock_t ma_lock;
	unsigned int ma_flags;
	void *ma_root;
};

struct mm_struct {
#ifdef MAPLE_TREE
	struct maple_tree mm_mt;
#else
	struct rb_root mm_rb;
#endif
	pgd_t *pgd;
};
struct mm_struct init_mm = {
	.pgd = (pgd_t *)swapper_pg_dir,
};
