"""Tables as values, for Markdown, for a page and for a terminal."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..text import markdown


class Strong(str):
    """A cell of our own words that a reader must not miss."""


@dataclass(frozen=True)
class Table:
    """A table of plain text and numbers.

    Args:
        header: of every column, in our own words.
        rows: cells; text of anybody, which whoever draws the table makes harmless.
        text_columns: so many columns are set left, the others right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    text_columns: int = 1

    def markdown(self) -> str:
        """As Markdown."""
        rows = [[self._cell(cell) for cell in row] for row in self.rows]
        return markdown_table(self.header, rows, self.text_columns)

    def lines(self) -> list[str]:
        """As lines of a terminal, below a header and a rule; columns that are empty are left out."""
        cells = [["" if cell is None else str(cell) for cell in row] for row in self.rows]
        kept = [column for column in range(len(self.header)) if any(row[column] for row in cells)]
        widths = {column: max(len(row[column]) for row in [self.header, *cells]) for column in kept}

        def line(row: Sequence[str]) -> str:
            sides = (
                row[column].ljust(widths[column]) if column < self.text_columns else row[column].rjust(widths[column])
                for column in kept
            )
            return "  ".join(sides).rstrip()

        return [line(self.header), "  ".join("-" * widths[column] for column in kept), *map(line, cells)]

    @staticmethod
    def _cell(cell: Any) -> str:
        if isinstance(cell, Strong):
            return f"**{cell}**"
        # A lone dash, for a number that is missing, is no list within a table.
        return cell if cell == "-" else markdown("" if cell is None else cell)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]], text_columns: int = 1) -> str:
    """A Markdown table; the first `text_columns` columns are set left, the others right.

    Args:
        header: of every column.
        rows: cells, which are Markdown.
        text_columns: see above.
    """

    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = ["---" if column < text_columns else "---:" for column in range(len(header))]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 0-1 in percent, `"-"` when it is missing or NaN."""
    return "-" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}"
