"""The C structures and the numpy types are the same, field by field, according to the object's own type information."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.capture import attach, layout

STRUCT = 4


def section(elf: bytes, name: bytes) -> bytes:
    (at,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, at + i * size) for i in range(count)]
    strings = headers[names][4]
    for header in headers:
        begin = strings + header[0]
        if elf[begin : elf.index(b"\0", begin)] == name:
            return elf[header[4] : header[4] + header[5]]
    raise LookupError(name)


def structures(btf: bytes) -> dict[str, tuple[int, dict[str, int]]]:
    """Size and field offsets, in bytes, of every struct in a .BTF section (little-endian, version 1)."""
    header_b, types_at, types_b, names_at = struct.unpack_from("<IIII", btf, 4)
    names = btf[header_b + names_at :]
    at, end = header_b + types_at, header_b + types_at + types_b
    tail = {1: 4, 3: 12, 14: 4, 17: 4}
    each = {STRUCT: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}

    def text(offset: int) -> str:
        return names[offset : names.index(b"\0", offset)].decode()

    found = {}
    while at < end:
        name, info, size = struct.unpack_from("<III", btf, at)
        kind, count = info >> 24 & 31, info & 0xFFFF
        at += 12
        if kind == STRUCT:
            members = [struct.unpack_from("<III", btf, at + 12 * i) for i in range(count)]
            found[text(name)] = (size, {text(m[0]): (m[2] & 0xFFFFFF) // 8 for m in members})
        at += tail.get(kind, 0) + each.get(kind, 0) * count
    return found


@pytest.fixture(scope="module")
def compiled() -> dict[str, tuple[int, dict[str, int]]]:
    root = Path(__file__).parents[4]
    subprocess.run(["make", "-s", str(attach.OBJECT.relative_to(root))], check=True, cwd=root)
    return structures(section(attach.OBJECT.read_bytes(), b".BTF"))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("tracked_disk", layout.TRACKED),
        ("open_write", layout.OPEN_WRITE),
        ("counters", layout.COUNTERS),
        ("control", layout.CONTROL),
        ("probe", layout.PROBE),
    ],
)
def test_structures_have_the_layout_that_python_believes(
    compiled: dict[str, tuple[int, dict[str, int]]], name: str, dtype: np.dtype[Any]
) -> None:
    assert dtype.fields is not None
    assert compiled[name] == (dtype.itemsize, {field: where[1] for field, where in dtype.fields.items()})


def test_records_have_the_layout_that_python_believes() -> None:
    # Type information leaves the record out; the compiler checks it against the numbers in these lines.
    source = attach.OBJECT.with_suffix(".c").read_text()
    asserted = {
        name: int(at) for name, at in re.findall(r"^RECORD_FIELD\((\w+), (\d+)\);", source, re.MULTILINE)
    }
    believed = {name: where[1] - layout.RING_HEADER_B for name, where in (layout.RECORD.fields or {}).items()}
    del believed["length"]
    assert asserted == believed | {"data": layout.HEADER_B}
    assert layout.RECORD_SIZE == 4160
    assert (
        layout.RECORD_SIZE % 8 == 0
    )  # the kernel rounds up, and positions would not be multiples of the size
