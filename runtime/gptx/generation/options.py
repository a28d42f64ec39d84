"""The options of a generation, each written once: its default, its check, its help text.

The keywords of Model.generate, the options of `gptx run`, the checks and the documentation's table
all come from the fields of `Options`. A new option is one field there, and its name in `Given`,
which is for type checkers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict, TypeVar

from gptx.generation.generation_config import NO_RULES, Rules
from gptx.generation.option_kinds import TEXTS, TOKEN_IDS, Kind, number, whole_number

MAX_NEW_TOKENS = 256  # of generate and gptx run, if neither the call nor the artifact says
LARGEST_FLOAT = 1.7e308
SMALLEST_FLOAT = 5e-324


@dataclass(frozen=True)
class OptionSpec:
    """What is known of an option beside its name and default.

    `help` is one line for the command line and the documentation. `metavar` stands for the value
    there, and `letter` is its short flag. `draws_only` options change only how a token is drawn, so
    they do nothing in greedy decoding. Options that are not `on_command_line` are Python's only.
    """

    kind: Kind
    help: str
    metavar: str
    letter: str | None = None
    draws_only: bool = False
    on_command_line: bool = True


def _option(default: Any, kind: Kind, help: str, metavar: str, **more: Any) -> Any:
    return field(default=default, metadata={"option": OptionSpec(kind, help, metavar, **more)})


@dataclass(frozen=True)
class Options:
    """Options that were checked. The defaults are greedy decoding to the end of text or context."""

    max_new_tokens: int | None = _option(
        None,
        whole_number("1 or more", lowest=1),
        "Stop after so many tokens.",
        "N",
        letter="-n",
    )
    min_new_tokens: int = _option(
        0,
        whole_number("0 or more", lowest=0),
        "Do not end the text before so many tokens.",
        "N",
    )
    temperature: float = _option(
        0.0,
        number("0 (greedy) or more", lowest=0, highest=LARGEST_FLOAT),
        "0: always the likeliest token; 1: as the model says.",
        "T",
    )
    top_k: int = _option(
        0,
        whole_number("0 (off) or more", lowest=0),
        "Draw from the K likeliest tokens (0: from all).",
        "K",
        draws_only=True,
    )
    top_p: float = _option(
        1.0,
        number("0 to 1", lowest=0, highest=1),
        "Draw from the likeliest tokens that make up P (1: all).",
        "P",
        draws_only=True,
    )
    min_p: float = _option(
        0.0,
        number("0 to 1", lowest=0, highest=1),
        "Leave out tokens less likely than P times the likeliest.",
        "P",
        draws_only=True,
    )
    repetition_penalty: float = _option(
        1.0,
        number("over 0 (1 is none)", lowest=SMALLEST_FLOAT, highest=LARGEST_FLOAT),
        "Over 1: repeat less.",
        "R",
    )
    seed: int | None = _option(
        None,
        whole_number("0 to 2**128 - 1", lowest=0, highest=2**128 - 1),  # the generator's state
        "Draw the same text again; without it one is drawn and reported.",
        "N",
        draws_only=True,
    )
    stop: tuple[str, ...] = _option(
        (),
        TEXTS,
        r"End before this text; \n, \t, \r and \\ are read. Repeatable.",
        "TEXT",
    )
    stop_tokens: tuple[int, ...] = _option(
        (),
        TOKEN_IDS,
        "End after one of these token ids, beside the artifact's own.",
        "IDS",
        on_command_line=False,
    )
    rules: Rules = NO_RULES  # only generation_config.json can ask for these


SPECS: dict[str, OptionSpec] = {
    one.name: one.metadata["option"] for one in fields(Options) if "option" in one.metadata
}
DEFAULTS: dict[str, Any] = {one.name: one.default for one in fields(Options) if one.name in SPECS}


class Given(TypedDict, total=False):
    """The options as keywords of a call, for type checkers. None: not given."""

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


Function = TypeVar("Function", bound=Callable[..., Any])


def takes_options(function: Function) -> Function:
    """Show each option as a keyword in the signature of a function that takes `**options`.

    Without it, help() and interactive completion would show `**options` alone.
    """
    signature = inspect.signature(function)
    own = list(signature.parameters.values())[:-1]
    options = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint.__forward_arg__
        )
        for name, hint in Given.__annotations__.items()
    ]
    function.__signature__ = signature.replace(parameters=own + options)  # type: ignore[attr-defined]
    return function
