"""gptx doctor: print what gptx.doctor found, with exit status 1 when something keeps gptx from working."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING

import click

from gptx.cli.output import write_out
from gptx.cli.table import print_table

if TYPE_CHECKING:
    from gptx.doctor import Health


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """What this machine has: versions, providers that really load, processor, conflicts.

    The exit status is 1 when something keeps gptx from working.
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
    print_table(
        versions, title="Versions", bad=[number is None for number in health.versions.values()]
    )
    tried = [
        (provider.name, "loads" if provider.loads else f"no: {provider.reason}")
        for provider in health.providers
    ]
    print_table(tried, title="Providers", bad=[not provider.loads for provider in health.providers])
    machine = [
        ("processor", health.cpu),
        ("features", " ".join(health.cpu_features) or "unknown"),
        ("cores", str(health.cores)),
        ("memory", f"{_gigabytes(health.memory)}, {_gigabytes(health.memory_free)} free"),
        *health.system.items(),
    ]
    print_table(machine, title="Machine")
    optional = [(name, number or "not installed") for name, number in health.optional.items()]
    print_table(optional, title="Optional")
    print_table(
        [(problem,) for problem in health.problems],
        title="Problems",
        bad=[True] * len(health.problems),
    )
    if not health.problems:
        write_out("no problems\n")


def _gigabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"
