"""Recipe: how a model is trained, read from TOML and written beside what it made. What a step does, `loop` knows."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from gptx.errors import UsageError, shown
from gptx.generation.generation_config import FIELDS
from gptx.generation.resolve_options import FROM_FILE, resolve
from gptx_models.gpt.config import GPTConfig

OptimizerKind = Literal["adamw", "muon"]
Schedule = Literal["cosine", "wsd", "constant"]
Precision = Literal["fp32", "bf16", "fp16"]


Allowed = tuple[Callable[[Any], bool], str]  # whether a number may be this, and which numbers may

# Bounds above, too: Python's integers have any size, and what they are given to takes 63 bits or a float
_COUNT: Allowed = (lambda value: 1 <= value < 2**63, "a positive integer below 2**63")
_COUNT_OR_NONE: Allowed = (lambda value: 0 <= value < 2**63, "an integer of 0 or more, below 2**63")
_ROWS: Allowed = (lambda value: 1 <= value <= 2**24, "a positive integer of at most 2**24")
_VOCABULARY: Allowed = (
    lambda value: 257 <= value <= 2**24,
    "an integer of 257 or more, at most 2**24",
)
_SEED: Allowed = (lambda value: 0 <= value < 2**32, "an integer from 0 to 2**32 - 1")
_FINITE: Allowed = (lambda value: 0 <= value <= 1e300, "a number of 0 or more, at most 1e300")
_LIMIT: Allowed = (
    lambda value: 0 < value <= 1e300 or value == math.inf,
    "a number over 0 (inf: no limit)",
)
_SHARE: Allowed = (lambda value: 0 <= value <= 1, "a number from 0 to 1")
_MOMENTUM: Allowed = (lambda value: 0 <= value < 1, "a number from 0 to 1, 1 excluded")


def _says(help: str, default: Any, allowed: Allowed | None = None) -> Any:
    """A setting with what `gptx train --help` says of it and, if it is a number, its allowed values."""
    return field(default=default, metadata={"help": help, "allowed": allowed})


@dataclass(frozen=True)
class Recipe:
    """The settings of a run. `model` holds GPTConfig's fields but vocab_size, which the tokenizer decides."""

    model: dict[str, Any]
    steps: int = field(metadata={"help": "Updates of the weights.", "allowed": _COUNT})
    vocab_size: int = _says(
        "Size of the byte-level BPE that is trained where no tokenizer is given.", 4096, _VOCABULARY
    )
    prose: bool = _says(
        "Clean books into paragraphs of a line each; else the text is taken as it stands.", False
    )
    batch_size: int = _says("Rows of n_ctx tokens in a step, over all processes.", 16, _ROWS)
    accumulate: int = _says(
        "Pieces that a step's batch is computed in: the same result in less memory.", 1, _COUNT
    )
    optimizer: OptimizerKind = _says(
        "Muon updates the blocks' matrices, AdamW the rest; or AdamW everything.", "adamw"
    )
    learning_rate: float = _says("Largest learning rate.", 1e-3, _FINITE)
    schedule: Schedule = _says(
        "After the warm-up: cosine, warm-up-stable-decay, or constant.", "cosine"
    )
    warmup: int = _says("Steps in which the learning rate rises.", 100, _COUNT_OR_NONE)
    decay: float = _says("Share of the run, at its end, in which wsd decays.", 0.2, _SHARE)
    floor: float = _says("What the schedule ends at, as a share of learning_rate.", 0.1, _SHARE)
    weight_decay: float = _says("Of matrices; gains and biases have none.", 0.1, _FINITE)
    beta1: float = _says("AdamW's first momentum.", 0.9, _MOMENTUM)
    beta2: float = _says("AdamW's second momentum.", 0.95, _MOMENTUM)
    clip: float = _says("Largest norm of the gradient.", 1.0, _LIMIT)
    precision: Precision = _says(
        "What matrices are multiplied in (autocast); weights and optimizer are fp32.", "bf16"
    )
    compile: bool = _says(
        "torch.compile, where there is a C++ compiler: pays in runs of ten minutes or more.", False
    )
    seed: int = _says("Of the weights, the places in the text and dropout.", 1, _SEED)
    eval_every: int = _says(
        "Steps from one evaluation, and state on disk, to the next.", 250, _COUNT
    )
    eval_tokens: int = _says(
        "Tokens of the validation text that are evaluated; 0: all.", 0, _COUNT_OR_NONE
    )
    patience: int = _says(
        "Stop after so many evaluations without a better one; 0: never.", 0, _COUNT_OR_NONE
    )
    sample: str = _says("Prompt of the sample that each evaluation prints.", "")
    minutes: float = _says(
        "Stop after so long; the schedule then ends with the time.", math.inf, _LIMIT
    )
    generation: dict[str, Any] = field(
        default_factory=dict
    )  # generation_config.json of the checkpoint

    def config(self, vocab_size: int) -> GPTConfig:
        """The model's shape. UsageError names the fields that make none."""
        try:
            return GPTConfig.from_dict({**self.model, "vocab_size": vocab_size})
        except (TypeError, ValueError) as error:
            raise UsageError(f"the recipe's [model] makes no model: {error}") from error


def settings() -> dict[str, tuple[type | tuple[str, ...], str]]:
    """The settings that are one value: name -> (its type, or the words it may be; what it means)."""
    hints = get_type_hints(Recipe)
    return {
        f.name: (
            get_args(hints[f.name]) if get_origin(hints[f.name]) is Literal else hints[f.name],
            f.metadata["help"],
        )
        for f in dataclasses.fields(Recipe)
        if "help" in f.metadata
    }


def read_recipe(
    name: str,
    changes: Sequence[str] = (),
    values: dict[str, Any] | None = None,
    *,
    defaults: dict[str, Any] | None = None,
) -> Recipe:
    """A recipe that ships with gptx, by name, or a TOML file; `changes` are lines laid over it ("steps=500",
    "model.n_layer=6"), and `values` the same as a table. UsageError names what is wrong with it.

    defaults: settings and whole tables that take the place of a shipped recipe's, and that a user's own file goes before.
    """
    shipped = recipe_names()
    file = (
        resources.files("gptx_models.recipes").joinpath(f"{name}.toml")
        if name in shipped
        else Path(name)
    )
    try:
        read = _parse(file.read_text("utf-8"), f"the recipe {name}")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"no recipe {name}: give a TOML file, or one of {', '.join(shipped)}"
        ) from error
    read = {**read, **(defaults or {})} if name in shipped else _laid_over(defaults or {}, read)
    read = _laid_over(read, changed(changes, values))
    if problems := list(_problems(read)):
        raise UsageError(f"the recipe {name}: {'; '.join(problems)}")
    return Recipe(**read)


def changed(changes: Sequence[str], values: dict[str, Any] | None = None) -> dict[str, Any]:
    """What `changes` and `values` set, as a table. Raises UsageError, also where they set one thing to two values."""
    table: dict[str, Any] = {}
    for change in changes:
        table = _laid_over(table, _change(change))
    for name, value in (values or {}).items():
        if name in table and table[name] != value:
            option = f"--{name.replace('_', '-')} {value}"
            raise UsageError(
                f"--set {name}={table[name]} and {option} are two values: leave one of them out"
            )
    return _laid_over(table, values or {})


def write_recipe(recipe: Recipe, file: Path) -> None:
    """As TOML that read_recipe reads."""
    values = dataclasses.asdict(recipe)
    tables = {name: values.pop(name) for name in ("model", "generation")}
    lines = [f"{name} = {_toml(value)}" for name, value in values.items()]
    for name, table in tables.items():
        lines += [
            "",
            f"[{name}]",
            *(f"{key} = {_toml(value)}" for key, value in table.items() if value is not None),
        ]
    file.write_text("\n".join(lines) + "\n", "utf-8")


def recipe_names() -> list[str]:
    folder = resources.files("gptx_models.recipes")
    return sorted(
        file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml")
    )


def _problems(values: dict[str, Any]) -> Iterator[str]:
    known = {f.name for f in dataclasses.fields(Recipe)}
    if unknown := sorted(set(values) - known):
        yield f"unknown: {', '.join(unknown)} (known settings: {', '.join(sorted(known))})"
    yield from (f"missing: {key}" for key in ("model", "steps") if key not in values)
    for key in ("model", "generation"):
        if not isinstance(values.get(key, {}), dict):
            yield f"{key} is {shown(values[key])}, expected a table"
        elif _not_json(values.get(key, {})):
            yield f"[{key}] holds what JSON cannot hold: {_not_json(values[key])}"
        elif key == "generation":
            yield from _problems_of_generation(values.get(key, {}))
    allowed = {f.name: f.metadata["allowed"] for f in dataclasses.fields(Recipe) if f.metadata}
    for key, (kind, _) in settings().items():
        if key not in values:
            continue
        value = values[key]
        if isinstance(kind, tuple):
            if value not in kind:
                yield f"{key} is {shown(value)}, expected one of {', '.join(kind)}"
        elif kind is float or kind is int:
            number = isinstance(value, int if kind is int else (int, float)) and not isinstance(
                value, bool
            )
            may_be, expected = allowed[key]
            if not number or not may_be(value):
                yield f"{key} is {shown(value)}, expected {expected}"
        elif not isinstance(value, kind):
            yield f"{key} is {shown(value)}, expected {'true or false' if kind is bool else 'a text'}"


def _not_json(table: dict[str, Any]) -> str | None:
    """Why a table cannot be written into a JSON file; None where it can. TOML has dates, and inf."""
    try:
        json.dumps(table, allow_nan=False)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def _problems_of_generation(generation: dict[str, Any]) -> Iterator[str]:
    """Fields that no generation_config.json has, and values that gptx would refuse when the model is run."""
    if unknown := sorted(set(generation) - set(FIELDS)):
        yield f"{', '.join(f'generation.{name}' for name in unknown)}: no such field in generation_config.json"
    try:
        resolve({}, generation, max_new_tokens=1)
    except UsageError as error:
        yield f"[generation]: {str(error).replace(FROM_FILE, '')}"


def _toml(value: Any) -> str:
    if value == math.inf:
        return "inf"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _parse(text: str, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:  # also a number of thousands of digits
        raise UsageError(f"{what} is not TOML: {error}") from error
    except RecursionError:
        raise UsageError(f"{what} is not TOML that can be read: brackets nest too deep") from None


def _change(text: str) -> dict[str, Any]:
    """NAME=VALUE as a table. A value that is no TOML is a word, a text or a number as people type them."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not value or value[0] in "[{\"'" or not re.fullmatch(r"\w+(\.\w+)*", name):
            raise UsageError(
                f"--set {text} is not NAME=VALUE, such as model.n_layer=6 or model.norm=rmsnorm"
            ) from None
        table: Any = _typed(name, value)
        for part in reversed(name.split(".")):
            table = {part: table}
        return table


def _typed(name: str, value: str) -> Any:
    """True, .5 and the none of a setting that may have no value, which TOML does not know; any other value is a text."""
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    if value.lower() == "none" and name in _MAY_BE_NONE:
        return None
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value


_MAY_BE_NONE = ("model.window", "model.rope_scaling")


def _laid_over(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _laid_over(values[key], new)
        for key, new in changes.items()
        if _are_tables(values.get(key), new)
    }
    return {**values, **changes, **both}


def _are_tables(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)
