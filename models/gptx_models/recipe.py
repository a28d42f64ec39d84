"""Recipe: how a model is trained, read from TOML. What a step does with it, `train` knows."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from gptx.errors import UsageError
from gptx_models.config import GPTConfig


@dataclass(frozen=True)
class Recipe:
    """The settings of a run. `model` holds GPTConfig's fields but vocab_size, which the tokenizer decides."""

    model: dict[str, Any]
    steps: int
    vocab_size: int = 4096  # of the tokenizer that is trained where none is given
    prose: bool = False  # clean books into paragraphs a line each; else the text is taken as it stands
    batch_size: int = 16  # rows of n_ctx tokens
    learning_rate: float = 1e-3
    warmup: int = 100  # steps
    weight_decay: float = 0.1
    clip: float = 1.0  # largest norm of the gradient
    bf16: bool = True
    seed: int = 1
    eval_every: int = 250  # steps; a checkpoint is written each time
    minutes: float = math.inf  # stop after so long; the schedule then ends with the time
    generation: dict[str, Any] = field(default_factory=dict)  # generation_config.json of the checkpoint

    def config(self, vocab_size: int) -> GPTConfig:
        """The model's shape. UsageError names the fields that make none."""
        try:
            return GPTConfig.from_dict({**self.model, "vocab_size": vocab_size})
        except (TypeError, ValueError) as error:
            raise UsageError(f"the recipe's [model] is none: {error}") from error


def read_recipe(name: str, changes: list[str] | tuple[str, ...] = ()) -> Recipe:
    """A recipe that ships with gptx, by name, or a TOML file; `changes` are lines of TOML laid over it
    ("steps=500", "model.n_layer=6"). UsageError names what is wrong with it."""
    shipped = recipe_names()
    file = resources.files("gptx_models.recipes").joinpath(f"{name}.toml") if name in shipped else Path(name)
    try:
        values = _parse(file.read_text("utf-8"), f"the recipe {name}")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"no recipe {name}: give a TOML file, or one of {', '.join(shipped)}") from error
    for change in changes:
        values = _laid_over(values, _parse(change, f"--set {change}"))
    known = {f.name for f in fields(Recipe)}
    problems = [f"unknown: {key}" for key in sorted(set(values) - known)]
    problems += [f"missing: {key}" for key in ("model", "steps") if key not in values]
    for key in ("model", "generation"):
        if not isinstance(values.get(key, {}), dict):
            problems.append(f"{key} is {values[key]!r}, expected a table")
    for key in ("steps", "batch_size", "eval_every", "vocab_size"):
        value = values.get(key, 1)
        if not isinstance(value, int) or value < 1:
            problems.append(f"{key} is {value!r}, expected a positive integer")
    if problems:
        raise UsageError(f"the recipe {name}: {'; '.join(problems)} (known settings: {', '.join(sorted(known))})")
    return Recipe(**values)


def recipe_names() -> list[str]:
    folder = resources.files("gptx_models.recipes")
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def _parse(text: str, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{what} is not TOML: {error}") from error


def _laid_over(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {key: _laid_over(values[key], new) for key, new in changes.items() if _are_tables(values.get(key), new)}
    return {**values, **changes, **both}


def _are_tables(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)
