"""What a newer version says: a part that is not understood costs that part."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from shared.api.commands import Command
from shared.api.daemons import StatusReply
from shared.control import newer
from shared.control.newer import Lost
from shared.desired import Desired, Mark, Settings, Verb, WantedDisk, Wish
from shared.errors import UNDECODABLE

MARK: dict[str, Any] = {"incarnation": "i", "number": 7, "act": "a"}
DISK: dict[str, Any] = {"device": "/dev/sdb"}
WISH: dict[str, Any] = {"mark": MARK, "verb": "protect", "disks": [DISK]}
COMMAND: dict[str, Any] = {"id": "c1", "kind": "mark"}


def read(desired: object, commands: object = (COMMAND,), **more: object) -> tuple[StatusReply, list[Lost]]:
    lost: list[Lost] = []
    said = {"commands": commands, "revoked": {"serials": ["ab"]}, "desired": desired, **more}
    return newer.reply(json.dumps(said).encode(), lost), lost


def test_new_fields_and_states_are_read_as_nothing_wherever_they_stand() -> None:
    wish = WISH | {"mark": MARK | {"x": 1}, "disks": [DISK | {"part": 2}], "until": "noon"}
    reply, lost = read({"wish": wish, "settings": {"point_interval_s": 60, "x": {}}, "y": []}, z=1)
    mark = Mark("i", 7, "a")
    assert reply.desired == Desired(
        wish=Wish(mark=mark, verb=Verb.PROTECT, disks=(WantedDisk("/dev/sdb"),)),
        settings=Settings(point_interval_s=60),
    )
    assert lost == []


def test_a_new_verb_is_some_verb_and_its_act_is_known() -> None:
    reply, lost = read({"wish": WISH | {"verb": "pause"}})
    assert reply.desired is not None
    assert reply.desired.wish is not None
    assert (reply.desired.wish.verb, reply.desired.wish.mark.number, lost) == (Verb.OTHER, 7, [])


@pytest.mark.parametrize(
    ("desired", "parts"),
    [
        ({"wish": WISH | {"disks": [DISK] * 300}, "settings": {"point_interval_s": 60}}, ["desired.wish"]),
        ({"wish": WISH | {"verb": 7}, "settings": {"point_interval_s": 60}}, ["desired.wish"]),
        ({"wish": WISH, "settings": {"point_interval_s": "often"}}, ["desired.settings"]),
        ({"wish": [], "settings": []}, ["desired.wish", "desired.settings"]),
        ([], ["desired"]),
    ],
)
def test_what_is_not_understood_of_desired_state_costs_that_part_alone(
    desired: object, parts: list[str]
) -> None:
    reply, lost = read(desired)
    assert [part for part, _ in lost] == parts
    assert all(cause for _, cause in lost)
    assert reply.commands == [Command(id="c1", kind="mark")]
    assert reply.revoked is not None
    assert reply.revoked.serials == ["ab"]
    if isinstance(desired, dict):
        assert reply.desired is not None
        assert (reply.desired.wish is None, reply.desired.settings is None) == (
            "desired.wish" in parts,
            "desired.settings" in parts,
        )


def test_a_command_that_is_not_understood_costs_that_one() -> None:
    reply, lost = read(None, [COMMAND | {"args": []}, COMMAND | {"id": "c2", "kind": "new"}])
    assert reply.commands == [Command(id="c2", kind="new")]
    assert [part for part, _ in lost] == ["commands"]
    reply, lost = read({"wish": WISH}, {})
    assert (reply.commands, [part for part, _ in lost]) == ([], ["commands"])
    assert reply.desired is not None
    assert reply.desired.wish is not None


def test_of_deletions_that_are_not_understood_nothing_is_said_and_of_an_older_server_neither() -> None:
    """A daemon then keeps all that it has."""
    reply, lost = read(None, deleted={"c1": "web1"})
    assert ([c.id for c in reply.commands], reply.deleted, [part for part, _ in lost]) == (
        ["c1"],
        [],
        ["deleted"],
    )
    reply, lost = read(None)
    assert (reply.deleted, lost) == ([], [])
    reply, lost = read([], deleted=["c1"])
    assert reply.deleted == ["c1"]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"received_ns": "now"}', b'{"revoked": 5}'])
def test_what_is_no_answer_is_refused(content: bytes) -> None:
    with pytest.raises(UNDECODABLE):
        newer.reply(content, [])


def test_of_what_an_agent_goes_by_the_act_is_known_or_it_is_refused() -> None:
    known = newer.wish(WISH | {"disks": [DISK] * 300})
    assert known == Wish(mark=Mark("i", 7, "a"), verb=Verb.OTHER)
    assert newer.wish(WISH).verb is Verb.PROTECT
    for plain in (5, {}, {"mark": {"number": "x"}}):
        with pytest.raises(UNDECODABLE):
            newer.wish(plain)
    assert msgspec.json.decode(b'"stop"', type=Verb) is Verb.STOP
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b"5", type=Verb)
