"""Rows on standard output: a rich table on a terminal, plain aligned lines when piped, the same words in both."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gptx.cli.output import printable, write_out
from gptx.progress import color_system

Rows = Sequence[Sequence[str]]


def print_table(
    rows: Rows, *, title: str = "", header: Sequence[str] = (), bad: Sequence[bool] = ()
) -> None:
    """One table. `bad` marks rows to be shown in red on a terminal (say it in words as well: a pipe has no colour)."""
    if not rows:
        return
    if sys.stdout.isatty():
        _rich(rows, title, header, bad)
    else:
        write_out(plain(rows, title=title, header=header))


def plain(rows: Rows, *, title: str = "", header: Sequence[str] = ()) -> str:
    lines = [list(header), *rows] if header else list(rows)
    widths = [max(len(row[column]) for row in lines) for column in range(len(lines[0]))]
    indent = "  " if title else ""
    text = [
        indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in lines
    ]
    return "\n".join(([title] if title else []) + text) + "\n"


def _rich(rows: Rows, title: str, header: Sequence[str], bad: Sequence[bool]) -> None:
    from rich import box
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD if header else None, show_header=bool(header), pad_edge=bool(header)
    )
    for column in header or rows[0]:
        table.add_column(column if header else "", overflow="fold")
    for number, row in enumerate(rows):
        style = "red" if number < len(bad) and bad[number] else ""
        table.add_row(
            *(Text(printable(cell), style=style) for cell in row)
        )  # Text: a [ in a name is no markup
    console = Console(color_system=color_system())
    if title:
        console.print(Text(title, style="bold"))
    console.print(Padding(table, (0, 0, 0, 2)) if title else table)
