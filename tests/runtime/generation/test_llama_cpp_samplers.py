"""top_n_sigma, xtc, DRY and the penalties, compared with llama.cpp's own samplers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gptx
from builders.tiny_artifact import write_artifact
from gptx.errors import UsageError
from gptx.generation.dry_breakers import breakers_as_ids
from gptx.generation.options import Options
from gptx.generation.sampling import Sampler
from gptx.text.tokenizer import Tokenizer

library: Any = pytest.importorskip("llama_cpp.llama_cpp")
OPTIONS = Options(temperature=1.0, dry_sequence_breakers=())


def by_llama_cpp(sampler: Any, logits: np.ndarray, tokens: Sequence[int] = ()) -> np.ndarray:
    """Probabilities (V,) after a sampler of llama.cpp has read `tokens`. Frees the sampler."""
    entries = (library.llama_token_data * len(logits))(
        *((token, float(logit), 0.0) for token, logit in enumerate(logits))
    )
    array = library.llama_token_data_array(entries, len(logits), -1, False)
    for token in tokens:
        library.llama_sampler_accept(sampler, token)
    library.llama_sampler_apply(sampler, ctypes.pointer(array))
    library.llama_sampler_free(sampler)
    left = np.full(len(logits), -np.inf)
    for entry in array.data[: array.size]:
        left[entry.id] = entry.logit
    weights = np.exp(left - left.max())
    return weights / weights.sum()


def distribution(options: Options, logits: np.ndarray, tokens: Sequence[int] = ()) -> np.ndarray:
    """Probabilities (V,) of gptx, where `tokens` were generated."""
    sampler = Sampler(options, prompt=[], end_tokens=[], seed=1, n_logits=len(logits))
    for token in tokens:
        sampler.append(token)
    ids, weights = sampler.candidates(sampler.process(logits.copy()))
    probabilities = np.zeros(len(logits))
    probabilities[slice(None) if ids is None else ids] = weights / weights.sum(dtype=np.float64)
    return probabilities


def logits_of(seed: int, size: int, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=size) * spread).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), size=st.integers(2, 500), n=st.sampled_from([0.3, 1.0, 2.5]))
def test_top_n_sigma(seed: int, size: int, n: float) -> None:
    logits = logits_of(seed, size)
    logits[seed % size] = -np.inf
    expected = by_llama_cpp(library.llama_sampler_init_top_n_sigma(n), logits)
    for temperature in (1.0, 0.5):  # which it does not depend on
        found = distribution(replace(OPTIONS, top_n_sigma=n, temperature=temperature), logits)
        assert (found > 0).tolist() == (expected > 0).tolist()
        if temperature == 1:
            np.testing.assert_allclose(found, expected, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 500),
    threshold=st.sampled_from([0.0, 0.02, 0.1, 0.4, 0.5, 0.6]),
    keep=st.integers(1, 4),
)
def test_xtc(seed: int, size: int, threshold: float, keep: int) -> None:
    logits = logits_of(seed, size)
    sampler = library.llama_sampler_init_xtc(1.0, threshold, keep, seed)
    expected = by_llama_cpp(sampler, logits)
    options = replace(OPTIONS, xtc_probability=1.0, xtc_threshold=threshold)
    ours = Sampler(
        options, prompt=[], end_tokens=[], seed=1, n_logits=size, min_tokens_to_keep=keep
    )
    ids, weights = ours.candidates(logits.copy())
    found = np.zeros(size)
    found[slice(None) if ids is None else ids] = weights / weights.sum(dtype=np.float64)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_xtc_acts_with_its_probability() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    options = replace(OPTIONS, xtc_probability=0.3, xtc_threshold=0.15)
    sampler = Sampler(options, prompt=[], end_tokens=[], seed=5, n_logits=4)
    drawn = [sampler.sample(logits.copy()) for _ in range(4000)]
    # Without xtc 0.4; with it, 0.2 and 0.1 are left.
    share = np.bincount(drawn, minlength=4) / 4000
    np.testing.assert_allclose(share, [0.28, 0.21, 0.14 + 0.2, 0.07 + 0.1], atol=0.03)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    tokens=st.lists(st.integers(0, 19), max_size=40),
    repetition=st.sampled_from([1.0, 1.3, 0.7]),
    frequency=st.sampled_from([0.0, 0.4, -0.4]),
    presence=st.sampled_from([0.0, 0.4, -0.4]),
)
def test_penalties(
    seed: int, tokens: list[int], repetition: float, frequency: float, presence: float
) -> None:
    logits = logits_of(seed, 20)
    sampler = library.llama_sampler_init_penalties(20, 100, repetition, frequency, presence)
    expected = by_llama_cpp(sampler, logits, tokens)
    options = replace(
        OPTIONS,
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
    )
    np.testing.assert_allclose(distribution(options, logits, tokens), expected, atol=1e-6)


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 10_000),
    tokens=st.lists(st.integers(0, 4), max_size=60),
    multiplier=st.sampled_from([0.2, 1.0]),
    base=st.sampled_from([1.0, 1.1, 1.75, 1e30]),
    allowed=st.integers(1, 5),
)
def test_dry(seed: int, tokens: list[int], multiplier: float, base: float, allowed: int) -> None:
    logits = logits_of(seed, 5)
    sampler = library.llama_sampler_init_dry(None, multiplier, base, allowed, 100, None, 0)
    expected = by_llama_cpp(sampler, logits, tokens)
    options = replace(OPTIONS, dry_multiplier=multiplier, dry_base=base, dry_allowed_length=allowed)
    np.testing.assert_allclose(distribution(options, logits, tokens), expected, atol=1e-6)


# Sequence breakers: texts, which become sequences of token ids

WORDS = [
    "a", "b", "c", "ab", "bc", "abc", "cab", "bca", ": ", ":", "x:", "xa", "xab", "\n", "a\n", "ba",
]  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tokenizer, Any]]:
    """The same vocabulary as our tokenizer and as llama.cpp's."""
    gguf = pytest.importorskip("gguf")
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    written = [word.replace("\n", "Ċ").replace(" ", "Ġ") for word in WORDS]
    merges = [("a", "b"), ("b", "c"), ("x", "a"), ("b", "a"), ("x", ":"), (":", "Ġ"), ("a", "Ċ")]
    merges += [("ab", "c"), ("c", "ab"), ("bc", "a"), ("xa", "b")]
    tokens = [*alphabet, *(word for word in written if len(word) > 1)]
    inner = Inner(models.BPE(vocab={one: i for i, one in enumerate(tokens)}, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()

    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(200)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parameters = library.llama_model_default_params()
    parameters.vocab_only = True
    model = library.llama_model_load_from_file(str(path).encode(), parameters)
    assert model
    yield Tokenizer(inner), library.llama_model_get_vocab(model)
    library.llama_model_free(model)


@settings(deadline=None, max_examples=150)
@given(
    words=st.lists(st.sampled_from(WORDS), max_size=40),
    breakers=st.lists(
        st.sampled_from(["\n", ":", "ab", "abc", "bca", "cabab", "é", "xx"]), max_size=3
    ),
    seed=st.integers(0, 10_000),
)
def test_dry_with_breakers(
    vocabulary: tuple[Tokenizer, Any], words: list[str], breakers: list[str], seed: int
) -> None:
    tokenizer, theirs = vocabulary
    tokens = [tokenizer.id(word.replace("\n", "Ċ").replace(" ", "Ġ")) for word in words]
    given = [token for token in tokens if token is not None]
    assert len(given) == len(words)
    logits = logits_of(seed, tokenizer.vocab_size)
    texts = (ctypes.c_char_p * len(breakers))(*(text.encode() for text in breakers))
    sampler = library.llama_sampler_init_dry(theirs, 0.8, 1.75, 1, 100, texts, len(breakers))
    expected = by_llama_cpp(sampler, logits, given)
    options = replace(
        OPTIONS,
        dry_multiplier=0.8,
        dry_allowed_length=1,
        dry_sequence_breakers=tuple(breakers),
    )
    options = breakers_as_ids(options, tokenizer)
    np.testing.assert_allclose(distribution(options, logits, given), expected, atol=1e-6)


def test_breakers_may_be_token_ids(vocabulary: tuple[Tokenizer, Any]) -> None:
    options = replace(OPTIONS, dry_multiplier=1.0, dry_sequence_breakers=("x:", (3,), (4, 5)))
    found = breakers_as_ids(options, vocabulary[0]).dry_sequence_breakers
    texts = vocabulary[0].texts
    x, colon, whole, space = (texts.index(text) for text in ("x", ":", "x:", ": "))
    assert set(found) == {(3,), (4, 5), (x, colon), (whole,)}
    assert space not in {word[0] for word in found}
    assert breakers_as_ids(replace(options, dry_multiplier=0.0), None).dry_multiplier == 0


def test_breakers_without_a_tokenizer() -> None:
    options = Options(temperature=1.0, dry_multiplier=1.0)
    assert breakers_as_ids(options, None).dry_sequence_breakers == ()
    with pytest.raises(UsageError, match="dry_sequence_breakers are texts"):
        breakers_as_ids(replace(options, dry_sequence_breakers=("\n",)), None)


def test_dry_takes_part_in_a_text(tmp_path: Path) -> None:
    """A model that repeats itself stops doing so; a breaker in each token permits it again."""
    with gptx.load(write_artifact(tmp_path / "a"), threads=1) as model:
        generate: Callable[..., Any] = model.generate
        plain = generate("a", max_new_tokens=40, temperature=0).token_ids
        changed = generate("a", max_new_tokens=40, temperature=0, dry_multiplier=9.0).token_ids
        longest = max(_repeated(changed), 1)
        assert longest < _repeated(plain)
        assert model.tokenizer is not None
        every = [text for text in set(model.tokenizer.texts) if text]
        permitted = generate(
            "a",
            max_new_tokens=40,
            temperature=0,
            dry_multiplier=9.0,
            dry_sequence_breakers=every,
        )
        assert permitted.token_ids == plain


def _repeated(tokens: list[int]) -> int:
    """The length of the longest sequence that occurs twice."""
    lengths = range(len(tokens), 0, -1)
    return next(
        (
            n
            for n in lengths
            if len({tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)})
            < len(tokens) - n + 1
        ),
        0,
    )
