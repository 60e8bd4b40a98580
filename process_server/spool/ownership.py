"""Whose an epoch's log is, and what becomes of the batches of it that lie here. Pure.

A process server asks for each epoch of which it has a folder and no open log. What it knows: which epoch of
the machine is the newest, who took the last term of this one and whether that owner still shows signs of
life, where the index ends, and what its own files hold. What it may do:

    open         the log is ours: go on with it, and upload what continues the index
    retake       it was another's, but nobody writes it any more: take the next term, and upload the same
    wait         another is at work on it; what is here still counts as pending
    quarantine   the index contradicts what is here, or what lay between was lost: it can never be listed
    delete       nothing is here that is not listed: the folder may go

Why no acknowledged batch vanishes (I5). Files go in two ways only. *Delete* needs the index to have passed
their last batch with the digest that it has here; each batch's digest covers its predecessor's, so then all
batches before it are listed as they are here. *Quarantine* needs proof that they can never be listed: an
index only grows, so a digest in it that differs from ours stays there; and so do their numbers where the
segment is lost that would tell whether it holds them as they are here, which may then be all that is left.
(That it ends before the batch that ours would continue proves that storage forgot, since a file here is
deleted only once it is listed; but as long as somebody may still list that batch again, the answer is *wait*.
Nor does it prove anything that the index was longer once: storage that was set back has lost what another
listed, and what is here may be all that is left of it, and continue what there is.) And it sets the files
aside, it deletes nothing.

Why none is stranded. In all other cases what is here continues the index. Either the log is ours, and is
opened. Or an owner who released the index, or was silent for as long as `Patience` says, is replaced. Or it
is not silent: then the index moves, and passes our batches, contradicts them, or comes to rest. Each retake
lists at least one segment or finds that a newer owner did, so two servers that both hold rests of one epoch
take turns and come to an end.

Silence is measured by the looker's own monotonic clock, from its first look on. No other clock is asked. What it must exceed to mean
anything is how long the index of a server at work may stand still, of any server: how it is configured, storage does not say, and how often
it listed until now is no promise (segments that were full every second are a minute apart once the machine is idle). So that is one
constant, `LONGEST_PAUSE_S`, and the configuration refuses what would make it untrue.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from shared.log.index import NO_TERM, Term

LONGEST_SEGMENT_S: Final = 60.0
"""So old a segment may become before it is closed: what `segment_seconds` may be (config.py)."""
LONGEST_UPLOAD_S: Final = 60.0
"""So long a closed segment may take until it is listed: seconds, as a rule. A server that is slower says so (epoch_log.py)."""
LONGEST_PAUSE_S: Final = LONGEST_SEGMENT_S + LONGEST_UPLOAD_S
"""So long the index stands still at most while agent, server and storage are in touch: a heartbeat soon begins the next segment."""


class Decision(enum.Enum):
    OPEN = "open"
    RETAKE = "retake"
    WAIT = "wait"
    QUARANTINE = "quarantine"
    DELETE = "delete"


class Verdict(NamedTuple):
    decision: Decision
    reason: str
    """For people."""


class LocalFile(NamedTuple):
    """A segment that lies here; digests are hex."""

    first: int
    last: int
    predecessor: str
    """Of batch `first` - 1."""
    digest: str
    """Of batch `last`."""


class Owner(msgspec.Struct, frozen=True):
    """Who took the newest term."""

    term: Term
    """NO_TERM: nobody ever did, or storage forgot."""
    name: str
    """Empty when its document does not say it."""
    holds: bool
    """Whether the index is under a lease. An owner gives it back when it has listed all of an epoch that is over."""
    silent_s: float
    """For how long neither a term was taken nor the index grew, as far as this server has seen."""

    @property
    def who(self) -> str:
        """For people."""
        return self.name or "another owner"


class Patience(msgspec.Struct, frozen=True):
    """How long an owner may be silent before it is replaced."""

    silent_s: float = 600.0
    """While the epoch is the newest: the agent may be with it, and a retake ends that session for a moment."""
    over_s: float = LONGEST_PAUSE_S
    """When the epoch is over: only its uploads can be disturbed."""
    copy_s: float = LONGEST_PAUSE_S
    """How long the log of another boot of the machine must stand still before its epoch is ended (rivals.py)."""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one epoch."""

    epoch: int
    newest: int
    """The machine's newest epoch in storage."""
    us: str
    """Our name as an owner."""
    taken: Term
    """The last term that we know we took."""
    owner: Owner
    index_last: int
    """The last batch that is listed."""
    files: tuple[LocalFile, ...]
    """Consecutive."""
    here: str = ""
    """Digest at the meeting point, in our files."""
    there: str = ""
    """Digest at the meeting point, in the index; empty if the index cannot tell."""

    @property
    def is_over(self) -> bool:
        return self.epoch < self.newest

    @property
    def is_ours(self) -> bool:
        """Whether it is the very term that we took, or one of ours that the folder does not remember, or nobody's. A lower one than ours
        under another name is not: storage was set back to when that owner had the log.
        """
        owner = self.owner
        return owner.term in (self.taken, NO_TERM) or owner.name == self.us


class Relation(enum.Enum):
    """How a run of consecutive files stands to the index."""

    LISTED = "listed"
    """All of it is listed as it is here."""
    CONTINUES = "continues"
    """The rest of it follows what is listed."""
    CONTRADICTED = "contradicted"
    """The index lists other batches under its numbers."""
    BEHIND_A_GAP = "behind a gap"
    """The index ends before the batch that it would continue."""


def meeting_point(files: Sequence[LocalFile], index_last: int) -> int | None:
    """The highest batch number for which both sides know a digest. None: they do not meet."""
    if not files or index_last < files[0].first - 1:
        return None
    return min(files[-1].last, index_last)


def relate(files: Sequence[LocalFile], index_last: int, here: str, there: str) -> Relation:
    """`here` and `there` are the digests at the meeting point."""
    at = meeting_point(files, index_last)
    if not files:
        return Relation.LISTED
    if at is None:
        return Relation.BEHIND_A_GAP
    if here != there or not there:
        return Relation.CONTRADICTED
    return Relation.LISTED if files[-1].last <= index_last else Relation.CONTINUES


def chosen_run(runs: Sequence[Sequence[LocalFile]], index_last: int) -> int:
    """Which of several runs of consecutive files can be gone on with: the first that reaches the index's end, else
    the last one.
    """
    for number, run in enumerate(runs):
        if run[-1].last >= index_last:
            return number
    return len(runs) - 1


def decide(view: View, patience: Patience) -> Verdict:
    relation = relate(view.files, view.index_last, view.here, view.there)
    if view.epoch > view.newest:
        if view.files:
            return Verdict(Decision.WAIT, f"storage knows no epoch {view.epoch}, only {view.newest}")
        return Verdict(Decision.WAIT, "the epoch is only beginning, or storage lost it")
    if not view.is_over and view.is_ours:
        # The index may have moved without us only if storage forgot, and opening finds that out by itself.
        return Verdict(Decision.OPEN, "the log is ours")
    match relation:
        case Relation.LISTED:
            return Verdict(
                Decision.DELETE, f"all that was here is listed; the index ends at {view.index_last}"
            )
        case Relation.CONTRADICTED:
            return Verdict(Decision.QUARANTINE, f"{view.owner.who} listed other batches instead")
        case Relation.BEHIND_A_GAP if view.is_over and (
            view.is_ours or view.owner.silent_s >= patience.over_s
        ):
            return Verdict(
                Decision.QUARANTINE,
                f"storage lost batches {view.index_last + 1} to {view.files[0].first - 1} before them",
            )
        case Relation.BEHIND_A_GAP:
            return Verdict(
                Decision.WAIT, f"batch {view.files[0].first - 1} before ours is not listed any more"
            )
        case Relation.CONTINUES:
            if view.is_ours:
                return Verdict(Decision.OPEN, "the epoch is over, and its rest is ours")
            return _replace_or_wait(view, patience)


def _replace_or_wait(view: View, patience: Patience) -> Verdict:
    owner = view.owner
    if view.is_over and not owner.holds:
        return Verdict(Decision.RETAKE, f"{owner.who} has finished with the epoch, which is over")
    limit_s = patience.over_s if view.is_over else patience.silent_s
    if owner.silent_s >= limit_s:
        return Verdict(Decision.RETAKE, f"{owner.who} was silent for {owner.silent_s:.0f} s")
    return Verdict(Decision.WAIT, f"{owner.who} has the log since term {owner.term}")
