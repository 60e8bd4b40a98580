"""Kills the model's agent between any two lines of agent/stream, as SIGKILL would: what is pinned stays, all else is gone.

A kill falls either somewhere in what the agent does next, or in one function, so that those that seldom run have their share. It stays
due over some acts of the agent, until it falls.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import agent.stream

_WHERE = str(Path(agent.stream.__path__[0])) + "/"
_PATIENCE = 20
"""Acts of the agent for which a kill is due."""
_LINES = 900
_LINES_OF_A_FUNCTION = 12


class Killed(BaseException):
    """No `except` of the agent may see it."""


class Kills:
    def __init__(self, rng: random.Random, share: float, within: str = "") -> None:
        """`share`: of the agent's acts, in which a kill becomes due. `within`: the only function in which one falls."""
        self._rng = rng
        self._share = share
        self._within = within
        self._seen: dict[str, None] = {}
        """Functions that have run, by name."""
        self._function = ""
        self._lines = self._acts = 0
        self.at: set[tuple[str, int]] = set()
        """Where kills fell: file and line."""

    @contextmanager
    def may_fall(self) -> Iterator[None]:
        if not self._acts and self._rng.random() < self._share:
            self._make_due()
        if not self._acts:
            yield
            return
        self._acts -= 1
        before = sys.gettrace()
        sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(before)

    def _make_due(self) -> None:
        self._acts = _PATIENCE
        self._function = self._within
        if not self._within and self._seen and self._rng.random() < 0.5:
            self._function = self._rng.choice([*self._seen])
        if self._function:
            self._lines = self._rng.randrange(1, _LINES_OF_A_FUNCTION)
        else:
            self._lines = int(self._rng.random() ** 2 * _LINES) + 1

    def _called(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(_WHERE):
            return None
        self._seen[code.co_name] = None
        return self._line if self._function in ("", code.co_name) else None

    def _line(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "line" and self._lines:
            self._lines -= 1
            if not self._lines:
                self._acts = 0
                self.at.add((Path(frame.f_code.co_filename).name, frame.f_lineno))
                raise Killed
        return self._line
