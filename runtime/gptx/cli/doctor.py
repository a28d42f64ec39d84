"""gptx doctor: print the report of gptx.doctor on this machine."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING

import click

from gptx.cli.next_step import use
from gptx.cli.output import printable, write_next, write_out
from gptx.cli.table import print_table

if TYPE_CHECKING:
    from gptx.doctor import Health


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Check this machine: versions, working providers, processor, conflicts.

    The exit status is 1 if something keeps gptx from working, else 0.
    """
    from gptx.doctor import examine

    health = examine()
    if as_json:
        write_out(json.dumps(dataclasses.asdict(health), indent=1) + "\n")
    else:
        _print(health)
    sys.exit(1 if health.problems else 0)


def _print(health: Health) -> None:
    versions = [(name, number or "missing") for name, number in health.versions.items()]
    missing = [number is None for number in health.versions.values()]
    print_table(versions, title="Versions", bad=missing, prose=1)
    providers = [
        (one.name, "loads" if one.loads else f"no: {one.reason}") for one in health.providers
    ]
    failed = [not one.loads for one in health.providers]
    print_table(providers, title="Providers", bad=failed, prose=1)
    print_table(_machine(health), title="Machine", prose=1)
    print_table(_optional(health), title="Optional packages", prose=1)
    if not health.problems:
        write_out("no problems\n")
        write_next(use(None))
        return
    write_out("Problems\n")
    for problem in health.problems:
        write_out(f"{printable(problem)}\n")  # not wrapped, because it holds a command to paste


def _machine(health: Health) -> list[tuple[str, str]]:
    return [
        ("processor", health.cpu),
        ("features", " ".join(health.cpu_features) or "unknown"),
        ("cores", str(health.cores)),
        ("memory", f"{_gibibytes(health.memory)}, {_gibibytes(health.memory_free)} free"),
        ("kernels", health.kernels),
        *health.system.items(),
    ]


def _optional(health: Health) -> list[tuple[str, str]]:
    installed = [f"{name} {number}" for name, number in health.optional.items() if number]
    missing = [name for name, number in health.optional.items() if not number]
    rows = [("installed", ", ".join(installed)), ("not installed", ", ".join(missing))]
    return [(name, words) for name, words in rows if words]


def _gibibytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"
