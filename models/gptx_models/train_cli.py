"""The verb `gptx train`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import click

from gptx.errors import UsageError
from gptx.folders import check_output


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("model"), show_default=True, help="Checkpoint folder.")
@click.option("--recipe", default="minute", show_default=True, help="A shipped recipe's name, or a TOML file.")
@click.option("--list", "list_recipes", is_flag=True, help="Print the shipped recipes and stop.")
@click.option("--validation", type=click.Path(path_type=Path), help="Text to validate on.  [default: the last tenth]")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="tokenizer.json.  [default: a BPE trained on FILES]")
@click.option("--minutes", type=float, help="End after so long; the schedule fits itself to it.")
@click.option("--licence", help="Licence of the text, for the model card.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
def train(
    files: tuple[Path, ...],
    *,
    out: Path,
    recipe: str,
    list_recipes: bool,
    validation: Path | None,
    tokenizer: Path | None,
    minutes: float | None,
    licence: str | None,
    force: bool,
) -> None:
    """Train a GPT on text FILES and write a checkpoint folder.

    Stopped with Ctrl-C, the same command goes on where it was: the state lies in OUT.run.
    """
    from gptx_models.train import STATE, read_recipe, recipe_names
    from gptx_models.train import train as run

    if list_recipes:
        click.echo("\n".join(recipe_names()))
        return
    if not files:
        raise UsageError("no text to train on: gptx train FILE ... --out DIR")
    chosen = read_recipe(recipe)
    if minutes is not None:
        chosen = dataclasses.replace(chosen, minutes=minutes)
    going_on = (out.with_name(out.name + ".run") / STATE).exists()
    check_output(out, force=force or going_on)
    began = time.perf_counter()
    outcome = run(list(files), out, chosen, validation=validation, tokenizer=tokenizer, licence=licence, force=force)
    click.echo(
        f"{out}: {outcome.tokens / 1e6:.2f}M tokens in {(time.perf_counter() - began) / 60:.1f} min, training loss"
        f" {outcome.train_loss:.3f}, validation loss {outcome.val_loss:.3f} ({outcome.bits_per_byte:.3f} bits a byte)"
    )
    click.echo(f"next: gptx export {out} {out}-onnx && gptx run -m {out}-onnx")
