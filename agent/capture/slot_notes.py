"""What is pinned beside a capture for the case that disks.json is lost: by slot, the id of its disk (`ids`), and what that file says of it
(`notes`). So it is known as long as the capture itself.

Bytes of pins are as foreign as those of a file: another version's, or what somebody wrote there. What they say is looked at before
anything is done by it, their size before that. Which of this and of the file is the later, says `pinned_lines.with_pins`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from agent.capture import layout, libbpf
from agent.capture.binding import is_id

IDS: Final = "ids"
NOTES: Final = "notes"
PINS: Final = {IDS: layout.ID_B, NOTES: layout.NOTE_B}
"""Bytes of a value of each; filled up with zeros, and all zeros where nothing is known."""


class SlotNote(NamedTuple):
    id: str = ""
    """Empty: not known."""
    line: bytes = b""
    """As it was pinned: JSON of `bindings.Bound`, if it is whole; empty: not known."""
    is_damaged: bool = False
    """Something else than an id is there, or an id that another slot has, too."""


def read(pin_dir: Path, slots: Sequence[int]) -> list[SlotNote]:
    """Of each of these slots. Raises BpfError."""
    ids, lines = (_values(pin_dir / name, slots, value_b) for name, value_b in PINS.items())
    texts = [_id(value) for value in ids]
    times = Counter(texts)
    found = []
    for value, text, line in zip(ids, texts, lines, strict=True):
        is_whole = bool(text) and times[text] == 1
        found.append(SlotNote(text, line) if is_whole else SlotNote(is_damaged=bool(value)))
    return found


def write(pin_dir: Path, ids: Mapping[int, str], lines: Mapping[int, bytes]) -> None:
    """By slot. No slot is given twice, so one that a kill left without is nobody's, and never another's. (One value is stored at once.) A
    line that is too long is not pinned: then its id alone is known, as it is of an older agent's. Raises BpfError."""
    for name, texts in ((IDS, {slot: id_.encode() for slot, id_ in ids.items()}), (NOTES, lines)):
        fd = libbpf.get(pin_dir / name)
        try:
            for slot, text in texts.items():
                value = text if len(text) <= PINS[name] else b""
                libbpf.update(fd, _key(slot), value.ljust(PINS[name], b"\0"))
        finally:
            os.close(fd)


def _id(value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return ""
    return text if is_id(text) else ""


def _values(path: Path, slots: Sequence[int], value_b: int) -> list[bytes]:
    """Without the zeros behind them; empty where there is no such pin (an older agent attached it), or one of another size."""
    if not path.exists():
        return [b""] * len(slots)
    fd = libbpf.get(path)
    try:
        if not libbpf.has_shape(fd, libbpf.Shape(libbpf.MAP_ARRAY, 4, value_b, layout.MAX_DISKS)):
            return [b""] * len(slots)
        return [(libbpf.lookup(fd, _key(slot), value_b) or b"").rstrip(b"\0") for slot in slots]
    finally:
        os.close(fd)


def _key(slot: int) -> bytes:
    return slot.to_bytes(4, "little")
