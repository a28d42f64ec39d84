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
    """Add the options that export and quantize share."""
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
    """Export SOURCE to the artifact folder OUT.

    SOURCE is a checkpoint folder, a LoRA adapter, or whatever `gptx import` takes.

    The graph is compared with PyTorch on a proof text before anything is written. The artifact
    carries the certificate.
    """
    if portable and cache not in (None, "growing"):
        raise UsageError(
            f"--portable is --cache growing, and --cache {cache} was asked for too:"
            " give one of them"
        )
    cache = "growing" if portable else cache
    options: dict[str, Any] = dict(text=text, limits=_limits(limit), accept=accept, force=force)
    if via == "optimum":
        if cache not in (None, "growing"):
            raise UsageError(
                f"--via optimum writes a growing cache; --cache {cache} is not to be had there"
            )
        for name, given in {
            "--dry-run": dry_run,
            "--tokenizer": tokenizer,
            "--allow-pickle": allow_pickle,
        }.items():
            if given:
                raise UsageError(f"--via optimum has no {name}: leave it out")
        certificate = _export_via_optimum(source, out, options)
    else:
        check_apart(Path(source), out)
        check_output(out, force=force)
        if dry_run:
            _check_text_options(options)
        # weights go beside OUT, where there is room for them; /tmp may lie in memory
        beside = next(parent for parent in out.absolute().parents if parent.exists())
        with _scratch(beside) as scratch:
            adapter = kind_of(Path(source)) == "adapter"
            if dry_run and adapter:
                checkpoint = _adapter_base(Path(source))
            else:
                checkpoint = _as_checkpoint(
                    source, scratch, tokenizer=tokenizer, allow_pickle=allow_pickle
                )
            if dry_run and (adapter or kind_of(checkpoint) == "checkpoint"):
                _plan_export(checkpoint, cache)
                return
            from gpt_export.export import export_checkpoint

            form: Any = cache  # click has checked that it is a CacheForm
            certificate = export_checkpoint(checkpoint, out, cache=form, **options)
    _report(out, certificate)


def _export_via_optimum(source: str, out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Export a folder, or a model of the Hugging Face hub, that gptx does not know itself."""
    from gpt_export.via_optimum.export import export_via_optimum
    from gptx_models.importers.hub import download

    folder = Path(source) if Path(source).exists() else download(source, covered=False)
    return export_via_optimum(folder, out, **options)


def _check_text_options(options: dict[str, Any]) -> None:
    """Raise UsageError for a limit or a proof text that an export would refuse."""
    from gpt_export.certificate.eval_text import read_text
    from gptx.parity.limits import limits_for

    limits_for("fp32", options["limits"])
    read_text("proof", options["text"])


def _adapter_base(adapter: Path) -> Path:
    from gptx_models.adapters.base import base_of

    return base_of(adapter)


def _as_checkpoint(
    source: str, scratch: Path, *, tokenizer: Path | None, allow_pickle: bool
) -> Path:
    """The checkpoint folder of `source`, an adapter or anything that `gptx import` takes.

    A checkpoint that must be made is written to `scratch`. An artifact is returned as it is:
    export_checkpoint refuses it.
    """
    checkpoint = Path(source)
    if kind_of(checkpoint) == "adapter":
        from gptx_models.adapters.merge import merge

        checkpoint = scratch / "merged"
        merge(Path(source), checkpoint, exact=True)
        source = str(checkpoint)
    if tokenizer or kind_of(checkpoint) not in ("checkpoint", "artifact"):
        from gptx_models.importers import import_checkpoint

        checkpoint = scratch / "checkpoint"
        import_checkpoint(
            source, checkpoint, tokenizer=tokenizer, allow_pickle=allow_pickle, tell=note
        )
    return checkpoint


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

    With --budget, each layer has 4 bits in blocks of 128 (or 64) or of 32, or 8 bits, and the rows
    of rare tokens have 4 or 8, chosen by what each costs. A budget of perplexity gives the smallest
    artifact inside it, a budget of size the best that fits. The measured mixes are printed, drawn,
    and stored in gptx.json.
    """
    from gpt_export.mixed_precision.budget import parse_budget
    from gpt_export.quantization.quantize import quantize_artifact

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
        _plan_quantize(source, out, to, allowed, picture, options)
        return
    if allowed is not None:
        from gpt_export.mixed_precision.search import quantize_within

        outcome = quantize_within(source, out, budget=allowed, picture_file=picture, **options)
        write_out(f"{outcome.table}\ndrawn in {outcome.picture}\n\n")
        _report(out, outcome.certificate)
        return
    assert to is not None
    _report(out, quantize_artifact(source, out, to=to, **options))


def _plan_quantize(
    source: Path,
    out: Path,
    to: str | None,
    budget: Any,
    picture: Path | None,
    options: dict[str, Any],
) -> None:
    """Check what a quantization checks before it reads weights, and print what it takes."""
    from gpt_export.certificate.eval_text import read_text
    from gpt_export.mixed_precision.search import new_picture, plan_within
    from gpt_export.quantization.quantize import (
        check_checkpoint,
        check_recipe,
        expect_fp32,
        plan_quantize,
    )

    checkpoint, calibration = options["checkpoint"], options["calibration"]
    for read in (source, checkpoint or source):
        check_apart(read, out)
    check_output(out, force=options["force"])
    read_text("proof", options["text"])
    read_text("calibration", calibration)
    if checkpoint is not None:
        check_checkpoint(expect_fp32(source), checkpoint)
    if budget is None:
        assert to is not None
        manifest, _ = check_recipe(source, to, options["limits"])
        _print_plan(plan_quantize(manifest, to))
        return
    new_picture(out, picture, force=options["force"])
    limits = options["limits"]
    _print_plan(plan_within(source, budget, calibration=calibration, limits=limits))


@contextmanager
def _scratch(beside: Path) -> Iterator[Path]:
    """A temporary folder in `beside`. Raises OutputError if it cannot be made."""
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
    """Print size, figures and the next command on standard output."""
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
        f"same top-1 {figures['same_top1']:.2%},"
        f" largest difference {figures['max_abs']:.2e}{text}\n"
        f"{told}next: {use_command(manifest, EXAMPLE)}\n"
    )
