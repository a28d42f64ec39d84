"""What a call may say beside its options: when it ends early, and what an app hooks in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gptx.arguments import count
from gptx.engine.grammar import Grammar, read_grammar
from gptx.errors import UsageError, shown
from gptx.generation.option_kinds import is_number
from gptx.generation.prompt import Prompt

Overflow = Literal["stop", "slide"]
# (tokens of prompt and text so far, logits float32 (V,)) -> logits, or None: changed in place
LogitsProcessor = Callable[[list[int], np.ndarray], np.ndarray | None]
OnToken = Callable[[int, str], object]  # (new token, its text)


@dataclass(frozen=True)
class Control:
    """How one call is ended early, and its hooks.

    max_time: seconds after which the text ends, as in transformers. cancel: ends the text once it
    is set. overflow: what happens when the context is full. logprobs, top_logprobs: give the
    log-probabilities of new tokens, and of so many of the likeliest. prompt_logprobs: give those of
    the prompt's tokens, too. negative_prompt: what guidance_scale pushes the text away from; None:
    the prompt's last token. grammar: the text follows it, from response_format or json_schema.
    logits_processor: changes the logits before anything else does. on_token: gets each new token
    and the text that can be shown with it.
    """

    max_time: float | None = None
    cancel: threading.Event | None = None
    overflow: Overflow = "stop"
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: bool = False
    negative_prompt: Prompt | None = None
    grammar: Grammar | None = None
    logits_processor: LogitsProcessor | None = None
    on_token: OnToken | None = None


MOST_TOP = "1 to 1000"
NAMES = [name for name in Control.__dataclass_fields__ if name != "grammar"]
NAMES += ["response_format", "json_schema"]


def is_cancelled(cancel: threading.Event | None) -> Callable[[], bool] | None:
    """The function that says whether a call was cancelled. Raises UsageError if it is no Event."""
    if cancel is None:
        return None
    if isinstance(cancel, type) or not callable(getattr(cancel, "is_set", None)):
        raise UsageError(f"cancel is {shown(cancel)}, expected a threading.Event")
    return cancel.is_set


def control_of(
    given: Mapping[str, Any], generation: Mapping[str, Any]
) -> tuple[dict[str, Any], Control]:
    """A call's keywords, divided into options and Control.

    generation: the artifact's generation_config.json, whose max_time is the default. Raises
    UsageError for wrong values.
    """
    options = {name: value for name, value in given.items() if name not in NAMES}
    values = {name: given[name] for name in NAMES if given.get(name) is not None}
    values.setdefault("max_time", generation.get("max_time"))
    seconds, cancel = values["max_time"], values.get("cancel")
    if seconds is not None and not (is_number(seconds) and float(seconds) > 0):
        raise UsageError(f"max_time is {shown(seconds)}, expected seconds, over 0")
    values["max_time"] = None if seconds is None else float(seconds)
    is_cancelled(cancel)
    overflow = values.get("overflow", "stop")
    if not isinstance(overflow, str) or overflow not in ("stop", "slide"):
        raise UsageError(f"overflow is {shown(overflow)}, expected stop or slide")
    for name in ("logprobs", "prompt_logprobs"):
        if not isinstance(values.get(name, False), bool):
            raise UsageError(f"{name} is {shown(values[name])}, expected True or False")
    if "top_logprobs" in values:
        values["top_logprobs"] = count("top_logprobs", values["top_logprobs"], MOST_TOP, 1000)
        values["logprobs"] = True
    grammar = read_grammar(values.pop("response_format", None), values.pop("json_schema", None))
    for name in ("logits_processor", "on_token"):
        if name in values and not callable(values[name]):
            raise UsageError(f"{name} is {shown(values[name])}, expected a function")
    return options, Control(grammar=grammar, **values)
