"""gptx inspect: print the description of an artifact or a checkpoint by gptx.inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gptx.cli.next_step import use
from gptx.cli.output import finite, write_next, write_out
from gptx.cli.table import print_table

if TYPE_CHECKING:
    from gptx.inspect import Description


@click.command()
@click.argument("artifact", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def inspect(artifact: Path | None, as_json: bool) -> None:
    """Describe ARTIFACT: model, precision, cache, tokenizer, files and certificate.

    ARTIFACT is an artifact's folder or a checkpoint folder. Without ARTIFACT, the model that ships
    with gptx is described.
    """
    from gptx.inspect import describe
    from gptx.model import DEFAULT_MODEL

    found = describe(artifact or DEFAULT_MODEL)
    if as_json:
        write_out(json.dumps(finite(found.data), indent=1, ensure_ascii=False) + "\n")
    else:
        _print(found, artifact)


def _print(found: Description, artifact: Path | None) -> None:
    from gptx.model import DEFAULT_MODEL

    print_table(found.facts, title=str(artifact or DEFAULT_MODEL), prose=1)
    total = ("total", sum(size for _, size in found.files))
    sizes = [(name, f"{size:,}") for name, size in (*found.files, total)]
    print_table(sizes, title="Files, bytes", right=True)
    print_table(found.certificate, title="Certificate", prose=1)
    if found.kind == "checkpoint":
        write_next(found.next[-1])
    else:
        write_next(found.next[0] if artifact else "gptx verify")
        write_next(use(artifact))
