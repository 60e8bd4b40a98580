"""A configuration file in which every key is explained."""

from __future__ import annotations

import enum
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared import decoding
from shared.configuration.sample import sample
from shared.daemon.service import load_config
from shared.errors import ConfigError


class Colour(enum.StrEnum):
    RED = "red"
    GREEN = "green"


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    depth: int = 3
    """How deep."""


class Part(msgspec.Struct, forbid_unknown_fields=True):
    device: str
    """# Which one. [device] = "a" \\ 'b'."""
    inner: Inner | None = None
    """What is in it."""
    note: str | None = None
    """What is said of it."""


class Whole(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    part: Part | None = None
    """The part, which stands first in the code and behind all plain keys in the file."""
    name: str
    """Its name."""
    parts: list[Part] = []
    """Several parts."""
    names: tuple[str, ...] = ("a", 'b"')
    """Several names."""
    colour: Colour = Colour.GREEN
    """Its colour."""
    share: float = 0.2
    """How much of it."""
    fast: bool = False
    """Whether it is fast."""
    inner: Inner = Inner()
    """What is always there."""


def read(text: str) -> Whole:
    return decoding.convert(tomllib.loads(text), Whole)


TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    [
        '"',
        "\\",
        "\n",
        "\r\n",
        "'''",
        '"""',
        "# no comment",
        "[table]",
        "\x00\x1b\x7f",
        "é中🙂\u2028",
        "a = 1\nb = 2",
    ]
)
INNER = st.fixed_dictionaries({}, optional={"depth": st.integers(-(1 << 63), (1 << 63) - 1)})
PART = st.fixed_dictionaries(
    {"device": TEXT}, optional={"inner": st.none() | INNER, "note": st.none() | TEXT}
)
VALUES = st.fixed_dictionaries(
    {"name": TEXT},
    optional={
        "part": st.none() | PART,
        "parts": st.lists(PART, max_size=3),
        "names": st.lists(TEXT, max_size=3),
        "colour": st.sampled_from(Colour),
        "share": st.floats(allow_nan=False),
        "fast": st.booleans(),
        "inner": INNER,
    },
)


def without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_none(each) for key, each in value.items() if each is not None}
    return [without_none(each) for each in value] if isinstance(value, list) else value


@given(VALUES)
@example({"name": "", "part": {"device": "", "inner": {}}})
@example({"name": "", "parts": [{"device": ""}, {"device": "", "inner": {}, "note": ""}, {"device": ""}]})
def test_the_file_is_read_as_what_the_values_say(values: dict[str, Any]) -> None:
    assert read(sample(Whole, values)) == decoding.convert(without_none(values), Whole)


@given(VALUES)
def test_the_order_of_the_values_does_not_matter(values: dict[str, Any]) -> None:
    assert sample(Whole, values) == sample(Whole, dict(reversed(values.items())))


@given(VALUES)
def test_each_key_stands_there_with_its_explanation_above_it(values: dict[str, Any]) -> None:
    lines = sample(Whole, values).splitlines()
    for key, explanation in (("name", "Its name."), ("fast", "Whether it is fast.")):
        (at,) = (n for n, line in enumerate(lines) if re.match(rf"#?{key} = ", line))
        assert lines[at - 2] == f"# {explanation}"


def test_what_is_commented_out_is_what_holds_without_it() -> None:
    values: dict[str, Any] = {
        "name": "x",
        "parts": [{"device": "y", "inner": {}}],
        "part": {"device": "z", "inner": {}},
    }
    text = sample(Whole, values)
    uncommented = "\n".join(
        line.removeprefix("#") if re.match(r"#\S.*[^…]$", line) else line for line in text.splitlines()
    )
    assert uncommented.count("\nshare = 0.2\n") == 1
    assert "\n[inner]\n" in uncommented
    assert read(uncommented) == read(text)


def test_the_tables_of_a_list_are_explained_once_and_then_as_short_as_they_can_be() -> None:
    parts = [{"device": "a"}, {"device": "b", "inner": {"depth": 1}}, {"device": "c"}]
    text = sample(Whole, {"name": "x", "parts": parts})
    first, *others = text.partition("[[parts]]\n")[2].split("\n[[parts]]\n")
    assert "# How deep." in first
    assert "#note = …" in first
    assert others[0] == 'device = "b"\n\n[parts.inner]\ndepth = 1\n'
    assert others[1].partition("\n\n\n")[0] == 'device = "c"'


def test_a_value_that_must_be_filled_in_is_refused_as_it_stands() -> None:
    text = sample(Whole, {"name": "x"}).replace("#[part]", "[part]").replace("#device", "device")
    with pytest.raises(tomllib.TOMLDecodeError):
        tomllib.loads(text)


def test_a_small_file_reads_like_this() -> None:
    class Small(msgspec.Struct):
        size_b: int | None = None
        """How large it is. Unless it is set, as large as the file system."""
        inner: Inner | None = None
        """What is in it."""
        port: int = 443
        """Where it listens."""

    assert sample(Small, {"port": 8443}).partition("\n\n")[2] == (
        "# How large it is. Unless it is set, as large as the file system.\n"
        "# Bytes. Default: none.\n"
        "#size_b = …\n"
        "\n"
        "# Where it listens.\n"
        "# A whole number. Default: 443.\n"
        "port = 8443\n"
        "\n"
        "\n"
        "# What is in it.\n"
        "# It may be left out.\n"
        "#[inner]\n"
        "\n"
        "# How deep.\n"
        "# A whole number. Default: 3.\n"
        "#depth = 3\n"
    )


def test_paths_and_structs_may_be_values(tmp_path: Path) -> None:
    class Placed(msgspec.Struct):
        folder: Path
        """Where it is."""
        inner: Inner | None = None
        """What is in it."""

    file = tmp_path / "x.toml"
    file.write_text(sample(Placed, {"folder": tmp_path, "inner": Inner(9)}), encoding="utf-8")
    assert load_config(file, Placed) == Placed(tmp_path, Inner(9))


def test_a_name_of_a_file_that_is_no_text_is_refused_with_its_name() -> None:
    with pytest.raises(ConfigError, match=r"caf\\udce9"):
        sample(Whole, {"name": "caf\udce9"})


def test_a_key_that_is_not_there_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(LookupError, match=r"part\.devise"):
        sample(Whole, {"name": "x", "part": {"devise": "x"}})
