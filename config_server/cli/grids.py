"""A table that is one where the screen is wide enough; on a narrower one each row stands by itself, its columns below one another: so that
names that differ in the end are told apart, and nothing is cut, or folded letter by letter."""

from __future__ import annotations

from typing import Final

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Column, Table
from rich.text import Text

_LEAST: Final = 10
"""Narrower than this no column is folded."""
_BETWEEN: Final = 2
"""Blanks between two columns."""


class Grid(Table):
    """Columns with `no_wrap` stay in one piece."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._least_width(console, options) <= options.max_width or not self.row_count:
            yield from super().__rich_console__(console, options)
            return
        if self.title:
            yield Text.assemble((str(self.title), "table.title"))
        names = [str(column.header) for column in self.columns]
        for number, row in enumerate(zip(*(column.cells for column in self.columns), strict=True)):
            if number:
                yield ""
            yield _record([(name, cell) for name, cell in zip(names, row, strict=True) if str(cell)])
        if self.caption:
            yield Text.assemble((str(self.caption), "table.caption"))

    def _least_width(self, console: Console, options: ConsoleOptions) -> int:
        unlimited = options.update(width=1 << 20)

        def wanted(column: Column) -> int:
            longest = max(
                console.measure(cell, options=unlimited).maximum for cell in (column.header, *column.cells)
            )
            return longest if column.no_wrap else min(longest, _LEAST)

        return sum(map(wanted, self.columns)) + _BETWEEN * (len(self.columns) - 1)


def _record(row: list[tuple[str, RenderableType]]) -> Table:
    record = Table.grid(padding=(0, _BETWEEN, 0, 0))
    record.add_column(style="dim", no_wrap=True)
    record.add_column(overflow="fold")
    for name, cell in row:
        record.add_row(name, cell)
    return record
