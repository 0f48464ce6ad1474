// SPDX-License-Identifier: GPL-2.0
/*
 * The requests of disks: with DISKS_4_19 as in v4.19, with DISKS_7_2 as in v7.2, else as in
 * v5.10; of the structures only what is needed.
 */

#include "kernel.h"

typedef u64 sector_t;
typedef u64 blk_opf_t;

struct page {
	unsigned long flags;
	unsigned long words[7];
};
struct page keep_page;

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
};
struct xa_node keep_xa_node;

struct clocksource {
	u32 mult;
	u32 shift;
};
/* CONFIG_HZ=250: the shift of kernel/time/jiffies.c. */
struct clocksource clocksource_jiffies = { .mult = 4000000u << 8, .shift = 8 };
u64 jiffies_64;

/* include/linux/bvec.h, blk_types.h */

struct bio_vec {
	struct page *bv_page;
	unsigned int bv_len;
	unsigned int bv_offset;
};

struct bvec_iter {
	sector_t bi_sector;
	unsigned int bi_size;
	unsigned int bi_idx;
	unsigned int bi_bvec_done;
};

struct bio {
	struct bio *bi_next;
	struct bvec_iter bi_iter;
	void (*bi_end_io)(struct bio *bio);
	void *bi_private;
	struct bio_vec *bi_io_vec;
};
struct bio keep_bio;

void blkdev_bio_end_io_simple(struct bio *bio)
{
}

void blkdev_bio_end_io(struct bio *bio)
{
}

void iomap_dio_bio_end_io(struct bio *bio)
{
}

void mpage_end_io(struct bio *bio)
{
}

struct blkdev_dio {
	union {
		struct kiocb *iocb;
		struct task_struct *waiter;
	};
	size_t size;
	atomic_t ref;
};
struct blkdev_dio keep_blkdev_dio;

struct iomap_dio {
	struct kiocb *iocb;
	union {
		struct {
			struct iov_iter *iter;
			struct task_struct *waiter;
		} submit;
		struct {
			struct work_struct work;
		} aio;
	};
};
struct iomap_dio keep_iomap_dio;

struct gendisk {
	struct request_queue *queue;
};
struct gendisk keep_gendisk;

/* include/linux/blkdev.h, sbitmap.h, blk-mq.h, block/blk-mq-tag.h */

enum mq_rq_state {
	MQ_RQ_IDLE = 0,
	MQ_RQ_IN_FLIGHT = 1,
	MQ_RQ_COMPLETE = 2,
};

struct request {
	struct request_queue *q;
	int tag;
	struct bio *bio;
	struct bio *biotail;
	u64 start_time_ns;
	u64 io_start_time_ns;
	enum mq_rq_state state;
	unsigned int timeout;
#ifdef DISKS_4_19
	unsigned long __deadline;
#else
	unsigned long deadline;
#endif
};
struct request keep_request;

struct sbq_wait_state {
	atomic_t wait_cnt;
	struct wait_queue_head wait;
} __attribute__((aligned(64)));
struct sbq_wait_state keep_sbq_wait_state;

struct sbitmap_queue {
	unsigned int wake_batch;
	struct sbq_wait_state *ws;
};
struct sbitmap_queue keep_sbitmap_queue;

struct blk_mq_tags {
	unsigned int nr_tags;
	unsigned int nr_reserved_tags;
#if !defined(DISKS_4_19) && !defined(DISKS_7_2)
	struct sbitmap_queue *bitmap_tags;
	struct sbitmap_queue *breserved_tags;
#else
	struct sbitmap_queue bitmap_tags;
	struct sbitmap_queue breserved_tags;
#endif
	struct request **rqs;
};
struct blk_mq_tags keep_blk_mq_tags;

struct blk_mq_hw_ctx {
	struct request_queue *queue;
	struct blk_mq_tags *tags;
	struct blk_mq_tags *sched_tags;
};
struct blk_mq_hw_ctx keep_blk_mq_hw_ctx;

struct request_queue {
#ifdef DISKS_7_2
	unsigned int nr_hw_queues;
	struct xarray hctx_table;
#else
	struct blk_mq_hw_ctx **queue_hw_ctx;
	unsigned int nr_hw_queues;
#endif
};
struct request_queue keep_request_queue;
