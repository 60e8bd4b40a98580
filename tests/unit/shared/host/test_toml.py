"""Writing TOML."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shared.host.toml import to_toml

_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_FLOATS = st.floats(allow_nan=False)
_VALUES = st.one_of(
    _TEXT, st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), _FLOATS, st.lists(_TEXT), st.lists(_FLOATS)
)
_KEYS = st.text("abcdefghijklmnopqrstuvwxyz_-", min_size=1, max_size=8)
_TABLES = st.recursive(
    st.dictionaries(_KEYS, _VALUES), lambda inner: st.dictionaries(_KEYS, _VALUES | inner | st.lists(inner))
)


@given(_TABLES)
def test_toml_reads_back_as_what_was_written(content: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(content)) == content


def test_what_is_none_is_left_out() -> None:
    assert tomllib.loads(to_toml({"a": None, "b": {"c": None, "d": 1.5}})) == {"b": {"d": 1.5}}
