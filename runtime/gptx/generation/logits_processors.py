"""What changes a row's logits before a token is picked: penalties, bans and forced tokens, by Options.

Each processor is a function of the logits (V,), which it changes in place, and of the row's tokens so far: the prompt and
what was picked. `processors` chooses them once, before the loop. Their order and meaning are those of Hugging Face's
logits processors (transformers 4.57, _get_logits_processor). Knows nothing of text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gptx.generation.generation_config import Rules
from gptx.generation.options import Options

Processor = Callable[[np.ndarray, Sequence[int]], None]

LARGEST = 1e20  # of a factor or bias: the logit stays a finite float32, also divided by the smallest temperature


def processors(
    options: Options, *, prompt: Sequence[int], ends: Iterable[int], last: int | None, n_logits: int
) -> list[Processor]:
    """`ends`: the tokens that end the text. `last`: the length of prompt and text at which the text ends, where a limit
    of tokens is set. `n_logits`: how many logits there are."""
    rules, start = options.rules, len(prompt)
    ends = _array(ends, n_logits)
    chosen: list[Processor | None] = [
        _biases(rules.sequence_bias, n_logits),
        _penalty_on_prompt(prompt, rules.encoder_repetition_penalty),
        _penalty_on_all(options.repetition_penalty),
        _no_repeat(rules.no_repeat_ngram_size),
        _no_repeat(rules.encoder_no_repeat_ngram_size, within=prompt),
        _biases(_bans(rules, ends), n_logits),
        _not_before(rules.min_length, ends),
        _not_before(start + options.min_new_tokens if options.min_new_tokens else 0, ends),
        _forced(
            1 if rules.forced_bos_token_id is not None else None, (rules.forced_bos_token_id or 0,)
        ),
        _forced(
            last - 1 if last is not None and rules.forced_eos_token_id else None,
            rules.forced_eos_token_id,
        ),
        _decay(rules, start, ends),
        _suppress(_array(rules.suppress_tokens, n_logits)),
        _suppress(_array(rules.begin_suppress_tokens, n_logits), at=_begin(rules, start)),
    ]
    return [processor for processor in chosen if processor is not None]


def penalize(logits: np.ndarray, seen: np.ndarray, penalty: float) -> None:
    """Make the tokens in `seen` less likely, in place, each once however often it occurred (Keskar et al. 2019)."""
    penalty = min(max(penalty, 1 / LARGEST), LARGEST)
    values = logits[seen]
    logits[seen] = np.where(values < 0, values * penalty, values / penalty)


def _array(ids: Iterable[int], n_logits: int) -> np.ndarray:
    """Those of the ids that have a logit."""
    return np.array(sorted({token for token in ids if 0 <= token < n_logits}), np.int64)


def _penalty_on_all(penalty: float) -> Processor | None:
    if penalty == 1:
        return None
    seen: set[int] = set()
    counted = 0

    def process(logits: np.ndarray, tokens: Sequence[int]) -> None:
        nonlocal counted
        seen.update(tokens[counted:])
        counted = len(tokens)
        ids = np.fromiter(seen, np.int64, len(seen))
        penalize(logits, ids[ids < len(logits)], penalty)

    return process


def _penalty_on_prompt(prompt: Sequence[int], penalty: float) -> Processor | None:
    """Of encoder-decoder models, really: transformers takes the prompt for the encoder's input. Over 1, what is in the
    prompt becomes likelier."""
    if penalty == 1:
        return None

    def process(logits: np.ndarray, _: Sequence[int]) -> None:
        penalize(logits, _array(prompt, len(logits)), 1 / min(max(penalty, 1 / LARGEST), LARGEST))

    return process


def _no_repeat(size: int, within: Sequence[int] | None = None) -> Processor | None:
    """Ban the token that would complete a sequence of `size` tokens which occurred before (or occurs in `within`)."""
    if size == 0:
        return None
    followed: dict[
        tuple[int, ...], set[int]
    ] = {}  # the first tokens of each sequence: the last ones
    read = 0  # tokens whose sequences are noted

    def note(tokens: Sequence[int]) -> None:
        nonlocal read
        for end in range(max(read + 1, size), len(tokens) + 1):
            followed.setdefault(tuple(tokens[end - size : end - 1]), set()).add(tokens[end - 1])
        read = len(tokens)

    if within is not None:
        note(within)

    def process(logits: np.ndarray, tokens: Sequence[int]) -> None:
        if within is None:
            note(tokens)
        if len(tokens) >= size - 1:
            banned = followed.get(tuple(tokens[len(tokens) - size + 1 :]), ())
            logits[_array(banned, len(logits))] = -np.inf

    return process


def _bans(rules: Rules, ends: np.ndarray) -> list[tuple[tuple[int, ...], float]]:
    """A ban of a token that ends the text does not hold, as in transformers."""
    alone = {(int(end),) for end in ends}
    return [(word, -np.inf) for word in rules.bad_words_ids if word not in alone]


def _biases(biases: Sequence[tuple[tuple[int, ...], float]], n_logits: int) -> Processor | None:
    """Add to the logit of each sequence's last token where the tokens before it are the sequence's first ones."""
    if not biases:
        return None
    single = np.zeros(n_logits, np.float32)
    longer = []
    for word, bias in biases:
        bias = bias if bias == -np.inf else min(max(bias, -LARGEST), LARGEST)
        if word[-1] >= n_logits:  # an empty id of a padded vocabulary, which is never picked
            continue
        if len(word) == 1:
            single[word[0]] = bias
        else:
            longer.append((list(word[:-1]), word[-1], bias))

    def process(logits: np.ndarray, tokens: Sequence[int]) -> None:
        total = single.copy() if longer else single
        for before, token, bias in longer:
            if len(before) < len(tokens) and list(tokens[len(tokens) - len(before) :]) == before:
                total[token] += bias
        logits += total

    return process


def _not_before(length: int, ends: np.ndarray) -> Processor | None:
    """Ban the ends while prompt and text are shorter than `length`."""
    if length == 0:
        return None

    def process(logits: np.ndarray, tokens: Sequence[int]) -> None:
        if len(tokens) < length:
            logits[ends] = -np.inf

    return process


def _forced(length: int | None, ids: tuple[int, ...]) -> Processor | None:
    """Leave nothing but `ids` where prompt and text have this length."""
    if length is None:
        return None

    def process(logits: np.ndarray, tokens: Sequence[int]) -> None:
        if len(tokens) == length:
            logits.fill(-np.inf)
            logits[list(ids)] = 0

    return process


def _decay(rules: Rules, start: int, ends: np.ndarray) -> Processor | None:
    """Raise (a factor over 1) the logits of the ends more and more, from some number of new tokens on."""
    if rules.exponential_decay_length_penalty is None:
        return None
    after, factor = rules.exponential_decay_length_penalty

    def process(logits: np.ndarray, tokens: Sequence[int]) -> None:
        steps = len(tokens) - start - after
        if steps > 0:
            ids = ends[np.isfinite(logits[ends])]  # a banned end stays banned
            with np.errstate(over="ignore"):
                grown = min(float(np.power(np.float64(factor), steps)), LARGEST)
            logits[ids] += np.abs(logits[ids]) * np.float32(grown - 1)

    return process


def _begin(rules: Rules, start: int) -> int:
    """The length at which the first token that is not forced is picked."""
    return start + 1 if rules.forced_bos_token_id is not None and start == 1 else start


def _suppress(ids: np.ndarray, at: int | None = None) -> Processor | None:
    """Ban tokens, always or only where prompt and text have the length `at`."""
    if not len(ids):
        return None

    def process(logits: np.ndarray, tokens: Sequence[int]) -> None:
        if at is None or len(tokens) == at:
            logits[ids] = -np.inf

    return process
