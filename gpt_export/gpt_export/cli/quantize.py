"""`gptx quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gpt_export.cli.proof_options import parse_limits, proof_options
from gpt_export.cli.report import print_plan, report
from gpt_export.mixed_precision.budget import Budget, parse_budget
from gptx.artifact.folders import check_apart, check_output
from gptx.cli.output import write_out
from gptx.errors import UsageError


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(
        ["int8", "int8-blocks", "int8-channels", "int8-fast", "int4", "int4-fast", "fp16", "keep"]
    ),
    help="The recipe, one of those above. Give --to or --budget, not both.",
)
@click.option(
    "--budget",
    metavar="BUDGET",
    help="ppl=+0.5% or size=100MB: the best mix of 4 and 8 bits inside it, as described above.",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    help="Where --budget draws its mixes, a PNG.  [default: OUT-pareto.png]",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Text that rounding is fitted to, UTF-8.  [default: our own]",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Compare with PyTorch on this checkpoint, not with SOURCE. Of keep: where the blocks are.",
)
@proof_options
def quantize(
    source: Path,
    out: Path,
    *,
    to: str | None,
    budget: str | None,
    picture: Path | None,
    calibration: Path | None,
    checkpoint: Path | None,
    cache_type: Any,
    text: Path | None,
    limit: tuple[str, ...],
    accept: bool,
    force: bool,
    dry_run: bool,
) -> None:
    """Quantize SOURCE, an fp32 artifact, to the artifact folder OUT.

    \b
    int8           8 bits, next to no loss; about 1.1 bytes a parameter.
                   int8-channels on a CPU with AMX, else int8-blocks
    int8-blocks    blocks of 64: the faster decode
    int8-channels  a scale a channel: the faster prefill and batches;
                   activations in 8 bits a token, or 16 where they matter
    int8-fast      channels, and a second graph of blocks for single rows:
                   both speeds without native operators, for twice the
                   memory; files are no larger
    int4           4-bit blocks of 32, embedding and head in 8 bits; about
                   0.7 bytes a parameter, and a visible loss; next to none
                   if the weights were 4-bit before (GGUF's Q4_1: kept)
    int4-fast      4-bit blocks of 128 in layers whose width they divide,
                   and rows of rare tokens in 4 bits: faster and smaller,
                   with 1.5 times the loss of int4
    fp16           half precision for CUDA; on a CPU half the file, not
                   half the time
    keep           the blocks of a GGUF file (Q4_0 to Q6_K), not rounded
                   again; --checkpoint names the folder that gptx import
                   wrote. Runs on native operators only

    8 and 4 bits: the residual stream is rotated, so that no channel stands out, and
    weights are rounded by GPTQ on a calibration text (minutes for 135M parameters).
    The result is compared with SOURCE on a proof text, and its certificate says what it cost.

    With --budget, each layer has 4 bits in blocks of 128 (or 64) or of 32, or 8 bits, and the rows
    of rare tokens have 4 or 8, chosen by what each costs. A budget of perplexity gives the smallest
    artifact inside it, a budget of size the best that fits. The measured mixes are printed, drawn,
    and stored in gptx.json.
    """
    _check_combination(to, budget, picture, calibration)
    options: dict[str, Any] = dict(
        cache_type=cache_type,
        checkpoint=checkpoint,
        text=text,
        calibration=calibration,
        limits=parse_limits(limit),
        accept=accept,
        force=force,
    )
    allowed = parse_budget(budget) if budget is not None else None
    if dry_run:
        _plan_quantize(source, out, to, allowed, picture, options)
    elif allowed is not None:
        from gpt_export.mixed_precision.search import quantize_within

        outcome = quantize_within(source, out, budget=allowed, picture_file=picture, **options)
        write_out(f"{outcome.table}\ndrawn in {outcome.picture}\n\n")
        report(out, outcome.certificate)
    else:
        from gpt_export.quantization.quantize import quantize_artifact

        assert to is not None
        report(out, quantize_artifact(source, out, to=to, **options))


def _check_combination(
    to: str | None,
    budget: str | None,
    picture: Path | None,
    calibration: Path | None,
) -> None:
    """Raise UsageError for options that do not go together."""
    if (to is None) == (budget is None):
        raise click.UsageError(
            "give either --to with a recipe, or --budget, for example --budget ppl=+0.5%"
        )
    if picture and not budget:
        raise UsageError("--picture draws the mixes of --budget, which was not given: leave it out")
    if picture and picture.suffix.lower() != ".png":
        raise UsageError(f"--picture {picture}: it is a PNG file, so let its name end with .png")
    if to == "fp16" and calibration:
        raise UsageError(
            "--calibration is what 8 and 4 bits are fitted to, and fp16 is not: leave it out"
        )


def _plan_quantize(
    source: Path,
    out: Path,
    to: str | None,
    budget: Budget | None,
    picture: Path | None,
    options: dict[str, Any],
) -> None:
    """Check what a quantization checks before it reads weights, and print what it takes."""
    from gpt_export.certificate.eval_text import read_text
    from gpt_export.mixed_precision.search import new_picture, plan_within
    from gpt_export.quantization.keep import KEEP
    from gpt_export.quantization.quantize import (
        check_checkpoint,
        check_recipe,
        expect_blocks,
        expect_fp32,
        plan_quantize,
    )

    checkpoint, calibration = options["checkpoint"], options["calibration"]
    for read in (source, checkpoint or source):
        check_apart(read, out)
    check_output(out, force=options["force"])
    read_text("proof", options["text"])
    read_text("calibration", calibration)
    if to == KEEP:
        expect_blocks(expect_fp32(source), checkpoint)
    elif checkpoint is not None:
        check_checkpoint(expect_fp32(source), checkpoint)
    if budget is None:
        assert to is not None
        manifest, _ = check_recipe(source, to, options["limits"], options["cache_type"])
        print_plan(plan_quantize(manifest, to, checkpoint))
        return
    new_picture(out, picture, force=options["force"])
    limits, cache_type = options["limits"], options["cache_type"]
    print_plan(
        plan_within(source, budget, calibration=calibration, limits=limits, cache_type=cache_type)
    )
