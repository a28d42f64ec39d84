"""gptx finetune: a checkpoint, examples and a task in; a checkpoint or a LoRA adapter out, judged before and after.

The rows are `rows`', the steps are `loop`'s, and what is judged is what the runtime will do with the task.
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
from gptx_models.gpt.model import GPT
from gptx_models.importers.huggingface import source_of
from gptx_models.training.distributed import Processes
from gptx_models.training.loop import EvalResult, TrainingData, check, evaluate, loop
from gptx_models.training.loss import Objective
from gptx_models.training.metrics_log import METRICS, PICTURE
from gptx_models.training.recipe import Recipe, write_recipe
from gptx_models.training.run_folder import RECIPE, begin, is_begun, open_run, run_folder, settle


@dataclass(frozen=True)
class Result:
    before: dict[str, float]
    after: dict[str, float]
    outcome: EvalResult


def finetune(
    base: Path,
    study: FinetuneDataset,
    out: Path,
    recipe: Recipe,
    *,
    epochs: float | None,
    lora: Lora | None,
    licence: str | None = None,
    force: bool = False,
    processes: Processes | None = None,
    set_by_hand: Collection[str] = (),
) -> Result:
    """Fine-tune the checkpoint `base` and write `out`: a checkpoint, or with `lora` an adapter in PEFT's format.

    epochs: how often each row is trained; None: the recipe's steps. A run in OUT.run that was begun with the same is gone
    on with. set_by_hand: settings that keep the recipe's value where a short run has a better one.
    """
    processes = processes or Processes(torch.device("cpu"))
    settings = {**dataclasses.asdict(recipe), "epochs": epochs}
    recipe = _in_epochs(recipe, epochs, len(study.train), set_by_hand)
    check(recipe, processes)
    gpt = _model(base, study.task, recipe, lora)
    if processes.is_main:
        run = open_run(out, force=force)
        whole_origin = {
            "base": [
                sha256(file) for file in sorted([*base.glob("*.safetensors"), *base.glob("*.bin")])
            ],
            "lora": lora and dataclasses.asdict(lora),
            **study.origin,
        }
        if not is_begun(run, whole_origin, settings):
            begin(run, whole_origin, settings)
    processes.wait()
    run = run_folder(out)
    data = TrainingData(
        batch=row_batches(study.train, batch_size=recipe.batch_size, seed=recipe.seed),
        validation=lambda: all_rows(study.val, batch_size=recipe.batch_size),
        bytes_per_token=study.bytes_per_token,
        masked=True,
    )
    about = source_of(base, load_config(base), open_folder(base))
    before = _judged(gpt, False, study, data, recipe, processes) if processes.is_main else {}
    source = {
        "format": "gptx-finetune",
        "base": about,
        "task": study.task.kind,
        "licence": licence or about.get("licence"),
        "recipe": {
            name: value for name, value in dataclasses.asdict(recipe).items() if value != math.inf
        },
        "before": before,
        "cpu": cpu_name(),
    }

    def on_eval(gpt: GPT, outcome: EvalResult) -> None:
        if outcome.best:
            _save(gpt, outcome, base, out, study, source, lora, recipe)

    outcome = loop(gpt, data, recipe, run, processes, on_eval=on_eval)
    after: dict[str, float] = {}
    if processes.is_main:
        settle(out, generation=_generation(study, recipe), licence=licence)
        best = load_adapter(out, base) if lora else load_model(out)
        after = _judged(best, True, study, data, recipe, processes)
        note("; ".join(f"{name} {before[name]:.4g} -> {after[name]:.4g}" for name in after))
    return Result(before, after, outcome)


def _in_epochs(
    recipe: Recipe, epochs: float | None, n_rows: int, set_by_hand: Collection[str]
) -> Recipe:
    """The recipe with as many steps as the epochs have, a warm-up of at most a tenth, and at least four evaluations."""
    steps = (
        recipe.steps
        if epochs is None
        else math.ceil(epochs * steps_per_epoch(n_rows, recipe.batch_size))
    )
    fitted = {
        "warmup": min(recipe.warmup, steps // 10),
        "eval_every": max(1, min(recipe.eval_every, math.ceil(steps / 4))),
    }
    kept = {name: value for name, value in fitted.items() if name not in set_by_hand}
    return dataclasses.replace(recipe, steps=max(steps, 1), **kept)


def _model(base: Path, task: Task, recipe: Recipe, lora: Lora | None) -> GPT:
    """The base with the recipe's dropout, with a new head where the task has one, with LoRA where it is asked for."""
    if unknown := sorted(set(recipe.model) - {"dropout"}):
        raise UsageError(
            f"the base decides the model's {', '.join(unknown)}: only model.dropout can be set"
        )
    loaded, config = load_model(base), load_config(base)
    n_class = len(task.labels) if task.head else 0
    torch.manual_seed(recipe.seed)
    if config.n_class and not n_class:
        raise UsageError(
            f"{base} has a classification head in place of a language model's: fine-tune it with --task classify --head"
        )
    gpt = GPT(dataclasses.replace(config, n_class=n_class, **recipe.model))
    weights = {
        name: value
        for name, value in loaded.state_dict().items()
        if not (n_class and name.startswith("head."))
    }
    gpt.load_state_dict(weights, strict=not n_class)
    return add_lora(gpt, lora, read_family(base)) if lora else gpt


def _judged(
    gpt: GPT,
    trained: bool,
    study: FinetuneDataset,
    data: TrainingData,
    recipe: Recipe,
    processes: Processes,
) -> dict[str, float]:
    """The task's own figures; of all but a head also the perplexity of what is to be answered."""
    alone = Processes(processes.device)
    figures = (
        {}
        if study.task.head
        else {
            "perplexity": perplexity(
                evaluate(Objective(gpt.to(processes.device), masked=True), data, recipe, alone)
            )
        }
    )
    figures |= study.judge(gpt.cpu(), trained)
    return figures


def _generation(study: FinetuneDataset, recipe: Recipe) -> dict[str, Any]:
    """generation_config.json of the output."""
    generation = study.setup.generation | recipe.generation
    if study.eos_token_id:
        generation["eos_token_id"] = (
            study.eos_token_id if len(study.eos_token_id) > 1 else study.eos_token_id[0]
        )
    return generation


def _save(
    gpt: GPT,
    outcome: EvalResult,
    base: Path,
    out: Path,
    study: FinetuneDataset,
    source: dict[str, Any],
    lora: Lora | None,
    recipe: Recipe,
) -> None:
    source = {**source, "training": dataclasses.asdict(outcome)}
    generation = _generation(study, recipe)
    with new_folder(out, force=True) as folder:
        if lora:
            save_adapter(gpt, folder, lora, base=base, source=source, generation=generation)
        else:
            head = (
                Head(study.task.labels, pad=generation.get("pad_token_id"))
                if study.task.head
                else None
            )
            save_checkpoint(
                gpt, folder, tokenizer_files=None, source=source, generation=generation, head=head
            )
        study.setup.write(folder)
        write_json(folder / TASK_FILE, task_json(study.task))
        write_recipe(recipe, folder / RECIPE)
        for name in (METRICS, PICTURE):
            shutil.copyfile(run_folder(out) / name, folder / name)
