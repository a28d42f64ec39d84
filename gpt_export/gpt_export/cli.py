"""The verbs `gptx export` and `gptx quantize`."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from gptx.artifact.folders import check_apart, check_output, kind_of
from gptx.artifact.manifest import read_manifest
from gptx.artifact.uses import task_in_words, use_command
from gptx.cli.output import printable, write_out
from gptx.errors import OutputError, UsageError
from gptx.progress import note
from gptx_models.checkpoints.checkpoint import load_config

EXAMPLE = '"Once upon a time"'


def proof_options(command: Callable[..., None]) -> Callable[..., None]:
    """What export and quantize both take."""
    options = [
        click.option(
            "--text",
            type=click.Path(path_type=Path),
            help="Proof text, a UTF-8 file.  [default: our own page]",
        ),
        click.option(
            "--limit",
            "limit",
            multiple=True,
            metavar="NAME=VALUE",
            help="Override a limit, e.g. kl_mean=0.02.",
        ),
        click.option(
            "--accept",
            is_flag=True,
            help="Write it even outside the limits; the certificate says so.",
        ),
        click.option("--force", is_flag=True, help="Replace OUT if it is there."),
        click.option(
            "--dry-run", is_flag=True, help="Print what it takes (disk, memory) and stop."
        ),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


@click.command()
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--cache",
    type=click.Choice(["shared", "growing", "scatter"]),
    help="Form of the KV cache.  [default: shared where the model allows it]",
)
@click.option(
    "--portable", is_flag=True, help="Standard operators only, for every loader: --cache growing."
)
@click.option(
    "--via",
    type=click.Choice(["optimum"]),
    help="Export with optimum-onnx: for models that gptx does not know.",
)
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="tokenizer.json, where SOURCE has none."
)
@click.option(
    "--allow-pickle", is_flag=True, help="Let a nanoGPT checkpoint run code from its pickle."
)
@proof_options
def export(
    source: str,
    out: Path,
    *,
    cache: str | None,
    portable: bool,
    via: str | None,
    tokenizer: Path | None,
    allow_pickle: bool,
    text: Path | None,
    limit: tuple[str, ...],
    accept: bool,
    force: bool,
    dry_run: bool,
) -> None:
    """Export SOURCE, a checkpoint folder, a LoRA adapter or whatever `gptx import` takes, to the artifact folder OUT.

    The graph is compared with PyTorch on a proof text before anything is written, and the certificate travels with it.
    """
    if portable and cache not in (None, "growing"):
        raise UsageError(
            f"--portable is --cache growing, and --cache {cache} was asked for too: give one of them"
        )
    cache = "growing" if portable else cache
    options: dict[str, Any] = dict(text=text, limits=_limits(limit), accept=accept, force=force)
    if via == "optimum":
        if cache not in (None, "growing"):
            raise UsageError(
                f"--via optimum writes a growing cache; --cache {cache} is not to be had there"
            )
        unheard = {"--dry-run": dry_run, "--tokenizer": tokenizer, "--allow-pickle": allow_pickle}
        for name, given in unheard.items():
            if given:
                raise UsageError(f"--via optimum has no {name}: leave it out")
        from gpt_export.via_optimum.export import export_via_optimum
        from gptx_models.importers.hub import download

        folder = Path(source) if Path(source).exists() else download(source, covered=False)
        certificate = export_via_optimum(folder, out, **options)
        _report(out, certificate)
        return
    from gpt_export.certificate.eval_text import read_text
    from gpt_export.export import export_checkpoint
    from gptx.parity.limits import limits_for

    check_apart(Path(source), out)
    check_output(out, force=force)
    if dry_run:
        limits_for("fp32", options["limits"])
        read_text("proof", text)
    # beside OUT, where there is room for weights, rather than in a /tmp that may be memory
    beside = next(parent for parent in out.absolute().parents if parent.exists())
    with _scratch(beside) as scratch:
        checkpoint = Path(source)
        if kind_of(checkpoint) == "adapter":
            from gptx_models.adapters.base import base_of
            from gptx_models.adapters.merge import merge

            if dry_run:
                _plan_export(base_of(checkpoint), cache)
                return
            merge(checkpoint, scratch / "merged", exact=True)
            checkpoint = scratch / "merged"
            source = str(checkpoint)
        if tokenizer or kind_of(checkpoint) not in (
            "checkpoint",
            "artifact",
        ):  # export refuses the latter
            from gptx_models.importers import import_checkpoint

            checkpoint = scratch / "checkpoint"
            import_checkpoint(
                source, checkpoint, tokenizer=tokenizer, allow_pickle=allow_pickle, tell=note
            )
        if dry_run and kind_of(checkpoint) == "checkpoint":
            _plan_export(checkpoint, cache)
            return
        certificate = export_checkpoint(checkpoint, out, cache=cache, **options)  # type: ignore[arg-type]
    _report(out, certificate)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(
        ["int8", "int8-blocks", "int8-channels", "int8-fast", "int4", "int4-fast", "fp16"]
    ),
    help="A recipe of those above. Either this or --budget.",
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
    help="Compare with PyTorch on this checkpoint, not with SOURCE.",
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
                   both speeds for twice the memory; files are no larger
    int4           4-bit blocks of 32, embedding and head in 8 bits; about
                   0.7 bytes a parameter, and a visible loss; next to none
                   if the weights were 4-bit before (GGUF's Q4_1: kept)
    int4-fast      4-bit blocks of 128 in layers whose width they divide,
                   and rows of rare tokens in 4 bits: faster, smaller, and
                   half as much again lost
    fp16           half precision for CUDA; on a CPU half the file, not
                   half the time

    8 and 4 bits: the residual stream is rotated, so that no channel stands out, and
    weights are rounded by GPTQ on a calibration text (minutes for 135M parameters).
    The result is compared with SOURCE on a proof text, and its certificate says what it cost.

    With --budget each layer takes 4 bits in blocks of 128 (or 64) or of 32, or 8 bits, as is worth it, and the rows of
    rare tokens 4 or 8: of perplexity, the smallest artifact that keeps it; of size, the best that fits. The mixes that
    were measured are printed, drawn, and stored in gptx.json.
    """
    from gpt_export.certificate.eval_text import read_text
    from gpt_export.mixed_precision.budget import parse_budget
    from gpt_export.quantization.quantize import (
        check_checkpoint,
        check_recipe,
        expect_fp32,
        plan_quantize,
        quantize_artifact,
    )

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
    options: dict[str, Any] = dict(
        checkpoint=checkpoint,
        text=text,
        calibration=calibration,
        limits=_limits(limit),
        accept=accept,
        force=force,
    )
    allowed = parse_budget(budget) if budget is not None else None
    if dry_run:
        for read in (source, checkpoint or source):
            check_apart(read, out)
        check_output(out, force=force)
        read_text("proof", text)
        read_text("calibration", calibration)
        if checkpoint is not None:
            check_checkpoint(expect_fp32(source), checkpoint)
        if allowed is not None:
            from gpt_export.mixed_precision.search import new_picture, plan_within

            new_picture(out, picture, force=force)
            _print_plan(
                plan_within(source, allowed, calibration=calibration, limits=options["limits"])
            )
        else:
            assert to is not None
            manifest, _ = check_recipe(source, to, options["limits"])
            _print_plan(plan_quantize(manifest, to))
        return
    if allowed is not None:
        from gpt_export.mixed_precision.search import quantize_within

        outcome = quantize_within(source, out, budget=allowed, picture_file=picture, **options)
        write_out(f"{outcome.table}\ndrawn in {outcome.picture}\n\n")
        _report(out, outcome.certificate)
        return
    assert to is not None
    _report(out, quantize_artifact(source, out, to=to, **options))


@contextmanager
def _scratch(beside: Path) -> Iterator[Path]:
    """A folder that goes when the block ends. Raises OutputError where none can be made."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=".gptx-import-", dir=beside)
    except OSError as error:
        raise OutputError(f"cannot write in {beside}: {error.strerror}") from error
    with folder as name:
        yield Path(name)


def _limits(given: tuple[str, ...]) -> dict[str, float]:
    limits = {}
    for entry in given:
        name, equals, value = entry.partition("=")
        try:
            limits[name] = float(value)
        except ValueError:
            raise UsageError(
                f"--limit {entry}: expected NAME=VALUE with a number, for example kl_mean=0.02"
            ) from None
    return limits


def _plan_export(checkpoint: Path, cache: Any) -> None:
    from gpt_export.graph.attention_forms import choose_form
    from gpt_export.plan import plan_export

    config = load_config(checkpoint)
    choose_form(config, cache)
    _print_plan(plan_export(config))


def _print_plan(plan: Any) -> None:
    write_out(
        f"parameters  {plan.parameters / 1e6:,.1f} M\n"
        f"artifact    {plan.artifact_bytes / 1e6:,.1f} MB\n"
        f"disk        {plan.disk_bytes / 1e6:,.1f} MB while it is made\n"
        f"memory      {plan.memory_bytes / 1e6:,.0f} MB at most (estimate)\n"
    )


def _report(out: Path, certificate: dict[str, Any]) -> None:
    """What was made and what it cost, on standard output."""
    figures, greedy = certificate["figures"], certificate["greedy"]
    size = sum(p.stat().st_size for p in (out / "onnx").iterdir())
    against, text = f"against {certificate['against']} on {figures['positions']} tokens:", ""
    if greedy["compared"]:  # a language model
        against += (
            f" perplexity {figures['perplexity']:.4f} ({figures['perplexity_reference']:.4f}),"
        )
        text = f", greedy text identical for {greedy['identical']} of {greedy['compared']} tokens"
    manifest = read_manifest(out)
    task = task_in_words(out, manifest.model.n_class)
    told = f"task: {printable(task)}\n" if task else ""
    write_out(
        f"{out}: graph and weights {size / 1e6:,.1f} MB\n"
        f"{against} mean KL {figures['kl_mean']:.2e},\n"
        f"same top-1 {figures['same_top1']:.2%}, largest difference {figures['max_abs']:.2e}{text}\n"
        f"{told}next: {use_command(manifest, EXAMPLE)}\n"
    )
