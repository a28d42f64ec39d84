"""Logits processors: functions that change the logits of a row before a token is sampled.

They are penalties, biases, bans and forced tokens. Each is a function of the logits float32 (V,),
which it changes in place, and of the row's tokens so far, int64 (T,): the prompt and what was
sampled after it. They keep no state, so copies of a sampler share them. `processors` chooses them
once, before the loop. Their order and meaning are those of transformers' logits processors (version
4.57, _get_logits_processor). This file knows no text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gptx.generation.generation_rules import Rules
from gptx.generation.options import Options

Processor = Callable[[np.ndarray, np.ndarray], None]

# Factors and biases are limited to this, so that a logit stays a finite float32, even divided by
# the lowest temperature.
LARGEST = 1e20


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
        _biases(rules.sequence_bias, n_logits),
        _penalty_on_prompt(prompt, rules.encoder_repetition_penalty, n_logits),
        _penalty_on_all(options.repetition_penalty),
        _no_repeat(rules.no_repeat_ngram_size),
        _no_repeat(rules.encoder_no_repeat_ngram_size, within=prompt),
        _biases(_bans(rules, ends), n_logits),
        _no_end_before(rules.min_length, ends),
        _no_end_before(start + options.min_new_tokens if options.min_new_tokens else 0, ends),
        _force_bos(rules.forced_bos_token_id),
        _force_eos(rules.forced_eos_token_id, max_length),
        _decay(rules, start, ends),
        _suppress(_valid(rules.suppress_tokens, n_logits)),
        _suppress(
            _valid(rules.begin_suppress_tokens, n_logits), at=_first_free_length(rules, start)
        ),
    ]
    return [processor for processor in chosen if processor is not None]


def penalize(logits: np.ndarray, seen: np.ndarray, penalty: float) -> None:
    """Make the tokens in `seen` less likely, in place.

    Each token is penalized once, however often it is in `seen` (Keskar et al. 2019,
    https://arxiv.org/abs/1909.05858).
    """
    penalty = min(max(penalty, 1 / LARGEST), LARGEST)
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
    inverse = 1 / min(max(penalty, 1 / LARGEST), LARGEST)

    def process(logits: np.ndarray, _: np.ndarray) -> None:
        penalize(logits, ids, inverse)

    return process


def _no_repeat(size: int, within: Sequence[int] | None = None) -> Processor | None:
    """Ban the tokens that would complete a sequence of `size` tokens that occurred before.

    within: where the sequence must have occurred; None: anywhere in prompt and text.
    """
    if size == 0:
        return None
    fixed = None if within is None else np.array(within, np.int64)

    def process(logits: np.ndarray, tokens: np.ndarray) -> None:
        if len(tokens) >= size - 1:
            followers = _followers(tokens if fixed is None else fixed, tokens, size - 1)
            logits[followers[followers < len(logits)]] = -np.inf

    return process


def _followers(text: np.ndarray, tokens: np.ndarray, n: int) -> np.ndarray:
    """The tokens in `text` that stand behind the same n tokens in which `tokens` ends."""
    if len(text) <= n:
        return text[:0]
    places = np.arange(n, len(text))
    for back in range(1, n + 1):
        places = places[text[places - back] == tokens[-back]]
        if not len(places):
            break
    return text[places]


def _bans(rules: Rules, ends: np.ndarray) -> list[tuple[tuple[int, ...], float]]:
    """bad_words_ids as biases. A token that ends the text is not banned, as in transformers."""
    alone = {(int(end),) for end in ends}
    return [(word, -np.inf) for word in rules.bad_words_ids if word not in alone]


def _biases(biases: Sequence[tuple[tuple[int, ...], float]], n_logits: int) -> Processor | None:
    """Add a bias to the last token of a sequence if the row ends in the tokens before it.

    biases: (sequence of tokens, bias) pairs.
    """
    if not biases:
        return None
    single: dict[int, float] = {}
    longer: list[tuple[np.ndarray, int, float]] = []
    for word, bias in biases:
        bias = bias if bias == -np.inf else min(max(bias, -LARGEST), LARGEST)
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


def _force_eos(ids: tuple[int, ...], max_length: int | None) -> Processor | None:
    """Force one of these tokens as the last one before the limit."""
    return _force_at(max_length - 1, ids) if ids and max_length is not None else None


def _force_at(length: int, ids: tuple[int, ...]) -> Processor:
    """Allow only `ids` as the token behind the first `length` tokens of prompt and text."""

    def process(logits: np.ndarray, tokens: np.ndarray) -> None:
        if len(tokens) == length:
            logits.fill(-np.inf)
            logits[list(ids)] = 0

    return process


def _decay(rules: Rules, start: int, ends: np.ndarray) -> Processor | None:
    """exponential_decay_length_penalty (start, factor): make the end tokens likelier and likelier.

    From `start` new tokens on, their logits grow by |logit| * (factor ** steps - 1).
    """
    if rules.exponential_decay_length_penalty is None:
        return None
    after, factor = rules.exponential_decay_length_penalty

    def process(logits: np.ndarray, tokens: np.ndarray) -> None:
        steps = len(tokens) - start - after
        if steps > 0:
            ids = ends[np.isfinite(logits[ends])]  # a banned token stays banned
            with np.errstate(over="ignore"):
                grown = min(float(np.power(np.float64(factor), steps)), LARGEST)
            logits[ids] += np.abs(logits[ids]) * np.float32(grown - 1)

    return process


def _first_free_length(rules: Rules, start: int) -> int:
    """The length of prompt and text when the first token that is not forced is sampled."""
    return start + 1 if rules.forced_bos_token_id is not None and start == 1 else start


def _suppress(ids: np.ndarray, at: int | None = None) -> Processor | None:
    """Ban tokens: at every length (None), or only if prompt and text have the length `at`."""
    if not len(ids):
        return None

    def process(logits: np.ndarray, tokens: np.ndarray) -> None:
        if at is None or len(tokens) == at:
            logits[ids] = -np.inf

    return process
