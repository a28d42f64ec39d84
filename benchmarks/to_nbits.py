"""Quantize an fp32 artifact to 8 bits with ONNX Runtime's own tools, as genai's builder does.

MatMulNBits, symmetric in blocks of 32, rounded to nearest, activations in 8 bits; the embedding
stays in fp32.

    python benchmarks/to_nbits.py smollm2-onnx smollm2-nbits32
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)


def untie(model: ModelProto) -> None:
    """Replace the head's FusedMatMul on the embedding by a MatMul, which the quantizer requires."""
    weights = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "FusedMatMul" and node.input[1] in weights:
            table = numpy_helper.to_array(weights[node.input[1]])
            model.graph.initializer.append(numpy_helper.from_array(table.T.copy(), "head.weight"))
            node.CopyFrom(
                onnx.helper.make_node("MatMul", [node.input[0], "head.weight"], node.output)
            )


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    source, out = map(Path, sys.argv[1:])
    model = onnx.load(source / "onnx" / "model.onnx")
    untie(model)
    config = DefaultWeightOnlyQuantConfig(
        block_size=32, is_symmetric=True, accuracy_level=4, bits=8
    )
    quantizer: Any = MatMulNBitsQuantizer(
        model, algo_config=config
    )  # the quantizer has turned its ModelProto into an ONNXModel
    quantizer.process()
    shutil.copytree(
        source,
        out,
        ignore=shutil.ignore_patterns("onnx", "gptx.json", "gptx_reference.safetensors"),
    )
    (out / "onnx").mkdir()
    onnx.save(
        quantizer.model.model,
        out / "onnx" / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
    )


if __name__ == "__main__":
    main()
