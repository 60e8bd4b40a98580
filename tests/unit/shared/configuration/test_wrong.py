"""What is wrong with a configuration file, in words."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from agent.config import AgentConfig
from config_server.cli.profile import Profile
from config_server.config import ConfigServerConfig
from master_target.config import MasterTargetConfig
from process_server.config import ProcessServerConfig
from shared.configuration import shape
from shared.daemon.service import load_config
from shared.errors import ConfigError
from shared.host.toml import to_toml


class Colour(enum.StrEnum):
    RED = "red"
    GREEN = "green"


class Part(msgspec.Struct, forbid_unknown_fields=True):
    size_b: int = 1
    colour: Colour | None = None
    kind: Literal["x", "y"] = "x"


class Whole(msgspec.Struct, forbid_unknown_fields=True):
    listen: str = ""
    part: Part | None = None
    parts: list[Part] = []


def cause(folder: Path, text: str, type_: type[Any] = Whole) -> str:
    file = folder / "x.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, type_)
    assert caught.value.exit_code == 2
    return caught.value.cause


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lisen = 1", "did you mean `listen`?"),
        ("Listen = 1", "did you mean `listen`?"),
        ("[part]\nsize-b = 1", "did you mean `part.size_b`?"),
        ("[[parts]]\n[[parts]]\ncolor = 1", "did you mean `parts.colour`?"),
        ("[part]\nlisten = 'a'", "`listen` must stand before the first [table]"),
        ("size_b = 1", "did you mean `part.size_b`?"),
        ("[part]\nsurprise = 1", "it may have size_b, colour, kind"),
        ('"a`b\\n - at `$.part`" = 1', "it may have listen, part, parts"),
    ],
)
def test_the_key_that_was_meant_is_named(tmp_path: Path, text: str, says: str) -> None:
    assert cause(tmp_path, text).endswith(f"; {says}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[part]\ncolour = 'blue'", "it may be red, green"),
        ("[[parts]]\nkind = 'z'", "it may be x, y"),
        ('[[parts]]\ncolour = "\\n`"', "it may be red, green"),
    ],
)
def test_the_values_of_a_closed_choice_are_named(tmp_path: Path, text: str, says: str) -> None:
    assert cause(tmp_path, text).endswith(f"; {says}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[parts]", "Expected a list, got a table - at `parts`"),
        ("part = 1", "Expected a table, got `int` - at `part`"),
    ],
)
def test_types_have_the_names_that_toml_gives_them(tmp_path: Path, text: str, says: str) -> None:
    assert cause(tmp_path, text) == says


def wrong_spellings(key: str) -> list[str]:
    """A letter that is missing, one that is doubled, two that are swapped, a hyphen."""
    middle = len(key) // 2
    swapped = key[: middle - 1] + key[middle] + key[middle - 1] + key[middle + 1 :]
    return [
        key[:middle] + key[middle + 1 :],
        key[:middle] + key[middle] + key[middle:],
        swapped if len(key) > 2 else key,  # of two letters, swapped, nothing is left that is alike
        key.replace("_", "-"),
        f"{key}x",
    ]


@pytest.mark.parametrize(
    "type_", [AgentConfig, ProcessServerConfig, MasterTargetConfig, ConfigServerConfig, Profile]
)
def test_each_key_of_each_configuration_is_found_by_a_slip_of_it(tmp_path: Path, type_: type[Any]) -> None:
    every = list(shape.paths(shape.top(type_)))
    missed = []
    for path in every:
        *tables, key = path.split(".")
        for slip in wrong_spellings(key):
            if ".".join([*tables, slip]) in every:
                continue
            content: Any = {slip: 1}
            for table in reversed(tables):
                content = {table: content}
            text = to_toml(content)
            if tables == ["disk"]:
                text = text.replace("[disk]", "[[disk]]")
            if f"did you mean `{path}`?" not in (says := cause(tmp_path, text, type_)):
                missed.append((path, slip, says))
    assert not missed


class Named(msgspec.Struct, forbid_unknown_fields=True):
    by_name: dict[str, Part] = {}


def test_where_nobody_can_say_what_was_meant_nothing_is_said(tmp_path: Path) -> None:
    assert cause(tmp_path, "[by_name.a]\nsurprise = 1", Named) == (
        "The table contains unknown field `surprise` - at `by_name[...]`"
    )
