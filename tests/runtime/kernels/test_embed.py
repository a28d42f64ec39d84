"""The native Embed: a table in each form of blocks, against gguf's own dequantize."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import pytest
from gguf import GGMLQuantizationType
from onnx import helper

from builders.block_files import random_blocks
from builders.native_graphs import needs_library, open_with
from gpt_export.quantization.gguf_forms import FORMS, from_gguf

pytestmark = needs_library
ORDER = ("table", "scales", "scale_steps", "", "", "", "", "", "offsets", "offset_steps", "levels")


def embed_graph(tensors: dict[str, np.ndarray], block: int) -> onnx.ModelProto:
    """A graph of one Embed. tensors: by name, see ORDER."""
    inputs = ["ids", *(name if name in tensors else "" for name in ORDER)]
    node = helper.make_node("Embed", inputs, ["y"], domain="gptx", block=block)
    fixed = [onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()]
    ids = helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["tokens"])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "embed", [ids], [y], fixed)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("gptx", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def tensors_of(kind: str, data: np.ndarray) -> tuple[dict[str, np.ndarray], int]:
    made = from_gguf(kind, data)
    named: dict[str, Any] = {
        "table": made.packed,
        "scales": made.scales,
        "scale_steps": made.scale_steps,
        "offsets": made.offsets,
        "offset_steps": made.offset_steps,
        "levels": made.table,
    }
    return {name: array for name, array in named.items() if array is not None}, made.block


@pytest.mark.parametrize("kind", FORMS)
def test_rows_have_the_values_of_gguf(kind: str, tmp_path: Path) -> None:
    data = random_blocks(kind, rows=7, blocks=2)
    session = open_with(embed_graph(*tensors_of(kind, data)), tmp_path, "", 1)
    ids = np.array([6, 0, 3, 3])
    (rows,) = session.run(None, {"ids": ids})
    np.testing.assert_array_equal(rows, gguf.dequantize(data, GGMLQuantizationType[kind])[ids])


def test_a_table_of_float16(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(0, 1, (5, 48)).astype(np.float16)
    table[0, :4] = [0, -0.0, 6e-8, -65504]  # zeros, the smallest, the largest
    session = open_with(embed_graph({"table": table}, 0), tmp_path, "", 1)
    (rows,) = session.run(None, {"ids": np.arange(5)})
    np.testing.assert_array_equal(rows, table.astype(np.float32))


@pytest.mark.parametrize("name", ["scales", "scale_steps", "offsets", "offset_steps"])
def test_a_tensor_of_another_shape_is_refused(name: str, tmp_path: Path) -> None:
    tensors, block = tensors_of("Q4_K", random_blocks("Q4_K", rows=7, blocks=2))
    tensors[name] = tensors[name][:-1]
    session = open_with(embed_graph(tensors, block), tmp_path, "", 1)
    with pytest.raises(Exception, match=r"gptx\.Embed: tables, ids and residual do not fit"):
        session.run(None, {"ids": np.arange(3)})
