"""gptx train: text files and a recipe in, a checkpoint folder out. The steps themselves are `loop`'s."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import torch

from gptx.artifact.folders import check_apart, new_folder
from gptx.artifact.hashes import sha256
from gptx.errors import UsageError
from gptx.progress import note
from gptx.system.cpu import cpu_name
from gptx_models.checkpoints.checkpoint import load_config, load_model, save_checkpoint
from gptx_models.checkpoints.tensor_files import open_folder
from gptx_models.checkpoints.text_setup import TextSetup, read_text_setup, text_setup_of_tokenizer
from gptx_models.checkpoints.tokenizer_files import quiet
from gptx_models.checkpoints.weight_files import weight_files
from gptx_models.data import corpus
from gptx_models.data.corpus import Corpus, Texts
from gptx_models.data.pretraining import all_windows, random_windows
from gptx_models.evaluation.sample import sample
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT
from gptx_models.importers.huggingface import source_of
from gptx_models.training.distributed import Processes
from gptx_models.training.loop import EvalResult, TrainingData, check, loop
from gptx_models.training.metrics_log import METRICS, PICTURE
from gptx_models.training.recipe import Recipe, write_recipe
from gptx_models.training.run_folder import (
    RECIPE,
    begin,
    beginning,
    is_begun,
    open_run,
    run_folder,
    settle,
)


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
    processes: Processes | None = None,
) -> EvalResult:
    """Train on `files` and write the checkpoint folder `out`, anew at every evaluation that is better than those before.

    A run that lies in OUT.run goes on where it stopped; `force` begins again instead, and replaces `out`.
    files, validation: see `text_files.documents`; `field` is read of JSONL. tokenizer: a tokenizer.json; without it one
    is trained on `files`. start: a checkpoint folder of the recipe's shape, whose weights are trained on; its tokenizer,
    chat template and generation_config.json become the output's. licence: of the text, for the model card; without it
    the start's.
    """
    processes = processes or Processes(torch.device("cpu"))
    check(recipe, processes)
    n_ctx = recipe.config(1).n_ctx
    setup = None
    weights = {}
    if start is not None:
        if tokenizer is not None:
            raise UsageError("a start has its own tokenizer: leave --tokenizer out")
        check_apart(start, out)
        config = _shape_of(start, recipe)
        weights = load_model(start).state_dict()  # damaged ones are found before a run is begun
        setup = read_text_setup(start, config.vocab_size, tell=note if processes.is_main else quiet)
    elif tokenizer is not None:
        setup = text_setup_of_tokenizer(tokenizer, n_ctx)
    if processes.is_main:
        _prepare(files, validation, field, out, recipe, tokenizer, start, setup, force=force)
    processes.wait()
    run = run_folder(out)
    data = corpus.read(run)
    source = {
        "format": "gptx-train",
        "name": ", ".join(dict.fromkeys(file.name for file in files)),
        "licence": licence,
        "recipe": {
            name: value for name, value in dataclasses.asdict(recipe).items() if value != math.inf
        },
        "cpu": cpu_name(),
    }
    if start is not None:
        source["start"] = source_of(start, load_config(start), open_folder(start))
        source["licence"] = licence or source["start"].get("licence")

    def on_eval(gpt: GPT, outcome: EvalResult) -> None:
        if recipe.sample:
            note(sample(gpt, data.tokenizer, recipe.sample, ends=data.ends))
        if outcome.best:
            save(gpt, outcome, out, run, recipe, source, {**generation, **recipe.generation})

    generation = {**data.generation, "eos_token_id": data.ends if len(data.ends) > 1 else data.end}
    generation = {name: value for name, value in generation.items() if value is not None}
    torch.manual_seed(recipe.seed)
    gpt = GPT(recipe.config(data.vocab_size) if start is None else _shape_of(start, recipe))
    if start is not None:
        gpt.load_state_dict(weights)
        weights.clear()
    outcome = loop(gpt, _material(data, recipe, n_ctx), recipe, run, processes, on_eval=on_eval)
    if processes.is_main:
        settle(out, generation={**generation, **recipe.generation}, licence=licence)
    return outcome


def _prepare(
    files: list[Path],
    validation: list[Path] | None,
    field: str,
    out: Path,
    recipe: Recipe,
    tokenizer: Path | None,
    start: Path | None,
    setup: TextSetup | None,
    *,
    force: bool,
) -> None:
    """Make the tokens of a run, or see that those that lie there are of the same texts and settings. Texts that cannot be
    read are found before `force` removes anything."""
    texts = Texts(tuple(files), field, recipe.prose)
    held_out = Texts(tuple(validation), field, recipe.prose) if validation else None
    origin = {
        "texts": texts.digest(),
        "validation": held_out.digest() if held_out else None,
        "tokenizer": sha256(tokenizer) if tokenizer else setup and setup.digest(),
        "start": start and [sha256(file) for file in weight_files(start)],
        "vocab_size": None if setup else recipe.vocab_size,
        "model": recipe.model,
    }
    settings = {
        name: value
        for name, value in dataclasses.asdict(recipe).items()
        if name not in ("model", "vocab_size")
    }
    run = open_run(out, force=force)
    if not is_begun(run, origin, settings):
        n_ctx = recipe.config(1).n_ctx
        with beginning(run):
            corpus.make(
                texts,
                run,
                n_ctx=n_ctx,
                vocab_size=recipe.vocab_size,
                validation=held_out,
                setup=setup,
            )
            begin(run, origin, settings)


def _shape_of(start: Path, recipe: Recipe) -> GPTConfig:
    """The start's configuration with the recipe's dropout. UsageError for a start that writes no text, and where the
    recipe is of another shape."""
    shape = dataclasses.replace(load_config(start), dropout=recipe.config(1).dropout)
    if shape.n_class:
        raise UsageError(
            f"{start} has a classification head in place of a language model's: gptx finetune goes on from it, with"
            " --task classify --head"
        )
    found, asked = shape.to_dict(), recipe.config(shape.vocab_size).to_dict()
    other = [
        f"{name} {found[name]!r} and not {asked[name]!r}"
        for name in found
        if found[name] != asked[name]
    ]
    if other:
        raise UsageError(f"{start} has another shape than the recipe: {', '.join(other)}")
    return shape


def save(
    gpt: GPT,
    outcome: EvalResult,
    out: Path,
    run: Path,
    recipe: Recipe,
    source: dict[str, Any],
    generation: dict[str, Any],
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
    return prompt, sample(load_model(out), data.tokenizer, prompt, ends=data.ends)


def _material(data: Corpus, recipe: Recipe, n_ctx: int) -> TrainingData:
    n_val = min(recipe.eval_tokens, len(data.val)) or len(data.val)
    windows = {"batch_size": recipe.batch_size, "n_ctx": n_ctx}
    return TrainingData(
        batch=random_windows(data.train, seed=recipe.seed, **windows),
        validation=lambda: all_windows(data.val[:n_val], **windows),
        bytes_per_token=data.bytes_per_token(n_val),
    )
