"""What a process that was killed, or a power cut, left in an epoch's spool folder, made segments again. Blocking.

Recovery takes from a file exactly its whole batches: those the footer lists if there is one, else those that
a scan opens. Batches behind the last acknowledged one may be among them. That is
right: they are what the agent sent, in order, and it is told about them in Welcome.

Why the footer is enough, and a restart need not read whole spools. A footer is written when all batches that it lists
were made durable before (by `append`, or by the recovery that wrote it after a sync and a scan of what the disk
gave back), and it has a CRC. So whether it is on the disk or only in the page cache, what it says of them is
true. A file without one is read whole, and from the disk: a killed process may have left in the page cache what
it never synced. Bytes that rotted since are found by whoever reads them for upload (`SpooledSegment.read`);
then the folder is recovered *thoroughly*, which reads every file and compares it with its footer's digest.

What cannot be read, and why nothing acknowledged vanishes silently (I5). A file is dropped, or its tail forgotten,
only where no acknowledged batch can have been:

- a file that ends inside its header, or has nothing but zeros behind it: batches are acknowledged after the
  first sync, which covers the header and one whole batch;
- a tail that ends inside a frame whose header is whole (or inside that header): a sync covers all frames of
  a group with the file's size, so a frame that the file does not hold wholly was never synced;
- what lies behind the last durable batch of a file where the next file goes on: there a sync had failed, and
  nothing behind was acknowledged.

Everything else may have been acknowledged, and was damaged since: such a file is *set aside* (aside.py), whole,
with an event that names the batches. What of it can be opened up to the damage is still uploaded; what lies
behind a hole is another *run* of files, which the caller sorts. How far the log reaches is then told to the
agent in Welcome, and if it has let go of what was lost it begins a new epoch. A file of a newer format version
is left as it is, and the machine's log waits. So it does for a file that the disk does not give (a path that is away comes
back), until the caller gives up waiting: then it is damaged.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from process_server.spool.file import SUFFIX, SpooledSegment, write_footer
from shared.daemon import logging
from shared.errors import (
    IntegrityError,
    SegmentTruncatedError,
    SegmentVersionError,
    SpoolVersionError,
    cause_of,
)
from shared.host import durable
from shared.keys.sealing import MachineKey
from shared.log import segment
from shared.log.draft import Draft
from shared.log.epoch_id import UNKNOWN, EpochId
from shared.log.segment import BatchRow, FileHeader, Footer

_END_B: Final = 64 * 1024
"""Holds the header of every file, and the footer of nearly every one."""

_log = logging.get()

KeyOf = Callable[[FileHeader], MachineKey]
"""Raises KeyWantedError for a key that it does not have yet."""


class KeyWantedError(Exception):
    """Recovery cannot go on without a key that must be asked for elsewhere: recovery runs in a thread, and whoever has keys is reached
    from the event loop, perhaps over the network, perhaps not for weeks. So no thread waits for it; the caller gets it and begins anew.
    """

    def __init__(self, header: FileHeader) -> None:
        super().__init__(header.machine)
        self.header: Final = header


class Damage(NamedTuple):
    """A file that may hold acknowledged batches that nobody can read."""

    path: Path
    first: int
    last: int
    """0: not known."""
    cause: str
    whole: bool
    """No batch of it can be read; else those before `first` can, and the file is still needed for them."""
    claim: str
    """Of the file's epoch; empty if it does not say."""
    foreign: bool = False
    """It is another epoch's, and undamaged as far as anybody looked."""


SetAside = Callable[[Damage], None]
GiveUp = Callable[[Path], bool]
"""Whether a file that the disk did not give is waited for no longer."""


class _Closed(NamedTuple):
    """A file whose footer was believed."""

    header: FileHeader
    rows: tuple[BatchRow, ...]
    body_b: int
    digest: bytes


class _Found(NamedTuple):
    path: Path
    draft: Draft | _Closed | None
    """Its batches that can be read."""
    damage: Damage | None
    certain: bool
    """Batches of the damaged part were acknowledged, whatever the next file says."""


def recover_folder(
    folder: Path,
    epoch: EpochId,
    key_of: KeyOf,
    set_aside: SetAside,
    *,
    thorough: bool = False,
    give_up: GiveUp = lambda _path: False,
) -> list[list[SpooledSegment]]:
    """The segments of an epoch's spool folder in order, in runs each of whose files continues the one before. What another epoch with the
    same number left there is set aside first, whole: nothing of it is ever taken for a part of this one.

    Raises OSError, SpoolVersionError, and KeyWantedError; then everything is where it was, or aside. Keys are wanted before anything
    is set aside or closed, and only for files without a footer that can be believed.
    """
    durable.sync_folder(folder)
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    found: list[_Found] = []
    foreign: list[Damage] = []
    for path in paths:
        one = _recover(path, epoch, key_of, give_up, thorough=thorough)
        if one is not None and one.damage is not None and one.damage.foreign:
            foreign.append(one.damage)
        elif one is not None:
            found.append(one)
    for others in foreign:
        set_aside(others)
    runs: list[list[SpooledSegment]] = []
    for i, (path, draft, damage, certain) in enumerate(found):
        following = _first_number(found[i + 1]) if i + 1 < len(found) else None
        if damage is not None and not damage.last and following is not None:
            damage = damage._replace(last=following - 1)
        if draft is None:
            assert damage is not None
            set_aside(damage)
            continue
        if following is not None and following <= draft.rows[-1].number:
            # A sync of this file failed once, and the next file began behind what was durable in it.
            draft, damage = _cut(path, draft, following), None
        elif damage is not None and not certain and following == draft.rows[-1].number + 1:
            damage = None
        if damage is not None:
            set_aside(damage)
        closed = _close(path, draft, damaged=damage is not None)
        before = runs[-1][-1] if runs else None
        if before is None or (draft.header.first, draft.header.predecessor) != (
            before.last.number + 1,
            before.last.digest,
        ):
            runs.append([])
        runs[-1].append(closed)
    return runs


def claim_in(path: Path) -> str:
    """Of the epoch that the file says it is of; UNKNOWN where its header cannot be read. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        try:
            return segment.decode_file_header(file.read(_END_B), path.name)[0].claim
        except IntegrityError:
            return UNKNOWN


def _recover(path: Path, epoch: EpochId, key_of: KeyOf, give_up: GiveUp, *, thorough: bool) -> _Found | None:
    try:
        closed = None if thorough else _read_ends(path)
        if closed is not None:
            if closed.header.epoch_id != epoch:
                return _foreign(path, closed.header, closed.rows[-1].number, epoch)
            return _Found(path, closed, None, False)
        data = _read_from_disk(path)
    except OSError as exc:
        if not give_up(path):
            raise
        cause = f"the disk does not give it: {cause_of(exc)}"
        return _Found(path, None, Damage(path, _number_in(path), 0, cause, True, UNKNOWN), True)
    name = path.name
    try:
        header, start = segment.decode_file_header(data, name)
    except SegmentVersionError as exc:
        raise SpoolVersionError(f"Spool file {path} cannot be read", cause=exc.cause) from exc
    except IntegrityError as exc:
        highest = segment.highest_number(data, 0)
        if not data or (isinstance(exc, SegmentTruncatedError) and not highest):
            _drop(path, exc.cause)
            return None
        return _Found(path, None, Damage(path, _number_in(path), highest, exc.cause, True, UNKNOWN), True)
    if header.epoch_id != epoch:
        return _foreign(path, header, segment.highest_number(data, start), epoch)
    claimed: Footer | None = None
    try:
        body_b, _ = segment.decode_trailer(data, len(data), name)
        claimed = segment.decode_footer(data, len(data), name)
        footer = segment.check_body(data, name)
    except IntegrityError:
        return _scan(path, data, header, start, key_of(header), claimed)
    return _Found(path, Draft.recovered(header, footer, memoryview(data)[:body_b]), None, False)


def _foreign(path: Path, header: FileHeader, last: int, epoch: EpochId) -> _Found:
    cause = f"they are of epoch {header.epoch_id}, and the one that storage has is {epoch}"
    return _Found(path, None, Damage(path, header.first, last, cause, True, header.claim, foreign=True), True)


def _scan(
    path: Path, data: bytes, header: FileHeader, start: int, key: MachineKey, claimed: Footer | None
) -> _Found | None:
    """A file without a footer that can be believed."""
    scan = segment.scan(data, start, header, key.file_key(header.salt_bytes), path.name)
    rows = scan.footer.rows
    cut_b = len(data) - scan.end
    _log.info("spool file recovered", path=str(path), batches=len(rows), cut_b=cut_b, cause=scan.why)
    first = rows[-1].number + 1 if rows else header.first
    claims = claimed.rows[-1].number if claimed is not None and claimed.rows else 0
    highest = max(segment.highest_number(data, scan.end), claims)
    certain = claims >= first
    damage: Damage | None = None
    if certain or (scan.why and not scan.torn and data[scan.end :].strip(b"\0")):
        damage = Damage(path, first, highest if highest >= first else 0, scan.why, not rows, header.claim)
    if not rows and damage is None:
        _drop(path, "no batch in it is whole")
        return None
    draft = Draft.recovered(header, scan.footer, memoryview(data)[: scan.end]) if rows else None
    return _Found(path, draft, damage, certain)


def _read_ends(path: Path) -> _Closed | None:
    """What header and footer say of a file, if they are whole and fit each other."""
    with path.open("rb", buffering=0) as file:
        size_b = os.fstat(file.fileno()).st_size
        head = file.read(_END_B)
        tail = os.pread(file.fileno(), _END_B, max(0, size_b - _END_B))
        try:
            header, _ = segment.decode_file_header(head, path.name)
            body_b, digest = segment.decode_trailer(tail, size_b, path.name)
            if body_b < size_b - len(tail):
                tail = os.pread(file.fileno(), size_b - body_b, body_b)
            rows = segment.decode_footer(tail, size_b, path.name).rows
        except IntegrityError:
            return None
    fits = rows and rows[0].number == header.first and rows[-1].offset + rows[-1].length == body_b
    return _Closed(header, rows, body_b, digest) if fits else None


def _read_from_disk(path: Path) -> bytes:
    """What is on the disk, not in the page cache: a killed process may have left there what it never
    synced, or what a sync failed on.
    """
    with path.open("rb", buffering=0) as file:
        durable.sync_data(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


def _cut(path: Path, draft: Draft | _Closed, before: int) -> Draft:
    """The file's batches below `before`."""
    data = path.read_bytes()
    footer = draft.footer if isinstance(draft, Draft) else segment.decode_footer(data, len(data), path.name)
    rows = tuple(row for row in footer.rows if row.number < before)
    marks = tuple(mark for mark in footer.marks if mark.batch < before)
    body = data[: rows[-1].offset + rows[-1].length]
    return Draft.recovered(draft.header, Footer(rows=rows, marks=marks, cause=footer.cause), body)


def _close(path: Path, draft: Draft | _Closed, *, damaged: bool) -> SpooledSegment:
    """With its footer, but for a file that is aside as well under another name: there it must stay as it was found."""
    if isinstance(draft, _Closed):
        first, last = draft.rows[0], draft.rows[-1]
        return SpooledSegment(
            path, draft.header, first, last, body_b=draft.body_b, digest=draft.digest, closing=None
        )
    if damaged:
        return SpooledSegment.of(path, draft, has_footer=False)
    with path.open("r+b", buffering=0) as file:
        return SpooledSegment.of(path, draft, has_footer=write_footer(path, file.fileno(), draft))


def _first_number(found: _Found) -> int:
    return found.draft.header.first if found.draft is not None else _number_in(found.path)


def _number_in(path: Path) -> int:
    return int(path.stem) if path.stem.isdecimal() else 0


def _drop(path: Path, cause: str) -> None:
    """It holds nothing that was acknowledged."""
    _log.info("spool file dropped", path=str(path), cause=cause)
    durable.remove_file(path)
