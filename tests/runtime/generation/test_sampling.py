"""Sampling, compared with transformers' logits processors, which are an independent reference."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptx.errors import ArtifactError, UsageError
from gptx.generation.filters import candidates, kth_largest, nucleus, top_k
from gptx.generation.logits_processors import penalize
from gptx.generation.options import Options
from gptx.generation.resolve_options import resolve
from gptx.generation.sampling import Sampler, draw_index, greedy, uniforms

OPTIONS = Options()
KNOWN = 4  # the number of logits in tests of processors


def logits_of(seed: int, size: int, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=size) * spread).astype(np.float32)


def by_transformers(logits: np.ndarray, **options: float) -> np.ndarray:
    """Probabilities (V,) that transformers' generate would draw from."""
    import torch
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warpers = [TemperatureLogitsWarper(float(options.get("temperature", 1.0)))]
    if options.get("top_k"):
        warpers.append(TopKLogitsWarper(int(options["top_k"])))
    if options.get("top_p", 1) < 1:
        warpers.append(TopPLogitsWarper(options["top_p"]))
    if options.get("min_p"):
        warpers.append(MinPLogitsWarper(options["min_p"]))
    scores = torch.from_numpy(logits.copy())[
        None
    ].double()  # in float32 its own cumulative sums decide borderline ids
    for warper in warpers:
        scores = warper(None, scores)
    return scores.softmax(-1)[0].numpy()


def ours(logits: np.ndarray, **options: Any) -> np.ndarray:
    ids, weights = candidates(logits.copy(), Options(**{"temperature": 1.0, **options}))
    probabilities = np.zeros(len(logits))
    probabilities[slice(None) if ids is None else ids] = weights / weights.sum(dtype=np.float64)
    return probabilities


@pytest.mark.parametrize("size", [5, 300, 50257])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 2.5},
        {"top_k": 1},
        {"top_k": 40},
        {"top_k": 100_000},
        {"top_p": 0.9},
        {"top_p": 0.01},
        {"top_p": 0.999, "temperature": 1.5},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"top_p": 0.9, "min_p": 1.0},
        {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
        {"temperature": 1.3, "top_k": 200, "top_p": 0.7, "min_p": 0.1},
    ],
)
def test_as_transformers(size: int, options: dict) -> None:
    for seed in range(4):
        logits = logits_of(seed, size)
        np.testing.assert_allclose(
            ours(logits, **options), by_transformers(logits, **options), atol=1e-6
        )


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(2, 3000),
    spread=st.sampled_from([0.1, 2.0, 12.0]),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_k=st.integers(0, 400),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.5]),
)
def test_as_transformers_whatever_the_options(
    seed: int, size: int, spread: float, **options: float
) -> None:
    logits = logits_of(seed, size, spread)
    np.testing.assert_allclose(
        ours(logits, **options), by_transformers(logits, **options), atol=2e-5
    )


def test_ties_at_top_k_stay() -> None:
    logits = np.array([1, 3, 3, 3, 0], np.float32)
    ids, _ = candidates(logits, Options(temperature=1.0, top_k=2))
    assert ids is not None
    assert list(ids) == [1, 2, 3]


@pytest.mark.parametrize("size", [2, 5, 300])
def test_top_k_of_all_but_one_leaves_out_the_last(size: int) -> None:
    logits = logits_of(7, size)
    probabilities = ours(logits, top_k=size - 1)
    assert list(np.flatnonzero(probabilities == 0)) == [logits.argmin()]
    np.testing.assert_allclose(probabilities, by_transformers(logits, top_k=size - 1), atol=1e-6)


def test_penalty_as_transformers() -> None:
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, seen = logits_of(1, 500), [3, 7, 7, 499]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(
        torch.tensor([seen]), torch.from_numpy(logits.copy())[None]
    )
    penalize(logits, np.unique(seen), 1.3)
    np.testing.assert_allclose(logits, expected[0].numpy(), rtol=1e-6)


def test_penalty_knows_prompt_and_what_was_picked() -> None:
    sampler = Sampler(
        replace(OPTIONS, repetition_penalty=10.0),
        prompt=[0],
        end_tokens=[],
        seed=None,
        n_logits=KNOWN,
    )
    logits = np.array([9, 8, 7, 6], np.float32)
    assert [sampler.sample(logits.copy()) for _ in range(4)] == [1, 2, 3, 0]


def test_min_new_tokens_puts_the_end_off() -> None:
    sampler = Sampler(
        replace(OPTIONS, min_new_tokens=2), prompt=[], end_tokens=[0, 1], seed=None, n_logits=KNOWN
    )
    logits = np.array([9, 8, 7, 6], np.float32)
    assert [sampler.sample(logits.copy()) for _ in range(4)] == [2, 2, 0, 0]


def test_greedy_and_temperature_zero() -> None:
    logits = logits_of(5, 1000)
    assert greedy(logits) == logits.argmax()
    assert (
        Sampler(OPTIONS, prompt=[1], end_tokens=[], seed=None, n_logits=KNOWN).sample(logits)
        == logits.argmax()
    )


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1e-3])
def test_tiny_temperatures_are_greedy(temperature: float) -> None:
    logits = logits_of(5, 1000)
    sampler = Sampler(
        replace(OPTIONS, temperature=temperature), prompt=[], end_tokens=[], seed=1, n_logits=KNOWN
    )
    assert sampler.sample(logits.copy()) == logits.argmax()


@pytest.mark.parametrize("temperature", [1e-5, 1e-3])
def test_near_ties_at_small_temperatures(temperature: float) -> None:
    logits = np.array([0, temperature, -temperature], np.float32)
    np.testing.assert_allclose(
        ours(logits, temperature=temperature),
        by_transformers(logits, temperature=temperature),
        atol=1e-4,
    )


@pytest.mark.parametrize("size", [7, 5000])
def test_draws_follow_the_probabilities(size: int) -> None:
    """Chi-squared test over the 6 likeliest tokens and all others together."""
    logits = logits_of(2, size)
    sampler = Sampler(
        replace(OPTIONS, temperature=1.0), prompt=[], end_tokens=[], seed=11, n_logits=KNOWN
    )
    draws = np.array([sampler.sample(logits.copy()) for _ in range(4000)])
    expected = by_transformers(logits)
    top = np.argsort(-expected)[:6]
    probabilities = np.append(expected[top], max(1 - expected[top].sum(), 1e-9))
    counts = np.array([(draws == token).sum() for token in top])
    counts = np.append(counts, 4000 - counts.sum())
    assert ((counts - 4000 * probabilities) ** 2 / (4000 * probabilities)).sum() < 30


def test_seed_repeats() -> None:
    def draws(seed: int) -> list[int]:
        sampler = Sampler(
            replace(OPTIONS, temperature=1.0), prompt=[], end_tokens=[], seed=seed, n_logits=KNOWN
        )
        return [sampler.sample(logits_of(i, 200)) for i in range(30)]

    assert draws(1) == draws(1) != draws(2)


def test_a_draw_depends_on_the_seed_and_the_number_of_tokens_before() -> None:
    keys = [key.to_bytes(32, "little") for key in (1, 2)]
    pairs = [uniforms(key, count) for key in keys for count in range(500)]
    assert pairs == [uniforms(key, count) for key in keys for count in range(500)]
    numbers = [number for pair in pairs for number in pair]
    assert len(set(numbers)) == len(numbers) and min(numbers) >= 0 and max(numbers) < 1
    counts = np.histogram(numbers, bins=10, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 28  # chi-squared of 9: 1 in 1,000


def test_the_largest_seed() -> None:
    """Row i of a batch draws with seed + i."""
    options = resolve({"temperature": 1, "seed": 2**128 - 1}, {}, max_new_tokens=None)
    assert options.seed is not None
    sampler = Sampler(options, prompt=[], end_tokens=[], seed=options.seed + 9, n_logits=50)
    assert 0 <= sampler.sample(logits_of(0, 50)) < 50


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    before=st.integers(0, 40),
    after=st.integers(1, 40),
    prompt=st.lists(st.integers(0, 19), max_size=9),
    temperature=st.sampled_from([0.0, 0.7]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    ngram=st.sampled_from([0, 2, 3]),
)
def test_a_copy_samples_what_the_original_would(
    seed: int,
    before: int,
    after: int,
    prompt: list[int],
    temperature: float,
    repetition_penalty: float,
    ngram: int,
) -> None:
    options = Options(
        temperature=temperature,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=ngram,
        dry_multiplier=0.8 * (ngram == 3),
        frequency_penalty=0.3 * (ngram == 2),
        xtc_probability=0.5 * (ngram == 0),
    )

    def new() -> Sampler:
        return Sampler(options, prompt=prompt, end_tokens=[0], seed=seed, n_logits=20)

    def step(sampler: Sampler, at: int) -> int:
        return sampler.sample(logits_of(1000 * seed + at, 20))

    whole, part = new(), new()
    expected = [step(whole, at) for at in range(before + after)]
    for at in range(before):
        step(part, at)
    twin = part.copy()
    part.sample(np.zeros(20, np.float32))  # the copy does not see this
    assert [step(twin, at) for at in range(before, before + after)] == expected[before:]
    assert twin.tokens == whole.tokens == prompt + expected
    assert len(part.tokens) == len(prompt) + before + 1


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 9000),
    share=st.floats(0, 1, exclude_max=True),
)
def test_weighted_pick_is_the_inverse_of_the_cumulative_sum(
    seed: int, size: int, share: float
) -> None:
    weights = np.random.default_rng(seed).random(size).astype(np.float32) ** 8
    weights[1::3] = 0
    index = draw_index(weights, share)
    ends = np.cumsum(weights, dtype=np.float64) / weights.sum(dtype=np.float64)
    assert weights[index] > 0
    assert (ends[index - 1] if index else 0.0) - 1e-5 <= share <= ends[index] + 1e-5


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 5000), share=st.floats(0, 1))
def test_kth_largest(seed: int, size: int, share: float) -> None:
    values = np.round(logits_of(seed, size), 1)
    k = max(1, int(share * size))
    assert kth_largest(values, k) == np.sort(values)[-k]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 5000), k=st.integers(1, 5000))
def test_top_k_keeps_ties(seed: int, size: int, k: int) -> None:
    values = np.round(logits_of(seed, size), 1)
    least = np.sort(values)[-min(k, size)]
    assert top_k(values, k).tolist() == np.flatnonzero(values >= least).tolist()


def test_nucleus_never_is_empty() -> None:
    weights = np.array([0.1, 0.7, 0.2], np.float32)
    assert list(nucleus(weights, 1.0, 1e-9)) == [1]
    assert list(nucleus(weights, 1.0, 1e-9, keep=2)) == [1, 2]


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 3000),
    top_p=st.floats(0, 1, exclude_max=True),
    keep=st.integers(1, 5),
    values=st.sampled_from([2, 10, 10_000]),
)
def test_nucleus_of_equal_weights(
    seed: int, size: int, top_p: float, keep: int, values: int
) -> None:
    """The reference sorts all weights. Of equal ones, the first count as larger."""
    weights = np.random.default_rng(seed).integers(0, values, size).astype(np.float32)
    weights[seed % size] = values
    order = np.argsort(-weights, kind="stable")
    ends = np.cumsum(weights[order], dtype=np.float64)
    count = max(int((ends < top_p * ends[-1]).sum()) + 1, keep)
    found = nucleus(weights, float(ends[-1]), top_p, keep)
    assert found.tolist() == sorted(order[:count].tolist())


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers(value: float, temperature: float) -> None:
    logits = logits_of(0, 300)
    logits[4] = value
    sampler = Sampler(
        replace(OPTIONS, temperature=temperature), prompt=[], end_tokens=[], seed=1, n_logits=KNOWN
    )
    with pytest.raises(ArtifactError, match="not finite"):
        sampler.sample(logits)


def test_nothing_left_to_pick() -> None:
    sampler = Sampler(
        replace(OPTIONS, min_new_tokens=1),
        prompt=[],
        end_tokens=range(4),
        seed=None,
        n_logits=KNOWN,
    )
    with pytest.raises(
        UsageError, match="the options forbid every token: .* stop_tokens with min_new_tokens"
    ):
        sampler.sample(np.ones(4, np.float32))


# Options


def test_defaults_are_greedy() -> None:
    options = resolve({}, {}, max_new_tokens=256)
    assert options == replace(OPTIONS, max_new_tokens=256)


def test_call_beats_generation_config_beats_defaults() -> None:
    generation = {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 50,
        "top_p": None,
        "stop_strings": "END",
        "max_new_tokens": 9,
    }
    options = resolve({"top_k": 5, "top_p": None}, generation, max_new_tokens=256)
    assert (options.temperature, options.top_k, options.top_p, options.max_new_tokens) == (
        0.6,
        5,
        1.0,
        9,
    )
    assert options.stop == ("END",)
    assert options.seed is not None


def test_do_sample_false_is_greedy_unless_the_call_says_otherwise() -> None:
    generation = {"do_sample": False, "temperature": 0.6}
    assert resolve({}, generation, max_new_tokens=None).temperature == 0
    assert resolve({"temperature": 1}, generation, max_new_tokens=None).temperature == 1
    assert resolve({}, {"do_sample": True}, max_new_tokens=None).temperature == 1


def test_seed_is_drawn_and_kept() -> None:
    assert resolve({"temperature": 1, "seed": 7}, {}, max_new_tokens=None).seed == 7
    assert resolve({"seed": 7}, {}, max_new_tokens=None).seed is None
    seeds = {resolve({"temperature": 1}, {}, max_new_tokens=None).seed for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"temperature": -1}, "temperature is -1, expected 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_p": -0.1}, "top_p is -0.1, expected 0 to 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": -1}, "top_k is -1, expected 0"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"min_p": 2}, "min_p is 2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, expected 1 or more"),
        (
            {"max_new_tokens": 2, "min_new_tokens": 3},
            "min_new_tokens is 3, more than max_new_tokens 2",
        ),
        ({"typical_p": 0}, "typical_p is 0, expected over 0"),
        ({"epsilon_cutoff": 1}, "epsilon_cutoff is 1, expected 0"),
        ({"top_h": -0.1}, "top_h is -0.1"),
        ({"top_n_sigma": float("nan")}, "top_n_sigma is nan"),
        ({"xtc_probability": 2}, "xtc_probability is 2, expected 0"),
        ({"presence_penalty": 3}, "presence_penalty is 3, expected -2 to 2"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1"),
        ({"dry_base": 0.5}, "dry_base is 0.5, expected 1 or more"),
        ({"dry_allowed_length": 0}, "dry_allowed_length is 0, expected 1 or more"),
        ({"dry_sequence_breakers": [[]]}, "dry_sequence_breakers is .*, expected texts or lists"),
        ({"logit_bias": [3]}, "logit_bias is .*, expected token ids, each with a number"),
        ({"logit_bias": {-1: 2.0}}, "logit_bias is "),
        ({"logit_bias": {1: float("nan")}}, "logit_bias is "),
        ({"sequence_bias": [([], 2.0)]}, "sequence_bias is .*, expected a list of pairs"),
        ({"bad_words_ids": [[-1]]}, "bad_words_ids is .*, expected a list of lists"),
        ({"suppress_tokens": range(10**12)}, "suppress_tokens is "),
        ({"begin_suppress_tokens": 5}, "begin_suppress_tokens is 5, expected a list of token ids"),
        ({"forced_bos_token_id": -1}, "forced_bos_token_id is -1, expected a token id"),
        ({"forced_eos_token_id": [1.5]}, "forced_eos_token_id is "),
        ({"exponential_decay_length_penalty": 2}, "exponential_decay_length_penalty is 2"),
        ({"seed": -4}, "seed is -4"),
        ({"stop": ["a", ""]}, "stop is"),
        ({"stop_tokens": ["a"]}, "stop_tokens is"),
        ({"temprature": 1}, r"unknown option temprature; did you mean temperature\?$"),
        ({"zzz": 1}, "unknown option zzz; known are .*temperature"),
        ({"temperature": -1, "top_p": 7}, "temperature is -1.*; top_p is 7"),
    ],
)
def test_options_that_make_no_sense(given: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        resolve(given, {}, max_new_tokens=256)


def test_the_artifacts_own_mistake_is_named_as_such() -> None:
    with pytest.raises(UsageError, match="top_p is 3.*generation_config.json"):
        resolve({}, {"do_sample": True, "top_p": 3}, max_new_tokens=256)


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), float("nan"), "1e9", 1j])
@pytest.mark.parametrize("name", ["temperature", "repetition_penalty"])
def test_numbers_that_no_float_holds(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name} is .*, expected "):
        resolve({name: value}, {}, max_new_tokens=None)
    with pytest.raises(UsageError, match=f"{name} is .*generation_config"):
        resolve({}, {"do_sample": True, name: value}, max_new_tokens=None)


@pytest.mark.parametrize("value", [5e-324, 1e-310, 1e-30, 1e30, 1e300, 1.7e308])
@pytest.mark.parametrize("name", ["temperature", "repetition_penalty"])
def test_numbers_near_the_ends_of_floats(name: str, value: float) -> None:
    """Such options are used in the draw, and nothing overflows."""
    options = resolve({"temperature": 1.0, "seed": 1, name: value}, {}, max_new_tokens=None)
    logits = np.random.default_rng(0).normal(size=50).astype(np.float32) * 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler = Sampler(options, prompt=[1, 2, 3], end_tokens=[], seed=1, n_logits=50)
        picked = [sampler.sample(logits.copy()) for _ in range(20)]
    assert all(0 <= token < 50 for token in picked)
    if name == "temperature" and value < 1:
        assert set(picked) == {int(logits.argmax())}
    if name == "temperature" and value > 1:
        assert len(set(picked)) > 10  # all tokens are equally likely
