"""Types that several threads decode for the first time at once."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from shared import decoding

AT_ONCE = """
import json, sys, threading, types
import msgspec
from shared import decoding
lines = ["from __future__ import annotations", "import msgspec"]
for i in range(60):
    lines += [f"class B{i}(msgspec.Struct):", "    a: int = 0", "    b: list[int] = []", "    c: dict[str, str] = {}"]
    lines += [f"class A{i}(msgspec.Struct):", *(f"    f{k}: B{i} | None = None" for k in range(30))]
    lines += [f"class C{i}(msgspec.Struct):", *(f"    f{k}: list[B{i}] = []" for k in range(30))]
made = sys.modules["made"] = types.ModuleType("made")
exec("\\n".join(lines), made.__dict__)
sys.setswitchinterval(1e-6)
b = {"a": 1, "b": [1], "c": {"x": "y"}}
one, many = {f"f{k}": b for k in range(30)}, {f"f{k}": [b] for k in range(30)}
text, packed = json.dumps(one).encode(), msgspec.msgpack.encode(one)
ways = [
    lambda A, C: decoding.decode(text, type=A).f29.a == 1,
    lambda A, C: decoding.convert(many, C).f29[0].a == 1,
    lambda A, C: decoding.msgpack_decoder(A).decode(packed).f29.a == 1,
    lambda A, C: decoding.json_decoder(list[C]).decode(b"[]") == [],
    lambda A, C: len(decoding.type_info(C).fields) == 30,
]
right = []
for i in range(60):
    together = threading.Barrier(len(ways))
    def use(way):
        together.wait()
        right.append(way(getattr(made, f"A{i}"), getattr(made, f"C{i}")))
    threads = [threading.Thread(target=use, args=(way,)) for way in ways]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
assert right == [True] * 60 * len(ways)
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
