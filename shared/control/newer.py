"""Answers and reports of a newer version: a part that is not understood costs that part, and never what else was said.

New fields, and new words of an open vocabulary, are read as nothing by the types themselves (shared/status.py, shared/vocabulary.py,
`shared.desired.Verb`). Here is what they cannot say: a part of another shape, or beyond the bounds of this version. Who reads keeps what
he knew, and names what was lost.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from shared import decoding
from shared.api.certificates import Trust
from shared.api.commands import Command
from shared.api.daemons import StatusReply
from shared.desired import Desired, Mark, Settings, Verb, Wish
from shared.errors import UNDECODABLE


class Lost(NamedTuple):
    part: str
    """`desired.wish`, say."""
    cause: str


def reply(content: bytes, lost: list[Lost]) -> StatusReply:
    """An answer to a report. What is not understood of commands, deletions, trust and desired state is added to `lost`; of all else one of
    UNDECODABLE is raised."""
    try:
        return decoding.decode(content, type=StatusReply)
    except UNDECODABLE:
        plain = decoding.decode(content, type=dict[str, Any])
    commands, desired = plain.pop("commands", []), plain.pop("desired", None)
    deleted, trust = plain.pop("deleted", []), plain.pop("trust", None)
    read = decoding.convert(plain, StatusReply)
    read.deleted = _part("deleted", deleted, list[str], lost) or []
    read.trust = _part("trust", trust, Trust | None, lost)
    for each in _part("commands", commands, list[Any], lost) or []:
        command = _part("commands", each, Command, lost)
        if command is not None:
            read.commands.append(command)
    parts = _part("desired", desired, dict[str, Any] | None, lost)
    if parts is not None:
        read.desired = Desired(
            wish=_part("desired.wish", parts.get("wish"), Wish | None, lost),
            settings=_part("desired.settings", parts.get("settings"), Settings | None, lost),
        )
    return read


def wish(plain: object) -> Wish:
    """Of what an agent goes by at least whose word it is, and which act: so another one can be told over it. Raises one of UNDECODABLE."""
    try:
        return decoding.convert(plain, Wish)
    except UNDECODABLE:
        said = decoding.convert(plain, dict[str, Any])
        return Wish(mark=decoding.convert(said.get("mark"), Mark), verb=Verb.OTHER)


def _part(name: str, plain: object, type_: Any, lost: list[Lost]) -> Any:
    try:
        return decoding.convert(plain, type_)
    except UNDECODABLE as exc:
        lost.append(Lost(name, str(exc)))
        return None
