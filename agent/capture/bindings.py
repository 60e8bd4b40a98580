"""The file that says which disk is which: `disks.json` in the agent's state_dir. With it, disks that are configured by path alone keep
their ids wherever they stand; it is written before a disk is captured for the first time, and replaced as a whole.

    {"v": 1, "disks": [{"id": "sdb", "device": "/dev/sdb", "identity": "wwid:naa.5000c500a1b2c3d4", "last": "/dev/sdc",
                        "seen": {"boot": "c3b2a1f0-…", "dev": 8388640, "diskseq": 5}, "shared": ["serial:0"], "number": 3}]}

`device` is the path as configured, `last` where the disk stood when it was attached last, `seen` which one that was to the kernel: its
boot id, the device number (major << 20 | minor) and the diskseq. Within that boot `seen` says which disk it is (`binding`). `shared`: what
it ever bore, when it was attached, while another disk of the machine bore it, too. `number`: of the line's last change, one more than any
line had before. Agents before 2026-11-26 wrote no `seen`: there what capture is pinned to under `last` is the disk, if it can be nobody
else's who stood there last (`with_notes`). An older agent leaves out what it does not know whenever it writes the file, which it does when
a disk stands elsewhere. A disk that is configured no more keeps its line, so that no other disk ever gets its id. Losing the file is an
event, and loses the ids of disks that are configured by path alone and are not captured: of the others the same line is pinned with the
capture, and the file is made anew from that (`pinned_lines.with_pins`). One that is put back counts as a whole or not at all (`put_back`).

**What could not be written is owed** (`BindingsFile`), as is all of it when somebody removed the file, damaged it or put another in its
place: a disk that was known goes on where the state_dir is full, and only this process then knows which one it is in this boot. So
whoever asks in this process is told that, what is owed is written as soon as it can be, and until then it is said: an agent that starts
meanwhile knows what the file says. Hence whoever wants to change the file stops the agent first.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from agent.capture.binding import Identity, Known, Standing, Verdict, is_ruled_out, new_id, same
from agent.capture.put_back_file import PutBackFile
from shared import decoding
from shared.desired import WantedDisk
from shared.errors import UNDECODABLE, BindingDamagedError, StateFileError, cause_of
from shared.host import durable
from shared.log.names import DiskName

NAME: Final = "disks.json"
Which = tuple[int, int]
"""A disk, by its device number and diskseq."""
CLOSE_S: Final = 5.0
"""How long an end waits for a thread that writes the file."""


class Seen(msgspec.Struct, frozen=True):
    """A disk to the kernel, which gives no diskseq twice within a boot."""

    boot: str
    dev: int
    diskseq: int


class Bound(msgspec.Struct, frozen=True, omit_defaults=True):
    id: DiskName
    device: str
    identity: str
    """Empty, and then never written: it is captured, and by what it was bound is not known."""
    last: str = ""
    seen: Seen | None = None
    shared: tuple[str, ...] = ()
    number: int = 0
    """0: an older agent wrote it."""

    @property
    def kept(self) -> Identity | None:
        return Identity.parse(self.identity) if self.identity else None


class PinnedTo(NamedTuple):
    """What capture is pinned to for an id."""

    which: Which
    path: str
    """Where the kernel has it."""
    line: Bound | None = None
    """That was pinned with it; None: an older agent did, or one that was killed at once."""


class NotedDisk(WantedDisk, frozen=True):
    """A disk whose id an agent gave it once: it is known by its line, and where that is lost its path does not say which disk it is."""


class _Document(msgspec.Struct):
    v: int
    disks: list[Bound]


def read(state_dir: Path) -> list[Bound] | None:
    """None: nothing was bound here before. Raises BindingDamagedError, and StateFileError when what it says cannot be had now."""
    path = state_dir / NAME
    try:
        document = decoding.decode(path.read_bytes(), type=_Document)
        for bound in document.disks:
            check(bound)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise StateFileError(
            f"{path} could not be read",
            cause=cause_of(exc),
            action="Let the agent's user read it, or see to the disk that it lies on (dmesg); the agent is started again by itself.",
        ) from exc
    except UNDECODABLE as exc:
        raise BindingDamagedError(f"{path} could not be read", cause=str(exc)) from exc
    if document.v != 1:
        raise BindingDamagedError(f"{path} could not be read", cause=f"its format is {document.v}")
    return document.disks


def check(bound: Bound) -> None:
    """ValueError for a line that no agent writes."""
    for text in (bound.identity, *bound.shared):
        Identity.parse(text)


def write(state_dir: Path, disks: Sequence[Bound]) -> None:
    content = msgspec.json.format(msgspec.json.encode(_Document(1, list(disks))), indent=2) + b"\n"
    with durable.named("Which disk is which could not be noted"):
        durable.replace_file(state_dir / NAME, content)


class BindingsFile:
    """The file of one agent, in one process, with what is owed to it. For threads: none of them writes what another knows better."""

    def __init__(self, state_dir: Path) -> None:
        self.path: Final = state_dir / NAME
        self.written: list[Bound] = []
        """What the file says, as it was read first or written last."""
        self.trouble: StateFileError | None = None
        """Why something is owed; None: nothing is."""
        self._owed: list[Bound] | None = None
        self._stands = False
        """Whether `written` was in the file when that was read last."""
        self._stood: tuple[int, int, int] | None = None
        """How the file looked then."""
        self.put_back: Final = PutBackFile(self.path)
        self._is_over = False
        self._lock = threading.Lock()

    def read(self) -> list[Bound] | None:
        """What is remembered; None: nothing was bound here before. Raises BindingDamagedError and StateFileError, unless this process knows
        what stood there."""
        with self._lock:
            return self._read()

    def _read(self) -> list[Bound] | None:
        self.put_back.look()
        if self._owed is not None:
            return self._owed
        stands = self._looks()
        if not self.written:
            found = read(self.path.parent)
            self.written, self._stands, self._stood = found or [], found is not None, stands
            return found
        if stands is not None and stands == self._stood:
            return self.written  # to read it may wait for its disk: it may have to be noted when it was read
        if cause := self._what_happened():
            self._stands = False
            changed = StateFileError("Which disk is which is written nowhere", cause=cause)
            self._owed, self.trouble = self.written, _unwritten(changed)
        self._stood = stands
        return self.written

    def _looks(self) -> tuple[int, int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:  # who reads it says why
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    def _what_happened(self) -> str:
        """Why the file does not say what was written; empty when it does."""
        try:
            found = read(self.path.parent)
        except (BindingDamagedError, StateFileError) as exc:
            return f"{exc.what}: {exc.cause}"
        if found is None:
            return f"{self.path} was removed"
        return "" if found == self.written else f"{self.path} was changed while the agent runs"

    def write(self, disks: Sequence[Bound]) -> None:
        """Raises StateFileError, and nothing more is owed than before."""
        with self._lock:
            self._write(disks)

    def _write(self, disks: Sequence[Bound]) -> None:
        if self._is_over:
            raise StateFileError("Which disk is which was not noted", cause="the agent has ended")
        self.put_back.keep_if_due()
        write(self.path.parent, disks)
        self.written, self._owed, self.trouble, self._stands = [*disks], None, None, True
        self._stood = self._looks()

    def write_again(self) -> None:
        """What is owed, or what stands there: whether it can be written by now. Raises StateFileError, BindingDamagedError."""
        with self._lock:
            self._write(self._read() or [])

    def owe(self, disks: Sequence[Bound], why: StateFileError) -> StateFileError | None:
        """Keeps what could not be written, and returns what to say of it; None: the file says all of it already."""
        with self._lock:
            is_owed = not self._stands or [*disks] != self.written
            self._owed = [*disks] if is_owed else None
            self.trouble = _unwritten(why) if is_owed else None
            return self.trouble

    def close(self) -> None:
        """Nothing is written from here on, by no thread that is late: the file is the next agent's. One that writes just now is waited for,
        but not for a disk that hangs."""
        self._is_over = True
        if self._lock.acquire(timeout=CLOSE_S):
            self._lock.release()


def _unwritten(why: StateFileError) -> StateFileError:
    return StateFileError(
        "Which of the disks that stand here are the protected ones could not be noted",
        cause=why.cause,
        action=(
            "Make room in the state_dir, or make it writable: it is noted then by itself. Until then leave the agent running, and "
            "change no disk's partition table: after a restart of the agent such a disk might be refused."
        ),
    )


def all_known(
    wanted: Sequence[WantedDisk],
    remembered: Sequence[Bound],
    at: Mapping[str, Standing],
    boot: str,
    captured: Collection[tuple[int, int]] = (),
) -> list[Known]:
    """The configured disks, as they are bound or new. `at`: what stands under each path; `captured`: device numbers and diskseqs. Two lines
    that name one id (a path alone, and that id with another path) are two disks: the one that says the id has it, and the other is what
    stands under that path."""
    found: list[Known] = []
    said = frozenset(disk.id for disk in wanted if disk.id)
    named = {*said}
    taken = [*(bound.id for bound in remembered), *named]
    shared = frozenset(Identity.parse(text) for bound in remembered for text in bound.shared)
    lines = [_line_of(disk, remembered, at.get(disk.device), boot) for disk in wanted if not disk.id]
    claimed = named | {line.id for line in lines if line is not None}
    for disk in wanted:
        there = at.get(disk.device)
        one = known(disk, remembered, there, boot, claimed, captured, said=said)
        if one is None or (disk.id is None and one.id in named):
            name = there.name if there is not None else Path(disk.device).name
            one = fresh(disk, name, taken, there.dev if there is not None else None)
            taken.append(one.id)
        named.add(one.id)
        found.append(replace(one, seen_shared=shared))
    return found


def known(
    wanted: WantedDisk,
    remembered: Sequence[Bound],
    there: Standing | None,
    boot: str = "",
    claimed: Collection[str] = (),
    captured: Collection[tuple[int, int]] = (),
    *,
    said: Collection[str] = (),
) -> Known | None:
    """The disk as it is bound: by the configuration, else by what is remembered of its id or path, or of the disk that stands `there`,
    under a path that is new: by its note, or by what lasts. None: it was never seen. `claimed`: ids that other lines have; `said`: those
    that are said in so many words."""
    if wanted.id is not None:
        before = next((bound for bound in remembered if bound.id == wanted.id), None)
    else:
        before = _line_of(wanted, remembered, there, boot)
        if before is not None and before.id in said:
            before = None  # it was called so once
        before = before or _line_bearing(wanted, remembered, claimed)
        if before is None and there is not None:
            before = next(
                (
                    bound
                    for bound in remembered
                    if bound.id not in claimed
                    and (not bound.identity or wanted.identity in (None, bound.identity))
                    and _is_noted(there, bound, boot, captured)
                ),
                None,
            ) or _line_borne(wanted, there, remembered, claimed)
    id_ = wanted.id or (before.id if before else None)
    text = wanted.identity or (before.identity if before else None)
    if id_ is None:
        return None
    noted = None
    # A note says nothing of a disk that the configuration means anew, nor does one without a diskseq (kernels before 5.15).
    if (
        before
        and before.identity in ("", text)
        and before.seen
        and before.seen.boot == boot
        and before.seen.diskseq
    ):
        noted = before.seen.dev, before.seen.diskseq
    return Known(
        id=id_,
        path=wanted.device,
        identity=Identity.parse(text) if text else None,
        at=there.dev if there is not None else None,
        noted=noted,
        is_new=before is None,
        is_configured=wanted.identity is not None,
        is_lost=before is None and isinstance(wanted, NotedDisk),
    )


def configured(wanted: Sequence[WantedDisk], remembered: Sequence[Bound]) -> dict[str, str]:
    """By id of a line, the identity that the configuration says of its id, or of its path."""
    return {
        bound.id: disk.identity
        for bound in remembered
        for disk in wanted
        if disk.identity and (disk.id == bound.id or (disk.id is None and disk.device == bound.device))
    }


def line_of(wanted: WantedDisk, remembered: Sequence[Bound], claimed: Collection[str]) -> Bound | None:
    """What is remembered of the disk, where nobody has looked what stands under its path. `claimed`: ids that others have."""
    if wanted.id is not None:
        return next((bound for bound in remembered if bound.id == wanted.id), None)
    found = _line_of(wanted, remembered, None, "") or _line_bearing(wanted, remembered, claimed)
    return found if found is not None and found.id not in claimed else None


def _line_of(
    wanted: WantedDisk, remembered: Sequence[Bound], there: Standing | None, boot: str
) -> Bound | None:
    """The newest line of the path, unless another disk is meant by it now."""
    lines = [bound for bound in reversed(remembered) if bound.device == wanted.device]
    meant = next((bound for bound in lines if bound.identity == wanted.identity), None)
    return meant or next((bound for bound in lines if not _is_another(wanted, bound, there, boot)), None)


def _line_bearing(wanted: WantedDisk, remembered: Sequence[Bound], claimed: Collection[str]) -> Bound | None:
    """The line of the disk that is meant by what lasts, however it is called now."""
    asked = Identity.parse(wanted.identity) if wanted.identity else None
    if asked is None or asked.is_weak:
        return None
    lines = [bound for bound in remembered if same(bound.kept, asked)]
    return lines[0] if len(lines) == 1 and lines[0].id not in claimed else None


def _line_borne(
    wanted: WantedDisk, there: Standing, remembered: Sequence[Bound], claimed: Collection[str]
) -> Bound | None:
    """The line of the disk that stands under a path that is new, as by a link after a reboot: by what lasts, and one line alone is bound
    by. What was ever shared says nothing."""
    shared = {text for bound in remembered for text in bound.shared}
    lines = [
        bound
        for bound in remembered
        if bound.identity not in shared
        and bound.kept is not None
        and not bound.kept.is_weak
        and _is_bound(there, bound)
    ]
    if len(lines) != 1 or lines[0].id in claimed or wanted.identity not in (None, lines[0].identity):
        return None
    return lines[0]


def _is_another(wanted: WantedDisk, bound: Bound, there: Standing | None, boot: str) -> bool:
    """Whether the identity that is asked for is not that of the line's disk: both are of one lasting kind, or what stands there bears the
    one and not the other. (It may be that disk, of which something else is said: then it bears both, or was noted in this boot.)"""
    if wanted.identity is None:
        return False
    asked, kept = Identity.parse(wanted.identity), bound.kept
    if kept is None:
        return False
    if asked.kind is kept.kind and not asked.is_weak:
        return not same(kept, asked)
    if there is None or not any(same(asked, found) for found in there.identities):
        return False
    is_it = bound.seen is not None and bound.seen == Seen(boot, there.dev, there.diskseq)
    return not is_it and not there.may_hide(kept.kind) and not _is_bound(there, bound)


def _is_noted(disk: Standing, bound: Bound, boot: str, captured: Collection[tuple[int, int]]) -> bool:
    """Whether the disk is the one that the line was noted for: by its diskseq, since another one may have its device number by now. What it
    bears must not say another thing; where that can have changed, it is the same only while capture watches it."""
    if not disk.diskseq or bound.seen != Seen(boot, disk.dev, disk.diskseq):
        return False
    is_captured = (disk.dev, disk.diskseq) in captured
    return _is_bound(disk, bound) or (is_captured and not is_ruled_out(disk, bound.kept))


def fresh(wanted: WantedDisk, kernel_name: str, taken: Sequence[str], at: int | None) -> Known:
    """A disk that was never seen gets its id."""
    identity = Identity.parse(wanted.identity) if wanted.identity else None
    return Known(
        id=new_id(kernel_name, taken),
        path=wanted.device,
        identity=identity,
        at=at,
        is_new=True,
        is_configured=identity is not None,
    )


def with_notes(remembered: Sequence[Bound], captured: Mapping[str, Standing], boot: str) -> list[Bound]:
    """What an older agent bound, with the note that it did not write. `captured`: by the kernel's path, what capture is pinned to. Pins do
    not outlive a boot, and whenever that agent attached a disk elsewhere it wrote down where.

    Lines stay, so several may have stood there last: a disk was replaced, or is away and another has its name. Of those, that agent
    never went on with one whose strong identity the disk does not bear: it is not whom the disk was captured for. One that is bound by
    what can change stays in question, configured or not (that may have changed with the upgrade): then no line is noted, and the
    identity decides. So it does where one stood there last by what that agent wrote, which it did not do of each disk that it attached
    (its state_dir was full): then another line's disk may stand there by now, which bears that line's identity and not this one's."""
    if any(bound.seen for bound in remembered):
        return [*remembered]
    noted: dict[str, Seen] = {}
    for path, disk in captured.items():
        there = [bound for bound in remembered if bound.last == path]
        if len(there) > 1:
            there = [bound for bound in there if not is_ruled_out(disk, bound.kept)]
        if len(there) == 1 and not _is_anothers(disk, there[0], remembered, captured):
            noted[there[0].id] = Seen(boot, disk.dev, disk.diskseq)
    return [msgspec.structs.replace(bound, seen=noted.get(bound.id)) for bound in remembered]


def _is_anothers(
    disk: Standing, bound: Bound, remembered: Sequence[Bound], captured: Mapping[str, Standing]
) -> bool:
    """Whether a disk bears what another line is bound by, and not what this one is. Where that line's disk is captured where it stood last,
    and bears it, too, this is a copy."""

    def has_its_own(other: Bound) -> bool:
        own = captured.get(other.last)
        return own is not None and own is not disk and _is_bound(own, other)

    others = (other for other in remembered if other is not bound and _is_bound(disk, other))
    return not _is_bound(disk, bound) and not all(has_its_own(other) for other in others)


def _is_bound(disk: Standing, bound: Bound) -> bool:
    return any(same(bound.kept, found) for found in disk.identities)


def bind(verdict: Verdict, identity: Identity, remembered: Sequence[Bound], boot: str) -> Bound:
    """What is to be remembered of a disk that is attached by this verdict, and bound by `identity`."""
    known, disk = verdict.known, verdict.standing
    assert disk is not None
    before = next((bound.shared for bound in remembered if bound.id == known.id), ())
    shared = tuple(sorted({*before, *map(str, verdict.shared)}))
    number = next((bound.number for bound in remembered if bound.id == known.id), 0)
    seen = Seen(boot, disk.dev, disk.diskseq)
    return Bound(known.id, known.path, str(identity), disk.path, seen, shared, number)


def after(remembered: Sequence[Bound], chosen: Sequence[Bound]) -> list[Bound]:
    """What is to be remembered once these are attached. A disk has one id at a time: what was noted of it for another is no more."""
    bound = {one.id: one for one in remembered} | {one.id: one for one in chosen}
    seen = {one.seen: one.id for one in chosen}
    return [
        msgspec.structs.replace(one, seen=None) if seen.get(one.seen, one.id) != one.id else one
        for one in bound.values()
    ]


def ids(remembered: Sequence[Bound], borne: Mapping[Which, Sequence[Identity]]) -> dict[Which, str]:
    """Which of the host's disks are those of the lines, as far as what they bear says so: one disk, and one line, for each."""
    found: dict[Which, str] = {}
    lines = [(bound.id, bound.kept) for bound in remembered]
    for which, identities in borne.items():
        mine = {id_ for id_, kept in lines if any(same(kept, one) for one in identities)}
        if len(mine) == 1:
            found[which] = mine.pop()
    times = Counter(found.values())
    return {which: id_ for which, id_ in found.items() if times[id_] == 1}
