"""Logits processors: functions that change the logits of a row before a token is sampled.

They are penalties, biases, bans and forced tokens. Each is a function of the logits float32 (V,),
which it changes in place, and of the row's tokens so far, int64 (T,): the prompt and what was
sampled after it. They keep no state, so copies of a sampler share them. `processors` chooses them
once, before the loop. This file knows no text.

Their order and meaning are those of transformers' logits processors (version 4.57,
_get_logits_processor). presence_penalty, frequency_penalty and DRY stand behind repetition_penalty,
as in llama.cpp (common_params_sampling, common.h).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gptx.generation.dry import dry
from gptx.generation.option_kinds import LARGEST_CHANGE, Biases, TokenIds
from gptx.generation.options import Options
from gptx.generation.repeated_tokens import places_behind
from gptx.softmax import exp, log

Processor = Callable[[np.ndarray, np.ndarray], None]


def processors(
    options: Options,
    *,
    prompt: Sequence[int],
    end_tokens: Iterable[int],
    max_length: int | None,
    n_logits: int,
) -> list[Processor]:
    """The logits processors that the options ask for, in the order in which they run.

    prompt: the tokens in front of the new text. end_tokens: the tokens that end the text.
    max_length: the length of prompt and text together at which the text ends; None without a limit.
    n_logits: the number of logits.
    """
    rules, start = options.rules, len(prompt)
    ends = _valid(end_tokens, n_logits)
    chosen: list[Processor | None] = [
        _biases(tuple(((token,), bias) for token, bias in options.logit_bias), n_logits),
        _biases(options.sequence_bias, n_logits),
        _penalty_on_prompt(prompt, rules.encoder_repetition_penalty, n_logits),
        _penalty_on_all(options.repetition_penalty),
        _penalty_on_counts(options.presence_penalty, options.frequency_penalty, start),
        dry(options, n_logits),
        _no_repeat(options.no_repeat_ngram_size),
        _no_repeat(rules.encoder_no_repeat_ngram_size, within=prompt),
        _biases(_bans(options.bad_words_ids, ends), n_logits),
        _no_end_before(rules.min_length, ends),
        _no_end_before(start + options.min_new_tokens if options.min_new_tokens else 0, ends),
        _force_bos(options.forced_bos_token_id),
        _force_eos(options.forced_eos_token_id, max_length),
        _decay(options.exponential_decay_length_penalty, start, ends),
        _suppress(_valid(options.suppress_tokens, n_logits)),
        _suppress(
            _valid(options.begin_suppress_tokens, n_logits), at=_first_free_length(options, start)
        ),
    ]
    return [processor for processor in chosen if processor is not None]


def penalize(logits: np.ndarray, seen: np.ndarray, penalty: float) -> None:
    """Make the tokens in `seen` less likely, in place.

    Each token is penalized once, however often it is in `seen` (Keskar et al. 2019,
    https://arxiv.org/abs/1909.05858).
    """
    penalty = min(max(penalty, 1 / LARGEST_CHANGE), LARGEST_CHANGE)
    values = logits[seen]
    logits[seen] = np.where(values < 0, values * penalty, values / penalty)


def _valid(ids: Iterable[int], n_logits: int) -> np.ndarray:
    """The ids that have a logit, sorted, each once: int64 (n,)."""
    return np.array(sorted({token for token in ids if 0 <= token < n_logits}), np.int64)


def _penalty_on_all(penalty: float) -> Processor | None:
    """repetition_penalty: penalize every token of prompt and text."""
    if penalty == 1:
        return None

    def process(logits: np.ndarray, tokens: np.ndarray) -> None:
        penalize(logits, tokens[tokens < len(logits)], penalty)

    return process


def _penalty_on_prompt(prompt: Sequence[int], penalty: float, n_logits: int) -> Processor | None:
    """encoder_repetition_penalty: above 1, tokens of the prompt become likelier.

    The field is meant for encoder-decoder models. For others, transformers takes the prompt for the
    encoder's input.
    """
    if penalty == 1:
        return None
    ids = _valid(prompt, n_logits)
    inverse = 1 / min(max(penalty, 1 / LARGEST_CHANGE), LARGEST_CHANGE)

    def process(logits: np.ndarray, _: np.ndarray) -> None:
        penalize(logits, ids, inverse)

    return process


def _penalty_on_counts(presence: float, frequency: float, start: int) -> Processor | None:
    """presence_penalty and frequency_penalty, over the tokens after the first `start`.

    logit - presence - frequency * count, for each token that was generated `count` times. (OpenAI,
    https://platform.openai.com/docs/guides/text-generation, frequency and presence penalties.)
    """
    if presence == 0 and frequency == 0:
        return None

    def process(logits: np.ndarray, tokens: np.ndarray) -> None:
        new = tokens[start:]
        new = new[new < len(logits)]
        # A token that occurs twice in `new` is changed once: numpy computes all values first.
        logits[new] -= presence + frequency * np.bincount(new)[new]

    return process


def _no_repeat(size: int, within: Sequence[int] | None = None) -> Processor | None:
    """Ban the tokens that would complete a sequence of `size` tokens that occurred before.

    within: where the sequence must have occurred; None: anywhere in prompt and text.
    """
    if size == 0:
        return None
    fixed = None if within is None else np.array(within, np.int64)

    def process(logits: np.ndarray, tokens: np.ndarray) -> None:
        if len(tokens) < size - 1:
            return
        followers = tokens if fixed is None else fixed
        if size > 1:
            places = itertools.islice(places_behind(followers, tokens), size - 2, None)
            followers = followers[next(places, np.empty(0, np.int64))]
        logits[followers[followers < len(logits)]] = -np.inf

    return process


def _bans(words: Sequence[TokenIds], ends: np.ndarray) -> Biases:
    """bad_words_ids as biases. A token that ends the text is not banned, as in transformers."""
    alone = {(int(end),) for end in ends}
    return tuple((word, -np.inf) for word in words if word not in alone)


def _biases(biases: Biases, n_logits: int) -> Processor | None:
    """Add a bias to the last token of a sequence if the row ends in the tokens before it.

    biases: (sequence of tokens, bias) pairs.
    """
    if not biases:
        return None
    single: dict[int, float] = {}
    longer: list[tuple[np.ndarray, int, float]] = []
    for word, bias in biases:
        bias = bias if bias == -np.inf else min(max(bias, -LARGEST_CHANGE), LARGEST_CHANGE)
        if word[-1] >= n_logits:  # an id of a padded vocabulary, which is never sampled
            continue
        if len(word) == 1:
            single[word[0]] = bias
        else:
            longer.append((np.array(word[:-1], np.int64), word[-1], bias))
    ids, values = np.array(list(single), np.int64), np.array(list(single.values()), np.float32)

    def process(logits: np.ndarray, tokens: np.ndarray) -> None:
        logits[ids] += values
        for before, token, bias in longer:
            if len(before) < len(tokens) and np.array_equal(tokens[-len(before) :], before):
                logits[token] += bias

    return process


def _no_end_before(length: int, ends: np.ndarray) -> Processor | None:
    """Ban the end tokens while prompt and text together are shorter than `length`."""
    if length == 0:
        return None

    def process(logits: np.ndarray, tokens: np.ndarray) -> None:
        if len(tokens) < length:
            logits[ends] = -np.inf

    return process


def _force_bos(token: int | None) -> Processor | None:
    """Force this token behind a prompt of one token, as transformers does."""
    return None if token is None else _force_at(1, (token,))


def _force_eos(ids: TokenIds, max_length: int | None) -> Processor | None:
    """Force one of these tokens as the last one before the limit."""
    return _force_at(max_length - 1, ids) if ids and max_length is not None else None


def _force_at(length: int, ids: TokenIds) -> Processor:
    """Allow only `ids` as the token behind the first `length` tokens of prompt and text."""

    def process(logits: np.ndarray, tokens: np.ndarray) -> None:
        if len(tokens) == length:
            logits.fill(-np.inf)
            logits[list(ids)] = 0

    return process


def _decay(penalty: tuple[int, float] | None, start: int, ends: np.ndarray) -> Processor | None:
    """exponential_decay_length_penalty (start, factor): make the end tokens likelier and likelier.

    From `start` new tokens on, their logits grow by |logit| * (factor ** steps - 1).
    """
    if penalty is None:
        return None
    after, log_factor = penalty[0], float(log(penalty[1]))

    def process(logits: np.ndarray, tokens: np.ndarray) -> None:
        steps = len(tokens) - start - after
        if steps > 0:
            ids = ends[np.isfinite(logits[ends])]  # a banned token stays banned
            grown = min(float(exp(steps * log_factor)), LARGEST_CHANGE)
            logits[ids] += np.abs(logits[ids]) * np.float32(grown - 1)

    return process


def _first_free_length(options: Options, start: int) -> int:
    """The length of prompt and text when the first token that is not forced is sampled."""
    return start + 1 if options.forced_bos_token_id is not None and start == 1 else start


def _suppress(ids: np.ndarray, at: int | None = None) -> Processor | None:
    """Ban tokens: at every length (None), or only if prompt and text have the length `at`."""
    if not len(ids):
        return None

    def process(logits: np.ndarray, tokens: np.ndarray) -> None:
        if at is None or len(tokens) == at:
            logits[ids] = -np.inf

    return process
