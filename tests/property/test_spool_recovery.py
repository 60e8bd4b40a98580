"""One bit of a spool folder flips: every acknowledged batch is recovered as it was, or its file is kept and named."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from process_server.spool.aside import Aside, Kind, Note
from process_server.spool.file import SpoolFile
from process_server.spool.recovery import Damage, recover_folder
from shared.errors import SpoolError, SpoolVersionError
from shared.keys.sealing import MachineKey
from shared.log import segment
from shared.log.segment import FileHeader
from tests.epoch_ids import eid
from tests.logs import KEY, file_header, make_chain

CHAIN = make_chain(7, sectors=1)
FILES = ((0, 3, True), (3, 5, True), (5, 7, False))
"""From, to, closed."""
RUNS = 50


def key_of(_header: FileHeader) -> MachineKey:
    return KEY


def fill(folder: Path) -> None:
    folder.mkdir()
    for start, end, closed in FILES:
        header = file_header(CHAIN[start])
        key = KEY.file_key(header.salt_bytes)
        file = SpoolFile(folder, header)
        file.append([segment.seal_frame(key, "m1", header.claim, *m) for m in CHAIN[start:end]])
        file.close() if closed else file._close()


def flip(path: Path, at: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def check(folder: Path) -> str:
    """What recovery made of it, and, when an upload finds what that had believed to be whole damaged, a thorough one."""
    try:
        return recover(folder, thorough=False)
    except SpoolError as exc:
        if isinstance(exc, SpoolVersionError):
            raise
        return recover(folder, thorough=True)


def recover(folder: Path, *, thorough: bool) -> str:
    before = {path.name: path.read_bytes() for path in folder.glob("*.seg")}
    aside = Aside("m1", folder.parent / "m1")
    damages: list[Damage] = []

    def set_aside(damage: Damage) -> None:
        note = Note(epoch=1, first=damage.first, last=damage.last, cause=damage.cause)
        aside.put(Kind.DAMAGED, damage.path, note, keep=not damage.whole)
        damages.append(damage)

    try:
        runs = recover_folder(folder, eid(1), key_of, set_aside, thorough=thorough)
    except SpoolVersionError:
        assert {path.name: path.read_bytes() for path in folder.glob("*.seg")} == before
        return "version"
    found: dict[int, str] = {}
    for run in runs:
        for spooled in run:
            rows = segment.check_body(spooled.read().data, "s").rows
            assert spooled.footer().rows == rows
            found |= {row.number: row.digest for row in rows}
    for damage in damages:
        kept = folder.parent / "m1/damaged" / f"00000001-{damage.path.name}"
        assert kept.read_bytes() == before[damage.path.name]
    told = {n for d in damages for n in range(d.first, (d.last or len(CHAIN)) + 1)}
    for m in CHAIN:
        number = int(m.batch.number)
        assert found.get(number) == m.digest.hex() or (number not in found and number in told), number
    assert bool(damages) == bool(aside.problems())
    return "damage" if damages else "whole"


@pytest.mark.parametrize("part", range(4))
def test_whatever_bit_flips_nothing_acknowledged_vanishes_silently(part: int, tmp_path: Path) -> None:
    rng = random.Random(part)
    whole = tmp_path / "whole"
    fill(whole)
    sizes = {path.name: path.stat().st_size for path in sorted(whole.glob("*.seg"))}
    starts = {
        f"{start + 1:012d}.seg": len(segment.encode_file_header(file_header(CHAIN[start])))
        for start, _, _ in FILES
    }
    outcomes: set[str] = set()
    for run in range(RUNS):
        name = rng.choice(list(sizes))
        # Half of them where it matters most: the fixed parts of file and frame headers, and the end.
        near = rng.choice([0, starts[name], sizes[name] - 40]) + rng.randrange(40)
        at = min(near, sizes[name] - 1) if run % 2 else rng.randrange(sizes[name])
        folder = tmp_path / f"{run}" / "00000001"
        folder.parent.mkdir()
        shutil.copytree(whole, folder)
        bit = rng.randrange(8)
        flip(folder / name, at, bit)
        try:
            outcomes.add(check(folder))
        except AssertionError as exc:
            raise AssertionError(f"{name}, byte {at} of {sizes[name]}, bit {bit}: {exc}") from exc
        shutil.rmtree(folder.parent)
    assert outcomes >= {"damage", "whole"}


@pytest.mark.parametrize("bit", [1, 7])
def test_a_file_of_another_version_is_left_alone_with_all_others(bit: int, tmp_path: Path) -> None:
    fill(tmp_path / "00000001")
    flip(tmp_path / "00000001/000000000004.seg", 8, bit)
    assert check(tmp_path / "00000001") == "version"


def test_a_folder_without_damage_is_recovered_whole(tmp_path: Path) -> None:
    fill(tmp_path / "00000001")
    assert check(tmp_path / "00000001") == "whole"
