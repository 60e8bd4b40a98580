"""What capture costs the workload, and how much of a CPU the ring's consumer needs."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from agent.capture.maps import detach
from shared.batch import BatchNumber
from tests.integration.agent.test_stream import running
from tests.loopdisk import loop_disk
from tests.replica import Pump, Replica

DISK_B: Final = 512 << 20
RUN_S: Final = 8
JOBS: Final = {
    "random-4k": ["--rw=randwrite", "--bs=4k", "--ioengine=io_uring", "--iodepth=8"],
    "sequential-1m": ["--rw=write", "--bs=1m", "--ioengine=io_uring", "--iodepth=4"],
}


def cost_and_consumer() -> dict[str, Any]:
    """(a) fio with capture on over fio with capture off, and what part of its writes was captured with their data: at full speed the
    ring overflows, and the rest is marked; (b) records per CPU-second of the consumer."""
    folder = Path("/dev/shm") / f"understudy-bench-{secrets.token_hex(3)}"
    folder.mkdir()
    pin_dir = Path("/sys/fs/bpf/understudy-bench") / secrets.token_hex(4)
    try:
        with loop_disk(folder / "disk", DISK_B) as device:
            fio(device, JOBS["sequential-1m"])  # the backing file gets its pages
            off = {name: fio(device, job) for name, job in JOBS.items()}
            on, consumer = asyncio.run(_with_capture(folder, device, pin_dir))
            again = {name: fio(device, job) for name, job in JOBS.items()}
    finally:
        detach(pin_dir)
        shutil.rmtree(folder)
    result: dict[str, Any] = {"consumer": consumer}
    for name in JOBS:
        base = (off[name] + again[name]) / 2
        result[f"fio {name}"] = {
            "off_mb_per_s": round(base, 1),
            "on_mb_per_s": round(on[name], 1),
            "ratio": round(on[name] / base, 3),
        }
    return result


def fio(device: str, job: list[str]) -> float:
    """MB/s of the job, with O_DIRECT."""
    done = subprocess.run(
        ["fio", "--name=bench", f"--filename={device}", "--direct=1", "--time_based", f"--runtime={RUN_S}",
         "--output-format=json", *job],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return float(json.loads(done.stdout)["jobs"][0]["write"]["bw_bytes"]) / 1e6


async def _with_capture(folder: Path, device: str, pin_dir: Path) -> tuple[dict[str, float], dict[str, Any]]:
    async with running(pin_dir, [device], 256) as stream:
        replica = Replica(folder, [DISK_B])
        pump = Pump(stream, replica)
        await pump.begin()
        stream.rounds.settle()
        await pump.until_ordered()
        replica.close()
        # Before the jobs: they may overflow the ring, and nothing is recorded then until it was caught up with.
        records = stream._capture.counters(0).records
        await asyncio.to_thread(
            subprocess.run,
            ["fio", "--name=fill", f"--filename={device}", "--direct=1", "--rw=randwrite", "--bs=4k",
             "--size=200m", "--ioengine=io_uring", "--iodepth=8"],
            check=True, capture_output=True,
        )  # fmt: skip
        records = stream._capture.counters(0).records - records
        began = time.process_time()
        drain(pump)
        seconds = time.process_time() - began
        if not records:
            raise RuntimeError("nothing was captured: the stream was not in order")
        consumer = {"records": records, "records_per_cpu_s": round(records / seconds)}
        on = {}
        in_order = {}
        for name, job in JOBS.items():
            before = stream._capture.counters(0)
            running_fio = asyncio.create_task(asyncio.to_thread(fio, device, job))
            while not running_fio.done():
                drain(pump)
                await asyncio.sleep(0.002)
            on[name] = running_fio.result()
            after = stream._capture.counters(0)
            seen = after.seen_sectors - before.seen_sectors
            in_order[name] = round((after.captured_sectors - before.captured_sectors) / seen, 3)
        return on, {**consumer, "captured_in_order": in_order}


def drain(pump: Pump) -> None:
    """Everything in the ring becomes batches, which are thrown away."""
    while (cut := pump.stream.cut()) is not None:
        pump.number = cut.batch.number
        pump.stream.acknowledged(BatchNumber(pump.number), BatchNumber(pump.number))
