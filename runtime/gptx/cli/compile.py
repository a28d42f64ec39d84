"""gptx compile: copy an artifact, and add what lets it open faster."""

from __future__ import annotations

from pathlib import Path

import click

from gptx.cli.next_step import use
from gptx.cli.output import write_next, write_prose


@click.command("compile")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--accept", is_flag=True, help="Write OUT even if it is outside the certificate's limits."
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def compile_(artifact: Path, out: Path, *, accept: bool, force: bool) -> None:
    """Copy ARTIFACT to OUT and add what lets it open faster.

    Where gptx's native operators run ARTIFACT, that is a file of its weights, packed as the
    operators read them. It serves every processor. Elsewhere it is a graph that ONNX Runtime has
    optimized, with packed weights, for machines like this one: others load the portable graph,
    which stays in OUT. An int8-fast artifact has two graphs, and both are compiled.

    OUT is run, and its predictions are compared with the artifact's certificate. If they are
    outside the certificate's limits, nothing is written (unless --accept is given).
    """
    from gptx.artifact.manifest import read_manifest
    from gptx.compile import compile_artifact
    from gptx.ort import compiled

    report = compile_artifact(artifact, out, accept=accept, force=force)
    manifest = read_manifest(out)
    made = manifest.raw["compiled"]
    size = sum(manifest.files[name].size for name in compiled.FILES if name in manifest.files)
    figures = ", ".join(f"{row.name} {row.here:.3g}" for row in report.rows if row.limit)
    if compiled.has_packed(manifest):
        aim, beside = "gptx's native operators", "the graphs"
    else:
        aim, beside = f"{made['cpu']} and ONNX Runtime {made['onnxruntime']}", "the portable graph"
    write_prose(f"{out}: compiled for {aim}, {size / 1e6:,.1f} MB beside {beside}")
    write_prose(f"proved on this machine: {figures}")
    write_next(use(out))
