"""Which of two wishes for a machine is the later: the one that this database has, or the one that its agent goes by. Pure.

An agent keeps its wish on its own disk, and this database may know less than it does: it was put back from a backup, which is noticed
(a new incarnation), or with its whole host to a snapshot, which nobody notices; or it is a new one, or that of a server that was thought
to be lost. So the server does not simply tell what it has. Both have a mark (shared/desired.py), and there are two witnesses to which of
the two is the later:

    history   an act of a later incarnation of this database; of one incarnation the higher number. One that this database never had
              was made in the time that its backup lacks, or by another database: later than its past incarnations, earlier than the
              current one
    clocks    an act's word begins with the time at which it was made, and that never goes back in one database

Where they agree, or only history speaks, the later one holds: it is told, or adopted from the agent. Two acts of one number, or clocks that
contradict history, say that a database was set back and nobody noticed (or that a clock was wrong): then nobody knows. Nor does anybody
of an act from before a database was put back of which the agent has not heard: it may have been taken back behind the backup. There what
protects more holds, with an event that names both. The agent's, where neither protects all that the other does: so in doubt nothing is
dropped.

An act drops the disks that were known when it was made, and that it leaves out (`inventory.act`). What an agent protects beside these,
nobody said anything of: it stays (desired_state.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from config_server.rules.clock import SECOND_NS, rfc3339
from shared.desired import Mark, Verb, WantedDisk, Wish
from shared.recovery.position import parse_rfc3339

UNTAKEN_S: Final = 30.0
"""A reporting agent that does not go by its wish for so long, or is not told of it, is a problem."""
_MOST: Final = 1 << 53
"""As shared/desired.py bounds numbers."""
_END_NS: Final = 253_402_300_799 * SECOND_NS
"""The last second of the year 9999."""
_SHOWN: Final = 8
"""So many disks are named in words."""


UNHEARD: Final = "the act is from before this database was put back, its agent has not heard of it, and what was said since is lost"


class Own(NamedTuple):
    """What this database has of a machine."""

    wish: Wish
    incarnation: str
    """In which it came here. Of an act that was made here it is that of its mark; of one that was adopted, when that was."""


class Agree(NamedTuple):
    """The agent goes by what this database has, or neither knows anything."""


class Tell(NamedTuple):
    wish: Wish
    doubt: str = ""
    """Why it is not certain that it is the later; empty: it is."""


class Adopt(NamedTuple):
    wish: Wish
    doubt: str = ""


Verdict = Agree | Tell | Adopt


def judge(own: Own | None, told: Wish | None, incarnations: Sequence[str]) -> Verdict:
    """`told` is what the agent says that it goes by; `incarnations` of this database, the current one last."""
    if told is None:
        return Agree() if own is None else Tell(own.wish)
    if own is None:
        return Adopt(told)  # this database knows less
    if own.wish.mark == told.mark:
        return Agree()
    ours = _place(own.wish.mark, incarnations, own.incarnation)
    theirs = _place(told.mark, incarnations, incarnations[-1])
    if doubt := _doubt(own.wish.mark, told.mark, ours, theirs):
        return Tell(own.wish, doubt) if covers(own.wish, told) else Adopt(told, doubt)
    if theirs > ours:
        return Adopt(told)
    if _is_unheard(own, incarnations) and not covers(own.wish, told):
        return Adopt(told, UNHEARD)
    return Tell(own.wish)


def _is_unheard(own: Own, incarnations: Sequence[str]) -> bool:
    """Of an act that the agent does not go by: whether it comes from before the database was put back."""
    return own.incarnation != incarnations[-1]


_Place = tuple[int, int, int]


def _place(mark: Mark, incarnations: Sequence[str], current: str) -> _Place:
    """`current`: the incarnation before which one comes that this database never had. Where numbers cannot rise any more, since an agent
    said the last one, the clock counts."""
    at_ns = (made_ns(mark.act) or 0) if mark.number >= _MOST else 0
    if mark.incarnation in incarnations:
        return 2 * incarnations.index(mark.incarnation), mark.number, at_ns
    return 2 * incarnations.index(current) - 1, mark.number, at_ns


def _doubt(own: Mark, told: Mark, ours: _Place, theirs: _Place) -> str:
    if ours == theirs:
        return f"two acts bear the number {own.number}"
    own_ns, told_ns = made_ns(own.act), made_ns(told.act)
    if own_ns is None or told_ns is None or own_ns == told_ns or (own_ns > told_ns) == (ours > theirs):
        return ""
    return (
        f"by the history of this database {'its own' if ours > theirs else 'the one of the agent'} is the later,"
        f" by the clocks the other: {rfc3339(own_ns)} here, {rfc3339(told_ns)} there"
    )


def covers(one: Wish, other: Wish) -> bool:
    """Whether `one` protects all that `other` does. Which disks an agent's configuration has, is not known here, nor what a newer version's
    verb means."""
    if Verb.OTHER in (one.verb, other.verb):
        return False
    if other.verb is Verb.STOP:
        return True
    if one.verb is Verb.STOP or bool(one.disks) != bool(other.disks):
        return False
    return not without(other.disks, one.disks)


def same(one: WantedDisk, other: WantedDisk) -> bool:
    """Whether two words mean one disk: by its id, else by what it bears. A path alone means whatever is called so."""
    if one.id is not None and other.id is not None:
        return one.id == other.id
    if one.identity is not None and other.identity is not None:
        return one.identity == other.identity
    is_bare = any(disk.id is None and disk.identity is None for disk in (one, other))
    return is_bare and one.device == other.device


def once(disks: Iterable[WantedDisk]) -> tuple[WantedDisk, ...]:
    """Each disk by its first line: by its id, else by what it bears, else its path. Two lines of one are never kept, nor told: an agent
    takes no such wish. What is called as another was may be a disk beside it."""
    found: list[WantedDisk] = []
    ids, bare, borne, without_id = set[str](), set[str](), set[str](), set[str]()
    for disk in disks:
        if disk.id is not None:
            is_twice = disk.id in ids or disk.identity in without_id
        elif disk.identity is not None:
            is_twice = disk.identity in borne
        else:
            is_twice = disk.device in bare
        if is_twice:
            continue
        found.append(disk)
        if disk.id is not None:
            ids.add(disk.id)
        if disk.identity is not None:
            borne.add(disk.identity)
            if disk.id is None:
                without_id.add(disk.identity)
        elif disk.id is None:
            bare.add(disk.device)
    return tuple(found)


def without(disks: Iterable[WantedDisk], *others: Sequence[WantedDisk]) -> tuple[WantedDisk, ...]:
    """Those that are none of the others."""
    return tuple(disk for disk in disks if not any(same(disk, one) for some in others for one in some))


def with_ids(disks: Sequence[WantedDisk], bound: Sequence[WantedDisk]) -> tuple[WantedDisk, ...]:
    """Disks that were named by a path, with the ids under which their agent bound them by that path, or what it is to bear. Of one that it
    has not bound yet, another that was called so is none, nor is one that another line has."""
    found: list[WantedDisk] = []
    said = {disk.id for disk in disks} - {None}
    for disk in disks:
        mine = [one for one in bound if disk.id is None and one.id not in said and same(disk, one)]
        known = next((one for one in mine if one.id is None), mine[0] if mine else disk)
        said |= {known.id} - {None}
        found.append(replace(disk, id=known.id, identity=disk.identity or known.identity))
    return tuple(found)


def named(disk: WantedDisk) -> str:
    """For people: agents' words are what agents say."""
    device, id_ = disk.device[:100], disk.id or ""
    return f"{device} (disk {id_})" if id_ not in ("", device.rpartition("/")[2]) else device


def word_of(disk: WantedDisk) -> str:
    """What means it in a request, wherever it stands."""
    return disk.id or disk.identity or disk.device


def next_mark(incarnation: str, before: Iterable[Mark], now_ns: int) -> Mark:
    """Of another act, made now in this incarnation of the database; `before` are the marks that are known of the machine."""
    known = list(before)
    # Later than what was known when it was made, whatever the clock did since.
    at_ns = min(_END_NS, max(now_ns, 1 + max((made_ns(mark.act) or 0 for mark in known), default=0)))
    return Mark(incarnation, next_number(known), f"{rfc3339(at_ns)}-{secrets.token_hex(8)}")


def next_number(known: Iterable[Mark]) -> int:
    return min(_MOST, 1 + max((mark.number for mark in known), default=0))


def made_ns(act: str) -> int | None:
    """When it was made, as its word says; None for a word that says nothing, or a time that cannot be written."""
    found = parse_rfc3339(act.rpartition("-")[0])
    return found if found is not None and 0 <= found <= _END_NS else None


def in_words(wish: Wish | None) -> str:
    """For people, at most a line: agents' wishes are what agents say."""
    if wish is None:
        return "its configuration alone"
    if wish.verb is Verb.STOP:
        return "stop"
    if wish.verb is Verb.OTHER:
        return "what this version does not know"
    disks = [named(disk) for disk in wish.disks[:_SHOWN]] or ["the disks of its configuration"]
    more = len(wish.disks) - len(disks)
    words = f"protect {', '.join(disks)}{f' and {more} more' if more > 0 else ''}"
    return f"{words}, by {', '.join(wish.process_servers[:_SHOWN])}" if wish.process_servers else words


class Told(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What one config server tells another with an agent's report. Times: how long before that was heard."""

    act: str = ""
    """That the agent does not go by."""
    since_ns: int = 0
    is_withheld: bool = False
    """It is told no opinion."""
    withheld_since_ns: int = 0


class Untaken:
    """Since when reporting agents do not go by what they are told. Times are monotonic; a daemon that was silent meanwhile begins anew."""

    def __init__(self, silent_s: float) -> None:
        self._silent_ns = int(silent_s * SECOND_NS)
        self._told: dict[str, tuple[str, int, int]] = {}
        """By machine: which act, since when, and when last."""
        self._withheld: dict[str, tuple[int, int]] = {}
        """By machine: since when it is told no opinion, and when last."""

    def note(self, machine: str, told: Wish | None, goes_by: Wish | None, now_ns: int) -> bool:
        """The agent has said what it goes by, and is told `told`. Whether it has not been told that before."""
        if told is None or (goes_by is not None and goes_by.mark == told.mark):
            self._told.pop(machine, None)
            return False
        act, since_ns, last_ns = self._told.get(machine, ("", now_ns, now_ns))
        is_news = act != told.mark.act or now_ns - last_ns > self._silent_ns
        self._told[machine] = told.mark.act, now_ns if is_news else since_ns, now_ns
        return is_news

    def withhold(self, machine: str, *, is_withheld: bool, now_ns: int) -> None:
        """The agent has reported, and is told no opinion, whatever is wanted; or it is told."""
        if not is_withheld:
            self._withheld.pop(machine, None)
            return
        self._told.pop(machine, None)
        since_ns, last_ns = self._withheld.get(machine, (now_ns, now_ns))
        self._withheld[machine] = now_ns if now_ns - last_ns > self._silent_ns else since_ns, now_ns

    def told(self, machine: str, heard_ns: int) -> Told:
        """For another server, with the report of this time."""
        act, since_ns, _ = self._told.get(machine, ("", heard_ns, heard_ns))
        withheld_ns, _ = self._withheld.get(machine, (heard_ns, heard_ns))
        return Told(act, heard_ns - since_ns, machine in self._withheld, heard_ns - withheld_ns)

    def hear_of(self, machine: str, told: Told, heard_ns: int) -> None:
        """Another server has told the agent so, when it reported there. Of an act that is known here it lasts since the earlier time."""
        act, since_ns, _ = self._told.pop(machine, ("", heard_ns, heard_ns))
        if told.act:
            theirs_ns = heard_ns - told.since_ns
            since_ns = min(since_ns, theirs_ns) if act == told.act else theirs_ns
            self._told[machine] = told.act, since_ns, heard_ns
        withheld_ns, _ = self._withheld.pop(machine, (heard_ns, heard_ns))
        if told.is_withheld:
            self._withheld[machine] = min(withheld_ns, heard_ns - told.withheld_since_ns), heard_ns

    def withheld_ns(self, machine: str) -> int | None:
        """Since when its agent is told no opinion; None: it is told."""
        found = self._withheld.get(machine)
        return None if found is None else found[0]

    def of(self, machine: str) -> tuple[str, int] | None:
        """The act that its agent does not go by, and since when."""
        found = self._told.get(machine)
        return None if found is None else found[:2]
