"""Puts capture on the disks that the configuration names, as far as they are there and well. One bad disk never costs the others.

Input: the configuration, the bindings (`bindings`), what stands on the machine (`identify`), what is pinned (`attach.read_pinned`).
Each disk is judged by itself (`look`: `binding.decide`, `suitable.check`, `answer`); those that cannot be captured now are *left out*, with
cause and action, and looked for again (`watch`). What is chosen is written down here, and brought about by `fitting`. Blocks for seconds.

What is pinned and not whole is no capture: it is removed, and everything is attached afresh.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from agent.capture import attach, bindings, disks, pinned_lines, pins
from agent.capture.binding import Action, Pinned, Verdict
from agent.capture.bindings import BindingsFile, Bound, Seen
from agent.capture.disks import Disk
from agent.capture.fitting import BeforeChange, Change, attach_all, bring_about, calibrate_again
from agent.capture.look import LeftOut, Look, Refusing, bound_by_shared, look_at, read_pins, silence, why_not
from agent.capture.maps import Capture
from shared.daemon import logging
from shared.desired import WantedDisk
from shared.errors import NoUsableDiskError, PinsDamagedError, SharedIdentityError, StateFileError

_log = logging.get()


class Protected(NamedTuple):
    capture: Capture
    """Of all disks that can be captured now."""
    left_out: list[LeftOut]
    """Those that cannot."""
    shared: dict[str, SharedIdentityError]
    """By id, what people are warned of."""


def protect(
    wanted: Sequence[WantedDisk],
    file: BindingsFile,
    pin_dir: Path,
    ring_b: int,
    before_change: BeforeChange,
    *,
    given_up: Collection[str] = (),
    refusing: Mapping[str, Refusing] = MappingProxyType({}),
    object_path: Path = attach.OBJECT,
) -> Protected:
    """Raises UnderstudyError when no disk can be captured. `given_up`, `refusing`: see `why_not`."""
    attach.check_machine(object_path)
    pins.ensure_bpffs(pin_dir)
    if pins.exist(pin_dir):
        pins.former(pin_dir).unlink(missing_ok=True)  # an attachment was killed when it was complete
    pinned, removed = read_pins(pin_dir)
    if removed is not None:
        _log.error("capture is not whole: it is attached afresh", **removed.as_dict())
    remembered = file.read()
    _tell_of_damage(pinned, pin_dir)
    if remembered is None and pinned:
        _log.warning(
            "which disk is which is not known any more, but of those that are captured: others are bound to what stands under their paths",
            path=str(file.path),
        )
    look = look_at(wanted, remembered or [], pin_dir, everybody=True)
    if look.otherwise:
        not_gone_by = file.put_back.is_not_gone_by(look.otherwise)
        _log.warning("disks.json was put back", **not_gone_by.as_dict())
    chosen: list[tuple[Verdict, Disk]] = []
    left_out: list[LeftOut] = []
    errors = why_not(look, given_up, refusing)
    for verdict in look.verdicts:
        error = errors.get(verdict.known.id)
        if error is not None:
            left_out.append(LeftOut(verdict.known.id, verdict.known.path, error))
            continue
        assert verdict.standing is not None
        if cause := silence(verdict, look):
            # Capture needs nothing of it to go on, and its writes are seen. What catch-up cannot read shows there.
            _log.warning(
                "a captured disk cannot be read; it stays captured", id=verdict.known.id, cause=cause
            )
        disk = replace(look.found[verdict.standing.dev], id=verdict.known.id)
        if disks.leads_to(verdict.known.path, disk):
            disk = replace(disk, path=Path(verdict.known.path))
        chosen.append((verdict, disk))
    if not chosen:
        actions = {left.error.action for left in left_out}
        raise NoUsableDiskError(
            "None of the protected disks can be captured",
            cause="; ".join(f"{left.id}: {left.error.cause or left.error.what}" for left in left_out),
            action=actions.pop() if len(actions) == 1 else "",
        )
    lines, unbound = _remember(file, look, remembered, [verdict for verdict, _ in chosen])
    left_out += unbound
    chosen = [(v, disk) for v, disk in chosen if v.known.id not in {left.id for left in unbound}]
    is_fresh = False
    if pinned:
        ids = {line.seen: line.id for line in look.remembered if line.seen}
        whose = {pin.slot: ids.get(Seen(look.boot, pin.dev, pin.diskseq), "") for pin in pinned}
        unseen = bring_about(chosen, whose, pin_dir, ring_b, before_change, object_path)
        calibrate_again(chosen, look, pin_dir, object_path)
    else:
        is_unfinished = pins.former(pin_dir).exists()
        change = Change.REMOVED if removed else Change.UNFINISHED if is_unfinished else Change.FRESH
        is_fresh = change is Change.FRESH
        unseen = attach_all(chosen, pin_dir, ring_b, before_change, change, object_path)
    left_out += unseen
    captured = [disk for _, disk in chosen if disk.id not in {left.id for left in unseen}]
    noted = {line.id: pinned_lines.as_pinned(line) for line in lines}
    capture = Capture.attached(pin_dir, captured, fresh=is_fresh, object_path=object_path, lines=noted)
    return Protected(capture, left_out, bound_by_shared(verdict for verdict, _ in chosen))


def _tell_of_damage(pinned: Sequence[Pinned], pin_dir: Path) -> None:
    """Once: it is written anew when capture is taken up. A line of another id or disk is none: an older agent ran since, and let it be."""
    wrong = [
        str(pin.slot)
        for pin in pinned
        if pin.is_damaged or (pin.note and pinned_lines.read(pin.note) is None)
    ]
    if wrong:
        damage = PinsDamagedError(
            f"What is pinned at {pin_dir} of the captured disks is not gone by",
            cause=f"what stands there of slot {', '.join(wrong)} is no id and line of its disk",
        )
        _log.warning(
            "which disk was captured for which id is known from disks.json alone", **damage.as_dict()
        )


def _remember(
    file: BindingsFile, look: Look, stored: list[Bound] | None, chosen: Sequence[Verdict]
) -> tuple[list[Bound], list[LeftOut]]:
    """Keeps what the chosen disks are bound by, and returns that. A partition table that could not be read is not one that is gone.
    Where it cannot be written, those of which it was known before go on, and what is to be kept of them is owed to the file; returns the
    others, too: a disk is written down before it is captured for the first time, or it could be taken for another later. Raises
    StateFileError when none is left."""
    now: list[Bound] = []
    unknown = {bound.id for bound in look.remembered if not bound.identity}
    for verdict in chosen:
        assert verdict.standing is not None
        is_whole = verdict.standing.is_read and verdict.standing.is_named
        is_unknown = verdict.known.identity is None or verdict.known.id in unknown
        if verdict.action is Action.CONTINUE and is_unknown and not is_whole:
            continue  # by what it is bound is not known, and what it bears now may be less
        is_read = bool(look.answers[verdict.standing.path].head)
        identity = (verdict.identity if is_read else verdict.known.identity) or verdict.standing.identities[0]
        bound = bindings.bind(verdict, identity, look.remembered, look.boot)
        if bound not in look.remembered:
            _log.info("disk bound", id=bound.id, device=bound.last, identity=bound.identity)
        now.append(bound)
    after = pinned_lines.numbered(bindings.after(look.remembered, now), look.remembered, stored or [])
    if after == stored and file.trouble is None:
        return after, []
    try:
        file.write(after)
    except StateFileError as exc:
        written = {(bound.id, bound.identity) for bound in file.written}
        # One that is captured goes on, bound as before: by the file, or by what is pinned.
        going_on = {v.known.id for v in chosen if v.action is Action.CONTINUE} & {
            bound.id for bound in look.remembered
        }
        to_write = {bound.id: bound.identity for bound in now}
        unbound = [
            LeftOut(verdict.known.id, verdict.known.path, exc)
            for verdict in chosen
            if (id_ := verdict.known.id) not in going_on and (id_, to_write[id_]) not in written
        ]
        if len(unbound) == len(chosen):
            raise
        out = {left.id for left in unbound}
        kept = [bound for bound in now if bound.id not in out]
        after = pinned_lines.numbered(bindings.after(look.remembered, kept), look.remembered, stored or [])
        owed = file.owe(after, exc)
        if owed is not None:
            _log.warning("where the disks stand now could not be noted", **owed.as_dict())
        return after, unbound
    return after, []
