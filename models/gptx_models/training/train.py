"""gptx train: text files and a recipe in, a checkpoint folder out. The steps are in loop.py."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptx.artifact.folders import check_apart, new_folder
from gptx.artifact.hashes import sha256
from gptx.errors import UsageError
from gptx.progress import note
from gptx.system.cpu import cpu_name
from gptx_models.checkpoints.checkpoint import load_config, load_model, save_checkpoint
from gptx_models.checkpoints.tell import quiet
from gptx_models.checkpoints.tensor_files import open_folder
from gptx_models.checkpoints.text_setup import TextSetup, read_text_setup, text_setup_of_tokenizer
from gptx_models.checkpoints.weight_files import weight_files
from gptx_models.data import corpus
from gptx_models.data.corpus import Corpus, Texts
from gptx_models.data.pretraining import all_windows, random_windows
from gptx_models.evaluation.sample import sample
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT
from gptx_models.importers.huggingface import source_of
from gptx_models.training.distributed import Processes, check_processes
from gptx_models.training.loop import TrainingData, loop
from gptx_models.training.metrics_log import METRICS, PICTURE
from gptx_models.training.precision import resolve_precision
from gptx_models.training.recipe import Recipe, recipe_json, write_recipe
from gptx_models.training.run_folder import (
    RECIPE,
    begin,
    beginning,
    finish_output,
    is_begun,
    open_run,
    run_folder,
)
from gptx_models.training.validation import EvalResult


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
    """Train on `files` and write the checkpoint folder `out`.

    `out` is replaced after every evaluation with the lowest validation loss so far. A run in
    OUT.run is resumed; with `force` it begins again, and `out` is replaced.

    files, validation: see text_files.documents. Without `validation` it is the last tenth of the
    tokens. field: the field of JSONL records that holds the text.
    tokenizer: a tokenizer.json; without it a BPE is trained on `files`.
    start: a checkpoint folder of the recipe's shape, to train further. Its tokenizer, chat template
    and generation_config.json become those of `out`.
    licence: of the text, for the model card; without it that of `start`.

    Raises UsageError, CheckpointError and OutputError, each with the file or the setting.
    """
    processes = processes or Processes(torch.device("cpu"))
    recipe = resolve_precision(recipe, processes.device)
    check_processes(recipe, processes)
    if start is not None and tokenizer is not None:
        raise UsageError("a start has its own tokenizer: leave --tokenizer out")
    given = _load_start(start, out, recipe, tell=processes.is_main) if start else None
    setup = given.setup if given else None
    if tokenizer is not None:
        setup = text_setup_of_tokenizer(tokenizer, _n_ctx(recipe))
    if processes.is_main:
        texts = Texts(tuple(files), field, recipe.prose)
        held_out = Texts(tuple(validation), field, recipe.prose) if validation else None
        _prepare(texts, held_out, out, recipe, tokenizer, start, setup, force=force)
    processes.wait()

    run = run_folder(out)
    data = corpus.read(run)
    generation = {**data.generation_config(), **recipe.generation}
    source = _source(files, start, recipe, licence)

    def on_eval(gpt: GPT, result: EvalResult) -> None:
        if recipe.sample:
            note(sample(gpt, data.tokenizer, recipe.sample, ends=data.ends))
        if result.best:
            save(gpt, result, out, run, recipe, source, generation)

    gpt = _model(recipe, data, given)
    result = loop(gpt, _training_data(data, recipe), recipe, run, processes, on_eval=on_eval)
    if processes.is_main:
        finish_output(out, generation=generation, licence=licence)
    return result


@dataclass
class _Start:
    """The checkpoint that a run trains further."""

    config: GPTConfig
    weights: dict[str, Tensor]
    setup: TextSetup


def _load_start(start: Path, out: Path, recipe: Recipe, *, tell: bool) -> _Start:
    """Load `start` before a run begins, so that a damaged one is found at once."""
    check_apart(start, out)
    config = _start_config(start, recipe)
    weights = load_model(start).state_dict()
    setup = read_text_setup(start, config.vocab_size, tell=note if tell else quiet)
    return _Start(config, weights, setup)


def _start_config(start: Path, recipe: Recipe) -> GPTConfig:
    """The configuration of `start`, with the recipe's dropout.

    Raises UsageError if `start` is a classifier, or has another shape than the recipe.
    """
    config = dataclasses.replace(load_config(start), dropout=recipe.config(1).dropout)
    if config.n_class:
        raise UsageError(
            f"{start} has a classification head in place of a language model's: gptx finetune goes"
            " on from it, with --task classify --head"
        )
    found, asked = config.to_dict(), recipe.config(config.vocab_size).to_dict()
    other = [
        f"{name} {found[name]!r} and not {asked[name]!r}"
        for name in found
        if found[name] != asked[name]
    ]
    if other:
        raise UsageError(f"{start} has another shape than the recipe: {', '.join(other)}")
    return config


def _prepare(
    texts: Texts,
    held_out: Texts | None,
    out: Path,
    recipe: Recipe,
    tokenizer: Path | None,
    start: Path | None,
    setup: TextSetup | None,
    *,
    force: bool,
) -> None:
    """Make the tokens of a new run, or check that the run in OUT.run has the same origin.

    The texts are read before `force` removes anything, so a file that is missing costs nothing.
    """
    origin = {
        "texts": texts.digest(),
        "validation": held_out.digest() if held_out else None,
        "tokenizer": sha256(tokenizer) if tokenizer else setup and setup.digest(),
        "start": start and [sha256(file) for file in weight_files(start)],
        "vocab_size": None if setup else recipe.vocab_size,
        "model": recipe.model,
    }
    settings = dataclasses.asdict(recipe)
    del settings["model"], settings["vocab_size"]  # both are in the origin
    run = open_run(out, force=force)
    if is_begun(run, origin, settings):
        return
    with beginning(run):
        corpus.make(
            texts,
            run,
            n_ctx=_n_ctx(recipe),
            vocab_size=recipe.vocab_size,
            validation=held_out,
            setup=setup,
        )
        begin(run, origin, settings)


def _source(
    files: list[Path], start: Path | None, recipe: Recipe, licence: str | None
) -> dict[str, Any]:
    """The fields of the output's gptx_source.json that are known before training."""
    source: dict[str, Any] = {
        "format": "gptx-train",
        "name": ", ".join(dict.fromkeys(file.name for file in files)),
        "licence": licence,
        "recipe": recipe_json(recipe),
        "cpu": cpu_name(),
    }
    if start is not None:
        source["start"] = source_of(start, load_config(start), open_folder(start))
        source["licence"] = licence or source["start"].get("licence")
    return source


def _model(recipe: Recipe, data: Corpus, start: _Start | None) -> GPT:
    """A new model, or that of `start`, whose own copy of the weights is then freed."""
    torch.manual_seed(recipe.seed)
    if start is None:
        return GPT(recipe.config(data.vocab_size))
    gpt = GPT(start.config)
    gpt.load_state_dict(start.weights)
    start.weights.clear()
    return gpt


def _training_data(data: Corpus, recipe: Recipe) -> TrainingData:
    n_val = min(recipe.eval_tokens, len(data.val)) or len(data.val)
    windows = {"batch_size": recipe.batch_size, "n_ctx": _n_ctx(recipe)}
    return TrainingData(
        batch=random_windows(data.train, seed=recipe.seed, **windows),
        validation=lambda: all_windows(data.val[:n_val], **windows),
        bytes_per_token=data.bytes_per_token(n_val),
    )


def _n_ctx(recipe: Recipe) -> int:
    return recipe.config(1).n_ctx


def save(
    gpt: GPT,
    result: EvalResult,
    out: Path,
    run: Path,
    recipe: Recipe,
    source: dict[str, Any],
    generation: dict[str, Any],
) -> None:
    """Write the checkpoint with its tokenizer, recipe, metrics and picture."""
    with new_folder(out, force=True) as folder:
        save_checkpoint(
            gpt,
            folder,
            tokenizer_files=run,
            source={**source, "training": dataclasses.asdict(result)},
            generation=generation,
        )
        write_recipe(recipe, folder / RECIPE)
        for name in (METRICS, PICTURE):
            shutil.copyfile(run / name, folder / name)


def example(out: Path, recipe: Recipe) -> tuple[str, str]:
    """A prompt, and the checkpoint's continuation of it with the prompt in front.

    The prompt is the recipe's `sample`, else the first words of a line of the validation text.
    """
    data = corpus.read(run_folder(out))
    lines = data.tokenizer.decode(data.val[:300].tolist()).split("\n")
    opening = next((line for line in lines[1:] if len(line.split()) > 3), lines[0])
    prompt = recipe.sample or " ".join(opening.split()[:3])
    return prompt, sample(load_model(out), data.tokenizer, prompt, ends=data.ends)
