"""gptx bench: measure an artifact, alone or beside other engines; tables, JSON or a picture out.

This file has the options. bench_plan.py checks them, bench_run.py measures, and bench_report.py
prints the tables.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptx.cli.options import threads_option

if TYPE_CHECKING:
    from gptx.cli.bench_plan import Request
    from gptx.cli.bench_run import Results

SEVERAL = ("--against", "--prompt-tokens")
POSITIVE = click.IntRange(min=1)
FILE = click.Path(path_type=Path)


class SeveralValues(click.Command):
    """A command whose options in SEVERAL take all values up to the next option.

    `--against A B` is read as `--against A --against B`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spelled: list[str] = []
        several = ""
        for before, arg in zip(["", *args], args):
            again = several and not arg.startswith("-") and before != several
            spelled += [several, arg] if again else [arg]
            if arg.startswith("-"):
                several = arg if arg in SEVERAL else ""
        return super().parse_args(ctx, spelled)


# fmt: off
@click.command(cls=SeveralValues)
@click.argument("artifact", required=False, type=FILE)
@click.option("--against", multiple=True, metavar="PEER ...", help="Engines to compare with.")
@click.option("--prompt-tokens", multiple=True, type=POSITIVE, metavar="N ...",
              help="Lengths of the prompts.  [default: 128 512]")
@click.option("--new-tokens", type=POSITIVE, metavar="N",
              help="Tokens to decode after the first.  [default: 64]")
@click.option("--batch", type=POSITIVE, default=8, show_default=True, metavar="N",
              help="Rows to decode together in the measurement of batches; 1: no batches.")
@click.option("--rounds", type=click.IntRange(min=0), default=3, show_default=True, metavar="N",
              help="Rounds; in each, all engines run in turn. 0: measure no speed.")
@click.option("--repeats", type=POSITIVE, default=2, show_default=True, metavar="N",
              help="Runs for each prompt length in a round.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True,
              help="Where all engines compute.")
@threads_option
@click.option("--quality", is_flag=True, help="Measure perplexity, KL divergence and top-1, too.")
@click.option("--reference", type=FILE, metavar="ARTIFACT",
              help="The fp32 artifact that --quality compares with.")
@click.option("--text", type=FILE, metavar="FILE",
              help="Take the prompts, and the text that --quality scores, from this file.")
@click.option("--tokens", type=click.IntRange(min=3), metavar="N",
              help="Most tokens of --text that --quality scores.  [default: 8192]")
@click.option("--window", type=click.IntRange(min=3), metavar="N",
              help="Tokens that --quality scores at once.  [default: 1024]")
@click.option("--json", "json_file", type=FILE, metavar="FILE", help="Write all figures as JSON.")
@click.option("--picture", "png_file", type=FILE, metavar="FILE.png", help="Draw the speed.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
# fmt: on
def bench(**options: Any) -> None:
    """Measure the speed of ARTIFACT on this machine, alone or beside other engines.

    The command measures prefill, decoding, batches, memory and loading. It also compares decoding
    with the limit that memory bandwidth sets. Each engine runs in a process of its own. Without
    ARTIFACT, the model that ships with gptx is measured.

    PEER is NAME[:PATH[:VARIANT]], one of:

    \b
    gptx:ARTIFACT                   another artifact
    genai[:ARTIFACT]                onnxruntime-genai, on the same artifact
    optimum[:ARTIFACT]              optimum-onnx, on the same artifact
    transformers:CHECKPOINT[:DTYPE] PyTorch
    torchcompile:CHECKPOINT[:DTYPE] the same, static cache and torch.compile
    torch:CHECKPOINT                gptx's PyTorch module, --quality only
    llamacpp:FILE.gguf              llama-cpp-python
    ctranslate2:CHECKPOINT[:TYPE]   converted first (int8, int8_float32 ...)
    openvino:FOLDER[:f32]           an IR folder as optimum-intel writes it;
                                    bf16 where the CPU has it, unless :f32

    With --device cuda: gptx, transformers and torchcompile.

    \b
    Example: gptx bench smollm2-int8 --against genai llamacpp:smollm2.gguf
             --prompt-tokens 128 512 --json speed.json
    """
    from gptx.cli.bench_plan import Request, plan
    from gptx.cli.bench_report import print_conditions, print_next
    from gptx.cli.bench_run import run

    request = Request(**options)
    work = plan(request)
    print_conditions(work)
    results = run(work)
    _write_files(request, results)
    print_next(work)


def _write_files(request: Request, results: Results) -> None:
    from gptx.artifact.folders import write_file

    if request.png_file:
        from gptx.bench.picture import picture

        write_file(request.png_file, picture(results.speed, results.title))
    if request.json_file:
        text = json.dumps(results.facts, indent=1) + "\n"
        write_file(request.json_file, text.encode())
