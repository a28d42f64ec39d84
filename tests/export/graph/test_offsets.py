"""The native Linear on weights that were Q4_1: offsets are read from columns behind the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders.four_bit_weights import q4_1
from builders.native_graphs import linear_graph, needs_library, open_with
from gpt_export.quantization.offsets import OffsetWeights, detect_q4_1

pytestmark = needs_library
BLOCK = 32
FITS = r"gptx\.Linear: weights, scales and attributes"


def detected(n_out: int, blocks: int, seed: int = 0) -> OffsetWeights:
    found = detect_q4_1(q4_1((n_out, BLOCK * blocks), seed))
    assert found is not None
    return found


def graph_of(weights: OffsetWeights, **attributes: Any) -> Any:
    made = {"w": weights.blocks.packed, "scales": weights.blocks.scales}
    attributes = {"bits": 4, "block": BLOCK, "n_in": weights.n_in, **attributes}
    return linear_graph(made, **{"copies": weights.copies, **attributes})


def wide(weights: OffsetWeights) -> np.ndarray:
    """The matrix (n_out, n_in) in float64, from the stored bytes."""
    packed, scales = weights.blocks.packed, weights.blocks.scales.astype(np.float64)
    levels = np.stack((packed & 15, packed >> 4), -1).reshape(*packed.shape[:2], BLOCK) - 8.0
    columns = (levels * scales[..., None]).reshape(len(packed), -1)
    sums = weights.n_in // BLOCK
    ends = weights.n_in + weights.copies * sums
    offsets = columns[:, weights.n_in : ends].reshape(-1, weights.copies, sums).sum(1)
    return columns[:, : weights.n_in] + offsets.repeat(BLOCK, 1)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n_out=st.integers(1, 35).map(lambda n: 2 * n),
    blocks=st.integers(1, 40),
    tokens=st.integers(1, 9),
    terms=st.sampled_from([0, 1, 2]),
    gated=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_values_and_bits(
    n_out: int, blocks: int, tokens: int, terms: int, gated: bool, seed: int, tmp_path: Path
) -> None:
    """The values of float64, and the same bits with all kernels and threads."""
    weights = detected(n_out, blocks, seed)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, weights.n_in)).astype(np.float32)
    residual = rng.standard_normal((tokens, n_out // 2 if gated else n_out)).astype(np.float32)
    model = graph_of(weights, terms=terms, gated=int(gated))
    feeds = {"x": x, "residual": residual}
    plain, best = (open_with(model, tmp_path, name, n) for name, n in (("plain", 1), ("", 3)))
    (expected,), (found,) = plain.run(None, feeds), best.run(None, feeds)
    assert np.array_equal(found.view(np.int32), expected.view(np.int32))

    matrix = wide(weights)
    y = x @ matrix.T
    # half a step of each activation, times the weights; and the float32 of sums
    step = np.abs(x).max(-1, keepdims=True) / 127 * {0: 0, 1: 0.51, 2: 0.51 / 254}[terms]
    slack = step * np.abs(matrix).sum(1) + 1e-5 * (1 + np.abs(x) @ np.abs(matrix).T)
    if gated:
        (gate, up), (near_gate, near_up) = np.split(y, 2, 1), np.split(slack, 2, 1)
        y = gate * up
        slack = near_gate * (np.abs(up) + near_up) + near_up * np.abs(gate) + 1e-5
    assert (np.abs(found - (y + residual)) <= slack).all()


def test_the_offsets_are_those_of_float64(tmp_path: Path) -> None:
    """Products with one input of 1 give the weights themselves, as exact as float32 can be."""
    weights = detected(48, 3)
    session = open_with(graph_of(weights, terms=0), tmp_path, "", 1)
    none = np.zeros((weights.n_in, 48), np.float32)
    (found,) = session.run(None, {"x": np.eye(weights.n_in, dtype=np.float32), "residual": none})
    matrix = wide(weights)
    assert np.abs(found.T - matrix).max() < 4e-7 * np.abs(matrix).max()


@pytest.mark.parametrize(
    "change",
    [
        {"copies": 0},
        {"copies": 1},
        {"copies": 5},
        {"copies": -1},
        {"copies": 1 << 62},
        {"n_in": 95},
        {"n_in": 64},
        {"block": 16},
        {"bits": 8},
        {"layout": 1},
        {"layout": 3, "bits": 32},
    ],
    ids=str,
)
def test_columns_that_do_not_fit_are_an_error(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Exception, match=FITS):
        open_with(graph_of(detected(32, 3), **change), tmp_path, "", 1)


@pytest.mark.parametrize("name", ["zeros", "steps", "offsets", "table", "half scales"])
def test_other_inputs_beside_copies_are_an_error(name: str, tmp_path: Path) -> None:
    weights = detected(32, 3)
    blocks = weights.blocks.scales.shape[1]
    inputs = {"w": weights.blocks.packed, "scales": weights.blocks.scales}
    inputs |= {
        "zeros": {"zeros": np.full((32, -(-blocks // 2)), 0x88, np.uint8)},
        "steps": {
            "scales": np.ones((32, blocks), np.int8),
            "steps": np.ones((32, 1), np.float32),
        },
        "offsets": {"offsets": np.ones((32, blocks), np.float32)},
        "table": {"table": np.arange(16, dtype=np.int8)},
        "half scales": {"scales": np.ones((32, blocks), np.float16)},
    }[name]
    model = linear_graph(inputs, bits=4, block=BLOCK, n_in=weights.n_in, copies=weights.copies)
    with pytest.raises(Exception, match=FITS):
        open_with(model, tmp_path, "", 1)
