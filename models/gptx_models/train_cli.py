"""`gptx train`: the options, and the commands that come next."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from gptx.errors import UsageError


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("model"), show_default=True, help="Checkpoint folder."
)
@click.option("--recipe", default="minute", show_default=True, help="A shipped recipe's name, or a TOML file.")
@click.option(
    "--set", "changes", multiple=True, help="A setting over the recipe's, as TOML: steps=500, model.n_layer=6."
)
@click.option("--list", "list_recipes", is_flag=True, help="Print the shipped recipes and stop.")
@click.option("--validation", type=click.Path(path_type=Path), help="Text to validate on.  [default: the last tenth]")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="tokenizer.json.  [default: a BPE trained on FILES]")
@click.option("--from", "start", type=click.Path(path_type=Path), help="Go on from this checkpoint's weights.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="End after so long, schedule included.")
@click.option("--licence", help="Licence of the text, for the model card.")
@click.option("--force", is_flag=True, help="Begin again: replace OUT, and the state of an earlier run.")
def train(
    files: tuple[Path, ...],
    *,
    out: Path,
    recipe: str,
    changes: tuple[str, ...],
    list_recipes: bool,
    validation: Path | None,
    tokenizer: Path | None,
    start: Path | None,
    minutes: float | None,
    licence: str | None,
    force: bool,
) -> None:
    """Train a GPT on text FILES and write a checkpoint folder.

    Documents in a file are divided by <|endoftext|>. A run that was stopped goes on where it was when the same command
    is given again: its state lies in OUT.run.
    """
    from gptx_models import train as loop
    from gptx_models.recipe import read_recipe, recipe_names

    if list_recipes:
        click.echo("\n".join(recipe_names()))
        return
    if not files:
        raise UsageError("no text to train on: gptx train FILE ... --out DIR")
    chosen = read_recipe(recipe, changes)
    if minutes is not None:
        chosen = dataclasses.replace(chosen, minutes=minutes)
    try:
        done = loop.train(
            list(files),
            out,
            chosen,
            validation=validation,
            tokenizer=tokenizer,
            start=start,
            licence=licence,
            force=force,
        )
    except KeyboardInterrupt:
        if (loop.run_folder(out) / loop.STATE).exists():
            click.echo("stopped: the same command goes on from the last evaluation", err=True)
        raise
    click.echo(
        f"{out}: {done.tokens / 1e6:.2f}M tokens in {done.seconds / 60:.1f} min, training loss {done.train_loss:.3f},"
        f" validation loss {done.val_loss:.3f} ({done.bits_per_byte:.3f} bits a byte)"
    )
    click.echo(f'next: gptx export {out} {out}-onnx && gptx run -m {out}-onnx "Once upon a time"')
