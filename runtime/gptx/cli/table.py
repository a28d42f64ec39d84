"""Tables on standard output: the same words on a terminal and in a pipe.

In a pipe, each row is one line. If a table is too wide for a terminal, the column of prose is
wrapped or moved below its row, or every cell gets a line of its own. Numbers, names and paths are
never broken.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
from rich.cells import cell_len

from gptx.cli.output import printable, terminal_width, wrap, write_out
from gptx.progress import color_system

Row = Sequence[str]
NARROWEST = 24  # columns that a wrapped column of prose needs to be readable
GAP = "  "


def print_table(
    rows: Sequence[Row],
    *,
    title: str = "",
    header: Row = (),
    bad: Sequence[bool] = (),
    prose: int | None = None,
    right: bool = False,
) -> None:
    """Print `rows`; an empty table prints nothing.

    header: names of the columns.
    bad: whether a row is shown in red on a terminal. A pipe has no colour, so the row must also say
    in words what is wrong.
    prose: the index of the column of sentences, which may be wrapped.
    right: align all columns except the first to the right.
    """
    if not rows:
        return
    terminal = sys.stdout.isatty()
    rows = [[printable(cell) for cell in row] for row in rows]
    colored = terminal and color_system() is not None
    indent = GAP if title else ""
    width = terminal_width(sys.stdout) - len(indent) if terminal else None
    head, *lines = _layout([header or [""] * len(rows[0]), *rows], width, prose, right=right)
    if title:
        write_out(_styled(title, colored, bold=True) + "\n")
    for line in head if header else ():
        write_out(_styled(indent + line, colored, bold=True) + "\n")
    for number, row in enumerate(lines):
        red = number < len(bad) and bad[number]
        for line in row:
            write_out(_styled(indent + line, colored and red, fg="red") + "\n")


def _styled(text: str, colored: bool, **style: object) -> str:
    return click.style(text, **style) if colored else text  # type: ignore[arg-type]


def _layout(
    rows: Sequence[Row], width: int | None, prose: int | None, *, right: bool
) -> list[list[str]]:
    """The lines of each row, in the form with the fewest lines that fits `width` columns.

    rows: the header first. width: None for a pipe, where each row is one line.
    """
    widths = [max(map(cell_len, column)) for column in zip(*rows)]
    needed = sum(widths) + len(GAP) * (len(widths) - 1)
    if width is None or needed <= width:
        return [[_aligned(row, widths, right=right)] for row in rows]
    forms = []
    if prose is not None:
        room = width - needed + widths[prose]
        if room >= NARROWEST:
            forms.append([_wrapped(row, widths, prose, room) for row in rows])
        if needed - widths[prose] - len(GAP) <= width and len(widths) > 2:
            forms.append(_below(rows, prose, width))
    return min(forms or [_records(rows, width)], key=lambda form: sum(map(len, form)))


def _aligned(row: Row, widths: Sequence[int], *, right: bool = False) -> str:
    cells = []
    for column, (cell, width) in enumerate(zip(row, widths)):
        space = " " * (width - cell_len(cell))
        cells.append(space + cell if right and column else cell + space)
    return GAP.join(cells).rstrip()


def _wrapped(row: Row, widths: Sequence[int], prose: int, room: int) -> list[str]:
    """One row whose column of prose is `room` columns wide and has as many lines as it needs."""
    widths = [room if column == prose else width for column, width in enumerate(widths)]
    first, *others = wrap(row[prose], room)
    rest = [[text if column == prose else "" for column in range(len(row))] for text in others]
    whole = [first if column == prose else cell for column, cell in enumerate(row)]
    return [_aligned(line, widths) for line in (whole, *rest)]


def _below(rows: Sequence[Row], prose: int, width: int) -> list[list[str]]:
    """Each row without its prose, which follows on lines of its own. The header has no prose."""
    others = [[cell for column, cell in enumerate(row) if column != prose] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*others)]
    below = [[GAP + line for line in wrap(row[prose], width - len(GAP))] for row in rows[1:]]
    return [[_aligned(row, widths), *lines] for row, lines in zip(others, [[], *below])]


def _records(rows: Sequence[Row], width: int) -> list[list[str]]:
    """The first cell of each row; below it, each other cell with the name of its column."""
    header = rows[0]
    longest = max(map(cell_len, header[1:]), default=0)
    space = longest + len(GAP) if longest else 0
    records = []
    for row in rows[1:]:
        lines = wrap(row[0], width)
        for name, cell in zip(header[1:], row[1:]):
            if cell:
                first, *rest = wrap(cell, max(width - space - len(GAP), NARROWEST))
                lines.append(GAP + _aligned([name, first], [longest, 0]) if space else GAP + first)
                lines += [GAP + " " * space + line for line in rest]
        records.append(lines)
    return [wrap(header[0], width), *records]
