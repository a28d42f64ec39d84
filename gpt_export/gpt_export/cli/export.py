"""`gptx export`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from gpt_export.cli.proof_options import parse_limits, proof_options
from gpt_export.cli.report import print_plan, report
from gptx.artifact.folders import check_apart, check_output, kind_of
from gptx.errors import OutputError, UsageError
from gptx.progress import note
from gptx_models.checkpoints.checkpoint import load_config


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
    cache_type: Any,
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
    options: dict[str, Any] = dict(
        text=text, limits=parse_limits(limit), accept=accept, force=force
    )
    if via == "optimum":
        for name, given in {
            f"--cache {cache}": cache not in (None, "growing"),
            "--dry-run": dry_run,
            f"--cache-type {cache_type}": cache_type,
            "--tokenizer": tokenizer,
            "--allow-pickle": allow_pickle,
        }.items():
            if given:
                raise UsageError(f"--via optimum has no {name}: leave it out")
        report(out, _export_via_optimum(source, out, options))
        return
    check_apart(Path(source), out)
    check_output(out, force=force)
    with _scratch(out) as scratch:
        if dry_run:
            _check_text_options(options)
            if kind_of(Path(source)) == "adapter":
                checkpoint = _adapter_base(Path(source))
            else:
                checkpoint = _as_checkpoint(source, scratch, tokenizer, allow_pickle=allow_pickle)
            _plan_export(checkpoint, cache, cache_type)
            return
        from gpt_export.export import export_checkpoint

        checkpoint = _as_checkpoint(source, scratch, tokenizer, allow_pickle=allow_pickle)
        form: Any = cache  # click has checked that it is a CacheForm
        certificate = export_checkpoint(
            checkpoint, out, cache=form, cache_type=cache_type, **options
        )
        report(out, certificate)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A temporary folder for a checkpoint. Raises OutputError if it cannot be made.

    It lies beside OUT, whose disk has room for weights; /tmp may lie in memory.
    """
    beside = next(parent for parent in out.absolute().parents if parent.exists())
    try:
        folder = tempfile.TemporaryDirectory(prefix=".gptx-import-", dir=beside)
    except OSError as error:
        raise OutputError(f"cannot write in {beside}: {error.strerror}") from error
    with folder as name:
        yield Path(name)


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
    source: str, scratch: Path, tokenizer: Path | None, *, allow_pickle: bool
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


def _plan_export(checkpoint: Path, cache: Any, cache_type: Any) -> None:
    from gpt_export.graph.attention_forms import choose_form
    from gpt_export.graph.write_step_graph import check_cache_type
    from gpt_export.plan import plan_export
    from gpt_export.source_checkpoint import expect_checkpoint

    expect_checkpoint(checkpoint)
    config = load_config(checkpoint)
    choose_form(config, cache)
    check_cache_type(cache_type, config)
    print_plan(plan_export(config))
