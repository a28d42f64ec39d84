"""gptx compile: copy an artifact, and add a graph that is compiled for machines like this one."""

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
    """Copy ARTIFACT to OUT and add a graph that is compiled for machines like this one.

    The compiled graph opens faster: ONNX Runtime has optimized it, and its weights are packed in a
    file that several processes share. Machines with another kind of processor or another version
    of ONNX Runtime load the portable graph, which stays in OUT. An int8-fast artifact has two
    graphs, and both are compiled. Where gptx's native operators run onnx/step.onnx, they pack the
    weights themselves, and the compiled graph is not used.

    The compiled graph is run, and its predictions are compared with the artifact's certificate. If
    they are outside the certificate's limits, nothing is written (unless --accept is given).
    """
    from gptx.artifact.manifest import read_manifest
    from gptx.compile import compile_artifact
    from gptx.ort import compiled

    report = compile_artifact(artifact, out, accept=accept, force=force)
    manifest = read_manifest(out)
    made = manifest.raw["compiled"]
    size = sum(manifest.files[name].size for name in compiled.FILES if name in manifest.files)
    figures = ", ".join(f"{row.name} {row.here:.3g}" for row in report.rows if row.limit)
    write_prose(
        f"{out}: compiled for {made['cpu']} and ONNX Runtime {made['onnxruntime']},"
        f" {size / 1e6:,.1f} MB beside the portable graph"
    )
    write_prose(f"proved on this machine: {figures}")
    if manifest.step:
        write_prose(
            "native operators do not use the compiled graph: it runs on machines without their"
            " library, and with GPTX_KERNELS=none"
        )
    write_next(use(out))
