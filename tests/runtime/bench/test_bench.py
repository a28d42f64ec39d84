"""The parts of gptx bench: bytes of weights that a token reads, memory's speed, peers, prompts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builders.exported import CONFIG
from gptx.bench import bandwidth
from gptx.bench.peers import contender, contenders
from gptx.bench.prompts import Cutter
from gptx.bench.weights import weights_of
from gptx_models.checkpoints.checkpoint import load_model


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4", "fp16"])
def test_a_graphs_weights(fp32: Path, quantized: dict[str, Path], precision: str) -> None:
    folder = {"fp32": fp32, **quantized}[precision]
    found = weights_of(folder)
    files = [folder / "onnx" / name for name in ("model.onnx", "model.onnx_data")]
    assert found.stored == sum(file.stat().st_size for file in files)
    graph = onnx.load(files[0]).graph
    every = sum(numpy_helper.to_array(one).nbytes for one in graph.initializer)
    if precision == "int4":  # two values share a byte in the file; numpy takes a byte each
        assert found.read < every
        return
    by_row = [
        one for one in graph.initializer if CONFIG.n_ctx in one.dims
    ]  # positions and their scales
    unread = sum(numpy_helper.to_array(one).nbytes for one in by_row) * (1 - 1 / CONFIG.n_ctx)
    assert math.isclose(found.read, every - unread, rel_tol=0.01)


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_that_no_head_shares_is_read_by_the_row(tmp_path: Path, tied: bool) -> None:
    table = np.ones((100, 8), np.float32)
    head = "table" if tied else "head"
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("Transpose", [head], ["turned"]),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
    ]
    initializers = [numpy_helper.from_array(table, name) for name in {"table", head}]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 100])
    graph = helper.make_graph(nodes, "tiny", [ids], [y], initializers)
    onnx.save(helper.make_model(graph), str(tmp_path / "model.onnx"))
    assert weights_of(tmp_path).read == table.nbytes + (0 if tied else 8 * 4)


def test_a_checkpoints_weights(checkpoint: Path) -> None:
    parameters = sum(parameter.numel() for parameter in load_model(checkpoint).parameters())
    found = weights_of(checkpoint)
    assert found.stored == 4 * parameters and found.read == 4 * (
        parameters - CONFIG.n_ctx * CONFIG.n_embd
    )
    assert weights_of(checkpoint, "bfloat16").stored == 2 * parameters


def test_bandwidth_by_every_kernel() -> None:
    found = bandwidth.fastest(2, 1 << 20)
    assert set(found) == set(bandwidth.KERNELS) and all(value > 0 for value in found.values())
    assert bandwidth.size_to_read() > 0


def test_names_of_peers(artifacts: dict[str, Path], tmp_path: Path) -> None:
    model = artifacts["shared"]
    twin = tmp_path / "a:b" / "shared"
    twin.parent.mkdir()
    twin.symlink_to(artifacts["growing"])
    found = contenders(model, [f"gptx:{artifacts['scatter']}", f"gptx:{twin}"])
    assert [one.path for one in found] == [
        model,
        artifacts["scatter"],
        twin,
    ]  # a colon in a path is none of ours
    assert (
        found[1].label == "gptx:scatter" and found[2].label == f"gptx:{twin}"
    )  # where the short name is not clear
    one = contender(f"transformers:{model}:bfloat16", model)
    assert (one.path, one.variant) == (model, "bfloat16")


def test_no_two_prompts_begin_alike() -> None:
    cutter = Cutter(list(range(100)), pieces=20)
    pieces = [cutter.cut(length) for length in [8, 150] * 10]
    assert len({piece[0] for piece in pieces}) == 20 and len(pieces[1]) == 150
