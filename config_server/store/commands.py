"""Commands to daemons: added by an operator, handed out with status replies until a result is reported.

A daemon may get a command more than once (it, or this server, may die in between), so commands are harmless
to repeat, and the id says that it is the same one. `add` with an id that exists is the same command too.

A command is an act of now: one that nobody fetches in its time fails, since what an operator wanted a month ago may do harm today.
A daemon that had fetched it reports its result all the same, and that counts.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Row, bindparam, delete, select, text, update

from config_server.rules.clock import SECOND_NS, rfc3339
from config_server.store.schema import commands
from config_server.store.statements import Prepared, unless_there
from shared import decoding
from shared.api.commands import Command, CommandKind, CommandState, CommandView
from shared.errors import CommandExpiredError, CommandNotFoundError, KeyUsedError

LIFE_S: Final = {
    CommandKind.MARK: 300,
    CommandKind.FLUSH: 300,
    CommandKind.RESYNC: 3600,
    CommandKind.CHECK_SIDE: 86_400,
}
_KEPT_NS: Final = 7 * 86_400 * SECOND_NS

_IT: Final = commands.c.id == bindparam("it")
_IS_PENDING: Final = commands.c.state == text(
    "'pending'"
)  # as the index has it, which no parameter would match
_ADD: Final = unless_there(commands)
_FORGET: Final = delete(commands).where(commands.c.done_ns < bindparam("until_ns"))
_GET: Final = select(commands).where(_IT)
_PENDING: Final = select(commands).where(_IS_PENDING).order_by(commands.c.rowid)
_PENDING_FOR: Final = Prepared(_PENDING.where(commands.c.target == bindparam("of_target")))
_END: Final = update(commands).where(_IT)
_WITHDRAW: Final = (
    update(commands).where(_IT, _IS_PENDING).values(state=CommandState.WITHDRAWN, done_ns=bindparam("now_ns"))
)
_FORGET_PENDING: Final = delete(commands).where(commands.c.target == bindparam("of_target"), _IS_PENDING)
_NOT_DONE: Final = Prepared(
    select(commands.c.id, commands.c.state, commands.c.result).where(
        commands.c.target == bindparam("of_target"), commands.c.state != CommandState.DONE
    )
)


def add(
    db: Connection, id_: str, target: str, kind: CommandKind, args: dict[str, Any], now_ns: int
) -> CommandView:
    """Queue a command for `target` (ROLE:NAME). Raises KeyUsedError when the id is another command's."""
    db.execute(_FORGET, {"until_ns": now_ns - _KEPT_NS})
    new = {
        "id": id_,
        "target": target,
        "kind": kind,
        "args": msgspec.json.encode(args).decode(),
        "created_ns": now_ns,
        "state": CommandState.PENDING,
        "result": "{}",
    }
    _ADD(db, new)
    view = get(db, id_)
    if (view.target, view.kind) != (target, kind):
        raise KeyUsedError(
            f"The command id '{id_}' could not be used",
            cause=f"it is the id of another command ({view.kind} for {view.target})",
        )
    return view


def pending(db: Connection, target: str, now_ns: int) -> list[Command]:
    """What waits for `target` and is wanted still, oldest first."""
    rows = _PENDING_FOR(db, {"of_target": target}).all()
    if not rows:
        return []
    over = _expire(db, rows, now_ns)
    return [
        Command(row.id, row.kind, decoding.decode(row.args, type=Any)) for row in rows if row.id not in over
    ]


def waiting(db: Connection, target: str, kind: CommandKind) -> CommandView | None:
    """The newest such command that was not done yet."""
    rows = _PENDING_FOR(db, {"of_target": target}).all()
    return next((_view(row) for row in reversed(rows) if row.kind == kind), None)


def expire(db: Connection, now_ns: int) -> list[str]:
    """Fail those whose time is over; their ids. Of a clock that jumped, either way, it cannot be told: ask again."""
    return _expire(db, db.execute(_PENDING).all(), now_ns)


def _expire(db: Connection, rows: Sequence[Row[Any]], now_ns: int) -> list[str]:
    over = [row for row in rows if abs(now_ns - row.created_ns) > LIFE_S[CommandKind(row.kind)] * SECOND_NS]
    for row in over:
        error = CommandExpiredError(f"The command '{row.kind}' for {row.target} was given up")
        _end(db, row.id, CommandState.FAILED, {"error": error.as_dict()}, now_ns)
    return [row.id for row in over]


def _end(db: Connection, id_: str, state: CommandState, result: dict[str, Any], now_ns: int) -> None:
    plain = msgspec.json.encode(result).decode()
    db.execute(_END, {"it": id_, "state": state, "result": plain, "done_ns": now_ns})


def finish(db: Connection, target: str, results: dict[str, dict[str, Any]], now_ns: int) -> list[str]:
    """Store the results that `target` reported; the ids whose result was not known. Others are ignored: known
    already."""
    if not results:
        return []
    known = {row.id: row for row in _NOT_DONE(db, {"of_target": target})}
    finished = [id_ for id_ in results if id_ in known and _is_awaited(known[id_])]
    for id_ in finished:
        state = CommandState.FAILED if "error" in results[id_] else CommandState.DONE
        _end(db, id_, state, results[id_], now_ns)
    return finished


def _is_awaited(row: Row[Any]) -> bool:
    """Also of one that nobody had fetched in its time, as far as was known."""
    if row.state in (CommandState.PENDING, CommandState.WITHDRAWN):
        return True
    error = decoding.decode(row.result, type=dict[str, Any]).get("error")
    return isinstance(error, dict) and error.get("code") == CommandExpiredError.code


def withdraw(db: Connection, id_: str, now_ns: int) -> bool:
    """Stop handing out a command for which nobody waits any more. Whether it was handed out until now."""
    return bool(db.execute(_WITHDRAW, {"it": id_, "now_ns": now_ns}).rowcount)


def withdraw_all(db: Connection, now_ns: int) -> list[tuple[str, str, str]]:
    """All that are pending; id, target and kind of each."""
    rows = db.execute(_PENDING).all()
    if rows:
        db.execute(_WITHDRAW, [{"it": row.id, "now_ns": now_ns} for row in rows])
    return [(row.id, row.target, row.kind) for row in rows]


def forget(db: Connection, target: str) -> None:
    """What waits for `target`: it was deleted."""
    db.execute(_FORGET_PENDING, {"of_target": target})


def get(db: Connection, id_: str) -> CommandView:
    """Raises CommandNotFoundError."""
    row = db.execute(_GET, {"it": id_}).first()
    if row is None:
        raise CommandNotFoundError(f"Command '{id_}' was not found")
    return _view(row)


def find(db: Connection, id_: str) -> tuple[CommandView, int] | None:
    """And when it ended, 0 where it has not; None where it was forgotten, or never there."""
    row = db.execute(_GET, {"it": id_}).first()
    return None if row is None else (_view(row), row.done_ns or 0)


def _view(row: Row[Any]) -> CommandView:
    return CommandView(
        id=row.id,
        target=row.target,
        kind=CommandKind(row.kind),
        args=decoding.decode(row.args, type=Any),
        state=CommandState(row.state),
        result=decoding.decode(row.result, type=Any),
        created=rfc3339(row.created_ns),
    )


class Bell:
    """Wakes those who wait for something about a name: a daemon for commands, an operator for results. They may wait at another config
    server."""

    def __init__(self) -> None:
        self._rung: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._closed = False
        self.forward: Callable[[str], None] = lambda _name: None
        """Rings it at the other servers (operations/replicas.py)."""

    @property
    def is_closed(self) -> bool:
        """Whether nobody waits any more: this server ends."""
        return self._closed

    def ring(self, name: str) -> None:
        self.ring_here(name)
        self.forward(name)

    def ring_here(self, name: str) -> None:
        """Another server has rung it."""
        self._rung.pop(name, asyncio.Event()).set()

    def ring_all(self) -> None:
        """Whoever waits here looks: nobody knows what was rung."""
        for name in list(self._rung):
            self.ring_here(name)

    def close(self) -> None:
        """Wake everybody; nobody waits from now on."""
        self._closed = True
        self.ring_all()

    def listen(self, name: str) -> asyncio.Event:
        """An event that the next ring sets. Take it before looking, so that no ring is missed."""
        if self._closed:
            event = asyncio.Event()
            event.set()
            return event
        return self._rung[name]
