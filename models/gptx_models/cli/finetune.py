"""`gptx finetune`: the options, and the commands that come next."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptx.cli.output import write_next, write_out, write_prose
from gptx.errors import UsageError
from gptx_models.cli.train import check_schedule, export_command, of_run_folder, recipe_options

if TYPE_CHECKING:
    from gptx_models.adapters.lora import Lora
    from gptx_models.training.finetune import FinetuneResult

KINDS = ("text", "completion", "chat", "classify", "summarize")
_OF_TRAIN = ("vocab_size", "prose", "sample", "eval_tokens")  # settings of gptx train only


@click.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--task", type=click.Choice(KINDS), required=True, help="The task to fine-tune for.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Checkpoint or adapter folder."
)
@click.option(
    "--epochs",
    type=click.FloatRange(min=0, min_open=True),
    help="Times that each example is trained on.  [default: 2]",
)
@click.option(
    "--lora", is_flag=True, help="Train a LoRA adapter (PEFT's format) instead of all weights."
)
@click.option("--rank", type=click.IntRange(min=1), help="LoRA's rank.  [default: 16]")
@click.option(
    "--alpha",
    type=click.FloatRange(min=0, min_open=True),
    help="LoRA's alpha.  [default: twice the rank]",
)
@click.option(
    "--targets",
    help="Modules that LoRA adapts: q_proj,v_proj; or all-linear.  [default: PEFT's]",
)
@click.option(
    "--lora-dropout", type=click.FloatRange(0, 1), help="Dropout of LoRA's input.  [default: 0]"
)
@click.option(
    "--head",
    is_flag=True,
    help="classify: train a new head with one output per label, not the labels' tokens.",
)
@click.option("--template", help="Prompt with {text} in it; the answer follows it after a space.")
@click.option("--fields", help="Names of the fields in FILES: text=sentence,label=category.")
@click.option(
    "--validation",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Examples to validate with.  [default: every tenth of FILES]",
)
@click.option(
    "--context",
    type=click.IntRange(min=8),
    help="Longest row, in tokens.  [default: 512, or the base's context]",
)
@click.option(
    "--judge",
    type=click.IntRange(min=1),
    help="Most validation examples to evaluate, spread over all of them.  [default: 200]",
)
@click.option(
    "--recipe",
    default="finetune",
    show_default=True,
    help="A shipped recipe's name, or a TOML file.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    help="A setting of the model or of generation: model.dropout=0.1.",
)
@click.option("--licence", help="Licence of the examples, for the model card.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option(
    "--shard", is_flag=True, help="Under torchrun: divide the model among the processes (FSDP2)."
)
@click.option(
    "--force", is_flag=True, help="Begin again: replace OUT, and the state of an earlier run."
)
@recipe_options
def finetune(
    base: Path,
    files: tuple[Path, ...],
    *,
    task: Any,
    out: Path,
    epochs: float | None,
    lora: bool,
    rank: int | None,
    alpha: float | None,
    targets: str | None,
    lora_dropout: float | None,
    head: bool,
    template: str | None,
    fields: str | None,
    validation: tuple[Path, ...],
    context: int | None,
    judge: int | None,
    recipe: str,
    changes: tuple[str, ...],
    licence: str | None,
    device: str,
    shard: bool,
    force: bool,
    **given: Any,
) -> None:
    """Fine-tune the checkpoint BASE on FILES.

    FILES are JSONL, JSON, CSV or TSV, or texts for --task text; also as .xz, .gz or .zst.

    \b
    text        any text; the model learns to continue it
    completion  {"prompt", "completion"} or {"instruction", "input", "output"};
                the loss is computed on the answer only
    chat        {"messages": [{"role", "content"}]}, through the chat template;
                the loss is computed on the assistant's turns only
    classify    {"text", "label"}
    summarize   {"text", "summary"}

    The metrics before and after are stored in OUT.
    """
    from gptx.artifact.folders import check_apart
    from gptx.progress import note
    from gptx_models.checkpoints.checkpoint import load_config
    from gptx_models.checkpoints.text_setup import read_text_setup
    from gptx_models.data.examples import parse_fields
    from gptx_models.data.finetune_dataset import load_finetune_dataset
    from gptx_models.training.distributed import exit_process, open_processes
    from gptx_models.training.finetune import finetune as run
    from gptx_models.training.recipe import changed, read_recipe

    _check_task(task, head=head, fields=fields, template=template, judge=judge)
    adapter = _adapter(lora, rank, alpha, targets, lora_dropout)
    check_apart(base, out)
    settings = {name: value for name, value in given.items() if value is not None}
    defaults = {"learning_rate": 2.5e-4} if lora and recipe == "finetune" else {}
    chosen = read_recipe(recipe, changes, settings, defaults=defaults)
    set_by_user = changed(changes, settings)
    _check_settings(set_by_user, epochs)
    check_schedule(set_by_user, chosen.schedule)
    config = load_config(base)
    if context and context > config.n_ctx:
        raise UsageError(
            f"--context is {context}, and {base} has a context of {config.n_ctx} tokens"
        )
    dataset = load_finetune_dataset(
        read_text_setup(base, config.vocab_size, tell=note),
        files,
        task,
        n_ctx=context or min(512, config.n_ctx),
        validation=validation,
        fields=parse_fields(fields, task) if fields else None,
        template=template,
        head=head,
        n_eval=judge or 200,
    )
    with open_processes(device, shard=shard) as processes:
        done = run(
            base,
            dataset,
            out,
            chosen,
            epochs=epochs or (None if "steps" in set_by_user else 2.0),
            lora=adapter,
            licence=licence,
            force=force,
            processes=processes,
            set_by_user=set_by_user,
        )
        if processes.is_main:
            _report(out, done)
    exit_process(processes)


def _check_task(
    task: str, *, head: bool, fields: str | None, template: str | None, judge: int | None
) -> None:
    """Raise UsageError for an option that the task does not use."""
    if head and task != "classify":
        raise UsageError(f"--head classifies: it does not go with --task {task}")
    if fields and task == "text":
        raise UsageError("--fields names fields of records, and --task text reads none")
    if template and task in ("text", "chat"):
        raise UsageError(
            f"--template asks for an answer to a text, and --task {task} does not: leave it out"
        )
    if judge and task == "text":
        raise UsageError(
            "--judge takes examples out of records, and --task text reads none: leave it out"
        )


def _check_settings(set_by_user: Collection[str], epochs: float | None) -> None:
    """Raise UsageError for settings that a fine-tuning does not use."""
    if unused := [name for name in _OF_TRAIN if name in set_by_user]:
        raise UsageError(
            f"gptx finetune does not read {', '.join(unused)}, a setting of gptx train: leave it"
            " out"
        )
    if epochs and "steps" in set_by_user:
        raise UsageError("--epochs and --steps both say how long: leave one of them out")


def _adapter(
    lora: bool,
    rank: int | None,
    alpha: float | None,
    targets: str | None,
    dropout: float | None,
) -> Lora | None:
    """The adapter to train; None without --lora.

    Raises UsageError if an option of the adapter is given without --lora.
    """
    from gptx_models.adapters.lora import Lora

    if not lora:
        given = {"--rank": rank, "--alpha": alpha, "--targets": targets, "--lora-dropout": dropout}
        if unused := [name for name, value in given.items() if value is not None]:
            raise UsageError(
                f"{', '.join(unused)} is of a LoRA adapter: give --lora too, or leave it out"
            )
        return None
    names = tuple(targets.split(",")) if targets else None
    rank = rank or 16
    return Lora(rank=rank, alpha=alpha or 2 * rank, targets=names, dropout=dropout or 0.0)


def _report(out: Path, done: FinetuneResult) -> None:
    """Print the metrics before and after, and the next command."""
    for name, value in done.after.items():
        write_out(f"{name}: {done.before[name]:.4f} before, {value:.4f} after\n")
    last = done.last
    write_prose(f"{out}: {last.tokens:,} tokens in {last.seconds / 60:.1f} min, {last}")
    write_prose(of_run_folder(out))
    write_next(export_command(out))
