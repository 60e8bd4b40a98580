"""The keys of a configuration, from the code, and in words."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from shared.configuration import page, words
from shared.configuration.keys import Key, keys_of


class Colour(enum.StrEnum):
    RED = "red"
    GREEN = "green"
    BLUE = "blue"


class Part(msgspec.Struct, frozen=True):
    window_b: Annotated[int, msgspec.Meta(ge=4096, le=4 << 30)] = 32 << 20
    """How much
    of it."""
    name: str | None = None
    """Its name."""


class Base(msgspec.Struct):
    log_level: Colour = Colour.RED
    """Which lines."""


class Whole(Base, kw_only=True):
    folder: Path
    """Where it is."""
    part: Part = Part()
    """What belongs to it."""
    other: Part | None = None
    """What may belong to it."""
    parts: tuple[Part, ...] = ()
    """Several of them."""
    names: list[str] = msgspec.field(default_factory=lambda: ["a", "b"])
    """What they are called."""
    kind: Literal["x"] = "x"
    # No docstring, and none of a key.
    """Of which kind."""
    fast: bool = True
    """Whether it is fast | slow."""
    limit_s: Annotated[float, msgspec.Meta(gt=0, lt=90)] = 7200.0
    """How long."""
    share: Annotated[float, msgspec.Meta(le=1)] = 0.25
    """How much of it."""
    count: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """How many."""
    life_hours: Annotated[float, msgspec.Meta(ge=0, le=48)] = 24
    """How long it lives."""

    def not_a_key(self) -> None:
        """Not an explanation."""


FLAT = {key.name: key for key in keys_of(Whole)}


def test_every_key_has_its_explanation_on_one_line_in_the_order_of_the_code() -> None:
    assert [key.name for key in keys_of(Part)] == ["window_b", "name"]
    assert [key.explanation for key in keys_of(Part)] == ["How much of it.", "Its name."]


def test_keys_that_are_inherited_are_explained_where_they_stand() -> None:
    assert FLAT["log_level"].explanation == "Which lines."


def test_a_key_without_an_explanation_is_named() -> None:
    class Silent(msgspec.Struct):
        told: int = 0
        """What it is."""
        size_b: int = 1
        after_s: int = 2
        """This is of after_s."""

    with pytest.raises(LookupError, match=r"Silent\.size_b is not explained"):
        keys_of(Silent)


def test_keys_have_the_names_of_the_file() -> None:
    class Renamed(msgspec.Struct, rename="kebab"):
        size_b: int = 1
        """How large."""

    assert [(key.name, key.explanation) for key in keys_of(Renamed)] == [("size-b", "How large.")]


def test_a_table_that_is_another_one_when_it_is_left_out_is_named() -> None:
    class Torn(msgspec.Struct):
        part: Part = Part(window_b=8192)
        """What belongs to it."""

    with pytest.raises(ValueError, match=r"Torn\.part"):
        keys_of(Torn)


@pytest.mark.parametrize(
    ("name", "takes", "default"),
    [
        ("log_level", "`red`, `green` or `blue`", "`red`"),
        ("folder", "a path", "required"),
        ("part", "a table", ""),
        ("other", "a table", "none"),
        ("parts", "tables", "none"),
        ("names", "a list of text", "`a`, `b`"),
        ("kind", "`x`", "`x`"),
        ("fast", "`true` or `false`", "true"),
        ("limit_s", "seconds, more than 0, less than 90 s", "2 h"),
        ("share", "a number, at most 1", "0.25"),
        ("count", "a whole number, at least 1", "none"),
        ("life_hours", "hours, 0 to 2 days", "24 h"),
    ],
)
def test_a_key_in_words(name: str, takes: str, default: str) -> None:
    assert (words.takes(FLAT[name]), words.default(FLAT[name])) == (takes, default)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("x_b", 0, "0"),
        ("x_b", 1, "1 B"),
        ("x_b", 1023, "1023 B"),
        ("x_b", 96 << 10, "96 KiB"),
        ("x_bytes", 3 << 40, "3 TiB"),
        ("x_b", (1 << 30) + 1, "1073741825 B"),
        ("x_mib", 64, "64 MiB"),
        ("x_s", 0.5, "0.5 s"),
        ("x_s", 60.0, "1 min"),
        ("x_s", 90.0, "90 s"),
        ("x_seconds", 86_400.0, "24 h"),
        ("x_s", 172_800, "2 days"),
        ("x_days", 30.0, "30 days"),
        ("port", 9443, "9443"),
        ("x_part", 1e6, "1000000"),
    ],
)
def test_a_number_is_said_with_its_unit(name: str, value: float, says: str) -> None:
    number = msgspec.structs.replace(FLAT["share"], name=name)
    assert words.quantity(number, value) == says


def test_a_type_for_which_there_are_no_words_is_named() -> None:
    class Odd(msgspec.Struct):
        table: dict[str, int] = {}
        """A table with keys of its own."""

    (key,) = keys_of(Odd)
    with pytest.raises(TypeError, match="table: there are no words"):
        words.takes(key)


def test_the_page_has_a_row_for_each_key_and_keeps_bars_out_of_its_columns() -> None:
    rows = page.table(Whole).splitlines()[2:]
    assert [row.split(" | ")[0].strip("|` ") for row in rows] == list(_names(keys_of(Whole), ""))
    assert r"| `true` or `false` | true | Whether it is fast \| slow. |" in page.table(Whole)
    assert "| `part.window_b` | bytes, 4 KiB to 4 GiB | 32 MiB | How much of it. |" in rows
    assert "| `[[parts]]` | tables | none | Several of them. |" in rows


def _names(keys: tuple[Key, ...], prefix: str) -> Any:
    for key in keys:
        name = f"{prefix}{key.name}"
        yield f"[[{name}]]" if key.keys and key.is_list else name
        yield from _names(key.keys, f"{name}.")
