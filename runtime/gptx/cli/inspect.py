"""gptx inspect: print what gptx.inspect found in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptx.cli.output import finite, write_out
from gptx.cli.table import print_table

if TYPE_CHECKING:
    from gptx.inspect import Description


@click.command()
@click.argument("artifact", required=False, type=click.Path(path_type=Path))
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object: the manifest, config.json, files ...",
)
def inspect(artifact: Path | None, as_json: bool) -> None:
    """What ARTIFACT holds: model, precision, cache, tokenizer, files and certificate.

    Without ARTIFACT the model that ships with gptx; a checkpoint folder is described too, with the next command.
    """
    from gptx.inspect import describe
    from gptx.model import DEFAULT_MODEL

    found = describe(artifact or DEFAULT_MODEL)
    if as_json:
        write_out(json.dumps(finite(found.data), indent=1, ensure_ascii=False) + "\n")
    else:
        _print(found, artifact or DEFAULT_MODEL)


def _print(found: Description, path: Path) -> None:
    print_table(found.facts, title=str(path))
    total = sum(size for _, size in found.files)
    print_table(
        [*((name, f"{size:>15,}") for name, size in found.files), ("total", f"{total:>15,}")],
        title="Files, bytes",
    )
    print_table(found.certificate, title="Certificate")
    print_table([(command,) for command in found.next], title="Next")
