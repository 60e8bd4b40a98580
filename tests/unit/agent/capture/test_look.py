"""Which of two disks is left out that lie on each other: pure but for made-up folders of sysfs."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.capture import disks, layout
from agent.capture.answer import NOTHING
from agent.capture.binding import Identity, Kind, Known, Pinned, Standing, decide
from agent.capture.bindings import Bound
from agent.capture.disks import Disk
from agent.capture.look import Look, captured_twice, why_not
from tests.disk_parts import make_disk


class Stack:
    """dm-0 lies on sdb and sdc; dm-0 and sdb are protected, and sdc if it is said."""

    def __init__(self, sysfs: Path, protected: list[str]) -> None:
        minors = {"sdb": 16, "sdc": 32, "dm-0": 0}
        self.disks: dict[str, Disk] = {}
        for name, minor in minors.items():
            make_disk(sysfs, name, {"dev": f"8:{minor}"}, mq=name != "dm-0")
            self.disks[name] = disks.describe(Path("/dev", name), sysfs / "block" / name, 8, minor)
        slaves = sysfs / "block/dm-0/slaves"
        slaves.mkdir()
        for name in ("sdb", "sdc"):
            (slaves / name).symlink_to(sysfs / "block" / name)
        self.standing = {
            name: Standing(
                path=f"/dev/{name}",
                name=name,
                dev=layout.kernel_dev(8, minor),
                diskseq=7,
                sectors=2048,
                identities=(Identity(Kind.WWID, name),),
            )
            for name, minor in minors.items()
        }
        self.protected = protected

    def left_out(self, *, captured: list[str], pinned: list[str]) -> dict[str, str]:
        """By id, what to do. `captured`: at any time; `pinned`: now."""
        known = [
            Known(id=s.name, path=s.path, identity=s.identities[0], at=s.dev)
            for s in map(self.standing.__getitem__, self.protected)
        ]
        pins = [
            Pinned(slot=slot, dev=s.dev, diskseq=s.diskseq, sectors=s.sectors)
            for slot, s in enumerate(map(self.standing.__getitem__, pinned))
        ]
        look = Look(
            verdicts=decide(known, [*self.standing.values()], pins),
            found={layout.kernel_dev(disk.major, disk.minor): disk for disk in self.disks.values()},
            answers=dict.fromkeys((s.path for s in self.standing.values()), NOTHING),
            wrong={},
            remembered=[Bound(name, f"/dev/{name}", f"wwid:{name}") for name in captured],
            silent=frozenset(),
            without_place=frozenset(),
            boot="this",
        )
        return {id_: error.action for id_, error in why_not(look).items()}


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of which all that looks below disks reads."""
    real = disks.right_below
    monkeypatch.setattr(disks, "right_below", lambda name, **_: real(name, sysfs=tmp_path))
    return tmp_path


BOTH = ["dm-0", "sdb"]


@pytest.mark.parametrize("protected", [BOTH, [*BOTH, "sdc"]])
@pytest.mark.parametrize(
    ("captured", "pinned", "out"),
    [
        # the same boot
        (BOTH, BOTH, set()),
        (["sdb"], ["sdb"], {"dm-0"}),
        (["dm-0"], ["dm-0"], {"sdb"}),
        # one of them was pulled out and came back, as another disk to the kernel
        (BOTH, ["sdb"], set()),
        (BOTH, ["dm-0"], set()),
        # after a reboot
        (BOTH, [], set()),
        (["sdb"], [], {"dm-0"}),
        (["dm-0"], [], {"sdb"}),
        # never seen, or what was known of them is lost
        ([], [], {"dm-0"}),
        ([], BOTH, set()),
    ],
)
def test_of_two_that_lie_on_each_other_only_a_new_one_is_left_out(
    sysfs: Path, protected: list[str], captured: list[str], pinned: list[str], out: set[str]
) -> None:
    captured = [*captured, "sdc"] if "sdc" in protected else captured
    stack = Stack(sysfs, protected)
    left = stack.left_out(captured=captured, pinned=pinned)
    assert left.keys() == out
    if "dm-0" in out:  # wholly in the stream by the lower ones, or partly
        assert ("protect sdc in place of dm-0" in left["dm-0"]) == ("sdc" not in protected)
    if "sdb" in out:
        assert "take dm-0 out" in left["sdb"]


def test_two_that_are_captured_are_named_with_what_is_enough(sysfs: Path) -> None:
    stack = Stack(sysfs, BOTH)
    assert captured_twice([stack.disks["sdb"], stack.disks["sdc"]]) == {}
    (partly,) = captured_twice([stack.disks["dm-0"], stack.disks["sdb"]]).values()
    assert (partly.code, partly.action) == (
        "US596",
        "Parts of dm-0 lie on sdc, not protected: protect sdc in place of dm-0.",
    )
    wholly = captured_twice([*stack.disks.values()])
    assert wholly.keys() == {"dm-0"}
    assert wholly["dm-0"].action.startswith("Take dm-0 out")
