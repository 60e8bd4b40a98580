"""Large buffers are given back when they are let go of, whatever was freed before."""

from __future__ import annotations

import subprocess
import sys

_CHILD = """
import sys
from shared.host import memory

def resident_b():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024

if sys.argv[1] == "fixed":
    memory.give_back_large_buffers()
del_me = bytes([1]) * (24 << 20)  # freed, it raises glibc's threshold to its size
del del_me
before = resident_b()
buffers = [bytes([2]) * (1 << 20) for _ in range(40)]
small = [bytes([3]) * 4000 for _ in range(2000)]  # stays behind them
del buffers
print(resident_b() - before)
"""


def kept_b(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", _CHILD, how], check=True, capture_output=True).stdout)


def test_what_large_buffers_took_is_given_back_though_small_ones_stay() -> None:
    assert kept_b("fixed") < 12 << 20
    assert kept_b("as it is") > 30 << 20, "then this needs to be done no more"
