// SPDX-License-Identifier: GPL-2.0
/*
 * Virtqueues: with RINGS_4_19 as in v4.19, with RINGS_7_2 as in v7.2, else as in v5.10.
 */

#include "kernel.h"

typedef u64 dma_addr_t;
typedef u16 __virtio16;
typedef u32 __virtio32;
typedef u64 __virtio64;
typedef u16 __le16;
typedef u32 __le32;
typedef u64 __le64;

/* include/linux/virtio.h, of struct virtio_device only what is needed */

struct virtio_device {
	int index;
	struct list_head vqs;
};
struct virtio_device keep_virtio_device;

struct virtqueue {
	struct list_head list;
	void (*callback)(struct virtqueue *vq);
	const char *name;
	struct virtio_device *vdev;
	unsigned int index;
	unsigned int num_free;
#ifdef RINGS_7_2
	unsigned int num_max;
	bool reset;
#endif
	void *priv;
};
struct virtqueue keep_virtqueue;

/* include/uapi/linux/virtio_ring.h */

struct vring_desc {
	__virtio64 addr;
	__virtio32 len;
	__virtio16 flags;
	__virtio16 next;
};

struct vring_avail {
	__virtio16 flags;
	__virtio16 idx;
	__virtio16 ring[];
};
struct vring_avail keep_vring_avail;

struct vring_used_elem {
	__virtio32 id;
	__virtio32 len;
};

typedef struct vring_used_elem __attribute__((aligned(4))) vring_used_elem_t;

struct vring_used {
	__virtio16 flags;
	__virtio16 idx;
#ifdef RINGS_4_19
	struct vring_used_elem ring[];
#else
	vring_used_elem_t ring[];
#endif
};
struct vring_used keep_vring_used;

struct vring {
	unsigned int num;
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
};

struct vring_packed_desc_event {
	__le16 off_wrap;
	__le16 flags;
};

struct vring_packed_desc {
	__le64 addr;
	__le32 len;
	__le16 id;
	__le16 flags;
};
struct vring_packed_desc keep_vring_packed_desc;

/* drivers/virtio/virtio_ring.c */

#ifdef RINGS_4_19

struct vring_desc_state {
	void *data;
	struct vring_desc *indir_desc;
};
struct vring_desc_state keep_vring_desc_state;

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

#else

struct vring_desc_state_split {
	void *data;
	struct vring_desc *indir_desc;
#ifdef RINGS_7_2
	u32 total_in_len;
#endif
};
struct vring_desc_state_split keep_vring_desc_state_split;

struct vring_desc_state_packed {
	void *data;
	struct vring_packed_desc *indir_desc;
	u16 num;
#ifndef RINGS_7_2
	u16 next;
#endif
	u16 last;
#ifdef RINGS_7_2
	u32 total_in_len;
#endif
};
struct vring_desc_state_packed keep_vring_desc_state_packed;

struct vring_virtqueue_split {
	struct vring vring;
	u16 avail_flags_shadow;
	u16 avail_idx_shadow;
	struct vring_desc_state_split *desc_state;
#ifdef RINGS_7_2
	struct vring_desc_extra *desc_extra;
#endif
	dma_addr_t queue_dma_addr;
	size_t queue_size_in_bytes;
#ifdef RINGS_7_2
	u32 vring_align;
	bool may_reduce_num;
#endif
};

struct vring_virtqueue_packed {
	struct {
		unsigned int num;
		struct vring_packed_desc *desc;
		struct vring_packed_desc_event *driver;
		struct vring_packed_desc_event *device;
	} vring;
	bool avail_wrap_counter;
#ifndef RINGS_7_2
	bool used_wrap_counter;
#endif
	u16 avail_used_flags;
	u16 next_avail_idx;
	u16 event_flags_shadow;
	struct vring_desc_state_packed *desc_state;
	struct vring_desc_extra *desc_extra;
	dma_addr_t ring_dma_addr;
	dma_addr_t driver_event_dma_addr;
	dma_addr_t device_event_dma_addr;
	size_t ring_size_in_bytes;
	size_t event_size_in_bytes;
};

#ifdef RINGS_7_2

enum vq_layout {
	VQ_LAYOUT_SPLIT = 0,
	VQ_LAYOUT_PACKED,
	VQ_LAYOUT_SPLIT_IN_ORDER,
	VQ_LAYOUT_PACKED_IN_ORDER,
};

struct used_entry {
	u32 id;
	u32 len;
};

#endif

struct vring_virtqueue {
	struct virtqueue vq;
#ifndef RINGS_7_2
	bool packed_ring;
#endif
	bool use_dma_api;
	bool weak_barriers;
	bool broken;
	bool indirect;
	bool event;
#ifdef RINGS_7_2
	enum vq_layout layout;
#endif
	unsigned int free_head;
#ifdef RINGS_7_2
	struct used_entry batch_last;
#endif
	unsigned int num_added;
	u16 last_used_idx;
#ifdef RINGS_7_2
	u16 last_used;
	bool event_triggered;
#endif
	/* v5.10 has both without names of their own. */
	union {
		struct vring_virtqueue_split split;
		struct vring_virtqueue_packed packed;
	};
	bool (*notify)(struct virtqueue *vq);
	bool we_own_ring;
};

#endif
struct vring_virtqueue keep_vring_virtqueue;
