"""What a process that was killed, or a power cut, left in an epoch's spool folder, made segments again. Blocking.

Recovery takes from a file exactly its whole batches: those the footer lists if there is one and the bytes
match, else those that a scan opens. Batches behind the last acknowledged one may be among them. That is
right: they are what the agent sent, in order, and it is told about them in Welcome.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from process_server.spool.file import SUFFIX, SpooledSegment, without_footer_at_worst, write_footer
from shared import durable, logging
from shared.errors import IntegrityError
from shared.log import segment
from shared.log.draft import Draft
from shared.log.segment import FileHeader
from shared.sealing import MachineKey

_log = logging.get()

KeyOf = Callable[[FileHeader], MachineKey]


def recover_folder(folder: Path, key_of: KeyOf) -> list[SpooledSegment]:
    """The segments of an epoch's spool folder in order, each continuing the one before; torn tails are cut,
    useless files deleted.

    Raises OSError, and WrongKeyError when the vault does not know the files' key.
    """
    durable.sync_folder(folder)
    drafts = [
        (path, draft)
        for path in sorted(folder.glob(f"*{SUFFIX}"))
        if (draft := _recover(path, key_of)) is not None
    ]
    found: list[SpooledSegment] = []
    for i, (path, draft) in enumerate(drafts):
        header = draft.header
        if found and (header.first, header.predecessor) != (found[-1].last.number + 1, found[-1].last.digest):
            _drop(path, f"it does not continue batch {found[-1].last.number}")
            continue
        if i + 1 < len(drafts) and drafts[i + 1][1].header.first <= draft.rows[-1].number:
            # A sync of this file failed once, and the next file began behind what was durable in it.
            draft = _cut(path, draft, drafts[i + 1][1].header.first)
        found.append(_close_recovered(path, draft))
    return found


def _recover(path: Path, key_of: KeyOf) -> Draft | None:
    data = _read_from_disk(path)
    name = path.name
    try:
        header, start = segment.decode_file_header(data, name)
    except IntegrityError as exc:
        _drop(path, exc.cause)
        return None
    try:
        footer = segment.check_body(data, name)
        body_b, _ = segment.decode_trailer(data, len(data), name)
    except IntegrityError:
        scan = segment.scan(data, start, header, key_of(header).file_key(header.salt_bytes), name)
        footer, body_b = scan.footer, scan.end
        _log.info(
            "spool file recovered",
            path=str(path),
            batches=len(footer.rows),
            cut_b=len(data) - body_b,
            cause=scan.why,
        )
    if not footer.rows:
        _drop(path, "no batch in it is whole")
        return None
    return Draft.recovered(header, footer, memoryview(data)[:body_b])


def _read_from_disk(path: Path) -> bytes:
    """What is on the disk, not in the page cache: a killed process may have left there what it never
    synced, or what a sync failed on.
    """
    with path.open("rb", buffering=0) as file:
        durable.sync_data(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


def _cut(path: Path, draft: Draft, before: int) -> Draft:
    footer = draft.footer
    rows = tuple(row for row in footer.rows if row.number < before)
    marks = tuple(mark for mark in footer.marks if mark.batch < before)
    body = path.read_bytes()[: rows[-1].offset + rows[-1].length]
    return Draft.recovered(draft.header, segment.Footer(rows=rows, marks=marks, cause=footer.cause), body)


def _close_recovered(path: Path, draft: Draft) -> SpooledSegment:
    with without_footer_at_worst(path), path.open("r+b", buffering=0) as file:
        write_footer(file.fileno(), draft)
    return SpooledSegment(path, draft)


def _drop(path: Path, cause: str) -> None:
    _log.warning("spool file dropped", path=str(path), cause=cause)
    durable.remove_file(path)
