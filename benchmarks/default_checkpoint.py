"""Write the model that ships with gptx as an fp32 checkpoint folder, to compare 4-bit formats on.

    python benchmarks/default_checkpoint.py default/

Its weights never were 4-bit. They are the dequantized weights of the int8 artifact, because the
fp32 weights of the training were not kept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper

from gptx.model import DEFAULT_MODEL
from gptx_models.checkpoints.checkpoint import save_checkpoint
from gptx_models.gpt.config import GPTConfig
from gptx_models.gpt.model import GPT


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    manifest = json.loads((DEFAULT_MODEL / "gptx.json").read_text(encoding="utf-8"))
    graph = onnx.load(DEFAULT_MODEL / "onnx" / "model.onnx").graph
    stored = {
        one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer
    }
    gpt = GPT(GPTConfig.from_dict(manifest["gpt_config"]))
    with torch.no_grad():
        for name, parameter in gpt.named_parameters():
            value = stored[name]
            if (
                value.dtype == torch.uint8
            ):  # (rows, blocks, block) with zero point 128 and a scale per block
                value = (value.float() - 128) * stored[
                    name.removesuffix("weight") + "scales"
                ].unsqueeze(-1)
            parameter.copy_(value.reshape(parameter.shape))
    generation = json.loads((DEFAULT_MODEL / "generation_config.json").read_text(encoding="utf-8"))
    source = {"format": "gptx", "name": "the default model, from int8"}
    save_checkpoint(gpt, out, tokenizer_files=DEFAULT_MODEL, source=source, generation=generation)


if __name__ == "__main__":
    main()
