"""gptx finetune: a base checkpoint and a task's dataset in, a checkpoint or a LoRA adapter out.

The training steps are in loop.py. The task's metrics are measured before and after training.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptx.artifact.class_head import Head
from gptx.artifact.folders import new_folder
from gptx.artifact.hashes import sha256
from gptx.artifact.task import FILE as TASK_FILE
from gptx.artifact.task import Task, task_json
from gptx.errors import UsageError
from gptx.progress import note
from gptx.system.cpu import cpu_name
from gptx_models.adapters.lora import Lora, add_lora
from gptx_models.adapters.peft_files import load_adapter, save_adapter
from gptx_models.checkpoints.checkpoint import (
    load_config,
    load_model,
    read_family,
    save_checkpoint,
    write_json,
)
from gptx_models.checkpoints.tensor_files import open_folder
from gptx_models.data.batches import all_rows, row_batches, steps_per_epoch
from gptx_models.data.finetune_dataset import FinetuneDataset
from gptx_models.evaluation.metrics import perplexity
from gptx_models.evaluation.task_metrics import task_metrics
from gptx_models.gpt.model import GPT
from gptx_models.importers.huggingface import source_of
from gptx_models.training.distributed import Processes, check_processes
from gptx_models.training.loop import TrainingData, loop
from gptx_models.training.loss import Objective
from gptx_models.training.metrics_log import METRICS, PICTURE
from gptx_models.training.precision import resolve_precision
from gptx_models.training.recipe import Recipe, recipe_json, write_recipe
from gptx_models.training.run_folder import (
    RECIPE,
    begin,
    finish_output,
    is_begun,
    open_run,
    run_folder,
)
from gptx_models.training.validation import EvalResult, validation_loss


@dataclass(frozen=True)
class FinetuneResult:
    before: dict[str, float]  # metrics of the base; {} except in the main process
    after: dict[str, float]  # metrics of the output
    last: EvalResult


def finetune(
    base: Path,
    dataset: FinetuneDataset,
    out: Path,
    recipe: Recipe,
    *,
    epochs: float | None,
    lora: Lora | None,
    licence: str | None = None,
    force: bool = False,
    processes: Processes | None = None,
    set_by_user: Collection[str] = (),
) -> FinetuneResult:
    """Fine-tune the checkpoint `base` and write `out`.

    With `lora`, `out` is an adapter in PEFT's format, else a checkpoint. A run in OUT.run is
    resumed if it was begun with the same base, data and settings.

    epochs: how often each row is trained on; None: train for the recipe's steps.
    set_by_user: names of settings that the user chose. A short run lowers `warmup` and `eval_every`
    unless they are among them.

    Raises UsageError, CheckpointError and OutputError, each with the file or the setting.
    """
    processes = processes or Processes(torch.device("cpu"))
    recipe = resolve_precision(recipe, processes.device)
    settings = {**dataclasses.asdict(recipe), "epochs": epochs}
    recipe = _fit_to_epochs(recipe, epochs, len(dataset.train), set_by_user)
    check_processes(recipe, processes)
    gpt = _model(base, dataset.task, recipe, lora)
    if processes.is_main:
        _prepare(base, dataset, out, lora, settings, force=force)
    processes.wait()

    data = _training_data(dataset, recipe)
    before: dict[str, float] = {}
    if processes.is_main:
        before = _metrics(gpt, dataset, data, recipe, processes, trained=False)
    output = _Output(base, out, dataset, lora, recipe, _source(base, dataset, recipe, licence))
    output.source["before"] = before

    def on_eval(gpt: GPT, result: EvalResult) -> None:
        if result.best:
            output.save(gpt, result)

    last = loop(gpt, data, recipe, run_folder(out), processes, on_eval=on_eval)
    after: dict[str, float] = {}
    if processes.is_main:
        finish_output(out, generation=output.generation(), licence=licence)
        best = load_adapter(out, base) if lora else load_model(out)
        after = _metrics(best, dataset, data, recipe, processes, trained=True)
        note("; ".join(f"{name} {before[name]:.4g} -> {after[name]:.4g}" for name in after))
    return FinetuneResult(before, after, last)


def _fit_to_epochs(
    recipe: Recipe, epochs: float | None, n_rows: int, set_by_user: Collection[str]
) -> Recipe:
    """The recipe for `epochs` epochs of `n_rows` rows. epochs: None keeps the recipe's steps.

    The warm-up becomes at most a tenth of the steps, and an evaluation comes at least every quarter
    of them. Settings in `set_by_user` stay.
    """
    steps = recipe.steps
    if epochs is not None:
        steps = math.ceil(epochs * steps_per_epoch(n_rows, recipe.batch_size))
    fitted = {
        "warmup": min(recipe.warmup, steps // 10),
        "eval_every": max(1, min(recipe.eval_every, math.ceil(steps / 4))),
    }
    changes = {name: value for name, value in fitted.items() if name not in set_by_user}
    return dataclasses.replace(recipe, steps=max(steps, 1), **changes)


def _model(base: Path, task: Task, recipe: Recipe, lora: Lora | None) -> GPT:
    """The base with the recipe's dropout, a new head if the task has one, and LoRA if asked for."""
    if unknown := sorted(set(recipe.model) - {"dropout"}):
        raise UsageError(
            f"the base decides the model's {', '.join(unknown)}: only model.dropout can be set"
        )
    loaded, config = load_model(base), load_config(base)
    n_class = len(task.labels) if task.head else 0
    torch.manual_seed(recipe.seed)
    if config.n_class and not n_class:
        raise UsageError(
            f"{base} has a classification head in place of a language model's: fine-tune it with"
            " --task classify --head"
        )
    gpt = GPT(dataclasses.replace(config, n_class=n_class, **recipe.model))
    weights = loaded.state_dict()
    if n_class:
        weights = {name: w for name, w in weights.items() if not name.startswith("head.")}
    gpt.load_state_dict(weights, strict=not n_class)
    return add_lora(gpt, lora, read_family(base)) if lora else gpt


def _prepare(
    base: Path,
    dataset: FinetuneDataset,
    out: Path,
    lora: Lora | None,
    settings: dict[str, Any],
    *,
    force: bool,
) -> None:
    """Begin a run in OUT.run, or check that the run there has the same origin and settings."""
    run = open_run(out, force=force)
    weight_files = sorted([*base.glob("*.safetensors"), *base.glob("*.bin")])
    origin = {
        "base": [sha256(file) for file in weight_files],
        "lora": lora and dataclasses.asdict(lora),
        **dataset.origin,
    }
    if not is_begun(run, origin, settings):
        begin(run, origin, settings)


def _training_data(dataset: FinetuneDataset, recipe: Recipe) -> TrainingData:
    return TrainingData(
        batch=row_batches(dataset.train, batch_size=recipe.batch_size, seed=recipe.seed),
        validation=lambda: all_rows(dataset.val, batch_size=recipe.batch_size),
        bytes_per_token=dataset.bytes_per_token,
        masked=True,
    )


def _metrics(
    gpt: GPT,
    dataset: FinetuneDataset,
    data: TrainingData,
    recipe: Recipe,
    processes: Processes,
    *,
    trained: bool,
) -> dict[str, float]:
    """The task's metrics and, unless the task has a head, the perplexity of the answers."""
    metrics: dict[str, float] = {}
    if not dataset.task.head:
        alone = Processes(processes.device)  # only the main process measures
        objective = Objective(gpt.to(alone.device), masked=True)
        metrics["perplexity"] = perplexity(
            validation_loss(objective, data.validation(), recipe, alone)
        )
    return metrics | task_metrics(gpt.cpu(), dataset, trained=trained)


def _source(
    base: Path, dataset: FinetuneDataset, recipe: Recipe, licence: str | None
) -> dict[str, Any]:
    """The fields of the output's gptx_source.json that are known before training."""
    about = source_of(base, load_config(base), open_folder(base))
    return {
        "format": "gptx-finetune",
        "base": about,
        "task": dataset.task.kind,
        "licence": licence or about.get("licence"),
        "recipe": recipe_json(recipe),
        "cpu": cpu_name(),
    }


@dataclass
class _Output:
    """The checkpoint or adapter folder that a fine-tuning writes."""

    base: Path
    out: Path
    dataset: FinetuneDataset
    lora: Lora | None
    recipe: Recipe
    source: dict[str, Any]

    def generation(self) -> dict[str, Any]:
        """generation_config.json."""
        generation = self.dataset.setup.generation | self.recipe.generation
        if ends := self.dataset.eos_token_id:
            generation["eos_token_id"] = ends if len(ends) > 1 else ends[0]
        return generation

    def save(self, gpt: GPT, result: EvalResult) -> None:
        """Write the folder anew, with the tokenizer, the task, the recipe and the metrics."""
        with new_folder(self.out, force=True) as folder:
            self._save_weights(gpt, folder, {**self.source, "training": dataclasses.asdict(result)})
            self.dataset.setup.write(folder)
            write_json(folder / TASK_FILE, task_json(self.dataset.task))
            write_recipe(self.recipe, folder / RECIPE)
            for name in (METRICS, PICTURE):
                shutil.copyfile(run_folder(self.out) / name, folder / name)

    def _save_weights(self, gpt: GPT, folder: Path, source: dict[str, Any]) -> None:
        generation, task = self.generation(), self.dataset.task
        if self.lora:
            save_adapter(
                gpt, folder, self.lora, base=self.base, source=source, generation=generation
            )
            return
        head = Head(task.labels, pad=generation.get("pad_token_id")) if task.head else None
        save_checkpoint(
            gpt, folder, tokenizer_files=None, source=source, generation=generation, head=head
        )
