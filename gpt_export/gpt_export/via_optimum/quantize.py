"""Quantize a graph that optimum exported, with ONNX Runtime's own tools."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import onnx

from gpt_export.graph.stored_weights import check_weights, read_graph, read_proto

BITS = {"int8": 8, "int4": 4}
BLOCK = {"int8": 64, "int4": 32, "int4-fast": 128}
RECIPES = (*BLOCK, "fp16")


def quantize_graph(source: Path, out: Path, to: str) -> dict[str, Any]:
    """Quantize the graph `source` to the file `out`; returns `quantization` of gptx.json.

    Both are .onnx files with their weights beside them. 8 and 4 bits: each MatMul with a constant
    weight becomes MatMulNBits; embeddings stay fp32. fp16: weights and arithmetic are half
    precision; inputs and outputs, including the cache, stay float32.
    """
    check_weights(read_graph(source), str(source), half=to == "fp16")
    model = read_proto(source)
    if to == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        with _silent():
            model = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
        facts: dict[str, Any] = {"scheme": "fp16", "by": "onnxruntime.transformers.float16"}
    else:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        bits, block = BITS[to.partition("-")[0]], BLOCK[to]
        with _silent():
            quantizer = MatMulNBitsQuantizer(
                model, bits=bits, block_size=block, is_symmetric=True, accuracy_level=4
            )
            quantizer.process()
        # process() has turned `model` into an ONNXModel
        model = quantizer.model.model  # type: ignore[attr-defined]
        facts = {
            "scheme": to,
            "bits": bits,
            "block": block,
            "by": "onnxruntime.quantization.MatMulNBitsQuantizer",
        }
    out.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(
        model, out, save_as_external_data=True, location=f"{out.name}_data", size_threshold=1024
    )
    return facts


@contextlib.contextmanager
def _silent():
    """Silence the quantizer, which prints each node."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            yield
        finally:
            logging.disable(level)
