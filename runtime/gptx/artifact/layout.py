"""The files of an artifact: their names, and the most bytes that each may have."""

from __future__ import annotations

GRAPH = "onnx/model.onnx"
# Further graphs. They use the weights of GRAPH.
DECODE = "onnx/decode.onnx"  # for runs of a single row; recipes such as int8-fast have it
CUDA = "onnx/cuda.onnx"  # opened on CUDA in place of GRAPH; fp16 has it
STEP = "onnx/step.onnx"  # of native operators; its cache is laid out in another way than GRAPH's
SECOND_GRAPHS = {"decode": DECODE, "cuda": CUDA, "step": STEP}  # field of gptx.json: graph file

REFERENCE = "gptx_reference.safetensors"
# All files in these folders must be listed in gptx.json: a graph can name any file beside it as its
# weights.
GRAPH_FOLDERS = ("onnx", "compiled")
# All other files that gptx or another loader of the artifact opens. They must be listed too. They
# are read into memory whole, so their size (bytes) is limited. Files that are not named here
# (README.md, .gitattributes) are never opened.
SIDE_FILES = {
    "config.json": 16_000_000,
    "generation_config.json": 16_000_000,
    "genai_config.json": 16_000_000,
    "tokenizer.json": 256_000_000,
    "tokenizer_config.json": 64_000_000,
    "special_tokens_map.json": 16_000_000,
    "added_tokens.json": 16_000_000,
    "chat_template.jinja": 4_000_000,
    "gptx_task.json": 16_000_000,
    REFERENCE: 16_000_000,
}
MANIFEST_MOST = 64_000_000  # bytes of gptx.json
