"""Logging: one structured line per thing that happened, on stderr.

On a terminal the lines are for people, else they are JSON objects (for journald and collectors). Every line
has `time` (UTC), `level`, `service` and `event`; what is bound (machine, epoch, session) follows. An error is
logged as its four parts (`**error.as_dict()`): code, what, cause, action. Lines of other libraries (asyncio,
azure) pass through the same pipeline, from warning up.

Logging never ends a daemon and never makes it wait: lines that cannot be written are counted (`log_sink`), told in one line when
it works again, and shown in the status line meanwhile (`trouble`).

Secrets do not belong into a log call. As a second line of defence, fields named in `SECRET_FIELDS` are
blanked (I9). A traceback shows lines of code, never what the variables held.
"""

from __future__ import annotations

import enum
import logging
import sys
from typing import Any, Final, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from shared.daemon.log_sink import Sink
from shared.errors import LogLostError

SECRET_FIELDS: Final = frozenset(
    {
        "token",
        "sas",
        "password",
        "secret",
        "authorization",
        "account_key",
        "data_key",
        "master_key",
        "private_key",
    }
)
_FOREIGN_HANDLER: Final = "understudy"


class Level(enum.StrEnum):
    """From which level on lines are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def number(self) -> int:
        """The standard library's."""
        return logging.getLevelNamesMapping()[self.name]


_sinks: list[Sink] = []
"""The one in use."""


def configure(
    service: str, *, level: Level = Level.INFO, json: bool | None = None, stream: TextIO | None = None
) -> None:
    """Set up logging of this process; once, at its start. `json` None means: text on a terminal, JSON otherwise."""
    out = Sink(stream if stream is not None else sys.stderr, _tell_what_was_lost)
    _sinks[:] = [out]
    as_json = json if json is not None else not out.isatty()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _add_service(service),
        _blank_secrets,
    ]
    renderer: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(
                colors=out.isatty(),
                timestamp_key="time",
                # Its own one shows what all variables hold: keys and tokens, too.
                exception_formatter=structlog.dev.plain_traceback,
            )
        ]
    )
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level.number),
        logger_factory=lambda *_: _Lines(out),
        # Not cached: tests, and a second configure(), must reach loggers that modules made at import.
        cache_logger_on_first_use=False,
    )
    _bridge_standard_library(cast(TextIO, out), shared, renderer, max(level.number, logging.WARNING))


class _Lines:
    """What structlog's loggers write to. Its own one holds a lock while it writes, in which a sink that has lines to tell would wait
    for itself."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def msg(self, line: str) -> None:
        self._sink.write(line + "\n")

    debug = info = warning = warn = error = critical = exception = fatal = log = msg


def trouble() -> str:
    """What is wrong with the log, for a status line; empty when nothing is. Looks whether it still is."""
    if not _sinks:
        return ""
    _sinks[0].try_again()
    return _sinks[0].trouble


def problem() -> LogLostError | None:
    """The same as an error, whose words stay while its cause does."""
    if not _sinks:
        return None
    _sinks[0].try_again()
    cause = _sinks[0].cause
    return LogLostError("Log lines are lost", cause=cause) if cause else None


def _tell_what_was_lost(lines: int, cause: str) -> None:
    get().warning("the log can be written again", lost_lines=lines, cause=cause)


def get(**bound: object) -> FilteringBoundLogger:
    """A logger with these fields on every line. Cheap; modules make theirs at import."""
    return cast(FilteringBoundLogger, structlog.get_logger(**bound))


def _add_service(service: str) -> Processor:
    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.setdefault("service", service)
        return event

    return add


def _blank_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for name in SECRET_FIELDS.intersection(event):
        event[name] = "[blanked]"
    return event


def _bridge_standard_library(
    out: TextIO, shared: list[Processor], renderer: list[Processor], threshold: int
) -> None:
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
    )
    handler: logging.StreamHandler[Any] = logging.StreamHandler(out)
    handler.set_name(_FOREIGN_HANDLER)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for earlier in [h for h in root.handlers if h.get_name() == _FOREIGN_HANDLER]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(threshold)
