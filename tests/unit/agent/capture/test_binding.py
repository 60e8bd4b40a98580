"""Which disk is which: the table of what may have become of a disk, and what is done in each case."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from agent.capture.binding import (
    Action,
    Identity,
    Kind,
    Known,
    Pinned,
    Standing,
    decide,
    is_id,
    new_id,
    same,
)
from shared.log.names import DiskName

WWID = Identity(Kind.WWID, "naa.5000c500a1b2c3d4")
OTHER = Identity(Kind.WWID, "naa.5000c500ffffffff")
GPT = Identity(Kind.GPT, "6d1f0f5e-0000-0000-0000-000000000001")
OTHER_GPT = Identity(Kind.GPT, "6d1f0f5e-0000-0000-0000-000000000002")


LOOP = Identity(Kind.LOOP, "0:27:1 /srv/disk")
SERIAL = Identity(Kind.SERIAL, "S1")
NAME = Identity(Kind.NAME, "sdb, 2048 sectors")


def disk(
    name: str,
    identity: Identity = WWID,
    *,
    dev: int = 16,
    diskseq: int = 5,
    sectors: int = 2048,
    is_read: bool = True,
    is_named: bool = True,
) -> Standing:
    return Standing(
        path=f"/dev/{name}",
        name=name,
        dev=dev,
        diskseq=diskseq,
        sectors=sectors,
        identities=(identity,),
        is_read=is_read,
        is_named=is_named,
    )


def bound(identity: Identity | None = WWID, *, at: int | None = 16) -> Known:
    return Known(id="sdb", path="/dev/sdb", identity=identity, at=at, noted=(16, 5) if identity else None)


PIN = Pinned(slot=3, dev=16, diskseq=5, sectors=2048)


@pytest.mark.parametrize(
    ("known", "standing", "pinned", "action", "why"),
    [
        (bound(), [disk("sdb")], [PIN], Action.CONTINUE, ""),
        (bound(), [disk("sdb")], [], Action.ATTACH, "taken away and came back"),
        (bound(), [disk("sdb", diskseq=6)], [PIN], Action.ATTACH, "taken away and came back"),
        (bound(), [disk("sdb", sectors=4096)], [PIN], Action.ATTACH, "resized: 4096 sectors now, not 2048"),
        # the reboot swapped names
        (bound(), [disk("sdb", OTHER), disk("sdc", dev=32)], [], Action.ATTACH, "under /dev/sdc now, not under /dev/sdb"),
        # the configured path is a link that followed the disk
        (bound(at=32), [disk("sdb", OTHER), disk("sdc", dev=32)], [], Action.ATTACH, "taken away and came back"),
        (bound(), [replace(disk("sdb", OTHER, sectors=0), is_empty=True)], [], Action.MISSING, "/dev/sdb is empty"),
        (bound(), [disk("sdb", OTHER)], [PIN], Action.REFUSED, f"another disk stands under /dev/sdb: it is {OTHER}, not {WWID}"),
        # a LUN that was mapped anew behind the same device, which somebody renamed: the note counts no more
        (bound(at=None), [disk("sdb", OTHER)], [PIN], Action.MISSING, "no disk of this machine bears its identity"),
        # … or whose name is gone: it counts while no other disk has that, or it tells none
        (bound(), [disk("sdb", SERIAL)], [PIN], Action.CONTINUE, ""),
        (bound(), [disk("sdb", SERIAL), disk("sdc", OTHER, dev=32)], [PIN], Action.CONTINUE, ""),
        (bound(), [disk("sdb", SERIAL), disk("sdc", dev=32)], [PIN], Action.ATTACH, "under /dev/sdc now"),
        (bound(), [disk("sdb", SERIAL), disk("sdc", dev=32), disk("sdd", dev=48)], [PIN], Action.REFUSED, "/dev/sdc, /dev/sdd all bear"),
        (bound(), [disk("sdb", SERIAL, is_named=False), disk("sdc", dev=32)], [PIN], Action.CONTINUE, ""),
        (bound(), [disk("sdb", GPT), disk("sdc", dev=32)], [PIN], Action.CONTINUE, ""),
        (bound(at=None), [], [PIN], Action.MISSING, "no disk of this machine bears its identity"),
        (bound(at=None), [disk("sdc", dev=32)], [PIN], Action.ATTACH, "under /dev/sdc now"),
        # clones
        (bound(), [disk("sdb"), disk("sdc", dev=32)], [PIN], Action.CONTINUE, ""),
        (bound(at=None), [disk("sdc", dev=32), disk("sdd", dev=48)], [], Action.REFUSED, "/dev/sdc, /dev/sdd all bear its identity"),
        # never seen before
        (bound(None), [disk("sdb")], [], Action.ATTACH, "protected from now on"),
        (bound(None), [disk("sdb")], [PIN], Action.CONTINUE, ""),
        (bound(None, at=None), [disk("sdc", dev=32)], [], Action.MISSING, "nothing stands under /dev/sdb"),
        # weak identities: not asked while capture is pinned to what is noted, wherever the path leads
        (bound(GPT, at=32), [disk("sdb", OTHER_GPT), disk("sdc", GPT, dev=32)], [PIN], Action.CONTINUE, ""),
        (bound(GPT), [disk("sdb", OTHER_GPT)], [PIN], Action.CONTINUE, ""),
        (bound(GPT), [disk("sdb", OTHER_GPT, diskseq=6)], [PIN], Action.REFUSED, "another disk"),
        (bound(GPT), [disk("sdb", OTHER_GPT)], [], Action.REFUSED, "another disk"),
    ],
)  # fmt: skip
def test_what_becomes_of_a_disk(
    known: Known, standing: list[Standing], pinned: list[Pinned], action: Action, why: str
) -> None:
    (verdict,) = decide([known], standing, pinned)
    assert verdict.action is action
    assert re.search(why, verdict.reason)
    assert (verdict.slot == 3) == (action is Action.CONTINUE)
    assert (verdict.standing is not None) == (action in (Action.CONTINUE, Action.ATTACH))


@pytest.mark.parametrize("identity", [WWID, GPT])
@pytest.mark.parametrize("original_first", [True, False])
@pytest.mark.parametrize(
    ("path", "names", "captured", "chosen"),
    [
        # within a boot capture tells, wherever a link goes by now
        ("/dev/sdb", "original", True, "original"),
        ("/dev/disk/by-id/wwn-1", "twin", True, "original"),
        ("/dev/disk/by-id/wwn-1", "nothing", True, "original"),
        ("/dev/disk/by-path/pci-1", "original", True, "original"),
        # across a reboot, or when it was not captured, only a port does
        ("/dev/sdb", "original", False, "refused"),
        ("/dev/sdb", "twin", False, "refused"),
        ("/dev/disk/by-id/wwn-1", "twin", False, "refused"),
        ("/dev/disk/by-id/wwn-1", "nothing", False, "refused"),
        ("/dev/disk/by-path/pci-1", "original", False, "original"),
        ("/dev/disk/by-path/pci-1", "nothing", False, "refused"),
    ],
)
def test_of_twins_none_is_taken_without_evidence(
    identity: Identity, original_first: bool, path: str, names: str, captured: bool, chosen: str
) -> None:
    original, twin = disk("sdb", identity), disk("sdc", identity, dev=32, diskseq=9 if original_first else 2)
    at = {"original": 16, "twin": 32, "nothing": None}[names]
    known = Known(id="sdb", path=path, identity=identity, at=at, noted=(16, 5))
    standing = [original, twin] if original_first else [twin, original]
    (verdict,) = decide([known], standing, [PIN] if captured else [])
    if chosen == "refused":
        assert verdict.action is Action.REFUSED
        assert "/dev/sdb, /dev/sdc all bear its identity" in verdict.reason
    else:
        assert (verdict.action, verdict.standing) == (
            Action.CONTINUE if captured else Action.ATTACH,
            original,
        )


def test_a_new_disk_is_bound_by_what_it_alone_bears() -> None:
    port = Identity(Kind.BY_PATH, "pci-1")
    for own, kept in (((WWID, GPT, port, NAME), GPT), ((WWID, port, NAME), port), ((WWID, NAME), WWID)):
        one, other = replace(disk("sdb"), identities=own), disk("sdc", dev=32)
        (verdict,) = decide([bound(None)], [one, other])
        assert verdict.identity == kept
    (verdict,) = decide([bound(WWID)], [one, other], [PIN])
    assert verdict.identity == WWID, "it has nothing of its own"
    assert verdict.is_bound_by_shared


def test_a_serial_number_that_all_disks_share_is_left_while_capture_proves_which_disk_it_is() -> None:
    same_serial = Identity(Kind.SERIAL, "SAME")
    standing = [
        replace(disk("sdb"), identities=(same_serial, GPT, NAME)),
        replace(disk("sdc", dev=32), identities=(same_serial, OTHER_GPT)),
    ]
    known = [
        Known(id="sdb", path="/dev/sdb", identity=same_serial, at=16, noted=(16, 5)),
        Known(id="sdc", path="/dev/sdc", identity=same_serial, at=32, noted=(32, 5)),
    ]
    pins = [PIN, Pinned(slot=0, dev=32, diskseq=5, sectors=2048)]
    first = decide(known, standing, pins)
    assert [(v.slot, v.identity, v.is_bound_by_shared) for v in first] == [
        (3, GPT, False),
        (0, OTHER_GPT, False),
    ]
    rebooted = [replace(v.known, identity=v.identity, noted=None) for v in first]
    assert [v.standing for v in decide(rebooted, standing)] == standing
    configured = [replace(one, is_configured=True) for one in known]
    assert all(v.identity == same_serial and v.is_bound_by_shared for v in decide(configured, standing, pins))


def test_of_twins_that_are_both_protected_neither_takes_what_is_captured_as_the_other() -> None:
    known = [
        Known(id="sdb", path="/dev/sdb", identity=WWID, at=16, noted=(16, 8)),
        Known(id="sdc", path="/dev/sdc", identity=WWID, at=32, noted=(32, 9)),
    ]
    both = [disk("sdb", diskseq=8), disk("sdc", dev=32, diskseq=9)]
    pins = [Pinned(slot=0, dev=16, diskseq=8, sectors=2048), Pinned(slot=1, dev=32, diskseq=9, sectors=2048)]
    exchanged = [replace(known[0], at=32), replace(known[1], at=16)]
    for links in (known, exchanged, [replace(known[0], at=32), known[1]]):
        assert [v.slot for v in decide(links, both, pins)] == [0, 1]
        assert [v.slot for v in decide(links[::-1], both, pins)] == [1, 0]
    # one that was pulled out, and one that came: it may be a third
    came, stays = decide(known, [disk("sdb", diskseq=10), both[1]], pins)
    assert (came.action, stays.slot) == (Action.REFUSED, 1)
    gone, stays = decide([replace(known[0], at=None), known[1]], both[1:], pins)
    assert (gone.action, stays.slot) == (Action.MISSING, 1)
    assert [v.action for v in decide(known, both)] == [Action.REFUSED] * 2
    for one in decide(known, both[:1]):  # one of them is away after a reboot
        assert one.action is Action.REFUSED
        assert "by which the protected disks sdb, sdc are bound" in one.reason
    ported = [replace(one, path=f"/dev/disk/by-path/{one.id}") for one in known]
    assert [v.standing for v in decide(ported, both)] == both


def test_captured_disks_whose_links_are_exchanged_go_on_and_a_line_more_takes_none() -> None:
    standing = [disk("sdb"), disk("sdc", OTHER, dev=32)]
    pins = [PIN, Pinned(slot=0, dev=32, diskseq=5, sectors=2048)]
    new = Known(id="new", path="/dev/sdb", at=16, is_new=True)
    for noted in (True, False):
        known = [
            Known(id="sdb", path="/l1", identity=WWID, at=32, noted=(16, 5) if noted else None),
            Known(id="sdc", path="/l2", identity=OTHER, at=16, noted=(32, 5) if noted else None),
        ]
        for lines in ([*known, new], [new, *known]):
            said = {v.known.id: v for v in decide(lines, standing, pins)}
            assert (said["sdb"].slot, said["sdc"].slot) == (3, 0)
            assert (said["new"].action, said["new"].reason) == (
                Action.REFUSED,
                "/dev/sdb is the protected disk sdb already",
            )


def test_a_new_line_is_not_given_what_may_be_a_disk_that_cannot_be_told_from_its_twin() -> None:
    new = Known(id="new", path="/dev/sdc", at=32, is_new=True)
    refused, old = decide([new, bound()], [disk("sdb"), disk("sdc", dev=32)])
    assert (old.action, refused.action) == (Action.REFUSED, Action.REFUSED)
    assert refused.reason == "/dev/sdc may be the protected disk sdb"


def test_a_partition_table_that_was_copied_claims_no_disk_that_is_known_by_its_own_name() -> None:
    both = replace(disk("sdb"), identities=(WWID, GPT))
    copied = Known(id="copied", path="/dev/sdc", identity=GPT)
    for lines in ([bound(), copied], [copied, bound()]):
        said = {v.known.id: v.action for v in decide(lines, [both])}
        assert said == {"sdb": Action.ATTACH, "copied": Action.MISSING}


@pytest.mark.parametrize(
    ("identity", "found", "diskseq", "action"),
    [
        (GPT, NAME, 5, Action.CONTINUE),
        (LOOP, NAME, 5, Action.CONTINUE),
        (LOOP, NAME, 6, Action.MISSING),
        (GPT, NAME, 6, Action.MISSING),
        (WWID, OTHER, 5, Action.REFUSED),  # this it need not be asked for
    ],
)
def test_a_disk_that_does_not_answer_is_not_another_one_though_another_bears_its_table(
    identity: Identity, found: Identity, diskseq: int, action: Action
) -> None:
    clone = disk("sdc", identity, dev=32, diskseq=9)
    silent = disk("sdb", found, diskseq=diskseq, is_read=False)
    for standing in ([silent, clone], [clone, silent]):
        (verdict,) = decide([bound(identity)], standing, [PIN])
        if identity is GPT:
            assert (verdict.action, verdict.standing) == (action, silent)
        elif diskseq != PIN.diskseq or identity is WWID:
            assert (verdict.action, verdict.standing) == (Action.ATTACH, clone), "no clone bears that"


@pytest.mark.parametrize(
    ("mine", "others"),
    [(None, None), ((32, 9), (64, 3)), (None, (16, 5)), ((64, 4), (16, 5)), ((16, 5), None)],
)
@pytest.mark.parametrize("is_captured", [True, False])
def test_what_is_silent_under_its_path_keeps_a_disk_out_unless_it_is_captured_for_another(
    mine: tuple[int, int] | None, others: tuple[int, int] | None, is_captured: bool
) -> None:
    """A note of what is not captured is no proof: nobody has watched it since, and the clone may be noted."""
    silent = disk("sdb", NAME, diskseq=5, is_read=False)
    there = disk("sdc", GPT, dev=32, diskseq=9)
    other = replace(bound(Identity(Kind.GPT, "another")), id="other", path="/dev/sde", at=None, noted=others)
    pins = [PIN] if is_captured else []
    verdict = decide([replace(bound(GPT), noted=mine), other], [silent, there], pins)[0]
    if is_captured and others == (16, 5):
        assert (verdict.action, verdict.standing) == (Action.ATTACH, there)
    elif is_captured and mine == (16, 5):
        assert (verdict.action, verdict.standing) == (Action.CONTINUE, silent)
    else:
        assert (verdict.action, verdict.standing) == (Action.MISSING, silent)


def test_a_drive_without_a_medium_is_empty_and_hides_nothing_and_one_of_unknown_size_is_silent() -> None:
    unknown = replace(disk("sdb", NAME, diskseq=6, is_read=False), sectors=0)
    there = disk("sdc", GPT, dev=32, diskseq=9)
    for standing, action in ((unknown, Action.MISSING), (replace(unknown, is_empty=True), Action.ATTACH)):
        (verdict,) = decide([bound(GPT)], [standing, there])
        assert verdict.action is action
    (verdict,) = decide([bound(GPT)], [replace(unknown, is_empty=True)])
    assert (verdict.action, verdict.standing) == (Action.MISSING, None)
    assert verdict.reason.startswith("/dev/sdb is empty, and no disk of this machine bears its identity")


@pytest.mark.parametrize(
    ("identity", "found", "diskseq", "action"),
    [
        (GPT, NAME, 5, Action.CONTINUE),
        (LOOP, NAME, 5, Action.CONTINUE),
        (LOOP, NAME, 6, Action.MISSING),
        (GPT, NAME, 6, Action.MISSING),
        (WWID, OTHER, 5, Action.REFUSED),  # this it need not be asked for
    ],
)
def test_a_disk_that_does_not_answer_is_not_another_one(
    identity: Identity, found: Identity, diskseq: int, action: Action
) -> None:
    silent = disk("sdb", found, diskseq=diskseq, is_read=False)
    (verdict,) = decide([bound(identity)], [silent], [PIN])
    assert verdict.action is action
    if action is Action.MISSING:
        assert (verdict.standing, verdict.reason) == (
            silent,
            "what stands under /dev/sdb does not say which disk it is",
        )


@pytest.mark.parametrize(
    ("identity", "diskseq", "action"),
    [
        (WWID, 5, Action.CONTINUE),
        (WWID, 6, Action.MISSING),
        (GPT, 6, Action.REFUSED),  # that it said itself: it is another one
    ],
)
def test_a_disk_whose_driver_says_no_names_is_not_another_one_and_stays_bound_by_its_own(
    identity: Identity, diskseq: int, action: Action
) -> None:
    nameless = disk("sdb", NAME, diskseq=diskseq, is_named=False)
    (verdict,) = decide([bound(identity)], [nameless], [PIN])
    assert verdict.action is action
    if action is Action.CONTINUE:
        assert verdict.identity == identity


def test_disks_whose_names_were_swapped_are_both_found_and_the_third_goes_on() -> None:
    known = [
        Known(id="sda", path="/dev/sda", identity=WWID, at=0),
        Known(id="sdb", path="/dev/sdb", identity=OTHER, at=16),
        Known(id="sdc", path="/dev/sdc", identity=GPT, at=32),
    ]
    standing = [
        disk("sda", OTHER, dev=0, diskseq=9),
        disk("sdb", WWID, dev=16, diskseq=10),
        disk("sdc", GPT, dev=32, diskseq=3),
    ]
    verdicts = decide(known, standing, [Pinned(slot=2, dev=32, diskseq=3, sectors=2048)])
    assert [(v.action, v.standing.name if v.standing else "") for v in verdicts] == [
        (Action.ATTACH, "sdb"),
        (Action.ATTACH, "sda"),
        (Action.CONTINUE, "sdc"),
    ]


def test_a_disk_that_was_never_seen_is_not_taken_from_one_that_is_bound_to_it() -> None:
    new = Known(id="new", path="/dev/sdc", at=32)
    old = Known(id="sdb", path="/dev/sdb", identity=WWID, at=None)
    refused, found = decide([new, old], [disk("sdc", dev=32)])
    assert (found.action, refused.action) == (Action.ATTACH, Action.REFUSED)
    assert refused.reason == "/dev/sdc is the protected disk sdb already"


def test_a_weak_identity_that_changed_under_a_pinned_disk_is_learnt_anew() -> None:
    (verdict,) = decide([bound(GPT)], [disk("sdb", OTHER_GPT)], [PIN])
    assert verdict.identity == OTHER_GPT
    (verdict,) = decide([bound(None)], [disk("sdb", OTHER)])
    assert verdict.identity == OTHER
    stronger = Standing(path="/dev/sdb", name="sdb", dev=16, diskseq=5, sectors=2048, identities=(OTHER, GPT))
    (verdict,) = decide([bound(GPT)], [stronger])
    assert (verdict.action, verdict.identity) == (Action.ATTACH, GPT)  # what is kept is kept


@pytest.mark.parametrize(
    ("kept", "found", "is_same"),
    [
        ("8:1:77 /a", "8:1:77 /a", True),
        ("8:1:77 /a", "8:1:77 /renamed", True),
        ("0:40:77 /a", "0:51:77 /a", True),  # btrfs, tmpfs: another device number after each mount
        ("8:1:77 /a", "8:1:78 /a", False),  # another file under the same path
        ("8:1:77 /a", "8:2:77 /b", False),
    ],
)
def test_a_loop_disk_is_its_backing_file(kept: str, found: str, is_same: bool) -> None:
    assert same(Identity(Kind.LOOP, kept), Identity(Kind.LOOP, found)) is is_same
    assert not same(Identity(Kind.SERIAL, kept), Identity(Kind.LOOP, kept))


def test_others_that_bear_the_same_are_named_in_one_order_however_they_are_listed() -> None:
    there = [disk("sda", dev=0), disk("sdf", dev=80)]
    known = [
        Known(id="first", path="/dev/sda", at=0),
        Known(id="second", path="/dev/sdf", at=80),
        Known(id="lost", path="/dev/sdb", identity=WWID, is_new=True),
    ]
    verdict = decide(known, there)[-1]
    assert verdict.reason.startswith(
        "only /dev/sda (the protected disk first), /dev/sdf (the protected disk second) bear its"
    )
    assert decide(known, there[::-1])[-1] == verdict


def test_an_identity_is_read_back_as_it_was_written() -> None:
    for identity in (WWID, GPT, Identity(Kind.LOOP, "0:27:845 /dev/shm/disk a: b")):
        assert Identity.parse(str(identity)) == identity
    for text in ("wwid", "wwid:", "wnn:1", ""):
        with pytest.raises(ValueError, match=r".+"):
            Identity.parse(text)


@pytest.mark.parametrize(
    ("name", "taken", "made"),
    [
        ("sdb", [], "sdb"),
        ("sdb", ["sdb"], "sdb-2"),
        ("sdb", ["sdb", "sdb-2"], "sdb-3"),
        ("cciss/c0d0", [], "cciss!c0d0"),
        ("../etc", [], "etc"),
        ("ä", [], "disk"),
        ("x" * 300, [], "x" * 120),
    ],
)
def test_ids_can_stand_in_blob_names_and_are_never_given_twice(
    name: str, taken: list[str], made: str
) -> None:
    assert new_id(name, taken) == made
    assert is_id(made)


def test_an_id_is_what_blob_names_allow() -> None:
    pattern = DiskName.__metadata__[0].pattern  # type: ignore[attr-defined]
    for text in ("sdb", "sdb-2", "a!b", ".x", "a/b", "", "x" * 129, "a\n"):
        assert is_id(text) == (re.match(pattern, text) is not None)
