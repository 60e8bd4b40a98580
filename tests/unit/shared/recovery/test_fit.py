"""Whether batches stay within the disks of their epoch."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest

from shared.batch import EXTENT, Batch, BatchMeta, Op
from shared.errors import LogMisfitError
from shared.log.epochs import EpochDisk
from shared.recovery.fit import check_disks, check_extents
from tests.logs import make_batch

DISKS = (EpochDisk(0, "sda", "", 100), EpochDisk(3, "sdb", "", (1 << 64) - 1), EpochDisk(4, "sdc", "", 8))


def batch(*rows: tuple[int, int, int]) -> Batch:
    """(disk, sector, sectors), all clears."""
    extents = np.zeros(len(rows), EXTENT)
    for i, (disk, sector, sectors) in enumerate(rows):
        extents[i] = (sector, sectors, disk, Op.ZERO, 0)
    return msgspec.structs.replace(make_batch(7).batch, extents=extents, payload=b"")


@pytest.mark.parametrize(
    "row",
    [
        (0, 100, 1),
        (0, 96, 8),
        (1, 0, 8),
        (65535, 0, 1),
        (0, (1 << 64) - 8, 8),
        (0, (1 << 63) - 1, 8),
        (0, 1 << 63, 8),
        (4, 0, 9),
    ],
)
def test_an_extent_outside_of_the_epochs_disks_is_refused_with_its_batch_and_disk(
    row: tuple[int, int, int],
) -> None:
    good = (0, 92, 8)
    with pytest.raises(
        LogMisfitError, match=f"Batch 1-7 writes sectors {row[1]} to {row[1] + row[2]} of disk"
    ):
        check_extents([batch(good), batch(good, row, good)], DISKS)


@pytest.mark.parametrize("named", [(1, 0, 8), (65535, 0, 1), (0, 100, 1), (0, 0, 101), (0, (1 << 55) - 1, 8)])
def test_so_is_what_is_named_unreadable_there(named: tuple[int, int, int]) -> None:
    fits = BatchMeta(unreadable=((0, 92, 8), (3, (1 << 55) - 1, (1 << 55) - 1), (4, 0, 8)))
    check_extents([msgspec.structs.replace(batch(), meta=fits)], DISKS)
    bad = BatchMeta(unreadable=(*fits.unreadable, named))
    with pytest.raises(LogMisfitError, match=f"Batch 1-7 names unreadable sectors {named[1]} to"):
        check_extents([msgspec.structs.replace(batch(), meta=bad)], DISKS)


@pytest.mark.parametrize("seed", range(50))
def test_every_extent_is_judged_as_by_arithmetic_without_limits(seed: int) -> None:
    rng = random.Random(seed)
    sizes = {disk.number: disk.sectors for disk in DISKS}
    disk = rng.choice([0, 1, 3, 4])
    sectors = rng.choice([0, 1, 8, 100, (1 << 32) - 1])
    edge = rng.choice([0, 92, 100, (1 << 63), (1 << 64) - 1 - sectors])
    sector = min(max(0, edge + rng.randint(-2, 2)), (1 << 64) - 1)
    fits = disk in sizes and sector + sectors <= sizes[disk]
    try:
        check_extents([batch((disk, sector, sectors))], DISKS)
    except LogMisfitError:
        assert not fits
    else:
        assert fits


def test_disks_that_would_share_an_image_are_refused_by_name() -> None:
    check_disks("web1", 1, DISKS)
    with pytest.raises(LogMisfitError, match="Epoch 2 of machine web1 has two disks with the name sda"):
        check_disks("web1", 2, [*DISKS, EpochDisk(9, "sda", "", 8)])
    with pytest.raises(LogMisfitError, match="number 0"):
        check_disks("web1", 2, [*DISKS, EpochDisk(0, "sdx", "", 8)])
