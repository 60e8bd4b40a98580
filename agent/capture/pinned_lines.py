"""Two lines of one disk: what disks.json says of it (`bindings`), and what is pinned with its capture (`slot_notes`). Which of them is the
later. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from agent.capture import put_back
from agent.capture.binding import Identity, Pinned, Standing, bears
from agent.capture.bindings import Bound, PinnedTo, Seen, Which, check
from shared import decoding
from shared.errors import UNDECODABLE


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
    configured: Mapping[str, str] = MappingProxyType({}),
) -> list[Bound]:
    """With what the file does not say of the disks that are captured: it was lost, put back from a backup, or could not be written when
    one was attached. `captured`: by id; `standing`: what stands, as far as that was looked for; `configured`: by id, the identity that the
    configuration says.

    **Of two lines of one id the later counts, whole**: never the identity of the one with the note of the other, which would bind an id to
    one disk by what another bears. Which is the later says the number alone. Who changes a line gives it one above all that he knows of, in
    the file and in the pins, under the lock (`numbered`); he writes the file, then fits capture, then pins the lines. So a kill leaves the
    higher number in the file, which is what was wanted; a file that cannot be written leaves it in the pins; a file from a backup has a
    lower one. A line of an older agent has none: of this boot it is later than what is pinned, for that agent pins no lines and writes the
    file first; unless its disk stands no more, for then that agent had no room in the file for what it captured since. A line of another
    boot is older than any pin, but for a file that counts as a whole (`put_back`).

    **A pin without a line says which disk it is, and nothing else** (an older agent, or one that was killed at once); when it was made is
    not known. A line of the file counts against it only while the disk that it is noted for stands: that may be what was wanted behind the
    pin. Else the pin goes on. It is bound by the line's identity where the disk bears that; else by what is not known, and found out when
    the disk says all (`Verdict.identity`); the file keeps its line until then (`numbered`). But where the disk does not bear what the
    configuration says, and the line is of another disk, too, the agent was killed on the way to that configuration: it counts.

    A disk that the file notes for another id by a line that counts is that one's."""
    lines = {bound.id: bound for bound in remembered}
    if put_back.is_whole(lines, captured, boot, standing, configured):
        number = _next(bound for bound in (*remembered, *(pin.line for pin in captured.values())) if bound)
        given = {id_: msgspec.structs.replace(lines[id_], number=number) for id_ in captured}
        return [*(lines | given).values()]
    noted = {bound.seen: bound for bound in remembered if bound.seen}
    there = {Seen(boot, *which) for which in (*standing, *(pin.which for pin in captured.values()))}
    for id_, pin in captured.items():
        seen = Seen(boot, *pin.which)
        if not seen.diskseq:
            continue
        line, owner = lines.get(id_), noted.get(seen)
        later = next((one for one in (line, owner) if one and _is_later(one, pin.line, boot, there)), None)
        if later is not None:
            if pin.line and later.number < pin.line.number:  # an older agent's: for who looks next, too
                lines[later.id] = msgspec.structs.replace(later, number=pin.line.number + 1)
            continue
        found = pin.line or _of_a_pin_alone(id_, pin, line, standing.get(pin.which), configured.get(id_))
        if found is not None:
            lines[id_] = msgspec.structs.replace(found, last=pin.path, seen=seen)
        if owner and owner.id != id_ and lines[owner.id].seen == seen:
            lines[owner.id] = msgspec.structs.replace(lines[owner.id], seen=None)
    return [*lines.values()]


def _is_later(line: Bound, pinned: Bound | None, boot: str, there: Collection[Seen]) -> bool:
    """Whether a line of the file is later than the pin, which has this one. `there`: the disks that stand."""
    if line.seen is None:  # it was given to another id, or an agent before notes wrote it
        return pinned is not None and line.number > pinned.number
    if line.seen.boot != boot:
        return False
    return line.number >= pinned.number if pinned and line.number else line.seen in there


def _of_a_pin_alone(
    id_: str, pin: PinnedTo, line: Bound | None, disk: Standing | None, configured: str | None
) -> Bound | None:
    """What is known of the disk, if the file's line does not count against the pin; None: the configuration does."""
    if line is None:
        return Bound(id_, pin.path, "")
    if disk is not None and bears(disk, line.kept):
        return line
    asked = Identity.parse(configured) if configured else None
    if disk is not None and asked and not bears(disk, asked) and not disk.may_hide(asked.kind):
        return None
    return msgspec.structs.replace(line, identity="")


def numbered(lines: Sequence[Bound], before: Sequence[Bound], stored: Sequence[Bound] = ()) -> list[Bound]:
    """What is to be written: each line that is another than before with the next number. Of one of which nobody knows by what it is bound,
    what is `stored`, if anything is."""
    then = {bound.id: bound for bound in before}
    following = _next((*before, *lines))
    unknown = {line.id for line in lines if not line.identity}
    return [
        *(bound for bound in stored if bound.id in unknown),
        *(
            line
            if line.number and line == then.get(line.id)
            else msgspec.structs.replace(line, number=following)
            for line in lines
            if line.identity
        ),
    ]


def _next(lines: Iterable[Bound]) -> int:
    return 1 + max((bound.number for bound in lines), default=0)
