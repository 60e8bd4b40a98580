"""The memory that the BPF programs and Python share, as numpy types. The one other place is
agent/capture/bpf/capture.bpf.c; bytes in agent/capture/bpf/FORMAT.md.

`LAYOUT` changes with any of them: an agent continues only what pins of its own layout hold.
"""

from __future__ import annotations

from typing import Final

import numpy as np

LAYOUT: Final = 1
MAX_DISKS: Final = 64
SECTOR: Final = 512
GRANULE_SECTORS: Final = 32
"""One bit of a dirty bitmap: 16 KiB."""
AUDIT_WORDS: Final = 6
FORGOTTEN_WORD: Final = 6
"""Of the seven words of `base` in COUNTERS, six are the audit's; the last counts completed sectors that only
`Capture.forget_open` knows of."""

DATA_B: Final = 4096
HEADER_B: Final = 56
RING_HEADER_B: Final = 8
LEAST_STATE_WORDS: Final = 4096
UNREADABLE_WORDS: Final = 1 << 17
"""1 MiB: room for 1 GiB of sectors that lie together (agent/stream/unreadable_words.py)."""
ID_B: Final = 128
"""As long as the id of a disk may be."""
SERVER_WORDS: Final = 33
"""264 bytes: room for a host name and a port."""
RECORD_SIZE: Final = RING_HEADER_B + HEADER_B + DATA_B
BUSY: Final = np.uint32(1 << 31)
DISCARDED: Final = np.uint32(1 << 30)
FLAG_LAST: Final = 1
DISK_BIO_BASED: Final = 1

RECORD: Final = np.dtype(
    {
        "names": [
            "length",
            "time_ns",
            "bio",
            "loss",
            "sector",
            "sectors",
            "disk",
            "op",
            "flags",
            "piece",
            "bio_sectors",
        ],
        "formats": ["<u4", "<u8", "<u8", "<u8", "<u8", "<u4", "<u2", "u1", "u1", "<u4", "<u4"],
        "offsets": [0, 8, 16, 24, 32, 40, 44, 46, 47, 48, 52],
        "itemsize": RECORD_SIZE,
    }
)
"""One ring record: the ring's own header (its first word is `length`, with the busy and discard bits), then
ours. Data follow at 64."""
DATA_AT: Final = RING_HEADER_B + HEADER_B

TRACKED: Final = np.dtype([("slot", "<u4"), ("flags", "<u4"), ("diskseq", "<u8"), ("sectors", "<u8")])
OPEN_WRITE: Final = np.dtype([("since_ns", "<u8"), ("sector", "<u8"), ("sectors", "<u4"), ("disk", "<u4")])
COUNTERS: Final = np.dtype(
    [
        ("seen", "<u8"),
        ("captured", "<u8"),
        ("marked", "<u8"),
        ("zeroed", "<u8"),
        ("completed", "<u8"),
        ("errored", "<u8"),
        ("unseen", "<u8"),
        ("records", "<u8"),
        ("writes", "<u8"),
        ("base", "<u8", (7,)),
    ]
)
CONTROL: Final = np.dtype(
    [
        ("layout", "<u8"),
        ("attached_ns", "<u8"),
        ("vmemmap", "<u8"),
        ("direct_map", "<u8"),
        ("page_b", "<u8"),
        ("loss", "<u8"),
        ("open_missed", "<u8"),
        ("passthrough", "<u8"),
        ("unknown_range", "<u8"),
        ("skip", "<u8"),
        ("lost_full", "<u8"),
        ("lost_unreadable", "<u8"),
        ("lost_unsupported", "<u8"),
        ("lost_failed", "<u8"),
        ("late", "<u8"),
        ("cause", "S256"),
        ("handover", "<u8"),
        ("misses_before", "<u8"),
        ("slots", "<u8"),
        ("object_hash", "<u8", (4,)),
        ("numbers", "u1", (MAX_DISKS,)),
        ("handed_on", "<u8"),
        ("bio_based", "<u8"),
    ]
)
PROBE_WORDS: Final = 8
PROBE: Final = np.dtype(
    [
        ("dev", "<u4"),
        ("armed", "<u4"),
        ("sector", "<u8"),
        ("pfn", "<u8"),
        ("step", "<u8"),
        ("steps", "<u8"),
        ("magic", "<u8", (PROBE_WORDS,)),
        ("seen", "<u8"),
        ("bv_page", "<u8"),
        ("page_struct_b", "<u8"),
        ("offset", "<u8"),
        ("slab", "<u8"),
        ("direct_map", "<u8"),
        ("tried", "<u8"),
        ("readback", "u1", (DATA_B,)),
    ]
)


def kernel_dev(major: int, minor: int) -> int:
    """A device number as the kernel keeps it, the key of the tracked map."""
    return major << 20 | minor


def state_words(ring_b: int) -> int:
    """Length of the agent's state (agent/stream/state.py): 96 words, and one for each record of the ring; no less than a state ever had."""
    return max(LEAST_STATE_WORDS, 96 + ring_b // RECORD_SIZE)


def bitmap_words(sectors: int) -> int:
    """Length, in 64-bit words, of the dirty bitmap of a disk."""
    granules = -(-sectors // GRANULE_SECTORS)
    return -(-granules // 64)
