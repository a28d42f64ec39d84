"""gptx verify: print the report of gptx.verify, with each figure beside the certified one."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptx.cli.next_step import use
from gptx.cli.options import device_option, threads_option
from gptx.cli.output import finite, write_next, write_out, write_prose
from gptx.cli.table import print_table
from gptx.progress import stage

if TYPE_CHECKING:
    from gptx.verify import Report, Row


@click.command()
@click.argument("artifact", required=False, type=click.Path(path_type=Path))
@device_option
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", is_flag=True, help="Print nothing; the exit status is the result.")
def verify(
    artifact: Path | None, device: str, threads: int | None, as_json: bool, quiet: bool
) -> None:
    """Prove ARTIFACT's certificate again on this machine, without torch.

    Without ARTIFACT, the model that ships with gptx is verified.

    The command checks the hash of every file, and searches the weights for NaN and infinity. It
    compares the tokenizer and the chat template with examples that were recorded at export. Then it
    runs the model and compares its predictions with recorded predictions of the fp32 reference.

    The exit status is 0 if every check holds and every figure is within the certificate's
    limits, else 1.
    """
    from gptx import verify as proving
    from gptx.model import DEFAULT_MODEL

    path = artifact or DEFAULT_MODEL
    with _progress(quiet=quiet) as progress:
        report = proving.verify(path, device=device, threads=threads, progress=progress)
    if as_json:
        facts = {"artifact": str(path), "passed": report.passed, **dataclasses.asdict(report)}
        write_out(json.dumps(finite(facts), indent=1) + "\n")
    elif not quiet:
        _print(report, path)
        if report.passed:
            write_next(use(artifact, device=device))
    sys.exit(0 if report.passed else 1)


def _print(report: Report, path: Path) -> None:
    checks = [(check.name, check.what, "ok" if check.ok else "FAILED") for check in report.checks]
    print_table(checks, title="Checked", bad=[not check.ok for check in report.checks], prose=1)
    rows = [
        (row.name, row.what, *map(number, (row.certified, row.here, row.limit)), _judged(row))
        for row in report.rows
    ]
    header = ("figure", "what it is", "certified", "here", "limit", "")
    write_out("\n")
    print_table(rows, header=header, bad=[not row.ok for row in report.rows], prose=1)
    write_out("\n")
    if report.stated:
        said = ", ".join(f"{name} {number(value)}" for name, value in report.stated.items())
        write_prose(f"stated by gptx.json for the whole proof text, and not proved here: {said}")
    for note in report.notes:
        write_prose(note)
    write_prose(f"{path}: {_verdict(report)}")


def number(value: object) -> str:
    """A figure with four significant digits; "" for None."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _judged(row: Row) -> str:
    if not row.ok:
        return "FAILED"
    if row.differs:
        return "differs"
    return "ok" if row.limit is not None else ""  # a figure without a limit is not judged


def _verdict(report: Report) -> str:
    failed = [one.name for one in (*report.checks, *report.rows) if not one.ok]
    if failed:
        return f"not proved on this machine ({', '.join(failed)})"
    differs = [row.name for row in report.rows if row.differs]
    if differs:
        return (
            "within its limits on this machine, but not what its certificate says"
            f" ({', '.join(differs)})"
        )
    return "proved on this machine"


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[float], None]]:
    """Show a progress bar. Yields a function that takes the share of work done (0 to 1)."""
    with stage("Verifying", total=1.0, quiet=quiet) as advance:
        done = 0.0

        def move_to(share: float) -> None:
            nonlocal done
            advance(share - done)
            done = share

        yield move_to
