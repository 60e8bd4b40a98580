"""Binding over random machines: whatever was swapped, pulled, cloned or replaced, no disk is taken for another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.capture.binding import Action, Identity, Kind, Known, Pinned, Standing, decide, same

SECTORS = 2048
PLACES = st.integers(0, 5)
IDENTITIES = st.builds(
    Identity,
    st.sampled_from([Kind.WWID, Kind.SERIAL, Kind.GPT]),
    st.sampled_from("abcd"),
)


@st.composite
def machines(draw: st.DrawFn) -> tuple[list[Known], list[Standing], list[Pinned]]:
    standing = [
        Standing(
            path=f"/dev/disk{place}",
            name=f"disk{place}",
            dev=place,
            diskseq=draw(st.integers(1, 3)),
            sectors=draw(st.sampled_from([SECTORS, 2 * SECTORS])),
            identities=(draw(IDENTITIES),),
        )
        for place in sorted(draw(st.sets(PLACES, max_size=5)))
    ]
    devs = {disk.dev for disk in standing}
    known = []
    notes = draw(st.lists(st.tuples(PLACES, st.integers(1, 3)), unique=True, min_size=4, max_size=4))
    for number, place in enumerate(draw(st.lists(PLACES, max_size=4))):
        known.append(
            Known(
                id=f"id{number}",
                path=f"/dev/disk{place}",
                identity=draw(st.none() | IDENTITIES),
                at=place if place in devs else None,
                noted=draw(st.none() | st.just(notes[number])),
                is_new=draw(st.booleans()),
            )
        )
    pinned = [
        Pinned(slot=slot, dev=place, diskseq=draw(st.integers(1, 3)), sectors=SECTORS)
        for slot, place in enumerate(sorted(draw(st.sets(PLACES, max_size=4))))
    ]
    return known, standing, pinned


@given(machines())
def test_no_disk_is_taken_for_another(machine: tuple[list[Known], list[Standing], list[Pinned]]) -> None:
    known, standing, pinned = machine
    slots = {pin.slot: pin for pin in pinned}
    verdicts = decide(known, standing, pinned)
    assert [verdict.known for verdict in verdicts] == known
    taken = [verdict.standing.dev for verdict in verdicts if verdict.standing]
    assert len(taken) == len(set(taken)), "one disk was given to two"
    for verdict in verdicts:
        disk, kept = verdict.standing, verdict.known.identity
        assert (disk is not None) == (verdict.action in (Action.CONTINUE, Action.ATTACH))
        assert verdict.reason or verdict.action is Action.CONTINUE
        if disk is None:
            continue
        if verdict.action is Action.CONTINUE:
            assert verdict.slot is not None
            pin = slots[verdict.slot]
            assert (pin.dev, pin.diskseq, pin.sectors) == (disk.dev, disk.diskseq, disk.sectors)
        if kept is not None and not any(same(kept, found) for found in disk.identities):
            # Only where the kernel itself says that it is the same disk, and then a strong one only if nothing bears it any more, or it
            # tells none at all.
            told = [found for found in disk.identities if not found.is_weak]
            borne = [found for one in standing for found in one.identities]
            assert kept.is_weak or not told or not any(same(kept, found) for found in borne)
            assert kept.is_weak or all(found.kind is not kept.kind for found in told)
            assert (disk.dev, disk.diskseq) == verdict.known.noted
            assert any((pin.dev, pin.diskseq) == (disk.dev, disk.diskseq) for pin in pinned)


@given(machines(), st.randoms())
def test_the_order_in_which_disks_are_listed_decides_nothing_but_who_of_two_equals_is_first(
    machine: tuple[list[Known], list[Standing], list[Pinned]], random: object
) -> None:
    known, standing, pinned = machine
    shuffled = [*standing]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert decide(known, standing, pinned) == decide(known, shuffled, [*reversed(pinned)])


@given(machines())
def test_other_protected_disks_may_make_a_disk_doubtful_and_give_it_none(
    machine: tuple[list[Known], list[Standing], list[Pinned]],
) -> None:
    known, standing, pinned = machine
    alone = {disk.id: decide([disk], standing, pinned)[0] for disk in known}
    for verdict in decide(known, standing, pinned):
        assert verdict == alone[verdict.known.id] or not verdict.is_chosen
