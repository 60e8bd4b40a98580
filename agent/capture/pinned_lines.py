"""Two lines of one disk: what disks.json says of it (`bindings`), and what is pinned with its capture (`slot_notes`). Which of them is the
later. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from agent.capture.binding import Pinned, Standing, contradicts
from agent.capture.bindings import Bound, Seen, Which, check
from shared import decoding
from shared.errors import UNDECODABLE


class PinnedTo(NamedTuple):
    """What capture is pinned to for an id."""

    which: Which
    path: str
    """Where the kernel has it."""
    line: Bound | None = None
    """That was pinned with it; None: an older agent did, or one that was killed at once."""


def line_pinned(pin: Pinned, boot: str) -> Bound | None:
    """What is pinned with a captured disk, as `as_pinned` made it; None: nothing that can be read, or it is of another disk or id (an older
    agent ran since, and said the id alone)."""
    bound = read(pin.note)
    return bound if bound and (bound.id, bound.seen) == (pin.id, Seen(boot, pin.dev, pin.diskseq)) else None


def read(note: bytes) -> Bound | None:
    """None for what no agent pins."""
    try:
        bound = decoding.decode(note, type=Bound)
        check(bound)
    except UNDECODABLE:
        return None
    return bound


def as_pinned(bound: Bound) -> bytes:
    return msgspec.json.encode(bound)


def with_pins(
    remembered: Sequence[Bound],
    captured: Mapping[str, PinnedTo],
    boot: str,
    standing: Mapping[Which, Standing] = MappingProxyType({}),
    configured: Collection[str | None] = (),
) -> list[Bound]:
    """With what the file does not say of the disks that are captured: it was lost, put back from a backup, or could not be written when
    one was attached. `captured`: by id; `standing`: what stands, as far as that was looked for; `configured`: identities that the
    configuration says.

    **Of two lines of one id the later counts, whole.** Which that is says its number alone, not where it stands:

    - Who changes a line gives it a number above all that he knows of, in the file and in the pins (`numbered`); he holds the lock, so
      nobody else does. So of two lines that came of each other the later has the higher number, and two with one number are the same line.
    - He writes the file, then fits capture, then pins the lines of what is captured (`protection.protect`). A kill behind the file leaves
      the higher number there: that is what was wanted, and the next start brings it about. Where the file cannot be written, what is owed
      has the higher number in the pins. A file that is lost has none, one from a backup a lower one.
    - Never the identity of the one with the note of the other: that would bind an id to one disk by what another bears.

    Where numbers say nothing: pins do not outlive a boot, so a line that was noted in another is older. But where it says by what cannot
    change that its disk is another than the pinned one (`contradicts`), the file was lost when that was captured, which went by its path
    alone, and was put back since: the line counts. (Not where the configuration says the identity that is pinned.)

    An older agent writes lines without a number, into the file first, too: one of this boot is later than what is pinned, since that agent
    pinned no line, or ran when this was pinned already. But not where its disk stands no more: that agent had no room in the file for the
    one that is pinned, or the file was put back. And of a disk that the file notes for another id since, or by a line of the same number,
    it is that one's.

    Of an id that is pinned without a line it is known which disk it is, but not by what it was bound: what it bears may be borne by others,
    too, and a disk that does not answer bears less than it has. It goes on as it is; by what it is bound from now on is found out when it
    says all (`Verdict.identity`), and nothing is written of it until then (`numbered`)."""
    lines = {bound.id: bound for bound in remembered}
    noted = {bound.seen: bound for bound in remembered if bound.seen}
    there = {Seen(boot, *which) for which in (*standing, *(pin.which for pin in captured.values()))}
    for id_, pin in captured.items():
        seen = Seen(boot, *pin.which)
        if not seen.diskseq:
            continue
        number = pin.line.number if pin.line else 0
        line = lines.get(id_)
        owner = noted.get(seen)
        later = next((one for one in (line, owner) if one and _is_later(one, number, boot, there)), None)
        if later is not None:
            if later.number < number:  # an older agent's: it is to be the later for who looks next, too
                lines[later.id] = msgspec.structs.replace(later, number=number + 1)
            continue
        if line and pin.line and _was_put_back(line, pin, boot, standing, configured):
            lines[id_] = msgspec.structs.replace(line, number=max(line.number, number + 1))
        else:
            found = pin.line or line or Bound(id_, pin.path, "")
            lines[id_] = msgspec.structs.replace(found, last=pin.path, seen=seen)
        if owner and owner.id != id_ and lines[owner.id].seen == seen:
            lines[owner.id] = msgspec.structs.replace(lines[owner.id], seen=None)
    return [*lines.values()]


def _is_later(line: Bound, pinned: int, boot: str, there: Collection[Seen]) -> bool:
    """Whether a line of the file is later than one that is pinned, which has this number. `there`: the disks that stand."""
    if line.seen is None:  # it was given to another id, or an agent before notes wrote it
        return line.number > pinned
    return line.seen.boot == boot and (line.number >= pinned if line.number else line.seen in there)


def _was_put_back(
    line: Bound,
    pin: PinnedTo,
    boot: str,
    standing: Mapping[Which, Standing],
    configured: Collection[str | None],
) -> bool:
    """Whether a line that was noted in another boot says that its disk is not the one that is pinned, and nobody said otherwise since."""
    disk = standing.get(pin.which)
    if disk is None or pin.line is None or line.seen is None or line.seen.boot == boot:
        return False
    return pin.line.identity not in (line.identity, *configured) and contradicts(
        disk, line.kept, [*standing.values()]
    )


def numbered(lines: Sequence[Bound], before: Sequence[Bound]) -> list[Bound]:
    """What is to be written: each line that is another than before with the next number. Without those of which nobody knows by what they
    are bound."""
    then = {bound.id: bound for bound in before}
    following = 1 + max((bound.number for bound in [*before, *lines]), default=0)
    return [
        line if line.number and line == then.get(line.id) else msgspec.structs.replace(line, number=following)
        for line in lines
        if line.identity
    ]
