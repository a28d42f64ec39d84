"""A tiny artifact for the tests of the runtime.

A GPT with random weights, built with onnx.helper in any of the cache forms.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import gptx
from gptx.parity.limits import limits_for

N_LAYER, N_HEAD, HEAD_DIM, N_CTX = 2, 2, 8, 64
WIDTH = N_HEAD * HEAD_DIM


class Graph:
    """The nodes and initializers of a graph that is being built."""

    def __init__(self, vocab_size: int, n_ctx: int, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.vocab_size, self.n_ctx = vocab_size, n_ctx

    def weight(self, *shape: int, scale: float = 1.0) -> str:
        return self.constant(self.random.normal(size=shape).astype(np.float32) * np.float32(scale))

    def constant(self, array: Any) -> str:
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(
        self,
        kind: str,
        *inputs: str,
        outputs: list[str] | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        outputs = outputs or [f"{kind}_{len(self.nodes)}"]
        self.nodes.append(
            helper.make_node(kind, list(inputs), outputs, domain=domain, **attributes)
        )
        return outputs[0]


def attention(graph: Graph, cache: str, layer: int, qkv: list[str], shared: dict[str, str]) -> str:
    q, k, v = qkv  # (B, S, H * D)
    past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
    present = [f"present.{layer}.{part}" for part in ("key", "value")]
    if cache == "shared":
        return graph.op(
            "GroupQueryAttention",
            *(q, k, v, *past, shared["last"], shared["total"], "", "", "", shared["bias"]),
            outputs=[f"attention_{layer}", *present],
            domain="com.microsoft",
            num_heads=N_HEAD,
            kv_num_heads=N_HEAD,
        )
    heads = graph.constant(np.array([0, 0, N_HEAD, HEAD_DIM]))

    def split(x: str) -> str:
        return graph.op("Transpose", graph.op("Reshape", x, heads), perm=[0, 2, 1, 3])

    q, k, v = split(q), split(k), split(v)
    for old, new, out in zip(past, (k, v), present):
        if cache == "growing":
            graph.op("Concat", old, new, outputs=[out], axis=2)
        else:
            graph.op("TensorScatter", old, new, shared["first"], outputs=[out], axis=-2)
    scores = graph.op("MatMul", q, graph.op("Transpose", present[0], perm=[0, 1, 3, 2]))
    scores = graph.op("Mul", scores, graph.constant(np.float32(HEAD_DIM**-0.5)))
    y = graph.op(
        "MatMul", graph.op("Softmax", graph.op("Add", scores, shared["bias"]), axis=-1), present[1]
    )
    return graph.op(
        "Reshape",
        graph.op("Transpose", y, perm=[0, 2, 1, 3]),
        graph.constant(np.array([0, 0, WIDTH])),
    )


def masks(graph: Graph, cache: str) -> dict[str, str]:
    """The values that the attention of every layer needs, computed from the three inputs."""
    zero, low = graph.constant(np.float32(0)), graph.constant(np.float32(-1e30))
    one_i64, zero_i64 = graph.constant(np.int64(1)), graph.constant(np.int64(0))
    axes = graph.constant(np.array([1, 2]))

    def span(length: str) -> str:
        return graph.op("Range", zero_i64, length, one_i64)

    if cache == "scatter":  # query i sees keys j <= position_ids[b, i]
        length = graph.op("Squeeze", graph.op("Shape", "past_key_values.0.key", start=2, end=3))
        rows = graph.op("Unsqueeze", "position_ids", graph.constant(np.array([1, 3])))
        seen = graph.op("LessOrEqual", span(length), rows)
        first = graph.op(
            "Slice", "position_ids", graph.constant([0]), graph.constant([1]), graph.constant([1])
        )
        first = graph.op("Squeeze", first, graph.constant([1]))
        return {"bias": graph.op("Where", seen, zero, low), "first": first}
    total = graph.op("Squeeze", graph.op("Shape", "attention_mask", start=1, end=2))
    new = graph.op("Squeeze", graph.op("Shape", "input_ids", start=1, end=2))
    real = graph.op("Unsqueeze", graph.op("Cast", "attention_mask", to=TensorProto.BOOL), axes)
    if cache == "shared":
        bias = graph.op("Where", real, zero, low)
        batch, new = (graph.op("Shape", "input_ids", start=i, end=i + 1) for i in (0, 1))
        width = graph.op("Shape", "attention_mask", start=1, end=2)
        shape = graph.op("Concat", batch, graph.constant(np.array([1])), new, width, axis=0)
        last = graph.op(
            "ReduceMax",
            graph.op("Mul", "attention_mask", span(total)),
            graph.constant([1]),
            keepdims=0,
        )
        return {
            "bias": graph.op("Expand", bias, shape),
            "last": graph.op("Cast", last, to=TensorProto.INT32),
            "total": graph.op("Cast", total, to=TensorProto.INT32),
        }
    keys = span(total)
    queries = graph.op(
        "Unsqueeze", graph.op("Add", span(new), graph.op("Sub", total, new)), graph.constant([1])
    )
    seen = graph.op("And", graph.op("LessOrEqual", keys, queries), real)
    return {"bias": graph.op("Where", seen, zero, low)}


def graph_model(
    cache: str, *, vocab_size: int, n_ctx: int = N_CTX, keep: bool = True, seed: int = 0
) -> onnx.ModelProto:
    graph = Graph(vocab_size, n_ctx, seed)
    embedding = graph.weight(vocab_size, WIDTH, scale=0.3)
    x = graph.op(
        "Add",
        graph.op("Gather", embedding, "input_ids"),
        graph.op("Gather", graph.weight(n_ctx, WIDTH, scale=0.5), "position_ids"),
    )
    shared = masks(graph, cache)
    for layer in range(N_LAYER):
        normed = graph.op("LayerNormalization", x, graph.constant(np.ones(WIDTH, np.float32)))
        qkv = [graph.op("MatMul", normed, graph.weight(WIDTH, WIDTH, scale=0.5)) for _ in range(3)]
        y = graph.op(
            "MatMul",
            attention(graph, cache, layer, qkv, shared),
            graph.weight(WIDTH, WIDTH, scale=0.5),
        )
        x = graph.op("Add", x, y)
    if keep:
        graph.initializers.append(numpy_helper.from_array(np.int64(0), "num_logits_to_keep"))
        start = graph.op("Unsqueeze", graph.op("Neg", "num_logits_to_keep"), graph.constant([0]))
        x = graph.op("Slice", x, start, graph.constant([2**62]), graph.constant([1]))
    graph.op("MatMul", x, graph.op("Transpose", embedding, perm=[1, 0]), outputs=["logits"])

    def cache_values(name: str, length: str) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(
                f"{name}.{i}.{part}", TensorProto.FLOAT, ["batch_size", N_HEAD, length, HEAD_DIM]
            )
            for i in range(N_LAYER)
            for part in ("key", "value")
        ]

    int64 = TensorProto.INT64
    inputs = [
        helper.make_tensor_value_info("input_ids", int64, ["batch_size", "sequence_length"]),
        helper.make_tensor_value_info(
            "attention_mask", int64, ["batch_size", "total_sequence_length"]
        ),
        helper.make_tensor_value_info("position_ids", int64, ["batch_size", "sequence_length"]),
        *cache_values("past_key_values", "past_sequence_length"),
    ]
    if keep:
        inputs.append(helper.make_tensor_value_info("num_logits_to_keep", int64, []))
    outputs = [
        helper.make_tensor_value_info(
            "logits", TensorProto.FLOAT, ["batch_size", "kept", vocab_size]
        )
    ]
    outputs += cache_values("present", "present_length")
    proto = helper.make_graph(graph.nodes, "tiny", inputs, outputs, graph.initializers)
    opset = 24 if cache == "scatter" else 21
    return helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )


def byte_tokenizer(*, vocab_size: int = 300) -> Tokenizer:
    """A byte-level BPE whose id 0 is <|end|>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["the cat sat on the mat and the dog sat on the log " * 3], trainer
    )
    return tokenizer


def write_artifact(
    folder: Path,
    cache: str = "shared",
    *,
    n_ctx: int = N_CTX,
    padding: int = 0,
    keep: bool = True,
    prefill_chunk: int = 512,
    tokenizer: bool = True,
    generation: dict[str, Any] | None = None,
    template: str | None = None,
    eos: list[int] | None = None,
    seed: int = 0,
) -> Path:
    """An artifact of a random model. padding: ids of the model that the tokenizer lacks."""
    (folder / "onnx").mkdir(parents=True)
    known = byte_tokenizer().get_vocab_size()
    vocab_size = known + padding
    eos = eos if eos is not None else [0]
    onnx.save(
        graph_model(cache, vocab_size=vocab_size, n_ctx=n_ctx, keep=keep, seed=seed),
        str(folder / "onnx/model.onnx"),
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "gptx"}))
    (folder / "generation_config.json").write_text(json.dumps(generation or {}))
    if tokenizer:
        byte_tokenizer().save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
        (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    manifest = {
        "format": "gptx", "format_version": 1, "gptx_version": "0.1.0", "precision": "fp32",
        "cache": cache, "prefill_chunk": prefill_chunk, "cache_dtype": "float32",
        "model": {"n_layer": N_LAYER, "n_head": N_HEAD, "n_kv_head": N_HEAD, "head_dim": HEAD_DIM,
                  "n_ctx": n_ctx, "vocab_size": vocab_size, "n_parameters": 1000},
        "tokens": {"vocab_size": known if tokenizer else None,
                   "bos": None, "eos": eos, "pad": None},
        "quantization": None, "source": {}, "versions": {}, "certificate": {},
    }  # fmt: skip
    save_manifest(folder, manifest)
    return folder


def certify_artifact(folder: Path) -> dict[str, Any]:
    """Give an artifact of write_artifact a certificate, with the artifact itself as reference.

    Export does the same with the PyTorch model as reference.
    """
    from gpt_export.certificate.certify import record_artifact
    from gpt_export.certificate.eval_text import load_eval_text
    from gpt_export.certificate.prove import prove

    facts = json.loads((folder / "gptx.json").read_text())
    shape = facts["model"]
    text = load_eval_text(folder, vocab_size=shape["vocab_size"], n_ctx=shape["n_ctx"], most=200)
    with gptx.load(folder, threads=1) as model, tempfile.NamedTemporaryFile() as scratch:
        recording = record_artifact(model, text, Path(scratch.name))
    recording.reference(48_000, folder, facts["tokens"]).save(folder)
    return prove(folder, facts, recording, limits_for("fp32"), accept=False, what="a tiny artifact")


def save_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write gptx.json with the sizes and hashes of the files in the folder."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("gptx.json", "README.md")
    )
    manifest["files"] = {
        path.relative_to(folder).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }
        for path in files
    }
    (folder / "gptx.json").write_text(json.dumps(manifest))


def refresh(folder: Path) -> None:
    """Update the sizes and hashes in gptx.json, so that a test gets past their checks."""
    save_manifest(folder, json.loads((folder / "gptx.json").read_text()))


def change_embedding(folder: Path, change: Callable[[np.ndarray], None]) -> None:
    """Change the embedding of a tiny artifact, which is its head as well (tied weights)."""
    graph = onnx.load(folder / "onnx/model.onnx")
    embedding = next(tensor for tensor in graph.graph.initializer if tensor.name == "constant_0")
    table = numpy_helper.to_array(embedding).copy()
    change(table)
    embedding.CopyFrom(numpy_helper.from_array(table, "constant_0"))
    onnx.save(graph, folder / "onnx/model.onnx")
    refresh(folder)
