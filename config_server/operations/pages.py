"""A page of a long list. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from config_server.store.statements import BEHIND_ALL
from shared.api.route import Page
from shared.errors import RequestError

_T = TypeVar("_T")
_DIGITS: Final = 18


def before(asked: Page) -> int:
    """Of a list whose places are numbers. Raises RequestError."""
    if not asked.before:
        return BEHIND_ALL
    if not (asked.before.isascii() and asked.before.isdecimal() and len(asked.before) <= _DIGITS):
        raise RequestError(
            "The page was not found",
            cause=f"{asked.before!r} is no place in this list",
            action="Give as `before` what the page before had as `next`, or nothing for the first page.",
        )
    return int(asked.before)


def page(found: list[_T], asked: Page, place: Callable[[_T], str]) -> tuple[list[_T], str]:
    """What is shown of `found`, which has one more than was asked for where there are more; and `next`, of the last that is shown."""
    shown = found[: asked.limit]
    return shown, place(shown[-1]) if len(found) > len(shown) else ""
