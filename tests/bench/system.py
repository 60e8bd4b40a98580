"""Measured on whole labs: initial replication against plain uploads, RPO under a steady load, apply against plain page writes."""

from __future__ import annotations

import asyncio
import os
import random
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from master_target.apply import Applied, DiskTarget, Interval, apply, make_interval
from master_target.bridge import BridgeSettings
from master_target.targets.page_blob import PageBlobTarget
from shared.batch import Batch, BatchNumber, Epoch
from shared.blob import BlobStore
from shared.log import epochs
from shared.log.epochs import EpochInfo
from shared.log.reader import LogReader
from shared.recovery.parallel import parallel
from shared.recovery.position import Position
from tests.bench.stats import percentile
from tests.lab import Lab, lab
from tests.labstore import machine_store, vault
from tests.loopdisk import loop_disk

INITIAL_B: Final = 512 << 20
LOAD_B: Final = 1 << 30
LOAD_RATE_MB: Final = 10
LOAD_S: Final = 150
APPLY_S: Final = 30
UPLOADS: Final = 4
"""What the process server uploads at a time."""
WIDTH: Final = 8


@contextmanager
def disk(size_b: int) -> Iterator[str]:
    folder = Path("/dev/shm") / f"understudy-bench-{secrets.token_hex(3)}"
    folder.mkdir()
    try:
        with loop_disk(folder / "disk", size_b) as device:
            yield device
    finally:
        shutil.rmtree(folder)


def initial_replication() -> dict[str, Any]:
    """(c) Disk to blob, over uploading the same sealed segments with azure-storage-blob alone, same blocks, same concurrency."""
    with disk(INITIAL_B) as device:
        with Path(device).open("r+b", buffering=0) as file:
            for _ in range(INITIAL_B >> 20):
                file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())  # what the kernel writes back later would be captured, and sent twice
        with lab([device], point_interval=60) as site:
            site.wait_ordered(300)
            site.create_point()
            site.stop("master-target")
            return asyncio.run(_against_uploads(site))


async def _against_uploads(site: Lab) -> dict[str, Any]:
    async with machine_store(site) as store:
        reader = LogReader(store, "lab")
        info = await epochs.read_epoch(store, 1)
        entries = await reader.entries(info.id)
        full = [entry for entry in entries if not entry.ordered or entry.ordered[0][0] > entry.first]
        seconds = (full[-1].written_ns - info.created_ns) / 1e9
        sealed = [await store.read(entry.blob) for entry in full]
        began = time.monotonic()
        await parallel((partial(_upload, store, i, data) for i, data in enumerate(sealed)), UPLOADS)
        alone = time.monotonic() - began
    sealed_b = sum(map(len, sealed))
    return {
        "disk_mb": round(INITIAL_B / 1e6),
        "sealed_mb": round(sealed_b / 1e6),
        "mb_per_s": round(INITIAL_B / 1e6 / seconds, 1),
        "upload_alone_mb_per_s": round(sealed_b / 1e6 / alone, 1),
        "ratio": round(alone / seconds * INITIAL_B / sealed_b, 3),
    }


async def _upload(store: BlobStore, number: int, data: bytes) -> None:
    await store.create(f"bench/{number}.seg", data)


def steady_load() -> dict[str, Any]:
    """(d) RPO and apply lag under a steady 10 MB/s of random 4 KiB writes in 1 GiB, points every 60 s."""
    with disk(LOAD_B) as device, lab([device], point_interval=60) as site:
        site.wait_ordered(300)
        site.create_point()
        with loaded(device, LOAD_S):
            rpo, lag = [], []
            end = time.monotonic() + LOAD_S - 2
            while time.monotonic() < end:
                machine = site.machine()
                if machine["state"] != "ordered":
                    raise AssertionError(f"the load was too much: {machine['state']}: {machine['cause']}")
                rpo.append(machine["rpo_s"])
                lag += [_lag_s(hop["detail"]) for hop in machine["hops"] if hop["name"] == "apply"]
                time.sleep(1)
        return {
            "samples": len(rpo),
            "rpo_p50_s": round(percentile(rpo, 50), 2),
            "rpo_p99_s": round(percentile(rpo, 99), 2),
            "apply_lag_p50_s": round(percentile(lag, 50), 1),
            "apply_lag_p99_s": round(percentile(lag, 99), 1),
            "segment_seconds": 5,
            "ratio_rpo_p99_to_limit_60_s": round(percentile(rpo, 99) / 60, 3),
        }


def apply_speed() -> dict[str, Any]:
    """(e) Applying a log of random 4 KiB writes, over raw page writes of the same runs; with and without bridging of gaps."""
    with disk(LOAD_B) as device, lab([device], point_interval=60) as site:
        site.wait_ordered(300)
        site.stop("master-target")
        with loaded(device, APPLY_S):
            time.sleep(APPLY_S)
        site.create_point()
        return asyncio.run(_against_page_writes(site))


async def _against_page_writes(site: Lab) -> dict[str, Any]:
    async with machine_store(site) as store:
        reader = LogReader(store, "lab")
        info = await epochs.read_epoch(store, 1)
        entries = await reader.entries(info.id)
        batches: list[Batch] = []
        for entry in entries:
            if entry.ordered and entry.ordered[0][0] == entry.first:
                batches += await reader.batches(info.id, entry, vault(site))
        intervals = await _intervals(batches, info)
        size_b = info.disks[0].sectors * 512
        raw_s = await _raw(store, size_b, intervals)
        result: dict[str, Any] = {}
        for name, bridging in (("plain", None), ("bridged", BridgeSettings(behind_s=0))):
            target = await PageBlobTarget.open(store, "bench", f"bench-{name}", size_b)
            done = Applied()
            for interval in intervals:
                one = await apply(interval, [DiskTarget(0, size_b, target)], [0], bridging)
                done.payload_b += one.payload_b
                done.needed_b += one.needed_b
                done.written_b += one.written_b
                done.requests += one.requests
                done.seconds += one.seconds
            await target.close()
            result[name] = {
                "payload_mb_per_s": round(done.payload_b / 1e6 / done.seconds, 2),
                "requests": done.requests,
                "amplification": round(done.written_b / done.needed_b, 2),
                "ratio_to_raw_page_writes": round(raw_s / done.seconds, 3),
            }
        return {"payload_mb": round(sum(i.payload_b for i in intervals) / 1e6), **result}


async def _intervals(batches: list[Batch], info: EpochInfo, limit_b: int = 64 << 20) -> list[Interval]:
    """The batches as apply would group them, renumbered from the start of an epoch."""
    found: list[Interval] = []
    group: list[Batch] = []
    start = 0
    for i, batch in enumerate(batches):
        group.append(batch)
        if sum(len(b.payload) for b in group) >= limit_b or i == len(batches) - 1:
            end = Position(Epoch(1), BatchNumber(i + 1))
            found.append(await make_interval(Position(Epoch(1), BatchNumber(start)), end, group, info))
            start, group = i + 1, []
    return found


async def _raw(store: BlobStore, size_b: int, intervals: list[Interval]) -> float:
    """Seconds that the same runs take as page writes without lease, cursor or anything else."""
    await store.pages.create("bench/raw", -(-size_b // 512) * 512 + 512, {})
    writes = [
        partial(store.pages.write, "bench/raw", run.offset_b, bytes(run.data), None, None)
        for interval in intervals
        for runs in interval.runs.values()
        for run in runs
    ]
    began = time.monotonic()
    await parallel(writes, WIDTH)
    return time.monotonic() - began


@contextmanager
def loaded(device: str, seconds: float) -> Iterator[None]:
    """fio: random 4 KiB writes at a steady rate."""
    process = subprocess.Popen(
        ["fio", "--name=load", f"--filename={device}", "--direct=1", "--rw=randwrite", "--bs=4k",
         f"--rate={LOAD_RATE_MB * 1000 * 1000}", "--time_based", f"--runtime={seconds}", "--ioengine=psync",
         f"--randseed={random.getrandbits(31)}"],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        if process.wait(60) != 0:
            raise AssertionError("fio failed")


def _lag_s(detail: str) -> float:
    found = re.search(r"behind, (\d+(?:\.\d+)?) s", detail)
    return float(found[1]) if found else float(np.nan)
