"""gptx train: text files and a recipe in, a checkpoint folder out. The steps themselves are `loop`'s."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import torch

from gptx.cpu import cpu_name
from gptx.errors import UsageError
from gptx.folders import new_folder
from gptx.progress import note
from gptx_models import corpus
from gptx_models.checkpoint import SOURCE, load_config, load_model, save_checkpoint
from gptx_models.corpus import Corpus, Texts
from gptx_models.curve import METRICS, PICTURE
from gptx_models.data import all_windows, random_windows
from gptx_models.loop import Material, Outcome, loop
from gptx_models.model import GPT
from gptx_models.recipe import Recipe, write_recipe
from gptx_models.run_folder import RECIPE, begin, is_begun, open_run, run_folder
from gptx_models.sample import sample
from gptx_models.tensor_files import read_json, sha256
from gptx_models.world import World


def train(
    files: list[Path],
    out: Path,
    recipe: Recipe,
    *,
    validation: list[Path] | None = None,
    field: str = "text",
    tokenizer: Path | None = None,
    start: Path | None = None,
    licence: str | None = None,
    force: bool = False,
    world: World | None = None,
) -> Outcome:
    """Train on `files` and write the checkpoint folder `out`, anew at every evaluation that is better than those before.

    A run that lies in OUT.run goes on where it stopped; `force` begins again instead, and replaces `out`.
    files, validation: see `text_files.documents`; `field` is read of JSONL. tokenizer: see `corpus.make`. start: a
    checkpoint folder of the recipe's shape, whose weights and tokenizer are trained on. licence: of the text, for the
    model card.
    """
    world = world or World(torch.device("cpu"))
    if start is not None:
        if tokenizer is not None:
            raise UsageError("a start has its own tokenizer: leave --tokenizer out")
        load_config(start)  # what is no checkpoint is said before anything is made
        tokenizer = start / "tokenizer.json"
    n_ctx = recipe.config(1).n_ctx
    if world.is_main:
        _prepare(files, validation, field, open_run(out, force=force), recipe, tokenizer, n_ctx)
    world.wait()
    run = run_folder(out)
    data = corpus.read(run)
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), data.end) if data.end is not None else {}
    source = {
        "format": "gptx-train",
        "name": ", ".join(dict.fromkeys(file.name for file in files)),
        "licence": licence,
        "recipe": {name: value for name, value in dataclasses.asdict(recipe).items() if value != math.inf},
        "cpu": cpu_name(),
    }
    if start is not None:
        source["start"] = read_json(start / SOURCE) if (start / SOURCE).exists() else {"name": start.name}

    def evaluated(gpt: GPT, outcome: Outcome) -> None:
        if recipe.sample:
            note(sample(gpt, data.tokenizer, recipe.sample, end=data.end))
        if outcome.best:
            save(gpt, outcome, out, run, recipe, source, {**tokens, **recipe.generation})

    torch.manual_seed(recipe.seed)
    config = recipe.config(data.vocab_size)
    if start is not None and load_config(start) != config:
        raise UsageError(
            f"{start} has another shape than the recipe: --set model.n_layer=... and the like make them one"
        )
    gpt = GPT(config) if start is None else load_model(start)
    return loop(gpt, _material(data, recipe, n_ctx), recipe, run, world, evaluated=evaluated)


def _prepare(
    files: list[Path],
    validation: list[Path] | None,
    field: str,
    run: Path,
    recipe: Recipe,
    tokenizer: Path | None,
    n_ctx: int,
) -> None:
    """Make the tokens of a run, or see that those that lie there are of the same texts and settings."""
    texts = Texts(tuple(files), field, recipe.prose)
    held_out = Texts(tuple(validation), field, recipe.prose) if validation else None
    origin = {
        "texts": texts.digest(),
        "validation": held_out.digest() if held_out else None,
        "tokenizer": sha256(tokenizer) if tokenizer and tokenizer.is_file() else None,
        "vocab_size": None if tokenizer else recipe.vocab_size,
        "model": recipe.model,
    }
    settings = {
        name: value for name, value in dataclasses.asdict(recipe).items() if name not in ("model", "vocab_size")
    }
    if not is_begun(run, origin, settings):
        corpus.make(texts, run, n_ctx=n_ctx, vocab_size=recipe.vocab_size, validation=held_out, tokenizer=tokenizer)
        begin(run, origin, settings)


def save(
    gpt: GPT, outcome: Outcome, out: Path, run: Path, recipe: Recipe, source: dict[str, Any], generation: dict[str, Any]
) -> None:
    """Write the checkpoint with its tokenizer, recipe and curve."""
    with new_folder(out, force=True) as folder:
        save_checkpoint(
            gpt,
            folder,
            tokenizer_files=run,
            source={**source, "training": dataclasses.asdict(outcome)},
            generation=generation,
        )
        write_recipe(recipe, folder / RECIPE)
        for name in (METRICS, PICTURE):
            shutil.copyfile(run / name, folder / name)


def example(out: Path, recipe: Recipe) -> tuple[str, str]:
    """A prompt (the recipe's, else the beginning of a line that was validated on) and what the checkpoint makes of it."""
    data = corpus.read(run_folder(out))
    lines = data.tokenizer.decode(data.val[:300].tolist()).split("\n")
    opening = next((line for line in lines[1:] if len(line.split()) > 3), lines[0])
    prompt = recipe.sample or " ".join(opening.split()[:3])
    return prompt, sample(load_model(out), data.tokenizer, prompt, end=data.end)


def _material(data: Corpus, recipe: Recipe, n_ctx: int) -> Material:
    n_val = min(recipe.eval_tokens, len(data.val)) or len(data.val)
    windows = {"batch_size": recipe.batch_size, "n_ctx": n_ctx}
    return Material(
        batch=random_windows(data.train, seed=recipe.seed, **windows),
        validation=lambda: all_windows(data.val[:n_val], **windows),
        bytes_per_token=data.bytes_per_token(n_val),
    )
