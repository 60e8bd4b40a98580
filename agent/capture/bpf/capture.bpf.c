// SPDX-License-Identifier: GPL-2.0
/*
 * Capture: copies every block write of the tracked disks, in order, into a ring buffer. Layouts in FORMAT.md.
 *
 * Where a write is seen. On blk-mq disks at block_getrq, block_bio_backmerge and block_bio_frontmerge: a bio passes exactly one of
 * them, and only when it really enters a request, so the sectors seen equal those that the kernel counts. block_bio_queue would also
 * see bios that fail with EAGAIN right after it (RWF_NOWAIT): writes that never were. It is used only for disks without requests
 * (md, dm, zram, nvme heads). One kind of bio enters a request unseen: a discard merged into a multi-range discard
 * (bio_attempt_discard_merge has no tracepoint). block_rq_issue finds those: bios of a discard request that are not among the open
 * writes. What no hook sees: pages that kernels before 6.3 gave right to some drivers; their disks are refused (disks.py, given_pages).
 * Any moment between submission and completion is as good as any other for the order, see below.
 *
 * Order. Positions in the ring are given out under the ring's lock. If write B depends on write A, then A completed before B was
 * submitted, so A's records were reserved before B's. Nothing else may be concluded from positions, and nothing else is.
 *
 * A bio is atomic. It counts only when its last piece (flag LAST) is there. If any piece cannot be captured, the WHOLE range of the
 * bio is marked in the dirty bitmap, then the loss count is raised, in the same run of the program: whoever depends on this write is
 * submitted later and carries the raised count in its records. The earlier pieces of such a bio stay behind without a LAST.
 *
 * The loss count is one for all disks. The machine has one stream over all its disks; with a count per disk, a write to disk B that
 * depends on a lost write to disk A would pass for ordered. It is read BEFORE the reservation: read after it, a record could carry a
 * count that already contains a loss which stands behind it, which is harmless, but equally a reader could not tell which batches
 * lie wholly before the loss.
 *
 * Nothing here waits, allocates from the kernel's general memory, or can fail the write.
 */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <stdbool.h>

char LICENSE[] SEC("license") = "GPL";

typedef __u64 u64;
typedef __u32 u32;
typedef __u16 u16;
typedef __u8 u8;

/* ---- what user space must agree on: FORMAT.md, agent/capture/layout.py -------------------------------------------------------------- */

#define MAX_DISKS 64
#define MAX_PIECES 2048 /* of a bio: a batch must be able to carry it (agent/stream/records.py) */
#define DATA_B 4096
#define SECTOR_SHIFT 9
#define GRANULE_SHIFT 5 /* one dirty bit is 32 sectors, 16 KiB */

enum { OP_WRITE = 1, OP_ZERO = 2 };
enum { FLAG_LAST = 1 };
enum { DISK_BIO_BASED = 1 };

enum hook { GETRQ, BACKMERGE, FRONTMERGE, QUEUE, ISSUE, HOOKS };

struct record {
	u64 time_ns; /* CLOCK_BOOTTIME at submission; the same in all pieces of a bio, so (bio, time_ns) names the bio */
	u64 bio;
	u64 loss;
	u64 sector;
	u32 sectors;
	u16 disk;
	u8 op;
	u8 flags;
	u32 piece; /* 0, 1, 2... within the bio */
	u32 bio_sectors;
	u64 reserved;
	u8 data[DATA_B];
};

#define RECORD_FIELD(name, at) _Static_assert(__builtin_offsetof(struct record, name) == (at), "layout of " #name)
RECORD_FIELD(time_ns, 0);
RECORD_FIELD(bio, 8);
RECORD_FIELD(loss, 16);
RECORD_FIELD(sector, 24);
RECORD_FIELD(sectors, 32);
RECORD_FIELD(disk, 36);
RECORD_FIELD(op, 38);
RECORD_FIELD(flags, 39);
RECORD_FIELD(piece, 40);
RECORD_FIELD(bio_sectors, 44);
RECORD_FIELD(data, 56);

struct tracked_disk {
	u32 slot;
	u32 flags;
	u64 diskseq;
	u64 sectors;
};

struct open_write {
	u64 since_ns;
	u64 sector;
	u32 sectors;
	u32 disk;
};

/* One per disk; the kernel side only adds. */
struct counters {
	u64 seen;      /* sectors of writes that entered the device: captured + marked */
	u64 captured;  /* of them: wholly in the ring */
	u64 marked;    /* of them: in the dirty bitmap instead */
	u64 zeroed;    /* of captured: discards and write-zeroes */
	u64 completed; /* sectors whose completion was seen */
	u64 errored;   /* of completed: with an error; marked as well, but not counted in `marked` */
	u64 unseen;    /* sectors that completed without ever having been seen: from before the attachment, or missed */
	u64 records;
	u64 writes;
	u64 base[7];   /* user space's: the audit's baseline */
};

struct control {
	u64 layout;
	u64 attached_ns;
	u64 vmemmap;      /* struct page address = vmemmap + pfn * sizeof(struct page) */
	u64 direct_map;   /* address = direct_map + pfn * page size; 0: data cannot be read, every write is marked */
	u64 page_b;
	u64 loss;
	u64 open_missed;  /* writes that are in flight but not among the open writes */
	u64 passthrough;  /* write commands that bypass bios (SG_IO and the like): what they wrote is unknown */
	u64 unknown_range;/* something was written, and nobody knows where: nothing short of reading the whole disk helps */
	u64 skip;         /* fault injection for the audit's test: the next writes are not seen at all */
	u64 lost_full;        /* why writes were marked: the ring was full */
	u64 lost_unreadable;  /* their data could not be read */
	u64 lost_unsupported; /* an operation, or an encryption, that cannot be copied */
	u64 lost_failed;      /* they failed */
	u64 late;             /* completions that were missed, and noticed when the bio's memory was used again */
	char cause[256];  /* user space's: why direct_map is 0 */
	u64 handover;     /* user space's: boot time since which two generations of the programs are attached; 0: one is */
	u64 misses_before; /* user space's: runs skipped of programs that were replaced */
	u64 slots;        /* user space's: how many were ever given; none is given twice */
	u64 object_hash[4]; /* user space's: SHA-256 of the object that the programs are of */
	u8 numbers[64];   /* user space's, by slot: 1 + the disk's number in the stream; 0: by slot */
	u64 handed_on;    /* bios of one tracked disk that were seen again on another one, before their completion */
	u64 bio_based;    /* a bit a slot: disks without requests that were written to */
};

/* One calibration probe: see agent/capture/calibrate.py. User space fills the first part, the program the second. */
#define PROBE_WORDS 8
struct probe {
	u32 dev;
	u32 armed;
	u64 sector;
	u64 pfn;
	u64 step;         /* distance between candidates for the base of the direct map */
	u64 steps;
	u64 magic[PROBE_WORDS];
	/* result */
	u64 seen;
	u64 bv_page;
	u64 page_struct_b;
	u64 offset;       /* of the data in its page */
	u64 slab;
	u64 direct_map;
	u64 tried;
	u8 readback[DATA_B];
};

/* ---- the kernel's structures: only what is used; CO-RE finds the real offsets -------------------------------------------------- */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct page {
	unsigned long flags;
};
struct bio_vec {
	struct page *bv_page;
	unsigned int bv_len;
	unsigned int bv_offset;
};
struct bvec_iter {
	u64 bi_sector;
	unsigned int bi_size;
	unsigned int bi_idx;
	unsigned int bi_bvec_done;
};
struct gendisk {
	int major;
	int first_minor;
	u64 diskseq; /* since 5.15 */
};
struct block_device {
	struct gendisk *bd_disk;
};
struct bio {
	struct bio *bi_next;
	struct block_device *bi_bdev; /* since 5.12 */
	unsigned int bi_opf;
	u8 bi_status;
	struct bvec_iter bi_iter;
	struct bio_vec *bi_io_vec;
	void *bi_crypt_context; /* only with inline encryption configured */
};
struct request_queue {
	struct gendisk *disk; /* since 5.15 */
};
struct request {
	struct request_queue *q;
	unsigned int cmd_flags;
	struct bio *bio;
};
struct request___before_5_17 {
	struct gendisk *rq_disk;
};

#pragma clang attribute pop

/* The numbers of operations moved between kernels, and so did the name of their type. */
enum req_op {
	REQ_OP_WRITE = 1,
	REQ_OP_DISCARD = 3,
	REQ_OP_SECURE_ERASE = 5,
	REQ_OP_WRITE_ZEROES = 9,
	REQ_OP_DRV_OUT = 35,
};
enum req_opf___before_6_0 {
	REQ_OP_WRITE___before_6_0 = 1,
	REQ_OP_DISCARD___before_6_0 = 3,
	REQ_OP_SECURE_ERASE___before_6_0 = 5,
	REQ_OP_WRITE_ZEROES___before_6_0 = 9,
	REQ_OP_DRV_OUT___before_6_0 = 35,
};
#define OP(name)                                                                                                                   \
	(bpf_core_enum_value_exists(enum req_op, name) ? (u32)bpf_core_enum_value(enum req_op, name)                                \
						       : (u32)bpf_core_enum_value(enum req_opf___before_6_0, name##___before_6_0))
#define OP_MASK 0xff

/* ---- maps ------------------------------------------------------------------------------------------------------------------- */

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 22);
} ring SEC(".maps");

/* Key: major << 20 | first minor of the whole disk. The gendisk's address is not known to user space. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_DISKS);
	__type(key, u32);
	__type(value, struct tracked_disk);
} tracked SEC(".maps");

/* Preallocated (the default): an insertion never asks the kernel's allocator for anything. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 17);
	__type(key, u64);
	__type(value, struct open_write);
} open_writes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_DISKS);
	__type(key, u32);
	__type(value, struct counters);
} counters SEC(".maps");

struct dirty_words {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
};

/* The active dirty bitmap of each disk. User space swaps it by an update, which returns after an RCU grace period: afterwards no
 * program still writes to the former one. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_DISKS);
	__type(key, u32);
	__array(values, struct dirty_words);
} dirty SEC(".maps");

struct control control SEC(".data.control") = {};
struct probe probe SEC(".data.probe") = {};

/* ---- marking ---------------------------------------------------------------------------------------------------------------- */

struct marking {
	u64 first, last; /* granules, inclusive */
	u32 slot;
	u32 failed;
};

static long mark_word(u32 index, struct marking *m)
{
	u64 word = (m->first >> 6) + index;
	u64 bits = ~0ULL;
	u32 slot = m->slot;
	u32 key = word;

	if (word > m->last >> 6)
		return 1;
	if (word == m->first >> 6)
		bits &= ~0ULL << (m->first & 63);
	if (word == m->last >> 6)
		bits &= ~0ULL >> (63 - (m->last & 63));
	void *bitmap = bpf_map_lookup_elem(&dirty, &slot);
	u64 *value = bitmap ? bpf_map_lookup_elem(bitmap, &key) : NULL;
	if (!value || word >> 32) {
		m->failed = 1;
		return 1;
	}
	__sync_fetch_and_or(value, bits);
	return 0;
}

static bool mark(u32 slot, u64 sector, u32 sectors)
{
	struct marking m = {
		.first = sector >> GRANULE_SHIFT,
		.last = (sector + sectors - 1) >> GRANULE_SHIFT,
		.slot = slot,
	};

	if (!sectors)
		return false;
	bpf_loop((m.last >> 6) - (m.first >> 6) + 1, mark_word, &m, 0);
	return !m.failed;
}

/* Marks the range, then raises the loss count. The order of the two is the point: who sees the count sees the bits. A swap of the
 * bitmaps may fall between two words of one range; then this round of catch-up ends unordered, because the count is raised after
 * the swap, and the next round finds the rest. */
static void lose(u32 slot, u64 sector, u32 sectors, u64 *cause)
{
	if (!mark(slot, sector, sectors))
		__sync_fetch_and_add(&control.unknown_range, 1);
	__sync_fetch_and_add(cause, 1);
	__sync_fetch_and_add(&control.loss, 1);
}

/* ---- copying ---------------------------------------------------------------------------------------------------------------- */

struct walk {
	u32 busy;
	u64 vec;   /* address of the next bio_vec; before the walk, of the first */
	u64 page;  /* of the first bio_vec, if it was loaded; else 0. Addresses pass through here, not over the stack: the verifier does
	            * not let us calculate with what it knows as a pointer, and forgets it in a map */
	u32 page_len, page_offset;
	u64 addr;  /* of the data of the current one */
	u32 span;  /* bytes left in the current one */
	u32 begin; /* bytes to leave out at the beginning of the next one */
	u32 left;  /* bytes left in the bio */
	u32 failed, full;
	u64 time_ns, bio, loss, sector;
	u32 piece, bio_sectors;
	u32 slot, records;
};

/* Not on the stack: there the verifier follows every number through all the turns of the loop, and gives up. One per hook and CPU is
 * enough, because the kernel does not re-enter a program on its CPU (since 6.1; `busy` guards older ones). */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, HOOKS);
	__type(key, u32);
	__type(value, struct walk);
} walks SEC(".maps");

/* What capture needs of a bio. Filled by direct loads where the verifier knows the pointer as a bio's (the argument of a tp_btf
 * program: `look`), and by helper calls where it is only a number (`look_by_copy`). The loads are what the fast path costs. */
struct seen_bio {
	u64 key;     /* the bio's address */
	u64 sector;
	u64 diskseq;
	u32 dev;     /* key of `tracked` */
	u32 size;
	u32 op;
	u32 idx, done;
	bool encrypted;
	bool has_walk; /* the walk of this hook and CPU is ours, and holds the addresses below */
};

struct walk_ref {
	struct walk *walk;
};

static __always_inline void take_vec(struct walk *w, u64 page, u32 len, u32 offset)
{
	w->addr = control.direct_map + (page - control.vmemmap) / bpf_core_type_size(struct page) * control.page_b + offset + w->begin;
	w->span = len - w->begin;
	w->begin = 0;
	w->vec += bpf_core_type_size(struct bio_vec);
}

static __always_inline bool next_vec(struct walk *w)
{
	struct bio_vec *vec = (struct bio_vec *)w->vec;
	/* In every kernel so far it is as declared here: one read instead of three. */
	struct vec_copy {
		u64 page;
		u32 len, offset;
	} v = {};

	if (bpf_core_type_size(struct bio_vec) == sizeof(v) && bpf_core_field_offset(struct bio_vec, bv_page) == 0 &&
	    bpf_core_field_offset(struct bio_vec, bv_len) == 8 && bpf_core_field_offset(struct bio_vec, bv_offset) == 12) {
		if (bpf_probe_read_kernel(&v, sizeof(v), vec))
			return false;
	} else if (bpf_core_read(&v.page, sizeof(v.page), &vec->bv_page) || bpf_core_read(&v.len, sizeof(v.len), &vec->bv_len) ||
		   bpf_core_read(&v.offset, sizeof(v.offset), &vec->bv_offset)) {
		return false;
	}
	if (w->begin > v.len)
		return false;
	take_vec(w, v.page, v.len, v.offset);
	return true;
}

/* One piece: at most 4096 bytes of one bio_vec, whose pages are contiguous. Where a sector lies across two bio_vecs (buffers need
 * not be aligned to sectors on some devices), that sector is a piece of its own. */
static long copy_piece(u32 index, struct walk_ref *ref)
{
	struct walk *w = ref->walk;
	u32 straddle = 0;

	if (!w->left)
		return 1;
	if (w->piece >= MAX_PIECES)
		return 1;
	if (!w->span) {
		if (!next_vec(w))
			goto failed;
		if (!w->span)
			return 0;
	}
	u32 len = w->span < w->left ? w->span : w->left;
	if (len > DATA_B)
		len = DATA_B;
	if (len & 511) {
		if (len > 511)
			len &= ~511U;
		else
			straddle = len;
	}
	struct record *r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);
	if (!r) {
		w->full = 1;
		goto failed;
	}
	long error;
	if (straddle) {
		straddle &= 511;
		barrier_var(straddle);
		error = bpf_probe_read_kernel(r->data, straddle & 511, (void *)w->addr);
		u32 rest = 512 - (straddle & 511);
		if (!error)
			error = !next_vec(w) || w->span < rest;
		barrier_var(rest);
		if (!error && rest <= 512)
			error = bpf_probe_read_kernel(r->data + (straddle & 511), rest & 1023, (void *)w->addr);
		w->addr += rest;
		w->span -= rest;
		w->left -= straddle; /* and `len` below */
		len = rest;
	} else if (len == DATA_B) {
		error = bpf_probe_read_kernel(r->data, DATA_B, (void *)w->addr);
		w->addr += len;
		w->span -= len;
	} else {
		barrier_var(len);
		error = bpf_probe_read_kernel(r->data, len & (DATA_B - 1), (void *)w->addr);
		w->addr += len;
		w->span -= len;
	}
	if (error || len > w->left) {
		bpf_ringbuf_discard(r, BPF_RB_NO_WAKEUP);
		goto failed;
	}
	w->left -= len;
	r->time_ns = w->time_ns;
	r->bio = w->bio;
	r->loss = w->loss;
	r->sector = w->sector;
	r->sectors = (straddle + len) >> SECTOR_SHIFT;
	r->disk = w->slot;
	r->op = OP_WRITE;
	r->flags = w->left ? 0 : FLAG_LAST;
	r->piece = w->piece;
	r->bio_sectors = w->bio_sectors;
	r->reserved = 0;
	w->sector += (straddle + len) >> SECTOR_SHIFT;
	w->piece++;
	w->records++;
	bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
	return 0;
failed:
	w->failed = 1;
	return 1;
}

static __always_inline bool capture_data(struct seen_bio *b, struct walk *w)
{
	w->vec += (u64)b->idx * bpf_core_type_size(struct bio_vec);
	w->begin = b->done;
	w->span = 0;
	w->piece = 0;
	w->left = b->size;
	if (w->page && w->begin <= w->page_len)
		take_vec(w, w->page, w->page_len, w->page_offset);
	/* A bio that cannot fit would only fill the ring with pieces that nobody wants. (Others may take the room meanwhile, and a bio
	 * may have more pieces than this: then it fails on the way.) */
	u64 room = bpf_ringbuf_query(&ring, BPF_RB_RING_SIZE) - bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA);
	u64 pieces = ((u64)w->left + DATA_B - 1) / DATA_B;
	if (pieces > MAX_PIECES)
		return false; /* possible where no request bounds a bio: zram, md, dm; from huge pages */
	if (pieces * (sizeof(struct record) + BPF_RINGBUF_HDR_SZ) > room) {
		w->full = 1;
		return false;
	}
	struct walk_ref ref = { .walk = w };
	bpf_loop(1 << 20, copy_piece, &ref, 0);
	return !w->failed && !w->left;
}

static __always_inline bool capture_zero(struct walk *w)
{
	struct record *r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);

	if (!r) {
		w->full = 1;
		return false;
	}
	r->time_ns = w->time_ns;
	r->bio = w->bio;
	r->loss = w->loss;
	r->sector = w->sector;
	r->sectors = w->bio_sectors;
	r->disk = w->slot;
	r->op = OP_ZERO;
	r->flags = FLAG_LAST;
	r->piece = 0;
	r->bio_sectors = w->bio_sectors;
	r->reserved = 0;
	bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
	w->records = 1;
	return true;
}

/* ---- a write is seen -------------------------------------------------------------------------------------------------------- */

static __always_inline struct tracked_disk *find_dev(u32 key, u64 diskseq)
{
	struct tracked_disk *found = bpf_map_lookup_elem(&tracked, &key);

	/* The number was given to another disk. User space will notice; until it does, nothing that is written can be called ordered. */
	if (found && bpf_core_field_exists(struct gendisk, diskseq) && diskseq != found->diskseq) {
		__sync_fetch_and_add(&control.unknown_range, 1);
		__sync_fetch_and_add(&control.loss, 1);
		return NULL;
	}
	return found;
}

static __always_inline struct tracked_disk *find_disk(struct gendisk *disk)
{
	u32 key = (u32)BPF_CORE_READ(disk, major) << 20 | (u32)BPF_CORE_READ(disk, first_minor);
	u64 diskseq = bpf_core_field_exists(disk->diskseq) ? BPF_CORE_READ(disk, diskseq) : 0;

	return find_dev(key, diskseq);
}

static __always_inline void look(struct seen_bio *b, struct bio *bio)
{
	struct gendisk *disk = bio->bi_bdev->bd_disk;

	b->key = (u64)bio;
	b->op = bio->bi_opf & OP_MASK;
	b->size = bio->bi_iter.bi_size;
	b->sector = bio->bi_iter.bi_sector;
	b->idx = bio->bi_iter.bi_idx;
	b->done = bio->bi_iter.bi_bvec_done;
	b->dev = (u32)disk->major << 20 | (u32)disk->first_minor;
	b->diskseq = bpf_core_field_exists(disk->diskseq) ? disk->diskseq : 0;
	b->encrypted = bpf_core_field_exists(bio->bi_crypt_context) && bio->bi_crypt_context;
}

static __always_inline void look_by_copy(struct seen_bio *b, struct bio *bio)
{
	struct gendisk *disk = BPF_CORE_READ(bio, bi_bdev, bd_disk);

	b->key = (u64)bio;
	b->op = BPF_CORE_READ(bio, bi_opf) & OP_MASK;
	b->size = BPF_CORE_READ(bio, bi_iter.bi_size);
	b->sector = BPF_CORE_READ(bio, bi_iter.bi_sector);
	b->idx = BPF_CORE_READ(bio, bi_iter.bi_idx);
	b->done = BPF_CORE_READ(bio, bi_iter.bi_bvec_done);
	b->dev = (u32)BPF_CORE_READ(disk, major) << 20 | (u32)BPF_CORE_READ(disk, first_minor);
	b->diskseq = bpf_core_field_exists(disk->diskseq) ? BPF_CORE_READ(disk, diskseq) : 0;
	b->encrypted = bpf_core_field_exists(bio->bi_crypt_context) && BPF_CORE_READ(bio, bi_crypt_context);
}

static __always_inline bool skipped(void)
{
	/* Signed: two CPUs may both take the last one. */
	return (long long)control.skip > 0 && (long long)__sync_fetch_and_add(&control.skip, -1) > 0;
}

/* Under this key, beside the bio's own, stands the write to the upper of two tracked disks that was handed on to the lower one. (Bios are
 * aligned. An addition, since the verifier may know the key as a pointer.) */
#define HANDED_ON(key) ((key) + 1)

/* Whether the write `before` may still be in flight, although its bio is `now` another disk's. Only a driver without requests hands on the
 * bio that it was given, to another disk, all of it or what is left of it. A bio that is in a request stays there until it completes. */
static __always_inline bool may_be_handed_on(struct open_write *before, struct open_write *now)
{
	return before->disk != now->disk && *(volatile u64 *)&control.bio_based >> (before->disk & (MAX_DISKS - 1)) & 1 &&
	       now->sectors <= before->sectors;
}

/* The memory of this bio is in flight as another write.
 *
 * Nearly always that one's completion was told to nobody: the kernel may skip tracing programs, for some tasks or when one is running (of
 * the millions of writes of a loop device on another, some dozens). It has completed, and is `late`; whether it failed is unknown, so its
 * range is marked for the next round. That raises no loss count: a failed write leaves behind something that a crash could have left as
 * well.
 *
 * Or it is still in flight, on another disk. Some drivers without requests (md linear, md raid0 when it does not count) hand on the very
 * bio that they were given, and the disk below is tracked, too. Then both writes are open until the bio completes, once for both. Were the
 * upper one taken for complete, catch-up might read its range too early, with nothing that makes it read again: the mark may have been
 * harvested by the round that reads. Where there is no room for both, open_missed says that there is one more.
 *
 * A missed completion on a disk without requests may look the same. Then it is not `late` but `handed_on`, and counts as complete one
 * completion later. Nothing stays open for ever that did not before: what no completion and no other write ends, because the memory is not
 * used again, user space drops once its disks are idle, under either key (`Settling.forget_stale`). */
static __always_inline void also_open(u64 key, struct open_write *now)
{
	struct open_write *found = bpf_map_lookup_elem(&open_writes, &key);

	if (found) {
		struct open_write before = *found;
		u64 upper = HANDED_ON(key);
		u32 slot = before.disk;
		bool both = false;

		mark(slot, before.sector, before.sectors);
		if (may_be_handed_on(&before, now)) {
			__sync_fetch_and_add(&control.handed_on, 1);
			both = !bpf_map_update_elem(&open_writes, &upper, &before, BPF_NOEXIST);
			if (!both)
				__sync_fetch_and_add(&control.open_missed, 1);
		}
		if (!both) {
			struct counters *count = bpf_map_lookup_elem(&counters, &slot);
			if (count)
				__sync_fetch_and_add(&count->completed, before.sectors);
			__sync_fetch_and_add(&control.late, 1);
		}
	}
	if (bpf_map_update_elem(&open_writes, &key, now, BPF_ANY))
		__sync_fetch_and_add(&control.open_missed, 1);
}

/* While an upgrade attaches the new programs beside the old ones (agent/capture/members.py), both see the same bio at the same hook,
 * one right after the other. The first has put it among the open writes, at a time since the handover began, and has captured or
 * marked it: the second leaves it alone. So no write goes without, and none is captured twice. A completion that is missed during the
 * handover, by a bio whose memory is then used again for the same range, would deceive this; the audit counts such a write. */
static __always_inline bool handed_over(u64 key, struct open_write *now)
{
	u64 since_ns = *(volatile u64 *)&control.handover;
	struct open_write *before;

	if (!since_ns)
		return false;
	before = bpf_map_lookup_elem(&open_writes, &key);
	return before && before->since_ns >= since_ns && before->sector == now->sector && before->sectors == now->sectors &&
	       before->disk == now->disk;
}

static __noinline int write_seen(struct seen_bio *b, u32 hook)
{
	u32 op = b->op;
	u32 size = b->size;

	if (!(op & 1) || (!size && op == OP(REQ_OP_WRITE))) /* reads are even; a WRITE without data is a flush */
		return 0;
	struct tracked_disk *disk = find_dev(b->dev, b->diskseq);
	if (!disk || (disk->flags & DISK_BIO_BASED) != (hook == QUEUE) || skipped())
		return 0;
	u32 slot = disk->slot;
	u64 mine = 1ULL << (slot & (MAX_DISKS - 1));
	if (hook == QUEUE && !(*(volatile u64 *)&control.bio_based & mine))
		__sync_fetch_and_or(&control.bio_based, mine);
	struct counters *count = bpf_map_lookup_elem(&counters, &slot);
	struct walk *w = bpf_map_lookup_elem(&walks, &hook);
	if (!count || !w)
		return 0;

	u64 loss = *(volatile u64 *)&control.loss;
	u64 key = b->key;
	struct open_write open = {
		.since_ns = bpf_ktime_get_boot_ns(),
		.sector = b->sector,
		.sectors = size >> SECTOR_SHIFT,
		.disk = slot,
	};
	if (bpf_map_update_elem(&open_writes, &key, &open, BPF_NOEXIST)) {
		if (handed_over(key, &open))
			return 0;
		also_open(key, &open);
	}

	bool captured = false, zero = false;
	/* Behind the end: the disk has grown. User space will notice, and begin anew with all of it. */
	bool fits = open.sector + open.sectors <= disk->sectors;
	u64 *cause = &control.lost_unsupported;
	u32 records = 0;
	if (fits && control.direct_map && b->has_walk && !b->encrypted) {
		w->time_ns = open.since_ns;
		w->bio = key;
		w->loss = loss;
		w->sector = open.sector;
		w->bio_sectors = open.sectors;
		w->slot = slot;
		w->records = 0;
		w->failed = w->full = 0;
		if (op == OP(REQ_OP_WRITE))
			captured = capture_data(b, w);
		else if (op == OP(REQ_OP_DISCARD) || op == OP(REQ_OP_WRITE_ZEROES) || op == OP(REQ_OP_SECURE_ERASE))
			captured = zero = capture_zero(w);
		records = w->records;
		if (w->full)
			cause = &control.lost_full;
		else if (w->failed)
			cause = &control.lost_unreadable;
	}
	if (!fits) {
		__sync_fetch_and_add(&control.unknown_range, 1);
		__sync_fetch_and_add(&control.loss, 1);
	} else if (!captured) {
		lose(slot, open.sector, open.sectors, cause);
	}

	__sync_fetch_and_add(&count->seen, open.sectors);
	__sync_fetch_and_add(captured ? &count->captured : &count->marked, open.sectors);
	if (zero)
		__sync_fetch_and_add(&count->zeroed, open.sectors);
	__sync_fetch_and_add(&count->records, records);
	__sync_fetch_and_add(&count->writes, 1);
	return 0;
}

/* Takes the walk of this hook and CPU; false when a run that this one interrupted has it. */
static __always_inline bool take_walk(struct walk *w)
{
	if (w->busy)
		return false;
	w->busy = 1;
	w->page = 0;
	return true;
}

static __always_inline int see(struct bio *bio, u32 hook)
{
	struct seen_bio b = {};
	struct walk *w;

	if (!(bio->bi_opf & 1)) /* reads are even */
		return 0;
	look(&b, bio);
	w = bpf_map_lookup_elem(&walks, &hook);
	if (!w)
		return 0;
	b.has_walk = take_walk(w);
	if (b.has_walk) {
		w->vec = (u64)bio->bi_io_vec;
		/* An element at a varying index is not the verifier's to know; nearly all bios begin at the first. */
		if (!b.idx && b.size && b.op == OP(REQ_OP_WRITE)) {
			w->page = (u64)bio->bi_io_vec->bv_page;
			w->page_len = bio->bi_io_vec->bv_len;
			w->page_offset = bio->bi_io_vec->bv_offset;
		}
	}
	write_seen(&b, hook);
	if (b.has_walk)
		w->busy = 0;
	return 0;
}

SEC("tp_btf/block_getrq")
int BPF_PROG(us_getrq, struct bio *bio)
{
	return see(bio, GETRQ);
}

SEC("tp_btf/block_bio_backmerge")
int BPF_PROG(us_backmerge, struct bio *bio)
{
	return see(bio, BACKMERGE);
}

SEC("tp_btf/block_bio_frontmerge")
int BPF_PROG(us_frontmerge, struct bio *bio)
{
	return see(bio, FRONTMERGE);
}

SEC("tp_btf/block_bio_queue")
int BPF_PROG(us_queue, struct bio *bio)
{
	return see(bio, QUEUE);
}

/* ---- a write completed ------------------------------------------------------------------------------------------------------ */

/* The write to the upper of two disks, whose bio was handed on to the lower one: it completes with that. */
static __always_inline void upper_completed(u64 bio, bool error)
{
	u64 key = HANDED_ON(bio);

	if (!*(volatile u64 *)&control.handed_on)
		return;
	struct open_write *open = bpf_map_lookup_elem(&open_writes, &key);
	if (!open)
		return;
	u32 slot = open->disk;
	u32 sectors = open->sectors;
	if (error)
		lose(slot, open->sector, sectors, &control.lost_failed);
	if (bpf_map_delete_elem(&open_writes, &key))
		return; /* user space just gave it up as completed, and counted it */
	struct counters *count = bpf_map_lookup_elem(&counters, &slot);
	if (!count)
		return;
	__sync_fetch_and_add(&count->completed, sectors);
	if (error)
		__sync_fetch_and_add(&count->errored, sectors);
}

/* `sector` and `sectors` serve where the write is not among the open ones: then it was submitted before the attachment (catch-up
 * distrusts those anyway), or the map was full, or it was missed, which `unseen` tells the audit. */
static __always_inline void write_completed(struct bio *bio, bool error, u64 sector, u32 sectors, bool by_request)
{
	u64 key = (u64)bio;
	struct open_write *open = bpf_map_lookup_elem(&open_writes, &key);
	bool seen = open != NULL;
	u32 slot;

	upper_completed(key, error);
	if (seen) {
		slot = open->disk;
		sector = open->sector;
		sectors = open->sectors;
	} else {
		struct tracked_disk *disk = find_disk(BPF_CORE_READ(bio, bi_bdev, bd_disk));
		/* A bio of a blk-mq disk that ends without a request never was a write (EAGAIN). On other disks, most bios that were not
		 * seen are the driver's own parts of one that was, and what happens to them happens to it. */
		if (!disk || (!by_request && !((disk->flags & DISK_BIO_BASED) && control.open_missed)))
			return;
		slot = disk->slot;
	}
	/* What a failed write left on the disk is unknown. The mark comes before the removal, so that whoever finds the write gone
	 * finds the mark. Without a range (a bio without request is advanced by its driver) it is a flush, unless writes are missing
	 * among the open ones. */
	if (error && (sectors || control.open_missed))
		lose(slot, sector, sectors, &control.lost_failed);
	if (seen && bpf_map_delete_elem(&open_writes, &key))
		return; /* user space just gave it up as completed, and counted it */
	struct counters *count = bpf_map_lookup_elem(&counters, &slot);
	if (!count)
		return;
	if (!seen && control.handover)
		return; /* the other generation saw it, and counted it */
	__sync_fetch_and_add(seen ? &count->completed : &count->unseen, sectors);
	if (error)
		__sync_fetch_and_add(&count->errored, sectors);
}

SEC("tp_btf/block_bio_complete")
int BPF_PROG(us_bio_complete, struct request_queue *q, struct bio *bio)
{
	if (bio->bi_opf & 1)
		write_completed(bio, bio->bi_status != 0, bio->bi_iter.bi_sector, bio->bi_iter.bi_size >> SECTOR_SHIFT, false);
	return 0;
}

struct bio_list {
	u64 bio;
	u32 bytes;
	u32 error;
};

static long bio_of_request_completed(u32 index, struct bio_list *list)
{
	struct bio *bio = (struct bio *)list->bio;

	if (!bio)
		return 1;
	u32 size = BPF_CORE_READ(bio, bi_iter.bi_size);
	if (size > list->bytes)
		return 1; /* the rest of the request goes on */
	/* A bio without data left: the end of a flush sequence, whose data part completed before. */
	if (size)
		write_completed(bio, list->error, BPF_CORE_READ(bio, bi_iter.bi_sector), size >> SECTOR_SHIFT, true);
	list->bytes -= size;
	list->bio = (u64)BPF_CORE_READ(bio, bi_next);
	return 0;
}

/* Runs before the bios of the request are advanced or ended. The kernel then clears their BIO_TRACE_COMPLETION: of a bio that was in
 * a request, block_bio_complete says nothing. */
SEC("tp_btf/block_rq_complete")
int BPF_PROG(us_rq_complete, struct request *rq, int error, unsigned int bytes)
{
	if (!(rq->cmd_flags & 1) || (rq->cmd_flags & OP_MASK) == OP(REQ_OP_DRV_OUT))
		return 0;
	struct bio_list list = {
		.bio = (u64)rq->bio,
		.bytes = bytes,
		.error = error != 0,
	};
	bpf_loop(1 << 16, bio_of_request_completed, &list, 0);
	return 0;
}

/* ---- a request is handed to the driver -------------------------------------------------------------------------------------- */

static long find_merged_discard(u32 index, struct bio_list *list)
{
	struct bio *bio = (struct bio *)list->bio;

	if (!bio)
		return 1;
	struct open_write *open = bpf_map_lookup_elem(&open_writes, &list->bio);
	/* A bio that is among the open writes with another range is the next user of its memory, after a missed completion. */
	if (!open || open->sector != BPF_CORE_READ(bio, bi_iter.bi_sector) ||
	    open->sectors != BPF_CORE_READ(bio, bi_iter.bi_size) >> SECTOR_SHIFT) {
		struct seen_bio b = {};
		u32 hook = ISSUE;
		struct walk *w = bpf_map_lookup_elem(&walks, &hook);

		look_by_copy(&b, bio);
		b.has_walk = w && take_walk(w);
		if (b.has_walk)
			w->vec = (u64)BPF_CORE_READ(bio, bi_io_vec);
		write_seen(&b, ISSUE);
		if (w && b.has_walk)
			w->busy = 0;
	}
	list->bio = (u64)BPF_CORE_READ(bio, bi_next);
	return 0;
}

SEC("tp_btf/block_rq_issue")
int BPF_PROG(us_rq_issue, struct request *rq)
{
	u32 op = rq->cmd_flags & OP_MASK;

	if (op == OP(REQ_OP_DRV_OUT)) {
		struct gendisk *disk;
		if (bpf_core_field_exists(rq->q->disk))
			disk = BPF_CORE_READ(rq, q, disk);
		else
			disk = BPF_CORE_READ((struct request___before_5_17 *)rq, rq_disk);
		if (disk && find_disk(disk)) {
			__sync_fetch_and_add(&control.passthrough, 1);
			__sync_fetch_and_add(&control.loss, 1);
		}
	} else if (op == OP(REQ_OP_DISCARD)) {
		struct bio_list list = { .bio = (u64)rq->bio };
		bpf_loop(1 << 10, find_merged_discard, &list, 0);
	}
	return 0;
}

/* ---- calibration: see agent/capture/calibrate.py ------------------------------------------------------------------------------------ */

struct search {
	u64 base;   /* candidate for the direct map's base */
	u64 offset; /* of the probe's data from the base */
};

static __always_inline bool is_magic(u64 addr)
{
	u64 words[PROBE_WORDS];

	if (bpf_probe_read_kernel(words, sizeof(words), (void *)addr))
		return false;
	for (int i = 0; i < PROBE_WORDS; i++)
		if (words[i] != probe.magic[i])
			return false;
	return true;
}

static long try_base(u32 index, struct search *s)
{
	probe.tried = index + 1;
	if (is_magic(s->base + s->offset)) {
		probe.direct_map = s->base;
		return 1;
	}
	s->base -= probe.step;
	return 0;
}

/* A read that user space issued with O_DIRECT, from a page that holds the magic: at submission the device has not touched it yet. */
static __always_inline int probe_seen(struct bio *bio)
{
	struct gendisk *disk = bio->bi_bdev->bd_disk;

	if (!probe.armed || probe.seen || bio->bi_opf & 1)
		return 0;
	if (((u32)disk->major << 20 | (u32)disk->first_minor) != probe.dev || bio->bi_iter.bi_sector != probe.sector ||
	    bio->bi_iter.bi_size != DATA_B)
		return 0;
	struct bio_vec *vec = (struct bio_vec *)((u64)BPF_CORE_READ(bio, bi_io_vec) +
						 (u64)bio->bi_iter.bi_idx * bpf_core_type_size(struct bio_vec));
	u64 page_struct_b = bpf_core_type_size(struct page);

	probe.page_struct_b = page_struct_b;
	probe.bv_page = (u64)BPF_CORE_READ(vec, bv_page);
	probe.offset = BPF_CORE_READ(vec, bv_offset) + bio->bi_iter.bi_bvec_done;
	probe.slab = (u64)bpf_get_current_task(); /* allocated from a slab: lies in the direct map */
	u64 offset = probe.pfn * control.page_b + probe.offset;
	if (control.direct_map) {
		/* The bases are there: is the page found by them? */
		u64 pfn = (probe.bv_page - control.vmemmap) / page_struct_b;
		u64 addr = control.direct_map + pfn * control.page_b + probe.offset;
		bpf_probe_read_kernel(probe.readback, DATA_B, (void *)addr);
	} else if (probe.step) {
		struct search s = {
			.base = probe.slab - probe.slab % probe.step,
			.offset = offset,
		};
		bpf_loop(probe.steps, try_base, &s, 0);
	}
	__sync_fetch_and_add(&probe.seen, 1);
	return 0;
}

SEC("tp_btf/block_getrq")
int BPF_PROG(us_probe_getrq, struct bio *bio)
{
	return probe_seen(bio);
}

SEC("tp_btf/block_bio_queue")
int BPF_PROG(us_probe_queue, struct bio *bio)
{
	return probe_seen(bio);
}
