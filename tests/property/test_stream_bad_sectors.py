"""What the stream stores is a state that the disks had, but for what it names unreadable; and each rule of that is needed. The model:
tests/stream_model. For hours: `python -m tests.stream_model`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.stream.cutter import Stream
from agent.stream.unreadable import Unreadable
from agent.stream.unreadable_words import Declared
from tests.stream_model.model import hard, ran
from tests.stream_model.mutants import mutated


@given(st.integers(0, 2**32))
@settings(max_examples=10)
def test_an_image_lacks_what_is_named_and_nothing_else_wherever_the_agent_is_killed(seed: int) -> None:
    assert ran(seed, hard(seed)).problems == []


def test_the_model_meets_all_that_is_hard_about_bad_sectors() -> None:
    met: dict[str, int] = {}
    for seed in range(
        1063, 1863
    ):  # today the first meets all of it; every edit of agent/stream moves the kills
        model = ran(seed, hard(seed))
        assert model.problems == [], seed
        for name in ("declared", "taken_back", "late", "more"):
            met[name] = met.get(name, 0) + getattr(model, name)
        met["kills"] = met.get("kills", 0) + len(model.kills.at)
        if all(met.values()):
            return
    pytest.fail(f"not everything was met: {met}")


@pytest.mark.parametrize(
    ("changes", "kills_within", "first"),
    [
        pytest.param(
            [
                (
                    Stream,
                    "_declare",
                    "self.unreadable.declare(chunk.disk, missing, time.monotonic())",
                    "self.__dict__.setdefault('owed', []).append((chunk.disk, missing))",
                ),
                (
                    Stream,
                    "_try_unreadable",
                    "if self.catchup.round is not None:\n",
                    "for disk, missing in self.__dict__.pop('owed', []):\n"
                    "        if self.unreadable.has_room(disk, missing, []):\n"
                    "            self.unreadable.declare(disk, missing, time.monotonic())\n"
                    "    if self.catchup.round is not None:\n",
                ),
            ],
            "",
            10,
            id="what goes missing is stored when the batch has left",
        ),
        pytest.param(
            [
                (
                    Unreadable,
                    "tried",
                    "return given",
                    "self.remove(trial.disk, _runs(turn.given))\n    return given",
                )
            ],
            "mark_sectors",
            0,
            id="what a trial was given is cleared before it is to do",
        ),
        pytest.param(
            [
                (
                    Declared,
                    "begin",
                    "self._words[1:] = 0\n    self._words[0] = self._claim",
                    "self._words[0] = self._claim\n    self._words[1:] = 0",
                )
            ],
            "begin",
            69,
            id="the claim is stored before the words are cleared",
        ),
        pytest.param(
            [(Stream, "_emit_chunks", "continue\n", "missing = []\n")],
            "",
            0,
            id="what goes back to the reader is sent all the same",
        ),
        pytest.param(
            [(Unreadable, "tried", "len(given) and _count(taken) == _count(trial.runs)", "len(given)")],
            "",
            26,
            id="more is put to do though the trial was refused something",
        ),
        pytest.param(
            [
                (
                    Unreadable,
                    "tried",
                    "return given",
                    "self.remove(trial.disk, _runs(turn.given)[:1])\n    return np.sort(given)[1:]",
                )
            ],
            "",
            0,
            id="a run is cleared and not put to do",
        ),
        pytest.param(
            [
                (
                    Stream,
                    "_declare",
                    "if not read.unreadable and self.unreadable.is_none_of(chunk.disk)",
                    "if not read.unreadable",
                )
            ],
            "",
            0,
            id="what is read at last stays named",
        ),
        pytest.param(
            [(Stream, "cut", "self.unreadable.written(taken.extents)", "pass")],
            "",
            0,
            id="what is written stays named",
        ),
        pytest.param(
            [
                (
                    Stream,
                    "_continued_unreadable",
                    "for _ in self.catchup.mark_everything():\n            pass",
                    "pass",
                )
            ],
            "",
            0,
            id="the names are gone and nothing is to do",
        ),
        pytest.param(
            [
                (
                    Stream,
                    "_emit_chunks",
                    "self.catchup.emit(read.chunk, read.data, read.unreadable)",
                    "self.catchup.emit(read.chunk, read.data)",
                )
            ],
            "",
            0,
            id="zeroes are sent for what was refused",
        ),
    ],
)
def test_a_rule_about_bad_sectors_that_is_broken_is_noticed(
    changes: list[tuple[Any, str, str, str]], kills_within: str, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`first`: a seed that shows it now; when it does not any more, another does."""
    for owner, name, old, new in changes:
        monkeypatch.setattr(owner, name, mutated(owner, name, old, new))
    for seed in range(first, first + 1000):
        try:
            if ran(seed, hard(seed, kills_within)).problems:
                return
        except AssertionError:
            return
    pytest.fail("it was not noticed: the model does not exercise that rule")
