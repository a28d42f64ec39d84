"""The distribution that a token is drawn from equals transformers', whatever the options.

The reference are the logits processors that transformers' generate makes of the same fields, run in
float64 on the same logits.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gptx.errors import UsageError
from gptx.generation.resolve_options import resolve
from gptx.generation.sampling import Sampler

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPT, NEW, ENDS = [5, 3, 9, 3, 9, 2], [3, 9, 5, 3], [0, 7]
SIZE, LIMIT = 40, 12  # logits; the most new tokens


@pytest.fixture(scope="module")
def model() -> Any:
    """A model whose weights do not matter."""
    shape = transformers.LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    return transformers.LlamaForCausalLM(shape)


def reference(
    model: Any, fields: dict[str, Any], logits: np.ndarray, prompt: list[int], new: list[int]
) -> np.ndarray:
    """Probabilities (V,) of transformers; NaN where it fails.

    It fails where all tokens are banned, and where exponential_decay_length_penalty changes a
    banned token.
    """
    config = transformers.GenerationConfig(
        **{"do_sample": True, "top_k": 0, "eos_token_id": ENDS, "pad_token_id": 0, **fields}
    )
    model._prepare_special_tokens(config, kwargs_has_attention_mask=True, device="cpu")
    config.max_length = len(prompt) + LIMIT
    processors = model._get_logits_processor(
        config, input_ids_seq_length=len(prompt), encoder_input_ids=torch.tensor([prompt])
    )
    ids, scores = torch.tensor([prompt + new]), torch.from_numpy(logits)[None].double()
    for process in processors:
        scores = process(ids, scores)
        if scores.isnan().any() or not scores.isfinite().any():
            return np.full(len(logits), np.nan)
    return scores.softmax(-1)[0].numpy()


def distribution(
    options: Any, logits: np.ndarray, prompt: list[int], new: list[int], keep: int = 1
) -> np.ndarray:
    """Probabilities (V,) of gptx."""
    sampler = Sampler(
        options,
        prompt=prompt,
        end_tokens=ENDS,
        seed=1,
        n_logits=len(logits),
        max_length=len(prompt) + LIMIT,
        min_tokens_to_keep=keep,
    )
    for token in new:
        sampler.append(token)
    ids, weights = sampler.candidates(sampler.process(logits.copy()))
    probabilities = np.zeros(len(logits))
    probabilities[slice(None) if ids is None else ids] = weights / weights.sum(dtype=np.float64)
    return probabilities


def logits_of(seed: int, size: int = SIZE, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=size) * spread).astype(np.float32)


# One option each, with values that change something behind PROMPT + NEW
ALONE: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 1.7},
    {"top_k": 3},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"typical_p": 0.3},
    {"epsilon_cutoff": 0.05},
    {"eta_cutoff": 0.3},
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.6},
    {"encoder_repetition_penalty": 1.4},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"no_repeat_ngram_size": 99},
    {"encoder_no_repeat_ngram_size": 2},
    {"bad_words_ids": [[4], [5, 3, 8], [0], [3, 1], [7, 9]]},
    {"sequence_bias": {(4,): -2.5, (3, 6): 4.0, (5, 3, 6): -1.0, (8, 1): 9.0}},
    {"suppress_tokens": [1, 2, 30]},
    {"begin_suppress_tokens": [1, 2]},
    {"min_length": 30},
    {"min_new_tokens": 6},
    {"exponential_decay_length_penalty": (1, 1.5)},
    {"forced_eos_token_id": [7, 1]},
    {"forced_bos_token_id": 6},
]


@pytest.mark.parametrize("fields", ALONE, ids=str)
def test_each_option_alone(model: Any, fields: dict[str, Any]) -> None:
    for seed in range(5):
        logits = logits_of(seed)
        for prompt, new in ((PROMPT, NEW), (PROMPT, []), ([5], []), (PROMPT, NEW + [4] * 7)):
            expected = reference(model, fields, logits, prompt, new)
            options = resolve({}, {"do_sample": True, "top_k": 0, **fields}, max_new_tokens=None)
            found = distribution(options, logits, prompt, new)
            np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "fields", [one for one in ALONE if not {"min_length"} & one.keys()][1:], ids=str
)
def test_a_call_may_give_the_same(fields: dict[str, Any]) -> None:
    """The call's value is stored as the file's, and is used in place of another one in the file."""
    if any(name.startswith("encoder_") for name in fields):
        with pytest.raises(UsageError, match="unknown option encoder_"):
            resolve({"temperature": 1, **fields}, {}, max_new_tokens=None)
        return
    given = {"temperature": 1, "seed": 0, **fields}
    of_file = {"do_sample": True, "top_k": 0, **fields}
    assert resolve(given, {}, max_new_tokens=None) == resolve(
        {"seed": 0}, of_file, max_new_tokens=None
    )
    name = next(iter(fields))
    other = {"do_sample": True, "top_k": 0, name: "wrong"}
    assert resolve(given, other, max_new_tokens=None) == resolve(given, {}, max_new_tokens=None)


TOKEN = st.integers(1, SIZE - 1)
WORD = st.lists(st.integers(0, 9), min_size=1, max_size=3)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from([0.1, 0.7, 1.0, 2.5]),
    "top_k": st.integers(0, 50),
    "top_p": st.sampled_from([0.0, 0.05, 0.5, 0.9, 0.99, 1.0]),
    "min_p": st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    "typical_p": st.sampled_from([0.05, 0.4, 0.9]),
    "epsilon_cutoff": st.sampled_from([1e-4, 0.02, 0.3]),
    "eta_cutoff": st.sampled_from([1e-4, 0.02, 0.3]),
    "repetition_penalty": st.sampled_from([0.7, 1.2, 5.0]),
    "encoder_repetition_penalty": st.sampled_from([0.7, 1.2]),
    "no_repeat_ngram_size": st.integers(0, 4),
    "encoder_no_repeat_ngram_size": st.integers(0, 3),
    "bad_words_ids": st.lists(WORD, min_size=1, max_size=4),
    "sequence_bias": st.dictionaries(
        WORD.map(tuple), st.floats(-9, 9, width=32), min_size=1, max_size=4
    ),
    "suppress_tokens": st.lists(TOKEN, max_size=4),
    "begin_suppress_tokens": st.lists(TOKEN, max_size=4),
    "min_length": st.integers(0, 20),
    "min_new_tokens": st.integers(0, 9),
    "exponential_decay_length_penalty": st.tuples(st.integers(-1, 5), st.floats(0.5, 1.5)),
    # Several would be equally likely, and top_p would keep any of them.
    "forced_eos_token_id": st.lists(st.integers(0, 9), min_size=1, max_size=1),
    "forced_bos_token_id": TOKEN,
}


@settings(deadline=None, max_examples=300)
@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.3, 2.0, 9.0]),
    size=st.sampled_from([SIZE, 300, 5000]),
    prompt=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    new=st.lists(st.integers(0, 9), max_size=LIMIT - 1),
    fields=st.fixed_dictionaries({}, optional=FIELDS),
    beams=st.sampled_from([1, 1, 2]),
)
def test_random_combinations(
    model: Any,
    seed: int,
    spread: float,
    size: int,
    prompt: list[int],
    new: list[int],
    fields: dict[str, Any],
    beams: int,
) -> None:
    logits = logits_of(seed, size, spread)
    fields = dict(fields)
    if fields.get("min_p") == 0:
        del fields["min_p"]
    theirs = {**fields, "num_beams": beams}
    if "min_new_tokens" in fields:
        theirs["min_length"] = 0  # generate leaves it out, see _prepare_generated_length
    expected = reference(model, theirs, logits, prompt, new)
    assume(np.isfinite(expected).all())
    options = resolve({}, {"do_sample": True, "top_k": 0, **fields}, max_new_tokens=None)
    keep = len(ENDS) + 1 if beams > 1 else 1
    found = distribution(options, logits, prompt, new, keep)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_large_vocabulary(model: Any) -> None:
    for seed, spread in ((0, 0.1), (1, 2.0), (2, 6.0)):
        logits = logits_of(seed, 49_152, spread)
        for fields in (
            {"top_p": 0.9, "temperature": 0.7},
            {"top_p": 0.999},
            {"top_k": 50, "top_p": 0.9},
            {"top_k": 2000, "typical_p": 0.5},
            {"min_p": 0.01},
            {"eta_cutoff": 0.001},
        ):
            expected = reference(model, fields, logits, PROMPT, NEW)
            options = resolve({}, {"do_sample": True, "top_k": 0, **fields}, max_new_tokens=None)
            found = distribution(options, logits, PROMPT, NEW)
            np.testing.assert_allclose(found, expected, atol=1e-6)


# What transformers does not have


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([1, 2, 40, 300]),
    share=st.sampled_from([0.05, 0.4, 0.8, 1.0]),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_top_h(seed: int, size: int, share: float, temperature: float) -> None:
    """The formula is transformers 5's (TopHLogitsWarper); version 4 does not have it."""
    logits = logits_of(seed, size)
    top, ids = torch.topk(torch.from_numpy(logits).double() / temperature, min(size, 100))
    among = torch.distributions.Categorical(logits=top)
    terms = torch.cumsum(-among.probs * among.probs.log(), dim=0)
    kept = terms <= terms[-1] * share  # terms[-1]: the entropy
    kept[0] = True
    expected = np.zeros(size)
    expected[ids[kept].numpy()] = top[kept].softmax(0).numpy()
    options = resolve(
        {"temperature": temperature, "top_h": share, "seed": 1}, {}, max_new_tokens=None
    )
    np.testing.assert_allclose(distribution(options, logits, [], []), expected, atol=1e-6)


def test_presence_and_frequency_penalties() -> None:
    """OpenAI's formula: logit - count * frequency - (count > 0) * presence, of generated tokens."""
    logits = logits_of(3)
    options = resolve(
        {"temperature": 1, "presence_penalty": 0.7, "frequency_penalty": 0.3},
        {},
        max_new_tokens=None,
    )
    new = [3, 9, 5, 3, 3, SIZE + 4]  # the last one is an id without a logit
    counts = np.bincount(new, minlength=SIZE)[:SIZE]
    changed = logits.astype(np.float64) - counts * 0.3 - (counts > 0) * 0.7
    expected = np.exp(changed) / np.exp(changed).sum()
    np.testing.assert_allclose(distribution(options, logits, PROMPT, new), expected, atol=1e-6)
    plain = resolve({"temperature": 1}, {}, max_new_tokens=None)
    np.testing.assert_array_equal(
        distribution(options, logits, PROMPT, []), distribution(plain, logits, PROMPT, [])
    )


def test_logit_bias() -> None:
    """It is added to the logits, also to those that sequence_bias changes."""
    logits = logits_of(4)
    given = {"temperature": 1, "logit_bias": {3: 1.5, "4": -2, 6: -float("inf")}}
    options = resolve({**given, "sequence_bias": [([3], 1.0)]}, {}, max_new_tokens=None)
    changed = logits.astype(np.float64)
    changed[[3, 4, 6]] += [2.5, -2, -np.inf]
    expected = np.exp(changed) / np.exp(changed).sum()
    np.testing.assert_allclose(distribution(options, logits, PROMPT, NEW), expected, atol=1e-6)


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([1, 2, 40, 3000]),
    values=st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.sampled_from([1e-300, 0.5, 1e300]),
            "top_k": st.integers(0, 5),
            "top_p": st.sampled_from([0.0, 0.5]),
            "typical_p": st.sampled_from([1e-300, 0.5]),
            "epsilon_cutoff": st.sampled_from([1e-300, 0.99]),
            "eta_cutoff": st.sampled_from([1e-300, 0.99]),
            "top_h": st.sampled_from([1e-300, 0.5, 1.0]),
            "top_n_sigma": st.sampled_from([1e-300, 1.0, 1e308]),
            "xtc_probability": st.sampled_from([0.5, 1.0]),
            "xtc_threshold": st.sampled_from([0.0, 0.1, 1.0]),
            "repetition_penalty": st.sampled_from([5e-324, 1e308]),
            "presence_penalty": st.sampled_from([-2, 2]),
            "frequency_penalty": st.sampled_from([-2, 2]),
            "dry_multiplier": st.sampled_from([5e-324, 1.0, 1e308]),
            "dry_base": st.sampled_from([1.0, 1.0000001, 1e308]),
            "dry_allowed_length": st.sampled_from([1, 2, 10**30]),
            "no_repeat_ngram_size": st.sampled_from([3, 10**30]),
            "logit_bias": st.sampled_from([{0: 1e308}, {0: -1e308}, {0: -float("inf")}]),
            "exponential_decay_length_penalty": st.sampled_from([(-(10**30), 0.5), (0, 1e308)]),
            "bad_words_ids": st.sampled_from([[[0]], [[0] * 99]]),
        },
    ),
)
def test_values_near_the_ends(seed: int, size: int, values: dict[str, Any]) -> None:
    """Any combination gives a distribution, without a warning."""
    options = resolve({"temperature": 1.0, "seed": 1, **values}, {}, max_new_tokens=None)
    if size < 3 and {"bad_words_ids", "logit_bias", "no_repeat_ngram_size"} & values.keys():
        return  # all tokens may be banned
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = distribution(options, logits_of(seed, size), [0, 1, 0, 1, 0], [1, 0])
    assert np.isfinite(found).all() and abs(found.sum() - 1) < 1e-6
