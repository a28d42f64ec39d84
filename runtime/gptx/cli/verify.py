"""gptx verify: prove an artifact's certificate again here, each figure beside the one it was certified with."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptx.cli.options import device_option, threads_option
from gptx.cli.output import write_out
from gptx.cli.table import print_table
from gptx.progress import stage

if TYPE_CHECKING:
    from gptx.verify import Report, Row


@click.command()
@click.argument("artifact", required=False, type=click.Path(path_type=Path))
@device_option
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", is_flag=True, help="Print nothing; the exit status says it.")
def verify(artifact: Path | None, device: str, threads: int | None, as_json: bool, quiet: bool) -> None:
    """Prove ARTIFACT's certificate again on this machine, without torch.

    Checks every file's hash, then runs the proof text and compares with the reference that the artifact carries.
    The exit status is 0 when this machine is inside the certificate's limits, else 1. Without ARTIFACT: the model that
    ships with gptx.
    """
    from gptx import verify as proving
    from gptx.model import DEFAULT_MODEL

    path = artifact or DEFAULT_MODEL
    with _progress(quiet=quiet) as told:
        report = proving.verify(path, device=device, threads=threads, progress=told)
    if as_json:
        facts = {"artifact": str(path), "passed": report.passed, **dataclasses.asdict(report)}
        write_out(json.dumps(facts, indent=1) + "\n")
    elif not quiet:
        _print(report, path)
    sys.exit(0 if report.passed else 1)


def _print(report: Report, path: Path) -> None:
    rows = [(row.name, row.certified, row.here, row.limit, _judged(row)) for row in report.rows]
    header = ("figure", "certified", "here", "limit", "")
    print_table(rows, header=header, bad=[not row.ok for row in report.rows])
    write_out("".join(f"{note}\n" for note in report.notes))
    failed = ", ".join(row.name for row in report.rows if not row.ok)
    write_out(f"{path}: outside its limits here ({failed})\n" if failed else f"{path}: proved on this machine\n")


def _judged(row: Row) -> str:
    if not row.ok:
        return "FAILED"
    return "ok" if row.limit else ""  # what has no limit is only told


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[float], None]]:
    with stage("Verifying", total=1.0, quiet=quiet) as advance:
        done = 0.0

        def told(share: float) -> None:
            nonlocal done
            advance(share - done)
            done = share

        yield told
