"""Recipe: the settings of a training run, read from TOML and written beside the checkpoint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from gptx.errors import UsageError
from gptx_models.gpt.config import GPTConfig
from gptx_models.training.recipe_checks import recipe_problems
from gptx_models.training.recipe_toml import merge_tables, parse_change, parse_toml, to_toml

OptimizerKind = Literal["adamw", "muon"]
Schedule = Literal["cosine", "wsd", "constant"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

# True for an allowed number, and a description of the allowed numbers for messages.
Allowed = tuple[Callable[[Any], bool], str]

# Upper bounds are needed: a Python integer has any size, but the code that receives the setting
# stores it in 63 bits or in a float.
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


def _setting(help: str, default: Any, allowed: Allowed | None = None) -> Any:
    """A field with its help text for `gptx train --help` and, for a number, its allowed values."""
    return field(default=default, metadata={"help": help, "allowed": allowed})


@dataclass(frozen=True)
class Recipe:
    """The settings of a run.

    model: fields of GPTConfig except vocab_size, which the tokenizer decides. generation: fields of
    the checkpoint's generation_config.json.
    """

    model: dict[str, Any]
    steps: int = field(metadata={"help": "Updates of the weights.", "allowed": _COUNT})
    vocab_size: int = _setting(
        "Size of the byte-level BPE that is trained if no tokenizer is given.", 4096, _VOCABULARY
    )
    prose: bool = _setting("Clean books: a line per paragraph, without headings and notes.", False)
    batch_size: int = _setting("Rows of n_ctx tokens in a step, over all processes.", 16, _ROWS)
    accumulate: int = _setting(
        "Pieces in which a batch is computed: less memory, the same result.", 1, _COUNT
    )
    optimizer: OptimizerKind = _setting(
        "adamw for all weights, or muon for the matrices in the blocks and AdamW for the rest.",
        "adamw",
    )
    learning_rate: float = _setting("Highest learning rate.", 1e-3, _FINITE)
    schedule: Schedule = _setting(
        "Learning rate after the warm-up: cosine, wsd (warm-up, stable, decay) or constant.",
        "cosine",
    )
    warmup: int = _setting("Steps in which the learning rate rises.", 100, _COUNT_OR_NONE)
    decay: float = _setting("wsd: last share of the run, in which the rate falls.", 0.2, _SHARE)
    floor: float = _setting("Lowest learning rate, as a share of learning_rate.", 0.1, _SHARE)
    weight_decay: float = _setting("Decay of matrices; gains and biases have none.", 0.1, _FINITE)
    beta1: float = _setting("AdamW's beta1.", 0.9, _MOMENTUM)
    beta2: float = _setting("AdamW's beta2.", 0.95, _MOMENTUM)
    clip: float = _setting("Largest norm of the gradient; a larger one is clipped.", 1.0, _LIMIT)
    precision: Precision = _setting(
        "Precision of matrix products (autocast); weights and optimizer stay fp32. auto: bf16 where"
        " the CPU or GPU has instructions for it, else fp32.",
        "auto",
    )
    compile: bool = _setting(
        "Use torch.compile if there is a C++ compiler: pays in runs of ten minutes or more.", False
    )
    seed: int = _setting("Seed of the weights, the batches and dropout.", 1, _SEED)
    eval_every: int = _setting(
        "Steps from one evaluation and saved state to the next.", 250, _COUNT
    )
    eval_tokens: int = _setting(
        "Tokens of the validation text in an evaluation; 0: all.", 0, _COUNT_OR_NONE
    )
    patience: int = _setting(
        "Stop after so many evaluations without a better one; 0: never.", 0, _COUNT_OR_NONE
    )
    sample: str = _setting("Prompt of a sample that each evaluation prints.", "")
    minutes: float = _setting(
        "Stop after so many minutes; the schedule ends with them.", math.inf, _LIMIT
    )
    generation: dict[str, Any] = field(default_factory=dict)

    def config(self, vocab_size: int) -> GPTConfig:
        """The model's configuration. Raises UsageError, which names the fields that are wrong."""
        try:
            return GPTConfig.from_dict({**self.model, "vocab_size": vocab_size})
        except (TypeError, ValueError) as error:
            raise UsageError(f"the recipe's [model] makes no model: {error}") from error


def settings() -> dict[str, tuple[type | tuple[str, ...], str]]:
    """The settings that are not tables: name -> (type or words to choose from, help)."""
    hints = get_type_hints(Recipe)
    return {
        f.name: (
            get_args(hints[f.name]) if get_origin(hints[f.name]) is Literal else hints[f.name],
            f.metadata["help"],
        )
        for f in dataclasses.fields(Recipe)
        if "help" in f.metadata
    }


def recipe_names() -> list[str]:
    """The recipes that are shipped with gptx."""
    folder = resources.files("gptx_models.recipes")
    return sorted(
        file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml")
    )


def read_recipe(
    name: str,
    changes: Sequence[str] = (),
    values: dict[str, Any] | None = None,
    *,
    defaults: dict[str, Any] | None = None,
) -> Recipe:
    """A shipped recipe, by name, or a TOML file, with changes.

    changes: texts such as "steps=500" and "model.n_layer=6". values: changes as a table.
    defaults: settings and tables that replace those of a shipped recipe; those of the user's own
    file replace them.

    Raises UsageError, which names every setting that is wrong.
    """
    shipped = recipe_names()
    table = _read_table(name, shipped)
    defaults = defaults or {}
    table = {**table, **defaults} if name in shipped else merge_tables(defaults, table)
    table = merge_tables(table, changed(changes, values))
    if problems := list(recipe_problems(table, dataclasses.fields(Recipe), settings())):
        raise UsageError(f"the recipe {name}: {'; '.join(problems)}")
    return Recipe(**table)


def _read_table(name: str, shipped: Sequence[str]) -> dict[str, Any]:
    file = Path(name)
    if name in shipped:
        file = resources.files("gptx_models.recipes").joinpath(f"{name}.toml")
    try:
        return parse_toml(file.read_text("utf-8"), f"the recipe {name}")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"no recipe {name}: give a TOML file, or one of {', '.join(shipped)}"
        ) from error


def changed(changes: Sequence[str], values: dict[str, Any] | None = None) -> dict[str, Any]:
    """The changes as a table (see read_recipe).

    Raises UsageError if a text is not NAME=VALUE, or if a setting is given two values.
    """
    table: dict[str, Any] = {}
    for change in changes:
        table = merge_tables(table, parse_change(change))
    for name, value in (values or {}).items():
        if name in table and table[name] != value:
            option = f"--{name.replace('_', '-')} {value}"
            raise UsageError(
                f"--set {name}={table[name]} and {option} are two values: leave one of them out"
            )
    return merge_tables(table, values or {})


def write_recipe(recipe: Recipe, file: Path) -> None:
    """Write the recipe as TOML that read_recipe reads."""
    values = dataclasses.asdict(recipe)
    tables = {name: values.pop(name) for name in ("model", "generation")}
    file.write_text(to_toml(values, tables), "utf-8")


def recipe_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe for gptx_source.json, without limits of infinity, which JSON does not have."""
    values = dataclasses.asdict(recipe)
    return {name: value for name, value in values.items() if value != math.inf}
