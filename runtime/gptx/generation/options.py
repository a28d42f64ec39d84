"""The options of text generation, each written once: its default, its check and its help text.

The keywords of Model.generate, the options of `gptx run`, the checks of `resolve` and the table in
the documentation are all made from the fields of `Options`. A new option needs one field there, and
its name in `Given`, the TypedDict for type checkers.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypedDict, TypeVar

import numpy as np

from gptx.generation.generation_rules import LARGEST_FLOAT, NO_RULES, SMALLEST_FLOAT, Rules
from gptx.generation.option_kinds import TEXTS, TOKEN_IDS, Kind, number, whole_number

# The limit of Model.generate, Model.stream and gptx run, unless the call or generation_config.json
# sets one. It is the default of mlx-lm, too.
MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class OptionSpec:
    """How an option is checked, explained and spelled on the command line.

    kind: the type of its values, and the allowed range.
    help: one sentence for `gptx run --help` and the documentation.
    metavar: the placeholder for its value in `gptx run --help`.
    letter: its short flag, for instance "-n".
    sampling_only: the option has no effect in greedy decoding.
    on_command_line: False for options that only Python has.
    """

    kind: Kind
    help: str
    metavar: str
    letter: str | None = None
    sampling_only: bool = False
    on_command_line: bool = True


def _option(default: Any, kind: Kind, help: str, metavar: str, **more: Any) -> Any:
    return field(default=default, metadata={"option": OptionSpec(kind, help, metavar, **more)})


@dataclass(frozen=True)
class Options:
    """The checked options of one call of generate or stream.

    The defaults decode greedily until the model ends the text or its context is full.
    """

    max_new_tokens: int | None = _option(
        None,
        whole_number("1 or more", lowest=1),
        "Stop after N new tokens.",
        "N",
        letter="-n",
    )
    min_new_tokens: int = _option(
        0,
        whole_number("0 or more", lowest=0),
        "Generate at least N tokens before the model may end the text.",
        "N",
    )
    temperature: float = _option(
        0.0,
        number("0 (greedy) or more", lowest=0, highest=LARGEST_FLOAT),
        "0: always take the likeliest token. Above 0: draw at random; higher is more varied.",
        "T",
    )
    top_k: int = _option(
        0,
        whole_number("0 (off) or more", lowest=0),
        "Draw only from the K likeliest tokens (0: from all).",
        "K",
        sampling_only=True,
    )
    top_p: float = _option(
        1.0,
        number("0 to 1", lowest=0, highest=1),
        "Draw only from the likeliest tokens whose probabilities add up to P (1: from all).",
        "P",
        sampling_only=True,
    )
    min_p: float = _option(
        0.0,
        number("0 to 1", lowest=0, highest=1),
        "Leave out tokens less likely than P times the likeliest (0: none).",
        "P",
        sampling_only=True,
    )
    repetition_penalty: float = _option(
        1.0,
        number("over 0 (1 is none)", lowest=SMALLEST_FLOAT, highest=LARGEST_FLOAT),
        "Above 1: make tokens that occurred before less likely (1: off).",
        "R",
    )
    seed: int | None = _option(
        None,
        # 128 bits are the state of numpy's PCG64 generator
        whole_number("0 to 2**128 - 1", lowest=0, highest=2**128 - 1),
        "Seed of the random draws: the same seed gives the same text (default: a random one).",
        "N",
        sampling_only=True,
    )
    stop: tuple[str, ...] = _option(
        (),
        TEXTS,
        r"End the text before TEXT. \n, \t, \r and \\ are escapes. Repeatable.",
        "TEXT",
    )
    stop_tokens: tuple[int, ...] = _option(
        (),
        TOKEN_IDS,
        "End the text at one of these token ids, in addition to the model's own end tokens.",
        "IDS",
        on_command_line=False,
    )
    # Not options of a call: only generation_config.json can set them.
    rules: Rules = NO_RULES


SPECS: dict[str, OptionSpec] = {
    one.name: one.metadata["option"] for one in fields(Options) if "option" in one.metadata
}
DEFAULTS: dict[str, Any] = {one.name: one.default for one in fields(Options) if one.name in SPECS}


def flags(name: str) -> list[str]:
    """The command-line flags of an option: ["-n", "--max-new-tokens"]."""
    letter = SPECS[name].letter
    return [*([letter] if letter else []), f"--{name.replace('_', '-')}"]


class Given(TypedDict, total=False):
    """The options as keywords, for type checkers. None means not given."""

    max_new_tokens: int | None
    min_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_tokens: Sequence[int] | None


class Keywords(Given, total=False):
    """All keywords of a call that generates text: the options, and those of gptx.engine.control."""

    max_time: float | None
    cancel: threading.Event | None
    overflow: Literal["stop", "slide"] | None
    logprobs: bool | None
    top_logprobs: int | None
    logits_processor: Callable[[list[int], np.ndarray], np.ndarray | None] | None
    on_token: Callable[[int, str], object] | None


Function = TypeVar("Function", bound=Callable[..., Any])


def takes_options(function: Function) -> Function:
    """Show each option as a keyword in the signature of a function that takes `**options`.

    Without this decorator, help() and interactive completion would show `**options` alone.
    """
    signature = inspect.signature(function)
    own = list(signature.parameters.values())[:-1]
    options = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint.__forward_arg__
        )
        for name, hint in Keywords.__annotations__.items()
    ]
    signed: Any = function
    signed.__signature__ = signature.replace(parameters=own + options)
    return function
