"""`gptx upgrade`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gpt_export.cli.proof_options import cache_type_option
from gptx.cli.next_step import use
from gptx.cli.output import write_next, write_prose


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@cache_type_option
@click.option(
    "--accept", is_flag=True, help="Add it even if it is outside the certificate's limits."
)
def upgrade(artifact: Path, *, cache_type: Any, accept: bool) -> None:
    """Add the graph of gptx's native operators to ARTIFACT, in place.

    For artifacts that an older gptx made: `gptx export` and `gptx quantize` write this graph
    themselves. It is onnx/step.onnx, and uses the weights of onnx/model.onnx. Other loaders are not
    concerned.

    The new graph is run on this machine, and its predictions are compared with the reference that
    the artifact carries, as `gptx verify` does. If they are outside the certificate's limits (and
    --accept is not given), or anything else fails, ARTIFACT stays as it was.
    """
    from gpt_export.upgrade import upgrade_artifact
    from gptx.artifact.layout import STEP
    from gptx.artifact.manifest import read_manifest

    report = upgrade_artifact(artifact, cache_type=cache_type, accept=accept)
    manifest = read_manifest(artifact)
    figures = ", ".join(f"{row.name} {row.here:.3g}" for row in report.rows if row.limit)
    write_prose(
        f"{artifact}: {STEP} is added, {manifest.files[STEP].size / 1e6:,.2f} MB"
        " on the weights of onnx/model.onnx"
    )
    write_prose(f"proved with kernels {manifest.raw['upgraded']['kernels']}: {figures}")
    write_next(use(artifact))
