"""Does a log fit the disks of its epoch? Checked before any of it is written anywhere. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shared.batch import SECTOR, Batch, Range, named_rows
from shared.errors import LogMisfitError
from shared.log.epochs import EpochDisk

Column = npt.NDArray[np.integer]


def check_disks(machine: str, epoch: int, disks: Sequence[EpochDisk]) -> None:
    """Raises LogMisfitError when two disks of the epoch would share an image (one name) or their writes (one number)."""
    for word, values in (("name", [d.name for d in disks]), ("number", [d.number for d in disks])):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise LogMisfitError(
                f"Epoch {epoch} of machine {machine} has two disks with the {word} {twice[0]}",
                cause="they would be written into one image",
            )


def check_extents(batches: Sequence[Batch], disks: Sequence[EpochDisk]) -> None:
    """Raises LogMisfitError for the first extent, or range that is named unreadable, that lies outside of the epoch's disks. Nothing of
    `batches` is written before, nor is what they name looked into: that takes time for each disk that is named.
    """
    sizes = np.zeros(np.iinfo(np.uint16).max + 1, np.uint64)
    listed = np.zeros(len(sizes), np.bool_)
    for disk in disks:
        sizes[disk.number], listed[disk.number] = disk.sectors, True

    def check(batch: Batch, does: str, number: Column, sector: Column, sectors: Column) -> None:
        # Without a sum, which could overflow: length ≤ size, and then sector ≤ size - length.
        size, length = sizes[number], sectors.astype(np.uint64)
        fits = listed[number] & (length <= size) & (sector <= size - np.minimum(length, size))
        if not fits.all():
            bad = int(np.argmin(fits))
            raise _misfit(batch, does, (int(number[bad]), int(sector[bad]), int(sectors[bad])), disks)

    for batch in batches:
        extents = batch.extents
        check(batch, "writes", extents["disk"], extents["sector"], extents["sectors"])
        if batch.meta.unreadable:
            number, sector, sectors = named_rows(batch.meta.unreadable).T
            check(batch, "names unreadable", number, sector.astype(np.uint64), sectors)


def _misfit(batch: Batch, does: str, bad: Range, disks: Sequence[EpochDisk]) -> LogMisfitError:
    number, sector, sectors = bad
    disk = {disk.number: disk for disk in disks}.get(number)
    return LogMisfitError(
        f"Batch {batch.epoch}-{batch.number} {does} sectors {sector} to {sector + sectors}"
        f" of disk {disk.name if disk else f'number {number}'}",
        cause=f"the epoch lists that disk with {disk.sectors} sectors of {SECTOR} bytes"
        if disk
        else "the epoch lists no disk of that number",
    )
