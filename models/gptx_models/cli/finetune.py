"""`gptx finetune`: the options, and the commands that come next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gptx.cli.output import write_out
from gptx.errors import UsageError
from gptx_models.cli.train import check_schedule, export_command, of_run_folder, recipe_options

KINDS = ("text", "completion", "chat", "classify", "summarize")
_OF_TRAIN = ("vocab_size", "prose", "sample", "eval_tokens")  # the base and the task decide these


@click.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--task", type=click.Choice(KINDS), required=True, help="What is trained.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Checkpoint or adapter folder."
)
@click.option(
    "--epochs",
    type=click.FloatRange(min=0, min_open=True),
    help="How often each example is trained.  [default: 2]",
)
@click.option(
    "--lora", is_flag=True, help="Train a LoRA adapter (PEFT's format) instead of all weights."
)
@click.option("--rank", type=click.IntRange(min=1), help="Of LoRA.  [default: 16]")
@click.option(
    "--alpha",
    type=click.FloatRange(min=0, min_open=True),
    help="Of LoRA.  [default: twice the rank]",
)
@click.option(
    "--targets",
    help="Modules that LoRA adapts, by comma: q_proj,v_proj; or all-linear.  [default: PEFT's]",
)
@click.option(
    "--lora-dropout", type=click.FloatRange(0, 1), help="Of what LoRA reads.  [default: 0]"
)
@click.option(
    "--head",
    is_flag=True,
    help="classify: a new head with an output a label, not the labels' tokens.",
)
@click.option(
    "--template", help="What is asked, with {text} in it; the answer follows after a space."
)
@click.option("--fields", help="The fields of the files: text=sentence,label=category.")
@click.option(
    "--validation",
    type=click.Path(path_type=Path),
    multiple=True,
    help="[default: every tenth example]",
)
@click.option(
    "--context",
    type=click.IntRange(min=8),
    help="Longest row, in tokens.  [default: 512, or the base's context]",
)
@click.option(
    "--judge",
    type=click.IntRange(min=1),
    help="Examples that are judged by, from all over the validation's.  [default: 200]",
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
    """Fine-tune the checkpoint BASE on FILES (JSONL, JSON, CSV, TSV; text for --task text; also as .xz, .gz, .zst).

    text: goes on with it. completion: {"prompt", "completion"} or {"instruction", "input", "output"}; only the answer is
    trained. chat: {"messages": [{"role", "content"}]} through the chat template; the assistant's turns are trained.
    classify: {"text", "label"}. summarize: {"text", "summary"}. The figures before and after stand in OUT.
    """
    from gptx.artifact.folders import check_apart
    from gptx.progress import note
    from gptx_models.adapters.lora import Lora
    from gptx_models.checkpoints.checkpoint import load_config
    from gptx_models.checkpoints.text_setup import read_text_setup
    from gptx_models.data.examples import parse_fields
    from gptx_models.data.finetune_dataset import study
    from gptx_models.training.distributed import leave, open_processes
    from gptx_models.training.finetune import finetune as run
    from gptx_models.training.recipe import changed, read_recipe

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
    of_lora = {
        "--rank": rank,
        "--alpha": alpha,
        "--targets": targets,
        "--lora-dropout": lora_dropout,
    }
    if not lora and (unread := [name for name, value in of_lora.items() if value is not None]):
        raise UsageError(
            f"{', '.join(unread)} is of a LoRA adapter: give --lora too, or leave it out"
        )
    check_apart(base, out)
    settings = {name: value for name, value in given.items() if value is not None}
    defaults = {"learning_rate": 2.5e-4} if lora and recipe == "finetune" else {}
    chosen = read_recipe(recipe, changes, settings, defaults=defaults)
    set_by_hand = changed(changes, settings)
    if unread := [name for name in _OF_TRAIN if name in set_by_hand]:
        raise UsageError(
            f"gptx finetune does not read {', '.join(unread)}, a setting of gptx train: leave it out"
        )
    if epochs and "steps" in set_by_hand:
        raise UsageError("--epochs and --steps both say how long: leave one of them out")
    check_schedule(set_by_hand, chosen.schedule)
    config = load_config(base)
    if context and context > config.n_ctx:
        raise UsageError(
            f"--context is {context}, and {base} has a context of {config.n_ctx} tokens"
        )
    made = study(
        read_text_setup(base, config.vocab_size, tell=note),
        files,
        task,
        n_ctx=context or min(512, config.n_ctx),
        validation=validation,
        fields=parse_fields(fields, task) if fields else None,
        template=template,
        head=head,
        judged=judge or 200,
    )
    adapter = None
    if lora:
        names = tuple(targets.split(",")) if targets else None
        rank = rank or 16
        adapter = Lora(
            rank=rank, alpha=alpha or 2 * rank, targets=names, dropout=lora_dropout or 0.0
        )
    with open_processes(device, shard=shard) as processes:
        done = run(
            base,
            made,
            out,
            chosen,
            epochs=epochs or (None if "steps" in set_by_hand else 2.0),
            lora=adapter,
            licence=licence,
            force=force,
            processes=processes,
            set_by_hand=set_by_hand,
        )
        if processes.is_main:
            figures = [
                f"{name}: {done.before[name]:.4f} before, {value:.4f} after\n"
                for name, value in done.after.items()
            ]
            write_out(
                f"{''.join(figures)}"
                f"{out}: {done.outcome.tokens:,} tokens in {done.outcome.seconds / 60:.1f} min, {done.outcome}\n"
                f"{of_run_folder(out)}\n"
                f"next: {export_command(out)}\n"
            )
    leave(processes)
