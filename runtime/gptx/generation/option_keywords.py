"""The options as keywords of a call, for type checkers, help() and interactive completion."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict, TypeVar

import numpy as np


class Given(TypedDict, total=False):
    """The options as keywords, for type checkers. None means not given."""

    max_new_tokens: int | None
    min_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    top_h: float | None
    top_n_sigma: float | None
    xtc_probability: float | None
    xtc_threshold: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    no_repeat_ngram_size: int | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_sequence_breakers: str | Sequence[str | Sequence[int]] | None
    logit_bias: Mapping[int, float] | None
    sequence_bias: Sequence[tuple[Sequence[int], float]] | None
    bad_words_ids: Sequence[Sequence[int]] | None
    suppress_tokens: Sequence[int] | None
    begin_suppress_tokens: Sequence[int] | None
    forced_bos_token_id: int | None
    forced_eos_token_id: int | Sequence[int] | None
    exponential_decay_length_penalty: tuple[int, float] | None
    guidance_scale: float | None
    num_beams: int | None
    length_penalty: float | None
    early_stopping: bool | Literal["never"] | None
    num_return_sequences: int | None
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
    prompt_logprobs: bool | None
    negative_prompt: str | Sequence[int] | None
    response_format: Any
    json_schema: Any
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
