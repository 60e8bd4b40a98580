"""Long lists, a page at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import click
import msgspec

if TYPE_CHECKING:
    from shared.api import Route
    from shared.api.route import Page, Paged
    from shared.control.rest import RestClient

    _Q = TypeVar("_Q", bound=Page)
    _R = TypeVar("_R", bound=Paged)
_T = TypeVar("_T")
MOST: Final = 10_000
"""Of one page; an older server has no other."""

limit_option = click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(min=1), help="No more than so many."
)


async def collected(
    client: RestClient, route: Route[_Q, _R], query: _Q, limit: int, entries: Callable[[_R], list[_T]]
) -> list[_T]:
    """`limit` of them, or all that there are. `entries`: those of one page."""
    found: list[_T] = []
    before = ""
    while True:
        most = min(MOST, limit - len(found))
        answer = await client.call(route, msgspec.structs.replace(query, limit=most, before=before))
        found += entries(answer)
        before = answer.next
        if not before or len(found) >= limit:
            return found
