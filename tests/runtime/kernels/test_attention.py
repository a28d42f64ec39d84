"""The native attention operators: each feature against PyTorch, the same bits, clear errors."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders.native_attention import (
    ADDITIVE,
    COSINE,
    DOT,
    OUTPUTS,
    Case,
    Runner,
    attention_graph,
    expected,
    fixed_inputs,
    nan_cache,
    random_qkv,
)
from builders.native_graphs import native_kernels, needs_library, open_with
from gptx.errors import UsageError
from gptx.ort import native
from gptx.ort.library import onnxruntime

pytestmark = [needs_library, pytest.mark.usefixtures(native_kernels.__name__)]
OPERATORS = list(OUTPUTS)
FEATURES: dict[str, dict[str, Any]] = {
    "none": {},
    "scale": {"scale": 0.37},
    "softcap": {"softcap": 2.5},
    "norms": {"norms": True, "turned": 16},
    "sinks": {"sinks": True},
    "sinks and a window": {"sinks": True, "window": 5},
    "cosine, softcap, sinks": {"kind": COSINE, "softcap": 3.0, "sinks": True},
    "additive, softcap, norms": {"kind": ADDITIVE, "softcap": 3.0, "norms": True},
    "all": {"scale": 0.5, "softcap": 4.0, "norms": True, "sinks": True, "window": 9, "turned": 24},
}


def check(case: Case, tokens: int, folder: Path, kernels: str = "") -> None:
    qkv = random_qkv(case, tokens)
    capacity = tokens // 16 * 16 + 16
    runner = Runner(case, folder, kernels=kernels, capacity=capacity)
    out, probabilities = runner.run(qkv, [0] * tokens, range(tokens))
    assert probabilities is not None
    right, shares = (made.numpy() for made in expected(case, qkv, runner.fixed, runner.cache))
    np.testing.assert_allclose(out, right, atol=4e-5)
    np.testing.assert_allclose(probabilities[..., :tokens], shares, atol=2e-5)
    assert not probabilities[..., :tokens][shares == 0].any()
    assert not probabilities[..., tokens:].any()
    assert case.sinks or np.allclose(probabilities.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("features", FEATURES)
def test_a_feature_is_pytorch(features: str, operator: str, tmp_path: Path) -> None:
    check(Case(operator, **FEATURES[features]), 21, tmp_path)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from([DOT, DOT, COSINE, ADDITIVE]))
    groups, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 70))
    return Case(
        draw(st.sampled_from(OPERATORS)),
        kind,
        groups * draw(st.integers(1, 7)),
        groups,
        head_dim,
        turned=2 * draw(st.integers(0, head_dim // 2)),
        window=draw(st.sampled_from([0, 1, 7, 40])),
        scale=draw(st.sampled_from([0.0, 0.3])) if kind == DOT else 0.0,
        softcap=draw(st.sampled_from([0.0, 5.0])),
        norms=draw(st.booleans()),
        sinks=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), st.integers(1, 40))
def test_any_features_together_are_pytorch(case: Case, tokens: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check(case, tokens, Path(folder))


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_long_row_of_large_heads_is_pytorch(operator: str, tmp_path: Path) -> None:
    """Pieces of 256 positions are joined, and heads have the most dimensions."""
    features = {"softcap": 30.0, "norms": True, "sinks": True, "window": 290, "turned": 64}
    check(Case(operator, n_head=2, n_kv_head=1, head_dim=1024, **features), 300, tmp_path)


def bits(array: np.ndarray | None) -> np.ndarray:
    assert array is not None and np.isfinite(array).all()
    return array.view(np.int32)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("features", FEATURES)
def test_nothing_changes_a_bit(features: str, operator: str, tmp_path: Path) -> None:
    """Neither kernels, threads, pieces, other rows, a longer cache nor wanted probabilities."""
    case, length = Case(operator, **FEATURES[features]), 530
    if case.kind == ADDITIVE:
        length = 290
    qkv = random_qkv(case, length)
    plain = Runner(case, tmp_path, kernels="plain", threads=1, capacity=544)
    out, probabilities = plain.run(qkv, [0] * length, range(length))
    best = Runner(case, tmp_path, threads=3, rows=2, capacity=608)
    bare = Runner(case, tmp_path, threads=2, capacity=544, probabilities=False)
    for start, stop in ((0, 17), (17, 18), (18, 280), (280, length)):
        mine = qkv[start:stop]
        places = range(start, stop)
        both = best.run(np.tile(mine, (2, 1)), [0] * len(mine) + [1] * len(mine), [*places] * 2)
        for found, right in zip(both, (out, probabilities)):
            assert found is not None and right is not None
            wanted = bits(right[start:stop])
            first, second = np.split(bits(found)[..., : right.shape[-1]], 2)
            assert np.array_equal(first, wanted) and np.array_equal(second, wanted)
        alone, none = bare.run(mine, [0] * len(mine), places)
        assert none is None and np.array_equal(bits(alone), bits(out[start:stop]))


def test_levels_are_rounded_shares_of_the_largest(tmp_path: Path) -> None:
    case = Case("AttentionByte", n_head=2, head_dim=20)
    qkv = random_qkv(case, 3)
    heads = qkv.reshape(3, 6, 20)
    heads[0, 2] = 0  # keys of token 0, head 0
    heads[1, 3] = 1e-41  # subnormal
    heads[2, 4, 0] = 3e38  # values of token 2, head 0
    runner = Runner(case, tmp_path, capacity=16)
    runner.run(qkv, [0] * 3, range(3))
    keys = runner.cache["keys"].reshape(1, 2, 1, 20, 16).transpose(0, 1, 2, 4, 3)
    keys = keys.reshape(2, 16, 20)[:, :3]
    found = [(keys, "key_scales"), (runner.cache["values"][0, :, :3], "value_scales")]
    for (levels, scales), given_heads in zip(found, (heads[:, 2:4], heads[:, 4:])):
        peak = np.abs(given_heads).max(-1, keepdims=True).transpose(1, 0, 2)
        counted = peak >= np.finfo(np.float32).tiny
        with np.errstate(invalid="ignore"):
            shares = given_heads.transpose(1, 0, 2) / peak * np.float32(127)
        right = np.where(counted, np.rint(shares), 0)
        np.testing.assert_array_equal(levels, right)
        right = np.where(counted, peak / np.float32(127), 0)[..., 0]
        np.testing.assert_array_equal(runner.cache[scales][0, :, :3], right)
        assert np.isnan(runner.cache[scales][0, :, 3:]).all()  # nothing else is written


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_nan_stays_nan(wrong: float, operator: str, tmp_path: Path) -> None:
    """With a softcap and a sink too, which could turn it into a number."""
    case = Case(operator, softcap=2.0, sinks=True, n_head=2)
    qkv = random_qkv(case, 6)
    qkv[3] = wrong
    out, _ = Runner(case, tmp_path).run(qkv, [0] * 6, range(6))
    assert np.isfinite(out[:3]).all()
    assert not np.isfinite(out[3:]).any()  # they see the values of token 3


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_cache_is_written_in_place(operator: str, tmp_path: Path) -> None:
    case = Case(operator)
    runner = Runner(case, tmp_path)
    feeds = runner.feeds(random_qkv(case, 5), [0] * 5, range(5))
    out, *right = runner.session.run(None, feeds)
    ort = onnxruntime()
    binding = runner.session.io_binding()
    held = {name: ort.OrtValue.ortvalue_from_numpy(array.copy()) for name, array in feeds.items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("out")
    for name in runner.cache:
        binding.bind_ortvalue_output(f"new_{name}", held[name])
    binding.bind_output("probabilities")
    runner.session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.get_outputs()[0].numpy(), out)
    for name, array in zip(runner.cache, right):
        np.testing.assert_array_equal(held[name].numpy(), array)


WRONG_INPUTS: dict[str, Any] = {
    "keys": lambda keys: keys[..., :8, :],
    "values": lambda values: values.reshape(-1),
    "qkv": lambda qkv: qkv.reshape(-1),
    "position_ids": lambda places: places[:2],
    "row_starts": lambda starts: starts.astype(np.int32),
    "cos": lambda cos: np.tile(cos, 2),
    "sin": lambda sin: sin[:-1],
    "q_norm": lambda gain: gain[:-1],
    "k_norm": lambda gain: gain.astype(np.float16),
    "sinks": lambda sinks: sinks[:1],
    "key_scales": lambda scales: scales[..., :-16],
    "value_scales": lambda scales: scales.astype(np.float64),
}


def inputs_of(case: Case, tokens: int = 3) -> dict[str, np.ndarray]:
    places = np.arange(tokens)
    made = {"row_ids": places * 0, "position_ids": places, "row_starts": np.zeros(1, np.int64)}
    made |= {"qkv": random_qkv(case, tokens), **nan_cache(case, 1, 32), **fixed_inputs(case, 32)}
    return made


def fails(case: Case, inputs: dict[str, np.ndarray], folder: Path, words: str) -> None:
    with pytest.raises(Exception, match=words):  # ONNX Runtime's classes have no common base
        model = attention_graph(case.operator, inputs, case.attributes())
        open_with(model, folder, "", 1).run(None, inputs)


@pytest.mark.parametrize("name", WRONG_INPUTS)
def test_an_input_that_does_not_fit_is_named(name: str, tmp_path: Path) -> None:
    case = Case("AttentionByte", norms=True, sinks=True, turned=16)
    inputs = inputs_of(case)
    inputs[name] = WRONG_INPUTS[name](inputs[name])
    fails(case, inputs, tmp_path, rf"gptx\.Attention: the input {name} has a wrong type or shape")


@pytest.mark.parametrize("name", ["key_scales", "value_scales", "row_starts"])
def test_an_input_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    case = Case("AttentionByte")
    inputs = inputs_of(case)
    del inputs[name]
    fails(case, inputs, tmp_path, rf"gptx\.Attention: the input {name} .*or is missing")


def test_a_cache_of_another_type_is_refused(tmp_path: Path) -> None:
    case = Case("AttentionByte")
    inputs = inputs_of(case)
    inputs |= {name: inputs[name].astype(np.float32) for name in ("keys", "values")}
    fails(case, inputs, tmp_path, "Type Error|the input keys has a wrong type")


def test_heads_of_more_than_1024_dimensions_are_refused(tmp_path: Path) -> None:
    case = Case(n_head=1, n_kv_head=1, head_dim=1025)
    fails(case, inputs_of(case), tmp_path, "the input keys has a wrong type or shape")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": -1.0}, "scale, softcap or epsilon is negative or not finite"),
        ({"scale": float("nan")}, "scale, softcap or epsilon is negative or not finite"),
        ({"softcap": float("inf")}, "scale, softcap or epsilon is negative or not finite"),
        ({"kind": COSINE, "scale": 0.5}, "only dot attention .* has a scale"),
        ({"kind": ADDITIVE, "scale": 0.5}, "only dot attention .* has a scale"),
        ({"kind": 3}, "kind is not 0, 1 or 2"),
        ({"n_head": 3}, "n_head, n_kv_head and window do not fit together"),
    ],
)
def test_wrong_attributes_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    case = Case()
    fails(replace(case, **change), inputs_of(case), tmp_path, words)


@pytest.mark.parametrize("place", [-1, 32])
def test_a_position_outside_the_cache_is_refused(place: int, tmp_path: Path) -> None:
    case = Case("AttentionByte")
    inputs = inputs_of(case)
    inputs["position_ids"][1] = place
    fails(case, inputs, tmp_path, "a token's row or position is outside the cache")


def test_every_kernel_of_this_processor_is_pytorch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in native.NAMES:
        monkeypatch.setenv(native.VARIABLE, name)
        try:
            native.choose_kernels(1)
        except UsageError:  # this processor does not have them
            continue
        for operator in OPERATORS:
            check(Case(operator, **FEATURES["all"]), 21, tmp_path, kernels=name)
