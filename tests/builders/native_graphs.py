"""Graphs of native operators for tests: open them with chosen kernels, and run tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from gptx.ort import native
from gptx.ort.sessions import open_native

needs_library = pytest.mark.skipif(
    native.library() is None, reason="the library of native operators is not built"
)


@contextmanager
def native_operators() -> Iterator[None]:
    """The best native kernels of this CPU, also where the suite runs with GPTX_KERNELS=none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(native.VARIABLE, raising=False)
        yield


@pytest.fixture
def native_kernels() -> Iterator[None]:
    """Runs a test in native_operators."""
    with native_operators():
        yield


@contextmanager
def onnx_runtime_operators() -> Iterator[None]:
    """ONNX Runtime's operators: for tests of what only they have, such as a second graph."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.VARIABLE, "none")
        yield


def open_with(model: ir.Model | onnx.ModelProto, folder: Path, kernels: str, threads: int) -> Any:
    """The session of `model` on the kernels of this name; "": the best that this CPU has."""
    file = folder / "graph.onnx"
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    onnx.save(proto, file)
    with pytest.MonkeyPatch.context() as patch:
        if kernels:
            patch.setenv(native.VARIABLE, kernels)
        elif os.environ.get(native.VARIABLE) == "none":
            patch.delenv(native.VARIABLE)
        assert native.choose_kernels(threads) is not None
        return open_native(file)


def empty_cache(session: Any, rows: int, capacity: int) -> list[np.ndarray]:
    """Each layer's keys, values and scales, full of NaN: nothing of it may be read."""
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}
    past = [node for node in session.get_inputs() if node.name.startswith("past")]
    return [
        np.full(
            (rows, node.shape[1], capacity, *node.shape[3:]),
            -128 if node.type == "tensor(int8)" else np.nan,
            types[node.type],
        )
        for node in past
    ]


def run_tokens(
    session: Any, cache: list[np.ndarray], tokens: Sequence[int], rows: Any, places: Sequence[int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The logits (T, V) of packed tokens, and the new cache. rows: one for all, or one each."""
    feeds = step_inputs(session, cache, tokens, rows, places)
    present = [node.name for node in session.get_outputs() if node.name.startswith("present")]
    logits, *new = session.run(["logits", *present], feeds)
    return logits, new


def step_inputs(
    session: Any, cache: list[np.ndarray], tokens: Sequence[int], rows: Any, places: Sequence[int]
) -> dict[str, np.ndarray]:
    """The inputs of a step graph that runs packed tokens, without embeddings and hidden states."""
    rows = [rows] * len(tokens) if isinstance(rows, int) else rows
    nodes = {node.name: node for node in session.get_inputs()}
    past = [name for name in nodes if name.startswith("past")]
    return {
        "input_ids": np.array(tokens, np.int64),
        "row_ids": np.array(rows, np.int64),
        "position_ids": np.array(places, np.int64),
        "row_starts": np.zeros(cache[0].shape[0], np.int64),
        "logits_at": np.arange(len(tokens)),
        "hidden_at": np.zeros(0, np.int64),
        "inputs_embeds": np.zeros((0, nodes["inputs_embeds"].shape[1]), np.float32),
        **dict(zip(past, cache)),
    }


def linear_graph(weights: dict[str, np.ndarray], **attributes: Any) -> onnx.ModelProto:
    """A graph of one Linear. weights: by input name, see `order`."""
    order = ("w", "scales", "steps", "zeros", "bias", "residual", "gain", "shift")
    order += ("offsets", "offset_steps", "table", "factor")
    inputs = ["x", *(name if name in weights or name == "residual" else "" for name in order)]
    node = helper.make_node("Linear", inputs, ["y"], domain="gptx", **attributes)
    fixed = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    shapes = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in ("x", "residual", "y")
    ]
    graph = helper.make_graph([node], "linear", shapes[:2], shapes[2:], fixed)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("gptx", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
