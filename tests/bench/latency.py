"""What capture costs a workload at a steady rate: latency percentiles, CPU of the kernel's programs and of the agent; and what each daemon
of a whole installation needs, idle and under that load."""

from __future__ import annotations

import json
import os
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from agent.capture import libbpf, pins
from tests.bench.system import disk
from tests.lab import Lab, lab

DISK_B: Final = 1 << 30
RATE_B: Final = 54_000_000
"""What Site Recovery carries at most of one machine, a second."""
RUN_S: Final = 20
SETTLE_S: Final = 15
_STATISTICS: Final = Path("/proc/sys/kernel/bpf_stats_enabled")
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_PERCENTILES: Final = {"p50_us": "50.000000", "p99_us": "99.000000", "p99_9_us": "99.900000"}


def latency() -> dict[str, Any]:
    """(a') 54 MB/s of random 4 KiB writes: without capture; with capture and nothing else (the ring fills, then only the bitmap is
    marked); with the agent sending beside the workload and the servers on the other CPU; with a whole installation on the same CPUs."""
    with disk(DISK_B) as device:
        fill(device)
        off = [steady(device)]
        with lab([device], point_interval=600, ring_mib=256) as site, statistics():
            site.wait_ordered(300)
            site.create_point()
            time.sleep(SETTLE_S)
            idle = usage(site, SETTLE_S)
            with measured(site) as everything:
                everything |= steady(device)
            site.wait_ordered(300)
            with pinned(site), measured(site) as apart:
                apart |= steady(device)
            for daemon in ("agent", "master-target", "process-server", "azurite"):
                site.stop(daemon)
            with measured(site) as alone:
                alone |= steady(device)
        off.append(steady(device))
    without = {name: round(sum(run[name] for run in off) / len(off), 1) for name in off[0]}
    return {
        "rate_mb_per_s": RATE_B / 1e6,
        "idle": idle,
        "capture_off": without,
        "capture_alone": alone | _ratios(alone, without),
        "servers_on_the_other_cpu": apart | _ratios(apart, without),
        "whole_installation": everything | _ratios(everything, without),
    }


def _ratios(run: dict[str, Any], without: dict[str, float]) -> dict[str, float]:
    return {f"ratio_{name}": round(run[name] / without[name], 2) for name in _PERCENTILES}


def fill(device: str) -> None:
    """The backing file gets its pages."""
    with Path(device).open("r+b", buffering=0) as file:
        for _ in range(DISK_B >> 20):
            file.write(os.urandom(1 << 20))


def steady(device: str) -> dict[str, float]:
    """Latencies of the load, from before a write is submitted (on one CPU it may have completed before that is done) to its completion, and
    the rate that it really had."""
    done = subprocess.run(
        ["fio", "--name=steady", f"--filename={device}", "--direct=1", "--rw=randwrite", "--bs=4k", "--ioengine=io_uring",
         "--iodepth=8", "--lat_percentiles=1", f"--rate={RATE_B}", "--time_based", f"--runtime={RUN_S}", "--output-format=json"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    write = json.loads(done.stdout)["jobs"][0]["write"]
    found = write["lat_ns"]["percentile"]
    return {
        **{name: round(found[percent] / 1000, 1) for name, percent in _PERCENTILES.items()},
        "mb_per_s": round(write["bw_bytes"] / 1e6, 1),
    }


@contextmanager
def pinned(site: Lab) -> Iterator[None]:
    """The servers on the last CPU, this process (so the load) and the agent on the others."""
    cpus = os.sched_getaffinity(0)
    servers = {max(cpus)}
    for daemon, pid in running(site).items():
        _pin(pid, cpus - servers if daemon == "agent" else servers)
    os.sched_setaffinity(0, cpus - servers)
    try:
        yield
    finally:
        for pid in (*running(site).values(), os.getpid()):
            _pin(pid, cpus)


def _pin(pid: int, cpus: set[int]) -> None:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cpus)


@contextmanager
def statistics() -> Iterator[None]:
    """The kernel counts the run time of BPF programs meanwhile (some nanoseconds a run)."""
    before = _STATISTICS.read_text()
    _STATISTICS.write_text("1")
    try:
        yield
    finally:
        _STATISTICS.write_text(before)


@contextmanager
def measured(site: Lab) -> Iterator[dict[str, Any]]:
    """Fills in what programs and daemons used of a CPU, and of memory, while the block ran."""
    found: dict[str, Any] = {}
    programs, daemons, began = programs_s(site), cpu_s(site), time.monotonic()
    yield found
    elapsed_s = time.monotonic() - began
    found["programs_cores"] = round((programs_s(site) - programs) / elapsed_s, 3)
    found["daemons"] = _used(site, daemons, elapsed_s)


def usage(site: Lab, seconds: float) -> dict[str, Any]:
    before = cpu_s(site)
    time.sleep(seconds)
    return _used(site, before, seconds)


def _used(site: Lab, before: dict[str, float], elapsed_s: float) -> dict[str, Any]:
    return {
        daemon: {"cores": round((after - before[daemon]) / elapsed_s, 3), "resident_mib": resident_mib(pid)}
        for daemon, after, pid in ((name, cpu_of(pid), pid) for name, pid in running(site).items())
        if daemon in before
    }


def programs_s(site: Lab) -> float:
    """Run time of the capture programs since they were loaded."""
    pin_dir = Path(tomllib.loads((site.folder / "agent.toml").read_text())["pin_dir"])
    total_ns = 0
    for program in pins.program_ids(pin_dir).values():
        fd = libbpf.program_fd(program)
        try:
            total_ns += int(libbpf.program_info(fd).run_time_ns)
        finally:
            os.close(fd)
    return total_ns / 1e9


def running(site: Lab) -> dict[str, int]:
    """Process id by daemon."""
    daemons: dict[str, Any] = site.status()["daemons"]
    return {name: daemon["pid"] for name, daemon in daemons.items() if daemon["pid"]}


def cpu_s(site: Lab) -> dict[str, float]:
    return {name: cpu_of(pid) for name, pid in running(site).items()}


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def resident_mib(pid: int) -> int:
    """Anonymous memory: without the mapped kernel ring, whose size is configured."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024)
