"""The native Linear: the same bits whatever else runs, and the right values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders.native_graphs import linear_graph, needs_library, open_with

pytestmark = needs_library
BLOCKS, CHANNELS, IN_OUT, OUT_IN = range(4)
ACTIVATIONS = {
    0: lambda v: v,
    1: lambda v: np.maximum(v, 0),
    2: lambda v: v * 0.5 * (1 + np.vectorize(math.erf)(v / math.sqrt(2))),
    3: lambda v: v * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
    4: lambda v: v / (1 + np.exp(-v)),
}


def weight(
    rng: np.random.Generator,
    layout: int,
    bits: int,
    n_out: int,
    n_in: int,
    block: int,
    more: str = "",
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The inputs of a random weight, and the matrix (n_out, n_in) that they stand for.

    more: of blocks: "zeros", "offsets", "table", "steps" or "halves", see docs/reference/operators.
    """
    if layout in (IN_OUT, OUT_IN):
        matrix = rng.standard_normal((n_out, n_in)).astype(np.float16 if bits == 16 else np.float32)
        return {"w": matrix.T.copy() if layout == IN_OUT else matrix}, matrix.astype(np.float32)
    if layout == CHANNELS:
        levels = rng.integers(-127, 128, (n_in, n_out)).astype(np.int8)
        scales = rng.random(n_out).astype(np.float32) / 127
        return {"w": levels, "scales": scales / 127}, levels.T * scales[:, None]
    blocks = -(-n_in // block)
    shape = (n_out, blocks, 1)
    levels = rng.integers(0, 1 << bits, (n_out, blocks, block)).astype(np.uint8)
    scales = (rng.random(shape) / (1 << bits)).astype(np.float32)
    zeros: Any = np.full(shape, 1 << (bits - 1), np.float32)
    made: dict[str, np.ndarray] = {}
    if more == "zeros" and bits == 4:
        zeros = rng.integers(0, 16, shape).astype(np.uint8)
        padded = np.pad(zeros[..., 0], ((0, 0), (0, blocks % 2)))
        made["zeros"] = padded[:, ::2] | padded[:, 1::2] << 4
        zeros = zeros.astype(np.float32)
    made |= {"w": packed(levels, bits), "scales": scales[..., 0]}
    if more in ("steps", "halves"):
        n_steps = 2 if blocks % 2 == 0 else 1
        factors = rng.integers(-60, 60, (n_out, blocks)).astype(np.int8)
        steps = (rng.random((n_out, n_steps)) / (1 << bits) / 60).astype(np.float32)
        steps = steps.astype(np.float16) if more == "halves" else steps
        made |= {"scales": factors, "steps": steps}
        each = np.repeat(steps.astype(np.float32), blocks // n_steps, 1)
        scales = (factors * each)[..., None]
    values = (levels - zeros) * scales
    if more == "offsets":
        offsets = rng.standard_normal(shape).astype(np.float16)
        made["offsets"] = offsets[..., 0]
        zero = np.float32(128 if bits == 8 else 0)
        values = (levels - zero) * scales + offsets.astype(np.float32)
    if more == "table" and bits == 4:
        made["table"] = rng.integers(-127, 128, 16).astype(np.int8)
        values = made["table"][levels] * scales
    return made, values.reshape(n_out, -1)[:, :n_in].astype(np.float32)


def packed(levels: np.ndarray, bits: int) -> np.ndarray:
    """Levels (..., block) in the bytes of a block: low 4 bits, and behind them the high bits."""
    if bits == 8:
        return levels
    low = levels[..., ::2] & 15 | (levels[..., 1::2] & 15) << 4
    in_byte = {4: 0, 5: 8, 6: 4}[bits]
    if not in_byte:
        return low
    high = (levels >> 4).reshape(*levels.shape[:-1], -1, in_byte)
    shifts = np.arange(in_byte, dtype=np.uint8) * (8 // in_byte)
    return np.concatenate([low, (high << shifts).sum(-1).astype(np.uint8)], -1)


CASE = st.fixed_dictionaries(
    {
        "form": st.sampled_from(
            [(BLOCKS, bits) for bits in (8, 6, 5, 4)]
            + [(CHANNELS, 8), (IN_OUT, 32), (OUT_IN, 32), (IN_OUT, 16), (OUT_IN, 16)]
        ),
        "more": st.sampled_from(["", "zeros", "offsets", "table", "steps", "halves"]),
        "block": st.sampled_from([16, 32, 64, 128]),
        "n_out": st.integers(1, 70).map(lambda n: 2 * n),
        "n_in": st.integers(1, 200),
        "tokens": st.integers(1, 20),
        "terms": st.sampled_from([0, 1, 2]),
        "norm": st.sampled_from([0, 1, 2]),
        "activation": st.integers(0, 4),
        "gated": st.booleans(),
        "odd": st.sampled_from(["", "zeros", "subnormal", "large", "negative zero"]),
        "seed": st.integers(0, 10**6),
    }
)


def inputs(case: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any], Any, Any, Any]:
    """Weights, attributes, x, residual, and the matrix."""
    rng = np.random.default_rng(case["seed"])
    layout, bits = case["form"]
    n_out, n_in, tokens = case["n_out"], case["n_in"], case["tokens"]
    made, matrix = weight(rng, layout, bits, n_out, n_in, case["block"], case["more"])
    made["bias"] = rng.standard_normal(n_out).astype(np.float32)
    if case["norm"]:
        made["gain"], made["shift"] = rng.random((2, n_in)).astype(np.float32)
    x = rng.standard_normal((tokens, n_in)).astype(np.float32)
    values = {"zeros": 0.0, "subnormal": 1e-40, "large": 1e30, "negative zero": -0.0}
    if case["odd"]:
        x[rng.integers(tokens)] = values[case["odd"]]
    outputs = n_out // 2 if case["gated"] else n_out
    residual = rng.standard_normal((tokens, outputs)).astype(np.float32)
    attributes = dict(
        layout=layout, bits=bits, block=case["block"], n_in=n_in, terms=case["terms"],
        norm=case["norm"], epsilon=1e-5, activation=case["activation"], gated=int(case["gated"]),
    )  # fmt: skip
    return made, attributes, x, residual, matrix


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=CASE)
def test_nothing_changes_a_bit(case: dict[str, Any], tmp_path: Path) -> None:
    """Neither the kernels, the threads nor the other tokens."""
    made, attributes, x, residual, _ = inputs(case)
    model = linear_graph(made, **attributes)
    feeds = {"x": x, "residual": residual}
    plain, best = (open_with(model, tmp_path, name, n) for name, n in (("plain", 1), ("", 3)))
    (expected,), (found,) = plain.run(None, feeds), best.run(None, feeds)
    assert np.array_equal(found.view(np.int32), expected.view(np.int32))
    for token in range(len(x)):
        alone = {name: array[token : token + 1] for name, array in feeds.items()}
        (row,) = best.run(None, alone)
        assert np.array_equal(row[0].view(np.int32), expected[token].view(np.int32))


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=CASE.filter(lambda case: case["odd"] != "large"))
def test_the_values_are_right(case: dict[str, Any], tmp_path: Path) -> None:
    """Against float64, within what rounding the activations costs."""
    made, attributes, x, residual, matrix = inputs(case)
    best = open_with(linear_graph(made, **attributes), tmp_path, "", 2)
    (found,) = best.run(None, {"x": x, "residual": residual})
    wide = x.astype(np.float64)
    if case["norm"]:
        if case["norm"] == 2:
            wide = wide - wide.mean(-1, keepdims=True)
        wide = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5)
        wide = wide * made["gain"] + made["shift"]
    terms = 0 if attributes["bits"] >= 16 else case["terms"]
    # half a step of each activation, times the weights
    step = np.abs(wide).max(-1, keepdims=True) / 127 * {0: 0, 1: 0.51, 2: 0.51 / 254}[terms]
    slack = (step * np.abs(matrix).sum(1)) * 1.2 + 1e-4 * (1 + np.abs(wide) @ np.abs(matrix).T)
    y = wide @ matrix.T.astype(np.float64) + made["bias"]
    activation = ACTIVATIONS[case["activation"]]
    if case["gated"]:
        half = y.shape[1] // 2
        gate, up = activation(y[:, :half]), y[:, half:]
        expected = gate * up + residual
        slack = 1.2 * slack[:, :half] * (np.abs(up) + slack[:, half:]) + slack[:, half:] * (
            np.abs(gate) + 1
        )
    else:
        expected = activation(y) + residual
        slack = 1.2 * slack
    assert (np.abs(found - expected) <= slack).all()


def test_activated_outputs_are_multiplied_by_a_factor(tmp_path: Path) -> None:
    """A gate whose weights have another form than those that it multiplies."""
    rng = np.random.default_rng(3)
    made, _ = weight(rng, BLOCKS, 4, 48, 64, 32)
    x, residual = (rng.standard_normal((5, n)).astype(np.float32) for n in (64, 48))
    made["factor"] = rng.standard_normal((5, 48)).astype(np.float32)
    attributes = {"n_in": 64, "block": 32, "bits": 4, "activation": 4}
    session = open_with(linear_graph(made, **attributes), tmp_path, "", 2)
    (found,) = session.run(None, {"x": x, "residual": residual})
    factor = made.pop("factor")
    session = open_with(linear_graph(made, **attributes), tmp_path, "", 2)
    (activated,) = session.run(None, {"x": x, "residual": np.zeros_like(residual)})
    assert np.array_equal(found, activated * factor + residual)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_reaches_the_output(bad: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    made, _ = weight(rng, BLOCKS, 8, 32, 64, 32)
    session = open_with(linear_graph(made, n_in=64, block=32), tmp_path, "", 1)
    x = rng.standard_normal((3, 64)).astype(np.float32)
    x[1, 40] = bad
    (y,) = session.run(None, {"x": x, "residual": np.zeros((3, 32), np.float32)})
    assert not np.isfinite(y[1]).any() and np.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize(
    "change",
    [
        {"n_in": 65},
        {"n_in": 0},
        {"n_in": 1 << 40},
        {"block": 24},
        {"bits": 5},
        {"bits": 7},
        {"bits": 16},
        {"block": 4096},
        {"layout": 9},
        {"layout": CHANNELS},
        {"layout": OUT_IN, "bits": 32},
        {"gated": 1, "odd rows": True},
    ],
    ids=str,
)
def test_a_weight_that_does_not_fit_is_an_error(change: dict[str, Any], tmp_path: Path) -> None:
    rows = 33 if change.pop("odd rows", False) else 32
    made, _ = weight(np.random.default_rng(1), BLOCKS, 8, rows, 64, 32)
    attributes = {"n_in": 64, "block": 32, "bits": 8, "layout": BLOCKS, **change}
    with pytest.raises(Exception, match=r"gptx\.Linear: weights, scales and attributes"):
        open_with(linear_graph(made, **attributes), tmp_path, "", 1)


@pytest.mark.parametrize(
    ("x", "residual"), [((3, 63), (3, 32)), ((3, 64), (2, 32)), ((), (3, 32)), ((3, 64), (3, 31))]
)
def test_an_input_that_does_not_fit_is_an_error(
    x: tuple[int, ...], residual: tuple[int, ...], tmp_path: Path
) -> None:
    made, _ = weight(np.random.default_rng(1), BLOCKS, 8, 32, 64, 32)
    session = open_with(linear_graph(made, n_in=64, block=32), tmp_path, "", 1)
    feeds = {"x": np.zeros(x, np.float32), "residual": np.zeros(residual, np.float32)}
    with pytest.raises(Exception, match=r"gptx\.Linear: an input has another type or shape"):
        session.run(None, feeds)
