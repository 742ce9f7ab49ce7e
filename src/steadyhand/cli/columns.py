"""Tables that fit the width of a terminal: narrow columns first, then whole columns go. A figure is never cut."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_GAP = 2


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Without `least_width` its cells are never cut: ids, states and figures. A table that is still too wide leaves out
    the columns with a `drop_rank`, the highest one first.
    """

    header: str
    right: bool = False
    least_width: int | None = None
    drop_rank: int = 0


class FittedTable:
    """A table of one line for each row, which adapts to the width that it is printed in."""

    def __init__(self, *columns: Column) -> None:
        self._columns = columns
        self._rows: list[Sequence[Text]] = []

    def add_row(self, *cells: Text) -> None:
        """Add a row with a cell for each column."""
        self._rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the columns that fit; if not even those do, the terminal breaks the lines."""
        columns, widths = self._fit(options.max_width)
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for index, width in zip(columns, widths, strict=True):
            column = self._columns[index]
            table.add_column(
                column.header,
                justify="right" if column.right else "left",
                no_wrap=True,
                overflow="ellipsis",
                width=width,
            )
        for row in self._rows:
            table.add_row(*(row[index] for index in columns))
        yield from console.render(
            table, options.update(max_width=max(options.max_width, _total(widths) + _GAP))
        )

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return the width that the table takes in these options."""
        return Measurement(1, options.max_width)

    def _fit(self, max_width: int) -> tuple[list[int], list[int]]:
        """Return the columns to show and their widths."""
        shown = list(range(len(self._columns)))
        droppable = sorted((i for i in shown if self._columns[i].drop_rank), key=self._drop_order)
        while _total([self._least_width(index) for index in shown]) > max_width and droppable:
            shown.remove(droppable.pop())
        widths = [self._width(index) for index in shown]
        for position, index in sorted(enumerate(shown), key=lambda pair: -self._drop_rank(pair[1])):
            excess = _total(widths) - max_width
            if excess > 0:
                widths[position] = max(self._least_width(index), widths[position] - excess)
        return shown, widths

    def _drop_order(self, index: int) -> tuple[int, int]:
        return self._drop_rank(index), index

    def _drop_rank(self, index: int) -> int:
        return self._columns[index].drop_rank

    def _width(self, index: int) -> int:
        header = Text(self._columns[index].header).cell_len
        return max([header, *(row[index].cell_len for row in self._rows)])

    def _least_width(self, index: int) -> int:
        least, width = self._columns[index].least_width, self._width(index)
        return width if least is None else min(width, max(least, len(self._columns[index].header)))


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * max(0, len(widths) - 1)
