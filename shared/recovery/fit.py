"""Does a log fit the disks of its epoch? Checked before any of it is written anywhere. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from shared.batch import SECTOR, Batch
from shared.errors import LogMisfitError
from shared.log.epochs import EpochDisk


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
    """Raises LogMisfitError for the first extent that lies outside of the epoch's disks. Nothing of `batches` is written before."""
    sizes = np.zeros(np.iinfo(np.uint16).max + 1, np.uint64)
    listed = np.zeros(len(sizes), np.bool_)
    for disk in disks:
        sizes[disk.number], listed[disk.number] = disk.sectors, True
    for batch in batches:
        extents = batch.extents
        size = sizes[extents["disk"]]
        length = extents["sectors"].astype(np.uint64)
        # Without a sum, which could overflow: length ≤ size, and then sector ≤ size - length.
        fits = (
            listed[extents["disk"]]
            & (length <= size)
            & (extents["sector"] <= size - np.minimum(length, size))
        )
        if fits.all():
            continue
        bad = extents[int(np.argmin(fits))]
        number, sector = int(bad["disk"]), int(bad["sector"])
        names = {disk.number: disk for disk in disks}
        raise LogMisfitError(
            f"Batch {batch.epoch}-{batch.number} writes sectors {sector} to {sector + int(bad['sectors'])}"
            f" of disk {names[number].name if number in names else f'number {number}'}",
            cause=f"the epoch lists that disk with {names[number].sectors} sectors of {SECTOR} bytes"
            if number in names
            else "the epoch lists no disk of that number",
        )
