"""The command line of a set-up: options that all have, what is asked for, what is printed."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, TextIO

import msgspec

from shared.daemon import logging
from shared.errors import OutputError, Told, UnderstudyError, UsageError
from shared.setup.host import ETC, STATE, alone
from shared.setup.steps import Done, Outcome, Step, carry_out

_WIDTH: Final = max(len(outcome) for outcome in Outcome)
Show = Callable[[str], None]


class Report(msgspec.Struct, kw_only=True):
    """What `--output json` prints."""

    role: str
    dry_run: bool
    changed: bool
    """Whether this run made anything, or set it right."""
    steps: list[Done]
    error: Told | None = None
    """Why it ended before the last step."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(UsageError.exit_code, f"Error: {_shown(message)}\n")


def parser(prog: str, description: str) -> argparse.ArgumentParser:
    made = _Parser(
        prog=prog,
        allow_abbrev=False,
        description=f"{description} It may be run again: what is there is kept, what is missing is made, nothing is written over.",
    )
    made.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
    made.add_argument("--output", choices=("text", "json"), default="text", help="form of the result")
    made.add_argument(
        "--etc", type=Path, default=ETC, metavar="DIR", help="configuration (default: %(default)s)"
    )
    made.add_argument("--state", type=Path, default=STATE, metavar="DIR", help="state (default: %(default)s)")
    made.add_argument(
        "--no-unit", action="store_true", help="leave users and units alone; the daemon is started by hand"
    )
    made.add_argument(
        "--replace-units", action="store_true", help="write unit files anew, also where they were changed"
    )
    return made


def port(text: str) -> int:
    """For an option. Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdecimal()) or not 0 < int(text[:9]) < 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: it must be 1 to 65535")
    return int(text)


class Answers:
    """What the administrator wants: options, else what an earlier run wrote, else a question where somebody sits at a terminal."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        self._known: Final = known
        """Of the configuration file that is there."""
        self.asks: Final = sys.stdin.isatty() and not known
        self._missing: list[str] = []

    def value(
        self,
        given: str | None,
        keys: Sequence[str],
        flag: str,
        question: str,
        default: str | None = None,
        *,
        asks: bool = True,
    ) -> str:
        """`keys`: where it stands in the configuration. Without a default it must be said; with one, `asks` tells whether to ask."""
        if given is not None:
            return given
        if (found := self.known(*keys)) is not None:
            return str(found)
        if self.asks and (asks or default is None):
            return self._ask(question, default)
        if default is None:
            self._missing.append(flag)
        return default or ""

    def known(self, *keys: str) -> Any:
        """None: it does not stand there."""
        found: Any = self._known
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found if keys else None

    def check(self) -> None:
        """Raises UsageError for all that is missing."""
        if self._missing:
            raise UsageError(
                f"Missing: {', '.join(self._missing)}",
                cause="nobody can be asked, since this is no terminal, or the configuration that is there does not say it",
                action="Give these options; --help explains them.",
            )

    def _ask(self, question: str, default: str | None) -> str:
        while True:
            sys.stderr.write(f"{question}{f' [{default}]' if default else ''}: ")
            sys.stderr.flush()
            line = sys.stdin.readline()
            if not line:
                raise UsageError(
                    "A question was not answered", cause=question, action="Give it as an option."
                )
            if said := line.strip() or (default or ""):
                return said
            if default is not None:
                return ""


def run(
    role: str,
    options: argparse.Namespace,
    begin: Callable[[Show], Iterable[Step]],
    after: Callable[[Sequence[Done]], Sequence[str]] = lambda _done: (),
) -> int:
    """Carries the steps out; the exit code. `begin` makes them, and may ask; it is given what shows progress. `after`: what is left to do
    when these are done, in words; it is not asked after a dry run, nor for JSON."""
    screen = _Screen(as_json=options.output == "json")
    logging.configure(role, level=logging.Level.WARNING)
    error: UnderstudyError | None = None
    left: Sequence[str] = ()
    try:
        # Not a lock for a dry run: it would be made, and the run changes nothing.
        held = contextlib.nullcontext() if options.dry_run else alone(options.etc, options.state)
        with held, _private():
            asyncio.run(_cancellable(begin(screen.progress), screen.tell, dry_run=options.dry_run))
        if not (options.dry_run or screen.as_json):
            left = after(screen.done)
    except UnderstudyError as exc:
        error = exc
    except (KeyboardInterrupt, asyncio.CancelledError):
        screen.say("Interrupted. The same command again goes on from here.")
        return 130
    changed = any(step.outcome in (Outcome.CREATED, Outcome.MENDED) for step in screen.done)
    if screen.as_json:
        told = None if error is None else error.as_dict()
        report = Report(role=role, dry_run=options.dry_run, changed=changed, steps=screen.done, error=told)
        text = msgspec.json.format(msgspec.json.encode(report), indent=2).decode()
        if not _write(sys.stdout, f"{text}\n"):
            error = error or OutputError("The result could not be printed")
    if error is not None:
        screen.say(f"{error.code}: {error}")
        return error.exit_code
    if not screen.as_json:
        lines = (_summary(screen.done, options.dry_run), *left)
        _write(sys.stdout, "".join(f"{_shown(line)}\n" for line in lines))
    return 0


class _Screen:
    """Steps on stdout, or with JSON, which is stdout's then, on stderr; what is done just now on a terminal alone, in one line."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json: Final = as_json
        self.done: list[Done] = []
        self._out: Final = sys.stderr if as_json else sys.stdout
        self._clear: Final = "\r\x1b[K" if sys.stderr.isatty() else ""

    def progress(self, text: str) -> None:
        if self._clear:
            _write(sys.stderr, f"{self._clear}{_shown(text)}")

    def tell(self, step: Done) -> None:
        self.done.append(step)
        _write(sys.stderr, self._clear)
        _write(self._out, _line(step))

    def say(self, text: str) -> None:
        _write(sys.stderr, f"{self._clear}{_shown(text)}\n")


def _write(out: TextIO, text: str) -> bool:
    """Whether it could be. That nobody reads any more, or there is no room, ends no set-up half-way."""
    try:
        out.write(text)
        out.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(
                nowhere.fileno(), out.fileno()
            )  # or what Python holds back would fail once more at the end
        return False
    return True


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """What is made without a mode of its own (a database and its logs) is nobody else's, and the rest has its mode: neither is for the
    umask of whoever runs this to say."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


async def _cancellable(steps: Iterable[Step], tell: Callable[[Done], None], *, dry_run: bool) -> None:
    """SIGTERM and SIGHUP end it as Ctrl-C does, so that a check of storage removes what it has made."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await carry_out(steps, tell, dry_run=dry_run)


def _summary(done: Sequence[Done], dry_run: bool) -> str:
    seen = Counter(step.outcome for step in done)
    first = (
        "Dry run: nothing was changed."
        if dry_run
        else "Done."
        if seen[Outcome.CREATED] or seen[Outcome.MENDED]
        else "Nothing was changed."
    )
    left = [
        f"{seen[outcome]} {outcome}"
        for outcome in (Outcome.MENDED, Outcome.WARNING, Outcome.DIFFERS, Outcome.TO_DO)
        if seen[outcome]
    ]
    return f"{first} To look at: {', '.join(left)}." if left else first


def _line(step: Done) -> str:
    detail = f": {step.detail}" if step.detail else ""
    text = _shown(f"{step.outcome:<{_WIDTH}}  {step.what}{detail}")
    return f"{text}\n" + (f"{'':<{_WIDTH}}  Do: {_shown(step.action)}\n" if step.action else "")


def _shown(text: str) -> str:
    """What others wrote (a name, a log) has no power over the terminal."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
