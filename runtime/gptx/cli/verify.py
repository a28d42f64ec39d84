"""gptx verify: prove an artifact's certificate again here, each figure beside the one it was certified with."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptx.cli.options import device_option, threads_option
from gptx.cli.output import finite, printable, write_out
from gptx.cli.table import print_table
from gptx.progress import stage

if TYPE_CHECKING:
    from gptx.verify import Report, Row


NARROW = 80  # columns of a terminal that have no room for all of the table's


@click.command()
@click.argument("artifact", required=False, type=click.Path(path_type=Path))
@device_option
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", is_flag=True, help="No progress and no tables; the exit status says it.")
def verify(
    artifact: Path | None, device: str, threads: int | None, as_json: bool, quiet: bool
) -> None:
    """Prove ARTIFACT's certificate again on this machine, without torch.

    Checks every file's hash, that all weights are numbers, and what becomes of a text. Then runs the proof text and the
    whole context, and compares with the reference model's predictions that the artifact carries. The exit status is 0 when
    everything is as it should be and inside the certificate's limits, else 1. Without ARTIFACT: the model that ships with
    gptx.
    """
    from gptx import verify as proving
    from gptx.model import DEFAULT_MODEL

    path = artifact or DEFAULT_MODEL
    with _progress(quiet=quiet) as told:
        report = proving.verify(path, device=device, threads=threads, progress=told)
    if as_json:
        facts = {"artifact": str(path), "passed": report.passed, **dataclasses.asdict(report)}
        write_out(json.dumps(finite(facts), indent=1) + "\n")
    elif not quiet:
        _print(report, path)
    sys.exit(0 if report.passed else 1)


def _print(report: Report, path: Path) -> None:
    checks = [(check.name, check.what, "ok" if check.ok else "FAILED") for check in report.checks]
    print_table(checks, title="Checked", bad=[not check.ok for check in report.checks])
    rows = [
        (row.name, row.what, *map(number, (row.certified, row.here, row.limit)), _judged(row))
        for row in report.rows
    ]
    header = ("figure", "what it is", "certified", "here", "limit", "")
    if sys.stdout.isatty() and shutil.get_terminal_size().columns < NARROW:
        rows = [(f"{name}\n{what}", *rest) for name, what, *rest in rows]
        header = ("figure", *header[2:])
    write_out("\n")
    print_table(rows, header=header, bad=[not row.ok for row in report.rows])
    if report.stated:
        said = ", ".join(
            f"{printable(name)} {number(value)}" for name, value in report.stated.items()
        )
        write_out(
            f"\nstated by gptx.json, over all of the proof text, and not proved here: {said}\n"
        )
    write_out(
        "\n"
        + "".join(f"{printable(note)}\n" for note in report.notes)
        + f"{path}: {_verdict(report)}\n"
    )


def number(value: object) -> str:
    """A figure as a person reads it; nothing where there is none."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _judged(row: Row) -> str:
    if not row.ok:
        return "FAILED"
    if row.differs:
        return "differs"
    return "ok" if row.limit is not None else ""  # what has no limit is only told


def _verdict(report: Report) -> str:
    failed = [one.name for one in (*report.checks, *report.rows) if not one.ok]
    if failed:
        return f"not proved on this machine ({', '.join(failed)})"
    differs = [row.name for row in report.rows if row.differs]
    if differs:
        return f"inside its limits on this machine, but not what its certificate says ({', '.join(differs)})"
    return "proved on this machine"


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[float], None]]:
    with stage("Verifying", total=1.0, quiet=quiet) as advance:
        done = 0.0

        def told(share: float) -> None:
            nonlocal done
            advance(share - done)
            done = share

        yield told
