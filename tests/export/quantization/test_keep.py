"""gptx quantize --to keep: the blocks of a GGUF file run as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import pytest
import torch

import gptx as gptx_api
from builders.block_files import write_blocks_llama
from builders.gptx_command import gptx
from builders.native_graphs import native_kernels, needs_library
from gpt_export.export import export_checkpoint
from gpt_export.quantization.keep import keep_weights
from gpt_export.quantization.native_blocks import (
    NativeBlocks,
    NativeFloats,
    NativeRows,
    dequantize_native,
)
from gpt_export.quantization.quantize import quantize_artifact
from gptx.errors import CheckpointError, UsageError
from gptx.ort.native import onnx_runtime_only
from gptx.verify import forced_logits
from gptx_models.checkpoints.checkpoint import load_model
from gptx_models.checkpoints.gguf_blocks import BLOCKS, KEPT_TYPES
from gptx_models.checkpoints.hf_names import to_halves
from gptx_models.importers import import_checkpoint

MIXED = {  # as in files of llama.cpp's Q4_K_M, with a tensor of every other type
    "token_embd": "Q6_K",
    "blk.0.attn_q": "Q4_K",
    "blk.0.attn_k": "Q4_K",
    "blk.0.attn_v": "Q6_K",
    "blk.0.attn_output": "Q5_0",
    "blk.0.ffn_gate": "Q4_K",
    "blk.0.ffn_up": "Q4_K",
    "blk.0.ffn_down": "Q8_0",
    "blk.1.attn_q": "Q4_0",
    "blk.1.attn_k": "Q4_1",
    "blk.1.attn_v": "F16",
    "blk.1.attn_output": "IQ4_NL",
    "blk.1.ffn_gate": "Q5_K",
    "blk.1.ffn_up": "Q5_1",
    "blk.1.ffn_down": "Q6_K",
}


def imported(file: Path, folder: Path) -> Path:
    return import_checkpoint(str(file), folder)


def values_of(weight: Any) -> np.ndarray:
    match weight:
        case NativeRows(parts):
            return np.concatenate([values_of(part) for part in parts])
        case NativeFloats(values):
            return values.astype(np.float32)
        case _:
            return dequantize_native(weight)


def expected_values(file: Path, names: list[str]) -> np.ndarray:
    """What the gguf package reads in the tensors of a file, with the rows of Q and K in halves."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    parts = []
    for name in names:
        tensor = tensors[f"{name}.weight"]
        value = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        heads = {"attn_q": 4, "attn_k": 2}.get(name.rpartition(".")[2])
        parts.append(to_halves(torch.from_numpy(value), heads).numpy() if heads else value)
    return np.concatenate(parts)


def check_values(weights: dict[str, Any], file: Path, n_layer: int) -> None:
    modules = {
        "attn.qkv": ["attn_q", "attn_k", "attn_v"],
        "attn.out": ["attn_output"],
        "mlp.up": ["ffn_gate", "ffn_up"],
        "mlp.down": ["ffn_down"],
    }
    for layer in range(n_layer):
        for module, names in modules.items():
            expected = expected_values(file, [f"blk.{layer}.{name}" for name in names])
            np.testing.assert_array_equal(values_of(weights[f"blocks.{layer}.{module}"]), expected)
    np.testing.assert_array_equal(values_of(weights["wte"]), expected_values(file, ["token_embd"]))


@pytest.mark.parametrize("kind", KEPT_TYPES)
def test_each_type_is_kept_exactly(kind: str, tmp_path: Path) -> None:
    file = write_blocks_llama(tmp_path / "x.gguf", lambda name: kind)
    folder = imported(file, tmp_path / "checkpoint")
    gpt = load_model(folder)
    weights = keep_weights(gpt, folder, tmp_path)
    check_values(weights, file, 1)
    assert weights["head"] is weights["wte"]
    assert isinstance(weights["blocks.0.attn.qkv"], NativeBlocks)  # one product of one type


def test_mixed_types_are_parts_of_their_own(tmp_path: Path) -> None:
    file = write_blocks_llama(tmp_path / "x.gguf", MIXED.__getitem__, n_layer=2)
    folder = imported(file, tmp_path / "checkpoint")
    weights = keep_weights(load_model(folder), folder, tmp_path)
    check_values(weights, file, 2)
    first, second = (weights[f"blocks.{layer}.attn.qkv"] for layer in (0, 1))
    assert isinstance(first, NativeRows) and isinstance(second, NativeRows)
    assert [part.shape[0] for part in first.parts] == [256 + 128, 128]  # q and k are one product
    assert [part.shape[0] for part in second.parts] == [256, 128, 128]
    half = second.parts[2]
    assert isinstance(half, NativeFloats) and half.values.dtype == np.float16


@needs_library
@pytest.mark.usefixtures(native_kernels.__name__)
def test_a_mixed_file_runs_on_its_own_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_blocks_llama(tmp_path / "x.gguf", MIXED.__getitem__, n_layer=2)
    folder = imported(file, tmp_path / "checkpoint")
    artifact, out = tmp_path / "fp32", tmp_path / "keep"
    export_checkpoint(folder, artifact)
    certificate = quantize_artifact(artifact, out, to="keep", checkpoint=folder)
    assert certificate["passed"] and certificate["figures"]["kl_mean"] < 1e-3
    assert certificate["environment"]["kernels"]
    names = {path.name for path in (out / "onnx").iterdir()}
    assert names == {"step.onnx", "step.onnx_data"}
    assert not (out / "genai_config.json").exists()
    graph = onnx.load(out / "onnx/step.onnx")
    types = {one.name: one.data_type for one in graph.graph.initializer}
    assert types["blocks.0.attn.out.scales"] == onnx.TensorProto.FLOAT16
    assert types["wte.scales"] == onnx.TensorProto.INT8
    embed = next(node for node in graph.graph.node if node.op_type == "Embed")
    head = [node for node in graph.graph.node if node.op_type == "Linear"][-1]
    assert embed.input[1] == head.input[1]  # stored once

    verified = gptx("verify", out)
    assert verified.status == 0, verified.err
    inspected = gptx("inspect", out)
    assert inspected.status == 0 and "no other graph" in inspected.text
    compiled = gptx("compile", out, tmp_path / "compiled")
    assert compiled.status == 0, compiled.err
    assert (tmp_path / "compiled/compiled/step.bin").exists()
    monkeypatch.setenv("GPTX_KERNELS", "none")
    missing = gptx("verify", out)
    assert missing.status != 0
    assert "runs on gptx's native operators only: GPTX_KERNELS is none" in missing.err
    assert "Traceback" not in missing.err
    refused = gptx("quantize", artifact, tmp_path / "n", "--to", "keep", "--checkpoint", folder)
    assert refused.status != 0 and "none run here (none: GPTX_KERNELS says so)" in refused.err
    monkeypatch.delenv("GPTX_KERNELS")

    other = tmp_path / "other"
    write_blocks_llama(tmp_path / "y.gguf", lambda name: "Q4_K", n_layer=2)
    imported(tmp_path / "y.gguf", other)
    with pytest.raises(UsageError, match="changed after its import, or the artifact was exported"):
        quantize_artifact(artifact, tmp_path / "stale", to="keep", checkpoint=other)
    with pytest.raises(UsageError, match="name the folder that it wrote, with --checkpoint"):
        quantize_artifact(artifact, tmp_path / "stale", to="keep")
    (folder / BLOCKS).unlink()
    with pytest.raises(CheckpointError, match="has no gguf_blocks.safetensors"):
        quantize_artifact(artifact, tmp_path / "stale", to="keep", checkpoint=folder)
    assert not (tmp_path / "stale").exists()


@needs_library
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.usefixtures(native_kernels.__name__)
def test_blocks_of_onnx_runtime_have_both_graphs(tied: bool, tmp_path: Path) -> None:
    """Q4_0 and Q8_0: model.onnx computes with the same weights, which are stored once."""

    def kind(name: str) -> str:
        return "Q8_0" if name in ("token_embd", "output", "blk.0.attn_v") else "Q4_0"

    file = write_blocks_llama(tmp_path / "x.gguf", kind, tied=tied)
    folder = imported(file, tmp_path / "checkpoint")
    artifact, out = tmp_path / "fp32", tmp_path / "keep"
    export_checkpoint(folder, artifact)
    quantize_artifact(artifact, out, to="keep", checkpoint=folder)
    sizes = {path.name: path.stat().st_size for path in (out / "onnx").iterdir()}
    assert {"model.onnx", "model.onnx_data", "step.onnx"} <= sizes.keys()
    # The step graph's own: scales in float16, 2 of the 20 bytes of a block.
    assert sizes["step.onnx_data"] < sizes["model.onnx_data"] / 5
    with gptx_api.load(out) as model:
        step = forced_logits(model, list(range(40)))
    with onnx_runtime_only(), gptx_api.load(out) as model:
        assert model.kernels is None
        other = forced_logits(model, list(range(40)))
    assert np.abs(step - other).max() < 0.02 * np.abs(step).max()


def test_blocks_of_changed_weights_are_refused(tmp_path: Path) -> None:
    file = write_blocks_llama(tmp_path / "x.gguf", lambda name: "Q4_0")
    folder = imported(file, tmp_path / "checkpoint")
    gpt = load_model(folder)
    with torch.no_grad():
        gpt.layers[0].mlp.down.weight[7, 5] += 1e-6
    with pytest.raises(UsageError, match="the blocks of blocks.0.mlp.down in .* other values"):
        keep_weights(gpt, folder, tmp_path)


def test_a_type_without_blocks_is_named(tmp_path: Path) -> None:
    file = write_blocks_llama(tmp_path / "x.gguf", lambda name: "Q8_0")
    folder = imported(file, tmp_path / "checkpoint")
    with (folder / BLOCKS).open("rb") as opened:
        raw = opened.read()
    (folder / BLOCKS).write_bytes(raw.replace(b'\\"Q8_0\\"', b'\\"Q3_K\\"'))
    with pytest.raises(UsageError, match="is of type Q3_K, and native operators have no blocks"):
        keep_weights(load_model(folder), folder, tmp_path)


@pytest.mark.parametrize("cut", [3, 100, -1])
def test_a_damaged_file_of_blocks_is_refused(cut: int, tmp_path: Path) -> None:
    file = write_blocks_llama(tmp_path / "x.gguf", lambda name: "Q8_0")
    folder = imported(file, tmp_path / "checkpoint")
    raw = (folder / BLOCKS).read_bytes()
    (folder / BLOCKS).write_bytes(raw[:cut])
    with pytest.raises(CheckpointError, match="is damaged .*: import the GGUF file again"):
        keep_weights(load_model(folder), folder, tmp_path)
