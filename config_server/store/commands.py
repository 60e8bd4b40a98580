"""Commands to daemons: added by an operator, handed out with status replies until a result is reported.

A daemon may get a command more than once (it, or this server, may die in between), so commands are harmless
to repeat, and the id says that it is the same one. `add` with an id that exists is the same command too.

A command is an act of now: one that nobody fetches in its time fails, since what an operator wanted a month ago may do harm today.
A daemon that had fetched it reports its result all the same, and that counts.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import defaultdict
from typing import Any, Final

import msgspec

from config_server.rules.clock import SECOND_NS, rfc3339
from shared import decoding
from shared.api.commands import Command, CommandKind, CommandState, CommandView
from shared.errors import CommandExpiredError, CommandNotFoundError, RequestError

LIFE_S: Final = {
    CommandKind.MARK: 300,
    CommandKind.FLUSH: 300,
    CommandKind.RESYNC: 3600,
    CommandKind.CHECK_SIDE: 86_400,
}
_KEPT_NS: Final = 7 * 86_400 * SECOND_NS


def add(
    db: sqlite3.Connection, id_: str, target: str, kind: CommandKind, args: dict[str, Any], now_ns: int
) -> CommandView:
    """Queue a command for `target` (ROLE:NAME). Raises RequestError when the id is another command's."""
    db.execute("DELETE FROM commands WHERE done_ns < ?", (now_ns - _KEPT_NS,))
    db.execute(
        "INSERT OR IGNORE INTO commands VALUES (?, ?, ?, ?, ?, 'pending', '{}', NULL)",
        (id_, target, kind, msgspec.json.encode(args).decode(), now_ns),
    )
    view = get(db, id_)
    if (view.target, view.kind) != (target, kind):
        raise RequestError(
            f"The command id '{id_}' could not be used",
            cause=f"it is the id of another command ({view.kind} for {view.target})",
        )
    return view


def pending(db: sqlite3.Connection, target: str, now_ns: int) -> list[Command]:
    """What waits for `target` and is wanted still, oldest first."""
    expire(db, now_ns)
    rows = db.execute(
        "SELECT * FROM commands WHERE target = ? AND state = 'pending' ORDER BY rowid", (target,)
    )
    return [Command(row["id"], row["kind"], decoding.decode(row["args"], type=Any)) for row in rows]


def waiting(db: sqlite3.Connection, target: str, kind: CommandKind) -> CommandView | None:
    """The newest such command that was not done yet."""
    row = db.execute(
        "SELECT id FROM commands WHERE target = ? AND kind = ? AND state = 'pending' ORDER BY rowid DESC",
        (target, kind),
    ).fetchone()
    return get(db, row["id"]) if row else None


def expire(db: sqlite3.Connection, now_ns: int) -> list[str]:
    """Fail those whose time is over; their ids. Of a clock that jumped, either way, it cannot be told: ask again."""
    over = [
        row
        for row in db.execute("SELECT id, target, kind, created_ns FROM commands WHERE state = 'pending'")
        if abs(now_ns - row["created_ns"]) > LIFE_S[CommandKind(row["kind"])] * SECOND_NS
    ]
    for row in over:
        error = CommandExpiredError(f"The command '{row['kind']}' for {row['target']} was given up")
        result = msgspec.json.encode({"error": error.as_dict()}).decode()
        db.execute(
            "UPDATE commands SET state = 'failed', result = ?, done_ns = ? WHERE id = ?",
            (result, now_ns, row["id"]),
        )
    return [row["id"] for row in over]


def finish(db: sqlite3.Connection, target: str, results: dict[str, dict[str, Any]], now_ns: int) -> list[str]:
    """Store the results that `target` reported; the ids whose result was not known. Others are ignored: known
    already."""
    finished = []
    for id_, result in results.items():
        state = CommandState.FAILED if "error" in result else CommandState.DONE
        changed = db.execute(
            "UPDATE commands SET state = ?, result = ?, done_ns = ? WHERE id = ? AND target = ? AND ("
            " state IN ('pending', 'withdrawn') OR json_extract(result, '$.error.code') = ?)",
            (state, msgspec.json.encode(result).decode(), now_ns, id_, target, CommandExpiredError.code),
        )
        if changed.rowcount:
            finished.append(id_)
    return finished


def withdraw(db: sqlite3.Connection, id_: str, now_ns: int) -> None:
    """Stop handing out a command for which nobody waits any more."""
    db.execute(
        "UPDATE commands SET state = 'withdrawn', done_ns = ? WHERE id = ? AND state = 'pending'",
        (now_ns, id_),
    )


def withdraw_all(db: sqlite3.Connection, now_ns: int) -> list[tuple[str, str, str]]:
    """All that are pending; id, target and kind of each."""
    pending = db.execute(
        "SELECT id, target, kind FROM commands WHERE state = 'pending' ORDER BY rowid"
    ).fetchall()
    for row in pending:
        withdraw(db, row["id"], now_ns)
    return [(row["id"], row["target"], row["kind"]) for row in pending]


def get(db: sqlite3.Connection, id_: str) -> CommandView:
    """Raises CommandNotFoundError."""
    row = db.execute("SELECT * FROM commands WHERE id = ?", (id_,)).fetchone()
    if row is None:
        raise CommandNotFoundError(f"Command '{id_}' was not found")
    return CommandView(
        id=row["id"],
        target=row["target"],
        kind=CommandKind(row["kind"]),
        args=decoding.decode(row["args"], type=Any),
        state=CommandState(row["state"]),
        result=decoding.decode(row["result"], type=Any),
        created=rfc3339(row["created_ns"]),
    )


class Bell:
    """Wakes those who wait for something about a name: a daemon for commands, an operator for results."""

    def __init__(self) -> None:
        self._rung: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._closed = False

    def ring(self, name: str) -> None:
        self._rung.pop(name, asyncio.Event()).set()

    def close(self) -> None:
        """Wake everybody; nobody waits from now on."""
        self._closed = True
        for name in list(self._rung):
            self.ring(name)

    def listen(self, name: str) -> asyncio.Event:
        """An event that the next ring sets. Take it before looking, so that no ring is missed."""
        if self._closed:
            event = asyncio.Event()
            event.set()
            return event
        return self._rung[name]
