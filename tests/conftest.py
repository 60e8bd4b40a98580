"""Fixtures of all test layers."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog

from config_server.web.binding import undeclared
from tests.azurite import azurite, blob_config, machine_storage, store
from tests.postgres import database_config, postgres

# How busy the machine is, is nobody's fault. `make test` tries the same examples each time, so that it fails for who broke something;
# new ones are tried by `python -m tests.long properties`.
hypothesis.settings.register_profile("understudy", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.load_profile("understudy")

__all__ = ["azurite", "blob_config", "database_config", "machine_storage", "postgres", "store"]


structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        # Its own one draws what all variables of all frames hold: for minutes, where one holds a report that is nested 970 deep.
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files over whole installations, which wait more than they compute, are spread over the first half of the others: so they do not run
    beside each other, and what is left at the end is in small pieces."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    waiting = [file for file in files if file.parent.name in ("system", "crash")]
    others = [file for file in files if file not in waiting]
    each = max(1, len(others) // 2 // max(1, len(waiting)))
    order: list[Path] = []
    for number, file in enumerate(others):
        if number % each == 0:
            order += waiting[:1]
            del waiting[:1]
        order.append(file)
    items[:] = [item for file in [*order, *waiting] for item in files[file]]


@pytest.fixture(autouse=True)
def no_undeclared_error() -> Iterator[None]:
    """A config server in this process answers with no error that the route does not name."""
    undeclared.clear()
    yield
    assert not undeclared, "shared/api/: these routes do not name these errors (Route.errors)"


@pytest.fixture(autouse=True)
def as_logging_was() -> Iterator[None]:
    """A test that runs a program in this process configures its logging: the next test finds it as it was."""
    root = logging.getLogger()
    before, handlers, level = structlog.get_config(), [*root.handlers], root.level
    yield
    structlog.configure(**before)
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(autouse=True, scope="module")
def _leaves_nothing_open() -> Iterator[None]:
    """What a module's tests have left open is said of that module, and not of whichever test runs when it is found."""
    yield
    gc.collect()
