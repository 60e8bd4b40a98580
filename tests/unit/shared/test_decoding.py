"""Types that several threads decode for the first time at once."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from shared import decoding

AT_ONCE = """
import json, sys, threading, types
from shared import decoding
lines = ["from __future__ import annotations", "import msgspec"]
for i in range(100):
    lines += [f"class B{i}(msgspec.Struct):", "    a: int = 0", "    b: list[int] = []", "    c: dict[str, str] = {}"]
    lines += [f"class A{i}(msgspec.Struct):", *(f"    f{k}: B{i} | None = None" for k in range(30))]
made = sys.modules["made"] = types.ModuleType("made")
exec("\\n".join(lines), made.__dict__)
sys.setswitchinterval(1e-6)
data = json.dumps({f"f{k}": {"a": 1, "b": [1], "c": {"x": "y"}} for k in range(30)}).encode()
for i in range(100):
    type_ = getattr(made, f"A{i}")
    together = threading.Barrier(3)
    def decode():
        together.wait()
        assert decoding.decode(data, type=type_).f29.a == 1
    threads = [threading.Thread(target=decode) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print("all decoded")
"""


def test_threads_that_decode_a_new_type_at_once_do_not_end_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE], check=False, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "all decoded\n", "")


class Known(msgspec.Struct):
    number: int


def test_what_is_wrong_is_told_as_msgspec_does() -> None:
    assert decoding.decode(b'{"number": 1}', type=Known) == Known(1)
    assert decoding.convert({"number": "1"}, Known, strict=False) == Known(1)
    for wrong in (b'{"number": "1"}', b"{", b""):
        with pytest.raises(msgspec.DecodeError):
            decoding.decode(wrong, type=Known)
    with pytest.raises(msgspec.ValidationError):
        decoding.convert({"number": "1"}, Known)
