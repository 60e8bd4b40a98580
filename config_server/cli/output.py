"""What commands print: JSON or tables on stdout, progress on stderr.

Names, states, causes come from daemons, and somebody else may write them. So text is never markup here (styles are given beside
it, `line`), and what would control a terminal is shown and not obeyed (`plain`): all that is printed goes through this module.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar

import click
import msgspec

from config_server.cli.options import wants_json
from shared.errors import OutputError, StateFileError, cause_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from config_server.cli.grids import Grid

_T = TypeVar("_T")
_PLAIN_INTERVAL_S: Final = 5.0
_CLEAR: Final = "\r\x1b[K"
"""The line of a terminal."""
_CONTROLS: Final = {
    number: f"\\x{number:02x}" for number in (*range(0x20), *range(0x7F, 0xA0)) if chr(number) not in "\n\t"
} | {
    number: f"\\u{number:04x}" for number in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
"""Control characters, and those that turn the direction of what is beside them."""
_JSON_CONTROLS: Final = {number: f"\\u{number:04x}" for number in _CONTROLS if number >= 0x7F}
"""Those that JSON leaves as they are."""


def plain(text: str) -> str:
    """`text` without power over the terminal."""
    return text.translate(_CONTROLS)


def line(*parts: str | tuple[str, str]) -> Text:
    """Text, or (text, style), one after the other."""
    from rich.text import Text

    return Text.assemble(
        *(plain(part) if isinstance(part, str) else (plain(part[0]), part[1]) for part in parts)
    )


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run the asynchronous part of a command. SIGTERM and SIGHUP cancel it as Ctrl-C does, so that it can tidy up.

    Raises click's Exit with 128 + the signal's number then.
    """
    import asyncio

    from shared.daemon import logging

    logging.configure("understudy", level=logging.Level.WARNING)
    ended_by: list[signal.Signals] = []

    async def cancellable() -> _T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def end(number: signal.Signals) -> None:
            ended_by.append(number)
            task.cancel()

        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
                loop.add_signal_handler(number, end, number)
        return await work

    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        if not ended_by:
            raise
        say(f"Ended by {ended_by[0].name}.")
        raise click.exceptions.Exit(128 + ended_by[0]) from None


@contextlib.contextmanager
def going_on(text: str) -> Iterator[None]:
    """Around waiting for what was asked for already, and is done without us: whoever ends the command (Ctrl-C, SIGTERM) is told that."""
    import asyncio

    try:
        yield
    except asyncio.CancelledError:
        say(text)
        raise


def say(text: str, *, nl: bool = True, head: str = "") -> None:
    """On stderr, in place of a line of progress that stands there; `head` goes before it as it is. What cannot be said there (it is full,
    nobody reads) changes nothing of what a command does."""
    head, Progress.stands = (_CLEAR if Progress.stands else "") + head, False
    with contextlib.suppress(OSError):
        click.echo(head + plain(text), nl=nl, err=True)


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Whatever goes to stdout. A reader that went away has seen what it wanted; anything else is an error. (Printing names no file: an
    error that does is another's.)

    Raises OutputError, and click's Exit as if SIGPIPE had ended the command.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as exc:
        if exc.filename is not None:
            name = os.fsdecode(exc.filename)
            raise StateFileError(
                f"{name[:200]} could not be used",
                cause=exc.strerror or "",
                action="Check its name, place and permissions.",
            ) from exc
        with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
            # What Python still holds back must not fail a second time when it ends.
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if isinstance(exc, BrokenPipeError):
            raise click.exceptions.Exit(128 + signal.SIGPIPE) from exc
        raise OutputError("The result could not be printed", cause=cause_of(exc)) from exc


def emit(value: Any, table: Callable[[], RenderableType], *, empty: str = "") -> None:
    """Print `value` as JSON or as what `table` makes, as the user chose. `empty`: what is said in place of a table without rows, and what
    to do next."""
    with printing():
        if wants_json():
            click.echo(to_json(value))
        elif empty and not value:
            console().print(line(empty))
        else:
            console().print(table())


def to_json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode().translate(_JSON_CONTROLS)


def console(
    *, stderr: bool = False, file: IO[str] | None = None, width: int = 200, terminal: bool = False
) -> Console:
    """Where results go, or `stderr`, or `file`; `terminal` says that this is one."""
    from rich.console import Console as RichConsole

    class Console(RichConsole):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # for `printing`; rich would end the program itself

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(plain(text), **options)

    never: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
    made = Console(stderr=stderr, file=file, **never)
    if terminal:
        made = Console(file=file, width=width, force_terminal=True, **never)
    if not made.is_terminal:
        # Not broken at 80 columns when it goes to a file or a pipe.
        made = Console(stderr=stderr, file=file, width=width, no_color=True, **never)
    return made


def grid(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Grid:
    """A table. Columns whose name begins with ">" are right-aligned, numbers; they and those with "=" (times, ids) stay
    in one piece. Others are folded where there is no room. Nothing is cut: where folding does not do, it is no table (grids.py)."""
    from rich import box

    from config_server.cli.grids import Grid

    table = Grid(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for column in columns:
        table.add_column(
            column.lstrip(">="),
            justify="right" if column.startswith(">") else "left",
            no_wrap=column.startswith((">", "=")),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*row)
    return table


def fields(title: str | None, rows: Sequence[tuple[str, str | Text]]) -> Table:
    """Names and values, without a head."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", box=box.SIMPLE, show_header=False, pad_edge=False, show_edge=False
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def told(head: Text, cause: str, action: str) -> RenderableType:
    """What, why, and what to do (left out where empty), over the whole width of the screen."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table

    lines = Table.grid(padding=(0, 1))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    for name, text in (("Why:", cause), ("Do:", action)):
        if text:
            lines.add_row(name, text)
    return Group(head, Padding(lines, (0, 0, 0, 2), expand=False)) if lines.row_count else head


def plain_fields(found: msgspec.Struct) -> Any:
    plain: dict[str, Any] = msgspec.to_builtins(found)
    return fields(None, [(name, compact(value)) for name, value in plain.items()])


def compact(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


class Progress:
    """One line of progress on stderr: rewritten on a terminal, else repeated every few seconds when it
    changed."""

    stands: ClassVar[bool] = False
    """There is one on the terminal's last line."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = ""
        self._shown_at = -1e9

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if Progress.stands:
            say("", nl=False)

    def show(self, text: str, *, force: bool = False) -> None:
        """`force` shows it even if the last line is fresh: for what happens once."""
        if text == self._shown and (Progress.stands or not self._terminal):
            return
        now = time.monotonic()
        if self._terminal:
            say(plain(text)[: _columns() - 1], nl=False)
            Progress.stands = True
        elif force or now - self._shown_at >= _PLAIN_INTERVAL_S:
            say(text)
        else:
            return
        self._shown, self._shown_at = text, now


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns


def size(size_b: float | None) -> str:
    """Bytes in binary units."""
    if size_b is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size_b) < 1024 or unit == "TiB":
            return f"{size_b:.0f} {unit}" if unit == "B" else f"{size_b:.1f} {unit}"
        size_b /= 1024
    raise AssertionError("the loop ends at TiB")


def seconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
