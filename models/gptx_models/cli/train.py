"""`gptx train`: the options, one for each setting of a recipe, and the next commands."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptx.cli.output import printable, write_next, write_out, write_prose
from gptx.errors import UsageError

if TYPE_CHECKING:
    from gptx_models.gpt.config import GPTConfig


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each setting of a recipe that is not a table.

    The option replaces the value in the recipe.
    """
    from gptx_models.training.recipe import settings

    for name, (kind, says) in reversed(settings().items()):
        option = f"--{name.replace('_', '-')}"
        if kind is bool:
            decorate = click.option(
                f"{option}/--no-{name.replace('_', '-')}", name, default=None, help=says
            )
        else:
            of: Any = click.Choice(kind) if isinstance(kind, tuple) else kind
            decorate = click.option(option, name, type=of, help=says)
        command = decorate(command)
    return command


def check_schedule(set_by_hand: Collection[str], schedule: str) -> None:
    """Raise UsageError for a setting of the command line that the schedule does not use."""
    reads = {"decay": ("wsd",), "floor": ("wsd", "cosine")}
    for name, schedules in reads.items():
        if name in set_by_hand and schedule not in schedules:
            raise UsageError(
                f"{name} is a setting of the schedule {' and '.join(schedules)}, and this one is"
                f" {schedule}"
            )


def of_run_folder(out: Path) -> str:
    """The sentence that a finished run prints about OUT.run: its size and its use."""
    from gptx_models.training.run_folder import run_folder, size_of

    run = run_folder(out)
    return (
        f"{run.name} ({size_of(run) / 1e6:,.1f} MB) is needed only to go on with more --steps: it"
        " can be removed"
    )


def export_command(out: Path) -> str:
    return f"gptx export {shlex.quote(str(out))} {shlex.quote(f'{out}-onnx')}"


def _defaults_of(start: GPTConfig) -> dict[str, Any]:
    """The defaults that a checkpoint to train further sets in place of a shipped recipe's.

    They are the shape of the model, and no generation settings: the checkpoint brings its own.
    """
    shape = {name: value for name, value in start.to_dict().items() if name != "vocab_size"}
    return {"model": shape, "generation": {}}


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("model"),
    show_default=True,
    help="Checkpoint folder.",
)
@click.option(
    "--recipe", default="minute", show_default=True, help="A shipped recipe's name, or a TOML file."
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    help="A setting of the model or of generation: model.n_layer=6.",
)
@click.option("--list", "list_recipes", is_flag=True, help="Print the shipped recipes and stop.")
@click.option(
    "--validation",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Text to validate with.  [default: the last tenth of FILES]",
)
@click.option("--field", help="The field of JSONL files that holds the text.  [default: text]")
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="tokenizer.json.  [default: a BPE trained on FILES]",
)
@click.option(
    "--from",
    "start",
    type=click.Path(path_type=Path),
    help="Train this checkpoint further: its weights, shape and tokenizer.",
)
@click.option("--licence", help="Licence of the text, for the model card.")
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
def train(
    files: tuple[Path, ...],
    *,
    out: Path,
    recipe: str,
    changes: tuple[str, ...],
    list_recipes: bool,
    validation: tuple[Path, ...],
    field: str | None,
    tokenizer: Path | None,
    start: Path | None,
    licence: str | None,
    device: str,
    shard: bool,
    force: bool,
    **given: Any,
) -> None:
    """Train a GPT on FILES and write a checkpoint folder.

    FILES are texts, JSONL files or folders of them, also as .xz, .gz or .zst. Documents in a text
    are separated by <|endoftext|>. A file that is named twice counts twice.

    A run that was stopped goes on when the same command is given again. Its state, metrics.csv and
    loss.png lie in OUT.run.

    On several GPUs or machines: torchrun --nproc-per-node 8 -m gptx train FILES ...
    """
    from gptx_models.checkpoints.checkpoint import load_config
    from gptx_models.data.compressed_text import file_type
    from gptx_models.data.text_files import list_files
    from gptx_models.training import train as training
    from gptx_models.training.distributed import exit_process, open_processes
    from gptx_models.training.recipe import changed, read_recipe, recipe_names

    given = {name: value for name, value in given.items() if value is not None}
    if list_recipes:
        write_out("\n".join(recipe_names()) + "\n")
        return
    if not files:
        raise UsageError("no text to train on: gptx train FILE ... --out DIR")
    defaults = _defaults_of(load_config(start)) if start else {}
    chosen = read_recipe(recipe, changes, given, defaults=defaults)
    check_schedule(changed(changes, given), chosen.schedule)
    if (tokenizer or start) and "vocab_size" in changed(changes, given):
        other = "--tokenizer" if tokenizer else "--from"
        raise UsageError(
            f"--vocab-size is of a new tokenizer, and {other} gives one: leave one of them out"
        )
    if field and not any(file_type(file) == ".jsonl" for file in list_files([*files, *validation])):
        raise UsageError("--field names a field of JSONL files, and there is none: leave it out")
    with open_processes(device, shard=shard) as processes:
        done = training.train(
            list(files),
            out,
            chosen,
            validation=list(validation),
            field=field or "text",
            tokenizer=tokenizer,
            start=start,
            licence=licence,
            force=force,
            processes=processes,
        )
        if processes.is_main:
            prompt, text = training.example(out, chosen)
            artifact = shlex.quote(f"{out}-onnx")
            apart = "-- " if prompt.startswith("-") else ""
            write_prose(f"{out}: {done.tokens:,} tokens in {done.seconds / 60:.1f} min, {done}")
            write_prose(text)
            write_prose(of_run_folder(out))
            run = f"gptx run -m {artifact} {apart}{shlex.quote(printable(prompt))}"
            write_next(f"{export_command(out)} && {run}")
    exit_process(processes)
