"""gptx compile: an artifact's graph made ready for machines like this one, beside the portable one."""

from __future__ import annotations

from pathlib import Path

import click

from gptx.cli.output import write_out


@click.command("compile")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--accept", is_flag=True, help="Write it even outside the certificate's limits.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
def compile_(artifact: Path, out: Path, *, accept: bool, force: bool) -> None:
    """Copy ARTIFACT to OUT with its graph once more, optimized for this processor and this ONNX Runtime.

    Its weights are packed in a file that processes share. Other machines, and other versions of ONNX Runtime, load the
    portable graph that is there too. The compiled graph is proved by the artifact's certificate before anything is
    written. Of int8-fast both graphs are compiled.
    """
    from gptx.artifact.manifest import read_manifest
    from gptx.artifact.uses import use_command
    from gptx.compile import compile_artifact
    from gptx.ort import compiled

    report = compile_artifact(artifact, out, accept=accept, force=force)
    manifest = read_manifest(out)
    made = manifest.raw["compiled"]
    size = sum(manifest.files[name].size for name in compiled.FILES if name in manifest.files)
    figures = ", ".join(
        f"{row.name} {row.here:.3g}" for row in report.rows if row.limit and row.here is not None
    )
    write_out(
        f"{out}: compiled for {made['cpu']} and ONNX Runtime {made['onnxruntime']}, {size / 1e6:,.1f} MB beside the "
        f"portable graph\nproved on this machine: {figures}\nnext: {use_command(manifest)}\n"
    )
